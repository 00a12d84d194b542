"""The shelf: look-up, and what every model on it must keep."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers

from estimax import models

BUILT_IN = (
    "eight_schools",
    "logistic_regression",
    "linear_gaussian",
    "linear_gaussian_theta",
    "tight_bounds",
    "bernoulli_mixture",
    "poglm",
    "vae_digits",
)
LIKELIHOOD = (
    "gaussian_regression",
    "binary_regression",
    "poisson_regression",
    "negative_binomial_regression",
    "ordinal_regression",
    "gaussian_mixture",
    "mixture_of_experts",
    "gaussian_hmm",
    "poisson_hmm",
    "factorial_hmm",
    "weibull_survival",
    "loglogistic_survival",
    "power_generalized_weibull",
    "gaussian_copula",
    "clayton_copula",
    "gumbel_copula",
    "frank_copula",
    "student_t_returns",
    "skew_t_returns",
)
WITH_GUIDE = [name for name in BUILT_IN if models.get(name).guide is not None]


def entry_of(name):
    """A model whose data and networks can be had here."""
    if name in ("logistic_regression", "vae_digits", "gaussian_mixture"):
        pytest.importorskip("sklearn")
    elif name in LIKELIHOOD and name != "poisson_hmm":
        pytest.importorskip("statsmodels")
    if name == "vae_digits":
        pytest.importorskip("equinox")
    return models.get(name)


def sites(function, data, kind):
    """Name -> (is_observed, batch_shape, scale, shape) of the sites of a kind; traced, not compiled."""
    found = {}

    def run():
        for name, site in handlers.trace(handlers.seed(function, 0)).get_trace(**data).items():
            if site["type"] == kind:
                batch_shape = site["fn"].batch_shape if kind == "sample" else None
                shape = getattr(site["value"], "shape", None)
                found[name] = (site.get("is_observed"), batch_shape, site.get("scale"), shape)

    jax.eval_shape(run)
    return found


def log_prob(trace, reduce=lambda value: value):
    return sum(reduce(site["fn"].log_prob(site["value"])) for site in trace.values() if site["type"] == "sample")


def test_built_in_models_are_on_the_shelf():
    assert set(BUILT_IN + LIKELIHOOD) <= set(models.names())
    assert all(models.get(name).name == name for name in BUILT_IN + LIKELIHOOD)


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(models.UnknownModelError, match="did you mean 'eight_schools'"):
        models.get("eight_school")
    with pytest.raises(ValueError, match="there are: eight_schools"):
        models.get("xyzzy")


def test_register():
    eight_schools = models.get("eight_schools")
    assert models.register(eight_schools) is eight_schools  # again: no harm
    other = models.Model(name="eight_schools", description="", model=lambda: None, data=dict)
    with pytest.raises(ValueError, match="registered already"):
        models.register(other)
    with pytest.raises(TypeError, match="Model"):
        models.register(lambda: None)
    assert models.get("eight_schools") is eight_schools


@pytest.mark.parametrize("name", BUILT_IN + LIKELIHOOD)
def test_every_model_keeps_the_rules(name):
    entry = entry_of(name)
    data = entry.data()
    assert "\n" not in entry.description
    assert len(entry.description) <= 100
    assert all(isinstance(value, (np.ndarray, int)) for value in data.values())
    assert all(np.array_equal(value, entry.data()[key]) for key, value in data.items())

    model_sites = sites(entry.model, data, "sample")
    observed = {key for key, (is_observed, *_) in model_sites.items() if is_observed}
    latents = set(model_sites) - observed
    assert latents
    assert observed

    if entry.guide is not None:
        guide_sites = sites(entry.guide, data, "sample")
        assert set(guide_sites) == latents
        assert all(guide_sites[key][1] == model_sites[key][1] for key in latents)  # finite: see the particles below
    else:
        run = jax.jit(lambda: log_prob(handlers.trace(handlers.seed(entry.model, 0)).get_trace(**data), jnp.sum))
        assert np.isfinite(run())
    if entry.held_out is not None:
        held_out = entry.held_out()
        assert set(held_out) == set(data) - {"batch_size"}
        assert held_out["x"].shape[1:] == data["x"].shape[1:]
        assert not np.array_equal(held_out["x"], data["x"])
        assert set(sites(entry.model, held_out, "sample")) == set(model_sites)
    if entry.truth is not None:
        shapes = {key: site[3] for key, site in sites(entry.model, data, "param").items()}
        assert {key: np.shape(value) for key, value in entry.truth().items()} == shapes


@pytest.mark.parametrize("name", LIKELIHOOD)
def test_likelihood_models_suit_every_estimator(name):
    """Parameters are continuous, global sample sites; one observed site, in the plate "data", is the likelihood."""
    entry = entry_of(name)
    trace = {}

    def run():
        trace.update(handlers.trace(handlers.seed(entry.model, 0)).get_trace(**entry.data()))

    jax.eval_shape(run)
    samples = {key: site for key, site in trace.items() if site["type"] == "sample"}
    observed = [site for site in samples.values() if site["is_observed"]]
    assert len(observed) == 1
    assert [frame.name for frame in observed[0]["cond_indep_stack"]] == ["data"]
    assert observed[0]["fn"].batch_shape == (len(observed[0]["value"]),)
    for site in samples.values():
        if not site["is_observed"]:
            assert not site["fn"].support.is_discrete
            assert not site["cond_indep_stack"]
    assert not any(site["type"] == "param" for site in trace.values())


@pytest.mark.parametrize("name", ["bernoulli_mixture", "poglm", "vae_digits"])
def test_minibatches_scale_to_the_whole(name):
    entry = entry_of(name)
    data = entry.data()
    for function in (entry.model, entry.guide):
        for _, batch_shape, scale, _ in sites(function, data, "sample").values():
            assert batch_shape == (data["batch_size"],)
            assert scale == len(data["x"]) / data["batch_size"]


@pytest.mark.parametrize("name", WITH_GUIDE)
def test_particles_are_a_vmap_axis(name):
    entry = entry_of(name)
    data = {"x": entry.data()["x"][:7]}

    def log_weight(key):
        guide = handlers.trace(handlers.seed(entry.guide, key)).get_trace(**data)
        model = handlers.trace(handlers.replay(handlers.seed(entry.model, 0), guide)).get_trace(**data)
        return log_prob(model) - log_prob(guide)

    keys = jax.random.split(jax.random.key(0), 3)
    particles = jax.jit(jax.vmap(log_weight))
    log_weights = particles(keys)
    assert log_weights.shape == (3, 7)
    assert np.isfinite(log_weights).all()
    np.testing.assert_allclose(log_weights[::-1], particles(keys[::-1]), rtol=1e-5)  # no particle sees another


def test_models_stand_alone_and_load_libraries_late():
    """The folder imports as a package of any other name: it takes nothing from the rest of estimax."""
    folder = Path(models.__file__).parent
    code = f"""
import importlib.util, sys, numpyro
before = set(sys.modules)
spec = importlib.util.spec_from_file_location("alone", {str(folder / "__init__.py")!r})
module = sys.modules["alone"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
late = {{"sklearn", "statsmodels", "pandas", "equinox", "flax", "arviz", "estimax"}}
print(module.names()[0], sorted(late & (set(sys.modules) - before)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["eight_schools", "[]"]
