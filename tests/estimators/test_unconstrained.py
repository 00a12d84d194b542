"""Latents as one vector, and the guide that lives there, against NumPyro's potential energy and closed forms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from numpyro.distributions.transforms import biject_to
from numpyro.infer.util import potential_energy
from scipy import stats
from scipy.special import expit, logit

from estimax import estimators as es
from estimax.estimators import unconstrained
from estimax.estimators.guides import WhitenedNormal
from estimax.models import linear_gaussian, linear_gaussian_theta

pytestmark = pytest.mark.usefixtures("x64_module")

X = np.random.default_rng(0).normal(0.5, 1.2, 6)


def positive(x):
    a = numpyro.sample("a", dist.Gamma(2.0, 3.0))
    b = numpyro.sample("b", dist.LogNormal(0.0, 1.0).expand([2]).to_event(1))
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", dist.Normal(b.sum(), a), obs=x)


def simplex(x):
    p = numpyro.sample("p", dist.Dirichlet(jnp.array([1.0, 2.0, 3.0])))
    with numpyro.plate("rows", 2):
        q = numpyro.sample("q", dist.Dirichlet(jnp.ones(4)))
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", dist.Normal(p @ jnp.arange(3.0) + q[0, 1], 1.0), obs=x)


def ordered(x):
    cuts = numpyro.sample("cuts", dist.ImproperUniform(constraints.ordered_vector, (), (3,)))
    numpyro.factor("prior", dist.Normal(0.0, 2.0).log_prob(cuts).sum())
    chol = numpyro.sample("chol", dist.LKJCholesky(3, 2.0))
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", dist.Normal(cuts[0] * chol[2, 0], 1.0), obs=x)


def dynamic(x):
    top = numpyro.sample("top", dist.Gamma(2.0, 1.0))
    low = numpyro.sample("low", dist.Uniform(0.0, top))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Uniform(low, top))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def nested(x):
    m = numpyro.sample("m", dist.Normal(0.0, 1.0))
    with numpyro.plate("outer", 2, dim=-2), numpyro.plate("inner", 3, dim=-1):
        s = numpyro.sample("s", dist.HalfNormal(1.0))
        v = numpyro.sample("v", dist.Dirichlet(jnp.ones(2)))
        numpyro.sample("x", dist.Normal(m + v[..., 0], s), obs=x.reshape(2, 3))


def walk(x):
    step = numpyro.sample("step", dist.HalfNormal(1.0))

    def move(state, obs):
        state = numpyro.sample("state", dist.LogNormal(0.5 * state, step))
        numpyro.sample("x", dist.Normal(state, 1.0), obs=obs)
        return state, None

    scan(move, jnp.zeros(()), x)


MODELS = {f.__name__: f for f in (positive, simplex, ordered, dynamic, nested)}
MODELS["walk"] = handlers.seed(walk, 0)  # a scan asks for a key even where every value is given
SIZES = {"positive": 3, "simplex": 2 + 2 * 3, "ordered": 3 + 3, "dynamic": 2 + 6, "nested": 1 + 6 + 6, "walk": 1 + 6}


@pytest.fixture(params=MODELS)
def at(request):
    """A model, its sites, and a point of R^D."""
    model = MODELS[request.param]
    sites = unconstrained.latent_sites(model, {"x": X})
    dimension = sum(s.size for s in sites)
    assert dimension == SIZES[request.param]
    return model, sites, jnp.asarray(np.random.default_rng(1).normal(size=dimension))


def test_log_joint_is_minus_the_potential_energy(at):
    model, sites, vector = at
    values = unconstrained.unravel(vector, sites)

    @jax.jit
    def both(values):
        return unconstrained.log_joint(model, {"x": X}, values), -potential_energy(model, (), {"x": X}, values)

    ours, theirs = both(values)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_round_trip(at):
    model, sites, vector = at
    values = unconstrained.unravel(vector, sites)
    assert {n: v.shape for n, v in values.items()} == {s.name: s.shape for s in sites}
    np.testing.assert_array_equal(unconstrained.ravel(values, sites), vector)
    constrained, log_dets, trace = unconstrained.constrain(model, {"x": X}, values)
    for site in sites:
        value, fn = constrained[site.name], trace[site.name]["fn"]
        assert np.all(fn.support(value))
        np.testing.assert_allclose(biject_to(fn.support).inv(value), values[site.name], rtol=1e-7, atol=1e-9)
        assert log_dets[site.name].shape == tuple(fn.batch_shape)


def test_log_jacobian_against_autodiff():
    """Ordered vector: the Jacobian is square, so its determinant can be had."""
    sites = unconstrained.latent_sites(ordered, {"x": X})
    u = unconstrained.unravel(jnp.linspace(-1.0, 1.0, 6), sites)

    def cuts(value):
        return unconstrained.constrain(ordered, {"x": X}, u | {"cuts": value})[0]["cuts"]

    log_det = unconstrained.constrain(ordered, {"x": X}, u)[1]["cuts"]
    np.testing.assert_allclose(log_det, np.linalg.slogdet(jax.jacobian(cuts)(u["cuts"]))[1], rtol=1e-10)


def test_no_latent_sites():
    assert unconstrained.latent_sites(lambda x: numpyro.sample("x", dist.Normal(), obs=x), {"x": 1.0}) == ()
    assert unconstrained.ravel({}, ()).shape == (0,)


def test_discrete_latents_are_refused_by_name():
    def model(x):
        k = numpyro.sample("k", dist.Poisson(1.0))
        numpyro.sample("x", dist.Normal(k, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"latent site 'k' is discrete \(Poisson\)"):
        unconstrained.latent_sites(model, {"x": X})


def test_local_sites():
    """Local: in a subsampled plate, or in one that every site shares."""

    def model(x, batch_size=None):
        m = numpyro.sample("m", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", len(x), subsample_size=batch_size):
            z = numpyro.sample("z", dist.Normal(m, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=numpyro.subsample(x, event_dim=0))

    def local(model, **data):
        return {s.name: s.local for s in unconstrained.latent_sites(model, {"x": X, **data})}

    assert local(model) == {"m": False, "z": False}
    assert local(model, batch_size=2) == {"m": False, "z": True}
    assert local(linear_gaussian_theta.model) == {"z": True}


# -- the whitened guide -----------------------------------------------------------------------------------------------


def whitened(model, data, loc, scale, full_rank=True, local=None):
    sites = unconstrained.latent_sites(model, data)
    locs, scales = local or ({}, {})
    return WhitenedNormal(model, jnp.asarray(loc), jnp.asarray(scale), locs, scales, sites, full_rank)


def log_weights(model, data, guide, num_samples=50):
    problem = es.IWAE(4).problem(jax.random.key(0), model, guide, data)
    posterior, key = problem.posterior(problem.params), jax.random.key(1)
    both = jax.jit(lambda: (posterior.log_weights(key, num_samples), posterior.sample(key, num_samples)))
    return *jax.tree.map(np.asarray, both()), problem


@pytest.mark.parametrize("full_rank", [True, False])
def test_exact_posterior_gives_the_evidence(full_rank):
    data = linear_gaussian.data()
    mean, covariance = linear_gaussian.posterior(data)
    guide = whitened(linear_gaussian.model, data, mean, np.linalg.cholesky(covariance), full_rank)
    weights, draws, problem = log_weights(linear_gaussian.model, data, guide, 2000)
    np.testing.assert_allclose(weights, linear_gaussian.log_evidence(data), rtol=1e-11)
    error = np.sqrt(np.diag(covariance) / 2000)
    np.testing.assert_array_less(np.abs(draws["z"].mean(0) - mean) / error, 4.0)
    climb = jax.jit(jax.value_and_grad(lambda p: problem.loss(p, jax.random.key(2), data)[0]))
    loss, gradient = climb(problem.params)
    np.testing.assert_allclose(-loss, linear_gaussian.log_evidence(data), rtol=1e-11)
    for value in gradient.values():  # dreg: nothing is left to learn
        np.testing.assert_allclose(value, 0.0, atol=1e-9)


def test_standard_deviations_as_scale():
    """Independent normals, in units that differ by 10^6: posterior N(x/2, 1/2) of each, in its own unit."""
    units = np.array([1e-3, 1.0, 1e3])

    def model(x):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(3), units).to_event(1))
        numpyro.sample("x", dist.Normal(z, units).to_event(1), obs=x)

    x = np.array([0.3, -1.0, 0.5]) * units
    guide = whitened(model, {"x": x}, x / 2, units * np.sqrt(0.5), full_rank=False)
    weights, _, _ = log_weights(model, {"x": x}, guide)
    np.testing.assert_allclose(weights, stats.norm(0, units * np.sqrt(2)).logpdf(x).sum(), rtol=1e-10)


def test_change_of_variables_of_a_positive_site():
    """Log-normal prior and likelihood: log z is Gaussian a posteriori, and the weights know the Jacobian."""

    def model(x):
        z = numpyro.sample("z", dist.LogNormal(0.3, 0.8))
        numpyro.sample("x", dist.LogNormal(jnp.log(z), 0.5), obs=x)

    x = 2.2
    precision = 1 / 0.8**2 + 1 / 0.5**2
    mean = (0.3 / 0.8**2 + np.log(x) / 0.5**2) / precision
    guide = whitened(model, {"x": x}, [mean], [[precision**-0.5]])
    weights, draws, _ = log_weights(model, {"x": x}, guide)
    evidence = stats.norm(0.3, np.hypot(0.8, 0.5)).logpdf(np.log(x)) - np.log(x)
    np.testing.assert_allclose(weights, evidence, rtol=1e-11)
    assert np.all(draws["z"] > 0)


def test_support_that_depends_on_another_latent():
    """a ~ U(0, 1), b ~ U(0, a): log p − log q by hand, draw by draw."""

    def model(x):
        a = numpyro.sample("a", dist.Uniform(0.0, 1.0))
        b = numpyro.sample("b", dist.Uniform(0.0, a))
        numpyro.sample("x", dist.Normal(a + b, 0.5), obs=x)

    loc, tril = np.array([0.4, -0.3]), np.array([[0.7, 0.0], [0.2, 0.5]])
    guide = whitened(model, {"x": 0.9}, loc, tril)
    weights, draws, _ = log_weights(model, {"x": 0.9}, guide)
    a, b = np.asarray(draws["a"]), np.asarray(draws["b"])
    assert np.all((b > 0) & (b < a) & (a < 1))
    u = np.stack([logit(a), logit(b / a)], -1)
    # |∂(a, b)/∂u|: a' = a (1 − a); b' = a s (1 − s) with s = b / a; triangular.
    s = expit(u[:, 1])
    log_q = stats.multivariate_normal(loc, tril @ tril.T).logpdf(u) - np.log(a * (1 - a)) - np.log(a * s * (1 - s))
    expected = stats.norm(a + b, 0.5).logpdf(0.9) - np.log(a) - log_q
    np.testing.assert_allclose(weights, expected, rtol=1e-8, atol=1e-9)


def local_guide(theta, x, batch_size=None):
    data = {"x": x} if batch_size is None else {"x": x, "batch_size": batch_size}
    loc, scale = linear_gaussian_theta.posterior(theta, x)
    sites = unconstrained.latent_sites(linear_gaussian_theta.model, data)
    guide = WhitenedNormal(
        linear_gaussian_theta.model, jnp.zeros(0), jnp.zeros((0, 0)), {"z": loc}, {"z": scale}, sites, True
    )
    return guide, data


def test_local_latents_weigh_each_datum():
    guide, data = local_guide(0.0, X)
    weights, draws, _ = log_weights(linear_gaussian_theta.model, data, guide)
    assert (weights.shape, draws["z"].shape) == ((50, 6), (50, 6))
    evidence = stats.norm(0.0, np.sqrt(2)).logpdf(X)
    np.testing.assert_allclose(weights, np.broadcast_to(evidence, (50, 6)), rtol=1e-10)


def test_local_latents_under_subsampling():
    """At the exact posterior a step's loss is the evidence of its batch, scaled to all of the data."""
    guide, data = local_guide(0.0, X, batch_size=2)
    weights, _, problem = log_weights(linear_gaussian_theta.model, data, guide)
    assert weights.shape == (50, 6)  # evidence is about all of the data
    evidence = stats.norm(0.0, np.sqrt(2)).logpdf(X)
    possible = np.array([3 * (evidence[i] + evidence[j]) for i, j in itertools.combinations(range(6), 2)])
    losses = jax.jit(jax.vmap(lambda key: problem.loss(problem.params, key, {"x": X, "batch_size": 2})[0]))(
        jax.random.split(jax.random.key(0), 300)
    )
    distance = np.abs(-np.asarray(losses)[:, None] - possible)
    assert distance.min(1).max() < 1e-9
    assert len(set(distance.argmin(1))) == len(possible)  # every batch occurs
    assert abs(np.mean(-losses) - evidence.sum()) < 4 * np.std(losses) / np.sqrt(300)


