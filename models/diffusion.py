"""Diffusion models as NumPyro distributions: a score network and the noise process that it was made for.

    def model(x):
        network = eqx_module("score", ScoreNetwork(...))
        with numpyro.plate("data", len(x), subsample_size=128):
            numpyro.sample("x", Diffusion(network, VP(), 2), obs=numpyro.subsample(x, event_dim=1))

`estimators.DenoisingScoreMatching` trains the network, `MLE` the same model by its likelihood, and
`models.transport.observed` gives the fitted distribution back: draws, densities, denoising, conditional draws.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax, random
from jax.typing import ArrayLike
from numpyro.distributions import Normal

from .noise_process import NoiseProcess
from .transport import Transport, observed

__all__ = ["Diffusion", "observed"]

PREDICTIONS = ("noise", "score", "data")
METHODS = ("sde", "ode")


class Diffusion(Transport):
    """What a score network makes of noise: x at the process's `t_min`, which stands for the data.

    Args:
        network: function of one x of shape `event_shape` and a scalar t, see `predicts`; its values have x's shape.
        process: `VE`, `VP`, `SubVP` or another `NoiseProcess`.
        predicts: what the network's value is: "noise" ε, of which the score is −ε/σ(t); the "score" itself; or the
            "data" E[x_0 | x_t], of which it is (α x̂_0 − x)/σ². All are the same regression, scaled.
        method: of `sample`: "sde" (the reversed noise process, `num_steps` steps) or "ode" (the probability flow).
        num_steps: of the reversed process.
        loc, scale: mean and standard deviation of the data, numbers or of shape `event_shape`: what is left of them at
            t = 1 enters the normal distribution there.
        rtol, atol, trace, num_probes, probe_key: of the ordinary differential equation, see `Transport`.
    """

    pytree_data_fields = ("loc", "scale")
    pytree_aux_fields = ("process", "predicts", "method", "num_steps")
    t_base = 1.0

    def __init__(
        self, network: Callable, process: NoiseProcess, event_shape: Any, *, predicts: str = "noise",
        method: str = "sde", num_steps: int = 500, loc: Any = 0.0, scale: Any = 1.0, **options: Any,
    ) -> None:  # fmt: skip
        if not isinstance(process, NoiseProcess):
            raise TypeError(f"process must be a NoiseProcess such as VP(), got {process!r}")
        if predicts not in PREDICTIONS:
            raise ValueError(f"predicts must be one of {', '.join(PREDICTIONS)}, got {predicts!r}")
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps!r}")
        self.process, self.predicts, self.method, self.num_steps = process, predicts, method, num_steps
        self.loc, self.scale = loc, scale
        super().__init__(network, event_shape, **options)

    @property
    def t_data(self) -> float:  # type: ignore[override]
        return self.process.t_min

    @property
    def base(self) -> Normal:
        alpha, sigma = self.process.alpha(self.t_base), self.process.sigma(self.t_base)
        return Normal(alpha * self.loc, jnp.sqrt((alpha * self.scale) ** 2 + sigma**2))

    def _score(self, x: Array, t: Array) -> Array:
        out, sigma = self.network(x, t), self.process.sigma(t)
        if self.predicts == "noise":
            return -out / sigma
        if self.predicts == "data":
            return (self.process.alpha(t) * out - x) / sigma**2
        return out

    def _velocity(self, x: Array, t: Array) -> Array:
        return self.process.drift(t) * x - 0.5 * self.process.diffusion(t) ** 2 * self._score(x, t)

    def _denoise(self, x: Array, t: Array) -> Array:
        return (x + self.process.sigma(t) ** 2 * self._score(x, t)) / self.process.alpha(t)

    def score(self, x: Array, t: ArrayLike) -> Array:
        """∇ log p_t(x), of the shape of x."""
        return self._each(self._score, x, t)

    def denoise(self, x: Array, t: ArrayLike) -> Array:
        """E[x_0 | x_t = x] by Tweedie's formula, of the shape of x."""
        return self._each(self._denoise, x, t)

    def denoising_covariance(self, x: Array, t: ArrayLike) -> Array:
        """Cov[x_0 | x_t = x] = (σ²/α) ∂E[x_0 | x]/∂x, flattened to ``(*batch, d, d)``: Tweedie's formula again."""

        def one(x: Array, t: Array) -> Array:
            slope = jax.jacfwd(self._denoise)(x, t).reshape(x.size, x.size)
            return self.process.sigma(t) ** 2 / self.process.alpha(t) * 0.5 * (slope + slope.T)

        return self._each(one, x, t)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws ``(*sample_shape, *event_shape)`` by `method`."""
        if self.method == "ode":
            return super().sample(key, sample_shape)
        return self.sample_guided(key, sample_shape)

    def sample_ode(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws by the probability-flow ordinary differential equation, whatever `method` says."""
        return Transport.sample(self, key, sample_shape)

    def sample_guided(
        self, key: Array, sample_shape: tuple[int, ...] = (), guidance: Callable[[Array, Array], Array] | None = None
    ) -> Array:
        """Draws by the reversed process, from p(x | y) where `guidance` is the likelihood's score.

        A step draws x_s | x_t, x̂_0 for s < t, with x̂_0 the denoised x_t (Denoising Diffusion Probabilistic Models): it
        tends to the reversed stochastic differential equation, and is exact in its linear part.

        Args:
            guidance: ∇_{x_t} log p(y | x_t) of one x and a scalar t, of a classifier of noisy data, say.
        """
        process = self.process
        key_base, key_noise = random.split(key)
        x = self._base_draw(key_base, sample_shape)
        times = jnp.linspace(self.t_base, self.t_data, self.num_steps + 1, dtype=x.dtype)

        def denoised(x: Array, t: Array) -> Array:
            mean = self._denoise(x, t)
            if guidance is not None:
                mean = mean + process.sigma(t) ** 2 / process.alpha(t) * guidance(x, t)
            return mean

        def step(x: Array, args: tuple[Array, Array, Array]) -> tuple[Array, None]:
            t, s, key = args
            scale, sd = process.transition(s, t)
            share = (sd / process.sigma(t)) ** 2  # of the variance of x_t that came between s and t
            remains = scale * (process.sigma(s) / process.sigma(t)) ** 2
            mean = process.alpha(s) * share * self._each(denoised, x, t) + remains * x
            noise = process.sigma(s) * jnp.sqrt(share) * random.normal(key, x.shape, x.dtype)
            return mean + noise, None

        return lax.scan(step, x, (times[:-1], times[1:], random.split(key_noise, self.num_steps)))[0]

    def sample_given(
        self, key: Array, y: Array, operator: Array, noise_sd: float, sample_shape: tuple[int, ...] = (),
        *, derivative: bool = True,
    ) -> Array:  # fmt: skip
        """Draws of x given y = A x + noise_sd·ε: a linear inverse problem.

        The likelihood of x_t is taken as N(y | A x̂_0, noise_sd² I + A C Aᵀ), with mean and covariance of x_0 given
        x_t by Tweedie's formulas (Tweedie Moment Projected Diffusions for Inverse Problems): exact for Gaussian x, an
        approximation else.

        Args:
            y: observed, ``(m,)``.
            operator: A, ``(m, d)`` on flattened x.
            noise_sd: standard deviation of the observation's noise, positive.
            derivative: take C from the network's derivative, which must be accurate at large noise too. False takes
                that of independent coordinates of standard deviation `scale`: for networks in many dimensions
                (Pseudoinverse-Guided Diffusion Models for Inverse Problems).

        Raises:
            ValueError: shapes that do not fit, or a noise_sd that is not positive.
        """
        y, operator = jnp.asarray(y), jnp.asarray(operator)
        size = int(np.prod(self.event_shape))
        if operator.ndim != 2 or operator.shape[1] != size or y.shape != operator.shape[:1]:
            raise ValueError(f"operator must have shape (m, {size}) and y (m,), got {operator.shape} and {y.shape}")
        if not noise_sd > 0:
            raise ValueError(f"noise_sd must be positive, got {noise_sd!r}")

        def guidance(x: Array, t: Array) -> Array:
            if not derivative:
                alpha, variance = self.process.alpha(t), self.process.sigma(t) ** 2
                scale = jnp.broadcast_to(self.scale, self.event_shape).reshape(-1)
                apart = scale**2 * variance / (variance + (alpha * scale) ** 2)
                gap = y - operator @ self._denoise(x, t).reshape(-1)
                total = (operator * apart) @ operator.T + noise_sd**2 * jnp.eye(len(y), dtype=x.dtype)
                return (alpha / variance * apart * (operator.T @ jnp.linalg.solve(total, gap))).reshape(x.shape)
            flat = lambda x: operator @ self._denoise(x, t).reshape(-1)  # noqa: E731
            mean, pull = jax.vjp(flat, x)
            rows = jax.vmap(lambda v: pull(v)[0].reshape(-1))(jnp.eye(len(y), dtype=x.dtype))  # A ∂x̂_0/∂x
            spread = self.process.sigma(t) ** 2 / self.process.alpha(t) * rows @ operator.T
            # a covariance has no negative eigenvalues, that of a network's derivative may
            values, vectors = jnp.linalg.eigh(0.5 * (spread + spread.T))
            inverse = 1 / (jnp.maximum(values, 0) + noise_sd**2)
            return (rows.T @ (vectors @ (inverse * (vectors.T @ (y - mean))))).reshape(x.shape)

        return self.sample_guided(key, sample_shape, guidance)

    def calibrated(self, x: Array, key: Array, *, num_levels: int = 32) -> Diffusion:
        """The same with a score of mean zero over the data under noise, as the exact one has at every t.

        The mean that the network's score has is estimated at `num_levels` times and taken off; denoising loss and
        likelihood gain by its square (On Calibrating Diffusion Probabilistic Models).

        Args:
            x: data, ``(n, *event_shape)``: other than those that it was trained on, if there are.
        """
        x, process = self.checked(x), self.process
        levels = jnp.linspace(process.t_min, 1.0, num_levels, dtype=x.dtype)

        def mean(args: tuple[Array, Array]) -> Array:
            t, key = args
            noise = random.normal(key, x.shape, x.dtype)
            noisy = jnp.concatenate([process.alpha(t) * x + sign * process.sigma(t) * noise for sign in (1, -1)])
            return process.sigma(t) * jnp.mean(self.score(noisy, t), tuple(range(noisy.ndim - self.event_dim)))

        shift = lax.map(mean, (levels, random.split(key, num_levels))).reshape(num_levels, -1)

        def score(x: Array, t: Array) -> Array:
            off = jax.vmap(lambda column: jnp.interp(t, levels, column), 1)(shift).reshape(x.shape)
            return self._score(x, t) - off / process.sigma(t)

        return Diffusion(
            score, process, self.event_shape, predicts="score", method=self.method, num_steps=self.num_steps,
            loc=self.loc, scale=self.scale, rtol=self.rtol, atol=self.atol, trace=self.trace,
            num_probes=self.num_probes, probe_key=self.probe_key,
        )  # fmt: skip

    def langevin(
        self, key: Array, x: Array, *, num_steps: int = 1000, step_size: float = 1e-3, t: float | None = None
    ) -> Array:
        """Langevin chains x ← x + h s(x, t) + √(2h) ε from x, ``(*batch, *event_shape)``, and of its shape.

        Started at the data and stopped early they keep the share of every mode, which chains from elsewhere do not
        find (Sampling Multimodal Distributions with the Vanilla Score: Benefits of Data-Based Initialization).

        Args:
            step_size: h, positive.
            t: noise level of the score; None is the process's `t_min`.
        """
        if not step_size > 0:
            raise ValueError(f"step_size must be positive, got {step_size!r}")
        level = self.t_data if t is None else t

        def move(x: Array, key: Array) -> tuple[Array, None]:
            noise = random.normal(key, x.shape, x.dtype)
            return x + step_size * self.score(x, level) + jnp.sqrt(2 * step_size) * noise, None

        return lax.scan(move, self.checked(x), random.split(key, num_steps))[0]
