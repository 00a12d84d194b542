"""The report of a bench: one self-contained HTML page, the same as Markdown, and the table of runs as CSV."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from . import figures, measures
from .cases import Suite
from .figures import short
from .peers import PEERS

if TYPE_CHECKING:
    from .folder import Folder
    from .runner import Benchmark


@dataclass
class Section:
    """A heading with words, tables of text and pictures below it."""

    title: str
    words: list[str] = field(default_factory=list)
    tables: list[pd.DataFrame] = field(default_factory=list)
    pictures: dict[str, Any] = field(default_factory=dict)
    """Description -> matplotlib figure."""
    code: str = ""


def write(bench: Benchmark, folder: Folder, suite: Suite | None) -> None:
    """table.csv, report.html and report.md in the folder."""
    sections = list(make_sections(bench, suite))
    folder.write("table.csv", to_csv(bench.frame))
    folder.write("report.html", to_html(title(bench), sections))
    folder.write("report.md", to_markdown(title(bench), sections))


def to_csv(frame: pd.DataFrame) -> str:
    """One line a run; curves stay in runs.jsonl."""
    return frame.drop(columns=[c for c in ("curve",) if c in frame]).to_csv(index=False, float_format="%.6g")


def title(bench: Benchmark) -> str:
    return f"estimax bench {bench.header['suite']}"


def summary(bench: Benchmark) -> str:
    """What fits a terminal: errors by model and column, counts, honesty, failures."""
    lines = [f"{title(bench)}: {len(bench.frame)} runs in {bench.folder}"]
    keep = ("Errors", "In short", "Verdicts", "Measures of this suite", "Failed runs")
    for section in make_sections(bench, None, pictures=False):
        if section.title in keep:
            lines += ["", section.title.upper(), *section.words, *(t.to_string() for t in section.tables)]
    lines += ["", *bench.header["notes"]] if bench.header["notes"] else []
    if bench.interrupted:
        lines += ["", f"interrupted: {bench.missing} runs are missing; --resume goes on"]
    return "\n".join(lines)


def make_sections(bench: Benchmark, suite: Suite | None, pictures: bool = True) -> Iterator[Section]:
    """What there is to say, in order; parts that have nothing to show are left out."""
    runs, header = bench.frame, bench.header
    if not len(runs):
        return
    table = bench.averages()
    order = [name for name in header["columns"] if name in set(runs["column"])]
    cases = list(dict.fromkeys(runs["case"]))

    def wide(measure: str) -> pd.DataFrame:
        return table[measure].unstack("column").reindex(index=cases, columns=order)

    yield _about(bench)
    measured = "mean_error" in table and table["mean_error"].notna().any()
    if measured:
        yield _in_short(table, order)
        section = Section(
            "Errors",
            ["Worst error of a posterior mean in reference sd / worst relative error of a posterior sd, averaged over "
             "seeds; of estimax after importance resampling."],
            [_pairs(wide("mean_error"), wide("sd_error"))],
        )  # fmt: skip
        if pictures:
            section.pictures["worst error of a mean by model and estimator"] = figures.heat_map(wide("mean_error"))
        yield section
        ranks = measures.ranks(table)
        ranks = ranks[[name for name in order if name in ranks]]
        if pictures and ranks.shape[1] > 1 and len(ranks) > 2:
            yield Section(
                "Ranks",
                [f"Average rank of the worst error of a mean over {len(ranks)} models (1 is best). A thick line joins "
                 "methods whose ranks do not differ at the 5 % level (Nemenyi)."],
                pictures={"average ranks with the critical difference": figures.rank_plot(ranks)},
            )  # fmt: skip
    honest = bench.honesty()
    if len(honest):
        yield Section(
            "Verdicts",
            ["How often the verdict is right. Trusted: \"good\" or \"ok\". Errors are worst errors of a mean after "
             "importance resampling, in reference sd; a trusted answer above 0.2 is a broken promise."],
            [honest],
        )  # fmt: skip
    if measured:
        yield _details(table, order, runs)
    if "log_evidence_error" in table and table["log_evidence_error"].notna().any():
        columns = [c for c in order if wide("log_evidence_error")[c].notna().any()]
        yield Section("Log evidence", ["|estimate − truth| in nats, averaged over seeds."],
                      [wide("log_evidence_error")[columns].map(short)])  # fmt: skip
    if pictures and "curve" in runs:
        panels = _panels(runs)
        if panels:
            yield Section(
                "Error against time",
                ["First seed. For estimax the start alone, and the run after a thirtieth, a fifth and all of its "
                 "steps; for SVI a run of a tenth of the steps and one of all; for NUTS parts of its draws."],
                pictures={"worst error of a mean against seconds": figures.curves(panels, order)},
            )  # fmt: skip
    yield _cost(runs, order, header["settings"]["curves"])
    own = [m for m in header["measures"] if m in runs]
    if own:
        yield _own(runs, own, header, suite if pictures else None)
    failed = runs[runs["status"] != "finished"]
    if len(failed):
        counts = failed.groupby(["case", "column", "status", "reason"], sort=False, dropna=False).size()
        yield Section("Failed runs", [f"{len(failed)} of {len(runs)}."], [counts.rename("runs").reset_index()])
    yield _how(bench)


def _about(bench: Benchmark) -> Section:
    runs = bench.frame
    words = [
        f"{bench.header['description'][:1].upper()}{bench.header['description'][1:]}.",
        f"{runs['case'].nunique()} models, {runs['column'].nunique()} methods, {len(runs)} runs with "
        f"{(seeds := runs['seed'].nunique())} seed{'s' * (seeds != 1)}.",
        *bench.header["notes"],
    ]
    if bench.interrupted or bench.missing:
        words.append(f"Not complete: {bench.missing} runs are missing.")
    return Section("What this is", words)


def _in_short(table: pd.DataFrame, order: list[str]) -> Section:
    counts = measures.near_counts(table).reindex(order).dropna(how="all").astype(int)
    ours = [name for name in order if name not in PEERS]
    if len(ours) > 1:
        best = measures.best_of(table, ours)
        counts.loc["best of estimax"] = [
            int((best["mean_error"] <= measures.NEAR).sum()), int((best["sd_error"] <= measures.NEAR).sum()),
            int(best["near"].sum()), len(best),
        ]  # fmt: skip
    counts.columns = pd.Index(["means within 0.1 sd", "sds within 10 %", "both", "of models"])
    return Section("In short", ["On how many models the seed-averaged answer is near the reference, worst scalar."],
                   [counts.rename_axis(None)])  # fmt: skip


def _pairs(mean: pd.DataFrame, sd: pd.DataFrame) -> pd.DataFrame:
    out = mean.copy().astype(object)
    for case in mean.index:
        for column in mean.columns:
            a, b = mean.loc[case, column], sd.loc[case, column]
            out.loc[case, column] = "–" if pd.isna(a) else f"{short(a)} / {percent(b)}"
    out = out.rename_axis(index=None, columns=None)
    near = (mean <= measures.NEAR) & (sd <= measures.NEAR)
    out.attrs["near"] = [[None if pd.isna(m) else bool(n) for m, n in zip(*pair, strict=True)]
                         for pair in zip(mean.to_numpy(), near.to_numpy(), strict=True)]  # fmt: skip
    return out


def _details(table: pd.DataFrame, order: list[str], runs: pd.DataFrame) -> Section:
    """Every measure by column, over all models: medians, as one bad model must not hide the others."""
    shown = [
        m for m in ("mean_error", "mean_error_average", "sd_error", "own_mean_error", "own_sd_error",
                    "sliced_wasserstein", "khat") if m in table and table[m].notna().any()
    ]  # fmt: skip
    medians = table[shown].groupby("column", sort=False).median().reindex(order)
    return Section(
        "Medians over models",
        [f"{m}: {measures.COLUMNS[m]}." for m in shown],
        [medians.map(short).rename_axis(None)],
    )


def _cost(runs: pd.DataFrame, order: list[str], curves: bool) -> Section:
    rows: dict[str, dict[str, str]] = {}
    for column in order:
        part = runs[(runs["column"] == column) & (runs["status"] != "failed")]
        if "seconds" not in part or not part["seconds"].notna().any():
            continue
        cold = part["cold"].astype(bool)
        rows[column] = {
            "seconds, first seed": _median(part.loc[cold, "seconds"], 1),
            "seconds, later seeds": _median(part.loc[~cold, "seconds"], 1),
            "gradient evaluations": _median(part.get("gradient_evaluations"), 0),
            "peak memory, MB": _median(part.get("peak_memory_mb"), 0),
        }
        if curves and "seconds_to_near" in runs:
            reached = part.loc[part["seed"] == 0, "seconds_to_near"].astype(float)
            rows[column]["seconds to 0.1 sd"] = (
                f"{_median(reached, 1)} ({int(reached.notna().sum())} of {len(reached)})" if len(reached) else "–"
            )
    costs = pd.DataFrame.from_dict(rows, orient="index")
    return Section(
        "Cost",
        ["Medians over models. The first seed compiles, later seeds of the same model reuse it. Gradients of estimax "
         "are those of the steps, without the search for a start (its time is counted). Seconds to 0.1 sd: first seed, "
         "in brackets the models on which it was reached."],
        [costs.loc[:, (costs != "–").any()]],
    )  # fmt: skip


def _own(runs: pd.DataFrame, own: list[str], header: dict[str, Any], suite: Suite | None) -> Section:
    """Mean ± standard error over seeds of the suite's own measures."""
    tables = []
    for case, part in runs.groupby("case", sort=False):
        shown = [m for m in own if part[m].notna().any()]
        grouped = part.groupby("column", sort=False)[shown]
        mean, error = grouped.mean(), grouped.sem()
        text = pd.DataFrame(index=mean.index, columns=shown, dtype=object)
        for m in shown:
            text[m] = [_plus_minus(a, b) for a, b in zip(mean[m], error[m], strict=True)]
        text.insert(0, "seeds", grouped.size())
        tables.append(text.rename_axis(str(case)))
    section = Section("Measures of this suite", [f"{m}: {header['measures'][m]}." for m in own], tables)
    section.words += [f"Claimed: {claim}" for claim in header["claims"]]
    if suite is not None and suite.figure is not None and tables:
        section.pictures["the figure of this suite"] = suite.figure(runs)
    return section


