"""Directions on the sphere without their constants: von Mises-Fisher exp(θᵀx) and Bingham exp(xᵀAx), xᵀx = 1.

Both are energies (`numpyro.factor` alone). `vmf_log_normalizer` is the closed form by a Bessel function,
`bingham_log_normalizer` an integral over the sphere in three dimensions.

Data: draws at known parameters, von Mises-Fisher by scipy, Bingham by rejection from the uniform law.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array
from jax.typing import ArrayLike
from scipy import special, stats

from .registry import Model

__all__ = [
    "MODELS",
    "bingham",
    "bingham_data",
    "bingham_log_normalizer",
    "bingham_truth",
    "symmetric",
    "vmf_data",
    "vmf_log_normalizer",
    "vmf_truth",
    "von_mises_fisher",
]

NUM_DRAWS = 1000


def von_mises_fisher(x: ArrayLike) -> None:
    """Param: theta (D,), concentration times mean direction. `x`: (n, D), unit vectors."""
    x = jnp.asarray(x)
    theta = numpyro.param("theta", jnp.full(x.shape[1], 0.1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.factor("energy", x @ theta)


def vmf_log_normalizer(theta: ArrayLike) -> float:
    """log ∫ exp(θᵀx) dx over the unit sphere, in nats."""
    theta = np.asarray(theta, np.float64)
    d, k = len(theta), np.linalg.norm(theta)
    return float(d / 2 * np.log(2 * np.pi) - (d / 2 - 1) * np.log(k) + np.log(special.ive(d / 2 - 1, k)) + k)


def vmf_truth() -> dict[str, np.ndarray]:
    return {"theta": np.array([1.0, -2.0, 2.0])}


def vmf_data() -> dict[str, Any]:
    """Unit vectors `x` (1000, 3)."""
    theta = vmf_truth()["theta"]
    kappa = float(np.linalg.norm(theta))
    law = stats.vonmises_fisher(theta / kappa, kappa, seed=0)
    return {"x": law.rvs(NUM_DRAWS, random_state=np.random.default_rng(0))}


def symmetric(a: ArrayLike, d: int) -> Array:
    """The matrix ``(d, d)`` of its entries `a`, row by row on and above the diagonal, the last one such that its trace
    is zero: on the sphere a multiple of the identity changes nothing."""
    rows, columns = np.triu_indices(d)
    place = np.zeros((len(rows), d, d), np.float32)
    place[np.arange(len(rows)), rows, columns] = 1
    place[np.arange(len(rows)), columns, rows] = 1
    basis = place[:-1] - (rows == columns)[:-1, None, None] * place[-1]
    return jnp.einsum("k,kij->ij", jnp.asarray(a), basis)


def bingham(x: ArrayLike) -> None:
    """Param: a (D (D + 1) / 2 − 1,), entries of A (`symmetric`). `x`: (n, D), unit vectors; x and −x are alike."""
    x = jnp.asarray(x)
    d = x.shape[1]
    a = numpyro.param("a", jnp.zeros(d * (d + 1) // 2 - 1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.factor("energy", jnp.einsum("ni,ij,nj->n", x, symmetric(a, d), x))


def bingham_log_normalizer(a: ArrayLike) -> float:
    """log ∫ exp(xᵀAx) dx over the sphere in three dimensions, by quadrature, in nats."""
    z, weights = np.polynomial.legendre.leggauss(100)
    phi = np.arange(200) * 2 * np.pi / 200
    r = np.sqrt(1 - z**2)[:, None]
    x = np.stack(np.broadcast_arrays(r * np.cos(phi), r * np.sin(phi), z[:, None]), -1)
    energy = np.einsum("uvi,ij,uvj->uv", x, np.asarray(symmetric(a, 3), np.float64), x)
    return float(np.log(np.sum(weights[:, None] * np.exp(energy)) * 2 * np.pi / 200))


def bingham_truth() -> dict[str, np.ndarray]:
    return {"a": np.array([-1.5, 0.8, 0.0, 0.5, 0.4])}


def bingham_data() -> dict[str, Any]:
    """Unit vectors `x` (1000, 3)."""
    matrix = np.asarray(symmetric(bingham_truth()["a"], 3), np.float64)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20 * NUM_DRAWS, 3))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    height = np.einsum("ni,ij,nj->n", x, matrix, x) - np.linalg.eigvalsh(matrix)[-1]
    return {"x": x[np.log(rng.uniform(size=len(x))) < height][:NUM_DRAWS]}


MODELS = (
    Model(
        name="von_mises_fisher",
        description="Directions with a von Mises-Fisher density, its constant left out: 1000 draws on the sphere",
        model=von_mises_fisher,
        data=vmf_data,
        truth=vmf_truth,
    ),
    Model(
        name="bingham",
        description="Axes with a Bingham density, its constant left out: 1000 draws on the sphere",
        model=bingham,
        data=bingham_data,
        truth=bingham_truth,
    ),
)
