"""The recursions of hidden Markov chains against sums over all paths, in one block and in several."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp
from scipy import special, stats

from estimax.models import forward_backward

pytestmark = pytest.mark.usefixtures("x64_module")

STEPS = 5
CHAINS = {
    "mixing": (np.log([0.6, 0.4]), np.log([[0.7, 0.3], [0.2, 0.8]])),
    "forbidden": (np.array([0.0, -1e30]), np.array([[np.log(0.4), np.log(0.6)], [-1e30, 0.0]])),
}
EMISSION = np.random.default_rng(0).normal(size=(STEPS, 2)) * 2


def paths(log_initial, log_transition, log_emission):
    """All paths (K^T, T), and log p(y, path) of each."""
    every = np.array(list(itertools.product(range(2), repeat=STEPS)))
    joint = log_initial[every[:, 0]] + log_transition[every[:, :-1], every[:, 1:]].sum(1)
    return every, joint + log_emission[np.arange(STEPS), every].sum(1)


@pytest.fixture(params=["one block", "blocks"])
def blocks(request, monkeypatch):
    """Five steps in two blocks of three, the last step of which is padding."""
    if request.param == "blocks":
        monkeypatch.setattr(forward_backward, "BLOCKED_STEPS", 1)
    jax.clear_caches()  # what was compiled with the other number


@pytest.mark.parametrize("chain", CHAINS)
def test_expectations_are_sums_over_paths(chain, blocks):
    parts = *CHAINS[chain], EMISSION
    every, joint = paths(*parts)
    total = special.logsumexp(joint)
    weight = np.exp(joint - total)
    found = jax.jit(lambda *parts: (forward_backward.log_likelihood(*parts), *forward_backward.expected(*parts)))(
        *parts
    )
    np.testing.assert_allclose(found[:2], total, rtol=1e-13)
    np.testing.assert_allclose(found[2], np.stack([weight @ (every == k) for k in range(2)], 1), atol=1e-13)
    transitions = np.zeros((2, 2))
    for t in range(STEPS - 1):
        np.add.at(transitions, (every[:, t], every[:, t + 1]), weight)
    np.testing.assert_allclose(found[3], transitions, atol=1e-13)


@pytest.mark.long
def test_derivatives_of_every_order_and_mode(blocks):
    """Second ones, forward over reverse and reverse over reverse, and third ones, of the sum over paths."""
    every = jnp.asarray(paths(*CHAINS["mixing"], EMISSION)[0])

    def parts(v):
        return (
            jax.nn.log_softmax(v[:2]),
            jax.nn.log_softmax(v[2:6].reshape(2, 2)),
            EMISSION * v[6] + v[7] ** 2 * EMISSION**3,
        )

    def ours(v):
        return forward_backward.log_likelihood(*parts(v))

    def theirs(v):
        initial, transition, emission = parts(v)
        joint = initial[every[:, 0]] + transition[every[:, :-1], every[:, 1:]].sum(1)
        return logsumexp(joint + emission[jnp.arange(STEPS), every].sum(1))

    v = jnp.asarray(np.random.default_rng(1).normal(size=8) * 0.5)
    expected = jax.jit(jax.hessian(theirs))(v)
    for hessian in (jax.jacfwd(jax.grad(ours)), jax.jacrev(jax.grad(ours))):
        np.testing.assert_allclose(jax.jit(hessian)(v), expected, atol=1e-11)
    along = jnp.ones(8)
    third = [jax.jit(lambda v, f=f: jax.jvp(jax.hessian(f), (v,), (along,))[1])(v) for f in (ours, theirs)]
    np.testing.assert_allclose(*third, atol=1e-10)


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-13), (np.float32, 1e-5)])
def test_a_state_that_was_out_of_the_question_may_win(dtype, rtol):
    """No transitions, so the chain is a mixture of two series: the state ahead by 2,000 nats at half time loses."""
    emission = np.where(np.arange(4000)[:, None] < 2000, [0.0, -1.0], [-1.5, 0.0]).astype(dtype)
    parts = np.log(np.array([0.5, 0.5], dtype)), np.array([[0.0, -1e30], [-1e30, 0.0]], dtype), emission
    with jax.enable_x64(dtype is np.float64):
        total, states, _ = jax.jit(forward_backward.expected)(*parts)
        np.testing.assert_allclose(total, -2000 + np.log(0.5), rtol=rtol)
        np.testing.assert_allclose(states[::500, 1], 1.0, rtol=rtol)


def test_filter_adds_up_and_predicts_by_hand():
    """Steps that tell nothing: the filter is the chain's own distribution, and increments are what the steps give."""
    initial, transition = CHAINS["mixing"]
    log_filtered, increments = jax.jit(forward_backward.filtered)(initial, transition, np.full((4, 2), -3.0))
    np.testing.assert_allclose(increments, -3.0, rtol=1e-13)
    expected = np.exp(initial) @ np.linalg.matrix_power(np.exp(transition), 3)
    np.testing.assert_allclose(np.exp(log_filtered[-1]), expected, rtol=1e-13)


def test_long_series_in_blocks_equals_hmmlearn():
    peer = pytest.importorskip("hmmlearn.hmm").GaussianHMM(2, covariance_type="diag")
    peer.n_features, (initial, transition) = 1, CHAINS["mixing"]
    peer.startprob_, peer.transmat_ = np.exp(initial), np.exp(transition)
    peer.means_, peer.covars_ = np.array([[-1.0], [0.5]]), np.array([[1.0], [0.25]])
    y = np.random.default_rng(2).normal(size=(2501, 1))
    log_emission = stats.norm.logpdf(y, [-1.0, 0.5], [1.0, 0.5])
    total, states, _ = jax.jit(forward_backward.expected)(initial, transition, log_emission)
    score, posterior = peer.score_samples(y)
    np.testing.assert_allclose(total, score, rtol=1e-12)
    np.testing.assert_allclose(states, posterior, atol=1e-10)
