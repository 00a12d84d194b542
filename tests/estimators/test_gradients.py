"""Expected gradients against quadrature and closed forms, on z_i ~ N(theta, 1), x_i ~ N(z_i, 1), Gaussian guide.

Every objective has four particles. The truth of a K-particle objective is its expectation by a product Gauss-Hermite
rule over the noise of the four, differentiated as an ordinary function of the parameters: no estimator of ours, no
sampling. `sigma` below is the error of the sampled mean in standard errors.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.lax import stop_gradient
from jax.scipy.special import logsumexp
from jax.scipy.stats import norm

from estimax import estimators as es
from estimax.models import linear_gaussian_theta as lg

pytestmark = pytest.mark.usefixtures("x64_module", "quick_compile")

K = 4
X = np.array([-0.7, 2.1])
PARAMS = {"theta": np.array(0.4), "loc": np.array([0.2, 0.9]), "scale": np.array([0.9, 1.1])}
NUM_DRAWS = 40_000
NUM_NODES = 22

ESTIMATORS = {
    "elbo": lambda g: es.ELBO(K, g),
    "iwae": lambda g: es.IWAE(K, g),
    "miwae": lambda g: es.MIWAE(K, g, num_groups=2),
    "ciwae": lambda g: es.CIWAE(K, g, beta=0.3),
    "piwae": lambda g: es.PIWAE(K, g, num_groups=2),
    "renyi": lambda g: es.Renyi(K, g, alpha=0.5),
    "renyi_negative": lambda g: es.Renyi(K, g, alpha=-0.5),
    "chivi": lambda g: es.CHIVI(K, g),
    "cubo": lambda g: es.CHIVI(K, g, sandwich=False),
    "vbis": lambda g: es.VBIS(K, g),
    "vis": lambda g: es.VIS(K, g),
    "rws": lambda g: es.RWS(K, g),
}


def gradients_of(name):
    if name == "rws":
        return ("score", "dreg")
    if name in ("elbo", "vbis"):
        return ("reparam", "score", "path", "dreg")
    return ("reparam", "score", "dreg")


def power(order):
    def bound(log_w):
        return log_w.mean(0) if order == 0 else (logsumexp(order * log_w, 0) - jnp.log(len(log_w))) / order

    return bound


def pairs(bound):
    return lambda log_w: 0.5 * (bound(log_w[:2]) + bound(log_w[2:]))


def mixture(*terms):
    return lambda log_w: sum(a * bound(log_w) for a, bound in terms)


# METHODS §1, written once more: (what θ climbs, what φ climbs).
BOUNDS = {
    "elbo": (power(0), power(0)),
    "iwae": (power(1), power(1)),
    "miwae": (pairs(power(1)), pairs(power(1))),
    "ciwae": (mixture((0.3, power(0)), (0.7, power(1))),) * 2,
    "piwae": (power(1), pairs(power(1))),
    "renyi": (power(0.5), power(0.5)),
    "renyi_negative": (power(1.5), power(1.5)),
    "chivi": (power(0), mixture((-0.5, power(2)), (0.5, power(0)))),
    "cubo": (power(0), mixture((-1, power(2)))),
    "vbis": (power(1), power(0)),
    "vis": (power(1), None),
    "rws": (power(1), None),
}


def log_joint(theta, z, x):
    return norm.logpdf(z, theta, 1.0) + norm.logpdf(x, z, 1.0)


@pytest.fixture(scope="module")
def rule():
    """Nodes (K, nodes^K) and weights of E over K independent N(0, 1)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NUM_NODES)
    grid = np.stack([g.ravel() for g in np.meshgrid(*[nodes] * K, indexing="ij")])
    mass = np.prod(np.stack(np.meshgrid(*[weights / weights.sum()] * K, indexing="ij")), 0).ravel()
    keep = mass > 1e-18
    return jnp.asarray(grid[:, keep]), jnp.asarray(mass[keep])


@pytest.fixture(scope="module")
def exact(rule):
    """name, gradient -> expected ascent directions of θ and φ, by quadrature."""
    noise, mass = rule

    def log_weights(params, x, i):
        z = params["loc"][i] + params["scale"][i] * noise
        return log_joint(params["theta"], z, x) - norm.logpdf(z, params["loc"][i], params["scale"][i])

    @jax.jit
    def expected(which):
        def value(params):
            return sum(mass @ which(log_weights(params, x, i)) for i, x in enumerate(X))

        return jax.grad(value)(PARAMS)

    def self_normalised(order, factor, along):
        """E Σ_k ŵ_k ∂(...): the expectation of an estimator that is no derivative of a K-particle bound."""

        def value(params):
            total = 0.0
            for i, x in enumerate(X):
                log_w = log_weights(params, x, i)
                w = stop_gradient(jnp.exp(order * log_w - logsumexp(order * log_w, 0)))
                z = params["loc"][i] + params["scale"][i] * noise
                if along == "score":
                    terms = norm.logpdf(stop_gradient(z), params["loc"][i], params["scale"][i])
                else:  # the path through z alone
                    loc, scale = stop_gradient(params["loc"][i]), stop_gradient(params["scale"][i])
                    terms = log_joint(params["theta"], z, x) - norm.logpdf(z, loc, scale)
                total += mass @ jnp.sum(factor * w * terms, 0)
            return total

        return jax.grad(value)(PARAMS)

    cache = {}

    def gradient(name, estimator):
        theta, phi = BOUNDS[name]
        for bound in (theta, phi):
            if bound is not None and bound not in cache:
                cache[bound] = jax.jit(lambda b=bound: expected.__wrapped__(b))()
        if name == "rws":
            phi = self_normalised(1, 1.0, "score")
        elif name == "vis":
            phi = {
                "score": lambda: self_normalised(2, 1.0, "score"),
                "dreg": lambda: self_normalised(2, 2.0, "path"),
                "reparam": lambda: jax.tree.map(lambda g: -2 * g, expected.__wrapped__(power(2))),
            }[estimator]()
        else:
            phi = cache[phi]
        return {"theta": cache[theta]["theta"], "loc": phi["loc"], "scale": phi["scale"]}

    return gradient


def sampled(estimator, params=PARAMS, x=X, num_draws=NUM_DRAWS, seed=0, model=lg.model, guide=lg.guide, **kwargs):
    """Mean ascent direction and its standard error, elementwise."""

    def one(key):
        gradient = jax.grad(lambda p: estimator.loss(key, p, model, guide, x, **kwargs))(params)
        return jax.tree.map(jnp.negative, gradient)

    draws = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(seed), num_draws))
    return {n: (np.mean(d, 0), np.std(d, 0) / np.sqrt(num_draws)) for n, d in draws.items()}


def assert_agrees(draws, truth, sigma=4.0):
    for name, (mean, error) in draws.items():
        np.testing.assert_array_less(np.abs(mean - truth[name]) / error, sigma, err_msg=name)
        assert np.all(error < 0.1)  # the test has power: gradients here are of order 0.1 to 1


@pytest.mark.parametrize(("name", "gradient"), [(n, g) for n in ESTIMATORS for g in gradients_of(n)])
def test_expected_gradient(name, gradient, exact):
    assert_agrees(sampled(ESTIMATORS[name](gradient)), exact(name, gradient))
