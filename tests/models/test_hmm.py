"""Against sums over all paths, hmmlearn, and the fits in Zucchini and MacDonald's book."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpyro import handlers
from scipy import special, stats

from estimax.models import hmm

pytestmark = pytest.mark.usefixtures("x64_module")

INITIAL = np.array([0.5, 0.2, 0.3])
TRANSITION = np.array([[0.8, 0.15, 0.05], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5]])
LOCS, SCALES = np.array([-1.0, 0.5, 3.0]), np.array([0.5, 1.0, 0.7])
Y = np.array([-0.7, 0.1, 2.5, 3.1, 0.4])


def chain(method=None, num_steps=5, emission=None, transition=TRANSITION):
    emission = dist.Normal(jnp.asarray(LOCS), jnp.asarray(SCALES)) if emission is None else emission
    return hmm.HiddenMarkov(
        jnp.log(INITIAL), jnp.log(jnp.asarray(transition)), emission, num_steps=num_steps, method=method
    )


def paths(y, initial=INITIAL, transition=TRANSITION, emission=None):
    """All paths (K^T, T) and log p(y, path) of each, by NumPy."""
    log_emission = dist.Normal(LOCS, SCALES).log_prob(y[:, None]) if emission is None else emission
    every = np.array(list(itertools.product(range(len(initial)), repeat=len(y))))
    with np.errstate(divide="ignore"):
        joint = np.log(initial[every[:, 0]]) + np.log(transition[every[:, :-1], every[:, 1:]]).sum(1)
    return every, joint + np.asarray(log_emission)[np.arange(len(y)), every].sum(1)


@pytest.mark.parametrize("method", ["scan", "tree"])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 5])
def test_log_prob_is_the_sum_over_paths(method, num_steps):
    expected = special.logsumexp(paths(Y[:num_steps])[1])
    np.testing.assert_allclose(chain(method, num_steps).log_prob(Y[:num_steps]), expected, rtol=1e-12)


def test_filter_marginals_transitions_and_viterbi_by_brute_force():
    every, joint = paths(Y)
    weight = np.exp(joint - special.logsumexp(joint))
    marginals = np.stack([np.bincount(every[:, t], weight, 3) for t in range(5)])
    transitions = np.zeros((3, 3))
    for t in range(4):
        np.add.at(transitions, (every[:, t], every[:, t + 1]), weight)
    ours = chain()
    expected = jax.jit(lambda y: (ours.posterior_marginals(y), ours.expected_transitions(y)))(Y)
    np.testing.assert_allclose(expected[0], marginals, atol=1e-12)
    np.testing.assert_allclose(expected[1], transitions, atol=1e-12)
    (path, log_joint), (filtered, increments) = jax.jit(lambda y: (ours.viterbi(y), ours.filter(y)))(Y)
    np.testing.assert_array_equal(path, every[joint.argmax()])
    np.testing.assert_allclose(log_joint, joint.max(), rtol=1e-12)
    prefixes = [special.logsumexp(paths(Y[:t])[1]) for t in range(1, 6)]
    np.testing.assert_allclose(increments, np.diff(prefixes, prepend=0.0), rtol=1e-9)
    for t in range(5):
        states, joint = paths(Y[: t + 1])
        expected = np.bincount(states[:, -1], np.exp(joint - prefixes[t]), 3)
        np.testing.assert_allclose(np.exp(filtered[t]), expected, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Out-of-support")
@pytest.mark.parametrize("method", ["scan", "tree"])
def test_forbidden_transitions(method):
    """Left to right only, from the first state: still the sum over paths, with finite slopes; impossible is -inf."""
    transition = np.array([[0.6, 0.4, 0.0], [0.0, 0.7, 0.3], [0.0, 0.0, 1.0]])
    initial = np.array([1.0, 0.0, 0.0])
    expected = special.logsumexp(paths(Y, initial, transition)[1])
    with np.errstate(divide="ignore"):
        logits = np.log(initial), np.log(transition)

    def log_prob(locs, y):
        emission = dist.Normal(locs, jnp.asarray(SCALES))
        return hmm.HiddenMarkov(*logits, emission, num_steps=5, method=method).log_prob(y)

    value, slope = jax.jit(jax.value_and_grad(log_prob))(jnp.asarray(LOCS), Y)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    step = 1e-5 * np.eye(3)
    near = jax.jit(log_prob)
    numeric = [(near(LOCS + h, Y) - near(LOCS - h, Y)) / 2e-5 for h in step]
    np.testing.assert_allclose(slope, numeric, rtol=1e-6, atol=1e-7)
    shown = dist.Uniform(jnp.array([0.0, 1.0, 2.0]), jnp.array([1.0, 2.0, 3.0]), validate_args=True)
    seen = jax.jit(hmm.HiddenMarkov(*logits, shown, num_steps=3, method=method).log_prob)  # each state shows itself
    np.testing.assert_allclose(seen(np.array([0.5, 0.5, 1.5])), np.log(0.6 * 0.4), rtol=1e-12)
    assert seen(np.array([1.5, 0.5, 1.5])) == -np.inf
    assert seen(np.array([0.5, 2.5, 2.5])) == -np.inf


def test_two_ways_agree_on_a_long_series_in_single_precision():
    """20,000 steps: the normalised recursions keep about six digits where sums of 1e4 nats alone would lose them."""
    y = np.asarray(jax.jit(chain(num_steps=20_000).sample)(jax.random.key(0)))
    exact = float(jax.jit(chain("scan", 20_000).log_prob)(y))
    with jax.enable_x64(False):
        for method in ("scan", "tree"):
            emission = dist.Normal(np.float32(LOCS), np.float32(SCALES))
            single = float(jax.jit(chain(method, 20_000, emission).log_prob)(y))
            assert abs(single / exact - 1.0) < 2e-6


def test_gradients_agree_between_methods():
    def log_prob(logits, locs, method):
        emission = dist.Normal(locs, jnp.asarray(SCALES))
        return hmm.HiddenMarkov(logits[0], logits, emission, num_steps=5, method=method).log_prob(Y)

    arguments = jnp.log(TRANSITION), jnp.asarray(LOCS)
    grad = jax.jit(jax.grad(log_prob, argnums=(0, 1)), static_argnums=2)
    scan, tree = (grad(*arguments, method) for method in ("scan", "tree"))
    for a, b in zip(scan, tree, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def equal_states(batch, event, num_states, num_steps, method=None):
    """States that all emit standard normals, so that the series is one."""
    emission = dist.Normal(jnp.zeros((*batch, num_states, *event)), 1.0).to_event(len(event))
    initial, transition = jnp.zeros(num_states), jnp.zeros((*batch, num_states, num_states))
    return hmm.HiddenMarkov(initial, transition, emission, num_steps=num_steps, method=method)


@given(
    st.sampled_from([(), (2,), (3, 1)]),
    st.sampled_from([(), (4,), (2, 5)]),
    st.sampled_from([(), (2,), (3, 2)]),
    st.integers(1, 6),
    st.integers(1, 9),
    st.sampled_from(["scan", "tree"]),
)
@settings(max_examples=10, deadline=None)
def test_shapes(batch, sample, event, num_states, num_steps, method):
    """Any batch of series, any event shape, any stack of series."""

    def run(key):
        ours = equal_states(batch, event, num_states, num_steps, method)
        assert ours.batch_shape == batch
        assert ours.event_shape == (num_steps, *event)
        y = ours.sample(key, sample)
        states = ours.posterior_marginals(y), ours.expected_transitions(y), ours.viterbi(y), ours.filter(y)
        return y, ours.log_prob(y), *states

    y, log_prob, marginals, transitions, (path, best), (filtered, increments) = jax.eval_shape(run, jax.random.key(0))
    stack = (*sample, *batch)
    assert y.shape == (*stack, num_steps, *event)
    assert log_prob.shape == best.shape == stack
    assert marginals.shape == filtered.shape == (*stack, num_steps, num_states)
    assert transitions.shape == (*stack, num_states, num_states)
    assert path.shape == increments.shape == (*stack, num_steps)


@pytest.mark.parametrize("method", ["scan", "tree"])
def test_equal_states_are_independent_draws(method):
    ours = equal_states((2,), (3,), 4, 5, method)
    y = np.random.default_rng(0).normal(size=(6, 2, 5, 3))
    expected = stats.norm.logpdf(y).sum((-2, -1))
    found = jax.jit(lambda y: (ours.log_prob(y), ours.filter(y)[1].sum(-1), ours.posterior_marginals(y)))(y)
    np.testing.assert_allclose(found[0], expected, rtol=1e-10)
    np.testing.assert_allclose(found[1], expected, rtol=1e-10)
    np.testing.assert_allclose(found[2], 0.25, rtol=1e-10)


def test_chains_of_a_batch_are_independent():
    initial = jnp.log(jnp.stack([INITIAL, INITIAL[::-1]]))
    transition = jnp.log(jnp.stack([TRANSITION, TRANSITION.T / TRANSITION.sum(0)[:, None]]))
    emission = dist.Normal(jnp.stack([LOCS, LOCS + 1.0]), jnp.stack([SCALES, SCALES]))
    ours = hmm.HiddenMarkov(initial, transition, emission, num_steps=5)
    y = np.stack([Y, Y[::-1]])
    one = [
        hmm.HiddenMarkov(initial[i], transition[i], dist.Normal(LOCS + i, SCALES), num_steps=5).log_prob(y[i])
        for i in range(2)
    ]
    np.testing.assert_allclose(jax.jit(ours.log_prob)(y), one, rtol=1e-12)
    # one series is set against every chain of the batch
    spread = jax.jit(ours.log_prob)(Y)
    assert spread.shape == (2,)
    np.testing.assert_allclose(spread[0], one[0], rtol=1e-12)


def test_draws_have_the_moments_of_the_chain():
    """Stationary start: mean, variance and lagged product over 4,000 series of 3 steps, in standard errors."""
    initial = np.asarray(hmm.stationary(TRANSITION))
    np.testing.assert_allclose(initial @ TRANSITION, initial, rtol=1e-12)
    np.testing.assert_allclose(initial.sum(), 1.0, rtol=1e-12)
    ours = hmm.HiddenMarkov(jnp.log(initial), jnp.log(TRANSITION), dist.Normal(LOCS, SCALES), num_steps=3)
    y = np.asarray(ours.sample(jax.random.key(1), (4000,)))
    lagged = initial @ (LOCS[:, None] * TRANSITION * LOCS[None, :]).sum(1)
    for values, expected in (
        (y[:, 0], initial @ LOCS),
        (y[:, 2], initial @ LOCS),
        (y[:, 1] ** 2, initial @ (LOCS**2 + SCALES**2)),
        (y[:, 0] * y[:, 1], lagged),
        (y[:, 1] * y[:, 2], lagged),
    ):
        assert abs(values.mean() - expected) < 4.0 * values.std() / np.sqrt(4000)


def test_vector_emissions():
    """Two independent columns are two products of densities."""
    emission = dist.Normal(jnp.stack([LOCS, LOCS[::-1]], -1), 1.0).to_event(1)
    y = np.stack([Y, 2.0 * Y], -1)
    log_emission = np.asarray(emission.log_prob(y[:, None, :]))
    ours = chain(emission=emission).log_prob(y)
    np.testing.assert_allclose(ours, special.logsumexp(paths(Y, emission=log_emission)[1]), rtol=1e-12)


def hmmlearn_gaussian(params):
    peer = pytest.importorskip("hmmlearn.hmm").GaussianHMM(2, covariance_type="diag")
    peer.n_features = 1
    peer.startprob_, peer.transmat_ = params["initial"], params["transition"]
    peer.means_, peer.covars_ = params["mu"][:, None], params["sigma"][:, None] ** 2
    return peer


def test_gaussian_hmm_equals_hmmlearn(pointwise):
    pytest.importorskip("statsmodels")
    y = hmm.gaussian_data()["y"]
    params = {
        "mu": np.array([850.0, 1100.0]),
        "sigma": np.array([125.0, 130.0]),
        "transition": np.array([[0.98, 0.02], [0.05, 0.95]]),
        "initial": np.array([0.3, 0.7]),
    }
    peer = hmmlearn_gaussian(params)
    ours = pointwise(hmm.gaussian_hmm, {"y": y, "stationary_start": False}, params)
    assert ours.shape == (1,)
    np.testing.assert_allclose(ours[0], peer.score(y[0][:, None]), rtol=1e-11)
    emission = dist.Normal(params["mu"], params["sigma"])
    ours = hmm.HiddenMarkov(np.log(params["initial"]), np.log(params["transition"]), emission, num_steps=100)
    marginals, (best, log_best) = jax.jit(lambda y: (ours.posterior_marginals(y), ours.viterbi(y)))(y)
    np.testing.assert_allclose(marginals[0], peer.predict_proba(y[0][:, None]), atol=1e-10)
    log_joint, path = peer.decode(y[0][:, None])
    np.testing.assert_array_equal(best[0], path)
    np.testing.assert_allclose(log_best[0], log_joint, rtol=1e-11)
    assert path[:27].all()  # the flow falls in 1898 (Cobb 1978)
    assert not path[28:].any()


def test_hmmlearns_em_stops_at_a_maximum_of_ours(pointwise):
    """hmmlearn's EM without priors on the earthquakes; then score and likelihood are compared."""
    peers = pytest.importorskip("hmmlearn.hmm")
    y = hmm.poisson_data()["y"]
    peer = peers.PoissonHMM(2, init_params="", random_state=0, n_iter=3000, tol=1e-9, transmat_prior=1.0)
    peer.startprob_, peer.transmat_ = np.array([0.5, 0.5]), np.array([[0.9, 0.1], [0.1, 0.9]])
    peer.lambdas_ = np.array([[15.0], [25.0]])
    peer.fit(y[0][:, None])
    params = {"rate": peer.lambdas_[:, 0], "transition": peer.transmat_, "initial": peer.startprob_}
    data = {"y": y, "num_states": 2, "stationary_start": False}
    ours = pointwise(hmm.poisson_hmm, data, {**params, "initial": np.maximum(params["initial"], 1e-300)})
    np.testing.assert_allclose(ours[0], peer.score(y[0][:, None]), rtol=1e-10)
    assert -ours[0] == pytest.approx(341.8787, abs=2e-4)  # the book's table of EM fits

    def total(rate):
        given = {**params, "initial": np.maximum(params["initial"], 1e-300), "rate": rate}
        return pointwise(hmm.poisson_hmm, data, given)[0]

    assert np.abs(jax.jit(jax.grad(total))(jnp.asarray(params["rate"]))).max() < 1e-4


