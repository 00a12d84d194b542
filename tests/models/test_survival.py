"""Against scipy, quadrature and lifelines."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpyro import handlers
from scipy import integrate, stats

from estimax.models import survival

pytestmark = pytest.mark.usefixtures("x64_module")

TIMES = np.array([1e-8, 0.01, 0.4, 1.0, 3.0, 40.0])


def pgw(kappa, vertical=0.8):
    return survival.PowerGeneralizedWeibull(1.7, 1.4, kappa, vertical)


def textbook_hazard(t, kappa, scale=1.7, shape=1.4, vertical=0.8):
    """H(t) as Burke, Jones and Noufaily print it."""
    z = (t / scale) ** shape
    return vertical * (kappa + 1.0) / kappa * ((1.0 + z / (kappa + 1.0)) ** kappa - 1.0)


def test_weibull_and_loglogistic_equal_scipy():
    weibull, fisk = stats.weibull_min(1.4, scale=1.7), stats.fisk(1.4, scale=1.7)
    for ours, peer in ((survival.Weibull(1.7, 1.4), weibull), (survival.LogLogistic(1.7, 1.4), fisk)):
        np.testing.assert_allclose(ours.log_prob(TIMES), peer.logpdf(TIMES), rtol=1e-10)
        np.testing.assert_allclose(ours.log_survival(TIMES), peer.logsf(TIMES), rtol=1e-9, atol=1e-16)
        np.testing.assert_allclose(ours.cdf(TIMES), peer.cdf(TIMES), rtol=1e-10)
        np.testing.assert_allclose(ours.icdf(np.array([0.01, 0.5, 0.99])), peer.ppf([0.01, 0.5, 0.99]), rtol=1e-10)


@pytest.mark.parametrize("kappa", [-0.9, -0.3, 1e-3, 0.5, 2.0, 7.0])
def test_power_generalized_weibull_equals_the_paper(kappa):
    times = TIMES[1:-1]
    np.testing.assert_allclose(pgw(kappa).cumulative_hazard(times), textbook_hazard(times, kappa), rtol=1e-9)
    slope = jax.vmap(jax.grad(lambda t: textbook_hazard(t, kappa)))(times)
    np.testing.assert_allclose(pgw(kappa).log_hazard(times), np.log(slope), rtol=1e-9, atol=1e-12)


def test_members_of_the_family():
    vertical = {"vertical": 0.8}
    np.testing.assert_allclose(
        pgw(1.0).log_prob(TIMES), survival.Weibull(1.7, 1.4, **vertical).log_prob(TIMES), rtol=1e-12
    )
    np.testing.assert_allclose(
        pgw(0.0).log_prob(TIMES), survival.LogLogistic(1.7, 1.4, **vertical).log_prob(TIMES), rtol=1e-12
    )
    gompertz = survival.PowerGeneralizedWeibull(1.7, 1.0, 1e9, 0.8)  # H = vertical (exp(t / scale) - 1) in the limit
    times = np.array([0.01, 0.4, 1.0, 3.0])
    np.testing.assert_allclose(gompertz.log_prob(times), stats.gompertz(0.8, scale=1.7).logpdf(times), rtol=1e-6)


@pytest.mark.parametrize("kappa", [-0.5, 0.0, 0.6, 1.0, 3.0])
def test_density_integrates_to_the_share_that_fails(kappa):
    density = jax.jit(lambda u: jnp.exp(pgw(kappa).log_prob(jnp.exp(u)) + u))
    total, _ = integrate.quad(lambda u: float(density(u)), -25.0, 60.0, limit=400)
    never = np.exp(-0.8 * (kappa + 1.0) / -kappa) if kappa < 0.0 else 0.0
    np.testing.assert_allclose(total, 1.0 - never, rtol=1e-7)


@pytest.mark.parametrize("kappa", [-0.5, 0.0, 0.3, 2.5])
def test_draws(kappa):
    draws = np.asarray(jax.jit(lambda key: pgw(kappa).sample(key, (4000,)))(jax.random.key(0)))
    never = np.isinf(draws)
    if kappa < 0.0:  # those who never fail: binomial, in standard errors
        share = np.exp(-0.8 * (kappa + 1.0) / -kappa)
        assert abs(never.mean() - share) < 4.0 * np.sqrt(share * (1.0 - share) / 4000)
    else:
        assert not never.any()
    failed = np.asarray(pgw(kappa).cdf(draws[~never])) / (1.0 - (share if kappa < 0.0 else 0.0))
    assert stats.kstest(failed, "uniform").pvalue > 1e-3


def log_prob(log_scale, shape, kappa, vertical, time):
    return survival.PowerGeneralizedWeibull(jnp.exp(log_scale), shape, kappa, vertical).log_prob(time)


SLOPES = jax.jit(jax.value_and_grad(log_prob, argnums=(0, 1, 2, 3)))


@given(
    st.floats(-300.0, 300.0), st.floats(0.05, 20.0), st.floats(-0.99, 50.0) | st.just(0.0) | st.floats(-1e-12, 1e-12)
)
@settings(max_examples=60, deadline=None)
def test_slopes_are_finite_wherever_the_density_is(log_time, shape, kappa):
    """From 1e-130 to 1e130 times the scale, through kappa = 0."""
    with jax.enable_x64(True):
        value, slopes = SLOPES(0.0, shape, kappa, 1.0, np.exp(log_time))
        assert not np.isnan(value)
        if value > -1e200:
            assert np.isfinite(slopes).all()


def test_slope_through_kappa_zero_is_the_slope_of_the_formula():
    def ours(kappa):
        return pgw(kappa).cumulative_hazard(2.0)

    numeric = (textbook_hazard(2.0, 1e-4) - textbook_hazard(2.0, -1e-4)) / 2e-4
    np.testing.assert_allclose(jax.grad(ours)(0.0), numeric, rtol=1e-7)


def test_small_times_in_single_precision():
    with jax.enable_x64(False):
        for family in (survival.Weibull, survival.LogLogistic):
            value, slope = jax.value_and_grad(lambda k, f=family: f(1e3, k).log_prob(1.2e-38))(0.5)
            assert np.isfinite([value, slope]).all()
            slope = jax.grad(lambda k, f=family: f(1.0, k).log_prob(1e-30))(0.5)
            np.testing.assert_allclose(slope, 2.0 + np.log(1e-30), rtol=1e-5)


def test_right_censoring_is_the_survival_function():
    base = survival.Weibull(1.7, 1.4)
    event = np.array([1, 0, 1, 0, 0, 1])
    peer = stats.weibull_min(1.4, scale=1.7)
    ours = survival.RightCensored(base, event).log_prob(TIMES)
    np.testing.assert_allclose(ours, np.where(event == 1, peer.logpdf(TIMES), peer.logsf(TIMES)), rtol=1e-9)
    # NumPyro's wrapper says the same where 1 - F has digits
    numpyro_peer = dist.RightCensoredDistribution(dist.Weibull(1.7, 1.4), censored=event == 0)
    np.testing.assert_allclose(ours[1:5], numpyro_peer.log_prob(TIMES)[1:5], rtol=1e-6)
    assert survival.RightCensored(base, event).sample(jax.random.key(0), (3,)).shape == (3, 6)
    with pytest.raises(TypeError, match="log_survival, got Gamma"):
        survival.RightCensored(dist.Gamma(1.0, 1.0), event)


def heart():
    pytest.importorskip("statsmodels")
    return survival.data()


def test_data():
    data = heart()
    assert data["x"].shape == (69, 1)
    assert data["event"].sum() == 45
    assert (data["time"] > 0.0).all()


@pytest.mark.filterwarnings("ignore")  # of lifelines' use of pandas
@pytest.mark.parametrize("data_set", ["heart", "rossi"])
@pytest.mark.parametrize("family", ["Weibull", "LogLogistic"])
def test_aft_equals_lifelines(family, data_set, pointwise, steepness):
    """At lifelines' estimates: its log-likelihood, and no slope left."""
    lifelines = pytest.importorskip("lifelines")
    import pandas as pd

    if data_set == "heart":
        data = heart()
    else:
        frame = pytest.importorskip("lifelines.datasets").load_rossi()
        x = frame.drop(columns=["week", "arrest"]).to_numpy(float)
        data = {"x": x, "time": frame["week"].to_numpy(float), "event": frame["arrest"].to_numpy()}
    frame = pd.DataFrame(data["x"], columns=[f"x{j}" for j in range(data["x"].shape[1])])
    frame["time"], frame["event"] = data["time"], data["event"]
    # its own tolerance leaves it up to a few hundredths of a standard error from the maximum
    options = {"ftol": 1e-16, "maxiter": 1000}
    fitter = getattr(lifelines, f"{family}AFTFitter")().fit(frame, "time", "event", fit_options=options)
    scale_name, shape_name = ("lambda_", "rho_") if family == "Weibull" else ("alpha_", "beta_")
    names = [*frame.columns[:-2]]
    params = {
        "intercept": fitter.params_[scale_name, "Intercept"],
        "b": fitter.params_[scale_name][names].to_numpy(),
        "shape": np.exp(fitter.params_[shape_name, "Intercept"]),
    }
    stderr = {
        "intercept": fitter.standard_errors_[scale_name, "Intercept"],
        "b": fitter.standard_errors_[scale_name][names].to_numpy(),
        "shape": params["shape"] * fitter.standard_errors_[shape_name, "Intercept"],
    }
    model = {"Weibull": survival.weibull_aft, "LogLogistic": survival.loglogistic_aft}[family]
    np.testing.assert_allclose(pointwise(model, data, params).sum(), fitter.log_likelihood_, rtol=1e-9)
    assert steepness(model, data, params, stderr) < 1e-5


