"""Where a fit starts: the mode and the curvature there, whatever the options; what is said when there is none."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from estimax import Start, find_start, fit, models
from estimax.estimators import ELBO, VIS

GAUSSIAN = models.linear_gaussian


@pytest.fixture(scope="module")
def exact():
    return GAUSSIAN.posterior(GAUSSIAN.data())


@pytest.mark.long
def test_laplace_start_of_a_gaussian_is_its_posterior(exact):
    start = find_start(GAUSSIAN.model, GAUSSIAN.data())
    mean, covariance = exact
    assert start.method == "laplace"
    assert start.curvature == "exact Hessian"
    assert start.num_agree == start.num_starts == 8
    assert start.gradient_norm < 1e-6
    np.testing.assert_allclose(start.loc, mean, atol=1e-8)
    np.testing.assert_allclose(start.scale @ start.scale.T, covariance, rtol=1e-8)
    assert start.elbo == pytest.approx(GAUSSIAN.log_evidence(GAUSSIAN.data()), abs=1e-6)
    assert "8 of 8 searches agree" in str(start)


@pytest.mark.long
def test_pathfinder_start(exact):
    pytest.importorskip("blackjax")
    start = find_start(GAUSSIAN.model, GAUSSIAN.data(), method="pathfinder")
    mean, covariance = exact
    assert start.method == "pathfinder"
    assert np.max(np.abs(start.loc - mean) / np.sqrt(np.diag(covariance))) < 0.5
    assert np.all(np.linalg.eigvalsh(start.scale @ start.scale.T) > 0)


def test_prior_start():
    start = find_start(GAUSSIAN.model, GAUSSIAN.data(), method="prior")
    assert start.method == "prior"
    assert np.max(np.abs(start.loc)) < 4 / np.sqrt(1000)  # of 1000 draws from N(0, 1)
    np.testing.assert_allclose(start.scale, 1, atol=0.1)


def test_given_values(exact):
    start = find_start(GAUSSIAN.model, GAUSSIAN.data(), method={"z": np.array([1.0, 2.0, 3.0])})
    assert start.method == "values"
    np.testing.assert_allclose(start.loc, [1, 2, 3])
    np.testing.assert_allclose(start.scale @ start.scale.T, exact[1], rtol=1e-8)


@pytest.mark.parametrize("method", [pytest.param("pathfinder", marks=pytest.mark.long), "prior", "values", "Start"])
def test_every_start_ends_at_the_posterior(method, exact):
    if method == "pathfinder":
        pytest.importorskip("blackjax")
    option = {
        "values": {"z": np.array([1.0, 2.0, 3.0])},
        "Start": find_start(GAUSSIAN.model, GAUSSIAN.data()),
    }.get(method, method)
    result = fit(GAUSSIAN.model, ELBO(), GAUSSIAN.data(), start=option, progress_bar=False, num_steps=1500)
    mean, covariance = exact
    draws = np.asarray(result.sample(20_000)["z"])
    assert np.max(np.abs(draws.mean(0) - mean) / np.sqrt(np.diag(covariance))) < 0.1
    np.testing.assert_allclose(draws.std(0), np.sqrt(np.diag(covariance)), rtol=0.1)
    if method == "Start":
        assert result.start.loc is option.loc


def test_start_of_one_fit_serves_another(default_fit):
    start = default_fit("linear_gaussian", "ELBO").start
    assert isinstance(start, Start)
    result = fit(GAUSSIAN.model, ELBO(4), GAUSSIAN.data(), start=start, num_steps=5, progress_bar=False)
    np.testing.assert_array_equal(result.start.loc, start.loc)


@jax.custom_vjp
def log_density(z):
    return -0.5 * jnp.sum(((z - 1) / jnp.array([1.0, 10.0])) ** 2)


def _forward(z):
    return log_density(z), z


def _backward(z, cotangent):
    return (-cotangent * (z - 1) / jnp.array([1.0, 100.0]),)


log_density.defvjp(_forward, _backward)


def first_derivatives_only(scale=1.0):
    """As an ODE solver's adjoint: no second derivative. N(1, diag(1, 100))."""
    z = numpyro.sample("z", dist.ImproperUniform(dist.constraints.real_vector, (), (2,)))
    numpyro.factor("density", log_density(z))


def test_model_without_second_derivatives_takes_the_inverse_hessian_of_lbfgs():
    start = find_start(first_derivatives_only, {})
    assert start.curvature == "L-BFGS inverse Hessian"
    assert any("no exact Hessian" in note for note in start.notes)
    np.testing.assert_allclose(start.loc, 1, atol=1e-2)
    np.testing.assert_allclose(np.sqrt(np.diag(start.scale @ start.scale.T)), [1, 10], rtol=0.5)


def test_given_values_of_a_model_without_second_derivatives():
    start = find_start(first_derivatives_only, {}, method={"z": np.ones(2)})
    np.testing.assert_allclose(start.loc, 1)
    assert np.isfinite(start.scale).all()


@pytest.mark.long
def test_two_modes_are_noted():
    def model(y):
        w = numpyro.sample("w", dist.Normal(0.3, 3))
        numpyro.sample("y", dist.Normal(w**2, 0.5), obs=y)

    result = fit(model, ELBO(), {"y": 4.0}, progress_bar=False, num_steps=200)
    assert result.start.num_agree < result.start.num_starts
    assert any("several modes" in note for note in result.start.notes)
    assert "several modes" in str(result.diagnose(1000))


def centred(sigma, y):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", 8):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


