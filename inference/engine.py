"""The step loop: many steps in one compiled call, a progress bar between calls, nothing lost when a step goes bad.

`init`, `update` and `run` have the habits of `numpyro.infer.SVI`: pure functions of a state, to be jitted, vmapped or
scanned by whoever wants the loop for themselves.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, random
from numpyro import optim as numpyro_optim
from tqdm.auto import tqdm

from ..estimators import blocks
from ..estimators.base import Metrics, Params, Problem

BUFFER = 4096
"""Most steps in one compiled call; losses of a call come back in a buffer of this length."""
CALL_SECONDS = 0.2
"""How long one compiled call should take: the bar moves, and Ctrl-C is heard, this often."""


class State(NamedTuple):
    """State of an optimisation. With restarts every leaf has a leading axis."""

    params: Params
    opt_state: Any
    rng_key: Array
    memory: Any = None
    """What a stateful loss remembers (`Problem.memory`)."""


class Outcome(NamedTuple):
    state: State
    losses: np.ndarray
    """``(steps,)`` or ``(restarts, steps)``; NaN from the step on at which a restart went bad."""
    metrics: dict[str, np.ndarray]
    steps: int
    interrupted: bool
    went_bad: bool
    """The last loss (of every restart) was not finite; the state is the last one with finite parameters."""
    compile_seconds: float
    """Time to the first step: compilation, where there was one."""
    step_seconds: float
    """Time of the other steps."""


@lru_cache(maxsize=64)
def default_optimizer(learning_rate: float, num_steps: int, name: str = "adam") -> optax.GradientTransformation:
    """Adam (or another first-order method of optax, by name) with the step size brought to zero along a cosine.

    Cached, because two optimisers built alike are different static arguments: a second fit would compile again.
    """
    schedule = optax.cosine_decay_schedule(learning_rate, num_steps)
    return getattr(optax, name)(schedule)


@lru_cache(maxsize=64)
def as_optax(optimizer: Any) -> optax.GradientTransformation:
    """An optax transformation as it is; a `numpyro.optim` optimiser behind the same two functions.

    Raises:
        TypeError: neither of the two.
    """
    if isinstance(optimizer, optax.GradientTransformation):
        return optimizer
    if not isinstance(optimizer, numpyro_optim._NumPyroOptim) or isinstance(optimizer, numpyro_optim.Minimize):
        hint = f"; call it first: {optimizer.__name__}(...)" if callable(optimizer) else ""
        raise TypeError(
            "optimizer must be an optax.GradientTransformation, a first-order optimizer of numpyro.optim or a name "
            f"like 'adam', got {type(optimizer).__name__}{hint}"
        )

    def update(grads: Params, state: Any, params: Params | None = None, *, value: Any = None, **_: Any) -> tuple:
        new = optimizer.update(grads, state, value=value)
        return jax.tree.map(jnp.subtract, optimizer.get_params(new), params), new

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


def init(problem: Problem, optimizer: optax.GradientTransformation, params: Params, rng_key: Array) -> State:
    """The state before the first step."""
    return State(params, optimizer.init(params), rng_key, problem.memory)


def update(problem: Problem, optimizer: optax.GradientTransformation, state: State) -> tuple[State, Array, Metrics]:
    """One step: the new state, and the loss and metrics at the old one."""
    rng_key, step_key = random.split(state.rng_key)
    memory = state.memory
    if memory is not None:
        step_key, refresh_key = random.split(step_key)
        memory = problem.refresh(memory, jax.lax.stop_gradient(state.params), refresh_key)
        problem = problem.with_memory(memory)
    (loss, metrics), grads = jax.value_and_grad(problem.loss, has_aux=True)(state.params, step_key, problem.data)
    # the value is for those that follow it, like optax.contrib.reduce_on_plateau; the others ignore it
    updates, opt_state = optax.with_extra_args_support(optimizer).update(
        grads, state.opt_state, state.params, value=loss
    )
    return State(optax.apply_updates(state.params, updates), opt_state, rng_key, memory), loss, metrics


@eqx.filter_jit
def _call(problem: Problem, optimizer: Any, state: State, num_steps: Array) -> tuple[State, Array, Metrics, Array]:
    """Up to `num_steps` steps, ended early once no loss is finite.

    The number of steps is traced, so that no length compiles anew. Nothing is kept for the case that a step goes bad:
    the caller has the state before the call, and steps are deterministic.
    """

    def one(state: State) -> tuple[State, Array, Metrics]:
        return update(problem, optimizer, state)

    def step(state: State) -> tuple[State, Array, Metrics]:
        return blocks.each(one, state, problem.batch) if state.rng_key.ndim else one(state)

    _, loss, metrics = eqx.filter_eval_shape(step, state)
    logs = jax.tree.map(lambda x: jnp.full((BUFFER, *x.shape), jnp.nan, x.dtype), (loss, metrics))

    def body(carry: tuple) -> tuple:
        i, state, _, logs = carry
        state, loss, metrics = step(state)
        logs = jax.tree.map(lambda buffer, x: buffer.at[i].set(x), logs, (loss, metrics))
        return i + 1, state, jnp.any(jnp.isfinite(loss)), logs

    def going_on(carry: tuple) -> Array:
        i, _, ok, _ = carry
        return (i < num_steps) & ok

    i, state, _, (losses, logged) = jax.lax.while_loop(
        going_on, body, (jnp.zeros((), jnp.int32), state, jnp.array(True), logs)
    )
    return state, losses, logged, i


def _is_finite(tree: Any) -> bool:
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return all(bool(jnp.all(jnp.isfinite(x))) for x in leaves)


def _before_the_bad_step(problem: Problem, optimizer: Any, state: State, taken: int) -> tuple[State, int]:
    """The last state with finite parameters on the way from `state`, whose last of `taken` losses was not finite."""
    for steps in (taken - 1, taken - 2):
        if steps < 0:
            break
        again = _call(problem, optimizer, state, jnp.asarray(steps, jnp.int32))[0]
        if _is_finite(again.params):
            return again, steps
    return state, 0


def run(
    problem: Problem,
    optimizer: optax.GradientTransformation,
    state: State,
    num_steps: int,
    *,
    progress_bar: bool = True,
    description: str = "",
    on_progress: Callable[[int, float], None] | None = None,
) -> Outcome:
    """Take `num_steps` steps from `state`. Ctrl-C ends it early and keeps what was done.

    Args:
        on_progress: called between compiled calls with the steps done and the mean loss of the last call.
    """
    losses: list[np.ndarray] = []
    logs: list[Metrics] = []
    done, interrupted, went_bad = 0, False, False
    began = time.perf_counter()
    compile_seconds, chunk = 0.0, 1
    with tqdm(total=num_steps, desc=description, disable=not progress_bar, leave=True, unit="step") as bar:
        try:
            while done < num_steps:
                size = min(chunk, num_steps - done, BUFFER)
                call_began = time.perf_counter()
                before = state
                state, loss, logged, count = _call(problem, optimizer, state, jnp.asarray(size, jnp.int32))
                taken = int(count)
                spent = time.perf_counter() - call_began
                if done == 0:
                    compile_seconds = spent
                    chunk = 8
                else:
                    # Towards the aimed-at length, not in one jump: the first timed call may be a slow one.
                    chunk = int(np.clip(size * CALL_SECONDS / max(spent, 1e-6), 1, 8 * chunk))
                losses.append(np.asarray(loss)[:taken])
                logs.append(jax.tree.map(lambda x, n=taken: np.asarray(x)[:n], logged))
                done += taken
                recent = float(np.nanmean(losses[-1])) if np.isfinite(losses[-1]).any() else float("nan")
                bar.update(taken)
                bar.set_postfix_str(f"loss {recent:.4g}", refresh=False)
                if on_progress is not None:
                    on_progress(done, recent)
                if not np.isfinite(losses[-1][-1]).any():
                    state, _ = _before_the_bad_step(problem, optimizer, before, taken)
                    went_bad = True
                    break
        except KeyboardInterrupt:
            interrupted = True
    total = time.perf_counter() - began
    joined = np.concatenate(losses) if losses else np.zeros(0)
    metrics = {k: np.concatenate([log[k] for log in logs]) for k in (logs[0] if logs else {})}
    return Outcome(
        state=state,
        losses=np.moveaxis(joined, 0, -1),
        metrics={k: np.moveaxis(v, 0, -1) for k, v in metrics.items()},
        steps=done,
        interrupted=interrupted,
        went_bad=went_bad,
        compile_seconds=compile_seconds,
        step_seconds=total - compile_seconds,
    )
