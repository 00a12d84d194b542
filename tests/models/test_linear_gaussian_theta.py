"""The closed forms against adaptive quadrature, datum by datum."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.infer.util import log_density
from scipy import integrate, stats

from estimax.models import linear_gaussian_theta as lg

THETA = 0.4
X = np.array([-0.7, 2.1])
LOC = np.array([0.2, 0.9])
SCALE = np.array([0.9, 1.1])


def log_joint(z, x):
    return stats.norm.logpdf(z, THETA, 1.0) + stats.norm.logpdf(x, z, 1.0)


def integral(function):
    value, _ = integrate.quad(function, -30.0, 30.0, epsabs=0.0, epsrel=1e-10, limit=200)
    return value


def test_log_evidence():
    expected = sum(np.log(integral(lambda z, x=x: np.exp(log_joint(z, x)))) for x in X)
    np.testing.assert_allclose(lg.log_evidence(THETA, X), expected, rtol=1e-5)


def test_elbo():
    expected = 0.0
    for x, loc, scale in zip(X, LOC, SCALE, strict=True):
        q = stats.norm(loc, scale)
        expected += integral(lambda z, q=q, x=x: q.pdf(z) * (log_joint(z, x) - q.logpdf(z)))
    np.testing.assert_allclose(lg.elbo(THETA, LOC, SCALE, X), expected, rtol=1e-5)


@pytest.mark.parametrize("n", [-0.5, 0.5, 1.0, 2.0])
def test_moments_of_the_weights(n):
    expected = 0.0
    for x, loc, scale in zip(X, LOC, SCALE, strict=True):
        q = stats.norm(loc, scale)
        expected += np.log(integral(lambda z, q=q, x=x: np.exp(n * log_joint(z, x) + (1.0 - n) * q.logpdf(z))))
    np.testing.assert_allclose(lg.log_weight_moment(n, THETA, LOC, SCALE, X), expected, rtol=1e-5)


def test_moments_diverge_where_the_guide_does_not_fit():
    assert lg.log_weight_moment(2.0, THETA, LOC, 0.4, X) == np.inf  # scale^2 below half the posterior variance
    assert lg.log_weight_moment(-1.0, THETA, LOC, 1.1, X) == np.inf  # or, for n < 0, too wide


def test_forward_kl():
    mean, sd = lg.posterior(THETA, X)
    expected = dist.kl_divergence(dist.Normal(mean, sd), dist.Normal(LOC, SCALE)).sum()
    np.testing.assert_allclose(lg.forward_kl(THETA, LOC, SCALE, X), expected, rtol=1e-5)


def test_every_bound_is_tight_at_the_posterior():
    mean, sd = lg.posterior(THETA, X)
    log_evidence = lg.log_evidence(THETA, X)
    np.testing.assert_allclose(lg.elbo(THETA, mean, sd, X), log_evidence, rtol=1e-5)
    np.testing.assert_allclose(lg.log_weight_moment(2.0, THETA, mean, sd, X) / 2.0, log_evidence, rtol=1e-5)
    np.testing.assert_allclose(lg.forward_kl(THETA, mean, sd, X), 0.0, atol=1e-6)
    gradient = jax.grad(lg.elbo, argnums=(1, 2))(THETA, mean, sd, X)
    np.testing.assert_allclose(gradient, np.zeros((2, 2)), atol=1e-6)


def test_score_of_the_evidence_vanishes_at_the_mean():
    x = lg.data()["x"]
    np.testing.assert_allclose(jax.grad(lg.log_evidence)(jnp.asarray(x.mean()), x), 0.0, atol=1e-4)
    assert abs(x.mean() - lg.truth()["theta"]) < 4.0 * np.sqrt(2.0 / len(x))


@pytest.mark.parametrize("batch_size", [None, 2])
def test_model_and_guide_densities(batch_size):
    x, z = np.array(X), jnp.array([0.1, -0.4])
    model, _ = log_density(lg.model, (), {"x": x, "batch_size": batch_size}, {"theta": jnp.array(THETA), "z": z})
    guide, _ = log_density(lg.guide, (), {"x": x}, {"loc": jnp.array(LOC), "scale": jnp.array(SCALE), "z": z})
    np.testing.assert_allclose(model, log_joint(np.asarray(z), X).sum(), rtol=1e-5)
    np.testing.assert_allclose(guide, stats.norm.logpdf(z, LOC, SCALE).sum(), rtol=1e-5)
