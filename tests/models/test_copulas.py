"""Against second derivatives of the distribution functions, closed forms at independence, and statsmodels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpyro import handlers
from scipy import integrate, stats

from estimax.models import copulas

pytestmark = pytest.mark.usefixtures("x64_module")

GRID = np.stack(np.meshgrid([0.01, 0.3, 0.62, 0.97], [0.02, 0.3, 0.9]), -1).reshape(-1, 2)


def clayton(u, v, theta):
    return (u**-theta + v**-theta - 1.0) ** (-1.0 / theta)


def gumbel(u, v, theta):
    return jnp.exp(-(((-jnp.log(u)) ** theta + (-jnp.log(v)) ** theta) ** (1.0 / theta)))


def frank(u, v, theta):
    return -jnp.log1p(jnp.expm1(-theta * u) * jnp.expm1(-theta * v) / jnp.expm1(-theta)) / theta


ARCHIMEDEAN = [
    (copulas.ClaytonCopula, clayton, 0.3),
    (copulas.ClaytonCopula, clayton, 4.0),
    (copulas.GumbelCopula, gumbel, 1.2),
    (copulas.GumbelCopula, gumbel, 5.0),
    (copulas.FrankCopula, frank, 0.5),
    (copulas.FrankCopula, frank, 9.0),
    (copulas.FrankCopula, frank, -0.5),
    (copulas.FrankCopula, frank, -9.0),
]


@pytest.mark.parametrize(("family", "cdf", "theta"), ARCHIMEDEAN)
def test_density_is_the_second_derivative(family, cdf, theta):
    mixed = jax.jit(jax.vmap(jax.grad(jax.grad(cdf, 0), 1), (0, 0, None)))(GRID[:, 0], GRID[:, 1], theta)
    np.testing.assert_allclose(family(theta).log_prob(GRID), np.log(mixed), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("rho", [-0.8, 0.0, 0.3, 0.99])
def test_gaussian_density_equals_scipy(rho):
    normal = stats.multivariate_normal([0.0, 0.0], [[1.0, rho], [rho, 1.0]])
    x = stats.norm.ppf(GRID)
    expected = normal.logpdf(x) - stats.norm.logpdf(x).sum(1)
    np.testing.assert_allclose(copulas.GaussianCopula(rho).log_prob(GRID), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "ours", "theta"),
    [
        ("ClaytonCopula", copulas.ClaytonCopula, 2.0),
        ("GumbelCopula", copulas.GumbelCopula, 2.5),
        ("FrankCopula", copulas.FrankCopula, 6.0),
        ("GaussianCopula", copulas.GaussianCopula, 0.6),
    ],
)
def test_equals_statsmodels(name, ours, theta):
    api = pytest.importorskip("statsmodels.distributions.copula.api")
    peer = getattr(api, name)(theta)
    np.testing.assert_allclose(np.exp(ours(theta).log_prob(GRID)), peer.pdf(GRID), rtol=1e-8)
    np.testing.assert_allclose(ours(theta).tau(), peer.tau(), rtol=1e-6)


ALL = [
    (copulas.GaussianCopula, 0.7),
    (copulas.GaussianCopula, -0.4),
    (copulas.ClaytonCopula, 1.5),
    (copulas.GumbelCopula, 2.0),
    (copulas.FrankCopula, 5.0),
    (copulas.FrankCopula, -3.0),
    (copulas.FrankCopula, 0.02),
]


@pytest.mark.parametrize(("family", "theta"), ALL)
def test_margins_are_uniform(family, theta):
    """The density integrates to one over v at each u; v = sigmoid(t) spreads the corners out."""
    nodes, weights = np.polynomial.legendre.leggauss(400)
    t = 40.0 * nodes
    v, dv = 1.0 / (1.0 + np.exp(-t)), 40.0 * weights * np.exp(-np.logaddexp(0.0, t) - np.logaddexp(0.0, -t))
    u = np.array([0.05, 0.4, 0.9])
    pairs = np.stack(np.broadcast_arrays(u[:, None], v[None, :]), -1)
    np.testing.assert_allclose(np.exp(jax.jit(family(theta).log_prob)(pairs)) @ dv, 1.0, rtol=1e-6)


@pytest.mark.parametrize(("family", "theta"), [*ALL, (copulas.FrankCopula, 60.0), (copulas.FrankCopula, -60.0)])
def test_draws(family, theta):
    """Margins, Kendall's tau (standard error below sqrt(2 (1 - tau^2) / n)), and shares in corners by quadrature."""
    copula, n = family(theta), 4000
    u = np.asarray(jax.jit(lambda key: copula.sample(key, (n,)))(jax.random.key(0)))
    assert ((u > 0.0) & (u < 1.0)).all()
    for j in range(2):
        assert stats.kstest(u[:, j], "uniform").pvalue > 1e-3
    tau = float(copula.tau())
    assert abs(stats.kendalltau(*u.T).statistic - tau) < 4.0 * np.sqrt(2.0 * (1.0 - tau**2) / n)
    nodes, weights = np.polynomial.legendre.leggauss(200)
    log_prob = jax.jit(copula.log_prob)
    for low, high in ((0.3, 0.6), (0.9, 0.8)):
        grid = np.stack(np.meshgrid(0.5 * low * (nodes + 1.0), 0.5 * high * (nodes + 1.0), indexing="ij"), -1)
        inside = 0.25 * low * high * weights @ np.exp(log_prob(grid)) @ weights
        observed = ((u[:, 0] < low) & (u[:, 1] < high)).mean()
        assert abs(observed - inside) < 4.0 * np.sqrt(inside * (1.0 - inside) / n) + 2e-3


