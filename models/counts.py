"""Square-root graphical model of counts: positive and negative dependence between Poisson-like variables.

log p(x) = θᵀ√x + √xᵀ Φ √x − Σ_d log x_d! up to a constant, Φ symmetric with the linear terms on its diagonal (Square
Root Graphical Models: Multivariate Generalizations of Univariate Exponential Families that Permit Positive
Dependencies). With Φ diagonal the counts are independent and close to Poisson with rate exp(Φ_dd). Unlike in the
Poisson graphical model, dependences may be positive and the constant is still finite, because x log x outgrows x.

Data: draws at known parameters, by enumeration; `log_normalizer` sums over a box.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
from jax.scipy.special import gammaln, logsumexp
from jax.typing import ArrayLike

from .exponential_family import precision
from .registry import Model

__all__ = ["MODEL", "data", "log_normalizer", "model", "truth"]

NUM_DRAWS, LARGEST = 1500, 60


def _log_density(x: ArrayLike, theta: ArrayLike, diagonal: ArrayLike, upper: ArrayLike):
    x = jnp.asarray(x, jnp.result_type(float))
    root = jnp.sqrt(x)
    phi = precision(diagonal, upper)
    return root @ jnp.asarray(theta) + jnp.einsum("ni,ij,nj->n", root, phi, root) - jnp.sum(gammaln(x + 1), axis=-1)


def model(x: ArrayLike) -> None:
    """Params: theta (D,), diagonal (D,) and upper (D (D − 1) / 2,) of Φ. `x`: (n, D), counts."""
    x = jnp.asarray(x)
    d = x.shape[1]
    theta = numpyro.param("theta", jnp.zeros(d))
    diagonal = numpyro.param("diagonal", jnp.zeros(d))
    upper = numpyro.param("upper", jnp.zeros(d * (d - 1) // 2))
    with numpyro.plate("data", x.shape[0]):
        numpyro.factor("log_density", _log_density(x, theta, diagonal, upper))


def _box(d: int) -> np.ndarray:
    return np.stack(np.meshgrid(*[np.arange(LARGEST)] * d, indexing="ij"), -1).reshape(-1, d)


def log_normalizer(theta: ArrayLike, diagonal: ArrayLike, upper: ArrayLike) -> float:
    """log of the sum over all counts below 60, for two or three variables, in nats."""
    return float(logsumexp(_log_density(_box(np.shape(theta)[0]), theta, diagonal, upper)))


def truth() -> dict[str, np.ndarray]:
    """A pair that attracts each other, and a third that repels one of them."""
    return {
        "theta": np.array([0.3, 0.5, 0.4]),
        "diagonal": np.array([0.5, 0.3, 0.8]),
        "upper": np.array([0.25, -0.2, 0.0]),
    }


def data() -> dict[str, Any]:
    """Counts `x` (1500, 3), int32."""
    box = _box(3)
    log_p = np.asarray(_log_density(box, **truth()), np.float64)
    p = np.exp(log_p - log_p.max())
    return {"x": box[np.random.default_rng(0).choice(len(p), NUM_DRAWS, p=p / p.sum())].astype(np.int32)}


MODEL = Model(
    name="count_graph",
    description="Square-root graphical model of three counts, no constant: 1500 draws, positive and negative ties",
    model=model,
    data=data,
    truth=truth,
)