@pytest.mark.long
def test_centred_schools_have_no_joint_mode_and_are_not_called_good():
    """The density grows without bound as tau → 0. The fit must survive that and not praise itself wrongly."""
    truth = models.eight_schools.posterior_moments()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = fit(centred, ELBO(), models.eight_schools.data(), progress_bar=False)
    finite = np.isfinite(result.losses)
    # a run that does leave the finite numbers stops there, says so, and keeps what it had
    assert finite.all() or (result.status == "non-finite" and finite[:-1].all())
    draws = {k: np.asarray(v) for k, v in result.sample(10_000).items()}
    assert all(np.isfinite(v).all() for v in draws.values())
    wrong = max(np.max(np.abs(draws[k].mean(0) - truth[k][0]) / truth[k][1]) for k in ("mu", "tau", "theta"))
    if wrong > 0.2:
        assert result.log_evidence(10_000).verdict != "good"


@pytest.mark.slow
def test_funnel_is_not_called_good():
    def funnel():
        v = numpyro.sample("v", dist.Normal(0, 3))
        x = numpyro.sample("x", dist.Normal(0, jnp.exp(v / 2)).expand([9]).to_event(1))
        numpyro.factor("nothing", 0.0 * x.sum())

    result = fit(funnel, ELBO(), {}, progress_bar=False)
    v = np.asarray(result.sample(10_000)["v"])
    assert np.isfinite(v).all()
    if abs(v.mean()) > 0.6 or abs(v.std() / 3 - 1) > 0.2:
        assert result.log_evidence(10_000).verdict != "good"


def independent(y, sd):
    """y_i ~ N(z_i, sd_i), z ~ N(0, 1): the posterior has diagonal covariance."""
    z = numpyro.sample("z", dist.Normal(0, 1).expand([len(y)]).to_event(1))
    numpyro.sample("y", dist.Normal(z, sd).to_event(1), obs=y)


@pytest.mark.parametrize("size", [pytest.param(n, marks=pytest.mark.slow) for n in (150, 1200)])
def test_many_dimensions_take_a_mean_field_guide(size):
    rng = np.random.default_rng(0)
    sd = np.exp(rng.normal(size=size))
    y = rng.normal(size=size) * np.sqrt(1 + sd**2)
    result = fit(independent, ELBO(4), {"y": y, "sd": sd}, progress_bar=False, num_steps=300)
    assert set(result.params) == {"auto_loc", "auto_scale"}
    exact_sd = 1 / np.sqrt(1 + 1 / sd**2)
    draws = np.asarray(result.sample(2000)["z"])
    assert np.max(np.abs(draws.mean(0) - exact_sd**2 * y / sd**2) / exact_sd) < 0.15  # 4.5 s.e. are 0.1
    np.testing.assert_allclose(draws.std(0) / exact_sd, 1, atol=0.15)
    if size > 1000:
        assert result.start.curvature == "diagonal of the Hessian, estimated"
        np.testing.assert_allclose(result.start.scale, exact_sd, rtol=1e-6)
    else:
        assert result.start.curvature == "exact Hessian"


@pytest.mark.slow
def test_given_values_in_more_dimensions_than_a_hessian_has_room_for():
    size = 1500
    data = {"y": np.zeros(size), "sd": np.ones(size)}
    start = find_start(independent, data, method={"z": np.zeros(size)})
    assert start.scale.shape == (size,)


@pytest.mark.long
def test_search_is_in_double_precision():
    """Raw units: a slope of 1e-5 beside an intercept of 1e4, correlated at −0.999."""

    def model(x, y):
        a = numpyro.sample("a", dist.Normal(0, 1e6))
        b = numpyro.sample("b", dist.Normal(0, 1e2))
        numpyro.sample("y", dist.Normal(a + b * x, 1e-2).to_event(1), obs=y)

    x = np.linspace(1e6, 1.1e6, 50)
    y = 1e4 + 1e-5 * x + np.random.default_rng(0).normal(0, 1e-2, 50)
    x, y = x.astype(np.float32).astype(float), y.astype(np.float32).astype(float)
    start = find_start(model, {"x": x, "y": y})
    X = np.column_stack([np.ones(50), x])
    precision = X.T @ X / 1e-4 + np.diag([1e-12, 1e-4])
    np.testing.assert_allclose(start.loc, np.linalg.solve(precision, X.T @ y / 1e-4), rtol=1e-4)
    sd = np.sqrt(np.diag(np.linalg.inv(precision)))
    np.testing.assert_allclose(np.sqrt(np.diag(start.scale @ start.scale.T)), sd, rtol=1e-3)


@pytest.mark.long
def test_refining_improves_on_the_start(default_fit):
    result = default_fit("eight_schools", "ELBO")
    before, after = result.at_start().log_evidence(4000), result.log_evidence(4000)
    assert after.elbo > before.elbo
    assert "refining the start changed the ELBO by +" in str(result.diagnose(4000))


@pytest.mark.long
def test_start_is_reproducible_and_changes_with_the_data():
    data = models.eight_schools.data()
    model = models.eight_schools.model
    first, again = find_start(model, data, seed=1), find_start(model, data, seed=1)
    np.testing.assert_array_equal(first.loc, again.loc)
    other = find_start(model, {**data, "y": data["y"] + 5}, seed=1)
    assert not np.allclose(first.loc, other.loc)


@pytest.mark.slow
def test_vis_from_the_prior_start():
    """A start far too wide: VIS still covers."""
    data = models.eight_schools.data()
    result = fit(models.eight_schools.model, VIS(), data, start="prior", progress_bar=False, num_steps=1500)
    evidence = result.log_evidence(10_000)
    assert abs(evidence.value - models.eight_schools.log_evidence()) < 4 * evidence.stderr + 0.01
