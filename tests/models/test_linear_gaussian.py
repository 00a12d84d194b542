import jax.numpy as jnp
import numpy as np
from numpyro.infer.util import log_density
from scipy import stats

from estimax.models import linear_gaussian

DATA = linear_gaussian.data()
N, M = DATA["x"].shape
STACKED = np.tile(DATA["A"], (N, 1))  # x, flattened, = STACKED z + noise


def test_log_evidence_against_scipy():
    covariance = STACKED @ STACKED.T + DATA["scale"] ** 2 * np.eye(N * M)
    expected = stats.multivariate_normal(np.zeros(N * M), covariance).logpdf(DATA["x"].ravel())
    np.testing.assert_allclose(linear_gaussian.log_evidence(DATA), expected, rtol=1e-11)


def test_posterior_against_conditioning_the_joint_gaussian():
    gain = STACKED.T @ np.linalg.inv(STACKED @ STACKED.T + DATA["scale"] ** 2 * np.eye(N * M))
    mean, covariance = linear_gaussian.posterior(DATA)
    np.testing.assert_allclose(mean, gain @ DATA["x"].ravel(), rtol=1e-9)
    np.testing.assert_allclose(covariance, np.eye(3) - gain @ STACKED, rtol=1e-8, atol=1e-10)


def test_posterior_is_correlated_and_partly_prior():
    _, covariance = linear_gaussian.posterior(DATA)
    sd = np.sqrt(np.diag(covariance))
    assert np.abs(covariance / np.outer(sd, sd) - np.eye(3)).max() > 0.5
    np.testing.assert_allclose(np.linalg.eigvalsh(covariance)[-1], 1.0, rtol=1e-9)  # two projections of three latents


def test_model_is_likelihood_times_prior():
    z = np.array([0.3, -1.0, 0.7])
    ours, _ = log_density(linear_gaussian.model, (), DATA, {"z": jnp.asarray(z)})
    expected = stats.norm.logpdf(z).sum() + stats.norm.logpdf(DATA["x"], DATA["A"] @ z, DATA["scale"]).sum()
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_reference_draws():
    mean, covariance = linear_gaussian.posterior(DATA)
    draws = linear_gaussian.reference()["z"]
    assert draws.shape == (10_000, 3)
    np.testing.assert_allclose((draws.mean(0) - mean) / np.sqrt(np.diag(covariance) / 10_000), 0.0, atol=4.0)
    np.testing.assert_allclose(np.cov(draws.T), covariance, atol=4.0 * np.sqrt(2.0 / 10_000))
