"""How well a fit predicts data, in words: log predictive density, and how often predictions come true."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import numpy as np
from jax import Array, random

from ..base import Params
from . import linalg

LEVELS = {50: 0.6745, 90: 1.6449, 95: 1.96}
"""Central intervals in percent, and their half-widths in standard deviations of a normal."""
DRAWS = 400
MOST = 4 * 10**7
"""Draws held at once."""


class Check(NamedTuple):
    """What is predicted of every observation of the data."""

    log_density: Array
    """``(n,)``, nats."""
    y: Array
    draws: Array | None
    """Of new observations, ``(S, n)``; None where a row has more than one number."""


def of_moments(residual: np.ndarray, variance: np.ndarray) -> str:
    """Of normal predictions, by what the observations differ from their means."""
    z = residual / np.sqrt(variance)
    score = -0.5 * (z**2 + np.log(variance) + linalg.LOG_2PI)
    return _words(score, {p: np.abs(z) < q for p, q in LEVELS.items()})


def of_draws(problem: Any, params: Params) -> str:
    """Of any predictions: those that ``problem.check`` draws."""
    num = int(np.clip(MOST // problem.num_units, 50, DRAWS))
    found = _check(problem, params, random.key(0), num)
    score = np.asarray(found.log_density)
    if found.draws is None:
        return f"log predictive density {score.mean():.3f} a row"
    y, draws = np.asarray(found.y), np.asarray(found.draws)
    if set(np.unique(draws)) | set(np.unique(y)) <= {0, 1}:
        return _of_binary(score, y, draws.mean(0))
    return _words(score, {p: np.abs(ranks(y, draws) - 0.5) < p / 200 for p in LEVELS})


@eqx.filter_jit
def _check(problem: Any, params: Params, rng_key: Array, num: int) -> Check:
    return problem.check(params, rng_key, num)


def ranks(y: np.ndarray, draws: np.ndarray, seed: int = 0) -> np.ndarray:
    """Where each observation stands among its draws ``(S, n)``, in (0, 1): uniform where the predictions are right.

    Ties, which counts have, are broken at random (Predictive Model Assessment for Count Data).
    """
    below, equal = (draws < y).sum(0), (draws == y).sum(0)
    return (below + np.random.default_rng(seed).uniform(size=len(y)) * (equal + 1)) / (len(draws) + 1)


def _words(score: np.ndarray, inside: dict[int, np.ndarray]) -> str:
    shares = ", ".join(f"{np.mean(rows):.0%} of {p}% intervals" for p, rows in inside.items())
    return f"log predictive density {score.mean():.3f} a row, the data lie in {shares}"


def _of_binary(score: np.ndarray, y: np.ndarray, probability: np.ndarray) -> str:
    """An interval says nothing of zeros and ones: how often they come where they are expected does."""
    parts = [
        f"rows with a probability {side} one half: {rows.sum()}, of which {y[rows].mean():.0%} are ones (mean "
        f"probability {probability[rows].mean():.0%})"
        for side, rows in (("below", probability < 0.5), ("above", probability >= 0.5))
        if rows.any()
    ]
    return f"log predictive density {score.mean():.3f} a row; " + "; ".join(parts)
