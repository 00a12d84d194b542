"""`fit`: one model, any estimator, one call."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, random

from .. import estimators
from ..estimators import blocks
from ..estimators.base import Estimator, Params, Problem
from ..estimators.checks import check_counts
from ..estimators.guides import WhitenedNormal
from . import blas, engine
from . import solve as solvers
from .data import check_estimator, check_model, nearest, prepare
from .guides import resolve
from .result import FitResult, in_session_precision
from .start import Start
from .unrolled import unrolled

DEFAULT_STEPS = 1000
WHITENED_LEARNING_RATE = 0.02
"""In units of posterior standard deviations: the guide starts at the mode and has a fraction of one to go."""
GUIDE_LEARNING_RATE = 0.01


def default_estimator() -> Estimator:
    """What `fit` takes when the user names none."""
    return estimators.ELBO(num_particles=16)


def fit(
    model: Callable,
    estimator: Estimator | None = None,
    data: Mapping[str, Any] | None = None,
    *,
    guide: Any = None,
    start: Any = "laplace",
    optimizer: Any = None,
    learning_rate: float | None = None,
    num_steps: int = DEFAULT_STEPS,
    seed: int = 0,
    rng_key: Array | None = None,
    num_restarts: int = 1,
    progress_bar: bool = True,
    on_progress: Callable[[int, float], None] | None = None,
) -> FitResult:
    """Fit a NumPyro model.

    Args:
        model: NumPyro model, called as ``model(**data)``.
        estimator: what to optimise (`estimax.estimators`); None takes a sound default.
        data: the model's keyword arguments: arrays, numbers, dicts of them.
        guide: None starts a Gaussian at the posterior mode in whitened coordinates, so that unscaled models just
            work; else an AutoGuide class or instance, or a guide function of the model's arguments.
        start: "laplace", "pathfinder", "prior", a dict of values of latent sites, or a `Start` of another fit.
        optimizer: for exact losses (MLE, MAP, Laplace) "newton", "lbfgs" or, for mixtures, the one after the other,
            "lbfgs_newton", in double precision; None takes what suits: Newton up to 300 parameters. For EM "squarem"
            (accelerated; None) or "em" (plain); under penalties with kinks "proximal_newton" (None, up to 300
            parameters) or "fista". Else, and for exact losses too, an optax transformation, an optimizer of
            numpyro.optim, or the name of one of optax ("adam", "rmsprop", "sgd", ...) with a cosine schedule; None is
            "adam".
        learning_rate: initial step size of a named optimizer; None is 0.02 with the default guide, else 0.01.
        num_steps: of the optimiser.
        seed, rng_key: the same seed gives the same answer; `rng_key` takes precedence.
        num_restarts: independent runs in one program; the best by its final objective is returned, all
            are kept in ``metrics``. The first starts where a single run does, the others are jittered.
        progress_bar: show one.
        on_progress: called between compiled calls with the steps done and the recent mean loss.

    Returns:
        `FitResult`. Ctrl-C returns what was fitted so far, with status "interrupted".

    Raises:
        TypeError, ValueError: a model, data, guide or option that cannot work, named.
        FloatingPointError: the loss is not finite before the first step, naming the site. Later it stops the run
            with a warning and keeps the last finite parameters.
    """
    began = time.perf_counter()
    check_counts(num_steps=num_steps, num_restarts=num_restarts)
    check_counts(least=0, seed=seed)
    estimator = default_estimator() if estimator is None else estimator
    check_estimator(estimator)
    key = random.key(seed) if rng_key is None else rng_key
    key_init, key_run = random.split(key)
    if estimator.exact and (optimizer is None or optimizer in solvers.SOLVERS):
        return _solve(model, estimator, data, start, optimizer, num_steps, key_init, num_restarts, progress_bar,
                      on_progress, began)  # fmt: skip
    prepared = prepare(model, data)
    theta = check_model(model, prepared)
    found: Start | None = None
    initial: dict[str, Any] = {}
    if estimator.needs_guide:
        guide, found, initial = resolve(guide, model, prepared, theta, start, seed)
    problem = estimator.problem(key_init, model, guide, prepared)
    if not estimator.needs_guide and isinstance(start, Mapping):
        problem = _starting_at(problem, problem.unconstrain(dict(start)))
    if problem.nonsmooth:
        raise ValueError(
            f"optimizer={optimizer!r} cannot handle the kinks of l1, group, fused or nonnegative: leave it to fit "
            f"(optimizer=None), or take one of {', '.join(solvers.PROXIMAL)}"
        )
    if initial:
        problem = _with_initial(problem, initial)
    transformation = _optimizer(optimizer, learning_rate, guide, num_steps, estimator.exact)
    return _run(problem, transformation, key_init, key_run, num_steps, num_restarts, progress_bar, on_progress,
                estimator, model, prepared, guide, found, began)  # fmt: skip


def resume(result: FitResult, num_steps: int, *, progress_bar: bool = True, seed: int | None = None,
           optimizer: Any = None, learning_rate: float | None = None) -> FitResult:  # fmt: skip
    """See `FitResult.resume`: the schedule of the step size begins anew."""
    began = time.perf_counter()
    check_counts(num_steps=num_steps)
    if result.estimator.exact and (optimizer is None or optimizer in solvers.SOLVERS):
        raise ValueError("an exact loss is solved to the end: fit again with more num_steps or other starting points")
    key = random.fold_in(random.key(0 if seed is None else seed), result.num_steps)
    problem = replace(result.problem, params=result.unconstrained)
    transformation = _optimizer(optimizer, learning_rate, result.guide, num_steps)
    more = _run(problem, transformation, key, key, num_steps, 1, progress_bar, None, result.estimator, result.model,
                result.data, result.guide, result.start, began)  # fmt: skip
    before = result.metrics if result.losses.ndim == 1 and all(v.ndim == 1 for v in result.metrics.values()) else {}
    return replace(
        more,
        problem=result.problem.with_memory(more.problem.memory),
        losses=np.concatenate([result.losses, more.losses]),
        metrics={k: np.concatenate([before[k], v]) for k, v in more.metrics.items() if k in before} or more.metrics,
        num_steps=result.num_steps + more.num_steps,
        seconds=result.seconds + more.seconds,
    )


def _solve(model: Callable, estimator: Estimator, data: Any, start: Any, solver: str | None, num_steps: int, key: Array,
           num_restarts: int, progress_bar: bool, on_progress: Any, began: float) -> FitResult:  # fmt: skip
    """Minimise an exact loss in double precision, whatever the session's default: rounding would drown curvature."""
    with jax.enable_x64(True):
        prepared = prepare(model, data)
        check_model(model, prepared)
        problem = estimator.problem(key, model, None, prepared)
        given = start.items() if isinstance(start, Mapping) else ()
        if given:
            problem = replace(problem, params={**problem.params, **problem.unconstrain(dict(given))})
        with blas.leaves_room(problem):
            starts, losses = _feasible_starts(problem, key, num_restarts, bool(given))
            solution = solvers.solve(
                problem, starts, losses, num_steps, solver=solver, progress_bar=progress_bar,
                description=type(estimator).__name__, on_progress=on_progress,
            )  # fmt: skip
        best = int(np.argmin(np.where(np.isfinite(solution.losses[:, -1]), solution.losses[:, -1], np.inf)))
        final = jax.tree.map(lambda x: x[best], solution.params)
        problem = problem.finish(final)
        params = {k: jax.tree.map(np.asarray, v) for k, v in _constrained(problem, final).items()}
        status, message = _judge(solution, best, num_steps, solution.measure)
        metrics = {"newton_decrement": solution.gradient_norms[best]}
        if num_restarts > 1:
            metrics = {"loss": solution.losses, "newton_decrement": solution.gradient_norms}
        if hasattr(problem, "laplace_log_evidence"):
            metrics["laplace_log_evidence"] = np.asarray(problem.laplace_log_evidence(final))[None]
    if status == "not converged":
        warnings.warn(message, RuntimeWarning, stacklevel=3)
    steps = solution.steps
    result = FitResult(
        params=params, losses=solution.losses[best], metrics=metrics, estimator=estimator, model=model,
        data=in_session_precision(prepared), guide=None, seconds=time.perf_counter() - began, num_steps=steps,
        steps_per_second=(steps - 1) / solution.step_seconds if steps > 1 and solution.step_seconds > 0 else 0.0,
        status=status, message=message, start=None, problem=problem, unconstrained=final,
    )  # fmt: skip
    if solution.derivatives is not None:
        result._cache["derivatives"] = tuple(x[best] for x in solution.derivatives)
    return result


