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
    "denoising" is content with one. The score says little of the shares of modes that are far apart: for these take
    `MLE`.

    Args:
        variant: "sliced", above, or "denoising": ½‖s(x + σε) + ε/σ‖², the score of the data with noise (less ½‖ε‖²/σ²,
            and each draw with its mirror image).
        sigma: σ of "denoising", in units of the data; it fits the density that is smoothed by it.
        num_directions: directions v, or pairs of noise, a datum.
    """

    variant: str = "sliced"
    sigma: float = 0.1
    num_directions: int = 1

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {self.variant!r}")
        check_positive("sigma, the noise scale,", self.sigma)
        check_counts(num_directions=self.num_directions)

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
            return sliced.objective(network, Partial(_log_prob, rest, fn.event_shape), flat, v).reshape(batch)
        noise = random.normal(rng_key, shape, x.dtype)
        score = jax.grad(lambda rows: jnp.sum(fn.log_prob(rows.reshape(x.shape))))
        return denoising(score, flat, noise, self.sigma).reshape(batch)


def _log_prob(rest: Any, event_shape: tuple[int, ...], network: Any, x: Array) -> Array:
    """Of rows ``(n, D)``, ``(n,)``."""
    return eqx.combine(network, rest).log_prob(x.reshape(-1, *event_shape))
