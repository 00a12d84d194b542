"""From words on the command line to models, guides, estimators and optimizers; a wrong word suggests the nearest."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from .files import BadInput, load_function, nearest_word

MOST_ARGUMENTS = 4
"""Of an estimator that a list shows; its docstring has them all."""


def available_estimators() -> dict[str, type]:
    """Every estimator that `estimax.estimators` exports and that works without arguments, by name."""
    from .. import estimators

    found = {}
    for name in estimators.__all__:
        cls = getattr(estimators, name)
        if not (inspect.isclass(cls) and issubclass(cls, estimators.Estimator)):
            continue
        if inspect.isabstract(cls) or cls is estimators.LogWeight:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                cls()
        except (TypeError, ValueError):
            continue
        found[name] = cls
    return found


def available_guides() -> dict[str, type]:
    """NumPyro's automatic guides that need the model only, by name."""
    from numpyro.infer import autoguide

    found = {}
    for name in autoguide.__all__:
        cls = getattr(autoguide, name)
        if not issubclass(cls, autoguide.AutoGuide) or inspect.isabstract(cls) or cls is autoguide.AutoGuideList:
            continue
        parameters = list(inspect.signature(cls).parameters.values())[1:]
        if cls.__call__ is not autoguide.AutoGuide.__call__ and all(
            p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters
        ):
            found[name] = cls
    return found


def first_line(obj: Any) -> str:
    """The first sentence of a docstring, without mark-up and sources."""
    text = " ".join((inspect.getdoc(obj) or "").split("\n\n")[0].split())
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", text).replace("`", "")
    text = re.sub(r" \([^()]*eq\. [^()]*\)", "", text)
    text = re.sub(r"^This implementation of \w+ (uses )?", "", text)
    text = re.split(r"(?<=[.]) (?=[A-Z])", text)[0].rstrip(".")
    return text[:1].upper() + text[1:] if text[:1].isascii() else text


def own_arguments(cls: type) -> str:
    """Constructor arguments of an estimator that the command line can spell, beyond those that a family shares; its own
    before those of the class that it extends."""
    shared = ("num_particles", "gradient", "vectorize_particles")
    spelled = [f for f in fields(cls).values() if isinstance(default(f), (str, int, float)) and f.name not in shared]
    spelled.sort(
        key=lambda f: next(i for i, c in enumerate(cls.__mro__) if f.name in vars(c).get("__annotations__", {}))
    )
    return ", ".join(
        [f"{f.name}={default(f)}" for f in spelled[:MOST_ARGUMENTS]] + ["…"] * (len(spelled) > MOST_ARGUMENTS)
    )


def default(field: dataclasses.Field) -> Any:
    """The default value of a constructor argument."""
    factory = field.default_factory
    return field.default if factory is dataclasses.MISSING else factory()


def fields(cls: type) -> dict[str, dataclasses.Field]:
    """Constructor arguments of an estimator, by name."""
    if not dataclasses.is_dataclass(cls):
        return {}
    return {f.name: f for f in dataclasses.fields(cls) if f.init}


@dataclasses.dataclass(frozen=True)
class Target:
    """A model with everything that comes with it."""

    name: str
    model: Callable
    data: Callable[[], dict[str, Any]] | None = None
    guide: Callable | None = None
    reference: Callable[[], dict[str, Any]] | None = None
    log_evidence: Callable[[], float] | None = None
    gradient: str | None = None
    num_steps: int | None = None
    learning_rate: float | None = None


def find_model(text: str) -> Target:
    """A built-in model, or FILE.py:FUNCTION.

    Raises:
        BadInput: neither, or a file that cannot be read or run.
    """
    from .. import models

    if text in models.names():
        m = models.get(text)
        return Target(**{f.name: getattr(m, f.name) for f in dataclasses.fields(Target)})
    if ".py" not in text:
        hint = nearest_word(text, models.names())
        raise BadInput(f"no built-in model {text!r}; {hint} (a model of your own: FILE.py:FUNCTION)")
    path, function = load_function(text, "model")
    return Target(f"{path.stem}-{text.rpartition(':')[2]}", function)


def find_guide(text: str | None, target: Target) -> Any:
    """What `fit` takes as ``guide=``: None is the default guide."""
    if text is None:
        return target.guide
    if text.lower() == "default":
        return None
    guides = available_guides()
    by_lower = {name.lower(): cls for name, cls in guides.items()}
    for word in (text.lower(), "auto" + text.lower()):
        if word in by_lower:
            return by_lower[word]
    if ".py" in text:
        return load_function(text, "guide")[1]
    raise BadInput(f"no guide {text!r}; {nearest_word(text, ['default', *guides])}")


def find_estimator(text: str) -> type:
    """The class of that name, whatever the case of its letters."""
    classes = available_estimators()
    by_lower = {name.lower(): cls for name, cls in classes.items()}
    if text.lower() not in by_lower:
        raise BadInput(f"no estimator {text!r}; {nearest_word(text, classes)}")
    return by_lower[text.lower()]


def make_estimators(classes: Sequence[type], given: dict[str, str], gradient: str | None) -> dict[str, Any]:
    """Instances by name, with the given arguments (as text) for those that have them.

    Args:
        gradient: what the model asks for, unless an argument of that name is given.

    Raises:
        BadInput: an argument that none of them has, or a value that one refuses.
    """
    for name in given:
        if not any(name in fields(cls) for cls in classes):
            all_known = dict.fromkeys(f for cls in classes for f in fields(cls))
            who = f"{classes[0].__name__} does" if len(classes) == 1 else "these estimators do"
            raise BadInput(f"{who} not take {name!r}; {nearest_word(name, all_known)}")
    made = {}
    for cls in classes:
        known = fields(cls)
        arguments = {n: _typed(cls, known[n], v) for n, v in given.items() if n in known}
        if gradient is not None and "gradient" in known:
            arguments.setdefault("gradient", gradient)
        try:
            made[cls.__name__] = cls(**arguments)
        except (ValueError, TypeError) as error:
            raise BadInput(f"{cls.__name__}: {error}") from error
    return made


def _typed(cls: type, field: dataclasses.Field, text: str) -> Any:
    """The text as the field's annotation wants it."""
    kinds = {kind.strip() for kind in str(getattr(field.type, "__name__", field.type)).split("|")}
    if "None" in kinds and text.lower() in ("none", "null"):
        return None
    booleans = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if "bool" in kinds and text.lower() in booleans:
        return booleans[text.lower()]
    for kind, convert in (("int", int), ("float", float)):
        if kind in kinds:
            with contextlib.suppress(ValueError):
                return convert(text)
    if "str" in kinds:
        return text
    wanted = " or ".join(sorted(kinds))
    if not kinds & {"bool", "int", "float"}:
        raise BadInput(f"{field.name} of {cls.__name__} is {wanted}, which the command line cannot spell: use Python")
    raise BadInput(f"{field.name} of {cls.__name__} must be {wanted}, got {text!r}")


def check_optimizer(name: str | None) -> None:
    """Raise `BadInput` unless optax has a method of that name that needs a step size only."""
    if name is None:
        return
    import optax

    from . import engine
    from .fit import _OPTIMIZERS

    with contextlib.suppress(Exception):
        if isinstance(engine.default_optimizer(0.01, 10, name), optax.GradientTransformation):
            return
    raise BadInput(f"no optimizer {name!r}; {nearest_word(name, _OPTIMIZERS)}")
