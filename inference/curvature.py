"""Second derivatives of a loss, and the Newton step that follows from them: shared by starts, solvers, covariances."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

Loss = Callable[[Array], Array]


def gradient_and_hessian(f: Loss, z: Array) -> tuple[Array, Array]:
    """Gradient ``(D,)`` and Hessian ``(D, D)``, forward over reverse."""
    gradient, tangent = jax.linearize(jax.grad(f), z)
    hessian = jax.vmap(tangent)(jnp.eye(z.shape[0], dtype=z.dtype))
    return gradient, (hessian + hessian.T) / 2


def scaled_eigen(hessian: Array) -> tuple[Array, Array, Array]:
    """Eigenvalues and vectors after scaling the diagonal to one, so that units do not matter; and that scaling d.

    H = diag(1/d) V diag(λ) Vᵀ diag(1/d).
    """
    diagonal = jnp.abs(jnp.diag(hessian))
    d = 1 / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1.0))
    eigenvalues, vectors = jnp.linalg.eigh(hessian * d[:, None] * d)
    return eigenvalues, vectors, d


def whitening(hessian: Array, floor: float = 1e-12) -> tuple[Array, Array]:
    """A factor W with W Wᵀ = |H|⁻¹, directions without curvature made finite; and the condition number.

    Eigenvalues enter by magnitude: at a point that is not a minimum the negative ones still say how far it reaches.
    """
    eigenvalues, vectors, d = scaled_eigen(hessian)
    magnitude = jnp.maximum(jnp.abs(eigenvalues), floor * jnp.max(jnp.abs(eigenvalues)))
    return d[:, None] * vectors / jnp.sqrt(magnitude), magnitude.max() / magnitude.min()


def newton_step(f: Loss, z: Array, value: Array) -> tuple[Array, Array, Array, Array]:
    """One Newton step with backtracking. Affine-invariant: raw scales do not slow it down.

    Returns:
        The new point and its value; the Newton decrement √(gᵀ|H|⁻¹g) at the old point, which is its distance from the
        optimum in standard deviations; and the condition number there.
    """
    gradient, hessian = gradient_and_hessian(f, z)
    factor, condition = whitening(hessian)
    whitened = factor.T @ gradient
    direction = -factor @ whitened
    decrement = jnp.linalg.norm(whitened)
    slope = -(decrement**2)

    def too_far(carry: tuple) -> Array:
        size, new = carry
        return ~(new <= value + 1e-4 * size * slope) & (size > 1e-9)

    def shorter(carry: tuple) -> tuple:
        size = carry[0] * 0.5
        return size, f(z + size * direction)

    one = jnp.ones((), z.dtype)
    size, new = lax.while_loop(too_far, shorter, (one, f(z + direction)))
    better = new < value
    return jnp.where(better, z + size * direction, z), jnp.where(better, new, value), decrement, condition


def newton(f: Loss, z: Array, max_steps: int = 100, tolerance: float = 1e-7) -> tuple[Array, Array, Array]:
    """Newton steps until the decrement is below `tolerance`: point, value, last decrement. One program, vmappable."""

    def step(carry: tuple) -> tuple:
        z, value, _, _, i = carry
        new, new_value, decrement, _ = newton_step(f, z, value)
        return new, new_value, decrement, ~(new_value < value), i + 1

    def going_on(carry: tuple) -> Array:
        return (carry[2] > tolerance) & ~carry[3] & (carry[4] < max_steps)

    z, value, decrement, _, _ = lax.while_loop(
        going_on, step, (z, f(z), jnp.array(jnp.inf, z.dtype), jnp.array(False), 0)
    )
    return z, value, decrement
