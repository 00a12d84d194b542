"""Predictions at new rows of the data: moments, intervals, draws and densities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random

from ..estimators.base import Params
from ..estimators.checks import check_counts
from . import predictive
from .summary import arrays

if TYPE_CHECKING:
    from .result import FitResult

QUANTILE_DRAWS = 4000
COSTLY_DRAWS = 200


@dataclass(frozen=True)
class Prediction:
    """What a fit says of new observations, and of the functions behind them. Made by `FitResult.predict`."""

    mean: np.ndarray
    """Of new observations, ``(n,)``; of the only observed site, or of each by name in `means`."""
    variance: np.ndarray
    means: dict[str, np.ndarray]
    """Of every latent function (Gaussian processes), or observed site, by name."""
    variances: dict[str, np.ndarray]
    data: dict[str, Any] = field(repr=False)
    """The rows predicted at, as the model got them; what was not given of them is zero."""
    _result: FitResult = field(repr=False)

    @property
    def sd(self) -> np.ndarray:
        return np.sqrt(self.variance)

    def sample(self, num_samples: int = 1000, *, seed: int = 0) -> dict[str, np.ndarray]:
        """Joint draws of new observations (key: the observed site) and of latent functions, each ``(num_samples,
        n)``."""
        check_counts(num_samples=num_samples)
        result = self._result
        with result.precision():
            if not hasattr(result.problem, "forecast"):
                return _draws(result, self.data, num_samples, seed)
            found = _simulate(result.problem, result.unconstrained, self.data, random.key(seed), num_samples)
            return {name: np.asarray(value) for name, value in found.items()}

    def interval(self, prob: float = 0.95, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Central interval of new observations, by quantiles of draws of each one."""
        if not 0 < prob < 1:
            raise ValueError(f"prob must lie strictly between 0 and 1, got {prob}")
        problem = self._result.problem
        with self._result.precision():
            if hasattr(problem, "marginal_draws"):
                draws = np.asarray(
                    _marginal_draws(problem, self._result.unconstrained, self.data, random.key(seed), QUANTILE_DRAWS)
                )
            else:
                draws = self.sample(QUANTILE_DRAWS, seed=seed)[next(iter(self.means))]
        lower, upper = np.quantile(draws, [(1 - prob) / 2, (1 + prob) / 2], axis=0)
        return lower, upper

    def log_density(self) -> np.ndarray:
        """Log predictive density of each observation among the rows predicted at, nats, ``(n,)``.

        The observations are those that `FitResult.predict` got: ``predict({"X": X_new, "y": y_new}).log_density()``.
        """
        result = self._result
        with result.precision():
            if hasattr(result.problem, "predictive_log_density"):
                return np.asarray(_log_density(result.problem, result.unconstrained, self.data))
            if _own_latents(result):
                # without what has a row each too
                estimator = replace(result.estimator, weights=None, covariance="observed")  # type: ignore[type-var, call-arg]
                problem = estimator.problem(random.key(0), result.model, None, self.data)
                return np.asarray(_terms(problem, result.unconstrained))
            draws = _latent_draws(result, QUANTILE_DRAWS, 0)
            theta = {n: v for n, v in result.params.items() if n not in draws}
            found = predictive.log_likelihood(result.model, theta, draws, self.data)
        total = sum(np.asarray(v, np.float64).reshape(v.shape[0], v.shape[1], -1).sum(-1) for v in found.values())
        return np.logaddexp.reduce(total, 0) - np.log(len(total))

    def __repr__(self) -> str:
        return f"Prediction of {len(self.mean)} rows: mean from {self.mean.min():.4g} to {self.mean.max():.4g}"


@eqx.filter_jit
def _forecast(problem: Any, params: Params, data: dict[str, Any]) -> Any:
    return problem.forecast(params, data)


@eqx.filter_jit
def _log_density(problem: Any, params: Params, data: dict[str, Any]) -> Array:
    return problem.predictive_log_density(params, data)


@eqx.filter_jit
def _simulate(problem: Any, params: Params, data: dict[str, Any], rng_key: Array, num: int) -> dict[str, Array]:
    return problem.simulate(params, rng_key, data, num)


@eqx.filter_jit
def _marginal_draws(problem: Any, params: Params, data: dict[str, Any], rng_key: Array, num: int) -> Array:
    return problem.marginal_draws(params, rng_key, data, num)


@eqx.filter_jit
def _terms(problem: Any, params: Params) -> Array:
    return problem.terms(params, problem.data)[0]


@eqx.filter_jit
def _pointwise(problem: Any, params: Params, functions: dict[str, Array]) -> dict[str, Array]:
    return problem.pointwise_given(params, functions)


def pointwise(result: FitResult, functions: dict[str, Array]) -> dict[str, np.ndarray]:
    """log p(y_i | f_i) of draws of the functions at the fitted hyper-parameters, ``(S, n)`` by site."""
    with result.precision():
        found = _pointwise(result.problem, result.unconstrained, functions)
        return {n: np.asarray(v) for n, v in found.items()}