def _feasible_starts(problem: Problem, key: Array, num_restarts: int, given: bool) -> tuple[Params, np.ndarray]:
    """Starting points with a finite loss, and that: the problem's own, and the best of its other candidates.

    What the user gave is where a single run starts; else it starts at the candidate of lowest loss.
    """
    own = jax.tree.map(lambda x: jnp.asarray(x)[None], problem.project(problem.params))
    if given and num_restarts == 1 and np.isfinite(losses := _losses(problem, own)).all():
        return own, losses
    size = sum(np.size(x) for x in jax.tree.leaves(problem.data))
    most = FEW_CANDIDATES if problem.batch < FEW_CANDIDATES else MANY_CANDIDATES
    tries = max(4 * num_restarts, int(np.clip(CANDIDATE_NUMBERS / max(size, 1), FEW_CANDIDATES, most)))
    many = _candidates(problem, key, tries)
    losses = _losses(problem, many)
    good = np.flatnonzero(np.isfinite(losses))
    if not good.size:
        with np.errstate(all="ignore"):
            why = problem.explain(problem.params, random.key(0), problem.data)
        raise FloatingPointError(
            f"the loss is not finite at any of {tries} starting points: {why}. Check the data, or give start= a dict "
            "of feasible values of parameters."
        )
    best = good[np.argsort(losses[good], kind="stable")]
    if given and np.isfinite(losses[0]):
        best = np.concatenate([[0], best[best != 0]])
    best = best[:num_restarts]  # fewer than asked for where the others are infeasible
    return jax.tree.map(lambda x: x[best], many), losses[best]


