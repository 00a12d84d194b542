"""Which of two variables is the cause, by the likelihood of location-scale noise models in both directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import numpy as np
from jax import Array

from ..estimators.likelihood import MAP
from ..models import location_scale
from .fit import fit
from .likelihood import log_likelihood
from .result import FitResult


@eqx.filter_jit
def _pointwise(problem: Any, params: Any) -> Array:
    return -problem.pointwise(params, problem.data)


@dataclass(frozen=True)
class CausalDirection:
    """Log-likelihoods of both directions; `print` it."""

    forward: float
    """log p(y | x) of the fit, nats a datum, both variables standardised."""
    backward: float
    """log p(x | y)"""
    stderr: float
    """Standard error of their difference over the data."""
    results: tuple[FitResult, FitResult]

    @property
    def difference(self) -> float:
        """forward − backward: positive favours x → y."""
        return self.forward - self.backward

    @property
    def direction(self) -> str:
        return "x → y" if self.difference > 0 else "y → x"

    def __str__(self) -> str:
        sure = "" if abs(self.difference) > 2 * self.stderr else ", which is within two standard errors of none"
        return (
            f"{self.direction}: log-likelihood a datum {self.forward:.4f} forward, {self.backward:.4f} backward, "
            f"difference {self.difference:+.4f} ± {self.stderr:.4f}{sure}"
        )


def causal_direction(x: Any, y: Any, *, num_bumps: int = 8, progress_bar: bool = False) -> CausalDirection:
    """The direction in which a location-scale noise model is likelier.

    effect = f(cause) + g(cause)·noise: both directions are fitted (MAP, weak priors). p(cause) is taken as normal
    on both sides after standardising, so the conditional log-likelihoods decide (On the Identifiability and Estimation
    of Causal Location-Scale Noise Models). Assumes that there is no third variable behind both, and normal noise.

    Args:
        x, y: ``(n,)`` continuous, of any units.
        num_bumps: flexibility of f and g.

    Raises:
        ValueError: different lengths, constant or non-finite values.
    """
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if a.shape != b.shape or a.ndim != 1 or len(a) < 10:
        raise ValueError(f"x and y must have the same shape (n,), n at least 10, got {a.shape} and {b.shape}")
    for name, v in (("x", a), ("y", b)):
        if not np.isfinite(v).all() or np.std(v) == 0:
            raise ValueError(f"{name} must be finite and not constant")
    a, b = (a - a.mean()) / a.std(), (b - b.mean()) / b.std()
    fits, terms = [], []
    for cause, effect in ((a, b), (b, a)):
        found = fit(
            location_scale.model, MAP(), {"x": cause, "y": effect, "num_bumps": num_bumps}, progress_bar=progress_bar
        )
        fits.append(found)
        with found.precision():
            terms.append(np.asarray(_pointwise(found.problem, found.unconstrained)))
    gap = terms[0] - terms[1]
    n = len(a)
    return CausalDirection(
        forward=log_likelihood(fits[0]) / n, backward=log_likelihood(fits[1]) / n,
        stderr=float(gap.std(ddof=1) / np.sqrt(n)), results=(fits[0], fits[1]),
    )  # fmt: skip
