"""One file that another process reads: what was fitted, and everything to go on."""

import shutil
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import autoguide

import estimax
from estimax import fit, load, models
from estimax.estimators import (
    CIWAE,
    ELBO,
    IWAE,
    RWS,
    VIS,
    ForwardChi2,
    Grouped,
    IWBound,
    LogWeight,
    Mixture,
    PowerMean,
    Renyi,
)
from estimax.inference.storage import decode, encode

ENTRY = models.linear_gaussian


def model(y, size=2, x=None):
    mu = numpyro.sample("mu", dist.Normal(0, 2).expand([size]).to_event(1))
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.Normal(mu.sum(), 1.0), obs=y)


def guide(y, size=2, x=None):
    numpyro.sample("mu", dist.Normal(numpyro.param("m", jnp.zeros(size)), 1.0).to_event(1))


DATA = {"y": np.array([1.0, 2.0]), "size": 3, "x": None}


def equal(first, second):
    assert first.params.keys() == second.params.keys()
    for name in first.params:
        for a, b in zip(jax.tree.leaves(first.params[name]), jax.tree.leaves(second.params[name]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(first.losses, second.losses)
    assert first.metrics.keys() == second.metrics.keys()
    for name, value in first.metrics.items():
        np.testing.assert_array_equal(value, second.metrics[name])
    for name in ("num_steps", "seconds", "steps_per_second", "status", "message"):
        assert getattr(first, name) == getattr(second, name)
    np.testing.assert_allclose(first.log_weights(20), second.log_weights(20), rtol=1e-5, atol=1e-5)
    for name, value in first.sample(20).items():
        np.testing.assert_allclose(value, second.sample(20)[name], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        first.at_start().log_weights(20), second.at_start().log_weights(20), rtol=1e-5, atol=1e-5
    )


@pytest.mark.long
def test_default_guide(default_fit, tmp_path):
    result = default_fit("linear_gaussian", "ELBO")
    result.save(tmp_path / "fit.nc", num_samples=50)
    again = load(tmp_path / "fit.nc", ENTRY.model)
    equal(result, again)
    assert again.estimator == result.estimator
    assert str(again.start) == str(result.start)
    np.testing.assert_array_equal(again.start.scale, result.start.scale)
    more = again.resume(20, progress_bar=False)
    np.testing.assert_allclose(more.losses[-20:], result.resume(20, progress_bar=False).losses[-20:], rtol=1e-5)
    assert more.num_steps == result.num_steps + 20


@pytest.mark.long
def test_local_latents_and_theta(default_fit, tmp_path):
    result = default_fit("linear_gaussian_theta", "ELBO")
    result.save(tmp_path / "fit.nc", num_samples=20)
    equal(result, load(tmp_path / "fit.nc", models.linear_gaussian_theta.model))


@pytest.mark.parametrize(
    "cls", [autoguide.AutoNormal, pytest.param(autoguide.AutoMultivariateNormal, marks=pytest.mark.slow)]
)
def test_automatic_guide(cls, tmp_path):
    result = fit(ENTRY.model, IWAE(4), ENTRY.data(), guide=cls, num_steps=20, progress_bar=False)
    result.save(tmp_path / "fit.nc", num_samples=20)
    equal(result, load(tmp_path / "fit.nc", ENTRY.model))


@pytest.mark.slow
def test_automatic_guide_with_arguments_of_its_own(tmp_path):
    """The file holds the class only: a guide of other shape is not mistaken for the fitted one."""
    own = autoguide.AutoLowRankMultivariateNormal(ENTRY.model, rank=1)
    result = fit(ENTRY.model, ELBO(2), ENTRY.data(), guide=own, num_steps=5, progress_bar=False)
    result.save(tmp_path / "fit.nc", num_samples=20)
    with pytest.raises(ValueError, match="shape.*guide="):
        load(tmp_path / "fit.nc", ENTRY.model)
    again = load(tmp_path / "fit.nc", ENTRY.model, guide=autoguide.AutoLowRankMultivariateNormal(ENTRY.model, rank=1))
    equal(result, again)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    result = fit(model, VIS(4), DATA, guide=guide, num_steps=20, progress_bar=False)
    path = tmp_path_factory.mktemp("saved") / "fit.nc"
    result.save(path, num_samples=20)
    return result, path


@pytest.fixture
def saved(written, tmp_path):
    """A fit, and a file of it of the test's own."""
    result, path = written
    return result, shutil.copy(path, tmp_path / "fit.nc")


def test_guide_function_and_static_data(saved):
    result, path = saved
    with pytest.raises(ValueError, match="guide function of your own: give guide="):
        load(path, model)
    again = load(path, model, guide=guide)
    equal(result, again)
    assert again.data["size"] == 3
    assert again.data["x"] is None
    assert again.start is None


def test_restarts_keep_their_metrics(tmp_path):
    result = fit(model, IWAE(4), DATA, guide=guide, num_steps=20, num_restarts=3, progress_bar=False)
    result.save(tmp_path / "fit.nc", num_samples=20)
    again = load(tmp_path / "fit.nc", model, guide=guide)
    assert again.metrics["loss"].shape == (3, 20)
    equal(result, again)


@pytest.mark.slow
def test_networks(tmp_path):
    pytest.importorskip("sklearn")
    entry = models.vae_digits
    data = {"x": entry.data()["x"][:40], "batch_size": 20}
    result = fit(entry.model, IWAE(2), data, guide=entry.guide, num_steps=10, progress_bar=False)
    result.save(tmp_path / "fit.nc", num_samples=5)
    equal(result, load(tmp_path / "fit.nc", entry.model, guide=entry.guide))


@pytest.mark.long
def test_nested_and_boolean_data(tmp_path):
    def nested(inputs, keep):
        mu = numpyro.sample("mu", dist.Normal(0, 2))
        with numpyro.plate("n", inputs["size"]), numpyro.handlers.mask(mask=keep):
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=inputs["y"])

    def nested_guide(inputs, keep):
        numpyro.sample("mu", dist.Normal(numpyro.param("m", 0.0), 1.0))

    data = {"inputs": {"y": np.arange(3.0), "size": 3}, "keep": np.array([True, False, True])}
    result = fit(nested, ELBO(2), data, guide=nested_guide, num_steps=5, progress_bar=False)
    result.save(tmp_path / "fit.nc", num_samples=20)
    again = load(tmp_path / "fit.nc", nested, guide=nested_guide)
    equal(result, again)
    assert again.data["inputs"]["size"] == 3
    assert again.data["keep"].dtype == bool


def test_model_without_latents(tmp_path):
    def only_param(y):
        numpyro.sample("y", dist.Normal(numpyro.param("mu", 0.0), 1).expand([2]).to_event(1), obs=y)

    result = fit(only_param, ELBO(1), {"y": np.ones(2)}, num_steps=5, progress_bar=False)
    result.save(tmp_path / "fit.nc", num_samples=20)
    again = load(tmp_path / "fit.nc", only_param)
    assert again.params["mu"] == pytest.approx(float(result.params["mu"]))


@pytest.mark.parametrize(
    "estimator",
    [
        ELBO(3),
        CIWAE(8, beta=0.25),
        Renyi(4, alpha=0.3, gradient="reparam"),
        RWS(2, vectorize_particles=False),
        LogWeight(theta=IWBound(), phi=ForwardChi2(), gradient="dreg", num_particles=64),
        LogWeight(phi=Mixture(((0.5, PowerMean(2.0)), (0.5, Grouped(IWBound(), 2)))), num_particles=4),
    ],
)
def test_estimators_in_text_and_back(estimator):
    import json

    assert decode(json.loads(json.dumps(encode(estimator)))) == estimator


@dataclass(frozen=True)
class Mine(ELBO):
    """A user's own."""


def test_estimator_from_outside(tmp_path):
    result = fit(model, Mine(4), DATA, guide=guide, num_steps=5, progress_bar=False)
    result.save(tmp_path / "fit.nc", num_samples=20)
    with pytest.raises(ValueError, match=r"Mine.*estimator="):
        load(tmp_path / "fit.nc", model, guide=guide)
    equal(result, load(tmp_path / "fit.nc", model, guide=guide, estimator=Mine(4)))


def test_file_is_a_file_of_arviz_too(saved):
    import arviz

    _, path = saved
    if int(arviz.__version__.split(".")[0]) < 1:
        posterior = arviz.from_netcdf(str(path))["posterior"]
    else:
        import xarray as xr

        posterior = xr.open_datatree(path, engine="h5netcdf")["posterior"]
    assert posterior["mu"].shape == (1, 20, 3)


def test_wrong_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file '.*none.nc'"):
        load(tmp_path / "none.nc", model)
    text = tmp_path / "text.nc"
    text.write_text("no netCDF")
    with pytest.raises(ValueError, match=r"text.nc' was not written by FitResult.save"):
        load(text, model)
    import xarray as xr

    other = tmp_path / "other.nc"
    xr.Dataset({"a": ("x", np.ones(2))}).to_netcdf(other, engine="h5netcdf")
    with pytest.raises(ValueError, match=r"other.nc' was not written by FitResult.save"):
        load(other, model)
    with pytest.raises(ValueError, match="was not written by"):
        load(tmp_path, model)


@pytest.mark.long
def test_wrong_model(default_fit, saved, tmp_path):
    _, path = saved

    def other_arguments(z):
        numpyro.sample("z", dist.Normal(numpyro.sample("a", dist.Normal(0, 1)), 1), obs=z)

    with pytest.raises(ValueError, match="which the model does not take"):
        load(path, other_arguments, guide=guide)

    def other_shape(x, A, scale):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(z, scale).to_event(1), obs=x)

    def other_name(x, A, scale):
        w = numpyro.sample("w", dist.Normal(jnp.zeros(A.shape[1]), 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(A @ w, scale).to_event(1), obs=x)

    default_fit("linear_gaussian", "ELBO").save(tmp_path / "default.nc", num_samples=20)
    for wrong in (other_shape, other_name):
        with pytest.raises(ValueError, match="not the same model"):
            load(tmp_path / "default.nc", wrong)


def test_folder_that_is_not_there(saved, tmp_path):
    result, _ = saved
    with pytest.raises(FileNotFoundError, match="folder .*nowhere.* does not exist"):
        result.save(tmp_path / "nowhere" / "fit.nc")


def test_overwriting_leaves_nothing_of_the_old(saved):
    result, path = saved
    shorter = fit(model, ELBO(2), DATA, guide=guide, num_steps=7, progress_bar=False)
    shorter.save(path, num_samples=10)
    again = estimax.load(path, model, guide=guide)
    assert again.losses.shape == (7,)
    assert "ess" not in again.metrics
