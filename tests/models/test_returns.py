"""Hansen's density by quadrature and by his formula; both likelihoods at scipy's estimates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpyro import handlers
from scipy import integrate, special, stats

from estimax.models import returns
from estimax.models._smooth import log_rising

pytestmark = pytest.mark.usefixtures("x64_module")


def hansen(z, df, skew):
    """Density of Hansen (1994), equations 10 to 13, as printed."""
    c = special.gamma((df + 1) / 2) / (np.sqrt(np.pi * (df - 2)) * special.gamma(df / 2))
    a = 4 * skew * c * (df - 2) / (df - 1)
    b = np.sqrt(1 + 3 * skew**2 - a**2)
    side = np.where(z < -a / b, 1 - skew, 1 + skew)
    return b * c * (1 + ((b * z + a) / side) ** 2 / (df - 2)) ** (-(df + 1) / 2)


@pytest.mark.parametrize(("df", "skew"), [(2.5, -0.6), (5.0, 0.0), (7.0, 0.8), (40.0, -0.2)])
def test_density_is_hansens(df, skew):
    y = np.linspace(-30.0, 25.0, 45)
    ours = returns.SkewT(df, skew, 1.5, 2.0).log_prob(y)
    np.testing.assert_allclose(ours, np.log(hansen((y - 1.5) / 2.0, df, skew) / 2.0), rtol=1e-9)


@pytest.mark.parametrize(("df", "skew"), [(4.5, -0.6), (6.0, 0.3), (40.0, 0.9)])
def test_mass_mean_and_variance_by_quadrature(df, skew):
    copy = returns.SkewT(df, skew, 1.5, 2.0)
    nodes, weights = np.polynomial.legendre.leggauss(2000)
    y, dy = 1.5 + np.sinh(12.0 * nodes), 12.0 * weights * np.cosh(12.0 * nodes)
    density = np.exp(jax.jit(copy.log_prob)(y)) * dy
    np.testing.assert_allclose([density.sum(), density @ y], [1.0, 1.5], rtol=1e-5)
    np.testing.assert_allclose(density @ (y - 1.5) ** 2, 4.0, rtol=1e-4)
    assert (copy.mean, copy.variance) == (1.5, 4.0)


def test_without_skew_it_is_students_t():
    y = np.linspace(-9.0, 9.0, 31)
    for df in (2.1, 5.0, 300.0):
        expected = stats.t.logpdf(y, df, scale=np.sqrt((df - 2.0) / df))
        np.testing.assert_allclose(returns.SkewT(df, 0.0).log_prob(y), expected, rtol=1e-9)


@pytest.mark.parametrize("df", [1e3, 1e5, 1e7])
def test_many_degrees_of_freedom_in_single_precision(df):
    """The normal limit, off by less than 1/df times a fourth power; differences of log Gamma would be off by more."""
    y = np.linspace(-3.0, 3.0, 7)
    with jax.enable_x64(False):
        log_prob = jax.value_and_grad(lambda df, y: returns.SkewT(df, 0.0).log_prob(y))
        value, slope = jax.jit(jax.vmap(log_prob, (None, 0)))(df, y)
    np.testing.assert_allclose(value, stats.t.logpdf(y, df, scale=np.sqrt((df - 2.0) / df)), rtol=2e-5)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize(("df", "skew"), [(3.0, -0.7), (8.0, 0.4)])
def test_draws(df, skew):
    """Against the distribution function, by quadrature of Hansen's formula."""
    draws = np.sort(np.asarray(jax.jit(lambda key: returns.SkewT(df, skew).sample(key, (3000,)))(jax.random.key(0))))
    grid = np.sinh(np.linspace(-9.0, 9.0, 4001))
    cdf = integrate.cumulative_trapezoid(hansen(grid, df, skew), grid, initial=0.0)
    assert cdf[-1] == pytest.approx(1.0, abs=1e-3)
    assert stats.kstest(draws, lambda y: np.interp(y, grid, cdf)).pvalue > 1e-3


SLOPES = jax.jit(
    jax.value_and_grad(
        lambda df, skew, loc, scale, y: returns.SkewT(df, skew, loc, scale).log_prob(y), argnums=(0, 1, 2, 3)
    )
)


@given(st.floats(-1e6, 1e6), st.floats(2.001, 1e4), st.floats(-0.999, 0.999))
@settings(max_examples=60, deadline=None)
def test_mirror_and_slopes(y, df, skew):
    with jax.enable_x64(True):
        value, slopes = SLOPES(df, skew, 0.3, 1.7, y)
        assert np.isfinite(value)
        assert np.isfinite(slopes).all()
        np.testing.assert_allclose(SLOPES(df, -skew, -0.3, 1.7, -y)[0], value, rtol=1e-9, atol=1e-9)


def test_student_t_at_scipys_estimate(pointwise, steepness):
    pytest.importorskip("statsmodels")
    data = returns.data()
    y = data["y"]
    assert y.shape == (202,)
    df, mu, sigma = stats.t.fit(y)
    params = {"df": df, "mu": mu, "sigma": sigma}
    np.testing.assert_allclose(pointwise(returns.student_t, data, params), stats.t.logpdf(y, df, mu, sigma), rtol=1e-9)
    assert steepness(returns.student_t, data, params, {"df": 0.2 * df, "mu": 0.3, "sigma": 0.3}) < 0.02


def test_skew_t_contains_student_t(pointwise):
    pytest.importorskip("statsmodels")
    data = returns.data()
    df, mu, sigma = 4.0, 1.0, 3.0
    symmetric = {"df_minus_2": df - 2.0, "mu": mu, "sigma": sigma * np.sqrt(df / (df - 2.0)), "skew": 0.0}
    expected = pointwise(returns.student_t, data, {"df": df, "mu": mu, "sigma": sigma})
    np.testing.assert_allclose(pointwise(returns.skew_t, data, symmetric), expected, rtol=1e-9)


@pytest.mark.long
def test_draws_of_the_models_and_bad_input(draw):
    for model in (returns.student_t, returns.skew_t):
        assert draw(model, num_data=11)["y"].shape == (11,)
        with pytest.raises(ValueError, match="without y the model needs num_data"):
            handlers.seed(model, 0)()
    batch = returns.SkewT(jnp.array([3.0, 9.0]), 0.1)
    assert jax.eval_shape(lambda key: batch.sample(key, (5,)), jax.random.key(0)).shape == (5, 2)


RISING = jax.jit(jax.value_and_grad(log_rising))


@pytest.mark.parametrize("x", [1e-3, 0.7, 9.99, 10.01, 37.0, 1e4, 1e9])
def test_log_rising_against_scipy(x):
    """Pochhammer's symbol; slopes against the digamma function."""
    for a in (0.0, 0.5, 3.0, 40.0):
        value, slope = RISING(x, a)
        if x < 1e6:
            expected = special.gammaln(x + a) - special.gammaln(x)
            np.testing.assert_allclose(value, expected, rtol=1e-10, atol=1e-10)
        else:
            np.testing.assert_allclose(value, a * np.log(x) + a * (a - 1.0) / (2.0 * x), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(slope, special.digamma(x + a) - special.digamma(x), rtol=1e-8, atol=1e-12)
