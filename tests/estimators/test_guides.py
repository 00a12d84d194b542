"""NumPyro's own guides, and hand-written ones, under our losses inside `numpyro.infer.SVI`."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.handlers import seed, substitute, trace
from numpyro.infer import SVI, autoguide
from scipy import optimize, stats

from estimax import estimators as es
from estimax.estimators import particles
from estimax.models import linear_gaussian

X = np.random.default_rng(0).normal(1.0, 1.5, 20)


def model(x):
    scale = numpyro.sample("scale", dist.HalfNormal(2.0))
    m = numpyro.sample("m", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", dist.Normal(m.sum(), scale), obs=x)


def train(guide, loss, model=model, steps=80, rate=0.05, **data):
    svi = SVI(model, guide, optax.adam(rate), loss)
    return svi.run(jax.random.key(0), steps, progress_bar=False, **(data or {"x": X}))


def mixed(m):
    """A factorised Gaussian for one site, a point for the other."""
    guide = autoguide.AutoGuideList(m)
    guide.append(autoguide.AutoNormal(numpyro.handlers.block(seed(m, 1), hide=["scale"])))
    guide.append(autoguide.AutoDelta(numpyro.handlers.block(seed(m, 1), expose=["scale"])))
    return guide


GUIDES = {
    "AutoNormal": (autoguide.AutoNormal, es.VIS(8)),
    "AutoDiagonalNormal": (autoguide.AutoDiagonalNormal, es.ELBO(8, "score")),
    "AutoMultivariateNormal": (autoguide.AutoMultivariateNormal, es.IWAE(8)),
    "AutoLowRankMultivariateNormal": (autoguide.AutoLowRankMultivariateNormal, es.CHIVI(8)),
    "AutoLaplaceApproximation": (autoguide.AutoLaplaceApproximation, es.ELBO(1)),
    "AutoIAFNormal": (autoguide.AutoIAFNormal, es.IWAE(8, "dreg")),
    "AutoBNAFNormal": (autoguide.AutoBNAFNormal, es.IWAE(8)),
    "AutoDAIS": (autoguide.AutoDAIS, es.ELBO(4)),
    "AutoDelta": (autoguide.AutoDelta, es.RWS(2)),
    "AutoGuideList": (mixed, es.Renyi(8)),
}


@pytest.mark.long
@pytest.mark.parametrize("name", GUIDES)
def test_autoguides_train(name):
    make, loss = GUIDES[name]
    losses = np.asarray(train(make(model), loss).losses)
    assert np.all(np.isfinite(losses))
    assert losses[-20:].mean() < losses[:5].max() - 1.0


@pytest.mark.long
def test_autodelta_finds_the_mode():
    data = linear_gaussian.data()
    guide = autoguide.AutoDelta(linear_gaussian.model)
    params = train(guide, es.IWAE(4), linear_gaussian.model, steps=300, **data).params
    np.testing.assert_allclose(params["z_auto_loc"], linear_gaussian.posterior(data)[0], atol=5e-3)


@pytest.mark.long
def test_a_joint_guide_of_local_latents_is_one_problem():
    """Every site of the model lies in one plate, but the guide draws them all at once: one weight, not one a datum."""

    def model(x):
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x, num_particles, key = X[:4], 5, jax.random.key(3)
    guide = autoguide.AutoMultivariateNormal(model)
    with seed(rng_seed=0):
        guide(x)
    rng = np.random.default_rng(1)
    tril = np.tril(rng.normal(size=(4, 4))) * 0.3 + np.eye(4)
    params = {"auto_loc": jnp.asarray(rng.normal(size=4)), "auto_scale_tril": jnp.asarray(tril)}
    log_w = []
    for particle_key in jax.random.split(key, num_particles):
        drawn = trace(substitute(seed(guide, jax.random.split(particle_key)[1]), params)).get_trace(x)
        z = np.asarray(drawn["_auto_latent"]["value"])
        log_q = stats.multivariate_normal(np.asarray(params["auto_loc"]), tril @ tril.T).logpdf(z)
        log_w.append(stats.norm.logpdf(z).sum() + stats.norm.logpdf(x, z).sum() - log_q)
    expected = np.log(np.mean(np.exp(log_w)))
    loss = jax.jit(lambda: es.IWAE(num_particles).loss(key, params, model, guide, x))()
    np.testing.assert_allclose(-loss, expected, rtol=1e-5)
    log_weights = es.IWAE(2).problem(key, model, guide, {"x": x})
    assert log_weights.posterior(log_weights.params).log_weights(key, 3).shape == (3,)


def test_a_local_guide_is_one_problem_a_datum():
    """AutoNormal opens the plate of the model: there the weights are per datum."""

    def model(x):
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x, num_particles, key = X[:4], 5, jax.random.key(3)
    guide = autoguide.AutoNormal(model)
    with seed(rng_seed=0):
        guide(x)
    params = {"z_auto_loc": jnp.linspace(0.0, 1.0, 4), "z_auto_scale": jnp.full(4, 0.8)}
    draws = [
        trace(substitute(seed(guide, jax.random.split(k)[1]), params)).get_trace(x)["z"]["value"]
        for k in jax.random.split(key, num_particles)
    ]
    z = np.asarray(draws)
    log_w = stats.norm.logpdf(z) + stats.norm.logpdf(x, z) - stats.norm.logpdf(z, np.linspace(0, 1, 4), 0.8)
    expected = np.log(np.mean(np.exp(log_w), 0)).sum()
    loss = jax.jit(lambda: es.IWAE(num_particles).loss(key, params, model, guide, x))()
    np.testing.assert_allclose(-loss, expected, rtol=1e-5)


# -- hand-written guides ----------------------------------------------------------------------------------------------


def mixture(x):
    mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)


def amortised(x):
    slope, intercept = numpyro.param("slope", 0.1), numpyro.param("intercept", 0.0)
    with numpyro.plate("data", len(x)):
        numpyro.sample("z", dist.Bernoulli(logits=slope * x + intercept))


@pytest.mark.parametrize("loss", [es.ELBO(16), es.IWAE(16), es.VIS(16), es.RWS(16)], ids=lambda e: e.name)
def test_discrete_latents_learn(loss):
    """θ goes to the maximum of the exact likelihood, the guide to the exact posterior, whose logit is linear in x."""
    rng = np.random.default_rng(0)
    x = np.where(rng.random(200) < 0.5, -1.5, 1.5) + rng.standard_normal(200)

    def minus_log_likelihood(mu):
        return -np.sum(np.logaddexp(*stats.norm.logpdf(x, np.reshape(mu, (2, 1)), 1.0)) - np.log(2))

    best = optimize.minimize(minus_log_likelihood, [-1.0, 1.0])
    result = train(amortised, loss, mixture, steps=400, rate=0.03, x=x)
    losses = np.asarray(result.losses)
    assert np.all(np.isfinite(losses))
    assert losses[-20:].mean() == pytest.approx(best.fun, abs=1.0)
    np.testing.assert_allclose(result.params["mu"], best.x, atol=0.1)
    lower, upper = best.x
    assert result.params["slope"] == pytest.approx(upper - lower, rel=0.2)
    assert result.params["intercept"] == pytest.approx((lower**2 - upper**2) / 2, abs=0.3)


# -- what inspection finds --------------------------------------------------------------------------------------------


def inspect(guide, model=model, **data):
    return particles.inspect(model, guide, {}, (), data or {"x": X})


def test_gradient_by_default():
    """The one of least variance that is right for objective and guide."""
    normal = inspect(autoguide.AutoNormal(model))
    assert es.ELBO().resolve_gradient(normal) == "path"
    for cls in (es.IWAE, es.VIS, es.RWS, es.CHIVI, es.Renyi, es.MIWAE):
        assert cls().resolve_gradient(normal) == "dreg"
    discrete = inspect(amortised, mixture, x=X)
    for cls in (es.ELBO, es.IWAE, es.VIS, es.RWS):
        assert cls().resolve_gradient(discrete) == "score"
    for guide in (autoguide.AutoBNAFNormal(model), autoguide.AutoDAIS(model)):
        assert es.ELBO().resolve_gradient(inspect(guide)) == "reparam"
        assert es.IWAE().resolve_gradient(inspect(guide)) == "reparam"


def test_points_are_told_from_changes_of_variables():
    assert inspect(autoguide.AutoDelta(model)).points
    assert inspect(mixed(model)).points
    for make in (autoguide.AutoNormal, autoguide.AutoMultivariateNormal, autoguide.AutoIAFNormal):
        assert not inspect(make(model)).points


@pytest.mark.long
def test_gradient_of_a_flow_does_not_depend_on_the_estimator():
    """`path` inverts the flow, `reparam` does not: the same mean, 4 s.e."""
    guide = autoguide.AutoIAFNormal(model, hidden_dims=[4], num_flows=1)
    drawn = trace(seed(guide, 0)).get_trace(X)
    params = {n: s["value"] for n, s in drawn.items() if s["type"] == "param"}
    means = []
    for i, gradient in enumerate(("reparam", "path")):
        loss = es.ELBO(1, gradient)
        one = jax.vmap(lambda key, loss=loss: jax.grad(lambda p: loss.loss(key, p, model, guide, X))(params))
        draws = jax.jit(one)(jax.random.split(jax.random.key(i), 4000))
        flat = np.concatenate([np.asarray(v).reshape(4000, -1) for v in jax.tree.leaves(draws)], 1)
        means.append((flat.mean(0), flat.std(0) / np.sqrt(4000)))
    (one, one_error), (other, other_error) = means
    error = np.hypot(one_error, other_error)
    moved = error > 0
    assert moved.sum() > 10
    np.testing.assert_array_less(np.abs(one - other)[moved] / error[moved], 4.0)
