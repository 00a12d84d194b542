"""Gaussian sites against quadrature, importance sampling, exact regression and the likelihood family."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.flatten_util import ravel_pytree
from scipy import special, stats
from tinygp import GaussianProcess, kernels

from estimax.estimators import MLE, GPEvidence, NonConjugateGP
from estimax.estimators.gp import nonconjugate
from estimax.estimators.gp.quadrature import hermite, tilted

from .conftest import binary_model, dense, latent_model, pose

pytestmark = pytest.mark.usefixtures("x64_module")

METHODS = ("laplace", "ep", "cvi", "hybrid")


def objective(problem):
    return float(jax.jit(lambda p: problem.objective(p, problem.data))(problem.params))


@pytest.fixture(scope="module")
def binary():
    rng = np.random.default_rng(3)
    X = np.sort(rng.uniform(0, 10, 25))
    return {"X": X, "y": (rng.uniform(size=25) < special.expit(2 * np.sin(X))).astype(float)}


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
def test_gaussian_likelihood_is_exact(series, method):
    exact = pose(GPEvidence(), latent_model, series)
    problem = pose(NonConjugateGP(method), latent_model, series)
    np.testing.assert_allclose(objective(problem), float(exact.objective(exact.params, exact.data)), rtol=1e-7)


def evidence_by_quadrature(X, y):
    """log Σ p(y | f) N(f | 0, K) over a product grid: three points."""
    x, w = np.polynomial.hermite_e.hermegauss(60)
    L = np.linalg.cholesky(dense(X, noise=False) + 1e-8 * np.eye(3))
    total = 0.0
    for index in itertools.product(range(60), repeat=3):
        f = L @ x[list(index)]
        total += np.prod(w[list(index)] / np.sqrt(2 * np.pi)) * np.prod(special.expit((2 * y - 1) * f))
    return np.log(total)


@pytest.mark.long
def test_evidence_of_three_points_by_quadrature():
    data = {"X": np.array([0.0, 1.0, 2.5]), "y": np.array([1.0, 1.0, 0.0])}
    truth = evidence_by_quadrature(data["X"], data["y"])
    values = {m: objective(pose(NonConjugateGP(m), binary_model, data)) for m in METHODS}
    assert abs(values["ep"] - truth) < 0.005
    assert abs(values["hybrid"] - truth) < 0.005
    assert values["cvi"] < truth < values["cvi"] + 0.05
    assert abs(values["laplace"] - truth) < 0.1


@pytest.mark.long
def test_evidence_of_classification_by_importance_sampling(binary):
    """Truth: annealing is not needed, because plain importance sampling from EP's posterior has all its weights near
    one."""
    values = {m: objective(pose(NonConjugateGP(m), binary_model, binary)) for m in METHODS}
    problem = pose(NonConjugateGP("ep"), binary_model, binary)
    log_w = np.asarray(problem.posterior(problem.params).log_weights(jax.random.key(0), 20000))
    # the weights themselves are checked against the definition with dense matrices by SciPy
    truth = special.logsumexp(log_w) - np.log(len(log_w))
    stderr = np.exp(log_w - truth).std() / np.sqrt(len(log_w))
    assert stderr < 0.005
    assert abs(values["ep"] - truth) < 0.05 + 4 * stderr
    assert values["cvi"] < truth + 4 * stderr
    assert abs(values["hybrid"] - truth) < 0.05 + 4 * stderr
    K = dense(binary["X"], noise=False) + 1e-8 * np.eye(25)
    prior = np.random.default_rng(0).multivariate_normal(np.zeros(25), K, 400_000)
    terms = np.log(special.expit((2 * binary["y"] - 1) * prior)).sum(1)
    simple = special.logsumexp(terms) - np.log(len(terms))
    error = np.exp(terms - simple).std() / np.sqrt(len(terms))
    assert abs(truth - simple) < 4 * np.hypot(error, stderr)


@pytest.mark.long
def test_laplace_equals_the_likelihood_family(binary):
    """MLE integrates the same latents by Laplace's method, block by block."""
    ours = pose(NonConjugateGP("laplace"), binary_model, binary)
    other = pose(MLE(), binary_model, binary)
    value, gradient = jax.jit(jax.value_and_grad(lambda p: ours.objective(p, ours.data)))(ours.params)
    expected, slope = jax.jit(jax.value_and_grad(lambda p: other.log_likelihood(p, other.data)))(ours.params)
    np.testing.assert_allclose(value, expected, rtol=1e-7)
    for name in ("amplitude", "length"):
        np.testing.assert_allclose(gradient[name], slope[name], rtol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("method", ["laplace", "ep", "cvi"])
def test_gradient_is_that_of_the_objective(binary, method):
    problem = pose(NonConjugateGP(method), binary_model, binary)
    f = jax.jit(lambda p: problem.objective(p, problem.data))
    gradient = jax.jit(jax.grad(lambda p: problem.objective(p, problem.data)))(problem.params)
    for name in ("amplitude", "length"):
        step = 1e-5
        up, down = ({**problem.params, name: problem.params[name] + s} for s in (step, -step))
        np.testing.assert_allclose(gradient[name], (f(up) - f(down)) / (2 * step), rtol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("method", ["laplace", "ep", "cvi"])
def test_hessian_of_a_fit_is_the_derivative_of_the_gradient(binary, method):
    """Central differences of gradients at sites that are converged anew: the sites move."""
    problem = pose(NonConjugateGP(method), binary_model, binary)
    finished = problem.finish(problem.params)
    z, unravel = ravel_pytree(problem.params)
    hessian = jax.jit(jax.hessian(lambda z: finished.objective(unravel(z), problem.data)))(z)
    gradient = jax.jit(jax.grad(lambda z: problem.objective(unravel(z), problem.data)))
    for i, step in enumerate(1e-4 * np.eye(len(z))):
        np.testing.assert_allclose(hessian[i], (gradient(z + step) - gradient(z - step)) / 2e-4, rtol=1e-5)


@pytest.mark.long
def test_predictions_are_those_of_quadrature(binary):
    problem = pose(NonConjugateGP("ep"), binary_model, binary)
    new = {"X": jnp.array([0.5, 11.0]), "y": jnp.array([1.0, 0.0])}
    found = jax.jit(lambda p: problem.forecast(p, new))(problem.params)
    mean, variance = np.asarray(found.function_mean["f"]), np.asarray(found.function_variance["f"])
    grid = np.linspace(-12, 12, 20001)
    for i in range(2):
        density = stats.norm.pdf(grid, mean[i], np.sqrt(variance[i]))
        p = np.trapezoid(density * special.expit(grid), grid)
        np.testing.assert_allclose(found.mean[i], p, rtol=1e-6)
        np.testing.assert_allclose(found.variance[i], p * (1 - p), rtol=1e-6)
    log_density = jax.jit(lambda p: problem.predictive_log_density(p, new))(problem.params)
    np.testing.assert_allclose(log_density, np.log([found.mean[0], 1 - found.mean[1]]), rtol=1e-9)


def test_predicted_categories_have_the_moments_of_their_probabilities():
    cuts = np.array([-1.0, 0.5])

    def model(X, y):
        length = numpyro.param("length", 1.0, constraint=dist.constraints.positive)
        f = numpyro.sample("f", GaussianProcess(kernels.ExpSquared(length), X, diag=1e-8).numpyro_dist())
        numpyro.sample("y", dist.OrderedLogistic(f, jnp.asarray(cuts)), obs=y)

    problem = pose(NonConjugateGP("ep"), model, {"X": np.array([0.0, 0.7, 1.9]), "y": np.array([0, 1, 2])})
    new = {"X": jnp.array([0.3]), "y": jnp.array([0])}
    found = jax.jit(lambda p: problem.forecast(p, new))(problem.params)
    grid = np.linspace(-12, 12, 20001)
    density = stats.norm.pdf(grid, found.function_mean["f"][0], np.sqrt(found.function_variance["f"][0]))
    above = [np.trapezoid(density * special.expit(grid - c), grid) for c in cuts]  # P(y > 0), P(y > 1)
    assert found.mean[0] == pytest.approx(sum(above), rel=1e-6)
    assert found.variance[0] == pytest.approx(above[0] + 3 * above[1] - sum(above) ** 2, rel=1e-6)


LIKELIHOODS = {
    "poisson": (lambda f: dist.Poisson(jnp.exp(f)), np.array([0, 3, 40, 1, 0, 2.0])),
    "negative_binomial": (lambda f: dist.NegativeBinomial2(jnp.exp(f), 2.0), np.array([0, 3, 40, 1, 0, 2.0])),
    "student": (lambda f: dist.StudentT(3.0, f, 0.5), np.array([0.1, -0.3, 5.0, 0.2, 0.0, 0.4])),
    "ordinal": (lambda f: dist.OrderedLogistic(f, jnp.array([-1.0, 0.5, 2.0])), np.array([0, 1, 3, 2, 0, 1])),
}


@pytest.mark.long
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihoods_against_importance_sampling_from_the_prior(name):
    likelihood, y = LIKELIHOODS[name]

    def model(X, y):
        length = numpyro.param("length", 1.0, constraint=dist.constraints.positive)
        f = numpyro.sample("f", GaussianProcess(kernels.ExpSquared(length), X, diag=1e-8, mean=0.3).numpyro_dist())
        numpyro.sample("y", likelihood(f), obs=y)

    X = np.array([0.0, 0.7, 1.9, 3.0, 4.4, 6.0])
    K = np.exp(-0.5 * (X[:, None] - X) ** 2) + 1e-8 * np.eye(6)
    f = 0.3 + np.random.default_rng(0).multivariate_normal(np.zeros(6), K, 400_000)
    log_lik = np.asarray(likelihood(jnp.asarray(f)).log_prob(jnp.asarray(y))).sum(1)
    truth = special.logsumexp(log_lik) - np.log(len(f))
    error = np.exp(log_lik - truth).std() / np.sqrt(len(f))
    data = {"X": X, "y": y}
    values = {m: objective(pose(NonConjugateGP(m), model, data)) for m in METHODS}
    assert abs(values["ep"] - truth) < 0.05 + 4 * error, (values, truth, error)
    assert values["cvi"] < truth + 4 * error
    if name != "student":  # Laplace's method is half a nat off where the likelihood is not log-concave
        assert abs(values["laplace"] - truth) < 0.3 + 4 * error, (values, truth)


@pytest.mark.long
def test_large_counts_far_from_the_prior_converge():
    log_lik = lambda f: dist.Poisson(jnp.exp(f)).log_prob(jnp.array([1000.0, 0.0]))  # noqa: E731
    for method in ("laplace", "ep", "cvi"):
        sites, change = nonconjugate.converge(method, 0.7, log_lik, 25.0 * jnp.eye(2))
        q = nonconjugate.solve(25.0 * jnp.eye(2), sites)
        assert change < 1e-8
        assert q.mean[0] == pytest.approx(np.log(1000), abs=0.02)


def test_quadrature_integrates_polynomials():
    nodes, log_w = hermite(2)
    assert float(jnp.sum(jnp.exp(log_w) * nodes[:, 0] ** 4 * nodes[:, 1] ** 2)) == pytest.approx(3.0)
    with pytest.raises(ValueError, match="up to 3 latent processes"):
        hermite(4)


def test_tilted_densities_of_a_wide_prior_equal_a_fine_grid():
    """A step seen from a prior five times as wide: half of a Gaussian, which its mode and curvature do not tell. Half
    the nodes are off by 2e-4 nats, and a solver then finds no optimum of EP's evidence."""
    mean, sd = np.array([-9.0, -4.0, 0.0, 4.0]), 4.6
    found = tilted(jax.nn.log_sigmoid, jnp.asarray(mean), jnp.full(4, sd**2))
    grid = np.linspace(-80, 80, 400_001)
    density = stats.norm.pdf(grid, mean[:, None], sd) * special.expit(grid)
    mass = np.trapezoid(density, grid, axis=1)
    first = np.trapezoid(density * grid, grid, axis=1) / mass
    second = np.trapezoid(density * (grid - first[:, None]) ** 2, grid, axis=1) / mass
    np.testing.assert_allclose(found[0], np.log(mass), atol=1e-5)
    np.testing.assert_allclose(found[1], first, atol=1e-4)
    np.testing.assert_allclose(found[2], second, rtol=1e-4)


def test_options_and_models_that_do_not_suit_are_named(binary):
    with pytest.raises(ValueError, match="method must be one of laplace, ep, cvi, hybrid"):
        NonConjugateGP("vb")
    with pytest.raises(ValueError, match="damping must lie in"):
        NonConjugateGP(damping=0.0)

    def two(X, y):
        f, g = (numpyro.sample(n, GaussianProcess(kernels.ExpSquared(1.0), X).numpyro_dist()) for n in "fg")
        numpyro.sample("y", dist.Normal(f, jnp.exp(g + numpyro.param("a", 0.0))), obs=y)

    with pytest.raises(ValueError, match="takes one latent process, the model has f, g: SVGP takes up to three"):
        pose(NonConjugateGP(), two, binary)
