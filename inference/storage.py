"""A fit in one netCDF file, and back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr
from jax import random
from numpyro.infer import autoguide

from .. import estimators
from ..estimators.base import Estimator, Problem
from ..estimators.frozen import Frozen
from .arviz_bridge import to_netcdf
from .data import check_model, prepare
from .guides import resolve
from .result import FitResult
from .start import Start, default_guide

GROUP = "estimax_fit"
VERSION = 1


def encode(value: Any) -> Any:
    """An estimator, objective or plain value as JSON: ``{"class": name, "fields": {...}}`` for the former two."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if not hasattr(estimators, type(value).__name__):
            raise TypeError(type(value).__name__)
        fields = {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        return {"class": type(value).__name__, "fields": fields}
    if isinstance(value, (tuple, list)):
        return [encode(v) for v in value]
    if isinstance(value, Frozen):
        return {"class": "Frozen", "fields": {"values": value.values.tolist()}}
    json.dumps(value)
    return value


def decode(value: Any) -> Any:
    if isinstance(value, dict):
        fields = {k: decode(v) for k, v in value["fields"].items()}
        if value["class"] == "Frozen":
            return Frozen(fields["values"])
        return getattr(estimators, value["class"])(**fields)
    if isinstance(value, list):
        return tuple(decode(v) for v in value)
    return value


def save(result: FitResult, path: str | Path, num_samples: int, seed: int) -> None:
    """See `FitResult.save`.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot save to {str(path)!r}: the folder {str(path.parent)!r} does not exist")
    arrays: dict[str, np.ndarray] = {"losses": np.asarray(result.losses)}
    for name, value in result.metrics.items():
        arrays[f"metric/{name}"] = np.asarray(value)
    for i, leaf in enumerate(jax.tree.leaves(result.unconstrained)):
        arrays[f"param/{i}"] = np.asarray(leaf)
    for i, leaf in enumerate(jax.tree.leaves(result.problem.params)):
        arrays[f"initial/{i}"] = np.asarray(leaf)
    for i, leaf in enumerate(jax.tree.leaves(result.problem.memory)):
        arrays[f"memory/{i}"] = np.asarray(random.key_data(leaf) if _is_key(leaf) else leaf)
    if _drawn_once(result.problem):
        arrays["draws"] = np.asarray(result.problem.draws)  # type: ignore[attr-defined]
    data = _pack(result.problem.data, "data", arrays)
    with result.precision():
        sites = _site_shapes(result.problem, result.unconstrained)
    start = None
    if result.start is not None:
        start = {k: v for k, v in dataclasses.asdict(result.start).items() if not isinstance(v, (np.ndarray, dict))}
        arrays |= {"start/loc": result.start.loc, "start/scale": result.start.scale}
        arrays |= {f"start/local_loc/{k}": v for k, v in result.start.local_loc.items()}
        arrays |= {f"start/local_scale/{k}": v for k, v in result.start.local_scale.items()}
    try:
        estimator: Any = encode(result.estimator)
    except TypeError:
        estimator = None
    meta = {
        "version": VERSION,
        "estimator": estimator,
        "estimator_repr": repr(result.estimator),
        "guide": _guide_name(result.guide),
        "data": data,
        "sites": sites,
        "start": start,
        "seconds": result.seconds,
        "num_steps": result.num_steps,
        "steps_per_second": result.steps_per_second,
        "status": result.status,
        "message": result.message,
    }
    try:
        attrs = {"estimax": json.dumps(meta)}
    except TypeError as error:
        raise TypeError(f"cannot save data that is neither array nor number, string, bool or None: {error}") from error
    variables = {
        name.replace("/", "|"): ([f"{name.replace('/', '|')}_{i}" for i in range(a.ndim)], a)
        for name, a in arrays.items()
        if a.size or a.ndim
    }
    to_netcdf(result.to_arviz(num_samples, seed=seed), str(path))
    xr.Dataset(variables, attrs=attrs).to_netcdf(path, mode="a", group=GROUP, engine="h5netcdf")


def load(path: str | Path, model: Callable, *, guide: Any = None, estimator: Estimator | None = None) -> FitResult:
    """Read a fit that `FitResult.save` wrote.

    Args:
        model: the model that was fitted; files hold no code.
        guide: needed where the fit had a guide function or instance of the user's.
        estimator: needed where the fit had an estimator from outside `estimax.estimators`, or one that holds a
            function, a distribution or another fit.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a file of `FitResult.save`, or one that needs `guide` or `estimator`.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no file {str(path)!r}")
    try:
        with xr.open_dataset(path, group=GROUP, engine="h5netcdf") as opened:
            dataset = opened.load()
        meta = json.loads(dataset.attrs["estimax"])
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{str(path)!r} was not written by FitResult.save: {error}") from error
    if meta["version"] > VERSION:
        raise ValueError(f"{str(path)!r} has format {meta['version']}, this estimax reads up to {VERSION}")
    arrays = {str(name).replace("|", "/"): np.asarray(v) for name, v in dataset.data_vars.items()}
    data = prepare(model, _unpack(meta["data"], arrays))
    theta = check_model(model, data)
    if estimator is None:
        if meta["estimator"] is None:
            raise ValueError(
                f"the fit used {meta['estimator_repr']}, and files hold no code and no distributions: give the same "
                "again, load(path, model, estimator=...)"
            )
        estimator = decode(meta["estimator"])
    start = None
    if meta["start"] is not None:
        saved = {**meta["start"], "notes": tuple(meta["start"]["notes"])}
        saved |= {"loc": arrays["start/loc"], "scale": arrays["start/scale"]}
        saved |= {"local_loc": _under(arrays, "start/local_loc/"), "local_scale": _under(arrays, "start/local_scale/")}
        start = Start(**saved)
    guide = _restore_guide(meta["guide"], guide, model, data, theta, start)
    double = any(a.dtype == np.float64 for n, a in arrays.items() if n.startswith("param/"))
    with jax.enable_x64(True) if double else nullcontext():
        problem = estimator.problem(random.key(0), model, guide, prepare(model, _unpack(meta["data"], arrays)))
        return _restored(path, meta, arrays, problem, estimator, model, data, guide, start)


def _restored(path: Path, meta: dict, arrays: dict, problem: Problem, estimator: Estimator, model: Callable,
              data: dict, guide: Any, start: Start | None) -> FitResult:  # fmt: skip
    unconstrained, initial = _leaves(arrays, "param/", problem.params), _leaves(arrays, "initial/", problem.params)
    problem = dataclasses.replace(problem, params=initial)  # type: ignore[type-var]
    if _drawn_once(problem) and "draws" in arrays:  # files of before have none
        problem = dataclasses.replace(problem, draws=jax.numpy.asarray(arrays["draws"]))  # type: ignore[type-var, call-arg]
    if problem.memory is not None:
        plain = jax.tree.map(lambda x: random.key_data(x) if _is_key(x) else x, problem.memory)
        saved = _leaves(arrays, "memory/", plain)
        as_it_was = lambda x, new: random.wrap_key_data(new) if _is_key(x) else new.astype(x.dtype)  # noqa: E731
        problem = problem.with_memory(jax.tree.map(as_it_was, problem.memory, saved))
    problem = problem.finish(unconstrained)
    sites = _site_shapes(problem, unconstrained)
    if sites != meta["sites"]:
        raise ValueError(f"{str(path)!r} has draws of {meta['sites']}, the model of {sites}: not the same model")
    return FitResult(
        params={k: jax.tree.map(np.asarray, v) for k, v in problem.constrain(unconstrained).items()},
        losses=arrays["losses"],
        metrics=_under(arrays, "metric/"),
        estimator=estimator,
        model=model,
        data=data,
        guide=guide,
        seconds=meta["seconds"],
        num_steps=meta["num_steps"],
        steps_per_second=meta["steps_per_second"],
        status=meta["status"],
        message=meta["message"],
        start=start,
        problem=problem,
        unconstrained=unconstrained,
    )


def _drawn_once(problem: Problem) -> bool:
    """Whether the loss has noise or directions that were drawn once and belong to the units of the data."""
    return isinstance(getattr(problem, "draws", None), jax.Array)


def _is_key(leaf: Any) -> bool:
    return jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _guide_name(guide: Any) -> str:
    if isinstance(guide, estimators.WhitenedNormal):
        return "default"
    if guide is None:
        return "none"
    name = type(guide).__name__
    return f"auto:{name}" if isinstance(guide, autoguide.AutoGuide) and hasattr(autoguide, name) else "custom"


def _restore_guide(kind: str, given: Any, model: Callable, data: dict, theta: dict, start: Start | None) -> Any:
    if given is not None:
        return resolve(given, model, data, theta, start or "prior", 0)[0]
    if kind == "none":
        return None
    if kind == "default":
        assert start is not None
        return default_guide(model, data, start, theta)
    if kind.startswith("auto:"):
        return resolve(getattr(autoguide, kind[5:]), model, data, theta, start or "prior", 0)[0]
    raise ValueError("the fit used a guide function of your own: give guide= to load")


def _under(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name[len(prefix) :]: value for name, value in arrays.items() if name.startswith(prefix)}


def _leaves(arrays: dict[str, np.ndarray], prefix: str, like: Any) -> Any:
    """The saved parameters in the tree of `like`."""
    found = _under(arrays, prefix)
    saved = [found[str(i)] for i in range(len(found))]
    expected, structure = jax.tree.flatten(like)
    if [x.shape for x in saved] != [x.shape for x in expected]:
        raise ValueError(
            f"the file has parameters of shapes {[x.shape for x in saved]}, model and guide have "
            f"{[x.shape for x in expected]}: not the same model, or a guide with arguments of its own (give guide=)"
        )
    return jax.tree.unflatten(structure, [jax.numpy.asarray(x) for x in saved])


def _site_shapes(problem: Problem, params: Any) -> dict[str, list[int]]:
    """Shapes of what the posterior draws, by site, without drawing."""

    def draw(key: Any) -> dict[str, Any]:
        posterior = problem.posterior(params)
        return {} if posterior is None else posterior.sample(key, 1)

    return {name: list(value.shape[1:]) for name, value in sorted(jax.eval_shape(draw, random.key(0)).items())}


def _pack(value: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """Data as JSON, with every array put aside under a name."""
    if hasattr(value, "shape"):
        arrays[name] = np.asarray(value)
        return {"array": name}
    if isinstance(value, Mapping):
        return {"dict": {key: _pack(item, f"{name}/{key}", arrays) for key, item in value.items()}}
    return value


def _unpack(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return arrays[value["array"]]
    return {key: _unpack(item, arrays) for key, item in value["dict"].items()}
