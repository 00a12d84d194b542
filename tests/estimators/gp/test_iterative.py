"""Iterative inference against Cholesky, in its own standard errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tinygp import kernels

from estimax.estimators import GPEvidence, IterativeGP
from estimax.estimators.gp import iterative
from estimax.estimators.gp.view import Regression

from .conftest import observed_model, pose

pytestmark = pytest.mark.usefixtures("x64_module")


def regression(n, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.uniform(0, 10, n)
    y = np.sin(X) + 0.3 * rng.normal(size=n)
    noise = jnp.asarray(rng.uniform(0.05, 0.15, n))
    return Regression(2.0 * kernels.Matern32(1.5), jnp.asarray(X), jnp.zeros(n), noise, jnp.asarray(y))


def check_against_cholesky(n, options, keys):
    r = regression(n)
    run = jax.jit(lambda key: iterative.estimate(r, options, key))
    estimates = [run(jax.random.key(i)) for i in range(keys)]
    C = np.asarray(r.covariance())
    exact = np.linalg.slogdet(C)[1]
    z = np.array([float((e.log_det - exact) / e.log_det_stderr) for e in estimates])
    # means of a t distribution: its degrees of freedom are the probes less one
    assert np.abs(z).max() < 5
    assert abs(z.mean()) < 4 * 1.2 / np.sqrt(keys)
    np.testing.assert_allclose(estimates[0].alpha, np.linalg.solve(C, np.asarray(r.y)), atol=1e-7)
    assert estimates[0].residual < 1e-8


def test_log_determinant_within_its_standard_error_and_solve_exact():
    check_against_cholesky(400, IterativeGP(num_probes=16, rank=20), 10)


@pytest.mark.slow
def test_log_determinant_at_five_thousand_rows():
    check_against_cholesky(5000, IterativeGP(num_probes=16, num_iterations=48), 4)


def test_short_iterations_say_so():
    r = regression(400)
    run = jax.jit(lambda key: iterative.estimate(r, IterativeGP(num_iterations=3, rank=1), key))
    assert run(jax.random.key(0)).residual > 1e-3


@pytest.mark.long
def test_gradient_is_that_of_the_exact_likelihood_in_its_standard_errors(series):
    exact = pose(GPEvidence(), observed_model, series)
    slope = jax.grad(lambda p: -exact.objective(p, exact.data))(exact.params)
    problem = pose(IterativeGP(num_probes=4, rank=5), observed_model, series)
    gradient = jax.jit(jax.vmap(jax.grad(lambda p, k: problem.loss(p, k, problem.data)[0]), (None, 0)))
    draws = gradient(problem.params, jax.random.split(jax.random.key(0), 400))
    for name, value in slope.items():
        error = float(draws[name].mean() - value) / (float(draws[name].std()) / 20)
        assert abs(error) < 4, name


def test_blocks_cover_all_rows(monkeypatch):
    monkeypatch.setattr(iterative, "BLOCK", 1000)  # blocks of three rows, the last one padded
    r = regression(301)
    v = jax.random.normal(jax.random.key(0), (301, 2))
    K = r.kernel(r.X, r.X)
    np.testing.assert_allclose(iterative.matmul(r.kernel, r.X, v), K @ v, rtol=1e-9)
    np.testing.assert_allclose(iterative.bilinear(r.kernel, r.X, v, 2 * v), jnp.sum(v * (K @ (2 * v))), rtol=1e-9)


def test_products_with_many_vectors_and_with_many_kernels_at_once():
    X, lengths = jnp.linspace(0.0, 3.0, 7), jnp.array([0.5, 2.0])
    matrix = lambda length: jnp.exp(-jnp.abs(X[:, None] - X) / length)  # noqa: E731
    product = lambda length, v: iterative.matmul(kernels.Exp(length), X, v)  # noqa: E731
    v = jax.random.normal(jax.random.key(0), (2, 7, 3))
    for axes in ((None, 0), (0, None), (0, 0)):
        for vectors in (v, v[..., 0]):
            some = [a if axis == 0 else a[0] for a, axis in zip((lengths, vectors), axes, strict=True)]
            expected = jax.vmap(lambda length, v: matrix(length) @ v, axes)(*some)
            np.testing.assert_allclose(jax.vmap(product, axes)(*some), expected, rtol=1e-9)


@pytest.mark.long
def test_prediction_has_the_exact_mean_and_no_less_than_the_exact_variance(series):
    exact = pose(GPEvidence(), observed_model, series)
    new = jnp.linspace(-1, 12, 7)
    right_mean, right_variance = exact.functions(exact.params)["y"].marginals(new)
    for rank in (10, 60):
        problem = pose(IterativeGP(num_iterations=60, variance_rank=rank), observed_model, series)
        at = jax.jit(lambda p, q=problem: q.functions(p)["y"].marginals(new))
        mean, variance = at(problem.params)
        np.testing.assert_allclose(mean, right_mean, atol=1e-6)
        assert (variance >= right_variance - 1e-7).all()
    np.testing.assert_allclose(variance, right_variance, atol=1e-6)  # as many combinations as observations


def test_options_are_checked():
    with pytest.raises(ValueError, match="num_probes must be an integer of at least 1"):
        IterativeGP(num_probes=0)
