"""What statisticians ask of a likelihood fit: tables, information criteria, tests, and whether n suffices for p."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import numpy as np
import pandas as pd
from jax import Array
from scipy import stats

from .covariance import Covariance, scores_of
from .summary import COLUMNS

if TYPE_CHECKING:
    from .result import FitResult


@eqx.filter_jit
def _log_likelihood(problem: Any, params: Any) -> Array:
    return problem.log_likelihood(params, problem.data)


def log_likelihood(result: FitResult) -> float:
    """Σ_i w_i ℓ_i at the fitted parameters, in nats; penalties and priors left out."""
    if not hasattr(result.problem, "log_likelihood"):
        raise TypeError(f"{type(result.estimator).__name__} is not a likelihood estimator")
    with result.precision():
        return float(_log_likelihood(result.problem, result.unconstrained))


def information_trace(result: FitResult) -> float | None:
    """tr(G H⁻¹), the number of parameters were the model right; None where there are no independent units."""
    if not hasattr(result.problem, "log_likelihood"):
        raise TypeError(f"{type(result.estimator).__name__} is not a likelihood estimator")
    if "information_trace" not in result._cache:
        with result.precision():
            scores = scores_of(result.problem, result.unconstrained)
            trace = None
            if scores is not None:
                inverse = result.covariance("observed").unconstrained
                trace = float(np.einsum("ni,ij,nj->", scores, inverse, scores, optimize=True))
        result._cache["information_trace"] = trace
    return result._cache["information_trace"]


def num_params(result: FitResult) -> int:
    """Free parameters: the dimension of the unconstrained space."""
    return sum(int(np.size(x)) for x in jax.tree.leaves(result.unconstrained))


def point_summary(covariance: Covariance, prob: float) -> pd.DataFrame:
    """Estimate, standard error, z, two-sided p and interval: Wald's, or percentiles of a bootstrap's refits."""
    if not 0 < prob < 1:
        raise ValueError(f"prob must lie strictly between 0 and 1, got {prob}")
    estimate, std_err = covariance.estimate, covariance.std_err
    with np.errstate(divide="ignore", invalid="ignore"):
        z = estimate / std_err
    quantile = stats.norm.ppf((1 + prob) / 2)
    lower, upper = estimate - quantile * std_err, estimate + quantile * std_err
    if covariance.replicates is not None:
        lower, upper = np.quantile(covariance.replicates, [(1 - prob) / 2, (1 + prob) / 2], axis=0)
    table = np.stack([estimate, std_err, z, 2 * stats.norm.sf(np.abs(z)), lower, upper], 1)
    return pd.DataFrame(table, index=covariance.names, columns=COLUMNS)


def information_criteria(result: FitResult) -> pd.Series:
    """log_likelihood, num_params, num_units, AIC, AICc, BIC and TIC = −2ℓ + 2 tr(G H⁻¹) (NaN without units).

    Under l1 or a bound the parameters that are not zero count (On the Degrees of Freedom of the Lasso), and TIC is NaN;
    under group or fused all but the log-likelihood and the number of units is NaN.
    """
    value, k = log_likelihood(result), num_params(result)
    if not (result.has_curvature or result.problem.nonsmooth):
        raise TypeError(
            f"{type(result.estimator).__name__} has no information criteria here: its objective is no likelihood of "
            "these parameters alone, or an estimate of one"
        )
    with result.precision():  # counting may trace the model
        n = int(result.problem.num_units)  # type: ignore[attr-defined]
    if result.problem.nonsmooth:
        separable = result.problem.penalties.separable  # type: ignore[attr-defined]
        free = sum(np.count_nonzero(x) for x in jax.tree.leaves(result.unconstrained)) if separable else math.nan
        return pd.Series(
            {
                "log_likelihood": value, "num_params": free, "num_units": n, "AIC": -2 * value + 2 * free,
                "AICc": -2 * value + 2 * free * n / (n - free - 1) if not free >= n - 1 else math.inf,
                "BIC": -2 * value + free * math.log(n), "TIC": math.nan,
            }
        )  # fmt: skip
    aic = -2 * value + 2 * k
    trace = information_trace(result)
    tic = math.nan if trace is None else -2 * value + 2 * trace
    return pd.Series(
        {
            "log_likelihood": value,
            "num_params": k,
            "num_units": n,
            "AIC": aic,
            "AICc": aic + 2 * k * (k + 1) / (n - k - 1) if n > k + 1 else math.inf,
            "BIC": -2 * value + k * math.log(n),
            "TIC": tic,
        }
    )


@dataclass(frozen=True)
class LikelihoodRatio:
    """Likelihood-ratio test of a restricted model in a larger one; `print` it."""

    statistic: float
    """2(ℓ_large − ℓ_small)."""
    df: int
    p_value: float

    def __str__(self) -> str:
        return f"likelihood-ratio test: χ²({self.df}) = {self.statistic:.3f}, p = {self.p_value:.4g}"


def lr_test(a: FitResult, b: FitResult) -> LikelihoodRatio:
    """Likelihood-ratio test of two nested maximum-likelihood fits of the same data, in either order.

    The χ² law needs the smaller model to lie inside of the larger one, not at the boundary of it.

    Raises:
        ValueError: fits of different numbers of units, or of equally many parameters; the smaller model fits better.
        TypeError: a fit that is not plain maximum likelihood.
    """
    for name, result in (("a", a), ("b", b)):
        estimator = result.estimator
        if getattr(estimator, "has_prior", True) or getattr(estimator, "robust", 0):
            raise TypeError(f"lr_test needs fits of MLE, {name} is one of {estimator!r}")
        if getattr(estimator, "penalised", False):
            raise TypeError(
                f"lr_test needs maximum-likelihood fits, {name} is penalised: its likelihood is not at a maximum and "
                "the χ² law does not hold. Compare held-out log-likelihoods (estimax.penalty_path)"
            )
    if a.problem.num_units != b.problem.num_units:  # type: ignore[attr-defined]
        raise ValueError(
            f"lr_test needs two fits of the same data: a has {a.problem.num_units} units, "  # type: ignore[attr-defined]
            f"b {b.problem.num_units}"  # type: ignore[attr-defined]
        )
    small, large = sorted((a, b), key=num_params)
    df = num_params(large) - num_params(small)
    if df == 0:
        raise ValueError(f"both models have {num_params(a)} parameters: neither is nested in the other")
    statistic = 2 * (log_likelihood(large) - log_likelihood(small))
    if statistic < -1e-6 * (1 + abs(log_likelihood(small))):
        raise ValueError(
            f"the smaller model has the higher log-likelihood (by {-statistic / 2:.3g} nats): they are not nested, or "
            "the larger fit has not converged (try num_restarts=10)"
        )
    return LikelihoodRatio(max(statistic, 0.0), df, float(stats.chi2.sf(max(statistic, 0.0), df)))


@dataclass(frozen=True)
class SampleSize:
    """How far the plug-in distribution is expected to be from the best one of its family; `print` it."""

    num_units: int
    num_params: int
    expected_kl: float
    """E KL(best ‖ fitted) per unit, nats: tr(G H⁻¹) / (2n)."""
    well_specified_kl: float
    """p / (2n): the same were the model true."""
    bayes_error: float
    """Lower bound of the error rate of the best test, from one unit, between fitted and best: (1 − √(KL/2)) / 2."""
    enough: bool
    needed: int
    """Units at which the bound would be reached."""
    minimum_error: float

    def __str__(self) -> str:
        word = "suffice" if self.enough else "do not suffice"
        return (
            f"{self.num_units} units {word} for {self.num_params} parameters: expected KL to the best distribution of "
            f"the family {self.expected_kl:.3g} nats a unit ({self.well_specified_kl:.3g} were the model true), so no "
            f"test from one unit tells the two apart with an error rate under {self.bayes_error:.3f} "
            f"(asked: {self.minimum_error:.3f}, reached with about {self.needed} units)"
        )


def sample_size_check(result: FitResult, minimum_error: float = 0.45) -> SampleSize:
    """The p–n criterion: whether one unit's Bayes error between the fit and its projection is at least `minimum_error`.

    Raises:
        ValueError: the model has no independent units, or minimum_error is not in (0, 0.5).
    """
    if not 0 < minimum_error < 0.5:
        raise ValueError(f"minimum_error must lie in (0, 0.5), got {minimum_error}")
    trace = information_trace(result)
    if trace is None:
        raise ValueError("the sample size check needs independent units, and this model has one observation only")
    n, p = result.problem.num_units, num_params(result)  # type: ignore[attr-defined]
    kl = trace / (2 * n)
    limit = 2 * (1 - 2 * minimum_error) ** 2
    return SampleSize(
        num_units=n, num_params=p, expected_kl=kl, well_specified_kl=p / (2 * n),
        bayes_error=max(0.0, 0.5 * (1 - math.sqrt(kl / 2))), enough=kl <= limit,
        needed=math.ceil(trace / (2 * limit)), minimum_error=minimum_error,
    )  # fmt: skip
