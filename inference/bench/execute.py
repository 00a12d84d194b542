"""One run, from start to finish, in whatever process it happens."""

from __future__ import annotations

import logging
import math
import resource
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr

from ..arviz_bridge import build, to_netcdf
from ..compare import _reason
from . import columns, suites
from .cases import Case, Settings, Suite
from .columns import Column
from .measures import Yardstick, seconds_to_near
from .outcome import Outcome

_log = logging.getLogger(__name__)

KEPT_DRAWS = 1000
"""Draws of a run that go to its netCDF file."""


@dataclass(frozen=True)
class Job:
    """Everything that a process needs to do one run; goes through pickle."""

    suite: Suite | str
    """A suite's name, or a suite of the user's."""
    root: str | None
    case: str
    column: Column
    seed: int
    settings: Settings
    curve: bool
    """Whether to trace the error against time too."""

    @property
    def key(self) -> tuple[str, str, int]:
        return self.case, self.column.name, self.seed


@dataclass(frozen=True)
class Finished:
    """A row of the table and the content of the run's netCDF file."""

    row: dict[str, Any]
    netcdf: bytes | None = None


_at_work: list[tuple[str, str]] = []
"""The (case, column) that this process worked on last."""


def execute(job: Job, own_process: bool = True) -> Finished:
    """Do a run. Whatever goes wrong in it becomes the row's reason.

    Args:
        own_process: the process does nothing but runs. A column must not profit from what another one before it
            compiled: then that is dropped. Seeds of one column share.
    """
    fresh, cold = not _at_work, _at_work != [(job.case, job.column.name)]
    if cold:
        if own_process and not fresh:
            jax.clear_caches()
        _at_work[:] = [(job.case, job.column.name)]
    row: dict[str, Any] = {"case": job.case, "column": job.column.name, "seed": job.seed, "status": "failed",
                           "reason": "", "cold": cold}  # fmt: skip
    began = time.perf_counter()
    with jax.enable_x64(job.settings.x64), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what matters of them is in the row
        try:
            suite = job.suite if isinstance(job.suite, str) else _Same(job.suite)
            case, truth = _prepared(suite, job.root, job.case)
            outcome = columns.run(job.column, case, job.seed, job.settings)
            if outcome.status == "interrupted":
                raise KeyboardInterrupt
            row |= _plain(
                {
                    "status": outcome.status, "reason": outcome.message, "estimator": outcome.estimator,
                    "seconds": outcome.seconds, "gradient_evaluations": outcome.gradient_evaluations,
                    "peak_memory_mb": peak_memory_mb() if fresh and own_process else None, **outcome.measures,
                }
            )  # fmt: skip
            row |= _plain(_measure(outcome, truth, job.curve))
            if outcome.draws is not None and row.get("mean_error", 0.0) is None:
                row |= {"status": "non-finite", "reason": row["reason"] or "its draws are not finite"}
            netcdf = _netcdf(outcome, row)
        except Exception as error:
            row |= {"status": "failed", "reason": _reason(error)}
            netcdf = None
    row["total_seconds"] = time.perf_counter() - began
    return Finished(row, netcdf)


def _measure(outcome: Outcome, truth: Yardstick, curve: bool) -> dict[str, Any]:
    row: dict[str, Any] = {}
    if truth.log_evidence is not None and outcome.measures.get("log_evidence") is not None:
        row["log_evidence_error"] = abs(outcome.measures["log_evidence"] - truth.log_evidence)
    if outcome.draws is None or not truth:
        return row
    row |= truth.errors(outcome.draws)
    if outcome.own_draws is not None:
        own = truth.errors(outcome.own_draws)
        row |= {"own_mean_error": own["mean_error"], "own_sd_error": own["sd_error"]}
    row["sliced_wasserstein"] = truth.wasserstein(outcome.draws)
    if curve:
        points = []
        if outcome.path is not None:
            try:
                points = [(s, truth.errors(draws)["mean_error"]) for s, draws in outcome.path()]
            except Exception:  # the answer stands, whatever keeps an earlier one from being had
                _log.debug("no path", exc_info=True)
        points.append((outcome.seconds, row["mean_error"]))
        row["curve"] = [[s, e if math.isfinite(e) else None] for s, e in points]
        row["seconds_to_near"] = seconds_to_near(points)
    return row


class _Same:
    """A suite as a key of a cache: by identity."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite

    def __hash__(self) -> int:
        return hash(self.suite.name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.suite.cases == self.suite.cases


@lru_cache(maxsize=2)
def _prepared(suite: str | _Same, root: str | None, name: str) -> tuple[Case, Yardstick]:
    """The case, whose data and truth are read once, and its truth as a yardstick."""
    loaded = suites.load(suite, root) if isinstance(suite, str) else suite.suite
    case = next(case for case in loaded.cases if case.name == name)
    case = replace(case, data=cache(case.data), truth=cache(case.truth))
    return case, Yardstick(case.truth())


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """As JSON has it: plain numbers, and None for what is no number."""

    def plain(value: Any) -> Any:
        if isinstance(value, (np.generic, np.ndarray, jax.Array)) and np.ndim(value) == 0:
            value = np.asarray(value).item()
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {k: plain(v) for k, v in values.items()}


def _netcdf(outcome: Outcome, row: dict[str, Any]) -> bytes:
    """An ArviZ file: posterior (thinned draws), and a group ``run`` of losses, parameters and log-weights."""
    groups: dict[str, dict[str, np.ndarray]] = {}
    if outcome.draws is not None:
        groups["posterior"] = {name: _thin(value, outcome.num_chains) for name, value in outcome.draws.items()}
    attributes = {k: int(v) if isinstance(v, bool) else v for k, v in row.items()}  # netCDF has no booleans
    run = xr.Dataset(attrs={k: v for k, v in attributes.items() if isinstance(v, (str, int, float)) and v != ""})
    arrays = dict(outcome.arrays)
    if outcome.log_weights is not None:
        arrays["log_weight"] = outcome.log_weights
    for name, array in arrays.items():
        run[name] = ([f"{name}_dim_{i}" for i in range(array.ndim)], array)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.nc"
        if groups:
            to_netcdf(build(groups, {}, {}, {"inference_library": "estimax"}), str(path))
        run.to_netcdf(path, mode="a" if groups else "w", group="run", engine="h5netcdf")
        return path.read_bytes()


def _thin(value: Any, chains: int) -> np.ndarray:
    """``(chains, draws, *event)``, at most `KEPT_DRAWS` in all."""
    array = np.asarray(value)
    by_chain = array.reshape(chains, -1, *array.shape[1:])
    step = max(1, -(-len(array) // KEPT_DRAWS))
    return by_chain[:, ::step]


def peak_memory_mb() -> float:
    """Largest resident size of this process so far, in MB (Linux counts in KiB, macOS in bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
