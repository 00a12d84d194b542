"""Covariance of a point estimate: from curvature and scores at the optimum, or from refits to resampled data.

With ℓ_i the terms of the loss, H the Hessian of the loss and G = Σ∇ℓ_i∇ℓ_iᵀ, all in unconstrained space: observed
information H⁻¹, outer product of gradients G⁻¹, sandwich H⁻¹GH⁻¹ (The Behavior of Maximum Likelihood Estimates under
Nonstandard Conditions), with scores summed in a cluster first where there are clusters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array, lax, random
from jax.flatten_util import ravel_pytree

from ..estimators.base import Params, Problem
from ..estimators.checks import check_counts
from ..estimators.likelihood import freeze_covariance
from . import bootstrap, curvature
from .solve import objective, rows_at_once
from .summary import labels

if TYPE_CHECKING:
    from .result import FitResult

SINGULAR = 1e-11
"""Smallest eigenvalue of the scaled Hessian, relative to the largest, that counts as identified in double precision."""
NUM_REPLICATES = 1000
CONVERGED = 1e-3
"""Decrement of the loss, in standard errors, above which it still falls because the fit has not ended."""
REGULAR = 10.0
"""Most by which variances of refits may differ from those of the curvature for both to speak of the same maximum."""


@dataclass(frozen=True)
class Covariance:
    """Sampling covariance of an estimate, by site element in the order of `names`, in the user's space."""

    kind: str
    names: list[str]
    estimate: np.ndarray
    """``(P,)`` values in the user's space."""
    matrix: np.ndarray
    """``(P, P)``, by the delta method, or of the refits; inf on the diagonal where a value is not identified."""
    unconstrained: np.ndarray
    """``(D, D)`` covariance in unconstrained space."""
    hessian: np.ndarray
    """``(D, D)`` Hessian of the loss."""
    condition_number: float
    """Of the Hessian with its diagonal scaled to one."""
    notes: tuple[str, ...] = ()
    replicates: np.ndarray | None = field(default=None, repr=False)
    """``(B, P)`` estimates of the refits of a bootstrap."""

    @property
    def std_err(self) -> np.ndarray:
        return np.sqrt(np.diag(self.matrix))


@eqx.filter_jit
def _parts(problem: Problem, params: Params) -> tuple[Array, Array]:
    p = replace(problem, params=params)  # type: ignore[type-var]
    z, f, _ = objective(p)
    rows = rows_at_once(problem, z.shape[0]) if problem.batch >= 32 else problem.batch
    return curvature.gradient_and_hessian(f, z, rows)


@eqx.filter_jit
def _information(problem: Any, params: Params, rng_key: Array) -> tuple[Array, Array]:
    return problem.information(params, rng_key)


@eqx.filter_jit
def _scores(problem: Any, params: Params) -> Array:
    """∇ of every term of the loss, ``(n, D)``."""
    z, unravel = ravel_pytree(params)
    terms = lambda z: problem.weights * problem.pointwise(unravel(z), problem.data)  # noqa: E731
    return jax.vmap(lambda e: jax.jvp(terms, (z,), (e,))[1], out_axes=1)(jnp.eye(z.shape[0], dtype=z.dtype))


@eqx.filter_jit
def _jacobian(problem: Problem, params: Params) -> Array:
    z, unravel = ravel_pytree(params)
    return jax.jacfwd(lambda z: ravel_pytree(problem.constrain(unravel(z)))[0])(z)


def site_names(problem: Problem, params: Params) -> list[str]:
    """Names of the scalars in the user's space, in the order of `ravel_pytree`."""
    return names_of(jax.eval_shape(problem.constrain, params))


def names_of(values: Any) -> list[str]:
    """Names of the scalars of a tree, in the order of `ravel_pytree`."""
    names = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(values)[0]:
        keys = [str(getattr(k, "key", getattr(k, "idx", k))) for k in path]
        names += labels(".".join(keys), np.shape(leaf))
    return names


