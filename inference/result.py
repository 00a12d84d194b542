"""`FitResult`: what a fit leaves, and everything that can be asked of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import numpy as np
import pandas as pd
from jax import Array, random

from ..estimators.base import Estimator, Posterior, Problem
from ..estimators.checks import check_counts
from . import evidence as evidence_module
from .arviz_bridge import psis
from .data import describe, prepare
from .diagnose import Diagnosis, GradientSNR, PointDiagnosis, diagnose, diagnose_point
from .evidence import Evidence
from .start import Start

if TYPE_CHECKING:
    from .covariance import Covariance
    from .likelihood import SampleSize
    from .prediction import Prediction


def in_session_precision(tree: Any) -> Any:
    """Double-precision leaves as the session has them: single, unless jax_enable_x64."""

    def cast(x: Any) -> Any:
        if (
            isinstance(x, jax.Array)
            and x.dtype in (np.float64, np.int64)
            and jax.numpy.result_type(float) != np.float64
        ):
            with jax.enable_x64(True):
                return x.astype(x.dtype.name.replace("64", "32"))
        return x

    return jax.tree.map(cast, tree)


@eqx.filter_jit
def _compiled_sample(posterior: Posterior, rng_key: Array, num_samples: int) -> dict[str, Array]:
    return posterior.sample(rng_key, num_samples)


@eqx.filter_jit
def _compiled_log_weights(posterior: Posterior, rng_key: Array, num_samples: int) -> Array:
    return posterior.log_weights(rng_key, num_samples)


@eqx.filter_jit
def _compiled_complete(posterior: Posterior, draws: dict[str, Array]) -> dict[str, Array]:
    return posterior.complete(draws)


def _bucket(num_samples: int) -> int:
    """The next power of two: few sizes are ever compiled. Draw i depends on the key and i alone."""
    return max(256, 1 << (num_samples - 1).bit_length())


def _precision_of(tree: Any) -> Any:
    """Context of the precision that a tree's arrays have."""
    double = any(x.dtype == np.float64 for x in jax.tree.leaves(tree) if hasattr(x, "dtype"))
    return jax.enable_x64(True) if double else nullcontext()


def _sample(posterior: Posterior, rng_key: Array, num_samples: int) -> dict[str, Array]:
    with _precision_of(posterior):
        draws = _compiled_sample(posterior, rng_key, _bucket(num_samples))
        return {name: value[:num_samples] for name, value in draws.items()}


def _log_weights(posterior: Posterior, rng_key: Array, num_samples: int) -> Array:
    with _precision_of(posterior):
        return _compiled_log_weights(posterior, rng_key, _bucket(num_samples))[:num_samples]


