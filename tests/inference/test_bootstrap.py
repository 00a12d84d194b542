"""Refits of a bootstrap against closed forms and statsmodels, replicate by replicate."""

import warnings
from functools import partial

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import estimax
from estimax.estimators import MLE
from estimax.inference import bootstrap

fit = partial(estimax.fit, progress_bar=False)


def linear(x, y=None):
    b = numpyro.param("b", jnp.zeros(x.shape[1]))
    sigma = numpyro.param("sigma", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ b, sigma), obs=y)


def logistic(x, y=None):
    b = numpyro.param("b", jnp.zeros(x.shape[1]))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Bernoulli(logits=x @ b), obs=y)


def poisson(y=None):
    rate = numpyro.param("rate", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("data", y.shape[0]):
        numpyro.sample("y", dist.Poisson(rate), obs=y)


@pytest.fixture(scope="module")
def line():
    rng = np.random.default_rng(0)
    x = np.column_stack([np.ones(40), rng.normal(size=(40, 2))])
    data = {"x": x, "y": x @ [1.0, 2.0, -1.0] + rng.standard_t(5, size=40)}
    return fit(linear, MLE(), data), data


def resampled(n, replicates, seed):
    return np.random.default_rng(seed).integers(0, n, (replicates, n))


def refits_of(result, replicates, seed):
    hessian = result.covariance("observed").hessian
    with result.precision():
        return bootstrap.refit(result.problem, result.unconstrained, hessian, replicates, seed)


@pytest.mark.parametrize("numbers", [1e3, 1e7])
def test_every_refit_equals_least_squares_on_its_rows(line, numbers, monkeypatch):
    """To a thousandth of a standard error. Also where they do not divide into batches: 130 are three of 44."""
    monkeypatch.setattr(bootstrap, "NUMBERS", numbers)
    result, data = line
    refits = refits_of(result, 130, 3)
    assert refits.values.shape == (130, 4)
    assert refits.converged.all()
    for rows, refit in zip(resampled(40, 130, 3), refits.values, strict=True):
        b, squares = np.linalg.lstsq(data["x"][rows], data["y"][rows])[:2]
        truth = np.append(b, np.sqrt(squares[0] / 40))
        np.testing.assert_allclose(refit, truth, atol=1e-3 * refits.values.std(0).min())


def test_covariance_and_estimate(line):
    result, _ = line
    covariance = result.covariance("bootstrap", num_replicates=130, seed=3)
    assert not covariance.notes
    assert covariance.names == ["b[0]", "b[1]", "b[2]", "sigma"]
    np.testing.assert_allclose(covariance.matrix, np.cov(refits_of(result, 130, 3).values.T), rtol=1e-6)
    np.testing.assert_allclose(covariance.estimate, np.append(result.params["b"], result.params["sigma"]))


@pytest.mark.parametrize(
    ("num_replicates", "message"),
    [
        (0, "num_replicates must be an integer of at least 1, got 0"),
        ("all", "num_replicates must be an integer of at least 1, got 'all'"),
        (1, "two refits or more, and 1 of num_replicates=1 converged"),
    ],
)
def test_number_of_replicates(line, num_replicates, message):
    with pytest.raises(ValueError, match=message):
        line[0].covariance("bootstrap", num_replicates=num_replicates)


@pytest.mark.long
def test_some_resamples_are_separated():
    """Those run off by careful steps and are named; the others equal statsmodels."""
    sm = pytest.importorskip("statsmodels.api")
    rng = np.random.default_rng(5)
    x = np.column_stack([np.ones(18), rng.normal(size=18)])
    y = (rng.random(18) < 1 / (1 + np.exp(-2.5 * x[:, 1]))).astype(int)
    result = fit(logistic, MLE(), {"x": x, "y": y})
    with pytest.warns(RuntimeWarning, match="refits ran off"):
        result.covariance("bootstrap", num_replicates=40, seed=1)
    regular = 0
    for rows, refit in zip(resampled(18, 40, 1), refits_of(result, 40, 1).values, strict=True):
        if (np.diff(y[rows][np.argsort(x[rows, 1])]) >= 0).all():
            assert np.abs(refit).max() > 10
            continue
        peer = sm.Logit(y[rows], x[rows]).fit(disp=0)
        np.testing.assert_allclose(refit, peer.params, atol=2e-3 * peer.bse.max())
        regular += 1
    assert regular > 20


@pytest.mark.long
def test_simulated_data():
    """A Poisson rate: se sqrt(rate / n), the standard deviation of 400 refits within 4 of its own (14 %)."""
    y = np.random.default_rng(1).poisson(3.0, 50)
    result = fit(poisson, MLE(), {"y": y})
    covariance = result.covariance("parametric_bootstrap", num_replicates=400, seed=0)
    np.testing.assert_allclose(covariance.std_err, np.sqrt(y.mean() / 50), rtol=4 / np.sqrt(800))
    # means of 50 counts: every refit is a whole number of fiftieths
    totals = 50 * covariance.replicates
    np.testing.assert_allclose(totals, np.round(totals), atol=1e-2)


def test_a_maximum_at_infinity_is_named_by_a_bootstrap_too():
    """No refit moves there, which is why the refits alone would show no spread and nothing wrong."""
    x = np.column_stack([np.ones(20), np.arange(20.0)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = fit(logistic, MLE(), {"x": x, "y": (np.arange(20) > 9).astype(int)})
        notes = " ".join(result.covariance("bootstrap", num_replicates=50).notes)
    assert "perfect separation" in notes


def test_settling_near_a_minimum_and_away_from_a_saddle():
    """cosh from unit curvature; and u² − v² has no minimum, which shows in the decrement."""
    cosh = lambda u: (np.sinh(u - [[0.3, -0.2], [0.0, 0.5]]), u)  # noqa: E731
    u, values, left = bootstrap._settle(cosh, 2, 2)
    np.testing.assert_allclose(u, [[0.3, -0.2], [0.0, 0.5]], atol=1e-4)
    np.testing.assert_array_equal(values, u)
    assert left.max() < bootstrap.TOLERANCE
    saddle = lambda u: ((u - 0.1) * [2.0, -2.0], u)  # noqa: E731
    assert bootstrap._settle(saddle, 1, 2)[2][0] > 1e-3
