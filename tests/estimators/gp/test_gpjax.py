"""Exact evidence against GPJax, where it is installed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from estimax.estimators import GPEvidence

from .conftest import pose
from .test_gpytorch import AMPLITUDE, LENGTHS, NOISE, model

pytestmark = pytest.mark.usefixtures("x64_module")


def test_value_and_gradient_with_a_length_a_column_equal_gpjax():
    gpx = pytest.importorskip("gpjax")
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 3))
    y = np.sin(2 * X[:, 0]) + X[:, 1] + 0.4 * rng.normal(size=80)
    data = gpx.Dataset(X=jnp.asarray(X), y=jnp.asarray(y)[:, None])

    def evidence(logs):
        """Of the same logarithms that we differentiate by; without its jitter, which we have not."""
        kernel = gpx.kernels.Matern52(lengthscale=jnp.exp(logs["lengths"]), variance=jnp.exp(2 * logs["amplitude"]))
        prior = gpx.gps.Prior(mean_function=gpx.mean_functions.Zero(), kernel=kernel, jitter=0.0)
        likelihood = gpx.likelihoods.Gaussian(obs_stddev=jnp.exp(logs["noise"]))
        return gpx.objectives.conjugate_mll(prior * likelihood, data)

    logs = {"amplitude": jnp.log(AMPLITUDE), "lengths": jnp.log(LENGTHS), "noise": jnp.log(NOISE)}
    expected, slopes = jax.jit(jax.value_and_grad(evidence))(logs)
    problem = pose(GPEvidence(), model, {"X": X, "y": y})
    value, gradient = jax.jit(jax.value_and_grad(lambda p: problem.objective(p, problem.data)))(problem.params)
    np.testing.assert_allclose(value, expected, rtol=1e-8)
    for name, slope in slopes.items():
        np.testing.assert_allclose(gradient[name], slope, rtol=1e-8)
