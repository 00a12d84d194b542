"""Diffusion of a mixture in the plane, whose score is known at every noise level.

Data: 50,000 draws of four normal distributions of standard deviation 0.3 and unequal weights. `log_density` and `score`
are exact at every t of the noise process, so that a fitted network can be told how wrong it is, and where.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array
from jax.typing import ArrayLike

from .diffusion import Diffusion
from .noise_process import VP
from .registry import Model

__all__ = ["MODEL", "data", "draw", "held_out", "log_density", "model", "score"]

PROCESS = VP()
WEIGHTS = np.array([0.1, 0.2, 0.3, 0.4])
CENTRES = np.array([[-1.2, -1.0], [1.2, -0.8], [-0.8, 1.1], [1.0, 1.0]])
SD = 0.3
NUM_DATA, BATCH_SIZE = 50_000, 256


def draw(n: int, seed: int = 0) -> np.ndarray:
    """n independent points, ``(n, 2)``, float32."""
    rng = np.random.default_rng(seed)
    return (CENTRES[rng.choice(4, n, p=WEIGHTS)] + SD * rng.normal(size=(n, 2))).astype(np.float32)


def log_density(x: Array, t: ArrayLike = PROCESS.t_min) -> Array:
    """log p_t(x) in nats of x_t = α(t) x_0 + σ(t) ε, ``(...,)`` for x ``(..., 2)``."""
    alpha, variance = PROCESS.alpha(t), (PROCESS.alpha(t) * SD) ** 2 + PROCESS.sigma(t) ** 2
    square = jnp.sum((x[..., None, :] - alpha * CENTRES) ** 2, -1)
    return jax.nn.logsumexp(jnp.log(WEIGHTS) - square / (2 * variance), -1) - jnp.log(2 * jnp.pi * variance)


def score(x: Array, t: ArrayLike = PROCESS.t_min) -> Array:
    """∇ log p_t(x), of the shape of x."""
    return jax.grad(lambda x: jnp.sum(log_density(x, t)))(x)


def model(x, batch_size=None) -> None:
    """x ~ Diffusion(score network), in plate "data". `x`: (N, 2). Param: score$params."""
    from numpyro.contrib.module import eqx_module

    from .networks import TimeMLP

    network = eqx_module("score", TimeMLP((2,), 128, 3, key=numpyro.prng_key()))
    with numpyro.plate("data", len(x), subsample_size=batch_size):
        # the density is smooth, so its score is bounded where the noise ends: the easier thing to learn there
        numpyro.sample("x", Diffusion(network, PROCESS, 2, predicts="score"), obs=numpyro.subsample(x, event_dim=1))


def data() -> dict[str, Any]:
    """Points `x` (50,000, 2) and a `batch_size`."""
    return {"x": draw(NUM_DATA), "batch_size": BATCH_SIZE}


def held_out() -> dict[str, Any]:
    """2,000 other points `x`."""
    return {"x": draw(2000, seed=1)}


MODEL = Model(
    name="diffusion_2d",
    description="Diffusion model of a mixture in the plane, with its exact score (DenoisingScoreMatching)",
    model=model,
    data=data,
    held_out=held_out,
    num_steps=5000,
    learning_rate=0.003,
)
