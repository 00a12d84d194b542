"""Write docs/how-good-are-the-defaults.md from a committed table of runs and the JSON file beside it.

    python docs/make_defaults_page.py benchmarks/results/posteriordb.csv [--check]

`--check` writes nothing and fails where the page is not what the files say.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pandas as pd

from estimax.inference.bench import measures
from estimax.inference.bench.figures import short
from estimax.inference.bench.peers import PEERS
from estimax.inference.bench.report import make_sections, markdown_table, percent
from estimax.inference.bench.runner import Benchmark
from estimax.inference.bench.suites import OURS

PAGE = Path(__file__).parent / "how-good-are-the-defaults.md"
GOALS = {"default": 12, "best of estimax": 13}
"""On how many of the 14 models we want means within 0.1 sd and sds within 10 %."""


def page(csv: Path) -> str:
    """The page as Markdown."""
    header = json.loads(csv.with_suffix(".json").read_text(encoding="utf-8"))
    bench = Benchmark(csv.parent, header, pd.read_csv(csv))
    sections = {section.title: section for section in make_sections(bench, None, pictures=False)}
    runs, table = bench.frame, bench.averages()
    ours = [name for name in header["columns"] if name not in PEERS and name in set(runs["column"])]
    lines = [
        "# How good are the defaults?",
        "",
        "Real posteriors that we did not choose, raw and unscaled, from posteriordb; nothing is tuned to a model.",
        "Methods are measured against the database's reference draws. `default` is `estimax.fit(model, data=data)`.",
        "estimax is measured after importance resampling, as its users take draws. This page is generated from a table",
        "of runs:",
        "",
        "```text",
        *dict.fromkeys(header["commands"]),
        f"python docs/make_defaults_page.py benchmarks/results/{csv.name}",
        "```",
        "",
        f"{runs['case'].nunique()} models, {len(runs)} runs; {_seeds(runs)}.{_not_run(runs)}",
        *(f"{note}." for note in header["notes"]),
        "",
        "## In short",
        "",
        "On how many models the answer, averaged over seeds, is near: every mean within 0.1 sd, every sd within 10 %.",
        "",
        markdown_table(sections["In short"].tables[0]),
        "",
        *_goals(sections["In short"].tables[0], bench.honesty()),
        "",
        "## Model by model",
        "",
        "Worst error of a mean in reference sd / worst relative error of an sd, averaged over seeds.",
        "",
        markdown_table(sections["Errors"].tables[0]),
        "",
        *_short_of(table, ours, runs),
        "## What the verdicts are worth",
        "",
        sections["Verdicts"].words[0],
        "",
        markdown_table(sections["Verdicts"].tables[0]),
        "",
        *_misjudged(runs),
        "## What it costs",
        "",
        *sections["Cost"].words,
        "",
        markdown_table(sections["Cost"].tables[0]),
        "",
    ]
    if "Failed runs" in sections:
        lines += ["## Failed runs", "", markdown_table(sections["Failed runs"].tables[0]), ""]
    how = sections["How it was made"]
    lines += ["## How it was made", "", *how.words, "", markdown_table(how.tables[0]), ""]
    return "\n".join(lines)


def _seeds(runs: pd.DataFrame) -> str:
    seeds = runs.groupby("column", sort=False)["seed"].nunique()
    usual = int(seeds.max())
    fewer = [f"{name} with {count}" for name, count in seeds.items() if count < usual]
    return f"{usual} seeds" + (f" ({', '.join(fewer)})" if fewer else "")


def _not_run(runs: pd.DataFrame) -> str:
    """What the suite has and the table has not, so that an interrupted run is not taken for a whole one."""
    columns = [name for name in (*OURS, *PEERS) if name not in set(runs["column"])]
    models = runs.groupby("column")["case"].nunique()
    partly = [f"{name} on {count} models only" for name, count in models.items() if count < runs["case"].nunique()]
    left = [*(f"{name} not at all" for name in columns), *partly]
    return f" The run was cut short: {', '.join(left)}." if left else ""


def _goals(counts: pd.DataFrame, honesty: pd.DataFrame) -> list[str]:
    """What we want of ourselves, and whether it holds."""
    lines = []
    for name, goal in GOALS.items():
        if name in counts.index:
            both, total = int(counts.loc[name, "both"]), int(counts.loc[name, "of models"])
            lines.append(f"- {name}: both on {both} of {total}; the goal is {goal}: {_met(both >= goal)}.")
    broken = int(honesty["trusted, error above 0.2"].sum())
    lines.append(f"- Trusted answers with an error above 0.2 sd: {broken}; the goal is none: {_met(not broken)}.")
    return lines


def _met(good: bool) -> str:
    return "met" if good else "**not met**"


def _short_of(table: pd.DataFrame, ours: list[str], runs: pd.DataFrame) -> list[str]:
    """The cases in which ours are not near, with what the user is told there."""
    part = table[table.index.get_level_values("column").isin(ours)]
    far = part[~((part["mean_error"] <= measures.NEAR) & (part["sd_error"] <= measures.NEAR))]
    if not len(far):
        return []
    lines = ["Where estimax falls short, and what it says there:", ""]
    for (case, column), row in far.iterrows():
        here = runs[(runs["case"] == case) & (runs["column"] == column)]
        told = ", ".join(f"{n} × {v}" for v, n in here["verdict"].value_counts().items()) or "no verdict"
        khat = f"k̂ {here['khat'].astype(float).mean():.2f}"
        lines.append(f"- {case}, {column}: {short(row['mean_error'])} sd / {percent(row['sd_error'])}; {khat}; {told}")
    return [*lines, ""]


def _misjudged(runs: pd.DataFrame) -> list[str]:
    wrong = runs[runs["verdict"].isin(measures.TRUSTED) & (runs["mean_error"].astype(float) > measures.WRONG)]
    if not len(wrong):
        return []
    lines = ["Trusted, and wrong:", ""]
    for _, row in wrong.iterrows():
        error = short(float(row["mean_error"]))
        lines.append(f"- {row['case']}, {row['column']}, seed {row['seed']}: error {error} sd, "
                     f"k̂ {float(row['khat']):.2f}, {row['verdict']}")  # fmt: skip
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("csv", type=Path)
    parser.add_argument("--check", action="store_true", help="compare only")
    arguments = parser.parse_args()
    text = page(arguments.csv)
    if arguments.check:
        sys.exit(0 if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text else f"{PAGE.name} is out of date")
    PAGE.write_text(text, encoding="utf-8")
    print(f"wrote docs/{PAGE.name}")


if __name__ == "__main__":
    main()
