"""What becomes of every site of a model in its likelihood: estimated, integrated, summed out, or observed by unit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array, random
from numpyro import handlers
from numpyro.distributions.transforms import biject_to
from numpyro.infer.initialization import init_to_uniform
from numpyro.infer.util import compute_log_probs
from numpyro.ops.provenance import eval_provenance

from .guided import full_plates
from .recall import recall

if TYPE_CHECKING:
    from .likelihood import MLE

MAX_COMBINATIONS = 4096
"""Most joint values of discrete latents that are enumerated."""
MAX_BLOCK = 400
"""Most latents that one integral by Laplace's method may have: its Hessian is dense."""


class Latent(NamedTuple):
    """A latent site, as far as it is static."""

    name: str
    shape: tuple[int, ...]
    """Of the unconstrained value; of the value itself where it is discrete."""
    batch_ndim: int
    """How many of the leading axes are batch (plate) axes."""
    num_values: int
    """Size of its support where it is discrete, else 0."""
    plates: tuple[str, ...]


class Roles(NamedTuple):
    """What becomes of every site of a model. Static."""

    estimated: tuple[str, ...]
    """Latent sites that are parameters."""
    integrated: tuple[Latent, ...]
    """Continuous latent sites that are integrated out."""
    enumerated: tuple[Latent, ...]
    """Discrete latent sites that are summed out."""
    unit_dims: tuple[int, ...]
    """Negative batch dimensions of the plates whose elements are the independent units; empty: elements of sites."""
    unit_shape: tuple[int, ...]
    units: tuple[str, ...]
    """Observed sites that belong to units; the others count once."""
    blocks: bool
    """Whether the latents that are summed out factorise over the units."""
    subsampled: bool
    discrete_observed: bool
    mixture: bool = False
    """Whether discrete latents are summed out, here or in a mixture distribution that is observed: many maxima."""

    @property
    def num_units(self) -> int:
        return int(np.prod(self.unit_shape)) if self.unit_shape else 1


def _is_mixture(fn: Any) -> bool:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, (numpyro.distributions.MixtureSameFamily, numpyro.distributions.MixtureGeneral))


def inspect(estimator: MLE, model: Callable, data: dict[str, Any]) -> tuple[Roles, dict[str, Any]]:
    """Give every site of the model its role.

    Raises:
        ValueError: see `LikelihoodProblem.create`.
    """
    found: dict[str, Any] = {"hierarchical": set()}

    def run(key: Array) -> Array:
        seeded = handlers.seed(model, key)
        if not estimator.subsample:
            seeded = full_plates(seeded)
        tr = handlers.trace(handlers.substitute(seeded, substitute_fn=init_to_uniform)).get_trace(**data)
        found.update(tr=tr, sites=[_latent(s) for s in tr.values() if s["type"] == "sample" and not s["is_observed"]])
        if estimator.latents == "auto":
            about = (model, estimator.subsample, data)
            found["hierarchical"] = recall("hierarchical", about, lambda: _hierarchical(seeded, data, tr))
        return jnp.zeros(())

    jax.eval_shape(run, random.key(0))
    tr, sites = found["tr"], found["sites"]
    observed = {n: s for n, s in tr.items() if s["type"] == "sample" and s["is_observed"]}
    plates = {n: s["args"] for n, s in tr.items() if s["type"] == "plate"}
    plated = {n: s for n, s in observed.items() if s["cond_indep_stack"]}
    frames = set.intersection(*(set(s["cond_indep_stack"]) for s in plated.values())) if plated else set()
    ordered = sorted(frames, key=lambda f: f.dim)
    unit_plates = {f.name for f in ordered}
    estimated, integrated, enumerated = _assign(estimator, sites, observed, found["hierarchical"])
    if ordered:
        units = tuple(plated)
        shape = tuple(f.size for f in ordered)
    else:
        units = tuple(n for n, s in observed.items() if not is_factor(s) or len(observed) == 1)
        shapes = [log_prob_shape(s) for n, s in observed.items() if n in units]
        shape = shapes[0] if len(set(shapes)) == 1 else (sum(int(np.prod(s)) for s in shapes),)
    hidden = integrated + enumerated
    blocks = bool(ordered) and all(unit_plates <= set(s.plates) for s in hidden)
    roles = Roles(
        estimated=tuple(s.name for s in estimated),
        integrated=integrated,
        enumerated=enumerated,
        unit_dims=tuple(f.dim for f in ordered),
        unit_shape=shape if blocks or not hidden else (1,),
        units=units,
        blocks=blocks,
        subsampled=any(size != sub for size, sub in plates.values()),
        discrete_observed=all(s["fn"].support.is_discrete for s in observed.values() if not is_factor(s)),
        mixture=bool(enumerated) or any(_is_mixture(s["fn"]) for s in observed.values()),
    )
    _check_sizes(roles, estimator)
    constraints = {n: s["kwargs"].get("constraint", numpyro.distributions.constraints.real)
                   for n, s in tr.items() if s["type"] == "param"}  # fmt: skip
    if not constraints and not estimated:
        raise ValueError(
            f"{type(estimator).__name__} has nothing to estimate: the model has neither numpyro.param sites nor latent "
            "sites that are estimated"
            + (f" ({', '.join(s.name for s in hidden)} are integrated or summed out)" if hidden else "")
        )
    return roles, {n: biject_to(c) for n, c in constraints.items()}


