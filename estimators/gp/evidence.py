"""Exact inference under Gaussian noise: the marginal likelihood, and the leave-one-out pseudo-likelihood."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random

from ..base import Data, Estimator, Params
from . import calibration, linalg, precision, view
from .posterior import FunctionPosterior, condition
from .problem import Forecast, ProcessProblem, log_density

MOST_ROWS = 3 * 10**4
"""Rows up to which `diagnose` looks at the whole matrix."""


@dataclass(frozen=True)
class GPEvidence(Estimator):
    """Exact marginal likelihood of a Gaussian process with Gaussian noise.

    Minimises −log N(y | m, K + σ²I) − log prior(hyper-parameters), in double precision by one Cholesky factorisation,
    O(n³) time and little more than three n × n arrays (Gaussian Processes for Machine Learning, eq. 2.30 and 5.9).
    Hyper-parameters are the `param` and continuous latent sites of the model; those with a prior are at their joint
    mode (MAP-II). The jitter, where the matrix needs one, is the least of 1e-12, 1e-11, ... of its mean diagonal, and
    `diagnose` reports it.

    Raises:
        ValueError: at `fit`, for a model without exactly one process under Gaussian noise.
    """

    needs_guide = False
    exact = True

    def problem(self, rng_key: Array, model: Callable, guide: Callable | None, data: Data) -> RegressionProblem:
        return EvidenceProblem.create(self, rng_key, model, data)


@dataclass(frozen=True)
class LeaveOneOut(GPEvidence):
    """Leave-one-out log predictive density, Σ_i log N(y_i | μ_−i, σ²_−i), as the objective.

    Both follow from the inverse of K + σ²I: μ_−i = y_i − α_i/P_ii, σ²_−i = 1/P_ii (Gaussian Processes for Machine
    Learning, eq. 5.10 to 5.12). It asks the model only to predict, so it bears a wrong covariance better than the
    marginal likelihood. It is no likelihood: there are no standard errors and no information criteria.
    """

    def problem(self, rng_key: Array, model: Callable, guide: Callable | None, data: Data) -> RegressionProblem:
        return LeaveOneOutProblem.create(self, rng_key, model, data)


class _Draws(NamedTuple):
    mean: Array
    root: Array
    log_evidence: Array


class RegressionProblem(ProcessProblem):
    """A process under Gaussian noise, whatever the objective."""

    @classmethod
    def create(cls, estimator: Any, rng_key: Array, model: Callable, data: Data, **own: Any) -> Any:
        hyper = view.create(estimator, rng_key, model, dict(data))
        view.check_gaussian(hyper, type(estimator).__name__)
        return cls(options=estimator, hyper=hyper, params=hyper.rest.params, data=dict(data), **own)

    @property
    def function_name(self) -> str:
        """Of the latent function: its site, or that of the observations with a suffix."""
        return self.hyper.latent[0] if self.hyper.latent else f"{self.hyper.observed[0]}_function"

    @property
    def site(self) -> str:
        return (self.hyper.latent or self.hyper.observed)[0]

    def function(self, params: Params) -> FunctionPosterior:
        """The posterior of the one function."""
        r = self.hyper.regression(params, self.data)
        return condition(r.kernel, r.X, r.noise, r.residual)

    def functions(self, params: Params) -> dict[str, FunctionPosterior]:
        return {self.site: self.function(params)}

    def sampler(self, params: Params) -> _Draws:
        r = self.hyper.regression(params, self.data)
        prior = self.prior_mean(params)
        mean, covariance = self.function(params).joint(r.X)
        return _Draws(prior + mean, linalg.root(covariance), linalg.log_normal(r.lower_covariance(), r.residual))

    def prior_mean(self, params: Params) -> Array:
        reading = self.hyper.read(params, self.data)
        return reading.latent[self.site].mean if self.hyper.latent else reading.observed[self.site][0].mean

    def draw(self, state: Any, params: Params, rng_key: Array) -> tuple[dict[str, Array], Array]:
        f = state.mean + state.root @ random.normal(rng_key, state.mean.shape)
        return {self.function_name: f}, state.log_evidence

    def forecast(self, params: Params, data: Data) -> Forecast:
        """In closed form."""
        r = self.hyper.regression(params, data)
        mean, variance = self.function(params).marginals(r.X)
        prior = self.hyper.read(params, data).processes[self.site].mean
        return Forecast(r.mean + mean, variance + r.noise, {self.site: prior + mean}, {self.site: variance})

    def predictive_log_density(self, params: Params, data: Data) -> Array:
        found = self.forecast(params, data)
        return log_density(self.hyper.regression(params, data).y, found.mean, found.variance)

    def residuals(self, params: Params) -> tuple[Array, Array]:
        """Leave-one-out residuals and variances of the observations, ``(n,)`` each."""
        r = self.hyper.regression(params, self.data)
        inverse = linalg.inverse(r.covariance())
        diagonal = jnp.diagonal(inverse)
        return inverse @ r.residual / diagonal, 1 / diagonal

    def faults(self, params: Params) -> list[str]:
        """In single precision (`fit` solves in double, unless given an optimizer) the jitter hides what is lost; and
        it hides that no function passes through all targets."""
        lines = super().faults(params) or _contradictions(*(np.asarray(v) for v in _rows(self, params)))
        if lines or jnp.result_type(float) == jnp.float64 or self.num_units > MOST_ROWS:
            return lines
        return self.imprecise(params)

    def imprecise(self, params: Params) -> list[str]:
        """In words, where the covariance of the observations cannot be inverted in this precision."""
        condition, noise = _condition(self, params)
        return precision.complaint(float(condition), noise.dtype, f"for the least noise variance is {float(noise):.1e}")

    def remarks(self, params: Params) -> list[str]:
        """What `diagnose` says beyond convergence: the jitter, and calibration on data that were left out."""
        if self.num_units > MOST_ROWS:
            return []
        jitter, residual, variance = (np.asarray(v) for v in _remarks(self, params))
        lines = ["left out one by one: " + calibration.of_moments(residual, variance)]
        if jitter > 0:
            lines.append(
                f"the covariance needed a jitter of {jitter:.1e} on its diagonal (inputs that repeat, or no noise)"
            )
        return lines


def without(mean: Array, variance: Array, y: Array, noise: Array) -> tuple[Array, Array]:
    """Mean and variance of f_i given all observations but its own, which is a division of normal densities."""
    left = 1 / jnp.maximum(1 / variance - 1 / noise, jnp.finfo(variance.dtype).tiny)
    return left * (mean / variance - y / noise), left


@eqx.filter_jit
def _remarks(problem: RegressionProblem, params: Params) -> tuple[Array, Array, Array]:
    """Jitter, leave-one-out residuals and variances."""
    r = problem.hyper.regression(params, problem.data)
    return linalg.jittered_cholesky(r.lower_covariance())[1], *problem.residuals(params)


@eqx.filter_jit
def _condition(problem: RegressionProblem, params: Params) -> tuple[Array, Array]:
    """Bound of the condition number, and the least noise variance."""
    r = problem.hyper.regression(params, problem.data)
    return precision.condition(r.kernel, r.X, r.noise), jnp.min(r.noise)


@eqx.filter_jit
def _rows(problem: RegressionProblem, params: Params) -> tuple[Array, Array, Array]:
    """Inputs ``(n, d)``, noise variances and targets."""
    r = problem.hyper.regression(params, problem.data)
    columns = [jnp.reshape(x, (len(r.y), -1)).astype(float) for x in jax.tree.leaves(r.X)]
    return jnp.concatenate(columns, 1), r.noise, r.residual


def repeats(X: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Pairs of rows without noise that have the same inputs ``(n, d)``, the earlier one first, ``(pairs, 2)``."""
    free = np.flatnonzero(noise == 0)
    order = free[np.lexsort(X[free].T)]  # a stable sort
    same = np.all(X[order][1:] == X[order][:-1], axis=1)
    return np.stack([order[:-1][same], order[1:][same]], 1)


