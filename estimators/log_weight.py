"""`LogWeight`: any θ-objective with any φ-objective and any gradient estimator that is valid for them.

The parameters θ are the model's `param` sites, φ are the guide's. Each follows its own objective: one surrogate loss
has as its gradient the pair of both, so that the estimator is a `numpyro.infer.elbo.ELBO` like any other.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, random
from jax.lax import stop_gradient
from numpyro.handlers import substitute
from numpyro.infer import elbo as numpyro_elbo

from . import particles
from .base import Data, Estimator, Metrics
from .checks import check_counts
from .guided import GuidedProblem
from .objectives import GRADIENTS, Bound, IWBound, Objective

# Best first: no variance at the optimum, then little, then any that is valid.
_PREFERENCE = ("path", "dreg", "reparam", "score")


@dataclass(frozen=True)
class LogWeight(Estimator, numpyro_elbo.ELBO):
    """θ climbs one function of the log-weights, φ another, by a chosen gradient estimator.

    Works as ``loss=`` of `numpyro.infer.SVI` and as the estimator of `estimax.fit`.

    Args:
        num_particles: number of draws K per step.
        gradient: "reparam", "score", "path" or "dreg" (docs: gradient estimators); None picks the one of lowest
            variance that is valid for `phi` and the guide's sites.
        theta: objective that the model's parameters climb; the reported loss is its negative.
        phi: objective that the guide's parameters climb; None means the same as `theta`.
        likelihood_power: exponent on the likelihood inside both objectives; evidence and diagnostics always use 1.
            None is D/N, latent dimensions over data (Learning Hyperparameters via a Data-Emphasized Variational
            Objective).
        vectorize_particles: evaluate particles together (vmap), or one after the other in constant memory.

    Raises:
        ValueError: fewer than one particle, an unknown gradient estimator, or one that `phi` does not have.
    """

    num_particles: int = 16
    gradient: str | None = None
    theta: Objective = field(default_factory=IWBound)
    phi: Objective | None = None
    likelihood_power: float | None = 1.0
    vectorize_particles: bool = True

    def __post_init__(self) -> None:
        check_counts(num_particles=self.num_particles)
        self._compose()
        if self.gradient is not None and self.gradient not in GRADIENTS:
            raise ValueError(f"gradient must be one of {', '.join(GRADIENTS)} or None, got {self.gradient!r}")
        if self.gradient is not None and self.gradient not in self._phi.gradients:
            raise ValueError(
                f"gradient={self.gradient!r} does not exist for {type(self._phi).__name__}; "
                f"it has {', '.join(self._phi.gradients)}"
            )
        if self.gradient == "path" and not self._phi.linear:
            warnings.warn(
                f"gradient='path' is biased for {self.name}: it is exact for the ELBO only. "
                "gradient='dreg' is its unbiased counterpart.",
                stacklevel=3,
            )

    def _compose(self) -> None:
        """Where a subclass derives its objectives from its own arguments."""

    @property
    def _phi(self) -> Objective:
        return self.theta if self.phi is None else self.phi

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def can_infer_discrete(self) -> bool:  # read by numpyro.infer.SVI before it warns of discrete sites
        return self.gradient in (None, "score")

    @property
    def vectorize_particles_fn(self) -> Callable:
        return (lambda fn, keys: jax.vmap(fn)(keys)) if self.vectorize_particles else jax.lax.map

    def resolve_gradient(self, structure: particles.Structure) -> str:
        """The gradient estimator in force for a guide with these sites.

        Raises:
            ValueError: a reparameterised gradient is asked for at a site that has none.
        """
        blocked, bound = structure.not_reparameterised, structure.only_reparameterised
        if blocked:
            if self.gradient not in (None, "score"):
                raise ValueError(
                    f"gradient={self.gradient!r} needs reparameterised draws, but guide site {blocked[0]!r} has none "
                    "(it is discrete, or its distribution has no rsample). Use gradient='score' or gradient=None."
                )
            return "score"
        if bound:
            # A divergence has a plain reparameterised gradient at best as K → ∞: never pick that unasked.
            if self.gradient != "reparam" and not (self.gradient is None and isinstance(self._phi, Bound)):
                raise ValueError(
                    f"{self.name}(gradient={self.gradient!r}) needs log q of a given draw, which guide site "
                    f"{bound[0]!r} does not have (a transform without an inverse, or a factor). Use ELBO or IWAE with "
                    "gradient='reparam', or another guide."
                )
            return "reparam"
        if self.gradient is None:
            valid = [g for g in _PREFERENCE if g in self._phi.gradients]
            return next(g for g in valid if g != "path" or self._phi.linear)
        return self.gradient

    def resolve_power(self, structure: particles.Structure) -> float:
        """The exponent on the likelihood in force for a model of this size."""
        if self.likelihood_power is not None:
            return float(self.likelihood_power)
        return structure.num_latents / max(structure.num_data, 1)

    def loss_and_metrics(
        self,
        rng_key: Array,
        params: dict[str, Any],
        model: Callable,
        guide: Callable,
        args: tuple,
        kwargs: dict,
        structure: particles.Structure | None = None,
    ) -> tuple[Array, Metrics]:
        """Surrogate loss (value: minus the θ-objective; gradient: that of both objectives) and the step's metrics.

        Args:
            params: values of the `param` sites, constrained.
            structure: what `particles.inspect` found; None inspects (costs tracing time, no run time).
        """
        if structure is None:
            structure = particles.inspect(model, guide, params, args, kwargs)
        if structure.subsampled:
            plate_key, rng_key = random.split(rng_key)
            indices = particles.draw_subsamples(structure, plate_key)
            model, guide = substitute(model, indices), substitute(guide, indices)
        theta, phi, power = self.theta, self._phi, self.resolve_power(structure)
        gradient = self.resolve_gradient(structure)
        if structure.inner_subsampled and not (theta.linear and phi.linear):
            raise ValueError(
                f"{self.name} is not linear in the log-weights, so a subsampled plate must enclose every sample site, "
                f"but plate {structure.inner_subsampled[0]!r} does not. Use ELBO, or all of the data."
            )
        # Only a θ-site that both use can make these differ: there the guide sees a constant.
        still = jax.tree.map(stop_gradient, params)
        live = {n: still[n] if n in structure.theta else v for n, v in params.items()}

        def each(fn: Callable, *of_particle: Any) -> Any:
            """`fn` of every particle's key and share of arrays (K, ...)."""
            if self.num_particles == 1:
                return jax.tree.map(lambda x: x[None], fn(rng_key, *jax.tree.map(lambda x: x[0], of_particle)))
            keys = random.split(rng_key, self.num_particles)
            return self.vectorize_particles_fn(lambda xs: fn(*xs), (keys, *of_particle))

        def evaluate(*at: dict, **how: Any) -> particles.LogJoint:
            def one(key: Array, at: dict | None = None) -> particles.LogJoint:
                return particles.log_joint(key, structure, model, guide, args, kwargs, at=at, **how)

            return each(one, *at)

        def points(values: dict) -> dict | None:
            return values if structure.points else None

        log_q = {"reparam": None, "score": live, "path": still, "dreg": still}[gradient]
        coefficient = {"reparam": phi.total, "score": phi.score, "path": phi.path, "dreg": phi.double}[gradient]
        if theta == phi and gradient in ("reparam", "path"):
            # Both follow the derivative of one function of one set of log-weights: no surrogate needed.
            log_w = evaluate(draw=live, log_q=log_q, log_p=params).log_weight(power)
            return -structure.plate_scale * jnp.sum(theta(log_w)), self._metrics(stop_gradient(log_w))
        if gradient == "score":
            joint = evaluate(draw=still, log_q=log_q, points=points(live), log_p=params)
            log_w = stop_gradient(joint.log_weight(power))
            surrogate = _times(theta.total(log_w), joint.model(power)) + coefficient(log_w) * joint.guide
        elif structure.theta and not structure.points and gradient != "reparam" and phi.follows(theta):
            # One pass forward and one backward through the model serve both: what comes back to each draw with the
            # coefficients of θ becomes φ's by the ratio of the two. Drawing once, the densities are a function of it.
            def log_weight(draws: dict, of_model: dict) -> Array:
                return evaluate(draws, draw=still, log_p=still | of_model).log_weight(power)

            draws = each(lambda key: particles.draw(key, structure, guide, args, kwargs, live))
            of_model = {n: params[n] for n in structure.theta}
            log_w, pull_back = jax.vjp(log_weight, stop_gradient(draws), stop_gradient(of_model))
            ours, theirs = theta.total(log_w), coefficient(log_w)
            ratio = jnp.where(ours == 0, 0.0, theirs / jnp.where(ours == 0, 1.0, ours))
            to_draws, to_model = pull_back(ours)
            to_draws = {n: particles.over_plates(ratio, structure, n, x.ndim) * x for n, x in to_draws.items()}
            surrogate = _inner(to_draws, draws) + _inner(to_model, of_model)
        else:
            joint = evaluate(draw=live, log_q=log_q, points=points(still), log_p=still)
            log_w = stop_gradient(joint.log_weight(power))
            surrogate = _times(coefficient(log_w), joint.log_weight(power))
            if structure.theta or structure.points:
                joint = evaluate(draw=still, points=points(live), log_p=params)
                surrogate += _times(theta.total(log_w), joint.model(power))
        value = structure.plate_scale * jnp.sum(theta(log_w))
        surrogate = structure.plate_scale * jnp.sum(surrogate)
        return -(stop_gradient(value - surrogate) + surrogate), self._metrics(log_w)

    def _metrics(self, log_w: Array) -> Metrics:
        """Effective sample size over K, where weights matter to the objective."""
        if self.theta.linear:
            return {}
        weights = jax.nn.softmax(log_w, 0)
        return {"ess": jnp.mean(1 / jnp.sum(weights**2, 0)) / self.num_particles}

    def loss(  # type: ignore[override]
        self, rng_key: Array, param_map: dict, model: Callable, guide: Callable, *args: Any, **kwargs: Any
    ) -> Array:
        """NumPyro's entry point (`numpyro.infer.elbo.ELBO.loss`): the scalar surrogate loss."""
        return self.loss_and_metrics(rng_key, param_map, model, guide, args, kwargs)[0]

    def loss_with_mutable_state(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError(
            f"{self.name} does not carry mutable state (numpyro.mutable, batch normalisation): the particles would "
            "each write their own. Use numpyro.infer.Trace_ELBO, or a module without mutable state."
        )

    def problem(self, rng_key: Array, model: Callable, guide: Callable | None, data: Data) -> GuidedProblem:
        assert guide is not None
        return GuidedProblem.create(self, rng_key, model, guide, data)

    def with_gradient(self, gradient: str | None) -> LogWeight:
        """The same estimator with another gradient estimator."""
        return replace(self, gradient=gradient)


def _inner(cotangents: Any, values: Any) -> Array:
    """The function of `values` whose derivatives are `cotangents`."""
    return jax.tree.reduce(jnp.add, jax.tree.map(lambda c, x: jnp.sum(stop_gradient(c) * x), cotangents, values))


def _times(coefficient: Array, log_density: Array) -> Array:
    """The product, zero where the coefficient is: a particle of weight zero has log-density −inf."""
    return jnp.where(coefficient == 0, 0.0, coefficient * log_density)
