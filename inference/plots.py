"""Pictures of fits: loss curves, tails of the importance weights, posteriors against a reference.

Every function returns `matplotlib.figure.Figure` objects that belong to no window and no pyplot state: save them with
``figure.savefig(path)``, or let a notebook show them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .evidence import Evidence, estimate
from .summary import labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .compare import Comparison
    from .result import FitResult

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which the colour-blind can tell apart; its yellow is too faint for lines on white."""
GRID: dict[str, Any] = {"color": "0.88", "linewidth": 0.6}
MAX_SCALARS = 24
"""Most scalars in the picture of posteriors."""

MAX_POINTS = 20_000
"""Most points of a loss curve; of longer ones every n-th step is drawn."""


def comparison(c: Comparison) -> dict[str, Figure]:
    """The pictures of a comparison by name: "losses"; with latents "weights" and "posterior"."""
    from .compare import has_posterior

    figures = {"losses": losses({name: r.losses for name, r in c.results.items()}, _level(c))}
    measured = {name: r for name, r in c.results.items() if name not in c.errors and has_posterior(r)}
    if measured:
        seed = c.seed + 1  # the draws that the table was made of
        figures["weights"] = weights(
            {name: np.asarray(r.log_weights(c.num_samples, seed=seed)) for name, r in measured.items()},
            dict(c.frame["verdict"]),
        )
        sizes = {name: affordable(r, c.num_samples) for name, r in measured.items()}
        own = {name: r.sample(sizes[name], seed=seed) for name, r in measured.items()}
        draws = {name: r.sample(sizes[name], seed=seed, resample="psis") for name, r in measured.items()}
        figure = posterior(draws, c.reference, c.reference_name, guide_draws=own)
        if figure is not None:
            figures["posterior"] = figure
    return figures


