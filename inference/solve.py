"""Solvers for exact losses, always in double precision.

Newton or BFGS where a matrix of the parameters is affordable, L-BFGS above; EM where the problem has a surrogate;
alternation where two objectives meet; proximal Newton or FISTA where the loss has kinks.

One step or a few a compiled call: the bar moves, Ctrl-C keeps what was done. Starting points are a vmap axis, or one
after the other: see `_each`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, random
from jax.flatten_util import ravel_pytree
from tqdm.auto import tqdm

from ..estimators import blocks
from ..estimators.base import Params, Problem
from . import curvature, proximal, quasi_newton

SOLVERS = ("newton", "lbfgs", "lbfgs_newton", "em", "squarem", "alternate", "proximal_newton", "fista")
PROXIMAL = ("proximal_newton", "fista")
NEWTON_LIMIT = 300
"""Most parameters for which every step forms the Hessian."""
TOLERANCE = 1e-7
"""Of the Newton decrement before the last step: the distance from the optimum there, in standard errors."""
HESSIAN_ROWS, HESSIAN_NUMBERS = 25, 2e6
"""Rows of a Hessian at once where rows times data are more than these numbers: what all rows leave between two products
is more than caches hold, and memory that is new to the process at every step."""
MAX_CHORDS = 10
"""Most steps by gradients after a Newton step: a Hessian costs many of them."""
LBFGS_TOLERANCE = 1e-9
"""Of the gradient, relative to the loss."""
LBFGS_STEPS = 10
"""L-BFGS steps a compiled call."""
BFGS_EVALUATIONS = 20
"""Evaluations of loss and gradient a compiled call of BFGS."""
BFGS_TOLERANCE = 1e-13
"""Of the squared decrement, relative to the loss."""
LBFGS_FIRST = 300
"""Most BFGS steps of "lbfgs_newton", where Newton's are affordable: these go on from there."""
FISTA_STEPS = 50
"""FISTA steps a compiled call."""
EM_NEWTON_STEPS = 5
"""Newton steps of one M-step; each of them lowers the surrogate, so the loss cannot rise."""


class Solution(NamedTuple):
    """What a solver leaves, of every starting point where there were several."""

    params: Params
    """With a leading axis of starting points."""
    losses: np.ndarray
    """``(starts, steps + 1)``, the loss at the start included."""
    gradient_norms: np.ndarray
    """The Newton decrement (in standard errors), or the gradient norm for L-BFGS; ``(starts, steps)``, one more where
    the last showed that the optimum was reached."""
    converged: np.ndarray
    """``(starts,)``"""
    steps: int
    interrupted: bool
    compile_seconds: float
    step_seconds: float
    derivatives: tuple[np.ndarray, np.ndarray] | None
    """Gradient ``(starts, D)`` and Hessian ``(starts, D, D)`` of Newton's last step, where that left every starting
    point where it was: so at `params`."""
    measure: str
    """What the last of `gradient_norms` is, in words."""


def _each(problem: Problem, one: Callable, *args: Any) -> Any:
    """`one` of every starting point, so many at once as the problem wants of its losses."""
    return blocks.each(lambda start: one(*start), args, problem.batch)


@jax.custom_jvp
def _or_infinite(value: Array) -> Array:
    """Infinity for what is not finite, so that a line search turns back."""
    return jax.lax.select(jax.lax.is_finite(value), value, jax.lax.full_like(value, jnp.inf))


@_or_infinite.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # as it is: a gradient that asked whether the value is finite would have to compute the value
    return _or_infinite(*primals), tangents[0]


def objective(problem: Problem) -> tuple[Array, Callable[[Array], Array], Callable[[Array], Params]]:
    """Initial values as a vector, the loss of a vector, and the way back to parameters."""
    z, unravel = ravel_pytree(problem.params)

    def f(z: Array) -> Array:
        return _or_infinite(problem.loss(unravel(curvature.off_zero(z)), random.key(0), problem.data)[0])

    return z, f, unravel


