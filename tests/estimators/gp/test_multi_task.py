"""MultiTaskGP against dense Gaussian algebra, enumeration of all labels, and simulated clusters."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random
from scipy import stats
from scipy.special import logsumexp
from sklearn.metrics import adjusted_rand_score

import estimax
from estimax.estimators import MultiTaskGP
from estimax.inference.data import prepare
from estimax.models.multi_task_growth import model, simulated

pytestmark = pytest.mark.usefixtures("x64_module", "quick_compile")

HYPER = {"level": 0.3, "mean_scale": 1.5, "mean_length": 2.0, "task_scale": 0.4, "task_length": 1.0, "noise": 0.3}


def gaussian(t):
    """Covariances of a mean curve and of a task's own curve, by hand."""
    distance = np.abs(t[:, None] - t)
    r = np.sqrt(5) * distance / HYPER["task_length"]
    curve = HYPER["mean_scale"] ** 2 * np.exp(-0.5 * distance**2 / HYPER["mean_length"] ** 2)
    own = HYPER["task_scale"] ** 2 * (1 + r + r**2 / 3) * np.exp(-r)
    return curve, own


NOISE = HYPER["noise"] ** 2 + 1e-6 * HYPER["mean_scale"] ** 2
"""With the nugget that the model gives its mean curves."""


def posed(data, **values):
    """The problem at given hyper-parameters."""
    problem = MultiTaskGP().problem(random.key(0), model, None, prepare(model, data))
    return problem, problem.unconstrain({**HYPER, **values})


@pytest.fixture(scope="module")
def single(x64_module, quick_compile):
    data, held_out, _ = simulated(num_tasks=5, num_clusters=1, num_times=9, rows_per_task=(3, 6))
    return (*posed(data), data, held_out)


@pytest.fixture(scope="module")
def pair(x64_module, quick_compile):
    data, _, labels = simulated(num_tasks=6, num_clusters=2, num_times=9, rows_per_task=(3, 6))
    return (*posed(data, weights=jnp.array([0.4, 0.6])), data, labels)


def dense(data):
    """Mean and covariance of all rows when every task is in one cluster."""
    curve, own = gaussian(data["t"])
    covariance = curve + np.where(data["task"][:, None] == data["task"], own, 0) + NOISE * np.eye(len(data["t"]))
    return np.full(len(data["t"]), HYPER["level"]), covariance


def test_one_cluster_is_the_exact_evidence(single):
    problem, params, data, _ = single
    mean, covariance = dense(data)
    truth = stats.multivariate_normal(mean, covariance).logpdf(data["y"])
    assert eqx.filter_jit(problem.objective)(params, problem.data) == pytest.approx(truth, abs=1e-7)


def test_one_cluster_predicts_as_dense_conditioning(single):
    problem, params, data, held_out = single
    fresh = {**held_out, "task": np.where(held_out["task"] == 0, 7, held_out["task"])}  # one task that is new
    found = eqx.filter_jit(problem.forecast)(params, prepare(model, fresh))
    both = {k: np.concatenate([data[k], fresh[k]]) for k in ("t", "task", "y")}
    mean, covariance = dense(both)
    n = len(data["t"])
    gain = covariance[n:, :n] @ np.linalg.inv(covariance[:n, :n])
    np.testing.assert_allclose(found.mean, mean[n:] + gain @ (data["y"] - mean[:n]), atol=1e-6)
    np.testing.assert_allclose(found.variance, np.diag(covariance[n:, n:] - gain @ covariance[:n, n:]), atol=1e-6)


def enumerated(data):
    """Exact log-evidence of two clusters, a sum over all labels."""
    curve, own = gaussian(data["t"])
    same = data["task"][:, None] == data["task"]
    base = np.where(same, own, 0) + NOISE * np.eye(len(data["t"]))
    terms = []
    for z in itertools.product((0, 1), repeat=data["num_tasks"]):
        rows = np.array(z)[data["task"]]
        covariance = base + np.where(rows[:, None] == rows, curve, 0)
        density = stats.multivariate_normal(np.full(len(rows), HYPER["level"]), covariance).logpdf(data["y"])
        terms.append(density + np.log(np.array([0.4, 0.6])[list(z)]).sum())
    return logsumexp(terms), np.array(terms)


def test_bound_lies_below_the_enumerated_evidence_by_little(pair):
    problem, params, data, labels = pair
    exact, terms = enumerated(data)
    value = eqx.filter_jit(problem.objective)(params, problem.data)
    assert value < exact
    # q(z) sits on one partition: what it misses is the mass of the others, the same one with its labels swapped among
    # them, and the uncertainty of curves that one partition leaves is exact
    assert value == pytest.approx(terms.max(), abs=0.05)
    found = np.argmax(problem.responsibilities(params), 1)
    assert adjusted_rand_score(labels, found) == 1


def test_weights_of_draws_average_to_the_evidence(pair):
    """E log w is the bound, and E w the evidence of the partition that q(z) is on, by enumeration."""
    problem, params, data, _ = pair
    posterior = problem.posterior(params)
    log_w = np.asarray(posterior.log_weights(random.key(0), 2000))
    bound = float(eqx.filter_jit(problem.objective)(params, problem.data))
    assert abs(log_w.mean() - bound) < 4 * log_w.std() / np.sqrt(2000) + 1e-9
    exact = enumerated(data)[1].max()
    assert logsumexp(log_w) - np.log(2000) == pytest.approx(exact, abs=0.05)


def test_gradient_at_the_fixed_point_equals_differences(pair):
    problem, params, data, _ = pair
    loss = jax.jit(lambda p: problem.loss(p, random.key(0), problem.data)[0])
    gradient = jax.jit(jax.grad(loss))(params)
    step = 1e-5
    for name in ("mean_length", "task_scale", "noise", "weights"):
        move = {**params, name: params[name] + step}
        back = {**params, name: params[name] - step}
        truth = (loss(move) - loss(back)) / (2 * step)
        assert np.sum(gradient[name]) == pytest.approx(float(truth), rel=1e-5, abs=1e-5)


@pytest.mark.slow
def test_simulated_clusters_are_recovered_and_predict_better_than_one():
    data, held_out, labels = simulated()
    rows = {k: held_out[k] for k in ("t", "task", "y")}
    fits = {k: estimax.fit(model, MultiTaskGP(k), {**data, "num_clusters": k}, progress_bar=False) for k in (1, 3)}
    assert all(f.status == "finished" for f in fits.values())
    found = fits[3].problem.responsibilities(fits[3].unconstrained)
    assert adjusted_rand_score(labels, np.argmax(found, 1)) > 0.9
    one, three = (fits[k].predict(rows) for k in (1, 3))
    errors = [np.sqrt(np.mean((p.mean - rows["y"]) ** 2)) for p in (one, three)]
    assert errors[1] < errors[0]
    assert three.log_density().mean() > one.log_density().mean()


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="num_clusters must be an integer of at least 1, got 0"):
        MultiTaskGP(0)
    data = simulated(num_tasks=4, num_times=9, rows_per_task=(3, 6))[0]
    with pytest.raises(ValueError, match="num_clusters is 2, the model has 3 clusters"):
        estimax.fit(model, MultiTaskGP(2), data, progress_bar=False)
    with pytest.raises(ValueError, match="task numbers go from 0 to 3, the plate of 'cluster' has 2 tasks"):
        estimax.fit(model, MultiTaskGP(), {**data, "num_tasks": 2}, progress_bar=False)
