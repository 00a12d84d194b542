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
from .checks import check_counts
from .guided import GuidePosterior, full_plates
from .guides import WhitenedNormal
from .likelihood import MAP, LikelihoodProblem
from .low_rank import LowRank, diagonal, diagonal_if_so, eigenpairs
from .unconstrained import latent_sites

HESSIANS = ("full", "diagonal", "block", "low_rank")
RANK = 20


@dataclass(frozen=True)
class Laplace(MAP):
    """Gaussian posterior N(ẑ, H⁻¹) in unconstrained space, log p(x) ≈ log p(x, ẑ) + (d/2) log 2π − ½ log |H|.

    ẑ is the mode of the density there, Jacobians included; parameters of the model (`param` sites) are at their joint
    maximum. Log-evidence, k̂ and PSIS come from importance weights, as for every posterior; Laplace's own value is
    the metric ``laplace_log_evidence``.

    Args:
        hessian: "full"; "block", a block a site; for many latents "diagonal", or "low_rank": the prior's curvature
            and the `rank` directions in which the data change it most (Optimal Low-Rank Approximations of Bayesian
            Linear Inverse Problems). In the others the posterior is as wide as the prior: never too narrow where the
            likelihood is log-concave.
        rank: of "low_rank"; None is 20.
        sites: latent sites that get a Gaussian, as the last layer of a network; the others are fixed at their mode.
            None takes all.
    """

    latents: str | tuple[str, ...] = "estimate"
    hessian: str = "full"
    rank: int | None = None
    sites: tuple[str, ...] | None = None
    has_jacobian = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hessian not in HESSIANS:
            raise ValueError(f"hessian must be one of {', '.join(HESSIANS)}, got {self.hessian!r}")
        if self.rank is not None and self.hessian != "low_rank":
            raise ValueError(f'rank={self.rank!r} goes with hessian="low_rank", not with {self.hessian!r}')
        if self.rank is not None:
            check_counts(rank=self.rank)
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

    scale: Array | LowRank | None = None
    """Factor of the covariance, ``(d, d)`` lower triangular or ``(d,)``, of the chosen sites in the model's order."""

    def _gaussian_sites(self) -> tuple[str, ...]:
        return self.roles.estimated if self.options.sites is None else self.options.sites  # type: ignore[attr-defined]

    def finish(self, params: Params) -> LaplaceProblem:
        """The problem with its curvature.

        Raises:
            ValueError: the curvature is not positive: no Gaussian lies at this point.
        """
        scale = (_low_rank if self.options.hessian == "low_rank" else _scale)(self, params)  # type: ignore[attr-defined]
        if not all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(scale)):
            raise ValueError(
                "Laplace needs a mode with curvature in every direction, and at the point where the fit ended the "
                "density does not fall in all of them: a direction that neither prior nor data say anything of, a "
                "saddle, or too few steps. Take more steps (num_steps=); fit MAP and see summary(), which names the "
                "direction; give it a proper prior, or start= elsewhere"
            )
        return replace(self, scale=scale)

    def laplace_log_evidence(self, params: Params) -> Array:
        """log p(x, ẑ) + (d/2) log 2π − ½ log |H|, nats."""
        if self.scale is None:
            raise ValueError("the curvature is not known yet: call finish first")
        if isinstance(self.scale, LowRank):
            log_volume = self.scale.log_volume
        else:
            log_volume = jnp.sum(jnp.log(jnp.diagonal(self.scale) if self.scale.ndim == 2 else self.scale))
        log_volume = log_volume + 0.5 * self.scale.shape[0] * jnp.log(2 * jnp.pi)
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


def _chosen(problem: LaplaceProblem, params: Params) -> tuple[Array, Callable[[Array], Params], list[int]]:
    """The chosen sites as a vector, the way back to all parameters, and the sizes of the sites."""
    tr = handlers.trace(handlers.substitute(problem._prepared(), substitute_fn=problem._values(params, {}, None)))
    order = [n for n in tr.get_trace(**problem.data) if n in problem._gaussian_sites()]
    sizes = [int(np.prod(params[n].shape)) for n in order]

    def unravel(z: Array) -> Params:
        pieces = jnp.split(z, np.cumsum(sizes)[:-1])
        return params | {n: p.reshape(params[n].shape) for n, p in zip(order, pieces, strict=True)}

    return jnp.concatenate([jnp.ravel(params[n]) for n in order]), unravel, sizes


def _loss_product(problem: LaplaceProblem, z: Array, unravel: Callable[[Array], Params]) -> Callable[[Array], Array]:
    """Products with the Hessian of the loss."""
    f = lambda z: problem.loss(unravel(z), jax.random.key(0), problem.data)[0]  # noqa: E731
    return jax.linearize(jax.grad(f), z)[1]


@eqx.filter_jit
def _scale(problem: LaplaceProblem, params: Params) -> Array:
    """Factor of the inverse Hessian over the chosen sites."""
    z, unravel, sizes = _chosen(problem, params)
    product = _loss_product(problem, z, unravel)
    kind = problem.options.hessian  # type: ignore[attr-defined]
    if kind == "diagonal":
        return 1 / jnp.sqrt(diagonal(product, z.shape[0]))
    hessian = jax.lax.map(product, jnp.eye(z.shape[0], dtype=z.dtype), batch_size=64)
    if kind == "block":
        block = np.repeat(np.arange(len(sizes)), sizes)
        hessian = jnp.where(block[:, None] == block[None], hessian, 0.0)
    d = 1 / jnp.sqrt(jnp.diagonal(hessian))  # units must not matter to the factorisation
    inverse = jnp.linalg.inv(hessian * d[:, None] * d) * d[:, None] * d
    return jnp.linalg.cholesky((inverse + inverse.T) / 2)


@eqx.filter_jit
def _low_rank(problem: LaplaceProblem, params: Params) -> LowRank:
    """Factor of the inverse of D^½ (I + U diag(λ) Uᵀ) D^½, D the prior's curvature, λ what the data add in its units.

    Where the prior has no curvature (Laplace, Cauchy in its tails) D is that of the loss.
    """
    z, unravel, _ = _chosen(problem, params)
    product = _loss_product(problem, z, unravel)
    key_diagonal, key_pairs = jax.random.split(jax.random.key(0))
    prior = lambda z: -problem._split(unravel(z), problem.data, None, {}, None)[2]  # noqa: E731
    own = diagonal_if_so(jax.linearize(jax.grad(prior), z)[1], z.shape[0], key_diagonal)
    informative = own > 0
    rest = jax.lax.cond(jnp.all(informative), lambda: own, lambda: diagonal(product, z.shape[0]))
    d = 1 / jnp.sqrt(jnp.where(informative, own, rest))
    rank = min(problem.options.rank or RANK, z.shape[0])  # type: ignore[attr-defined]
    values, vectors = eigenpairs(lambda v: d * product(d * v) - v, z.shape[0], rank, key_pairs)
    # at a saddle 1 + λ is negative, and NaN says so
    top = jnp.argsort(-jnp.nan_to_num(jnp.abs(jnp.log1p(values)), nan=jnp.inf))[:rank]
    return LowRank(d, vectors[:, top], 1 / jnp.sqrt(1 + values[top]))
