"""Evidence from log-weights against NumPy, ArviZ and closed forms."""

import numpy as np
import pytest
from scipy.special import logsumexp

from estimax import models
from estimax.inference.arviz_bridge import is_datatree, psis
from estimax.inference.evidence import Evidence, estimate, khat_threshold, verdict


def arviz_psislw(log_w):
    if is_datatree():
        from arviz_stats.base import array_stats

        return array_stats.psislw(-log_w)  # of log-likelihoods
    import arviz

    return arviz.psislw(log_w)


@pytest.fixture(scope="module")
def log_w():
    return -3000 + np.random.default_rng(0).standard_t(4, size=2000)


def test_numbers_against_numpy(log_w):
    evidence = estimate(log_w)
    w = np.exp(log_w + 3000)
    assert evidence.value == pytest.approx(np.log(w.mean()) - 3000, rel=1e-12)
    assert evidence.stderr == pytest.approx(w.std(ddof=1) / w.mean() / np.sqrt(2000), rel=1e-9)
    assert evidence.elbo == pytest.approx(log_w.mean(), rel=1e-12)
    assert evidence.ess == pytest.approx(w.sum() ** 2 / (w**2).sum(), rel=1e-9)
    assert evidence.num_samples == 2000
    assert evidence.local == {}


def test_khat_is_that_of_arviz(log_w):
    smoothed, khat = arviz_psislw(log_w)
    assert estimate(log_w).khat == pytest.approx(float(khat), abs=1e-6)
    np.testing.assert_allclose(psis(log_w)[0], smoothed, atol=1e-6)
    assert logsumexp(psis(log_w)[0]) == pytest.approx(0, abs=1e-9)


def test_khat_of_a_known_tail():
    """Weights of a Pareto law with shape k: the estimate is k within 3 of its standard errors (1 + k)/√(tail draws)."""
    size = 20_000
    for k in (0.3, 0.6, 0.9):
        w = np.random.default_rng(1).pareto(1 / k, size) + 1
        assert estimate(np.log(w)).khat == pytest.approx(k, abs=3 * (1 + k) / np.sqrt(3 * np.sqrt(size)))


def test_per_datum(log_w):
    local = log_w.reshape(500, 4) + np.arange(4.0)
    evidence = estimate(local)
    parts = [estimate(column) for column in local.T]
    assert evidence.value == pytest.approx(sum(p.value for p in parts))
    assert evidence.elbo == pytest.approx(sum(p.elbo for p in parts))
    assert evidence.stderr == pytest.approx(np.sqrt(sum(p.stderr**2 for p in parts)))
    assert evidence.khat == pytest.approx(max(p.khat for p in parts))
    assert evidence.ess == pytest.approx(min(p.ess for p in parts))
    for name in ("value", "stderr", "khat", "ess"):
        np.testing.assert_allclose(evidence.local[name], [getattr(p, name) for p in parts])
    assert estimate(log_w.reshape(500, 2, 2)).local["khat"].shape == (2, 2)


def test_threshold_by_sample_size():
    """min(1 − 1/log10 S, 0.7): Pareto Smoothed Importance Sampling, eq. 14."""
    assert khat_threshold(100) == pytest.approx(0.5)
    assert khat_threshold(1000) == pytest.approx(2 / 3)
    assert khat_threshold(2200) == pytest.approx(0.7, abs=1e-3)
    assert khat_threshold(10**6) == 0.7


@pytest.mark.parametrize(
    ("khat", "size", "ess", "expected"),
    [
        (-np.inf, 1000, 1000, "good"),
        (0.1, 1000, 10, "good"),
        (0.49, 10**5, 10, "good"),
        (0.51, 10**5, 10, "ok"),
        (0.69, 10**5, 10, "ok"),
        (0.71, 10**5, 10, "do not use"),
        (0.68, 1000, 10, "do not use"),  # the limit of 1000 draws is 2/3
        (0.45, 50, 10, "do not use"),  # and of 50 draws 0.41
        (0.9, 10**5, 96_001, "ok"),  # weights that hardly vary: no mean can be off by more than 0.2 sd
        (0.9, 10**5, 95_900, "do not use"),
        (1.1, 10**5, 99_999, "do not use"),
        (np.inf, 1000, 1, "do not use"),
        (np.nan, 1000, 1000, "do not use"),
    ],
)
def test_verdict(khat, size, ess, expected):
    assert verdict(khat, size, ess) == expected
    assert Evidence(0.0, 0.0, 0.0, khat, ess, size).verdict == expected


def test_constant_weights_are_exact():
    for log_w in (np.full(100, -5.0), -5 + 1e-12 * np.random.default_rng(0).normal(size=100)):
        evidence = estimate(log_w)
        assert evidence.value == pytest.approx(-5)
        assert evidence.stderr == pytest.approx(0, abs=1e-9)
        assert evidence.khat == -np.inf
        assert evidence.verdict == "good"


def test_constant_weights_up_to_the_rounding_of_float32():
    """An exact guide in float32: the weights differ by rounding only, in a handful of distinct values."""
    log_w = np.float32(-81.4145) + np.float32(7.6e-6) * np.random.default_rng(0).integers(-2, 3, 1000)
    evidence = estimate(log_w.astype(np.float32))
    assert evidence.khat == -np.inf
    assert evidence.verdict == "good"


def test_weights_of_zero_and_weights_that_are_no_number(log_w):
    zero = log_w.copy()
    zero[:100] = -np.inf
    evidence = estimate(zero)
    assert evidence.value == pytest.approx(logsumexp(zero) - np.log(2000))
    assert np.isfinite(evidence.stderr)
    assert evidence.elbo == -np.inf
    assert estimate(np.full(50, -np.inf)).verdict == "do not use"
    for bad in (np.nan, np.inf):
        broken = log_w.copy()
        broken[7] = bad
        assert estimate(broken).verdict == "do not use"


def test_one_draw_is_no_ground_for_trust():
    evidence = estimate(np.array([-3.0]))
    assert evidence.value == -3
    assert np.isnan(evidence.stderr)
    assert evidence.verdict == "do not use"


def test_printed():
    text = str(estimate(np.random.default_rng(0).normal(size=1000)))
    assert "log evidence" in text
    assert "±" in text
    assert "k̂" in text


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5))
def test_closed_form_lies_within_four_standard_errors(default_fit, seed):
    result = default_fit("linear_gaussian", "ELBO", 1).at_start()
    # a guide off its optimum, so that weights vary: the start moved by half a posterior sd, 1.3 times as wide
    from dataclasses import replace

    moved = dict(result.unconstrained)
    moved["auto_loc"] = moved["auto_loc"] + 0.5
    moved["auto_scale_tril"] = result.problem.transforms["auto_scale_tril"].inv(1.3 * np.eye(3, dtype=np.float32))
    evidence = replace(result, unconstrained=moved).log_evidence(4000, seed=seed)
    exact = models.linear_gaussian.log_evidence(models.linear_gaussian.data())
    assert 0.001 < evidence.stderr < 0.1
    assert abs(evidence.value - exact) < 4 * evidence.stderr
    assert evidence.elbo < exact - 0.1
