"""Toy densities: normalised, and the law of their draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from estimax.models import toys_2d

TOYS = [pytest.param(name, marks=[pytest.mark.long] * (name == "two_moons")) for name in toys_2d.TOYS]
"""That of two moons is a quadrature at every point."""


@pytest.mark.parametrize("name", TOYS)
def test_density_integrates_to_one_and_has_the_moments_of_draws(name):
    """On a grid; moments within 4 standard errors of 40,000 draws'."""
    toy = toys_2d.TOYS[name]
    ticks = np.linspace(-5.0, 5.0, 401)
    grid = np.stack(np.meshgrid(ticks, ticks, indexing="ij"), -1)
    density = np.exp(np.asarray(toy.log_prob(grid), np.float64)) * (ticks[1] - ticks[0]) ** 2
    np.testing.assert_allclose(density.sum(), 1, atol=2e-5)

    x = np.asarray(toy(jax.random.key(0), 40_000))
    assert x.shape == (40_000, 2)
    for power in ((1, 0), (0, 1), (2, 0), (0, 2), (1, 1), (4, 0), (2, 2), (3, 1)):
        drawn = x[:, 0] ** power[0] * x[:, 1] ** power[1]
        exact = np.sum(density * grid[..., 0] ** power[0] * grid[..., 1] ** power[1])
        assert abs(drawn.mean() - exact) < 4 * drawn.std() / 200


@pytest.mark.parametrize("name", TOYS)
def test_entropy_of_draws(name):
    """The mean log-density of draws is minus the entropy, by quadrature: tells where, not only how far."""
    toy = toys_2d.TOYS[name]
    ticks = np.linspace(-5.0, 5.0, 401)
    grid = np.stack(np.meshgrid(ticks, ticks, indexing="ij"), -1)
    log_density = np.asarray(toy.log_prob(grid), np.float64)
    expected = np.sum(np.exp(log_density) * log_density) * (ticks[1] - ticks[0]) ** 2
    drawn = np.asarray(toy.log_prob(toy(jax.random.key(1), 20_000)))
    assert abs(drawn.mean() - expected) < 4 * drawn.std() / np.sqrt(len(drawn))


def test_scores_are_finite_everywhere():
    x = jnp.array([[0.0, 0.0], [1.0, 0.0], [8.0, -8.0]])
    for toy in toys_2d.TOYS.values():
        assert np.isfinite(jax.jit(jax.vmap(jax.grad(toy.log_prob)))(x)).all()
