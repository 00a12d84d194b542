"""A guide that sits at one of several modes: the weights cannot see it, the searches for a start can."""

import math

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats
from scipy.special import logsumexp

import estimax
from estimax import estimators
from estimax.inference.bench.sampling import many_well
from estimax.inference.evidence import estimate
from estimax.inference.start import find_start, mixture_bound


def two_modes():
    """Half the mass at −2, half at 2, sd 0.3: log Z = 0."""
    x = numpyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))
    parts = dist.Normal(jnp.array([-2.0, 2.0]), 0.3).log_prob(x)
    numpyro.factor("density", jnp.logaddexp(parts[0], parts[1]) - jnp.log(2.0))


def noise(d, size=200):
    half = np.random.default_rng(0).normal(size=(size // 2, d))
    return np.concatenate([half, -half])


def test_bound_of_gaussians_apart_adds_up_and_of_equal_ones_does_not():
    """Against the exact integral of three Gaussians of mass 1, 2 and 3, at first as themselves, then repeated."""
    loc = np.array([[0.0, 0.0], [20.0, 0.0], [0.0, 30.0]])
    scale = np.stack([np.eye(2), [[2.0, 0.0], [1.0, 0.5]], 3 * np.eye(2)])
    log_mass, z = np.log([1.0, 2.0, 3.0]), noise(2)
    log_q = -0.5 * np.sum(z**2, 1) - np.log(2 * np.pi)
    log_p = np.stack([m + log_q - np.log(np.abs(np.diag(s))).sum() for m, s in zip(log_mass, scale, strict=True)])
    value, error = mixture_bound(loc, scale, log_mass, log_p, z)
    assert value == pytest.approx(math.log(6.0), abs=1e-9)
    assert error < 1e-9
    twice = [np.repeat(a, 2, axis=0) for a in (loc[:1], scale[:1], log_mass[:1], log_p[:1])]
    assert mixture_bound(*twice, z)[0] == pytest.approx(0.0, abs=1e-9)
    diagonal = mixture_bound(loc[:1], np.ones((1, 2)), log_mass[:1], log_p[:1], z)
    assert diagonal[0] == pytest.approx(0.0, abs=1e-9)


def test_bound_stays_below_the_evidence_where_gaussians_overlap():
    """p = N(0, 1) in the place of two overlapping wrong Gaussians: the exact bound by quadrature."""
    loc, scale, z = np.array([[-0.7], [0.9]]), np.array([[0.8], [0.9]]), noise(1, 20_000)
    draws = loc[:, None] + z * scale[:, None]
    log_p = stats.norm.logpdf(draws[..., 0])
    elbo = np.array([-0.3, -0.4])  # any weights give a bound
    value, error = mixture_bound(loc, scale, elbo, log_p, z)
    x = np.linspace(-12, 12, 20_001)
    share = np.exp(elbo - logsumexp(elbo))
    log_q = stats.norm(loc, scale).logpdf(x) + np.log(share)[:, None]
    mixture = logsumexp(log_q, axis=0)
    exact = np.sum(np.exp(mixture) * (stats.norm.logpdf(x) - mixture)) * (x[1] - x[0])
    assert abs(value - exact) < 4 * error + 1e-4
    assert value < 0


@pytest.mark.long
def test_a_good_looking_fit_of_one_mode_is_not_called_good():
    result = estimax.fit(two_modes, estimators.ELBO(8), {}, num_steps=300, progress_bar=False, seed=1)
    assert result.start.bound == pytest.approx(0.0, abs=0.02)
    evidence = result.log_evidence(4000)
    assert evidence.khat < 0.5
    assert evidence.value == pytest.approx(math.log(0.5), abs=0.02)
    assert evidence.missed == pytest.approx(0.5, abs=0.03)
    assert evidence.verdict == "do not use"
    text = str(result.diagnose())
    assert "miss at least" in text
    assert "4 of 8 searches agree" in text or "ended elsewhere" in text
    table = estimax.compare(two_modes, {"ELBO": estimators.ELBO(8)}, {}, num_steps=50, progress_bar=False).frame
    assert table["verdict"].tolist() == ["do not use"]


@pytest.mark.long
def test_the_bound_is_of_its_own_model_and_data_alone():
    start = find_start(two_modes, {})
    assert np.isfinite(start.bound)
    assert np.isnan(find_start(two_modes, {}, method=start).bound)
    assert estimate(np.zeros(100)).missed == 0.0
    assert estimate(np.zeros(100), (math.log(2.0), 0.0)).missed == pytest.approx(0.5)
    assert estimate(np.zeros(100), (math.log(2.0), 1.0)).missed == 0.0


@pytest.mark.long
def test_searches_that_end_each_at_a_mode_of_its_own_are_told():
    """Good and Turing's estimate by hand: eight searches among 2¹⁶ modes meet eight; among two modes they meet both."""
    start = find_start(many_well, {})
    assert start.unmet == 1.0
    assert start.num_agree == 1
    assert find_start(many_well, {}, method=start).unmet == 0.0
    assert find_start(two_modes, {}).unmet == 0.0


@pytest.mark.parametrize(("unmet", "verdict"), [(0.5, "good"), (0.6, "do not use")])
def test_verdict_where_most_searches_met_a_mode_alone(unmet, verdict):
    weights = 1e-3 * np.random.default_rng(0).normal(size=1000)
    assert estimate(weights, unmet=unmet).verdict == verdict


@pytest.mark.long
def test_a_good_looking_fit_of_one_well_of_many_is_not_called_good():
    result = estimax.fit(many_well, estimators.ELBO(8), {}, num_steps=300, progress_bar=False)
    evidence = result.log_evidence(4000)
    assert evidence.khat < evidence.threshold
    assert evidence.missed < 0.1
    assert evidence.verdict == "do not use"
    assert "100% of the searches" in str(result.diagnose())