def _how(bench: Benchmark) -> Section:
    env = bench.header["environment"]
    settings = _settings(bench.header["settings"])
    columns = pd.DataFrame({"what it is": bench.header["columns"]})
    columns.attrs["words"] = True
    packages = ", ".join(f"{k} {v}" for k, v in env["packages"].items())
    return Section(
        "How it was made",
        [f"estimax {env['estimax']}, Python {env['python']} on {env['machine']}, {env['cores']} cores (load "
         f"{env['load']:.1f} at the start), device {env['device']}; {packages}.", settings],
        [columns],
        code="\n".join(bench.header["commands"]),
    )  # fmt: skip


def _settings(given: dict[str, Any]) -> str:
    steps = f"{given['num_steps']:,} steps of every method; " if given["num_steps"] else ""
    precision = "double" if given["x64"] else "single"
    return f"Settings: {steps}errors from {given['num_samples']:,} draws; {precision} precision."


def _panels(runs: pd.DataFrame) -> dict[str, dict[str, list]]:
    panels: dict[str, dict[str, list]] = {}
    for case, column, curve in zip(runs["case"], runs["column"], runs["curve"], strict=True):
        if isinstance(curve, list) and curve:
            panels.setdefault(case, {})[column] = curve
    return panels


def _median(values: Any, digits: int) -> str:
    if values is None:
        return "–"
    value = float(np.nanmedian(values.astype(float))) if values.notna().any() else math.nan
    return "–" if math.isnan(value) else f"{value:,.{digits}f}"


