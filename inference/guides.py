"""From what the user gives as ``guide=`` to a guide function that compiles once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from numpyro import handlers
from numpyro.infer.autoguide import AutoGuide
from numpyro.infer.initialization import init_to_uniform, init_to_value

from ..estimators import unconstrained as space
from ..estimators.guided import full_plates
from ..estimators.recall import recall
from .start import Start, default_guide, find_start


def resolve(
    guide: Any, model: Callable, data: dict[str, Any], theta: dict[str, Any], start: Any, seed: int
) -> tuple[Callable, Start | None, dict[str, Any]]:
    """The guide function, the start that it was given, and initial values of guide parameters that differ from the
    guide's own.

    Args:
        guide: None, an AutoGuide class or instance, or a guide function of the model's arguments.

    Raises:
        TypeError: none of these, or a class that takes more than the model.
    """
    if guide is None:
        found = find_start(model, data, theta=theta, method=start, seed=seed)
        return default_guide(model, data, found, theta), found, {}
    if isinstance(guide, type) and issubclass(guide, AutoGuide):
        _check_class(guide)
        return _from_class(guide, model, data, theta, start, seed)
    if isinstance(guide, AutoGuide):
        if guide.prototype_trace is None:
            # An autoguide remembers its first run; that must not happen inside a compiled function.
            handlers.seed(guide, seed)(**data)
        return guide, None, {}
    if callable(guide):
        return guide, None, {}
    raise TypeError(
        "guide must be None, an AutoGuide class or instance of numpyro.infer.autoguide, or a guide function of the "
        f"model's arguments, got {type(guide).__name__}"
    )


def _check_class(cls: type[AutoGuide]) -> None:
    """Raise TypeError where the model and locations to start from are not enough to make a guide."""
    taken = list(inspect.signature(cls).parameters.values())
    needed = [p.name for p in taken if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)][1:]
    if needed:
        raise TypeError(
            f"guide={cls.__name__}: this class needs {', '.join(needed)} besides the model, so make an instance: "
            f"guide={cls.__name__}(model, {', '.join(needed)})"
        )
    if not any(p.name == "init_loc_fn" or p.kind is p.VAR_KEYWORD for p in taken):
        raise TypeError(
            f"guide={cls.__name__}: this class has no init_loc_fn, through which it would start at the mode, so make "
            f"an instance: guide={cls.__name__}(model)"
        )


def _from_class(
    cls: type[AutoGuide], model: Callable, data: dict, theta: dict, start: Any, seed: int
) -> tuple[Callable, Start | None, dict[str, Any]]:
    """An instance of the class whose locations start at the mode.

    One instance a model, class and data shape serves the compiled loss, because autoguides are compared by identity;
    a fresh one, started at this data's mode, gives the initial values.
    """
    try:
        found = find_start(model, data, theta=theta, method=start, seed=seed)
        strategy = init_to_value(values=_values(model, data, theta, found))
    except (ValueError, NotImplementedError):  # discrete latents: the class itself says whether it can
        if isinstance(start, dict):
            raise
        found, strategy = None, init_to_uniform
    fresh = cls(model, init_loc_fn=strategy)
    try:
        with handlers.trace() as tr:
            handlers.seed(fresh, seed)(**data)
    except RuntimeError as error:
        raise ValueError(
            f"{cls.__name__} found no values of the latents at which the density of the model and its gradient are "
            "finite: check priors and data, or give start= a dict of feasible values"
        ) from error
    initial = {n: s["value"] for n, s in tr.items() if s["type"] == "param"}
    instance = recall("instance", (model, cls, data, _supports(fresh)), lambda: fresh)
    return instance, found, initial


def _values(model: Callable, data: dict, theta: dict, start: Start) -> dict[str, Any]:
    """The start's location in the user's space."""
    sites = space.sites_of(model, theta, data)  # says which are local
    prepared = handlers.seed(full_plates(handlers.substitute(model, theta)), 0)
    unconstrained = space.unravel(jax.numpy.asarray(start.loc), tuple(s for s in sites if not s.local))
    unconstrained |= {k: jax.numpy.asarray(v) for k, v in start.local_loc.items()}
    return space.constrain(prepared, data, unconstrained)[0]


def _supports(guide: AutoGuide) -> tuple:
    """Bounds of the supports that the guide remembers from its first run: other bounds need another instance."""
    return tuple(
        (name, type(s["fn"].support).__name__, tuple(np.asarray(b).tobytes() for b in jax.tree.leaves(s["fn"].support)))
        for name, s in (guide.prototype_trace or {}).items()
        if s["type"] == "sample" and not s["is_observed"]
    )
