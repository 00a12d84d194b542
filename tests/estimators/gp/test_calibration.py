"""What `diagnose` says of predictions, against leaving rows out by NumPy, and against SciPy's distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from estimax.estimators import SVGP, CoresetGP, IterativeGP, NonConjugateGP, SparseGP
from estimax.estimators.gp import calibration, iterative
from estimax.estimators.gp.sparse import NAME

from .conftest import TRUTH, binary_model, dense, latent_model, observed_model, pose

pytestmark = pytest.mark.usefixtures("x64_module")

NOISE = TRUTH["noise"] ** 2 + 1e-10


@pytest.mark.parametrize("method", ["titsias", "fitc"])
def test_sparse_residuals_are_those_of_leaving_each_row_out(series, method):
    """Of a regression whose covariance goes through the inducing inputs; FITC sees what they leave as noise."""
    X, r = series["X"], series["y"] - 0.5
    problem = pose(SparseGP(7, method), latent_model, series)
    Z = np.asarray(problem.params[NAME])
    cross = dense(Z, X, noise=False)
    Q = cross @ np.linalg.solve(dense(Z, noise=False), cross.T)
    left = TRUTH["amplitude"] ** 2 - np.diag(Q)
    C = Q + np.diag(NOISE + (left if method == "fitc" else 0 * left))
    residual, variance = jax.jit(lambda p: problem.residuals(p))(problem.params)
    for i in range(len(r)):
        rest = np.arange(len(r)) != i
        gain = np.linalg.solve(C[np.ix_(rest, rest)], Q[rest, i])
        assert residual[i] == pytest.approx(r[i] - gain @ r[rest], abs=1e-6)
        assert variance[i] == pytest.approx(Q[i, i] - gain @ Q[rest, i] + left[i] + NOISE, rel=1e-6)


def test_sites_taken_away_leave_the_exact_moments_under_gaussian_noise(series):
    problem = pose(NonConjugateGP("ep"), latent_model, series)
    mean, variance = jax.jit(lambda p: problem.moments_for_check(p))(problem.params)["f"]
    C, r = dense(series["X"]), series["y"] - 0.5
    inverse = np.linalg.inv(C)
    np.testing.assert_allclose(series["y"] - mean, inverse @ r / np.diag(inverse), atol=1e-6)
    np.testing.assert_allclose(variance + TRUTH["noise"] ** 2, 1 / np.diag(inverse), rtol=1e-6)


def test_iterations_predict_the_data_as_the_dense_formula_does_and_are_run_once(series, monkeypatch):
    problem = pose(IterativeGP(num_iterations=60, variance_rank=60), observed_model, series)
    final, calls = iterative._final, []
    monkeypatch.setattr(iterative, "_final", lambda *args: calls.append(final(*args)) or calls[-1])
    faults, (evidence, words) = problem.report(problem.params)
    assert faults == []
    assert evidence.startswith("log marginal likelihood")
    (found,) = calls
    C, K, r = dense(series["X"]), dense(series["X"], noise=False), series["y"] - 0.5
    gain = np.linalg.solve(C, K)
    mean, variance = gain.T @ r, np.diag(K - K @ gain) + TRUTH["noise"] ** 2
    np.testing.assert_allclose(found[4], r - mean, atol=1e-6)
    np.testing.assert_allclose(found[5], variance, atol=1e-6)
    density = stats.norm.logpdf(r, mean, np.sqrt(variance)).mean()
    inside = np.mean(np.abs(r - mean) < stats.norm.ppf(0.95) * np.sqrt(variance))
    assert f"log predictive density {density:.3f} a row" in words
    assert f"{inside:.0%} of 90% intervals" in words


def test_ranks_of_counts_are_uniform_where_the_counts_are_from_their_distribution():
    rng = np.random.default_rng(1)  # not the stream that breaks ties
    rates = rng.uniform(0.2, 3, 4000)  # mostly ties
    y, draws = rng.poisson(rates), rng.poisson(rates, (400, 4000))
    found = calibration.ranks(y, draws)
    for level in (0.5, 0.9, 0.95):
        share = np.mean(np.abs(found - 0.5) < level / 2)
        assert abs(share - level) < 4 * np.sqrt(level * (1 - level) / 4000)
    middle = stats.poisson.cdf(y, rates) - 0.5 * stats.poisson.pmf(y, rates)
    error = found - middle  # uniform over the probability of the tie, and the error of 400 draws
    width = stats.poisson.pmf(y, rates)
    assert abs(error.mean()) < 4 * np.sqrt(np.mean(width**2 / 12 + 0.25 / 400) / 4000)
    too_narrow = calibration.ranks(y, np.round(rates + 0 * draws))
    assert np.mean(np.abs(too_narrow - 0.5) < 0.45) < 0.8


@pytest.mark.long
@pytest.mark.parametrize("estimator", [NonConjugateGP("ep"), SVGP(8, 16), CoresetGP(8)])
def test_zeros_and_ones_are_counted_where_they_are_expected(series, estimator):
    data = {"X": series["X"], "y": (series["y"] > 1).astype(float)}
    problem = pose(estimator, binary_model, data)
    words = next(line for line in problem.remarks(problem.params) if "log predictive density" in line)
    moments = jax.jit(lambda p: problem.moments_for_check(p))(problem.params)["f"]
    x, w = np.polynomial.hermite_e.hermegauss(60)
    f = np.asarray(moments[0])[:, None] + np.sqrt(np.asarray(moments[1]))[:, None] * x
    probability = (w / w.sum() / (1 + np.exp(-f))).sum(1)
    density = np.log(np.where(data["y"] == 1, probability, 1 - probability)).mean()
    assert f"log predictive density {density:.3f} a row" in words
    draws = jax.jit(lambda p: problem.check(p, jax.random.key(0), 400).draws)(problem.params).mean(0)
    assert np.abs((draws - probability) / np.sqrt(probability * (1 - probability) / 400)).max() < 4.5
    below = np.asarray(draws) < 0.5
    if below.any():
        share = data["y"][below].mean()
        assert f"rows with a probability below one half: {below.sum()}, of which {share:.0%} are ones" in words


def test_rows_of_several_numbers_have_a_density_only():
    class Two:
        num_units = 2

        def check(self, params, rng_key, num):
            return calibration.Check(jnp.array([-1.0, -3.0]), jnp.zeros((2, 2)), None)

    assert calibration.of_draws(Two(), {}) == "log predictive density -2.000 a row"
