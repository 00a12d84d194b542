"""Scores of clean data from noisy data alone: Stein's unbiased risk estimate takes the place of the clean datum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax, random

from .checks import check_positive
from .denoising import DenoisingScoreMatching


def sure(denoiser: Callable[[Array], Array], y: Array, noise_sd: float, rng_key: Array, event_dim: int = 1) -> Array:
    """Stein's unbiased risk estimate of ‖denoiser(y) − x‖², ``(*batch,)``, for y = x + noise_sd·ε and x unknown.

    ‖h(y) − y‖² + 2 noise_sd² div h(y) − d noise_sd², the divergence along one direction of random signs (Estimation of
    the Mean of a Multivariate Normal Distribution; Monte-Carlo SURE).

    Args:
        denoiser: of the whole batch, each datum by itself; differentiable.
        y: ``(*batch, *event)``.
        event_dim: number of axes of one datum.

    Raises:
        ValueError: a noise_sd that is not positive.
    """
    check_positive("noise_sd", noise_sd)
    axes = tuple(range(y.ndim - event_dim, y.ndim))
    v = random.rademacher(rng_key, y.shape, y.dtype)
    clean, slope = jax.jvp(denoiser, (y,), (v,))
    return jnp.sum((clean - y) ** 2 + noise_sd**2 * (2 * v * slope - 1), axes)


@dataclass(frozen=True)
class SUREScore(DenoisingScoreMatching):
    """Denoising score matching on data y = x + noise_sd·ε, for the score of the clean x (Solving Inverse Problems with
    Score-Based Generative Priors Learned from Noisy Data).

    Let t_w be the time at which the process has the noise of the data. There the network's denoiser is trained by
    `sure`. Above, y gets the noise that it lacks, which is exact; below, where nothing in the data tells x from its
    noise, the denoised y stand for x. So the scores from t_w upwards are those of the clean data; those below are of
    data that vary less, Var E[x | y], and so are draws and densities.

    Args:
        noise_sd: standard deviation of the noise, in the units of the data; below that of the process at t = 1 and
            above that at `t_min`, both relative to what is left of the data.
        weighting, times: as in `DenoisingScoreMatching`.
    """

    noise_sd: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise_sd is None:
            raise ValueError("SUREScore needs noise_sd, the standard deviation of the noise in the data")
        check_positive("noise_sd", self.noise_sd)

    def level(self, process: Any) -> Array:
        """t_w"""
        assert self.noise_sd is not None
        return process.time(-2 * jnp.log(self.noise_sd))

    def prepare(self, fn: Any, x: Array, rng_key: Array) -> None:
        super().prepare(fn, x, rng_key)
        low, high = (float(np.exp(-0.5 * np.asarray(fn.process.log_snr(t)))) for t in (fn.process.t_min, 1.0))
        assert self.noise_sd is not None
        if not low < self.noise_sd < high:
            raise ValueError(
                f"noise_sd={self.noise_sd!r} must lie between the noise of the process at its ends, {low:.3g} and "
                f"{high:.3g}: choose another process, or DenoisingScoreMatching where there is next to no noise"
            )

    def objective(self, fn: Any, x: Array, rng_key: Array, table: Any) -> Array:
        x, process, sd = fn.checked(x), fn.process, self.noise_sd
        assert sd is not None
        axes = tuple(range(x.ndim - fn.event_dim, x.ndim))
        time_key, noise_key, sure_key = random.split(rng_key, 3)
        level = self.level(process)

        def denoiser(y: Array) -> Array:
            return fn.denoise(process.alpha(level) * y, level)

        t, weight = self.draw_times(process, time_key, x.shape[: axes[0]])
        wide = jnp.expand_dims(t, axes)
        alpha, sigma = process.alpha(wide), process.sigma(wide)
        above = wide > level
        lacking = jnp.sqrt(jnp.where(above, sigma**2 - (alpha * sd) ** 2, sigma**2))
        lacking = jnp.maximum(lacking, 1e-4 * sigma)  # a time next to t_w, rounded
        noise = random.normal(noise_key, x.shape, x.dtype)
        noisy = alpha * jnp.where(above, x, lax.stop_gradient(denoiser(x))) + lacking * noise
        error = (fn.score(noisy, t) + noise / lacking) * lacking / sigma  # the target's variance is 1/lacking²
        risk = sure(denoiser, x, sd, sure_key, fn.event_dim) / (2 * sd**2)  # as λ = σ² has it at t_w
        return weight * 0.5 * jnp.sum(error**2, axes) + risk