def _plus_minus(mean: float, error: float) -> str:
    if pd.isna(mean):
        return "–"
    return f"{mean:.4f}" if pd.isna(error) else f"{mean:.4f} ± {error:.4f}"


def percent(value: float) -> str:
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "∞"
    return f"{100 * value:.0f}%" if value < 100 else f"{100 * value:.0e}%"


# --- as text ---------------------------------------------------------------------------------------------------------


def to_markdown(heading: str, sections: list[Section]) -> str:
    """GitHub Markdown; pictures are in the HTML page."""
    lines = [f"# {heading}"]
    for section in sections:
        if not (section.words or section.tables or section.code):
            continue
        lines += ["", f"## {section.title}", ""]
        lines += ["\n".join(section.words)] if len(section.words) == 1 else [f"- {w}" for w in section.words]
        for table in section.tables:
            lines += ["", markdown_table(table)]
        if section.code:
            lines += ["", "```text", section.code, "```"]
    return "\n".join(lines) + "\n"


def markdown_table(table: pd.DataFrame) -> str:
    numbered = isinstance(table.index, pd.RangeIndex)
    names = [str(c) for c in table.columns]
    head = names if numbered else [str(table.index.name or ""), *names]
    align = "---|" if table.attrs.get("words") else "---:|"
    lines = [f"| {' | '.join(head)} |", "|---|" + align * (len(head) - 1)]
    for index, *values in table.itertuples():
        cells = [str(v).replace("|", "\\|") for v in (values if numbered else [index, *values])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


# --- as a page -------------------------------------------------------------------------------------------------------

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 1150px; margin: 2em auto;
       padding: 0 1.2em; }
