"""Whether a kernel matrix plus noise can be inverted at all in the precision of a fit."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array

from .. import blocks
from . import view

BLOCK = 2**24
"""Elements of the kernel matrix that are held at once."""


def condition(kernel: Any, X: Any, noise: Array) -> Array:
    """A bound of the condition number of K + S: largest sum of a row of ∣K∣, over the least noise variance, plus one.

    No eigenvalue of a matrix is above the largest of those sums (Gershgorin), and none of K + S below the least noise.
    """
    n = view.num_rows(X)
    sums = blocks.apply(lambda rows: jnp.sum(jnp.abs(kernel(rows, X)), 1), X, blocks.size_of(n, BLOCK // n))
    return jnp.max(sums) / jnp.min(noise) + 1


def complaint(condition: float, dtype: Any, cause: str) -> list[str]:
    """In words, where the condition number may be beyond what the precision resolves."""
    most = 1 / float(jnp.finfo(dtype).eps)
    if condition <= most:
        return []
    single = jnp.finfo(dtype).bits == 32
    way_out = 'set jax.config.update("jax_enable_x64", True), or ' if single else ""
    return [
        f"{'single' if single else 'double'} precision cannot work here: the condition number is up to "
        f"{condition:.0e}, {cause}, and {jnp.dtype(dtype).name} resolves {most:.0e}; values "
        f"and their standard errors are wrong: {way_out}give more noise (a lower bound or a prior)"
    ]
