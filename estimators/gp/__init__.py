"""Gaussian processes: hyper-parameters by marginal likelihood, with interchangeable objectives and posteriors."""

from .coreset import CoresetGP
from .evidence import GPEvidence, LeaveOneOut
from .iterative import IterativeGP
from .linear import LogME, condition_linear, log_me
from .multi_task import MultiTaskGP
from .nonconjugate import NonConjugateGP
from .sparse import SparseGP
from .state_space import StateSpaceGP
from .svgp import SVGP

__all__ = [
    "SVGP",
    "CoresetGP",
    "GPEvidence",
    "IterativeGP",
    "LeaveOneOut",
    "LogME",
    "MultiTaskGP",
    "NonConjugateGP",
    "SparseGP",
    "StateSpaceGP",
    "condition_linear",
    "log_me",
]
