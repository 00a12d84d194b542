"""Expectation-maximisation for models with discrete local latents (Maximum Likelihood from Incomplete Data via the EM
Algorithm)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .base import Data, Params
from .likelihood import MLE, LikelihoodProblem
from .roles import combinations


@dataclass(frozen=True)
class EM(MLE):
    """Maximum likelihood by EM: mixtures, mixtures of experts, any model with a discrete latent site a datum.

    E-step: responsibilities r_iz = p(z | x_i, θ_old), by enumeration. M-step: Newton steps on
    Q(θ | θ_old) = Σ_i w_i Σ_z r_iz log p(x_i, z | θ). The log-likelihood never falls. `fit` extrapolates along the
    steps (``optimizer="squarem"``); ``optimizer="em"`` is the plain algorithm.

    The loss is that of `MLE`, −Σ_i w_i log p(x_i | θ), and so are optimum, standard errors and criteria. EM is slower
    than Newton near the optimum and surer far from it: mixtures have many optima, and a Newton step may leave a basin.
    It starts from draws of the prior, since components that are alike would stay alike; try num_restarts.

    Args:
        prior: count the prior of estimated latent sites, as in `MAP`: it keeps a component of a mixture from shrinking
            onto one datum, where the likelihood is infinite.
        l2: a smooth penalty as in `MLE`; for those with kinks take `MLE`, which sums the latents out too.

    Raises:
        ValueError: when posed on a model without discrete latents, or with data_noise, mollify, subsample, robust, or a
            penalty with kinks.
    """

    prior: bool = False

    @property
    def has_prior(self) -> bool:  # type: ignore[override]
        return self.prior

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("data_noise", "mollify", "subsample", "robust"):
            if getattr(self, name):
                raise ValueError(
                    f"EM needs the likelihood itself: not together with {name}={getattr(self, name)!r}; take MLE"
                )
        if self.nonsmooth:
            raise ValueError(
                "EM takes l2 only: for l1, group, fused and nonnegative use MLE, which sums the latents out and takes "
                "proximal steps"
            )

    def problem(self, rng_key: Array, model: Callable, guide: Callable | None, data: Data) -> EMProblem:
        problem: EMProblem = EMProblem.create(self, rng_key, model, data)  # type: ignore[assignment]
        if not problem.roles.enumerated:
            hidden = ", ".join(repr(s.name) for s in problem.roles.integrated)
            raise ValueError(
                "EM needs a discrete latent site to sum over, and the model has none. "
                + (f"Continuous latents ({hidden}): take MLE, which integrates them, or MCEM" if hidden else
                   "Where the model sums its latents itself (a mixture distribution, models.hmm), take MLE: it has "
                   "the same optimum")
            )  # fmt: skip
        return problem


class EMProblem(LikelihoodProblem):
    """−log-likelihood, and what EM minimises in its place."""

    @property
    def solver(self) -> str | None:
        return "squarem"

    def init(self, rng_key: Array) -> Params:
        """Param sites as the model draws them, latent sites drawn from their prior."""
        return self.drawn(rng_key)

    def complete(self, params: Params, data: Data) -> tuple[Array, Array, Array]:
        """log p(x_i, z | θ) of every value of z, ``(values, n)``; of what belongs to no unit; and the log-prior."""
        units, rest, prior = jax.vmap(lambda c: self._split(params, data, None, {}, c))(combinations(self.roles))
        if self.roles.blocks:
            return units, rest[0], prior[0]
        return (jnp.sum(units, axis=1) + rest)[:, None], jnp.zeros(()), prior[0]

    def responsibilities(self, params: Params, data: Data) -> Array:
        """p(z | x_i, θ) of every joint value of the discrete latents, ``(values, n)``."""
        return jax.nn.softmax(self.complete(params, data)[0], axis=0)

    def expect(self, anchor: Params, data: Data) -> Array:
        """Responsibilities at the anchor, ``(values, n)``."""
        return lax.stop_gradient(self.responsibilities(anchor, data))

    def surrogate(self, params: Params, expected: Array, data: Data) -> Array:
        """−Q(θ | anchor) − log-prior. Its gradient at the anchor is that of the loss (Fisher's identity)."""
        units, rest, prior = self.complete(params, data)
        # a component that is impossible for a datum has log-density −∞ and no weight
        terms = jnp.sum(jnp.where(expected > 0, expected * jnp.where(expected > 0, units, 0.0), 0.0), axis=0)
        value = -(jnp.sum(self.weights * terms) + rest + prior)
        return value if self.penalties is None else value + self.penalties.smooth(params)


def assignments(problem: EMProblem, params: Params) -> np.ndarray:
    """The likeliest joint value of the discrete latents of every unit, as an index into all of them: ``(n,)``."""
    return np.asarray(jnp.argmax(problem.responsibilities(params, problem.data), axis=0))
