"""Diffusion recovery likelihood: an energy learns to tell where noisy data came from, which short chains can draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax, random
from numpyro import handlers

from . import data_argument
from .base import Data, Metrics, Params
from .checks import check_positive
from .contrastive import ContrastiveDivergence, ContrastiveProblem
from .frozen import fill


@dataclass(frozen=True, init=False)
class RecoveryLikelihood(ContrastiveDivergence):
    """Maximum likelihood of x given x̃ = x + σε, p(x | x̃) ∝ p̃(x) exp(−‖x̃ − x‖²/(2σ²)), by chains started at x̃.

    Where p̃ has modes far apart, p(x | x̃) has one, so a chain of a few steps is enough (Learning Energy-Based Models by
    Diffusion Recovery Likelihood). The maximum is at the truth where maximum likelihood's is; for a Gaussian they are
    the same. With a ladder of noise levels one energy learns all of them, log p̃(x, s): at level s_t it is that of the
    data with noise s_t, and `RecoveryProblem.draws` goes down the ladder. There are no standard errors: fit `NCE` from
    the estimate (``start=result.params``) for these.

    Args:
        sigma: σ, in the units of x; or the standard deviations 0 < s_1 < s_2 < ... of a ladder, with `level`. x_t at
            level s_t is recovered from x_{t+1}; the first has s_0 = 0.
        level: name of the model's data argument that holds the noise level of every unit, s_t in the units of x. Pass
            zeros of the shape of the units: the level of the data.
        initializer: name of a ``numpyro.deterministic`` site of the model, of the shape of x: where chains start,
            given x_{t+1} in the place of x, in place of x_{t+1} itself. It learns from the chains' ends by least
            squares (Learning Energy-Based Models by Cooperative Diffusion Recovery Likelihood).
        steps: moves of a chain before each step of the fit.
        kernel, step_size, argument: as in `ContrastiveDivergence`; `step_size` in units of the width of p(x | x̃).
    """

    sigma: float | tuple[float, ...] = 0.5
    level: str | None = None
    initializer: str | None = None
    steps: int = 10

    def __init__(self, sigma: Any = 0.5, **options: Any) -> None:
        fill(self, {"sigma": sigma, "steps": 10, **options})

    def __post_init__(self) -> None:
        super().__post_init__()
        ladder = tuple(float(s) for s in np.ravel(self.sigma))
        for s in ladder:
            check_positive("sigma", s)
        if not ladder or any(np.diff(ladder) <= 0):
            raise ValueError(f"sigma must be a number, or standard deviations that increase, got {self.sigma!r}")
        if len(ladder) > 1 and self.level is None:
            raise ValueError(
                "a ladder of noise levels needs an energy that knows its level: level= names the data argument that "
                "holds it"
            )
        object.__setattr__(self, "sigma", ladder)
        if self.persistent or self.kernel == "gibbs" or self.values is not None:
            raise ValueError("RecoveryLikelihood adds noise to real data and starts chains there: it takes neither "
                             "persistent nor kernel='gibbs' nor values")  # fmt: skip

    @property
    def inputs(self) -> tuple[str, ...]:
        return () if self.level is None else (self.level,)

    def problem(self, rng_key: Array, model: Callable, guide: Callable | None, data: Data) -> RecoveryProblem:
        problem = super().problem(rng_key, model, guide, data)
        assert isinstance(problem, RecoveryProblem)
        if problem.values is not None:
            raise ValueError(
                f"RecoveryLikelihood adds Gaussian noise, and data[{problem.argument!r}] are discrete (dtype "
                f"{problem.rows.dtype}): take ContrastiveDivergence or NCE, or pass floats if they are continuous"
            )
        units = problem.units_shape
        if self.level is not None and np.shape(np.asarray(data.get(self.level))) != units:
            raise ValueError(f"level={self.level!r} must name a data argument of shape {units}: the noise level of "
                             "every unit, zeros for the data")  # fmt: skip
        if self.initializer is not None:  # a site of another name or shape is an error here
            problem.start(problem.params, problem.data, problem.rows.reshape(problem.flat_shape), None)
        return problem

    def _problem_class(self) -> type:
        return RecoveryProblem


class RecoveryProblem(ContrastiveProblem):
    """Σ_i w_i [log p̃(y_i) − log p̃(x_i)], y_i the ends of chains of p(x_t | x_{t+1}); x_i at level t of the ladder."""

    @property
    def units_shape(self) -> tuple[int, ...]:
        """Axes of the units in the data."""
        shape = jnp.shape(self.data[self.argument])
        return shape[: len(shape) - len(self.event)]

    @property
    def ladder(self) -> Array:
        """(0, s_1, s_2, ...)"""
        return jnp.array([0.0, *self.options.sigma], self.spread.dtype)  # type: ignore[attr-defined]

    def at_level(self, data: Data, x: Array, s: Array) -> Data:
        """The data with x ``(n, D)`` in their place, at noise levels s ``(n,)``."""
        level = self.options.level  # type: ignore[attr-defined]
        known = {} if level is None else {level: s.reshape(self.units_shape)}
        return {**data, self.argument: x.reshape(jnp.shape(data[self.argument])), **known}

    def noisy(self, data: Data, key: Array) -> tuple[Data, Array, Array, Array, Array | None]:
        """Data at levels of their own, and of a batch of them x_{t+1}, its noise and that of x_t ``(n, D)``, and which
        they are."""
        batch_key, level_key, noise_key, next_key = random.split(key, 4)
        batch = self.chosen(batch_key)
        ladder, (n, _) = self.ladder, self.flat_shape
        # stratified: as many units at one level as at another
        t = (random.randint(level_key, (), 0, len(ladder) - 1) + jnp.arange(n)) % (len(ladder) - 1)
        low, high = ladder[t], ladder[t + 1]
        clean = data[self.argument].reshape(self.flat_shape)
        x = clean + low[:, None] * random.normal(noise_key, clean.shape, clean.dtype)
        # outside of the support there is no energy to learn from: there the datum stays as it is
        x = jnp.where(self.inside(x)[:, None], x, clean)

        def of_batch(values: Array) -> Array:
            return self.placed(self.at_level(data, jnp.broadcast_to(values[:, None], x.shape), low), batch)[0]

        moved = self.at_level(data, x, low)
        rows, sd, s = self.placed(moved, batch)[0], of_batch(jnp.sqrt(high**2 - low**2)), of_batch(low)
        return moved, rows + sd * random.normal(next_key, rows.shape, rows.dtype), sd, s, batch

    def start(self, params: Params, data: Data, x: Array, batch: Array | None) -> Array:
        """The value of the initializer at x ``(n, D)``.

        Raises:
            ValueError: no such site, or one of another shape.
        """
        name = self.options.initializer  # type: ignore[attr-defined]
        moved, context = self.placed(data, batch)[1](x)
        values = self._values(params, {}, data_argument._first_combination(self))
        with context:
            tr = handlers.trace(handlers.substitute(self._prepared(), substitute_fn=values)).get_trace(**moved)
        sites = {n: site["value"] for n, site in tr.items() if site["type"] == "deterministic"}
        if name not in sites:
            raise ValueError(f"initializer={name!r} names no deterministic site of the model (there are: "
                             f"{', '.join(sites) or 'none'})")  # fmt: skip
        if jnp.size(sites[name]) != x.size:
            raise ValueError(f"the initializer {name!r} has shape {jnp.shape(sites[name])}: it must have that of "
                             f"data[{self.argument!r}]")  # fmt: skip
        return sites[name].reshape(x.shape)

    def recovered(
        self, params: Params, memory: Any, rng_key: Array, data: Data, x_next: Array, sd: Array, s: Array,
        batch: Array | None,
    ) -> Any:  # fmt: skip
        """The memory with the ends of chains of p(x_t | x_{t+1}), x_t at the level of `data`."""
        options: Any = self.options
        start_key, walk_key = random.split(rng_key)
        x, log_density, _ = self.density(params, data, batch)
        width = 1 / jnp.sqrt(1 / sd**2 + 1 / (self.spread**2 + s**2))  # of p(x_t | x_{t+1}), were x Gaussian
        start = x_next
        if options.initializer is not None:
            noise = random.normal(start_key, x.shape, x.dtype)
            start = self.start(params, data, x_next, batch) + width * noise
        start = jnp.where(self.inside(start)[:, None], start, x)
        density = self.chain_density(log_density, x)
        tilted = lambda y: density(y) - 0.5 * jnp.sum(((x_next - y) / sd) ** 2, axis=1)  # noqa: E731
        return self.walked(memory, tilted, start, random.split(walk_key, options.steps), width)

    def refresh(self, memory: Any, params: Params, rng_key: Array) -> Any:
        noise_key, chain_key = random.split(rng_key)
        data, x_next, sd, s, batch = self.noisy(self.data, noise_key)
        return self.recovered(params, memory, chain_key, data, x_next, sd, s, batch) | {"key": noise_key}

    def loss(self, params: Params, rng_key: Array, data: Data) -> tuple[Array, Metrics]:
        moved, x_next, sd, _, batch = self.noisy(data, self.memory["key"])
        x, log_density, scale = self.density(params, moved, batch)
        y = lax.stop_gradient(self.memory["x"])
        losses = log_density(y) - log_density(x)
        if self.options.initializer is not None:  # type: ignore[attr-defined]
            gap = (y - self.start(params, moved, x_next, batch)) / sd
            losses = losses + 0.5 * jnp.sum(gap**2, axis=1)
        value = scale * jnp.sum(self.weights * losses)
        if self.penalties is not None:
            value = value + self.penalties.smooth(params)
        return value, {"acceptance": self.memory["rate"]}

    def draws(self, params: Params, rng_key: Array) -> Array:
        """As many draws as the data have units, ``(n, *event)``: from normal noise of the data's moments down the
        ladder, a chain at each level. `params` are unconstrained, ``result.unconstrained``."""
        ladder, rows = self.ladder, self.rows.reshape(self.flat_shape)
        start_key, rng_key = random.split(rng_key)
        x = jnp.mean(rows, 0) + jnp.sqrt(self.spread**2 + ladder[-1] ** 2) * random.normal(
            start_key, rows.shape, rows.dtype
        )

        def down(x: Array, args: tuple[Array, Array, Array]) -> tuple[Array, None]:
            low, high, key = args
            wide = lambda v: jnp.broadcast_to(v, x.shape)  # noqa: E731
            data = self.at_level(self.data, rows, jnp.broadcast_to(low, x.shape[:1]))
            sd, s = wide(jnp.sqrt(high**2 - low**2)), wide(low)
            return self.recovered(params, self.memory, key, data, x, sd, s, None)["x"], None

        keys = random.split(rng_key, len(ladder) - 1)
        x, _ = lax.scan(down, x, (ladder[:-1][::-1], ladder[1:][::-1], keys))
        return x.reshape(-1, *self.event)
