"""What one method leaves after one run, whether ours or a peer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Draws = Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """An answer and its cost."""

    seconds: float
    """Wall time until the answer was there, compilation included; drawing from it is not counted."""
    draws: Draws | None = None
    """Equally weighted draws by site, ``(num_draws, *event)``: what the method would have its user take."""
    own_draws: Draws | None = None
    """Draws before importance resampling, where there was any."""
    log_weights: np.ndarray | None = None
    gradient_evaluations: float | None = None
    """Of the log joint density; None where the method does not say."""
    num_chains: int = 1
    status: str = "finished"
    message: str = ""
    estimator: str = ""
    measures: dict[str, Any] = field(default_factory=dict)
    """What is already known: evidence, k̂, R̂, scores."""
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    """Kept with the draws: losses, fitted parameters."""
    path: Callable[[], Iterator[tuple[float, Draws]]] | None = None
    """Answers that less time would have given: (seconds, draws), cheapest first, without the final one."""
