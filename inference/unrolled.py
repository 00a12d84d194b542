"""JAX's random numbers, bit for bit, by a hash without a loop.

On CPUs JAX hashes with a loop of five turns, some hundred small operations a hash. One run does not notice; a step of
many restarts side by side spends most of its time and of its compilation there. Written out, the hash is one pass
through memory.

Threefry-2x32 with 20 rounds (Parallel Random Numbers: As Easy as 1, 2, 3); how keys are split and bits are drawn is
JAX's own scheme (`jax_threefry_partitionable`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax, random
from jax.extend.random import define_prng_impl

from ..estimators.recall import recall

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)
_MOST = 2**32
"""Numbers of one draw that 32 bits count."""


@jax.jit
def _hash(first: Array, second: Array, high: Array, low: Array) -> tuple[Array, Array]:
    """Two words of a key and two of a counter, uint32: two random words of the counter's shape."""
    words = (first, second, first ^ second ^ _PARITY)
    high, low = high + first, low + second
    for turn in range(5):
        for distance in _ROTATIONS[turn % 2]:
            high = high + low
            low = lax.shift_left(low, np.uint32(distance)) | lax.shift_right_logical(low, np.uint32(32 - distance))
            low = high ^ low
        high = high + words[(turn + 1) % 3]
        low = low + words[(turn + 2) % 3] + np.uint32(turn + 1)
    return high, low


def _counted(key: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    size = math.prod(shape)
    if size > _MOST:
        raise NotImplementedError(f"a draw of {size} random numbers at once: {_MOST} are the most")
    low = lax.iota(np.uint32, size).reshape(shape)
    return _hash(key[0], key[1], jnp.zeros_like(low), low)


def _bits(key: Array, width: int, shape: tuple[int, ...]) -> Array:
    high, low = _counted(key, shape)
    if width == 64:
        return lax.shift_left(high.astype(np.uint64), np.uint64(32)) | low.astype(np.uint64)
    return (high ^ low).astype(f"uint{width}")


def _split(key: Array, shape: tuple[int, ...]) -> Array:
    return jnp.stack(_counted(key, shape), axis=-1)


def _fold_in(key: Array, data: Any) -> Array:
    data = jnp.asarray(data, np.uint32)
    return jnp.stack(_hash(key[0], key[1], jnp.zeros_like(data), data))


def _seed(seed: Array) -> Array:
    return random.key_data(random.key(seed, impl="threefry2x32"))


_IMPLEMENTATION = define_prng_impl(
    key_shape=(2,), seed=_seed, split=_split, random_bits=_bits, fold_in=_fold_in, name="unrolled threefry", tag="unr"
)


def unrolled(keys: Array, about: Any, use: Callable[[Array], Any]) -> Array:
    """The same keys, whose numbers are hashed without a loop, for `use` on a CPU.

    As they are where they are not JAX's default ones, or where `use` draws what JAX draws from those alone (Poisson).

    Args:
        about: what `use` depends on; whether it can is remembered by that (`recall`).
    """
    config: Any = jax.config
    if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) or random.key_impl(keys) != "threefry2x32":
        return keys
    if jax.default_backend() != "cpu" or not config.jax_threefry_partitionable:
        return keys
    same = random.wrap_key_data(random.key_data(keys), impl=_IMPLEMENTATION)

    def works() -> bool:
        try:
            jax.eval_shape(use, same)
        except NotImplementedError:
            return False
        return True

    return same if recall("unrolled", about, works) else keys
