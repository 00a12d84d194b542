import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from scipy import special, stats

from estimax.models import factorial_hmm as fhmm
from estimax.models.hmm import HiddenMarkov, stationary

pytestmark = pytest.mark.usefixtures("x64_module")

INITIAL = np.array([[0.7, 0.3], [0.4, 0.6]])
TRANSITION = np.array([[[0.9, 0.1], [0.3, 0.7]], [[0.5, 0.5], [0.2, 0.8]]])
Y = np.array([0.3, 2.2, 3.4])
EFFECT = np.array([1.0, 2.0])


def brute_force(initial=INITIAL):
    """Paths of both chains, (16^..., T, 2), and log p(y, paths): the chains multiply, no product space is formed."""
    one = np.array(list(itertools.product(range(2), repeat=3)))
    paths, joint = [], []
    for a, b in itertools.product(one, one):
        log_p = 0.0
        for m, path in enumerate((a, b)):
            log_p += np.log(initial[m, path[0]]) + np.log(TRANSITION[m, path[:-1], path[1:]]).sum()
        paths.append(np.stack([a, b], -1))
        joint.append(log_p + stats.norm.logpdf(Y, np.stack([a, b], -1) @ EFFECT, 0.5).sum())
    return np.array(paths), np.array(joint)


def product():
    initial, transition = fhmm.product_chain(np.log(INITIAL), np.log(TRANSITION))
    return HiddenMarkov(
        initial, transition, dist.Normal(jnp.asarray(fhmm.product_states(2, 2) @ EFFECT), 0.5), num_steps=3
    )


def test_product_is_a_chain():
    initial, transition = fhmm.product_chain(np.log(INITIAL), np.log(TRANSITION))
    np.testing.assert_allclose(np.exp(initial), np.kron(*INITIAL), rtol=1e-12)
    np.testing.assert_allclose(np.exp(transition), np.kron(*TRANSITION), rtol=1e-12)
    assert fhmm.product_states(3, 2).shape == (8, 3)


def test_likelihood_and_chain_marginals_by_brute_force():
    paths, joint = brute_force()
    np.testing.assert_allclose(product().log_prob(Y), special.logsumexp(joint), rtol=1e-12)
    weight = np.exp(joint - special.logsumexp(joint))
    expected = np.einsum("n,ntm->tm", weight, paths)  # probability that chain m is in state 1
    ours = jax.jit(lambda y: fhmm.chain_marginals(product().posterior_marginals(y), 2, 2))(Y)
    assert ours.shape == (3, 2, 2)
    np.testing.assert_allclose(ours[..., 1], expected, atol=1e-10)
    np.testing.assert_allclose(ours.sum(-1), 1.0, atol=1e-10)


def test_model_is_the_product_chain(pointwise):
    params = {"mu": 0.2, "effect": EFFECT, "sigma": 0.5, "transition": TRANSITION}
    value = pointwise(fhmm.model, {"y": Y[None] + 0.2}, params)
    _, joint = brute_force(np.asarray(stationary(TRANSITION)))
    np.testing.assert_allclose(value, [special.logsumexp(joint)], rtol=1e-10)


def test_the_likelihood_has_finite_slopes_on_the_data(pointwise):
    pytest.importorskip("statsmodels")
    data = fhmm.data()
    assert data["y"].shape == (1, 202)
    params = {"mu": 1.0, "effect": np.array([2.0, 5.0]), "sigma": 1.5, "transition": TRANSITION}
    grad = jax.jit(jax.grad(lambda p: pointwise(fhmm.model, data, p).sum()))
    gradient = grad({name: jnp.asarray(value) for name, value in params.items()})
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_draws_and_bad_input(draw):
    values = draw(fhmm.model, num_steps=6, num_series=2, num_chains=3)
    assert values["y"].shape == (2, 6)
    assert values["transition"].shape == (3, 2, 2)
    assert (np.diff(values["effect"]) > 0.0).all()
    with pytest.raises(ValueError, match=r"num_chains must be 1 \.\. 8.*got 9"):
        handlers.seed(fhmm.model, 0)(y=Y[None], num_chains=9)
