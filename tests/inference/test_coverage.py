"""Intervals cover as often as they say: thousands of simulated data sets, fitted as one vmapped program."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import lax, random
from jax.flatten_util import ravel_pytree
from scipy import stats

from estimax.estimators import MLE
from estimax.inference import covariance, curvature, profile
from estimax.inference.solve import objective

SETS = 2000
ERROR = np.sqrt(0.95 * 0.05 / SETS)


def line(x, y=None):
    b = numpyro.param("b", jnp.zeros(2))
    sigma = numpyro.param("sigma", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(b[0] + b[1] * x, sigma), obs=y)


@eqx.filter_jit
def slopes(problem, ys):
    """Estimate of the slope with its observed-information and sandwich standard errors, for every row of ys."""

    def one(y):
        p = replace(problem, data={**problem.data, "y": y})
        z0, f, unravel = objective(p)
        z = curvature.newton(f, z0)[0]
        inverse = jnp.linalg.inv(curvature.gradient_and_hessian(f, z)[1])
        scores = covariance._scores(p, unravel(z))
        sandwich = inverse @ scores.T @ scores @ inverse
        return jnp.stack([z[1], jnp.sqrt(inverse[1, 1]), jnp.sqrt(sandwich[1, 1])])

    return lax.map(one, ys, batch_size=100)


def test_sandwich_intervals_cover_under_misspecification():
    """Noise that grows with |x|: the model's constant variance is wrong."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=500)
    ys = 1 + 2 * x + (0.2 + np.abs(x)) * rng.normal(size=(SETS, 500))
    with jax.enable_x64(True):
        problem = MLE().problem(random.key(0), line, None, {"x": jnp.asarray(x), "y": jnp.asarray(ys[0])})
        slope, observed, sandwich = np.asarray(slopes(problem, jnp.asarray(ys))).T
    # the truth about one data set, from least squares by hand
    centred = x - x.mean()
    np.testing.assert_allclose(slope[0], centred @ ys[0] / (centred @ centred), rtol=1e-8)

    def coverage(std_err):
        return np.mean(np.abs(slope - 2) < stats.norm.ppf(0.975) * std_err)

    assert abs(coverage(sandwich) - 0.95) < 2 * ERROR
    assert coverage(observed) < 0.85


def lifetime(y=None):
    mean = numpyro.param("mean", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("data", y.shape[0]):
        numpyro.sample("y", dist.Exponential(1 / mean), obs=y)


@eqx.filter_jit
def intervals(problem, ys):
    """Wald's and the profile interval of the mean, for every row of ys."""

    def one(y):
        p = replace(problem, data={"y": y})
        z0, f, unravel = objective(p)
        z = curvature.newton(f, z0)[0]
        width = 1.96 / jnp.sqrt(curvature.gradient_and_hessian(f, z)[1][0, 0])
        ends, _ = profile._ends(
            p, unravel(z), jnp.zeros(2, int), jnp.array([-1.0, 1.0]), jnp.full(2, width), jnp.array(1.9207294)
        )
        mean = ravel_pytree(p.constrain(unravel(z)))[0][0]
        wald = mean * width  # delta method: d mean / d log mean = mean
        return jnp.stack([mean - wald, mean + wald, jnp.exp(ends[0]), jnp.exp(ends[1])])

    return lax.map(one, ys, batch_size=100)


@pytest.mark.long
def test_profile_intervals_cover_in_a_small_skewed_sample_where_wald_ones_do_not():
    """Five exponential lifetimes: Wald's interval of the mean covers P(2.66 < Γ(5)) = 87 %."""
    ys = np.random.default_rng(1).exponential(3.0, size=(SETS, 5))
    with jax.enable_x64(True):
        problem = MLE().problem(random.key(0), lifetime, None, {"y": jnp.asarray(ys[0])})
        low, high, profile_low, profile_high = np.asarray(intervals(problem, jnp.asarray(ys))).T
    # ends of one profile interval by hand: log-likelihood −5 log m − S/m, dropped by χ²/2
    s = ys[0].sum()
    drop = lambda m: 5 * np.log(m) + s / m - 5 * np.log(s / 5) - 5  # noqa: E731
    np.testing.assert_allclose([drop(profile_low[0]), drop(profile_high[0])], 1.9207294, rtol=1e-5)
    wald = np.mean((low < 3) & (high > 3))
    by_profile = np.mean((profile_low < 3) & (profile_high > 3))
    exact = stats.gamma(5).sf(5 / (1 + 1.96 / np.sqrt(5)))
    assert abs(wald - exact) < 4 * np.sqrt(exact * (1 - exact) / SETS)
    assert wald < 0.95 - 4 * ERROR
    assert abs(by_profile - 0.95) < 2 * ERROR
