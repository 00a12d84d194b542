"""Linear-Gaussian model with a learnable theta and a latent per datum: objectives and gradients in closed form.

z_i ~ N(theta, 1), x_i ~ N(z_i, 1), guide q(z_i) = N(loc_i, scale_i^2); simulated. The posterior of z_i is
N((x_i + theta) / 2, 1/2) and x_i ~ N(theta, 2).

The closed forms below are JAX functions that sum over all elements of x, whatever its shape, so that `jax.grad` of them
is the exact gradient in theta, loc and scale: `elbo`, `log_evidence`, `forward_kl`, and `log_weight_moment`, which
holds the limits of many particles of the Renyi bounds, CUBO and the chi^2 divergence.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

from .registry import Model

__all__ = [
    "MODEL",
    "data",
    "elbo",
    "forward_kl",
    "guide",
    "log_evidence",
    "log_weight_moment",
    "model",
    "posterior",
    "truth",
]

LOG_2PI = float(np.log(2.0 * np.pi))
NUM_DATA = 50


def model(x, batch_size=None) -> None:
    """z_i ~ N(theta, 1), x_i ~ N(z_i, 1), in plate "data". `x`: (N,). Param: theta, started at 0."""
    theta = numpyro.param("theta", jnp.zeros(()))
    with numpyro.plate("data", len(x), subsample_size=batch_size):
        z = numpyro.sample("z", dist.Normal(theta, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=numpyro.subsample(x, event_dim=0))


def guide(x, batch_size=None) -> None:
    """q(z_i) = N(loc_i, scale_i^2). Params: loc (N,), started at 0, and scale (N,), started at 1."""
    loc = numpyro.param("loc", jnp.zeros(len(x)))
    scale = numpyro.param("scale", jnp.ones(len(x)), constraint=constraints.positive)
    with numpyro.plate("data", len(x), subsample_size=batch_size):
        loc, scale = numpyro.subsample(loc, event_dim=0), numpyro.subsample(scale, event_dim=0)
        numpyro.sample("z", dist.Normal(loc, scale))


def truth() -> dict[str, np.ndarray]:
    """The theta that generated the data."""
    return {"theta": np.array(1.0)}


def data() -> dict[str, Any]:
    """Simulated `x` (50,). The maximum-likelihood estimate of theta is its mean."""
    return {"x": truth()["theta"] + np.sqrt(2.0) * np.random.RandomState(0).standard_normal(NUM_DATA)}


def posterior(theta, x) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation of z given x, elementwise, in the shape of `x`."""
    mean = 0.5 * (jnp.asarray(x) + theta)
    return mean, jnp.full_like(mean, np.sqrt(0.5))


def log_evidence(theta, x) -> jax.Array:
    """sum_i log N(x_i; theta, 2)."""
    x = jnp.asarray(x)
    return jnp.sum(-0.25 * (x - theta) ** 2 - 0.5 * (LOG_2PI + jnp.log(2.0)))


def elbo(theta, loc, scale, x) -> jax.Array:
    """sum_i E_q[log p(x_i, z_i) - log q(z_i)]."""
    expected_log_joint = -LOG_2PI - 0.5 * ((x - loc) ** 2 + (loc - theta) ** 2) - scale**2
    entropy = 0.5 * (LOG_2PI + 1.0) + jnp.log(scale)
    return jnp.sum(jnp.broadcast_to(expected_log_joint + entropy, jnp.shape(x)))


def forward_kl(theta, loc, scale, x) -> jax.Array:
    """sum_i KL(p(z_i | x_i) || q(z_i)), what reweighted wake-sleep minimises in the guide."""
    mean, sd = posterior(theta, x)
    kl = jnp.log(scale / sd) + 0.5 * (sd**2 + (mean - loc) ** 2) / scale**2 - 0.5
    return jnp.sum(kl)


def log_weight_moment(n, theta, loc, scale, x) -> jax.Array:
    """sum_i log E_q[w_i^n], w = p(x, z) / q(z); +inf where the integral diverges.

    n = 2: log V of the forward chi^2 divergence. CUBO_n is this over n. The Renyi bound is this with n = 1 - alpha,
    over n. n = 1: the log-evidence.
    """
    mean, sd = posterior(theta, x)
    var_p, var_q = sd**2, jnp.square(scale)
    precision = n / var_p + (1.0 - n) / var_q
    log_overlap = -0.5 * (n * jnp.log(var_p) + (1.0 - n) * jnp.log(var_q) + jnp.log(precision))
    log_overlap += -0.5 * n * (1.0 - n) * (mean - loc) ** 2 / (var_p * var_q * precision)
    return n * log_evidence(theta, x) + jnp.sum(jnp.where(precision > 0.0, log_overlap, jnp.inf))


MODEL = Model(
    name="linear_gaussian_theta",
    description="Linear-Gaussian, learnable mean, a latent per datum: every gradient in closed form (simulated)",
    model=model,
    data=data,
    guide=guide,
    truth=truth,
)
