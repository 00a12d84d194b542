"""Kernels of wide networks, outputs and tasks, against Monte Carlo, published closed forms and dense algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from tinygp import GaussianProcess, kernels

from estimax.models.kernels import ICM, ArcCosine, Erf, SameTask

pytestmark = pytest.mark.usefixtures("x64_module")

rng = np.random.default_rng(0)
X = rng.normal(size=(4, 3))


def test_one_layer_is_the_arc_cosine_kernel_of_order_one():
    """Cho and Saul: k(x, y) = |x||y| (sin θ + (π − θ) cos θ)/π, which is 2 E[relu(w·x) relu(w·y)], w ~ N(0, I)."""
    norms = np.linalg.norm(X, axis=1)
    angle = np.arccos(np.clip(X @ X.T / np.outer(norms, norms), -1, 1))
    published = np.outer(norms, norms) * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / np.pi
    variance = 1.7  # enters once through the inputs, x·x'/3, and once through the output
    np.testing.assert_allclose(ArcCosine(1, variance, 0.0)(X, X), variance**2 / 6 * published, rtol=1e-7)


def test_one_layer_of_sigmoids_is_williams_kernel():
    """Williams: (2/π) arcsin(2 x̃ᵀΣx̃' / √((1 + 2x̃ᵀΣx̃)(1 + 2x̃'ᵀΣx̃'))), x̃ = (1, x), Σ of weights and bias."""
    bias, variance = 0.3, 1.7
    augmented = np.concatenate([np.ones((4, 1)), X], 1)
    inner = augmented @ np.diag([bias, *[variance / 3] * 3]) @ augmented.T
    size = 1 + 2 * np.diag(inner)
    published = 2 / np.pi * np.arcsin(2 * inner / np.sqrt(np.outer(size, size)))
    np.testing.assert_allclose(Erf(1, variance, bias)(X, X), bias + variance * published, rtol=1e-12)


@pytest.mark.parametrize(("kernel", "activation"), [(ArcCosine, lambda u: np.maximum(u, 0)), (Erf, special.erf)])
def test_two_layers_are_the_covariance_of_wide_random_networks(kernel, activation):
    weight, bias, width, networks = 1.5, 0.2, 200, 1000
    draw, pieces = np.random.default_rng(1), []
    for _ in range(networks // 100):
        h = np.broadcast_to(X, (100, *X.shape))
        for _ in range(2):
            W = draw.normal(size=(100, h.shape[2], width)) * np.sqrt(weight / h.shape[2])
            h = activation(h @ W + draw.normal(size=(100, 1, width)) * np.sqrt(bias))
        # the last layer's weights are integrated out
        pieces.append(bias + weight * np.einsum("sin,sjn->sij", h, h) / width)
    products = np.concatenate(pieces)
    error = products.std(0) / np.sqrt(networks)
    difference = products.mean(0) - np.asarray(kernel(2, weight, bias)(X, X))
    # a finite width biases the second moment of ReLU networks by O(1/width) of it
    assert (np.abs(difference) < 4 * error + np.abs(products.mean(0)) / width).all()


@pytest.mark.long
@pytest.mark.parametrize("kernel", [ArcCosine, Erf])
def test_derivatives_are_finite_on_the_diagonal_and_equal_differences(kernel):
    points = jnp.asarray(np.concatenate([X, X[:1]]))
    weights = jnp.asarray(rng.normal(size=(5, 5)))

    def total(v):
        k = kernel(2, v[0], v[1])
        return jnp.sum(weights * k(points, points))

    v, step = jnp.array([1.3, 0.4]), 1e-5
    gradient, hessian = jax.grad(total)(v), jax.hessian(total)(v)
    shifts = step * jnp.eye(2)
    np.testing.assert_allclose(gradient, [(total(v + s) - total(v - s)) / (2 * step) for s in shifts], rtol=1e-6)
    numeric = jnp.stack([(jax.grad(total)(v + s) - jax.grad(total)(v - s)) / (2 * step) for s in shifts])
    np.testing.assert_allclose(hessian, numeric, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(kernel(2)(points), jnp.diagonal(kernel(2)(points, points)), rtol=1e-12)


def test_coregionalisation_is_a_kronecker_product_and_sums():
    t = jnp.linspace(0, 1, 3)
    inputs = (jnp.tile(t, 2), jnp.repeat(jnp.arange(2), 3))
    W1, W2 = rng.normal(size=(2, 1)), rng.normal(size=(2, 2))
    k1, k2 = kernels.Matern32(0.5), kernels.ExpSquared(0.3)
    lmc = ICM(k1, jnp.asarray(W1), jnp.array([0.1, 0.2])) + ICM(k2, jnp.asarray(W2))
    truth = np.kron(W1 @ W1.T + np.diag([0.1, 0.2]), k1(t, t)) + np.kron(W2 @ W2.T, k2(t, t))
    np.testing.assert_allclose(lmc(inputs, inputs), truth, rtol=1e-12)


@pytest.mark.long
def test_same_task_is_block_diagonal_with_hyper_parameters_of_each_task():
    t, task = jnp.asarray(rng.uniform(size=6)), jnp.array([0, 0, 1, 1, 1, 2])
    lengths, variances = jnp.array([0.3, 0.5, 0.9]), jnp.array([1.0, 2.0, 3.0])
    shared = SameTask(2.0 * kernels.Matern52(0.4))((t, task), (t, task))
    own = SameTask(variances * kernels.Matern52(lengths), per_task=True)((t, task), (t, task))
    truth_shared, truth_own = np.zeros((6, 6)), np.zeros((6, 6))
    for i in range(3):
        rows = np.flatnonzero(task == i)
        block = np.ix_(rows, rows)
        truth_shared[block] = 2.0 * kernels.Matern52(0.4)(t[rows], t[rows])
        truth_own[block] = variances[i] * kernels.Matern52(lengths[i])(t[rows], t[rows])
    np.testing.assert_allclose(shared, truth_shared, rtol=1e-12)
    np.testing.assert_allclose(own, truth_own, rtol=1e-12)
    assert np.isfinite(GaussianProcess(SameTask(kernels.Exp(1.0)), (t, task), diag=0.1).log_probability(t))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="depth counts hidden layers"):
        ArcCosine(0)
    with pytest.raises(ValueError, match=r"weights must have shape \(outputs, rank\), got \(2,\)"):
        ICM(kernels.Exp(1.0), jnp.ones(2))
    with pytest.raises(ValueError, match="one value for each of 2 outputs"):
        ICM(kernels.Exp(1.0), jnp.ones((2, 1)), jnp.ones(3))
