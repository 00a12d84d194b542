"""Sliced score matching of s = ∇_x log p: vᵀ(∇s)v with ½‖s‖² or ½(vᵀs)², and the gradient of that in the parameters, by
derivatives along one curve (Sliced Score Matching)."""

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


def along(f: Callable, point: tuple, v: tuple, bend: tuple | None = None) -> tuple[Any, Any]:
    """First and second derivative of f in ε at 0, along point + εv + ½ε²·bend; straight on where that is None."""
    if bend is None:
        return jax.jvp(lambda *p: jax.jvp(f, p, v)[1], point, v)
    return jax.jvp(lambda p, u: jax.jvp(f, p, u)[1], (point, v), (v, bend))


@eqx.filter_custom_vjp
def objective(params: Params, log_density: Callable, x: Array, directions: Array, variance_reduced: bool) -> Array:
    """mean_v vᵀ(∇s_i)v + ½‖s_i‖² of every unit, ``(n,)``, or + ½(vᵀs_i)²; differentiable once, backwards, in the
    parameters.

    Along the curve x + εv + ½ε²s, with s held fixed, the second derivative of log p is vᵀ(∇s)v + ‖s‖², and that of
    ∇_θ log p is the gradient of the first objective, because ∇_θ ½‖s‖² is the derivative of ∇_θ log p along s. So the
    gradient is a second derivative, forwards, of one gradient in θ: three passes forwards through a network and three
    back where reverse mode, through a derivative of a gradient, takes four and eight. The second objective has the line
    x + εv, with weights 1 + ½ε vᵀs of the units: s itself is not needed.

    Args:
        log_density: parameters and x to the log-density of every unit, ``(n, D) -> (n,)``. A pytree, its data leaves.
        directions: ``(m, n, D)``.
        variance_reduced: with ½‖s‖², the mean of ½(vᵀs)² over v.
    """
    return _value(params, log_density, x, directions, variance_reduced)[0]


def _value(
    params: Params, log_density: Callable, x: Array, directions: Array, variance_reduced: bool
) -> tuple[Array, Array]:
    """The objective, and what its gradient needs: s, or vᵀs for every v ``(m, n)``."""

    def f(x: Array) -> Array:
        return log_density(params, x)

    if variance_reduced:
        s = jax.grad(lambda x: jnp.sum(f(x)))(x)
        bends = jnp.stack([along(f, (x,), (v,), (s,))[1] for v in directions])
        return jnp.mean(bends, axis=0) - 0.5 * jnp.sum(s**2, axis=-1), s
    rates, bends = map(jnp.stack, zip(*(along(f, (x,), (v,)) for v in directions), strict=True))
    return jnp.mean(bends + 0.5 * rates**2, axis=0), rates


@objective.def_fwd
def _forward(perturbed: Any, *args: Any) -> tuple[Array, Array]:
    return _value(*args)


@objective.def_bwd
def _backward(
    known: Array, weights: Array, perturbed: Any, params: Params, log_density: Callable, x: Array, directions: Array,
    variance_reduced: bool,
) -> Params:  # fmt: skip
    def gradient(x: Array, weights: Array) -> Params:
        return jax.grad(lambda p: jnp.sum(weights * log_density(p, x)))(params)

    if variance_reduced:
        found = [along(lambda x: gradient(x, weights), (x,), (v,), (known,))[1] for v in directions]
    else:
        found = [
            along(gradient, (x, weights), (v, 0.5 * weights * rate))[1]
            for v, rate in zip(directions, known, strict=True)
        ]
    return jax.tree.map(lambda *g: sum(g[1:], g[0]) / len(g), *found)
