"""Objectives that reweigh the likelihood: E_q log p(x|z) and KL(q‖p) are closed forms for a Gaussian."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from estimax import estimators as es
from estimax.estimators import particles
from estimax.models import linear_gaussian, linear_gaussian_theta

pytestmark = pytest.mark.usefixtures("x64_module")

DATA = linear_gaussian.data()
LOC, SD = np.array([0.3, -0.2, 0.5]), np.array([0.4, 0.3, 0.6])
D, N = 3, 40  # latent scalars; 20 data of two scalars


def guide(x, A, scale):
    loc, sd = numpyro.param("loc", jnp.asarray(LOC)), numpyro.param("sd", jnp.asarray(SD))
    numpyro.sample("z", dist.Normal(loc, sd).to_event(1))


def closed_form(params):
    """E_q log p(x | z), KL(q ‖ p)."""
    x, A, variance = DATA["x"], DATA["A"], DATA["scale"] ** 2
    residuals = jnp.sum((x - A @ params["loc"]) ** 2) + len(x) * jnp.sum((A * params["sd"]) ** 2)
    log_likelihood = -0.5 * residuals / variance - 0.5 * x.size * jnp.log(2 * jnp.pi * variance)
    kl = 0.5 * jnp.sum(params["loc"] ** 2 + params["sd"] ** 2 - 1 - 2 * jnp.log(params["sd"]))
    return log_likelihood, kl


def sampled(estimator, num_draws=20_000):
    params = {"loc": jnp.asarray(LOC), "sd": jnp.asarray(SD)}
    run = jax.value_and_grad(lambda p, key: -estimator.loss(key, p, linear_gaussian.model, guide, **DATA))
    draws = jax.jit(jax.vmap(lambda key: run(params, key)))(jax.random.split(jax.random.key(0), num_draws))
    return jax.tree.map(lambda d: (np.mean(d, 0), np.std(d, 0) / np.sqrt(num_draws)), draws)


@pytest.mark.parametrize(
    ("estimator", "power"),
    [
        (es.DataEmphasizedELBO(2, kappa=3.5), 3.5),
        (es.DataEmphasizedELBO(2), D / N),
        pytest.param(es.AutoGen(2, m=2.0), 3.0, marks=pytest.mark.long),
        (es.AutoGen(2, "score", m=0.0), 1.0),
        pytest.param(es.DataEmphasizedELBO(2, "reparam", kappa=0.25), 0.25, marks=pytest.mark.long),
    ],
    ids=["kappa", "kappa_default", "autogen", "autogen_0", "kappa_reparam"],
)
def test_value_and_gradient(estimator, power):
    def objective(params):
        log_likelihood, kl = closed_form(params)
        return power * log_likelihood - kl

    truth, gradient = jax.value_and_grad(objective)({"loc": jnp.asarray(LOC), "sd": jnp.asarray(SD)})
    (value, error), draws = sampled(estimator)[0], sampled(estimator)[1]
    assert abs(value - truth) < 4 * error
    for name, (mean, error) in draws.items():
        np.testing.assert_array_less(np.abs(mean - gradient[name]) / error, 4.0, err_msg=name)


def test_optimum_of_the_tempered_objective():
    """κ E_q log p(x|z) − KL is maximal at the posterior of the likelihood to the power κ: no variance is left there."""
    kappa = 0.3
    precision = np.eye(3) + kappa * 20 * DATA["A"].T @ DATA["A"] / DATA["scale"] ** 2
    covariance = np.linalg.inv(precision)
    mean = covariance @ (kappa * DATA["A"].T @ DATA["x"].sum(0) / DATA["scale"] ** 2)

    def exact(x, A, scale):
        loc = numpyro.param("loc", jnp.asarray(mean))
        numpyro.sample("z", dist.MultivariateNormal(loc, jnp.asarray(covariance)))

    loss = es.DataEmphasizedELBO(2, kappa=kappa).loss
    run = jax.jit(
        jax.vmap(jax.value_and_grad(lambda p, k: loss(k, p, linear_gaussian.model, exact, **DATA)), (None, 0))
    )
    values, gradients = run({"loc": jnp.asarray(mean)}, jax.random.split(jax.random.key(0), 20))
    np.testing.assert_allclose(values, values[0], rtol=1e-11)
    np.testing.assert_allclose(gradients["loc"], 0.0, atol=1e-9)


@pytest.mark.parametrize("batch_size", [None, 10])
def test_default_kappa_counts_all_of_the_data(batch_size):
    """D/N, a plate's subsample counted at full size."""
    x = linear_gaussian_theta.data()["x"]
    model, q = linear_gaussian_theta.model, linear_gaussian_theta.guide
    local = particles.inspect(model, q, {}, (), {"x": x, "batch_size": batch_size})
    assert (local.num_latents, local.num_data) == (50, 50)
    assert es.DataEmphasizedELBO().resolve_power(local) == 1.0
    whole = particles.inspect(linear_gaussian.model, guide, {}, (), DATA)
    assert es.DataEmphasizedELBO().resolve_power(whole) == D / N
    assert es.DataEmphasizedELBO(kappa=2.0).resolve_power(whole) == 2.0
    assert es.ELBO().resolve_power(whole) == 1.0
