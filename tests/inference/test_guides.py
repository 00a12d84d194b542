"""Guides of every kind: NumPyro's automatic ones as class and instance, hand-written ones, and the default."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpyro.infer import SVI, autoguide
from numpyro.infer.initialization import init_to_value
from scipy import stats

from estimax import fit, models
from estimax.estimators import ELBO, IWAE, VIS, WhitenedNormal
from estimax.estimators.guides import PaddedNormal

ENTRY = models.linear_gaussian
POSTERIOR = ENTRY.posterior(ENTRY.data())


def quick(guide, estimator=None, num_steps=1000, **options):
    estimator = ELBO(8) if estimator is None else estimator
    return fit(ENTRY.model, estimator, ENTRY.data(), guide=guide, num_steps=num_steps, progress_bar=False, **options)


@pytest.mark.parametrize(
    "cls",
    [
        pytest.param(autoguide.AutoMultivariateNormal, marks=pytest.mark.long),
        pytest.param(autoguide.AutoNormal, marks=pytest.mark.long),
        pytest.param(autoguide.AutoDiagonalNormal, marks=pytest.mark.slow),
        pytest.param(autoguide.AutoLowRankMultivariateNormal, marks=pytest.mark.slow),
        pytest.param(autoguide.AutoIAFNormal, marks=pytest.mark.slow),
        pytest.param(autoguide.AutoBNAFNormal, marks=pytest.mark.slow),
        pytest.param(autoguide.AutoDAIS, marks=pytest.mark.slow),
    ],
)
def test_automatic_guides_start_at_the_mode_and_reach_it(cls):
    result = quick(cls, IWAE(8))
    mean, covariance = POSTERIOR
    sd = np.sqrt(np.diag(covariance))
    draws = np.asarray(result.sample(20_000, resample="psis")["z"], np.float64)
    assert result.start is not None
    assert np.max(np.abs(draws.mean(0) - mean) / sd) < 0.1
    evidence = result.log_evidence(20_000)
    if evidence.verdict != "do not use":  # a guide without correlations is too far from this posterior
        np.testing.assert_allclose(draws.std(0), sd, rtol=0.1)
    assert abs(evidence.value - ENTRY.log_evidence(ENTRY.data())) < 4 * evidence.stderr + 1e-3


@pytest.mark.parametrize(
    ("cls", "num_steps"),
    [
        pytest.param(autoguide.AutoBatchedMultivariateNormal, 1000, marks=pytest.mark.long),
        pytest.param(autoguide.AutoBatchedLowRankMultivariateNormal, 4000, marks=pytest.mark.slow),
    ],
)
def test_batched_guides_have_a_correlated_gaussian_a_row(cls, num_steps):
    """Rows of a linear Gaussian model are independent, so a Gaussian each is the posterior and the ELBO log p(y)."""
    loading = np.array([[1.0, 0.9], [0.9, 1.0], [0.5, -0.2]])
    y = np.random.default_rng(0).normal(size=(4, 3))

    def model(y):
        with numpyro.plate("row", 4):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            numpyro.sample("y", dist.Normal(z @ loading.T, 0.5).to_event(1), obs=y)

    # the path gradient has no noise where the guide is the posterior
    result = fit(model, ELBO(8, gradient="path"), {"y": y}, guide=cls, num_steps=num_steps, progress_bar=False)
    mean = y @ loading @ np.linalg.inv(0.25 * np.eye(2) + loading.T @ loading)
    np.testing.assert_allclose(result.params["auto_loc"], mean, atol=1e-2)
    marginal = stats.multivariate_normal(np.zeros(3), loading @ loading.T + 0.25 * np.eye(3))
    np.testing.assert_allclose(result.losses[-20:], -marginal.logpdf(y).sum(), atol=0.02)


def local_model(theta):
    numpyro.sample("z", dist.Normal(theta, 1.0))


@pytest.mark.parametrize(
    ("cls", "needed"),
    [(autoguide.AutoSemiDAIS, "local_model"), (autoguide.AutoSurrogateLikelihoodDAIS, "surrogate_model")],
)
def test_class_that_needs_more_than_the_model(cls, needed):
    name = cls.__name__
    with pytest.raises(TypeError, match=rf"guide={name}: .* needs {needed} .*: guide={name}\(model, {needed}\)"):
        quick(cls)


def test_class_without_a_place_to_start_from():
    class Mine(autoguide.AutoSemiDAIS):
        def __init__(self, model):
            super().__init__(model, local_model)

    with pytest.raises(TypeError, match=r"guide=Mine: this class has no init_loc_fn.*: guide=Mine\(model\)"):
        quick(Mine)


def test_class_starts_at_the_mode():
    before = quick(autoguide.AutoNormal, num_steps=1).at_start()
    np.testing.assert_allclose(before.params["z_auto_loc"], POSTERIOR[0], atol=1e-3)


def test_instance_keeps_its_own_start():
    guide = autoguide.AutoNormal(ENTRY.model, init_loc_fn=init_to_value(values={"z": jnp.ones(3)}))
    result = quick(guide, num_steps=1)
    assert result.guide is guide
    assert result.start is None
    np.testing.assert_allclose(result.at_start().params["z_auto_loc"], 1, atol=1e-6)


def test_instance_that_numpyro_has_used_before():
    guide = autoguide.AutoNormal(ENTRY.model)
    data = {k: jnp.asarray(v) for k, v in ENTRY.data().items()}
    import optax

    SVI(ENTRY.model, guide, optax.adam(0.01), ELBO(2)).run(jax.random.key(0), 2, progress_bar=False, **data)
    assert np.isfinite(quick(guide, num_steps=5).losses).all()


def test_guide_function_that_takes_any_keywords():
    def guide(**data):
        numpyro.sample("z", dist.Normal(numpyro.param("m", jnp.zeros(3)), 0.5).to_event(1))

    result = quick(guide)
    precision = np.linalg.inv(POSTERIOR[1])
    np.testing.assert_allclose(precision @ (result.params["m"] - POSTERIOR[0]), 0, atol=0.3)


def test_default_guide_is_an_ordinary_guide_of_numpyro(default_fit):
    import optax

    guide = default_fit("linear_gaussian", "ELBO").guide
    assert isinstance(guide, WhitenedNormal)
    data = {k: jnp.asarray(v) for k, v in ENTRY.data().items()}
    svi = SVI(ENTRY.model, guide, optax.adam(0.01), ELBO(4))
    outcome = svi.run(jax.random.key(0), 20, progress_bar=False, **data)
    assert np.isfinite(outcome.losses).all()
    with pytest.raises(TypeError, match="keyword arguments only"):
        guide(data["x"])


def test_default_guide_names_its_parameters_in_posterior_units(default_fit):
    params = default_fit("linear_gaussian", "ELBO").params
    np.testing.assert_allclose(params["auto_loc"], 0, atol=0.02)
    np.testing.assert_allclose(params["auto_scale_tril"], np.eye(3), atol=0.02)


@pytest.mark.long
@given(
    dimension=st.integers(1, 19),
    batch=st.sampled_from([(), (2,), (3, 2)]),
    draws=st.sampled_from([(), (4,), (2, 3)]),
)
@settings(max_examples=6, deadline=None)
def test_default_guide_draws_what_numpyro_draws(dimension, batch, draws):
    """Draw by draw, as a fit draws them; of many at once JAX numbers the normals of the other coordinates too."""

    @jax.jit
    def both(key):
        keys = jax.random.split(key, 3)
        loc = jax.random.normal(keys[0], (*batch, dimension))
        tril = jnp.tril(jax.random.uniform(keys[1], (*batch, dimension, dimension))) + jnp.eye(dimension)
        first = (0,) * len(batch)
        single = [law(loc[first], scale_tril=tril[first]) for law in (dist.MultivariateNormal, PaddedNormal)]
        each = jax.random.split(keys[2], 5)
        return [jax.vmap(law.sample)(each) for law in single], PaddedNormal(loc, scale_tril=tril).sample(key, draws)

    (theirs, ours), many = both(jax.random.key(dimension))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    assert many.shape == (*draws, *batch, dimension)


def test_default_guide_draws_its_distribution():
    tril = jnp.tril(jnp.arange(1.0, 101.0).reshape(10, 10) / 30) + jnp.eye(10)
    loc = jnp.arange(10.0)
    x = np.asarray(PaddedNormal(loc, scale_tril=tril).sample(jax.random.key(1), (40_000,)))
    whitened = np.linalg.solve(np.asarray(tril), (x - np.asarray(loc)).T)
    assert abs(whitened.mean(1)).max() < 4 / np.sqrt(40_000)
    assert abs(np.cov(whitened) - np.eye(10)).max() < 5 * np.sqrt(2 / 40_000)


@pytest.mark.long
def test_local_latents_with_event_dims_and_theta():
    """z_i in R², theta a vector: the default guide has one Gaussian a datum."""

    def model(x):
        theta = numpyro.param("theta", jnp.zeros(2))
        with numpyro.plate("n", len(x)):
            z = numpyro.sample("z", dist.Normal(theta, 1.0).to_event(1))
            numpyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    x = np.random.default_rng(0).normal([1, -2], np.sqrt(2), (30, 2))
    result = fit(model, VIS(), {"x": x}, progress_bar=False)
    np.testing.assert_allclose(result.params["theta"], x.mean(0), atol=0.05)
    assert result.params["z_auto_loc"].shape == (30, 2)
    assert result.log_weights(10).shape == (10, 30)
    draws = np.asarray(result.sample(4000, resample="psis")["z"])
    assert np.max(np.abs(draws.mean(0) - (x + result.params["theta"]) / 2)) < 4.5 * np.sqrt(0.5 / 4000)


@pytest.mark.long
def test_amortised_guide_with_networks_and_batches():
    pytest.importorskip("sklearn")
    entry = models.vae_digits
    data = {"x": entry.data()["x"][:200], "batch_size": 50}
    result = fit(entry.model, IWAE(4), data, guide=entry.guide, num_steps=300, learning_rate=3e-3, progress_bar=False)
    assert result.losses[-50:].mean() < 0.8 * result.losses[:10].mean()
    held_out = result.with_data({"x": entry.held_out()["x"][:20]})
    assert held_out.log_weights(5).shape == (5, 20)
    assert held_out.sample(5)["z"].shape == (5, 20, 10)


def test_discrete_latent_with_a_guide_of_its_own():
    """One coin: posterior odds 0.3 N(2; 3, 1) / 0.7 N(2; 0, 1)."""

    def model(y):
        k = numpyro.sample("k", dist.Bernoulli(0.3))
        numpyro.sample("y", dist.Normal(3.0 * k, 1), obs=y)

    def guide(y):
        numpyro.sample("k", dist.Bernoulli(logits=numpyro.param("l", 0.0)))

    result = fit(model, ELBO(16), {"y": 2.0}, guide=guide, learning_rate=0.05, progress_bar=False)
    on, off = 0.3 * np.exp(-0.5), 0.7 * np.exp(-2)
    assert 1 / (1 + np.exp(-result.params["l"])) == pytest.approx(on / (on + off), abs=0.03)
    assert result.log_evidence(4000).value == pytest.approx(np.log((on + off) / np.sqrt(2 * np.pi)), abs=0.02)
