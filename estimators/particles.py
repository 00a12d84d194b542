"""Particles: draws from a guide with their log-weights, differentiable along the path that an estimator asks for.

The value of a log-weight never depends on the gradient estimator, its derivative does. One draw of the guide and one
or two evaluations of the densities, with the right stop-gradients between them, give every estimator of the family.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, random
from numpyro import distributions as dist
from numpyro import plate, validation_enabled
from numpyro.handlers import replay, seed, substitute, trace
from numpyro.infer.util import compute_log_probs
from numpyro.ops.provenance import eval_provenance
from numpyro.util import check_model_guide_match

from .recall import recall


class Structure(NamedTuple):
    """What the traces of a model and a guide say, independent of any value."""

    theta: frozenset[str]
    """Names of the model's `param` sites; a site that the guide shares belongs here."""
    constraints: dict[str, Any]
    """Constraint of every `param` site of model and guide."""
    latents: dict[str, Any]
    """Latent sample sites of the model: name -> distribution (abstract)."""
    observed: frozenset[str]
    """Observed sample sites of the model."""
    free: dict[str, int]
    """Guide sites with a density of their own -> their event dimension. The others, Delta and factor sites, are
    functions of these."""
    points: bool
    """Whether a function among the guide's sites has parameters, as a point estimate has."""
    not_reparameterised: tuple[str, ...]
    """Guide sites without a reparameterised sampler."""
    only_reparameterised: tuple[str, ...]
    """Guide sites whose density cannot be had at a given value: a transform without an inverse, or a factor."""
    plate_dims: frozenset[int]
    """Negative batch dimensions of the plates that every sample site of model and guide shares."""
    plate_scale: float
    """Size over subsample size of those plates, multiplied."""
    inner_subsampled: tuple[str, ...]
    """Subsampled plates that do not enclose every site."""
    subsampled: tuple[tuple[str, int, int], ...]
    """Name, size and subsample size of every subsampled plate, those of the guide first."""
    num_data: int
    """Number of observed scalars, subsampled plates counted at full size."""
    num_latents: int
    """Number of latent scalars, counted likewise."""


def _is_delta(fn: Any) -> bool:
    while isinstance(fn, (dist.ExpandedDistribution, dist.MaskedDistribution, dist.Independent)):
        fn = fn.base_dist
    return isinstance(fn, dist.Delta)


def inspect(model: Callable, guide: Callable, params: dict, args: tuple, kwargs: dict) -> Structure:
    """Trace model and guide abstractly (nothing is computed) and read off their structure.

    Raises:
        ValueError: the guide misses a latent site of the model, or has a site that the model does not.
    """
    found: list[Structure] = []

    def run() -> Array:
        guide_trace = trace(substitute(seed(guide, random.key(0)), params)).get_trace(*args, **kwargs)
        seeded = substitute(seed(model, random.key(1)), params)
        try:
            model_trace = trace(replay(seeded, guide_trace)).get_trace(*args, **kwargs)
        except (TypeError, ValueError):
            # Draws of a wrong shape fail somewhere inside the model: the model's own draws show where they differ.
            check_match(trace(seeded).get_trace(*args, **kwargs), guide_trace)
            raise
        check_match(model_trace, guide_trace)
        structure = _structure(model_trace, guide_trace)
        points = recall(
            "points", (model, guide, params, args, kwargs),
            lambda: _has_points(structure, guide, guide_trace, params, args, kwargs),
        )  # fmt: skip
        found.append(structure._replace(points=points))
        return jnp.zeros(())

    jax.eval_shape(run)
    return found[0]


def _has_points(
    structure: Structure, guide: Callable, guide_trace: dict, params: dict, args: tuple, kwargs: dict
) -> bool:
    """Whether any Delta or factor site of the guide depends on parameters while the free sites stand still."""
    functions = [n for n, s in guide_trace.items() if s["type"] == "sample" and n not in structure.free]
    if not functions or structure.only_reparameterised:
        return False
    fixed = replay(seed(guide, random.key(0)), _only(guide_trace, structure.free))
    values = {n: s["value"] for n, s in guide_trace.items() if s["type"] == "param"}

    def evaluate(values: dict) -> list:
        with validation_enabled(False):  # of what has just been validated
            q, again = compute_log_probs(fixed, args, kwargs, params | values, sum_log_prob=False)
        return [(q[n], again[n]["value"]) for n in functions]

    is_set = lambda x: isinstance(x, frozenset)  # noqa: E731
    return any(jax.tree.leaves(eval_provenance(evaluate, values=values), is_leaf=is_set))


