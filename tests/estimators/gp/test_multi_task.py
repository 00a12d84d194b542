"""MultiTaskGP against dense Gaussian algebra, enumeration of all labels, and simulated clusters."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from jax.flatten_util import ravel_pytree
from numpyro.distributions import constraints
from scipy import stats
from scipy.special import logsumexp
from sklearn.metrics import adjusted_rand_score
from tinygp import GaussianProcess, kernels

import estimax
from estimax.estimators import MultiTaskGP
from estimax.inference.data import prepare
from estimax.models.kernels import SameTask
from estimax.models.multi_task_growth import model, simulated

pytestmark = pytest.mark.usefixtures("x64_module")

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
def single(x64_module):
    data, held_out, _ = simulated(num_tasks=5, num_clusters=1, num_times=9, rows_per_task=(3, 6))
    return (*posed(data), data, held_out)


@pytest.fixture(scope="module")
def pair(x64_module):
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


@pytest.mark.long
def test_hessian_of_a_fit_is_the_derivative_of_the_gradient(pair):
    """Where labels are in doubt, and central differences are of gradients at labels that are converged anew."""
    problem, params, _, _ = pair
    params = {**params, "task_scale": params["task_scale"] + 1.5}
    z, unravel = ravel_pytree(params)
    loss = lambda problem: lambda z: problem.loss(unravel(z), random.key(0), problem.data)[0]  # noqa: E731
    hessian = jax.jit(jax.hessian(loss(problem.finish(params))))(z)
    gradient = jax.jit(jax.grad(loss(problem)))
    assert problem.responsibilities(params).min() > 1e-4
    for i, step in enumerate(1e-4 * np.eye(len(z))):
        expected = (gradient(z + step) - gradient(z - step)) / 2e-4
        np.testing.assert_allclose(hessian[i], expected, rtol=1e-5, atol=1e-5)


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


@pytest.mark.long
def test_weights_of_draws_average_to_the_evidence(pair):
    """E log w is the bound, and E w the evidence of the partition that q(z) is on, by enumeration."""
    problem, params, data, _ = pair
    posterior = problem.posterior(params)
    log_w = np.asarray(posterior.log_weights(random.key(0), 2000))
    bound = float(eqx.filter_jit(problem.objective)(params, problem.data))
    assert abs(log_w.mean() - bound) < 4 * log_w.std() / np.sqrt(2000) + 1e-9
    exact = enumerated(data)[1].max()
    assert logsumexp(log_w) - np.log(2000) == pytest.approx(exact, abs=0.05)


@pytest.mark.long
def test_observations_of_a_new_task_condition_its_predictions(single):
    """`context`: with one cluster all rows are jointly Gaussian, and the truth is dense conditioning on them."""
    problem, params, data, held_out = single
    keep = held_out["task"] == 0
    new = {k: held_out[k][keep] for k in ("t", "y")}
    context = {"t": new["t"][:2], "task": np.full(2, 9), "y": new["y"][:2] + 1.0}
    ask = {"t": new["t"][2:], "task": np.full(keep.sum() - 2, 9), "y": new["y"][2:]}
    sizes = {k: data[k] for k in ("num_clusters", "num_tasks")}
    asked, known = prepare(model, {**ask, **sizes}), prepare(model, {**context, **sizes})
    found = eqx.filter_jit(problem.forecast)(params, asked, known)
    both = {k: np.concatenate([data[k], context[k], ask[k]]) for k in ("t", "task", "y")}
    mean, covariance = dense(both)
    n = len(data["t"]) + 2
    gain = covariance[n:, :n] @ np.linalg.inv(covariance[:n, :n])
    np.testing.assert_allclose(found.mean, mean[n:] + gain @ (both["y"][:n] - mean[:n]), atol=1e-6)
    np.testing.assert_allclose(found.variance, np.diag(covariance[n:, n:] - gain @ covariance[:n, n:]), atol=1e-6)


@pytest.mark.long
def test_joint_draws_have_the_moments_of_dense_conditioning(single):
    """Moments of 4000 draws within 4.5 of their standard errors."""
    problem, params, data, held_out = single
    rows = {k: v[::4] if k in ("t", "task", "y") else v for k, v in held_out.items()}
    S = 4000
    fresh = prepare(model, rows)
    draws = jax.jit(lambda p: problem.simulate(p, random.key(0), fresh, S))(params)
    assert set(draws) == {"y", "mean_0"}
    y = np.asarray(draws["y"])
    both = {k: np.concatenate([data[k], rows[k]]) for k in ("t", "task", "y")}
    mean, covariance = dense(both)
    n = len(data["t"])
    gain = covariance[n:, :n] @ np.linalg.inv(covariance[:n, :n])
    mean, covariance = mean[n:] + gain @ (data["y"] - mean[:n]), covariance[n:, n:] - gain @ covariance[:n, n:]
    variance = np.diag(covariance)
    assert np.abs((y.mean(0) - mean) / np.sqrt(variance / S)).max() < 4.5
    spread = np.sqrt((np.outer(variance, variance) + covariance**2) / S)
    assert np.abs((np.cov(y.T) - covariance) / spread).max() < 4.5


@pytest.mark.long
def test_predictions_of_two_clusters_equal_those_of_all_labellings(pair):
    """Mean and variance of the predictive mixture against enumeration; marginal draws against both, in standard
    errors. What one partition leaves out is worth 0.01 of a standard deviation here."""
    problem, params, data, _ = pair
    _, terms = enumerated(data)
    rows = {"t": np.array([0.5, 5.0, 9.0, 5.0]), "task": np.array([0, 1, 2, 3]), "y": np.zeros(4)}  # y is not seen
    both = {k: np.concatenate([data[k], rows[k]]) for k in rows}
    n = len(data["t"])
    curve, own = gaussian(both["t"])
    base = np.where(both["task"][:, None] == both["task"], own, 0) + NOISE * np.eye(n + 4)
    means, variances = [], []
    for z in itertools.product((0, 1), repeat=data["num_tasks"]):
        label = np.array(z)[both["task"]]
        covariance = base + np.where(label[:, None] == label, curve, 0)
        gain = covariance[n:, :n] @ np.linalg.inv(covariance[:n, :n])
        means.append(HYPER["level"] + gain @ (data["y"] - HYPER["level"]))
        variances.append(np.diag(covariance[n:, n:] - gain @ covariance[:n, n:]))
    w = np.exp(terms - logsumexp(terms))[:, None]
    means, variances = np.array(means), np.array(variances)
    mean = np.sum(w * means, 0)
    variance = np.sum(w * (variances + (means - mean) ** 2), 0)
    fresh = prepare(model, {**rows, **{k: data[k] for k in ("num_clusters", "num_tasks")}})
    found = eqx.filter_jit(problem.forecast)(params, fresh)
    assert np.abs((found.mean - mean) / np.sqrt(variance)).max() < 0.01
    np.testing.assert_allclose(found.variance, variance, rtol=0.02)
    S = 4000
    y = np.asarray(jax.jit(lambda p: problem.marginal_draws(p, random.key(1), fresh, S))(params))
    assert np.abs((y.mean(0) - found.mean) / np.sqrt(found.variance / S)).max() < 4.5
    kurtosis = stats.kurtosis(y, fisher=False)
    assert np.abs((y.var(0) - found.variance) / (found.variance * np.sqrt((kurtosis - 1) / S))).max() < 4.5


@pytest.mark.long
def test_a_task_may_have_hyper_parameters_of_its_own(single):
    """Noise a task, against the dense evidence; a task that the fit has not seen has none."""
    _, _, data, held_out = single

    def own_noise(t, task, y, num_clusters, num_tasks):
        noise = numpyro.param("noise", jnp.linspace(0.2, 0.6, num_tasks), constraint=constraints.positive)
        curve = GaussianProcess(HYPER["mean_scale"] ** 2 * kernels.ExpSquared(HYPER["mean_length"]), t, diag=1e-6,
                                mean=HYPER["level"])  # fmt: skip
        means = jnp.stack([numpyro.sample("mean_0", curve.numpyro_dist())])
        with numpyro.plate("task", num_tasks):
            cluster = numpyro.sample("cluster", dist.Categorical(probs=jnp.ones(1)))
        kernel = SameTask(HYPER["task_scale"] ** 2 * kernels.Matern52(HYPER["task_length"]))
        # tasks that are new have no noise of their own: the last one's is taken, and never used
        variance = noise[jnp.minimum(task, num_tasks - 1)] ** 2
        mean = means[cluster[task], jnp.arange(len(t))]
        gp = GaussianProcess(kernel, (t, task), diag=variance, mean_value=mean)
        numpyro.sample("y", gp.numpyro_dist(), obs=y)

    problem = MultiTaskGP().problem(random.key(0), own_noise, None, prepare(own_noise, data))
    mean, covariance = dense(data)
    noise = np.linspace(0.2, 0.6, data["num_tasks"])[data["task"]] ** 2 + 1e-6
    covariance = covariance - NOISE * np.eye(len(mean)) + np.diag(noise)
    truth = stats.multivariate_normal(mean, covariance).logpdf(data["y"])
    assert eqx.filter_jit(problem.objective)(problem.params, problem.data) == pytest.approx(truth, abs=1e-6)
    new = {**held_out, "task": np.full_like(held_out["task"], 7)}
    with pytest.raises(Exception, match="new tasks have no 'noise'"):
        jax.block_until_ready(problem.forecast(problem.params, prepare(own_noise, new)).mean)


@pytest.mark.long
def test_remarks_name_sizes_doubt_and_empty_clusters(pair):
    problem, params, _, labels = pair
    sure = problem.remarks(params)
    sizes = [float(x) for x in sure[0].split(": ")[1].split(", ")]
    np.testing.assert_allclose(sorted(sizes), sorted(np.bincount(labels)), atol=0.1)
    assert sure[1] == "0 of 6 tasks belong to no cluster with 90% probability"
    assert not any("settle" in line for line in sure)
    # curves that hardly differ from their tasks leave every label in doubt
    vague = problem.remarks({**params, "task_scale": params["task_scale"] + 3.0, "noise": params["noise"] + 3.0})
    assert vague[1] == "6 of 6 tasks belong to no cluster with 90% probability"
    # nothing is expected of the second cluster
    lone = problem.unconstrain({**HYPER, "weights": jnp.array([1.0 - 1e-9, 1e-9]), "task_scale": 5.0})
    assert any("is empty: fewer clusters say the same" in line for line in problem.remarks(lone))


@pytest.mark.long
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