def is_factor(msg: dict) -> bool:
    return isinstance(msg["fn"], numpyro.distributions.Unit)


def log_prob_shape(site: dict) -> tuple[int, ...]:
    value_batch = jnp.shape(site["value"])[: jnp.ndim(site["value"]) - site["fn"].event_dim]
    return tuple(jnp.broadcast_shapes(site["fn"].batch_shape, value_batch))


def _latent(site: dict) -> Latent:
    fn = site["fn"]
    plates = tuple(f.name for f in site["cond_indep_stack"])
    if not fn.support.is_discrete:
        shape = tuple(biject_to(fn.support).inverse_shape(jnp.shape(site["value"])))
        return Latent(site["name"], shape, len(fn.batch_shape), 0, plates)
    try:
        size = fn.enumerate_support(expand=False).shape[0]
    except NotImplementedError:
        size = -1
    return Latent(site["name"], tuple(jnp.shape(site["value"])), len(fn.batch_shape), size, plates)


def _hierarchical(model: Callable, data: dict, tr: dict) -> set[str]:
    """Latent sites whose own prior depends on another latent site or on a parameter."""
    latent = [n for n, s in tr.items() if s["type"] == "sample" and not s["is_observed"]]
    values = {n: s["value"] for n, s in tr.items() if s["type"] == "param" or n in latent}

    def evaluate(**values: Any) -> dict[str, Any]:
        return {n: v for n, v in compute_log_probs(model, (), data, values, sum_log_prob=False)[0].items()
                if n in latent}  # fmt: skip

    is_set = lambda x: isinstance(x, frozenset)  # noqa: E731
    depends = eval_provenance(evaluate, **values)
    return {n for n, on in depends.items()
            if frozenset().union(*jax.tree.leaves(on, is_leaf=is_set)) - {n}}  # fmt: skip


def _assign(
    estimator: MLE, sites: list[Latent], observed: dict, hierarchical: set[str]
) -> tuple[tuple[Latent, ...], tuple[Latent, ...], tuple[Latent, ...]]:
    continuous = tuple(s for s in sites if not s.num_values)
    enumerated = tuple(s for s in sites if s.num_values)
    if estimator.latents == "estimate":
        return continuous, (), enumerated
    if estimator.latents == "auto":
        with_data = {f.name for s in observed.values() for f in s["cond_indep_stack"]}
        effects = {s.name for s in continuous if s.name in hierarchical or with_data & set(s.plates)}
        chosen = {s.name for s in continuous} - effects
    else:
        chosen = set(estimator.latents)
        unknown = sorted(chosen - {s.name for s in continuous})
        if unknown:
            discrete = unknown[0] in {s.name for s in enumerated}
            raise ValueError(
                f"latents names {unknown[0]!r}, which is "
                + ("discrete: it cannot be maximised by gradients and is summed out instead" if discrete else
                   f"no continuous latent site of the model (there are: {', '.join(s.name for s in continuous)})")
            )  # fmt: skip
    return (
        tuple(s for s in continuous if s.name in chosen),
        tuple(s for s in continuous if s.name not in chosen),
        enumerated,
    )


