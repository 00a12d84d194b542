"""Diffusion recovery likelihood against quadrature and closed forms of Gaussians."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from scipy import optimize

import estimax
from estimax.estimators import RecoveryLikelihood
from estimax.models import exponential_family

NOISE, WEIGHTS = np.polynomial.hermite_e.hermegauss(12)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
GRID = np.linspace(-4.5, 4.5, 301)
rng = np.random.default_rng(0)


def normal(x, size=None):
    """Of mean eta/k and variance 1/k; where chains start is a line through two parameters."""
    eta = numpyro.param("eta", 0.5)
    k = numpyro.param("k", 1.5, constraint=dist.constraints.positive)
    line = numpyro.param("line", jnp.array([0.0, 1.0]))
    numpyro.deterministic("guess", line[0] + line[1] * x)
    with numpyro.plate("data", x.shape[0], subsample_size=size):
        x = numpyro.subsample(x, event_dim=0)
        numpyro.factor("energy", eta * x - 0.5 * k * x**2)


def polynomial_recovery(x, sigma, parameters):
    """Minus the mean of log p(x_i | x̃) over data and noise, by quadrature in x̃ and in x."""
    *theta, log_quartic = parameters
    energy = lambda x: theta[0] * x + theta[1] * x**2 + theta[2] * x**3 - np.exp(log_quartic) * x**4  # noqa: E731
    noisy = (x[:, None] + sigma * NOISE).ravel()
    tilted = energy(GRID) - 0.5 * ((GRID - noisy[:, None]) / sigma) ** 2
    top = tilted.max(1, keepdims=True)
    log_z = (top[:, 0] + np.log(np.exp(tilted - top).sum(1) * (GRID[1] - GRID[0]))).reshape(len(x), -1)
    own = energy(x) - 0.5 * (NOISE**2 @ WEIGHTS)
    return (log_z @ WEIGHTS - own).mean()


def gradients(problem, params, num):
    """Independent gradients, with the step size where tuning leaves it."""
    problem = problem.with_memory(problem.memory | {"log_step": jnp.log(jnp.float32(0.9)), "count": jnp.float32(1e6)})

    def one(key):
        p = problem.with_memory(problem.refresh(problem.memory, params, key))
        return jax.grad(lambda v: p.loss(v, key, p.data)[0])(params)

    return jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=100))(random.split(random.key(1), num))


def errors(found, exact):
    """Largest distance of the mean to the exact value in standard errors."""
    many = np.asarray(found, np.float64)
    return (np.abs(many.mean(0) - exact) / (many.std(0) / np.sqrt(len(many)))).max()


@pytest.mark.long
def test_gradient_of_a_gaussian_and_of_minibatches():
    """Closed form within 4 s.e. of 1,000 gradients at parameters far from the data's; short chains are biased."""
    x, sigma, eta, k = rng.normal(1.0, 1.0, 20), 0.8, 0.5, 1.5
    precision = k + 1 / sigma**2
    mean = (eta + x / sigma**2) / precision
    second = mean**2 + 1 / precision + 1 / (sigma * precision) ** 2
    exact = {"eta": (mean - x).sum(), "k": -0.5 * k * (second - x**2).sum()}  # k by its logarithm
    params = {"eta": jnp.float32(eta), "k": jnp.log(jnp.float32(k)), "line": jnp.array([0.0, 1.0])}
    data = {"x": jnp.asarray(x, jnp.float32)}
    for options, size in ({"steps": 25}, None), ({"steps": 25, "subsample": True}, 5):
        problem = RecoveryLikelihood(sigma, **options).problem(random.key(0), normal, None, data | {"size": size})
        found = gradients(problem, params, 1000)
        assert max(errors(found[n], exact[n]) for n in exact) < 4
    short = gradients(RecoveryLikelihood(sigma, steps=1).problem(random.key(0), normal, None, data), params, 1000)
    assert errors(short["k"], exact["k"]) > 10
    # started by the conditional law itself, as a perfect initializer does, one move is enough
    line = jnp.array([eta, 1 / sigma**2], jnp.float32) / precision
    start = RecoveryLikelihood(sigma, steps=1, initializer="guess")
    problem = start.problem(random.key(0), normal, None, data)
    problem = replace(problem, spread=jnp.full(1, k**-0.5))
    found = gradients(problem, params | {"line": line}, 2000)
    assert max(errors(found[n], exact[n]) for n in exact) < 4


def test_gradient_of_truncated_data():
    """Noise crosses the bound: chains start inside. Against quadrature of p(x | x̃) over x > bound, within 4 s.e."""
    x = rng.exponential(1.0, 10)

    def model(x):
        rate = numpyro.param("rate", 1.0)
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("x", dist.Exponential(rate), obs=x)

    sigma, rate = 0.7, 1.3
    grid = np.linspace(0, 12, 4001) + 0.0015
    noisy = x[:, None] + sigma * NOISE
    log_p = -rate * grid - 0.5 * ((grid - noisy[..., None]) / sigma) ** 2
    p = np.exp(log_p - log_p.max(-1, keepdims=True))
    mean = (p @ grid / p.sum(-1)) @ WEIGHTS
    problem = RecoveryLikelihood(sigma, steps=30).problem(
        random.key(0), model, None, {"x": jnp.asarray(x, jnp.float32)}
    )
    found = gradients(problem, {"rate": jnp.float32(rate)}, 1000)["rate"]
    assert errors(found, (x - mean).sum()) < 4


