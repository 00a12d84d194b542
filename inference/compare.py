"""Every estimator of one model in one table, measured by the same yardstick."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jax import random
from tqdm.auto import tqdm

from ..estimators.base import Estimator
from .data import check_model, prepare
from .evidence import estimate
from .fit import fit
from .result import FitResult
from .start import find_start

COLUMNS = {
    "log_evidence": "importance-sampling estimate of log p(x), nats",
    "stderr": "its standard error",
    "elbo": "mean log-weight of fresh draws, nats",
    "iw_bound": "mean of L_K over groups of K draws, nats",
    "khat": "Pareto k̂ of the weights",
    "verdict": "what k̂ says of importance sampling",
    "ess": "effective sample size of the weights",
    "mean_error": "worst error of a posterior mean against the reference, in reference sd",
    "sd_error": "worst relative error of a posterior sd",
    "psis_mean_error": "the same after PSIS resampling",
    "psis_sd_error": "the same after PSIS resampling",
    "steps_per_second": "of the optimiser, without compilation",
    "seconds": "wall time, compilation included",
    "status": "how the run ended",
}


@dataclass(frozen=True)
class Comparison:
    """Several estimators on one model; `print` it, or take `frame`."""

    frame: pd.DataFrame
    """One row an estimator, columns as in `inference.compare.COLUMNS`; attrs["columns"] explains them."""
    results: dict[str, FitResult]
    errors: dict[str, str]
    """Estimators that could not run, with the reason."""
    reference: dict[str, np.ndarray] | None = field(repr=False)
    """Reference draws by site, ``(num_draws, *event)``."""
    reference_name: str
    num_samples: int
    seed: int
    interrupted: bool = False

    def __str__(self) -> str:
        return format_table(self.frame) + self._footer()

    def _footer(self) -> str:
        lines = [""]
        if self.reference is not None:
            lines.append(f"errors against {self.reference_name}: worst over all scalars, in units of the reference sd")
        for name, reason in self.errors.items():
            lines.append(f"{name}: not run: {reason}")
        if self.interrupted:
            lines.append("interrupted: estimators that had not begun are missing")
        return "\n".join(lines)

    def to_arviz(self, num_samples: int = 1000) -> dict[str, Any]:
        """ArviZ containers by estimator, ready for ``arviz.plot_forest`` or ``arviz.compare``."""
        return {name: r.to_arviz(num_samples, seed=self.seed) for name, r in self.results.items()}

    def plot(self) -> dict[str, Any]:
        """Matplotlib figures: "losses", "weights" and, with latents, "posterior"."""
        from . import plots

        return plots.comparison(self)

    def save(self, folder: str | Path) -> Path:
        """Write table (CSV and Markdown), pictures (PNG) and one netCDF file an estimator into a folder.

        Raises:
            OSError: the folder cannot be made or written.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.frame.to_csv(folder / "table.csv")
        (folder / "table.md").write_text(to_markdown(self.frame) + "\n" + self._footer() + "\n", encoding="utf-8")
        for name, figure in self.plot().items():
            figure.savefig(folder / f"{name}.png", dpi=120, bbox_inches="tight")
        for name, result in self.results.items():
            result.save(folder / f"{_file_name(name)}.nc", seed=self.seed)
        return folder


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)