def longest(problem: Problem) -> int:
    """The longest axis of the data: what a loss leaves between two operations has as many numbers, or more."""
    return max((n for x in jax.tree.leaves(problem.data) for n in np.shape(x)), default=0)


def rows_at_once(problem: Problem, size: int) -> int | None:
    """Rows of a Hessian to compute at once; None: all of them."""
    return HESSIAN_ROWS if longest(problem) * size > HESSIAN_NUMBERS else None


@eqx.filter_jit
def _newton_steps(problem: Problem, z: Array, value: Array) -> tuple[Array, Array, Array, tuple[Array, Array]]:
    f, batch = objective(problem)[1], rows_at_once(problem, z.shape[1])

    def one(z: Array, value: Array) -> tuple[Array, Array, Array, tuple[Array, Array]]:
        return curvature.newton_step(f, z, value, max_chords=MAX_CHORDS, tolerance=TOLERANCE, batch=batch)

    return _each(problem, one, z, value)


@eqx.filter_jit
def _bfgs_start(z: Array) -> quasi_newton.State:
    return jax.vmap(quasi_newton.start)(z)


@eqx.filter_jit
def _bfgs_steps(
    problem: Problem, state: quasi_newton.State, evaluations: Array
) -> tuple[quasi_newton.State, Array, Array]:
    f = objective(problem)[1]

    def one(state: quasi_newton.State) -> tuple[quasi_newton.State, Array, Array]:
        state = quasi_newton.run(f, state, evaluations, BFGS_TOLERANCE)
        return state, quasi_newton.decrement(state), quasi_newton.converged(state)

    return _each(problem, one, state)


@eqx.filter_jit
def _lbfgs_start(problem: Problem, z: Array) -> Any:
    # strongly typed, as the steps return it: else the first step would be a program of its own
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), jax.vmap(optax.lbfgs().init)(z))


@eqx.filter_jit
def _lbfgs_steps(problem: Problem, z: Array, state: Any) -> tuple[Array, Array, Any, Array]:
    f = objective(problem)[1]
    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(f)

    def one(z: Array, state: Any) -> tuple[Array, Array, Any, Array]:
        def body(_: Any, carry: tuple) -> tuple:
            z, state = carry
            value, grad = value_and_grad(z, state=state)
            updates, state = solver.update(grad, state, z, value=value, grad=grad, value_fn=f)
            new = optax.apply_updates(z, updates)
            return jnp.where(jnp.all(jnp.isfinite(new)), new, z), state

        z, state = jax.lax.fori_loop(0, LBFGS_STEPS, body, (z, state))
        value, grad = jax.value_and_grad(f)(z)
        return z, value, state, jnp.linalg.norm(grad)

    return _each(problem, one, z, state)


def _decrement(f: Callable[[Array], Array], z: Array) -> Array:
    """The Newton decrement where the Hessian is affordable, else the gradient norm."""
    if z.shape[0] > NEWTON_LIMIT:
        return jnp.linalg.norm(jax.grad(f)(z))
    gradient, hessian = curvature.gradient_and_hessian(f, z)
    return jnp.linalg.norm(curvature.whitening(hessian)[0].T @ gradient)


def em_map(problem: Problem, z: Array) -> Array:
    """One EM step: the surrogate anchored at z, minimised from z, by Newton or (many parameters) by L-BFGS."""
    unravel = ravel_pytree(problem.params)[1]
    expected = problem.expect(unravel(curvature.off_zero(z)), problem.data)

    def q(new: Array) -> Array:
        value = problem.surrogate(unravel(curvature.off_zero(new)), expected, problem.data)
        return jnp.where(jnp.isfinite(value), value, jnp.inf)

    if z.shape[0] <= NEWTON_LIMIT:
        return curvature.newton(q, z, max_steps=EM_NEWTON_STEPS, tolerance=1e-9)[0]
    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(q)

    def body(_: Any, carry: tuple) -> tuple:
        z, state = carry
        value, grad = value_and_grad(z, state=state)
        updates, state = solver.update(grad, state, z, value=value, grad=grad, value_fn=q)
        new = optax.apply_updates(z, updates)
        return jnp.where(jnp.all(jnp.isfinite(new)), new, z), state

    found = jax.lax.fori_loop(0, LBFGS_STEPS, body, (z, solver.init(z)))[0]
    return jnp.where(q(found) <= q(z), found, z)


