"""Second derivatives of a loss, and the Newton step that follows from them: shared by starts, solvers, covariances."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from . import quasi_newton

Loss = Callable[[Array], Array]

CLOSER = 0.7
"""Of the decrement allowed, what steps by gradients are to reach by the curvature that they have gathered."""


def off_zero(z: Array) -> Array:
    """The same vector with zeros made 1e-12, derivatives untouched.

    Densities written with |·| and max have no derivative at exactly zero, and automatic ones are wrong there: that of
    NumPyro's Bernoulli at logits 0, where every regression starts, is 0 or 1 in place of ½.
    """
    # by JAX's primitives, as each function of jax.numpy takes milliseconds to differentiate and batch
    return z + lax.select(lax.eq(z, lax.full_like(z, 0)), lax.full_like(z, 1e-12), lax.full_like(z, 0))


def batches(num: int, most: int) -> np.ndarray:
    """Indices of so many rows in batches ``(batches, size)`` of one size, because every size is compiled anew.

    The last row is repeated to fill them.
    """
    count = -(-num // most)
    return np.minimum(np.arange(-(-num // count) * count), num - 1).reshape(count, -1)


def gradient_and_hessian(f: Loss, z: Array, batch: int | None = None) -> tuple[Array, Array]:
    """Gradient ``(D,)`` and Hessian ``(D, D)``, forward over reverse; `batch` rows at once, all where it is None."""
    gradient, tangent = jax.linearize(jax.grad(f), z)
    size = z.shape[0]
    rows = jnp.eye(size, dtype=z.dtype)[batches(size, batch or size)]
    hessian = lax.map(jax.vmap(tangent), rows).reshape(-1, size)[:size]
    return gradient, (hessian + hessian.T) / 2


def scaled_eigen(hessian: Any) -> tuple[Any, Any, Any]:
    """Eigenvalues and vectors after scaling the diagonal to one, so that units do not matter; and that scaling d.

    H = diag(1/d) V diag(λ) Vᵀ diag(1/d). By NumPy where the Hessian is its array: nothing to compile.
    """
    xp: Any = np if isinstance(hessian, np.ndarray) else jnp
    diagonal = xp.abs(xp.diag(hessian))
    d = 1 / xp.sqrt(xp.where(diagonal > 0, diagonal, 1.0))
    eigenvalues, vectors = xp.linalg.eigh(hessian * d[:, None] * d)
    return eigenvalues, vectors, d


def whitening(hessian: Any, floor: float = 1e-12) -> tuple[Any, Any]:
    """A factor W with W Wᵀ = |H|⁻¹, directions without curvature made finite; and the condition number.

    Eigenvalues enter by magnitude: at a point that is not a minimum the negative ones still say how far it reaches.
    """
    xp: Any = np if isinstance(hessian, np.ndarray) else jnp
    eigenvalues, vectors, d = scaled_eigen(hessian)
    magnitude = xp.maximum(xp.abs(eigenvalues), floor * xp.max(xp.abs(eigenvalues)))
    return d[:, None] * vectors / xp.sqrt(magnitude), magnitude.max() / magnitude.min()


def newton_step(
    f: Loss, z: Array, value: Array, *, max_chords: int = 0, tolerance: float = 1e-7, batch: int | None = None
) -> tuple[Array, Array, Array, tuple[Array, Array]]:
    """One Newton step with backtracking, and steps with gradients only after it (a Hessian costs as many gradients as
    there are parameters). Affine-invariant: raw scales do not slow it down. `batch`: rows of the Hessian at once.

    Returns:
        The new point and its value; the decrement √(gᵀ|H|⁻¹g) at the old point, its distance from the optimum in
        standard errors; the gradient and the Hessian there. Where the decrement is below `tolerance`, chords allowed,
        it stays there.
    """
    gradient, hessian = gradient_and_hessian(f, z, batch)
    factor = whitening(hessian)[0]
    whitened = factor.T @ gradient
    direction = -factor @ whitened
    decrement = jnp.linalg.norm(whitened)
    nearest = tolerance if max_chords else 0.0
    far = z
    if max_chords:
        # in units of the curvature: where some direction has none, the inverse Hessian is large there, and its rounding
        # is more than its other elements
        one, zero = jnp.eye(z.shape[0], dtype=z.dtype), jnp.zeros_like(z)
        chord = lambda u: factor.T @ jax.grad(f)(z + factor @ u)  # noqa: E731
        far = z + factor @ quasi_newton.settle(chord, zero, whitened, one, CLOSER * tolerance, max_chords + 1)[0]

    def too_far(carry: tuple) -> Array:
        size, _, new = carry
        enough = value - 1e-4 * size * decrement**2 + quasi_newton.ROUNDING * jnp.abs(value)
        return ~(new <= enough) & (size > 1e-9) & (decrement > nearest)

    def shorter(carry: tuple) -> tuple:
        """What the gradients led to counts as a step of size 2, the full step comes after it."""
        size = carry[0] * 0.5
        point = jnp.where((size == 2) & jnp.any(far != z), far, z + jnp.minimum(size, 1.0) * direction)
        return size, point, f(point)

    # one evaluation at least, all in the loop, so that the loss is compiled once
    start = jnp.array(4.0 if max_chords else 2.0, z.dtype), z, jnp.array(jnp.inf, value.dtype)
    _, point, new = lax.while_loop(too_far, shorter, start)
    better = new < value
    return jnp.where(better, point, z), jnp.where(better, new, value), decrement, (gradient, hessian)


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