def _contradictions(X: np.ndarray, noise: np.ndarray, target: np.ndarray) -> list[str]:
    """In words, rows that have the same inputs, no noise and different targets."""
    pairs = repeats(X, noise)
    pairs = pairs[target[pairs[:, 0]] != target[pairs[:, 1]]]
    if not len(pairs):
        return []
    first, second = pairs[0]
    return [
        f"rows {first} and {second} have the same inputs, no noise and different targets ({len(pairs)} such pairs), so "
        "that no function passes through both: give the process noise (diag=), or a likelihood with noise"
    ]


class EvidenceProblem(RegressionProblem):
    """−log marginal likelihood − log prior."""

    @property
    def factorised(self) -> int:
        return self.num_units

    def objective(self, params: Params, data: Data) -> Array:
        r = self.hyper.regression(params, data)
        return linalg.log_normal(r.lower_covariance(), r.residual)


class LeaveOneOutProblem(EvidenceProblem):
    """−Σ log N(y_i | μ_−i, σ²_−i) − log prior."""

    @property
    def has_curvature(self) -> bool:
        return False

    def objective(self, params: Params, data: Data) -> Array:
        r = self.hyper.regression(params, data)
        inverse = linalg.inverse(r.covariance())
        diagonal = jnp.diagonal(inverse)
        residual = inverse @ r.residual / diagonal
        return jnp.sum(log_density(residual, jnp.zeros_like(residual), 1 / diagonal))
