"""Regression with a smooth mean and a smooth noise level, in natural parameters, in which it is concave.

y | x ~ N(f(x), g(x)²) with η1 = f/g² = Φ(x) w1 and η2 = −1/(2g²) = −Φ(x) w2. Φ are Gaussian bumps over the range of x,
and w2 is positive. The log-likelihood η1 y + η2 y² + η1²/(4 η2) + ½ log(−2 η2) is jointly concave in (w1, w2),
so there is one optimum. Source: "On the Identifiability and Estimation of Causal Location-Scale Noise Models".
"""

from __future__ import annotations

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike

__all__ = ["bumps", "model", "standardised"]


def standardised(values: ArrayLike) -> Array:
    """Values with mean 0 and standard deviation 1. `values`: (n,)."""
    v = jnp.asarray(values, jnp.result_type(float))
    if v.ndim != 1 or v.shape[0] < 3:
        raise ValueError(f"values must have shape (n,) with n of 3 or more, got {v.shape}")
    return (v - jnp.mean(v)) / jnp.std(v)


def bumps(x: Array, num_bumps: int) -> Array:
    """Gaussian bumps, evenly spaced over the range of x, as wide as their distance; a constant: (n, num_bumps + 1)."""
    low, high = jnp.min(x), jnp.max(x)
    centres = jnp.linspace(0.0, 1.0, num_bumps) * (high - low) + low
    width = (high - low) / (num_bumps - 1)
    z = (x[:, None] - centres) / width
    return jnp.concatenate([jnp.exp(-0.5 * z**2), jnp.ones((x.shape[0], 1))], axis=1)


def model(x: ArrayLike, y: ArrayLike | None = None, num_bumps: int = 8) -> None:
    """y ~ N(f(x), g(x)^2), in plate "data", f and g smooth.

    `x`, `y`: (n,). Sites: w1 (num_bumps + 1,), weights of η1; w2 (num_bumps + 1,) > 0, weights of −η2; deterministic
    mean (n,) and sd (n,).
    """
    if num_bumps < 2:
        raise ValueError(f"num_bumps must be at least 2, got {num_bumps}")
    features = bumps(jnp.asarray(x, jnp.result_type(float)), num_bumps)
    count = features.shape[1]
    w1 = numpyro.sample("w1", dist.Normal(jnp.zeros(count), 10.0).to_event(1))
    # around g = 1: the weights of −η2 sum to about 1/2
    w2 = numpyro.sample("w2", dist.LogNormal(jnp.full(count, jnp.log(0.5 / count)), 2.0).to_event(1))
    eta1, precision = features @ w1, 2.0 * (features @ w2)
    mean = numpyro.deterministic("mean", eta1 / precision)
    sd = numpyro.deterministic("sd", 1.0 / jnp.sqrt(precision))
    with numpyro.plate("data", features.shape[0]):
        numpyro.sample("y", dist.Normal(mean, sd), obs=y)
