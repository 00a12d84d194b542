"""tinygp's kernels in a form that XLA computes faster, with the same values."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from tinygp.kernels import ExpSineSquared, RationalQuadratic
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


SINE = [(-1) ** k * math.pi ** (2 * k + 1) / math.factorial(2 * k + 1) for k in range(11)]
"""Taylor coefficients of sin πu in odd powers of u: the first one left out is 3e-16 at u = ½."""


class Periodic(ExpSineSquared):
    """tinygp's `ExpSineSquared` with a polynomial for the sine.

    XLA calls the C library for a sine in double precision, one element at a time, twice in a derivative. And r less the
    nearest integer is exact, where πr is rounded.
    """

    def evaluate(self, X1: Array, X2: Array) -> Array:
        assert self.gamma is not None
        r = self.distance.distance(X1, X2) / self.scale
        u = r - jnp.round(r)
        sine = u * jnp.polyval(jnp.array(SINE[::-1], u.dtype), u**2, unroll=len(SINE))
        return jnp.exp(-self.gamma * sine**2)


def quick(kernel: Any) -> Any:
    """The kernel with these in place of tinygp's."""

    def swap(part: Any) -> Any:
        if type(part) is L2Distance:
            return Euclidean()
        if type(part) is RationalQuadratic:
            return PowerOfQuadratic(part.scale, quick(part.distance), alpha=part.alpha)
        if type(part) is ExpSineSquared:
            return Periodic(part.scale, quick(part.distance), gamma=part.gamma)
        return part

    kinds = Distance | RationalQuadratic | ExpSineSquared
    return jax.tree.map(swap, kernel, is_leaf=lambda part: isinstance(part, kinds))
