"""The pictures of docs/gaussian-processes.md, from the result files of benchmarks/; run by ``python
docs/make_figures.py gp``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

IMAGES = Path(__file__).parent / "images"
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
COLOURS = {"GPEvidence": "#0072B2", "SparseGP(50)": "#D55E00", "StateSpaceGP": "#009E73", "scikit-learn": "0.4"}


def _results(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())["results"]


def scaling() -> None:
    """Whole fits against rows."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    found: dict[str, list[tuple[int, float]]] = {}
    for key, row in _results("gp")["fits"].items():
        name, n = key.split(" n=")
        found.setdefault(name, []).append((int(n), row["seconds"]))
    for name, points in found.items():
        axes.loglog(*zip(*points, strict=True), "o-", color=COLOURS[name], markersize=4, label=name)
    axes.set_xlabel("rows")
    axes.set_ylabel("seconds of a whole fit, compiled before")
    axes.set_title("Three hyper-parameters by marginal likelihood, Matérn-3/2, one-dimensional inputs", fontsize=10)
    axes.grid(color="0.9", linewidth=0.6)
    axes.legend(fontsize=9)
    figure.savefig(IMAGES / "gp_scaling.png", dpi=110)


def dimension() -> None:
    """Evidence and predictive loss against the number of inputs."""
    rows = _results("gp_studies")["dimension"]
    figure = Figure(figsize=(9.2, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.errorbar(rows["inputs"], rows["tuned log evidence"], rows["its s.e."], fmt="o-", color="#0072B2", markersize=3)
    left.set_title("log evidence, hyper-parameters tuned", fontsize=10)
    right.semilogy(rows["inputs"], rows["predictive loss, tuned"], "o-", color="#0072B2", markersize=3, label="tuned")
    fixed = rows["predictive loss, noise fixed small"]
    right.semilogy(rows["inputs"], fixed, "o-", color="#D55E00", markersize=3, label="noise fixed at 10⁻⁴")
    right.set_title("squared error of predictions", fontsize=10)
    right.legend(fontsize=9)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.axvline(rows["rows"], color="0.7", linewidth=0.8)
        axes.set_xlabel("inputs (the line: number of rows)")
        axes.grid(color="0.9", linewidth=0.6)
    figure.savefig(IMAGES / "gp_dimension.png", dpi=110)


def main() -> None:
    scaling()
    dimension()
