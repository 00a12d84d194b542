"""What cannot work says so, naming the argument or the site; and estimators are values: equal, hashable, readable."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import autoguide

from estimax import estimators as es

X = np.array([0.3, -1.0, 2.0, 0.7])
KEY = jax.random.key(0)

EVERY = {
    "ELBO": es.ELBO,
    "IWAE": es.IWAE,
    "MIWAE": es.MIWAE,
    "CIWAE": es.CIWAE,
    "PIWAE": es.PIWAE,
    "Renyi": es.Renyi,
    "CHIVI": es.CHIVI,
    "VBIS": es.VBIS,
    "VIS": es.VIS,
    "RWS": es.RWS,
    "DataEmphasizedELBO": es.DataEmphasizedELBO,
    "AutoGen": es.AutoGen,
    "LogWeight": es.LogWeight,
}


def model(x, batch_size=None):
    m = numpyro.sample("m", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", len(x), subsample_size=batch_size):
        numpyro.sample("x", dist.Normal(m, 1.0), obs=numpyro.subsample(x, event_dim=0))


def guide(x, batch_size=None):
    numpyro.sample("m", dist.Normal(numpyro.param("loc", 0.0), 1.0))


def problem(estimator, model=model, guide=guide, **data):
    return estimator.problem(KEY, model, guide, {"x": X, **data})


# -- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize("num_particles", [0, -1, 2.0, True, "8", None])
def test_number_of_particles(cls, num_particles):
    with pytest.raises(ValueError, match=f"num_particles.*{num_particles!r}"):
        cls(num_particles)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: es.IWAE(4, "pathwise"), "gradient must be one of reparam, score, path, dreg or None, got 'pathwise'"),
        (lambda: es.RWS(4, "reparam"), "gradient='reparam' does not exist for ForwardKL; it has score, dreg"),
        (lambda: es.RWS(4, "path"), "gradient='path' does not exist for ForwardKL"),
        (lambda: es.VIS(4, "path"), "gradient='path' does not exist for ForwardChi2; it has score, reparam, dreg"),
        (lambda: es.LogWeight(4, "path", phi=es.ForwardChi2()), "does not exist for ForwardChi2"),
        (lambda: es.MIWAE(6, num_groups=4), "num_groups must be a positive divisor of num_particles=6, got 4"),
        (lambda: es.PIWAE(6, num_groups=0), "num_groups .* got 0"),
        (lambda: es.MIWAE(6, num_groups=-2), "num_groups .* got -2"),
        (lambda: es.MIWAE(6, num_groups=1.5), "num_groups .* got 1.5"),
        (lambda: es.MIWAE(2), "num_groups must be a positive divisor of num_particles=2, got 4"),
        (lambda: es.CIWAE(beta=1.5), r"beta must lie in \[0, 1\], got 1.5"),
        (lambda: es.CIWAE(beta=-0.1), "beta .* got -0.1"),
        (lambda: es.CIWAE(beta=float("nan")), "beta .* got nan"),
        (lambda: es.Renyi(alpha=float("nan")), "alpha .* got nan"),
        (lambda: es.Renyi(alpha=float("inf")), "alpha .* got inf"),
        (lambda: es.DataEmphasizedELBO(kappa=0.0), "kappa must be positive or None .* got 0.0"),
        (lambda: es.DataEmphasizedELBO(kappa=-1), "kappa .* got -1"),
        (lambda: es.DataEmphasizedELBO(kappa=float("nan")), "kappa .* got nan"),
        (lambda: es.DataEmphasizedELBO(kappa=float("inf")), "kappa .* got inf"),
        (lambda: es.AutoGen(m=-0.5), "m must be at least 0, got -0.5"),
        (lambda: es.AutoGen(m=float("nan")), "m must .* got nan"),
    ],
)
def test_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("cls", [es.IWAE, es.Renyi, es.CHIVI, es.MIWAE])
def test_path_is_flagged_as_biased_where_it_is(cls):
    message = rf"gradient='path' is biased for {cls.__name__}: .*'dreg' is its unbiased counterpart"
    with pytest.warns(UserWarning, match=message) as warned:
        cls(4, "path")
    assert warned[0].filename == __file__  # points at the user's line


def test_path_is_not_flagged_where_it_is_right():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        es.ELBO(4, "path"), es.VBIS(4, "path"), es.DataEmphasizedELBO(4, "path"), es.Renyi(4, "path", alpha=1.0)
        es.LogWeight(4, "path", theta=es.IWBound(), phi=es.ELBOBound())


# -- model and guide --------------------------------------------------------------------------------------------------


def discrete(x):
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("spike", dist.Poisson(1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def discrete_guide(x):
    with numpyro.plate("data", len(x)):
        numpyro.sample("spike", dist.Poisson(numpyro.param("rate", jnp.ones(len(x)))))


@pytest.mark.parametrize(
    "estimator", [es.ELBO(2, "reparam"), es.ELBO(2, "path"), es.IWAE(2, "dreg"), es.VIS(2, "dreg")], ids=str
)
def test_reparameterised_gradients_at_a_discrete_site(estimator):
    with pytest.raises(ValueError, match=r"guide site 'spike' has none.*Use gradient='score'"):
        problem(estimator, discrete, discrete_guide)
    with pytest.raises(ValueError, match="guide site 'spike' has none"):  # inside numpyro.infer.SVI
        estimator.loss(KEY, {"rate": jnp.ones(4)}, discrete, discrete_guide, X)
    score = estimator.with_gradient("score")
    assert jax.eval_shape(lambda: score.loss(KEY, {"rate": jnp.ones(4)}, discrete, discrete_guide, X)).shape == ()


def test_guides_without_a_density_at_a_given_value():
    def wide(x):
        numpyro.sample("m", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(0.0, 1.0).expand([len(x)]), obs=x)

    flow = autoguide.AutoBNAFNormal(wide)
    for estimator in (es.ELBO(2, "path"), es.IWAE(2, "score"), es.VIS(2), es.RWS(2)):
        with pytest.raises(ValueError, match=r"'_auto_latent' does not have .* Use ELBO or IWAE"):
            problem(estimator, wide, flow)
    assert es.IWAE(2, "reparam").problem(KEY, wide, flow, {"x": X}).params


@pytest.mark.parametrize("cls", [es.IWAE, es.VIS, es.RWS, es.CHIVI, es.MIWAE, es.VBIS], ids=lambda c: c.__name__)
def test_a_subsampled_plate_inside_the_weights(cls):
    """log mean w of a subsample is no estimate of log mean w: only what is linear in log w may subsample there."""
    with pytest.raises(ValueError, match=f"{cls.__name__} is not linear .* plate 'data' does not. Use ELBO"):
        cls(4).loss(KEY, {"loc": jnp.array(0.0)}, model, guide, X, batch_size=2)
    assert jax.eval_shape(lambda: cls(4).loss(KEY, {"loc": jnp.array(0.0)}, model, guide, X)).shape == ()


def test_a_subsampled_plate_inside_the_elbo():
    """There it is unbiased: mean over the six subsamples of two, at the same z, is the whole."""
    loss = es.ELBO(1)
    one = jax.vmap(lambda key: loss.loss(key, {"loc": jnp.array(0.2)}, model, guide, X, batch_size=2))
    draws = jax.jit(one)(jax.random.split(KEY, 20_000))
    expected = -0.5 * (np.sum((X - 0.2) ** 2) + 4 * (1 + np.log(2 * np.pi))) - 0.5 * (0.2**2 + 1 - 1)
    error = np.std(draws) / np.sqrt(20_000)
    assert abs(np.mean(-draws) - expected) < 4 * error


def sites(**distributions):
    def guide(x, batch_size=None):
        for name, distribution in distributions.items():
            numpyro.sample(name, distribution)

    return guide


def test_guide_misses_a_site():
    with pytest.raises(ValueError, match=r"no sample site 'm', which is latent.*latent sites: 'm'; guide sites: none"):
        problem(es.ELBO(2), guide=sites())


def test_guide_invents_a_site():
    with pytest.raises(ValueError, match=r"samples site 'extra', which the model does not have.*is_auxiliary"):
        problem(es.IWAE(2), guide=sites(m=dist.Normal(), extra=dist.Normal()))


def test_guide_samples_an_observed_site():
    with pytest.raises(ValueError, match="samples site 'x', which the model observes"):
        problem(es.VIS(2), guide=sites(m=dist.Normal(), x=dist.Normal()))


@pytest.mark.parametrize("wrong", [dist.Normal(jnp.zeros(3)), dist.Normal(jnp.zeros(3)).to_event(1)])
def test_guide_of_another_shape(wrong):
    with pytest.raises(ValueError, match=r"disagree on the shape of site 'm': the model says \(\), the guide \(3,\)"):
        problem(es.ELBO(2), guide=sites(m=wrong))


def test_auxiliary_sites_are_welcome():
    def auxiliary(x):
        u = numpyro.sample("u", dist.Normal(), infer={"is_auxiliary": True})
        numpyro.sample("m", dist.Delta(u))

    assert np.isfinite(jax.jit(lambda: es.IWAE(4).loss(KEY, {}, model, auxiliary, X))())


def test_mutable_state_is_refused():
    with pytest.raises(ValueError, match="IWAE does not carry mutable state"):
        es.IWAE(4).loss_with_mutable_state(KEY, {}, model, guide, X)


# -- estimators are values --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_estimators_are_values(name):
    one, other = EVERY[name](8), EVERY[name](8)
    assert one == other
    assert hash(one) == hash(other)
    assert one != EVERY[name](16)
    assert repr(one).startswith(f"{name}(num_particles=8, gradient=None")
    assert one.name == name
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.num_particles = 3
    more = dataclasses.replace(one, num_particles=12, gradient="score")
    assert (type(more), more.num_particles, more.gradient) == (type(one), 12, "score")
    assert more.with_gradient(None) == EVERY[name](12)
    assert eval(repr(more), vars(es)) == more


def test_estimators_differ_where_their_arguments_do():
    family = {es.Renyi(4, alpha=a) for a in (0.0, 0.5)} | {es.CIWAE(4, beta=b) for b in (0.1, 0.9)}
    family |= {cls(4) for cls in EVERY.values()} | {es.IWAE(4, vectorize_particles=False), es.CHIVI(4, sandwich=False)}
    family |= {es.LogWeight(4, phi=phi) for phi in (es.ForwardChi2(), es.ForwardKL(), es.CUBOBound())}
    assert len(family) == 2 + 2 + len(EVERY) + 2 + 3 - 1  # Renyi's default is alpha = 0.5
    assert es.LogWeight(4) != es.IWAE(4)  # the same mathematics, but not the same name in a table


def test_replace_keeps_and_checks_arguments():
    assert dataclasses.replace(es.Renyi(4, alpha=0.2), num_particles=8) == es.Renyi(8, alpha=0.2)
    assert dataclasses.replace(es.Renyi(4), alpha=0.0).theta == es.IWBound()
    assert dataclasses.replace(es.DataEmphasizedELBO(4), kappa=2.0).likelihood_power == 2.0
    with pytest.raises(ValueError, match="num_groups"):
        dataclasses.replace(es.MIWAE(8), num_particles=6)


@pytest.mark.long
def test_loose_composition():
    """Any θ-objective with any φ-objective: VIS by hand is VIS."""
    params = {"loc": jnp.array(0.3)}
    by_hand = es.LogWeight(num_particles=6, gradient="dreg", theta=es.IWBound(), phi=es.ForwardChi2())
    values = [
        jax.value_and_grad(lambda p, e=e: e.loss(KEY, p, model, guide, X))(params) for e in (by_hand, es.VIS(6, "dreg"))
    ]
    np.testing.assert_allclose(values[0][0], values[1][0])
    np.testing.assert_allclose(values[0][1]["loc"], values[1][1]["loc"])
