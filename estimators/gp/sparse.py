"""Sparse regression with inducing inputs: Titsias' collapsed bound, and FITC."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.linalg import solve_triangular

from ..base import Data, Estimator, Params
from ..checks import check_counts
from . import calibration, inducing, linalg, view
from .evidence import RegressionProblem, without
from .posterior import FunctionPosterior, Inducing
from .problem import at_once, with_own
from .view import gram

METHODS = ("titsias", "fitc")
NAME = "inducing_inputs"
MOST_ELEMENTS = 1e8
"""Of the matrix between inputs and inducing ones, up to which `diagnose` looks at all rows."""


@dataclass(frozen=True)
class SparseGP(Estimator):
    """Regression through M inducing inputs in O(n M²) time.

    "titsias" is a lower bound of the log marginal likelihood, log N(y | m, Q + σ²I) − tr(K − Q)/(2σ²) with
    Q = K_XZ K_ZZ⁻¹ K_ZX (Variational Learning of Inducing Variables in Sparse Gaussian Processes); "fitc" is the
    marginal likelihood of another model, with Q plus the diagonal of K − Q (Sparse Gaussian Processes using
    Pseudo-inputs), no bound and too sure of itself where noise is heteroscedastic by nature.

    Args:
        num_inducing: M. Inputs start at rows chosen greedily by conditional variance.
        method: "titsias" or "fitc".
        optimise_inducing: whether the inputs are parameters (``inducing_inputs``) or stay where they start. Fixed, the
            hyper-parameters have standard errors.
    """

    num_inducing: int = 50
    method: str = "titsias"
    optimise_inducing: bool = True
    needs_guide = False
    exact = True

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        check_counts(num_inducing=self.num_inducing)

    def problem(self, rng_key: Array, model: Callable, guide: Callable | None, data: Data) -> SparseProblem:
        problem = SparseProblem.create(self, rng_key, model, data, inputs=None)
        inputs = initial_inputs(problem, self.num_inducing, type(self).__name__)
        if self.optimise_inducing:
            return with_own(problem, **{NAME: inputs})
        return eqx.tree_at(lambda p: p.inputs, problem, inputs, is_leaf=lambda x: x is None)


@eqx.filter_jit
def _inputs(problem: RegressionProblem) -> Any:
    return problem.hyper.regression(problem.params, problem.data).X


@eqx.filter_jit
def _greedy(problem: RegressionProblem, num: int) -> Array:
    """Rows to start from. The kernel stays inside: it may close over hyper-parameters."""
    r = problem.hyper.regression(problem.params, problem.data)
    return r.X[inducing.greedy(r.kernel, r.X, num)]


def initial_inputs(problem: RegressionProblem, num: int, name: str) -> Array:
    inducing.check(_inputs(problem), num, name)
    return _greedy(problem, num)


class Collapsed(NamedTuple):
    """Factors of the regression on inducing inputs; `scaled` is L⁻¹ K_ZX S^{-½}."""

    factor: Array
    """L with K_ZZ = L Lᵀ."""
    scaled: Array
    inner: Array
    """Factor of B = I + scaled scaledᵀ."""
    projected: Array
    """inner⁻¹ scaled S^{-½} r, ``(M,)``."""
    noise: Array
    left_out: Array
    """Diagonal of K − Q, ``(n,)``."""


def collapse(r: view.Regression, Z: Array, fitc: bool) -> Collapsed:
    factor = linalg.cholesky(gram(r.kernel, Z))
    white = solve_triangular(factor, gram(r.kernel, Z, r.X), lower=True)
    left_out = r.kernel(r.X) - jnp.sum(white**2, 0)
    noise = r.noise + jnp.maximum(left_out, 0.0) if fitc else r.noise
    scaled = white / jnp.sqrt(noise)
    inner = jnp.linalg.cholesky(jnp.eye(len(Z), dtype=scaled.dtype) + scaled @ scaled.T)
    projected = solve_triangular(inner, scaled @ (r.residual / jnp.sqrt(noise)), lower=True)
    return Collapsed(factor, scaled, inner, projected, noise, left_out)


class SparseProblem(RegressionProblem):
    """−bound − log prior."""

    inputs: Array | None = None
    """Where they are not parameters."""

    @property
    def has_curvature(self) -> bool:
        return not self.options.optimise_inducing

    @property
    def batch(self) -> int:
        return at_once(3e7 // (self.num_units * self.options.num_inducing))

    def Z(self, params: Params) -> Array:
        return params[NAME] if self.inputs is None else self.inputs

    def objective(self, params: Params, data: Data) -> Array:
        r = self.hyper.regression(params, data)
        fitc = self.options.method == "fitc"
        c = collapse(r, self.Z(params), fitc)
        log_det = jnp.sum(jnp.log(c.noise)) + 2 * jnp.sum(jnp.log(jnp.diagonal(c.inner)))
        square = jnp.sum(r.residual**2 / c.noise) - jnp.sum(c.projected**2)
        value = -0.5 * (square + log_det + len(r.y) * linalg.LOG_2PI)
        return value if fitc else value - 0.5 * jnp.sum(c.left_out / r.noise)

    def function(self, params: Params) -> FunctionPosterior:
        r = self.hyper.regression(params, self.data)
        Z = self.Z(params)
        c = collapse(r, Z, self.options.method == "fitc")
        root = solve_triangular(c.inner, jnp.eye(len(Z), dtype=c.inner.dtype), lower=True).T
        return Inducing(r.kernel, Z, c.factor, root @ c.projected, root)

    def sampler(self, params: Params) -> Any:
        r = self.hyper.regression(params, self.data)
        return inducing.sampler(self.function(params), r.X, self.prior_mean(params))  # type: ignore[arg-type]

    def draw(self, state: Any, params: Params, rng_key: Array) -> tuple[dict[str, Array], Array]:
        f, log_ratio = inducing.draw(state, rng_key)
        return {self.function_name: f}, log_ratio + self.log_target(params, {self.site: f})

    def residuals(self, params: Params) -> tuple[Array, Array]:
        """Leave-one-out, inducing inputs and hyper-parameters as they are, ``(n,)`` each."""
        r = self.hyper.regression(params, self.data)
        c = collapse(r, self.Z(params), self.options.method == "fitc")
        seen = solve_triangular(c.inner, c.scaled, lower=True)
        # of the part of f that goes through the inducing values
        mean, variance = without(
            c.projected @ seen * jnp.sqrt(c.noise), jnp.sum(seen**2, 0) * c.noise, r.residual, c.noise
        )
        return r.residual - mean, variance + jnp.maximum(c.left_out, 0.0) + r.noise

    def remarks(self, params: Params) -> list[str]:
        if self.num_units * self.options.num_inducing > MOST_ELEMENTS:
            return []
        gap, residual, variance = (np.asarray(v) for v in _remarks(self, params))
        lines = ["left out one by one: " + calibration.of_moments(residual, variance)]
        if self.options.method == "titsias":
            lines.append(
                f"the bound gives up {gap:.2f} nats to the variance that {self.options.num_inducing} inducing inputs "
                "leave unexplained" + (": more of them would tighten it" if gap > 1 else "")
            )
        return lines


@eqx.filter_jit
def _remarks(problem: SparseProblem, params: Params) -> tuple[Array, Array, Array]:
    """What Titsias' bound gives up, and leave-one-out residuals and variances."""
    r = problem.hyper.regression(params, problem.data)
    gap = 0.5 * jnp.sum(collapse(r, problem.Z(params), False).left_out / r.noise)
    return gap, *problem.residuals(params)
