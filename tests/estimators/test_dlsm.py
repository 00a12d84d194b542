"""Classifiers of noisy data, against two normal classes whose scores and class probabilities are closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from jax import random

import estimax
from estimax.estimators import DLSM, MLE, DenoisingScoreMatching
from estimax.models.diffusion import Diffusion, observed
from estimax.models.noise_process import VP
from estimax.models.noisy_classifier import NoisyClassifier

PROCESS, MEANS, SD = VP(), jnp.array([-1.5, 1.5]), 0.6
SHARES = jnp.array([0.3, 0.7])
RNG = np.random.default_rng(0)
LABELS = (RNG.random(2000) < 0.7).astype(np.int32)
X = (np.asarray(MEANS)[LABELS] + SD * RNG.normal(size=2000)).astype(np.float32)[:, None]


def exact_logits(x, t, slope=1.0):
    """log p(label, x_t) up to a common term; `slope` 1 is the truth."""
    alpha, variance = PROCESS.alpha(t), (PROCESS.alpha(t) * SD) ** 2 + PROCESS.sigma(t) ** 2
    return slope * -((x[0] - alpha * MEANS) ** 2) / (2 * variance) + jnp.log(SHARES)


def score(x, t):
    return jax.grad(lambda x: jax.scipy.special.logsumexp(exact_logits(x, t)))(x)


def class_score(x, t):
    """Of the second class alone."""
    variance = (PROCESS.alpha(t) * SD) ** 2 + PROCESS.sigma(t) ** 2
    return -(x - PROCESS.alpha(t) * MEANS[1]) / variance


BASE = Diffusion(score, PROCESS, 1, predicts="score")


def model(x, label, batch_size=None):
    slope = numpyro.param("slope", 0.3)
    with numpyro.plate("data", len(x), subsample_size=batch_size):
        batch, labels = numpyro.subsample(jnp.asarray(x), event_dim=1), numpyro.subsample(jnp.asarray(label), 0)
        fn = NoisyClassifier(lambda x, t: exact_logits(x, t, slope), BASE, batch)
        numpyro.sample("label", fn, obs=labels)


@pytest.mark.long
def test_with_the_exact_classifier_the_loss_is_that_of_the_class():
    """Bayes: score of all plus gradient of log p(y | x_t) is the score of class y, so is the regression."""
    ones = jnp.ones(len(X), jnp.int32)
    ours = DLSM(cross_entropy=0.0).objective(NoisyClassifier(exact_logits, BASE, X), ones, random.key(1), None)
    alone = Diffusion(class_score, PROCESS, 1, predicts="score")
    theirs = DenoisingScoreMatching().objective(alone, jnp.asarray(X), random.key(1), None)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
    entropy = DLSM().objective(NoisyClassifier(exact_logits, BASE, X), ones, random.key(1), None) - ours
    noised = DLSM().add_noise(BASE, jnp.asarray(X), random.key(1))
    log_p = [jax.nn.log_softmax(exact_logits(x, t))[1] for x, t in zip(noised.x[:20], noised.t[:20], strict=True)]
    np.testing.assert_allclose(entropy[:20], -np.array(log_p), rtol=1e-3, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("cross_entropy", [0.0, 1.0])
def test_the_fitted_slope_is_the_true_one(cross_entropy):
    """One parameter: at the mean of the last steps, within 4 standard errors of the minimum over these data."""
    estimator = DLSM(cross_entropy=cross_entropy)
    options = {"num_steps": 600, "learning_rate": 0.02, "progress_bar": False}
    data = {"x": X, "label": LABELS, "batch_size": 500}
    found = [float(estimax.fit(model, estimator, data, seed=i, **options).params["slope"]) for i in range(3)]
    # Between fits: the noise of the last steps. Of the data: other 2,000 gave 0.99, 1.00, 1.02, and 0.99, 0.98, 1.02.
    assert abs(np.mean(found) - 1) < 4 * np.hypot(np.std(found, ddof=1) / np.sqrt(len(found)), 0.02), found


def test_maximum_likelihood_trains_the_same_model_on_clean_data():
    fit = estimax.fit(model, MLE(), {"x": X, "label": LABELS}, progress_bar=False)
    assert abs(fit.params["slope"] - 1) < 4 * fit.covariance().std_err[0]


def test_guided_draws_are_of_the_class():
    """Means, standard deviations of 2,000 draws of each, 4 standard errors and the steps' own error of 0.02."""
    fn = observed(model, {"slope": jnp.asarray(1.0)}, {"x": X, "label": LABELS})
    for label in (0, 1):
        draws = np.asarray(BASE.sample_guided(random.key(label), (2000,), fn.guidance(label)))[:, 0]
        assert abs(draws.mean() - MEANS[label]) < 4 * SD / np.sqrt(2000) + 0.02
        assert abs(draws.std() - SD) < 4 * SD / np.sqrt(4000) + 0.02
    with pytest.raises(ValueError, match="label must be one of 0, ..., 1, got 2"):
        fn.guidance(2)


def test_bad_input():
    with pytest.raises(ValueError, match="cross_entropy must be a number of at least 0, got -1"):
        DLSM(cross_entropy=-1)
    with pytest.raises(TypeError, match="needs the Diffusion of its data, got Normal"):
        NoisyClassifier(exact_logits, numpyro.distributions.Normal(), X)
    with pytest.raises(ValueError, match=r"two logits or more, got shape \(1,\)"):
        NoisyClassifier(lambda x, t: x, BASE, X)
    data = {"x": X, "label": LABELS.astype(np.float32)}
    with pytest.raises(ValueError, match="integer labels"):
        estimax.fit(model, DLSM(), data, num_steps=1, progress_bar=False)
    data = {"x": X, "label": LABELS + 1}
    with pytest.raises(ValueError, match="outside the support"):
        estimax.fit(model, DLSM(), data, num_steps=1, progress_bar=False)

    def other(x):
        numpyro.sample("x", numpyro.distributions.Normal(numpyro.param("a", 0.0)).expand(x.shape).to_event(2), obs=x)

    with pytest.raises(ValueError, match="NoisyClassifier"):
        estimax.fit(other, DLSM(), {"x": X}, num_steps=1, progress_bar=False)
