"""Dense algebra and kernel matrices against NumPy and tinygp."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from tinygp import kernels, transforms

from estimax.estimators import GPEvidence
from estimax.estimators.gp import linalg, view
from estimax.estimators.gp.quick import Euclidean, Periodic, PowerOfQuadratic, quick

from .conftest import latent_model, pose

pytestmark = pytest.mark.usefixtures("x64_module")


def test_inverse_by_halves_equals_numpy():
    n = 2 * linalg.LEAF + 41  # halves of halves, of unequal sizes
    points = np.random.default_rng(0).uniform(0, 20, n)
    matrix = np.exp(-np.abs(points[:, None] - points)) + 0.1 * np.eye(n)
    found = jax.jit(linalg.inverse)(jnp.asarray(matrix))
    np.testing.assert_allclose(found, np.linalg.inv(matrix), atol=1e-11)


def test_value_and_gradient_hold_little_more_than_three_matrices():
    """By what XLA says that its program takes besides its arguments."""
    n = 1000
    data = {"X": np.linspace(0, 20, n), "y": np.zeros(n)}
    problem = pose(GPEvidence(), latent_model, data)
    step = jax.jit(jax.value_and_grad(lambda p: problem.loss(p, None, problem.data)[0]))
    found = step.lower(problem.params).compile().memory_analysis()
    assert (found.temp_size_in_bytes + found.output_size_in_bytes) / 8 / n**2 < 3.2


def test_factor_has_zeros_above_its_diagonal_and_a_matrix_without_one_is_nan():
    matrix = np.exp(-np.abs(np.subtract.outer(np.arange(5.0), np.arange(5.0))))
    np.testing.assert_allclose(linalg.jittered_cholesky(jnp.asarray(matrix))[0], np.linalg.cholesky(matrix), atol=1e-15)
    assert np.isnan(linalg.log_normal(-jnp.eye(4), jnp.ones(4)))


def test_kernel_matrix_in_blocks_equals_the_whole_and_so_do_its_derivatives():
    rng = np.random.default_rng(0)
    X = jnp.asarray(rng.normal(size=(397, 3)))  # a prime: the last block is filled up
    assert len(X) ** 2 > view.BLOCK
    weights = jnp.asarray(rng.normal(size=(397, 397)))

    def by(matrix):
        def total(lengths):
            return jnp.sum(weights * matrix(transforms.Linear(1 / lengths, kernels.ExpSquared()), X))

        lengths = jnp.array([[0.5, 1.0, 2.0], [1.0, 2.0, 0.5]])
        return jax.jit(jax.vmap(lambda x: (total(x), jax.grad(total)(x), jax.hessian(total)(x))))(lengths)

    for found, expected in zip(
        by(lambda kernel, X: view.gram(quick(kernel), X)), by(lambda kernel, X: kernel(X, X)), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("n", [1, 2, view.TILE, view.TILE + 1, 601])
def test_half_of_a_kernel_matrix_by_tiles_equals_the_lower_triangle_and_so_does_its_derivative(n):
    """With inputs of two arrays, as kernels of several outputs have; 601 rows are two blocks of tiles, the last of
    both filled up."""
    rng = np.random.default_rng(0)
    X = (jnp.asarray(rng.normal(size=(n, 3))), jnp.asarray(rng.integers(0, 2, n)))
    weights = jnp.asarray(np.tril(rng.normal(size=(n, n))))

    class OfPairs(kernels.Kernel):
        lengths: jax.Array

        def evaluate(self, X1, X2):
            inner = transforms.Linear(1 / self.lengths, kernels.ExpSquared())
            return inner.evaluate(X1[0], X2[0]) * jnp.where(X1[1] == X2[1], 1.0, 0.5)

    def by(matrix):
        def total(lengths):
            return jnp.sum(weights * jnp.tril(matrix(OfPairs(lengths), X)))

        return jax.jit(jax.value_and_grad(total))(jnp.array([0.5, 1.0, 2.0]))

    value, slope = by(view.lower_gram)
    expected, expected_slope = by(lambda kernel, X: kernel(X, X))
    np.testing.assert_allclose(value, expected, rtol=1e-10)
    np.testing.assert_allclose(slope, expected_slope, rtol=1e-10, atol=1e-12)


def test_log_normal_and_its_derivatives_read_the_lower_triangle_only():
    """Against SciPy, and JAX's own derivatives through its Cholesky factor: first and second, along symmetric ones."""
    rng = np.random.default_rng(0)
    n = 6
    root, residual = rng.normal(size=(n, n)), jnp.asarray(rng.normal(size=n))
    matrix, direction = jnp.asarray(root @ root.T + np.eye(n)), jnp.asarray(root + root.T)
    lower = lambda m: jnp.tril(m) + 7 * jnp.triu(jnp.ones((n, n)), 1)  # noqa: E731

    def plain(t):
        factor = jnp.linalg.cholesky(matrix + t * direction)
        white = jax.scipy.linalg.solve_triangular(factor, residual, lower=True)
        return -0.5 * white @ white - jnp.sum(jnp.log(jnp.diagonal(factor))) - 0.5 * n * jnp.log(2 * jnp.pi)

    def ours(t):
        return linalg.log_normal(lower(matrix + t * direction), residual)

    assert ours(0.0) == pytest.approx(stats.multivariate_normal(np.zeros(n), matrix).logpdf(residual), rel=1e-12)
    slopes = lambda f: jax.jit(jax.jvp, static_argnums=0)(jax.grad(f), (0.0,), (1.0,))  # noqa: E731
    np.testing.assert_allclose(slopes(ours), slopes(plain), rtol=1e-10)


