"""Pictures of a bench: heat map, ranks, error against time. Figures of matplotlib that belong to no window."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from ..plots import COLORS, GRID
from .measures import NEAR, critical_difference

LOW, HIGH = 0.01, 1.0
"""Ends of the colour scale, in reference sd; the middle of a logarithmic scale is then 0.1."""
STYLES = ("-", "--", ":")


def heat_map(wide: pd.DataFrame) -> Figure:
    """Worst error of a mean by case (rows) and column: blue is within 0.1 sd, red beyond.

    Args:
        wide: cases × columns; NaN where there is no answer to be had, inf where the method failed.
    """
    values = wide.to_numpy(float)
    rows, columns = values.shape
    figure = Figure(figsize=(2.9 + 0.85 * columns, 1.7 + 0.36 * max(rows, 5)), layout="constrained")
    axes = figure.subplots()
    shown = np.ma.masked_invalid(np.where(np.isinf(values), HIGH, values))
    image = axes.imshow(np.clip(shown, LOW, HIGH), cmap="RdBu_r", norm=LogNorm(LOW, HIGH), aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        text = "" if np.isnan(value) else "failed" if np.isinf(value) else short(value)
        dark = not np.isnan(value) and abs(math.log10(min(max(value, LOW), HIGH) / NEAR)) > 0.6
        axes.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    axes.set_xticks(range(columns), [c.replace(":", ":\n") for c in wide.columns], rotation=40, ha="right", fontsize=8)
    axes.set_yticks(range(rows), list(wide.index), fontsize=8)
    axes.tick_params(length=0)
    figure.colorbar(image, ax=axes, shrink=0.8, extend="both", label="error of a mean (sd)")
    return figure


def rank_plot(ranks: pd.DataFrame) -> Figure:
    """Average ranks with the critical difference (Demšar): a thick line joins columns that do not differ at 5 %.

    Args:
        ranks: cases × columns, 1 is best.
    """
    means = ranks.mean().sort_values()
    number, half = len(means), math.ceil(len(means) / 2)
    difference = critical_difference(number, len(ranks))
    cliques = _cliques(means.to_numpy(), difference)
    figure = Figure(figsize=(9.0, 1.5 + 0.32 * half + 0.14 * len(cliques)), layout="constrained")
    axes = figure.subplots()
    bottom = 0.5 + 0.22 * len(cliques)
    axes.plot([1, number], [0, 0], color="black", linewidth=1)
    for rank in range(1, number + 1):
        axes.plot([rank, rank], [0, -0.18], color="black", linewidth=1)
        axes.text(rank, -0.3, str(rank), ha="center", va="bottom", fontsize=9)
    for i, (name, mean) in enumerate(means.items()):
        left = i < half
        level = bottom + 0.45 * (i if left else number - 1 - i)
        edge = 0.7 if left else number + 0.3
        axes.plot([mean, mean, edge], [0, level, level], color="0.35", linewidth=1)
        axes.text(edge + (-0.05 if left else 0.05), level, f"{name}  {mean:.2f}" if left else f"{mean:.2f}  {name}",
                  ha="right" if left else "left", va="center", fontsize=9)  # fmt: skip
    for i, (a, b) in enumerate(cliques):
        axes.plot([means.iloc[a] - 0.04, means.iloc[b] + 0.04], [0.25 + 0.22 * i] * 2, color=COLORS[0], linewidth=3.5)
    axes.plot([1, 1 + difference], [-1.05, -1.05], color="black", linewidth=1.5)
    axes.text(1, -1.15, f"critical difference {difference:.2f}", fontsize=9, va="bottom")
    axes.set_xlim(-0.16 * number, 1.16 * number + 1)
    axes.set_ylim(bottom + 0.45 * half, -1.6)
    axes.set_axis_off()
    return figure


def _cliques(means: np.ndarray, difference: float) -> list[tuple[int, int]]:
    """First and last of every longest stretch of sorted ranks that lie within the difference."""
    ends = [(a, int(np.searchsorted(means, mean + difference, side="right")) - 1) for a, mean in enumerate(means)]
    longest: list[tuple[int, int]] = []
    for a, b in ends:
        if b > a and (not longest or b > longest[-1][1]):
            longest.append((a, b))
    return longest


def curves(panels: Mapping[str, Mapping[str, Sequence[Any]]], order: Sequence[str]) -> Figure:
    """Error against time, a panel a case and a line a column; dashed: 0.1 sd.

    Args:
        panels: case -> column -> [(seconds, error), ...], error None where it was not finite.
        order: all columns, which have one colour and line style in all panels.
    """
    across = min(3, len(panels))
    down = math.ceil(len(panels) / across)
    figure = Figure(figsize=(3.5 * across + 1.0, 2.5 * down + 0.9), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False, sharey=True)
    handles: dict[str, Any] = {}
    for axes, (case, lines) in zip(grid.ravel(), panels.items(), strict=False):
        for column, points in lines.items():
            i = order.index(column)
            seconds, error = np.array([(s, np.nan if e is None else e) for s, e in points], float).T
            style = {"color": COLORS[i % len(COLORS)], "linestyle": STYLES[i // len(COLORS) % len(STYLES)]}
            (handles[column],) = axes.plot(seconds, np.clip(error, 1e-3, 1e3), marker="o", markersize=3.5,
                                           linewidth=1.4, **style)  # fmt: skip
        axes.axhline(NEAR, color="0.4", linestyle="--", linewidth=0.9)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # a panel may span less than a decade
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_title(case, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(**GRID)
    for axes in grid.ravel()[len(panels) :]:
        axes.set_axis_off()
    named = [name for name in order if name in handles]
    figure.legend([handles[n] for n in named], named, loc="outside upper center", ncols=min(5, len(named)), fontsize=8,
                  frameon=False)  # fmt: skip
    figure.supxlabel("seconds, compilation included", fontsize=9)
    figure.supylabel("worst error of a mean (reference sd)", fontsize=9)
    return figure


def short(value: float) -> str:
    """Few digits for a small number, few for a large one."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "∞" if value > 0 else "−∞"
    size = abs(value)
    return f"{value:.3f}" if size < 0.0995 else f"{value:.2f}" if size < 9.995 else f"{value:.0f}" if size < 1e5 else (
        f"{value:.0e}")  # fmt: skip
