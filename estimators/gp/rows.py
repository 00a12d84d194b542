"""Minibatches of rows of the data."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array, random

from ..base import Data
from ..checks import check_counts

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


def check_batch(size: int | None, data: Data, keys: tuple[str, ...], n: int) -> None:
    """Whether a batch can be drawn.

    Raises:
        ValueError: a size that is no integer or below one, or data without rows.
    """
    if size is not None:
        check_counts(batch_size=size)
    if not keys:
        raise ValueError(
            f"no argument of the model has one row for each of the {n} inputs, so that no batch can be drawn"
        )


def remark(size: int | None, n: int) -> list[str]:
    """What `diagnose` says of a batch that is more than all rows."""
    return (
        [] if size is None or size <= n else [f"batch_size={size} is more than the {n} rows: every step took them all"]
    )
