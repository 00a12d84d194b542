"""Residual flows: against singular values of NumPy, finite differences, and quadrature in the plane."""

import equinox as eqx
import flowjax.distributions
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from jax import random
from numpyro.contrib.module import eqx_module

import estimax
from estimax.estimators import MLE
from estimax.models import toys_2d
from estimax.models.diffusion import observed
from estimax.models.flows import FlowDensity
from estimax.models.residual_flow import ResidualBlock, residual_flow, spectral_bound


def moved(module, size):
    """With weights away from their start, so that they are scaled down."""
    leaves, tree = jax.tree.flatten(module)
    keys = random.split(random.key(1), len(leaves))
    bend = lambda x, k: x + size * random.normal(k, x.shape) if eqx.is_inexact_array(x) else x  # noqa: E731
    return jax.tree.unflatten(tree, [bend(x, k) for x, k in zip(leaves, keys, strict=True)])


BASE = flowjax.distributions.Normal(jnp.zeros(2))
X = np.random.default_rng(0).normal(0, 2, (5, 3)).astype(np.float32)


@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (50, 50), (40, 2)])
def test_spectral_bound(shape):
    matrix = random.normal(random.key(0), shape)
    truth = np.linalg.svd(np.asarray(matrix, np.float64))[1][0]
    bound = float(spectral_bound(matrix))
    assert truth * (1 - 1e-5) <= bound <= truth * min(shape) ** (1 / 128) * (1 + 1e-5)
    assert np.all(np.isfinite(jax.grad(spectral_bound)(matrix)))


def numerical_log_det(block, x):
    """Central differences in double precision."""
    block = jax.tree.map(lambda v: v.astype(jnp.float64) if eqx.is_inexact_array(v) else v, block)
    h, eye = 1e-5, np.eye(len(x))
    f = jax.jit(lambda x: block.transform_and_log_det(x)[0])
    columns = [(np.asarray(f(x + h * e)) - np.asarray(f(x - h * e))) / (2 * h) for e in eye]
    return np.linalg.slogdet(np.array(columns).T)


@pytest.mark.long
def test_log_determinant_and_inverse_of_a_block(x64):
    block = moved(ResidualBlock(random.key(0), 3, width=16, lipschitz=0.95), 1.5)
    seen = []
    for x in X.astype(np.float64):
        sign, truth = numerical_log_det(block, x)
        y, log_det = block.transform_and_log_det(x)
        assert sign == 1
        assert float(log_det) == pytest.approx(truth, abs=1e-6)
        seen.append(abs(truth))
        back, inverse = block.inverse_and_log_det(y)
        np.testing.assert_allclose(back, x, atol=1e-5)
        assert float(inverse) == pytest.approx(-truth, abs=1e-5)
    assert max(seen) > 0.1


@pytest.mark.long
def test_blocks_contract():
    """Slopes between far and near points, at weights ten times as large."""
    block = moved(ResidualBlock(random.key(0), 3, width=16, lipschitz=0.8), 3.0)
    g = jax.vmap(lambda x: block.transform(x) - x)
    x = random.normal(random.key(2), (2000, 3))
    for reach in (0.01, 3.0):
        y = x + reach * random.normal(random.key(3), x.shape)
        slopes = jnp.linalg.norm(g(x) - g(y), axis=1) / jnp.linalg.norm(x - y, axis=1)
        assert float(slopes.max()) <= 0.8


@pytest.mark.long
def test_the_random_series_is_unbiased():
    """Mean of 20,000 estimates within 4 standard errors of the exact log-determinant; directions differ by x."""
    blocks = [
        moved(ResidualBlock(random.key(0), 3, width=16, lipschitz=0.7, trace=trace), 0.6)
        for trace in ("exact", "hutchinson")
    ]
    exact = blocks[0].transform_and_log_det(X[0])[1]
    one = lambda key: eqx.tree_at(lambda b: b.probe_key, blocks[1], key).transform_and_log_det(X[0])[1]  # noqa: E731
    draws = np.asarray(jax.jit(jax.vmap(one))(random.split(random.key(0), 20_000)), np.float64)
    assert draws.std() > 0.01
    assert abs(draws.mean() - exact) < 4 * draws.std() / np.sqrt(len(draws))


@pytest.mark.long
def test_density_integrates_to_one_and_draws_return():
    flow = moved(residual_flow(random.key(0), base_dist=BASE, flow_layers=2, width=16), 0.4)
    density = FlowDensity(flow)
    grid = np.linspace(-12, 12, 300, dtype=np.float32)
    points = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)
    p = np.exp(np.asarray(jax.jit(density.log_prob)(points)))
    assert p.sum() * (grid[1] - grid[0]) ** 2 == pytest.approx(1, abs=2e-3)
    draws = density.sample(random.key(1), (2000,))
    mean = (p[:, None] * points).sum(0) / p.sum()
    sd = np.sqrt((p[:, None] * (points - mean) ** 2).sum(0) / p.sum())
    np.testing.assert_array_less(np.abs(draws.mean(0) - mean), 4 * sd / np.sqrt(2000))
    there = flow.bijection.inverse(draws[0])  # to the base and back
    np.testing.assert_allclose(flow.bijection.transform(there), draws[0], atol=1e-5)


@pytest.mark.slow
def test_training_by_random_series():
    """Two moons: 0.4 nats a datum better than the best Gaussian by the exact density, and worse than the truth."""
    x = np.asarray(toys_2d.two_moons(random.key(0), 1000))

    def model(x, trace):
        key = numpyro.prng_key()
        flow = residual_flow(random.key(0), base_dist=BASE, width=32, trace=trace, probe_key=key)
        with numpyro.plate("data", len(x), subsample_size=128):
            numpyro.sample("x", FlowDensity(eqx_module("flow", flow)), obs=numpyro.subsample(x, event_dim=1))

    data = {"x": x, "trace": "hutchinson"}
    fit = estimax.fit(model, MLE(subsample=True), data, num_steps=300, learning_rate=0.01, progress_bar=False)
    density = observed(model, fit.params, data | {"trace": "exact"})
    found = float(jax.jit(density.log_prob)(x).mean())
    gaussian = -0.5 * np.linalg.slogdet(2 * np.pi * np.e * np.cov(x.T))[1]
    assert gaussian + 0.4 < found < toys_2d.two_moons.log_prob(x).mean()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResidualBlock(random.key(0), 2, lipschitz=1.0), "lipschitz must lie between 0 and 1"),
        (lambda: ResidualBlock(random.key(0), 0), "dim must be at least 1"),
        (lambda: ResidualBlock(random.key(0), 2, trace="full"), "trace must be one of exact, hutchinson"),
        (lambda: residual_flow(random.key(0), base_dist=flowjax.distributions.Normal()), "over vectors"),
        (lambda: residual_flow(random.key(0), base_dist=BASE, flow_layers=0), "flow_layers must be at least 1"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
