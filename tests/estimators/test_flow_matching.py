"""Flow matching against quadrature, sorting (transport on the line) and closed forms of Gaussians."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from jax import random
from scipy import stats
from scipy.optimize import linear_sum_assignment

import estimax
from estimax.estimators import ConditionalFlowMatching, StochasticInterpolant
from estimax.models.diffusion import Diffusion
from estimax.models.noise_process import VP
from estimax.models.transport import Flow, observed

POINTS = np.array([-1.2, 0.1, 0.4, 1.5], np.float32)[:, None]
THETA = jnp.array([-0.4, 0.3, 0.5])


def three_parameters(theta):
    return lambda x, t: theta[0] * x + theta[1] * t + theta[2] * jnp.tanh(x)


def by_quadrature(noise):
    """Gradients of ½ E‖v − u‖² and ½ E‖η − E[z | x_t]‖² at THETA, u the marginals' velocity; `noise` is γ²/(t(1 − t)).

    x_t around a datum m is N(tm, (1 − t)² + γ²), in which x_0 and z are regressed on x_t in closed form.
    """
    t, weights = np.polynomial.legendre.leggauss(200)
    t, weights = (t + 1) / 2, weights / 2
    gamma2 = noise * t * (1 - t)
    variance = (1 - t) ** 2 + gamma2
    z = np.linspace(-7, 7, 400)
    dz = stats.norm.pdf(z) * (z[1] - z[0])
    gradients = np.zeros((2, 3))
    for mean in POINTS[:, 0]:
        x = t[:, None] * mean + np.sqrt(variance)[:, None] * z
        residual = x[..., None] - t[:, None, None] * POINTS[:, 0]
        log_p = -(residual**2) / (2 * variance[:, None, None])
        share = np.exp(log_p - log_p.max(-1, keepdims=True))
        share /= share.sum(-1, keepdims=True)
        pull = -(1 - t) + noise * (1 - 2 * t) / 2
        u = (share * (POINTS[:, 0] + pull[:, None, None] / variance[:, None, None] * residual)).sum(-1)
        eta = (share * residual).sum(-1) * (np.sqrt(gamma2) / variance)[:, None]
        slopes = np.stack([x, np.broadcast_to(t[:, None], x.shape), np.tanh(x)])
        value = THETA[0] * x + THETA[1] * t[:, None] + THETA[2] * np.tanh(x)
        for i, target in enumerate((u, eta)):
            gradients[i] += np.einsum("t,z,tz,ktz->k", weights, dz, value - target, slopes) / len(POINTS)
    return gradients


def draws_of_gradient(estimator, make, num=20_000):
    def loss(theta, key):
        return jnp.mean(estimator.objective(make(theta), jnp.asarray(POINTS), key, None))

    return np.asarray(jax.jit(jax.vmap(lambda key: jax.grad(loss)(THETA, key)))(random.split(random.key(0), num)))


def test_gradient_is_that_of_matching_the_marginal_velocity():
    draws = draws_of_gradient(ConditionalFlowMatching(), lambda theta: Flow(three_parameters(theta), 1))
    error = draws.std(0) / np.sqrt(len(draws))
    np.testing.assert_array_less(np.abs(draws.mean(0) - by_quadrature(0.0)[0]), 4 * error)


def test_interpolant_gradients_are_those_of_matching_velocity_and_denoiser():
    """Within 4 standard errors, and 0.005 for the times within 0.001 of the ends that are left out."""
    truth = by_quadrature(2.0)
    fixed = three_parameters(THETA)
    for i, make in enumerate([
        lambda theta: Flow(three_parameters(theta), 1, denoiser=fixed),
        lambda theta: Flow(fixed, 1, denoiser=three_parameters(theta)),
    ]):  # fmt: skip
        draws = draws_of_gradient(StochasticInterpolant(), make)
        error = draws.std(0) / np.sqrt(len(draws))
        np.testing.assert_array_less(np.abs(draws.mean(0) - truth[i]), 4 * error + 0.005)


@pytest.mark.long
def test_minibatch_transport_pairs_like_the_best_assignment():
    """Mean squared distance of pairs within 15 % of that of scipy's assignment, far below that of random pairs."""
    base, x = random.normal(random.key(0), (64, 2)), 2 + random.normal(random.key(1), (64, 2))
    paired = ConditionalFlowMatching("ot", epsilon=0.005).transported(base, x, (1,), random.key(2))
    cost = np.square(np.asarray(base)[:, None] - np.asarray(x)[None]).sum(-1)
    rows, columns = linear_sum_assignment(cost)
    best = cost[rows, columns].mean()
    assert np.square(paired - x).sum(-1).mean() < 1.15 * best
    assert np.square(base - x).sum(-1).mean() > 1.2 * best


