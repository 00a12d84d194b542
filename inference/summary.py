"""Tables of estimates, a row per scalar, indexed as ArviZ prints them: ``b[0]``, ``w[1, 2]``."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jax import Array

COLUMNS = ["estimate", "std_err", "z", "p_value", "lower", "upper"]


def labels(name: str, shape: tuple[int, ...]) -> list[str]:
    if not shape:
        return [name]
    return [f"{name}[{', '.join(map(str, index))}]" for index in np.ndindex(shape)]


def posterior_summary(draws: dict, prob: float) -> pd.DataFrame:
    """Mean, sd, mean/sd, twice the smaller tail beyond zero, and the central interval of probability `prob`."""
    if not 0 < prob < 1:
        raise ValueError(f"prob must lie strictly between 0 and 1, got {prob}")
    index: list[str] = []
    blocks = []
    for name, value in draws.items():
        value = np.asarray(value, np.float64)
        flat = value.reshape(len(value), -1)
        index += labels(name, value.shape[1:])
        mean, sd = flat.mean(0), flat.std(0, ddof=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            z = mean / sd
        tail = np.minimum((flat > 0).mean(0), (flat < 0).mean(0))
        lower, upper = np.quantile(flat, [(1 - prob) / 2, (1 + prob) / 2], axis=0)
        blocks.append(np.stack([mean, sd, z, 2 * tail, lower, upper], 1))
    table = np.concatenate(blocks) if blocks else np.zeros((0, len(COLUMNS)))
    return pd.DataFrame(table, index=index, columns=COLUMNS)


def arrays(params: dict) -> dict:
    """Parameters that are arrays; the others are networks, some of which have a `shape` too (flows of flowjax)."""
    return {n: v for n, v in params.items() if isinstance(v, np.ndarray | np.generic | Array)}


def estimates_alone(params: dict) -> pd.DataFrame:
    """Estimates without standard errors, a row per scalar."""
    rows: dict[str, float] = {}
    for name, value in arrays(params).items():
        rows |= dict(zip(labels(name, np.shape(value)), np.ravel(value).astype(float), strict=True))
    return pd.DataFrame({"estimate": rows}).reindex(columns=COLUMNS)