@dataclass(frozen=True, eq=False)
class FitResult:
    """A fitted estimator. Made by `estimax.fit`; draws are reproducible by their `seed`."""

    params: dict[str, Any]
    """Fitted `param` sites of model and guide, in the user's space."""
    losses: np.ndarray
    """Loss of every step, ``(num_steps,)``; of the best restart where there were several."""
    metrics: dict[str, np.ndarray]
    """Logged scalars, ``(num_steps,)`` each; with restarts ``loss`` and the others have a leading restart axis."""
    estimator: Estimator
    model: Callable
    data: dict[str, Any]
    guide: Callable | None
    seconds: float
    """Wall time of the whole fit, start and compilation included."""
    num_steps: int
    """Steps taken: fewer than asked for where the fit was interrupted or a loss went bad."""
    steps_per_second: float
    """Of the steps after the first, so without compilation."""
    status: str
    """"finished", "interrupted" or "non-finite"."""
    message: str
    start: Start | None
    problem: Problem = field(repr=False)
    unconstrained: Any = field(repr=False)
    """Fitted parameters in the space of the optimiser."""
    _cache: dict[Any, Any] = field(default_factory=dict, repr=False, init=False)

    def __repr__(self) -> str:
        loss = f"{self.losses[-1]:.4f}" if self.losses.size else "none"
        return (
            f"FitResult({describe(self.estimator)}, {self.status} after {self.num_steps} steps in "
            f"{self.seconds:.1f} s, last loss {loss})"
        )

    @property
    def posterior(self) -> Posterior:
        with self.precision():
            posterior = self.problem.posterior(self.unconstrained)
        if posterior is None:
            raise ValueError(f"{type(self.estimator).__name__} leaves no posterior to draw from")
        return posterior if posterior.double else in_session_precision(posterior)

    @property
    def has_draws(self) -> bool:
        """Whether `sample` has something to draw from: a posterior, or functions at fitted hyper-parameters."""
        found: list[bool] = []
        with self.precision():  # traced: a whole posterior factorises matrices
            jax.eval_shape(lambda: found.append(self.problem.posterior(self.unconstrained) is not None))
        return found[0]

    def precision(self) -> Any:
        """Context in which this fit was made: exact losses are solved in double precision."""
        return _precision_of(self.unconstrained)

    def sample(self, num_samples: int = 1000, *, seed: int = 0, resample: str | None = None) -> dict[str, Array]:
        """Posterior draws of latent and deterministic sites, each ``(num_samples, *event)``.

        Args:
            resample: None draws from the guide. "psis" draws ten times as many (4,000 at least), smooths their
                importance weights and resamples, per datum where latents are local: asymptotically exact while k̂
                is below 0.7 (Pareto Smoothed Importance Sampling).
        """
        check_counts(num_samples=num_samples)
        if resample not in (None, "psis"):
            raise ValueError(f'resample must be None or "psis", got {resample!r}')
        if resample is None:
            return _sample(self.posterior, random.key(seed), num_samples)
        return self._resampled(num_samples, seed)[0]

    def _resampled(self, num_samples: int, seed: int) -> tuple[dict[str, Array], np.ndarray]:
        """Draws resampled by their smoothed weights, and the log-weight that each had before."""
        posterior, key, size = self.posterior, random.key(seed), proposal_size(num_samples)
        log_w = np.asarray(_log_weights(posterior, key, size))
        table = resampling_table(log_w, num_samples, seed)
        draws = _take(_sample(posterior, key, size), table, posterior.local_axes())
        if log_w.ndim > 1 and draws:
            # a site that mixes data (a mean over a plate, say) follows from what was drawn for each datum
            draws |= _compiled_complete(posterior, draws)
        return draws, np.take_along_axis(log_w, table, 0)

    def log_weights(self, num_samples: int = 1000, *, seed: int = 0) -> Array:
        """log p(x, z) − log q(z) of the draws of `sample` with the same seed; ``(num_samples, *local plates)``."""
        check_counts(num_samples=num_samples)
        return _log_weights(self.posterior, random.key(seed), num_samples)

    def log_evidence(self, num_samples: int = 1000, *, seed: int = 0) -> Evidence:
        """Importance-sampling estimate of log p(x) with its standard error, the ELBO, k̂ and ESS, from fresh draws."""
        return self.evidence_of(np.asarray(self.log_weights(num_samples, seed=seed)))

    def evidence_of(self, log_weights: np.ndarray) -> Evidence:
        """The same from `log_weights` at hand, ``(num_samples, *local plates)``."""
        if self.start is None:
            return evidence_module.estimate(log_weights)
        start = self.start
        return evidence_module.estimate(log_weights, (start.bound, start.bound_stderr), start.unmet)

    def diagnose(self, num_samples: int = 4000, *, seed: int = 0) -> Diagnosis | PointDiagnosis:
        """Numbers, and in words what to trust and what to try next.

        Of a posterior by its importance weights; of a point estimate by convergence and curvature.
        """
        if self.is_point:
            return diagnose_point(self)
        return diagnose(self, num_samples, seed)

    def gradient_snr(self, num_draws: int = 200, *, num_particles: int | None = None, seed: int = 0) -> GradientSNR:
        """Mean, standard deviation and signal-to-noise ratio |mean|/sd of the gradient at the fitted parameters.

        Split into the model's parameters (theta) and the guide's (phi), because a tighter bound may have a better
        gradient for the one and a worse for the other (Tighter Variational Bounds are Not Necessarily Better).

        Args:
            num_draws: independent gradients.
            num_particles: of each; None takes the estimator's.
        """
        return gradient_snr(self.problem, self.unconstrained, num_draws, num_particles, seed)

    def to_arviz(
        self, num_samples: int = 1000, *, seed: int = 0, resample: str | None = "psis", predictions: Any = None
    ) -> Any:
        """The installed ArviZ's container: `InferenceData` before 1.0, `DataTree` from 1.0 on.

        Groups: posterior, posterior_predictive, prior, prior_predictive, log_likelihood, sample_stats (``log_weight``),
        observed_data, constant_data. Groups that the model does not allow (an improper prior has no draws) are left
        out. Dimensions are named after plates. ArviZ weighs draws equally, hence the resampling; ``log_weight`` holds
        the weight that each draw had before. Draws are independent, so there is one chain.

        Args:
            predictions: new rows, as `predict` takes them: adds the groups predictions and predictions_constant_data.
        """
        from .to_arviz import to_arviz

        return to_arviz(self, num_samples, seed, resample, predictions)

    def save(self, path: str, *, num_samples: int = 1000, seed: int = 0) -> None:
        """Write one netCDF file: the groups of `to_arviz`, and in ``estimax_fit`` all that `estimax.load` needs."""
        from .storage import save

        save(self, path, num_samples, seed)

    def summary(
        self, num_samples: int = 4000, *, prob: float = 0.95, seed: int = 0, resample: str | None = "psis",
        covariance: Any = None,
    ) -> pd.DataFrame:  # fmt: skip
        """Table with a row per scalar: estimate, std_err, z, p_value, lower, upper.

        For a point estimate: its standard error by the estimator's covariance (or another kind, `covariance`), z,
        two-sided p and Wald's interval, or a bootstrap's percentiles; ``attrs`` holds the information criteria. Where
        the loss has kinks or noise there are estimates alone, the other columns NaN.

        For a posterior: mean, sd, mean/sd, twice the smaller posterior tail beyond zero, and the central interval of
        probability `prob`. From resampled draws, because the guide of a mass-covering estimator (IWAE, VIS) is wide
        on purpose; ``resample=None`` describes the guide itself.
        """
        from .likelihood import information_criteria, point_summary
        from .summary import estimates_alone, posterior_summary

        if self.is_point and not self.has_curvature:
            return estimates_alone({n: v for n, v in self.params.items() if n not in self.problem.auxiliary})
        if self.is_point:
            found = self.covariance(covariance)
            table = point_summary(found, prob)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # said once
                criteria = dict(information_criteria(self)) if hasattr(self.problem, "log_likelihood") else {}
            table.attrs = {"covariance": found.kind, **{k: float(v) for k, v in criteria.items()}}
            return table
        return posterior_summary(self.sample(num_samples, seed=seed, resample=resample), prob)

    @property
    def has_curvature(self) -> bool:
        """Whether the loss is exact and smooth, so that standard errors follow from its derivatives."""
        return self.problem.has_curvature

    @property
    def is_point(self) -> bool:
        """Whether the fit is a point estimate: it has parameters and standard errors, but no posterior."""
        with self.precision():
            return self.problem.is_point(self.unconstrained)

    def predict(self, X_new: Any) -> Prediction:
        """Predictions at new rows: ``.mean``, ``.variance``, ``.interval()``, ``.sample()``, ``.log_density()``.

        Args:
            X_new: for a Gaussian process its new inputs, an array; or, for any model, a dict of the arguments of the
                model that have new values. Observations need not be among them, except for ``log_density``.

        Raises:
            ValueError: arguments of a wrong name or shape, values that are not finite.
        """
        from .prediction import predict

        return predict(self, X_new)

    def covariance(self, kind: Any = None, *, num_replicates: int = 1000, seed: int = 0) -> Covariance:
        """Sampling covariance of the estimates, computed once a kind.

        Args:
            kind: "observed", "opg", "sandwich", ("cluster", ids), "bootstrap" or "parametric_bootstrap"; None takes
                the estimator's.
            num_replicates, seed: of a bootstrap.
        """
        from . import covariance
        from .covariance import freeze_covariance

        given = freeze_covariance(getattr(self.estimator, "covariance", None) or "observed" if kind is None else kind)
        key = ("covariance", given, num_replicates, seed)
        if key not in self._cache:
            with self.precision():
                self._cache[key] = covariance.compute(self, given, num_replicates=num_replicates, seed=seed)
        for note in self._cache[key].notes:
            warnings.warn(note, RuntimeWarning, stacklevel=3)
        return self._cache[key]

    def confint(self, prob: float = 0.95, *, method: str = "wald", covariance: Any = None) -> pd.DataFrame:
        """Intervals of a point estimate: columns estimate, lower, upper.

        Args:
            method: "wald" (estimate ± quantile × standard error; percentiles for a bootstrap) or "profile", where the
                profile log-likelihood has fallen by half a χ²₁ quantile: better for small n and skewed likelihoods.
        """
        from .likelihood import point_summary
        from .profile import intervals

        if method == "wald":
            return point_summary(self.covariance(covariance), prob)[["estimate", "lower", "upper"]]
        if method == "profile":
            with self.precision():
                return intervals(self, self.covariance("observed"), prob)
        raise ValueError(f'method must be "wald" or "profile", got {method!r}')

    def information_criteria(self) -> pd.Series:
        """log_likelihood, num_params, num_units, AIC, AICc, BIC, TIC of a likelihood fit."""
        from .likelihood import information_criteria

        return information_criteria(self)

    def sample_size_check(self, minimum_error: float = 0.45) -> SampleSize:
        """Whether the number of units suffices for the number of parameters; `print` it.

        Args:
            minimum_error: the error rate that the best test between the fitted distribution and the best one of the
                family should have at least, from one unit; 0.5 is that of a coin.
        """
        from .likelihood import sample_size_check

        return sample_size_check(self, minimum_error)

    def resume(self, num_steps: int, *, progress_bar: bool = True, **options: Any) -> FitResult:
        """Go on from the fitted parameters; losses and metrics are appended. Options as in `fit`."""
        from .fit import resume

        return resume(self, num_steps, progress_bar=progress_bar, **options)

    def with_data(self, data: dict[str, Any]) -> FitResult:
        """The fitted parameters on other data: ``result.with_data(held_out).log_evidence()`` is the held-out score.

        For amortised guides and models without local latents; a guide with parameters per datum does not fit new data.
        """
        prepared = prepare(self.model, data)
        start = None if self.start is None else self.start.elsewhere()
        return replace(self, data=prepared, problem=replace(self.problem, data=prepared), start=start)  # type: ignore[type-var]

    def at_start(self) -> FitResult:
        """The same fit before its first step: to see what refining brought."""
        return replace(
            self, unconstrained=self.problem.params, params=self.problem.constrain(self.problem.params), num_steps=0
        )


