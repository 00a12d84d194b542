"""CVTGP: a posterior that is the prior conditioned on a few weighted pseudo-observations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax import Array, lax, random
from jax.scipy.linalg import solve_triangular

from ..base import Data, Estimator, Metrics, Params
from ..checks import check_counts
from . import calibration, inducing, linalg, nonconjugate, precision, rows, view
from .nonconjugate import Sites, site_normaliser
from .posterior import FunctionPosterior
from .problem import Moments, ProcessProblem, at_once, with_own
from .quadrature import expected, tilted
from .view import gram

INPUTS, TARGETS, LOG_PRECISION = "coreset_inputs", "coreset_targets", "coreset_log_precision"


@dataclass(frozen=True)
class CoresetGP(Estimator):
    """Variational inference with q(f) ∝ p(f) Π_m N(ỹ_m | f(z_m), σ²)^β_m over M pseudo-observations (a coreset).

    Minimises −Σ_i E_q log p(y_i | f_i) + KL(q ‖ p) − log prior over z, ỹ and the precisions β/σ²: O(M) variational
    parameters and O(M³) time where `SVGP` has O(M²) parameters (A Coreset-based, Tempered Variational Posterior for
    Accurate and Scalable Stochastic Gaussian Process Inference). With M = n and Gaussian noise the optimum is exact.

    Args:
        num_points: M, pseudo-observations; they start at rows chosen greedily by conditional variance.
        batch_size: rows a step; None takes all, and the loss is then exact and solved by L-BFGS in double precision.
    """

    num_points: int = 50
    batch_size: int | None = None
    needs_guide = False

    @property
    def exact(self) -> bool:  # type: ignore[override]
        return self.batch_size is None

    def __post_init__(self) -> None:
        check_counts(num_points=self.num_points)

    def problem(self, rng_key: Array, model: Callable, guide: Callable | None, data: Data) -> CoresetProblem:
        name = type(self).__name__
        hyper = view.create(self, rng_key, model, dict(data))
        view.check_rows(hyper, name, dict(data))
        problem = CoresetProblem(options=self, hyper=hyper, params=hyper.rest.params, data=dict(data))
        X = _inputs(problem)
        inducing.check(X, self.num_points, name, "num_points")
        rows.check_batch(self.batch_size, data, rows.row_keys(data, X.shape[0]), X.shape[0])
        index, targets, precisions = _first_sites(problem, self.num_points)
        return with_own(problem, **{INPUTS: X[index], TARGETS: targets, LOG_PRECISION: jnp.log(precisions)})


@eqx.filter_jit
def _inputs(problem: CoresetProblem) -> Any:
    return problem.hyper.read(problem.params, problem.data).latent[problem.site].X


@eqx.filter_jit
def _first_sites(problem: CoresetProblem, num: int) -> tuple[Array, Array, Array]:
    """Rows to start from, with the targets and precisions that they would have alone, each standing for n/M of them."""
    log_lik, process = problem.likelihood(problem.params, problem.data)
    index = inducing.greedy(process.kernel, process.X, num)  # the kernel stays inside: it may close over a site
    prior = process.kernel(process.X) + process.noise
    _, mean, variance = tilted(log_lik, jnp.zeros_like(prior), prior)
    precisions = jnp.maximum(1 / variance - 1 / prior, 1e-3 / prior)
    targets = mean / variance / precisions
    return index, targets[index], (precisions * (len(prior) / len(index)))[index]


class Pseudo(FunctionPosterior):
    """The prior conditioned on pseudo-observations, by a square root of A = (K + T⁻¹)⁻¹: sums of squares only, which
    single precision bears."""

    kernel: Any
    X: Array
    white: Array
    """W with Wᵀ W = A, ``(M, M)``."""
    targets: Array
    """W ỹ, ``(M,)``."""

    def marginals(self, X: Any) -> tuple[Array, Array]:
        part = self.white @ gram(self.kernel, self.X, X)
        return part.T @ self.targets, jnp.maximum(self.kernel(X) - jnp.sum(part**2, 0), 0.0)

    def joint(self, X: Any) -> tuple[Array, Array]:
        part = self.white @ gram(self.kernel, self.X, X)
        return part.T @ self.targets, gram(self.kernel, X) - part.T @ part


class CoresetProblem(nonconjugate.SitesProblem):
    """−ELBO − log prior."""

    @property
    def deterministic(self) -> bool:
        return self.options.exact

    @property
    def solver(self) -> str:
        return "lbfgs"

    @property
    def has_curvature(self) -> bool:
        return False

    @property
    def batch(self) -> int:
        return at_once(1e7 // (self.num_units * self.options.num_points))

    @property
    def factorised(self) -> int:
        return self.options.num_points

    def finish(self, params: Params) -> CoresetProblem:
        return self

    def likelihood(self, params: Params, data: Data) -> tuple[Callable[[Array], Array], view.Process]:
        process = self.hyper.read(params, data).latent[self.site]
        return lambda f: self.hyper.read(params, data, {self.site: process.mean + f}).log_prob, process

    def coreset(self, params: Params, kernel: Any) -> tuple[Array, Sites]:
        """Prior covariance of the pseudo-observations' functions, and their sites."""
        precisions = jnp.exp(params[LOG_PRECISION])
        K = gram(kernel, params[INPUTS])
        K = linalg.add_diagonal(K, lax.stop_gradient(linalg.jittered_cholesky(lax.stop_gradient(K))[1]))
        return K, Sites(precisions, precisions * params[TARGETS])

    def elbo(self, params: Params, data: Data, scale: Any) -> Array:
        log_lik, process = self.likelihood(params, data)
        posterior, divergence = self.conditioned(params, process.kernel)
        mean, variance = posterior.marginals(process.X)
        # not at zero variance: the derivative of its root is not finite there
        return scale * jnp.sum(expected(log_lik, mean, jnp.maximum(variance, 1e-12))) - divergence

    def objective(self, params: Params, data: Data) -> Array:
        return self.elbo(params, data, 1.0)

    def loss(self, params: Params, rng_key: Array, data: Data) -> tuple[Array, Metrics]:
        n = self.num_units
        if self.options.batch_size is not None and self.options.batch_size < n:
            index = rows.batch(rng_key, n, self.options.batch_size)
            data = rows.take(data, rows.row_keys(data, n), index)
        value = self.elbo(params, data, n / min(self.options.batch_size or n, n))
        return -(value + self.hyper.log_prior(params, data)), {}

    def conditioned(self, params: Params, kernel: Any) -> tuple[Pseudo, Array]:
        """The posterior, and KL(q ‖ p) = ½ (log |B| − tr(A K) + αᵀ K α), A = (K + T⁻¹)⁻¹ = √T B⁻¹ √T, α = A ỹ.

        By B = I + √T K √T with the precisions T: from the covariance of q, A is a difference of large numbers.
        """
        K, sites = self.coreset(params, kernel)
        root = jnp.sqrt(sites.precision)
        factor = jnp.linalg.cholesky(linalg.add_diagonal(root[:, None] * K * root, jnp.ones_like(root)))
        white = solve_triangular(factor, jnp.diag(root), lower=True)
        targets = white @ params[TARGETS]
        alpha = white.T @ targets
        log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(factor)))
        divergence = 0.5 * (log_det - jnp.sum((white @ K) * white) + alpha @ K @ alpha)
        return Pseudo(kernel, params[INPUTS], white, targets), divergence

    def moments_for_check(self, params: Params) -> Moments:
        """Given all rows: those are not the sites here."""
        return ProcessProblem.moments_for_check(self, params)

    def functions(self, params: Params) -> dict[str, FunctionPosterior]:
        return {self.site: self.conditioned(params, _kernel_of(self, params))[0]}

    def faults(self, params: Params) -> list[str]:
        condition, noise = _condition(self, params)
        cause = f"for the least noise variance of a pseudo-observation is {float(noise):.1e}"
        return self.bad_noise(params) + precision.complaint(float(condition), noise.dtype, cause)

    def remarks(self, params: Params) -> list[str]:
        lines = rows.remark(self.options.batch_size, self.num_units)
        if self.num_units > rows.MOST_CHECKED:
            return lines
        return [*lines, "the data themselves: " + calibration.of_draws(self, params)]

    def sampler(self, params: Params) -> Any:
        process = self.hyper.read(params, self.data).latent[self.site]
        posterior = self.conditioned(params, process.kernel)[0]
        K, sites = self.coreset(params, process.kernel)
        mean, covariance = posterior.joint(jnp.concatenate([process.X, posterior.X]))
        return nonconjugate.Draws(process.mean, mean, linalg.root(covariance), sites, site_normaliser(K, sites))

    def draw(self, state: Any, params: Params, rng_key: Array) -> tuple[dict[str, Array], Array]:
        both = state.mean + state.root @ random.normal(rng_key, state.mean.shape)
        f, at_coreset = both[: len(state.prior)], both[len(state.prior) :]
        functions = {self.site: state.prior + f}
        log_sites = jnp.sum(state.sites.shift * at_coreset - 0.5 * state.sites.precision * at_coreset**2)
        return functions, self.log_target(params, functions) - log_sites + state.normaliser


@eqx.filter_jit
def _condition(problem: CoresetProblem, params: Params) -> tuple[Array, Array]:
    """Bound of the condition number, and the least noise variance."""
    noise = jnp.exp(-params[LOG_PRECISION])
    return precision.condition(_kernel_of(problem, params), params[INPUTS], noise), jnp.min(noise)


def _kernel_of(problem: CoresetProblem, params: Params) -> Any:
    return problem.hyper.read(params, problem.data).latent[problem.site].kernel