MANY_CANDIDATES = 256
FEW_CANDIDATES = 4
CANDIDATE_NUMBERS = 1e6
"""Starting points times numbers in the data: so many are looked at."""
LOSS_NUMBERS = 100_000
"""Losses at once times data: what more of them leave between two operations is more than caches hold."""


@eqx.filter_jit
def _candidates(problem: Problem, key: Array, num: int) -> Params:
    """The problem's own point first, then its candidates, else points jittered around its own."""
    own = jax.tree.map(lambda x: jnp.asarray(x)[None], problem.project(problem.params))
    others = problem.candidates(random.fold_in(key, 2), num - 1)
    if others is None:
        return jax.vmap(problem.project)(_starting_points(problem, random.split(key, num)))
    joined = jax.tree.map(lambda a, b: jnp.concatenate([a, b.astype(a.dtype)]), own, others)
    return jax.vmap(problem.project)(joined)


@eqx.filter_jit
def _compiled_losses(problem: Problem, starts: Params) -> Array:
    most = min(problem.batch, max(1, LOSS_NUMBERS // max(solvers.longest(problem), 1)))
    return blocks.each(lambda p: problem.loss(p, random.key(0), problem.data)[0], starts, most)


@eqx.filter_jit
def _constrained(problem: Problem, params: Params) -> dict[str, Any]:
    return problem.constrain(params)  # type: ignore[return-value]


def _losses(problem: Problem, starts: Params) -> np.ndarray:
    return np.asarray(_compiled_losses(problem, starts))


def _judge(solution: solvers.Solution, best: int, num_steps: int, measure: str) -> tuple[str, str]:
    """Status and, in words, how well the best starting point converged."""
    norm = solution.gradient_norms[best, -1] if solution.gradient_norms.size else np.nan
    losses = solution.losses[:, -1]
    text = f"{solution.steps} iterations, {measure} {norm:.1e}"
    if len(losses) > 1:
        agree = int(np.sum(np.abs(losses - losses[best]) < 1e-3 * (1 + abs(losses[best]) * 1e-6)))
        text += f", {agree} of {len(losses)} starting points end there"
    if solution.interrupted:
        return "interrupted", f"interrupted after {text}"
    if solution.converged[best]:
        return "finished", f"converged: {text}"
    limit = f"after all {num_steps} steps allowed" if solution.steps >= num_steps else "no step lowers the loss further"
    return "not converged", (
        f"not converged ({limit}): {text}. The likelihood may have no maximum, or a kink; try other starting points "
        "(num_restarts=10), or see summary() for what it says of the curvature"
    )


def _run(problem: Problem, transformation: Any, key_init: Array, key_run: Array, num_steps: int, num_restarts: int,
         progress_bar: bool, on_progress: Any, estimator: Estimator, model: Callable, data: dict, guide: Any,
         found: Any, began: float) -> FitResult:  # fmt: skip
    if num_restarts > 1 and not problem.loss_tells:
        raise ValueError(
            f"num_restarts={num_restarts} takes the run of lowest loss, and values of the loss of "
            f"{type(estimator).__name__} mean nothing: fit several seeds, one by one, and compare their estimates"
        )
    if num_restarts == 1:
        state = engine.init(problem, transformation, problem.params, key_run)
    else:
        params = _starting_points(problem, random.split(key_init, num_restarts))
        state = jax.vmap(lambda p, k: engine.init(problem, transformation, p, k))(
            params, random.split(key_run, num_restarts)
        )

        def step(keys: Array) -> Any:
            return jax.vmap(lambda s: engine.update(problem, transformation, s))(state._replace(rng_key=keys))

        state = state._replace(rng_key=unrolled(state.rng_key, (problem, transformation, num_restarts), step))
    description = type(estimator).__name__
    with blas.leaves_room(problem):
        outcome = engine.run(
            problem, transformation, state, num_steps, progress_bar=progress_bar, description=description,
            on_progress=on_progress,
        )  # fmt: skip
    final, losses, metrics = outcome.state, outcome.losses, outcome.metrics
    if num_restarts > 1:
        losses = losses.reshape(num_restarts, -1)  # of no step at all where interrupted that early
        best = _best(losses)
        metrics = {"loss": losses, **metrics}
        losses = losses[best]
        final = jax.tree.map(lambda x: x[best], final)
    status, message = "finished", ""
    if outcome.interrupted:
        status, message = "interrupted", f"interrupted after {outcome.steps} of {num_steps} steps"
    elif outcome.went_bad or not np.isfinite(losses[-1:]).all():
        status, message = "non-finite", _explain(problem, final, losses)
        warnings.warn(message, RuntimeWarning, stacklevel=3)
    rate = (outcome.steps - 1) / outcome.step_seconds if outcome.steps > 1 and outcome.step_seconds > 0 else 0.0
    return FitResult(
        params={k: jax.tree.map(np.asarray, v) for k, v in _constrained(problem, final.params).items()},
        losses=losses,
        metrics=metrics,
        estimator=estimator,
        model=model,
        data=data,
        guide=guide,
        seconds=time.perf_counter() - began,
        num_steps=outcome.steps,
        steps_per_second=rate,
        status=status,
        message=message,
        start=found,
        problem=problem if final.memory is None else problem.with_memory(final.memory),
        unconstrained=final.params,
    )


def _explain(problem: Problem, final: engine.State, losses: np.ndarray) -> str:
    """Say what went bad. The state stands before the bad step, with the key that produced it."""
    step = int(np.argmax(~np.isfinite(losses))) if not np.isfinite(losses).all() else len(losses) - 1
    why = problem.explain(final.params, random.split(final.rng_key)[1], problem.data)
    if step == 0:
        raise FloatingPointError(
            f"the loss is not finite before the first step: {why}. Check the data and the initial values, or give "
            "start= a dict of feasible values."
        )
    return (
        f"the loss stopped being finite at step {step}: {why}. The last finite parameters are kept; "
        "a smaller learning_rate often helps."
    )


def _optimizer(optimizer: Any, learning_rate: float | None, guide: Any, num_steps: int, exact: bool = False) -> Any:
    if optimizer is not None and not isinstance(optimizer, str):
        if learning_rate is not None:
            raise ValueError("learning_rate goes with a named optimizer; yours has its own")
        return engine.as_optax(optimizer)
    if learning_rate is None:
        learning_rate = WHITENED_LEARNING_RATE if isinstance(guide, WhitenedNormal) else GUIDE_LEARNING_RATE
    if not learning_rate > 0:
        raise ValueError(f"learning_rate must be positive, got {learning_rate}")
    name = optimizer or "adam"
    try:
        made: Any = engine.default_optimizer(float(learning_rate), int(num_steps), name)
    except (AttributeError, TypeError):  # no such name, or one that wants more than a step size
        made = None
    if not isinstance(made, optax.GradientTransformation):
        known = (*solvers.SOLVERS, *_OPTIMIZERS) if exact else _OPTIMIZERS
        raise ValueError(f"there is no optimizer {name!r}; {nearest(name.lower(), known)}")
    return made


_OPTIMIZERS = ("adam", "adamw", "adabelief", "amsgrad", "lion", "nadam", "radam", "rmsprop", "sgd", "yogi")


def _with_initial(problem: Problem, initial: dict[str, Any]) -> Problem:
    """The problem with given constrained values of some parameters as its initial ones."""
    return _starting_at(problem, {n: problem.transforms[n].inv(v) for n, v in initial.items()})  # type: ignore[attr-defined]


def _starting_at(problem: Problem, unconstrained: dict[str, Any]) -> Problem:
    # Of the dtypes that the problem has, and not weakly typed: else the step would compile once more.
    params = {
        n: jax.tree.map(lambda new, old: jax.lax.convert_element_type(new, old.dtype), unconstrained.get(n, v), v)
        for n, v in problem.params.items()
    }
    return replace(problem, params=params)  # type: ignore[type-var]


@eqx.filter_jit
def _starting_points(problem: Problem, keys: Array) -> Params:
    """One starting point a key. Parameters whose own initial values are random differ already; the others are
    jittered by a normal of sd 0.5 in unconstrained space, all but the first point's."""
    drawn = jax.vmap(problem.init)(keys)

    def spread(own: Array, many: Array, key: Array) -> Array:
        random_init = jnp.any(many != many[:1])
        many = jnp.where(random_init, many, jnp.broadcast_to(own, many.shape))
        noise = 0.5 * random.normal(key, many.shape, jnp.result_type(float)).astype(many.dtype)
        return jnp.where(random_init, many, many + noise.at[0].set(0.0))

    leaves, structure = jax.tree.flatten(drawn)
    own = jax.tree.leaves(problem.params)
    noise_keys = random.split(random.fold_in(keys[0], 1), len(leaves))
    return jax.tree.unflatten(structure, [spread(o, m, k) for o, m, k in zip(own, leaves, noise_keys, strict=True)])


def _best(losses: np.ndarray) -> int:
    """The restart of lowest mean loss over its last tenth; one that went bad loses to any that did not."""
    if not losses.shape[1]:
        return 0
    tail = losses[:, -max(1, losses.shape[1] // 10) :].mean(1)
    if not np.isfinite(tail).any():  # all went bad: the one that went longest
        return int(np.argmax(np.isfinite(losses).sum(1)))
    return int(np.argmin(np.where(np.isfinite(tail), tail, np.inf)))
