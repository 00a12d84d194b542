"""tinygp's kernels in a form that XLA computes faster, with the same values."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from tinygp.kernels import RationalQuadratic
from tinygp.kernels.distance import Distance, L2Distance

MAX_UNROLLED = 64
"""Inputs beyond which the sum is XLA's: a program grows with every term."""


class Euclidean(Distance):
    """tinygp's `L2Distance`, summed term by term.

    Between n and m rows of d inputs XLA then has d fused passes over ``(n, m)`` instead of ``(n, m, d)`` differences,
    which cost most of the time of a kernel with a length-scale a column, and of its derivative.
    """

    def squared_distance(self, X1: Array, X2: Array) -> Array:
        if jnp.ndim(X1) != 1 or len(X1) > MAX_UNROLLED:
            return jnp.sum(jnp.square(X1 - X2))
        return sum((jnp.square(X1[k] - X2[k]) for k in range(len(X1))), jnp.zeros((), jnp.result_type(X1, X2)))

    def distance(self, X1: Array, X2: Array) -> Array:
        square = self.squared_distance(X1, X2)
        same = square == 0  # there the derivative is taken to be zero, as tinygp does
        return jnp.where(same, 0.0, jnp.sqrt(jnp.where(same, 1.0, square)))


class PowerOfQuadratic(RationalQuadratic):
    """tinygp's `RationalQuadratic` by an exponential and a logarithm.

    XLA calls the C library for a power, one element at a time, and once more for each of its derivatives.
    """

    def evaluate(self, X1: Array, X2: Array) -> Array:
        assert self.alpha is not None
        square = self.distance.squared_distance(X1, X2) / jnp.square(self.scale)
        return jnp.exp(-self.alpha * jnp.log1p(0.5 * square / self.alpha))


def quick(kernel: Any) -> Any:
    """The kernel with these in place of tinygp's."""

    def swap(part: Any) -> Any:
        if type(part) is L2Distance:
            return Euclidean()
        if type(part) is RationalQuadratic:
            return PowerOfQuadratic(part.scale, quick(part.distance), alpha=part.alpha)
        return part

    return jax.tree.map(swap, kernel, is_leaf=lambda part: isinstance(part, Distance | RationalQuadratic))
