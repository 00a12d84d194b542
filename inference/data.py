"""Checks on what a user hands to `fit`, so that a mistake is named before JAX sees it."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import random
from numpyro import handlers
from numpyro.infer.initialization import init_to_uniform

from ..estimators.base import Estimator


def nearest(name: str, options: Any) -> str:
    """A hint like "did you mean 'sigma'?", or the list of options where nothing is near."""
    options = [str(o) for o in options]
    close = difflib.get_close_matches(name, options, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(options)}"


def prepare(model: Callable, data: Mapping[str, Any] | None) -> dict[str, Any]:
    """Data as the model's keyword arguments: arrays for arrays, everything else as it is.

    Python floats become arrays; integers, strings, booleans and None stay static, because models use them as sizes
    and switches.

    Raises:
        TypeError: the model is not callable, or data is no dict.
        ValueError: a key that the model does not take, a missing one, or a value that is not finite.
    """
    if not callable(model):
        raise TypeError(f"model must be a function of NumPyro primitives, got {type(model).__name__}")
    if data is None:
        data = {}
    if not isinstance(data, Mapping):
        raise TypeError(
            f"data must be a dict of the model's keyword arguments, got {type(data).__name__}; write data={{'y': y}}"
        )
    _check_keys(model, data)
    return {str(key): _convert(str(key), value) for key, value in data.items()}


def _check_keys(model: Callable, data: Mapping[str, Any]) -> None:
    try:
        parameters = inspect.signature(model).parameters
    except (TypeError, ValueError):  # builtins and some wrappers have no signature
        return
    named = {n: p for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    positional = [n for n, p in parameters.items() if p.kind is p.POSITIONAL_ONLY]
    if positional:
        raise ValueError(f"the model takes {positional[0]!r} by position only; estimax calls model(**data)")
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key in data:
        if key not in named and not takes_any:
            raise ValueError(f"data has the key {key!r}, which the model does not take; {nearest(str(key), named)}")
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in data:
            raise ValueError(
                f"the model needs {name!r}, which data does not have (keys: {', '.join(map(str, data)) or 'none'})"
            )


def _convert(key: str, value: Any) -> Any:
    if isinstance(value, (np.integer, np.bool_)):  # what `x.max()` and a data frame give: a size like any int
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)) or callable(value):
        return value
    if isinstance(value, Mapping):
        return {k: _convert(f"{key}[{k!r}]", v) for k, v in value.items()}
    if isinstance(value, (np.ndarray, jax.Array, float, list, tuple, np.generic)) or hasattr(value, "__array__"):
        return _as_array(key, value)
    return value


def _as_array(key: str, value: Any) -> jax.Array:
    try:
        array = value if isinstance(value, (np.ndarray, jax.Array)) else np.asarray(value)
    except ValueError as error:  # nested lists
        raise ValueError(f"data[{key!r}] is not an array; are its rows of unequal length? ({error})") from error
    if array.dtype == object:
        raise ValueError(
            f"data[{key!r}] is not a numeric array (dtype object): are its rows of unequal length, or text?"
        )
    if array.dtype.kind in "USmM":
        raise ValueError(f"data[{key!r}] has dtype {array.dtype}: encode text and dates as numbers first")
    _check_finite(key, array)
    if isinstance(array, jax.Array):
        return array
    with np.errstate(over="ignore"):
        converted = array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)
    _check_range(key, array, converted)
    return jax.device_put(converted)


def _check_finite(key: str, array: Any) -> None:
    if array.dtype.kind not in "fc":
        return
    finite = np.isfinite(np.asarray(array))
    if not finite.all():
        index, where = _first(~finite)
        raise ValueError(
            f"data[{key!r}]{where} is {np.asarray(array)[index]} ({int((~finite).sum())} of {finite.size} values are "
            "not finite). Remove them, or mask them in the model: replace them by a number and use "
            "numpyro.handlers.mask."
        )


def _check_range(key: str, array: np.ndarray, converted: np.ndarray) -> None:
    """Raise where the precision in force cannot hold a value: float32 would make it inf, int32 another number."""
    if array.dtype == converted.dtype:
        return
    changed = ~np.isfinite(converted) if array.dtype.kind in "fc" else converted != array
    if changed.any():
        index, where = _first(changed)
        raise ValueError(
            f"data[{key!r}]{where} is {array[index]}, which {converted.dtype} cannot hold: rescale it, or work in "
            'double precision (jax.config.update("jax_enable_x64", True))'
        )


def _first(mask: np.ndarray) -> tuple[tuple[int, ...], str]:
    """Index of the first true element, and how to print it."""
    index = tuple(int(i) for i in np.argwhere(mask)[0])
    return index, f"[{', '.join(map(str, index))}]" if index else ""


def shapes(data: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {tuple(np.shape(v))}" if hasattr(v, "shape") else f"{k}={v!r}" for k, v in data.items())


def check_model(model: Callable, data: dict[str, Any]) -> dict[str, Any]:
    """Run the model once, abstractly; return the values of its `param` sites (drawn from a fixed key).

    Raises:
        ValueError: the model fails on this data, or observes nothing.
    """
    kinds: dict[str, tuple[str, bool]] = {}

    def run(key: Any) -> dict[str, Any]:
        tr = _feasible_trace(model, data, key)
        kinds.update({n: (s["type"], bool(s.get("is_observed"))) for n, s in tr.items()})
        for site, s in tr.items():
            if s["type"] == "sample" and s["is_observed"]:
                _check_observed(site, tuple(np.shape(s["value"])), tuple(s["fn"].shape()))
        return _param_values(tr)

    name = getattr(model, "__name__", type(model).__name__)
    try:
        abstract = jax.eval_shape(run, random.key(0))
    except Exception as error:
        words = str(error).split("\n--------------------")[0].strip()
        message = _refused_argument(model, data) or f"{type(error).__name__}: {words}"
        raise ValueError(
            f"the model {name!r} could not run on this data ({shapes(data) or 'no data'}): {message}"
        ) from error
    if not any(kind == "sample" and observed for kind, observed in kinds.values()):
        raise ValueError(
            f"the model {name!r} has no observed site: nothing ties it to data. Give obs= to a numpyro.sample, or add "
            "numpyro.factor; if data holds the observations, check that the model passes them on."
        )
    if any(kind == "mutable" for kind, _ in kinds.values()):
        raise ValueError(f"the model {name!r} has a numpyro.mutable site, which no estimator here carries along")
    try:
        return _initial_params(model, data) if abstract else {}
    except jax.errors.JaxRuntimeError as error:  # a check of the model's own, at values
        message = str(error).strip().splitlines()[-1]
        raise ValueError(f"the model {name!r} could not run on this data ({shapes(data)}): {message}") from error


def _refused_argument(model: Callable, data: dict[str, Any]) -> str:
    """Site and value of what NumPyro's validation refuses, which names neither; "" where the error is another."""
    found = []

    def run(key: Any) -> None:
        with numpyro.validation_enabled(False):
            tr = _feasible_trace(model, data, key)
        for site, s in tr.items():
            fn = s.get("fn") if s["type"] == "sample" else None
            while isinstance(fn, (dist.Independent, dist.ExpandedDistribution, dist.MaskedDistribution)):
                fn = fn.base_dist
            for argument, constraint in getattr(fn, "arg_constraints", {}).items():
                value = getattr(fn, argument, None)
                if value is None or isinstance(value, jax.core.Tracer) or dist.constraints.is_dependent(constraint):
                    continue
                with contextlib.suppress(TypeError, ValueError):
                    bad = ~np.asarray(constraint(np.asarray(value)), bool)
                    if bad.any():
                        index, where = _first(bad)
                        wrong = " ".join(str(np.asarray(value)[index]).split())
                        found.append(f"site {site!r}: {argument}{where} of its {type(fn).__name__} is {wrong}, outside "
                                     f"of {constraint}")  # fmt: skip

    with contextlib.suppress(Exception):  # the error that is being explained stands then
        jax.eval_shape(run, random.key(0))
    return found[0] if found else ""


