"""Markov moves of many chains at once, each with a density of its own: Langevin, Hamiltonian, Gibbs, and coupled pairs.

A density is a function ``(n, D) -> (n,)`` of n chains, row by row; it is called for all chains together because the
model is.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax, random

Density = Callable[[Array], Array]

TARGETS = {"langevin": 0.574, "hmc": 0.8}
"""Acceptance rates that step sizes are tuned to."""
LEAPFROG = 8
LONGEST = 2.0
"""Root mean square of the drift of a Langevin proposal, in units of its step, at most."""


def value_and_slope(density: Density, x: Array) -> tuple[Array, Array]:
    """log p ``(n,)`` and its gradient ``(n, D)``."""

    def total(x: Array) -> tuple[Array, Array]:
        value = density(x)
        return jnp.sum(value), value

    (_, value), slope = jax.value_and_grad(total, has_aux=True)(x)
    return value, slope


def accept(key: Array, x: Array, new: Array, log_ratio: Array) -> tuple[Array, Array]:
    """Metropolis: the next points, and the chance of each proposal."""
    log_ratio = jnp.where(jnp.isfinite(log_ratio), log_ratio, -jnp.inf)
    chance = jnp.exp(jnp.minimum(log_ratio, 0.0))
    taken = random.uniform(key, chance.shape, chance.dtype) < chance
    return jnp.where(taken[:, None], new, x), chance


def langevin(density: Density, x: Array, key: Array, step: Array) -> tuple[Array, Array]:
    """Metropolis-adjusted Langevin: the next points and the mean chance of acceptance. `step` broadcasts with x.

    The drift is cut off at `LONGEST` (An Adaptive Version for the Metropolis Adjusted Langevin Algorithm with a
    Truncated Drift): where the density is steep a proposal would fly over its mass, and the chain never leave.
    """
    noise_key, accept_key = random.split(key)

    def drift(slope: Array) -> Array:
        """In units of the step."""
        d = 0.5 * step * slope
        length = jnp.sqrt(jnp.mean(d**2, axis=-1, keepdims=True))
        return d * jnp.where(length > LONGEST, LONGEST / length, 1.0)

    value, slope = value_and_slope(density, x)
    ahead = drift(slope)
    z = random.normal(noise_key, x.shape, x.dtype)
    new = x + step * (ahead + z)
    new_value, new_slope = value_and_slope(density, new)
    back = z + ahead + drift(new_slope)
    log_ratio = new_value - value + 0.5 * jnp.sum(z**2 - back**2, axis=-1)
    x, chance = accept(accept_key, x, new, log_ratio)
    return x, jnp.mean(chance)


def hmc(density: Density, x: Array, key: Array, step: Array) -> tuple[Array, Array]:
    """Hamiltonian moves of `LEAPFROG` steps, as `langevin`."""
    noise_key, accept_key = random.split(key)
    p = random.normal(noise_key, x.shape, x.dtype)
    value, slope = value_and_slope(density, x)

    def leap(carry: tuple, _: None) -> tuple[tuple, None]:
        q, half, _, slope = carry
        q = q + step * half
        value, slope = value_and_slope(density, q)
        return (q, half + step * slope, value, slope), None

    (new, half, new_value, new_slope), _ = lax.scan(leap, (x, p + 0.5 * step * slope, value, slope), None, LEAPFROG)
    end = half - 0.5 * step * new_slope
    x, chance = accept(accept_key, x, new, new_value - value + 0.5 * jnp.sum(p**2 - end**2, axis=-1))
    return x, jnp.mean(chance)


CONTINUOUS = {"langevin": langevin, "hmc": hmc}


def conditionals(density: Density, x: Array, d: Array, values: Array) -> Array:
    """log p of coordinate d at every one of `values`, the others held: ``(n, K)``, not normalised."""
    at = lambda v: density(x.at[:, d].set(v.astype(x.dtype)))  # noqa: E731
    return jax.vmap(at)(values).T


def gibbs(density: Density, x: Array, key: Array, values: Array) -> Array:
    """One sweep of single-site Gibbs over all coordinates, each on `values` ``(K,)``."""
    return coupled_gibbs(density, (x,), key, values)[0]


def coupled_gibbs(density: Density, chains: tuple[Array, ...], key: Array, values: Array) -> tuple[Array, ...]:
    """A sweep of several chains with common uniform numbers, through inverse distribution functions.

    Of two values that is the coupling that makes chains agree most often; chains that are equal stay so.
    """
    size, n = chains[0].shape[1], chains[0].shape[0]

    def site(chains: tuple, args: tuple) -> tuple[tuple, None]:
        d, key = args
        u = random.uniform(key, (n, 1))
        out = []
        for x in chains:
            log_p = conditionals(density, x, d, values)
            below = jnp.cumsum(jax.nn.softmax(log_p, axis=1), axis=1)
            index = jnp.minimum(jnp.sum(u >= below, axis=1), len(values) - 1)
            out.append(x.at[:, d].set(values[index].astype(x.dtype)))
        return tuple(out), None

    return lax.scan(site, chains, (jnp.arange(size), random.split(key, size)))[0]


def random_walk(density: Density, x: Array, key: Array, step: Array) -> Array:
    """A Gaussian random-walk Metropolis move."""
    return coupled_random_walk(density, (x, x), key, step)[0]


def coupled_random_walk(density: Density, chains: tuple[Array, ...], key: Array, step: Array) -> tuple[Array, ...]:
    """A Metropolis move of two chains whose proposals coincide as often as can be, else mirror each other.

    The reflection-maximal coupling (Unbiased Markov Chain Monte Carlo Methods with Couplings), one uniform number for
    both acceptances.
    """
    x, y = chains
    noise_key, same_key, accept_key = random.split(key, 3)
    e = random.normal(noise_key, x.shape, x.dtype)
    gap = (x - y) / step
    length = jnp.linalg.norm(gap, axis=-1, keepdims=True)
    unit = gap / jnp.where(length > 0, length, 1.0)
    log_ratio = 0.5 * jnp.sum(e**2, -1) - 0.5 * jnp.sum((e + gap) ** 2, -1)
    same = jnp.log(random.uniform(same_key, log_ratio.shape, x.dtype)) < log_ratio
    mirrored = y + step * (e - 2 * jnp.sum(unit * e, -1, keepdims=True) * unit)
    # computed once: rounded in two ways, chains that have met would part again
    proposal = lax.optimization_barrier(x + step * e)
    other = jnp.where((same | (length[:, 0] == 0))[:, None], proposal, mirrored)
    u = jnp.log(random.uniform(accept_key, log_ratio.shape, x.dtype))
    out = []
    for old, new in ((x, proposal), (y, other)):
        gain = density(new) - density(old)
        out.append(jnp.where((u < jnp.where(jnp.isfinite(gain), gain, -jnp.inf))[:, None], new, old))
    return tuple(out)


def tuned(log_step: Array, count: Array, rate: Array, target: float) -> Array:
    """A log step size after a move of that mean acceptance; changes die out, so that it settles."""
    return log_step + 0.5 / (1 + count) ** 0.6 * (rate - target)
