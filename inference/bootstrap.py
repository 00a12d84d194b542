"""Refits of a bootstrap: to resampled units, or to data simulated from the fit.

All start at the fit with its curvature, where BFGS takes them on by gradients alone. JAX computes the gradients of many
replicates at once and nothing else. What lies between is NumPy's: a compiled loop of many small operations takes
several times as long to compile as the gradient, and is no faster.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array, random
from jax.flatten_util import ravel_pytree

from ..estimators.base import Params, Problem
from . import curvature
from .quasi_newton import SLOWEST

TOLERANCE = 1e-4
"""Of the decrement of a refit by gradients alone, in standard errors."""
STEPS = 30
BATCH, NUMBERS = 50, 3e6
"""Refits side by side: so many, or more where those times the numbers in the data are no more than that."""
CAREFUL_BATCH = 32
"""Most refits by Newton's steps side by side."""


@dataclass(frozen=True)
class Refits:
    unconstrained: np.ndarray
    """``(B, D)``"""
    values: np.ndarray
    """``(B, P)`` in the user's space."""
    converged: np.ndarray


def size(problem: Problem) -> int:
    """Numbers in the data."""
    return sum(np.size(x) for x in jax.tree.leaves(problem.data))


def _loss(problem: Any, params: Params, altered: dict[str, Any]) -> Callable[[Array], Array]:
    altered_problem, unravel = replace(problem, **altered), ravel_pytree(params)[1]
    # not `solve.objective`: there is no line search that would ask whether the loss is finite
    return lambda z: altered_problem.loss(unravel(curvature.off_zero(z)), random.key(0), altered_problem.data)[0]


@eqx.filter_jit
def _simulated(problem: Any, params: Params, keys: Array) -> dict[str, Array]:
    return jax.vmap(lambda key: problem.simulate(params, key))(keys)


@eqx.filter_jit
def _gradients(problem: Any, params: Params, z: Array, altered: dict[str, Any]) -> tuple[Array, Array]:
    """Of the loss of every replicate at its own point ``(B, D)``; and these points in the user's space ``(B, P)``."""
    unravel = ravel_pytree(params)[1]
    losses = jax.vmap(lambda z, altered: _loss(problem, params, altered)(z))
    values = lambda z: ravel_pytree(problem.constrain(unravel(z)))[0]  # noqa: E731
    # the derivative of the batch, not a batch of derivatives: nothing on the way back has to be batched
    value, back = jax.vjp(lambda z: losses(z, altered), z)
    return back(jnp.ones_like(value))[0], jax.vmap(values)(z)


@eqx.filter_jit
def _careful_refits(problem: Any, params: Params, altered: dict[str, Any]) -> tuple[Array, Array, Array]:
    """By damped Newton steps, for those that run far."""
    z0, unravel = ravel_pytree(params)

    def one(altered: dict[str, Any]) -> tuple[Array, Array, Array]:
        z, decrement = curvature.damped_newton(_loss(problem, params, altered), z0, tolerance=1e-3)
        return z, ravel_pytree(problem.constrain(unravel(z)))[0], decrement

    return jax.vmap(one)(altered)


def _newton_like(slope: np.ndarray, history: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> np.ndarray:
    """BFGS's H⁻¹ times the slope ``(B, D)``, from unit curvature, by the two loops over steps and changes of the slope
    (Updating Quasi-Newton Matrices with Limited Storage)."""
    out, shares = slope, []
    for step, change, weight in reversed(history):
        shares.append(weight * np.einsum("bd,bd->b", step, out))
        out = out - shares[-1][:, None] * change
    for (step, change, weight), share in zip(history, reversed(shares), strict=True):
        out = out + (share - weight * np.einsum("bd,bd->b", change, out))[:, None] * step
    return out


def _settle(
    gradients: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], num: int, dim: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Full steps from zero in whitened coordinates, while each brings the decrement down.

    Returns:
        The points ``(B, D)``, in the user's space ``(B, P)``, and the decrements there by the curvature gathered.
    """
    u = np.zeros((num, dim))
    slope, values = gradients(u)
    step, left = -slope, np.linalg.norm(slope, axis=1)
    going = left > TOLERANCE
    history: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    while going.any() and len(history) < STEPS:
        step = np.where(going[:, None], step, 0.0)
        new, new_values = gradients(u + step)
        change = new - slope
        bend = np.einsum("bd,bd->b", step, change)
        history.append((step, change, np.divide(1.0, bend, out=np.zeros(num), where=bend > 0)))
        onwards = _newton_like(new, history)
        length = np.sqrt(np.maximum(np.einsum("bd,bd->b", new, onwards), 0.0))
        good = going & (length < SLOWEST * left) & (bend > 0)  # false for what is not a number
        u, values = np.where(good[:, None], u + step, u), np.where(good[:, None], new_values, values)
        left, going = np.where(good, length, left), good & (length > TOLERANCE)
        slope, step = new, -onwards
    return u, values, left


def refit(
    problem: Any, params: Params, hessian: np.ndarray, num_replicates: int, seed: int, *, parametric: bool = False
) -> Refits:
    """Refit to resampled units, or to data simulated from the fit.

    Args:
        hessian: of the loss at `params`, ``(D, D)``.

    Raises:
        ValueError: resampling where the model has no independent units.
    """
    if not parametric and problem.num_units < 2:
        raise ValueError('covariance="bootstrap" resamples independent units, and this model has one only')
    if parametric:
        keys = random.split(random.key(seed), num_replicates)
        altered = lambda rows: {"observed": _simulated(problem, params, keys[rows])}  # noqa: E731
    else:
        n = problem.num_units
        drawn = np.random.default_rng(seed).integers(0, n, (num_replicates, n)) + n * np.arange(num_replicates)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=n * num_replicates).reshape(num_replicates, n)
        weights = np.asarray(problem.weights)
        altered = lambda rows: {"weights": jax.device_put(weights * counts[rows])}  # noqa: E731
    z0 = np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)])
    factor = curvature.whitening(hessian)[0]
    most = max(BATCH, int(NUMBERS / max(size(problem), 1)))

    def settled(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        changed = altered(rows)

        def gradients(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            slope, values = _gradients(problem, params, jax.device_put(z0 + u @ factor.T), changed)
            return np.asarray(slope) @ factor, np.asarray(values)

        # some refits leave for where the loss is not finite; the data were validated by the fit
        with np.errstate(all="ignore"), numpyro.validation_enabled(False):
            u, values, left = _settle(gradients, len(rows), len(z0))
        return z0 + u @ factor.T, values, left

    found = zip(*map(settled, curvature.batches(num_replicates, most)), strict=True)
    z, values, left = (np.concatenate(x)[:num_replicates] for x in found)
    far = np.flatnonzero(~(left <= TOLERANCE))
    if far.size:
        # batches of a power of two, so that few programs are compiled
        several = min(2 ** int(np.ceil(np.log2(far.size))), CAREFUL_BATCH)
        for rows in np.resize(far, (-(-far.size // several), several)):
            z[rows], values[rows], left[rows] = _careful_refits(problem, params, altered(rows))
    return Refits(z, values, left < 1e-2)
