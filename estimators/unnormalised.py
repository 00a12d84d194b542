"""What the estimators of unnormalised models share: log p̃ at any x, in blocks of as many units as the data have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random
from numpyro.distributions import constraints

from . import data_argument
from . import noise as noises
from .base import Data, Params
from .likelihood import MLE
from .score_matching import PointwiseProblem, check_latents, check_options, subsampled_plate

FEW_DRAWS = 5
"""Effective draws of noise below which its ratio to the model means nothing."""
LOG_Z = "log_z"
"""Name of the learned log-normaliser among the parameters."""


@dataclass(frozen=True)
class Unnormalised(MLE):
    """Base of the estimators that compare log p̃(x; θ) at the data with log p̃ at other points.

    The model adds its energy by ``numpyro.factor("energy", -E(x))`` or observes x; whatever normalises it cancels or is
    learned. Units and weights are those of `MLE`; latents are estimated or summed out.
    """

    argument: str | None = None
    covariance: str | tuple[str, Any] = "sandwich"
    valid_covariances = ("sandwich", "bootstrap")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Data arguments that the energy depends on and that are known not to be x."""
        return ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options(self, self.valid_covariances)

    def pose(
        self, cls: type[UnnormalisedProblem], rng_key: Array, model: Callable, data: Data
    ) -> tuple[UnnormalisedProblem, Any]:
        """The problem without its noise or chains, and the support of the data.

        Raises:
            ValueError: see `data_argument.find`. NotImplementedError: latents to be integrated out.
        """
        problem: UnnormalisedProblem = cls.create(self, rng_key, model, data)  # type: ignore[assignment]
        check_latents(problem)
        argument = data_argument.find(problem, self.argument, type(self).__name__, self.inputs)
        problem = replace(problem, argument=argument)
        support = data_argument.support_of(problem, problem.params)
        problem = replace(problem, plate=subsampled_plate(problem), support=support)
        x, log_density, _ = problem.density(problem.params, problem.data)
        inside = np.asarray(problem.inside(x))
        if not inside.all():
            i = int(np.argmin(inside))
            raise ValueError(f"data[{problem.argument!r}][{i}] lies outside of the model's support ({support})")
        return problem, support


def check_smooth(estimator: MLE) -> None:
    """
    Raises:
        ValueError: penalties with kinks, under a loss that is never exact.
    """
    if estimator.nonsmooth:
        raise ValueError(
            f"{type(estimator).__name__} has no exact loss, which l1, group, fused and nonnegative need: NCE and "
            "ScoreMatching have one"
        )


class UnnormalisedProblem(PointwiseProblem):
    """log p̃ of blocks of points; parameters may include the log-normaliser `LOG_Z`."""

    support: Any = None
    learns_constant: bool = eqx.field(static=True, default=False)

    @property
    def has_normaliser(self) -> bool:
        return super().has_normaliser or not (self.support is None or self.support is constraints.real)

    def faults(self, params: Params) -> list[str]:
        return super().faults({n: v for n, v in params.items() if n != LOG_Z})

    @property
    def event(self) -> tuple[int, ...]:
        shape = jnp.shape(self.data[self.argument])
        return tuple(shape[1 if self.plate else len(self.roles.unit_shape) :])

    @property
    def rows(self) -> Array:
        """The data with one axis of units, ``(n, *event)``."""
        return jnp.asarray(self.data[self.argument]).reshape(-1, *self.event)

    def inside(self, x: Array) -> Array:
        """Whether points ``(n, D)`` lie in the model's support, ``(n,)``."""
        if self.support is None:
            return jnp.ones(x.shape[0], bool)
        found = self.support(x.reshape(x.shape[0], *self.event))
        return jnp.all(found.reshape(x.shape[0], -1), axis=1)

    def at(self, log_density: Callable, x: Array, y: Array) -> Array:
        """log p̃ at blocks y ``(blocks, n, D)`` of other points than x: ``(blocks, n)``, −inf outside of the support."""

        def one(y: Array) -> Array:
            inside = self.inside(y)
            value = log_density(jnp.where(inside[:, None], y, x))  # where it is defined: no NaN gradients
            return jnp.where(inside, value, -jnp.inf)

        return jax.vmap(one)(y)

    def faults_of(self, log_w: Array) -> list[str]:
        """What log p̃/p_noise of draws of noise says of the normaliser."""
        values = np.ravel(np.asarray(log_w, np.float64))
        top = values.max()
        w = np.exp(values - top) if np.isfinite(top) else np.zeros_like(values)
        ess = w.sum() ** 2 / max(np.sum(w**2), 1e-300)
        if ess >= FEW_DRAWS or len(w) < 10 * FEW_DRAWS:
            return []
        return [
            f"{ess:.1f} of {len(w)} draws of noise carry all of p̃/p_noise: the partition function diverges (an energy "
            "without lower bound, or flat at infinity), or the noise misses the model. Choose noise nearer to the data"
        ]

    def _with_constant(self, params: Params) -> Params:
        return {**params, LOG_Z: jnp.zeros((), jnp.result_type(float))} if self.learns_constant else params

    def init(self, rng_key: Array) -> Params:
        return self._with_constant(super().init(rng_key))

    def drawn(self, rng_key: Array) -> Params:
        return self._with_constant(super().drawn(rng_key))

    def constrain(self, params: Params) -> dict[str, Array]:
        out = super().constrain({n: v for n, v in params.items() if n != LOG_Z})
        return {**out, LOG_Z: params[LOG_Z]} if LOG_Z in params else out

    def unconstrain(self, values: Mapping[str, Any]) -> Params:
        own = {n: v for n, v in values.items() if n != LOG_Z}
        bare = replace(self, params={n: v for n, v in self.params.items() if n != LOG_Z}, learns_constant=False)
        out = super(UnnormalisedProblem, bare).unconstrain(own)
        return {**out, LOG_Z: jnp.asarray(values[LOG_Z], float)} if LOG_Z in values and self.learns_constant else out

    def learn_constant(self, value: Array) -> UnnormalisedProblem:
        """The problem with the log-normaliser among its parameters.

        Raises:
            ValueError: the model has a parameter of that name.
        """
        if LOG_Z in self.params:
            raise ValueError(f"the model's own parameter {LOG_Z!r} has the name of the learned constant: rename it")
        value = jnp.where(jnp.isfinite(value), value, 0.0).astype(jnp.result_type(float))
        return replace(self, params={**self.params, LOG_Z: value}, learns_constant=True)


def fresh_key(rng_key: Array) -> Array:
    """A key of its own: fold_in(key, i) is split(key)[i], and the model's own keys are splits."""
    return random.fold_in(rng_key, 2**31 - 1)


def build_noise(problem: UnnormalisedProblem, given: Any, support: Any, who: str) -> noises.Noise:
    return noises.build(given, np.asarray(problem.rows), support, who, problem.argument)
