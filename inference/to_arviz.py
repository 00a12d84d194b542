"""From a fit to ArviZ's groups, with dimensions named after the model's plates."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax import random
from jax.flatten_util import ravel_pytree

from ..estimators.checks import check_counts
from ..estimators.guided import full_plates
from . import predictive
from .arviz_bridge import build
from .prediction import pointwise
from .summary import arrays

if TYPE_CHECKING:
    from .result import FitResult


def to_arviz(result: FitResult, num_samples: int, seed: int, resample: str | None, predictions: Any = None) -> Any:
    """See `FitResult.to_arviz`."""
    point = result.is_point
    functional = hasattr(result.problem, "pointwise_given")
    log_w = None
    if point:
        draws = _point_draws(result, num_samples, seed)
    else:
        draws, log_w = _draws_and_weights(result, num_samples, seed, resample)
    params, model, data = result.params, result.model, result.data
    first = {name: value[0] for name, value in draws.items()}
    theta = {n: v for n, v in params.items() if n not in first}
    sites = predictive.describe(model, theta, first, data)
    latent = {s.name for s in sites if s.kind == "latent"}  # the deterministic ones follow from them
    latent_draws = draws if point else {n: v for n, v in draws.items() if n in latent}
    keys = random.split(random.key(seed), 2)

    groups: dict[str, dict[str, Any]] = {"posterior": {n: _chain(v) for n, v in draws.items()}}
    observed = {s.name for s in sites if s.kind == "observed"}
    groups["sample_stats"] = {} if log_w is None else {"log_weight": _chain(log_w)}
    few = {n: v[:1] for n, v in latent_draws.items()} if any(s.costly for s in sites) else latent_draws
    if functional:
        groups |= _function_groups(result, num_samples, seed, groups["posterior"], observed)
    elif observed and (latent_draws or (point and not latent)):
        groups["posterior_predictive"] = _or_nothing(
            "posterior_predictive", lambda: predictive.predict(model, theta, few, data, keys[0])
        )
        if not point or latent <= set(draws):  # else it would be one at latents drawn anew, not the marginal one
            groups["log_likelihood"] = {
                n: _chain(v) for n, v in predictive.log_likelihood(model, theta, few, data).items()
            }
    large = functional and any(np.prod(s.shape) > 500 for s in sites)
    most = 1 if large or any(s.costly for s in sites) else 500
    prior = _or_nothing("prior", lambda: predictive.prior(model, theta, data, keys[1], min(num_samples, most)))
    groups["prior"] = {n: v for n, v in prior.items() if n not in observed}
    groups["prior_predictive"] = {n: v for n, v in prior.items() if n in observed}
    values = _observed_values(result, theta, {n: v for n, v in first.items() if n in latent}, observed)
    groups["observed_data"] = values
    sizes = {d: size for s in sites for d, size in zip(s.dims, s.shape, strict=True)}
    constant = _constant(data, values)
    # ArviZ has one name for a dimension and its coordinate: an index array called like a plate makes room
    groups["constant_data"] = {f"{n}_data" if n in sizes else n: v for n, v in constant.items()}

    dims = {s.name: list(s.dims) for s in sites}
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for site in sites:
        if site.shape and not any("_dim_" in d for d in site.dims):
            by_shape.setdefault(site.shape, list(site.dims))
    for name, value in groups["constant_data"].items():
        if np.shape(value) in by_shape:
            dims[name] = by_shape[np.shape(value)]
    if log_w is not None and log_w.ndim > 1:
        dims["log_weight"] = by_shape.get(log_w.shape[1:], [f"log_weight_dim_{i}" for i in range(log_w.ndim - 1)])
    coords = {d: np.arange(size) for d, size in sizes.items()}
    attrs = {
        "inference_library": "estimax",
        "estimator": repr(result.estimator),
        "fit_status": result.status,
        "sampling_time": float(result.seconds),
    }
    if point:
        attrs["posterior_is"] = "normal approximation of the sampling distribution of a point estimate"
    if predictions is None:
        return build(groups, coords, dims, attrs)
    groups |= _prediction_groups(result, predictions, num_samples, seed)
    # what is predicted and what was observed have names in common, so the former's dimensions are the only ones here
    rows = {n: ["prediction", *(f"{n}_dim_{i}" for i in range(1, np.ndim(v)))]
            for n, v in groups["predictions_constant_data"].items()}  # fmt: skip
    rows |= {n: ["prediction"] for n in groups["predictions"]}
    size = next(iter(groups["predictions"].values())).shape[-1]
    return build(groups, coords, dims, attrs, rows, {"prediction": np.arange(size)})


def _function_groups(
    result: FitResult, num_samples: int, seed: int, posterior: dict[str, Any], observed: set[str]
) -> dict[str, dict[str, Any]]:
    """Draws of functions at the fitted hyper-parameters, and what they say of the data."""
    if not result.has_draws:  # too many rows for joint draws
        return {}
    functions = result.sample(num_samples, seed=seed)
    predicted = result.predict(result.data).sample(num_samples, seed=seed)
    return {
        "posterior": {**posterior, **{n: _chain(v) for n, v in functions.items()}},
        "posterior_predictive": {n: _chain(v) for n, v in predicted.items() if n in observed},
        "log_likelihood": {n: _chain(v) for n, v in pointwise(result, functions).items()},
    }


def _prediction_groups(result: FitResult, new: Any, num_samples: int, seed: int) -> dict[str, dict[str, Any]]:
    found = result.predict(new)
    draws = found.sample(num_samples, seed=seed)
    size = next(iter(draws.values())).shape[-1]
    constant = {n: np.asarray(v) for n, v in found.data.items() if hasattr(v, "shape") and np.shape(v)[:1] == (size,)}
    given = new if isinstance(new, Mapping) else {n: v for n, v in constant.items() if np.any(v != 0)}
    return {
        "predictions": {n: _chain(v) for n, v in draws.items()},
        "predictions_constant_data": {n: v for n, v in constant.items() if n in given},
    }


def _point_draws(result: FitResult, num_samples: int, seed: int) -> dict[str, Any]:
    """Draws from the normal approximation of the estimate's sampling distribution, in the user's space.

    Where there is none (not identified, at a boundary, no curvature) it is the estimate itself, repeated.
    """
    with result.precision():
        flat, unravel = ravel_pytree(result.unconstrained)

    def constrained(noise: np.ndarray) -> dict[str, np.ndarray]:
        with result.precision():
            values = jax.vmap(lambda v: result.problem.constrain(unravel(v)))(jax.numpy.asarray(flat + noise))
            return {n: np.asarray(v) for n, v in arrays(values).items()}

    still = np.zeros((num_samples, len(flat)))
    if not result.has_curvature:
        return constrained(still)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the summary says what is wrong with it
        covariance = result.covariance()
    if covariance.notes or not np.isfinite(covariance.unconstrained).all():
        return constrained(still)
    rng = np.random.default_rng(seed)
    draws = constrained(rng.multivariate_normal(np.zeros(len(flat)), covariance.unconstrained, num_samples, "ignore"))
    return draws if all(np.isfinite(v).all() for v in draws.values()) else constrained(still)


def _chain(value: Any) -> np.ndarray:
    return np.asarray(value)[None]


def _draws_and_weights(
    result: FitResult, num_samples: int, seed: int, resample: str | None
) -> tuple[dict[str, Any], np.ndarray]:
    """Draws, and the log-weight of each: before resampling where there was one."""
    if resample is None:
        return result.sample(num_samples, seed=seed), np.asarray(result.log_weights(num_samples, seed=seed))
    if resample != "psis":
        raise ValueError(f'resample must be None or "psis", got {resample!r}')
    check_counts(num_samples=num_samples)
    return result._resampled(num_samples, seed)


def _or_nothing(group: str, make: Any) -> dict[str, np.ndarray]:
    """A group of draws, or none of it where a distribution of the model has no sampler."""
    try:
        return {n: _chain(v) for n, v in make().items()}
    except NotImplementedError:
        warnings.warn(
            f"no {group} group: a distribution of the model cannot be sampled (an improper prior, say)", stacklevel=4
        )
        return {}


def _observed_values(result: FitResult, theta: dict, draw: dict, observed: set[str]) -> dict[str, np.ndarray]:
    def run() -> dict[str, Any]:
        with full_plates():
            tr = predictive.run_model(result.model, theta, draw, result.data)
        return {n: jax.numpy.asarray(tr[n]["value"]) for n in tr if n in observed}

    # compiled where running the model as it stands would factorise the matrices of its processes
    found = jax.jit(run)() if hasattr(result.problem, "pointwise_given") else run()
    return {n: np.asarray(v) for n, v in found.items()}


def _constant(data: Mapping[str, Any], observed: dict[str, np.ndarray], prefix: str = "") -> dict[str, np.ndarray]:
    """Arrays of the data that no site observes; those of a dict are named like ``inputs.x``."""
    out: dict[str, np.ndarray] = {}
    for name, value in data.items():
        if isinstance(value, Mapping):
            out |= _constant(value, observed, f"{prefix}{name}.")
        if not hasattr(value, "shape"):
            continue
        array = np.asarray(value)
        seen = any(array.shape == o.shape and np.array_equal(array, o) for o in observed.values())
        if not seen and array.dtype.kind in "fiub":
            out[f"{prefix}{name}"] = array
    return out
