"""Dense linear algebra of Gaussian processes, with a jitter that is raised only where it must be."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.custom_batching import sequential_vmap
from jax.scipy.linalg import cho_solve, solve_triangular

LOG_2PI = float(np.log(2 * np.pi))
LEAF = 128
"""Rows below which an inverse is not halved. With 256 what 1,000 rows take besides three n × n arrays is twice as much;
with 64 they take half as long again to compile."""


def jitters(dtype: Any) -> Array:
    """Levels of the jitter relative to the mean of the diagonal, the first one zero."""
    smallest = -12 if jnp.finfo(dtype).bits == 64 else -6
    return jnp.concatenate([jnp.zeros(1, dtype), 10.0 ** jnp.arange(smallest, -2, dtype=dtype)])


def add_diagonal(matrix: Array, diagonal: Array) -> Array:
    i = jnp.arange(matrix.shape[-1])
    return matrix.at[..., i, i].add(diagonal)


@sequential_vmap
def factorise(matrix: Array) -> tuple[Array, Array]:
    """As `jittered_cholesky`, with whatever there was above the diagonal of the factor: solves do not look at it.

    To set it to zero takes a mask, which XLA keeps through the loop: an eighth of an n × n array, and a pass over one.
    """
    levels = jitters(matrix.dtype)
    scale = jnp.mean(jnp.diagonal(matrix))

    def factor(level: Array) -> Array:
        return lax.linalg.cholesky_p.bind(add_diagonal(matrix, levels[level] * scale))

    def failed(carry: tuple[Array, Array]) -> Array:
        level, found = carry
        return jnp.isnan(found[-1, -1]) & (level < len(levels) - 1)

    def again(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        return carry[0] + 1, factor(carry[0] + 1)

    level, found = lax.while_loop(failed, again, (jnp.zeros((), jnp.int32), factor(jnp.zeros((), jnp.int32))))
    return found, levels[level] * scale


def jittered_cholesky(matrix: Array) -> tuple[Array, Array]:
    """Lower factor of the matrix plus the least jitter that makes it positive definite, and that jitter.

    NaN where no level does. Not differentiable: see `log_normal`, `cholesky`.
    """
    found, jitter = factorise(matrix)
    return jnp.tril(found), jitter


@jax.custom_jvp
def cholesky(matrix: Array) -> Array:
    """Differentiable lower factor, with the least jitter that works. The jitter counts as a constant."""
    return jittered_cholesky(matrix)[0]


@cholesky.defjvp
def _cholesky_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    """dL = L Φ(L⁻¹ dK L⁻ᵀ), Φ the lower triangle with half of the diagonal."""
    factor = cholesky(primals[0])
    inner = solve_triangular(factor, tangents[0], lower=True)
    inner = lax.linalg.triangular_solve(factor, inner, left_side=False, lower=True, transpose_a=True)
    return factor, factor @ (jnp.tril(inner) - 0.5 * jnp.diag(jnp.diagonal(inner)))


def root(covariance: Array) -> Array:
    """A square root R of a covariance that may be singular, R Rᵀ = covariance: for draws."""
    values, vectors = jnp.linalg.eigh((covariance + covariance.T) / 2)
    return vectors * jnp.sqrt(jnp.maximum(values, 0.0))


def inverse_of_factor(factor: Array) -> Array:
    """(L Lᵀ)⁻¹ of a lower factor, by halves: P₂₁ = −P₂₂ M and P₁₁ = (L₁₁L₁₁ᵀ)⁻¹ − Mᵀ P₂₁ with M = L₂₁ L₁₁⁻¹.

    XLA has triangular solves only, and two of them against the identity cost 2 n³: more than twice what the halves do,
    most of it in products.
    """
    n = factor.shape[0]
    if n <= LEAF:
        return cho_solve((factor, True), jnp.eye(n, dtype=factor.dtype))
    h = n // 2
    first, last = inverse_of_factor(factor[:h, :h]), inverse_of_factor(factor[h:, h:])
    M = lax.linalg.triangular_solve(factor[:h, :h], factor[h:, :h], left_side=False, lower=True)
    below = -last @ M
    out = jnp.zeros_like(factor).at[:h, :h].set(first - M.T @ below).at[h:, h:].set(last)
    return out.at[h:, :h].set(below).at[:h, h:].set(below.T)


@jax.custom_jvp
def inverse(matrix: Array) -> Array:
    """Inverse of a positive definite matrix, jittered where it must be."""
    return inverse_of_factor(factorise(matrix)[0])


@inverse.defjvp
def _inverse_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    out = inverse(primals[0])
    return out, -out @ tangents[0] @ out


@jax.custom_jvp
def log_normal(covariance: Array, residual: Array) -> Array:
    """log N(residual | 0, covariance), nats; ``(n, n)``, of which it reads the lower triangle only, and ``(n,)``.

    Its derivative is ½ tr((ααᵀ − K⁻¹) dK) − αᵀ dr with α = K⁻¹ r (Gaussian Processes for Machine Learning, eq. 5.9):
    one factorisation and one inverse serve value and gradient, in little more than three n × n arrays.
    """
    return _log_normal_of(factorise(covariance)[0], residual)


def _log_normal_of(factor: Array, residual: Array) -> Array:
    white = solve_triangular(factor, residual, lower=True)
    log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(factor)))
    return -0.5 * (jnp.sum(white**2) + log_det + len(residual) * LOG_2PI)


@log_normal.defjvp
def _log_normal_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (covariance, residual), (d_covariance, d_residual) = primals, tangents
    precision, value = _inverse_and_log_normal(covariance, residual)
    alpha = precision @ residual
    # a product and a sum over the elements, so that a cotangent for the kernel is one n × n array
    sensitivity = (alpha[:, None] * alpha - precision) * _counts(len(alpha), precision.dtype)
    return value, jnp.sum(sensitivity * d_covariance) - alpha @ d_residual


def _counts(n: int, dtype: Any) -> Array:
    """What an element of a lower triangle counts in half of a sum over the symmetric matrix: 1, on the diagonal ½."""
    i = jnp.arange(n)
    return jnp.where(i[:, None] > i, 1.0, jnp.where(i[:, None] == i, 0.5, 0.0)).astype(dtype)


@jax.custom_jvp
def _inverse_and_log_normal(covariance: Array, residual: Array) -> tuple[Array, Array]:
    factor = factorise(covariance)[0]
    return inverse_of_factor(factor), _log_normal_of(factor, residual)


@_inverse_and_log_normal.defjvp
def _inverse_and_log_normal_jvp(primals: tuple, tangents: tuple) -> tuple:
    """For second derivatives."""
    (covariance, residual), (d_covariance, d_residual) = primals, tangents
    precision, value = _inverse_and_log_normal(covariance, residual)
    alpha = precision @ residual
    d_covariance = jnp.tril(d_covariance) + jnp.tril(d_covariance, -1).T
    d_value = 0.5 * alpha @ (d_covariance @ alpha) - 0.5 * jnp.sum(precision * d_covariance) - alpha @ d_residual
    return (precision, value), (-precision @ d_covariance @ precision, d_value)
