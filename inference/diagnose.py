"""What to trust of a fit, in numbers and in words."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import pandas as pd

from .evidence import MOST_MISSED, MOST_UNMET, Evidence
from .likelihood import information_trace

if TYPE_CHECKING:
    from .result import FitResult


@dataclass(frozen=True)
class Diagnosis:
    """A verdict with its grounds; `print` it."""

    verdict: str
    """"good", "ok" or "do not use": whether importance sampling can correct this posterior."""
    evidence: Evidence
    start: Evidence | None
    """The same numbers before the first step, where the guide had a start of its own."""
    drift: float
    """Change of the mean loss over the last fifth of the steps, in its standard errors; below −3: still falling."""
    advice: tuple[str, ...]
    status: str
    start_report: str

    def __str__(self) -> str:
        e = self.evidence
        lines = [
            f"verdict: {self.verdict} (k̂ {e.khat:.2f}, limit {e.threshold:.2f}; ESS {e.ess:.0f} of {e.num_samples})",
            f"log evidence: {e.value:.3f} ± {e.stderr:.3f}; ELBO {e.elbo:.3f}; gap {e.value - e.elbo:.3f} nats",
        ]
        if e.local:
            bad = int(np.sum(~(e.local["khat"] < e.threshold)))
            lines.append(f"local latents: {e.local['khat'].size} data, k̂ too high in {bad} of them (worst shown above)")
        if self.start_report:
            lines.append(self.start_report)
        if self.start is not None:
            lines.append(
                f"refining the start changed the ELBO by {e.elbo - self.start.elbo:+.3f} nats and k̂ from "
                f"{self.start.khat:.2f} to {e.khat:.2f}"
            )
        lines.append(f"status: {self.status}")
        lines += [f"- {line}" for line in self.advice]
        return "\n".join(lines)


@dataclass(frozen=True)
class PointDiagnosis:
    """What to trust of a point estimate; `print` it."""

    verdict: str
    """"good", "ok" (look at the advice) or "do not use"."""
    condition_number: float
    """Of the Hessian with its diagonal scaled to one; NaN where the loss is not exact."""
    information_ratio: float
    """tr(G H⁻¹) / p: near 1 where the model is right; far from it, take the sandwich covariance. NaN without units."""
    advice: tuple[str, ...]
    status: str

    def __str__(self) -> str:
        lines = [f"verdict: {self.verdict}", f"status: {self.status}"]
        if np.isfinite(self.condition_number):
            lines.append(f"condition number of the scaled Hessian: {self.condition_number:.1e}")
        if np.isfinite(self.information_ratio):
            lines.append(f"tr(G H⁻¹)/p: {self.information_ratio:.2f} (1 where the model is right)")
        return "\n".join([*lines, *(f"- {line}" for line in self.advice)])


def diagnose_point(result: FitResult) -> PointDiagnosis:
    """Convergence, identification, and whether model-based standard errors suit the data."""
    advice: list[str] = []
    condition = ratio = math.nan
    verdict = "good" if result.status == "finished" else "do not use"
    if result.has_curvature:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the notes are shown below
            covariance = result.covariance(getattr(result.estimator, "valid_covariances", ("observed",))[0])
            trace = information_trace(result) if hasattr(result.problem, "log_likelihood") else None
        condition = covariance.condition_number
        advice += covariance.notes
        if covariance.notes:
            verdict = "do not use"
        elif trace is not None:
            ratio = trace / len(covariance.hessian)
            if not 2 / 3 < ratio < 1.5:
                verdict = "ok" if verdict == "good" else verdict
                advice.append(
                    "scores vary otherwise than the curvature says: the model is misspecified or n is small; take "
                    'covariance="sandwich" or "bootstrap"'
                )
    elif result.problem.nonsmooth:
        advice.append("the loss has kinks: no standard errors; judge the strength of penalties by estimax.penalty_path")
    elif result.problem.deterministic:
        advice.append("the objective is no likelihood: its curvature gives no standard errors")
    elif not result.problem.loss_tells:
        advice.append(
            "only the gradient of this loss means something, not its values: whether it has converged shows in fits of "
            "several seeds, and of more steps (result.resume(num_steps))"
        )
    else:
        advice.append("the loss is stochastic: no curvature to judge by; compare fits of several seeds")
    falls = not result.problem.deterministic and result.problem.loss_tells and loss_drift(result.losses) < -3
    if falls:
        verdict = "do not use"
        advice.append("the loss was still falling at the end: take more steps (result.resume(num_steps))")
    with result.precision():
        faults, remarks = result.problem.report(result.unconstrained)
        advice += faults + remarks
    verdict = "do not use" if faults else verdict
    return PointDiagnosis(verdict, condition, ratio, tuple(advice), result.message or result.status)


def diagnose(result: FitResult, num_samples: int, seed: int) -> Diagnosis:
    evidence = result.log_evidence(num_samples, seed=seed)
    start = None
    if result.start is not None and result.num_steps:
        start = result.at_start().log_evidence(num_samples, seed=seed)
    drift = loss_drift(result.losses)
    return Diagnosis(
        verdict=evidence.verdict,
        evidence=evidence,
        start=start,
        drift=drift,
        advice=tuple(_advice(result, evidence, start, drift)),
        status=result.message or result.status,
        start_report="" if result.start is None else str(result.start),
    )


def loss_drift(losses: np.ndarray) -> float:
    """Difference of the means of the last two tenths of the losses, in standard errors; NaN for short runs."""
    tenth = len(losses) // 10
    if tenth < 10:
        return math.nan
    before, after = losses[-2 * tenth : -tenth], losses[-tenth:]
    error = math.sqrt((before.var() + after.var()) / tenth)
    difference = float(after.mean() - before.mean())
    return difference / error if error > 0 else 0.0


def _advice(result: FitResult, evidence: Evidence, start: Evidence | None, drift: float) -> list[str]:
    name = type(result.estimator).__name__
    advice = []
    if result.status != "finished":
        advice.append(f"the run was cut short ({result.status}): go on with result.resume(num_steps)")
    if drift < -3:
        advice.append("the loss was still falling at the end: take more steps (result.resume(num_steps))")
    if evidence.missed > MOST_MISSED:
        advice.append(
            f"searches for a start ended at separate modes, and the draws miss at least {evidence.missed:.0%} of the "
            "posterior: the guide sits at one mode or a few. Where modes are relabellings of one another, order the "
            "parameters (constraints.ordered_vector); else give each mode a fit of its own (start= a dict) or take NUTS"
        )
    elif evidence.unmet > MOST_UNMET:
        advice.append(
            f"{evidence.unmet:.0%} of the searches for a start ended each at a mode of its own: there are more modes "
            "than they met, which weights cannot see. Relabellings of one another want an order "
            "(constraints.ordered_vector), other posteriors of many modes a sampler made for them"
        )
    elif evidence.verdict == "good":
        advice.append(
            'weighted draws can be trusted: take sample(resample="psis"), and the evidence to its standard error'
        )
    elif evidence.verdict == "ok":
        advice.append('use sample(resample="psis") and many draws; trust the evidence to a few of its standard errors')
    else:
        advice.append("means and intervals of the guide may be off, and importance sampling cannot repair them")
        if name == "ELBO":
            advice.append("the ELBO makes guides too narrow: try IWAE or VIS, which cover the tails")
        advice.append(
            "a richer guide (guide=AutoBNAFNormal), a reparameterised model (numpyro.handlers.reparam) or NUTS may be "
            "needed; heavy tails and several modes are the usual causes"
        )
    if start is not None and np.isfinite(start.khat) and evidence.khat > max(start.khat + 0.2, 0.7):
        advice.append(
            "refining made the weights worse than those of the start: use result.at_start(), or a smaller step"
        )
    return advice


@dataclass(frozen=True)
class GradientSNR:
    """Gradient statistics per parameter element, keyed ``["theta" | "phi"][site]``."""

    mean: dict[str, Any]
    sd: dict[str, Any]
    snr: dict[str, Any]
    """|mean| / sd of one gradient. Below about 1 a single step mostly follows noise."""
    num_draws: int

    @classmethod
    def from_draws(cls, draws: dict[str, Any], num_draws: int) -> GradientSNR:
        mean = jax.tree.map(lambda g: g.mean(0), draws)
        sd = jax.tree.map(lambda g: g.std(0, ddof=1), draws)
        with np.errstate(divide="ignore", invalid="ignore"):
            snr = jax.tree.map(lambda m, s: np.abs(m) / s, mean, sd)
        return cls(mean, sd, snr, num_draws)

    def table(self) -> pd.DataFrame:
        """A row per parameter: role, number of elements, median SNR, root mean square of mean and sd."""
        rows = []
        for role, sites in self.snr.items():
            for site, tree in sites.items():
                flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
                mean = np.concatenate([np.ravel(x) for x in jax.tree.leaves(self.mean[role][site])])
                sd = np.concatenate([np.ravel(x) for x in jax.tree.leaves(self.sd[role][site])])
                rows.append(
                    {
                        "role": role,
                        "site": site,
                        "size": flat.size,
                        "median_snr": float(np.median(flat)),
                        "rms_mean": float(np.sqrt(np.mean(mean**2))),
                        "rms_sd": float(np.sqrt(np.mean(sd**2))),
                    }
                )
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        return self.table().to_string(index=False, float_format=lambda x: f"{x:.3g}")
