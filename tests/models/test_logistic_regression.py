import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.diagnostics import effective_sample_size
from numpyro.infer.util import log_density
from scipy import stats

from estimax.models import logistic_regression

pytest.importorskip("sklearn")
DATA = logistic_regression.data()


def log_joint(intercept, b):
    return log_density(logistic_regression.model, (), DATA, {"intercept": intercept, "b": b})[0]


def test_data_are_standardised():
    assert DATA["x"].shape == (569, 30)
    assert DATA["y"].sum() == 357
    np.testing.assert_allclose(DATA["x"].mean(0), 0.0, atol=1e-12)
    np.testing.assert_allclose(DATA["x"].std(0), 1.0, rtol=1e-12)


def test_log_joint_against_scipy():
    intercept, b = 0.4, np.linspace(-0.5, 0.6, 30)
    probability = 1.0 / (1.0 + np.exp(-(intercept + DATA["x"] @ b)))
    expected = stats.norm.logpdf(intercept) + stats.norm.logpdf(b).sum()
    expected += stats.bernoulli.logpmf(DATA["y"], probability).sum()
    np.testing.assert_allclose(log_joint(jnp.array(intercept), jnp.asarray(b)), expected, rtol=1e-5)


@pytest.mark.slow
def test_reference_draws_satisfy_steins_identity():
    """E[grad log p] = 0 and E[b_j (grad log p)_j] = -1 under the posterior, within 4 standard errors."""
    reference = logistic_regression.reference()
    assert reference["intercept"].shape == (4000,)
    assert reference["b"].shape == (4000, 30)
    draws = np.column_stack([reference["intercept"], reference["b"]])
    gradient = jax.vmap(jax.grad(lambda v: log_joint(v[0], v[1:])))(jnp.asarray(draws))
    for values, expected in ((np.asarray(gradient), 0.0), (draws * np.asarray(gradient), -1.0)):
        effective = effective_sample_size(values.reshape(4, 1000, 31))
        z = (values.mean(0) - expected) / (values.std(0) / np.sqrt(effective))
        assert np.abs(z).max() < 4.0
