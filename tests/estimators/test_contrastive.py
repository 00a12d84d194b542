"""Contrastive divergence on laws whose normaliser can be enumerated or integrated."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random

import estimax
from estimax.estimators import NCE, ContrastiveDivergence, ScoreMatching, UnbiasedCD, moves
from estimax.inference.diagnose import loss_drift
from estimax.inference.result import gradient_snr
from estimax.models import ising

SPINS = ising.spins(4)
W = np.array([0.8, -0.5, 0.6, 0.7, -0.4, 0.9])
B = np.array([0.3, -0.2, 0.1, 0.4])
PARAMS = {"w": jnp.asarray(W, jnp.float32), "b": jnp.asarray(B, jnp.float32)}
UPPER = np.triu_indices(4, 1)


def statistics(x):
    """Of every row: products of pairs, and the spins."""
    x = np.asarray(x, np.float64)
    return np.concatenate([x[:, UPPER[0]] * x[:, UPPER[1]], x], 1)


def law(w, b):
    log_p = statistics(SPINS) @ np.concatenate([w, b])
    return np.exp(log_p - np.log(np.exp(log_p).sum()))


@pytest.fixture(scope="module")
def data():
    """40 draws of another law, so that the gradient at PARAMS is not zero."""
    return SPINS[np.random.default_rng(0).choice(16, 40, p=law(0.3 * W, -B))].astype(np.int32)


def exact_gradient(x):
    """Of −log-likelihood at PARAMS: n E[statistics] − their sum."""
    s = statistics(SPINS)
    total = len(x) * law(W, B) @ s - statistics(x).sum(0)
    return {"w": total[:6], "b": total[6:]}


def gradients(problem, num, warm=0):
    """Independent gradients, each after `warm` refreshes of the memory that come before it."""

    def one(key):
        keys = random.split(key, warm + 1)
        memory = problem.memory

        def refresh(memory, key):
            return problem.refresh(memory, PARAMS, key), None

        memory = jax.lax.scan(refresh, memory, keys)[0]
        p = problem.with_memory(memory)
        return jax.grad(lambda v: p.loss(v, key, p.data)[0])(PARAMS), memory

    return jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=100))(random.split(random.key(1), num))


def distance(found, exact):
    """Largest difference of the mean to the exact value, in standard errors; and as it is."""
    z, d = [], []
    for name, value in exact.items():
        many = np.asarray(found[name], np.float64)
        d.append(np.abs(many.mean(0) - value).max())
        z.append((np.abs(many.mean(0) - value) / (many.std(0) / np.sqrt(len(many)))).max())
    return max(z), max(d)


def posed(estimator, x):
    return estimator.problem(random.key(0), ising.ising, None, {"x": jnp.asarray(x)})


@pytest.mark.long
def test_gradients_against_enumeration(data):
    """CD-1 is biased beyond doubt; many sweeps and persistent chains are not; unbiased CD is not after one sweep."""
    exact = exact_gradient(data)
    z, bias = distance(gradients(posed(ContrastiveDivergence(1), data), 1000)[0], exact)
    assert z > 20
    assert bias > 1.0
    assert distance(gradients(posed(ContrastiveDivergence(30), data), 500)[0], exact)[0] < 4
    assert distance(gradients(posed(ContrastiveDivergence(1, persistent=True), data), 500, warm=40)[0], exact)[0] < 4
    found, memory = gradients(posed(UnbiasedCD(1), data), 2000)
    assert distance(found, exact)[0] < 4
    assert np.all(np.asarray(memory["unmet"]) == 0)


@pytest.mark.long
def test_noise_of_the_gradient_is_that_of_the_chains(data):
    """`gradient_snr` moves the chains between draws: mean within 4 s.e. of enumeration, by its own sd."""
    found = gradient_snr(posed(UnbiasedCD(1), data), PARAMS, 500)
    for name, value in exact_gradient(data).items():
        mean, sd = found.mean["theta"][name], found.sd["theta"][name]
        assert np.all(sd > 0.1)
        assert np.all(np.abs(mean - value) < 4 * sd / np.sqrt(500))


@pytest.mark.long
def test_restricted_boltzmann_machine():
    """Hidden units summed out: the unbiased gradient of W against enumeration of both layers, within 4 s.e."""
    rng = np.random.default_rng(1)
    x = rng.integers(0, 2, (20, 4))
    w, b, c = rng.normal(size=(4, 2)), rng.normal(size=4), rng.normal(size=2)
    v, h = (np.array(np.meshgrid(*[[0, 1]] * k, indexing="ij")).reshape(k, -1).T for k in (4, 2))
    joint = v @ w @ h.T + (v @ b)[:, None] + h @ c
    p = np.exp(joint - joint.max())
    p /= p.sum()
    given = 1 / (1 + np.exp(-(x @ w + c)))
    exact = {"W": len(x) * v.T @ p @ h - x.T @ given}
    params = {"W": jnp.asarray(w, jnp.float32), "b": jnp.asarray(b, jnp.float32), "c": jnp.asarray(c, jnp.float32)}
    problem = UnbiasedCD(2).problem(random.key(0), ising.rbm, None, {"x": jnp.asarray(x), "num_hidden": 2})

    @jax.jit
    def draws(keys):
        one = lambda key: problem.log_z_gradient(params, key, key)[0]  # noqa: E731
        return jax.lax.map(one, keys, batch_size=100)

    of_data = jax.grad(lambda q: -jnp.sum(problem.density(q, problem.data)[1](jnp.asarray(x))))(params)
    many = np.asarray(draws(random.split(random.key(2), 2000))["W"], np.float64) + np.asarray(of_data["W"])
    assert distance({"W": many}, exact)[0] < 4
    exact_log_z = np.log(np.exp(joint).sum())
    np.testing.assert_allclose(ising.rbm_log_normalizer(w, b, c), exact_log_z, rtol=1e-5)


@pytest.mark.long
def test_fits_reach_the_maximum_likelihood_estimate(data):
    """Persistent and unbiased CD against scipy-free Newton on the enumerated likelihood; CD-1 stays apart."""
    x = ising.ising_data()["x"][:500, :4]
    s, target = statistics(SPINS), statistics(x).mean(0)
    theta = np.zeros(10)
    for _ in range(30):
        p = law(theta[:6], theta[6:])
        mean = p @ s
        theta = theta + np.linalg.solve((s * p[:, None]).T @ s - np.outer(mean, mean), target - mean)
    for estimator in (ContrastiveDivergence(2, persistent=True), UnbiasedCD(2)):
        result = estimax.fit(ising.ising, estimator, {"x": x}, num_steps=400, learning_rate=0.03, progress_bar=False)
        found = np.concatenate([result.params["w"], result.params["b"]])
        np.testing.assert_allclose(found, theta, atol=0.08)
        assert not result.has_curvature
        assert np.isnan(result.summary()["std_err"]).all()
    assert result.metrics["unmet"].max() == 0
    # standard errors from there
    polished = estimax.fit(ising.ising, NCE(), {"x": x}, start=result.params, progress_bar=False)
    assert np.all(np.isfinite(polished.summary()["std_err"]))


def normal(x):
    eta = numpyro.param("eta", 0.5)
    k = numpyro.param("k", 1.5, constraint=dist.constraints.positive)
    with numpyro.plate("data", x.shape[0], subsample_size=min(20, x.shape[0])):
        x = numpyro.subsample(x, event_dim=0)
        numpyro.factor("energy", eta * x - 0.5 * k * x**2)


@pytest.mark.long
def test_kernels_leave_the_law_as_it_is():
    """Moments of 2,000 chains after 200 moves from afar, within 4 s.e.; coupled walkers each keep the law, and meet."""
    density = lambda x: -0.5 * jnp.sum(x**2 / jnp.array([1.0, 4.0]), axis=-1)  # noqa: E731
    start = jnp.full((2000, 2), 2.0)
    step = jnp.array([0.7, 1.4])

    def chain(move):
        keys = random.split(random.key(0), 200)
        return jax.jit(lambda: jax.lax.scan(lambda x, key: (move(x, key), None), start, keys)[0])()

    for move in (
        lambda x, key: moves.langevin(density, x, key, step)[0],
        lambda x, key: moves.hmc(density, x, key, 0.4 * step)[0],
        lambda x, key: moves.random_walk(density, x, key, 2 * step),
    ):
        x = np.asarray(chain(move), np.float64)
        assert np.all(np.abs(x.mean(0)) < 4 * x.std(0) / np.sqrt(2000))
        assert np.all(np.abs(x.var(0) / [1.0, 4.0] - 1) < 4 * np.sqrt(2 / 2000))

    def both(pair, key):
        return moves.coupled_random_walk(density, pair, key, 2 * step), None

    pair = jax.jit(lambda: jax.lax.scan(both, (start, -start), random.split(random.key(3), 200))[0])()
    assert np.mean(np.all(pair[0] == pair[1], axis=1)) > 0.99
    for x in map(np.asarray, pair):
        assert np.all(np.abs(x.mean(0)) < 4 * x.std(0) / np.sqrt(2000))


def test_langevin_comes_home_from_where_the_density_is_steep():
    """exp(−x⁴) from 8, where a step of its slope would lead to −1,000: E x⁴ is 1/4, within 4 s.e. of 2,000 chains."""
    x = jnp.full((2000, 1), 8.0)
    density = lambda x: -jnp.sum(x**4, axis=-1)  # noqa: E731
    move = lambda x, key: (moves.langevin(density, x, key, jnp.array([1.0]))[0], None)  # noqa: E731
    x = np.asarray(jax.lax.scan(move, x, random.split(random.key(6), 100))[0], np.float64) ** 4
    assert abs(x.mean() - 0.25) < 4 * x.std() / np.sqrt(2000)


def test_unbiased_gradient_on_the_line():
    """∇log Z of a Gaussian energy within 4 s.e. of 2,000 draws, by coupled random walks."""
    x = np.random.default_rng(2).normal(1.0, 1.0, 20).astype(np.float32)
    problem = UnbiasedCD(3).problem(random.key(0), normal, None, {"x": jnp.asarray(x)})
    params = {"eta": jnp.array(0.5), "k": jnp.array(np.log(1.5), jnp.float32)}

    @jax.jit
    def draws(keys):
        return jax.lax.map(lambda key: problem.log_z_gradient(params, key, key)[:2], keys, batch_size=200)

    found, unmet = draws(random.split(random.key(4), 2000))
    mean, second = 0.5 / 1.5, 1 / 1.5 + (0.5 / 1.5) ** 2
    exact = {"eta": 20 * mean, "k": -0.5 * 1.5 * 20 * second}
    assert distance(found, exact)[0] < 4
    assert np.all(np.asarray(unmet) == 0)


@pytest.mark.parametrize("kernel", ["langevin", "hmc"])
def test_persistent_chains_on_the_line(kernel):
    """The closed form within 10 %, from minibatch-free persistent chains; the step size finds its acceptance rate."""
    x = np.random.default_rng(3).normal(-1.0, 1.5, 500)
    result = estimax.fit(
        normal, ContrastiveDivergence(3, persistent=True, kernel=kernel), {"x": x}, num_steps=1000, learning_rate=0.02,
        progress_bar=False,
    )  # fmt: skip
    np.testing.assert_allclose(result.params["k"], 1 / x.var(), rtol=0.1)
    np.testing.assert_allclose(result.params["eta"], x.mean() / x.var(), rtol=0.1)
    rate = result.metrics["acceptance"][-200:].mean()
    assert abs(rate - moves.TARGETS[kernel]) < 0.05
    chains = np.asarray(result.problem.chains())
    assert abs(chains.mean() - x.mean()) < 4 * x.std() / np.sqrt(500) + 0.1


@pytest.mark.long
def test_minibatches():
    """CD with all of the data and with batches of 20: one mean gradient, within 4 s.e."""
    x = jnp.asarray(np.random.default_rng(4).normal(1.0, 1.0, 60), jnp.float32)
    params = {"eta": jnp.array(0.2), "k": jnp.array(0.1)}
    found = {}
    for subsample in (False, True):
        problem = ContrastiveDivergence(3, subsample=subsample).problem(random.key(0), normal, None, {"x": x})
        problem = replace(problem, memory=problem.memory | {"log_step": jnp.array(-0.2), "count": jnp.array(1e6)})

        @jax.jit
        @jax.vmap
        def gradient(key, problem=problem):
            p = problem.with_memory(problem.refresh(problem.memory, params, key))
            return jax.grad(lambda v: p.loss(v, key, p.data)[0])(params)

        found[subsample] = gradient(random.split(random.key(5), 1500))
    for name in params:
        a, b = (np.asarray(found[s][name], np.float64) for s in (False, True))
        assert abs(a.mean() - b.mean()) < 4 * np.sqrt((a.var() + b.var()) / 1500)


def test_chains_that_run_away_are_named():
    def endless(x):
        k = numpyro.param("k", 0.0)
        with numpyro.plate("data", x.shape[0]):
            numpyro.factor("energy", k * jnp.tanh(x) + 0.05 * x**2)

    x = np.random.default_rng(5).normal(size=50)
    result = estimax.fit(
        endless, ContrastiveDivergence(10, persistent=True), {"x": x}, num_steps=300, progress_bar=False
    )
    assert any("partition function diverges" in line for line in result.diagnose().advice)


def test_its_loss_is_not_taken_for_a_measure_of_the_fit():
    """Data and chains rise and fall together: a falling loss is no fault, and chooses no restart."""
    x, options = np.linspace(-1, 1, 50), {"num_steps": 5, "progress_bar": False}
    estimator = ContrastiveDivergence(persistent=True)
    result = estimax.fit(normal, estimator, {"x": x}, **options)
    fallen = replace(result, losses=np.linspace(1, 0, 1000))
    assert loss_drift(fallen.losses) < -3
    found = fallen.diagnose()
    assert found.verdict == "good"
    assert "not its values" in found.advice[0]
    with pytest.raises(ValueError, match="num_restarts=3 takes the run of lowest loss.*mean nothing"):
        estimax.fit(normal, estimator, {"x": x}, num_restarts=3, **options)
    with pytest.raises(TypeError, match="no exact loss: fits of several seeds"):
        result.confint()
    with pytest.raises(ValueError, match="it observes nothing: it adds its log-density by"):
        result.predict({"x": x})


def test_chains_that_do_not_meet_are_named():
    x = np.linspace(-1, 1, 20)
    result = estimax.fit(normal, UnbiasedCD(most_steps=2), {"x": x}, num_steps=5, progress_bar=False)
    assert result.metrics["unmet"][-1] > 0
    assert any("had not met after most_steps=2" in line for line in result.diagnose().advice)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ContrastiveDivergence(0), "steps must be an integer of at least 1"),
        (lambda: ContrastiveDivergence(step_size=0.0), "step_size must be positive"),
        (lambda: ContrastiveDivergence(kernel="nuts"), "kernel must be one of"),
        (lambda: ContrastiveDivergence(l1=1.0), "has no exact loss"),
        (lambda: UnbiasedCD(persistent=True), "until they meet"),
        (lambda: UnbiasedCD(0), "burn_in must be an integer of at least 1"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_data(data):
    with pytest.raises(ValueError, match="follows gradients in x, and the data are discrete"):
        posed(ContrastiveDivergence(kernel="hmc"), data)
    with pytest.raises(ValueError, match=r"take the value -1, which is not among values=\[0.0, 1.0\]"):
        posed(ContrastiveDivergence(values=(0, 1)), data)
    with pytest.raises(ValueError, match="among the values that they show: these show 1"):
        posed(ContrastiveDivergence(), np.ones_like(data))
    with pytest.raises(ValueError, match="these are discrete"):
        posed(ScoreMatching(), data)
    x = jnp.linspace(0, 1, 60)
    with pytest.raises(ValueError, match="belong to their units"):
        ContrastiveDivergence(persistent=True, subsample=True).problem(random.key(0), normal, None, {"x": x})