def test_tau_of_frank_equals_quadrature():
    for theta in (-30.0, -2.0, 0.05, 0.19, 0.21, 3.0, 100.0, 1000.0):
        size = abs(theta)
        debye = integrate.quad(lambda t: t / np.expm1(t), 0.0, min(size, 700.0), epsabs=0.0, epsrel=1e-11)[0] / size
        expected = np.sign(theta) * (1.0 - 4.0 * (1.0 - debye) / size)
        np.testing.assert_allclose(copulas.FrankCopula(theta).tau(), expected, rtol=2e-9)


@pytest.mark.parametrize(
    "family", [copulas.GaussianCopula, copulas.ClaytonCopula, copulas.GumbelCopula, copulas.FrankCopula]
)
def test_from_tau_inverts(family):
    tau = np.array([1e-6, 0.1, 0.5, 0.95])
    if family in (copulas.GaussianCopula, copulas.FrankCopula):
        tau = np.concatenate([tau, -tau])
    there_and_back = jax.jit(lambda tau: family.from_tau(tau).tau())
    np.testing.assert_allclose(there_and_back(tau), tau, rtol=1e-7)


@pytest.mark.parametrize("theta", [0.0, 1e-300, 1e-9, 1e-5])
def test_independence_is_a_smooth_point(theta):
    """There log c = 0 and d log c / d theta = (1 + log u)(1 + log v) for Clayton, (2u - 1)(2v - 1) / 2 for Frank."""
    u, v = GRID.T
    slopes = {
        copulas.ClaytonCopula: (1.0 + np.log(u)) * (1.0 + np.log(v)),
        copulas.FrankCopula: 0.5 * (2.0 * u - 1.0) * (2.0 * v - 1.0),
    }
    for wide, rtol in ((True, 1e-3), (False, 1e-3)):
        for family, slope in slopes.items():
            with jax.enable_x64(wide):
                tangent_of = jax.jit(lambda t, f=family: jax.jvp(lambda t: f(t).log_prob(GRID), (t,), (1.0,)))
                value, tangent = tangent_of(theta)
            np.testing.assert_allclose(value, theta * slope, atol=2e-6)
            np.testing.assert_allclose(tangent, slope, rtol=rtol, atol=2e-4)


def test_slopes_pass_smoothly_where_series_and_formulas_meet():
    """Second differences of the slope in theta: no step where a branch changes."""
    for family, centre in ((copulas.ClaytonCopula, 0.1), (copulas.FrankCopula, 0.1), (copulas.FrankCopula, -1.0)):
        theta = centre + np.linspace(-0.02, 0.02, 81)
        slope = jax.jit(jax.vmap(jax.grad(lambda t, f=family: f(t).log_prob(GRID).sum())))(theta)
        assert np.abs(np.diff(slope, 2)).max() < 1e-4 * np.abs(slope).max() + 1e-6