def _check_observed(name: str, observed: tuple[int, ...], expected: tuple[int, ...]) -> None:
    try:
        np.broadcast_shapes(observed, expected)
    except ValueError:
        raise ValueError(f"site {name!r} observes shape {observed}, its distribution has {expected}") from None


def _feasible_trace(model: Callable, data: dict[str, Any], key: Any) -> dict[str, Any]:
    """A run of the model at feasible values: a prior without sampler (improper) is no obstacle."""
    feasible = handlers.substitute(handlers.seed(model, key), substitute_fn=init_to_uniform)
    return handlers.trace(feasible).get_trace(**data)


def _param_values(tr: dict[str, Any]) -> dict[str, Any]:
    return {n: s["value"] for n, s in tr.items() if s["type"] == "param"}


@eqx.filter_jit
def _initial_params(model: Callable, data: dict[str, Any]) -> dict[str, Any]:
    return _param_values(_feasible_trace(model, data, random.key(0)))


def check_estimator(value: Any, called: str = "estimator") -> None:
    """Raise `TypeError` unless it is an instance of an estimator."""
    if isinstance(value, Estimator):
        return
    name = value.__name__ if isinstance(value, type) else "ELBO"
    raise TypeError(f"{called} must be an instance from estimax.estimators, as {name}(), got {value!r}")


def describe(estimator: Any) -> str:
    """The estimator with those arguments that differ from its defaults."""
    if not dataclasses.is_dataclass(estimator):
        return repr(estimator)
    shown = []
    for f in dataclasses.fields(estimator):
        usual = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        value = getattr(estimator, f.name)
        if f.init and f.repr and (f.name == "num_particles" or type(value) is not type(usual) or value != usual):
            shown.append(f"{f.name}={value!r}")
    return f"{type(estimator).__name__}({', '.join(shown)})"
