"""Functions written so that nothing cancels: removable singularities at zero, and a ratio of Gamma functions."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import Array
from jax.scipy.special import gammaln
from jax.typing import ArrayLike

# Below these the series is used: the derivative of the closed form loses digits like 1/|v|.
_EXPM1_RADIUS, _EXPM1_TERMS = 0.1, 10
_LOG1P_RADIUS, _LOG1P_TERMS = 0.03, 11


def _series(v: Array, coefficients: list[float]) -> Array:
    total = jnp.full_like(v, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * v + coefficient
    return total


def expm1_over(v: Array) -> Array:
    """(exp(v) - 1) / v, 1 at v = 0. Any shape."""
    near = jnp.abs(v) < _EXPM1_RADIUS
    series = _series(jnp.where(near, v, 0.0), [1.0 / math.factorial(k + 1) for k in range(_EXPM1_TERMS)])
    far = jnp.where(near, 1.0, v)  # the branch not taken must not divide by zero, or its derivative is NaN
    return jnp.where(near, series, jnp.expm1(far) / far)


def log1p_over(v: Array) -> Array:
    """log(1 + v) / v, 1 at v = 0. Any shape, v > -1."""
    near = jnp.abs(v) < _LOG1P_RADIUS
    series = _series(jnp.where(near, v, 0.0), [(-1.0) ** k / (k + 1) for k in range(_LOG1P_TERMS)])
    far = jnp.where(near, 1.0, v)
    return jnp.where(near, series, jnp.log1p(far) / far)


_STIRLING_FROM = 10.0
_STIRLING = [1.0 / 12.0, -1.0 / 360.0, 1.0 / 1260.0, -1.0 / 1680.0, 1.0 / 1188.0]


def log_rising(x: ArrayLike, a: ArrayLike) -> Array:
    """log Gamma(x + a) - log Gamma(x) for x > 0, a >= 0, broadcast; accurate for large x in any precision.

    Stirling's series term by term: the difference of two log Gammas loses log10(x) digits, and at x = 1e7 in single
    precision all of them. (`jax.scipy.special.betaln` is good to 1e-7 only between its own branches.)
    """
    x, a = jnp.broadcast_arrays(*(jnp.asarray(v, jnp.result_type(x, a, float)) for v in (x, a)))
    large = x >= _STIRLING_FROM
    small, x = jnp.where(large, 1.0, x), jnp.where(large, x, _STIRLING_FROM)

    def correction(x: Array) -> Array:
        return _series(1.0 / x**2, _STIRLING) / x

    stirling = (x - 0.5) * jnp.log1p(a / x) + a * (jnp.log(x + a) - 1.0) + correction(x + a) - correction(x)
    return jnp.where(large, stirling, gammaln(small + a) - gammaln(small))
