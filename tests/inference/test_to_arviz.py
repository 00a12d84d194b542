"""ArviZ's container: groups, names of dimensions, and ArviZ's own functions on it (0.x and 1.x)."""

import warnings

import arviz as az
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

from estimax import fit, models
from estimax.estimators import ELBO

mpl.use("Agg")
OLD = int(az.__version__.split(".")[0]) < 1
GROUPS = {
    "posterior",
    "posterior_predictive",
    "prior",
    "prior_predictive",
    "log_likelihood",
    "sample_stats",
    "observed_data",
    "constant_data",
}


def groups(container):
    return set(container.groups()) if OLD else {g.strip("/") for g in container.groups} - {""}


def dataset(container, group):
    return container[group] if OLD else container[group].to_dataset()


@pytest.fixture(scope="module")
def schools(default_fit):
    return default_fit("eight_schools", "VIS").to_arviz(1000)


def test_container_is_the_installed_one(schools):
    assert type(schools).__name__ == ("InferenceData" if OLD else "DataTree")


def test_groups_and_variables(schools):
    assert groups(schools) == GROUPS
    assert set(dataset(schools, "posterior").data_vars) == {"mu", "tau", "theta_base", "theta"}
    assert set(dataset(schools, "prior").data_vars) == {"mu", "tau", "theta_base", "theta"}
    for group in ("posterior_predictive", "prior_predictive", "log_likelihood", "observed_data"):
        assert set(dataset(schools, group).data_vars) == {"y"}
    assert set(dataset(schools, "constant_data").data_vars) == {"sigma"}
    assert set(dataset(schools, "sample_stats").data_vars) == {"log_weight"}


def test_dimensions_are_named_after_plates(schools):
    posterior = dataset(schools, "posterior")
    assert posterior["mu"].dims == ("chain", "draw")
    assert posterior["theta"].dims == posterior["theta_base"].dims == ("chain", "draw", "school")
    assert posterior.sizes["draw"] == 1000
    assert dataset(schools, "log_likelihood")["y"].dims == ("chain", "draw", "school")
    assert dataset(schools, "observed_data")["y"].dims == ("school",)
    assert dataset(schools, "constant_data")["sigma"].dims == ("school",)


def test_numbers(schools, default_fit):
    """Pointwise log-likelihood by SciPy at the posterior draws; observed data; predictions around theta."""
    data = models.eight_schools.data()
    theta = dataset(schools, "posterior")["theta"].values[0].astype(float)
    expected = stats.norm.logpdf(data["y"], theta, data["sigma"])
    np.testing.assert_allclose(dataset(schools, "log_likelihood")["y"].values[0], expected, rtol=1e-4)
    np.testing.assert_allclose(dataset(schools, "observed_data")["y"], data["y"])
    np.testing.assert_allclose(dataset(schools, "constant_data")["sigma"], data["sigma"])
    noise = (dataset(schools, "posterior_predictive")["y"].values[0] - theta) / data["sigma"]
    assert abs(noise.mean()) < 4 / np.sqrt(8000)
    assert abs(noise.std() - 1) < 4 / np.sqrt(16_000)
    prior = dataset(schools, "prior")
    assert abs(float(prior["mu"].mean())) < 4 * 5 / np.sqrt(500)
    np.testing.assert_allclose(
        dataset(schools, "posterior")["mu"].values[0],
        default_fit("eight_schools", "VIS").sample(1000, resample="psis")["mu"],
    )


def test_summary(schools):
    table = az.summary(schools)
    mean, sd = models.eight_schools.posterior_moments()["mu"]
    assert float(table.loc["mu", "mean"]) == pytest.approx(mean, abs=0.2 * sd)
    assert "theta[0]" in table.index


def test_loo(schools):
    """Against PSIS-LOO of ArviZ's reference draws of the same model."""
    reference = az.load_arviz_data("non_centered_eight")
    name = "obs" if OLD else next(iter(dataset(reference, "log_likelihood").data_vars))
    ours, theirs = az.loo(schools), az.loo(reference, var_name=name)
    value = (ours.elpd_loo, theirs.elpd_loo) if OLD else (ours.elpd, theirs.elpd)
    assert value[0] == pytest.approx(value[1], abs=0.5)


def test_plots(schools):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        az.plot_forest(schools)
        if OLD:
            az.plot_ppc(schools, num_pp_samples=20)
        else:
            az.plot_ppc_dist(schools, num_samples=20)


def test_netcdf_round_trip(schools, tmp_path):
    path = str(tmp_path / "schools.nc")
    if OLD:
        schools.to_netcdf(path)
        again = az.from_netcdf(path)
    else:
        import xarray as xr

        schools.to_netcdf(path, engine="h5netcdf")
        again = xr.open_datatree(path, engine="h5netcdf")
    np.testing.assert_array_equal(dataset(again, "posterior")["theta"], dataset(schools, "posterior")["theta"])
    assert dataset(again, "posterior").attrs["inference_library"] == "estimax"