def compare(
    model: Callable,
    estimators: Mapping[str, Estimator],
    data: Mapping[str, Any] | None = None,
    *,
    reference: Any = None,
    guide: Any = None,
    start: Any = "laplace",
    num_samples: int = 4000,
    seed: int = 0,
    progress_bar: bool = True,
    **options: Any,
) -> Comparison:
    """Fit every estimator to one model from the same start, and measure all of them in the same way.

    Args:
        estimators: name -> estimator.
        reference: posterior draws to measure errors against: "nuts" runs NumPyro's NUTS (4 chains of 1,000 draws after
            1,000 of warm-up); a dict of draws ``(num_draws, *event)`` by site; an ArviZ container with a posterior
            group; None leaves the errors out.
        num_samples: fresh draws that evidence, k̂ and errors are computed from.
        options: of `fit`, for all estimators: num_steps, optimizer, learning_rate, num_restarts.

    Returns:
        `Comparison`. An estimator that cannot run is a reason in `errors`, never a crash; Ctrl-C returns what is done.
    """
    if not isinstance(estimators, Mapping) or not estimators:
        raise ValueError('estimators must be a dict of name -> estimator, as in {"IWAE": estimators.IWAE()}')
    prepared = prepare(model, data)
    theta = check_model(model, prepared)
    if guide is None:
        start = find_start(model, prepared, theta=theta, method=start, seed=seed)
    draws, reference_name = resolve_reference(reference, model, prepared, seed, progress_bar)
    rows: dict[str, dict[str, Any]] = {}
    results: dict[str, FitResult] = {}
    errors: dict[str, str] = {}
    interrupted = False
    bar = tqdm(estimators.items(), disable=not progress_bar, desc="estimators", unit="fit")
    for name, estimator in bar:
        bar.set_postfix_str(name)
        try:
            result = fit(
                model, estimator, data, guide=guide, start=start, seed=seed, progress_bar=progress_bar, **options
            )
            rows[name] = _measure(result, draws, num_samples, seed)
            results[name] = result
        except (ValueError, TypeError, FloatingPointError, NotImplementedError) as error:
            errors[name] = str(error)
            continue
        except KeyboardInterrupt:
            interrupted = True
        if interrupted or result.status == "interrupted":
            interrupted = True
            break
    bar.close()
    if not rows and errors:
        raise ValueError("no estimator could run: " + "; ".join(f"{n}: {e}" for n, e in errors.items()))
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=list(COLUMNS)).dropna(axis=1, how="all")
    frame.index.name = "estimator"
    frame.attrs["columns"] = {k: v for k, v in COLUMNS.items() if k in frame}
    return Comparison(frame, results, errors, draws, reference_name, num_samples, seed, interrupted)


def _measure(result: FitResult, reference: dict[str, np.ndarray] | None, num_samples: int, seed: int) -> dict[str, Any]:
    log_w = np.asarray(result.log_weights(num_samples, seed=seed + 1), np.float64)
    e = estimate(log_w)
    row: dict[str, Any] = {
        "log_evidence": e.value,
        "stderr": e.stderr,
        "elbo": e.elbo,
        "iw_bound": iw_bound(log_w, getattr(result.estimator, "num_particles", 1)),
        "khat": e.khat,
        "verdict": e.verdict,
        "ess": e.ess,
        "steps_per_second": result.steps_per_second,
        "seconds": result.seconds,
        "status": result.status,
    }
    if reference is not None:
        row["mean_error"], row["sd_error"] = posterior_error(result.sample(num_samples, seed=seed + 1), reference)
        row["psis_mean_error"], row["psis_sd_error"] = posterior_error(
            result.sample(num_samples, seed=seed + 1, resample="psis"), reference
        )
    return row


def iw_bound(log_w: np.ndarray, num_particles: int) -> float:
    """Mean of L_K over disjoint groups of K draws, summed over local plates."""
    size = max(1, min(num_particles, len(log_w)))
    groups = len(log_w) // size
    grouped = log_w[: groups * size].reshape(groups, size, -1)
    top = grouped.max(1, keepdims=True)
    return float((np.log(np.exp(grouped - top).mean(1)) + top[:, 0]).mean(0).sum())