def proposal_size(num_samples: int) -> int:
    """How many draws of the guide stand behind so many resampled ones."""
    return max(10 * num_samples, 4000)


def resampling_table(log_w: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Indices ``(size, *local plates)`` of draws, systematically resampled by Pareto-smoothed weights."""
    rng = np.random.default_rng(seed)

    def indices(column: np.ndarray) -> np.ndarray:
        weights = np.exp(psis(column)[0])
        positions = (rng.random() + np.arange(size)) / size
        chosen = np.searchsorted(np.cumsum(weights / weights.sum()), positions)
        return rng.permutation(np.minimum(chosen, len(weights) - 1))

    columns = [indices(column) for column in log_w.reshape(len(log_w), -1).T]
    return np.stack(columns, 1).reshape(size, *log_w.shape[1:])


def _take(draws: dict[str, Array], table: np.ndarray, local_axes: dict[str, tuple[int, ...]]) -> dict[str, Array]:
    """Draws at the table's indices, per element of the local plates."""
    plates = table.shape[1:]
    if not plates:
        return {name: value[table] for name, value in draws.items()}
    out = {}
    front = tuple(range(1, 1 + len(plates)))
    for name, value in draws.items():
        axes = local_axes.get(name, front)
        if tuple(value.shape[a] for a in axes if a < value.ndim) != plates:
            out[name] = value[: len(table)]  # a deterministic site that no local latent enters
            continue
        moved = np.moveaxis(np.asarray(value), axes, front)
        index = table.reshape(table.shape + (1,) * (moved.ndim - table.ndim))
        taken = np.take_along_axis(moved, np.broadcast_to(index, (len(table), *moved.shape[1:])), 0)
        out[name] = jax.numpy.asarray(np.moveaxis(taken, front, axes))
    return out


@eqx.filter_jit
def _gradients(problem: Problem, params: Any, keys: Array) -> dict[str, Any]:
    def one(key: Array) -> dict[str, Any]:
        if problem.memory is None:
            return problem.gradient_parts(params, key, problem.data)
        refresh_key, key = random.split(key)  # chains, say, are drawn in between
        memory = problem.refresh(problem.memory, params, refresh_key)
        return problem.with_memory(memory).gradient_parts(params, key, problem.data)

    return jax.lax.map(one, keys, batch_size=16)


def gradient_snr(
    problem: Problem, params: Any, num_draws: int = 200, num_particles: int | None = None, seed: int = 0
) -> GradientSNR:
    """See `FitResult.gradient_snr`; for any problem at any parameters."""
    check_counts(num_draws=num_draws)
    if num_particles is not None:
        estimator = replace(problem.estimator, num_particles=num_particles)  # type: ignore[attr-defined, type-var]
        problem = replace(problem, estimator=estimator)  # type: ignore[call-arg]
    draws = _gradients(problem, params, random.split(random.key(seed), num_draws))
    return GradientSNR.from_draws(jax.tree.map(np.asarray, draws), num_draws)
