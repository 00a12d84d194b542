"""estimax: one NumPyro model, any estimator, honestly measured."""

from . import estimators, models
from .inference.bench.runner import benchmark
from .inference.causal import CausalDirection, causal_direction
from .inference.compare import Comparison, compare
from .inference.diagnose import Diagnosis
from .inference.evidence import Evidence
from .inference.fit import fit
from .inference.likelihood import lr_test
from .inference.path import PenaltyPath, penalty_path
from .inference.result import FitResult
from .inference.start import Start, find_start
from .inference.storage import load
from .version import __version__

__all__ = [
    "CausalDirection",
    "Comparison",
    "Diagnosis",
    "Evidence",
    "FitResult",
    "PenaltyPath",
    "Start",
    "__version__",
    "benchmark",
    "causal_direction",
    "compare",
    "estimators",
    "find_start",
    "fit",
    "load",
    "lr_test",
    "models",
    "penalty_path",
]
