"""The one place that knows which ArviZ is installed: `InferenceData` before 1.0, `DataTree` from 1.0 on."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.special import logsumexp


@lru_cache(maxsize=1)
def arviz() -> Any:
    """The arviz module; imported late, because it is slow and only results need it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # 0.x announces 1.0 at import
        return importlib.import_module("arviz")


@lru_cache(maxsize=1)
def is_datatree() -> bool:
    """Whether the installed ArviZ is 1.0 or later."""
    return int(arviz().__version__.split(".")[0]) >= 1


def psis(log_weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Pareto-smoothed, normalised log-weights and k̂ of a vector of log-weights.

    k̂ is −inf for weights that are constant up to the rounding of their dtype, and +inf where nothing can be said: no
    positive weight, one that is no number, or a single draw.
    """
    given = np.asarray(log_weights)
    rounding = max(1e-9, 32 * np.finfo(given.dtype).eps if given.dtype.kind == "f" else 0.0)
    log_w = given.astype(np.float64)
    uniform = np.full_like(log_w, -np.log(len(log_w)))
    broken = np.isnan(log_w) | (log_w == np.inf)
    if broken.all() or not np.isfinite(log_w).any() or len(log_w) == 1:
        return uniform, float("inf")
    log_w = np.where(broken, -np.inf, log_w)
    if np.isfinite(log_w).all() and np.ptp(log_w) <= rounding * max(1.0, float(np.abs(log_w).max())):
        return uniform, float("-inf")
    log_w = np.maximum(log_w - log_w.max(), -700.0)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if is_datatree():
            from arviz_stats.base import array_stats

            try:
                smoothed, khat = array_stats.psislw(-log_w)  # 1.x takes log-likelihoods and turns the sign itself
            except ValueError:  # one draw holds all the weight: there is no tail to smooth
                return log_w - logsumexp(log_w), float("inf")
        else:
            smoothed, khat = arviz().psislw(log_w)
    smoothed = np.asarray(smoothed)
    return smoothed - logsumexp(smoothed), float("inf") if broken.any() or np.isnan(khat) else float(khat)


def build(
    groups: Mapping[str, Mapping[str, np.ndarray]],
    coords: Mapping[str, Any],
    dims: Mapping[str, list[str]],
    attrs: Mapping[str, Any],
    pred_dims: Mapping[str, list[str]] | None = None,
    pred_coords: Mapping[str, Any] | None = None,
) -> Any:
    """The installed ArviZ's container from groups of arrays.

    Args:
        groups: group name -> variable -> array; sampled groups have leading ``(chain, draw)``.
        dims: names of the dimensions after chain and draw.
        pred_dims, pred_coords: the same for the groups of predictions.
    """
    az = arviz()
    filled = {name: dict(group) for name, group in groups.items() if group}
    new = {} if pred_dims is None else {"pred_dims": dict(pred_dims), "pred_coords": dict(pred_coords or {})}
    if is_datatree():
        tree = az.from_dict(filled, coords=dict(coords), dims=dict(dims), **new)
        for name in filled:
            tree[name].attrs.update(attrs)
        return tree
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # 0.x takes the dimensions of the fit for constant data of predictions: so these are a container of their own
        own = {n: g for n, g in filled.items() if not n.startswith("predictions")}
        container = az.from_dict(**own, coords=dict(coords), dims=dict(dims), attrs=dict(attrs))
        if len(own) < len(filled):
            others = {n: g for n, g in filled.items() if n not in own}
            container.extend(az.from_dict(**others, coords=dict(pred_coords or {}), dims=dict(pred_dims or {})))
    for name in filled:
        container[name].attrs.update(attrs)
    return container


def to_netcdf(container: Any, path: str) -> None:
    if is_datatree():
        container.to_netcdf(path, engine="h5netcdf")
    else:
        container.to_netcdf(path)
