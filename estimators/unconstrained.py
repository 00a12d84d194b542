"""A model's latents as one vector in R^D: shapes, the log joint density there, and the way back.

Supports are read from the model as it runs, so a support that depends on data or on another latent is right.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, random
from numpyro import handlers
from numpyro.distributions.transforms import biject_to
from numpyro.distributions.util import sum_rightmost
from numpyro.infer.initialization import init_to_uniform
from numpyro.infer.util import compute_log_probs

from .guided import full_plates
from .recall import recall


class Site(NamedTuple):
    """A continuous latent site, as far as it is static."""

    name: str
    shape: tuple[int, ...]
    """Shape of the unconstrained value."""
    event_dim: int
    plates: tuple[tuple[str, int, int, int], ...]
    """(name, size, subsample size, dim) of the plates around it, innermost last."""
    local: bool
    """Lies in a subsampled plate, or in one that every sample site shares: one posterior per datum."""

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def sites_of(model: Callable, theta: dict[str, Any], data: dict[str, Any], whole: bool = False) -> tuple[Site, ...]:
    """`latent_sites` of a model with its parameters held at theta; `whole`: with every plate at its full size."""

    def look() -> tuple[Site, ...]:
        with full_plates() if whole else nullcontext():
            return latent_sites(handlers.seed(handlers.substitute(model, theta), 0), data)

    return recall("latent sites", (model, theta, data, whole), look)


def latent_sites(model: Callable, data: dict[str, Any]) -> tuple[Site, ...]:
    """The continuous latent sites of a model, in the order of the model.

    Raises:
        ValueError: a latent site is discrete.
    """
    found: list[tuple[Site, ...]] = []

    def run(key: Array) -> Array:
        # An improper prior has no sampler, but every support has feasible values.
        feasible = handlers.substitute(handlers.seed(model, key), substitute_fn=init_to_uniform)
        tr = handlers.trace(feasible).get_trace(**data)
        samples = {n: s for n, s in tr.items() if s["type"] == "sample"}
        sizes = {n: s["args"] for n, s in tr.items() if s["type"] == "plate"}
        stacks = [set(s["cond_indep_stack"]) for s in samples.values()]
        common = set.intersection(*stacks) if stacks else set()
        sites = []
        for name, site in samples.items():
            if site["is_observed"]:
                continue
            if site["fn"].support.is_discrete:
                raise ValueError(
                    f"latent site {name!r} is discrete ({type(site['fn']).__name__}): the default guide and start are "
                    "for continuous latents. Write a guide for it and use gradient='score', or sum it out in the model."
                )
            frames = site["cond_indep_stack"]
            subsampled = any(sizes[f.name][0] > f.size for f in frames)
            shape = biject_to(site["fn"].support).inverse_shape(jnp.shape(site["value"]))
            plates = tuple((f.name, sizes[f.name][0], f.size, f.dim) for f in frames)
            local = subsampled or any(f in common for f in frames)
            sites.append(Site(name, tuple(shape), site["fn"].event_dim, plates, local))
        found.append(tuple(sites))
        return jnp.zeros(())

    jax.eval_shape(run, random.key(0))
    return found[0]


def ravel(values: dict[str, Array], sites: tuple[Site, ...]) -> Array:
    return jnp.concatenate([jnp.ravel(values[s.name]) for s in sites]) if sites else jnp.zeros(0)


def unravel(vector: Array, sites: tuple[Site, ...]) -> dict[str, Array]:
    values, start = {}, 0
    for site in sites:
        values[site.name] = vector[start : start + site.size].reshape(site.shape)
        start += site.size
    return values


def constrain(
    model: Callable, data: dict[str, Any], unconstrained: dict[str, Array]
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Any]]:
    """Run the model at unconstrained latent values.

    Returns:
        Values of the sites in the user's space; log |∂ value/∂ unconstrained| of each, of the site's batch shape; and
        the trace of the model.
    """

    def substitute(site: dict[str, Any]) -> Array | None:
        if site["type"] == "sample" and site["name"] in unconstrained:
            return biject_to(site["fn"].support)(step_of_scan(site, unconstrained[site["name"]]))
        return None

    with handlers.block():
        tr = handlers.trace(handlers.substitute(model, substitute_fn=substitute)).get_trace(**data)
    values, log_dets = {}, {}
    for name, x in unconstrained.items():
        site = tr[name]
        values[name] = site["value"]
        log_det = biject_to(site["fn"].support).log_abs_det_jacobian(x, site["value"])
        extra = jnp.ndim(log_det) - jnp.ndim(site["value"]) + site["fn"].event_dim
        log_dets[name] = sum_rightmost(log_det, extra)
    return values, log_dets, tr


def step_of_scan(site: dict[str, Any], x: Array) -> Array:
    """The element of a whole sequence that a site inside `numpyro.contrib.control_flow.scan` is at."""
    index = site["infer"].get("_scan_current_index")
    return x if index is None else x[index]


def log_joint(model: Callable, data: dict[str, Any], unconstrained: dict[str, Array]) -> Array:
    """log p(x, z) + log |∂z/∂u| at unconstrained values u: the density that a Gaussian in R^D approximates."""
    _, log_dets, tr = constrain(model, data, unconstrained)
    latent = {n: s for n, s in tr.items() if s["type"] in ("sample", "plate")}
    log_probs, _ = compute_log_probs(handlers.replay(model, latent), (), data, {})
    return sum(log_probs.values()) + sum(jnp.sum(v) for v in log_dets.values())