def posterior_error(draws: Mapping[str, Any], reference: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """Worst error of a mean in units of the reference sd, and worst relative error of an sd, over shared scalars."""
    means, sds = [], []
    for name, truth in reference.items():
        if name not in draws:
            continue
        value, truth = np.asarray(draws[name], np.float64), np.asarray(truth, np.float64)
        if value.shape[1:] != truth.shape[1:]:
            raise ValueError(f"reference site {name!r} has shape {truth.shape[1:]}, the model's has {value.shape[1:]}")
        sd = truth.std(0)
        sd = np.where(sd > 0, sd, 1.0)
        means.append(np.max(np.abs(value.mean(0) - truth.mean(0)) / sd))
        sds.append(np.max(np.abs(value.std(0) / sd - 1)))
    if not means:
        raise ValueError(
            f"the reference (sites {', '.join(reference)}) shares no site with the fit (sites {', '.join(draws)})"
        )
    return float(max(means)), float(max(sds))


def resolve_reference(
    reference: Any, model: Callable, data: dict[str, Any], seed: int, progress_bar: bool
) -> tuple[dict[str, np.ndarray] | None, str]:
    """Reference draws by site from what the user gave, and a name for them."""
    if reference is None:
        return None, ""
    if isinstance(reference, str):
        if reference != "nuts":
            raise ValueError(f'reference must be None, "nuts", a dict of draws or an ArviZ object, got {reference!r}')
        return run_nuts(model, data, seed, progress_bar), "NUTS"
    if isinstance(reference, Mapping) and not hasattr(reference, "posterior") and "posterior" not in reference:
        return {k: np.asarray(v) for k, v in reference.items()}, "the reference draws"
    try:
        posterior = reference["posterior"]
        posterior = posterior.ds if hasattr(posterior, "ds") else posterior
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f'reference must be None, "nuts", a dict of draws or an ArviZ object with a posterior group, '
            f"got {type(reference).__name__}"
        ) from error
    stacked = {}
    for name, variable in posterior.data_vars.items():
        value = variable.transpose("chain", "draw", ...).values
        stacked[str(name)] = value.reshape(-1, *value.shape[2:])
    return stacked, "the ArviZ reference"


def run_nuts(model: Callable, data: dict[str, Any], seed: int, progress_bar: bool) -> dict[str, np.ndarray]:
    """Draws of NumPyro's NUTS: 4 vectorised chains of 1,000 after 1,000 of warm-up."""
    from numpyro.infer import MCMC, NUTS

    mcmc = MCMC(NUTS(model), num_warmup=1000, num_samples=1000, num_chains=4, chain_method="vectorized",
                progress_bar=progress_bar)  # fmt: skip
    mcmc.run(random.key(seed), **data)
    return {k: np.asarray(v) for k, v in mcmc.get_samples().items()}


def format_table(frame: pd.DataFrame) -> str:
    """The table as a person reads it in a terminal."""
    return _readable(frame).to_string()


def to_markdown(frame: pd.DataFrame) -> str:
    """A GitHub table, without a further dependency."""
    readable = _readable(frame).reset_index()
    lines = ["| " + " | ".join(readable.columns) + " |", "|" + "---|" * len(readable.columns)]
    lines += ["| " + " | ".join(str(v) for v in row) + " |" for row in readable.itertuples(index=False)]
    return "\n".join(lines)


def _readable(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns joined and rounded: evidence ± error, k̂ with its verdict, errors of means and sds."""
    out = pd.DataFrame(index=frame.index)
    out["log evidence"] = [f"{v:.3f} ± {s:.3f}" for v, s in zip(frame["log_evidence"], frame["stderr"], strict=True)]
    out["ELBO"] = [f"{v:.3f}" for v in frame["elbo"]]
    out["IW bound"] = [f"{v:.3f}" for v in frame["iw_bound"]]
    out["k̂"] = [f"{k:.2f} {v}" for k, v in zip(frame["khat"], frame["verdict"], strict=True)]
    out["ESS"] = [f"{v:.0f}" for v in frame["ess"]]
    if "mean_error" in frame:
        out["mean err"] = [f"{v:.3f}" for v in frame["mean_error"]]
        out["sd err"] = [f"{v:.0%}" for v in frame["sd_error"]]
        out["PSIS mean err"] = [f"{v:.3f}" for v in frame["psis_mean_error"]]
        out["PSIS sd err"] = [f"{v:.0%}" for v in frame["psis_sd_error"]]
    out["steps/s"] = [f"{v:.0f}" for v in frame["steps_per_second"]]
    out["seconds"] = [f"{v:.1f}" for v in frame["seconds"]]
    if (frame["status"] != "finished").any():
        out["status"] = frame["status"]
    return out
