"""Flows as NumPyro distributions: against quadrature, an empirical distribution function, and flowjax itself."""

import flowjax.distributions
import flowjax.flows
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random
from scipy import stats

from estimax.models.flows import FlowDensity
from estimax.models.networks import LinearFlow


def bent(size, num_layers=3):
    """A flow with all of its parameters away from their start."""
    flow = LinearFlow(size, num_layers, key=random.key(0))
    leaves, tree = jax.tree.flatten(flow)
    keys = random.split(random.key(1), len(leaves))
    moved = [x + 0.3 * random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, moved)


def test_density_integrates_to_one():
    """On a grid of 1,200² points; the tails beyond 40 are below 1e-3."""
    grid = np.linspace(-40, 40, 1200, dtype=np.float32)
    points = np.stack(np.meshgrid(grid, grid), -1)
    total = np.exp(np.asarray(FlowDensity(bent(2)).log_prob(points))).sum() * (grid[1] - grid[0]) ** 2
    assert total == pytest.approx(1, abs=2e-3)


def test_draws_have_the_density():
    """In one dimension the distribution function by quadrature: Kolmogorov and Smirnov's test."""
    density = FlowDensity(bent(1))
    draws = np.asarray(density.sample(random.key(2), (4000,)))[:, 0]
    grid = np.linspace(draws.min() - 5, draws.max() + 5, 20001, dtype=np.float32)
    p = np.exp(np.asarray(density.log_prob(grid[:, None])))
    cumulated = np.concatenate([[0], np.cumsum((p[1:] + p[:-1]) / 2 * np.diff(grid))])
    assert stats.kstest(draws, lambda x: np.interp(x, grid, cumulated)).pvalue > 0.01
    assert density.sample(random.key(0), (3, 4)).shape == (3, 4, 1)


def test_flowjax_flows_keep_their_density_and_draws():
    base = flowjax.distributions.Normal(jnp.zeros(3))
    flow = flowjax.flows.masked_autoregressive_flow(random.key(0), base_dist=base, flow_layers=2)
    x = random.normal(random.key(1), (5, 2, 3))
    density = FlowDensity(flow)
    np.testing.assert_array_equal(density.log_prob(x), flow.log_prob(x))
    np.testing.assert_array_equal(density.sample(random.key(2), (4,)), flow.sample(random.key(2), (4,)))
    assert density.event_shape == (3,)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: FlowDensity(3.0), TypeError, "got float, which has no 'shape'"),
        (lambda: LinearFlow(0, key=random.key(0)), ValueError, "must be at least 1, got 0"),
        (lambda: FlowDensity(bent(2)).log_prob(jnp.zeros((4, 3))), ValueError, "arrays of shape \\(2,\\)"),
        (lambda: FlowDensity(bent(2)).log_prob(jnp.zeros((4, 2), int)), ValueError, "dequantise"),
        (lambda: FlowDensity(flowjax.flows.coupling_flow(random.key(0), cond_dim=2,
            base_dist=flowjax.distributions.Normal(jnp.zeros(2)))), ValueError, "wants a condition of shape \\(2,\\)"),
    ],
)  # fmt: skip
def test_mistakes_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