def test_local_sites_share_one_subsample():
    """Two local latents: the parameters of datum i meet the data of datum i, at every opening of the plate."""

    def model(x, batch_size=None):
        with numpyro.plate("data", len(x), subsample_size=batch_size):
            x = numpyro.subsample(x, event_dim=1)
            a = numpyro.sample("a", dist.Normal(0.0, 1.0))
            b = numpyro.sample("b", dist.LogNormal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(jnp.stack([a, jnp.log(b)], -1), 1.0).to_event(1), obs=x)

    x = np.stack([X, X[::-1] + 1.0], -1)
    data = {"x": x, "batch_size": 2}
    sd = np.full(6, np.sqrt(0.5))
    local = {"a": x[:, 0] / 2, "b": x[:, 1] / 2}, {"a": sd, "b": sd}
    guide = whitened(model, data, np.zeros(0), np.zeros((0, 0)), local=jax.tree.map(jnp.asarray, local))
    evidence = stats.norm(0.0, np.sqrt(2)).logpdf(x).sum(1)
    weights, _, problem = log_weights(model, data, guide)
    np.testing.assert_allclose(weights, np.broadcast_to(evidence, (50, 6)), rtol=1e-9)
    possible = np.array([3 * (evidence[i] + evidence[j]) for i, j in itertools.combinations(range(6), 2)])
    run = jax.jit(jax.vmap(lambda key: problem.loss(problem.params, key, data)[0]))
    for loss in run(jax.random.split(jax.random.key(0), 10)):
        assert np.abs(-loss - possible).min() < 1e-9


def test_support_that_depends_on_subsampled_data():
    def model(top, batch_size):
        with numpyro.plate("data", len(top), subsample_size=batch_size):
            high = numpyro.subsample(jnp.asarray(top), event_dim=0)
            z = numpyro.sample("z", dist.Uniform(0.0, high))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=0.3)

    top = 10.0 ** np.arange(8)
    data = {"top": top, "batch_size": 3}
    local = {"z": jnp.zeros(8)}, {"z": jnp.ones(8)}
    guide = whitened(model, data, np.zeros(0), np.zeros((0, 0)), local=local)

    @jax.jit
    @jax.vmap
    def draw(key):
        tr = handlers.trace(handlers.seed(guide, key)).get_trace(**data)
        return tr["z"]["value"] / jnp.asarray(top)[tr["data"]["value"]]

    ratio = draw(jax.random.split(jax.random.key(0), 10))
    assert np.all((ratio > 1e-3) & (ratio < 1))  # sigmoid(N(0, 1))


def test_the_guide_takes_keywords_only():
    guide, _ = local_guide(0.0, X)
    with pytest.raises(TypeError, match="keyword arguments only"):
        guide(X)
