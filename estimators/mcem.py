"""Monte Carlo EM with persistent chains, for continuous latents whose integral is too hard for quadrature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax, random
from jax.flatten_util import ravel_pytree
from numpyro import handlers
from numpyro.distributions.transforms import biject_to

from .base import Data, Metrics, Params
from .checks import check_counts
from .likelihood import MLE, LikelihoodProblem, _log_det, _to_units
from .roles import Roles, block_shape, from_blocks

KERNELS = {"mala": 0.574, "random_walk": 0.35}
"""Kernels and the acceptance rates that they are tuned to."""
ADAPTATION = 0.3
"""How much the first moves change the logarithm of a step size."""
DECAY = 0.6
"""Power of the number of moves by which this falls: a step size that never settles would bias the draws."""
AVERAGING = 0.05
"""Weight of the latest round in the running acceptance of proposals from the prior."""
BURN_IN = 100
ROUNDS = 500
"""Of draws for standard errors: their own error is about 1/√(2·rounds·chains/autocorrelation)."""


@dataclass(frozen=True)
class MCEM(MLE):
    """Maximum likelihood by stochastic EM: −Σ_i w_i mean_c log p(x_i, z_ic | θ) over draws z_ic of p(z_i | x_i, θ).

    By Fisher's identity its gradient at θ is, but for Monte Carlo error, that of the marginal log-likelihood. The draws
    come from Markov chains that live as long as the fit: before each step every chain makes a few Metropolis moves at
    the present θ, each unit's with a step size of its own (A Monte Carlo Implementation of the EM Algorithm and the
    Poor Man's Data Augmentation Algorithms; Training Restricted Boltzmann Machines Using Approximations to the
    Likelihood Gradient).

    The loss is the complete-data one and does not tell of the likelihood; the information criteria integrate by
    Laplace's method. Latents are drawn in unconstrained space. Standard errors are those of the marginal likelihood,
    from draws at the estimate (`MCEMProblem.information`).

    Args:
        num_chains: of every unit.
        num_moves: Metropolis moves before each step.
        kernel: "mala" (Langevin proposals) or "random_walk".
        control_variate: end each round by proposing a draw of the prior to every chain, and subtract from the loss
            β_i log p(z̃_i | θ) of these proposals. Its gradient has mean zero and, as far as proposals are accepted, the
            errors of the draws; β_i is the mean acceptance of the unit so far (Training Chain-of-Thought via
            Latent-Variable Inference). Worth it where data say little of each latent.
        latents: as in `MLE`; those that are integrated there are sampled here.
    """

    num_chains: int = 4
    num_moves: int = 5
    kernel: str = "mala"
    control_variate: bool = False

    @property
    def exact(self) -> bool:  # type: ignore[override]
        return False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(num_chains=self.num_chains, num_moves=self.num_moves)
        if self.kernel not in KERNELS:
            raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, got {self.kernel!r}")
        for name in ("robust", "data_noise", "mollify", "subsample"):
            if getattr(self, name):
                raise ValueError(f"MCEM does not go with {name}={getattr(self, name)!r}")

    def problem(self, rng_key: Array, model: Callable, guide: Callable | None, data: Data) -> MCEMProblem:
        problem: MCEMProblem = MCEMProblem.create(self, rng_key, model, data)  # type: ignore[assignment]
        if not problem.roles.integrated:
            found = ", ".join(repr(s.name) for s in problem.roles.enumerated)
            raise ValueError(
                "MCEM needs continuous latents that are not estimated, and the model has none"
                + (f": {found} are discrete, take EM" if found else ": take MLE, or name what to estimate by latents=")
            )
        blocks, size = block_shape(problem.roles)
        kind = jnp.result_type(float)
        memory = {
            "u": jnp.zeros((self.num_chains, blocks, size), kind),
            "log_step": jnp.full((blocks,), -0.5, kind),
            "count": jnp.zeros((), kind),
            "acceptance": jnp.zeros((), kind),
        }
        if self.control_variate:
            memory |= {
                "proposal": jnp.zeros((self.num_chains, blocks, size), kind),
                "beta": jnp.zeros((blocks,), kind),
                "prior_acceptance": jnp.zeros((blocks,), kind),
            }
        return replace(problem, memory=memory)


class MCEMProblem(LikelihoodProblem):
    """−E log p(x, z | θ) over the chains in its memory: ``u`` (chains, units, d), ``log_step`` (units,)."""

    @property
    def deterministic(self) -> bool:
        return False

    def complete(self, params: Params, u: Array, data: Data) -> tuple[Array, Array, Array]:
        """log p(x_i, u_i | θ) ``(units,)``, the same of what belongs to no unit, and the log-prior. `u`: (units, d)."""
        units, rest, prior = self._split(params, data, None, from_blocks(u, self.roles), None)
        if self.roles.blocks:
            return units, rest, prior
        return (jnp.sum(units) + rest)[None], jnp.zeros(()), prior

    def prior(self, params: Params, u: Array, data: Data) -> Array:
        """log p(u_i | θ), the density of the latents alone, ``(units,)``."""
        extra = from_blocks(u, self.roles)
        log_probs, trace = self._log_probs(params, data, None, extra, None)
        terms = [log_probs[n] + _log_det(trace[n], extra[n]) for n in extra]
        if not self.roles.blocks:
            return sum((jnp.sum(t) for t in terms), jnp.zeros(()))[None]
        units = [jnp.ravel(_to_units(t, self.roles.unit_dims)) for t in terms]
        return sum(units[1:], units[0])

    def draw_prior(self, params: Params, rng_key: Array) -> Array:
        """Unconstrained latents drawn from p(u | θ), ``(units, d)``."""
        model = handlers.substitute(self._prepared(rng_key), substitute_fn=self._values(params, {}, None))
        trace = handlers.trace(model).get_trace(**self.data)
        values = {
            s.name: biject_to(trace[s.name]["fn"].support).inv(trace[s.name]["value"]) for s in self.roles.integrated
        }
        return _to_blocks(values, self.roles)

    def loss(self, params: Params, rng_key: Array, data: Data) -> tuple[Array, Metrics]:
        u = lax.stop_gradient(self.memory["u"])
        units, rest, prior = jax.vmap(lambda one: self.complete(params, one, data))(u)
        value = -(jnp.sum(self.weights * jnp.mean(units, axis=0)) + jnp.mean(rest) + prior[0])
        if self.options.control_variate:  # type: ignore[attr-defined]
            proposal = lax.stop_gradient(self.memory["proposal"])
            scores = jnp.mean(jax.vmap(lambda one: self.prior(params, one, data))(proposal), axis=0)
            value = value + jnp.sum(self.weights * self.memory["beta"] * scores)
        if self.penalties is not None:
            value = value + self.penalties.smooth(params)
        return value, {"acceptance": self.memory["acceptance"]}

    def refresh(self, memory: Any, params: Params, rng_key: Array) -> Any:
        """Metropolis moves of every chain; step sizes follow the acceptance rate of their unit."""
        langevin = self.options.kernel == "mala"  # type: ignore[attr-defined]
        target = KERNELS[self.options.kernel]  # type: ignore[attr-defined]

        def density(u: Array) -> tuple[Array, Array]:
            """log p(x_i, u_i) ``(chains, units)`` and its gradient in u."""

            def total(u: Array) -> tuple[Array, Array]:
                values = jax.vmap(lambda one: self.complete(params, one, self.data)[0])(u)
                return jnp.sum(values), values

            if not langevin:
                return total(u)[1], jnp.zeros_like(u)
            (_, values), slope = jax.value_and_grad(total, has_aux=True)(u)
            return values, slope

        def move(carry: tuple, key: Array) -> tuple[tuple, Array]:
            u, value, slope, log_step, count = carry
            gain = ADAPTATION / (1 + count) ** DECAY
            step = jnp.exp(log_step)[None, :, None]
            key_normal, key_uniform = random.split(key)
            drift = 0.5 * step**2 * slope
            new = u + drift + step * random.normal(key_normal, u.shape, u.dtype)
            new_value, new_slope = density(new)
            ratio = new_value - value
            if langevin:
                there = jnp.sum((new - u - drift) ** 2, axis=-1)
                back = jnp.sum((u - new - 0.5 * step**2 * new_slope) ** 2, axis=-1)
                ratio = ratio + (there - back) / (2 * step[..., 0] ** 2)
            ratio = jnp.where(jnp.isfinite(ratio), ratio, -jnp.inf)
            chance = jnp.exp(jnp.minimum(ratio, 0.0))
            accepted = random.uniform(key_uniform, ratio.shape, u.dtype) < chance
            u = jnp.where(accepted[..., None], new, u)
            value, slope = jnp.where(accepted, new_value, value), jnp.where(accepted[..., None], new_slope, slope)
            rate = jnp.mean(chance, axis=0)
            return (u, value, slope, log_step + gain * (rate - target), count + 1), jnp.mean(rate)

        start = (memory["u"], *density(memory["u"]), memory["log_step"], memory["count"])
        # one split for all: fold_in(key, i) is split(key)[i]
        *keys, key_draw, key_accept = random.split(rng_key, self.options.num_moves + 2)  # type: ignore[attr-defined]
        (u, value, _, log_step, count), rates = lax.scan(move, start, jnp.stack(keys))
        new = {"u": u, "log_step": log_step, "count": count, "acceptance": jnp.mean(rates)}
        if not self.options.control_variate:  # type: ignore[attr-defined]
            return new
        proposal = jax.vmap(lambda key: self.draw_prior(params, key))(random.split(key_draw, len(u)))
        # the ratio of likelihoods: the prior is the proposal's own density
        gain = density(proposal)[0] - value
        prior = jax.vmap(lambda one: self.prior(params, one, self.data))
        gain = gain - prior(proposal) + prior(u)
        chance = jnp.exp(jnp.minimum(jnp.where(jnp.isfinite(gain), gain, -jnp.inf), 0.0))
        accepted = random.uniform(key_accept, chance.shape, u.dtype) < chance
        rate = memory["prior_acceptance"]
        return new | {
            "u": jnp.where(accepted[..., None], proposal, u),
            "proposal": proposal,
            "beta": rate,  # of earlier rounds, so that it does not depend on this proposal
            "prior_acceptance": rate + AVERAGING * (jnp.mean(chance, axis=0) - rate),
        }

    @property
    def has_curvature(self) -> bool:
        """Standard errors come from `information`."""
        return not self.nonsmooth

    def information(self, params: Params, rng_key: Array) -> tuple[Array, Array]:
        """Hessian of the marginal loss ``(D, D)`` and its gradient by unit ``(n, D)``, from draws of the latents.

        The complete-data information less the variance of the complete-data score, unit by unit (Finding the Observed
        Information Matrix When Using the EM Algorithm); scores by Fisher's identity. The chains go on from the memory,
        `BURN_IN` rounds are not counted.
        """
        z, unravel = ravel_pytree(params)
        unit_matrix = jnp.eye(z.shape[0], dtype=z.dtype)

        def terms(z: Array, u: Array) -> tuple[Array, Array]:
            """Terms of the units ``(n,)`` and of what belongs to none, of one chain."""
            units, rest, prior = self.complete(unravel(z), u, self.data)
            smooth = 0.0 if self.penalties is None else self.penalties.smooth(unravel(z))
            return units, rest + prior - smooth

        def total(z: Array, u: Array) -> Array:
            units, rest = terms(z, u)
            return -(jnp.sum(self.weights * units) + rest)

        def one(u: Array) -> tuple[Array, Array]:
            """Scores of the units and Hessian of the complete-data loss, of one chain."""
            scores = jax.vmap(lambda e: jax.jvp(lambda z: terms(z, u)[0], (z,), (e,))[1], out_axes=1)(unit_matrix)
            return scores, jax.vmap(jax.linearize(jax.grad(lambda z: total(z, u)), z)[1])(unit_matrix)

        def draws(memory: Any, key: Array) -> tuple[Any, tuple[Array, Array, Array]]:
            memory = self.refresh(memory, params, key)
            scores, hessians = jax.vmap(one)(memory["u"])
            squares = jnp.einsum("cni,cnj,n->ij", scores, scores, jnp.broadcast_to(self.weights, scores.shape[1:2]))
            return memory, (jnp.mean(scores, 0), squares / len(scores), jnp.mean(hessians, 0))

        def add(carry: tuple, key: Array) -> tuple[tuple, None]:
            memory, sums = carry
            memory, new = draws(memory, key)
            return (memory, jax.tree.map(jnp.add, sums, new)), None

        key_before, key = random.split(rng_key)
        memory = lax.scan(
            lambda m, k: (self.refresh(m, params, k), None), self.memory, random.split(key_before, BURN_IN)
        )[0]
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(draws, memory, key)[1])
        (_, sums), _ = lax.scan(add, (memory, zeros), random.split(key, ROUNDS))
        scores, squares, hessian = jax.tree.map(lambda x: x / ROUNDS, sums)
        missing = squares - jnp.einsum("ni,nj,n->ij", scores, scores, jnp.broadcast_to(self.weights, scores.shape[:1]))
        return hessian - missing, jnp.broadcast_to(self.weights, scores.shape[:1])[:, None] * scores

    def latents(self, params: Params) -> dict[str, Array]:
        """The chains' present draws of the latent sites in the user's space, ``(chains, *site shape)``."""

        def one(u: Array) -> dict[str, Array]:
            substitute = self._values(params, from_blocks(u, self.roles), None)
            trace = handlers.trace(handlers.substitute(self._prepared(), substitute_fn=substitute)).get_trace(
                **self.data
            )
            return {s.name: trace[s.name]["value"] for s in self.roles.integrated}

        return jax.vmap(one)(self.memory["u"])


def _to_blocks(values: dict[str, Array], roles: Roles) -> Array:
    """The inverse of `from_blocks`: rows of latent values, one a block."""
    if not roles.blocks:
        return jnp.concatenate([jnp.ravel(values[s.name]) for s in roles.integrated])[None]
    rows = []
    for site in roles.integrated:
        axes = [site.batch_ndim + d for d in roles.unit_dims]
        rows.append(jnp.moveaxis(values[site.name], axes, range(len(axes))).reshape(roles.num_units, -1))
    return jnp.concatenate(rows, axis=1)
