"""What a user hands in wrong is named before JAX sees it: the key, the index, and the way out."""

import re

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest

from estimax import estimators, fit
from estimax.inference.data import check_model, nearest, prepare


def line(x, y, sigma=1.0):
    a = numpyro.sample("a", dist.Normal(0, 10))
    b = numpyro.sample("b", dist.Normal(0, 10))
    with numpyro.plate("n", len(x)):
        numpyro.sample("y", dist.Normal(a + b * x, sigma), obs=y)


X = np.linspace(-1, 1, 6)
GOOD = {"x": X, "y": 2 * X}


def refused(data, *words, model=line, error=ValueError, **options):
    with pytest.raises(error) as caught:
        fit(model, estimators.ELBO(), data, progress_bar=False, num_steps=2, **options)
    message = str(caught.value)
    for word in words:
        assert word in message, f"{word!r} is not in: {message}"
    assert "\n" not in message
    assert "Traced<" not in message


def test_key_that_the_model_does_not_take_names_the_nearest():
    refused({**GOOD, "sigmaa": 1.0}, "'sigmaa'", "did you mean 'sigma'?")
    refused({**GOOD, "weights": 1.0}, "'weights'", "known: x, y, sigma")


def test_missing_key_is_named_with_the_keys_there_are():
    refused({"x": X}, "'y'", "keys: x")
    refused({}, "'x'", "none")
    refused(None, "'x'")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_value_that_is_not_finite_is_named_by_key_and_first_index(bad):
    y = 2 * X
    y[[3, 5]] = bad
    refused({"x": X, "y": y}, f"data['y'][3] is {bad}", "2 of 6", "numpyro.handlers.mask")
    matrix = np.zeros((2, 3))
    matrix[1, 2] = bad
    refused({"x": matrix, "y": y[:3]}, "data['x'][1, 2]", "1 of 6")
    refused({**GOOD, "sigma": bad}, f"data['sigma'] is {bad}")


def test_first_bad_index_is_the_first_in_reading_order():
    x = np.zeros((3, 3))
    x[2, 0] = x[0, 1] = np.nan
    refused({"x": x, "y": X}, "data['x'][0, 1]")


def test_not_finite_inside_a_nested_dict():
    def model(inputs):
        numpyro.sample("y", dist.Normal(numpyro.sample("a", dist.Normal(0, 1)), 1), obs=inputs["y"])

    refused({"inputs": {"y": np.array([1.0, np.nan])}}, "inputs['y']", "[1]", "nan", model=model)


def test_numbers_too_large_for_the_precision_in_force_do_not_slip_through():
    """float32 and int32 are JAX's default: 1e300 would become inf, 2^40 would become 0."""
    y = 2 * X
    y[2] = 1e300
    refused({"x": X, "y": y}, "data['y'][2]", "1e+300", "float32")
    refused({"x": X, "y": np.array([0, 2**40, 0, 0, 0, 0])}, "data['y'][1]", str(2**40), "int32")


def test_large_numbers_are_taken_in_double_precision(x64):
    data = prepare(line, {"x": X, "y": np.array([0, 2**40, 0, 0, 0, 0]), "sigma": 1e300})
    assert int(data["y"][1]) == 2**40
    assert float(data["sigma"]) == 1e300


def test_ragged_rows_text_and_dates():
    refused({"x": X, "y": np.array([[1.0], [2.0, 3.0]], dtype=object)}, "data['y']", "unequal length")
    refused({"x": X, "y": [[1.0], [2.0, 3.0]]}, "data['y']", "unequal length")
    refused({"x": X, "y": np.array(["a"] * 6)}, "data['y']", "encode text")
    refused({"x": X, "y": np.array(["2020-01-01"] * 6, dtype="datetime64[D]")}, "data['y']", "dates")


def test_data_that_is_no_dict():
    refused(X, "data must be a dict", "ndarray", "data={'y': y}", error=TypeError)
    refused([X, X], "list", error=TypeError)


def test_model_that_is_no_function():
    refused(GOOD, "model must be a function", "str", model="line", error=TypeError)


def test_positional_only_arguments():
    def model(y, /):
        numpyro.sample("y", dist.Normal(numpyro.sample("a", dist.Normal(0, 1)), 1), obs=y)

    refused({"y": X}, "'y'", "by position only", model=model)


def test_model_without_observed_site():
    def nothing(y=None):
        numpyro.sample("y", dist.Normal(numpyro.sample("a", dist.Normal(0, 1)), 1), obs=None)

    refused({"y": X}, "'nothing'", "no observed site", "obs=", model=nothing)
    refused({}, "no observed site", model=nothing)


def test_factor_counts_as_observed():
    def model(y):
        a = numpyro.sample("a", dist.Normal(0, 1))
        numpyro.factor("fit", -0.5 * jnp.sum((y - a) ** 2))

    assert check_model(model, prepare(model, {"y": X})) == {}


def test_shape_mismatch_gives_the_shapes_of_all_data():
    refused({"x": X, "y": X[:4]}, "'line'", "x (6,)", "y (4,)", "site 'y' observes shape (4,)", "(6,)")


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (lambda: dist.Normal(np.zeros(3), np.array([1.0, -2.0, 1.0])), ("scale[1] of its Normal is -2.0", "Positive")),
        (lambda: dist.Normal(np.zeros(3), np.nan).to_event(1), ("scale[0] of its Normal is nan",)),
        (lambda: dist.Poisson(-1.0), ("rate of its Poisson is -1.0", "GreaterThanEq")),
        (
            lambda: dist.MultivariateNormal(np.zeros(3), -np.eye(3)),
            ("covariance_matrix of its MultivariateNormal is", "PositiveDefinite"),
        ),
    ],
)
def test_argument_of_a_distribution_is_named_with_its_site(bad, words):
    def model(y):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", bad(), obs=y + 0 * z)

    refused({"y": X[:3]}, "site 'y': ", *words, model=model)


