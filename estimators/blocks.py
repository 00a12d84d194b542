"""Rows some at a time: what is held is a block, and all blocks are of one size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array, lax


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
    """What f says of all rows, asked for `size` of them at a time: `lax.map` without a remainder to compile once more.

    Args:
        f: from a block of rows to arrays with a row for each.
    """
    n = jax.tree.leaves(items)[0].shape[0]
    if size >= n:
        return f(items)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:n], lax.map(f, split(items, size)))


def each(f: Callable, items: Any, most: int) -> Any:
    """What f says of every row, at most `most` rows side by side.

    One row at a time goes without a batch axis, which would cost products of matrices.

    Args:
        f: from a row to arrays.
    """
    n = jax.tree.leaves(items)[0].shape[0]
    if n == 1:
        return jax.tree.map(lambda x: x[None], f(jax.tree.map(lambda x: x[0], items)))
    return lax.map(f, items) if most == 1 else apply(jax.vmap(f), items, size_of(n, most))


def recomputed(f: Callable, parameters: Any, items: Any, size: int) -> Array:
    """What f(parameters, block) says of all rows, as `apply` has it, and computed again where it is differentiated.

    A block that is computed where it is stored is one fusion for XLA's CPU back end, which gives stores one thread. So
    here each is stored while the next one is computed. Derivatives are sums over the blocks, and store nothing.
    """
    if size >= jax.tree.leaves(items)[0].shape[0]:
        return jax.checkpoint(f)(parameters, items)
    # What functions among the parameters hold, as a user's own kernel may, becomes an argument and has derivatives too.
    # `f` alone, which holds nothing itself, would pass for one that has nothing to hand over.
    first = jax.tree.map(lambda x: x[0], split(items, size))
    pure = eqx.filter_closure_convert(lambda *given: f(*given), parameters, first)

    @eqx.filter_custom_jvp
    def value(pure: Callable, parameters: Any, items: Any) -> Array:
        return _stored_late(lambda block: pure(parameters, block), items, size)

    @value.def_jvp
    def _(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
        def again(pure: Callable, parameters: Any, items: Any) -> Array:
            return apply(lambda block: eqx.filter_checkpoint(pure)(parameters, block), items, size)

        return value(*primals), eqx.filter_jvp(again, primals, tangents)[1]

    return value(pure, parameters, items)


def _stored_late(f: Callable, items: Any, size: int) -> Array:
    """`apply` for more than one block, each of them stored after the next one is computed. Not differentiable."""
    n = jax.tree.leaves(items)[0].shape[0]
    parts = split(items, size)
    count = jax.tree.leaves(parts)[0].shape[0]

    def block(k: Any) -> Array:
        return f(jax.tree.map(lambda x: x[k], parts))

    def step(k: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        stored, last = carry  # at first nothing, where the last block goes
        return lax.dynamic_update_index_in_dim(stored, last, k - 1, 0), block(k)

    shape = jax.eval_shape(block, 0)
    start = jnp.zeros((count, *shape.shape), shape.dtype), jnp.zeros(shape.shape, shape.dtype)
    stored, last = lax.fori_loop(0, count, step, start)
    stored = lax.dynamic_update_index_in_dim(stored, last, count - 1, 0)
    return stored.reshape(-1, *stored.shape[2:])[:n]