def compute(result: FitResult, kind: Any = None, *, num_replicates: int = NUM_REPLICATES, seed: int = 0) -> Covariance:
    """See `FitResult.covariance`.

    Raises:
        ValueError: an unknown kind, one that needs independent units where the model has none, or cluster ids that are
            not one a unit, missing, or all the same.
        TypeError: the estimator has no exact loss to differentiate.

    Clusters no more than parameters are no error, but a note: the covariance is singular.
    """
    problem, params = result.problem, result.unconstrained
    drawn = hasattr(problem, "information")  # a loss over draws: its curvature is known only by more of them
    if not problem.deterministic and not drawn:
        raise TypeError(
            f"{type(result.estimator).__name__} has no exact loss: "
            + ("fits of several seeds show" if result.is_point else "its posterior (summary) shows")
            + " how far to trust it"
        )
    if problem.nonsmooth:
        raise ValueError(
            "no standard errors under l1, group, fused or nonnegative: the estimate sits on a kink of the loss, where "
            "curvature says nothing. The estimates are in result.params; for intervals fit the chosen sites without "
            "penalty on data that did not choose them, or take a prior and a posterior (MAP has l2 as a normal prior)"
        )
    kind = freeze_covariance(getattr(result.estimator, "covariance", None) or "observed" if kind is None else kind)
    name = kind if isinstance(kind, str) else kind[0]
    valid = getattr(result.estimator, "valid_covariances", None)
    if valid is not None and name not in (*valid, "cluster"):
        raise ValueError(
            f'covariance="{name}" (and the profile, which rests on it) holds for likelihoods, and the loss of '
            f"{type(result.estimator).__name__} is none: take {', '.join(valid)} or ('cluster', ids)"
        )
    scores: np.ndarray | None = None
    if drawn:
        if name.endswith("bootstrap"):
            raise ValueError(
                f'covariance="{name}" refits, and {type(result.estimator).__name__} has no exact loss to refit: take '
                '"observed", "opg", "sandwich" or clusters'
            )
        if ("information", seed) not in result._cache:
            result._cache["information", seed] = _information(problem, params, random.key(seed))
        hessian, scores = (np.asarray(x, np.float64) for x in result._cache["information", seed])
    else:
        if "derivatives" not in result._cache:
            result._cache["derivatives"] = tuple(np.asarray(x) for x in _parts(problem, params))
        gradient, hessian = result._cache["derivatives"]
    notes: list[str] = []
    inverse, condition, unidentified = _inverse(hessian, names_of(params), notes)
    replicates = None
    if not drawn and name in ("opg", "sandwich", "cluster"):
        scores = scores_of(problem, params)
    if name in ("opg", "sandwich", "cluster") and (scores is None or len(scores) < 2):
        raise ValueError(
            f'covariance="{name}" needs independent units, the elements of a plate around the observed sites; this '
            'model has one observation only. Take "observed" or "parametric_bootstrap"'
        )
    if name == "observed":
        matrix = inverse
    elif name == "opg":
        matrix, _, unidentified = _inverse(scores.T @ scores, names_of(params), notes)  # type: ignore[union-attr]
    elif name == "sandwich":
        matrix = inverse @ (scores.T @ scores) @ inverse  # type: ignore[union-attr]
    elif name == "cluster":
        if len(kind[1].values) != len(scores):  # type: ignore[arg-type]
            raise ValueError(
                f"cluster ids has length {len(kind[1].values)}, the model has {len(scores)} independent units"  # type: ignore[arg-type]
            )
        clusters, size = kind[1].values.astype(int).max() + 1, scores.shape[1]  # type: ignore[union-attr]
        if clusters <= size:
            notes.append(
                f"{clusters} clusters for {size} parameters: scores add up to zero, so the covariance has rank "
                f"{clusters - 1} at most, and some combination of the estimates seems to have no error. Standard "
                "errors from so few clusters are too small: take ids of more clusters, or put effects of clusters into "
                "the model"
            )
        summed = np.zeros((clusters, size))
        np.add.at(summed, kind[1].values.astype(int), scores)  # type: ignore[arg-type]
        matrix = inverse @ (summed.T @ summed) @ inverse
    else:
        if not np.isfinite(hessian).all():
            raise ValueError(f'covariance="{name}" refits from the estimate, where {notes[0]}')
        check_counts(num_replicates=num_replicates)
        parametric = name == "parametric_bootstrap"
        refits = bootstrap.refit(problem, params, hessian, num_replicates, seed, parametric=parametric)
        good = np.isfinite(refits.values).all(1) & refits.converged
        if good.sum() < 2:
            raise ValueError(
                f'covariance="{name}" needs two refits or more, and {good.sum()} of num_replicates={num_replicates} '
                "converged: take more replicates (1,000 for percentiles), or look at result.diagnose()"
            )
        if good.mean() < 0.95:
            notes.append(f"{np.sum(~good)} of {len(good)} refits did not converge and are left out")
        replicates = refits.values[good]
        sds = np.sqrt(np.maximum(np.diag(inverse), 0))
        far = np.abs(refits.unconstrained[good] - np.asarray(ravel_pytree(params)[0])) > 20 * sds
        if far.any():
            notes.append(
                f"{far.any(1).sum()} of {len(replicates)} refits ran off to more than 20 standard errors (separation "
                "in the resampled data?): they dominate the standard errors; the percentile intervals bear them"
            )
        matrix = np.atleast_2d(np.cov(refits.unconstrained[good], rowvar=False))
    if replicates is not None:
        constrained = np.atleast_2d(np.cov(replicates, rowvar=False))
    else:
        jacobian = np.asarray(_jacobian(problem, params))
        constrained = jacobian @ matrix @ jacobian.T
        if unidentified.size:
            loose = np.abs(jacobian @ unidentified).max(1) > 1e-6 * np.maximum(np.abs(jacobian).max(1), 1e-300)
            constrained[loose, loose] = np.inf
    if replicates is None:
        interior = bootstrap.size(problem) > 1_000_000 and _quadratic(result.metrics.get("newton_decrement"))
    else:
        interior = len(replicates) == num_replicates and not far.any() and _as_curved(matrix, hessian)
    if not drawn and not unidentified.size and not interior:
        notes += _one_sided(problem, params, gradient, hessian)
    estimate = np.concatenate([np.ravel(x) for x in jax.tree.leaves(result.params)])
    return Covariance(
        kind=name, names=names_of(result.params), estimate=estimate, matrix=constrained, unconstrained=matrix,
        hessian=hessian, condition_number=condition, notes=tuple(notes), replicates=replicates,
    )  # fmt: skip


