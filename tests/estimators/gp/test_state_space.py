"""State-space inference against the dense kernel matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from tinygp import GaussianProcess, kernels

from estimax.estimators import StateSpaceGP
from estimax.estimators.gp.state_space import kalman, markovian, smooth

from .conftest import dense, observed_model, pose

pytestmark = pytest.mark.usefixtures("x64_module")

KERNELS = {
    "matern12": kernels.Exp(0.7),
    "matern32": kernels.Matern32(1.3),
    "matern52": 2.0 * kernels.Matern52(0.9),
    "sum": kernels.Matern32(0.5) + 1.5 * kernels.Exp(3.0),
    "product": kernels.Matern32(1.3) * kernels.Exp(0.7),
    "product with cosine": kernels.Matern52(2.0) * kernels.Cosine(1.1),
}

ROWS = 13
"""Few: the program of an associative scan grows with their logarithm, and compiling it is all the time."""


@pytest.fixture(scope="module")
def times():
    rng = np.random.default_rng(1)
    t = np.sort(rng.uniform(0, 10, ROWS))
    t[7] = t[6]  # two at once
    return t, rng.normal(size=ROWS), rng.uniform(0.1, 0.5, ROWS)


@pytest.mark.long
@pytest.mark.parametrize("name", KERNELS)
def test_likelihood_and_posterior_equal_the_dense_ones(name, times):
    t, y, noise = times
    kernel = KERNELS[name]
    K = np.asarray(kernel(jnp.asarray(t), jnp.asarray(t)))
    expected = stats.multivariate_normal.logpdf(y, None, K + np.diag(noise))
    state = markovian(kernel)
    sequential = GaussianProcess(state, jnp.asarray(t), diag=jnp.asarray(noise)).log_probability(jnp.asarray(y))
    np.testing.assert_allclose(sequential, expected, rtol=1e-8)
    rows = (jnp.asarray(t), jnp.asarray(noise), jnp.asarray(y), jnp.ones(ROWS, bool))

    @jax.jit
    def both():
        return kalman(state, *rows)[1], smooth(state, *rows)

    parallel, (mean, variance) = both()
    np.testing.assert_allclose(parallel, expected, rtol=1e-8)
    gain = np.linalg.solve(K + np.diag(noise), K)
    np.testing.assert_allclose(mean, gain.T @ y, atol=1e-7)
    np.testing.assert_allclose(variance, np.diag(K - K @ gain), atol=1e-7)


def test_problem_sorts_rows_and_predicts_between_and_beyond(series):
    problem = pose(StateSpaceGP(), observed_model, series)  # times in no order
    r = series["y"] - 0.5
    C = dense(series["X"])
    expected = stats.multivariate_normal.logpdf(r, None, C)
    assert not problem.parallel  # on a CPU
    np.testing.assert_allclose(problem.objective(problem.params, problem.data), expected, rtol=1e-8)
    new = np.array([11.0, 0.3, 5.0, -2.0])
    mean, variance = jax.jit(lambda p: problem.functions(p)["y"].marginals(jnp.asarray(new)))(problem.params)
    cross = dense(series["X"], new)
    np.testing.assert_allclose(mean, cross @ np.linalg.solve(C, r), atol=1e-8)
    prior = dense(new, noise=False)
    np.testing.assert_allclose(variance, np.diag(prior - cross @ np.linalg.solve(C, cross.T)), atol=1e-8)


@pytest.mark.long
def test_gradient_of_the_parallel_form_equals_that_of_the_sequential_one(series):
    rows = {k: v[:ROWS] for k, v in series.items()}
    gradients = []
    for scan in ("sequential", "parallel"):
        problem = pose(StateSpaceGP(scan), observed_model, rows)
        gradients.append(jax.jit(jax.grad(lambda p, q=problem: q.objective(p, q.data)))(problem.params))
    for name, slope in gradients[0].items():
        np.testing.assert_allclose(gradients[1][name], slope, rtol=1e-7)


def test_kernels_without_state_space_are_named(series):
    with pytest.raises(ValueError, match="ExpSquared has no state space.*GPEvidence"):
        markovian(kernels.Matern32(1.0) + kernels.ExpSquared(1.0))
    with pytest.raises(ValueError, match=r"one-dimensional inputs, X has shape \(60, 2\)"):
        pose(StateSpaceGP(), observed_model, {"X": np.stack([series["X"]] * 2, 1), "y": series["y"]})
    with pytest.raises(ValueError, match="scan must be one of"):
        StateSpaceGP("diagonal")
