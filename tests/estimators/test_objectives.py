"""Objectives as functions of an array: their coefficients against automatic differentiation and naive loops."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from estimax.estimators import objectives as ob

pytestmark = pytest.mark.usefixtures("x64_module")

BOUNDS = {
    "elbo": ob.ELBOBound(),
    "iw": ob.IWBound(),
    "renyi_0.5": ob.PowerMean(0.5),
    "renyi_2": ob.PowerMean(-1.0),
    "power_2": ob.PowerMean(2.0),
    "cubo_2": ob.CUBOBound(),
    "cubo_3": ob.CUBOBound(3.0),
    "miwae": ob.Grouped(ob.IWBound(), 3),
    "grouped_renyi": ob.Grouped(ob.PowerMean(0.5), 2),
    "ciwae": ob.Mixture(((0.3, ob.ELBOBound()), (0.7, ob.IWBound()))),
    "sandwich": ob.Mixture(((-0.5, ob.PowerMean(2.0)), (0.5, ob.ELBOBound()))),
    "nested": ob.Mixture(((0.5, ob.Grouped(ob.IWBound(), 2)), (0.5, ob.PowerMean(2.0)))),
}
DIVERGENCES = {"forward_kl": ob.ForwardKL(), "forward_chi2": ob.ForwardChi2()}
OBJECTIVES = BOUNDS | DIVERGENCES


@dataclass(frozen=True)
class Written(ob.Bound):
    """What a user would write: the function alone, every coefficient left to the base class."""

    order: float

    def __call__(self, log_w):
        if self.order == 0:
            return jnp.mean(log_w, 0)
        return jnp.log(jnp.mean(jnp.exp(self.order * log_w), 0)) / self.order


def log_weights(*shape, seed=0, spread=1.5):
    return spread * np.random.default_rng(seed).standard_normal(shape)


def value(name, log_w):
    """Values of METHODS §1, once more, in NumPy."""

    def power(order, lw):
        return lw.mean(0) if order == 0 else (logsumexp(order * lw, axis=0) - np.log(len(lw))) / order

    normalised = np.exp(log_w - logsumexp(log_w, axis=0))
    return {
        "elbo": lambda: power(0, log_w),
        "iw": lambda: power(1, log_w),
        "renyi_0.5": lambda: power(0.5, log_w),
        "renyi_2": lambda: power(-1, log_w),
        "power_2": lambda: power(2, log_w),
        "cubo_2": lambda: -power(2, log_w),
        "cubo_3": lambda: -power(3, log_w),
        "miwae": lambda: np.mean([power(1, part) for part in np.split(log_w, 3)], 0),
        "grouped_renyi": lambda: np.mean([power(0.5, part) for part in np.split(log_w, 2)], 0),
        "ciwae": lambda: 0.3 * power(0, log_w) + 0.7 * power(1, log_w),
        "sandwich": lambda: 0.5 * (power(0, log_w) - power(2, log_w)),
        "nested": lambda: 0.5 * np.mean([power(1, part) for part in np.split(log_w, 2)], 0) + 0.5 * power(2, log_w),
        "forward_kl": lambda: -np.sum(normalised * np.log(len(log_w) * normalised), 0),
        "forward_chi2": lambda: -2 * power(2, log_w),
    }[name]()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_value(name):
    log_w = log_weights(6, 2, 3)
    np.testing.assert_allclose(OBJECTIVES[name](jnp.asarray(log_w)), value(name, log_w), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", BOUNDS)
def test_total_is_the_gradient_and_double_subtracts_the_diagonal_of_the_hessian(name):
    bound, log_w = BOUNDS[name], jnp.asarray(log_weights(6))

    @jax.jit
    def both(lw):
        return (bound.total(lw), bound.double(lw)), (jax.grad(bound)(lw), jax.hessian(bound)(lw))

    (total, double), (gradient, hessian) = both(log_w)
    np.testing.assert_allclose(total, gradient, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(double, gradient - np.diag(hessian), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("order", [0.0, 0.5, 1.0, 2.0, -1.0])
@pytest.mark.parametrize("shape", [(5,), (5, 3)])
def test_coefficients_of_a_bound_given_by_its_function_alone(order, shape):
    log_w = jnp.asarray(log_weights(*shape))
    closed, written = ob.PowerMean(order), Written(order)

    @jax.jit
    def both(lw):
        return [[getattr(b, c)(lw) for c in ("total", "path", "double", "score")] for b in (written, closed)]

    for mine, theirs in zip(*both(log_w), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-11, atol=1e-13)


def test_table_of_doubly_reparameterised_coefficients():
    """METHODS §2, row by row."""
    log_w = log_weights(7)

    def softmax(order):
        return np.exp(order * log_w - logsumexp(order * log_w))

    for alpha in (0.3, 2.0):
        w = softmax(1 - alpha)
        np.testing.assert_allclose(ob.PowerMean(1 - alpha).double(log_w), alpha * w + (1 - alpha) * w**2, rtol=1e-11)
    for n in (2.0, 3.0):
        w = softmax(n)
        np.testing.assert_allclose(ob.CUBOBound(n).double(log_w), -((1 - n) * w + n * w**2), rtol=1e-11)
    np.testing.assert_allclose(ob.ELBOBound().double(log_w), np.full(7, 1 / 7), rtol=1e-12)
    np.testing.assert_allclose(ob.IWBound().double(log_w), softmax(1) ** 2, rtol=1e-11)
    np.testing.assert_allclose(ob.ForwardKL().double(log_w), softmax(1) - softmax(1) ** 2, rtol=1e-11)
    np.testing.assert_allclose(ob.ForwardKL().score(log_w), softmax(1), rtol=1e-12)
    np.testing.assert_allclose(ob.ForwardChi2().double(log_w), 2 * softmax(2), rtol=1e-12)
    np.testing.assert_allclose(ob.ForwardChi2().total(log_w), -2 * softmax(2), rtol=1e-12)
    np.testing.assert_allclose(ob.ForwardChi2().score(log_w), softmax(2), rtol=1e-12)


def test_forward_kl_has_no_total_derivative():
    with pytest.raises(ValueError, match="no plain reparameterised gradient"):
        ob.ForwardKL().total(jnp.zeros(3))


def vimco(order, log_w):
    """Score coefficients by the O(K²) definition: F, minus F with weight k replaced, minus ∂F/∂log w_k."""

    def f(lw):
        return lw.mean() if order == 0 else (logsumexp(order * lw) - np.log(len(lw))) / order

    out = np.zeros(len(log_w))
    for k in range(len(log_w)):
        others = np.delete(log_w, k)
        replaced = np.insert(others, k, others.mean()) if len(others) else None
        baseline = 0.0 if replaced is None else f(replaced)
        derivative = 1 / len(log_w) if order == 0 else np.exp(order * log_w[k] - logsumexp(order * log_w))
        out[k] = f(log_w) - baseline - derivative
    return out


@pytest.mark.parametrize("order", [0.0, 0.5, 1.0, 2.0, -1.0])
@pytest.mark.parametrize("num_particles", [1, 2, 7])
def test_vimco_against_the_naive_loop(order, num_particles):
    log_w = log_weights(num_particles, 3) - 100.0
    expected = np.stack([vimco(order, column) for column in log_w.T], -1)
    np.testing.assert_allclose(ob.PowerMean(order).score(jnp.asarray(log_w)), expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("order", [0.5, 1.0, 2.0, -1.0])
@pytest.mark.parametrize("excess", [80.0, -80.0, 500.0])
def test_vimco_with_a_dominating_weight(order, excess):
    """One weight e^80 times the others (or as much smaller): the subtraction must not lose the rest, nor overflow."""
    log_w = log_weights(6)
    log_w[2] += excess
    expected = vimco(order, log_w)
    np.testing.assert_allclose(ob.PowerMean(order).score(jnp.asarray(log_w)), expected, rtol=1e-10, atol=1e-10)
    single = ob.PowerMean(order).score(jnp.asarray(log_w, jnp.float32))
    np.testing.assert_allclose(single, expected, rtol=1e-5, atol=1e-5 * abs(excess))


@pytest.mark.long
@pytest.mark.parametrize("order", [0.5, 1.0, 2.0])
def test_vimco_with_weights_of_zero(order):
    """A particle that the model rules out (log w = −inf) is one more particle of the sum, not the end of the fit."""
    log_w = log_weights(5)
    for zeros in ([1], [1, 3]):
        ruled_out = log_w.copy()
        ruled_out[zeros] = -np.inf
        expected = vimco(order, ruled_out)
        for bound in (ob.PowerMean(order), Written(order)):
            np.testing.assert_allclose(bound.score(jnp.asarray(ruled_out)), expected, rtol=1e-10, atol=1e-11)
            assert np.all(np.isfinite(bound.double(jnp.asarray(ruled_out))))
    alone = np.array([-np.inf, 0.3, -np.inf])  # the survivor has no baseline: its own F − 0 − 1
    score = ob.PowerMean(order).score(jnp.asarray(alone))
    value = 0.3 - np.log(3) / order
    np.testing.assert_allclose(score[1], value - 1.0, rtol=1e-12)
    assert np.all(np.isfinite(score))


def test_vimco_of_equal_weights_is_the_derivative_alone():
    for log_w in (jnp.zeros(4), jnp.full(4, -1e4)):
        np.testing.assert_allclose(ob.IWBound().score(log_w), np.full(4, -0.25), atol=1e-9)


def coefficients(name):
    """Every function of an objective, in one program."""
    objective = OBJECTIVES[name]
    names = ["__call__", "double", "score"] + ["total"] * (name != "forward_kl")
    return jax.jit(lambda log_w: [getattr(objective, n)(log_w) for n in names])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_extreme_weights_stay_finite(name):
    log_w = np.array([-2e4, 0.0, 80.0, 3e3, -1.0, 5.0], np.float32)
    for lw in (log_w, log_w - np.float32(1e5)):
        assert all(np.all(np.isfinite(out)) for out in coefficients(name)(lw))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_coefficients_do_not_depend_on_the_evidence(name):
    """log w + constant: gradients stay as they are (the constant is log Z, which no φ can move)."""
    function, log_w = coefficients(name), log_weights(6)
    for before, after in zip(function(log_w)[1:], function(log_w + 37.0)[1:], strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-10, atol=1e-11)


@pytest.mark.long
@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    num_particles=st.integers(1, 8),
    plates=st.sampled_from([(), (3,), (2, 2)]),
    name=st.sampled_from(sorted(OBJECTIVES)),
    seed=st.integers(0, 100),
)
def test_plate_elements_do_not_mix(num_particles, plates, name, seed):
    """(K, N) log-weights are N problems of K particles, never one of K·N."""
    function = coefficients(name)
    groups = {"miwae": 3, "grouped_renyi": 2, "nested": 2}.get(name, 1)
    log_w = log_weights(num_particles * groups, *plates, seed=seed)
    whole, single = function(log_w), [function(column) for column in log_w.reshape(len(log_w), math.prod(plates)).T]
    assert whole[0].shape == plates
    for i, out in enumerate(whole):
        columns = np.stack([parts[i] for parts in single], -1)
        np.testing.assert_allclose(out.reshape(columns.shape), columns, rtol=1e-11, atol=1e-12)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    log_w=st.lists(st.floats(-50, 50), min_size=1, max_size=8),
    lower=st.floats(-3, 3),
    upper=st.floats(-3, 3),
)
def test_power_means_are_ordered(log_w, lower, upper):
    """Jensen: a power mean grows with its order, between the smallest and the largest weight."""
    log_w = np.asarray(log_w)
    small, large = (ob.PowerMean(order)(log_w) for order in sorted((round(lower, 3), round(upper, 3))))
    slack = 1e-9
    assert small <= large + slack
    assert log_w.min() - slack <= small
    assert large <= log_w.max() + slack


def test_renyi_tends_to_the_elbo():
    log_w = jnp.asarray(log_weights(6))
    for coefficient in ("__call__", "total", "double", "score"):
        limit = getattr(ob.ELBOBound(), coefficient)(log_w)
        np.testing.assert_allclose(getattr(ob.PowerMean(1e-6), coefficient)(log_w), limit, rtol=1e-4, atol=1e-5)
