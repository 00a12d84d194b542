"""Draws pushed through the model: predictions, prior draws and pointwise log-likelihoods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
from jax import Array, random
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.infer.util import compute_log_probs

from ..estimators import blocks
from ..estimators.guided import full_plates

BATCH = 256
"""Most draws at once."""


def is_factor(fn: Any) -> bool:
    while isinstance(fn, (dist.ExpandedDistribution, dist.MaskedDistribution, dist.Independent)):
        fn = fn.base_dist
    return isinstance(fn, dist.Unit)


def is_costly(fn: Any) -> bool:
    """Whether the distribution, or one that it is made of, says so of itself."""
    while not getattr(fn, "costly", False):
        if not hasattr(fn, "base_dist"):
            return False
        fn = fn.base_dist
    return True


class SiteInfo(NamedTuple):
    """Names of the dimensions of a site, read off its plates."""

    name: str
    kind: str
    """"latent", "observed" or "deterministic"."""
    shape: tuple[int, ...]
    dims: tuple[str, ...]
    discrete: bool
    costly: bool = False
    """Whether a draw or density of it solves an equation, so that few are to be had."""


def describe(model: Callable, params: dict[str, Any], draw: dict[str, Array], data: dict[str, Any]) -> list[SiteInfo]:
    """Sites of the model with the names of their dimensions: a plate's name, else ``site_dim_0`` and so on."""
    found: list[SiteInfo] = []

    def run() -> None:
        with full_plates():
            tr = run_model(model, params, draw, data)
        plates = {n: s["args"][0] for n, s in tr.items() if s["type"] == "plate"}
        by_shape: dict[tuple[int, ...], tuple[str, ...]] = {(size,): (n,) for n, size in reversed(plates.items())}
        for name, site in tr.items():
            if site["type"] not in ("sample", "deterministic") or (site["type"] == "sample" and is_factor(site["fn"])):
                continue
            shape = tuple(jax.numpy.shape(site["value"]))
            if site["type"] == "sample":
                batch = len(shape) - site["fn"].event_dim
                names = {batch + f.dim: f.name for f in site["cond_indep_stack"]}
                dims = tuple(names.get(i, f"{name}_dim_{i}") for i in range(len(shape)))
                by_shape.setdefault(shape, dims)
                kind = "observed" if site["is_observed"] else "latent"
                discrete, costly = bool(site["fn"].support.is_discrete), is_costly(site["fn"])
                found.append(SiteInfo(name, kind, shape, dims, discrete, costly))
            else:
                dims = by_shape.get(shape, tuple(f"{name}_dim_{i}" for i in range(len(shape))))
                found.append(SiteInfo(name, "deterministic", shape, dims, False))

    jax.eval_shape(run)
    return found


def run_model(model: Callable, params: dict, draw: dict, data: dict, key: Array | None = None) -> dict:
    """Trace of the model at given latent values; what is not given is drawn, or feasible where it has no sampler."""
    key = random.key(0) if key is None else key
    given = jax.tree.map(jax.numpy.asarray, {**params, **draw})  # a model may index them by a latent that is traced
    return handlers.trace(handlers.substitute(handlers.seed(model, key), given)).get_trace(**data)


@eqx.filter_jit
def predict(
    model: Callable, params: dict, draws: dict[str, Array], data: dict, rng_key: Array, num_samples: int = 1
) -> dict[str, Array]:
    """New data for every draw, keyed by observed site, each of shape ``(S, *site)``; `num_samples` of them where there
    are no draws."""

    def one(args: tuple) -> dict[str, Array]:
        draw, key = args
        with full_plates(), handlers.uncondition():
            tr = run_model(model, params, draw, data, key)
        return {n: s["value"] for n, s in tr.items() if _was_observed(n, s, draw)}

    num_samples = _num_draws(draws) if draws else num_samples
    return blocks.each(one, (draws, random.split(rng_key, num_samples)), BATCH)


def _num_draws(draws: dict[str, Array]) -> int:
    return next(iter(draws.values())).shape[0] if draws else 1


def _was_observed(name: str, site: dict, draw: dict) -> bool:
    return site["type"] == "sample" and name not in draw and not is_factor(site["fn"])


@eqx.filter_jit
def prior(model: Callable, params: dict, data: dict, rng_key: Array, num_samples: int) -> dict[str, Array]:
    """Draws of every site, the observed ones too, from the model alone.

    Raises:
        NotImplementedError: a prior without sampler (improper).
    """

    def one(key: Array) -> dict[str, Array]:
        with full_plates(), handlers.uncondition():
            tr = run_model(model, params, {}, data, key)
        return {
            n: s["value"]
            for n, s in tr.items()
            if s["type"] == "deterministic" or (s["type"] == "sample" and not is_factor(s["fn"]))
        }

    return blocks.each(one, random.split(rng_key, num_samples), BATCH)


@eqx.filter_jit
def log_likelihood(model: Callable, params: dict, draws: dict[str, Array], data: dict) -> dict[str, Array]:
    """Pointwise log-likelihood of every observed site in nats, of shape ``(S, *batch)``; once where there are no
    draws."""

    def one(args: tuple) -> dict[str, Array]:
        draw, _ = args
        with full_plates():
            seeded = handlers.seed(model, random.key(0))
            log_probs, tr = compute_log_probs(seeded, (), data, {**params, **draw}, sum_log_prob=False)
        return {n: v for n, v in log_probs.items() if tr[n]["is_observed"] and not is_factor(tr[n]["fn"])}

    num_samples = _num_draws(draws)
    return blocks.each(one, (draws, jax.numpy.arange(num_samples)), BATCH)