@eqx.filter_jit
def _em_steps(problem: Problem, z: Array, value: Array, accelerated: bool) -> tuple[Array, Array, Array]:
    """One EM step of every starting point; or two of them, an extrapolation along both, and a third from there.

    The extrapolation is taken where it lowers the loss further (Simple and Globally Convergent Methods for Accelerating
    the Convergence of Any EM Algorithm, scheme S3).
    """
    f = objective(problem)[1]

    def one(z: Array, value: Array) -> tuple[Array, Array, Array]:
        def step(points: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], Array]:
            """One EM step, the third of which starts from the extrapolation of the two before it."""
            before, last = points
            new = em_map(problem, last)
            r, v = last - before, new - 2 * last + before
            length = jnp.linalg.norm(r) / jnp.maximum(jnp.linalg.norm(v), 1e-300)
            far = before + 2 * length * r + length**2 * v
            return (last, jnp.where(i == 1, far, new)), new

        # a scan, so that the step is compiled once
        candidates = jax.lax.scan(step, (z, z), jnp.arange(3 if accelerated else 1))[1][-2:]
        values = jax.lax.map(f, candidates)
        values = jnp.where(jnp.isfinite(values), values, jnp.inf)
        new, new_value = candidates[jnp.argmin(values)], jnp.min(values)
        better = new_value < value  # rounding may raise it at the optimum
        new = jnp.where(better, new, z)
        return new, jnp.where(better, new_value, value), _decrement(f, new)

    return _each(problem, one, z, value)


@eqx.filter_jit
def _alternations(problem: Problem, z: Array) -> tuple[Array, Array, Array]:
    """One step of `em_map` of every starting point, whatever it does to the loss; and how far it went."""

    def one(z: Array) -> tuple[Array, Array, Array]:
        new = em_map(problem, z)
        return new, objective(problem)[1](new), jnp.max(jnp.abs(new - z))

    return jax.vmap(one)(z)


@eqx.filter_jit
def _proximal_values(problem: Problem, z: Array) -> tuple[Array, Array]:
    parts = proximal.composite(problem)[1]
    z = jax.vmap(parts.project)(z)
    return z, jax.vmap(lambda z: proximal.total(parts, z))(z)


@eqx.filter_jit
def _proximal_steps(problem: Problem, z: Array, value: Array) -> tuple[Array, Array, Array]:
    parts = proximal.composite(problem)[1]
    return jax.vmap(lambda z, v: proximal.newton_step(parts, z, v))(z, value)


@eqx.filter_jit
def _fista_start(problem: Problem, z: Array) -> Any:
    parts = proximal.composite(problem)[1]
    return jax.vmap(lambda z: proximal.fista_start(parts, z))(z)


@eqx.filter_jit
def _fista_steps(problem: Problem, state: Any) -> tuple[Array, Array, Any, Array]:
    parts = proximal.composite(problem)[1]
    body = lambda _, s: proximal.fista_step(parts, s)  # noqa: E731
    state = jax.vmap(lambda s: jax.lax.fori_loop(0, FISTA_STEPS, body, s))(state)
    return state.x, jax.vmap(lambda z: proximal.total(parts, z))(state.x), state, state.norm


