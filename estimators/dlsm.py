"""Denoising likelihood score matching: a classifier whose gradient is right, for guided diffusions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from .denoising import DenoisingScoreMatching


@dataclass(frozen=True)
class DLSM(DenoisingScoreMatching):
    """Trains a classifier of noisy data by its gradient: minimises
    ½ ∫ λ(t) E‖∇_x log p(y | x_t) + s(x_t, t) + ε/σ(t)‖² dt − `cross_entropy` · ∫ E log p(y | x_t) dt
    (Denoising Likelihood Score Matching for Conditional Score-based Data Generation).

    s is the score of all classes together, as it stands, so the sum of the two is regressed on the score of the class.
    A classifier trained by cross-entropy alone may say the right class with the wrong slope, which guided draws follow.
    Neither term has a minimum but log p(y | x_t) if s is exact, and the first makes up for what s lacks if not.

    The model observes labels by a `models.noisy_classifier.NoisyClassifier`.

    Args:
        cross_entropy: weight of the classifier's ordinary loss under noise, at least 0. The gradient alone leaves a
            function of t and y open, which guidance does not need.
        weighting, times: as in `DenoisingScoreMatching`.
    """

    cross_entropy: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.cross_entropy < float("inf"):
            raise ValueError(f"cross_entropy must be a number of at least 0, got {self.cross_entropy!r}")

    @property
    def wanted(self) -> str:
        return "a models.noisy_classifier.NoisyClassifier (a classifier of data under noise, and their diffusion)"

    def matches(self, fn: Any) -> bool:
        return hasattr(fn, "log_likelihood") and hasattr(fn, "diffusion")

    def objective(self, fn: Any, x: Array, rng_key: Array, table: Any) -> Array:
        diffusion, labels = fn.diffusion, fn.checked(x)
        noised = self.add_noise(diffusion, fn.x, rng_key)

        def one(x: Array, t: Array, label: Array) -> tuple[Array, Array]:
            return jax.value_and_grad(fn.log_likelihood)(x, t, label)

        flat = noised.x.reshape(-1, *diffusion.event_shape)
        log_p, slope = jax.vmap(one)(flat, noised.t.reshape(-1), labels.reshape(-1))
        score = jax.lax.stop_gradient(diffusion.score(noised.x, noised.t))
        error = score + slope.reshape(score.shape) + noised.noise / fn.process.sigma(noised.wide)
        loss = noised.weight * 0.5 * jnp.sum(error**2, noised.axes)
        return loss - self.cross_entropy * log_p.reshape(loss.shape)
