"""Rows some at a time: what is held is a block, and all blocks are of one size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def size_of(n: int, most: int) -> int:
    """Rows a block, so that n rows make equal blocks of at most that many."""
    return -(-n // -(-n // max(1, most)))


def split(items: Any, size: int) -> Any:
    """Rows ``(n, ...)`` in blocks ``(count, size, ...)``, the last one filled up with the first row."""
    n = jax.tree.leaves(items)[0].shape[0]
    index = jnp.arange(-(-n // size) * size)
    index = jnp.where(index < n, index, 0).reshape(-1, size)
    return jax.tree.map(lambda x: jnp.asarray(x)[index], items)


def apply(f: Callable, items: Any, size: int) -> Any:
    """What f says of all rows, asked for `size` of them at a time.

    `lax.map` with a batch size computes a remainder beside its batches, and XLA's CPU back end locks up on
    factorisations (a Gaussian process, a multivariate normal) side by side. Here there is none.

    Args:
        f: from a block of rows to arrays with a row for each.
    """
    n = jax.tree.leaves(items)[0].shape[0]
    if size >= n:
        return f(items)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:n], lax.map(f, split(items, size)))