def scores_of(problem: Problem, params: Params) -> np.ndarray | None:
    """∇ of every term of the loss, ``(n, D)``; None where the model has no independent units."""
    if getattr(problem, "num_units", 1) < 2 or not hasattr(problem, "pointwise"):
        return None
    return np.asarray(_scores(problem, params))


def _inverse(matrix: np.ndarray | None, names: list[str], notes: list[str]) -> tuple[np.ndarray, float, np.ndarray]:
    """Inverse over the identified directions, condition number, and the directions ``(D, m)`` that are not."""
    assert matrix is not None
    if not np.isfinite(matrix).all():
        where = ", ".join(names[i] for i in np.flatnonzero(~np.isfinite(np.diag(matrix)))[:5])
        notes.append(
            f"the second derivatives of the loss are not finite at the estimate ({where}), so there are no standard "
            "errors: a probability may have rounded to 0 or 1, or a scale to 0. Write the model with logits or "
            "logarithms, or give start= a dict of values nearer to the maximum"
        )
        return np.zeros_like(matrix), math.inf, np.eye(len(matrix))
    eigenvalues, vectors, d = curvature.scaled_eigen(matrix)
    top = np.max(np.abs(eigenvalues))
    bad = eigenvalues <= SINGULAR * max(top, 1e-300)
    condition = float(top / max(np.min(np.abs(eigenvalues)), 1e-300))
    safe = np.where(bad, np.inf, eigenvalues)
    inverse = (vectors / safe) @ vectors.T * d[:, None] * d
    directions = d[:, None] * vectors[:, bad]
    for direction, eigenvalue in zip(directions.T, eigenvalues[bad], strict=True):
        scale = np.abs(direction).max()
        order = np.argsort(-np.abs(direction))
        main = [i for i in order if abs(direction[i]) > 0.05 * scale][:5]
        combination = " ".join(f"{direction[i] / scale:+.2g}·{names[i]}" for i in main)
        what = "is a saddle or a maximum" if eigenvalue < -1e-6 * top else "does not change"
        notes.append(
            f"not identified: the loss {what} along {combination} (unconstrained space); standard errors of what "
            "depends on it are infinite. Remove a parameter, add a constraint, or take MAP with a prior"
        )
    return inverse, condition, directions


