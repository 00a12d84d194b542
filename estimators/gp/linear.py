"""Two closed forms around linear models: the evidence of features, and predictions under linear constraints."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import LinAlgError, cho_factor, cho_solve

GRID = np.linspace(-30.0, 30.0, 241)
"""Of log(α/β) beyond that of the features' scale: the evidence may have several maxima."""
REFINEMENTS = 60


class LogME(NamedTuple):
    """Maximised evidence of Bayesian linear regressions on features."""

    score: float
    """Mean over targets of log_evidence/n, nats a row: larger features fit better without overfitting."""
    log_evidence: np.ndarray
    """Of each target, nats, ``(targets,)``."""
    alpha: np.ndarray
    """Precision of the coefficients, ``(targets,)``; infinite where the features say nothing of the target."""
    beta: np.ndarray
    """Precision of the noise, ``(targets,)``."""


def log_me(features: ArrayLike, targets: ArrayLike) -> LogME:
    """How well a linear model on features would do, without fitting one by hand: LogME.

    The evidence log N(y | 0, F Fᵀ/α + I/β), maximised over α and β (LogME: Practical Assessment of Pre-trained Models
    for Transfer Learning), by one singular value decomposition and a search in one dimension. Neither features nor
    targets are centred: give a column of ones if the targets have an offset. Computed in double precision by NumPy.

    Args:
        features: F, ``(n, d)``.
        targets: real numbers ``(n,)`` or ``(n, targets)``; integers ``(n,)`` and booleans are classes, each a column
            of zeros and ones.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, a constant class, or targets that the features
            fit exactly with numbers to spare, where the evidence is infinite.
    """
    F = _finite("features", features, 2)
    Y = _columns(targets)
    if len(F) != len(Y):
        raise ValueError(f"features have {len(F)} rows, targets {len(Y)}")
    if min(F.shape) < 1:
        raise ValueError(f"features have shape {F.shape}: no rows or no columns")
    U, s, _ = np.linalg.svd(F, full_matrices=False)
    keep = s > s[0] * max(F.shape) * np.finfo(float).eps
    if not keep.any():
        raise ValueError("features are all zero")
    U, s2 = U[:, keep], s[keep] ** 2
    found = np.array([_maximise(s2, (U.T @ y) ** 2, _outside(U, y), len(y), i) for i, y in enumerate(Y.T)])
    log_evidence, alpha, beta = found.T
    return LogME(float(np.mean(log_evidence) / len(F)), log_evidence, alpha, beta)


def _outside(U: np.ndarray, y: np.ndarray) -> float:
    """Squared norm of what of y is not in the span of U."""
    rest = y - U @ (U.T @ y)
    return float(rest @ rest)


