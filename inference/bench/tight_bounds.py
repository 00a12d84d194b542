"""The signal-to-noise figure of "Tighter Variational Bounds are Not Necessarily Better", with its mend.

No fit: gradients at a fixed point near the optimum, for more and more particles. The guide's gradient of IWAE drowns in
noise as K grows (K^-1/2) unless it is doubly reparameterised (K^1/2, "Doubly Reparameterized Gradient Estimators for
Monte Carlo Objectives"); the model's own gradient gets better either way.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from .cases import Case, Settings, Suite

COUNTS = (4, 16, 64, 256, 1024)
NUM_GRADIENTS = 400

MEASURES = {
    "snr_phi": "signal-to-noise ratio of one gradient of the guide, all entries of A and b together",
    "snr_theta": "the same of the model's own parameter",
}
CLAIMS = (
    "IWAE, plain gradient: the guide's ratio falls like K^-1/2, the model's grows like K^1/2.",
    "IWAE, dreg: the guide's ratio grows like K^1/2.",
)


def data() -> dict[str, Any]:
    """One datum, as in the paper's figure of a single gradient."""
    from ...models import tight_bounds

    return {"x": tight_bounds.data()["x"][:1]}


def gradient_ratios(estimator: Any, seed: int, settings: Settings, count: int) -> dict[str, float]:
    """Signal-to-noise ratios of the estimator's gradients with `count` particles at the model's start."""
    from jax import random

    from ...models import tight_bounds
    from ..data import prepare
    from ..result import gradient_snr

    prepared = prepare(tight_bounds.model, data())
    num_draws = min(NUM_GRADIENTS, max(settings.num_samples, 2))

    def statistics(estimator: Any, role: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
        problem = estimator.problem(random.key(0), tight_bounds.model, tight_bounds.guide, prepared)
        snr = gradient_snr(problem, problem.params, num_draws, seed=seed)
        flat = [np.concatenate([np.ravel(v) for v in part[role].values()]).astype(float) for part in (snr.mean, snr.sd)]
        return flat[0], flat[1]

    estimator = replace(estimator, num_particles=count)
    _, noise = statistics(estimator, "phi", seed)
    # Both gradients have one mean. The plain one's own draws could not tell it from zero: it would take 10^7 of them.
    signal, error = statistics(replace(estimator, gradient="dreg"), "phi", seed + 1000)
    mean, own = statistics(estimator, "theta", seed)
    return {
        "particles": float(count),
        "snr_phi": _ratio(signal, error, noise, num_draws),
        "snr_theta": _ratio(mean, own, own, num_draws),
    }


def _ratio(mean: np.ndarray, sd: np.ndarray, noise: np.ndarray, num_draws: int) -> float:
    """|mean| over `noise`, with the part of |mean|² that is chance taken out."""
    signal = np.sum(mean**2 - sd**2 / num_draws)
    return float(np.sqrt(max(signal, 0.0) / np.sum(noise**2)))


def slopes(frame: Any) -> dict[tuple[str, str], float]:
    """Exponent of K by column and measure, from a straight line through the logarithms."""
    out = {}
    for (column, measure), counts, means in _curves(frame):
        use = means > 0
        out[column, measure] = float(np.polyfit(np.log(counts[use]), np.log(means[use]), 1)[0])
    return out


def _curves(frame: Any) -> list[tuple[tuple[str, str], np.ndarray, np.ndarray]]:
    curves = []
    for column, rows in frame.groupby("column", sort=False):
        for measure in MEASURES:
            means = rows.groupby("particles")[measure].mean().dropna()
            if len(means) > 1:
                curves.append(((str(column), measure), means.index.to_numpy(float), means.to_numpy(float)))
    return curves


def figure(frame: Any) -> Any:
    """Signal-to-noise against particles, both axes logarithmic; the legend has the slopes."""
    from matplotlib.figure import Figure

    from ..plots import COLORS, GRID

    drawn = Figure(figsize=(8.0, 4.6), layout="constrained")
    axes = drawn.subplots()
    exponents = slopes(frame)
    names = {"snr_phi": "guide", "snr_theta": "model"}
    columns = list(dict.fromkeys(frame["column"]))
    for (column, measure), counts, means in _curves(frame):
        label = f"{column}, {names[measure]}: K^{exponents[column, measure]:+.2f}"
        color = COLORS[columns.index(column) % len(COLORS)]
        axes.plot(counts, means, "o-" if measure == "snr_phi" else "s--", color=color, label=label, markersize=4)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("particles K")
    axes.set_ylabel("signal-to-noise ratio of one gradient")
    axes.grid(**GRID)
    drawn.legend(loc="outside right upper", fontsize=9, frameon=False)
    return drawn


def suite() -> Suite:
    from ...models import tight_bounds

    cases = tuple(
        Case(f"K={count}", tight_bounds.model, data, guide=tight_bounds.guide,
             procedure=partial(gradient_ratios, count=count))
        for count in COUNTS
    )  # fmt: skip
    return Suite(
        "tight-bounds",
        "signal-to-noise ratio of gradients against particles, the figure of the paper",
        cases,
        ("IWAE(gradient=reparam)", "IWAE(gradient=dreg)"),
        (("K=4", "K=64"), ("IWAE(gradient=reparam)", "IWAE(gradient=dreg)")),
        MEASURES,
        CLAIMS,
        figure,
    )
