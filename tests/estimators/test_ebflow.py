"""Flows by score matching: against the explicit divergence, the normal maximum likelihood, and compiled programs."""

import flowjax.distributions
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from jax import random
from numpyro.contrib.module import eqx_module
from scipy import stats
from sklearn.datasets import load_iris

import estimax
from estimax.estimators import MLE, EBFlow
from estimax.models.flows import FlowDensity
from estimax.models.networks import LinearFlow
from estimax.models.transport import observed

IRIS = load_iris().data
IRIS = ((IRIS - IRIS.mean(0)) / IRIS.std(0)).astype(np.float32)
FLOW = jax.tree.map(lambda x: x + 0.2, LinearFlow(4, 3, key=random.key(3)))


def gaussian_flow(x):
    """One linear layer: all normal distributions and no other."""
    flow = eqx_module("flow", LinearFlow(4, 1, key=random.key(0)))
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", FlowDensity(flow), obs=x)


def explicit(flow, x):
    """½‖s‖² + div s with the whole Jacobian, mean over x."""
    score = jax.grad(flow.log_prob)
    return jnp.mean(jax.vmap(lambda x: 0.5 * jnp.sum(score(x) ** 2) + jnp.trace(jax.jacfwd(score)(x)))(x))


def flat_gradient(loss):
    return jnp.concatenate([jnp.ravel(g) for g in jax.tree.leaves(jax.grad(loss)(FLOW))])


@pytest.mark.long
def test_sliced_gradient_is_unbiased():
    """Mean of 2,000 gradients within 4.5 standard errors of the explicit one, in all 80 parameters."""
    truth = flat_gradient(lambda flow: explicit(flow, IRIS[:20]))

    def one(key):
        x = jnp.asarray(IRIS[:20])
        return flat_gradient(lambda flow: jnp.mean(EBFlow().objective(FlowDensity(flow), x, key, None)))

    draws = np.asarray(jax.jit(jax.vmap(one))(random.split(random.key(0), 2000)))
    error = draws.std(0) / np.sqrt(len(draws))
    np.testing.assert_array_less(np.abs(draws.mean(0) - truth), 4.5 * error + 1e-5 * np.abs(truth).max())


def test_denoising_is_sliced_at_small_noise():
    """At sigma = 0.05 means of 4,000 losses agree within 4 standard errors and σ² times the next order."""
    x = jnp.asarray(IRIS[:20])

    def mean_loss(estimator):
        one = lambda key: jnp.mean(estimator.objective(FlowDensity(FLOW), x, key, None))  # noqa: E731
        draws = np.asarray(jax.jit(jax.vmap(one))(random.split(random.key(0), 4000)))
        return draws.mean(), draws.std() / np.sqrt(4000)

    (a, sa), (b, sb) = mean_loss(EBFlow()), mean_loss(EBFlow("denoising", sigma=0.05))
    assert abs(a - b) < 4 * np.hypot(sa, sb) + 0.02 * abs(a)


def fixed(sigma):
    return EBFlow("denoising", sigma=sigma)


@pytest.mark.parametrize(("steps", "sigma"), [(0, 1.0), (50, 0.1), (100, 0.01), (1000, 0.01)])
def test_a_pair_of_sigmas_falls_by_the_same_factor_at_every_step(steps, sigma):
    """The loss after so many steps is that of the fixed noise between the two, half-way their geometric mean."""
    falling = EBFlow("denoising", sigma=(1.0, 0.01), anneal_steps=100)
    one, other = (
        e.problem(random.key(0), gaussian_flow, None, {"x": jnp.asarray(IRIS)}) for e in (falling, fixed(sigma))
    )
    one = one.with_memory(jnp.asarray(steps + 1))  # the engine counts the step that is on its way
    found, wanted = (p.loss(p.params, random.key(1), p.data)[0] for p in (one, other))
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)


def test_the_noise_goes_on_falling_in_a_resumed_fit_and_diagnose_says_where_it_is():
    estimator = EBFlow("denoising", sigma=(1.0, 0.01), anneal_steps=100)
    result = estimax.fit(gaussian_flow, estimator, {"x": IRIS}, num_steps=50, progress_bar=False)
    assert "after 50 steps sigma is still at 0.1, above its last value 0.01" in str(result.diagnose())
    more = result.resume(50, progress_bar=False)
    assert int(more.problem.memory) == 100
    assert "sigma is still" not in str(more.diagnose())


