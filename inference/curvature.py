"""Second derivatives of a loss, and the Newton step that follows from them: shared by starts, solvers, covariances."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

Loss = Callable[[Array], Array]


def off_zero(z: Array) -> Array:
    """The same vector with zeros made 1e-12, derivatives untouched.

    Densities written with |·| and max have no derivative at exactly zero, and automatic ones are wrong there: that of
    NumPyro's Bernoulli at logits 0, where every regression starts, is 0 or 1 in place of ½.
    """
    return z + jnp.where(z == 0, jnp.asarray(1e-12, z.dtype), jnp.zeros((), z.dtype))


def gradient_and_hessian(f: Loss, z: Array, batch: int | None = None) -> tuple[Array, Array]:
    """Gradient ``(D,)`` and Hessian ``(D, D)``, forward over reverse; `batch` rows at once, all where it is None."""
    gradient, tangent = jax.linearize(jax.grad(f), z)
    rows = jnp.eye(z.shape[0], dtype=z.dtype)
    hessian = jax.vmap(tangent)(rows) if batch is None else lax.map(tangent, rows, batch_size=batch)
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


def chords(f: Loss, z: Array, value: Array, factor: Array, max_steps: Array | int, tolerance: float) -> tuple:
    """Steps with a curvature from elsewhere, W Wᵀ, while each brings the gradient down by three at least.

    A Hessian costs as many gradients as there are parameters: near the minimum an old one serves as well.

    Returns:
        Point, value, and the decrement before the last step (or that of the point, where no step was taken).
    """

    def step(carry: tuple) -> tuple:
        z, value, last, _, i = carry
        whitened = factor.T @ jax.grad(f)(z)
        decrement = jnp.linalg.norm(whitened)
        new = z - factor @ whitened
        new_value = f(new)
        good = (decrement < last / 3) & (new_value <= value + 1e-12 * (1 + jnp.abs(value)))
        z, value = jnp.where(good, new, z), jnp.where(good, new_value, value)
        return z, value, jnp.where(good, decrement, last), ~good | (decrement < tolerance), i + 1

    infinite = jnp.array(jnp.inf, z.dtype)
    carry = lax.while_loop(lambda c: ~c[3] & (c[4] < max_steps), step, (z, value, infinite, jnp.array(False), 0))
    return carry[:3]


def newton_step(
    f: Loss, z: Array, value: Array, *, max_chords: int = 0, tolerance: float = 1e-7
) -> tuple[Array, Array, Array, Array]:
    """One Newton step with backtracking, and chords after it. Affine-invariant: raw scales do not slow it down.

    Returns:
        The new point and its value; the decrement √(gᵀ|H|⁻¹g) before the last step taken, a distance from the optimum
        in standard deviations (after a full step about the square of that); the condition number at the old point.
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
    z, value = jnp.where(better, z + size * direction, z), jnp.where(better, new, value)
    if max_chords:
        allowed = jnp.where(better & (size == 1) & (decrement > tolerance), max_chords, 0)
        z, value, last = chords(f, z, value, factor, allowed, tolerance)
        decrement = jnp.minimum(decrement, last)
    return z, value, decrement, condition


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


def damped_newton(f: Loss, z: Array, max_steps: int = 50, tolerance: float = 1e-7) -> tuple[Array, Array]:
    """Newton steps from a point near the minimum, by Cholesky factors. Cheap, for many refits.

    Returns:
        The point, and the decrement before the last step: squared, about what it still has to go in standard errors.

    A Hessian that is not positive definite gives NaN, which counts as a step that does not descend: damping grows.
    """
    unit = jnp.eye(z.shape[0], dtype=z.dtype)

    def step(carry: tuple) -> tuple:
        z, value, damping, _, i = carry
        gradient, hessian = gradient_and_hessian(f, z)
        factor = jnp.linalg.cholesky(hessian + damping * unit * jnp.abs(jnp.diagonal(hessian)))
        direction = -jax.scipy.linalg.cho_solve((factor, True), gradient)
        new = f(z + direction)
        # at the optimum rounding decides whether the loss falls
        better = new <= value + 1e-12 * (1 + jnp.abs(value))
        decrement = jnp.where(better & (damping == 0), jnp.sqrt(jnp.abs(gradient @ direction)), jnp.inf)
        damping = jnp.where(better, jnp.where(damping > 1e-6, damping * 0.1, 0.0), jnp.maximum(10 * damping, 1e-3))
        return jnp.where(better, z + direction, z), jnp.where(better, new, value), damping, decrement, i + 1

    def going_on(carry: tuple) -> Array:
        return (carry[3] > tolerance) & (carry[4] < max_steps)

    zero, infinite = jnp.zeros((), z.dtype), jnp.array(jnp.inf, z.dtype)
    z, _, _, decrement, _ = lax.while_loop(going_on, step, (z, f(z), zero, infinite, 0))
    return z, decrement