def _only(tr: dict, names: Container[str]) -> dict:
    """The part of a trace that fixes these sites and the plates."""
    return {n: s for n, s in tr.items() if s["type"] == "plate" or n in names}


def _has_density(site: dict) -> bool:
    """Whether log q of a drawn site can be evaluated at a value that is merely given."""
    if site["is_observed"]:
        return False
    try:
        if site["intermediates"]:
            site["fn"].log_prob(site["value"])
    except NotImplementedError:
        return False
    return True


def check_match(model_trace: dict, guide_trace: dict) -> None:
    """Raise where model and guide do not have the same latent sites with the same shapes."""
    latent = {k: s for k, s in model_trace.items() if s["type"] == "sample" and not s["is_observed"]}
    proposed = {k: s for k, s in guide_trace.items() if s["type"] == "sample" and not s["is_observed"]}
    missing = sorted(set(latent) - set(proposed))
    if missing:
        raise ValueError(
            f"the guide has no sample site {missing[0]!r}, which is latent in the model "
            f"(latent sites: {', '.join(map(repr, latent)) or 'none'}; guide sites: "
            f"{', '.join(map(repr, proposed)) or 'none'}). Add numpyro.sample({missing[0]!r}, ...) to the guide."
        )
    invented = sorted(k for k, s in proposed.items() if k not in latent and not s["infer"].get("is_auxiliary"))
    if invented:
        observed = invented[0] in model_trace
        raise ValueError(
            f"the guide samples site {invented[0]!r}, "
            + ("which the model observes" if observed else "which the model does not have")
            + ". Remove it, or mark it infer={'is_auxiliary': True}."
        )
    for name, site in latent.items():
        in_model = tuple(site["fn"].shape())
        in_guide = tuple(proposed[name]["fn"].shape())
        if in_model != in_guide:
            raise ValueError(
                f"model and guide disagree on the shape of site {name!r}: the model says {in_model}, the guide "
                f"{in_guide}. Check plates and .to_event() on both sides."
            )
    check_model_guide_match(model_trace, guide_trace)


def _structure(model_trace: dict, guide_trace: dict) -> Structure:
    sites = [s for t in (model_trace, guide_trace) for s in t.values() if s["type"] == "sample"]
    plates = {n: s["args"] for t in (guide_trace, model_trace) for n, s in t.items() if s["type"] == "plate"}
    stacks = [set(s["cond_indep_stack"]) for s in sites]
    common = set.intersection(*stacks) if stacks else set()
    inner = {f.name for f in set().union(*stacks) - common if plates[f.name][0] > f.size}
    scale = 1.0
    for frame in common:
        scale *= plates[frame.name][0] / frame.size
    params = {n: s for t in (guide_trace, model_trace) for n, s in t.items() if s["type"] == "param"}
    observed = {n: s for n, s in model_trace.items() if s["type"] == "sample" and s["is_observed"]}
    latents = {n: s for n, s in model_trace.items() if s["type"] == "sample" and not s["is_observed"]}

    def count(sites: list[dict]) -> int:
        sizes = (
            jnp.size(s["value"]) * math.prod(plates[f.name][0] / f.size for f in s["cond_indep_stack"]) for s in sites
        )
        return round(sum(sizes))

    proposals = {n: s for n, s in guide_trace.items() if s["type"] == "sample" and not s["is_observed"]}
    free = {n: s for n, s in proposals.items() if not _is_delta(s["fn"])}
    return Structure(
        theta=frozenset(n for n, s in model_trace.items() if s["type"] == "param"),
        constraints={n: s["kwargs"].get("constraint", dist.constraints.real) for n, s in params.items()},
        latents={n: s["fn"] for n, s in latents.items()},
        observed=frozenset(observed),
        free={n: s["fn"].event_dim for n, s in free.items()},
        points=False,
        not_reparameterised=tuple(n for n, s in free.items() if not s["fn"].has_rsample),
        only_reparameterised=tuple(n for n, s in guide_trace.items() if s["type"] == "sample" and not _has_density(s)),
        plate_dims=frozenset(f.dim for f in common),
        plate_scale=scale,
        inner_subsampled=tuple(sorted(inner)),
        subsampled=tuple((n, size, sub) for n, (size, sub) in plates.items() if sub not in (None, size)),
        num_data=count(list(observed.values())),
        num_latents=count(list(latents.values())),
    )


