"""How good an answer is: pure functions of draws and truth, and of the table of runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from .cases import Truth

NEAR = 0.1
"""An answer is near where its worst mean is within so many reference sds (and its worst sd within so large a part)."""
WRONG, RIGHT = 0.2, 0.05
"""Worst errors of a mean, in reference sds, above which trust is misplaced and below which refusal is."""
TRUSTED = ("good", "ok")

COLUMNS: Mapping[str, str] = {
    "mean_error": "worst error of a posterior mean, in reference sd",
    "mean_error_average": "the same, averaged over scalars",
    "sd_error": "worst relative error of a posterior sd",
    "sd_error_average": "the same, averaged over scalars",
    "own_mean_error": "worst error of a mean before importance resampling",
    "own_sd_error": "worst relative error of an sd before importance resampling",
    "sliced_wasserstein": "sliced 1-Wasserstein distance to the reference draws, in reference sd",
    "log_evidence_error": "|estimate − truth| of the log evidence, nats",
    "khat": "Pareto k̂ of the weights",
    "verdict": "what the user is told",
    "seconds": "wall time of a run, compilation included in the first of a process",
    "seconds_to_near": f"seconds until the worst error of a mean was {NEAR} sd or less, compilation included",
    "gradient_evaluations": "gradients of the log joint density, without the search for a start",
    "peak_memory_mb": "largest resident memory of a process that did this run alone, MB (first seed)",
}
"""Measures of a run, in the order of the table."""


OF_DRAWS = ("mean_error", "mean_error_average", "sd_error", "sd_error_average", "sliced_wasserstein")
"""Measures that every answer has which has draws."""


class Yardstick:
    """Truth by scalar: names, means, sds, and draws as a matrix.

    Scalars that do not vary under the truth are left out.
    """

    def __init__(self, truth: Truth) -> None:
        self.log_evidence = truth.log_evidence
        draws = {k: np.asarray(v, np.float64) for k, v in (truth.draws or {}).items()}
        moments = {k: (v.mean(0), v.std(0)) for k, v in draws.items()}
        moments |= {k: (np.asarray(m, float), np.asarray(s, float)) for k, (m, s) in (truth.moments or {}).items()}
        self.shapes = {name: np.shape(mean) for name, (mean, _) in moments.items()}
        flat = [np.stack([np.ravel(m), np.ravel(s)]) for m, s in moments.values()]
        means, sds = np.concatenate(flat, 1) if flat else np.zeros((2, 0))
        self._use = sds > 0
        self.means, self.sds = means[self._use], sds[self._use]
        self.draws = self.matrix(draws) if draws and set(draws) == set(self.shapes) else None

    def __bool__(self) -> bool:
        return self.means.size > 0

    def matrix(self, draws: Mapping[str, Any]) -> np.ndarray:
        """Draws of the truth's scalars, ``(num_draws, num_scalars)``.

        Raises:
            ValueError: a site of the truth that the draws lack, or one of another shape.
        """
        parts = []
        for name, shape in self.shapes.items():
            if name not in draws:
                raise ValueError(f"the answer has no draws of the site {name!r} (it has {', '.join(draws)})")
            value = np.asarray(draws[name], np.float64)
            if value.shape[1:] != shape:
                raise ValueError(f"the answer's {name!r} has shape {value.shape[1:]}, the truth's {shape}")
            parts.append(value.reshape(len(value), -1))
        return np.concatenate(parts, 1)[:, self._use]

    def errors(self, draws: Mapping[str, Any]) -> dict[str, float]:
        """Errors of means, in reference sd, and relative errors of sds: worst and average over scalars."""
        values = self.matrix(draws)
        with np.errstate(over="ignore", invalid="ignore"):  # an answer may be so wide that its draws overflow
            mean = np.abs(values.mean(0) - self.means) / self.sds
            sd = np.abs(values.std(0) / self.sds - 1)
        return {
            "mean_error": float(mean.max()),
            "mean_error_average": float(mean.mean()),
            "sd_error": float(sd.max()),
            "sd_error_average": float(sd.mean()),
        }

    def wasserstein(self, draws: Mapping[str, Any]) -> float | None:
        """`sliced_wasserstein` to the reference draws; None where there are none."""
        if self.draws is None:
            return None
        values = (self.matrix(draws) - self.means) / self.sds
        return sliced_wasserstein(values, (self.draws - self.means) / self.sds)


def sliced_wasserstein(a: np.ndarray, b: np.ndarray, num_directions: int = 64, seed: int = 0) -> float:
    """Mean 1-Wasserstein distance of the projections onto random directions (Bonneel et al., "Sliced and Radon
    Wasserstein Barycenters of Measures").

    Args:
        a, b: draws ``(num_draws, D)``; the numbers of draws may differ.
    """
    directions = np.random.default_rng(seed).standard_normal((a.shape[1], num_directions))
    directions /= np.linalg.norm(directions, axis=0)
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.abs(_quantiles(a @ directions) - _quantiles(b @ directions)).mean())


def _quantiles(values: np.ndarray, num: int = 1000) -> np.ndarray:
    """Quantiles of every column at the midpoints of `num` equal parts, ``(num, columns)``.

    As `numpy.quantile` has them, which takes ten times as long for so many.
    """
    ordered = np.sort(values, axis=0)
    position = (np.arange(num) + 0.5) / num * (len(values) - 1)
    below = np.floor(position).astype(int)
    part = (position - below)[:, None]
    return (1 - part) * ordered[below] + part * ordered[np.minimum(below + 1, len(values) - 1)]


def seconds_to_near(curve: Iterable[tuple[float, float]]) -> float | None:
    """The first time at which the error was `NEAR` or less; None if it never was."""
    reached = [seconds for seconds, error in curve if error is not None and error <= NEAR]
    return min(reached) if reached else None


# --- of the table of runs --------------------------------------------------------------------------------------------


def averages(runs: pd.DataFrame, measures: Iterable[str]) -> pd.DataFrame:
    """Averages over seeds, indexed by (case, column), in the order of appearance.

    A seed that left no finite error counts as an infinite one: a method is not better for having failed. Time, memory
    and k̂ are averaged over the seeds that have them.
    """
    chosen = [m for m in measures if m in runs]
    numbers = runs[chosen].astype(float)
    failed = runs["status"].isin(("failed", "non-finite"))
    for m in [m for m in chosen if m in OF_DRAWS]:
        measured = numbers[m].groupby(runs["case"]).transform("count") > 0  # there is a truth to this case
        numbers.loc[failed & measured & numbers[m].isna(), m] = np.inf
    grouped = numbers.groupby([runs["case"], runs["column"]], sort=False)
    return grouped.mean()


def honesty(runs: pd.DataFrame) -> pd.DataFrame:
    """By column: how often the verdict says "trust" where the answer is wrong, and "do not" where it is right.

    Trust: "good" or "ok". Wrong: the worst error of a mean above 0.2 sd; right: below 0.05 sd. Both are those of the
    answer as the user takes it, after importance resampling. Columns without a verdict have no row.
    """
    if "verdict" not in runs or "mean_error" not in runs:
        return pd.DataFrame()
    judged = runs[runs["verdict"].notna() & runs["mean_error"].notna()]
    rows = {}
    for column, part in judged.groupby("column", sort=False):
        trusted, error = part["verdict"].isin(TRUSTED), part["mean_error"].astype(float)
        rows[column] = {
            "runs": len(part),
            "trusted": int(trusted.sum()),
            "trusted, error above 0.2": int((trusted & (error > WRONG)).sum()),
            "refused": int((~trusted).sum()),
            "refused, error below 0.05": int((~trusted & (error < RIGHT)).sum()),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def near_counts(table: pd.DataFrame) -> pd.DataFrame:
    """By column: on how many cases the seed-averaged answer is within 0.1 sd (means) and 10 % (sds).

    Args:
        table: of `averages`, with mean_error and sd_error.
    """
    known = table[["mean_error", "sd_error"]].dropna(how="all")
    mean_near, sd_near = known["mean_error"] <= NEAR, known["sd_error"] <= NEAR
    by = known.index.get_level_values("column")
    counts = pd.DataFrame({"means": mean_near, "sds": sd_near, "both": mean_near & sd_near}).groupby(by, sort=False)
    out = counts.sum().astype(int)
    out["models"] = counts.size()
    return out


def best_of(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """By case, the best of some columns: of those within both bounds, else of all, the one of smallest mean error."""
    rows = {}
    for case, part in table[table.index.get_level_values("column").isin(columns)].groupby("case", sort=False):
        part = part.droplevel("case")
        near = part[(part["mean_error"] <= NEAR) & (part["sd_error"] <= NEAR)]
        pool = (near if len(near) else part)["mean_error"].dropna()
        if len(pool):
            name = str(pool.idxmin())
            rows[case] = {
                "column": name,
                **{m: float(part[m][name]) for m in ("mean_error", "sd_error")},
                "near": bool(len(near)),
            }
    return pd.DataFrame.from_dict(rows, orient="index")


def ranks(table: pd.DataFrame, measure: str = "mean_error") -> pd.DataFrame:
    """Rank of every column on every case (1 is best, ties share), ``(cases, columns)``; missing answers rank last.

    Cases on which a column was not run at all are left out, as ranks need complete rows.
    """
    wide = table[measure].unstack("column")[list(dict.fromkeys(table.index.get_level_values("column")))]
    return wide.dropna().rank(axis=1)


def critical_difference(num_columns: int, num_cases: int, level: float = 0.05) -> float:
    """Nemenyi's critical difference of average ranks (Demšar, "Statistical Comparisons of Classifiers over Multiple
    Data Sets")."""
    from scipy.stats import studentized_range

    q = float(studentized_range.ppf(1 - level, num_columns, np.inf)) / np.sqrt(2)
    return float(q * np.sqrt(num_columns * (num_columns + 1) / (6 * num_cases)))
