import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.infer.util import log_density
from scipy import integrate, stats

from estimax.models import bernoulli_mixture as bm

WEIGHTS = np.array([0.15, 0.15, 0.35, 0.35])
LOCS = np.array([-8.0, -2.0, 2.0, 8.0])
TRUTH = bm.truth()


def mixture():
    return bm.UnitVarianceMixture(jnp.asarray(WEIGHTS), jnp.asarray(LOCS))


def numpyro_mixture(weights, locs):
    return dist.MixtureSameFamily(dist.Categorical(probs=weights), dist.Normal(locs, 1.0))


def mixture_cdf(z):
    return sum(w * stats.norm.cdf(z, m) for w, m in zip(WEIGHTS, LOCS, strict=True))


def sigmoid(z):
    return 1.0 / (1.0 + np.exp(-z))


def probability_of_one():
    """p(x = 1) at the truth, by adaptive quadrature a component."""
    terms = [integrate.quad(lambda z, m=m: sigmoid(z) * stats.norm.pdf(z, m), m - 12.0, m + 12.0)[0] for m in LOCS]
    return WEIGHTS @ np.array(terms)


@pytest.mark.long
def test_mixture_density_and_gradients_against_numpyro():
    z = jnp.linspace(-12.0, 12.0, 97).reshape(97, 1)

    def ours(weights, locs, z):
        return bm.UnitVarianceMixture(weights, locs).log_prob(z).sum()

    def theirs(weights, locs, z):
        return numpyro_mixture(weights, locs).log_prob(z).sum()

    arguments = jnp.asarray(WEIGHTS), jnp.asarray(LOCS)
    np.testing.assert_allclose(mixture().log_prob(z), numpyro_mixture(*arguments).log_prob(z), rtol=1e-5, atol=1e-5)
    gradient, expected = (jax.jit(jax.grad(f, argnums=(0, 1, 2)))(*arguments, z) for f in (ours, theirs))
    np.testing.assert_allclose(gradient[1], expected[1], rtol=1e-3, atol=1e-3)
    # numpyro's Categorical normalises its weights, which takes the mean gradient off
    np.testing.assert_allclose(gradient[0] - WEIGHTS @ gradient[0], expected[0], rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(gradient[2], expected[2], atol=1e-4)


def test_mixture_is_finite_far_away():
    value, gradient = jax.value_and_grad(mixture().log_prob)(jnp.array(-80.0))
    np.testing.assert_allclose(value, np.log(0.15) + stats.norm.logpdf(-80.0, -8.0), rtol=1e-5)
    np.testing.assert_allclose(gradient, 72.0, rtol=1e-5)


def test_mixture_draws():
    draws = np.asarray(mixture().sample(jax.random.key(0), (20_000,)))
    assert stats.kstest(draws, mixture_cdf).pvalue > 1e-4


def test_marginal_log_likelihood_against_quadrature():
    p, x = probability_of_one(), np.array([0, 1, 1])
    expected = (np.log(1.0 - p) + 2.0 * np.log(p)) / 3.0
    np.testing.assert_allclose(bm.marginal_log_likelihood(TRUTH, x), expected, rtol=1e-6)


def test_marginal_log_likelihood_against_brute_monte_carlo():
    rng = np.random.default_rng(0)
    values = sigmoid(LOCS[rng.choice(4, 200_000, p=WEIGHTS)] + rng.standard_normal(200_000))
    estimate, stderr = values.mean(), values.std() / np.sqrt(len(values))
    ours = np.exp(bm.marginal_log_likelihood(TRUTH, np.ones(5, int)))
    assert abs(ours - estimate) < 4.0 * stderr


def test_complete_and_hidden_log_likelihood_against_scipy():
    x, z = np.array([0, 1, 1]), np.array([-1.0, 3.0, 9.0])
    prior = np.log(sum(w * stats.norm.pdf(z, m) for w, m in zip(WEIGHTS, LOCS, strict=True)))
    complete = (prior + stats.bernoulli.logpmf(x, sigmoid(z))).mean()
    np.testing.assert_allclose(bm.complete_log_likelihood(TRUTH, x, z), complete, rtol=1e-5)
    hidden = stats.norm.logpdf(z, [-5.0, 6.0, 6.0], [2.0, 3.0, 3.0]).mean()
    params = {"m": np.array([-5.0, 6.0]), "s": np.array([2.0, 3.0])}
    np.testing.assert_allclose(bm.hidden_log_likelihood(params, x, z), hidden, rtol=1e-5)


def test_data_are_what_the_truth_generates():
    x, z = bm.test_set()
    train = bm.data()["x"]
    p = probability_of_one()
    for sample in (x, train):
        assert sample.shape == (1000,)
        assert set(np.unique(sample)) == {0, 1}
        assert abs(sample.mean() - p) < 4.0 * np.sqrt(p * (1.0 - p) / 1000)
    assert stats.kstest(z, mixture_cdf).pvalue > 1e-3
    residual = x - sigmoid(z)
    assert abs(residual.sum()) < 4.0 * np.sqrt((sigmoid(z) * sigmoid(-z)).sum())


def test_best_held_out_log_likelihood_is_the_papers():
    """A fit that matches the training fraction of ones scores this on the test set, whatever its pi and mu."""
    train, test = bm.data()["x"].mean(), bm.test_set()[0].mean()
    assert test * np.log(train) + (1.0 - test) * np.log(1.0 - train) == pytest.approx(-0.630, abs=5e-4)
    assert float(bm.marginal_log_likelihood(TRUTH, bm.test_set()[0])) == pytest.approx(-0.630, abs=5e-4)


def test_guide_reads_its_entry_by_x():
    params = {"m": jnp.array([-5.0, 6.0]), "s": jnp.array([2.0, 3.0]), "z": jnp.array([1.0, 1.0, -2.0])}
    ours, _ = log_density(bm.guide, (), {"x": np.array([0, 1, 0])}, params)
    np.testing.assert_allclose(ours, stats.norm.logpdf([1.0, 1.0, -2.0], [-5, 6, -5], [2, 3, 2]).sum(), rtol=1e-5)
