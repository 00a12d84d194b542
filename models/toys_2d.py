"""Toy densities in the plane: two rings, two moons, a pinwheel, a grid of Gaussians. Draws, and the exact log-density.

A toy is called for draws and knows its density: ``rings(rng_key, 1000)`` is (1000, 2), ``rings.log_prob(x)`` is (...,)
for x (..., 2). `TOYS` has them by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random
from jax.scipy.special import i0e, logsumexp
from jax.typing import ArrayLike

__all__ = ["TOYS", "Toy", "gaussian_grid", "pinwheel", "rings", "two_moons"]


@dataclass(frozen=True)
class Toy:
    """A density in the plane."""

    name: str
    draw: Callable[[Array, int], Array]
    log_density: Callable[[Array], Array]

    def __call__(self, rng_key: Array, n: int) -> Array:
        """n independent points, ``(n, 2)``."""
        return self.draw(rng_key, n)

    def log_prob(self, x: ArrayLike) -> Array:
        """log p(x) in nats, normalised; `x`: (..., 2)."""
        return self.log_density(jnp.asarray(x, jnp.result_type(float)))


RADII = (1.0, 2.5)
RING_SD = 0.15


def _draw_rings(rng_key: Array, n: int) -> Array:
    which, angle, noise = random.split(rng_key, 3)
    radius = random.choice(which, jnp.array(RADII), (n,))
    theta = random.uniform(angle, (n,), maxval=2 * jnp.pi)
    return radius[:, None] * _unit(theta) + RING_SD * random.normal(noise, (n, 2))


def _log_rings(x: Array) -> Array:
    """The angle of a point on a circle integrates to a Bessel function; r − R stands apart for precision."""
    r, radius = jnp.sqrt(jnp.sum(x**2, -1) + 1e-30)[..., None], jnp.array(RADII)
    log_ring = -0.5 * ((r - radius) / RING_SD) ** 2 + jnp.log(i0e(r * radius / RING_SD**2))
    return logsumexp(log_ring, -1) - jnp.log(2 * jnp.pi * RING_SD**2 * len(RADII))


MOON_SD = 0.1
MOON_CENTRES = ((-0.5, -0.25), (0.5, 0.25))
"""Of the half-circles of radius 1, the first opening downwards, the second upwards."""
MOON_NODES = 120


def _moon(which: ArrayLike, theta: Array) -> Array:
    """The point at angle theta in (0, π) of a half-circle."""
    sign = 1.0 - 2.0 * jnp.asarray(which)
    return jnp.array(MOON_CENTRES)[which] + jnp.stack([jnp.cos(theta), sign * jnp.sin(theta)], -1)


def _draw_two_moons(rng_key: Array, n: int) -> Array:
    which, angle, noise = random.split(rng_key, 3)
    curve = _moon(random.randint(which, (n,), 0, 2), random.uniform(angle, (n,), maxval=jnp.pi))
    return curve + MOON_SD * random.normal(noise, (n, 2))


def _log_two_moons(x: Array) -> Array:
    """The integral over the angle by Gauss-Legendre quadrature: exact to rounding at this noise."""
    nodes, weights = np.polynomial.legendre.leggauss(MOON_NODES)
    theta, log_weight = jnp.asarray((nodes + 1) * np.pi / 2), jnp.asarray(np.log(weights / 2))
    curves = jnp.stack([_moon(0, theta), _moon(1, theta)])  # (2, nodes, 2)
    distance = jnp.sum((x[..., None, None, :] - curves) ** 2, -1)
    return logsumexp(log_weight - 0.5 * distance / MOON_SD**2, (-2, -1)) - jnp.log(4 * jnp.pi * MOON_SD**2)


ARMS = 5
ARM_SD = (0.3, 0.1)
"""Along the radius and across it."""
TWIST = 0.25


def _draw_pinwheel(rng_key: Array, n: int) -> Array:
    which, noise = random.split(rng_key)
    straight = jnp.array([1.0, 0.0]) + jnp.array(ARM_SD) * random.normal(noise, (n, 2))
    angle = random.randint(which, (n,), 0, ARMS) * (2 * jnp.pi / ARMS)
    return _rotate(straight, angle + TWIST * jnp.exp(jnp.linalg.norm(straight, axis=-1)))


def _log_pinwheel(x: Array) -> Array:
    """A rotation by an angle that depends on the radius alone keeps areas: no Jacobian."""
    twist = TWIST * jnp.exp(jnp.sqrt(jnp.sum(x**2, -1) + 1e-30))
    angles = jnp.arange(ARMS) * (2 * jnp.pi / ARMS)
    straight = _rotate(x[..., None, :], -angles - twist[..., None])
    z = (straight - jnp.array([1.0, 0.0])) / jnp.array(ARM_SD)
    return logsumexp(-0.5 * jnp.sum(z**2, -1), -1) - jnp.log(2 * jnp.pi * ARM_SD[0] * ARM_SD[1] * ARMS)


GRID = 3
GRID_STEP = 2.0
GRID_SD = 0.3


def grid_centres() -> Array:
    """Means of `gaussian_grid`, (9, 2)."""
    ticks = GRID_STEP * (jnp.arange(GRID) - (GRID - 1) / 2)
    return jnp.stack(jnp.meshgrid(ticks, ticks, indexing="ij"), -1).reshape(-1, 2)


def _draw_gaussian_grid(rng_key: Array, n: int) -> Array:
    which, noise = random.split(rng_key)
    return random.choice(which, grid_centres(), (n,)) + GRID_SD * random.normal(noise, (n, 2))


def _log_gaussian_grid(x: Array) -> Array:
    distance = jnp.sum((x[..., None, :] - grid_centres()) ** 2, -1)
    return logsumexp(-0.5 * distance / GRID_SD**2, -1) - jnp.log(2 * jnp.pi * GRID_SD**2 * GRID**2)


def _unit(theta: Array) -> Array:
    return jnp.stack([jnp.cos(theta), jnp.sin(theta)], -1)


def _rotate(x: Array, angle: Array) -> Array:
    c, s = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([c * x[..., 0] - s * x[..., 1], s * x[..., 0] + c * x[..., 1]], -1)


rings = Toy("rings", jax.jit(_draw_rings, static_argnums=1), _log_rings)
two_moons = Toy("two_moons", jax.jit(_draw_two_moons, static_argnums=1), _log_two_moons)
pinwheel = Toy("pinwheel", jax.jit(_draw_pinwheel, static_argnums=1), _log_pinwheel)
gaussian_grid = Toy("gaussian_grid", jax.jit(_draw_gaussian_grid, static_argnums=1), _log_gaussian_grid)
TOYS = {toy.name: toy for toy in (rings, two_moons, pinwheel, gaussian_grid)}
