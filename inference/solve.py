"""Solvers for exact losses: Newton where the Hessian is affordable, L-BFGS above, always in double precision.

One step a compiled call: the bar moves, Ctrl-C keeps what was done. Starting points are a vmap axis.
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

from ..estimators.base import Params, Problem
from . import curvature

SOLVERS = ("newton", "lbfgs")
NEWTON_LIMIT = 300
"""Most parameters for which every step forms the Hessian."""
TOLERANCE = 1e-7
"""Of the Newton decrement: the distance from the optimum in standard errors."""
LBFGS_TOLERANCE = 1e-9
"""Of the gradient, relative to the loss."""
LBFGS_STEPS = 10
"""L-BFGS steps a compiled call."""


class Solution(NamedTuple):
    """What a solver leaves, of every starting point where there were several."""

    params: Params
    """With a leading axis of starting points."""
    losses: np.ndarray
    """``(starts, steps + 1)``, the loss at the start included."""
    gradient_norms: np.ndarray
    """The Newton decrement (in standard errors), or the gradient norm for L-BFGS; ``(starts, steps)``."""
    converged: np.ndarray
    """``(starts,)``"""
    steps: int
    interrupted: bool
    compile_seconds: float
    step_seconds: float


def objective(problem: Problem) -> tuple[Array, Callable[[Array], Array], Callable[[Array], Params]]:
    """Initial values as a vector, the loss of a vector, and the way back to parameters."""
    z, unravel = ravel_pytree(problem.params)

    def f(z: Array) -> Array:
        value = problem.loss(unravel(z), random.key(0), problem.data)[0]
        return jnp.where(jnp.isfinite(value), value, jnp.inf)  # a line search turns back

    return z, f, unravel


@eqx.filter_jit
def _values(problem: Problem, z: Array) -> Array:
    return jax.vmap(objective(problem)[1])(z)


@eqx.filter_jit
def _newton_steps(problem: Problem, z: Array, value: Array) -> tuple[Array, Array, Array]:
    f = objective(problem)[1]
    new, new_value, decrement, _ = jax.vmap(lambda z, v: curvature.newton_step(f, z, v))(z, value)
    return new, new_value, decrement


@eqx.filter_jit
def _lbfgs_start(problem: Problem, z: Array) -> Any:
    return jax.vmap(optax.lbfgs().init)(z)


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

    return jax.vmap(one)(z, state)


def solve(
    problem: Problem,
    starts: Params,
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
        solver: one of `SOLVERS`; None takes Newton up to `NEWTON_LIMIT` parameters.
    """
    z = jax.vmap(lambda p: ravel_pytree(p)[0])(starts)
    unravel = ravel_pytree(problem.params)[1]
    if solver is None:
        solver = "newton" if z.shape[1] <= NEWTON_LIMIT else "lbfgs"
    began = time.perf_counter()
    value = _values(problem, z)
    losses, norms = [np.asarray(value)], []
    converged = np.zeros(len(z), bool)
    interrupted, steps, compile_seconds = False, 0, 0.0
    state = _lbfgs_start(problem, z) if solver == "lbfgs" else None
    # no total: how many steps it takes is not known before
    with tqdm(desc=description, disable=not progress_bar, unit="step") as bar:
        try:
            while steps < max_steps and not converged.all():
                if solver == "newton":
                    new, new_value, norm = _newton_steps(problem, z, value)
                    stalled = ~np.asarray(new_value < value)
                    # at rounding error of the loss nothing more can be gained
                    converged = (np.asarray(norm) < TOLERANCE) | (stalled & (np.asarray(norm) < 1e-3))
                    z, value = new, new_value
                    taken, stuck = 1, stalled.all()
                else:
                    new, new_value, state, norm = _lbfgs_steps(problem, z, state)
                    stalled = np.asarray(value - new_value) <= 1e-14 * np.abs(np.asarray(value))
                    converged = np.asarray(norm) <= LBFGS_TOLERANCE * (1 + np.abs(np.asarray(new_value)))
                    converged |= stalled & (np.asarray(norm) <= 1e-5 * (1 + np.abs(np.asarray(new_value))))
                    z, value = new, new_value
                    taken, stuck = LBFGS_STEPS, stalled.all()
                losses += [np.asarray(value)] * taken
                norms += [np.asarray(norm)] * taken
                if steps == 0:
                    compile_seconds = time.perf_counter() - began
                steps += taken
                best = float(np.min(losses[-1]))
                bar.update(taken)
                bar.set_postfix_str(f"loss {best:.6g}, {norms[-1].min():.1e} from the optimum", refresh=False)
                if on_progress is not None:
                    on_progress(min(steps, max_steps), best)
                if stuck:
                    break
        except KeyboardInterrupt:
            interrupted = True
    return Solution(
        params=jax.vmap(unravel)(z),
        losses=np.stack(losses, 1),
        gradient_norms=np.stack(norms, 1) if norms else np.zeros((len(z), 0)),
        converged=converged,
        steps=steps,
        interrupted=interrupted,
        compile_seconds=compile_seconds,
        step_seconds=time.perf_counter() - began - compile_seconds,
    )
