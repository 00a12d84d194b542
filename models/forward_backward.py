"""Sums over the paths of a hidden Markov chain, and what follows from them: filters, marginals, derivatives.

Probabilities are kept as a mantissa and a power of two each (`Wide`). That is as exact as logarithms, with forbidden
transitions, impossible values and any number of steps, and a sum of them takes shifts in place of exponentials.

The derivative of the log-likelihood is what Baum and Welch's forward and backward recursions give (Fisher's identity).
Where that pays they run in blocks of the series side by side, joined through each block's matrix of transitions
(Särkkä and García-Fernández, "Temporal Parallelization of Bayesian Smoothers", 2021).

Shapes: T steps, K states, time first and states last: `log_emission` (T, ..., K), `log_initial` broadcastable to
(..., K), `log_transition` to (..., K, K) with rows that sum to one. Inside, states come first and blocks last.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

__all__ = ["FLOOR", "expected", "filtered", "log_likelihood"]

FLOOR = -1e30
"""Stands for log 0: sums over impossible states, and their derivatives, stay finite."""
BLOCKED_STATES = 4
"""Most states for which derivatives run in blocks: a block's matrix costs K times what one of its paths does."""
BLOCKED_STEPS = 2000
"""Fewest steps for which they do: blocks take longer to compile."""
LOG_2 = math.log(2.0)


class Wide(NamedTuple):
    """mantissa · 2^exponent, the mantissa from 1 to 2 and the exponent an integer, both floats."""

    mantissa: Array
    exponent: Array


def _layout(dtype: jnp.dtype) -> tuple[jnp.dtype, int, int]:
    """Integers of a float's size, the digits of its mantissa, and the offset of its exponent."""
    info = jnp.finfo(dtype)
    return jnp.dtype(f"int{info.bits}"), info.nmant, info.maxexp - 1


def _power(n: Array) -> Array:
    """2^n for integers n not above 0; zero below the range of the type."""
    integer, digits, offset = _layout(n.dtype)
    shifted = jnp.maximum(n, -offset).astype(jnp.int32).astype(integer) + offset
    return lax.bitcast_convert_type(shifted << digits, n.dtype)


def _wide(log: Array) -> Wide:
    """e^log."""
    n = lax.stop_gradient(jnp.floor(log / LOG_2))
    rest = log - n * LOG_2
    # Beyond the digits of the type the remainder is rounding error: its value goes, its derivative stays.
    return Wide(jnp.exp(rest - lax.stop_gradient(jnp.where(jnp.abs(rest) < 2, 0.0, rest))), n)


def _times(*factors: Wide) -> Wide:
    """A product, its mantissa not yet from 1 to 2."""
    return Wide(math.prod([f.mantissa for f in factors]), sum(f.exponent for f in factors))  # type: ignore[arg-type]


def _sum(x: Wide, axis: int) -> Wide:
    top = jnp.max(x.exponent, axis=axis, keepdims=True)
    total = jnp.sum(x.mantissa * _power(x.exponent - top), axis=axis)
    integer, digits, offset = _layout(total.dtype)
    carried = (lax.bitcast_convert_type(lax.stop_gradient(total), integer) >> digits) - offset
    carried = carried.astype(jnp.int32).astype(total.dtype)
    return Wide(total * _power(-carried), jnp.squeeze(top, axis) + carried)


def _log(x: Wide) -> Array:
    return jnp.log(x.mantissa) + x.exponent * LOG_2


def _map(f, *trees: Wide) -> Wide:  # type: ignore[no-untyped-def]
    return jax.tree.map(f, *trees)


def _after(vector: Wide, matrix: Wide) -> Wide:
    """sum_i v_i M_ij, states first: (K, ...) and (K, K, ...)."""
    return _sum(_times(_map(lambda v: v[:, None], vector), matrix), axis=0)


