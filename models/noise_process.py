"""Processes that turn data into noise: x_t = α(t) x_0 + σ(t) ε, ε ~ N(0, I), for t from 0 to 1.

A process is told by α and σ alone. Its stochastic differential equation dx = f(t) x dt + g(t) dW follows:
f = d log α/dt and g² = −σ² d log SNR/dt with SNR = α²/σ² (Score-Based Generative Modeling through Stochastic
Differential Equations; Variational Diffusion Models). Times may be arrays of any shape; what depends on them has the
same.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

__all__ = ["VE", "VP", "NoiseProcess", "SubVP"]


@dataclass(frozen=True)
class NoiseProcess(abc.ABC):
    """A Gaussian noise process. `t_min` is where generation stops: x at `t_min` stands for the data."""

    @property
    @abc.abstractmethod
    def t_min(self) -> float:
        """The earliest time. Above 0 where σ(0) = 0: without noise the score of a thin set is infinite."""

    @abc.abstractmethod
    def alpha(self, t: ArrayLike) -> Array:
        """α(t), the share of the data that is left."""

    @abc.abstractmethod
    def sigma(self, t: ArrayLike) -> Array:
        """σ(t), the standard deviation of the noise."""

    @abc.abstractmethod
    def time(self, log_snr: ArrayLike) -> Array:
        """The time of a log signal-to-noise ratio: the inverse of `log_snr`."""

    def log_snr(self, t: ArrayLike) -> Array:
        """log(α²/σ²), falling in t."""
        return 2 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t)))

    def drift(self, t: ArrayLike) -> Array:
        """f(t) of dx = f(t) x dt + g(t) dW."""
        return _derivative(lambda s: jnp.log(self.alpha(s)), t)

    def diffusion(self, t: ArrayLike) -> Array:
        """g(t) of dx = f(t) x dt + g(t) dW."""
        return self.sigma(t) * jnp.sqrt(-_derivative(self.log_snr, t))

    def transition(self, s: ArrayLike, t: ArrayLike) -> tuple[Array, Array]:
        """Scale a and standard deviation b of x_t | x_s ~ N(a x_s, b² I), for s ≤ t."""
        scale = self.alpha(t) / self.alpha(s)
        # σ_t² − a² σ_s² = σ_t² (1 − SNR_t/SNR_s), without the difference of near numbers
        share = -jnp.expm1(jnp.minimum(self.log_snr(t) - self.log_snr(s), 0.0))
        return scale, self.sigma(t) * jnp.sqrt(share)


def _derivative(fn: Callable, t: ArrayLike) -> Array:
    t = jnp.asarray(t, jnp.result_type(float))
    return jax.jvp(fn, (t,), (jnp.ones_like(t),))[1]


@dataclass(frozen=True)
class VE(NoiseProcess):
    """Variance exploding: α = 1, σ(t) = sigma_min (sigma_max/sigma_min)^t.

    Args:
        sigma_min: noise at which generation stops, well below the detail that matters.
        sigma_max: noise that drowns the data, ten times their spread or more.
    """

    sigma_min: float = 0.01
    sigma_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < float("inf"):
            raise ValueError(
                f"VE needs 0 < sigma_min < sigma_max, got sigma_min={self.sigma_min!r}, sigma_max={self.sigma_max!r}"
            )

    @property
    def t_min(self) -> float:
        return 0.0

    def alpha(self, t: ArrayLike) -> Array:
        return jnp.ones_like(jnp.asarray(t, jnp.result_type(float)))

    def sigma(self, t: ArrayLike) -> Array:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** jnp.asarray(t, jnp.result_type(float))

    def time(self, log_snr: ArrayLike) -> Array:
        return (-0.5 * jnp.asarray(log_snr) - jnp.log(self.sigma_min)) / jnp.log(self.sigma_max / self.sigma_min)


@dataclass(frozen=True)
class VP(NoiseProcess):
    """Variance preserving: α² = exp(−∫β), σ² = 1 − α², β linear from beta_min to beta_max.

    For data of standard deviation about 1: x_1 is then standard normal, but for exp(−(beta_min + beta_max)/2) of it.

    Args:
        beta_min, beta_max: rates at t = 0 and t = 1, positive.
        earliest: t at which generation stops, in (0, 1).
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    earliest: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max < float("inf"):
            raise ValueError(
                f"{type(self).__name__} needs 0 < beta_min <= beta_max, got beta_min={self.beta_min!r}, "
                f"beta_max={self.beta_max!r}"
            )
        if not 0 < self.earliest < 1:
            raise ValueError(
                f"earliest must lie between 0 and 1, got {self.earliest!r}: at t = 0 there is no noise, and the score "
                "may be infinite"
            )

    @property
    def t_min(self) -> float:
        return self.earliest

    def spent(self, t: ArrayLike) -> Array:
        """∫β from 0 to t."""
        t = jnp.asarray(t, jnp.result_type(float))
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def alpha(self, t: ArrayLike) -> Array:
        return jnp.exp(-0.5 * self.spent(t))

    def sigma(self, t: ArrayLike) -> Array:
        return jnp.sqrt(-jnp.expm1(-self.spent(t)))

    def time(self, log_snr: ArrayLike) -> Array:
        return self._when(jax.nn.softplus(-jnp.asarray(log_snr)))

    def _when(self, spent: ArrayLike) -> Array:
        """The inverse of `spent`, in a form that is stable for small values and equal rates."""
        slope = self.beta_max - self.beta_min
        spent = jnp.asarray(spent)
        return 2 * spent / (self.beta_min + jnp.sqrt(self.beta_min**2 + 2 * slope * spent))


@dataclass(frozen=True)
class SubVP(VP):
    """Sub-variance preserving: α of `VP`, σ = 1 − α²; variance below that of `VP` at every t."""

    def sigma(self, t: ArrayLike) -> Array:
        return -jnp.expm1(-self.spent(t))

    def time(self, log_snr: ArrayLike) -> Array:
        # r = α/σ: r α² + α − r = 0
        inverse = jnp.exp(-0.5 * jnp.asarray(log_snr))
        alpha = 2 / (inverse + jnp.sqrt(inverse**2 + 4))
        return self._when(-2 * jnp.log(alpha))
