"""Inducing inputs and coresets: bounds of the exact evidence, and where they meet it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from estimax.estimators import SVGP, CoresetGP, GPEvidence, SparseGP
from estimax.estimators.gp.coreset import INPUTS, LOG_PRECISION, TARGETS
from estimax.estimators.gp.sparse import NAME

from .conftest import TRUTH, binary_model, dense, latent_model, pose

pytestmark = pytest.mark.usefixtures("x64_module")


@pytest.fixture(scope="module")
def exact(series):
    problem = pose(GPEvidence(), latent_model, series)
    return float(problem.objective(problem.params, problem.data))


def value(problem, **params):
    return float(jax.jit(lambda p: problem.objective(p, problem.data))({**problem.params, **params}))


@pytest.mark.long
def test_titsias_is_below_the_evidence_and_meets_it_at_the_data(series, exact):
    values = [value(pose(SparseGP(m), latent_model, series)) for m in (5, 10, 20)]
    assert values[0] < values[1] < values[2] < exact
    at_data = pose(SparseGP(60), latent_model, series)
    np.testing.assert_allclose(value(at_data, **{NAME: jnp.asarray(series["X"])}), exact, atol=1e-6)


def test_titsias_and_fitc_equal_their_dense_formulas(series):
    X, r = series["X"], series["y"] - 0.5
    problem = pose(SparseGP(7), latent_model, series)
    Z = np.asarray(problem.params[NAME])
    cross = dense(Z, X, noise=False)
    Q = cross @ np.linalg.solve(dense(Z, noise=False), cross.T)
    left = TRUTH["amplitude"] ** 2 - np.diag(Q)
    noise = TRUTH["noise"] ** 2 + 1e-10
    titsias = stats.multivariate_normal.logpdf(r, None, Q + noise * np.eye(60)) - left.sum() / 2 / noise
    np.testing.assert_allclose(value(problem), titsias, rtol=1e-7)
    fitc = stats.multivariate_normal.logpdf(r, None, Q + np.diag(left + noise))
    np.testing.assert_allclose(value(pose(SparseGP(7, "fitc"), latent_model, series)), fitc, rtol=1e-7)


@pytest.mark.long
def test_svgp_with_one_natural_step_is_at_the_collapsed_bound(series):
    sparse = pose(SparseGP(10), latent_model, series)
    problem = pose(SVGP(10, None, 1.0), latent_model, series)
    memory = problem.refresh(problem.memory, problem.params, jax.random.key(0))
    np.testing.assert_allclose(value(problem.with_memory(memory)), value(sparse), rtol=1e-8)
    mean, variance = problem.with_memory(memory).functions(problem.params)["f"].marginals(jnp.linspace(0, 12, 9))
    other_mean, other_variance = sparse.functions(sparse.params)["f"].marginals(jnp.linspace(0, 12, 9))
    np.testing.assert_allclose(mean, other_mean, atol=1e-7)
    np.testing.assert_allclose(variance, other_variance, atol=1e-7)


@pytest.mark.long
def test_svgp_minibatches_are_unbiased(series):
    full = pose(SVGP(8, None), latent_model, series)
    part = pose(SVGP(8, 16), latent_model, series)
    losses = jax.jit(jax.vmap(lambda k: part.loss(part.params, k, part.data)[0]))(
        jax.random.split(jax.random.key(1), 4000)
    )
    expected = full.loss(full.params, jax.random.key(0), full.data)[0]
    assert abs(float(losses.mean() - expected)) < 4 * float(losses.std()) / np.sqrt(4000)


def test_coreset_on_the_data_themselves_is_exact(series, exact):
    problem = pose(CoresetGP(60), latent_model, series)
    own = {
        INPUTS: jnp.asarray(series["X"]),
        TARGETS: jnp.asarray(series["y"] - 0.5),
        LOG_PRECISION: jnp.full(60, -2 * np.log(TRUTH["noise"])),
    }
    np.testing.assert_allclose(value(problem, **own), exact, atol=1e-5)
    assert value(problem) <= exact + 1e-6


@pytest.mark.long
def test_coreset_is_a_bound_for_other_likelihoods(series):
    """Its importance weights average to the evidence, its ELBO is their mean logarithm."""
    binary = {"X": series["X"][:25], "y": (series["y"][:25] > 1).astype(float)}
    problem = pose(CoresetGP(10), binary_model, binary)
    posterior = problem.posterior(problem.params)
    log_w = np.asarray(posterior.log_weights(jax.random.key(0), 4000))
    assert abs(log_w.mean() - value(problem)) < 4 * log_w.std() / np.sqrt(4000)


def test_errors_name_the_argument(series):
    with pytest.raises(ValueError, match=r"num_inducing=61 is more than the 60 rows"):
        pose(SparseGP(61), latent_model, series)
    with pytest.raises(ValueError, match=r"num_points=61 is more than the 60 rows"):
        pose(CoresetGP(61), latent_model, series)
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 1"):
        pose(SVGP(5, 0), latent_model, series)
    with pytest.raises(ValueError, match="method must be one of titsias, fitc"):
        SparseGP(5, "nystrom")
    with pytest.raises(ValueError, match="natural_step"):
        SVGP(natural_step=0.0)