def _parts(log_initial: Array, log_transition: Array, log_emission: Array) -> tuple[Array, Array, Array]:
    """All three with states first, and time before them: (K, ...), (K, K, ...), (T, K, ...)."""
    dtype = jnp.result_type(log_initial, log_transition, log_emission)
    batch, k = log_emission.shape[1:-1], log_emission.shape[-1]
    initial = jnp.moveaxis(jnp.broadcast_to(log_initial, (*batch, k)), -1, 0)
    transition = jnp.moveaxis(jnp.broadcast_to(log_transition, (*batch, k, k)), (-2, -1), (0, 1))
    return initial.astype(dtype), transition.astype(dtype), jnp.moveaxis(log_emission, -1, 1).astype(dtype)


def _forward(initial: Wide, transition: Wide, emission: Wide) -> tuple[Wide, Wide]:
    """p(state, all values), the state that after the last step; and p(state_t, y_1 .. y_{t-1}) at every t."""

    def step(predicted: Wide, emission: Wide) -> tuple[Wide, Wide]:
        return _after(_times(predicted, emission), transition), predicted

    return lax.scan(step, initial, emission)


def _backward(transition: Wide, emission: Wide, predicted: Wide, last: Wide, counted: Array) -> tuple[Array, Array]:
    """p(state_t | y), (L, K, ...), and the expected transitions i -> j after the steps that count, (K, K, ...).

    `predicted`: of the forward recursion; `last`: p(y_{t+1} .. y_T | state_{t+1}) at the last t; `counted`: (L, B).
    """
    num_states, shape = last.mantissa.shape[0], last.mantissa.shape[1:]

    def step(carry: tuple[Wide, Array], at: tuple[Wide, Wide, Array]) -> tuple[tuple[Wide, Array], Array]:
        (following, transitions), (emission, predicted, counted) = carry, at
        onwards = _times(transition, _map(lambda x: x[None], following))
        # p(state_t = i, state_{t+1} = j, y), up to a factor for every t
        joint = _times(_map(lambda x: x[:, None], _times(predicted, emission)), onwards)
        pairs = joint.mantissa * _power(joint.exponent - jnp.max(joint.exponent, axis=(0, 1)))
        pairs = pairs / jnp.sum(pairs, axis=(0, 1))
        transitions = transitions + jnp.where(counted, pairs, 0.0)
        return (_times(emission, _sum(onwards, axis=1)), transitions), jnp.sum(pairs, axis=1)

    none = jnp.zeros((num_states, num_states, *shape), last.mantissa.dtype)
    (_, transitions), states = lax.scan(step, (last, none), (emission, predicted, counted), reverse=True)
    return states, transitions


def _products(transition: Wide, emission: Wide) -> Wide:
    """Of every block, from the state before its first value to the state after its last: (K, K, ...)."""
    k, shape = emission.exponent.shape[1], emission.exponent.shape[2:]
    diagonal = jnp.where(jnp.eye(k), 0.0, FLOOR).reshape(k, k, *[1] * len(shape)).astype(emission.exponent.dtype)
    unit = Wide(jnp.ones((k, k, *shape), diagonal.dtype), jnp.broadcast_to(diagonal, (k, k, *shape)))

    def step(product: Wide, emission: Wide) -> tuple[Wide, None]:
        seen = _times(product, emission)
        rows = _map(lambda x: x[:, :, None], seen)
        return _sum(_times(rows, transition), axis=1), None

    return lax.scan(step, unit, emission)[0]


