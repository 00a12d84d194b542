"""What is optimised: estimators and the objectives and gradient estimators they are made of."""

from .annealed import LogNormalizer, log_normalizer
from .base import Estimator, Posterior, Problem
from .compositional import CompositionalMLE
from .contrastive import ContrastiveDivergence, UnbiasedCD
from .ddo import DDO
from .denoising import TIWDSM, DenoisingScoreMatching, TargetScoreMatching
from .dlsm import DLSM
from .ebflow import EBFlow
from .em import EM
from .family import (
    CHIVI,
    CIWAE,
    ELBO,
    IWAE,
    MIWAE,
    PIWAE,
    RWS,
    VBIS,
    VIS,
    AutoGen,
    DataEmphasizedELBO,
    Renyi,
)
from .flow_matching import ConditionalFlowMatching, StochasticInterpolant
from .gp import (
    SVGP,
    CoresetGP,
    GPEvidence,
    IterativeGP,
    LeaveOneOut,
    LogME,
    MultiTaskGP,
    NonConjugateGP,
    SparseGP,
    StateSpaceGP,
    condition_linear,
    log_me,
)
from .guides import WhitenedNormal
from .laplace import Laplace
from .likelihood import MAP, MLE
from .local_dsm import LocalDSM
from .log_weight import LogWeight
from .mcem import MCEM
from .nce import NCE, ConditionalNCE
from .objectives import (
    Bound,
    CUBOBound,
    ELBOBound,
    ForwardChi2,
    ForwardKL,
    Grouped,
    IWBound,
    Mixture,
    Objective,
    PowerMean,
)
from .recovery import RecoveryLikelihood
from .score_matching import ScoreMatching
from .smoothed_location import LocationInterval, SmoothedLocation, smoothed_interval
from .sure_score import SUREScore, sure
from .tweedie import GammaNoise, GaussianNoise, PoissonNoise

__all__ = [
    "CHIVI",
    "CIWAE",
    "DDO",
    "DLSM",
    "ELBO",
    "EM",
    "IWAE",
    "MAP",
    "MCEM",
    "MIWAE",
    "MLE",
    "NCE",
    "PIWAE",
    "RWS",
    "SVGP",
    "TIWDSM",
    "VBIS",
    "VIS",
    "AutoGen",
    "Bound",
    "CUBOBound",
    "CompositionalMLE",
    "ConditionalFlowMatching",
    "ConditionalNCE",
    "ContrastiveDivergence",
    "CoresetGP",
    "DataEmphasizedELBO",
    "DenoisingScoreMatching",
    "EBFlow",
    "ELBOBound",
    "Estimator",
    "ForwardChi2",
    "ForwardKL",
    "GPEvidence",
    "GammaNoise",
    "GaussianNoise",
    "Grouped",
    "IWBound",
    "IterativeGP",
    "Laplace",
    "LeaveOneOut",
    "LocalDSM",
    "LocationInterval",
    "LogME",
    "LogNormalizer",
    "LogWeight",
    "Mixture",
    "MultiTaskGP",
    "NonConjugateGP",
    "Objective",
    "PoissonNoise",
    "Posterior",
    "PowerMean",
    "Problem",
    "RecoveryLikelihood",
    "Renyi",
    "SUREScore",
    "ScoreMatching",
    "SmoothedLocation",
    "SparseGP",
    "StateSpaceGP",
    "StochasticInterpolant",
    "TargetScoreMatching",
    "UnbiasedCD",
    "WhitenedNormal",
    "condition_linear",
    "log_me",
    "log_normalizer",
    "smoothed_interval",
    "sure",
]
