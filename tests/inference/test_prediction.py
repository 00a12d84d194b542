"""Predictions at new rows: of Gaussian processes against scikit-learn, of other models against their closed forms."""

import arviz as az
import equinox as eqx
import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.module import eqx_module
from scipy import stats
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from tinygp import GaussianProcess, kernels

import estimax
from estimax.estimators import MLE, SVGP, GPEvidence


def process(X, y):
    length = numpyro.param("length", 1.5, constraint=dist.constraints.positive)
    noise = numpyro.param("noise", 0.3, constraint=dist.constraints.positive)
    f = numpyro.sample("f", GaussianProcess(kernels.Matern32(length), X, diag=1e-10).numpyro_dist())
    with numpyro.plate("rows", X.shape[0]):
        numpyro.sample("y", dist.Normal(f, noise), obs=y)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    X = rng.uniform(0, 10, 40)
    return {"X": X, "y": np.sin(X) + 0.3 * rng.normal(size=40)}


@pytest.fixture(scope="module")
def fitted(data):
    return estimax.fit(process, GPEvidence(), data, progress_bar=False)


@pytest.fixture(scope="module")
def peer(data, fitted):
    length, noise = float(fitted.params["length"]), float(fitted.params["noise"])
    kernel = ConstantKernel(1.0) * Matern(length, nu=1.5) + WhiteKernel(noise**2)
    return GaussianProcessRegressor(kernel, optimizer=None, alpha=0.0).fit(data["X"][:, None], data["y"])


NEW = np.array([-1.0, 0.5, 3.3, 9.0, 12.0])


def test_moments_equal_scikit_learn(fitted, peer):
    found = fitted.predict(NEW)
    mean, sd = peer.predict(NEW[:, None], return_std=True)  # of f: the white kernel is noise of the observations only
    noise = float(fitted.params["noise"])
    np.testing.assert_allclose(found.mean, mean, atol=1e-6)
    np.testing.assert_allclose(found.sd, sd, atol=1e-6)
    np.testing.assert_allclose(found.variances["f"], sd**2 - noise**2, atol=1e-6)


@pytest.mark.long
def test_intervals_densities_and_draws_follow_from_the_moments(fitted):
    y = np.array([0.0, 0.4, 0.0, 0.3, 0.1])
    found = fitted.predict({"X": NEW, "y": y})
    np.testing.assert_allclose(found.log_density(), stats.norm.logpdf(y, found.mean, found.sd), rtol=1e-6)
    low, high = found.interval(0.9)
    error = found.sd * np.sqrt(0.95 * 0.05 / 4000) / stats.norm.pdf(stats.norm.ppf(0.95))
    assert (np.abs(high - found.mean - stats.norm.ppf(0.95) * found.sd) < 4.5 * error).all()
    assert (np.abs(found.mean - low - stats.norm.ppf(0.95) * found.sd) < 4.5 * error).all()
    draws = found.sample(4000)
    assert draws["y"].shape == draws["f"].shape == (4000, 5)
    assert (np.abs(draws["y"].mean(0) - found.mean) < 4.5 * found.sd / np.sqrt(4000)).all()
    # joint: neighbours in X vary together
    close = fitted.predict(np.array([20.0, 20.1])).sample(2000)["f"]
    assert np.corrcoef(close.T)[0, 1] > 0.95


@pytest.mark.long
def test_arviz_groups(fitted, data):
    container = fitted.to_arviz(200, predictions=NEW)
    assert dict(container["posterior"].sizes) == {"chain": 1, "draw": 200, "f_dim_0": 40}
    assert container["posterior_predictive"]["y"].shape == (1, 200, 40)
    assert container["log_likelihood"]["y"].shape == (1, 200, 40)
    assert container["predictions"]["y"].shape == (1, 200, 5)
    np.testing.assert_allclose(container["predictions_constant_data"]["X"], NEW)
    np.testing.assert_allclose(container["observed_data"]["y"], data["y"], rtol=1e-6)
    found = az.loo(container)
    assert np.isfinite(float(found.elpd_loo if hasattr(found, "elpd_loo") else found.elpd))
    # the function's draws are of the posterior, not of the prior
    spread = np.asarray(container["posterior"]["f"]).std((0, 1)).mean()
    assert spread < 0.5


