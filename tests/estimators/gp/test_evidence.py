"""Exact inference against scikit-learn, SciPy and brute force."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from tinygp import GaussianProcess, kernels

import estimax
from estimax.estimators import GPEvidence, LeaveOneOut, NonConjugateGP
from estimax.estimators.gp import linalg

from .conftest import TRUTH, binary_model, dense, latent_model, observed_model, pose

pytestmark = pytest.mark.usefixtures("x64_module")


def reference(data):
    kernel = ConstantKernel(TRUTH["amplitude"] ** 2) * Matern(TRUTH["length"], nu=1.5) + WhiteKernel(
        TRUTH["noise"] ** 2
    )
    return GaussianProcessRegressor(kernel, optimizer=None, alpha=0.0).fit(data["X"][:, None], data["y"] - 0.5)


@pytest.mark.parametrize("model", [observed_model, latent_model])
def test_value_and_gradient_equal_scikit_learn(series, model):
    problem = pose(GPEvidence(), model, series)
    value, gradient = jax.jit(jax.value_and_grad(lambda p: problem.objective(p, problem.data)))(problem.params)
    gp = reference(series)
    expected, slope = gp.log_marginal_likelihood(gp.kernel_.theta, eval_gradient=True)
    np.testing.assert_allclose(value, expected, rtol=1e-8)
    # scikit-learn's parameters are logarithms of variances and length, ours of amplitudes and length
    ours = [gradient["amplitude"] / 2, gradient["length"], gradient["noise"] / 2]
    np.testing.assert_allclose(ours, slope, rtol=1e-7)


def test_second_derivatives_equal_differences_of_the_gradient(series):
    problem = pose(GPEvidence(), observed_model, series)
    flat, unravel = jax.flatten_util.ravel_pytree(problem.params)
    f = lambda z: problem.objective(unravel(z), problem.data)  # noqa: E731
    gradient = jax.jit(jax.grad(f))
    hessian = jax.jit(jax.hessian(f))(flat)
    for i, step in enumerate(1e-5 * np.eye(3)):
        np.testing.assert_allclose(hessian[i], (gradient(flat + step) - gradient(flat - step)) / 2e-5, rtol=1e-5)


def test_leave_one_out_equals_leaving_each_out(series):
    problem = pose(LeaveOneOut(), observed_model, series)
    value = problem.objective(problem.params, problem.data)
    C, r = dense(series["X"]), series["y"] - 0.5
    total = 0.0
    for i in range(len(r)):
        rest = np.arange(len(r)) != i
        gain = np.linalg.solve(C[np.ix_(rest, rest)], C[rest, i])
        total += stats.norm.logpdf(r[i], gain @ r[rest], np.sqrt(C[i, i] - gain @ C[rest, i]))
    np.testing.assert_allclose(value, total, rtol=1e-9)
    assert not problem.has_curvature


@pytest.mark.long
def test_fit_is_not_worse_than_scikit_learn_and_summary_has_standard_errors(series):
    result = estimax.fit(observed_model, GPEvidence(), series, progress_bar=False)
    kernel = ConstantKernel(1.0) * Matern(1.0, nu=1.5) + WhiteKernel(0.1)
    peer = GaussianProcessRegressor(kernel, alpha=0.0, n_restarts_optimizer=3, random_state=0)
    peer.fit(series["X"][:, None], series["y"] - 0.5)
    assert -result.losses[-1] > peer.log_marginal_likelihood_value_ - 1e-6
    table = result.summary()
    assert list(table.index) == ["amplitude", "length", "noise"]
    assert np.isfinite(table.to_numpy()).all()
    assert "left out one by one" in str(result.diagnose())
    assert result.information_criteria()["log_likelihood"] == pytest.approx(-result.losses[-1])
    evidence = result.log_evidence(256)
    assert evidence.value == pytest.approx(-result.losses[-1], abs=1e-3)

    # draws of the function: moments of the exact posterior (its own formula by NumPy), in standard errors
    S = 4000
    draws = np.asarray(result.sample(S)["y_function"], np.float64)
    prediction = result.predict(series["X"])
    error = (draws.mean(0) - prediction.means["y"]) / np.sqrt(prediction.variances["y"] / S)
    assert np.abs(error).max() < 4.5


@pytest.mark.long
def test_prior_makes_it_map(series):
    def with_prior(X, y):
        length = numpyro.sample("length", dist.LogNormal(0.0, 0.1))
        numpyro.sample("y", GaussianProcess(kernels.Matern32(length), X, diag=0.1).numpyro_dist(), obs=y)

    problem = pose(GPEvidence(), with_prior, series)
    loss = problem.loss(problem.params, None, problem.data)[0]
    value = problem.objective(problem.params, problem.data)
    length = float(problem.constrain(problem.params)["length"])
    np.testing.assert_allclose(-loss - value, stats.lognorm.logpdf(length, 0.1), rtol=1e-6)


def test_jitter_is_raised_only_as_far_as_needed_and_reported():
    good = np.eye(3) + 0.1
    factor, jitter = linalg.jittered_cholesky(jnp.asarray(good))
    assert jitter == 0
    np.testing.assert_allclose(factor, np.linalg.cholesky(good))
    factor, jitter = linalg.jittered_cholesky(jnp.ones((4, 4)))
    assert 0 < jitter < 1e-9
    assert np.isfinite(factor).all()
    assert np.isnan(linalg.jittered_cholesky(-jnp.eye(3))[0]).any()

    def noiseless(X, y):
        length = numpyro.param("length", 1.0, constraint=dist.constraints.positive)
        numpyro.sample("y", GaussianProcess(kernels.ExpSquared(length), X, diag=0.0).numpyro_dist(), obs=y)

    X = np.repeat(np.linspace(0, 1, 10), 2)  # every input twice
    problem = pose(GPEvidence(), noiseless, {"X": X, "y": np.sin(X)})
    assert any("jitter" in line for line in problem.remarks(problem.params))
    assert not problem.faults(problem.params)
    y = np.sin(X)
    y[[7, 14]] += 0.5
    problem = pose(GPEvidence(), noiseless, {"X": X, "y": y})
    (fault,) = problem.faults(problem.params)
    assert "rows 6 and 7 have the same inputs, no noise and different targets (2 such pairs)" in fault


def test_kernel_that_is_none_is_named():
    def wrong(X, y):
        length = numpyro.param("length", 1.0, constraint=dist.constraints.positive)
        kernel = kernels.Custom(lambda a, b: -jnp.abs(a - b) * length)
        numpyro.sample("y", GaussianProcess(kernel, X, diag=1e-3).numpyro_dist(), obs=y)

    X = np.linspace(0, 1, 8)
    with pytest.raises(FloatingPointError, match="kernel matrix is not positive definite"):
        estimax.fit(wrong, GPEvidence(), {"X": X, "y": np.sin(X)}, progress_bar=False)


def test_models_that_do_not_suit_are_named(series):
    def no_process(X, y):
        b = numpyro.param("b", 0.0)
        numpyro.sample("y", dist.Normal(b * X, 1.0), obs=y)

    def bent(X, y):
        f = numpyro.sample("f", GaussianProcess(kernels.Matern32(1.0), X, diag=1e-6).numpyro_dist())
        numpyro.sample("y", dist.Normal(f**2, numpyro.param("s", 1.0)), obs=y)

    def mixed(X, y):
        f = numpyro.sample("f", GaussianProcess(kernels.Matern32(1.0), X, diag=1e-6).numpyro_dist())
        numpyro.sample("y", dist.Normal(f[::-1], numpyro.param("s", 1.0)), obs=y)

    with pytest.raises(ValueError, match="needs a Gaussian process"):
        pose(GPEvidence(), no_process, series)
    binary = {"X": series["X"], "y": (series["y"] > 1).astype(float)}
    with pytest.raises(ValueError, match="needs Gaussian noise, site 'y' is Bernoulli.*NonConjugateGP, SVGP"):
        pose(GPEvidence(), binary_model, binary)
    with pytest.raises(ValueError, match="is not the process 'f' plus Gaussian noise"):
        pose(GPEvidence(), bent, series)
    with pytest.raises(ValueError, match="at other rows"):
        pose(NonConjugateGP(), mixed, series)
    with pytest.raises(ValueError, match="wants the process latent"):
        pose(NonConjugateGP(), observed_model, series)


@pytest.mark.long
@pytest.mark.parametrize(
    ("how", "found"),
    [
        ("GPEvidence(), data", "losses[-1]"),
        # ten steps lead each restart elsewhere, the first starts where the single one does
        ("SparseGP(200), data, optimizer='adam', num_steps=10, learning_rate=0.01", "metrics['loss'][0, -1]"),
    ],
)
def test_restarts_of_hundreds_of_rows_come_to_an_end(how, found):
    """In a process of their own: batches of matrices wait for each other for ever in jaxlib 0.10.0 to 0.11.0."""
    code = f"""
import numpy as np, numpyro, numpyro.distributions as dist
from estimax import fit
from estimax.estimators import GPEvidence, SparseGP
from tinygp import GaussianProcess, kernels
def model(X, y):
    length, noise = (numpyro.param(n, 0.7, constraint=dist.constraints.positive) for n in ("length", "noise"))
    numpyro.sample("y", GaussianProcess(kernels.Exp(length), X, diag=noise**2).numpyro_dist(), obs=y)
X = np.sort(np.random.default_rng(0).uniform(0, 20, 700))
data = {{"X": X, "y": np.sin(X) + 0.2 * np.random.default_rng(1).normal(size=700)}}
one, three = (fit(model, {how}, num_restarts=n) for n in (1, 3))
print(three.{found} - one.losses[-1])
"""
    end = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert abs(float(end.stdout)) < 1e-6