@pytest.fixture(scope="module")
def two_modes():
    return exponential_family.polynomial_data()["x"][:150]


@pytest.mark.long
def test_two_modes_reach_the_maximum_of_the_recovery_likelihood(two_modes):
    """Found by quadrature and scipy. 0.001 nats a datum from it: the data themselves leave 4/(2 · 150) = 0.013."""
    loss = lambda v: polynomial_recovery(two_modes, 0.8, v)  # noqa: E731
    exact = optimize.minimize(loss, [0.0, 1.0, 0.0, -0.7], tol=1e-8)
    result = estimax.fit(
        exponential_family.polynomial, RecoveryLikelihood(0.8), {"x": two_modes}, num_steps=1500, learning_rate=0.02,
        progress_bar=False,
    )  # fmt: skip
    found = [*result.params["theta"], np.log(result.params["quartic"])]
    assert 0 <= loss(found) - exact.fun < 0.001
    assert not result.has_curvature


@pytest.fixture(scope="module")
def gaussian():
    return rng.normal(-1.0, 1.5, 500)


@pytest.mark.long
@pytest.mark.parametrize("options", [{"steps": 10}, {"steps": 1, "initializer": "guess"}], ids=["plain", "cooperative"])
def test_gaussian_data_give_maximum_likelihood(gaussian, options):
    result = estimax.fit(
        normal, RecoveryLikelihood(1.0, **options), {"x": gaussian}, num_steps=1000, learning_rate=0.02,
        progress_bar=False,
    )  # fmt: skip
    variance = gaussian.var()
    np.testing.assert_allclose(result.params["k"], 1 / variance, rtol=0.1)
    np.testing.assert_allclose(result.params["eta"], gaussian.mean() / variance, rtol=0.1)
    if "initializer" in options:
        np.testing.assert_allclose(result.params["line"][1], variance / (1 + variance), atol=0.03)


def with_levels(x, s):
    m = numpyro.param("m", 0.0)
    v = numpyro.param("v", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("data", x.shape[0]):
        numpyro.factor("energy", -0.5 * (x - m) ** 2 / (v + s**2))


@pytest.mark.long
def test_ladder_of_levels_and_draws_down_it(gaussian):
    data = {"x": gaussian, "s": np.zeros(len(gaussian))}
    estimator = RecoveryLikelihood((0.5, 1.5, 4.0), level="s", steps=5)
    result = estimax.fit(with_levels, estimator, data, num_steps=1000, learning_rate=0.02, progress_bar=False)
    assert result.params["m"] == pytest.approx(gaussian.mean(), abs=0.1)
    assert result.params["v"] == pytest.approx(gaussian.var(), rel=0.1)
    x = np.asarray(result.problem.draws(result.unconstrained, random.key(0)))
    assert x.shape == gaussian.shape
    m, v = result.params["m"], result.params["v"]
    assert abs(x.mean() - m) < 4 * np.sqrt(v / len(x))
    assert abs(x.var() - v) < 4 * v * np.sqrt(2 / len(x))


def posed(data, model=normal, **options):
    return RecoveryLikelihood(**options).problem(random.key(0), model, None, data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RecoveryLikelihood(0.0), "sigma must be positive, got 0.0"),
        (lambda: RecoveryLikelihood((1.0, 0.5), level="s"), "standard deviations that increase"),
        (lambda: RecoveryLikelihood((0.5, 1.0)), "needs an energy that knows its level"),
        (lambda: RecoveryLikelihood(persistent=True), "takes neither persistent nor"),
        (lambda: RecoveryLikelihood(steps=0), "steps must be an integer of at least 1"),
        (lambda: posed({"x": jnp.arange(5)}), "are discrete .dtype int32.: take ContrastiveDivergence"),
        (lambda: posed({"x": jnp.ones(5)}, level="s"), "level='s' must name a data argument of shape \\(5,\\)"),
        (lambda: posed({"x": jnp.ones(5)}, initializer="gues"),
         "names no deterministic site .* \\(there are: guess\\)"),
        (lambda: posed({"x": jnp.ones(5), "s": jnp.zeros(5)}, with_levels, argument="x", initializer="g"),
         "there are: none"),
    ],
)  # fmt: skip
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_energy_that_is_not_finite_is_named():
    def model(x):
        k = numpyro.param("k", 1.0)
        with numpyro.plate("data", x.shape[0]):
            numpyro.factor("energy", -k * jnp.sqrt(x))

    with pytest.raises(FloatingPointError, match="'energy' is not finite"):
        estimax.fit(model, RecoveryLikelihood(), {"x": np.array([-1.0, 1.0])}, num_steps=5, progress_bar=False)
