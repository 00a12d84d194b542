"""Sums and integrals over latents that are not estimated: enumeration, Laplace's method, adaptive quadrature.

All three act on *blocks*: `terms(u)` is a vector of log-densities, one a block, each of which depends on its own row of
u alone. Units of a data plate are blocks of their own; random effects that touch each other form one block together.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy.special import logsumexp

Terms = Callable[[Array], Array]
"""(blocks, d) latent values -> (blocks,) log-densities."""

NEWTON_STEPS = 50


def blocks_of_hessian(terms: Terms, u: Array) -> Array:
    """Second derivatives of every block with respect to its own row, ``(blocks, d, d)``: d Hessian-vector products."""
    gradient = jax.grad(lambda v: jnp.sum(terms(v)))
    units = jnp.eye(u.shape[1], dtype=u.dtype)
    columns = jax.vmap(lambda e: jax.jvp(gradient, (u,), (jnp.broadcast_to(e, u.shape),))[1])(units)
    return jnp.moveaxis(columns, 0, 2)


def _newton_direction(terms: Terms, u: Array, damping: Array) -> Array:
    gradient = jax.grad(lambda v: jnp.sum(terms(v)))(u)
    precision = -blocks_of_hessian(terms, u)
    scale = jnp.abs(jnp.diagonal(precision, axis1=1, axis2=2)) + 1e-12
    damped = precision + damping[:, None, None] * scale[:, :, None] * jnp.eye(u.shape[1], dtype=u.dtype)
    return jnp.linalg.solve(damped, gradient[..., None])[..., 0]


def modes(terms: Terms, u: Array) -> Array:
    """The maximum of every block, differentiable to third order in what `terms` closes over.

    Damped Newton finds it outside of differentiation; two plain Newton steps from there carry the derivatives, because
    each of them squares the error, that of the derivatives included.
    """
    # what `terms` closes over becomes an argument, so that the loop is none that would have to be differentiated
    pure, held = jax.closure_convert(terms, u)
    held = lax.stop_gradient(held)

    def frozen(v: Array) -> Array:
        return pure(v, *held)

    def step(carry: tuple) -> tuple:
        u, value, damping, i, _ = carry
        new = u + _newton_direction(frozen, u, damping)
        new_value = frozen(new)
        # not strictly: at the optimum rounding decides
        better = new_value >= value - 1e-12 * (1 + jnp.abs(value))
        moved = jnp.where(better, jnp.max(jnp.abs(new - u), axis=1), jnp.inf)
        u = jnp.where(better[:, None], new, u)
        damping = jnp.where(better, damping * 0.2, jnp.maximum(4 * damping, 1e-2))
        damping = jnp.where(damping < 1e-6, 0.0, damping)
        return u, jnp.where(better, new_value, value), damping, i + 1, jnp.max(moved)

    start = (u, frozen(u), jnp.zeros(u.shape[0], u.dtype), 0, jnp.array(jnp.inf, u.dtype))
    tolerance = 1e-9 if u.dtype == jnp.float64 else 1e-5
    found = lax.while_loop(lambda c: (c[3] < NEWTON_STEPS) & (c[4] > tolerance), step, start)[0]
    found = lax.stop_gradient(found)
    for _ in range(2):
        found = found + _newton_direction(terms, found, jnp.zeros(u.shape[0], u.dtype))
    return found


def integrate(terms: Terms, u: Array, num_nodes: int = 1) -> Array:
    """log ∫ exp(terms(u)) du of every block.

    Laplace's method with one node; with more, adaptive Gauss–Hermite quadrature of that many nodes per dimension,
    centred at the mode and scaled by the curvature there (Approximations to the Log-Likelihood Function in the
    Nonlinear Mixed-Effects Model).

    Args:
        terms: see `Terms`.
        u: where the search for the modes starts, ``(blocks, d)``.
        num_nodes: quadrature nodes per dimension.
    """
    dimension = u.shape[1]
    mode = modes(terms, u)
    factor = jnp.linalg.cholesky(-blocks_of_hessian(terms, mode))  # NaN where a block has no maximum
    half_log_det = jnp.sum(jnp.log(jnp.diagonal(factor, axis1=1, axis2=2)), axis=1)
    if num_nodes == 1:
        return terms(mode) + 0.5 * dimension * jnp.log(2 * jnp.pi) - half_log_det
    x, w = np.polynomial.hermite.hermgauss(num_nodes)
    grid = jnp.asarray(np.array(list(product(x, repeat=dimension))))
    log_w = jnp.asarray(np.log(np.array(list(product(w, repeat=dimension)))).sum(1))

    def at(node: Array) -> Array:
        shift = jax.scipy.linalg.solve_triangular(
            jnp.swapaxes(factor, 1, 2), jnp.broadcast_to(node, mode.shape)[..., None], lower=False
        )[..., 0]
        return terms(mode + jnp.sqrt(2.0) * shift) + jnp.sum(node**2)

    values = jax.vmap(at)(grid.astype(mode.dtype)) + log_w[:, None].astype(mode.dtype)
    return logsumexp(values, axis=0) + 0.5 * dimension * jnp.log(2.0) - half_log_det


def enumerate_values(terms: Callable[[Array], Array], combinations: Array) -> Array:
    """Log-densities of every combination of discrete values: ``(combinations, blocks)``."""
    return jax.vmap(terms)(combinations)
