"""Laplace's approximation: a Gaussian at the mode of the unconstrained space, with the curvature there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro import handlers

from .base import Data, Params
from .guided import GuidePosterior, full_plates
from .guides import WhitenedNormal
from .likelihood import MAP, LikelihoodProblem
from .unconstrained import latent_sites

HESSIANS = ("full", "diagonal", "block")


@dataclass(frozen=True)
class Laplace(MAP):
    """Gaussian posterior N(ẑ, H⁻¹) in unconstrained space, log p(x) ≈ log p(x, ẑ) + (d/2) log 2π − ½ log |H|.

    ẑ is the mode of the density there, Jacobians included; parameters of the model (`param` sites) are at their joint
    maximum. Log-evidence, k̂ and PSIS come from importance weights, as for every posterior; Laplace's own value is
    the metric ``laplace_log_evidence``.

    Args:
        hessian: "full"; "block", a block a site; or "diagonal", for many latents.
        sites: latent sites that get a Gaussian, as the last layer of a network; the others are fixed at their mode.
            None takes all.
    """

    latents: str | tuple[str, ...] = "estimate"
    hessian: str = "full"
    sites: tuple[str, ...] | None = None
    has_jacobian = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hessian not in HESSIANS:
            raise ValueError(f"hessian must be one of {', '.join(HESSIANS)}, got {self.hessian!r}")
        if self.sites is not None and not isinstance(self.sites, tuple):
            object.__setattr__(self, "sites", tuple(self.sites))

    def problem(self, rng_key: Array, model: Callable, guide: Callable | None, data: Data) -> LaplaceProblem:
        problem = LaplaceProblem.create(self, rng_key, model, data)
        roles = problem.roles
        hidden = [s.name for s in roles.integrated + roles.enumerated]
        if hidden:
            raise ValueError(
                f"Laplace draws every latent, and {hidden[0]!r} is discrete or integrated out: take MAP or MLE for a "
                "point estimate, VIS or RWS for a posterior over discrete latents"
            )
        if not roles.estimated:
            raise ValueError("the model has no latent site, so no posterior to approximate: take MLE")
        unknown = sorted(set(self.sites or ()) - set(roles.estimated))
        if unknown:
            raise ValueError(f"sites names {unknown[0]!r}, which is not latent (latent: {', '.join(roles.estimated)})")
        return problem  # type: ignore[return-value]


class LaplaceProblem(LikelihoodProblem):
    """−log p(x, z) in unconstrained space; curvature is added once the mode is found."""

    scale: Array | None = None
    """Factor of the covariance, ``(d, d)`` lower triangular or ``(d,)``, of the chosen sites in the model's order."""

    def _gaussian_sites(self) -> tuple[str, ...]:
        return self.roles.estimated if self.options.sites is None else self.options.sites  # type: ignore[attr-defined]

    def finish(self, params: Params) -> LaplaceProblem:
        return replace(self, scale=_scale(self, params))

    def laplace_log_evidence(self, params: Params) -> Array:
        """log p(x, ẑ) + (d/2) log 2π − ½ log |H|, nats."""
        if self.scale is None:
            raise ValueError("the curvature is not known yet: call finish first")
        diagonal = jnp.diagonal(self.scale) if self.scale.ndim == 2 else self.scale
        log_volume = jnp.sum(jnp.log(diagonal)) + 0.5 * len(diagonal) * jnp.log(2 * jnp.pi)
        return -self.loss(params, jax.random.key(0), self.data)[0] + log_volume

    def posterior(self, params: Params) -> GuidePosterior | None:
        if self.scale is None:
            return None
        chosen = self._gaussian_sites()
        values = self.constrain(params)
        theta = {n: v for n, v in values.items() if n not in self.roles.estimated}
        fixed = {n: v for n, v in values.items() if n in self.roles.estimated and n not in chosen}
        model: Callable = full_plates(self.model)
        if fixed:
            model = handlers.condition(model, fixed)
        sites = latent_sites(handlers.seed(handlers.substitute(model, theta), 0), self.data)
        guide = WhitenedNormal(
            model=model,
            loc=jnp.concatenate([jnp.ravel(params[s.name]) for s in sites]),
            scale=self.scale,
            local_loc={}, local_scale={},
            sites=tuple(s._replace(local=False) for s in sites),
            full_rank=False,
        )  # fmt: skip
        own = {"auto_loc": jnp.zeros(guide.loc.shape), "auto_scale": jnp.ones(guide.loc.shape)}
        return GuidePosterior(model, guide, own | theta, self.data)


@eqx.filter_jit
def _scale(problem: LaplaceProblem, params: Params) -> Array:
    """Factor of the inverse Hessian over the chosen sites."""
    tr = handlers.trace(handlers.substitute(problem._prepared(), substitute_fn=problem._values(params, {}, None)))
    order = [n for n in tr.get_trace(**problem.data) if n in problem._gaussian_sites()]
    others = {n: v for n, v in params.items() if n not in order}
    sizes = [int(np.prod(params[n].shape)) for n in order]
    z = jnp.concatenate([jnp.ravel(params[n]) for n in order])

    def f(z: Array) -> Array:
        pieces = jnp.split(z, np.cumsum(sizes)[:-1])
        chosen = {n: p.reshape(params[n].shape) for n, p in zip(order, pieces, strict=True)}
        return problem.loss(others | chosen, jax.random.key(0), problem.data)[0]

    product = jax.linearize(jax.grad(f), z)[1]
    kind = problem.options.hessian  # type: ignore[attr-defined]
    if kind == "diagonal":
        units = jnp.arange(z.shape[0])
        diagonal = jax.lax.map(lambda i: product(jnp.zeros_like(z).at[i].set(1.0))[i], units, batch_size=64)
        return 1 / jnp.sqrt(diagonal)
    hessian = jax.lax.map(product, jnp.eye(z.shape[0], dtype=z.dtype), batch_size=64)
    if kind == "block":
        block = np.repeat(np.arange(len(sizes)), sizes)
        hessian = jnp.where(block[:, None] == block[None], hessian, 0.0)
    d = 1 / jnp.sqrt(jnp.diagonal(hessian))  # units must not matter to the factorisation
    inverse = jnp.linalg.inv(hessian * d[:, None] * d) * d[:, None] * d
    return jnp.linalg.cholesky((inverse + inverse.T) / 2)
