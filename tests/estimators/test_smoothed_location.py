"""Smoothed location estimation against closed forms, quadrature and simulated coverage."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from scipy import integrate, stats

import estimax
from estimax.estimators import MLE, SmoothedLocation, smoothed_interval
from estimax.inference import curvature
from estimax.inference.solve import objective

X = np.random.default_rng(0).laplace(1.5, 1.0, 50)


def normal(x):
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", dist.Normal(mu, 0.7), obs=x)


def laplace(x):
    mu = numpyro.param("mu", 0.0)
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", dist.Laplace(mu, 1.0), obs=x)


def spike(x):
    mu = numpyro.param("mu", 0.0)
    component = dist.Normal(mu + jnp.zeros(2), jnp.array([1.0, 0.2]))
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", dist.MixtureSameFamily(dist.Categorical(jnp.array([0.6, 0.4])), component), obs=x)


def smoothed_laplace(x, r):
    """Density of Laplace(0, 1) + N(0, r²)."""
    tail = lambda s: np.exp(r**2 / 2 + s * x + stats.norm.logcdf(-s * x / r - r))  # noqa: E731
    return 0.5 * (tail(1) + tail(-1))


@pytest.mark.long
def test_normal_closed_form():
    fit = estimax.fit(normal, SmoothedLocation(0.5, perturb=False), {"x": X}, progress_bar=False)
    total = 0.7**2 + 0.5**2
    assert fit.params["mu"] == pytest.approx(X.mean(), rel=1e-8)
    assert -fit.losses[-1] == pytest.approx(stats.norm(X.mean(), total**0.5).logpdf(X).sum(), rel=1e-10)
    interval = smoothed_interval(fit, 0.9)
    assert interval.information == pytest.approx(1 / total, rel=1e-8)
    half = stats.norm.ppf(0.95) * np.sqrt(total / 50)
    assert (interval.lower, interval.upper) == pytest.approx((X.mean() - half, X.mean() + half), rel=1e-7)


@pytest.mark.long
def test_laplace_density_and_information():
    r = 0.8
    fit = estimax.fit(laplace, SmoothedLocation(r, perturb=False), {"x": X}, progress_bar=False)
    mu = float(fit.params["mu"])
    assert -fit.losses[-1] == pytest.approx(
        np.log(smoothed_laplace(X - mu, r)).sum(), abs=0.01
    )  # 2e-4 a datum: a kink under the trapezoidal rule
    grid = np.linspace(-15, 15, 20001)
    density = smoothed_laplace(grid, r)
    truth = integrate.trapezoid(np.gradient(density, grid) ** 2 / density, grid)
    assert smoothed_interval(fit).information == pytest.approx(truth, rel=1e-3)
    best = min(np.linspace(0.5, 2.5, 2001), key=lambda m: -np.log(smoothed_laplace(X - m, r)).sum())
    assert mu == pytest.approx(best, abs=1.1e-3)


@pytest.mark.long
def test_mixture_information():
    fit = estimax.fit(spike, SmoothedLocation(0.3), {"x": X}, progress_bar=False)
    density = lambda x: 0.6 * stats.norm(0, np.hypot(1, 0.3)).pdf(x) + 0.4 * stats.norm(0, np.hypot(0.2, 0.3)).pdf(x)  # noqa: E731
    grid = np.linspace(-8, 8, 20001)
    truth = integrate.trapezoid(np.gradient(density(grid), grid) ** 2 / density(grid), grid)
    interval = smoothed_interval(fit)
    assert interval.information == pytest.approx(truth, rel=1e-4)
    assert interval.std_err == pytest.approx(1 / np.sqrt(50 * truth), rel=1e-4)


@pytest.mark.long
def test_intervals_cover(x64):
    """95 % intervals of 600 data sets, of 80 data each, in one vmapped program."""
    sets, n, r = 600, 80, 0.4
    rng = np.random.default_rng(1)
    wide = rng.random((sets, n)) < 0.6
    x = 3.0 + np.where(wide, 1.0, 0.2) * rng.normal(size=(sets, n)) + r * rng.normal(size=(sets, n))
    estimator = SmoothedLocation(r, perturb=False, num_quadrature=10)  # the noise is in x
    problem = estimator.problem(jax.random.key(0), spike, None, {"x": jnp.asarray(x[0])})

    @jax.jit
    def estimates(x):
        def one(x):
            changed = replace(problem, observed={"x": x})
            return curvature.newton(objective(changed)[1], jnp.median(x)[None], max_steps=30)[0][0]

        return jax.lax.map(one, x, batch_size=100)

    found = np.asarray(estimates(jnp.asarray(x)))
    information = float(problem.smoothed_information())
    half = 1.96 / np.sqrt(n * information)
    coverage = np.mean(np.abs(found - 3.0) < half)
    assert abs(coverage - 0.95) < 3 * np.sqrt(0.95 * 0.05 / sets)
    # and they are shorter than those of the mean, whose variance is that of the data
    assert half < 1.96 * np.sqrt((0.6 + 0.4 * 0.04 + r**2) / n)


@pytest.mark.long
def test_what_a_fit_leaves(tmp_path):
    """A normal location model keeps its curvature under smoothing: n/(σ² + r²), whatever the perturbation."""
    fit = estimax.fit(normal, SmoothedLocation(0.5), {"x": X}, seed=3, progress_bar=False)
    table = fit.summary()
    np.testing.assert_allclose(table["std_err"], np.sqrt((0.7**2 + 0.5**2) / 50), rtol=1e-6)
    assert "converged" in fit.diagnose().status
    fit.save(tmp_path / "fit.nc", num_samples=10)
    again = estimax.load(tmp_path / "fit.nc", normal)
    np.testing.assert_allclose(again.summary(), table, rtol=1e-12)  # its perturbation is in the file
    assert again.information_criteria()["AIC"] == pytest.approx(fit.information_criteria()["AIC"], rel=1e-12)
    with pytest.raises(ValueError, match='covariance="parametric_bootstrap" .* take observed, opg'):
        fit.covariance("parametric_bootstrap")


@pytest.mark.long
def test_perturbation_follows_the_seed():
    fits = [
        estimax.fit(normal, SmoothedLocation(0.5), {"x": X}, seed=s, progress_bar=False).params["mu"] for s in (0, 0, 1)
    ]
    assert fits[0] == fits[1] != fits[2]
    assert abs(fits[0] - X.mean()) < 4 * 0.5 / np.sqrt(50)


def test_errors():
    with pytest.raises(ValueError, match="radius must be positive, got 0"):
        SmoothedLocation(0)

    def scale(x):
        s = numpyro.param("s", 1.0, constraint=constraints.positive)
        with numpyro.plate("data", len(x)):
            numpyro.sample("x", dist.Normal(0.0, s), obs=x)

    with pytest.raises(ValueError, match="is not a location"):
        estimax.fit(scale, SmoothedLocation(0.5), {"x": X})

    def two(x):
        mu, s = numpyro.param("mu", 0.0), numpyro.param("s", 1.0)
        with numpyro.plate("data", len(x)):
            numpyro.sample("x", dist.Normal(mu, jnp.exp(s)), obs=x)

    with pytest.raises(ValueError, match="one scalar parameter"):
        estimax.fit(two, SmoothedLocation(0.5), {"x": X})
    with pytest.raises(TypeError, match="needs a fit of SmoothedLocation"):
        smoothed_interval(estimax.fit(normal, MLE(), {"x": X}, progress_bar=False))
