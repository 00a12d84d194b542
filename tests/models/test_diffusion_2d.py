"""The mixture in the plane: its density under noise against scipy, and a fitted diffusion against its density."""

import jax
import numpy as np
import pytest
from jax import random
from scipy import stats

import estimax
from estimax.estimators import DenoisingScoreMatching
from estimax.models import diffusion_2d as plane
from estimax.models.transport import observed


@pytest.mark.long
def test_density_under_noise_is_the_convolution():
    x = np.random.default_rng(0).normal(size=(5, 2))
    for t in (plane.PROCESS.t_min, 0.2, 0.9):
        alpha, sigma = float(plane.PROCESS.alpha(t)), float(plane.PROCESS.sigma(t))
        cov = ((alpha * plane.SD) ** 2 + sigma**2) * np.eye(2)
        parts = [
            w * stats.multivariate_normal(alpha * c, cov).pdf(x)
            for w, c in zip(plane.WEIGHTS, plane.CENTRES, strict=True)
        ]
        np.testing.assert_allclose(plane.log_density(x.astype(np.float32), t), np.log(sum(parts)), rtol=2e-4, atol=1e-4)
        with jax.enable_x64(True):
            step = 1e-5 * np.eye(2)
            slope = [(plane.log_density(x + e, t) - plane.log_density(x - e, t)) / 2e-5 for e in step]
            np.testing.assert_allclose(plane.score(x, t), np.stack(slope, -1), rtol=1e-4, atol=1e-6)


def test_draws_are_of_the_mixture():
    x = plane.draw(20_000, seed=3)
    for axis in (0, 1):
        cdf = lambda v, axis=axis: sum(  # noqa: E731
            w * stats.norm(c[axis], plane.SD).cdf(v) for w, c in zip(plane.WEIGHTS, plane.CENTRES, strict=True)
        )
        assert stats.kstest(x[:, axis], cdf).pvalue > 0.01
    assert not np.array_equal(x[:2000], plane.held_out()["x"])


def mmd_p_value(x, y, num_permutations=500):
    """Two-sample test by the maximum mean discrepancy of a normal kernel of the median distance (A Kernel Two-Sample
    Test): share of permutations with a larger one."""
    z = np.concatenate([x, y])
    square = np.square(z[:, None] - z[None]).sum(-1)
    kernel = np.exp(-square / np.median(square))
    np.fill_diagonal(kernel, 0)
    rng, n = np.random.default_rng(0), len(x)

    def statistic(order):
        sign = np.where(np.arange(len(z)) < n, 1.0, -1.0)[order]
        return sign @ kernel @ sign

    orders = [np.arange(len(z))] + [rng.permutation(len(z)) for _ in range(num_permutations)]
    values = np.array([statistic(o) for o in orders])
    return (values >= values[0]).mean()


@pytest.mark.long
def test_the_two_sample_test_has_power():
    """Draws of a mixture with the weights of two modes exchanged are told apart, draws of the same one are not."""
    x, y = plane.draw(500, seed=1), plane.draw(500, seed=2)
    wrong = plane.draw(500, seed=3) * np.array([-1, 1], np.float32)
    assert mmd_p_value(x, y) > 0.02
    assert mmd_p_value(x, wrong) < 0.005


@pytest.mark.slow
def test_fitted_diffusion_has_the_density_and_the_draws():
    """2 minutes: mean log-likelihood of other points within 0.02 nats of the truth, score errors by noise level, draws
    of both samplers indistinguishable from exact ones."""
    options = {"num_steps": plane.MODEL.num_steps, "learning_rate": plane.MODEL.learning_rate, "progress_bar": False}
    result = estimax.fit(plane.model, DenoisingScoreMatching(), plane.data(), **options)
    diffusion = observed(plane.model, result.params, plane.data())
    x = plane.held_out()["x"]
    gap = np.asarray(diffusion.log_prob(x) - plane.log_density(x))
    assert abs(gap.mean()) < 0.02
    rng = np.random.default_rng(0)
    for t, most in ((0.03, 0.3), (0.1, 0.12), (0.3, 0.05), (0.6, 0.05)):
        noisy = plane.PROCESS.alpha(t) * x + plane.PROCESS.sigma(t) * rng.normal(size=x.shape).astype(np.float32)
        truth = np.asarray(plane.score(noisy, t))
        error = np.asarray(diffusion.score(noisy, t)) - truth
        assert np.sqrt(np.mean(error**2) / np.mean(truth**2)) < most
    exact = plane.draw(1000, seed=5)
    for draw in (diffusion.sample, diffusion.sample_ode):
        assert mmd_p_value(np.asarray(draw(random.key(1), (1000,))), exact) > 0.01
