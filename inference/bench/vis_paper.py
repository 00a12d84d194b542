"""The tables of "Forward χ² Divergence Based Variational Importance Sampling": toy mixture and POGLM, at its settings.

Models with parameters of their own: the yardstick is how well they predict held-out data, not a posterior.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .cases import Case, Suite

COLUMNS = ("ELBO", "CHIVI", "VBIS", "IWAE", "VIS")
"""VI, CHIVI, VBIS, IWAE and VIS: the paper's five methods."""

MEASURES = {
    "marginal": "mixture: mean log p(x) of 1,000 held-out points, by quadrature",
    "complete": "mixture: mean log p(x, z) of the held-out points at their true z",
    "hidden": "mixture: mean log q(z | x) of the held-out points at their true z",
    "held_out": "POGLM: held-out log-likelihood a trial, by importance sampling from the guide (low on average)",
    "weights_error": "POGLM: mean absolute error of the weights, hidden neurons matched",
    "bias_error": "POGLM: mean absolute error of the biases",
}

CLAIMS = (
    "Mixture, VIS, 5,000 particles (the authors' code): marginal −0.630, complete −3.17, hidden −2.76.",
    "Mixture: VIS is best in the complete and in the hidden log-likelihood.",
    "POGLM: held-out log-likelihood VIS ≥ VBIS ≥ VI.",
)


def _slow_adam() -> Any:
    import optax

    return optax.adam(0.002)


def mixture_score(result: Any, seed: int) -> dict[str, float]:
    from ...models import bernoulli_mixture as m

    x, z = m.test_set()
    return {
        "marginal": float(m.marginal_log_likelihood(result.params, x)),
        "complete": float(m.complete_log_likelihood(result.params, x, z)),
        "hidden": float(m.hidden_log_likelihood(result.params, x, z)),
    }


def poglm_score(result: Any, seed: int) -> dict[str, float]:
    from ...models import poglm as m

    held_out = m.held_out()
    evidence = result.with_data(held_out).log_evidence(2000, seed=seed)
    errors = m.parameter_errors({k: np.asarray(v) for k, v in result.params.items()}, m.truth())
    return {"held_out": evidence.value / len(held_out["x"]), **{f"{k}_error": v for k, v in errors.items()}}


PANELS = (
    ("mixture", "marginal", "mixture: log p(x)", -0.630),
    ("mixture", "complete", "mixture: log p(x, z)", -3.17),
    ("mixture", "hidden", "mixture: log q(z | x)", -2.76),
    ("poglm", "held_out", "spike trains: log p(x)", None),
    ("poglm", "weights_error", "spike trains: error of weights", None),
    ("poglm", "bias_error", "spike trains: error of biases", None),
)
"""Case, measure, title, and what the authors' code gives for VIS."""
WIDE = 5.0
"""Largest over least absolute value from which an axis is logarithmic beyond 1."""


def figure(frame: Any) -> Any:
    """A panel a measure, by method: every seed a mark, their mean a line; dotted, the authors' code for VIS."""
    from matplotlib.figure import Figure

    from ..plots import COLORS, GRID

    panels = [panel for panel in PANELS if frame.loc[frame["case"] == panel[0], panel[1]].notna().any()]
    drawn = Figure(figsize=(3.4 * min(len(panels), 3), 2.8 * -(-len(panels) // 3)), layout="constrained")
    grid = drawn.subplots(-(-len(panels) // 3), min(len(panels), 3), squeeze=False).ravel()
    for axes, (case, measure, title, claimed) in zip(grid, panels, strict=False):
        runs = frame[(frame["case"] == case) & frame[measure].notna()]
        columns = list(dict.fromkeys(runs["column"]))
        for i, column in enumerate(columns):
            values = runs.loc[runs["column"] == column, measure].to_numpy(float)
            axes.plot(np.full(len(values), i), values, "o", color=COLORS[i % len(COLORS)], markersize=5, alpha=0.7)
            axes.hlines(values.mean(), i - 0.3, i + 0.3, color=COLORS[i % len(COLORS)])
        if claimed is not None:
            axes.axhline(claimed, color="0.4", linestyle=":", linewidth=1)
        size = np.abs(runs[measure].to_numpy(float))
        if size.max() > WIDE * size.min():
            axes.set_yscale("symlog", linthresh=1.0)
        axes.set_xticks(range(len(columns)), columns, fontsize=8)
        axes.set_title(title, fontsize=10)
        axes.grid(**GRID)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    return drawn


def suite() -> Suite:
    from ...models import bernoulli_mixture, poglm

    def settings(particles: int) -> dict[str, Any]:
        return {"num_particles": particles, "gradient": "score"}

    cases = (
        Case("mixture", bernoulli_mixture.model, bernoulli_mixture.data, guide=bernoulli_mixture.guide,
             settings=settings(5000), num_steps=2000, optimizer=_slow_adam, score=mixture_score),
        Case("poglm", poglm.model, poglm.data, guide=poglm.guide, settings=settings(500), num_steps=500,
             learning_rate=0.01, score=poglm_score),
    )  # fmt: skip
    return Suite(
        "vis-paper",
        "toy mixture and partially observed spike trains at the VIS paper's settings",
        cases,
        COLUMNS,
        (("mixture", "poglm"), ("ELBO", "VIS")),
        MEASURES,
        CLAIMS,
        figure=figure,
    )
