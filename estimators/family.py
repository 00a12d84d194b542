"""The named estimators of the log-weight family: a line of mathematics each, everything else is `LogWeight`.

Constructor arguments besides those listed: ``num_particles``, ``gradient``, ``vectorize_particles`` (see `LogWeight`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from .log_weight import LogWeight
from .objectives import CUBOBound, ELBOBound, ForwardChi2, ForwardKL, Grouped, IWBound, Mixture, Objective, PowerMean


@dataclass(frozen=True)
class Named(LogWeight):
    """A `LogWeight` whose pair of objectives follows from its own arguments: subclasses write `pair`."""

    theta: Objective = field(init=False, repr=False)
    phi: Objective | None = field(init=False, repr=False)
    likelihood_power: float | None = field(init=False, repr=False)

    def pair(self) -> tuple[Objective, Objective]:
        raise TypeError("Named is abstract: take one of its subclasses, or LogWeight(theta=..., phi=...)")

    def power(self) -> float | None:
        return 1.0

    def _compose(self) -> None:
        theta, phi = self.pair()
        object.__setattr__(self, "theta", theta)
        object.__setattr__(self, "phi", phi)
        object.__setattr__(self, "likelihood_power", self.power())

    def _groups(self, num_groups: int) -> int:
        valid = isinstance(num_groups, int) and num_groups >= 1 and self.num_particles % num_groups == 0
        if not valid:
            raise ValueError(
                f"num_groups must be a positive divisor of num_particles={self.num_particles}, got {num_groups!r}"
            )
        return num_groups


@dataclass(frozen=True)
class ELBO(Named):
    """Evidence lower bound, mean_k log w_k. Unbiased gradients at any K; tends to be too narrow."""

    def pair(self) -> tuple[Objective, Objective]:
        return ELBOBound(), ELBOBound()


@dataclass(frozen=True)
class IWAE(Named):
    """Importance-weighted bound L_K = log mean_k w_k (Importance Weighted Autoencoders, eq. 8)."""

    def pair(self) -> tuple[Objective, Objective]:
        return IWBound(), IWBound()


@dataclass(frozen=True)
class MIWAE(Named):
    """Mean of L_{K/M} over M = `num_groups` groups (Tighter Variational Bounds are Not Necessarily Better, eq. 9).

    `num_particles` counts all particles, over all groups.
    """

    num_groups: int = 4

    def pair(self) -> tuple[Objective, Objective]:
        bound = Grouped(IWBound(), self._groups(self.num_groups))
        return bound, bound


@dataclass(frozen=True)
class CIWAE(Named):
    """β ELBO + (1 − β) L_K (Tighter Variational Bounds are Not Necessarily Better, eq. 10)."""

    beta: float = 0.5

    def pair(self) -> tuple[Objective, Objective]:
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta must lie in [0, 1], got {self.beta}")
        bound = Mixture(((float(self.beta), ELBOBound()), (1 - float(self.beta), IWBound())))
        return bound, bound


@dataclass(frozen=True)
class PIWAE(Named):
    """θ climbs L_{MK} over all particles, φ the mean of L_K over M = `num_groups` groups (the same paper, eq. 11)."""

    num_groups: int = 4

    def pair(self) -> tuple[Objective, Objective]:
        return IWBound(), Grouped(IWBound(), self._groups(self.num_groups))


@dataclass(frozen=True)
class Renyi(Named):
    """(1/(1−α)) log mean_k w_k^(1−α) (Rényi Divergence Variational Inference, eq. 5); α=0 is IWAE, α=1 the ELBO."""

    alpha: float = 0.5

    def pair(self) -> tuple[Objective, Objective]:
        if not math.isfinite(self.alpha):
            raise ValueError(f"alpha must be finite, got {self.alpha}")
        bound = PowerMean(1.0 - float(self.alpha))
        return bound, bound


@dataclass(frozen=True)
class CHIVI(Named):
    """θ climbs the ELBO; φ descends the gap ½(CUBO₂ − ELBO), or CUBO₂ alone with ``sandwich=False``.

    Source: Variational Inference via χ Upper Bound Minimization; the sandwich is the baseline of the VIS paper.
    A K-sample CUBO is biased down: it bounds the evidence from above only as K → ∞.
    """

    sandwich: bool = True

    def pair(self) -> tuple[Objective, Objective]:
        gap = Mixture(((-0.5, PowerMean(2.0)), (0.5, ELBOBound())))
        return ELBOBound(), gap if self.sandwich else CUBOBound()


@dataclass(frozen=True)
class VBIS(Named):
    """θ climbs L_K, φ the ELBO: importance sampling from a variational posterior (baseline of the VIS paper)."""

    def pair(self) -> tuple[Objective, Objective]:
        return IWBound(), ELBOBound()


@dataclass(frozen=True)
class VIS(Named):
    """θ climbs L_K, φ descends the forward χ² divergence, which is what makes L_K accurate.

    Source: Forward χ² Divergence Based Variational Importance Sampling.
    """

    def pair(self) -> tuple[Objective, Objective]:
        return IWBound(), ForwardChi2()


@dataclass(frozen=True)
class RWS(Named):
    """θ climbs L_K, φ descends the forward KL by self-normalised weights (Reweighted Wake-Sleep, wake-phase φ)."""

    def pair(self) -> tuple[Objective, Objective]:
        return IWBound(), ForwardKL()


@dataclass(frozen=True)
class DataEmphasizedELBO(Named):
    """κ E_q log p(x|z) − KL(q‖p); `kappa` None is D/N, latent dimensions over data.

    Source: Learning Hyperparameters via a Data-Emphasized Variational Objective, eq. 5. A tempered objective, not a
    bound on the evidence.
    """

    kappa: float | None = None

    def pair(self) -> tuple[Objective, Objective]:
        return ELBOBound(), ELBOBound()

    def power(self) -> float | None:
        if self.kappa is not None and not 0 < self.kappa < math.inf:
            raise ValueError(f"kappa must be positive or None (D/N), got {self.kappa}")
        return self.kappa


@dataclass(frozen=True)
class AutoGen(Named):
    """(1+m) E_q log p(x|z) − KL(q‖p) (Improving Latent Variable Descriptiveness with AutoGen, eq. 9)."""

    m: float = 1.0

    def pair(self) -> tuple[Objective, Objective]:
        return ELBOBound(), ELBOBound()

    def power(self) -> float | None:
        if not 0 <= self.m < math.inf:
            raise ValueError(f"m must be at least 0, got {self.m}")
        return 1.0 + self.m
