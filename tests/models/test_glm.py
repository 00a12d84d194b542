"""Likelihoods against statsmodels at its estimates, point by point, and against certified values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpyro import handlers
from scipy import stats

from estimax.models import glm

sm = pytest.importorskip("statsmodels.api")

pytestmark = pytest.mark.usefixtures("x64_module")


def split(values):
    """statsmodels puts the constant first here."""
    values = np.asarray(values)
    return {"intercept": values[0], "b": values[1:]}


def test_gaussian_equals_ols(pointwise, steepness):
    data = glm.gaussian_data()
    fit = sm.OLS(data["y"], sm.add_constant(data["x"])).fit()
    params = {**split(fit.params), "sigma": np.sqrt(fit.ssr / fit.nobs)}
    np.testing.assert_allclose(pointwise(glm.gaussian, data, params).sum(), fit.llf, rtol=1e-12)
    assert steepness(glm.gaussian, data, params, {**split(fit.bse), "sigma": params["sigma"]}) < 1e-7


def test_longley_at_the_certified_values(pointwise):
    """NIST StRD, "Longley": certified coefficients and residual sum of squares, on raw scale."""
    frame = sm.datasets.longley.load_pandas().data
    data = {
        "x": frame[["GNPDEFL", "GNP", "UNEMP", "ARMED", "POP", "YEAR"]].to_numpy(float),
        "y": frame["TOTEMP"].to_numpy(float),
    }
    b = [
        15.0618722713733,
        -0.0358191792925910,
        -2.02022980381683,
        -1.03322686717359,
        -0.0511041056535807,
        1829.15146461355,
    ]
    sigma2 = 836424.055505915 / 16
    params = {"intercept": -3482258.63459582, "b": b, "sigma": np.sqrt(sigma2)}
    expected = -8.0 * (np.log(2.0 * np.pi * sigma2) + 1.0)
    np.testing.assert_allclose(pointwise(glm.gaussian, data, params).sum(), expected, rtol=1e-10)


def test_logistic_equals_logit_and_greene(pointwise, steepness):
    data = glm.logistic_data()
    fit = sm.Logit(data["y"], sm.add_constant(data["x"])).fit(disp=0)
    params = split(fit.params)
    values = pointwise(glm.logistic, data, params)
    np.testing.assert_allclose(values, fit.model.loglikeobs(fit.params), rtol=1e-9)
    assert values.sum() == pytest.approx(-12.88963, abs=5e-6)  # Greene, "Econometric Analysis", table of the example
    assert steepness(glm.logistic, data, params, split(fit.bse)) < 1e-6


def test_binomial_counts_equal_statsmodels(pointwise, steepness):
    frame = sm.datasets.star98.load_pandas()
    counts = frame.endog.to_numpy(float)
    x = frame.exog.to_numpy(float)[:, :5]
    fit = sm.GLM(counts, sm.add_constant(x), family=sm.families.Binomial()).fit()
    data = {"x": x, "y": counts[:, 0], "trials": counts.sum(1)}
    np.testing.assert_allclose(pointwise(glm.logistic, data, split(fit.params)).sum(), fit.llf, rtol=1e-9)
    assert steepness(glm.logistic, data, split(fit.params), split(fit.bse)) < 1e-4


def test_poisson_equals_statsmodels(pointwise, steepness):
    data = glm.poisson_data()
    fit = sm.Poisson(data["y"], sm.add_constant(data["x"])).fit(method="newton", disp=0, maxiter=100)
    np.testing.assert_allclose(
        pointwise(glm.poisson, data, split(fit.params)), fit.model.loglikeobs(fit.params), rtol=1e-9
    )
    assert steepness(glm.poisson, data, split(fit.params), split(fit.bse)) < 1e-5


def test_exposure_and_offset_equal_statsmodels(pointwise, steepness):
    data = glm.poisson_data()
    exposure, offset = np.linspace(1.0, 4.0, 17), np.linspace(-0.2, 0.3, 17)
    x = data["x"][:, 2:3]
    fit = sm.Poisson(data["y"], sm.add_constant(x), exposure=exposure, offset=offset).fit(disp=0)
    given_ = {"x": x, "y": data["y"], "exposure": exposure, "offset": offset}
    np.testing.assert_allclose(pointwise(glm.poisson, given_, split(fit.params)).sum(), fit.llf, rtol=1e-10)
    assert steepness(glm.poisson, given_, split(fit.params), split(fit.bse)) < 1e-5
    gaussian = {"x": x, "y": data["y"].astype(float), "offset": offset}
    fit = sm.OLS(gaussian["y"] - offset, sm.add_constant(x)).fit()
    params = {**split(fit.params), "sigma": np.sqrt(fit.ssr / 17)}
    np.testing.assert_allclose(pointwise(glm.gaussian, gaussian, params).sum(), fit.llf, rtol=1e-12)


def test_negative_binomial_equals_statsmodels(pointwise, steepness):
    data = {key: value[:3000] for key, value in glm.negative_binomial_data().items()}
    fit = sm.NegativeBinomial(data["y"], sm.add_constant(data["x"])).fit(method="newton", disp=0, maxiter=100)
    params = {**split(fit.params[:-1]), "alpha": fit.params[-1]}
    values = pointwise(glm.negative_binomial, data, params)
    np.testing.assert_allclose(values, fit.model.loglikeobs(fit.params), rtol=1e-9, atol=1e-10)
    assert steepness(glm.negative_binomial, data, params, {**split(fit.bse[:-1]), "alpha": fit.bse[-1]}) < 1e-4


def test_ordinal_equals_statsmodels(pointwise, steepness):
    from statsmodels.miscmodels.ordinal_model import OrderedModel

    data = glm.ordinal_data()
    peer = OrderedModel(data["y"], data["x"], distr="logit")
    fit = peer.fit(method="bfgs", disp=0, maxiter=300, gtol=1e-7)
    cutpoints = peer.transform_threshold_params(fit.params)[1:-1]
    params = {"b": fit.params[:5], "cutpoints": cutpoints}
    values = pointwise(glm.ordinal, data, params)
    np.testing.assert_allclose(values, peer.loglikeobs(fit.params), rtol=1e-8)
    assert steepness(glm.ordinal, data, params, {"b": fit.bse[:5], "cutpoints": 0.1}) < 1e-3


@pytest.mark.parametrize("alpha", [1e-7, 1e-3, 0.5, 20.0])
@pytest.mark.parametrize("wide", [False, True])
def test_negative_binomial_density(alpha, wide):
    """In single precision too, where differences of log Gamma at 1/alpha = 1e7 would be off by several nats."""
    mean, y = np.array([0.02, 3.0, 60.0])[:, None], np.array([0, 1, 7, 150])
    expected = stats.nbinom.logpmf(y, 1.0 / alpha, 1.0 / (1.0 + alpha * mean))
    if alpha < 1e-6:
        expected = stats.poisson.logpmf(y, mean)  # off by (y - mean)^2 alpha / 2 < 2e-3
    with jax.enable_x64(wide):
        ours = glm.LogMeanNegativeBinomial(jnp.log(mean), alpha).log_prob(y)
    np.testing.assert_allclose(ours, expected, rtol=1e-8 if wide and alpha > 1e-6 else 3e-4, atol=2e-3)


def test_poisson_far_from_the_data_keeps_its_slope():
    def log_prob(log_rate):
        return glm.LogRatePoisson(log_rate).log_prob(3)

    value, slope = jax.value_and_grad(log_prob)(-2000.0)
    np.testing.assert_allclose([value, slope], [-6000.0 - np.log(6.0), 3.0], rtol=1e-12)


ODDS = jax.jit(glm.proportional_odds)
ODDS_SLOPES = jax.jit(jax.grad(lambda p, c: glm.proportional_odds(p, c).sum(), argnums=(0, 1)))


@given(hnp.array_shapes(min_dims=0, max_dims=3), st.integers(2, 9))
@settings(max_examples=25, deadline=None)
def test_shape_of_proportional_odds(shape, num_categories):
    log_p = jax.eval_shape(glm.proportional_odds, jnp.zeros(shape), jnp.zeros(num_categories - 1))
    assert log_p.shape == (*shape, num_categories)


@given(
    hnp.arrays(float, (2, 3), elements=st.floats(-300.0, 300.0)),
    hnp.arrays(float, 4, elements=st.floats(1e-6, 50.0)),
)
@settings(max_examples=60, deadline=None)
def test_proportional_odds_is_a_distribution(predictor, steps):
    """Summing to one, equal to the difference of distribution functions where that holds
    digits, and with finite slopes even where it does not."""
    with jax.enable_x64(True):
        cutpoints = np.cumsum(steps) - 20.0
        log_p = np.asarray(ODDS(predictor, cutpoints))
        assert np.isfinite(log_p).all()
        np.testing.assert_allclose(np.logaddexp.reduce(log_p, axis=-1), 0.0, atol=1e-9)
        cdf = stats.logistic.cdf(cutpoints - predictor[..., None])
        naive = np.diff(cdf, prepend=0.0, append=1.0)
        np.testing.assert_allclose(np.exp(log_p), naive, atol=1e-12)
        assert all(np.isfinite(slope).all() for slope in ODDS_SLOPES(predictor, cutpoints))


@pytest.mark.parametrize("unit", [1e-3, 1e4])
def test_priors_follow_the_units_of_the_columns(unit):
    """A column in other units has slopes in other units: the prior on the predictor stays."""
    x = glm.gaussian_data()["x"]

    def prior_sd(x):
        trace = handlers.trace(handlers.seed(glm.logistic, 0)).get_trace(x=x)
        return np.asarray(trace["b"]["fn"].base_dist.scale) * x.std(0), np.asarray(trace["intercept"]["fn"].scale)

    slopes, intercept = prior_sd(x * unit)
    np.testing.assert_allclose(slopes, 2.5, rtol=1e-10)
    np.testing.assert_allclose(intercept, prior_sd(x)[1], rtol=1e-10)


@pytest.mark.long
def test_prior_predictive_and_subsampling(draw):
    data = glm.poisson_data()
    x = data["x"]
    for model in (glm.gaussian, glm.logistic, glm.poisson, glm.negative_binomial):
        assert draw(model, x=x)["y"].shape == (17,)
    drawn = draw(glm.ordinal, x=x, num_categories=4)["y"]
    assert set(np.unique(drawn)) <= {0, 1, 2, 3}
    trace = handlers.trace(handlers.seed(glm.poisson, 0)).get_trace(**data, batch_size=5)
    assert trace["y"]["fn"].batch_shape == (5,)
    assert trace["y"]["scale"] == 17 / 5
    rows = trace["data"]["value"]
    np.testing.assert_array_equal(trace["y"]["value"], data["y"][rows])
    eta = np.asarray(trace["intercept"]["value"] + x[rows] @ trace["b"]["value"])
    np.testing.assert_allclose(trace["y"]["fn"].log_rate, eta, rtol=1e-9)


def test_a_model_without_columns_is_an_intercept(pointwise):
    y = glm.poisson_data()["y"]
    values = pointwise(glm.poisson, {"x": np.zeros((17, 0)), "y": y}, {"intercept": np.log(y.mean())})
    np.testing.assert_allclose(values, stats.poisson.logpmf(y, y.mean()), rtol=1e-9)


def test_bad_input():
    with pytest.raises(ValueError, match=r"x must have shape \(n, d\).*x\[:, None\]"):
        handlers.seed(glm.poisson, 0)(x=np.ones(3))
    with pytest.raises(ValueError, match="num_categories must be at least 2, got 1"):
        handlers.seed(glm.ordinal, 0)(x=np.ones((3, 1)), num_categories=1)


def test_posterior_of_the_gaussian_model_is_near_least_squares():
    """Weak priors on raw scale: the mode of the slopes lies within a tenth of a standard error of least squares."""
    data = glm.gaussian_data()
    fit = sm.OLS(data["y"], sm.add_constant(data["x"])).fit()
    sigma = np.sqrt(fit.ssr / fit.nobs)

    def model(x, y):
        with handlers.substitute(data={"sigma": jnp.asarray(sigma)}):
            glm.gaussian(x, y)

    def log_joint(theta):
        params = {"intercept": theta[0], "b": theta[1:]}
        trace = handlers.trace(handlers.seed(handlers.substitute(model, data=params), 0)).get_trace(**data)
        return sum(s["fn"].log_prob(s["value"]).sum() for s in trace.values() if s["type"] == "sample")

    start = jnp.asarray(fit.params)
    newton = jax.jit(lambda theta: jnp.linalg.solve(jax.hessian(log_joint)(theta), jax.grad(log_joint)(theta)))
    step = newton(start)  # the log joint is quadratic: one step is exact
    assert np.abs(step / fit.bse).max() < 0.1
