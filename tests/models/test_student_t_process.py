"""Student-t process against SciPy's multivariate t, and against importance sampling of the scale."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax import random
from scipy import stats
from tinygp import GaussianProcess, kernels

from estimax.models.kernels import ArcCosine
from estimax.models.student_t_process import StudentTProcess

pytestmark = pytest.mark.usefixtures("x64_module")

rng = np.random.default_rng(0)
X = rng.normal(size=(6, 2))
Y = 2.0 * rng.normal(size=6)
DF, NOISE = 5.0, 0.3
KERNEL = ArcCosine(2, 1.5, 0.2)


@pytest.fixture(scope="module")
def process(x64_module):
    return StudentTProcess(DF, KERNEL, jnp.asarray(X[:4]), NOISE, mean=0.5)


@pytest.fixture(scope="module")
def covariance(x64_module):
    return np.asarray(KERNEL(jnp.asarray(X), jnp.asarray(X))) + NOISE * np.eye(6)


def test_log_density_is_scipys(process, covariance):
    truth = stats.multivariate_t(np.full(4, 0.5), covariance[:4, :4], df=DF).logpdf(Y[:4])
    assert process.log_prob(jnp.asarray(Y[:4])) == pytest.approx(truth, abs=1e-10)
    np.testing.assert_allclose(process.gaussian_covariance, covariance[:4, :4], rtol=1e-12)


@pytest.mark.long
def test_conditional_is_the_ratio_of_joint_and_marginal(process, covariance):
    joint = stats.multivariate_t(np.full(6, 0.5), covariance, df=DF)
    marginal = stats.multivariate_t(np.full(4, 0.5), covariance[:4, :4], df=DF)
    found = process.condition(jnp.asarray(Y[:4]), jnp.asarray(X[4:]), NOISE, mean=0.5)
    for new in (Y[4:], np.array([1.0, -3.0])):
        truth = joint.logpdf(np.concatenate([Y[:4], new])) - marginal.logpdf(Y[:4])
        assert found.log_prob(jnp.asarray(new)) == pytest.approx(truth, abs=1e-9)


@pytest.mark.long
def test_scales_drawn_from_the_prior_agree_with_the_closed_form(process):
    """A model with a sampled scale: importance sampling of it gives the evidence and the scale's posterior."""
    y, draws = jnp.asarray(Y[:4]), dist.InverseGamma(DF / 2, DF / 2).sample(random.key(0), (20_000,))

    def given(s):
        return GaussianProcess(s * KERNEL, jnp.asarray(X[:4]), diag=s * NOISE, mean=0.5).log_probability(y)

    density = np.exp(np.asarray(jax.vmap(given)(draws)))
    error = density.std() / np.sqrt(density.size)
    assert abs(density.mean() - np.exp(process.log_prob(y))) < 4 * error
    posterior = process.scale_posterior(y)
    inverse = 1 / np.asarray(draws)  # whose posterior is a Gamma: its moments are known
    weights = density / density.sum()
    mean = weights @ inverse
    error = np.sqrt(weights**2 @ (inverse - mean) ** 2)
    assert abs(mean - posterior.concentration / posterior.rate) < 4 * error


def test_draws_have_the_covariance(process, covariance):
    draws = np.asarray(process.sample(random.key(1), (40_000,)))
    truth = DF / (DF - 2) * covariance[:4, :4]
    centred = draws - 0.5
    products = centred[:, :, None] * centred[:, None]
    assert (np.abs(products.mean(0) - truth) < 5 * products.std(0) / np.sqrt(len(draws))).all()
    assert (np.abs(centred.mean(0)) < 4 * centred.std(0) / np.sqrt(len(draws))).all()


def test_it_is_a_pytree_that_programs_take(process):
    y = jnp.asarray(Y[:4])
    log_prob = jax.jit(lambda p, y: p.condition(y, p.X + 1.0, 0.1).log_prob(y))
    assert log_prob(process, y) == pytest.approx(float(process.condition(y, process.X + 1.0, 0.1).log_prob(y)))


def test_many_degrees_of_freedom_are_a_gaussian_process():
    y, inputs = jnp.asarray(Y), jnp.asarray(X)
    gaussian = GaussianProcess(kernels.ExpSquared(1.0), inputs, diag=NOISE).log_probability(y)
    assert StudentTProcess(1e9, kernels.ExpSquared(1.0), inputs, NOISE).log_prob(y) == pytest.approx(
        float(gaussian), abs=1e-5
    )


def test_mistakes_are_named(process):
    with pytest.raises(ValueError, match=r"diag must be a scalar or have shape \(6,\), got shape \(2,\)"):
        StudentTProcess(3.0, kernels.Exp(1.0), jnp.asarray(X), jnp.ones(2))
    with pytest.raises(ValueError, match=r"y must have shape \(4,\)"):
        process.condition(jnp.ones(3), jnp.asarray(X))
