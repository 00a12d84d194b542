"""Minimisation of a smooth loss plus a penalty with kinks: proximal Newton where D is small, FISTA above.

Both are pure functions of a vector, to be jitted and vmapped over weights, strengths and starting points. A problem
gives them `smooth`, `penalty` and `proximal`; where every element has a term of its own (l1, a bound) the quadratic
model of a Newton step is minimised by coordinate descent, otherwise by proximal gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax, random
from jax.flatten_util import ravel_pytree

from ..estimators.base import Params, Problem
from . import curvature

INNER_STEPS = 3000
"""Most sweeps of coordinate descent, or proximal gradient steps, on one quadratic model."""
INNER_TOLERANCE = 1e-11
"""Of the largest change in one of them, in standard errors."""


class Composite(NamedTuple):
    """smooth(z) + penalty(z) of a vector."""

    smooth: Callable[[Array], Array]
    penalty: Callable[[Array], Array]
    proximal: Callable[[Array, Array], Array]
    """(point, steps of every element) -> argmin."""
    project: Callable[[Array], Array]
    l1: Array | None
    """``(D,)`` strengths where the penalty is separable, else None."""
    bounded: Array
    """``(D,)`` true where an element is bounded below by zero."""
    sites: Array
    """``(D,)`` index of the site of every element: a step may differ between sites, not within one."""
    num_sites: int


def composite(problem: Any) -> tuple[Array, Composite, Callable[[Array], Params]]:
    """Initial values as a vector, the two parts of the loss of a vector, and the way back to parameters."""
    params: dict[str, Any] = problem.params
    z, unravel = ravel_pytree(params)

    def smooth(z: Array) -> Array:
        value = problem.smooth(unravel(curvature.off_zero(z)), random.key(0), problem.data)
        return jnp.where(jnp.isfinite(value), value, jnp.inf)  # a line search turns back

    rules = problem.penalties
    index = {
        name: jax.tree.map(lambda x, i=i: jnp.full(jnp.shape(x), float(i)), v)
        for i, (name, v) in enumerate(params.items())
    }
    parts = Composite(
        smooth=smooth,
        penalty=lambda z: problem.penalty(unravel(z)),
        proximal=lambda z, steps: ravel_pytree(problem.proximal(unravel(z), unravel(steps)))[0],
        project=lambda z: ravel_pytree(rules.project(unravel(z)))[0],
        l1=ravel_pytree(rules.l1_vector(params))[0] if rules.separable else None,
        bounded=ravel_pytree(rules.bounded(params))[0] > 0,
        sites=ravel_pytree(index)[0].astype(int),
        num_sites=len(params),
    )
    return z, parts, unravel


def total(parts: Composite, z: Array) -> Array:
    return parts.smooth(z) + parts.penalty(z)


def coordinate_descent(quadratic: Array, gradient: Array, z: Array, l1: Array, bounded: Array) -> Array:
    """argmin_x gradient·(x − z) + ½(x − z)ᵀ quadratic (x − z) + Σ l1|x|, x ≥ 0 where bounded.

    Args:
        quadratic: ``(D, D)``, positive definite.
        gradient, z, l1, bounded: ``(D,)``
    """
    d = 1 / jnp.sqrt(jnp.diagonal(quadratic))  # unit diagonal: steps are in standard errors
    b, threshold = quadratic * d[:, None] * d, l1 * d

    def coordinate(j: Array, carry: tuple) -> tuple:
        x, slope, largest = carry
        u = x[j] - slope[j]
        new = jnp.where(jnp.abs(u) > threshold[j], u - jnp.sign(u) * threshold[j], 0.0)
        new = jnp.where(bounded[j], jnp.maximum(new, 0.0), new)
        delta = new - x[j]
        return x.at[j].set(new), slope + b[j] * delta, jnp.maximum(largest, jnp.abs(delta))

    def sweep(carry: tuple) -> tuple:
        x, slope, _, i = carry
        x, slope, largest = lax.fori_loop(0, x.shape[0], coordinate, (x, slope, jnp.zeros((), x.dtype)))
        return x, slope, largest, i + 1

    start = (z / d, gradient * d, jnp.array(jnp.inf, z.dtype), 0)
    x = lax.while_loop(lambda c: (c[2] > INNER_TOLERANCE) & (c[3] < INNER_STEPS), sweep, start)[0]
    return x * d


def proximal_gradients(quadratic: Array, gradient: Array, z: Array, parts: Composite) -> Array:
    """argmin_x gradient·(x − z) + ½(x − z)ᵀ quadratic (x − z) + penalty(x): accelerated, with restarts.

    Sites are brought to a common scale first, by the mean of their diagonal.
    """
    diagonal = jnp.diagonal(quadratic)
    count = jax.ops.segment_sum(jnp.ones_like(diagonal), parts.sites, parts.num_sites)
    scale = (
        1 / jnp.sqrt(jax.ops.segment_sum(diagonal, parts.sites, parts.num_sites) / jnp.maximum(count, 1))[parts.sites]
    )
    b = quadratic * scale[:, None] * scale
    top = jnp.linalg.eigvalsh(b)[-1]
    steps = scale**2 / top

    def step(carry: tuple) -> tuple:
        x, y, t, _, i = carry
        slope = gradient + quadratic @ (y - z)
        new = parts.proximal(y - steps * slope, steps)
        t_new = 0.5 * (1 + jnp.sqrt(1 + 4 * t**2))
        again = jnp.sum((y - new) * (new - x) / scale**2) > 0  # momentum uphill: restart
        t_new = jnp.where(again, 1.0, t_new)
        y_new = jnp.where(again, new, new + (t - 1) / t_new * (new - x))
        return new, y_new, t_new, jnp.max(jnp.abs(new - y) / scale) * jnp.sqrt(top), i + 1

    start = (z, z, jnp.ones((), z.dtype), jnp.array(jnp.inf, z.dtype), 0)
    return lax.while_loop(lambda c: (c[3] > INNER_TOLERANCE) & (c[4] < INNER_STEPS), step, start)[0]


def newton_step(parts: Composite, z: Array, value: Array) -> tuple[Array, Array, Array]:
    """One proximal Newton step with backtracking (Proximal Newton-Type Methods for Minimizing Composite Functions).

    Returns:
        The new point and its value; and √(dᵀ|H|d) of the full step d, its length in standard errors: zero exactly where
        the subgradient of the loss holds zero.
    """
    gradient, hessian = curvature.gradient_and_hessian(parts.smooth, z)
    eigenvalues, vectors, d = curvature.scaled_eigen(hessian)
    magnitude = jnp.maximum(jnp.abs(eigenvalues), 1e-10 * jnp.max(jnp.abs(eigenvalues)))
    quadratic = (vectors * magnitude) @ vectors.T / d[:, None] / d
    if parts.l1 is not None:
        target = coordinate_descent(quadratic, gradient, z, parts.l1, parts.bounded)
    else:
        target = proximal_gradients(quadratic, gradient, z, parts)
    direction = target - z
    decrement = jnp.sqrt(jnp.maximum(direction @ quadratic @ direction, 0.0))
    slope = gradient @ direction + parts.penalty(target) - parts.penalty(z)

    def too_far(carry: tuple) -> Array:
        size, new = carry
        return ~(new <= value + 1e-4 * size * slope) & (size > 1e-9)

    def shorter(carry: tuple) -> tuple:
        size = carry[0] * 0.5
        return size, total(parts, z + size * direction)

    one = jnp.ones((), z.dtype)
    size, new = lax.while_loop(too_far, shorter, (one, total(parts, target)))
    better = new < value
    # the full step as it is: z + (target − z) is not exactly zero where target is
    point = jnp.where(size == 1, target, z + size * direction)
    return jnp.where(better, point, z), jnp.where(better, new, value), decrement


class Fista(NamedTuple):
    """State of accelerated proximal gradients."""

    x: Array
    y: Array
    momentum: Array
    curvature: Array
    """Inverse of the step."""
    norm: Array
    """Of the proximal gradient at y."""


def fista_start(parts: Composite, z: Array) -> Fista:
    one = jnp.ones((), z.dtype)
    z = parts.project(z)
    slope = jnp.linalg.norm(jax.grad(parts.smooth)(z))
    return Fista(z, z, one, jnp.maximum(slope, 1e-3), one * jnp.inf)


def fista_step(parts: Composite, state: Fista) -> Fista:
    """One step with backtracking and adaptive restart (A Fast Iterative Shrinkage-Thresholding Algorithm for Linear
    Inverse Problems; Adaptive Restart for Accelerated Gradient Schemes)."""
    x, y, t, inverse, _ = state
    value, slope = jax.value_and_grad(parts.smooth)(y)

    def candidate(inverse: Array) -> tuple[Array, Array]:
        new = parts.proximal(y - slope / inverse, jnp.full_like(y, 1.0) / inverse)
        move = new - y
        bound = value + slope @ move + 0.5 * inverse * move @ move
        return new, parts.smooth(new) <= bound + 1e-13 * jnp.abs(value)

    def shorter(carry: tuple) -> tuple:
        inverse = 2 * carry[0]
        return inverse, *candidate(inverse)

    inverse, new, _ = lax.while_loop(lambda c: ~c[2] & (c[0] < 1e30), shorter, (inverse, *candidate(inverse)))
    new = jnp.where(jnp.all(jnp.isfinite(new)), new, x)
    t_new = 0.5 * (1 + jnp.sqrt(1 + 4 * t**2))
    again = jnp.sum((y - new) * (new - x)) > 0
    t_new = jnp.where(again, 1.0, t_new)
    y_new = jnp.where(again, new, parts.project(new + (t - 1) / t_new * (new - x)))
    return Fista(new, y_new, t_new, 0.95 * inverse, inverse * jnp.linalg.norm(new - y))


def minimise(problem: Problem, z: Array, max_steps: int = 100, tolerance: float = 1e-7) -> tuple[Array, Array, Array]:
    """Proximal Newton steps until one is shorter than `tolerance` standard errors: point, value, length of the last.

    One program, vmappable over what the problem holds (weights, strengths, data) and over starting points. Not where
    the proximal operator is iterative: a Newton step takes it thousands of times.
    """
    parts = composite(problem)[1]
    z = parts.project(z)

    def step(carry: tuple) -> tuple:
        z, value, _, _, i = carry
        new, new_value, decrement = newton_step(parts, z, value)
        return new, new_value, decrement, ~(new_value < value), i + 1

    def going_on(carry: tuple) -> Array:
        return (carry[2] > tolerance) & ~carry[3] & (carry[4] < max_steps)

    start = (z, total(parts, z), jnp.array(jnp.inf, z.dtype), jnp.array(False), 0)
    z, value, decrement, _, _ = lax.while_loop(going_on, step, start)
    return z, value, decrement
