"""LogME against SciPy and scikit-learn; linear conditioning against dense Gaussian algebra."""

import numpy as np
import pytest
from scipy import optimize, stats
from sklearn.linear_model import BayesianRidge

from estimax.estimators.gp.linear import condition_linear, log_me

rng = np.random.default_rng(0)
F = rng.normal(size=(40, 5)) * np.array([3.0, 1.0, 1.0, 0.3, 0.1])
Y = F @ np.array([0.5, -1.0, 0.0, 2.0, 0.0]) + 0.7 * rng.normal(size=40)


def negative_evidence(v, features, y):
    covariance = features @ features.T / np.exp(v[0]) + np.eye(len(y)) / np.exp(v[1])
    return -stats.multivariate_normal(np.zeros(len(y)), covariance).logpdf(y)


@pytest.mark.parametrize("columns", [5, 60])
def test_evidence_is_scipys_maximum(columns):
    features = F if columns == 5 else rng.normal(size=(40, columns))
    y = Y if columns == 5 else features[:, :3].sum(1) + rng.normal(size=40)
    found = log_me(features, y)
    peers = [optimize.minimize(negative_evidence, v, (features, y), tol=1e-10) for v in ([0, 0], [2, 1], [-1, -1])]
    best = min(peers, key=lambda p: p.fun)
    assert found.log_evidence[0] == pytest.approx(-best.fun, abs=1e-6)
    np.testing.assert_allclose(np.log([found.alpha[0], found.beta[0]]), best.x, atol=1e-3)
    assert found.score == pytest.approx(-best.fun / 40, abs=1e-7)


def test_precisions_are_scikit_learns():
    peer = BayesianRidge(max_iter=5000, tol=1e-12, alpha_1=0, alpha_2=0, lambda_1=0, lambda_2=0, fit_intercept=False,
                         compute_score=True).fit(F, Y)  # fmt: skip
    found = log_me(F, Y)
    assert found.beta[0] == pytest.approx(peer.alpha_, rel=1e-5)
    assert found.alpha[0] == pytest.approx(peer.lambda_, rel=1e-5)
    assert found.log_evidence[0] == pytest.approx(peer.scores_[-1], abs=1e-6)


def test_features_are_ranked_and_classes_are_columns():
    labels = rng.integers(0, 3, 200)
    good = np.eye(3)[labels] @ rng.normal(size=(3, 8)) + 0.3 * rng.normal(size=(200, 8))
    poor = np.eye(3)[labels] @ rng.normal(size=(3, 8)) + 3.0 * rng.normal(size=(200, 8))
    assert log_me(good, labels).score > log_me(poor, labels).score + 0.1
    found = log_me(good, labels)
    columns = [log_me(good, (labels == c).astype(float)) for c in range(3)]
    np.testing.assert_allclose(found.log_evidence, [c.log_evidence[0] for c in columns])
    assert found.score == pytest.approx(np.mean([c.score for c in columns]))


def test_features_that_say_nothing():
    """Targets orthogonal to the features: the coefficients are zero, and the evidence that of noise alone."""
    y = rng.normal(size=40)
    y -= F @ np.linalg.lstsq(F, y, rcond=None)[0]
    found = log_me(F, y)
    assert found.alpha[0] == np.inf
    assert found.log_evidence[0] == pytest.approx(stats.norm(0, np.sqrt(np.mean(y**2))).logpdf(y).sum(), abs=1e-8)


@pytest.mark.parametrize(
    ("features", "targets", "message"),
    [
        (F[:, 0], Y, r"features must have 2 dimensions, got shape \(40,\)"),
        (F[:9], Y, "features have 9 rows, targets 40"),
        (F, np.where(Y > 0, Y, np.nan), "targets holds .* not finite"),
        (F, np.ones(40, int), "one class"),
        (F, F[:, 0] + F[:, 1], "fit target 0 exactly"),
        (0 * F, Y, "features are all zero"),
    ],
)
def test_log_me_names_mistakes(features, targets, message):
    with pytest.raises(ValueError, match=message):
        log_me(features, targets)


ROOT = rng.normal(size=(7, 7))
C = ROOT @ ROOT.T
MEAN = rng.normal(size=7)
A = np.stack([np.ones(7), np.arange(7.0)])
B = np.array([3.0, -2.0])


def dense(noise):
    """The conditional of f given A f + e = b from their joint covariance, by a generic inverse."""
    joint = np.block([[C, C @ A.T], [A @ C, A @ C @ A.T + noise]])
    gain = joint[:7, 7:] @ np.linalg.inv(joint[7:, 7:])
    return MEAN + gain @ (B - A @ MEAN), joint[:7, :7] - gain @ joint[7:, :7]


def test_constraint_holds_exactly_and_equals_dense_conditioning():
    mean, covariance = condition_linear(MEAN, C, A, B)
    np.testing.assert_allclose(A @ mean, B, atol=1e-10)
    np.testing.assert_allclose(A @ covariance @ A.T, 0, atol=1e-10)
    for found, truth in zip((mean, covariance), dense(np.zeros((2, 2))), strict=True):
        np.testing.assert_allclose(found, truth, atol=1e-9)


@pytest.mark.parametrize("noise", [0.5, np.array([0.1, 0.4]), np.array([[0.3, 0.1], [0.1, 0.2]])])
def test_noisy_constraints_equal_dense_conditioning(noise):
    full = np.diag(np.broadcast_to(noise, 2)) if np.ndim(noise) < 2 else noise
    for found, truth in zip(condition_linear(MEAN, C, A, B, noise), dense(full), strict=True):
        np.testing.assert_allclose(found, truth, atol=1e-10)


def test_one_constraint_and_conservation_on_a_fine_grid():
    """The integral of a smooth process, whose covariance is nearly singular, is held to 1e-10."""
    x = np.linspace(0, 1, 60)
    smooth = np.exp(-0.5 * (x[:, None] - x) ** 2 / 0.2**2)
    weights = np.full(60, 1 / 60)
    mean, covariance = condition_linear(np.sin(x), smooth, weights, 0.25)
    assert weights @ mean == pytest.approx(0.25, abs=1e-10)
    assert weights @ covariance @ weights == pytest.approx(0, abs=1e-10)
    assert np.linalg.eigvalsh(covariance).min() > -1e-10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((MEAN, C, np.ones((2, 7)), B), "singular: a constraint repeats"),
        ((MEAN, C, np.zeros(7), 1.0), "singular: a constraint repeats"),
        ((MEAN, C, A[:, :6], B), r"A has shape \(2, 6\), .* it should be \(2, 7\)"),
        ((MEAN, C[:6, :6], A, B), r"covariance has shape \(6, 6\)"),
        ((MEAN, np.triu(C), A, B), "not symmetric"),
        ((MEAN, C, A, B, -1.0), "must not be negative"),
        ((MEAN, C, A, B, np.ones(3)), r"noise has shape \(3,\)"),
        ((MEAN, C, A, np.array([np.nan, 1.0])), "not finite"),
    ],
)
def test_condition_linear_names_mistakes(arguments, message):
    with pytest.raises(ValueError, match=message):
        condition_linear(*arguments)
