"""Flows as NumPyro distributions: against quadrature, an empirical distribution function, and flowjax itself."""

import flowjax.bijections
import flowjax.distributions
import flowjax.flows
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from jax import random
from numpyro.contrib.module import eqx_module
from scipy import stats

import estimax
from estimax.estimators import MLE
from estimax.models.flows import FlowDensity
from estimax.models.networks import LinearFlow
from estimax.models.transport import observed


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


@pytest.mark.long
def test_draws_have_the_density():
    """In one dimension the distribution function by quadrature: Kolmogorov and Smirnov's test."""
    density = FlowDensity(bent(1))
    draws = np.asarray(density.sample(random.key(2), (4000,)))[:, 0]
    grid = np.linspace(draws.min() - 5, draws.max() + 5, 20001, dtype=np.float32)
    p = np.exp(np.asarray(density.log_prob(grid[:, None])))
    cumulated = np.concatenate([[0], np.cumsum((p[1:] + p[:-1]) / 2 * np.diff(grid))])
    assert stats.kstest(draws, lambda x: np.interp(x, grid, cumulated)).pvalue > 0.01
    assert density.sample(random.key(0), (3, 4)).shape == (3, 4, 1)


@pytest.mark.long
def test_flowjax_flows_keep_their_density_and_draws():
    base = flowjax.distributions.Normal(jnp.zeros(3))
    flow = flowjax.flows.masked_autoregressive_flow(random.key(0), base_dist=base, flow_layers=2)
    x = random.normal(random.key(1), (5, 2, 3))
    density = FlowDensity(flow)
    np.testing.assert_array_equal(density.log_prob(x), flow.log_prob(x))
    np.testing.assert_array_equal(density.sample(random.key(2), (4,)), flow.sample(random.key(2), (4,)))
    assert density.event_shape == (3,)


def spline(x, batch_size=None):
    """A neural spline flow, autoregressive."""
    flow = flowjax.flows.masked_autoregressive_flow(
        random.key(0), base_dist=flowjax.distributions.Normal(jnp.zeros(2)), flow_layers=2, nn_width=16,
        transformer=flowjax.bijections.RationalQuadraticSpline(knots=6, interval=5),
    )  # fmt: skip
    with numpyro.plate("data", len(x), subsample_size=batch_size):
        numpyro.sample("x", FlowDensity(eqx_module("flow", flow)), obs=numpyro.subsample(x, event_dim=1))


@pytest.mark.long
def test_a_spline_flow_learns_a_known_density_by_its_likelihood():
    """A parabola with noise: of 4,000 other draws the mean log-density is within 0.08 nats of the truth, of which the
    first weights are 0.9 off, and above it by no more than 4 standard errors."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 8000))
    x = np.stack([a, 0.5 * a**2 + 0.5 * b], 1).astype(np.float32)
    truth = stats.norm.logpdf(x[:, 0]) + stats.norm.logpdf(x[:, 1], 0.5 * x[:, 0] ** 2, 0.5)
    data = {"x": x[:4000], "batch_size": 256}
    gaps = {}
    for num_steps in (1, 800):
        fit = estimax.fit(spline, MLE(subsample=True), data, num_steps=num_steps, progress_bar=False)
        gap = truth[4000:] - np.asarray(jax.jit(observed(spline, fit.params, data).log_prob)(x[4000:]))
        gaps[num_steps] = gap.mean()
    assert gaps[1] > 0.5
    assert -4 * gap.std() / np.sqrt(4000) < gaps[800] < 0.08


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
