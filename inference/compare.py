"""Every estimator of one model in one table, measured by the same yardstick."""

from __future__ import annotations

import logging
import textwrap
import unicodedata
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jax import random
from scipy.special import logsumexp
from tqdm.auto import tqdm

from ..estimators.base import Estimator
from ..estimators.checks import check_counts
from . import predictive
from .data import check_estimator, check_model, prepare
from .fit import DEFAULT_STEPS, fit
from .result import FitResult
from .start import Start, find_start
from .summary import arrays, estimates_alone

_log = logging.getLogger(__name__)

COLUMNS = {
    "log_evidence": "importance-sampling estimate of log p(x), nats",
    "stderr": "its standard error",
    "elbo": "mean log-weight of fresh draws, nats",
    "iw_bound": "mean of L_K over groups of K draws, nats",
    "khat": "Pareto k̂ of the weights",
    "verdict": "what k̂ says of importance sampling",
    "ess": "effective sample size of the weights",
    "log_likelihood": "of a point estimate, nats",
    "aic": "Akaike's criterion of a point estimate",
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
    learnt: tuple[str, ...] = ()
    """Parameters that the model itself has (`numpyro.param`)."""

    def __str__(self) -> str:
        return self.report()

    def report(self, width: int | None = None) -> str:
        """The table with what its columns mean, folded into blocks no wider than `width` characters."""
        return "\n".join([format_table(self.frame, width), "", *(fold(line, width) for line in self.notes())])

    def notes(self) -> list[str]:
        """Lines that go below the table: units, the reference, and what did not run."""
        lines = []
        if "khat" in self.frame:
            lines.append(
                f"log evidence, ELBO and IW bound in nats, from {self.num_samples} fresh draws, of which ESS are "
                "effective; k̂ < 0.5 is good, 0.7 the limit"
            )
        if self.learnt and "khat" in self.frame:
            few = ", ".join(self.learnt[:4]) + (", ..." if len(self.learnt) > 4 else "")
            lines.append(
                f"every estimator learnt the model's own parameters ({few}): a higher log evidence is a better model"
            )
        if self.reference is not None:
            lines.append(
                f"mean err, sd err: the guide's own draws against {self.reference_name}, the worst scalar, in units "
                "of the reference sd; PSIS: the same after importance resampling"
            )
        lines += [f"the same fit to the last digit on this model: {', '.join(names)}" for names in self._twins()]
        for name, reason in self.errors.items():
            lines.append(f"{name}: {'fitted, but not measured' if name in self.results else 'not run'}: {reason}")
        if self.interrupted:
            lines.append("interrupted: estimators that had not begun are missing")
        return lines

    def _twins(self) -> list[list[str]]:
        """Estimators whose rows agree exactly: on this model their objectives lead to one and the same guide."""
        if "elbo" not in self.frame:
            return []
        groups: dict[tuple[float, float], list[str]] = {}
        for name, evidence, elbo in zip(self.frame.index, self.frame["log_evidence"], self.frame["elbo"], strict=True):
            if np.isfinite(evidence):
                groups.setdefault((evidence, elbo), []).append(str(name))
        return [names for names in groups.values() if len(names) > 1]

    def estimates(self) -> pd.DataFrame:
        """Parameters by point estimators, side by side: a row a scalar, and `estimate` and `std_err` under each name.

        Standard errors are each estimator's own kind, as in `FitResult.summary`; NaN where it has none.
        """
        tables = {}
        for name, result in self.results.items():
            if name not in self.errors and result.is_point:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # `diagnose` says it
                    try:
                        table = result.summary()
                    except (ValueError, TypeError, FloatingPointError):  # no errors, so the estimates alone
                        table = estimates_alone(result.params)
                tables[name] = table[["estimate", "std_err"]]
        return pd.concat(tables, axis=1) if tables else pd.DataFrame()

    def to_arviz(self, num_samples: int = 1000) -> dict[str, Any]:
        """ArviZ containers by estimator, ready for ``arviz.plot_forest`` or ``arviz.compare``."""
        return {name: r.to_arviz(num_samples, seed=self.seed) for name, r in self.results.items()}

    def plot(self) -> dict[str, Any]:
        """Matplotlib figures: "losses", "weights" and, with latents, "posterior"."""
        from . import plots

        return plots.comparison(self)

    def save(self, folder: str | Path) -> Path:
        """Write table (CSV and Markdown), one netCDF file an estimator and pictures (PNG) into a folder.

        What cannot be written does not keep the rest from being written.

        Raises:
            OSError: the folder cannot be made or written; or, after all else is written, some fits cannot be saved.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.frame.to_csv(folder / "table.csv")
        text = "\n".join([to_markdown(self.frame), "", *(f"- {line}" for line in self.notes())])
        (folder / "table.md").write_text(text + "\n", encoding="utf-8")
        failed = []
        for name, result in self.results.items():
            file = f"{_file_name(name)}.nc"
            try:
                result.save(str(folder / file), seed=self.seed)
            except Exception as error:
                failed.append(f"{file} ({_reason(error)})")
                _log.debug("%s could not be saved", name, exc_info=True)
        for name, figure in self.plot().items():
            figure.savefig(folder / f"{name}.png", dpi=120)
        if failed:
            raise OSError(f"saved in {folder}, all but {', '.join(failed)}")
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
    for name, estimator in estimators.items():
        check_estimator(estimator, f"estimators[{name!r}]")
    check_counts(least=0, seed=seed)
    prepared = prepare(model, data)
    theta = check_model(model, prepared)
    draws, reference_name = resolve_reference(reference, model, prepared, theta, seed, progress_bar)
    rows: dict[str, dict[str, Any]] = {}
    results: dict[str, FitResult] = {}
    errors: dict[str, str] = {}
    interrupted = False
    with _Bar(len(estimators), options.get("num_steps", DEFAULT_STEPS), progress_bar) as bar:
        if (guide is None or isinstance(guide, type)) and any(e.needs_guide for e in estimators.values()):
            bar.say("finding the start")
            try:
                start = find_start(model, prepared, theta=theta, method=start, seed=seed)
            except (ValueError, NotImplementedError):  # those that need it will say so, the others can go on
                _log.debug("no start", exc_info=True)
        for name, estimator in estimators.items():
            bar.begin(name)
            try:
                result = fit(
                    model, estimator, data, guide=guide, start=start, seed=seed, progress_bar=False,
                    **{"on_progress": bar.progress, **options},
                )  # fmt: skip
                if result.start is not None and isinstance(start, Start):
                    result = replace(result, start=start)  # this model's own: what it says of the evidence holds
            except KeyboardInterrupt:
                interrupted = True
                break
            except Exception as error:  # whatever it is, the other estimators' work must not be lost
                errors[name] = _reason(error)
                _log.debug("%s could not run", name, exc_info=True)
                continue
            if not result.num_steps:  # interrupted before its first step
                interrupted = True
                break
            bar.say(f"{name} ({bar.begun} of {bar.num_fits}), measuring")
            results[name] = result
            rows[name] = _cost(result)  # what is known already: Ctrl-C may come while the rest is measured
            try:
                rows[name] |= _measure(result, draws, num_samples, seed)
            except KeyboardInterrupt:
                interrupted = True
            except Exception as error:
                errors[name] = _reason(error)
                _log.debug("%s could not be measured", name, exc_info=True)
            if interrupted or result.status == "interrupted":
                interrupted = True
                break
    if not rows and errors:
        reasons = set(errors.values())
        why = reasons.pop() if len(reasons) == 1 else "; ".join(f"{n}: {e}" for n, e in errors.items())
        raise ValueError(f"no estimator could run: {why}")
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=list(COLUMNS)).dropna(axis=1, how="all")
    frame.index.name = "estimator"
    frame.attrs["columns"] = {k: v for k, v in COLUMNS.items() if k in frame}
    return Comparison(
        frame, results, errors, draws, reference_name, num_samples, seed, interrupted, learnt=tuple(theta)
    )


class _Bar:
    """One progress bar over the steps of all fits."""

    def __init__(self, num_fits: int, num_steps: Any, show: bool) -> None:
        self.num_fits, self.begun = num_fits, 0
        self.num_steps = num_steps if isinstance(num_steps, int) else 1  # `fit` says what is wrong with it
        layout = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps [{elapsed}<{remaining}{postfix}]"
        self.bar = tqdm(total=num_fits * self.num_steps, disable=not show, bar_format=layout)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.close()

    def say(self, text: str) -> None:
        self.bar.set_description_str(text)

    def begin(self, name: str) -> None:
        """The next fit; the one before may have ended early."""
        self._move(self.begun * self.num_steps)
        self.begun += 1
        self.say(f"{name} ({self.begun} of {self.num_fits})")

    def progress(self, done: int, loss: float) -> None:
        self.bar.set_postfix_str(f"loss {loss:.4g}", refresh=False)
        self._move((self.begun - 1) * self.num_steps + done)

    def _move(self, n: int) -> None:
        self.bar.update(n - self.bar.n)


def _reason(error: Exception) -> str:
    """The message of an error that we raise ourselves; the kind of error too where it is somebody else's."""
    text = str(error).strip().split("\n")[0] or type(error).__name__
    ours = isinstance(error, (ValueError, TypeError, FloatingPointError, NotImplementedError))
    return text if ours else f"{type(error).__name__}: {text}"


def has_posterior(result: FitResult) -> bool:
    """Whether the estimator leaves draws to measure: a point estimate does not."""
    return not result.is_point


def _cost(result: FitResult) -> dict[str, Any]:
    return {"steps_per_second": result.steps_per_second, "seconds": result.seconds, "status": result.status}


def _measure(result: FitResult, reference: dict[str, np.ndarray] | None, num_samples: int, seed: int) -> dict[str, Any]:
    if not has_posterior(result):
        point: dict[str, Any] = {}
        if result.has_curvature and hasattr(result.problem, "log_likelihood"):
            criteria = result.information_criteria()
            point = {"log_likelihood": criteria["log_likelihood"], "aic": criteria["AIC"]}
        if reference is not None:
            alone = {n: np.asarray(v)[None] for n, v in arrays(result.params).items()}
            point["mean_error"] = posterior_error(alone, reference)[0]
        return {**point, **_of_weights(result, num_samples, seed)} if _has_functions(result) else point
    row = _of_weights(result, num_samples, seed)
    if reference is not None:
        row["mean_error"], row["sd_error"] = posterior_error(result.sample(num_samples, seed=seed + 1), reference)
        row["psis_mean_error"], row["psis_sd_error"] = posterior_error(
            result.sample(num_samples, seed=seed + 1, resample="psis"), reference
        )
    return row


def _has_functions(result: FitResult) -> bool:
    """Whether a point estimate of hyper-parameters leaves weighted draws of functions (Gaussian processes)."""
    return hasattr(result.problem, "pointwise_given") and result.has_draws


def _of_weights(result: FitResult, num_samples: int, seed: int) -> dict[str, Any]:
    log_w = np.asarray(result.log_weights(num_samples, seed=seed + 1))
    e = result.evidence_of(log_w)
    return {
        "log_evidence": e.value,
        "stderr": e.stderr,
        "elbo": e.elbo,
        "iw_bound": iw_bound(log_w, getattr(result.estimator, "num_particles", 1)),
        "khat": e.khat,
        "verdict": e.verdict,
        "ess": e.ess,
    }


def iw_bound(log_w: np.ndarray, num_particles: int) -> float:
    """Mean of L_K over disjoint groups of K draws, summed over local plates."""
    size = max(1, min(num_particles, len(log_w)))
    groups = len(log_w) // size
    grouped = np.asarray(log_w, np.float64)[: groups * size].reshape(groups, size, -1)
    return float((logsumexp(grouped, axis=1) - np.log(size)).mean(0).sum())


def posterior_error(draws: Mapping[str, Any], reference: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """Worst error of a mean in units of the reference sd, and worst relative error of an sd, over shared scalars."""
    means, sds = [], []
    for name, truth in reference.items():
        if name not in draws:
            continue
        value, truth = np.asarray(draws[name], np.float64), np.asarray(truth, np.float64)
        if value.shape[1:] != truth.shape[1:]:
            raise ValueError(_other_shape(name, truth.shape[1:], value.shape[1:]))
        if not truth[0].size:
            continue
        sd = truth.std(0)
        sd = np.where(sd > 0, sd, 1.0)
        with np.errstate(over="ignore", invalid="ignore"):  # a guide may be so wide that its draws overflow
            means.append(np.max(np.abs(value.mean(0) - truth.mean(0)) / sd))
            sds.append(np.max(np.abs(value.std(0) / sd - 1)))
    if not means:
        raise ValueError(_nothing_shared(reference, draws))
    return float(max(means)), float(max(sds))


def resolve_reference(
    reference: Any, model: Callable, data: dict[str, Any], theta: dict[str, Any], seed: int, progress_bar: bool
) -> tuple[dict[str, np.ndarray] | None, str]:
    """Reference draws by site from what the user gave, and a name for them.

    Raises:
        ValueError: not a reference, or one that does not fit the model: found out before the first fit.
    """
    if reference is None:
        return None, ""
    if isinstance(reference, str):
        if reference != "nuts":
            raise ValueError(f'reference must be None, "nuts", a dict of draws or an ArviZ object, got {reference!r}')
        if theta:
            raise ValueError(
                f'reference="nuts" needs a model without parameters of its own: NUTS cannot learn {", ".join(theta)}'
            )
        return run_nuts(model, data, seed, progress_bar)
    if isinstance(reference, Mapping) and not hasattr(reference, "posterior") and "posterior" not in reference:
        draws, name = {str(k): np.asarray(v) for k, v in reference.items()}, "the reference draws"
    else:
        draws, name = _posterior_group(reference), "the ArviZ reference"
    _check_reference(draws, model, data, theta)
    return draws, name


def _posterior_group(reference: Any) -> dict[str, np.ndarray]:
    """Draws by site of an ArviZ container, chains joined."""
    try:
        posterior = reference["posterior"]
        posterior = posterior.ds if hasattr(posterior, "ds") else posterior
        variables = posterior.data_vars.items()
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(
            f'reference must be None, "nuts", a dict of draws or an ArviZ object with a posterior group, '
            f"got {type(reference).__name__}"
        ) from error
    stacked = {}
    for name, variable in variables:
        value = variable.transpose("chain", "draw", ...).values
        stacked[str(name)] = value.reshape(-1, *value.shape[2:])
    return stacked


def _check_reference(draws: dict[str, np.ndarray], model: Callable, data: dict[str, Any], theta: dict) -> None:
    for name, value in draws.items():
        if value.ndim < 1 or len(value) < 2:
            raise ValueError(f"reference site {name!r} needs at least 2 draws, shape (num_draws, *event); it has shape "
                             f"{value.shape}")  # fmt: skip
        if value.dtype.kind not in "fiub" or not np.isfinite(value.astype(np.float64)).all():
            raise ValueError(f"reference site {name!r} has draws that are not finite numbers")
    try:
        sites = predictive.describe(model, theta, {}, data)
    except NotImplementedError:  # a prior without sampler: the shapes show when the first fit is measured
        return
    shapes = {s.name: s.shape for s in sites if s.kind != "observed"}
    shared = [name for name in draws if name in shapes]
    if not shared:
        raise ValueError(_nothing_shared(draws, shapes))
    for name in shared:
        if draws[name].shape[1:] != shapes[name]:
            raise ValueError(_other_shape(name, draws[name].shape[1:], shapes[name]))


def _nothing_shared(reference: Mapping[str, Any], sites: Mapping[str, Any]) -> str:
    return f"the reference (sites {', '.join(reference)}) shares no site with the model (sites {', '.join(sites)})"


def _other_shape(name: str, reference: tuple, model: tuple) -> str:
    return f"reference site {name!r} has shape {reference}, the model's has {model}"


def run_nuts(model: Callable, data: dict[str, Any], seed: int, progress_bar: bool) -> tuple[dict[str, np.ndarray], str]:
    """Draws of NumPyro's NUTS, 4 vectorised chains of 1,000 after 1,000 of warm-up, and a name that says how good."""
    from numpyro.diagnostics import split_gelman_rubin
    from numpyro.infer import MCMC, NUTS

    mcmc = MCMC(NUTS(model), num_warmup=1000, num_samples=1000, num_chains=4, chain_method="vectorized",
                progress_bar=progress_bar)  # fmt: skip
    try:
        mcmc.run(random.key(seed), **data)
    except (ValueError, TypeError, RuntimeError, NotImplementedError, ImportError) as error:
        raise ValueError(f'reference="nuts" failed on this model: {str(error).strip().splitlines()[0]}') from error
    draws = {k: np.asarray(v) for k, v in mcmc.get_samples(group_by_chain=True).items()}
    divergences = int(np.sum(mcmc.get_extra_fields()["diverging"]))
    with np.errstate(all="ignore"):
        rhats = np.concatenate([np.ravel(split_gelman_rubin(np.asarray(v, np.float64))) for v in draws.values()])
    rhat = np.nanmax(rhats) if np.isfinite(rhats).any() else np.nan
    name = f"NUTS (4 chains of 1000 draws, worst R̂ {rhat:.3f}, divergences: {divergences})"
    return {k: v.reshape(-1, *v.shape[2:]) for k, v in draws.items()}, name


def fold(line: str, width: int | None) -> str:
    """A line broken at words where it is longer than `width`."""
    return line if width is None else textwrap.fill(line, width, subsequent_indent="  ", break_on_hyphens=False)


def format_table(frame: pd.DataFrame, width: int | None = None) -> str:
    """The table as a person reads it in a terminal, folded into blocks no wider than `width` characters."""
    if frame.empty:
        return "no estimator was fitted"
    readable = _readable(frame)
    names = [str(n) for n in readable.index]
    columns = [_column("", names, left=True)]
    columns += [_column(str(h), [str(v) for v in readable[h]], left=h in _TEXT) for h in readable.columns]
    return _blocks(columns, width)


def _blocks(columns: Sequence[list[str]], width: int | None) -> str:
    """Columns beside each other, folded into blocks that each begin with the first one."""
    blocks: list[list[list[str]]] = [[columns[0]]]
    for column in columns[1:]:
        used = sum(_width(c[0]) + 2 for c in blocks[-1])
        if width is not None and used + _width(column[0]) > width and len(blocks[-1]) > 1:
            blocks.append([columns[0]])
        blocks[-1].append(column)
    return "\n\n".join("\n".join("  ".join(row).rstrip() for row in zip(*b, strict=True)) for b in blocks)


_TEXT = ("k̂", "status")
MOST_ESTIMATES = 30
"""Scalars that a terminal shows."""


def _width(text: str) -> int:
    """Columns that a terminal takes: the hat of k̂ takes none."""
    return sum(not unicodedata.combining(c) for c in text)


def _column(header: str, values: Sequence[str], left: bool = False) -> list[str]:
    size = max(map(_width, [header, *values]))
    return [v + " " * (size - _width(v)) if left else " " * (size - _width(v)) + v for v in [header, *values]]


def to_markdown(frame: pd.DataFrame) -> str:
    """A GitHub table, without a further dependency."""
    readable = _readable(frame)
    lines = [f"| estimator | {' | '.join(readable.columns)} |"]
    lines.append("|---|" + "".join("---|" if h in _TEXT else "---:|" for h in readable.columns))
    lines += [f"| {name} | {' | '.join(map(str, row))} |" for name, *row in readable.itertuples()]
    return "\n".join(lines)


def _readable(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns joined and rounded: evidence ± error, k̂ with its verdict, errors of means and sds."""
    out = pd.DataFrame(index=frame.index)

    def put(header: str, form: Callable[..., str], *columns: str) -> None:
        if all(c in frame for c in columns):
            rows = zip(*(frame[c] for c in columns), strict=True)
            out[header] = ["–" if any(pd.isna(v) for v in row) else form(*row) for row in rows]

    put("log evidence", lambda v, s: f"{v:.3f} ± {s:.3f}", "log_evidence", "stderr")
    put("ELBO", lambda v: f"{v:.3f}", "elbo")
    put("IW bound", lambda v: f"{v:.3f}", "iw_bound")
    put("k̂", khat_text, "khat", "verdict")
    put("ESS", lambda v: f"{v:.0f}", "ess")
    put("log lik", lambda v: f"{v:.3f}", "log_likelihood")
    put("mean err", _short, "mean_error")
    put("sd err", _percent, "sd_error")
    put("PSIS mean err", _short, "psis_mean_error")
    put("PSIS sd err", _percent, "psis_sd_error")
    put("steps/s", lambda v: f"{v:.0f}", "steps_per_second")
    put("seconds", lambda v: f"{v:.1f}", "seconds")
    if "status" in frame and (frame["status"] != "finished").any():
        out["status"] = frame["status"]
    return out


def estimates_text(table: pd.DataFrame, width: int | None = None) -> str:
    """Estimates ± standard errors as a person reads them, a column an estimator; none where there are not two."""
    names = list(dict.fromkeys(table.columns.get_level_values(0))) if len(table) else []
    if len(names) < 2:
        return ""
    columns = [_column("", [str(n) for n in table.index[:MOST_ESTIMATES]], left=True)]
    for name in names:
        pairs = zip(table[name, "estimate"], table[name, "std_err"], strict=True)
        values = ["–" if pd.isna(v) else f"{v:.4g}" if pd.isna(s) else f"{v:.4g} ± {s:.2g}" for v, s in pairs]
        columns.append(_column(str(name), values[:MOST_ESTIMATES]))
    rows = _blocks(columns, width)
    left = len(table) - MOST_ESTIMATES
    return f"{rows}\n... and {left} more" if left > 0 else rows


def khat_text(khat: float, verdict: str) -> str:
    """k̂ and its verdict; weights that are all equal have no tail to speak of, as the guide is the posterior."""
    return "exact" if khat == -np.inf else f"{khat:.2f} {verdict}"


def _short(value: float) -> str:
    """Two decimals for what is near one, no decimals nor endless digits for what is far off."""
    return f"{value:.2f}" if abs(value) < 9.995 else f"{value:.0f}" if abs(value) < 1e5 else f"{value:.0e}"


def _percent(value: float) -> str:
    return f"{100 * value:.0f}%" if abs(value) < 1e3 else f"{100 * value:.0e}%"
