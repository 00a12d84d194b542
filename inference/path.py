"""`penalty_path`: estimates along a path of penalty strengths, and the strength that predicts held-out data best.

Every strength on every fold is one problem; all are solved in one compiled, vmapped program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax import Array, lax, random
from jax.flatten_util import ravel_pytree

from ..estimators.base import Params
from ..estimators.checks import check_counts
from ..estimators.likelihood import MLE, LikelihoodProblem
from ..estimators.penalties import KINDS
from . import curvature, proximal
from .covariance import site_names
from .data import check_model, prepare
from .solve import NEWTON_LIMIT, objective

CONVERGED = 1e-4
"""Length of the last Newton step, in standard errors, up to which a fit counts as converged."""
BATCH = 128
"""Problems that are solved side by side."""


@dataclass(frozen=True)
class PenaltyPath:
    """Estimates by strength, with cross-validation; `print` it, `plot` it."""

    frame: pd.DataFrame
    """One row a strength, falling: ``strength``, a column per element of a parameter, ``log_likelihood`` (nats, all
    data), ``cv_log_likelihood`` (held-out nats a unit, mean over folds), ``cv_std_err``, ``num_nonzero`` (penalised
    elements that are not zero), ``converged`` (on all data and all folds)."""
    coefficients: list[str]
    """The columns of `frame` that are parameters."""
    penalised: list[str]
    """Those of them with a penalty."""
    base: MLE = field(repr=False)
    fold_scores: np.ndarray = field(repr=False)
    """``(strengths, folds)`` held-out nats a unit."""

    @property
    def best(self) -> float:
        """The strength of highest cross-validated log-likelihood."""
        self._need_folds()
        return float(self.frame["strength"].iloc[self._best_row()])

    @property
    def one_se(self) -> float:
        """The largest strength whose score is within a standard error of the best: fewer coefficients, as good."""
        self._need_folds()
        row = self.frame.iloc[self._best_row()]
        good = self.frame["cv_log_likelihood"] >= row["cv_log_likelihood"] - row["cv_std_err"]
        return float(self.frame["strength"][good].max())

    def estimator(self, strength: float) -> MLE:
        """The estimator with this strength, for `fit`: ``path.estimator(path.one_se)``."""
        return scaled(self.base, strength)

    def _best_row(self) -> int:
        return int(np.argmax(self.frame["cv_log_likelihood"].to_numpy()))

    def _need_folds(self) -> None:
        if not self.fold_scores.size:
            raise ValueError("this path was made without cross-validation (num_folds=0): there is no best strength")

    def __str__(self) -> str:
        columns = ["strength", "num_nonzero", "log_likelihood", "cv_log_likelihood", "cv_std_err", "converged"]
        table = self.frame[columns] if self.fold_scores.size else self.frame[[columns[i] for i in (0, 1, 2, 5)]]
        text = table.to_string(index=False, float_format=lambda v: f"{v:.5g}")
        if self.fold_scores.size:
            text += f"\nbest strength {self.best:.5g}; largest within one standard error of it {self.one_se:.5g}"
        return text

    def plot(self, ax: Any = None) -> Any:
        """Coefficients against strength, and below them the cross-validated score; returns the axes."""
        import matplotlib.pyplot as plt

        scored = bool(self.fold_scores.size)
        if ax is None:
            _, ax = plt.subplots(2 if scored else 1, 1, sharex=True, figsize=(6, 6 if scored else 3.5), squeeze=False)
        axes = np.ravel(ax)
        shown = self.frame[self.frame["strength"] > 0]
        for name in self.penalised:
            axes[0].plot(shown["strength"], shown[name], label=name)
        axes[0].axhline(0.0, color="0.7", linewidth=0.8)
        axes[0].set(xscale="log", ylabel="estimate")
        if len(self.penalised) <= 12:
            axes[0].legend(fontsize="small", ncols=2)
        if scored and len(axes) > 1:
            axes[1].errorbar(shown["strength"], shown["cv_log_likelihood"], shown["cv_std_err"], fmt="o-", markersize=3)
            for value, style in ((self.best, "--"), (self.one_se, ":")):
                for each in axes:
                    each.axvline(value, linestyle=style, color="0.4")
            axes[1].set(xscale="log", ylabel="held-out log-likelihood a unit")
        axes[-1].set_xlabel("penalty strength")
        return axes


def scaled(estimator: MLE, factor: float) -> MLE:
    """The estimator with all its penalties times a factor."""

    def times(value: Any) -> Any:
        if isinstance(value, tuple) and len(value) == 2 and not isinstance(value[0], str):
            return (times(value[0]), value[1].values)  # strength and group ids
        return getattr(value, "values", value) * factor

    changed: dict[str, Any] = {}
    for kind, value in estimator.penalties.items():
        changed[kind] = {n: times(v) for n, v in value} if isinstance(value, tuple) else times(value)
    return replace(estimator, **changed)


def penalty_path(
    model: Callable,
    estimator: MLE,
    data: Mapping[str, Any],
    strengths: Sequence[float] | np.ndarray | None = None,
    *,
    num_folds: int = 5,
    folds: Any = None,
    num_strengths: int = 30,
    max_steps: int = 100,
    seed: int = 0,
) -> PenaltyPath:
    """Fit a penalised estimator at many strengths, and score each on held-out units.

    Args:
        estimator: `MLE` or `MAP` with penalties, all of which are multiplied by the strengths: l1 and l2 in the
            proportions of an elastic net stay in them.
        strengths: not negative; None takes `num_strengths` from the smallest one that sets all to zero (l1 alone)
            down to a thousandth of it, evenly in the logarithm.
        num_folds: of the cross-validation over units; 0 leaves it out. The likelihood of a fold's training units is
            scaled to the size of all, so that a strength means the same as on all data (as in glmnet).
        folds: the fold of every unit, ``(n,)``, instead of random ones.
        seed: of the folds and of initial values.

    Raises:
        TypeError: an estimator without penalties.
        ValueError: a model without independent units, more than `NEWTON_LIMIT` parameters, strengths that cannot work.
    """
    check_counts(num_strengths=num_strengths, max_steps=max_steps)
    if not isinstance(estimator, MLE) or not any(bool(v) for v in estimator.penalties.values()):
        raise TypeError(f"penalty_path needs MLE or MAP with l1, l2, group or fused, got {estimator!r}")
    if not estimator.exact:
        raise ValueError("penalty_path needs an exact loss: no data_noise, mollify or subsample")
    check_model(model, prepare(model, data))
    with jax.enable_x64(True):
        problem = estimator.problem(random.key(seed), model, None, prepare(model, data))
        size = len(ravel_pytree(problem.params)[0])
        if size > NEWTON_LIMIT:
            raise ValueError(
                f"penalty_path takes Newton steps: at most {NEWTON_LIMIT} parameters, the model has {size}"
            )
        if problem.penalties is not None and problem.penalties.iterative:
            raise ValueError(
                "penalty_path takes Newton steps, and fused along several axes has none: fit the strengths one by one"
            )
        grid = _grid(problem, strengths, num_strengths, max_steps)
        masks = _masks(problem.num_units, num_folds, folds, seed)
        return _solve(problem, estimator, grid, masks, max_steps)


def _grid(problem: LikelihoodProblem, strengths: Any, num_strengths: int, max_steps: int) -> np.ndarray:
    if strengths is not None:
        grid = np.unique(np.asarray(strengths, np.float64).ravel())[::-1]
        if not grid.size or not (np.isfinite(grid).all() and (grid >= 0).all()):
            raise ValueError(f"strengths must be finite and not negative, got {strengths!r}")
        return grid
    rules = problem.penalties
    assert rules is not None
    if not rules.l1 or rules.group or rules.fused:
        raise ValueError("strengths=None works for l1; for group, fused or l2 alone give the strengths")
    top = float(_largest(problem, max_steps))
    if not np.isfinite(top) or top <= 0:
        raise ValueError(
            "no strength sets every coefficient to zero (is one of the l1 strengths zero?): give strengths="
        )
    top *= 1 + 1e-6  # at the edge itself rounding decides
    return np.geomspace(top, 1e-3 * top, num_strengths)


@eqx.filter_jit
def _largest(problem: Any, max_steps: int) -> Array:
    """The smallest strength at which all elements with l1 are zero: the others are fitted, then gradients compared."""
    huge = replace(problem, penalties=problem.penalties.scaled(jnp.asarray(1e10)))
    z = ravel_pytree(problem.params)[0]
    l1 = proximal.composite(problem)[1].l1
    assert l1 is not None
    z = proximal.minimise(huge, jnp.where(l1 > 0, 0.0, z), max_steps)[0]
    slope = jax.grad(proximal.composite(problem)[1].smooth)(z)
    return jnp.max(jnp.where(l1 > 0, jnp.abs(slope) / jnp.where(l1 > 0, l1, 1.0), 0.0))


def _masks(n: int, num_folds: int, folds: Any, seed: int) -> np.ndarray:
    """``(1 + folds, n)`` of 0 and 1: the units that each fit sees, all of them first."""
    if folds is None:
        if num_folds == 0:
            return np.ones((1, n))
        if not isinstance(num_folds, int) or not 2 <= num_folds <= n:
            raise ValueError(f"num_folds must be 0 or between 2 and the number of units, {n}, got {num_folds!r}")
        ids = np.random.default_rng(seed).permutation(np.arange(n) % num_folds)
    else:
        ids = np.unique(np.asarray(folds), return_inverse=True)[1]
        if ids.shape != (n,):
            raise ValueError(f"folds must be one a unit, shape ({n},), got {np.shape(folds)}")
        if ids.max() < 1:
            raise ValueError("folds names one fold only: nothing is left to fit on")
    return np.concatenate([np.ones((1, n)), (ids[None] != np.arange(ids.max() + 1)[:, None]).astype(float)])


@eqx.filter_jit
def _fits(problem: Any, factors: Array, masks: Array, max_steps: int) -> tuple[Array, Array, Array, Array]:
    """Of every pair of a factor and a mask: estimates, length of the last step, log-likelihood of all and of others."""
    z0 = ravel_pytree(problem.params)[0]
    unravel = ravel_pytree(problem.params)[1]
    n = problem.num_units
    own = jnp.broadcast_to(problem.weights, (n,))

    def one(args: tuple[Array, Array]) -> tuple[Array, Array, Array, Array]:
        factor, mask = args
        weights = own * mask
        weights = weights * jnp.sum(own) / jnp.sum(weights)
        changed = replace(problem, weights=weights, penalties=problem.penalties.scaled(factor))
        if problem.nonsmooth:
            z, _, last = proximal.minimise(changed, z0, max_steps)
        else:
            z, _, last = curvature.newton(objective(changed)[1], z0, max_steps=max_steps)
        params: Params = unravel(z)
        units = -problem.pointwise(params, problem.data)
        out = own * (1 - mask)
        held_out = jnp.sum(out * units) / jnp.maximum(jnp.sum(out), 1e-300)
        return ravel_pytree(problem.constrain(params))[0], last, problem.log_likelihood(params, problem.data), held_out

    pairs = (jnp.repeat(factors, len(masks)), jnp.tile(masks, (len(factors), 1)))
    return lax.map(one, pairs, batch_size=min(BATCH, len(pairs[0])))


def _solve(
    problem: LikelihoodProblem, estimator: MLE, grid: np.ndarray, masks: np.ndarray, max_steps: int
) -> PenaltyPath:
    rules = problem.penalties
    assert rules is not None
    if len(masks) > 1 and problem.num_units < 2:
        raise ValueError(
            "cross-validation leaves out independent units, the elements of a plate around the observed sites, and the "
            "model has one only: num_folds=0 gives the path alone"
        )
    found = _fits(problem, jnp.asarray(grid), jnp.asarray(masks), max_steps)
    values, last, log_likelihood, held_out = (np.asarray(x).reshape(len(grid), len(masks), *x.shape[1:]) for x in found)
    names = site_names(problem, problem.params)
    penalised_sites = {n for kind in KINDS for n in getattr(rules, kind)} | set(rules.nonnegative)
    flags = {
        n: jax.tree.map(lambda x, f=n in penalised_sites: np.full(np.shape(x), float(f)), v)
        for n, v in problem.params.items()
    }
    shapes_match = len(ravel_pytree(flags)[0]) == len(names)
    mask = (
        np.asarray(ravel_pytree(flags)[0]) > 0
        if shapes_match
        else np.array([n.split("[")[0] in penalised_sites for n in names])
    )
    scores = held_out[:, 1:]
    frame = pd.DataFrame({"strength": grid})
    frame[names] = values[:, 0]
    frame["log_likelihood"] = log_likelihood[:, 0]
    if scores.size:
        frame["cv_log_likelihood"] = scores.mean(1)
        frame["cv_std_err"] = scores.std(1, ddof=1) / np.sqrt(scores.shape[1])
    frame["num_nonzero"] = np.count_nonzero(values[:, 0][:, mask], axis=1)
    frame["converged"] = np.all(last < CONVERGED, axis=1).tolist()
    return PenaltyPath(
        frame=frame, coefficients=names, penalised=[n for n, m in zip(names, mask, strict=True) if m], base=estimator,
        fold_scores=scores,
    )  # fmt: skip