def _check_sizes(roles: Roles, estimator: MLE) -> None:
    names = ", ".join(repr(s.name) for s in roles.enumerated)
    endless = [s.name for s in roles.enumerated if s.num_values < 0]
    if endless:
        raise ValueError(f"discrete latent site {endless[0]!r} has no finite support to sum over: use VIS or RWS")
    if roles.enumerated and roles.integrated:
        raise NotImplementedError(
            f"the model has both discrete latents to sum out ({names}) and continuous ones to integrate "
            f"({', '.join(repr(s.name) for s in roles.integrated)}): estimate the latter (latents=), or use VIS"
        )
    exponents = [1 if roles.blocks else int(np.prod(s.shape)) for s in roles.enumerated]
    log_count = sum(e * np.log10(s.num_values) for e, s in zip(exponents, roles.enumerated, strict=True))
    count = f"{10**log_count:.0f}" if log_count < 7 else f"10^{log_count:.0f}"
    arrays = [s for s in roles.enumerated if s.shape]
    if arrays and not roles.blocks:
        raise ValueError(
            f"discrete latent site {arrays[0].name!r} of shape {arrays[0].shape} is not in a plate that all observed "
            f"sites share, so its elements may depend on each other and only a sum over all {count} joint values "
            "would be right, which is not taken. If they are independent, one a datum, put site and data in one "
            "plate; if they are a chain, observe models.hmm.HiddenMarkov, which sums its paths by the forward "
            f"algorithm; if they are few, make them sites of their own, up to {MAX_COMBINATIONS} joint values; or VIS"
        )
    if log_count > np.log10(MAX_COMBINATIONS):
        raise ValueError(
            f"summing out {names} means {count} joint values, more than {MAX_COMBINATIONS}: put independent latents in "
            "the plate of the data, use a distribution that sums them itself (models.hmm for Markov chains), or VIS"
        )
    if roles.integrated:
        _, size = block_shape(roles)
        nodes = estimator.num_nodes**size if size < 30 else np.inf
        if size > MAX_BLOCK or nodes > 100_000:
            raise ValueError(
                f"integrating {', '.join(repr(s.name) for s in roles.integrated)} is an integral over {size} "
                f"dimensions at once{f' with {estimator.num_nodes} nodes in each' if estimator.num_nodes > 1 else ''}: "
                'too many. Use num_nodes=1, estimate the latents (latents="estimate"), or take VIS or IWAE'
            )


def check_lengths(estimator: MLE, roles: Roles) -> None:
    given = {}
    if estimator.weights is not None:
        given["weights"] = estimator.weights.values
    if isinstance(estimator.covariance, tuple):
        given["cluster ids"] = estimator.covariance[1].values
    for name, values in given.items():
        if len(values) != roles.num_units:
            raise ValueError(f"{name} has length {len(values)}, the model has {roles.num_units} independent units")
    if estimator.weights is not None and estimator.subsample and roles.subsampled:
        raise ValueError("weights and subsample=True do not go together: weight the terms in the model instead")


def combinations(roles: Roles) -> Array:
    """Indices of every joint value of the discrete latents, ``(combinations, sites)``."""
    sizes = [s.num_values for s in roles.enumerated]
    return jnp.asarray(np.indices(sizes).reshape(len(sizes), -1).T)


def block_shape(roles: Roles) -> tuple[int, int]:
    blocks = roles.num_units if roles.blocks else 1
    return blocks, sum(int(np.prod(s.shape)) for s in roles.integrated) // blocks


def from_blocks(u: Array, roles: Roles) -> dict[str, Array]:
    """Rows of latent values, one a block, as the sites' own arrays."""
    out, start = {}, 0
    for site in roles.integrated:
        if not roles.blocks:
            size = int(np.prod(site.shape))
            out[site.name] = u[0, start : start + size].reshape(site.shape)
            start += size
            continue
        axes = [site.batch_ndim + d for d in roles.unit_dims]
        others = [n for a, n in enumerate(site.shape) if a not in axes]
        size = int(np.prod(others))
        piece = u[:, start : start + size].reshape(*roles.unit_shape, *others)
        out[site.name] = jnp.moveaxis(piece, range(len(axes)), axes)
        start += size
    return out
