"""The problem that every estimator with a guide poses, and the posterior that it leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
from jax import Array, lax, random
from numpyro.distributions.transforms import biject_to
from numpyro.handlers import replay, seed, substitute, trace
from numpyro.infer.util import transform_fn
from numpyro.primitives import Messenger

from . import particles
from .base import Data, Metrics, Params, Posterior, Problem

if TYPE_CHECKING:
    from .log_weight import LogWeight


class GuidedProblem(Problem):
    """A log-weight estimator on one model, guide and data set."""

    estimator: Any
    model: Callable
    guide: Callable
    transforms: dict[str, Any]
    theta: frozenset[str] = eqx.field(static=True)
    params: Params
    data: dict[str, Any]

    @classmethod
    def create(
        cls, estimator: LogWeight, rng_key: Array, model: Callable, guide: Callable, data: Data
    ) -> GuidedProblem:
        """Inspect model and guide, check that the estimator suits them, and draw initial values."""
        structure = particles.inspect(model, guide, {}, (), dict(data))
        estimator.resolve_gradient(structure)
        transforms = {name: biject_to(constraint) for name, constraint in structure.constraints.items()}
        problem = cls(
            estimator=estimator, model=model, guide=guide, transforms=transforms, theta=structure.theta, params={},
            data=dict(data),
        )  # fmt: skip
        # Initial values do not depend on the estimator: without it, one compilation serves them all.
        return replace(problem, params=_init(replace(problem, estimator=None), rng_key))

    def init(self, rng_key: Array) -> Params:
        model_key, guide_key = random.split(rng_key)
        guide_trace = trace(seed(self.guide, guide_key)).get_trace(**self.data)
        drawn = {n: s["value"] for n, s in guide_trace.items() if s["type"] == "param"}
        model = substitute(replay(seed(self.model, model_key), guide_trace), drawn)
        model_trace = trace(model).get_trace(**self.data)
        values = {n: s["value"] for n, s in model_trace.items() if s["type"] == "param"} | drawn
        # Weak types (a Python float as initial value) would compile the step a second time.
        return {
            n: jax.tree.map(lambda x: lax.convert_element_type(x, jnp.result_type(x)), self.transforms[n].inv(v))
            for n, v in values.items()
        }

    def constrain(self, params: Params) -> dict[str, Array]:
        return transform_fn(self.transforms, params)

    def loss(self, params: Params, rng_key: Array, data: Data) -> tuple[Array, Metrics]:
        return self.estimator.loss_and_metrics(rng_key, self.constrain(params), self.model, self.guide, (), dict(data))

    def posterior(self, params: Params) -> GuidePosterior:
        return GuidePosterior(self.model, self.guide, self.constrain(params), self.data)

    def gradient_parts(self, params: Params, rng_key: Array, data: Data) -> dict[str, Any]:
        gradient = jax.grad(lambda p: self.loss(p, rng_key, data)[0])(params)
        return {
            "theta": {n: g for n, g in gradient.items() if n in self.theta},
            "phi": {n: g for n, g in gradient.items() if n not in self.theta},
        }

    def explain(self, params: Params, rng_key: Array, data: Data) -> str:
        """Name the parameter that is not finite, else the sites whose log-density is not."""
        with numpyro.validation_enabled(False):  # the bad value is what we are after
            return self._explain(params, rng_key, data)

    def _explain(self, params: Params, rng_key: Array, data: Data) -> str:
        for name, value in self.constrain(params).items():
            if not all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(value)):
                return f"parameter {name!r} is not finite"
        plate_key, particle_key = random.split(rng_key)
        structure = particles.inspect(self.model, self.guide, {}, (), dict(data))
        indices = particles.draw_subsamples(structure, plate_key)
        model, guide = substitute(self.model, indices), substitute(self.guide, indices)
        for key in random.split(random.split(particle_key)[0], 8):
            model_trace, guide_trace = _traces(model, guide, self.constrain(params), key, dict(data))
            for role, tr in (("guide", guide_trace), ("model", model_trace)):
                for name, site in tr.items():
                    if site["type"] != "sample":
                        continue
                    if not bool(jnp.all(jnp.isfinite(site["value"]))):
                        return f"the {role}'s site {name!r} draws a value that is not finite"
                    log_prob = site["fn"].log_prob(site["value"])
                    if not bool(jnp.all(jnp.isfinite(log_prob))):
                        return (
                            f"the log-density of the {role}'s site {name!r} is {_first_bad(log_prob)}: its value may "
                            "lie outside the support, or a scale may have under- or overflowed"
                        )
        return "a gradient is not finite although every site's log-density is (a square root or logarithm at zero?)"


@eqx.filter_jit
def _init(problem: GuidedProblem, rng_key: Array) -> Params:
    return problem.init(rng_key)


def _first_bad(x: Array) -> str:
    flat = jnp.ravel(x)
    return str(flat[jnp.argmin(jnp.isfinite(flat))])


def _traces(model: Callable, guide: Callable, params: dict, rng_key: Array, data: dict) -> tuple[dict, dict]:
    model_key, guide_key = random.split(rng_key)
    guide_trace = trace(substitute(seed(guide, guide_key), params)).get_trace(**data)
    model_trace = trace(substitute(replay(seed(model, model_key), guide_trace), params)).get_trace(**data)
    return model_trace, guide_trace


class full_plates(Messenger):
    """Open every subsampled plate at its full size: evidence and draws are about all of the data."""

    def process_message(self, msg: dict) -> None:
        if msg["type"] == "plate" and msg["args"][0] != msg["args"][1]:
            size = msg["args"][0]
            msg["args"] = (size, size)
            msg["value"] = jnp.arange(size)


class GuidePosterior(Posterior):
    """Draws from a fitted guide, with log p(x, z) − log q(z)."""

    model: Callable
    guide: Callable
    params: dict[str, Any]
    data: dict[str, Any]

    def sample(self, rng_key: Array, num_samples: int) -> dict[str, Array]:
        def one(key: Array) -> dict[str, Array]:
            with full_plates():
                model_trace, _ = _traces(self.model, self.guide, self.params, key, self.data)
            return {
                n: s["value"]
                for n, s in model_trace.items()
                if s["type"] == "deterministic" or (s["type"] == "sample" and not s["is_observed"])
            }

        return _map(one, random.split(rng_key, num_samples))

    def log_weights(self, rng_key: Array, num_samples: int) -> Array:
        with full_plates():
            structure = particles.inspect(self.model, self.guide, self.params, (), self.data)

        def one(key: Array) -> Array:
            with full_plates():
                joint = particles.log_joint(
                    key, structure, self.model, self.guide, (), self.data, draw=self.params, log_p=self.params
                )
            return joint.log_weight()

        return _map(one, random.split(rng_key, num_samples))

    def complete(self, draws: dict[str, Array]) -> dict[str, Array]:
        def one(args: tuple) -> dict[str, Array]:
            draw, key = args
            with full_plates():
                tr = trace(substitute(seed(self.model, key), self.params | draw)).get_trace(**self.data)
            return {n: s["value"] for n, s in tr.items() if s["type"] == "deterministic"}

        latent = {n: v for n, v in draws.items() if n in self.local_axes()}
        size = next(iter(draws.values())).shape[0]
        return lax.map(one, (latent, random.split(random.key(0), size)), batch_size=min(256, size))

    def local_axes(self) -> dict[str, tuple[int, ...]]:
        with full_plates():
            structure = particles.inspect(self.model, self.guide, self.params, (), self.data)
        return {
            name: tuple(1 + len(fn.batch_shape) + dim for dim in sorted(structure.plate_dims))
            for name, fn in structure.latents.items()
        }


def _map(one: Callable, keys: Array, batch: int = 1024) -> Any:
    """vmap in batches, so that many draws of a large model fit in memory."""
    return lax.map(one, keys, batch_size=min(batch, keys.shape[0]))
