"""½‖s‖² + vᵀ(∇s)v of a score s = ∇_x log p and its gradient in the parameters, by derivatives along one curve."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array, random

from .base import Params


def signs(rng_key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Random signs, a bit each: a word each would cost as much as a layer of a network."""
    count = math.prod(shape)
    words = random.bits(rng_key, (-(-count // 32), 1), jnp.uint32)
    bits = (words >> jnp.arange(32, dtype=jnp.uint32)) & 1
    return (1 - 2 * bits.astype(dtype)).ravel()[:count].reshape(shape)


def second(f: Callable, x: Array, v: Array, s: Array) -> Any:
    """d²/dε² f(x + εv + ½ε²s) at ε = 0: the second derivative along v, and the first along s."""
    return jax.jvp(lambda x, u: jax.jvp(f, (x,), (u,))[1], (x, v), (v, s))[1]


@eqx.filter_custom_vjp
def objective(params: Params, log_density: Callable, x: Array, directions: Array) -> Array:
    """½‖s_i‖² + mean_v vᵀ(∇s_i)v of every unit, ``(n,)``; differentiable once, backwards, in the parameters.

    Along the curve x + εv + ½ε²s, with s held fixed, the second derivative of log p is vᵀ(∇s)v + ‖s‖², and that of
    ∇_θ log p is the gradient of this objective, because ∇_θ ½‖s‖² is the derivative of ∇_θ log p along s. So the
    gradient is a second derivative, forwards, of one gradient in θ: three passes forwards through a network and three
    back where reverse mode, through a derivative of a gradient, takes four and eight.

    Args:
        log_density: parameters and x to the log-density of every unit, ``(n, D) -> (n,)``. A pytree, its data leaves.
        directions: ``(m, n, D)``.
    """
    return _value(params, log_density, x, directions)[0]


def _value(params: Params, log_density: Callable, x: Array, directions: Array) -> tuple[Array, Array]:
    def f(x: Array) -> Array:
        return log_density(params, x)

    s = jax.grad(lambda x: jnp.sum(f(x)))(x)
    bends = [second(f, x, v, s) for v in directions]
    return sum(bends[1:], bends[0]) / len(bends) - 0.5 * jnp.sum(s**2, axis=-1), s


@objective.def_fwd
def _forward(perturbed: Any, params: Params, log_density: Callable, x: Array, directions: Array) -> tuple[Array, Array]:
    return _value(params, log_density, x, directions)


@objective.def_bwd
def _backward(
    s: Array, weights: Array, perturbed: Any, params: Params, log_density: Callable, x: Array, directions: Array
) -> Params:
    def gradient(x: Array) -> Params:
        return jax.grad(lambda p: jnp.sum(weights * log_density(p, x)))(params)

    found = [second(gradient, x, v, s) for v in directions]
    return jax.tree.map(lambda *g: sum(g[1:], g[0]) / len(g), *found)
