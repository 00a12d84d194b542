"""Flows fitted by their score: the log-determinants of linear layers, which x does not enter, are never computed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array, random
from jax.tree_util import Partial

from . import sliced
from .checks import check_counts, check_positive
from .matching import Matching
from .score_matching import denoising

VARIANTS = ("sliced", "denoising")


@dataclass(frozen=True)
class EBFlow(Matching):
    """A flow as an energy: minimises E[½‖s‖² + vᵀ(∇s)v] with s = ∇_x log p(x) and random signs v (Training Energy-Based
    Normalizing Flow with Score-Matching Objectives).

    The model observes a `models.flows.FlowDensity`. What x does not enter has no derivative in x and is left out of the
    compiled step: a linear layer costs O(D²), where the likelihood's determinant costs O(D³). After the fit the
    normalised density is there again, as is `problem.log_likelihood`.

    The log-density must be smooth: two continuous derivatives in x for "sliced", so neither splines nor ReLU networks;
    "denoising" is content with one. The score says little of the shares of parts that are far apart, unless noise has
    joined them before: let sigma fall during the fit, from the spread of the data to what may be smoothed away.

    Args:
        variant: "sliced", above, or "denoising": ½‖s(x + σε) + ε/σ‖², the score of the data with noise (less ½‖ε‖²/σ²,
            and each draw with its mirror image).
        sigma: σ of "denoising", in units of the data; it fits the density that is smoothed by it. A pair (first, last)
            lets it fall from the one to the other, by the same factor at every step.
        num_directions: directions v, or pairs of noise, a datum.
        anneal_steps: steps until sigma has fallen; give `fit` some more.
        variance_reduced: False takes ½(vᵀs)² for the ½‖s‖² of "sliced": a cheaper step, a noisier one.
    """

    variant: str = "sliced"
    sigma: float | tuple[float, float] = 0.1
    num_directions: int = 1
    anneal_steps: int = 5000
    variance_reduced: bool = True

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {self.variant!r}")
        if not self.variance_reduced and self.variant != "sliced":
            raise ValueError(f'variance_reduced=False is for variant="sliced", not {self.variant!r}')
        if isinstance(self.sigma, list):
            object.__setattr__(self, "sigma", tuple(self.sigma))
        if self.counts_steps and len(self.sigma) != 2:  # type: ignore[arg-type]
            raise ValueError(f"sigma must be a number or a pair (first, last), got {self.sigma!r}")
        if self.counts_steps and self.variant != "denoising":
            raise ValueError(f"a pair sigma={self.sigma!r} is for variant='denoising': {self.variant!r} has no noise")
        for value in self.sigma if isinstance(self.sigma, tuple) else (self.sigma,):
            check_positive("sigma, the noise scale,", value)
        check_counts(num_directions=self.num_directions, anneal_steps=self.anneal_steps)

    @property
    def counts_steps(self) -> bool:
        return isinstance(self.sigma, tuple)

    def sigma_at(self, step: Any) -> Any:
        """σ after so many steps; `step` is not looked at where there is one σ only."""
        if not isinstance(self.sigma, tuple):
            return self.sigma
        first, last = self.sigma
        return first * (last / first) ** jnp.minimum(step / self.anneal_steps, 1.0)

    def remarks(self, step: int) -> list[str]:
        if step >= self.anneal_steps:
            return []
        last = self.sigma[1]  # type: ignore[index]
        return [
            f"after {step} steps sigma is still at {float(self.sigma_at(step)):.3g}, above its last value {last:.3g}: "
            f"take more than anneal_steps={self.anneal_steps} steps (result.resume(num_steps)), or lower anneal_steps"
        ]

    @property
    def wanted(self) -> str:
        return "a models.flows.FlowDensity (a normalising flow)"

    def matches(self, fn: Any) -> bool:
        return hasattr(fn, "flow")

    def objective(self, fn: Any, x: Array, rng_key: Array, table: Any) -> Array:
        x = fn.checked(x)
        batch = x.shape[: x.ndim - fn.event_dim]
        flat = x.reshape(-1, math.prod(fn.event_shape))
        shape = (self.num_directions, *flat.shape)
        if self.variant == "sliced":
            network, rest = eqx.partition(fn, eqx.is_inexact_array)
            v = sliced.signs(rng_key, shape, x.dtype)
            log_prob = Partial(_log_prob, rest, fn.event_shape)
            return sliced.objective(network, log_prob, flat, v, self.variance_reduced).reshape(batch)
        noise = random.normal(rng_key, shape, x.dtype)
        score = jax.grad(lambda rows: jnp.sum(fn.log_prob(rows.reshape(x.shape))))
        return denoising(score, flat, noise, self.sigma_at(table)).reshape(batch)


def _log_prob(rest: Any, event_shape: tuple[int, ...], network: Any, x: Array) -> Array:
    """Of rows ``(n, D)``, ``(n,)``."""
    return eqx.combine(network, rest).log_prob(x.reshape(-1, *event_shape))
