"""SpikeTrain and the model made of it, against plain loops and full enumeration."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers
from scipy import stats

from estimax.models import poglm

RNG = np.random.default_rng(0)


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def joint_log_probability(spikes, weights, bias):
    """log p of all spikes (T, n), a bin and a neuron at a time."""
    total = 0.0
    for t in range(len(spikes)):
        history = np.zeros(spikes.shape[1])
        for lag in range(1, min(5, t) + 1):
            history += poglm.BASIS[lag - 1] * spikes[t - lag]
        for n in range(spikes.shape[1]):
            total += stats.poisson.logpmf(spikes[t, n], sigmoid(bias[n] + weights[n] @ history))
    return total


def network(num_neurons, scale=0.1):
    return scale * RNG.standard_normal((num_neurons, num_neurons)), RNG.standard_normal(num_neurons)


def all_trains(num_bins, max_count):
    return np.array(list(product(range(max_count + 1), repeat=num_bins)))[..., None]


def log_probs(function, data, values):
    def run(values):
        trace = handlers.trace(handlers.substitute(handlers.seed(function, 0), data=values)).get_trace(**data)
        return {name: site["fn"].log_prob(site["value"]) for name, site in trace.items() if site["type"] == "sample"}

    return jax.jit(run)(values)  # one compilation in place of one an operation


def test_basis():
    np.testing.assert_allclose(poglm.BASIS.sum() * 0.05, 1.0, rtol=1e-12)
    np.testing.assert_allclose(np.diff(np.log(poglm.BASIS)), -5.0 * 0.05, rtol=1e-9)


def test_filtered_history_against_a_loop():
    spikes = RNG.integers(0, 3, (2, 9, 3))
    expected = np.zeros(spikes.shape)
    for t in range(9):
        for lag in range(1, min(5, t) + 1):
            expected[:, t] += poglm.BASIS[lag - 1] * spikes[:, t - lag]
    np.testing.assert_allclose(poglm.filtered_history(jnp.asarray(spikes)), expected, rtol=1e-5)


def test_log_prob_against_a_sequential_loop():
    weights, bias = network(2)
    spikes = RNG.integers(0, 4, (4, 11, 2))
    ours = poglm.SpikeTrain(np.broadcast_to(bias, spikes.shape), weights).log_prob(spikes)
    assert ours.shape == (4,)
    np.testing.assert_allclose(ours, [joint_log_probability(s, weights, bias) for s in spikes], rtol=1e-5)


def test_log_prob_of_large_counts():
    counts = np.array([0, 1, 31, 32, 33, 200])
    ours = poglm.SpikeTrain(np.zeros((6, 1, 1)), np.zeros((1, 1))).log_prob(counts[:, None, None])
    np.testing.assert_allclose(ours, stats.poisson.logpmf(counts, 0.5), rtol=1e-5)


def test_log_prob_sums_to_one():
    trains = all_trains(num_bins=3, max_count=9)
    log_prob = poglm.SpikeTrain(np.array([[0.3], [-0.5], [0.1]]), np.array([[0.08]])).log_prob(trains)
    np.testing.assert_allclose(np.exp(log_prob.astype(float)).sum(), 1.0, atol=1e-5)


def test_draws_follow_log_prob():
    """Chi^2 test of 40,000 trains of three bins against their enumerated probabilities."""
    train = poglm.SpikeTrain(np.array([[0.3], [-0.5], [0.1]]), np.array([[0.08]]))
    draws = np.asarray(train.sample(jax.random.key(0), (40_000,)))
    assert draws.shape == (40_000, 3, 1)
    assert np.issubdtype(draws.dtype, np.integer)
    trains = all_trains(num_bins=3, max_count=9)
    expected = 40_000 * np.exp(np.asarray(train.log_prob(trains), float))
    observed = np.bincount(np.minimum(draws[..., 0], 9) @ [100, 10, 1], minlength=1000)
    common = expected > 5.0
    rest = [observed[~common].sum(), expected[~common].sum()]
    observed, expected = np.append(observed[common], rest[0]), np.append(expected[common], rest[1])
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-4


def test_score_of_the_draws_has_mean_zero():
    """Two neurons that drive each other, with a batch: E[d log p / d weights] = 0 within 4 standard errors."""
    weights, bias = network(2, scale=0.05)
    drive = jnp.broadcast_to(jnp.asarray(bias), (3, 20, 2))

    def score(key):
        draw = poglm.SpikeTrain(drive, weights).sample(key)
        return jax.grad(lambda w: poglm.SpikeTrain(drive, w).log_prob(draw).sum())(jnp.asarray(weights))

    scores = np.asarray(jax.jit(jax.vmap(score))(jax.random.split(jax.random.key(1), 4000)))
    z = scores.mean(0) / (scores.std(0) / np.sqrt(len(scores)))
    assert np.abs(z).max() < 4.0


def test_hidden_times_visible_is_the_joint():
    weights, bias = network(5)
    spikes = RNG.integers(0, 3, (4, 12, 5))
    values = {"weights": jnp.asarray(weights), "bias": jnp.asarray(bias), "hidden": jnp.asarray(spikes[..., 3:])}
    ours = log_probs(poglm.model, {"x": spikes[..., :3]}, values)
    assert ours["hidden"].shape == ours["visible"].shape == (4,)
    expected = [joint_log_probability(s, weights, bias) for s in spikes]
    np.testing.assert_allclose(ours["hidden"] + ours["visible"], expected, rtol=1e-5)


def test_guide_sees_visible_and_hidden_history():
    weights, bias = network(5)
    spikes = RNG.integers(0, 3, (2, 12, 5))
    values = {
        "guide_weights": jnp.asarray(weights[3:]),
        "guide_bias": jnp.asarray(bias[3:]),
        "hidden": jnp.asarray(spikes[..., 3:]),
    }
    ours = log_probs(poglm.guide, {"x": spikes[..., :3]}, values)["hidden"]
    model = log_probs(poglm.model, {"x": spikes[..., :3]}, {**values, "weights": weights, "bias": bias})["hidden"]
    np.testing.assert_allclose(ours, model, rtol=1e-6)  # with the model's own weights q(h) is the hidden factor


def test_importance_sampling_finds_the_enumerated_evidence():
    """One hidden neuron, three bins: sum over all hidden trains by enumeration and by the guide's weights."""
    weights, bias = network(2, scale=0.2)
    x = np.array([[[1], [0], [2]]])
    hidden = all_trains(num_bins=3, max_count=7)
    joint = [joint_log_probability(np.concatenate([x[0], h], 1), weights, bias) for h in hidden]
    evidence = np.exp(joint).sum()
    data = {"x": x, "num_hidden": 1}
    params = {"weights": jnp.asarray(weights), "bias": jnp.asarray(bias)}
    params |= {"guide_weights": jnp.array([[0.1, -0.1]]), "guide_bias": jnp.array([0.3])}

    def weight(key):
        guide = handlers.trace(handlers.seed(handlers.substitute(poglm.guide, data=params), key)).get_trace(**data)
        values = {**params, "hidden": guide["hidden"]["value"]}
        log_p = sum(log_probs(poglm.model, data, values).values())
        return jnp.exp(log_p - log_probs(poglm.guide, data, values)["hidden"])[0]

    draws = np.asarray(jax.jit(jax.vmap(weight))(jax.random.split(jax.random.key(0), 20_000)))
    assert abs(draws.mean() - evidence) < 4.0 * draws.std() / np.sqrt(len(draws))


def test_simulated_data():
    visible, hidden = poglm.test_set()
    assert visible.shape == (20, 100, 3)
    assert hidden.shape == (20, 100, 2)
    assert poglm.data()["x"].shape == (40, 100, 3)
    truth = poglm.truth()
    spikes = poglm.simulate(truth, 200, seed=5)
    rates = sigmoid(truth["bias"] + np.asarray(poglm.filtered_history(jnp.asarray(spikes))) @ truth["weights"].T)
    z = (spikes - rates).sum((0, 1)) / np.sqrt(rates.sum((0, 1)))  # a martingale with variance sum(rate)
    assert np.abs(z).max() < 4.0


def test_parameter_errors_match_hidden_neurons():
    truth = poglm.truth()
    order = [0, 1, 2, 4, 3]
    swapped = {"weights": truth["weights"][np.ix_(order, order)], "bias": truth["bias"][order]}
    assert poglm.parameter_errors(swapped, truth) == {"weights": 0.0, "bias": 0.0}
    zeros = {name: np.zeros_like(value) for name, value in truth.items()}
    assert poglm.parameter_errors(zeros, truth)["weights"] == pytest.approx(np.abs(truth["weights"]).mean())
