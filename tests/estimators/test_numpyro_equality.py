"""Given the same particles, the plain reparameterised estimators are NumPyro's own, value and gradient.

A key is split as NumPyro's losses split it: once for the subsamples of plates where there are any, then per particle.
`RenyiELBO` makes the first split without subsampling too.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from numpyro.handlers import seed
from numpyro.infer import RenyiELBO, Trace_ELBO

from estimax import estimators as es

X = np.random.default_rng(0).normal(1.0, 1.5, 12)
KEY = jax.random.key(5)


def local_model(x, batch_size=None):
    """A latent per datum in a plate that encloses everything, with a second latent behind the first."""
    theta = numpyro.param("theta", 0.3)
    spread = numpyro.param("spread", 0.9, constraint=constraints.positive)
    with numpyro.plate("data", len(x), subsample_size=batch_size):
        s = numpyro.sample("s", dist.LogNormal(0.0, 0.3))
        z = numpyro.sample("z", dist.Normal(theta, spread).expand([3]).to_event(1))
        numpyro.sample("x", dist.Normal(z.sum(-1), s), obs=numpyro.subsample(x, event_dim=0))


def local_guide(x, batch_size=None):
    loc = numpyro.param("loc", 0.1 * jnp.arange(len(x)))
    scale = numpyro.param("scale", 0.8, constraint=constraints.positive)
    with numpyro.plate("data", len(x), subsample_size=batch_size):
        loc = numpyro.subsample(loc, event_dim=0)
        s = numpyro.sample("s", dist.LogNormal(0.1, 0.4))
        numpyro.sample("z", dist.Normal((loc + 0.2 * s)[:, None], scale).expand([len(loc), 3]).to_event(1))


LOCAL = {"theta": 0.3, "spread": 0.9, "loc": 0.1 * jnp.arange(12), "scale": 0.8}


def global_model(x, batch_size=None):
    m = numpyro.sample("m", dist.Normal(numpyro.param("theta", 0.3), 1.0).expand([2]).to_event(1))
    with numpyro.plate("data", len(x), subsample_size=batch_size):
        numpyro.sample("x", dist.Normal(m.sum(), 1.0), obs=numpyro.subsample(x, event_dim=0))


def global_guide(x, batch_size=None):
    scale = numpyro.param("scale", 0.5, constraint=constraints.positive)
    numpyro.sample("m", dist.Normal(numpyro.param("loc", jnp.ones(2)), scale).to_event(1))


GLOBAL = {"theta": 0.3, "loc": jnp.ones(2), "scale": 0.5}

LOSSES = {"local": (local_model, local_guide, LOCAL), "global": (global_model, global_guide, GLOBAL)}


def both(loss, key, problem, model=None, guide=None, **kwargs):
    own_model, own_guide, params = LOSSES[problem]
    params = {n: jnp.asarray(v, float) for n, v in params.items()}
    model, guide = model or own_model, guide or own_guide
    return jax.jit(jax.value_and_grad(lambda p: loss.loss(key, p, model, guide, X, **kwargs)))(params)


def assert_equal(ours, theirs, rtol):
    np.testing.assert_allclose(ours[0], theirs[0], rtol=rtol)
    for name, gradient in theirs[1].items():
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(ours[1][name], gradient, rtol=rtol, atol=rtol * scale, err_msg=name)


@pytest.mark.parametrize(
    ("alpha", "problem", "batch_size"),
    [
        (0, "local", None),
        pytest.param(0, "local", 4, marks=pytest.mark.long),
        (0, "global", None),
        pytest.param(0.5, "local", 4, marks=pytest.mark.long),
        (3.0, "local", None),
    ],
)
def test_renyi(alpha, problem, batch_size, x64):
    ours = es.Renyi(5, "reparam", alpha=alpha) if alpha else es.IWAE(5, "reparam")
    ours_key = KEY if batch_size else jax.random.split(KEY)[1]
    expected = both(RenyiELBO(alpha=alpha, num_particles=5), KEY, problem, batch_size=batch_size)
    assert_equal(both(ours, ours_key, problem, batch_size=batch_size), expected, rtol=1e-11)


@pytest.mark.parametrize(("num_particles", "problem"), [(1, "global"), (5, "global"), (5, "local")])
def test_elbo(num_particles, problem, x64):
    ours = both(es.ELBO(num_particles, "reparam"), KEY, problem)
    theirs = both(Trace_ELBO(num_particles=num_particles), KEY, problem)
    assert_equal(ours, theirs, rtol=1e-11)


@pytest.mark.long
@pytest.mark.parametrize(("num_particles", "problem"), [(1, "global"), (5, "global"), (5, "local")])
def test_elbo_with_a_subsampled_plate(num_particles, problem, x64):
    """Trace_ELBO draws its subsample inside the particle; here it is given the one of all particles."""
    plate_key, key = jax.random.split(KEY)
    hide = ["sample", "prng_key", "control_flow"]
    model, guide = (seed(fn, plate_key, hide_types=hide) for fn in LOSSES[problem][:2])
    ours = both(es.ELBO(num_particles, "reparam"), KEY, problem, batch_size=4)
    theirs = both(Trace_ELBO(num_particles=num_particles), key, problem, model, guide, batch_size=4)
    assert_equal(ours, theirs, rtol=1e-11)


@pytest.mark.long
def test_float32():
    iwae = both(es.IWAE(5, "reparam"), KEY, "local", batch_size=4)
    assert_equal(iwae, both(RenyiELBO(alpha=0, num_particles=5), KEY, "local", batch_size=4), rtol=2e-5)
    elbo = both(es.ELBO(5, "reparam"), KEY, "local")
    assert_equal(elbo, both(Trace_ELBO(num_particles=5), KEY, "local"), rtol=2e-5)


@pytest.mark.long
def test_value_does_not_depend_on_the_gradient_estimator(x64):
    """Nor on what φ follows: the reported loss is that of θ."""
    params = {n: jnp.asarray(v, float) for n, v in LOCAL.items()}
    estimators = [es.IWAE(5, g) for g in ("reparam", "score", "dreg")] + [cls(5, "dreg") for cls in (es.VIS, es.RWS)]
    values = jax.jit(lambda: [e.loss(KEY, params, local_model, local_guide, X, batch_size=4) for e in estimators])()
    np.testing.assert_allclose(values, np.full(len(values), values[0]), rtol=1e-12)


def nested_model(x, batch_size=None):
    """Two plates around every site, and an inner one around some: weights have the shape of the two."""
    with numpyro.plate("row", 3, dim=-2), numpyro.plate("column", 4, subsample_size=batch_size, dim=-1):
        m = numpyro.sample("m", dist.Normal(0.2, 1.0))
        with numpyro.plate("inner", 2, dim=-3):
            z = numpyro.sample("z", dist.Normal(m, 1.0))
            obs = numpyro.subsample(jnp.broadcast_to(x.reshape(3, 4), (2, 3, 4)), event_dim=0)
            numpyro.sample("x", dist.Normal(z, 1.0), obs=obs)


def nested_guide(x, batch_size=None):
    with numpyro.plate("row", 3, dim=-2), numpyro.plate("column", 4, subsample_size=batch_size, dim=-1):
        loc = numpyro.subsample(numpyro.param("loc", jnp.linspace(0, 1, 4)), event_dim=0)
        m = numpyro.sample("m", dist.Normal(loc, 0.7))
        with numpyro.plate("inner", 2, dim=-3):
            numpyro.sample("z", dist.Normal(0.5 * m, numpyro.param("scale", 0.9)))


@pytest.mark.long
@pytest.mark.parametrize("batch_size", [None, 2])
def test_nested_plates(batch_size, x64):
    params = {"loc": jnp.linspace(0.0, 1.0, 4), "scale": jnp.asarray(0.9)}

    def value(loss, key):
        run = jax.jit(jax.value_and_grad(lambda p: loss.loss(key, p, nested_model, nested_guide, X, batch_size)))
        return run(params)

    ours = value(es.IWAE(5, "reparam"), KEY if batch_size else jax.random.split(KEY)[1])
    assert_equal(ours, value(RenyiELBO(alpha=0, num_particles=5), KEY), rtol=1e-11)