@eqx.filter_jit
def _along(problem: Problem, params: Params, steps: Array) -> Array:
    """The loss at every step ``(batches, size, D)`` away from the parameters."""
    z, f, _ = objective(replace(problem, params=params))  # type: ignore[type-var]
    return lax.map(lambda some: jax.vmap(f)(z + some), steps)


def _quadratic(decrements: np.ndarray | None) -> bool:
    """Whether Newton's last steps converged fast, as they do at a maximum that is none at infinity."""
    return decrements is not None and decrements.ndim == 1 and len(decrements) > 1 and (
        decrements[-1] < 1e-2 * decrements[-2] and decrements[-1] < 1e-3
    )  # fmt: skip


def _as_curved(matrix: np.ndarray, hessian: np.ndarray) -> bool:
    """Whether refits spread in every direction as the curvature says, roughly.

    Where the maximum is at infinity they do not: so far out no resampling has a slope that would move them.
    """
    factor = hessian @ curvature.whitening(hessian)[0]  # the inverse of the whitening, transposed
    ratios = np.linalg.eigvalsh(factor.T @ matrix @ factor)
    return bool(ratios[0] > 1 / REGULAR and ratios[-1] < REGULAR)


def _one_sided(problem: Any, params: Params, gradient: np.ndarray, hessian: np.ndarray) -> list[str]:
    """Name directions in which the likelihood keeps growing: separation, or a parameter at its boundary.

    Two standard errors from a maximum the loss is about 2 higher. Where on one side it is not higher at all, the
    maximum lies at infinity.
    """
    z = np.asarray(ravel_pytree(params)[0])
    factor = curvature.whitening(hessian)[0]
    sds = np.sqrt(np.sum(factor**2, axis=1))
    # along each coordinate with the others following: the tangent of its profile
    directions = ((factor @ factor.T) / np.maximum(sds, 1e-300)).T
    # and the way that the steps have come and Newton's next would go, which goes on if the maximum is at infinity
    slope = factor.T @ gradient
    if np.linalg.norm(slope) < CONVERGED:
        ways = np.stack([z, -factor @ slope])
        lengths = np.sqrt(np.einsum("id,de,ie->i", ways, hessian, ways))
        directions = np.concatenate([directions, ways[lengths > 0] / lengths[lengths > 0, None]])
    steps = np.concatenate([2 * directions, -2 * directions, np.zeros((1, len(z)))])
    rows = curvature.batches(len(steps), problem.batch)
    with numpyro.validation_enabled(False):  # far out a value may round to the end of its support
        losses = np.ravel(_along(problem, params, jax.device_put(steps[rows])))[: len(steps)]
    rises = losses[:-1] - losses[-1]
    flat = np.flatnonzero(~(rises > 0.02))
    if not flat.size:
        return []
    directions = np.concatenate([directions, -directions])
    worst = directions[flat[np.argmin(rises[flat])]]
    scaled = worst / np.maximum(np.abs(z), 1.0)
    names = names_of(params)
    main = [i for i in np.argsort(-np.abs(scaled)) if abs(scaled[i]) > 0.1 * np.abs(scaled).max()][:4]
    where = ", ".join(f"{names[i]} → {'+' if worst[i] > 0 else '−'}∞" for i in main)
    values = problem.constrain(params)
    site = names[main[0]].split("[")[0]
    real = site in values and np.array_equal(ravel_pytree(values[site])[0], ravel_pytree(params[site])[0])  # type: ignore[index]
    discrete = real and getattr(getattr(problem, "roles", None), "discrete_observed", False)
    reason = (
        "perfect separation: some combination of the covariates tells the outcomes apart without error"
        if discrete else "a parameter at the boundary of its support, or one that the data say nothing of"
    )  # fmt: skip
    return [
        f"the likelihood keeps growing along {where} (unconstrained space), so the maximum is at infinity: {reason}. "
        "Standard errors mean nothing here; take MAP with a prior, a penalty, or fewer parameters"
    ]
