"""Minibatches of rows of the data."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, random

from ..base import Data

MOST_CHECKED = 10**5
"""Rows up to which `diagnose` predicts all of them."""


def row_keys(data: Data, n: int) -> tuple[str, ...]:
    """Names of the arrays that have a row for each of n inputs."""
    return tuple(k for k, v in data.items() if hasattr(v, "shape") and v.shape[:1] == (n,))


def take(data: Data, keys: tuple[str, ...], index: Array) -> dict[str, Any]:
    """The data with some of their rows; the model sees them as if they were all."""
    return {k: v[index] if k in keys else v for k, v in data.items()}


def batch(rng_key: Array, n: int, size: int | None) -> Array:
    """Row numbers drawn with replacement, or all of them."""
    return jnp.arange(n) if size is None or size >= n else random.randint(rng_key, (size,), 0, n)


def is_count(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(value >= 1)


def check_counts(**counts: Any) -> None:
    """Raise `ValueError` unless every named number is an integer of at least one."""
    for name, value in counts.items():
        if not is_count(value):
            raise ValueError(f"{name} must be at least 1, an integer; got {value!r}")


def check_batch(size: int | None, data: Data, keys: tuple[str, ...], n: int) -> None:
    """Whether a batch can be drawn.

    Raises:
        ValueError: a size that is no integer or below one, or data without rows.
    """
    if size is not None and not is_count(size):
        raise ValueError(f"batch_size must be at least 1, an integer, or None; got {size!r}")
    if not keys:
        raise ValueError(
            f"no argument of the model has one row for each of the {n} inputs, so that no batch can be drawn"
        )


def remark(size: int | None, n: int) -> list[str]:
    """What `diagnose` says of a batch that is more than all rows."""
    return (
        [] if size is None or size <= n else [f"batch_size={size} is more than the {n} rows: every step took them all"]
    )
