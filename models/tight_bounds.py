"""The Gaussian model on which tighter bounds were shown not to be better.

Rainforth et al., "Tighter Variational Bounds are Not Necessarily Better" (ICML 2018), section 4: z ~ N(mu, I),
x | z ~ N(z, I), amortised guide q(z | x) = N(A x + b, 2/3 I), with D = 20 dimensions and N = 1024 data points. The data
are simulated with mu ~ N(0, I). The optimum is known, mu = mean(x), A = I/2, b = mu/2, and, as in the paper, parameters
start from it with every entry off by N(0, 0.01^2). The guide's variance is fixed above the posterior's 1/2, so no bound
is tight there.

Exact objectives are those of `linear_gaussian_theta` with theta = mu, loc = A x + b, scale = sqrt(2/3).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from . import linear_gaussian_theta
from .registry import Model

__all__ = ["MODEL", "SCALE", "data", "elbo", "guide", "log_evidence", "model", "optimum", "start", "truth"]

DIM = 20
NUM_DATA = 1024
SCALE = float(np.sqrt(2.0 / 3.0))  # standard deviation of the guide
OFFSET = 0.01  # standard deviation of the start around the optimum


def model(x, batch_size=None) -> None:
    """z_i ~ N(mu, I), x_i ~ N(z_i, I), in plate "data". `x`: (N, D). Param: mu (D,)."""
    mu = numpyro.param("mu", lambda _: jnp.asarray(start(x)["mu"]))
    with numpyro.plate("data", x.shape[0], subsample_size=batch_size):
        z = numpyro.sample("z", dist.Normal(mu, 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=numpyro.subsample(x, event_dim=1))


def guide(x, batch_size=None) -> None:
    """q(z_i | x_i) = N(A x_i + b, 2/3 I). Params: A (D, D), b (D,)."""
    A = numpyro.param("A", lambda _: jnp.asarray(start(x)["A"]))
    b = numpyro.param("b", lambda _: jnp.asarray(start(x)["b"]))
    with numpyro.plate("data", x.shape[0], subsample_size=batch_size):
        x = numpyro.subsample(x, event_dim=1)
        numpyro.sample("z", dist.Normal(x @ A.T + b, SCALE).to_event(1))


def optimum(x) -> dict[str, Any]:
    """Parameters that maximise every bound on `x` (N, D): mu (D,), A (D, D), b (D,)."""
    mu = x.mean(0)
    return {"mu": mu, "A": 0.5 * np.eye(x.shape[1]), "b": 0.5 * mu}


def start(x) -> dict[str, Any]:
    """The optimum with every entry off by N(0, 0.01^2), the same for the same D."""
    rng = np.random.RandomState(1)
    return {name: value + OFFSET * rng.standard_normal(value.shape) for name, value in optimum(x).items()}


def truth() -> dict[str, np.ndarray]:
    """The mu that generated the data, (20,)."""
    return {"mu": np.random.RandomState(0).standard_normal(DIM)}


def data() -> dict[str, Any]:
    """Simulated `x` (1024, 20)."""
    return {"x": truth()["mu"] + np.sqrt(2.0) * np.random.RandomState(2).standard_normal((NUM_DATA, DIM))}


def log_evidence(mu, x) -> jax.Array:
    """sum_i log N(x_i; mu, 2 I)."""
    return linear_gaussian_theta.log_evidence(mu, x)


def elbo(mu, A, b, x) -> jax.Array:
    """sum_i E_q[log p(x_i, z_i) - log q(z_i | x_i)]."""
    return linear_gaussian_theta.elbo(mu, x @ A.T + b, SCALE, x)


MODEL = Model(
    name="tight_bounds",
    description="Gaussian of the tighter-variational-bounds paper: D=20, N=1024, amortised guide (simulated)",
    model=model,
    data=data,
    guide=guide,
    truth=truth,
)