h1 { font-size: 1.6em; } h2 { font-size: 1.2em; margin: 2em 0 .4em; border-bottom: 1px solid #ddd; }
p { margin: .4em 0; max-width: 75ch; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; margin: .8em 0; }
th, td { padding: .25em .7em; border-bottom: 1px solid #eee; text-align: right; vertical-align: top; }
th:first-child, td:first-child, td.words, th.words { text-align: left; }
thead th { border-bottom: 1px solid #999; font-size: 12px; }
td.near, td.far { white-space: nowrap; }
td.near { background: #dbe9f6; } td.far { background: #fbdcd2; }
img { max-width: 100%; height: auto; margin: .6em 0; }
pre { background: #f5f5f5; padding: .7em; overflow-x: auto; }
"""


def to_html(heading: str, sections: list[Section]) -> str:
    """One page that needs nothing else: pictures are inside as SVG."""
    parts = [
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(heading)}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{STYLE}</style></head><body><h1>{html.escape(heading)}</h1>",
    ]
    for section in sections:
        parts.append(f"<h2>{html.escape(section.title)}</h2>")
        parts += [f"<p>{html.escape(words)}</p>" for words in section.words]
        parts += [_html_table(table) for table in section.tables]
        for description, figure in section.pictures.items():
            parts.append(f'<img alt="{html.escape(description)}" src="{_svg(figure)}">')
        if section.code:
            parts.append(f"<pre>{html.escape(section.code)}</pre>")
    return "\n".join([*parts, "</body></html>\n"])


def _html_table(table: pd.DataFrame) -> str:
    numbered = isinstance(table.index, pd.RangeIndex)
    names = [str(c) for c in table.columns]
    head = names if numbered else [str(table.index.name or ""), *names]
    kind = ' class="words"' if table.attrs.get("words") else ""
    rows = ["".join(f"<th{kind}>{html.escape(name).replace(':', ':<br>')}</th>" for name in head)]
    near, words = table.attrs.get("near"), table.attrs.get("words", False)
    body = []
    for i, (index, *values) in enumerate(table.itertuples()):
        cells = [_cell(value, near[i][j] if near else None, words) for j, value in enumerate(values)]
        body.append("<tr>" + "".join(cells if numbered else [_cell(index), *cells]) + "</tr>")
    return f'<div class="wide"><table><thead><tr>{rows[0]}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _cell(value: Any, near: bool | None = None, words: bool = False) -> str:
    kind = "words" if words or len(str(value)) > 30 else "" if near is None else "near" if near else "far"
    return f'<td class="{kind}">{html.escape(str(value))}</td>' if kind else f"<td>{html.escape(str(value))}</td>"


def _svg(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
