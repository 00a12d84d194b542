"""The hash without a loop gives JAX's own random numbers, bit for bit, and a fit with restarts its own result."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import random
from numpyro.infer.autoguide import AutoNormal

import estimax
from estimax import estimators
from estimax.inference import fit as fitting
from estimax.inference.unrolled import unrolled

DRAWS = {
    "normal": lambda k: random.normal(k, (7, 3)),
    "scalar": random.normal,
    "randint": lambda k: random.randint(k, (5,), 0, 10),
    "bernoulli": lambda k: random.bernoulli(k, 0.3, (9,)),
    "gamma": lambda k: random.gamma(k, 2.0, (4,)),
    "permutation": lambda k: random.permutation(k, 10),
    "categorical": lambda k: random.categorical(k, jnp.zeros(4), shape=(6,)),
    "bytes": lambda k: random.bits(k, (5,), jnp.uint8),
    "nothing": lambda k: random.normal(k, (0, 2)),
    "batch": lambda k: jax.vmap(lambda q: random.normal(random.fold_in(q, 3), (3,)))(random.split(k, 4)),
    "keys": lambda k: random.key_data(random.split(k, (2, 3))),
}


def plain(key):
    return unrolled(key, object(), lambda key: random.normal(key))


@pytest.mark.parametrize("name", DRAWS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), x64=st.booleans())
def test_bits_are_those_of_jax(name, seed, x64):
    with jax.enable_x64(x64):
        key = random.key(seed)
        assert random.key_impl(plain(key)) != random.key_impl(key)
        np.testing.assert_array_equal(DRAWS[name](plain(key)), DRAWS[name](key))


def test_draws_that_need_jaxs_own_keys_keep_them():
    key = random.key(1)
    kept = unrolled(key, object(), lambda key: random.poisson(key, 3.0))
    assert random.key_impl(kept) == random.key_impl(key)


@pytest.mark.parametrize("key", [random.PRNGKey(1), random.key(1, impl="rbg")], ids=["raw", "rbg"])
def test_other_keys_stay_what_they_are(key):
    assert plain(key) is key


def normal_model(y):
    loc = numpyro.sample("loc", dist.Normal(0.0, 3.0))
    numpyro.sample("y", dist.Normal(loc, 1.0), obs=y)


def poisson_model(y):
    count = numpyro.sample("count", dist.Poisson(3.0))
    numpyro.sample("y", dist.Normal(count, 1.0), obs=y)


def poisson_guide(y):
    rate = numpyro.param("rate", 2.0, constraint=dist.constraints.positive)
    numpyro.sample("count", dist.Poisson(rate))


@pytest.mark.long
@pytest.mark.parametrize(
    ("model", "guide"), [(normal_model, AutoNormal(normal_model)), (poisson_model, poisson_guide)],
    ids=["normal", "poisson"],
)  # fmt: skip
def test_restarts_end_where_they_would_by_the_loop(model, guide, monkeypatch):
    def losses():
        result = estimax.fit(
            model, estimators.ELBO(4), {"y": jnp.array([1.0, 2.0])}, guide=guide, num_steps=20, num_restarts=3,
            progress_bar=False,
        )  # fmt: skip
        return result.metrics["loss"]

    ours = losses()
    monkeypatch.setattr(fitting, "unrolled", lambda keys, about, use: keys)
    np.testing.assert_allclose(ours, losses(), rtol=1e-4)
    assert np.isfinite(ours).all()