def choose(problem: Problem, size: int, solver: str | None) -> str:
    """The solver that suits a problem of so many parameters, or the one that was asked for.

    Raises:
        ValueError: a solver that cannot work here.
    """
    if problem.nonsmooth:
        if solver not in (None, *PROXIMAL):
            raise ValueError(
                f"optimizer={solver!r} cannot handle the kinks of l1, group, fused or nonnegative: leave it to fit "
                f"(optimizer=None), or take one of {', '.join(PROXIMAL)}"
            )
        iterative = problem.penalties.iterative  # type: ignore[attr-defined]
        if iterative and solver == "proximal_newton":
            raise ValueError(
                'optimizer="proximal_newton" would take the iterated proximal step of fused along several axes '
                'thousands of times: leave the choice to fit (optimizer=None), or take "fista"'
            )
        return solver or ("proximal_newton" if size <= NEWTON_LIMIT and not iterative else "fista")
    if solver in PROXIMAL:
        raise ValueError(f"optimizer={solver!r} is for penalties with kinks: leave the choice to fit (optimizer=None)")
    if solver in ("em", "squarem") and problem.solver not in ("em", "squarem"):
        raise ValueError(f"optimizer={solver!r} goes with the estimator EM")
    if "alternate" in (solver, problem.solver) and solver not in (None, problem.solver):
        raise ValueError(
            f"optimizer={solver!r} does not go here: the estimator alternates between two objectives or it does not, "
            "and fit knows (optimizer=None)"
        )
    return solver or problem.solver or ("newton" if size <= NEWTON_LIMIT else "lbfgs")


def measure(solver: str) -> str:
    """What a solver judges its convergence by, in words."""
    return {"lbfgs": "gradient norm", "fista": "gradient norm", "alternate": "last step"}.get(
        solver, "Newton decrement"
    )


