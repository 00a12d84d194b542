"""The shelf of models: a record per model, and look-up by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Model", "UnknownModelError", "get", "names", "register"]

Data = dict[str, Any]


@dataclass(frozen=True)
class Model:
    """A NumPyro model with its data and its truth.

    Everything but the model itself is behind a function without arguments, so that a registry can be listed without
    loading a data set. Each call returns fresh arrays, the same ones every time.
    """

    name: str
    """How the model is called in `get` and on the command line."""
    description: str
    """One line, for lists."""
    model: Callable[..., Any]
    """The NumPyro model; it takes the items of `data()` as keyword arguments and nothing else."""
    data: Callable[[], Data]
    """Keyword arguments of the model: NumPy arrays, and plain ints where a size is meant (`batch_size`). Such an int
    fixes a shape, so it must stay static under `jax.jit`."""
    guide: Callable[..., Any] | None = None
    """Hand-written guide with the keyword arguments of the model. None: no guide of its own, take an automatic one."""
    held_out: Callable[[], Data] | None = None
    """Test data in the form of `data()`, without `batch_size`."""
    reference: Callable[[], dict[str, Any]] | None = None
    """Draws from the posterior, site -> array (num_draws, *event_shape), of latent sites and of the deterministic
    sites that people look at. It may take seconds (a sampler runs); the second call is then free."""
    log_evidence: Callable[[], float] | None = None
    """Exact log p(data) in nats, where it is known."""
    truth: Callable[[], dict[str, Any]] | None = None
    """Name of a param site -> value that simulated data were generated with, in the user's (constrained) space."""
    gradient: str | None = None
    """The gradient estimator that the model and its guide need, e.g. "score" for discrete latents. None: any."""
    num_steps: int | None = None
    """Optimisation steps that suffice with `learning_rate`. None: the defaults suit."""
    learning_rate: float | None = None
    """Adam's step size that goes with `num_steps`. None: the defaults suit."""


class UnknownModelError(ValueError):
    """No model of that name is registered."""


_MODELS: dict[str, Model] = {}


def register(model: Model) -> Model:
    """Put a model on the shelf, under `model.name`, and return it. A name taken by another model is an error."""
    if not isinstance(model, Model):
        raise TypeError(f"register takes an estimax.models.Model, not {type(model).__name__}")
    if _MODELS.get(model.name, model) is not model:
        raise ValueError(f"a model named {model.name!r} is registered already")
    _MODELS[model.name] = model
    return model


def names() -> tuple[str, ...]:
    """Names of all registered models, in the order of registration."""
    return tuple(_MODELS)


def get(name: str) -> Model:
    """The model of that name; `UnknownModelError`, naming the nearest one, if there is none."""
    try:
        return _MODELS[name]
    except KeyError:
        near = difflib.get_close_matches(str(name), _MODELS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(_MODELS)}"
        raise UnknownModelError(f"no model named {name!r}; {hint}") from None