def affordable(result: FitResult, num_samples: int) -> int:
    """Fewer draws of a model with very many latents: about 10 million numbers at most, yet 200 draws at least."""
    size = sum(np.size(value) for value in result.sample(1).values())
    return min(num_samples, max(200, 10_000_000 // max(size, 1)))


def fit_figure(result: FitResult, *, num_samples: int = 4000, seed: int = 0) -> Figure:
    """Loss curve and, with latents, the tail of the importance weights of one fit."""
    from .compare import has_posterior

    name = type(result.estimator).__name__
    latent = has_posterior(result)
    figure = Figure(figsize=(10.5 if latent else 6.0, 4.2), layout="constrained")
    axes = figure.subplots(1, 2 if latent else 1, squeeze=False)[0]
    level = None
    if latent:
        log_w = np.asarray(result.log_weights(num_samples, seed=seed))
        evidence = result.evidence_of(log_w)
        level = -evidence.value if evidence.verdict != "do not use" else None
        _weights(axes[1], {name: log_w}, {name: evidence.verdict})
        axes[1].legend(loc="lower left", fontsize=8, framealpha=0.9)
        axes[1].set_title("Tail of the importance weights: the steeper, the better", fontsize=10)
    _loss(axes[0], result.losses, COLORS[0])
    limits = loss_limits([result.losses], level)
    if limits is not None:
        axes[0].set_ylim(*limits)
    if level is not None:
        _loss_level(axes[0], level)
        axes[0].legend(loc="upper right", fontsize=8, framealpha=0.9)
    axes[0].set_title(f"{name}: loss of every step, and its running mean", fontsize=10)
    axes[0].set_ylabel("loss")
    axes[0].set_xlabel("step")
    return figure


# --- losses --------------------------------------------------------------------------------------------------------


def losses(curves: dict[str, np.ndarray], level: float | None = None) -> Figure:
    """Loss curves, a panel an estimator: every step faint, the running mean strong.

    Args:
        curves: loss of every step by estimator, ``(num_steps,)``.
        level: minus the log evidence, drawn as a line: below it no bound on the evidence can get.
    """
    columns = min(3, len(curves)) or 1
    rows = math.ceil(len(curves) / columns) or 1
    figure = Figure(figsize=(3.6 * columns + 0.6, 2.5 * rows + 0.7), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    panels = grid.ravel()
    # One scale for all makes the levels comparable, unless it would flatten a curve into a line.
    limits = [loss_limits([curve], level) for curve in curves.values()]
    known = [low_high for low_high in limits if low_high is not None]
    shared = loss_limits(list(curves.values()), level)
    spans = [high - low for low, high in known]
    common = shared is not None and shared[1] - shared[0] < 12 * float(np.median(spans))
    for i, (panel, (name, curve)) in enumerate(zip(panels, curves.items(), strict=False)):
        _loss(panel, curve, COLORS[i % len(COLORS)])
        limit = shared if common else limits[i]
        if limit is not None:
            panel.set_ylim(*limit)
            if level is not None and limit[0] <= level <= limit[1]:
                _loss_level(panel, level)
        panel.set_title(name, fontsize=10)
        panel.tick_params(labelsize=8)
        if i % columns == 0:
            panel.set_ylabel("loss", fontsize=9)
        elif common:
            panel.tick_params(labelleft=False)
        if i + columns >= len(curves):
            panel.set_xlabel("step", fontsize=9)
    for panel in panels[len(curves) :]:
        panel.set_axis_off()
    title = "Loss of every step (faint) and its running mean"
    if not common and len(curves) > 1:
        title += "; each panel has its own scale"
    if level is not None:
        title += "; dotted: minus the log evidence"
    figure.suptitle(title, fontsize=11)
    return figure


def _loss(axes: Axes, curve: np.ndarray, color: str) -> None:
    curve = np.asarray(curve, np.float64)
    steps = np.arange(1, len(curve) + 1)
    some = slice(None, None, max(1, len(curve) // MAX_POINTS))
    axes.plot(steps[some], curve[some], color=color, alpha=0.25, linewidth=0.5)
    axes.plot(steps[some], running_mean(curve)[some], color=color, linewidth=1.8)
    axes.grid(**GRID)
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    bad = np.flatnonzero(~np.isfinite(curve))
    if bad.size:
        axes.axvline(bad[0] + 1, color="0.3", linewidth=1, linestyle="--")
        axes.annotate(f"not finite\nat step {bad[0]}", (bad[0] + 1, 0.95), xycoords=("data", "axes fraction"),
                      xytext=(-4, 0), textcoords="offset points", ha="right", va="top", fontsize=8)  # fmt: skip


def _loss_level(axes: Axes, level: float) -> None:
    axes.axhline(level, color="0.2", linewidth=1.2, linestyle=":", zorder=3, label="minus the log evidence")


def running_mean(curve: np.ndarray, window: int | None = None) -> np.ndarray:
    """Mean over `window` values around each, a twentieth of the length by default; fewer near the ends.

    Values that are not finite are left out.
    """
    curve = np.asarray(curve, np.float64)
    window = max(1, len(curve) // 20) if window is None else window
    finite = np.isfinite(curve)
    total = np.concatenate([[0.0], np.cumsum(np.where(finite, curve, 0.0))])
    count = np.concatenate([[0], np.cumsum(finite)])
    middle = np.arange(len(curve))
    lower = np.maximum(middle - (window - 1) // 2, 0)
    upper = np.minimum(middle + window // 2 + 1, len(curve))
    seen = count[upper] - count[lower]
    return np.where(seen > 0, (total[upper] - total[lower]) / np.maximum(seen, 1), np.nan)


def loss_limits(curves: Sequence[np.ndarray], level: float | None = None) -> tuple[float, float] | None:
    """Limits of the loss axis that a spike at the first steps, or a few wild ones later, cannot stretch.

    They hold the middle 98 % of the losses after the first tenth of the steps, the middle 80 % of their running mean
    and `level` where it is near. None if there is nothing finite to show.
    """
    low, high = [], []
    for curve in curves:
        curve = np.asarray(curve, np.float64)
        first = len(curve) // 10
        late, mean = curve[first:], running_mean(curve)[first:]
        late, mean = late[np.isfinite(late)], mean[np.isfinite(mean)]
        if late.size:
            a, b = np.quantile(late, [0.01, 0.99])
            low.append(min(a, np.quantile(mean, 0.1)))
            high.append(max(b, np.quantile(mean, 0.9)))
    if not low:
        return None
    a, b = min(low), max(high)
    if level is not None and np.isfinite(level) and a - 2 * (b - a) <= level <= b + 2 * (b - a):
        a, b = min(a, level), max(b, level)
    margin = 0.06 * (b - a) or 0.5 * max(abs(a), 1.0) * 0.01
    return float(a - margin), float(b + margin)


def _level(c: Comparison) -> float | None:
    """Minus the evidence as the estimator with the best k̂ has it, where that one can be trusted.

    A model with parameters of its own has a different evidence in every fit.
    """
    if "khat" not in c.frame or c.learnt:
        return None
    khat = c.frame["khat"].where(c.frame["verdict"] != "do not use")
    return None if khat.isna().all() else -float(c.frame["log_evidence"].iloc[int(np.nanargmin(khat))])


# --- weights -------------------------------------------------------------------------------------------------------


def weights(log_weights: dict[str, np.ndarray], verdicts: dict[str, str] | None = None) -> Figure:
    """How much of the draws has a weight beyond a multiple of the mean weight, on two logarithmic scales.

    A Pareto tail of index k̂ is a straight line of slope −1/k̂ there: a steep fall is good, a flat tail means that few
    draws carry the estimate.

    Args:
        log_weights: by estimator, ``(num_samples, *local plates)``; of local latents the datum with the worst k̂.
        verdicts: by estimator; None, or one that is missing: that of k̂ alone.
    """
    figure = Figure(figsize=(9.0, 5.0), layout="constrained")
    axes = figure.subplots()
    _weights(axes, log_weights, verdicts or {})
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=9, frameon=False)
    title = "Tails of the importance weights: the steeper, the better"
    if any(np.ndim(log_w) > 1 for log_w in log_weights.values()):
        title += " (the datum with the worst k̂)"
    axes.set_title(title, fontsize=11)
    return figure


def _weights(axes: Axes, log_weights: dict[str, np.ndarray], verdicts: dict[str, str]) -> None:
    lowest, right = 1.0, 10.0
    for i, (name, log_w) in enumerate(log_weights.items()):
        evidence = estimate(log_w)
        relative = _relative(_worst(np.asarray(log_w, np.float64), evidence))
        exceedance = np.arange(len(relative), 0, -1) / len(relative)
        shown = relative > 1e-3
        exact = evidence.khat == -np.inf
        label = f"{name}: " + ("exact" if exact else f"k̂ {evidence.khat:.2f}, {verdicts.get(name, evidence.verdict)}")
        covers = any(np.array_equal(log_w, earlier) for earlier in list(log_weights.values())[:i])
        style: dict[str, Any] = {
            "color": COLORS[i % len(COLORS)],
            "linestyle": "--" if covers or i >= len(COLORS) else "-",
        }
        axes.plot(relative[shown], exceedance[shown], linewidth=1.8, label=label, drawstyle="steps-pre", **style)
        if shown.any():
            axes.plot(relative[-1], exceedance[-1], marker="o", markersize=4, color=style["color"])
            right = max(right, float(relative[-1]))
            lowest = min(lowest, float(exceedance[-1]))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(0.03, 2 * right)
    axes.set_ylim(0.6 * lowest, 1.5)
    anchor = 0.5  # the limiting slope, through the upper left
    x = np.array([anchor, 2 * right])
    axes.plot(x, (x / anchor) ** (-1 / 0.7), color="0.45", linewidth=1.2, linestyle=(0, (1, 1.5)), zorder=1,
              label="slope of k̂ = 0.7, the limit")  # fmt: skip
    axes.set_xlabel("weight of a draw, relative to the mean weight")
    axes.set_ylabel("fraction of draws with a larger weight")
    axes.grid(**GRID)


def _worst(log_w: np.ndarray, evidence: Evidence) -> np.ndarray:
    """The log-weights of the datum with the worst k̂; as they are where latents are not local."""
    if log_w.ndim == 1:
        return log_w
    flat = log_w.reshape(len(log_w), -1)
    return flat[:, int(np.argmax(evidence.local["khat"]))]


def _relative(log_w: np.ndarray) -> np.ndarray:
    """Weights over their mean, sorted."""
    finite = log_w[np.isfinite(log_w)]
    if not finite.size:
        return np.zeros(len(log_w))
    scaled = np.where(np.isfinite(log_w), np.exp(np.minimum(log_w - finite.max(), 0.0)), 0.0)
    return np.sort(scaled / scaled.mean())


# --- posterior -----------------------------------------------------------------------------------------------------


def posterior(
    draws: dict[str, dict[str, Any]],
    reference: dict[str, np.ndarray] | None = None,
    reference_name: str = "",
    *,
    guide_draws: dict[str, dict[str, Any]] | None = None,
    max_scalars: int = MAX_SCALARS,
) -> Figure | None:
    """Posterior marginals, a panel a scalar and a line an estimator, over the reference as a grey band.

    Thin lines and the light band span the central 90 %, thick ones and the dark band the central half; dots and the
    black line are medians. Pale bars span the central 90 % of `guide_draws`.

    Args:
        draws: by estimator and site, ``(num_draws, *event)``: after importance resampling, where `guide_draws` are
            those of before.
        reference: by site, ``(num_draws, *event)``.
        max_scalars: at most so many panels; the title says what was left out.

    Returns:
        None where there is nothing to show.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for sites in draws.values():
        for site, value in sites.items():
            shapes.setdefault(site, tuple(np.shape(value)[1:]))
    chosen, left_out = _choose(shapes, reference, max_scalars)
    if not chosen:
        return None
    columns = min(4, len(chosen))
    rows = math.ceil(len(chosen) / columns)
    height = 0.17 * len(draws) + 0.75
    figure = Figure(figsize=(max(2.7 * columns + 1.3, 7.0), height * rows + 1.3), layout="constrained")
    figure.set_layout_engine("constrained", w_pad=0.1)
    grid = figure.subplots(rows, columns, squeeze=False)
    for i, (panel, (site, index)) in enumerate(zip(grid.ravel(), chosen, strict=False)):
        flat_index = int(np.ravel_multi_index(index, shapes[site])) if index else 0
        truth = _quantiles(reference, site, flat_index)
        if truth is not None:
            panel.axvspan(truth[0], truth[4], color="0.90", linewidth=0, zorder=0)
            panel.axvspan(truth[1], truth[3], color="0.78", linewidth=0, zorder=0)
            panel.axvline(truth[2], color="0.1", linewidth=1, zorder=1)
        _panel(panel, [_quantiles(s, site, flat_index) for s in draws.values()], truth)
        for j, name in enumerate(draws):
            own = _quantiles((guide_draws or {}).get(name), site, flat_index)
            if own is not None:
                color = COLORS[j % len(COLORS)]
                panel.plot([own[0], own[4]], [j, j], color=color, alpha=0.25, linewidth=8, solid_capstyle="butt")
        panel.set_title(labels(site, shapes[site])[flat_index], fontsize=9)
        panel.set_ylim(len(draws) - 0.4, -0.6)
        panel.set_yticks(range(len(draws)), list(draws) if i % columns == 0 else [""] * len(draws))
        panel.tick_params(labelsize=8)
        panel.tick_params(axis="y", length=0)
        panel.locator_params(axis="x", nbins=4)
        for side in ("top", "right", "left"):
            panel.spines[side].set_visible(False)
    for panel in grid.ravel()[len(chosen) :]:
        panel.set_axis_off()
    title = "Posterior of each scalar: median, central 50 % and 90 %"
    if guide_draws is not None:
        title += " after importance resampling; pale: 90 % of the guide's own draws"
    if reference is not None:
        title += f"\nblack and grey: median, 50 % and 90 % of {reference_name or 'the reference'}"
    if left_out:
        title += f"\nnot shown: {left_out}"
    figure.suptitle(title, fontsize=10)
    return figure


def _panel(panel: Axes, quantiles: list[np.ndarray | None], truth: np.ndarray | None) -> None:
    """The intervals of one scalar, with limits that suit them."""
    low, high = _posterior_limits([q for q in quantiles if q is not None], truth)
    for j, q in enumerate(quantiles):
        if q is None:
            continue
        color = COLORS[j % len(COLORS)]
        panel.plot([q[0], q[4]], [j, j], color=color, linewidth=1.2, solid_capstyle="butt", zorder=3)
        panel.plot([q[1], q[3]], [j, j], color=color, linewidth=3.6, solid_capstyle="butt", zorder=3)
        panel.plot(q[2], j, "o", color="white", markeredgecolor=color, markersize=4.5, zorder=4)
        for beyond, edge, marker in ((q[0] < low, low, "<"), (q[4] > high, high, ">")):
            if beyond:
                panel.plot(edge, j, marker, color=color, markersize=5, zorder=4, clip_on=False)
    panel.set_xlim(low, high)


def _quantiles(sites: dict[str, Any] | None, site: str, index: int) -> np.ndarray | None:
    """5, 25, 50, 75 and 95 % of the finite draws of one element; None if there are none."""
    if sites is None or site not in sites:
        return None
    value = sites[site]
    flat = np.asarray(value, np.float64).reshape(len(value), -1)[:, index]
    finite = flat[np.isfinite(flat)]
    return np.quantile(finite, [0.05, 0.25, 0.5, 0.75, 0.95]) if finite.size else None


def _posterior_limits(ends: list[np.ndarray], truth: np.ndarray | None) -> tuple[float, float]:
    """Room for every interval, except that one far too wide must not flatten the others."""
    ends = ends if truth is None else [*ends, truth]
    if not ends:
        return 0.0, 1.0
    spans = [float(q[4] - q[0]) for q in ends]
    base = truth if truth is not None else ends[int(np.argsort(spans)[len(spans) // 2])]
    span = float(base[4] - base[0]) or max(spans) or 0.1 * max(abs(float(base[2])), 1.0)
    low = max(min(float(q[0]) for q in ends), float(base[0]) - 1.5 * span)
    high = min(max(float(q[4]) for q in ends), float(base[4]) + 1.5 * span)
    margin = 0.05 * ((high - low) or span)
    return low - margin, high + margin


def _choose(
    shapes: dict[str, tuple[int, ...]], reference: dict[str, np.ndarray] | None, limit: int
) -> tuple[list[tuple[str, tuple[int, ...]]], str]:
    """Which scalars to show, and in words which not: sites of the reference first, small sites whole, then the rest
    in equal shares."""
    sizes = {site: math.prod(shape) for site, shape in shapes.items() if math.prod(shape)}
    order = sorted(sizes, key=lambda s: (reference is not None and s not in reference, sizes[s]))
    quota: dict[str, int] = {}
    room = limit
    for group in (
        [s for s in order if reference is None or s in reference],
        [s for s in order if reference is not None and s not in reference],
    ):
        for i, site in enumerate(group):
            quota[site] = min(sizes[site], max(room // (len(group) - i), 1 if room else 0))
            room -= quota[site]
    chosen = [(s, index) for s in sizes for index in list(np.ndindex(shapes[s]))[: quota[s]]]
    left_out = [
        site if quota[site] == 0 else f"{sizes[site] - quota[site]:,} of the {sizes[site]:,} elements of {site}"
        for site in sizes
        if quota[site] < sizes[site]
    ]
    if len(left_out) > 4:
        left_out = [*left_out[:3], f"and parts of {len(left_out) - 3} more sites"]
    return chosen, ", ".join(left_out)
