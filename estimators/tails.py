"""Whether a fitted log p̃ has a normaliser, as far as its tails tell."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, random

NEAR, FAR = 1e2, 1e3
"""Distances from the mean of the data, in their standard deviations, between which log p̃ must fall."""


def share_without_decay(log_density: Callable[[Array], Array], x: Array) -> Array:
    """Share of directions along which log p̃ falls by D log r or less from the data x ``(n, D)`` out.

    ∫ p̃ r^{D−1} dr is infinite along each of them, if log p̃ goes on as it does there. One random direction a datum.
    """
    directions = random.normal(random.key(0), x.shape, x.dtype)
    directions /= jnp.linalg.norm(directions, axis=1, keepdims=True)
    spread = jnp.where(jnp.std(x, axis=0) > 0, jnp.std(x, axis=0), 1.0)
    near, far = (log_density(jnp.mean(x, axis=0) + r * spread * directions) for r in (NEAR, FAR))
    least = x.shape[1] * jnp.log(FAR / NEAR)
    return jnp.mean((near - far <= least) | (far == jnp.inf))


def complaint(share: float) -> list[str]:
    """In words, where there is something to say."""
    if not share > 0:
        return []
    return [
        f"the partition function diverges: along {share:.0%} of directions log p̃ rises, or falls too slowly, {NEAR:g} "
        f"to {FAR:g} standard deviations from the data. Bound the energy (a prior on its parameters, constraints, a "
        "normal factor) or truncate x"
    ]