def test_model_that_raises_keeps_its_own_words():
    def model(y):
        raise KeyError("what the model wants")

    refused({"y": X}, "'model'", "KeyError", "what the model wants", model=model)


@pytest.mark.long
def test_integers_stay_static_and_floats_do_not():
    def model(size, y, flag=True, name="a"):
        with numpyro.plate("n", size):
            z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(z.sum(), 1), obs=y)

    data = prepare(model, {"size": 3, "y": 1.5, "flag": False, "name": "b"})
    assert data["size"] == 3
    assert data["flag"] is False
    assert data["name"] == "b"
    assert data["y"].shape == ()
    # A NumPy or pandas scalar is what `x.max()` and `df.n[0]` give: as a size it must be as static as an int.
    for size in (np.int64(3), np.array([3, 4]).min(), pd.Series([3])[0]):
        assert isinstance(prepare(model, {"size": size, "y": 1.5})["size"], int)
    result = fit(model, estimators.ELBO(), {"size": np.int64(3), "y": 1.5}, num_steps=2, progress_bar=False)
    assert result.sample(5)["z"].shape == (5, 3)


def test_pandas_lists_and_tuples_become_arrays():
    frame = pd.DataFrame({"x": X, "y": 2 * X})
    for data in ({"x": frame["x"], "y": frame["y"]}, {"x": list(X), "y": tuple(2 * X)}):
        prepared = prepare(line, data)
        np.testing.assert_allclose(prepared["y"], 2 * X, rtol=1e-6)


def test_guide_that_misses_or_invents_a_site():
    def misses(x, y):
        numpyro.sample("a", dist.Normal(numpyro.param("m", 0.0), 1))

    def invents(x, y):
        for name in ("a", "b", "c"):
            numpyro.sample(name, dist.Normal(numpyro.param(f"m_{name}", 0.0), 1))

    def observed(x, y):
        for name in ("a", "b"):
            numpyro.sample(name, dist.Normal(numpyro.param(f"m_{name}", 0.0), 1))
        numpyro.sample("y", dist.Normal(0, 1))

    def vector(y):
        a = numpyro.sample("a", dist.Normal(0, 10))
        numpyro.sample("y", dist.Normal(a.sum(), 1), obs=y)

    def shape(y):
        numpyro.sample("a", dist.Normal(numpyro.param("m", jnp.zeros(2)), 1).to_event(1))

    refused(GOOD, "no sample site 'b'", "numpyro.sample('b'", guide=misses)
    refused(GOOD, "site 'c'", "does not have", "is_auxiliary", guide=invents)
    refused(GOOD, "site 'y'", "observes", guide=observed)
    refused({"y": X}, "shape of site 'a'", "()", "(2,)", model=vector, guide=shape)


def test_guide_that_is_nothing_of_the_kind():
    refused(GOOD, "AutoGuide", "str", guide="AutoNormal", error=TypeError)


def test_discrete_latent_without_a_guide_for_it():
    def model(y):
        k = numpyro.sample("k", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Normal(k, 1.0), obs=y)

    def guide(y):
        numpyro.sample("k", dist.Bernoulli(logits=numpyro.param("l", 0.0)))

    refused({"y": X}, "'k'", "discrete", "BernoulliProbs", "gradient='score'", model=model)
    with pytest.raises(ValueError, match=r"'k'.*score"):
        fit(model, estimators.ELBO(gradient="reparam"), {"y": X}, guide=guide, progress_bar=False)


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "10"])
def test_counts_below_one(value):
    for name in ("num_steps", "num_restarts"):
        with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1, got {re.escape(repr(value))}"):
            fit(line, estimators.ELBO(), GOOD, progress_bar=False, **{name: value})


def test_zero_particles():
    with pytest.raises(ValueError, match="num_particles must be an integer of at least 1, got 0"):
        estimators.IWAE(num_particles=0)


def test_estimator_given_as_class_or_name():
    with pytest.raises(TypeError, match=r"as IWAE\(\), got <class"):
        fit(line, estimators.IWAE, GOOD)
    with pytest.raises(TypeError, match=r"estimax\.estimators, as ELBO\(\), got 'ELBO'"):
        fit(line, "ELBO", GOOD)


@pytest.mark.parametrize("seed", [-1, 0.5, "a", None])
def test_seed_that_is_no_count(seed):
    with pytest.raises(ValueError, match=f"seed must be an integer of at least 0, got {re.escape(repr(seed))}"):
        fit(line, estimators.ELBO(), GOOD, seed=seed)


def test_wrong_option_of_start():
    refused(GOOD, "start must be one of", "'laplac'", start="laplac")
    refused(GOOD, "start names 'aa'", "sites: a, b", start={"aa": 0.0})
    refused(GOOD, "start['a'] has shape (3,)", "()", start={"a": np.zeros(3)})

    def positive(y):
        s = numpyro.sample("s", dist.HalfNormal(1.0))
        numpyro.sample("y", dist.Normal(0, s), obs=y)

    refused({"y": X}, "start['s'] = -1.0", "outside", model=positive, start={"s": -1.0})


def test_nearest():
    assert nearest("sigm", ["mu", "sigma"]) == "did you mean 'sigma'?"
    assert nearest("zzz", ["mu", "sigma"]) == "known: mu, sigma"
