"""`benchmark`: estimators and peers on every case of a suite, every run kept as soon as it is done."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import shlex
import sys
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from ...estimators.checks import check_counts, is_count
from ..files import BadInput
from . import columns as columns_module
from . import measures, suites
from .cases import Settings, Suite
from .columns import Column
from .folder import FORMAT, Folder, environment, read_header, read_rows
from .workers import in_processes, in_this_process

SEEDS = 5
QUICK = {"num_steps": 200, "num_samples": 2000, "curves": False}
QUICK_SEEDS = 2


@dataclass(frozen=True)
class Benchmark:
    """Everything that is done of a bench; `print` it, or take `frame`."""

    folder: Path
    header: dict[str, Any] = field(repr=False)
    """Suite, settings, columns, environment and commands."""
    frame: pd.DataFrame = field(repr=False)
    """One row a run: case, column, seed, status, reason and the measures of `measures.COLUMNS`."""
    interrupted: bool = False
    missing: int = 0
    """Runs that were asked for and are not done."""

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Benchmark:
        """What a folder holds.

        Raises:
            BadInput: no folder of a bench, or one of another format.
        """
        path = Path(folder)
        header = read_header(path)
        return cls(path, header, table_of(read_rows(path), header))

    def averages(self) -> pd.DataFrame:
        """Measures averaged over seeds, indexed by (case, column)."""
        own = [m for m in self.header["measures"] if m in self.frame]
        return measures.averages(self.frame, [*(m for m in measures.COLUMNS if m != "verdict"), *own])

    def honesty(self) -> pd.DataFrame:
        """How often the verdict is right; see `measures.honesty`."""
        return measures.honesty(self.frame)

    def __str__(self) -> str:
        from .report import summary

        return summary(self)


def benchmark(
    suite: str | Suite,
    estimators: Mapping[str, Any] | Sequence[Any] | None = None,
    *,
    models: Sequence[str] | None = None,
    seeds: int | None = None,
    jobs: int = 2,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    root: str | os.PathLike[str] | None = None,
    quick: bool = False,
    num_steps: int | None = None,
    x64: bool = False,
    cluster: Any = None,
    progress_bar: bool = True,
    command: str | None = None,
) -> Benchmark:
    """Run estimators and peers on every model of a suite, and measure all against the truth.

    Args:
        suite: "posteriordb", "conjugate", "sampling", "vis-paper", "tight-bounds", or a `Suite` of your own.
        estimators: names (``"default"``, ``"VIS"``, ``"VIS(num_particles=64)"``, ``"my.py:Mine"``, ``"numpyro:NUTS"``),
            instances of estimators, or a dict of name -> either (peers keep their names); None takes the suite's own.
        models: names of cases; None takes all.
        seeds: runs of every estimator on every model, with seeds 0, 1, ...; None is 5, and 2 with `quick`.
        jobs: worker processes; 0 does all in this process, one after the other.
        out: folder for the results; None is ``estimax-results/bench-SUITE``.
        resume: go on in a folder that has runs: those are not repeated. Estimators and seeds may be added.
        root: folder of a posteriordb clone; None takes the environment variable POSTERIORDB.
        quick: few models, estimators, seeds, steps and draws: to see that it works.
        num_steps: of every method, in place of its own.
        x64: double precision for every method.
        cluster: address of a Dask scheduler, or a `distributed` client or cluster, in place of `jobs`.
        command: how this was called, for the report.

    Returns:
        `Benchmark`. A run that fails is a row with its reason. Ctrl-C returns what is done, `interrupted`.

    Raises:
        BadInput: an unknown suite, model or estimator; missing data; a folder that cannot be used.
        OSError: the disk is full; all runs before are kept.
    """
    root = suites.resolve_root(root)
    known = suites.load(suite, root) if isinstance(suite, str) else suite
    if not isinstance(known, Suite):
        raise BadInput(f"suite must be a name or a Suite, got {type(suite).__name__}")
    check_counts(seeds=1 if seeds is None else seeds, num_steps=1 if num_steps is None else num_steps)
    if not is_count(jobs, least=0):
        raise BadInput(f"jobs must be a whole number of worker processes, 0 or more, got {jobs!r}")
    seeds = seeds if seeds is not None else QUICK_SEEDS if quick else SEEDS
    settings = Settings(**QUICK) if quick else Settings()  # type: ignore[arg-type]
    settings = Settings(**{**asdict(settings), "x64": x64, "num_steps": num_steps or settings.num_steps})
    chosen = suites.restrict(known, models if models is not None else known.quick[0] if quick else None)
    usual = known.quick[1] if quick else known.columns
    columns, notes = columns_module.left_out(columns_module.resolve(usual if estimators is None else estimators))
    if not columns:
        raise BadInput(f"nothing to run: {'; '.join(notes)}")
    for case in chosen.cases:
        if case.settings:
            own = ", ".join(f"{k}={v!r}" for k, v in case.settings.items())
            notes.append(f"{case.name} runs with {own}, whatever the columns say")
    folder = Folder(
        Path(out) if out is not None else Path("estimax-results") / f"bench-{known.name}",
        {
            "format": FORMAT,
            "suite": known.name,
            "description": known.description,
            "settings": asdict(settings),
            "columns": {column.name: column.describe() for column in columns},
            "measures": dict(known.measures),
            "claims": list(known.claims),
            "notes": notes,
            "commands": [command or _called(known.name)],
            "environment": environment(),
        },
        resume,
    )
    jobs_to_do = _jobs(suite, root, chosen, columns, seeds, settings, folder.done)
    total = sum(map(len, jobs_to_do))
    done, interrupted = 0, False
    with contextlib.closing(_backend(jobs_to_do, jobs, cluster)) as finished, _bar(total, progress_bar) as bar:
        try:
            for run in finished:
                folder.add(run)
                done += 1
                row = run.row
                bar.set_description_str(f"{row['case']}, {row['column']}, seed {row['seed']}: {row['status']}", False)
                bar.update()
        except KeyboardInterrupt:
            interrupted = True
    result = Benchmark(folder.path, folder.header, table_of(folder.rows, folder.header), interrupted, total - done)
    if len(result.frame):
        from .report import write

        write(result, folder, known)
    return result


def table_of(rows: list[dict[str, Any]], header: Mapping[str, Any]) -> pd.DataFrame:
    """Rows as a table, one a run, by case (K=4 before K=16), by column in the order of the header, by seed."""
    first = ["case", "column", "seed", "status", "reason"]
    order = {name: i for i, name in enumerate(header["columns"])}

    def place(row: dict[str, Any]) -> tuple:
        case = [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", row["case"])]
        return case, order.get(row["column"], len(order)), row["seed"]

    rows = sorted(rows, key=place)
    frame = pd.DataFrame(rows)
    if "khat" in frame:  # JSON has no infinities: −∞ where all weights are equal, ∞ where nothing can be said
        known, judged = frame["khat"].astype(float), frame["verdict"].notna()
        infinite = np.where(frame["verdict"].isin(measures.TRUSTED), -np.inf, np.inf)
        frame["khat"] = np.where(known.isna() & judged, infinite, known)
    return frame.reindex(columns=[*first, *(c for c in frame.columns if c not in first)])


def _jobs(
    suite: str | Suite, root: str | None, chosen: Suite, columns: list[Column], seeds: int, settings: Settings,
    done: set[tuple[str, str, int]],
) -> list[list[Any]]:  # fmt: skip
    """What is to be done, a group a (case, column): its seeds run in one process and share what is compiled."""
    from .execute import Job

    groups = []
    for case in chosen.cases:
        for column in columns:
            group = [
                Job(suite, root, case.name, column, seed, settings, settings.curves and seed == 0)
                for seed in range(seeds)
                if (case.name, column.name, seed) not in done
            ]
            if group:
                groups.append(group)
    return groups


def _backend(groups: list[list[Any]], jobs: int, cluster: Any) -> Generator[Any]:
    if cluster is None and jobs == 0:
        return in_this_process(groups)
    for group in groups:
        try:
            pickle.dumps(group)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            job = group[0]
            raise BadInput(f"{job.column.name} on {job.case} cannot be sent to a worker process ({error}): define "
                           "model, data and estimator in a module, or give jobs=0") from error  # fmt: skip
    if cluster is not None:
        from .cluster import on_cluster

        return on_cluster(groups, cluster)
    return in_processes(groups, min(jobs, len(groups)))


def _bar(total: int, show: bool) -> tqdm:
    layout = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} runs [{elapsed}, {remaining} left]"
    return tqdm(total=total, disable=not show, bar_format=layout, desc="starting workers")


def _called(suite: str) -> str:
    return f"estimax.benchmark({suite!r}, ...) in {shlex.quote(Path(sys.argv[0]).name or 'python')}"