def test_power_family_contains_both_on_the_data(pointwise):
    data = heart()
    common = {"intercept": 8.0, "b": np.array([-0.05]), "shape": 0.6}
    four = {**common, "log_vertical": 0.0}
    for kappa_plus_1, model in ((2.0, survival.weibull_aft), (1.0, survival.loglogistic_aft)):
        ours = pointwise(survival.power_generalized_weibull_aft, data, {**four, "kappa_plus_1": kappa_plus_1})
        np.testing.assert_allclose(ours, pointwise(model, data, common), rtol=1e-11)


def test_proportional_hazards(pointwise):
    """Weibull: as AFT with b_ph = -shape b_aft. All families: the hazards of two patients keep their ratio."""
    data = heart()
    aft = {"intercept": 8.0, "b": np.array([-0.05]), "shape": 0.6}
    ph = {"log_scale": 8.0 - 0.05 * data["x"].mean(), "b": np.array([0.03]), "shape": 0.6}
    np.testing.assert_allclose(
        pointwise(survival.weibull_ph, data, ph), pointwise(survival.weibull_aft, data, aft), rtol=1e-10
    )
    extra = {**ph, "kappa_plus_1": 1.7, "log_vertical": 0.4}
    for model, params in (
        (survival.weibull_ph, ph),
        (survival.loglogistic_ph, ph),
        (survival.power_generalized_weibull_ph, extra),
    ):
        given = {name: jnp.asarray(value) for name, value in params.items()}
        trace = handlers.trace(handlers.seed(handlers.substitute(model, data=given), 0)).get_trace(
            x=np.array([[40.0], [60.0]])
        )
        difference = np.diff(trace["time"]["fn"].log_hazard(TIMES[:, None]), axis=1)
        np.testing.assert_allclose(difference, 0.03 * 20.0, rtol=1e-8)


def test_accelerated_failure_times():
    """All families: a covariate stretches time, so quantiles keep their ratio exp(x b)."""
    given = {"intercept": 1.0, "b": jnp.array([0.3]), "shape": 1.3, "kappa_plus_1": 1.7, "log_vertical": 0.4}
    for model in (survival.weibull_aft, survival.loglogistic_aft, survival.power_generalized_weibull_aft):
        trace = handlers.trace(handlers.seed(handlers.substitute(model, data=given), 0)).get_trace(
            x=np.array([[0.0], [2.0]])
        )
        quantiles = trace["time"]["fn"].icdf(np.array([0.1, 0.5, 0.9])[:, None])
        np.testing.assert_allclose(quantiles[:, 1] / quantiles[:, 0], np.exp(0.6), rtol=1e-10)
        assert trace["time"]["value"].shape == (2,)
