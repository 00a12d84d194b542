"""Data and models that the tests of Gaussian processes share."""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from tinygp import GaussianProcess, kernels

TRUTH = {"amplitude": 1.3, "length": 1.7, "noise": 0.4}


def _hyper():
    names = ("amplitude", "length", "noise")
    return [numpyro.param(n, TRUTH[n], constraint=constraints.positive) for n in names]


def observed_model(X, y):
    amplitude, length, noise = _hyper()
    gp = GaussianProcess(amplitude**2 * kernels.Matern32(length), X, diag=noise**2, mean=0.5)
    numpyro.sample("y", gp.numpyro_dist(), obs=y)


def latent_model(X, y):
    amplitude, length, noise = _hyper()
    gp = GaussianProcess(amplitude**2 * kernels.Matern32(length), X, diag=1e-10, mean=0.5)
    f = numpyro.sample("f", gp.numpyro_dist())
    numpyro.sample("y", dist.Normal(f, noise), obs=y)


def binary_model(X, y):
    amplitude, length, _ = _hyper()
    f = numpyro.sample("f", GaussianProcess(amplitude**2 * kernels.Matern32(length), X, diag=1e-8).numpyro_dist())
    numpyro.sample("y", dist.Bernoulli(logits=f), obs=y)


def dense(X, x=None, *, noise=True):
    """The covariance of the models above, by NumPy."""
    other = X if x is None else x
    r = np.sqrt(3) * np.abs(other[:, None] - X) / TRUTH["length"]
    K = TRUTH["amplitude"] ** 2 * (1 + r) * np.exp(-r)
    return K + TRUTH["noise"] ** 2 * np.eye(len(X)) if noise and x is None else K


@pytest.fixture(scope="session")
def series():
    rng = np.random.default_rng(0)
    X = rng.uniform(0, 10, 60)
    return {"X": X, "y": 1.0 + np.sin(X) + 0.4 * rng.normal(size=60)}


def pose(estimator, model, data):
    """The problem of an estimator in double precision."""
    import jax

    return estimator.problem(jax.random.key(0), model, None, {k: jnp.asarray(v) for k, v in data.items()})