def test_quick_distance_has_the_derivatives_of_tinygp_also_where_inputs_coincide():
    X = jnp.array([[0.0, 1.0], [0.0, 1.0], [2.0, -1.0]])
    plain = 1.5 * kernels.Matern32(distance=kernels.distance.L2Distance()) + kernels.Exp(2.0)
    swapped = quick(plain)
    assert isinstance(swapped.kernel1.kernel2.distance, Euclidean)
    assert type(swapped.kernel2.distance) is type(plain.kernel2.distance)  # the sum of absolute values stays
    slopes = [jax.jacobian(lambda x, k=k: k(x, x))(X) for k in (plain, swapped)]
    np.testing.assert_allclose(slopes[1], slopes[0], atol=1e-14)


@pytest.mark.parametrize("matrix", [view.gram, view.lower_gram])
def test_kernels_of_ones_own_that_hold_hyper_parameters_have_derivatives(matrix):
    """A function in place of a class, in more than one block; the hyper-parameter is none of the kernel's fields."""
    n = 601
    X = jnp.asarray(np.random.default_rng(0).uniform(0, 20, n))
    weights = jnp.asarray(np.tril(np.random.default_rng(1).normal(size=(n, n))))

    def by(build):
        def total(length):
            return jnp.sum(weights * matrix(build(length), X))

        return jax.jit(jax.vmap(lambda x: (total(x), jax.grad(total)(x), jax.hessian(total)(x))))(jnp.array([0.5, 2.0]))

    own = by(lambda length: kernels.Custom(lambda a, b: jnp.exp(-jnp.abs(a - b) / length)))
    for found, expected in zip(own, by(lambda length: kernels.Exp(length)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("kind", "build"),
    [
        (PowerOfQuadratic, lambda a, b: kernels.RationalQuadratic(a, kernels.distance.L2Distance(), alpha=b)),
        (Periodic, lambda a, b: kernels.ExpSineSquared(a, gamma=b)),
    ],
)
def test_quick_kernels_equal_those_of_tinygp_and_so_do_their_derivatives(kind, build):
    """Also where inputs coincide, and where they are a whole and a half period apart."""
    rows = np.random.default_rng(0).normal(size=(8, 2)) * np.array([1.0, 30.0])
    rows[1:5] = [[0.5, 0.5], [0.5, 0.5], [1.2, 0.5], [0.85, 0.5]]  # the period is 0.7

    def total(change):
        def of(theta):
            kernel = change(theta[2] * build(theta[0], theta[1]) + kernels.Constant(1.0))
            return jnp.sum(kernel(jnp.asarray(rows), jnp.asarray(rows)) ** 2)

        theta = jnp.array([0.7, 1.3, 2.0])
        return of(theta), jax.grad(of)(theta), jax.hessian(of)(theta)

    assert type(quick(build(0.7, 1.3))) is kind
    for found, expected in zip(total(quick), total(lambda kernel: kernel), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-11)


def test_factor_that_needs_jitter_and_its_derivative_equal_jax_on_the_jittered_matrix():
    rng = np.random.default_rng(0)
    points = np.sort(rng.uniform(0, 10, 30))
    matrix = jnp.asarray(np.exp(-0.5 * (points[:, None] - points) ** 2 / 4.0))  # singular in double precision
    jitter = linalg.jittered_cholesky(matrix)[1]
    assert jitter > 0
    weights, direction = jnp.asarray(rng.normal(size=(2, 30, 30)))
    direction = direction + direction.T

    def along(factor):
        return jax.jvp(factor, (matrix,), (direction,))

    for found, expected in zip(
        along(linalg.cholesky), along(lambda m: jnp.linalg.cholesky(linalg.add_diagonal(m, jitter))), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8 * jnp.max(jnp.abs(expected)))
    found, expected = (
        jax.grad(lambda m, f=factor: jnp.sum(weights * f(m)))(matrix)
        for factor in (linalg.cholesky, lambda m: jnp.linalg.cholesky(linalg.add_diagonal(m, jitter)))
    )
    symmetric = lambda m: (m + m.T) / 2  # noqa: E731  the matrix is symmetric: only this part is defined
    np.testing.assert_allclose(symmetric(found), symmetric(expected), atol=1e-6 * jnp.max(jnp.abs(expected)))