def _in_blocks(emission: Array) -> Array:
    """(T, K, ...) as (L, K, ..., B): B blocks of L steps.

    As many blocks as each has steps, so that there are fewest steps in all: those within blocks and those along them.
    Steps after the last are certain to emit what they do. They change nothing, since rows of transitions sum to one.
    """
    num_steps, num_states = emission.shape[:2]
    blocks = math.isqrt(num_steps) if num_states <= BLOCKED_STATES and num_steps >= BLOCKED_STEPS else 1
    length = -(-num_steps // blocks)
    padded = jnp.pad(emission, ((0, blocks * length - num_steps), *[(0, 0)] * (emission.ndim - 1)))
    return jnp.moveaxis(padded.reshape(blocks, length, *emission.shape[1:]), 0, -1)


def _starts(initial: Wide, products: Wide) -> tuple[Wide, Wide]:
    """The forward recursion along blocks: what it ends with, and where it stands at the start of every block."""
    end, starts = lax.scan(lambda v, p: (_after(v, p), v), initial, _map(lambda x: jnp.moveaxis(x, -1, 0), products))
    return end, _map(lambda x: jnp.moveaxis(x, 0, -1), starts)


def _ends(products: Wide, last: Wide) -> Wide:
    """The backward recursion along blocks: where it stands at the end of every block."""
    by_block = _map(lambda x: jnp.moveaxis(jnp.swapaxes(x, 0, 1), -1, 0), products)
    ends = lax.scan(lambda v, p: (_after(v, p), v), last, by_block, reverse=True)[1]
    return _map(lambda x: jnp.moveaxis(x, 0, -1), ends)


def expected(log_initial: Array, log_transition: Array, log_emission: Array) -> tuple[Array, Array, Array]:
    """log p(y), (...); p(state_t = k | y), (T, ..., K); expected number of transitions i -> j, (..., K, K)."""
    parts = _parts(log_initial, log_transition, log_emission)
    blocked = _in_blocks(parts[2])
    length, blocks, num_steps = blocked.shape[0], blocked.shape[-1], log_emission.shape[0]
    initial, transition, emission = map(_wide, (parts[0], parts[1][..., None], blocked))
    last = Wide(jnp.ones_like(initial.mantissa), jnp.zeros_like(initial.exponent))
    if blocks > 1:
        products = _products(transition, emission)
        starts, ends = _starts(initial, products)[1], _ends(products, last)
    else:
        starts, ends = (_map(lambda x: x[..., None], x) for x in (initial, last))
    end, predicted = _forward(starts, transition, emission)
    counted = (jnp.arange(length)[:, None] + length * jnp.arange(blocks)) < num_steps - 1
    states, transitions = _backward(transition, emission, predicted, ends, counted)
    states = jnp.moveaxis(states, -1, 0).reshape(blocks * length, *parts[2].shape[1:])[:num_steps]
    transitions = jnp.sum(transitions, axis=-1)
    total = _log(_sum(_map(lambda x: x[..., -1], end), axis=0))
    return total, jnp.moveaxis(states, 1, -1), jnp.moveaxis(transitions, (0, 1), (-2, -1))


@jax.custom_jvp
def log_likelihood(log_initial: Array, log_transition: Array, log_emission: Array) -> Array:
    """log p(y), (...). Impossible series are below FLOOR / 2.

    Its derivatives, of any order and mode, are those of `expected`.
    """
    parts = _parts(log_initial, log_transition, log_emission)
    initial, transition, emission = map(_wide, (parts[0], parts[1][..., None], _in_blocks(parts[2])))
    if emission.exponent.shape[-1] > 1:
        end = _starts(initial, _products(transition, emission))[0]
    else:
        end = _map(lambda x: x[..., 0], _forward(_map(lambda x: x[..., None], initial), transition, emission)[0])
    return _log(_sum(end, axis=0))


@log_likelihood.defjvp
def _(primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]) -> tuple[Array, Array]:
    total, states, transitions = expected(*primals)
    initial, transition, emission = tangents
    change = jnp.sum(states[0] * initial, -1) + jnp.sum(transitions * transition, (-2, -1))
    return total, change + jnp.sum(states * emission, (0, -1))


def filtered(log_initial: Array, log_transition: Array, log_emission: Array) -> tuple[Array, Array]:
    """log p(state_t | y_1 .. y_t), (T, ..., K), and log p(y_t | y_1 .. y_{t-1}), (T, ...)."""
    initial, transition, emission = map(_wide, _parts(log_initial, log_transition, log_emission))
    joint = _times(_forward(initial, transition, emission)[1], emission)
    total = _sum(joint, axis=1)
    # exponents are subtracted as they are: in single precision the digits of a long sum's logarithm would not do
    share = Wide(joint.mantissa / total.mantissa[:, None], joint.exponent - total.exponent[:, None])
    ratio = Wide(total.mantissa[1:] / total.mantissa[:-1], total.exponent[1:] - total.exponent[:-1])
    increments = jnp.concatenate([_log(_map(lambda x: x[:1], total)), _log(ratio)])
    return jnp.maximum(jnp.moveaxis(_log(share), 1, -1), FLOOR), increments
