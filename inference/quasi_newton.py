"""BFGS: curvature gathered from gradients, for losses whose Hessian costs many of them. Vmappable.

`run` starts from anywhere. Every turn of its loop is one evaluation of loss and gradient, of the line search or of a
step alike, so that starting points which search do not hold up those that step. The line search brackets a point that
satisfies the weak Wolfe conditions (Nonsmooth Optimization via Quasi-Newton Methods). `settle` goes on from a point
with known curvature near the optimum, by gradients alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

DESCENT, FLATTER = 1e-4, 0.9
"""Of the weak Wolfe conditions: the share of the promised fall to be had, and of the slope that may be left."""
ROUNDING = 1e-14
"""A loss that rises by less, relatively, has not risen."""
SLOWEST = 0.7
"""Share of the decrement that a full step may leave."""
IN_A_ROW = 3
"""Points that have to look like the optimum."""
SMALLEST = 1e-12
"""A step shorter than this share of the direction is none."""
STANDARD_ERRORS = 1e-4
"""Distance from the optimum that counts as none where no step lowers the loss: it has 5e-9 to fall, in nats."""


class State(NamedTuple):
    """A point, what is known of the loss there, and the line search under way."""

    z: Array
    value: Array
    gradient: Array
    inverse: Array
    """Of the Hessian, as far as steps have shown it, ``(D, D)``."""
    size: Array
    """Of the step to try, in multiples of the direction."""
    low: Array
    high: Array
    """Sizes too short and too long."""
    steps: Array
    """Taken so far; −1 before the loss is known."""
    near: Array
    """Points one after the other, this one the last, from which the loss has too little to fall to count."""
    stuck: Array
    """Whether no step along the direction lowers the loss."""


def update(inverse: Array, step: Array, change: Array) -> Array:
    """The inverse Hessian that maps the change of the gradient to the step; as it was where the loss is not convex."""
    curvature = step @ change
    share = jnp.where(curvature > 0, 1 / jnp.where(curvature > 0, curvature, 1.0), 0.0)
    projection = jnp.eye(step.shape[0], dtype=step.dtype) - share * jnp.outer(step, change)
    return projection @ inverse @ projection.T + share * jnp.outer(step, step)


def bend_at_end(fall: Array, slope: Array, left: Array, value: Array) -> Array:
    """Curvature along a step at its end, over its mean along the step, which is all that two gradients tell.

    At the end the cubic through both values and slopes has it (Minimization Algorithms Making Use of Non-quadratic
    Properties of the Objective Function). Where a loss falls like an exponential, to a minimum at infinity, steps by
    the mean are a third too short. Within the rounding of the values nothing is known: 1.

    Args:
        fall: of the loss along the step.
        slope, left: along the step at its start and end, times its length.
        value: of the loss, whose rounding counts.
    """
    mean = left - slope
    known = (jnp.abs(fall) > 100 * ROUNDING * jnp.abs(value)) & (mean > 0)
    return jnp.where(known, jnp.clip((6 * fall + 2 * slope + 4 * left) / jnp.where(known, mean, 1.0), 0.1, 10.0), 1.0)


def units(gradient: Array) -> Array:
    """What a unit of every parameter may be worth, before any curvature is known.

    A parameter that few data speak of has a small gradient and little curvature. With one unit for all, steps towards
    it grow from those of the others by a factor at a time; with 1/|gradient| what is at its optimum already is thrown
    off. The root of that takes fewest evaluations on the shipped models.
    """
    size = jnp.abs(gradient)
    top = jnp.max(size)
    return lax.rsqrt(jnp.maximum(jnp.where(top > 0, size / top, 1.0), 1e-8))


def decrement(state: State) -> Array:
    """√(gᵀ H⁻¹ g): the distance from the optimum in standard errors, as far as the curvature is known."""
    return jnp.sqrt(jnp.maximum(state.gradient @ state.inverse @ state.gradient, 0.0))


def start(z: Array) -> State:
    """A point of which nothing is known: the first evaluation is there."""
    one, size = jnp.ones((), z.dtype), z.shape[0]
    return State(z, one * jnp.inf, jnp.zeros_like(z), jnp.eye(size, dtype=z.dtype), one, 0 * one, one * jnp.inf,
                 jnp.array(-1, jnp.int32), jnp.array(0, jnp.int32), jnp.array(False))  # fmt: skip


def evaluate(f: Callable[[Array], Array], state: State, tolerance: float) -> State:
    """One evaluation: a step taken, or the bracket of the line search narrowed."""
    direction = -state.inverse @ state.gradient
    slope = state.gradient @ direction
    new = state.z + state.size * direction
    value, gradient = jax.value_and_grad(f)(new)
    finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient))
    rise = value - state.value
    too_long = ~finite | ~(rise <= DESCENT * state.size * slope + ROUNDING * jnp.abs(state.value))
    left = gradient @ direction
    too_short = ~too_long & (left < FLATTER * slope)
    taken = ~too_long & ~too_short

    # where the parabola through both values has its minimum; where the slope vanishes if it goes on as it fell
    bend = 2 * (rise - state.size * slope)
    lowest = jnp.where(finite & (bend > 0), -slope * state.size**2 / jnp.where(bend > 0, bend, 1.0), 0.0)
    width = jnp.where(too_long, state.size, state.high) - jnp.where(too_short, state.size, state.low)
    between = jnp.where(too_short, state.size, state.low) + 0.5 * width
    shorter = jnp.where(state.low > 0, between, jnp.clip(lowest, 0.1 * state.size, 0.5 * state.size))
    flat = state.size * slope / jnp.where(left > slope, slope - left, -1.0)
    longer = jnp.where(jnp.isfinite(state.high), between, jnp.clip(flat, 2 * state.size, 10 * state.size))

    step, change = new - state.z, gradient - state.gradient
    change = bend_at_end(state.value - value, state.size * slope, state.size * left, value) * change
    # The first direction is the gradient's by `units`, of length one; the step along it says how curved the loss is.
    tiny = jnp.finfo(change.dtype).tiny
    first = units(gradient)
    first = first / jnp.maximum(jnp.linalg.norm(first * gradient), jnp.sqrt(tiny))
    scale = (step @ change) / jnp.maximum(change @ state.inverse @ change, tiny)
    scaled = jnp.where((state.steps < 1) & (scale > 0), scale, 1.0) * state.inverse
    before = jnp.where(state.steps < 0, jnp.diag(first), scaled)
    inverse = update(before, step, change)
    near = jnp.maximum(gradient @ inverse @ gradient, 0.0) <= tolerance * jnp.maximum(jnp.abs(value), 1.0)

    def pick(a: Array, b: Array) -> Array:
        return jnp.where(taken, a, b)

    one = jnp.ones_like(state.size)
    return State(
        z=pick(new, state.z), value=pick(value, state.value), gradient=pick(gradient, state.gradient),
        inverse=pick(inverse, state.inverse),
        size=pick(one, jnp.where(too_long, shorter, longer)),
        low=pick(0 * one, jnp.where(too_short, state.size, state.low)),
        high=pick(one * jnp.inf, jnp.where(too_long, state.size, state.high)),
        steps=state.steps + taken, near=pick(jnp.where(near, state.near + 1, 0), state.near),
        stuck=state.stuck | (~taken & ((state.size < SMALLEST) | (width < SMALLEST))),
    )  # fmt: skip


def converged(state: State) -> Array:
    """Whether the loss has had too little to fall at several points in a row: once may be a curvature not yet known.

    Or whether its rounding is all that is left: no step lowers it, and the optimum is near.
    """
    return (state.near >= IN_A_ROW) | (state.stuck & (decrement(state) < STANDARD_ERRORS))


def run(f: Callable[[Array], Array], state: State, evaluations: Array | int, tolerance: float) -> State:
    """At most so many evaluations more, fewer where the optimum is reached or no step helps.

    Args:
        tolerance: of the squared decrement, twice what the loss has to fall, relative to the loss (or to one).
    """

    def going_on(carry: tuple[State, Array]) -> Array:
        state, i = carry
        return ~converged(state) & ~state.stuck & (i < evaluations)

    turn = lambda c: (evaluate(f, c[0], tolerance), c[1] + 1)  # noqa: E731
    return lax.while_loop(going_on, turn, (state, jnp.zeros((), jnp.int32)))[0]


def settle(
    gradient: Callable[[Array], Array], z: Array, slope: Array, inverse: Array, tolerance: float, max_steps: int
) -> tuple[Array, Array]:
    """Full steps from a point near the optimum, while the loss bends upwards and each brings the decrement down.

    The loss itself is not looked at: where its gradient is cheaper, it is not computed.

    Args:
        slope: the gradient at z.
        inverse: of the Hessian near by, positive definite.

    Returns:
        The point, and the decrement there by the curvature gathered on the way.
    """

    def step(carry: tuple) -> tuple:
        z, slope, inverse, last, _, i = carry
        step = -inverse @ slope
        new = gradient(z + step)
        change = new - slope
        better = update(inverse, step, change)
        length = jnp.sqrt(jnp.maximum(new @ better @ new, 0.0))
        good = (length < SLOWEST * last) & (step @ change > 0)  # false for what is not a number
        pick = lambda a, b: jnp.where(good, a, b)  # noqa: E731
        return pick(z + step, z), pick(new, slope), pick(better, inverse), pick(length, last), good, i + 1

    length = jnp.sqrt(slope @ inverse @ slope)
    carry = (z, slope, inverse, length, jnp.array(True), jnp.zeros((), jnp.int32))
    found = lax.while_loop(lambda c: c[4] & (c[3] > tolerance) & (c[5] < max_steps), step, carry)
    return found[0], found[3]