def test_normal_family_reaches_the_maximum_likelihood():
    """For normal densities score matching is maximum likelihood."""
    result = estimax.fit(gaussian_flow, EBFlow(), {"x": IRIS}, num_steps=2000, progress_bar=False)
    best = stats.multivariate_normal(IRIS.mean(0), np.cov(IRIS.T, bias=True)).logpdf(IRIS).mean()
    found = float(result.problem.log_likelihood(result.unconstrained, result.data)) / len(IRIS)
    assert best - 0.02 < found <= best + 1e-3
    flow = observed(gaussian_flow, result.params, {"x": IRIS})
    assert float(jnp.mean(flow.log_prob(IRIS))) == pytest.approx(found, abs=1e-4)


@pytest.mark.long
def test_a_flow_of_flowjax_starts_another_fit_and_is_no_array():
    """Its `shape`, that of x, is not that of a parameter: tables and draws leave it out."""

    def model(x):
        made = flowjax.distributions.Normal(jnp.zeros(2), jnp.full(2, 2.0))
        with numpyro.plate("data", len(x)):
            numpyro.sample("x", FlowDensity(eqx_module("flow", made)), obs=x)

    x = IRIS[:, :2]
    options = {"num_steps": 1, "learning_rate": 1e-9, "progress_bar": False}
    first = estimax.fit(model, MLE(subsample=True), {"x": x}, **{**options, "learning_rate": 0.1})
    again = estimax.fit(model, EBFlow("denoising"), {"x": x}, start=first.params, **options)
    found = observed(model, again.params, {"x": x}).log_prob(x)
    np.testing.assert_allclose(found, observed(model, first.params, {"x": x}).log_prob(x), atol=1e-6)
    assert found.mean() > stats.norm(0, 2).logpdf(x).sum(1).mean()  # one step of the likelihood's, from sd 2
    assert first.summary().empty
    assert "x" in first.to_arviz(num_samples=10)["observed_data"]
    for other in (3.0, {"weights": np.ones(3)}):
        with pytest.raises(ValueError, match="is not a network like the model's"):
            estimax.fit(model, EBFlow(), {"x": x}, start=dict.fromkeys(first.params, other), **options)


def test_the_step_computes_no_determinant():
    """The likelihood's compiled gradient factorises matrices, that of the score does not."""

    def program(estimator):
        problem = estimator.problem(random.key(0), gaussian_flow, None, {"x": jnp.asarray(IRIS)})
        loss = lambda p: problem.loss(p, random.key(0), problem.data)[0]  # noqa: E731
        return jax.jit(jax.grad(loss)).lower(problem.params).compile().as_text()

    assert "getrf" in program(MLE())
    assert "getrf" not in program(EBFlow())


def no_flow(x):
    m = numpyro.param("m", jnp.zeros(()))
    numpyro.sample("x", numpyro.distributions.Normal(m, 1), obs=x)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: EBFlow("explicit"), "variant must be one of sliced, denoising"),
        (lambda: EBFlow("denoising", sigma=0.0), "sigma, the noise scale, must be positive, got 0.0"),
        (lambda: EBFlow("denoising", sigma=(1.0, 0.0)), "sigma, the noise scale, must be positive, got 0.0"),
        (lambda: EBFlow("denoising", sigma=(1.0, 0.5, 0.1)), r"a number or a pair \(first, last\)"),
        (lambda: EBFlow("denoising", sigma=(0.1,)), r"a number or a pair \(first, last\), got \(0.1,\)"),
        (lambda: EBFlow(sigma=(1.0, 0.1)), "'sliced' has no noise"),
        (lambda: EBFlow("denoising", variance_reduced=False), 'variance_reduced=False is for variant="sliced"'),
        (lambda: EBFlow("denoising", sigma=(1.0, 0.1), anneal_steps=0), "anneal_steps must be an integer"),
        (lambda: EBFlow(num_directions=0), "num_directions must be an integer of at least 1"),
        (lambda: estimax.fit(no_flow, EBFlow(), {"x": IRIS}), "is a models.flows.FlowDensity.*'x' is Normal"),
        (lambda: estimax.fit(gaussian_flow, EBFlow(), {"x": np.ones((5, 4), int)}), "dequantise"),
    ],
)
def test_mistakes_are_named(run, message):
    with pytest.raises(ValueError, match=message):
        run()
