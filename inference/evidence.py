"""Log-evidence from importance weights, and how far to trust it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from scipy.special import logsumexp

from .arviz_bridge import psis


@dataclass(frozen=True)
class Evidence:
    """An importance-sampling estimate of log p(x), in nats.

    Where latents are local to a data plate, `value` is the sum of per-datum estimates and `khat`, `ess` are those of
    the worst datum; `local` holds them all.
    """

    value: float
    stderr: float
    """By the delta method on the weights: sd(w) / (mean(w) √S). Not to be trusted where `khat` is 0.7 or more."""
    elbo: float
    khat: float
    ess: float
    num_samples: int
    missed: float = 0.0
    """Share of the posterior, at least, that the draws never see: a lower bound of the log evidence from elsewhere (the
    modes where searches for a start ended) lies above `value` by more than both errors."""
    unmet: float = 0.0
    """Chance that one more search for a start would end at a mode that none has met (`Start.unmet`)."""
    local: dict[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    @property
    def threshold(self) -> float:
        return khat_threshold(self.num_samples)

    @property
    def verdict(self) -> str:
        if self.missed > MOST_MISSED or self.unmet > MOST_UNMET:
            return "do not use"
        return verdict(self.khat, self.num_samples, self.ess)

    def __str__(self) -> str:
        return (
            f"log evidence {self.value:.3f} ± {self.stderr:.3f} (ELBO {self.elbo:.3f}, k̂ {self.khat:.2f}: "
            f"{self.verdict}, ESS {self.ess:.0f} of {self.num_samples})"
        )


MOST_MISSED = 0.1
MOST_UNMET = 0.5


def khat_threshold(num_samples: int) -> float:
    """Above this k̂ an estimate from so many draws is not reliable (Pareto Smoothed Importance Sampling, eq. 14)."""
    return min(1 - 1 / math.log10(max(num_samples, 11)), 0.7)


def verdict(khat: float, num_samples: int, ess: float = 0.0) -> str:
    """One of "good", "ok" and "do not use".

    By the thresholds of Pareto Smoothed Importance Sampling on k̂, with one addition. Where the guide is so close to
    the posterior that the weights hardly vary, k̂ describes the shape of a tail that carries nothing. By Cauchy and
    Schwarz no mean of the guide is off by more than √(S/ESS − 1) sd, so an ESS of at least 96 % of S (0.2 sd) is
    "ok" whatever the tail's shape, as long as its mean is finite (k̂ < 1).
    """
    if khat < khat_threshold(num_samples):
        return "good" if khat < 0.5 else "ok"
    return "ok" if khat < 1 and ess >= 0.96 * num_samples else "do not use"


def estimate(
    log_weights: np.ndarray, bound: tuple[float, float] = (math.nan, math.nan), unmet: float = 0.0
) -> Evidence:
    """Evidence from log-weights of shape ``(S, *local plates)``.

    Args:
        bound: a lower bound of log p(x) known from elsewhere, with its standard error; NaN: none.
        unmet: as in `Evidence`.
    """
    given = np.asarray(log_weights)
    num_samples, shape = given.shape[0], given.shape[1:]
    columns = given.reshape(num_samples, -1).T
    flat = columns.T.astype(np.float64)
    value = logsumexp(flat, axis=0) - math.log(num_samples)
    with np.errstate(invalid="ignore"):  # no finite weight: no number either
        relative = np.exp(flat - value)
        stderr = relative.std(axis=0, ddof=1) if num_samples > 1 else np.full(len(value), np.nan)
        stderr /= math.sqrt(num_samples)
        ess = relative.sum(0) ** 2 / (relative**2).sum(0)
    khat = np.array([psis(column)[1] for column in columns])
    local = {"value": value, "stderr": stderr, "khat": khat, "ess": ess} if shape else {}
    total, error = float(value.sum()), float(np.sqrt((stderr**2).sum()))
    rounding = float(np.finfo(given.dtype).eps) * abs(total)
    excess = bound[0] - total - 4 * (math.hypot(bound[1], error) + rounding)
    return Evidence(
        value=total,
        stderr=error,
        elbo=float(flat.mean(0).sum()),
        khat=float(np.max(khat)),
        ess=float(np.min(ess)),
        num_samples=num_samples,
        missed=1 - math.exp(-excess) if excess > 0 else 0.0,
        unmet=unmet,
        local={k: v.reshape(shape) for k, v in local.items()},
    )
