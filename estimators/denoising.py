"""Denoising score matching: the score network of a diffusion model by regression on the noise that was added."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax, random

from .matching import Matching

WEIGHTINGS = ("noise", "likelihood", "score")
TIMES = ("uniform", "log_snr")


class Noised(NamedTuple):
    """Data x_t = α(t) x + σ(t) ε of shape ``(*batch, *event)``."""

    x: Array
    noise: Array
    """ε."""
    t: Array
    """Times, ``(*batch,)``."""
    wide: Array
    """The same, to broadcast against x."""
    weight: Array
    """λ(t) over the density of t."""
    axes: tuple[int, ...]
    """Of one datum."""


@dataclass(frozen=True)
class DenoisingScoreMatching(Matching):
    """Minimises ½ ∫ λ(t) E‖s(x_t, t) + ε/σ(t)‖² dt over t from t_min to 1, x_t = α(t) x + σ(t) ε (A Connection Between
    Score Matching and Denoising Autoencoders; Score-Based Generative Modeling through Stochastic Differential
    Equations).

    The model observes a `models.diffusion.Diffusion`, which holds the network and the noise process. At its minimum the
    network is the score of the data under noise, at every t.

    Args:
        weighting: λ. "noise" is σ², which makes the loss ½‖ε̂ − ε‖²; "likelihood" is g², with which it bounds the
            negative log-likelihood, up to a constant (Maximum Likelihood Training of Score-Based Diffusion Models);
            "score" is 1.
        times: how t is drawn, which changes the loss's noise, not its value. "uniform"; "log_snr": uniform in
            log(α²/σ²), which levels the terms of "likelihood"; a tuple of times is a ladder: the mean over these
            noise levels alone (Generative Modeling by Estimating Gradients of the Data Distribution).
    """

    weighting: str = "noise"
    times: str | tuple[float, ...] = "uniform"

    def __post_init__(self) -> None:
        if self.weighting not in WEIGHTINGS:
            raise ValueError(f"weighting must be one of {', '.join(WEIGHTINGS)}, got {self.weighting!r}")
        if isinstance(self.times, str):
            if self.times not in TIMES:
                raise ValueError(f"times must be one of {', '.join(TIMES)} or a tuple of times, got {self.times!r}")
            return
        times = tuple(float(t) for t in np.ravel(self.times))
        if not times or not all(0 <= t <= 1 for t in times):
            raise ValueError(f"times must lie between 0 and 1, got {self.times!r}")
        object.__setattr__(self, "times", times)

    @property
    def wanted(self) -> str:
        return "a models.diffusion.Diffusion (a score network and a noise process)"

    def matches(self, fn: Any) -> bool:
        return hasattr(fn, "process") and hasattr(fn.process, "alpha")

    def prepare(self, fn: Any, x: Array, rng_key: Array) -> Any:
        if not isinstance(self.times, str):
            bad = [t for t in self.times if not np.asarray(fn.process.sigma(t)) > 0]
            if bad:
                raise ValueError(f"times has {bad[0]}, where the process has no noise: the score there has no target")
        return None

    def draw_times(self, process: Any, rng_key: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
        """Times and their weights λ(t)/density, ``shape`` each. Stratified: one uniform number, shifted evenly."""
        size = int(np.prod(shape))
        u = (random.uniform(rng_key) + jnp.arange(size) / max(size, 1)) % 1.0
        start = process.t_min
        if self.times == "uniform":
            t = start + (1 - start) * u
            inverse = jnp.full(size, 1 - start)
        elif self.times == "log_snr":
            high, low = process.log_snr(start), process.log_snr(1.0)
            t = jnp.clip(process.time(low + (high - low) * u), start, 1.0)
            inverse = (high - low) * process.sigma(t) ** 2 / process.diffusion(t) ** 2
        else:
            t = jnp.asarray(self.times)[(u * len(self.times)).astype(int)]
            inverse = jnp.ones(size)
        weight = {
            "noise": lambda: process.sigma(t) ** 2,
            "likelihood": lambda: process.diffusion(t) ** 2,
            "score": lambda: jnp.ones_like(t),
        }[self.weighting]()
        return t.reshape(shape), (weight * inverse).reshape(shape)

    def target(self, fn: Any, x: Array, noise: Array, t: Array, table: Any) -> Array:
        """What the score at x_t is regressed on; `t` broadcasts against x."""
        return -noise / fn.process.sigma(t)

    def correction(self, fn: Any, noisy: Array, t: Array) -> tuple[Array | float, Array | float]:
        """Weight of every noisy datum, and what is added to its target; `t` has the batch's shape."""
        return 1.0, 0.0

    def add_noise(self, fn: Any, x: Array, rng_key: Array) -> Noised:
        """Every datum, checked before, at a time and under a noise of its own."""
        axes = tuple(range(x.ndim - fn.event_dim, x.ndim))
        t, weight = self.draw_times(fn.process, random.fold_in(rng_key, 0), x.shape[: axes[0]])
        wide = jnp.expand_dims(t, axes)
        noise = random.normal(random.fold_in(rng_key, 1), x.shape, x.dtype)
        return Noised(fn.process.alpha(wide) * x + fn.process.sigma(wide) * noise, noise, t, wide, weight, axes)

    def objective(self, fn: Any, x: Array, rng_key: Array, table: Any) -> Array:
        x = fn.checked(x)
        noisy, noise, t, wide, weight, axes = self.add_noise(fn, x, rng_key)
        factor, shift = self.correction(fn, noisy, t)
        error = fn.score(noisy, t) - self.target(fn, x, noise, wide, table) - shift
        return weight * factor * 0.5 * jnp.sum(error**2, axes)


