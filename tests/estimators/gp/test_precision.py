"""Where single precision cannot invert a covariance, and that it is said; the truth is NumPy's in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro.distributions import constraints
from tinygp import GaussianProcess, kernels

import estimax
from estimax.estimators import IterativeGP
from estimax.estimators.gp import iterative, precision
from estimax.estimators.gp.view import Regression


def rows(n, noise):
    rng = np.random.default_rng(0)
    X = np.sort(rng.uniform(0, 10, n))
    return X, np.sin(X) + np.sqrt(noise) * rng.normal(size=n)


def covariance(X, noise):
    return np.exp(-0.5 * (X[:, None] - X) ** 2) + noise * np.eye(len(X))


@pytest.fixture(scope="module")
def evaluate():
    """Log marginal likelihood, standard error and bound of the condition number in single precision."""

    @jax.jit
    def run(X, y, noise):
        r = Regression(kernels.ExpSquared(1.0), X, jnp.zeros_like(y), jnp.full_like(y, noise), y)
        e = iterative.estimate(r, IterativeGP(), jax.random.key(0))
        return e.value, e.stderr, precision.condition(r.kernel, X, r.noise, 10**4)

    return lambda X, y, noise: [float(v) for v in run(*(jnp.asarray(a, jnp.float32) for a in (X, y, noise)))]


@pytest.mark.parametrize(("noise", "works"), [(1e-8, False), (1e-7, False), (1e-6, False), (1e-4, True), (1e-2, True)])
def test_complaint_comes_where_single_precision_is_wrong(evaluate, noise, works):
    X, y = rows(400, noise)
    value, stderr, condition = evaluate(X, y, noise)
    C = covariance(X, noise)
    white = np.linalg.solve(np.linalg.cholesky(C), y)
    exact = -0.5 * (white @ white + np.linalg.slogdet(C)[1] + len(y) * np.log(2 * np.pi))
    assert condition > np.linalg.cond(C) * (1 - 1e-3)
    assert (precision.complaint(condition, noise, jnp.float32) == []) == works
    if works:  # two nats in a thousand rows, whatever single precision adds to the probes
        assert abs(value - exact) < 4 * stderr + 2e-3 * len(y)
    else:
        assert abs(value - exact) > 3 * stderr


def model(noise):
    def declared(X, y):
        length = numpyro.param("length", 1.0, constraint=constraints.positive)
        numpyro.sample("y", GaussianProcess(kernels.ExpSquared(length), X, diag=noise).numpyro_dist(), obs=y)

    return declared


@pytest.mark.parametrize(("noise", "verdict"), [(1e-8, "do not use"), (1e-2, "good")])
def test_diagnosis_of_iterations_in_single_precision(noise, verdict):
    X, y = rows(40, noise)
    options = IterativeGP(rank=20)
    result = estimax.fit(model(noise), options, {"X": X, "y": y}, num_steps=3, learning_rate=0.01, progress_bar=False)
    found = result.diagnose()
    assert found.verdict == verdict
    named = [line for line in found.advice if "single precision cannot work here" in line]
    assert bool(named) == (verdict == "do not use")
    if named:
        assert "noise variance is 1.0e-08" in named[0]
        assert 'jax.config.update("jax_enable_x64", True)' in named[0]


def test_failed_solves_are_no_good_fit():
    with jax.enable_x64(True):
        X, y = rows(200, 1e-6)
        options = IterativeGP(num_iterations=2, rank=1)
        result = estimax.fit(
            model(1e-6), options, {"X": X, "y": y}, num_steps=1, learning_rate=1e-6, progress_bar=False
        )
        found = result.diagnose()
    assert found.verdict == "do not use"
    assert any("solves have failed" in line and "num_iterations=2" in line for line in found.advice)


def test_double_precision_has_its_own_limit():
    assert precision.complaint(1e12, 1e-10, jnp.float64) == []
    (line,) = precision.complaint(1e17, 1e-15, jnp.float64)
    assert "double precision cannot work" in line
    assert "jax_enable_x64" not in line
