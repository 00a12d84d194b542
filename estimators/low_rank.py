"""Gaussians whose precision is a diagonal plus a few directions: no matrix of the size of the parameters is formed."""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array, lax, random

OVERSAMPLING = 10
"""Directions carried beside those that are asked for."""
BLOCKS = 4
"""Of the Krylov space: products with the matrix a direction."""
BATCH = 32
"""Products side by side: each holds the derivatives of the whole loss in memory."""


class LowRank(eqx.Module):
    """diag(d) (I + U diag(s − 1) Uᵀ), a factor of the covariance diag(d) (I + U diag(s² − 1) Uᵀ) diag(d)."""

    diagonal: Array
    """d, ``(D,)``"""
    vectors: Array
    """U, ``(D, rank)``, with orthonormal columns."""
    shrink: Array
    """s, ``(rank,)``, positive."""

    @property
    def shape(self) -> tuple[int, int]:
        return (self.diagonal.shape[0], self.diagonal.shape[0])

    def times(self, u: Array) -> Array:
        """The factor times a vector ``(D,)``."""
        return self.diagonal * (u + self.vectors @ ((self.shrink - 1) * (self.vectors.T @ u)))

    @property
    def log_volume(self) -> Array:
        """Logarithm of the factor's determinant."""
        return jnp.sum(jnp.log(self.diagonal)) + jnp.sum(jnp.log(self.shrink))

    def covariance(self) -> Array:
        """``(D, D)``, for few parameters."""
        half = jax.vmap(self.times)(jnp.eye(self.shape[0], dtype=self.diagonal.dtype))  # columns of the factor
        return half.T @ half


def eigenpairs(product: Callable[[Array], Array], size: int, rank: int, rng_key: Array) -> tuple[Array, Array]:
    """Eigenpairs of a symmetric matrix known by its products: values ``(m,)`` and vectors ``(size, m)``, m ≥ rank.

    By Rayleigh and Ritz in a Krylov space of random blocks (Randomized Block Krylov Methods for Stronger and Faster
    Approximate Singular Value Decomposition), which has both ends of the spectrum; blocks see repeated eigenvalues. All
    pairs, exactly, where that space would be the whole one.
    """
    block = rank + OVERSAMPLING
    if BLOCKS * block >= size:
        basis = jnp.eye(size)
        images = _columns(product, basis)
    else:
        new = jnp.linalg.qr(random.normal(rng_key, (size, block)))[0]
        basis, images = new, _columns(product, new)
        last = images
        for _ in range(BLOCKS - 1):
            for _ in range(2):  # once leaves rounding errors in a block that brings little
                last = jnp.linalg.qr(last - basis @ (basis.T @ last))[0]
            new, last = last, _columns(product, last)
            basis, images = jnp.concatenate([basis, new], axis=1), jnp.concatenate([images, last], axis=1)
    projected = basis.T @ images
    values, vectors = jnp.linalg.eigh((projected + projected.T) / 2)
    return values, basis @ vectors


def diagonal(product: Callable[[Array], Array], size: int) -> Array:
    """Diagonal of a matrix that is known by its products, ``(size,)``."""
    one = lambda i: product(jnp.zeros(size).at[i].set(1.0))[i]  # noqa: E731
    return lax.map(one, jnp.arange(size), batch_size=min(2 * BATCH, size))


def diagonal_if_so(product: Callable[[Array], Array], size: int, rng_key: Array) -> Array:
    """The same; two products tell that a matrix is diagonal, and then give it."""
    signs = random.rademacher(rng_key, (size,), jnp.result_type(float))
    first, second = product(jnp.ones(size)), signs * product(signs)
    same = jnp.all(jnp.abs(first - second) <= 1e-9 * jnp.max(jnp.abs(first)))
    return lax.cond(same, lambda: first, lambda: diagonal(product, size))


def _columns(product: Callable[[Array], Array], matrix: Array) -> Array:
    return lax.map(product, matrix.T, batch_size=min(BATCH, matrix.shape[1])).T
