"""Exact inference for many rows without an n × n matrix: Lanczos iterations, preconditioned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax, random
from jax.custom_batching import custom_vmap
from jax.scipy.linalg import solve_triangular
from matfree import decomp

from .. import blocks
from ..base import Data, Estimator, Metrics, Params
from ..checks import check_counts
from . import calibration, inducing, linalg, view
from .evidence import MOST_ROWS, RegressionProblem
from .posterior import FunctionPosterior
from .view import Regression, gram

BLOCK = 2**24
"""Elements of the kernel matrix that are held at once."""


@dataclass(frozen=True)
class IterativeGP(Estimator):
    """Marginal likelihood of a Gaussian process with Gaussian noise for 10⁴ to 10⁶ rows, in O(n) memory.

    Solves and the log-determinant come from Lanczos iterations with blocks of the kernel matrix computed as they are
    needed, preconditioned by a pivoted Cholesky factor; the log-determinant and its gradient are unbiased up to the
    length of the iteration, by random probes (GPyTorch: Blackbox Matrix-Matrix Gaussian Process Inference with GPU
    Acceleration; Exact Gaussian Processes on a Million Data Points). The loss is stochastic: its metric ``stderr`` is
    its standard error from the probes, ``residual`` the relative error of the worst solve. Take some 50 to 100 steps
    with ``learning_rate=0.1``, in single precision unless the session is in double.

    Args:
        num_probes: random vectors a step.
        num_iterations: Lanczos iterations; more where ``residual`` is not small.
        rank: of the preconditioner.
        variance_rank: predictive variances are those given that many linear combinations of the observations: never
            below
            the exact ones, and close to them once the rank is. Predictive means are exact.
    """

    num_probes: int = 8
    num_iterations: int = 32
    rank: int = 64
    variance_rank: int = 256
    needs_guide = False

    def __post_init__(self) -> None:
        names = ("num_probes", "num_iterations", "rank", "variance_rank")
        check_counts(**{name: getattr(self, name) for name in names})

    def problem(self, rng_key: Array, model: Callable, guide: Callable | None, data: Data) -> IterativeProblem:
        return IterativeProblem.create(self, rng_key, model, data)


class Preconditioner(NamedTuple):
    """P^{-½} of P = I + G Gᵀ, where S^{-½} K S^{-½} ≈ G Gᵀ and S is the noise."""

    basis: Array
    """Orthonormal, ``(n, r)``."""
    gain: Array
    """(1 + s²)^{-½} − 1 of the singular values s of G, ``(r,)``."""

    def __call__(self, v: Array) -> Array:
        return v + self.basis @ (self.gain * (self.basis.T @ v))

    @property
    def log_det(self) -> Array:
        """log |P|."""
        return -2 * jnp.sum(jnp.log1p(self.gain))


def precondition(kernel: Any, X: Any, noise: Array, rank: int) -> Preconditioner:
    columns = inducing.pivoted_cholesky(kernel, X, rank)[1] / jnp.sqrt(noise)
    # not from the eigenvectors of C Cᵀ: they lose half of the digits, and single precision has none to spare
    basis, triangular = jnp.linalg.qr(columns.T)
    vectors, values, _ = jnp.linalg.svd(triangular)
    return Preconditioner(basis @ vectors, 1 / jnp.sqrt(1 + values**2) - 1)


def rows_at_once(count: int, n: int) -> int:
    """Of a kernel matrix ``(count, n)``, in equal blocks of at most `BLOCK` elements."""
    return blocks.size_of(count, BLOCK // n)


def matmul(kernel: Any, X: Any, v: Array) -> Array:
    """K v block by block; ``(n,)`` or ``(n, c)``."""
    return blocks.apply(lambda x: _product(kernel(x, X), v), X, rows_at_once(len(v), len(v)))


@custom_vmap
def _product(rows: Array, v: Array) -> Array:
    return rows @ v


@_product.def_vmap
def _product_with_many(count: int, batched: list, rows: Array, v: Array) -> tuple[Array, bool]:
    """Vectors become columns: a product with a matrix of rows takes twice as long under jax 0.9."""
    if batched[0]:
        return jax.vmap(jnp.matmul, (0, 0 if batched[1] else None))(rows, v), True
    moved = jnp.moveaxis(v, 0, -1)
    columns = lax.optimization_barrier(moved.reshape(len(moved), -1))  # or the product takes the rows after all
    return jnp.moveaxis((rows @ columns).reshape(len(rows), *moved.shape[1:]), -1, 0), True


def bilinear(kernel: Any, X: Any, left: Array, right: Array) -> Array:
    """Σ_c left_cᵀ K right_c for ``(n, c)`` arrays, differentiable in the kernel, one block at a time in both passes."""
    n = len(left)
    size = rows_at_once(n, n)
    lefts = blocks.split(left, size)
    real = (jnp.arange(lefts.shape[0] * lefts.shape[1]) < n).reshape(*lefts.shape[:2], 1)
    lefts = jnp.where(real, lefts, 0.0)

    def one(args: tuple) -> Array:
        x, part = args
        return jnp.sum(part * (kernel(x, X) @ right))

    return jnp.sum(lax.map(jax.checkpoint(one), (blocks.split(X, size), lefts)))


class Estimate(NamedTuple):
    """Log marginal likelihood by iteration, and the vectors that its gradient needs."""

    value: Array
    stderr: Array
    residual: Array
    """Of the worst solve, relative."""
    least: Array
    """Smallest Ritz value of any weight: not above zero, the covariance is not positive definite."""
    log_det: Array
    log_det_stderr: Array
    alpha: Array
    """(K + S)⁻¹ r, ``(n,)``."""
    probes: Array
    """S^{-½} P^{-½} ε, ``(n, probes)``."""
    solved: Array
    """(K + S)⁻¹ of P̃^{½} ε, ``(n, probes)``."""


def estimate(r: Regression, options: IterativeGP, rng_key: Array) -> Estimate:
    """One Lanczos run for each probe and one for the residuals gives quadratic forms of the logarithm and solves
    alike."""
    n = len(r.y)
    steps = min(options.num_iterations, n)
    root = jnp.sqrt(r.noise)
    P = precondition(r.kernel, r.X, r.noise, min(options.rank, n))

    def operator(v: Array) -> Array:
        white = P(v)
        return P(white + matmul(r.kernel, r.X, white / root) / root)

    lanczos = decomp.tridiag_sym(steps, reortho="full")

    def run(v: Array) -> tuple[Array, Array, Array, Array]:
        """vᵀ log(A) v, A⁻¹ v, the relative residual of the latter, and the smallest Ritz value."""
        found = lanczos(operator, v)
        basis, tridiagonal = found.Q_tall, found.J_small  # rows are the Lanczos vectors
        length = jnp.linalg.norm(v)
        values, vectors = jnp.linalg.eigh(tridiagonal)
        first = vectors[0]
        form = length**2 * jnp.sum(first**2 * jnp.log(jnp.maximum(values, 1e-10)))
        inner = vectors @ (first / values)
        solution = length * inner @ basis
        # beyond an exhausted Krylov space the rest is rounding, of no weight
        least = jnp.min(jnp.where(first**2 > jnp.finfo(v.dtype).eps ** 0.5, values, jnp.inf))
        return form, solution, jnp.linalg.norm(found.residual) * jnp.abs(inner[-1]), least

    probes = random.rademacher(rng_key, (options.num_probes, n), r.y.dtype)
    right = P(r.residual / root)
    forms, solutions, residuals, least = jax.vmap(run)(jnp.concatenate([right[None], probes]))
    back = lambda v: P(v) / root  # noqa: E731
    log_det = P.log_det + jnp.sum(jnp.log(r.noise)) + jnp.mean(forms[1:])
    spread = jnp.std(forms[1:], ddof=1) if options.num_probes > 1 else jnp.asarray(jnp.nan)
    stderr = spread / jnp.sqrt(options.num_probes)
    value = -0.5 * (right @ solutions[0] + log_det + n * linalg.LOG_2PI)
    return Estimate(
        value, 0.5 * stderr, jnp.max(residuals), jnp.min(least), log_det, stderr, back(solutions[0]),
        jax.vmap(back)(probes).T, jax.vmap(back)(solutions[1:]).T,
    )  # fmt: skip


class IterativeProblem(RegressionProblem):
    """−log marginal likelihood − log prior, estimated."""

    @property
    def deterministic(self) -> bool:
        return False

    def loss(self, params: Params, rng_key: Array, data: Data) -> tuple[Array, Metrics]:
        r = self.hyper.regression(params, data)
        e = lax.stop_gradient(estimate(lax.stop_gradient(r), self.options, rng_key))
        count = e.probes.shape[1]
        left = jnp.concatenate([e.alpha[:, None], e.solved], 1)
        right = jnp.concatenate([e.alpha[:, None], -e.probes / count], 1)
        # its derivative is that of the log-likelihood: ½ αᵀdKα − ½ tr(K⁻¹dK) − αᵀdr
        form = 0.5 * (bilinear(r.kernel, r.X, left, right) + jnp.sum(jnp.sum(left * right, 1) * r.noise))
        form = form - e.alpha @ r.residual
        value = e.value + form - lax.stop_gradient(form)
        return -(value + self.hyper.log_prior(params, data)), {"stderr": e.stderr, "residual": e.residual}

    def objective(self, params: Params, data: Data) -> Array:
        """By the probes of one key."""
        return estimate(self.hyper.regression(params, data), self.options, random.key(0)).value

    def function(self, params: Params) -> FunctionPosterior:
        return self.projected(self.hyper.regression(params, self.data))[0]

    def projected(self, r: Regression) -> tuple[Projected, Estimate]:
        columns = inducing.pivoted_cholesky(r.kernel, r.X, min(self.options.variance_rank, len(r.y)))[1]
        basis = jnp.linalg.qr(columns.T / r.noise[:, None])[0]
        seen = basis.T @ (matmul(r.kernel, r.X, basis) + r.noise[:, None] * basis)
        e = estimate(r, self.options, random.key(0))
        return Projected(r.kernel, r.X, e.alpha, basis, linalg.jittered_cholesky((seen + seen.T) / 2)[0]), e

    def faults(self, params: Params) -> list[str]:
        return self.report(params)[0]

    def remarks(self, params: Params) -> list[str]:
        return self.report(params)[1]

    def report(self, params: Params) -> tuple[list[str], list[str]]:
        """Faults: a precision that cannot invert the covariance, or solves further off than zero would be. One run of
        the solves serves both."""
        few = self.num_units <= MOST_ROWS
        found = [np.asarray(v) for v in _final(self, params, few)]
        value, stderr, residual, least = (float(v) for v in found[:4])
        faults = self.bad_noise(params) or self.imprecise(params)
        if not faults and (not least > 0 or np.isnan(residual)):
            faults.append(view.NOT_POSITIVE)
        if not faults and not residual <= 1:
            faults.append(
                f"solves have failed (relative residual {residual:.1e}), so the log marginal likelihood is wrong by "
                f"more than its standard error: raise num_iterations={self.options.num_iterations} or rank="
                f"{self.options.rank}"
            )
        lines = [
            f"log marginal likelihood {value:.3f} ± {stderr:.3f} (standard error of {self.options.num_probes} probes), "
            f"worst relative residual {residual:.1e}"
        ]
        if 0.01 < residual <= 1:
            lines.append("solves have not converged: raise num_iterations or rank")
        if few and not faults:
            lines.append("the data themselves: " + calibration.of_moments(*found[4:]))
        return faults, lines

    def posterior(self, params: Params) -> None:
        return None


@eqx.filter_jit
def _final(problem: IterativeProblem, params: Params, few: bool) -> tuple[Array, ...]:
    """Value, standard error, residual and smallest Ritz value; where there are few rows also what the data differ from
    their predictions, and the variances of these."""
    r = problem.hyper.regression(params, problem.data)
    if not few:
        e = estimate(r, problem.options, random.key(0))
        return e.value, e.stderr, e.residual, e.least
    posterior, e = problem.projected(r)
    mean, variance = posterior.marginals(r.X)
    return e.value, e.stderr, e.residual, e.least, r.residual - mean, variance + r.noise


class Projected(FunctionPosterior):
    """The exact mean, and the variance given combinations Wᵀy of the observations only."""

    kernel: Any
    X: Any
    alpha: Array
    basis: Array
    """W, orthonormal, ``(n, r)``."""
    factor: Array
    """Of the covariance of Wᵀy, ``(r, r)``."""

    def marginals(self, X: Any) -> tuple[Array, Array]:

        def one(x: Any) -> tuple[Array, Array]:
            cross = self.kernel(x, self.X)
            white = solve_triangular(self.factor, (cross @ self.basis).T, lower=True)
            return cross @ self.alpha, jnp.maximum(self.kernel(x) - jnp.sum(white**2, 0), 0.0)

        return blocks.apply(one, X, rows_at_once(view.num_rows(X), len(self.alpha)))

    def joint(self, X: Any) -> tuple[Array, Array]:
        cross = gram(self.kernel, X, self.X)
        white = solve_triangular(self.factor, (cross @ self.basis).T, lower=True)
        return cross @ self.alpha, gram(self.kernel, X) - white.T @ white