@dataclass(frozen=True)
class TargetScoreMatching(DenoisingScoreMatching):
    """Score matching with a known score of the data: the target is ∇log p(x)/α(t) in place of −ε/σ(t).

    Both have the mean ∇log p_t(x_t) given x_t. Where the noise is small the clean score has a small variance and the
    other a large one; where it is large they change places (Target Score Matching).

    Args:
        log_density: log p of one datum up to a constant, differentiable: an energy that the data were drawn from.
        blend: take κ(t)·(target) + (1 − κ(t))·(denoising target) with the κ of least variance, estimated from the data
            at `NUM_LEVELS` times before the fit; False takes the clean score alone.
        weighting, times: as in `DenoisingScoreMatching`.
    """

    log_density: Callable[[Array], Array] | None = None
    blend: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.log_density):
            raise ValueError("TargetScoreMatching needs log_density, a function of one datum: the data's own, up to a "
                             f"constant, got {self.log_density!r}")  # fmt: skip

    def clean_score(self, x: Array, event_dim: int) -> Array:
        """∇log p of every datum, of the shape of x."""
        log_density = self.log_density
        assert log_density is not None
        event = x.shape[x.ndim - event_dim :]
        score = jax.vmap(jax.grad(lambda one: jnp.reshape(log_density(one), ())))(x.reshape(-1, *event))
        return score.reshape(x.shape)

    def prepare(self, fn: Any, x: Array, rng_key: Array) -> dict[str, Array]:
        super().prepare(fn, x, rng_key)
        score = self.clean_score(x, fn.event_dim)
        finite = np.isfinite(np.asarray(score))
        if not finite.all():
            raise ValueError(
                f"log_density has no finite gradient at {int((~finite).sum())} values of the data: are they outside of "
                "its support?"
            )
        levels = jnp.linspace(fn.process.t_min, 1.0, NUM_LEVELS)
        keys = random.split(rng_key, NUM_LEVELS)
        size = min(MOST_DATA, x.reshape(-1, *fn.event_shape).shape[0])
        x, score = (v.reshape(-1, *fn.event_shape)[:size] for v in (x, score))

        def share(args: tuple[Array, Array]) -> Array:
            t, key = args
            noise = random.normal(key, x.shape, x.dtype)
            return blending_share(score / fn.process.alpha(t), -noise / fn.process.sigma(t))

        return {"levels": levels, "shares": lax.map(share, (levels, keys))}

    def target(self, fn: Any, x: Array, noise: Array, t: Array, table: Any) -> Array:
        clean = self.clean_score(x, fn.event_dim) / fn.process.alpha(t)
        if not self.blend:
            return clean
        kappa = jnp.interp(t, table["levels"], table["shares"])
        return kappa * clean + (1 - kappa) * super().target(fn, x, noise, t, table)


NUM_LEVELS = 64
MOST_DATA = 4096


def blending_share(clean: Array, denoising: Array) -> Array:
    """κ of least variance of κ·clean + (1 − κ)·denoising, in [0, 1]; draws of both targets of the same shape.

    Their difference is uncorrelated with every function of x_t, so the variance about the unknown score is least where
    the second moment is: κ = E[d·(d − c)]/E‖d − c‖².
    """
    gap = denoising - clean
    return jnp.clip(jnp.sum(denoising * gap) / jnp.sum(gap**2), 0.0, 1.0)


@dataclass(frozen=True)
class TIWDSM(DenoisingScoreMatching):
    """Denoising score matching on a biased sample, corrected for by a density ratio at every noise level.

    Minimises ½ ∫ λ(t) E w(x_t, t)‖s(x_t, t) + ε/σ(t) − ∇log w(x_t, t)‖² dt over the biased data, w the ratio of the
    wanted density under noise to that of the data: its minimum is the wanted score (Training Unbiased Diffusion Models
    From Biased Dataset). Ratios under noise are tame where that of the data itself is not.

    Args:
        log_ratio: log w of one noisy datum and a scalar t, up to a factor for each t: the logit of a classifier of
            noisy wanted data against noisy biased data, say.
    """

    log_ratio: Callable[[Array, Array], Array] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.log_ratio):
            raise ValueError(f"TIWDSM needs log_ratio, a function of a noisy datum and t, got {self.log_ratio!r}")

    def correction(self, fn: Any, noisy: Array, t: Array) -> tuple[Array, Array]:
        log_ratio = self.log_ratio
        assert log_ratio is not None
        ratio = jax.value_and_grad(lambda one, t: jnp.reshape(log_ratio(one, t), ()))
        log_w, slope = jax.vmap(ratio)(noisy.reshape(-1, *fn.event_shape), t.reshape(-1))
        return jnp.exp(log_w).reshape(t.shape), slope.reshape(noisy.shape)
