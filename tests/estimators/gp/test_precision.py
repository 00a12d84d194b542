"""Where single precision cannot invert a covariance, and that it is said; the truth is NumPy's in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from tinygp import GaussianProcess, kernels

import estimax
from estimax.estimators import SVGP, CoresetGP, GPEvidence, IterativeGP
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
    """Log marginal likelihood, standard error and bound of the condition number."""

    @jax.jit
    def run(X, y, noise):
        r = Regression(kernels.ExpSquared(1.0), X, jnp.zeros_like(y), jnp.full_like(y, noise), y)
        e = iterative.estimate(r, IterativeGP(), jax.random.key(0))
        return e.value, e.stderr, precision.condition(r.kernel, X, r.noise)

    return lambda X, y, noise, dtype: [float(v) for v in run(*(jnp.asarray(a, dtype) for a in (X, y, noise)))]


@pytest.mark.parametrize(("noise", "works"), [(1e-8, False), (1e-7, False), (1e-6, False), (1e-4, True), (1e-2, True)])
def test_complaint_comes_where_single_precision_is_wrong(evaluate, noise, works):
    X, y = rows(400, noise)
    value, stderr, condition = evaluate(X, y, noise, jnp.float32)
    C = covariance(X, noise)
    white = np.linalg.solve(np.linalg.cholesky(C), y)
    exact = -0.5 * (white @ white + np.linalg.slogdet(C)[1] + len(y) * np.log(2 * np.pi))
    assert condition > np.linalg.cond(C) * (1 - 1e-3)
    assert (precision.complaint(condition, jnp.float32, "") == []) == works
    if works:  # two nats in a thousand rows, whatever single precision adds to the probes
        assert abs(value - exact) < 4 * stderr + 2e-3 * len(y)
    else:  # and the standard error that single precision states is wrong as well
        with jax.enable_x64(True):
            stderr = evaluate(X, y, noise, jnp.float64)[1]
        assert abs(value - exact) > 4 * stderr + 2e-3 * len(y)


def model(noise):
    def declared(X, y):
        length = numpyro.param("length", 1.0, constraint=constraints.positive)
        numpyro.sample("y", GaussianProcess(kernels.ExpSquared(length), X, diag=noise).numpyro_dist(), obs=y)

    return declared


@pytest.mark.long
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


@pytest.mark.long
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
    assert precision.complaint(1e12, jnp.float64, "") == []
    (line,) = precision.complaint(1e17, jnp.float64, "")
    assert "double precision cannot work" in line
    assert "jax_enable_x64" not in line


def latent(noise):
    def declared(X, y):
        length = numpyro.param("length", 1.0, constraint=constraints.positive)
        f = numpyro.sample("f", GaussianProcess(kernels.ExpSquared(length), X, diag=1e-12).numpyro_dist())
        numpyro.sample("y", dist.Normal(f, np.sqrt(noise)), obs=y)

    return declared


@pytest.mark.parametrize(
    "estimator",
    [
        GPEvidence(),
        pytest.param(SVGP(20, None, 1.0), marks=pytest.mark.long),
        pytest.param(CoresetGP(20, 30), marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize(("noise", "works"), [(1e-8, False), (1e-4, True)])
def test_single_precision_elsewhere(estimator, noise, works):
    """Against the same objective in double precision: a nat and a half in forty rows where it works, more where not."""
    X, y = rows(40, noise)
    single, faults = posed(estimator, noise, X, y, None)
    with jax.enable_x64(True):
        double, none = posed(estimator, noise, X, y, single[1])
    assert none == []
    assert (faults == []) == works
    assert (abs(single[0] - double[0]) < 1.5) == works


def posed(estimator, noise, X, y, params):
    """Objective with its parameters (those given, where there are some), and what is said of the fit."""
    data = {"X": jnp.asarray(X), "y": jnp.asarray(y)}
    problem = estimator.problem(jax.random.key(0), latent(noise), None, data)
    params = problem.params if params is None else jax.tree.map(lambda p: jnp.asarray(p, float), params)
    if problem.memory is not None:
        problem = problem.with_memory(
            jax.jit(lambda m, q=problem: q.refresh(m, params, jax.random.key(0)))(problem.memory)
        )
    value = float(jax.jit(lambda p: problem.objective(p, problem.data))(params))
    return (value, params), [line for line in problem.faults(params) if "precision cannot work here" in line]
