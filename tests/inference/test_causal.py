"""Location-scale noise regression and the direction of cause, on simulated truth and a closed form."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import estimax
from estimax.estimators import MAP
from estimax.models import location_scale

N = 200


def pair(seed):
    """y = f(x) + g(x)·noise, f and g far from linear and constant."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=N)
    return 3 * x, 40 + np.tanh(2 * x) + (0.1 + 0.4 * np.exp(-(x**2))) * rng.normal(size=N)


@pytest.mark.long
def test_fit_is_the_optimum_of_the_natural_parameters():
    """The concave program in (w1, w2) by SciPy, with gradients written by hand, has the same value."""
    x, y = (np.asarray(location_scale.standardised(v), float) for v in pair(0))
    fit = estimax.fit(location_scale.model, MAP(), {"x": x, "y": y, "num_bumps": 4}, progress_bar=False)
    z = (x[:, None] - np.linspace(x.min(), x.max(), 4)) / (np.ptp(x) / 3)
    features = np.column_stack([np.exp(-0.5 * z**2), np.ones(N)])

    def objective(v):
        w1, w2 = v[:5], v[5:]
        e1, e2 = features @ w1, -(features @ w2)
        value = np.sum(e1 * y + e2 * y**2 + e1**2 / (4 * e2) + 0.5 * np.log(-2 * e2)) - N / 2 * np.log(2 * np.pi)
        d1, d2 = y + e1 / (2 * e2), y**2 - e1**2 / (4 * e2**2) + 1 / (2 * e2)
        centre = np.log(0.1)
        prior = -np.sum(w1**2) / 200 - np.sum((np.log(w2) - centre) ** 2 / 8 + np.log(w2))
        slope = np.r_[features.T @ d1 - w1 / 100, -features.T @ d2 - (np.log(w2) - centre) / (4 * w2) - 1 / w2]
        return -(value + prior), -slope

    start = np.r_[fit.params["w1"] + 0.3, fit.params["w2"] * 1.5]
    bounds = [(None, None)] * 5 + [(1e-8, None)] * 5
    peer = minimize(
        objective,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": 20000, "maxfun": 40000, "ftol": 1e-15, "gtol": 1e-9},
    )
    at_fit = objective(np.r_[fit.params["w1"], fit.params["w2"]])
    constant = 5 * np.log(10 * np.sqrt(2 * np.pi)) + 5 * np.log(2 * np.sqrt(2 * np.pi))
    assert fit.losses[-1] == pytest.approx(at_fit[0] + constant, rel=1e-8)
    assert at_fit[0] <= peer.fun + 1e-4
    assert peer.fun == pytest.approx(at_fit[0], abs=1e-2)


@pytest.mark.long
def test_mean_and_noise_are_recovered():
    rng = np.random.default_rng(1)
    x = rng.uniform(-2, 2, 2000)
    y = np.sin(1.5 * x) + np.exp(0.4 * x - 1) * rng.normal(size=2000)
    fit = estimax.fit(location_scale.model, MAP(), {"x": x, "y": y}, progress_bar=False)
    features = np.asarray(location_scale.bumps(jnp.asarray(x), 8))
    precision = 2 * features @ fit.params["w2"]
    inner = np.abs(x) < 1.7
    assert np.sqrt(np.mean((features @ fit.params["w1"] / precision - np.sin(1.5 * x))[inner] ** 2)) < 0.05
    assert np.mean(np.abs(precision**-0.5 / np.exp(0.4 * x - 1) - 1)[inner]) < 0.1


@pytest.mark.long
def test_direction_is_found_on_simulated_pairs():
    right = []
    for seed in range(6):
        x, y = pair(seed)
        right.append(estimax.causal_direction(x, y).direction == "x → y")
        if seed < 3:
            right.append(estimax.causal_direction(y, x).direction == "y → x")
    assert np.mean(right) >= 8 / 9  # by chance 1 in 50


def test_prints_and_errors():
    found = estimax.causal_direction(*pair(3))
    assert found.direction in str(found)
    assert found.difference == found.forward - found.backward
    with pytest.raises(ValueError, match="same shape"):
        estimax.causal_direction(np.ones(20), np.ones(19))
    with pytest.raises(ValueError, match="y must be finite and not constant"):
        estimax.causal_direction(np.arange(20.0), np.ones(20))
