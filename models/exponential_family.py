"""Exponential families without their constants: polynomial on the line, Gaussian with a precision matrix, truncated.

- `polynomial`: p(x) ∝ exp(θ₁x + θ₂x² + θ₃x³ − θ₄x⁴), θ₄ > 0: two modes, or one and a shoulder.
- `gaussian_graphical`: p(x) ∝ exp(−½ (x − μ)ᵀK(x − μ)) with the precision matrix K, whose zeros are conditional
  independences; the constant and its determinant are left out.
- `truncated_normal`: a normal density cut off below a known bound, as NumPyro has it, constant included.

Data: draws at known parameters; and the chemical analyses of 178 wines (scikit-learn), standardised.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike
from scipy import stats

from . import _sklearn
from .registry import Model

__all__ = [
    "MODELS",
    "gaussian_graphical",
    "polynomial",
    "polynomial_data",
    "polynomial_log_normalizer",
    "polynomial_truth",
    "precision",
    "truncated_data",
    "truncated_normal",
    "truncated_truth",
    "wine",
]

NUM_DRAWS = 1000


def polynomial(x: ArrayLike) -> None:
    """Params: theta (3,), quartic > 0. `x`: (n,)."""
    x = jnp.asarray(x)
    theta = numpyro.param("theta", jnp.zeros(3))
    quartic = numpyro.param("quartic", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("data", x.shape[0]):
        numpyro.factor("energy", theta[0] * x + theta[1] * x**2 + theta[2] * x**3 - quartic * x**4)


def _energy(theta: ArrayLike, quartic: ArrayLike, x: np.ndarray) -> np.ndarray:
    theta = np.asarray(theta, np.float64)
    return theta[0] * x + theta[1] * x**2 + theta[2] * x**3 - np.asarray(quartic, np.float64) * x**4


GRID = np.linspace(-6.0, 6.0, 20_001)


def polynomial_log_normalizer(theta: ArrayLike, quartic: ArrayLike) -> float:
    """log Z by quadrature, in nats, for densities that live within (−6, 6)."""
    return float(np.log(np.trapezoid(np.exp(_energy(theta, quartic, GRID)), GRID)))


def polynomial_truth() -> dict[str, np.ndarray]:
    return {"theta": np.array([0.3, 1.5, -0.2]), "quartic": np.array(0.5)}


def polynomial_data() -> dict[str, Any]:
    """Draws `x` (1000,), by the inverse distribution function on a grid."""
    truth = polynomial_truth()
    p = np.exp(_energy(truth["theta"], truth["quartic"], GRID))
    below = np.cumsum(p) / p.sum()
    return {"x": np.interp(np.random.default_rng(0).uniform(size=NUM_DRAWS), below, GRID)}


def precision(diagonal: ArrayLike, upper: ArrayLike) -> Array:
    """The symmetric matrix of its diagonal ``(D,)`` and of its entries above it, row by row."""
    d = np.shape(diagonal)[0]
    rows, columns = np.triu_indices(d, 1)
    place = np.zeros((len(rows), d, d), np.float32)
    place[np.arange(len(rows)), rows, columns] = place[np.arange(len(rows)), columns, rows] = 1
    return jnp.diag(jnp.asarray(diagonal)) + jnp.einsum("k,kij->ij", jnp.asarray(upper), place)


def gaussian_graphical(x: ArrayLike) -> None:
    """Params: shift (D,) = Kμ, diagonal (D,) and upper (D (D − 1) / 2,) of K. `x`: (n, D)."""
    x = jnp.asarray(x)
    d = x.shape[1]
    shift = numpyro.param("shift", jnp.zeros(d))
    k = precision(numpyro.param("diagonal", jnp.ones(d)), numpyro.param("upper", jnp.zeros(d * (d - 1) // 2)))
    with numpyro.plate("data", x.shape[0]):
        numpyro.factor("energy", x @ shift - 0.5 * jnp.einsum("ni,ij,nj->n", x, k, x))


def wine() -> dict[str, Any]:
    """Standardised measurements `x` (178, 13)."""
    x = np.asarray(_sklearn.load("wine").data, np.float64)
    return {"x": (x - x.mean(0)) / x.std(0)}


LOW = 0.0


def truncated_normal(x: ArrayLike) -> None:
    """Sites: mu, sigma, of the normal before it is cut off below 0. `x`: (n,), positive."""
    x = jnp.asarray(x)
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(5.0))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("x", dist.TruncatedNormal(mu, sigma, low=LOW), obs=x)


def truncated_truth() -> dict[str, np.ndarray]:
    return {"mu": np.array(1.0), "sigma": np.array(1.0)}


def truncated_data() -> dict[str, Any]:
    """Draws `x` (1000,)."""
    return {"x": stats.truncnorm.rvs(-1, np.inf, loc=1, scale=1, size=NUM_DRAWS, random_state=np.random.default_rng(0))}


MODELS = (
    Model(
        name="polynomial",
        description="Density exp(polynomial of degree 4) without its constant: 1000 draws, two modes",
        model=polynomial,
        data=polynomial_data,
        truth=polynomial_truth,
    ),
    Model(
        name="gaussian_graphical",
        description="Gaussian graphical model by its precision matrix: 178 wines, 13 measurements",
        model=gaussian_graphical,
        data=wine,
    ),
    Model(
        name="truncated_normal",
        description="Normal density cut off below zero: 1000 draws",
        model=truncated_normal,
        data=truncated_data,
    ),
)
