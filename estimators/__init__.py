"""What is optimised: estimators and the objectives and gradient estimators they are made of."""

from .base import Estimator, Posterior, Problem
from .denoising import TIWDSM, DenoisingScoreMatching, TargetScoreMatching
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
from .guides import WhitenedNormal
from .laplace import Laplace
from .likelihood import MAP, MLE
from .log_weight import LogWeight
from .mcem import MCEM
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
from .score_matching import ScoreMatching
from .smoothed_location import LocationInterval, SmoothedLocation, smoothed_interval

__all__ = [
    "CHIVI",
    "CIWAE",
    "ELBO",
    "EM",
    "IWAE",
    "MAP",
    "MCEM",
    "MIWAE",
    "MLE",
    "PIWAE",
    "RWS",
    "TIWDSM",
    "VBIS",
    "VIS",
    "AutoGen",
    "Bound",
    "CUBOBound",
    "ConditionalFlowMatching",
    "DataEmphasizedELBO",
    "DenoisingScoreMatching",
    "ELBOBound",
    "Estimator",
    "ForwardChi2",
    "ForwardKL",
    "Grouped",
    "IWBound",
    "Laplace",
    "LocationInterval",
    "LogWeight",
    "Mixture",
    "Objective",
    "Posterior",
    "PowerMean",
    "Problem",
    "Renyi",
    "ScoreMatching",
    "SmoothedLocation",
    "StochasticInterpolant",
    "TargetScoreMatching",
    "WhitenedNormal",
    "smoothed_interval",
]
