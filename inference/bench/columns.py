"""Who is compared: `default`, estimators of `estimax.estimators` or of a file, and peers; and how ours are run.

A column is named by text, which is all that a worker process is told:

- ``default``: ``estimax.fit(model, data=data)``, no choice by the user;
- ``VIS`` or ``VIS(num_particles=64, gradient=dreg)``: an estimator, with arguments;
- ``my.py:MyEstimator``: a class of a file;
- ``numpyro:NUTS``: a peer.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from ...estimators.base import Estimator
from ..compare import has_posterior
from ..files import BadInput, load_function, nearest_word
from ..fit import _optimizer, default_estimator, fit
from ..lookup import available_estimators, fields, make_estimators
from ..result import FitResult, proposal_size
from .cases import Case, Settings
from .outcome import Draws, Outcome
from .peers import PEERS, Peer

DEFAULT = "default"
EVIDENCE_DRAWS = 4000
"""As many as `FitResult.diagnose` takes: the verdict is the one that a user is shown."""


@dataclass(frozen=True)
class Column:
    """One method of the table."""

    name: str
    text: str = ""
    """As the user wrote it, in full; the name where it is that."""
    estimator: Estimator | None = None
    """An instance given from Python."""

    @property
    def kind(self) -> str:
        """ "default", "peer" or "estimator"."""
        return DEFAULT if self.name == DEFAULT else "peer" if self.name in PEERS else "estimator"

    def describe(self) -> str:
        """In words, for the report."""
        if self.kind == DEFAULT:
            return f"estimax.fit(model, data=data), which takes {default_estimator()!r}"
        if self.kind == "peer":
            return PEERS[self.name].settings
        return repr(self.make())

    def make(self) -> Estimator | None:
        """The estimator; None for the default.

        Raises:
            BadInput: no such estimator, or an argument that it does not take.
        """
        if self.kind == DEFAULT:
            return None
        return self.estimator if self.estimator is not None else _instance(self.text or self.name)


def resolve(given: Mapping[str, Any] | Sequence[Any]) -> list[Column]:
    """Columns from names, instances of estimators, or a dict of name -> either.

    Raises:
        BadInput: an unknown name, with the nearest; or something that is no estimator.
    """
    items = given.items() if isinstance(given, Mapping) else [(None, item) for item in given]
    columns: dict[str, Column] = {}
    for name, item in items:
        if isinstance(item, Estimator):
            column = Column(str(name or type(item).__name__), estimator=item)
        elif isinstance(item, str):
            column = _named(item)
            column = column if name is None or column.kind != "estimator" else replace(column, name=str(name))
        else:
            example = f"{item.__name__}()" if isinstance(item, type) else "ELBO()"
            raise BadInput(f"estimators must be names or instances from estimax.estimators, as {example}, got {item!r}")
        if columns.setdefault(column.name, column) != column:
            raise BadInput(f"two estimators are named {column.name!r}: give a dict of name -> estimator")
    if not columns:
        raise BadInput("estimators must name at least one, as in default,ELBO,VIS")
    return list(columns.values())


def split(text: str) -> list[str]:
    """Names between commas, those inside brackets left alone: ``"elbo,vis(num_particles=8,gradient=dreg)"``."""
    return [part.strip() for part in re.split(r",(?![^()]*\))", text) if part.strip()]


def _named(text: str) -> Column:
    lower = text.lower()
    if lower == DEFAULT:
        return Column(DEFAULT)
    for name in PEERS:
        if lower == name.lower():
            return Column(name)
    if ".py:" in text:
        _instance(text)
        return Column(text.rpartition(":")[2], text)
    name = type(_instance(text)).__name__ + (text[text.index("(") :] if "(" in text else "")
    return Column(name, text)


def _instance(text: str) -> Estimator:
    if ".py:" in text:
        path, made = load_function(text, "estimator")
        estimator = made() if isinstance(made, type) else made
        if not isinstance(estimator, Estimator):
            raise BadInput(f"{text} is no estimator: it must be a class derived from estimax.estimators.Estimator")
        return estimator
    name, bracket, inside = text.partition("(")
    if bracket and not inside.endswith(")"):
        raise BadInput(f"cannot read {text!r}: write it as VIS(num_particles=64)")
    classes = {n.lower(): cls for n, cls in available_estimators().items()}
    cls = classes.get(name.strip().lower())
    if cls is None:
        known = [DEFAULT, *available_estimators(), *PEERS]
        raise BadInput(f"no estimator {name.strip()!r}; {nearest_word(name.strip(), known)}")
    given = {}
    for part in split(inside[:-1]):
        key, equals, value = part.partition("=")
        if not equals:
            raise BadInput(f"cannot read {part!r} in {text!r}: arguments are written NAME=VALUE")
        given[key.strip()] = value.strip()
    (estimator,) = make_estimators([cls], given, None).values()
    return estimator


def left_out(columns: Sequence[Column]) -> tuple[list[Column], list[str]]:
    """The columns that can run, and a line for every peer whose package is not installed."""
    here, notes = [], []
    for column in columns:
        peer: Peer | None = PEERS.get(column.name)
        if peer is not None and not peer.installed:
            notes.append(f"{column.name} is left out: {peer.package} is not installed (pip install {peer.package})")
        else:
            here.append(column)
    return here, notes


# --- running ---------------------------------------------------------------------------------------------------------


def run(column: Column, case: Case, seed: int, settings: Settings) -> Outcome:
    """One method on one case.

    Raises:
        Exception: whatever the method raises.
    """
    if column.kind == "peer":
        if case.score is not None or case.procedure is not None:
            raise ValueError(f"{column.name} cannot run here: the model {case.name!r} has parameters of its own")
        return PEERS[column.name].run(case, seed, settings)
    return _ours(_adapt(column.make(), case), case, seed, settings)


def _adapt(estimator: Estimator | None, case: Case) -> Estimator | None:
    """The estimator with the case's own settings, as far as it has such arguments."""
    if estimator is None:
        return None
    known = fields(type(estimator))
    return replace(estimator, **{k: v for k, v in case.settings.items() if k in known})  # type: ignore[type-var]