def _maximise(s2: np.ndarray, z2: np.ndarray, rest: float, n: int, target: int) -> tuple[float, float, float]:
    """Evidence, α and β of one target; β has a closed form given α/β, whose logarithm is searched."""
    size = z2.sum() + rest
    if size == 0:
        raise ValueError(f"target {target} is zero everywhere")
    if n > len(s2) and rest <= size * n * np.finfo(float).eps ** 2:
        raise ValueError(
            f"the features fit target {target} exactly: without noise the evidence of {len(s2)} directions on {n} rows "
            "is infinite"
        )
    rest = rest if n > len(s2) else 0.0

    def value(log_ratio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Profile evidence and β at log(α/β)."""
        ratio = np.exp(log_ratio)[..., None]
        beta = n / (np.sum(z2 * ratio / (ratio + s2), -1) + rest)
        return 0.5 * (n * np.log(beta / (2 * np.pi)) - n - np.sum(np.log1p(s2 / ratio), -1)), beta

    log_ratio = np.log(s2.mean()) + GRID
    best = int(np.argmax(value(log_ratio)[0]))
    low, high = log_ratio[max(best - 1, 0)], log_ratio[min(best + 1, len(GRID) - 1)]
    golden = (np.sqrt(5) - 1) / 2
    for _ in range(REFINEMENTS):
        a, b = high - golden * (high - low), low + golden * (high - low)
        left, right = value(np.array([a, b]))[0]
        low, high = (low, b) if left > right else (a, high)
    middle = np.array((low + high) / 2)
    found, beta = value(middle)
    nothing = 0.5 * n * (np.log(n / (2 * np.pi * size)) - 1)  # the coefficients are zero
    if found <= nothing + 1e-10 * n:
        return float(nothing), np.inf, n / size
    return float(found), float(np.exp(middle) * beta), float(beta)


def _columns(targets: ArrayLike) -> np.ndarray:
    array = np.asarray(targets)
    if array.dtype.kind in "iub" and array.ndim == 1:
        classes = np.unique(array)
        if len(classes) < 2:
            raise ValueError(f"targets hold the one class {classes.tolist()}: there is nothing to tell apart")
        return (array[:, None] == classes).astype(float)
    array = _finite("targets", array, None)
    if array.ndim not in (1, 2):
        raise ValueError(f"targets must have shape (n,) or (n, targets), got {array.shape}")
    return array.reshape(len(array), -1)


def _finite(name: str, value: Any, ndim: int | None) -> np.ndarray:
    array = np.asarray(value, np.float64)
    if ndim is not None and array.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimension{'s' if ndim > 1 else ''}, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds {int((~np.isfinite(array)).sum())} values that are not finite")
    return array


def condition_linear(
    mean: ArrayLike, covariance: ArrayLike, A: ArrayLike, b: ArrayLike, noise: ArrayLike = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Condition f ~ N(mean, covariance) on A f = b: a conservation law, a known total, a boundary value.

    With the gain G = C Aᵀ (A C Aᵀ + noise)⁻¹ the mean becomes m + G (b − A m), the covariance C − G A C (ProbConserv,
    in Learning Physical Models that Can Respect Conservation Laws). The constraint is spread over f by how uncertain
    each part is. Computed in double precision by NumPy.

    Args:
        mean: ``(n,)``; of any process, at inputs where the constraint is stated.
        covariance: ``(n, n)``.
        A: ``(m, n)``, or ``(n,)`` for one constraint.
        b: ``(m,)``, or a scalar for one.
        noise: variance of b, a scalar, ``(m,)`` or a covariance ``(m, m)``; zero makes the constraint exact.

    Returns:
        Mean ``(n,)`` and covariance ``(n, n)``.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, or constraints that depend on one another (or
            that f is already certain of) where noise is zero.
    """
    m, C = _finite("mean", mean, 1), _finite("covariance", covariance, 2)
    A, b = _finite("A", np.atleast_2d(np.asarray(A, np.float64)), 2), _finite("b", np.atleast_1d(b), 1)
    if C.shape != (len(m), len(m)):
        raise ValueError(f"covariance has shape {C.shape}, for a mean of length {len(m)} it should be {(len(m),) * 2}")
    if not np.allclose(C, C.T, rtol=1e-6, atol=1e-9 * np.abs(C).max(initial=0.0)):
        raise ValueError("covariance is not symmetric")
    if A.shape != (len(b), len(m)):
        raise ValueError(
            f"A has shape {A.shape}, for {len(b)} constraints on {len(m)} values it should be {(len(b), len(m))}"
        )
    R = _finite("noise", noise, None)
    if R.shape not in ((), (len(b),), (len(b), len(b))):
        raise ValueError(f"noise has shape {R.shape}: give a scalar, ({len(b)},) or ({len(b)}, {len(b)})")
    R = R if R.ndim == 2 else np.diag(np.broadcast_to(R, b.shape))
    if (np.diagonal(R) < 0).any():
        raise ValueError("noise is a variance and must not be negative")
    AC = A @ C
    inner = AC @ A.T + R
    scale = np.sqrt(np.maximum(np.diagonal(inner), 0.0))
    singular = (
        "A C Aᵀ + noise is singular: a constraint repeats the others, or is on values that the covariance holds for "
        "certain. Drop it, or give the constraints some noise"
    )
    if not (scale > 0).all():
        raise ValueError(singular)
    correlation = inner / scale[:, None] / scale
    if np.linalg.eigvalsh(correlation)[0] < 1e-12 * len(b):
        raise ValueError(singular)
    try:
        factor = cho_factor(correlation)
    except LinAlgError as error:  # pragma: no cover - the eigenvalues said otherwise
        raise ValueError(singular) from error
    gain = (cho_solve(factor, AC / scale[:, None]) / scale[:, None]).T
    new, left = m + gain @ (b - A @ m), C - gain @ AC
    if not R.any():  # once more: rounding of the first step is a multiple of what was corrected
        new = new + gain @ (b - A @ new)
        left = left - gain @ (A @ left)
        left = left - (left @ A.T) @ gain.T
    return new, (left + left.T) / 2