@pytest.mark.long
def test_log_weight_is_that_of_each_draw(default_fit):
    result = default_fit("linear_gaussian", "ELBO")
    plain = result.to_arviz(100, seed=5, resample=None)
    np.testing.assert_array_equal(dataset(plain, "posterior")["z"].values[0], result.sample(100, seed=5)["z"])
    np.testing.assert_array_equal(
        dataset(plain, "sample_stats")["log_weight"].values[0], result.log_weights(100, seed=5)
    )
    assert dataset(plain, "posterior")["z"].dims == ("chain", "draw", "z_dim_0")


@pytest.mark.long
def test_local_latents(default_fit):
    container = default_fit("linear_gaussian_theta", "ELBO").to_arviz(200)
    assert dataset(container, "posterior")["z"].dims == ("chain", "draw", "data")
    assert dataset(container, "sample_stats")["log_weight"].dims == ("chain", "draw", "data")
    assert dataset(container, "log_likelihood")["x"].shape == (1, 200, 50)


def guided(model, data, guide):
    return fit(model, ELBO(2), data, guide=guide, num_steps=2, progress_bar=False)


def mean_guide(**data):
    numpyro.sample("mu", dist.Normal(numpyro.param("m", 0.0), 1.0))


@pytest.mark.long
def test_improper_prior_has_no_prior_groups():
    def model(y):
        mu = numpyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        with numpyro.plate("n", 3):
            numpyro.sample("y", dist.Normal(mu, 1), obs=y)

    result = guided(model, {"y": np.arange(3.0)}, mean_guide)
    with pytest.warns(UserWarning, match="no prior group.*improper"):
        container = result.to_arviz(50)
    assert groups(container) == GROUPS - {"prior", "prior_predictive", "constant_data"}
    with pytest.warns(UserWarning, match="no prior group"):
        az.summary(result.to_arviz(50))


@pytest.mark.long
def test_factor_is_no_observed_variable():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        numpyro.factor("penalty", -(mu**2))
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)

    container = guided(model, {"y": 1.0}, mean_guide).to_arviz(50)
    assert set(dataset(container, "observed_data").data_vars) == {"y"}
    assert set(dataset(container, "log_likelihood").data_vars) == {"y"}


@pytest.mark.long
def test_data_called_like_a_plate():
    """An index array `school` beside a plate "school": a coordinate and a variable of one name are no conflict."""

    def model(school, y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        with numpyro.plate("school", 2):
            effect = numpyro.deterministic("effect", mu * jnp.ones(2))
        with numpyro.plate("pupil", 6):
            numpyro.sample("y", dist.Normal(effect[school], 1), obs=y)

    data = {"school": np.array([0, 0, 1, 1, 1, 0]), "y": np.arange(6.0)}
    container = guided(model, data, mean_guide).to_arviz(50)
    assert dataset(container, "posterior")["effect"].dims == ("chain", "draw", "school")
    np.testing.assert_array_equal(dataset(container, "constant_data")["school_data"], data["school"])


@pytest.mark.long
def test_subsampled_data_are_shown_whole():
    def model(y, batch_size):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        with numpyro.plate("n", len(y), subsample_size=batch_size):
            numpyro.sample("y", dist.Normal(mu, 1), obs=numpyro.subsample(y, event_dim=0))

    container = guided(model, {"y": np.arange(10.0), "batch_size": 3}, mean_guide).to_arviz(20)
    np.testing.assert_array_equal(dataset(container, "observed_data")["y"], np.arange(10.0))
    assert dataset(container, "log_likelihood")["y"].shape == (1, 20, 10)
    assert dataset(container, "posterior_predictive")["y"].shape == (1, 20, 10)


@pytest.mark.long
def test_nested_data_and_two_plates():
    def model(inputs):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        with numpyro.plate("row", 2, dim=-2), numpyro.plate("column", 3, dim=-1):
            numpyro.sample("y", dist.Normal(mu + inputs["x"], 1), obs=inputs["y"])

    inputs = {"x": np.zeros((2, 3)), "y": np.arange(6.0).reshape(2, 3)}
    container = guided(model, {"inputs": inputs}, mean_guide).to_arviz(20)
    assert dataset(container, "log_likelihood")["y"].dims == ("chain", "draw", "row", "column")
    assert set(dataset(container, "constant_data").data_vars) == {"inputs.x"}
    assert dataset(container, "constant_data")["inputs.x"].dims == ("row", "column")


def test_model_without_latents():
    def model(y):
        mu = numpyro.param("mu", 0.0)
        with numpyro.plate("n", 3):
            numpyro.sample("y", dist.Normal(mu, 1), obs=y)

    def guide(y):
        pass

    container = guided(model, {"y": np.arange(3.0)}, guide).to_arviz(20)
    np.testing.assert_array_equal(dataset(container, "observed_data")["y"], np.arange(3.0))