def predict(result: FitResult, new: Any) -> Prediction:
    """See `FitResult.predict`."""
    data = new_rows(result, new)
    if not hasattr(result.problem, "forecast"):
        with result.precision():
            draws = _draws(result, data, QUANTILE_DRAWS, 0)
        means = {n: v.mean(0) for n, v in draws.items()}
        variances = {n: v.var(0) for n, v in draws.items()}
        first = next(iter(means))
        return Prediction(means[first], variances[first], means, variances, data, result)
    with result.precision():
        found = _forecast(result.problem, result.unconstrained, data)
        as_numpy = lambda tree: jax.tree.map(np.asarray, tree)  # noqa: E731
        return Prediction(
            np.asarray(found.mean), np.asarray(found.variance),
            as_numpy(found.function_mean), as_numpy(found.function_variance), data, result,
        )  # fmt: skip


def new_rows(result: FitResult, new: Any) -> dict[str, Any]:
    """Arguments of the model at new rows: those given, and for the others the fit's own.

    Arrays that have a row for each row of what is given, and are not given (the observations), become zeros.

    Raises:
        ValueError: an argument that the model does not take, or one of another shape; which one X_new stands for is
            unclear.
    """
    old = result.data
    if not isinstance(new, Mapping):
        name = _inputs_argument(result)
        new = {name: new}
    unknown = sorted(set(new) - set(old))
    if unknown:
        raise ValueError(f"the model takes no argument {unknown[0]!r} (it was fitted with {', '.join(old)})")
    with result.precision():
        given = {k: jax.tree.map(jnp.asarray, np.asarray(v) if isinstance(v, list) else v) for k, v in new.items()}
        for name, value in given.items():
            for a, b in zip(jax.tree.leaves(value), jax.tree.leaves(old[name]), strict=False):
                if jnp.ndim(a) != jnp.ndim(b) or jnp.shape(a)[1:] != jnp.shape(b)[1:]:
                    raise ValueError(
                        f"{name} has shape {jnp.shape(a)}, the fit had {jnp.shape(b)}: all but rows must agree"
                    )
                if jnp.issubdtype(a.dtype, jnp.floating) and not bool(jnp.all(jnp.isfinite(a))):
                    raise ValueError(f"{name} holds values that are not finite")
        sizes = {jnp.shape(x)[0] for k in given for x in jax.tree.leaves(old[k]) if jnp.ndim(x)}
        news = {jnp.shape(x)[0] for v in given.values() for x in jax.tree.leaves(v) if jnp.ndim(x)}
        if 0 in news:
            raise ValueError(f"no rows to predict at: {', '.join(given)} is empty")
        if len(news) > 1:
            raise ValueError(f"the arrays given have different numbers of rows: {sorted(news)}")
        out: dict[str, Any] = {}
        for name, value in old.items():
            if name in given:
                out[name] = given[name]
            elif hasattr(value, "shape") and value.ndim and value.shape[0] in sizes and news:
                out[name] = jnp.zeros((next(iter(news)), *value.shape[1:]), jnp.asarray(value).dtype)
            else:
                out[name] = value
        return out


def _inputs_argument(result: FitResult) -> str:
    """The argument of the model that holds the inputs of its functions."""
    with result.precision():
        inputs = result.problem.inputs_of(result.unconstrained) if hasattr(result.problem, "inputs_of") else None
    if inputs is not None and hasattr(inputs, "shape"):
        for name, value in result.data.items():
            same_size = hasattr(value, "shape") and np.size(value) == np.size(inputs)
            if same_size and np.allclose(np.ravel(value), np.ravel(inputs), rtol=1e-5):
                return name
    raise ValueError(
        "predict cannot tell which argument of the model the new values are of: give a dict, predict({'name': values})"
    )


def _own_latents(result: FitResult) -> set[str]:
    """Latents of single rows that a point estimate summed or integrated out: new rows have new ones."""
    roles = getattr(result.problem, "roles", None)
    if roles is None or not roles.blocks or not result.is_point:
        return set()
    return {site.name for site in roles.integrated + roles.enumerated}


def _latent_draws(result: FitResult, num_samples: int, seed: int) -> dict[str, Array]:
    """Draws of the latent sites, or the point estimate repeated."""
    if result.is_point:
        return {
            n: jnp.broadcast_to(jnp.asarray(v), (num_samples, *np.shape(v))) for n, v in arrays(result.params).items()
        }
    return result.sample(num_samples, seed=seed, resample="psis")


def _draws(result: FitResult, data: dict[str, Any], num_samples: int, seed: int) -> dict[str, np.ndarray]:
    draws = _latent_draws(result, num_samples, seed)
    first = {n: v[0] for n, v in draws.items()}
    theta = {n: v for n, v in result.params.items() if n not in draws}
    sites = predictive.describe(result.model, theta, first, data)
    if not any(s.kind == "observed" for s in sites):
        raise ValueError(
            "predict draws what the model observes, and it observes nothing: it adds its log-density by "
            "numpyro.factor, which draws need a Markov chain of (NUTS, say)"
        )
    latent = {s.name for s in sites if s.kind == "latent"} | set(theta)
    given = {*draws, *_own_latents(result)}
    missing = [s.name for s in sites if s.kind == "latent" and s.name not in given]
    if missing:
        raise ValueError(f"the fit has no draws of {missing[0]!r}: its predictions would be those of the prior")
    known = {n: v for n, v in draws.items() if n in latent or result.is_point}
    if any(s.costly for s in sites):  # each draw solves an equation
        num_samples = min(num_samples, COSTLY_DRAWS)
        known = {n: v[:num_samples] for n, v in known.items()}
    found = predictive.predict(result.model, theta, known, data, random.key(seed), num_samples)
    return {n: np.asarray(v) for n, v in found.items()}