def _ours(estimator: Estimator | None, case: Case, seed: int, settings: Settings) -> Outcome:
    if case.procedure is not None:
        began = time.perf_counter()
        of_procedure = dict(case.procedure(estimator, seed, settings))
        return Outcome(time.perf_counter() - began, measures=of_procedure, estimator=repr(estimator))
    # Only what the case or the user asks for is passed on: the column `default` is the plainest call there is.
    options: dict[str, Any] = {"guide": case.guide, "learning_rate": case.learning_rate}
    options["num_steps"] = settings.num_steps or case.num_steps
    options["optimizer"] = None if case.optimizer is None else case.optimizer()
    options = {k: v for k, v in options.items() if v is not None}

    kinds = (kind.__name__ for kind in type(estimator).__mro__)
    model = next((case.models[kind] for kind in kinds if kind in case.models), case.model)

    def fitted(**more: Any) -> FitResult:
        return fit(model, estimator, dict(case.data()), seed=seed, progress_bar=False, **{**options, **more})

    result = fitted()
    arrays = {"losses": np.asarray(result.losses), **_arrays(result)}
    particles = getattr(result.estimator, "num_particles", 1)
    outcome = Outcome(
        result.seconds, gradient_evaluations=float(result.num_steps * particles), status=result.status,
        message=result.message, estimator=repr(result.estimator), arrays=arrays,
        measures=dict(case.score(result, seed)) if case.score is not None else {},
    )  # fmt: skip
    if not case.truth().known or not has_posterior(result):
        return outcome
    # Draw i depends on the seed and on i alone: one size, compiled once, has the draws of all smaller ones in front.
    size = proposal_size(settings.num_samples)
    log_w = np.asarray(result.log_weights(size, seed=seed))[:EVIDENCE_DRAWS]
    e = result.evidence_of(log_w)
    measures: dict[str, Any] = {
        "log_evidence": e.value, "stderr": e.stderr, "elbo": e.elbo, "khat": e.khat, "verdict": e.verdict, "ess": e.ess,
    }  # fmt: skip

    def path() -> Iterator[tuple[float, Draws]]:
        """The start alone, and the same run on its way: same seed, same schedule, so the same steps."""
        found, total = result.start, result.num_steps
        if found is None or not result.steps_per_second:
            return
        yield found.seconds, result.at_start().sample(settings.num_samples, seed=seed, resample="psis")
        optimizer = _optimizer(options.get("optimizer"), options.get("learning_rate"), result.guide, total)
        for num_steps in (total // 30, total // 5):
            if num_steps:
                early = fitted(start=found, optimizer=optimizer, learning_rate=None, num_steps=num_steps)
                seconds = result.seconds - (total - num_steps) / result.steps_per_second
                yield seconds, early.sample(settings.num_samples, seed=seed, resample="psis")

    return replace(
        outcome,
        own_draws={k: v[: settings.num_samples] for k, v in result.sample(size, seed=seed).items()},
        draws=result.sample(settings.num_samples, seed=seed, resample="psis"),
        log_weights=log_w,
        measures={**measures, **outcome.measures},
        path=path,
    )


def _arrays(result: FitResult) -> dict[str, np.ndarray]:
    """Fitted parameters that are arrays, by name."""
    return {
        f"param {name}": np.asarray(value)
        for name, value in result.params.items()
        if isinstance(value, (np.ndarray, jax.Array))
    }
