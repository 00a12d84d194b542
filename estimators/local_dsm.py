"""Denoising score matching where the noise process is nonlinear, by its last short interval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, random
from jax.scipy.linalg import solve_triangular

from .flow_matching import stratified
from .matching import Matching


@dataclass(frozen=True)
class LocalDSM(Matching):
    """Minimises ½ ∫ λ(t) E‖s(x_t, t) − ∇log q(x_t | x_s)‖² dt, s = t − `interval` (What's the Score? Automated
    Denoising Score Matching for Nonlinear Diffusions).

    The transition from the datum itself has no closed form where the drift is nonlinear. That from a simulated x_s a
    short time before is nearly Gaussian, by Taylor expansion of the drift, and its score has the same mean given x_t.
    The weight λ is g²(t − s), under which the targets of all times have about the same variance. Where the drift is
    linear and the interval the whole of the time this is `DenoisingScoreMatching`.

    The model observes a `models.nonlinear_diffusion.NonlinearDiffusion`.

    Args:
        interval: t − s, in (0, 1], well below the time in which the drift's slope turns x, 1/‖∂f/∂x‖. Targets vary
            less if it is longer, as its inverse, and are more biased.
    """

    interval: float = 0.02

    def __post_init__(self) -> None:
        if isinstance(self.interval, bool) or not 0 < self.interval <= 1:
            raise ValueError(f"interval must lie in (0, 1], got {self.interval!r}")

    @property
    def wanted(self) -> str:
        return "a models.nonlinear_diffusion.NonlinearDiffusion (a score network and a process of nonlinear drift)"

    def matches(self, fn: Any) -> bool:
        return hasattr(fn, "process") and hasattr(fn.process, "simulate")

    def pair(self, process: Any, x: Array, t: Array, key: Array) -> tuple[Array, Array]:
        """x_t drawn from one datum, and what the score there is regressed on; both of the shape of x."""
        path_key, noise_key = random.split(key)
        s = jnp.maximum(t - self.interval, 0.0)
        mean, factor = process.transition(process.simulate(x, s, path_key), s, t)
        noise = random.normal(noise_key, (x.size,), x.dtype)
        noisy = mean + (factor @ noise).reshape(x.shape)
        return noisy, -solve_triangular(factor, noise, lower=True, trans="T").reshape(x.shape)

    def objective(self, fn: Any, x: Array, rng_key: Array, table: Any) -> Array:
        x = fn.checked(x)
        axes = tuple(range(x.ndim - fn.event_dim, x.ndim))
        batch = x.shape[: axes[0]]
        time_key, pair_key = random.split(rng_key)
        t = fn.process.t_min + (1 - fn.process.t_min) * stratified(time_key, batch)
        rows = x.reshape(-1, *fn.event_shape)
        keys = random.split(pair_key, len(rows))
        noisy, target = jax.vmap(lambda x, t, key: self.pair(fn.process, x, t, key))(rows, t.reshape(-1), keys)
        error = fn.score(noisy.reshape(x.shape), t) - target.reshape(x.shape)
        weight = fn.process.g(t) ** 2 * jnp.minimum(t, self.interval)
        return weight * 0.5 * jnp.sum(error**2, axes)
