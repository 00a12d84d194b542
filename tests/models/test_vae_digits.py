import jax
import numpy as np
import numpyro
import pytest
from numpyro import handlers
from numpyro.infer import SVI, Trace_ELBO
from scipy import stats

from estimax.models import vae_digits

pytest.importorskip("sklearn")
pytest.importorskip("equinox")


def tracer(function, **data):
    """seed -> sites of a run: values and, for sample sites, log_prob and mean by image; compiled once."""

    @jax.jit
    def run(seed):
        sites = handlers.trace(handlers.seed(function, jax.random.key(seed))).get_trace(**data)
        found = {name: {"value": site["value"]} for name, site in sites.items() if site["type"] in ("param", "sample")}
        for name, site in sites.items():
            if site["type"] == "sample":
                found[name] |= {"log_prob": site["fn"].log_prob(site["value"]), "mean": site["fn"].mean}
        return found

    return run


def weights(site):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(site["value"])]


def test_data_are_binary_and_split():
    train, test = vae_digits.data()["x"], vae_digits.held_out()["x"]
    assert train.shape == (1500, 64)
    assert test.shape == (297, 64)
    assert set(np.unique(train)) == set(np.unique(test)) == {0, 1}


def test_initial_weights_follow_the_seed():
    run = tracer(vae_digits.model, x=vae_digits.data()["x"][:5])
    one, again, other = (weights(run(seed)["decoder$params"]) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_likelihood_against_a_numpy_decoder():
    x = vae_digits.data()["x"][:5]
    sites = tracer(vae_digits.model, x=x)(0)
    (w0, b0, w1, b1) = weights(sites["decoder$params"])
    z = np.asarray(sites["z"]["value"])
    logits = np.tanh(z @ w0.T + b0) @ w1.T + b1
    expected = stats.bernoulli.logpmf(x, 1.0 / (1.0 + np.exp(-logits))).sum(1)
    np.testing.assert_allclose(sites["x"]["log_prob"], expected, rtol=1e-4)
    np.testing.assert_allclose(sites["z"]["log_prob"], stats.norm.logpdf(z).sum(1), rtol=1e-5)


def test_guide_is_amortised():
    x = vae_digits.data()["x"][:5]
    one = tracer(vae_digits.guide, x=x)(0)["z"]["mean"]
    other = tracer(vae_digits.guide, x=np.concatenate([x, x]))(0)["z"]["mean"]
    np.testing.assert_allclose(other[5:], one, rtol=1e-5, atol=1e-6)
    assert np.std(one, axis=0).min() > 0.0


@pytest.mark.long
def test_numpyro_trains_it():
    svi = SVI(vae_digits.model, vae_digits.guide, numpyro.optim.Adam(vae_digits.MODEL.learning_rate), Trace_ELBO())
    result = svi.run(jax.random.key(0), 300, progress_bar=False, **vae_digits.data())
    losses = np.asarray(result.losses) / 1500
    # 64 independent pixels at their training means cost 29.2 nats an image; a trained model must beat that
    mean = vae_digits.data()["x"].mean(0).clip(1e-6, 1.0 - 1e-6)
    independent = -(mean * np.log(mean) + (1.0 - mean) * np.log(1.0 - mean)).sum()
    assert losses[-50:].mean() < independent < losses[:20].mean()