def test_minibatch_transport_leaves_the_base_normal():
    """Draws of the plan's columns: mean and variance of 64 × 200 within 5 standard errors."""
    estimator = ConditionalFlowMatching("ot")
    x = jnp.asarray(np.random.default_rng(0).normal(3, 2, (64, 1)))

    def one(key):
        key_base, key_pair = random.split(key)
        return estimator.transported(random.normal(key_base, x.shape), x, (1,), key_pair)

    draws = np.asarray(jax.jit(jax.vmap(one))(random.split(random.key(0), 200))).reshape(200, 64)
    assert abs(draws.mean()) < 5 * draws.mean(1).std() / np.sqrt(200)
    variances = draws.var(1)
    assert abs(variances.mean() - 1 + 1 / 64) < 5 * variances.std() / np.sqrt(200)


def test_weighted_pairs_count_by_their_kernel():
    estimator = ConditionalFlowMatching("weighted", epsilon=0.7)
    x, key = jnp.asarray(POINTS), random.key(5)
    flow = Flow(three_parameters(THETA), 1)
    base = random.normal(random.split(key, 3)[1], x.shape)
    kernel = np.exp(-np.square(np.asarray(x - base))[:, 0] / (2 * 0.7))
    plain = np.asarray(ConditionalFlowMatching().objective(flow, x, key, None))
    expected = plain * kernel / kernel.mean()
    np.testing.assert_allclose(estimator.objective(flow, x, key, None), expected, rtol=1e-4)


def affine_model(x):
    """The velocity between N(0, 1) and N(m, sd²), with both as parameters."""
    m, log_sd = numpyro.param("m", jnp.zeros(1)), numpyro.param("log_sd", jnp.zeros(1))

    def velocity(x, t):
        variance = (1 - t) ** 2 + (t * jnp.exp(log_sd)) ** 2
        return m + (-(1 - t) + t * jnp.exp(2 * log_sd)) / variance * (x - t * m)

    with numpyro.plate("data", len(x), subsample_size=128):
        numpyro.sample("x", Flow(velocity, 1), obs=numpyro.subsample(x, event_dim=1))


@pytest.mark.long
def test_fitted_flow_has_the_likelihood_of_the_data():
    x = np.random.default_rng(0).normal(1.5, 0.5, (1000, 1)).astype(np.float32)
    result = estimax.fit(affine_model, ConditionalFlowMatching(), {"x": x}, num_steps=1500, progress_bar=False)
    best = stats.norm(x.mean(), x.std()).logpdf(x).mean()
    flow = observed(affine_model, result.params, {"x": x})
    assert np.mean(flow.log_prob(x)) == pytest.approx(best, abs=0.01)
    assert float(result.problem.log_likelihood(result.unconstrained, result.data)) / 1000 == pytest.approx(
        best, abs=0.01
    )


def diffusion_model(x):
    m = numpyro.param("m", jnp.zeros(1))
    numpyro.sample("x", Diffusion(lambda x, t: m - x, VP(), 1), obs=x)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: ConditionalFlowMatching("sinkhorn"), "coupling must be one of independent, ot, weighted"),
        (lambda: ConditionalFlowMatching("ot", epsilon=0.0), "epsilon must be positive, got 0.0"),
        (lambda: estimax.fit(diffusion_model, ConditionalFlowMatching(), {"x": POINTS}), "'x' is Diffusion"),
        (lambda: estimax.fit(diffusion_model, StochasticInterpolant(), {"x": POINTS}), "'x' is Diffusion"),
        (lambda: estimax.fit(affine_model, ConditionalFlowMatching(), {"x": np.zeros((200, 1), int)}), "dequantise"),
    ],
)
def test_mistakes_are_named(run, message):
    with pytest.raises(ValueError, match=message):
        run()
