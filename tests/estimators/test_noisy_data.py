"""Scores and posteriors from noisy data alone: Stein's estimate, SUREScore, Tweedie's formula by kinds of noise."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from jax.scipy.special import gammaln

import estimax
from estimax.estimators import GammaNoise, GaussianNoise, PoissonNoise, SUREScore, sure
from estimax.models.diffusion import Diffusion
from estimax.models.noise_process import VE, VP

SD = 0.5
PROCESS = VP()
LEVEL = float(SUREScore(noise_sd=SD).level(PROCESS))
rng = np.random.default_rng(1)
CLEAN = rng.normal(0.8, 1.0, (3000, 1))
NOISY = (CLEAN + SD * rng.normal(size=CLEAN.shape)).astype(np.float32)


def test_risk_is_unbiased():
    """SURE less the squared error against the clean data, of two modes and a bent denoiser: zero within 4 s.e."""
    n = 100_000
    x = np.where(rng.uniform(size=(n, 2)) < 0.3, -1.0, 1.2) + 0.3 * rng.normal(size=(n, 2))
    y = jnp.asarray(x + 0.7 * rng.normal(size=x.shape), jnp.float32)
    mix = jnp.array([[1.0, 0.3], [-0.2, 0.8]])
    denoiser = lambda y: jnp.tanh(y @ mix) + 0.1 * y  # noqa: E731
    risk = np.asarray(sure(denoiser, y, 0.7, random.key(0)), np.float64)
    truth = np.sum((np.asarray(denoiser(y)) - x) ** 2, 1)
    assert risk.shape == (n,)
    assert abs((risk - truth).mean()) < 4 * (risk - truth).std() / np.sqrt(n)


def two_variances(x):
    """The score of N(m, v) under noise, with variances of its own below and above the noise of the data."""
    m = numpyro.param("m", jnp.zeros(1))
    v = numpyro.param("v", jnp.ones(2), constraint=dist.constraints.positive)

    def score(x, t):
        alpha = PROCESS.alpha(t)
        return -(x - alpha * m) / (alpha**2 * jnp.where(t < LEVEL - 1e-4, v[0], v[1]) + PROCESS.sigma(t) ** 2)

    numpyro.sample("x", Diffusion(score, PROCESS, 1, predicts="score"), obs=x)


@pytest.mark.long
def test_score_of_clean_gaussian_data():
    """Above the level of the noise the variance is that of the clean data, below it that of the denoised.

    The minimum is known in closed form from the moments of the noisy data; 4 s.e. of these for the truth itself.
    """
    fit = estimax.fit(
        two_variances, SUREScore(noise_sd=SD), {"x": NOISY}, num_steps=1200, learning_rate=0.02, progress_bar=False
    )
    v = NOISY.var() - SD**2
    assert fit.params["m"][0] == pytest.approx(NOISY.mean(), abs=0.03)
    assert fit.params["v"][1] == pytest.approx(v, rel=0.05)
    assert fit.params["v"][0] == pytest.approx(v**2 / (v + SD**2), rel=0.05)
    assert abs(fit.params["v"][1] - 1.0) < 4 * 1.25 * np.sqrt(2 / 3000) + 0.05


def test_posterior_under_gaussian_noise():
    """Correlated normal data: mean and variance of the posterior in closed form."""
    cov, mean, y = np.array([[1.0, 0.5], [0.5, 0.74]]), np.array([1.0, -0.5]), np.array([0.3, 0.9])
    noise = GaussianNoise(0.6)
    total = cov + 0.36 * np.eye(2)
    gain = cov @ np.linalg.inv(total)
    score = lambda y: -jnp.linalg.solve(total, y - mean)  # noqa: E731
    np.testing.assert_allclose(noise.mean(score, y), mean + gain @ (y - mean), rtol=1e-5)
    np.testing.assert_allclose(noise.variance(score, y), np.diag(cov - gain @ cov), rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_posterior_under_poisson_noise(scale):
    """Gamma prior: exact with more nodes; with one the error falls with the counts, here below 1 % from 5 counts on."""
    a, b, counts = 2.5, 0.7, np.array([0, 1, 5, 30])
    rate = b + 1 / scale

    def log_p(y):
        z = y / scale
        return gammaln(a + z) - gammaln(z + 1) - z * jnp.log(scale * rate)

    score = jax.vmap(jax.grad(log_p))
    y = jnp.asarray(scale * counts, jnp.float32)
    mean, variance = (a + counts) / rate, (a + counts) / rate**2
    exact = PoissonNoise(scale, nodes=8)
    np.testing.assert_allclose(exact.mean(score, y), mean, rtol=1e-4)
    np.testing.assert_allclose(exact.variance(score, y), variance, rtol=5e-3)
    error = np.abs(PoissonNoise(scale).mean(score, y) / mean - 1)
    assert error[2:].max() < 0.01
    assert 1e-3 < error[0] < 0.2


def test_posterior_under_gamma_noise():
    """1/x ~ Gamma(a, b): the posterior of 1/x is Gamma(a + k, b + k y)."""
    a, b, k, y = 3.0, 2.0, 4.0, jnp.array([0.2, 1.0, 5.0])
    score = lambda y: (k - 1) / y - (a + k) * k / (b + k * y)  # noqa: E731
    noise = GammaNoise(k)
    np.testing.assert_allclose(noise.mean(score, y), (b + k * y) / (a + k), rtol=1e-5)
    first, second = noise.inverse_moments(score, y)
    np.testing.assert_allclose(first, (a + k) / (b + k * y), rtol=1e-5)
    np.testing.assert_allclose(second, (a + k) / (b + k * y) ** 2, rtol=1e-4)


def posed(noise_sd, process=PROCESS, x=NOISY):
    def model(x):
        m = numpyro.param("m", jnp.zeros(1))
        numpyro.sample("x", Diffusion(lambda x, t: m - x, process, 1), obs=x)

    return SUREScore(noise_sd=noise_sd).problem(random.key(0), model, None, {"x": jnp.asarray(x)})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SUREScore(), "needs noise_sd"),
        (lambda: SUREScore(noise_sd=-1.0), "noise_sd must be positive, got -1.0"),
        (lambda: sure(jnp.tanh, NOISY, 0.0, random.key(0)), "noise_sd must be positive, got 0.0"),
        (lambda: posed(30.0, VE()), "noise_sd=30.0 must lie between .* 0.01 and 20"),
        (lambda: posed(0.001), "DenoisingScoreMatching where there is next to no noise"),
        (lambda: posed(0.5, x=np.ones((5, 1), int)), "dequantise"),
        (lambda: GaussianNoise(0.0), "sd must be positive"),
        (lambda: PoissonNoise(-1.0), "scale must be positive"),
        (lambda: PoissonNoise(nodes=0), "nodes must be an integer of at least 1"),
        (lambda: GammaNoise(float("nan")), "shape must be positive"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