SLOPES = {
    family: jax.jit(jax.value_and_grad(lambda parameter, pair, f=family: f(parameter).log_prob(pair)))
    for family in (copulas.GaussianCopula, copulas.ClaytonCopula, copulas.GumbelCopula, copulas.FrankCopula)
}


@given(
    st.floats(1e-12, 1.0 - 1e-12),
    st.floats(1e-12, 1.0 - 1e-12),
    st.floats(-200.0, 200.0),
)
@settings(max_examples=60, deadline=None)
def test_finite_in_every_corner(u, v, theta):
    with jax.enable_x64(True):
        pair = np.array([u, v])
        cases = (
            (copulas.GaussianCopula, np.tanh(theta / 60.0)),
            (copulas.ClaytonCopula, abs(theta)),
            (copulas.GumbelCopula, 1.0 + abs(theta)),
            (copulas.FrankCopula, theta),
        )
        for family, parameter in cases:
            value, slope = SLOPES[family](parameter, pair)
            assert np.isfinite([value, slope]).all(), family
            # exchangeable: the two margins play the same part
            np.testing.assert_allclose(SLOPES[family](parameter, pair[::-1])[0], value, rtol=1e-6, atol=1e-6)


def test_gumbel_at_independence():
    value, slope = jax.jit(jax.value_and_grad(lambda t: copulas.GumbelCopula(t).log_prob(GRID).sum()))(1.0)
    np.testing.assert_allclose(value, 0.0, atol=1e-10)
    ahead = copulas.GumbelCopula(1.0 + 1e-6).log_prob(GRID).sum()
    np.testing.assert_allclose(slope, ahead / 1e-6, rtol=1e-4)
    draws = np.asarray(copulas.GumbelCopula(1.0).sample(jax.random.key(0), (2000,)))
    assert abs(stats.kendalltau(*draws.T).statistic) < 4.0 * np.sqrt(4.0 / 9.0 / 2000)


def test_batches():
    for family in SLOPES:
        copula = family(jnp.array([0.5, 0.9]) + (1.0 if family is copulas.GumbelCopula else 0.0))
        assert copula.batch_shape == copula.event_shape == (2,)
        assert jax.eval_shape(lambda key, c=copula: c.sample(key, (3,)), jax.random.key(0)).shape == (3, 2, 2)
        assert jax.eval_shape(copula.log_prob, jnp.full((3, 1, 2), 0.3)).shape == (3, 2)


@pytest.mark.long
def test_models_on_ranks(pointwise, draw):
    """Pseudo-observations hold no units; the likelihood is highest near where Kendall's tau says."""
    pytest.importorskip("statsmodels")
    data = copulas.data()
    u = data["u"]
    assert u.shape == (235, 2)
    np.testing.assert_allclose(copulas.pseudo_observations(np.exp(5.0 * u)), u, rtol=1e-12)
    tau = stats.kendalltau(*u.T).statistic
    for model, site, family in (
        (copulas.gaussian, "rho", copulas.GaussianCopula),
        (copulas.clayton, "theta", copulas.ClaytonCopula),
        (copulas.gumbel, "theta_minus_1", copulas.GumbelCopula),
        (copulas.frank, "theta", copulas.FrankCopula),
    ):
        taus = np.linspace(0.05, 0.95, 19)
        copula = family.from_tau(taus)
        parameters = copula.rho if site == "rho" else copula.theta - (1.0 if site == "theta_minus_1" else 0.0)
        total = jax.jit(lambda p, m=model, s=site: pointwise(m, data, {s: p}).sum())
        totals = [float(total(p)) for p in parameters]
        assert abs(taus[np.argmax(totals)] - tau) < (0.2 if model is copulas.clayton else 0.1)
        assert draw(model, num_data=9)["u"].shape == (9, 2)
    with pytest.raises(ValueError, match=r"u must have shape \(n, 2\), got \(3,\)"):
        handlers.seed(copulas.frank, 0)(u=np.ones(3))
    with pytest.raises(ValueError, match="without u the model needs num_data"):
        handlers.seed(copulas.frank, 0)()
