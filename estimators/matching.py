"""Regression in place of a likelihood: what score and flow matching share.

The observed site stays as the model has it. While the loss is computed its log-density is replaced by minus the
regression's loss, so that plates, subsampling, masks and priors of parameters act on it as on any likelihood.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array, random
from numpyro import handlers
from numpyro.distributions.util import sum_rightmost
from numpyro.infer.util import compute_log_probs
from numpyro.primitives import Messenger

from .base import Data, Estimator, Metrics, Params
from .guided import full_plates
from .likelihood import MAP, LikelihoodProblem
from .roles import inspect, is_factor


class Matching(Estimator):
    """An estimator of the network in an observed site's distribution, by a loss of every datum.

    Parameters are the model's `param` sites, and its latent sites with their priors (as in `MAP`). Plates that
    subsample do so. The loss is the mean over data, plus −log prior/n.
    """

    needs_guide = False

    @property
    def counts_steps(self) -> bool:
        """Whether `objective` changes with the steps taken: it is then given their number as its table."""
        return False

    def remarks(self, step: int) -> list[str]:
        """What `diagnose` says of a fit of so many steps, where they are counted."""
        return []

    @abc.abstractmethod
    def matches(self, fn: Any) -> bool:
        """Whether the distribution has the network that is to be trained."""

    @property
    @abc.abstractmethod
    def wanted(self) -> str:
        """In words: the distribution that the estimator needs."""

    @abc.abstractmethod
    def objective(self, fn: Any, x: Array, rng_key: Array, table: Any) -> Array:
        """Loss of every datum, ``(*batch,)``, for x of shape ``(*batch, *event)``."""

    def prepare(self, fn: Any, x: Array, rng_key: Array) -> Any:
        """Arrays that `objective` needs and that depend on the data alone: computed once, a pytree."""
        return None

    def problem(self, rng_key: Array, model: Callable, guide: Callable | None, data: Data) -> MatchingProblem:
        key_create, key_prepare = random.split(rng_key)
        problem: MatchingProblem = MatchingProblem.create(MAP(subsample=True), key_create, model, data)  # type: ignore[assignment]
        if problem.roles.enumerated:
            raise ValueError(
                f"{type(self).__name__} cannot sum out {problem.roles.enumerated[0].name!r}: its loss is no "
                "likelihood. Make the discrete site data (observed, or an input of the network), or take MLE"
            )
        total = inspect(MAP(), model, dict(data))[0].num_units
        problem = replace(problem, matching=self, total=total)
        sites = problem.matched_sites()
        problem._check(sites)
        values = _observed_values(problem, tuple(sites))
        for name, (inside, _) in values.items():
            if not bool(inside):
                raise ValueError(
                    f"site {name!r} observes values outside the support of its distribution, or on its boundary where "
                    "its transform is infinite"
                )
        tables = {
            n: self.prepare(sites[n], x, random.fold_in(key_prepare, i)) for i, (n, (_, x)) in enumerate(values.items())
        }
        counter = jnp.zeros((), jnp.int32) if self.counts_steps else None
        return replace(problem, tables=tables, memory=counter)


class MatchingProblem(LikelihoodProblem):
    """The mean loss of matching over the data. `log_likelihood` is that of the model itself."""

    matching: Any = eqx.field(static=True, default=None)
    total: int = eqx.field(static=True, default=1)
    """Data that the plates stand for, subsampled or not."""
    tables: Any = None

    @property
    def deterministic(self) -> bool:
        return False

    def loss(self, params: Params, rng_key: Array, data: Data) -> tuple[Array, Metrics]:
        return super().loss(params, rng_key, data)[0] / self.total, {}

    def _log_probs(
        self, params: Params, data: Data, key: Array | None, extra: dict[str, Array], combination: Array | None
    ) -> tuple[dict[str, Array], dict]:
        if key is None:  # the model's own densities, of all data
            whole = replace(self, options=replace(self.options, subsample=False))
            return LikelihoodProblem._log_probs(whole, params, data, key, extra, combination)
        model = handlers.substitute(self._prepared(key), substitute_fn=self._values(params, extra, combination))
        # fold_in(key, i) is split(key)[i], which NumPyro's seed handler uses: a number that it does not reach
        # the memory counts the step that is on its way
        tables = self.tables if self.memory is None else dict.fromkeys(self.tables, self.memory - 1)
        model = _matched(model, self.matching, random.fold_in(key, 2**31 - 1), tables)
        return compute_log_probs(model, (), dict(data), {}, sum_log_prob=False)

    def remarks(self, params: Params) -> list[str]:
        counted = [] if self.memory is None else self.matching.remarks(int(self.memory))
        return super().remarks(params) + counted

    def matched_sites(self) -> dict[str, Any]:
        """Observed sites whose distribution has the network; a network inside is for looking at only."""
        found: dict[str, Any] = {}

        def run() -> Array:
            tr = handlers.trace(full_plates(handlers.seed(self.model, 0))).get_trace(**self.data)
            for name, site in tr.items():
                if site["type"] == "sample" and site["is_observed"] and not is_factor(site):
                    fn = unwrap(site["fn"])[0]
                    if self.matching.matches(fn):
                        found[name] = fn
            return jnp.zeros(())

        jax.eval_shape(run)
        return found

    def _check(self, sites: dict[str, Any]) -> None:
        if sites:
            return
        found: dict[str, str] = {}

        def run() -> Array:
            tr = handlers.trace(full_plates(handlers.seed(self.model, 0))).get_trace(**self.data)
            for name, site in tr.items():
                if site["type"] == "sample" and site["is_observed"]:
                    found[name] = type(unwrap(site["fn"])[0]).__name__
            return jnp.zeros(())

        jax.eval_shape(run)
        listed = ", ".join(f"{n!r} is {kind}" for n, kind in found.items())
        raise ValueError(
            f"{type(self.matching).__name__} needs an observed site whose distribution is {self.matching.wanted}; here "
            f"{listed}. For a model with a log-density of its own take ScoreMatching or MLE"
        )

    def explain(self, params: Params, rng_key: Array, data: Data) -> str:
        with numpyro.validation_enabled(False):
            for name, value in self.constrain(params).items():
                if not all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(value)):
                    return f"parameter {name!r} is not finite"
            extra: dict[str, Array] = {}
            for name, value in self._log_probs(params, data, rng_key, extra, None)[0].items():
                if not bool(jnp.all(jnp.isfinite(value))):
                    return f"the loss of site {name!r} is not finite: does the network overflow?"
        return "a gradient is not finite although every site's loss is (a square root or logarithm at zero?)"


def unwrap(fn: Any) -> tuple[Any, list[Any], list[Any]]:
    """The distribution at the core, transforms from it to the observed value (outermost first), and masks."""
    transforms: list[Any] = []
    masks: list[Any] = []
    while True:
        if isinstance(fn, dist.TransformedDistribution):
            transforms.extend(reversed(fn.transforms))
        elif isinstance(fn, dist.MaskedDistribution):
            masks.append(fn._mask)
        elif not isinstance(fn, (dist.ExpandedDistribution, dist.Independent)):
            return fn, transforms, masks
        fn = fn.base_dist


def to_core(value: Array, transforms: list[Any]) -> Array:
    """The observed value in the space of the distribution at the core."""
    for transform in transforms:
        value = transform.inv(value)
    return value


class _matched(Messenger):
    """Observed sites with a network take part by the loss of matching."""

    def __init__(self, fn: Callable, matching: Matching, key: Array, tables: Any) -> None:
        self.matching, self.key, self.tables = matching, key, tables
        super().__init__(fn)

    def process_message(self, msg: dict) -> None:
        if msg["type"] != "sample" or not msg["is_observed"] or is_factor(msg):
            return
        core, transforms, masks = unwrap(msg["fn"])
        if self.matching.matches(core):
            self.key, key = random.split(self.key)
            table = self.tables[msg["name"]]
            msg["fn"] = _Regression(
                msg["fn"], lambda x: self.matching.objective(core, x, key, table), transforms, masks
            )


class _Regression(dist.Distribution):
    """A distribution's place in the trace, with minus a loss as its log-density."""

    def __init__(self, fn: Any, loss: Callable, transforms: list[Any], masks: list[Any]) -> None:
        self.fn, self.loss, self.transforms, self.masks = fn, loss, transforms, masks
        super().__init__(fn.batch_shape, fn.event_shape)

    @property
    def support(self) -> Any:
        return self.fn.support

    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        loss = self.loss(to_core(value, self.transforms))
        loss = sum_rightmost(loss, loss.ndim - (jnp.ndim(value) - self.fn.event_dim))
        for mask in self.masks:
            loss = jnp.where(mask, loss, 0.0)
        return -loss


@eqx.filter_jit
def _observed_values(problem: MatchingProblem, names: tuple[str, ...]) -> dict[str, tuple[Array, Array]]:
    """By site: whether all values lie in the support, and the values in the space of the core."""
    tr = handlers.trace(full_plates(handlers.seed(problem.model, 0))).get_trace(**problem.data)
    found = {}
    for name in names:
        fn, value = tr[name]["fn"], tr[name]["value"]
        core, transforms, _ = unwrap(fn)
        x = to_core(core.checked(value) if not transforms else value, transforms)
        found[name] = (jnp.all(fn.support(value)) & jnp.all(jnp.isfinite(x)), x)
    return found