@pytest.mark.parametrize(
    ("num_states", "value", "rates"), [(2, -342.3183, [15.472, 26.125]), (3, -329.4603, [13.146, 19.721, 29.714])]
)
def test_maximum_likelihood_of_the_book(num_states, value, rates, climb):
    """Earthquakes with a stationary start: from `poisson_start` to the book's maximum, in value and place."""
    data = {**hmm.poisson_data(), "num_states": num_states}
    found, params = climb(hmm.poisson_hmm, data, hmm.poisson_start(**data))
    assert found == pytest.approx(value, abs=1e-4)
    np.testing.assert_allclose(params["rate"], rates, atol=2e-3)
    if num_states == 3:  # the book's transition matrix
        expected = [[0.955, 0.024, 0.021], [0.050, 0.899, 0.051], [0.000, 0.197, 0.803]]
        np.testing.assert_allclose(params["transition"], expected, atol=1e-3)


def test_direct_gradient_and_hmmlearns_em_agree_on_the_nile(climb):
    """A free initial distribution, as in hmmlearn; both without priors."""
    pytest.importorskip("statsmodels")
    peers = pytest.importorskip("hmmlearn.hmm")
    data = {**hmm.gaussian_data(), "stationary_start": False}
    start = hmm.gaussian_start(**data)
    found, params = climb(hmm.gaussian_hmm, data, start)
    peer = peers.GaussianHMM(
        2, init_params="", n_iter=2000, tol=1e-10, min_covar=0.0, covars_prior=0.0, covars_weight=0.0
    )
    peer.n_features = 1
    peer.startprob_, peer.transmat_ = start["initial"], start["transition"]
    peer.means_, peer.covars_ = start["mu"][:, None], start["sigma"][:, None] ** 2
    y = data["y"][0][:, None]
    peer.fit(y)
    np.testing.assert_allclose(found, peer.score(y), rtol=1e-6)
    np.testing.assert_allclose(params["mu"], np.sort(peer.means_[:, 0]), rtol=1e-4)


