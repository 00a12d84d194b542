"""What a suite is made of: a case is a model with its data and its truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Moments = Mapping[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Truth:
    """What is known of a posterior; any part may be missing."""

    draws: Mapping[str, np.ndarray] | None = None
    """Reference draws by site, ``(num_draws, *event)``."""
    moments: Moments | None = None
    """Exact mean and standard deviation by site, each ``(*event,)``; they come before those of `draws`."""
    log_evidence: float | None = None
    """log p(data) in nats, exact."""

    @property
    def known(self) -> bool:
        """Whether there is anything to measure an answer against."""
        return self.draws is not None or self.moments is not None or self.log_evidence is not None


@dataclass(frozen=True)
class Settings:
    """What holds for every run of a bench; ``None`` leaves it to the case, and then to `fit`."""

    num_steps: int | None = None
    """Optimisation steps of every estimator, peers too; NUTS takes that many of warm-up and as many draws a chain."""
    num_samples: int = 10_000
    """Draws from an answer that errors are computed from: a Monte Carlo error of 0.01 sd in a mean."""
    curves: bool = True
    """Also fit with fewer steps, for the first seed, to see how the error falls with time."""
    x64: bool = False
    """Double precision for estimators and peers alike."""


@dataclass(frozen=True)
class Case:
    """One model with data and truth. Everything but the model is behind a function: a suite is listed at no cost.

    A suite of your own goes through worker processes if these functions can be pickled (functions of a module; no
    lambdas).
    """

    name: str
    model: Callable[..., Any]
    data: Callable[[], Mapping[str, Any]]
    truth: Callable[[], Truth] = Truth
    guide: Any = None
    """The model's own guide; None takes that of `fit`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of every estimator that has them (``num_particles``, ``gradient``), where the setting is a paper's."""
    num_steps: int | None = None
    learning_rate: float | None = None
    optimizer: Callable[[], Any] | None = None
    """Makes the optimizer, where a schedule of its own is asked for."""
    models: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    """Models by name of the estimator's class or one that it derives from, where kinds of estimators fit kinds of
    models; every other gets `model`."""
    score: Callable[[Any, int], Mapping[str, float]] | None = None
    """Measures of its own, from a `FitResult` and the seed: held-out log-likelihoods, errors of parameters."""
    procedure: Callable[[Any, int, Settings], Mapping[str, float]] | None = None
    """In place of a fit: measures of an estimator (first argument), as gradients at a fixed point."""


@dataclass(frozen=True)
class Suite:
    """A named list of cases, with the columns that it is usually run with."""

    name: str
    description: str
    cases: tuple[Case, ...]
    columns: tuple[str, ...]
    """Estimators and peers by name, as `columns.resolve` reads them."""
    quick: tuple[tuple[str, ...], tuple[str, ...]]
    """Names of the cases and of the columns of ``--quick``."""
    measures: Mapping[str, str] = field(default_factory=dict)
    """Measures of the cases' own `score` or `procedure`: what each means."""
    claims: tuple[str, ...] = ()
    """What a paper says of the same setting, to stand beside our figures."""
    figure: Callable[[Any], Any] | None = None
    """A matplotlib Figure of its own from the table of runs (a pandas frame)."""