class LogJoint(NamedTuple):
    """Log densities of one or many particles, each of the shape of the common plates, at full weight per element."""

    likelihood: Array
    prior: Array
    """Log density of the model's latents, over that of the guide's Delta and factor sites (a change of variables)."""
    guide: Array
    """Log density of the guide's free sites."""

    def model(self, power: float = 1.0) -> Array:
        return power * self.likelihood + self.prior

    def log_weight(self, power: float = 1.0) -> Array:
        return self.model(power) - self.guide


def _reduce(log_probs: dict[str, Array], structure: Structure) -> Array:
    """Sum log-probabilities over sites and over all batch dimensions but the common plates'."""
    total: Array = jnp.zeros(())
    for log_prob in log_probs.values():
        ndim = jnp.ndim(log_prob)
        summed = tuple(d for d in range(ndim) if d - ndim not in structure.plate_dims)
        total = total + jnp.sum(log_prob, axis=summed)
    return total / structure.plate_scale


def log_joint(
    rng_key: Array,
    structure: Structure,
    model: Callable,
    guide: Callable,
    args: tuple,
    kwargs: dict,
    *,
    draw: dict,
    log_q: dict | None = None,
    points: dict | None = None,
    log_p: dict,
    at: dict[str, Array] | None = None,
) -> LogJoint:
    """Densities at one draw of the guide, each differentiable in the parameters that it is given.

    Args:
        rng_key: key of this particle; equal keys give equal draws.
        draw: parameters with which the guide draws its free sites; a stopped gradient holds them fixed.
        log_q: parameters with which their density is evaluated; None takes those of the draw itself.
        points: parameters with which the guide's Delta and factor sites follow from them; None as before.
        log_p: parameters with which log p(x, z) is evaluated.
        at: values of the guide's free sites in place of a draw; `draw` then only gives their density.
    """
    model_key, guide_key = random.split(rng_key)
    seeded_guide = seed(guide, guide_key) if at is None else substitute(seed(guide, guide_key), at)
    q, drawn = compute_log_probs(seeded_guide, args, kwargs, draw, sum_log_prob=False)
    fixed = replay(seeded_guide, _only(drawn, structure.free))
    free_q, function_q, placed = q, q, drawn
    if log_q is not None:
        free_q, again = compute_log_probs(fixed, args, kwargs, log_q, sum_log_prob=False)
    if points is not None:
        same = points is log_q
        function_q, placed = (free_q, again) if same else compute_log_probs(fixed, args, kwargs, points, False)
    p, _ = compute_log_probs(replay(seed(model, model_key), placed), args, kwargs, log_p, sum_log_prob=False)
    likelihood = {n: v for n, v in p.items() if n in structure.observed}
    prior = {n: v for n, v in p.items() if n not in structure.observed}
    free = {n: v for n, v in free_q.items() if n in structure.free}
    functions = {n: v for n, v in function_q.items() if n not in structure.free}
    # A model without latents has no prior to reduce: all three get the shape of the plates all the same.
    return LogJoint(
        *jnp.broadcast_arrays(
            _reduce(likelihood, structure),
            _reduce(prior, structure) - _reduce(functions, structure),
            _reduce(free, structure),
        )
    )


def draw(
    rng_key: Array, structure: Structure, guide: Callable, args: tuple, kwargs: dict, params: dict
) -> dict[str, Array]:
    """The guide's free sites as `log_joint` draws them with this key."""
    drawn = trace(substitute(seed(guide, random.split(rng_key)[1]), params)).get_trace(*args, **kwargs)
    return {n: drawn[n]["value"] for n in structure.free}


def over_plates(values: Array, structure: Structure, site: str, ndim: int) -> Array:
    """An array ``(K, *plates)`` in a shape that broadcasts against `ndim` dimensions of K draws of a site."""
    event_dim = structure.free[site]
    sizes = iter(values.shape[1:])
    batch_shape = [next(sizes) if d in structure.plate_dims else 1 for d in range(event_dim - ndim + 1, 0)]
    return values.reshape(len(values), *batch_shape, *(1,) * event_dim)


def draw_subsamples(structure: Structure, rng_key: Array) -> dict[str, Array]:
    """Indices of the data in every subsampled plate, which model, guide and all particles must share."""

    def plates() -> None:
        for name, size, subsample_size in structure.subsampled:
            plate(name, size, subsample_size)

    return {n: s["value"] for n, s in trace(seed(plates, rng_key)).get_trace().items()}