def test_data_of_the_book():
    y = hmm.poisson_data()["y"][0]
    assert y.shape == (107,)
    assert y.mean() == pytest.approx(19.36, abs=0.01)  # the book, section 1.1
    assert y.var(ddof=1) == pytest.approx(51.57, abs=0.01)


@pytest.mark.slow
def test_models_draw_series(draw):
    for model in (hmm.gaussian_hmm, hmm.poisson_hmm):
        values = draw(model, num_steps=7, num_series=3, num_states=3)
        assert values["y"].shape == (3, 7)
        for name in {"mu", "rate"} & set(values):
            assert (np.diff(values[name]) > 0.0).all()


def test_bad_input():
    with pytest.raises(ValueError, match=r"transition_logits \(\.\.\., K, K\).*\(3,\), \(2, 2\)"):
        hmm.HiddenMarkov(np.zeros(3), np.zeros((2, 2)), dist.Normal(np.zeros(3), 1.0), num_steps=2)
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        chain(num_steps=0)
    with pytest.raises(ValueError, match="method must be 'scan', 'tree' or None, got 'fast'"):
        chain("fast")
    with pytest.raises(ValueError, match=r"y must have shape \(series, steps\), got \(5,\).*y\[None\]"):
        handlers.seed(hmm.gaussian_hmm, 0)(y=Y)
    with pytest.raises(ValueError, match="without y the model needs num_steps"):
        handlers.seed(hmm.poisson_hmm, 0)()
