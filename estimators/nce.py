"""Noise-contrastive estimation: an unnormalised model learns to tell data from noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random

from . import noise as noises
from .base import Data, Params
from .checks import check_counts, check_positive
from .frozen import fill
from .unnormalised import (
    LOG_Z,
    Unnormalised,
    UnnormalisedProblem,
    build_noise,
    fresh_key,
)

NORMALISED = 0.1
"""|log Z| up to which a model that normalises itself counts as normalised."""


@dataclass(frozen=True, init=False)
class NCE(Unnormalised):
    """Noise-contrastive estimation: logistic regression of data against `ratio` times as many draws of known noise.

    The logit is log p̃(x; θ) − log_z − log p_noise(x) − log ratio; the log-normaliser `log_z` is learned like any
    parameter and stands in `result.params` with its standard error. As the ratio grows the estimate becomes the maximum
    likelihood one (Noise-Contrastive Estimation: A New Estimation Principle for Unnormalized Statistical Models). The
    draws belong to the units and are made once: the loss is exact, and its sandwich counts their noise.

    Args:
        noise: a NumPyro distribution, a flow, or the `FitResult` of a normalised model; None fits a simple one to the
            data (`estimators.noise.fitted`). It must have density wherever data can be; the nearer to the data, the
            better.
        ratio: draws of noise a datum.
        redraw: draw anew at each step: a stochastic loss, for networks and minibatches.
        learn_constant: False for a model that is normalised, or normalises itself.
        argument: name of the data argument that carries x; None finds it.
        covariance: "sandwich", "bootstrap" or ("cluster", ids).
    """

    noise: Any = None
    ratio: int = 10
    redraw: bool = False
    learn_constant: bool = True

    def __init__(self, noise: Any = None, ratio: int = 10, **options: Any) -> None:
        fill(self, {"noise": noise, "ratio": ratio, **options})

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "noise", noises.freeze(self.noise))
        check_counts(ratio=self.ratio)

    @property
    def exact(self) -> bool:  # type: ignore[override]
        return not self.redraw and not self.subsample

    def static(self) -> NCE:
        return replace(super().static(), noise=None)  # type: ignore[call-arg, return-value]

    def problem(self, rng_key: Array, model: Callable, guide: Callable | None, data: Data) -> NCEProblem:
        problem, support = self.pose(self.problem_class(), rng_key, model, data)
        assert isinstance(problem, NCEProblem)
        problem = replace(problem, noise=build_noise(problem, self.noise, support, type(self).__name__))
        if self.exact:
            problem = replace(problem, draws=problem.noise.draw(fresh_key(rng_key), self.ratio))
        if self.learn_constant:
            return problem.learn_constant(_first_constant(problem, fresh_key(rng_key)))  # type: ignore[return-value]
        return problem

    def problem_class(self) -> type[NCEProblem]:
        return NCEProblem


@eqx.filter_jit
def _first_constant(problem: NCEProblem, key: Array) -> Array:
    """log mean p̃ / p_noise over one block of noise, at the initial parameters."""
    y = problem.noise.draw(key, 1)
    x, log_density, _ = problem.density(problem.params, problem.data)
    logits = problem.at(log_density, x, y.reshape(1, *x.shape)) - problem.noise.log_prob(y)
    return jax.scipy.special.logsumexp(logits) - jnp.log(logits.size)


def _not_normalised(log_w: np.ndarray) -> list[str]:
    """What log p̃/p_noise at draws of noise says of a model that is taken as normalised: its mean weight is Z."""
    top = log_w.max()
    w = np.exp(log_w - top)
    log_z, stderr = top + np.log(w.mean()), w.std() / (w.mean() * np.sqrt(len(w)))
    if abs(log_z) < max(NORMALISED, 5 * stderr):
        return []
    return [
        f"the model is taken as normalised, but its density integrates to exp({log_z:.2f} ± {stderr:.2f}): let "
        "NCE(learn_constant=True) learn the constant, or normalise the model"
    ]


class NCEProblem(UnnormalisedProblem):
    """Σ_i w_i [softplus(−h(x_i)) + Σ_j softplus(h(y_ij))], h the logit of being data."""

    noise: Any = None
    draws: Array | None = None
    """``(ratio, n, *event)`` where they are drawn once."""

    @property
    def deterministic(self) -> bool:
        return self.draws is not None

    def terms(self, params: Params, data: Data, rng_key: Array | None = None) -> tuple[Array, Array, Array]:
        options: Any = self.options
        key = draw_key = None
        if rng_key is not None:
            key, draw_key = random.split(rng_key)
        model_params = {n: v for n, v in params.items() if n != LOG_Z}
        x, log_density, scale = self.density(model_params, data, self.chosen(key))
        y = self.draws
        if y is None:
            y = self.noise.draw(draw_key if draw_key is not None else random.key(0), options.ratio, x.shape[0])
        rows = x.reshape(1, x.shape[0], *self.event)
        of_data = log_density(x) - self.noise.log_prob(rows)[0]
        of_noise = self.at(log_density, x, y.reshape(*y.shape[:2], -1)) - self.noise.log_prob(y)
        return -scale * self.losses(params, of_data, of_noise), jnp.zeros(()), jnp.zeros(())

    def losses(self, params: Params, of_data: Array, of_noise: Array) -> Array:
        """Of every unit, from log p̃/p_noise at the data ``(n,)`` and at the noise ``(ratio, n)``."""
        options: Any = self.options
        shift = jnp.log(float(options.ratio)) + (params[LOG_Z] if self.learns_constant else 0.0)
        return jax.nn.softplus(shift - of_data) + jnp.sum(jax.nn.softplus(of_noise - shift), axis=0)

    def faults(self, params: Params) -> list[str]:
        """Whether p̃ has a normaliser, one where that is taken for granted, and noise and model overlap at the end."""
        model_params = {n: v for n, v in params.items() if n != LOG_Z}
        x, log_density, _ = self.density(model_params, self.data)
        y = self.noise.draw(fresh_key(random.key(0)), 1, x.shape[0])
        log_w = self.at(log_density, x, y.reshape(1, *x.shape)) - self.noise.log_prob(y)
        found = super().faults(params) + self.faults_of(log_w)
        return found if found or self.learns_constant else _not_normalised(np.ravel(np.asarray(log_w, np.float64)))


@dataclass(frozen=True, init=False)
class ConditionalNCE(Unnormalised):
    """Conditional noise-contrastive estimation: tell x from its own noisy copy y, minimising 2 log(1 + p̃(y)/p̃(x)).

    The normaliser cancels, and no noise need be chosen but its size. As sigma falls it becomes score matching
    (Conditional Noise-Contrastive Estimation of Unnormalised Models).

    Args:
        sigma: sd of the Gaussian noise, in the units of x. None: 0.3 standard deviations of each coordinate. Of
            discrete x one coordinate, drawn at random, takes another of the values that the data show.
        ratio: noisy copies a datum, every second one the mirror image of another.
        redraw: make them anew at each step.
        argument, covariance: as in `NCE`.
    """

    sigma: float | None = None
    ratio: int = 10
    redraw: bool = False

    def __init__(self, sigma: float | None = None, ratio: int = 10, **options: Any) -> None:
        fill(self, {"sigma": sigma, "ratio": ratio, **options})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma is not None:
            check_positive("sigma, the noise scale,", self.sigma)
        check_counts(ratio=self.ratio)

    @property
    def exact(self) -> bool:  # type: ignore[override]
        return not self.redraw and not self.subsample

    def problem(self, rng_key: Array, model: Callable, guide: Callable | None, data: Data) -> ConditionalNCEProblem:
        problem, _ = self.pose(ConditionalNCEProblem, rng_key, model, data)
        assert isinstance(problem, ConditionalNCEProblem)
        x = np.asarray(problem.rows).reshape(problem.flat_shape)
        if x.dtype.kind == "f":
            spread = np.where(x.std(0) > 0, x.std(0), 1.0)
            scale = np.full(x.shape[1], self.sigma) if self.sigma is not None else 0.3 * spread
            problem = replace(problem, scale=jnp.asarray(scale, x.dtype))
        else:
            problem = replace(problem, values=jnp.asarray(seen_values(x, "ConditionalNCE")))
        if self.exact:
            rows = problem.density(problem.params, problem.data)[0]
            problem = replace(problem, draws=problem.copies(rows, fresh_key(rng_key)))
        return problem


def seen_values(x: np.ndarray, who: str) -> np.ndarray:
    """Values that discrete data take.

    Raises:
        ValueError: too many to enumerate, or one only.
    """
    values = np.unique(x)
    if not 2 <= len(values) <= 64:
        raise ValueError(f"{who} moves discrete data among the values that they show: these show {len(values)}")
    return values


class ConditionalNCEProblem(UnnormalisedProblem):
    """Σ_i w_i mean_j 2 softplus(log p̃(y_ij) − log p̃(x_i)), y_ij made from x_i by a symmetric change."""

    scale: Array | None = None
    values: Array | None = None
    draws: Array | None = None

    @property
    def deterministic(self) -> bool:
        return self.draws is not None

    def copies(self, x: Array, rng_key: Array) -> Array:
        """``(ratio, n, D)``"""
        options: Any = self.options
        shape = (options.ratio, *x.shape)
        if self.values is None:
            assert self.scale is not None
            # each with its mirror image: what is odd in the noise cancels, else small noise would drown the signal
            half = random.normal(rng_key, (-(-shape[0] // 2), *x.shape), x.dtype)
            return x + self.scale * jnp.concatenate([half, -half])[: shape[0]]
        where_key, value_key = random.split(rng_key)
        count = len(self.values)
        steps = random.randint(value_key, shape, 1, count)
        other = self.values[(jnp.searchsorted(self.values, x) + steps) % count].astype(x.dtype)
        chosen = random.randint(where_key, shape[:2], 0, x.shape[1])
        return jnp.where(jnp.arange(x.shape[1]) == chosen[..., None], other, x)

    def terms(self, params: Params, data: Data, rng_key: Array | None = None) -> tuple[Array, Array, Array]:
        key = draw_key = None
        if rng_key is not None:
            key, draw_key = random.split(rng_key)
        x, log_density, scale = self.density(params, data, self.chosen(key))
        y = self.draws if self.draws is not None else self.copies(x, draw_key)  # type: ignore[arg-type]
        logits = self.at(log_density, x, y) - log_density(x)
        return -scale * 2 * jnp.mean(jax.nn.softplus(logits), axis=0), jnp.zeros(()), jnp.zeros(())