@pytest.mark.long
def test_saved_fits_predict_the_same(fitted, tmp_path):
    fitted.save(tmp_path / "exact.nc", num_samples=50)
    again = estimax.load(tmp_path / "exact.nc", process)
    np.testing.assert_allclose(again.predict(NEW).mean, fitted.predict(NEW).mean, rtol=1e-9)


@pytest.mark.long
def test_saved_svgp_keeps_its_state(data, tmp_path):
    result = estimax.fit(process, SVGP(8, None, 0.5), data, num_steps=30, progress_bar=False)
    result.save(tmp_path / "svgp.nc", num_samples=50)
    again = estimax.load(tmp_path / "svgp.nc", process)
    np.testing.assert_allclose(again.predict(NEW).mean, result.predict(NEW).mean, rtol=1e-5)
    assert np.abs(result.predict(NEW).mean).max() > 0.1


def test_other_models_predict_by_their_draws():
    def line(x, y=None):
        b = numpyro.param("b", 0.0)
        s = numpyro.param("s", 1.0, constraint=dist.constraints.positive)
        with numpyro.plate("rows", len(x)):
            numpyro.sample("y", dist.Normal(b * x, s), obs=y)

    rng = np.random.default_rng(0)
    x = rng.normal(size=50)
    result = estimax.fit(line, MLE(), {"x": x, "y": 2 * x + rng.normal(size=50)}, progress_bar=False)
    b, s = float(result.params["b"]), float(result.params["s"])
    new, y = np.array([-1.0, 0.0, 2.0]), np.array([-2.0, 0.3, 4.0])
    found = result.predict({"x": new, "y": y})
    assert (np.abs(found.mean - b * new) < 4.5 * s / np.sqrt(4000)).all()
    np.testing.assert_allclose(found.log_density(), stats.norm.logpdf(y, b * new, s), atol=1e-4)


def test_mistakes_are_named(fitted):
    with pytest.raises(ValueError, match="the model takes no argument 'x'"):
        fitted.predict({"x": NEW})
    with pytest.raises(ValueError, match=r"X has shape \(5, 2\), the fit had \(40,\)"):
        fitted.predict(np.zeros((5, 2)))
    with pytest.raises(ValueError, match="not finite"):
        fitted.predict(np.array([0.0, np.nan]))
    with pytest.raises(ValueError, match=r"different numbers of rows: \[2, 3\]"):
        fitted.predict({"X": np.zeros(2), "y": np.zeros(3)})
    with pytest.raises(ValueError, match="prob must lie"):
        fitted.predict(NEW).interval(1.0)


def test_a_network_alone_has_as_many_draws_as_other_models():
    """Its parameters are no array, so there is nothing to repeat: moments by closed form within 4 s.e. of 4,000."""
    X = np.linspace(-1, 1, 20)[:, None]

    def network(X, y):
        line = eqx_module("line", eqx.nn.Linear(1, "scalar", key=jax.random.key(0)))
        with numpyro.plate("rows", X.shape[0]):
            numpyro.sample("y", dist.Normal(jax.vmap(line)(X), 0.5), obs=y)

    y = 1 + 2 * X[:, 0]
    found = estimax.fit(network, MLE(), {"X": X, "y": y}, progress_bar=False).predict({"X": X[:3]})
    assert np.all(np.abs(found.mean - y[:3]) < 4 * 0.5 / np.sqrt(4000))
    assert np.all(np.abs(found.variance - 0.25) < 4 * 0.25 * np.sqrt(2 / 4000))
    assert found.sample(7)["y"].shape == (7, 3)
