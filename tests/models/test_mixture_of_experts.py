import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers
from numpyro.infer.util import log_density
from scipy import special, stats

from estimax import fit
from estimax.estimators import MLE
from estimax.models import mixture_of_experts as moe

X = np.random.default_rng(0).normal(size=(40, 2)) * np.array([3.0, 0.2])
Y = np.random.default_rng(1).normal(size=40)
PARAMS = {
    "gate_intercept": np.array([0.3, -0.5]),
    "gate_b": np.array([[0.4, -2.0], [0.1, 3.0]]),
    "intercept": np.array([0.1, 1.0, -2.0]),
    "b": np.array([[0.5, 0.0], [-0.2, 1.0], [0.3, 0.3]]),
    "sigma": np.array([0.5, 1.0, 2.0]),
}
DATA = {"x": X, "y": Y, "num_experts": 3}

pytestmark = pytest.mark.usefixtures("x64_module")


def terms():
    """log gate_k + log N(y; expert k), (n, K), by scipy."""
    logits = np.column_stack([PARAMS["gate_intercept"] + X @ PARAMS["gate_b"].T, np.zeros(40)])
    return special.log_softmax(logits, axis=1) + stats.norm.logpdf(
        Y[:, None], PARAMS["intercept"] + X @ PARAMS["b"].T, PARAMS["sigma"]
    )


def test_marginal_likelihood_is_the_sum_over_experts(pointwise):
    np.testing.assert_allclose(pointwise(moe.model, DATA, PARAMS), special.logsumexp(terms(), axis=1), rtol=1e-10)


def test_labels_as_numpyro_enumerates_them():
    given = {name: jnp.asarray(value) for name, value in PARAMS.items()} | {"z": jnp.arange(3)[:, None]}
    trace = handlers.trace(handlers.seed(handlers.substitute(moe.model_with_labels, data=given), 0)).get_trace(**DATA)
    joint = trace["z"]["fn"].log_prob(given["z"]) + trace["y"]["fn"].log_prob(Y)
    np.testing.assert_allclose(joint.T, terms(), rtol=1e-10)


@pytest.mark.long
def test_numpyros_enumeration_agrees():
    pytest.importorskip("funsor")
    funsor = pytest.importorskip("numpyro.contrib.funsor")
    params = {name: jnp.asarray(value) for name, value in PARAMS.items()}
    labelled = funsor.enum(handlers.seed(moe.model_with_labels, 0), first_available_dim=-2)
    enumerated, _ = funsor.log_density(labelled, (), DATA, params)
    np.testing.assert_allclose(enumerated, log_density(moe.model, (), DATA, params)[0], rtol=1e-10)


def test_equal_experts_are_one_regression(pointwise):
    params = {**PARAMS, "intercept": np.full(3, 0.7), "b": np.tile([0.2, -1.0], (3, 1)), "sigma": np.full(3, 0.9)}
    expected = stats.norm.logpdf(Y, 0.7 + X @ [0.2, -1.0], 0.9)
    np.testing.assert_allclose(pointwise(moe.model, DATA, params), expected, rtol=1e-10)


def test_draws_follow_gate_and_experts():
    """Mean of y at a point against the mixture's mean, in standard errors."""
    n = 20_000
    x = np.tile([1.0, 0.1], (n, 1))
    given = {name: jnp.asarray(value) for name, value in PARAMS.items()}
    gate = special.softmax([*(PARAMS["gate_intercept"] + PARAMS["gate_b"] @ x[0]), 0.0])
    means = PARAMS["intercept"] + PARAMS["b"] @ x[0]
    mean = gate @ means
    sd = np.sqrt(gate @ (means**2 + PARAMS["sigma"] ** 2) - mean**2)
    for model in (moe.model, moe.model_with_labels):
        trace = handlers.trace(handlers.seed(handlers.substitute(model, data=given), 0)).get_trace(x=x, num_experts=3)
        y = np.asarray(trace["y"]["value"])
        assert y.shape == (n,)
        assert abs(y.mean() - mean) < 4.0 * sd / np.sqrt(n)


@pytest.mark.long
def test_slopes_are_finite_far_from_the_data():
    def total(scale):
        params = {name: jnp.asarray(value) for name, value in PARAMS.items()}
        params["intercept"] = params["intercept"] + 1e3 * scale
        params["gate_b"] = params["gate_b"] * 1e3 * scale
        return log_density(moe.model, (), DATA, params)[0]

    value, slope = jax.value_and_grad(total)(1.0)
    assert np.isfinite([value, slope]).all()


@pytest.mark.long
def test_two_experts_beat_one_on_the_data():
    """The fit by default ends at a regular maximum, as from the model's own start, far above one regression."""
    sm = pytest.importorskip("statsmodels.api")
    data = moe.data()
    one = sm.OLS(data["y"], sm.add_constant(data["x"])).fit().llf
    found = fit(moe.model, MLE(), data, progress_bar=False)
    again = fit(moe.model, MLE(), data, start=moe.start(**data), progress_bar=False)
    # four parameters more: twice the gain has a 1e-6 quantile below 34 by chi-squared
    value, value_again = (r.information_criteria()["log_likelihood"] for r in (found, again))
    assert value > one + 17
    assert value == pytest.approx(value_again)
    assert found.diagnose().verdict == "good"
    low, high = np.sort(found.params["intercept"])
    assert 5 < low < 6.5  # percent of unemployment at no inflation
    assert 7.5 < high < 9


def test_data_and_bad_input():
    pytest.importorskip("statsmodels")
    data = moe.data()
    assert data["x"].shape == (203, 1)
    assert data["y"].mean() == pytest.approx(5.884, abs=0.001)
    with pytest.raises(ValueError, match="num_experts must be at least 2, got 1"):
        handlers.seed(moe.model, 0)(x=X, num_experts=1)