def solve(
    problem: Problem,
    starts: Params,
    losses: np.ndarray,
    max_steps: int,
    *,
    solver: str | None = None,
    progress_bar: bool = True,
    description: str = "",
    on_progress: Callable[[int, float], None] | None = None,
) -> Solution:
    """Minimise a deterministic problem from every starting point.

    Args:
        starts: parameters with a leading axis of starting points.
        losses: of the starting points.
        solver: one of `SOLVERS`; None takes what suits the problem (`choose`).
    """
    z = jax.vmap(lambda p: ravel_pytree(p)[0])(starts)
    unravel = ravel_pytree(problem.params)[1]
    solver = choose(problem, z.shape[1], solver)
    polish = solver == "lbfgs_newton" and z.shape[1] <= NEWTON_LIMIT
    if solver in ("lbfgs", "lbfgs_newton"):
        solver = "bfgs" if z.shape[1] <= NEWTON_LIMIT else "lbfgs"
    allowed = min(max_steps, LBFGS_FIRST) if polish else max_steps
    began = time.perf_counter()
    state: Any = None
    derivatives, moved = None, True
    value = jnp.asarray(losses)
    if solver in PROXIMAL:
        z, value = _proximal_values(problem, z)
    elif solver == "bfgs":
        state = _bfgs_steps(problem, _bfgs_start(z), jax.device_put(1))[0]
        value = state.value
    trace, norms = [np.asarray(value)], []
    converged = np.zeros(len(z), bool)
    interrupted, steps, compile_seconds = False, 0, 0.0
    if solver in ("lbfgs", "fista"):
        state = {"lbfgs": _lbfgs_start, "fista": _fista_start}[solver](problem, z)
    # no total: how many steps it takes is not known before
    with tqdm(desc=description, disable=not progress_bar, unit="step") as bar:
        try:
            while steps < allowed and not converged.all():
                if solver in ("newton", "proximal_newton"):
                    if solver == "newton":
                        new, new_value, norm, derivatives = _newton_steps(problem, z, value)
                        moved = not np.array_equal(new, z)
                    else:
                        new, new_value, norm = _proximal_steps(problem, z, value)
                        moved = True
                    # at rounding error of the loss nothing more can be gained
                    stalled = ~np.asarray(value - new_value > 1e-13 * jnp.abs(value))
                    converged = (np.asarray(norm) < TOLERANCE) | (stalled & (np.asarray(norm) < 1e-3))
                    z, value = new, new_value
                    # a look at the curvature that finds the optimum reached is no step
                    taken, stuck = int(moved or not converged.all() or not steps), stalled.all()
                elif solver in ("em", "squarem"):
                    new, new_value, norm = _em_steps(problem, z, value, solver == "squarem")
                    stalled = ~np.asarray(new_value < value)
                    converged = (np.asarray(norm) < TOLERANCE) | (stalled & (np.asarray(norm) < 1e-3))
                    z, value = new, new_value
                    taken, stuck = 1, stalled.all()
                elif solver == "alternate":
                    z, value, norm = _alternations(problem, z)
                    converged = np.asarray(norm) < 1e-5 * (1 + np.max(np.abs(np.asarray(z)), 1))
                    taken, stuck = 1, np.bool_(False)
                elif solver == "bfgs":
                    before = np.max(np.asarray(state.steps))
                    most = jax.device_put(min(BFGS_EVALUATIONS, allowed - steps))
                    state, norm, reached = _bfgs_steps(problem, state, most)
                    z, value, converged = state.z, state.value, np.asarray(reached)
                    taken, stuck = (
                        max(int(np.max(np.asarray(state.steps)) - before), 1),
                        np.all(np.asarray(state.stuck)),
                    )
                elif solver == "fista":
                    new, new_value, state, norm = _fista_steps(problem, state)
                    converged = np.asarray(norm) <= LBFGS_TOLERANCE * (1 + np.abs(np.asarray(new_value)))
                    # momentum may raise the loss for a while: only a point that no longer moves is stuck
                    stuck = np.all(np.asarray(new) == np.asarray(z))
                    z, value = new, new_value
                    taken = FISTA_STEPS
                else:
                    new, new_value, state, norm = _lbfgs_steps(problem, z, state)
                    stalled = np.asarray(value - new_value) <= 1e-12 * np.abs(np.asarray(value))
                    converged = np.asarray(norm) <= LBFGS_TOLERANCE * (1 + np.abs(np.asarray(new_value)))
                    converged |= stalled & (np.asarray(norm) <= 1e-5 * (1 + np.abs(np.asarray(new_value))))
                    z, value = new, new_value
                    taken, stuck = LBFGS_STEPS, stalled.all()
                trace += [np.asarray(value)] * taken
                norms += [np.asarray(norm)] * max(taken, 1)
                if steps == 0:
                    compile_seconds = time.perf_counter() - began
                steps += taken
                best = float(np.min(trace[-1]))
                bar.update(taken)
                bar.set_postfix_str(f"loss {best:.6g}, {norms[-1].min():.1e} from the optimum", refresh=False)
                if on_progress is not None:
                    on_progress(min(steps, max_steps), best)
                if stuck:
                    break
        except KeyboardInterrupt:
            interrupted = True
    found = Solution(
        params=jax.vmap(unravel)(z),
        losses=np.stack(trace, 1),
        gradient_norms=np.stack(norms, 1) if norms else np.zeros((len(z), 0)),
        converged=converged,
        steps=steps,
        interrupted=interrupted,
        compile_seconds=compile_seconds,
        step_seconds=time.perf_counter() - began - compile_seconds,
        derivatives=None if moved else jax.tree.map(np.asarray, derivatives),
        measure=measure(solver),
    )
    if not polish or interrupted or converged.all() or steps >= max_steps:
        return found
    more = solve(problem, found.params, found.losses[:, -1], max_steps - steps, solver="newton",
                 progress_bar=progress_bar, description=description, on_progress=on_progress)  # fmt: skip
    return more._replace(
        losses=np.concatenate([found.losses, more.losses[:, 1:]], 1),
        gradient_norms=np.concatenate([found.gradient_norms, more.gradient_norms], 1),
        steps=found.steps + more.steps, compile_seconds=found.compile_seconds + more.compile_seconds,
        step_seconds=found.step_seconds + more.step_seconds,
    )  # fmt: skip
