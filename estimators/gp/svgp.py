"""SVGP: a free Gaussian at inducing inputs, minibatches, natural gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import solve_triangular

from ..base import Data, Estimator, Metrics, Params
from ..checks import check_counts
from . import calibration, inducing, linalg, precision, rows, view
from .posterior import FunctionPosterior, Inducing
from .problem import ProcessProblem, with_own
from .quadrature import NODES, hermite
from .view import gram


@dataclass(frozen=True)
class SVGP(Estimator):
    """Stochastic variational inference for Gaussian processes with any factorising likelihood.

    Minimises −(n/B) Σ_batch E_q log p(y_i | f_i) + Σ KL(q(u) ‖ p(u)) − log prior. q(u) = N(L m, L S Lᵀ) is whitened by
    K_ZZ = L Lᵀ, one for each latent process (up to three, independent in q); m and S take natural-gradient steps
    (Scalable Variational Gaussian Process Classification; Natural Gradients in Practice), hyper-parameters and inducing
    inputs those of the optimiser of `fit`. With Gaussian noise, all rows and natural_step=1 q is optimal after one
    step.

    Args:
        num_inducing: M a process. Inputs start at rows chosen greedily by conditional variance.
        batch_size: rows a step; None, or more than there are, takes all.
        natural_step: length of the natural-gradient steps, in (0, 1].
        optimise_inducing: whether the inducing inputs move.
    """

    num_inducing: int = 100
    batch_size: int | None = 256
    natural_step: float = 0.1
    optimise_inducing: bool = True
    needs_guide = False

    def __post_init__(self) -> None:
        check_counts(num_inducing=self.num_inducing)
        if not 0 < self.natural_step <= 1:
            raise ValueError(f"natural_step must lie in (0, 1], got {self.natural_step!r}")

    def problem(self, rng_key: Array, model: Callable, guide: Callable | None, data: Data) -> SVGPProblem:
        name = type(self).__name__
        hyper = view.create(self, rng_key, model, dict(data))
        view.check_rows(hyper, name, dict(data), max(NODES))
        problem = SVGPProblem(options=self, hyper=hyper, params=hyper.rest.params, data=dict(data))
        everywhere = _inputs(problem)
        keys = rows.row_keys(data, problem.num_units)
        rows.check_batch(self.batch_size, data, keys, problem.num_units)
        for X in everywhere.values():
            inducing.check(X, self.num_inducing, name)
        inputs = _greedy(problem, self.num_inducing)
        zeros = jnp.zeros(self.num_inducing, next(iter(inputs.values())).dtype)
        eye = jnp.eye(self.num_inducing, dtype=zeros.dtype)
        problem = replace(problem, memory={s: Natural(zeros, eye, eye) for s in inputs})
        if self.optimise_inducing:
            return with_own(problem, **{_inputs_name(s): Z for s, Z in inputs.items()})
        return replace(problem, inputs=inputs)


@eqx.filter_jit
def _inputs(problem: SVGPProblem) -> dict[str, Any]:
    return {site: p.X for site, p in problem.hyper.read(problem.params, problem.data).latent.items()}


@eqx.filter_jit
def _greedy(problem: SVGPProblem, num: int) -> dict[str, Array]:
    """Rows of each process to start from. Kernels stay inside: one may close over hyper-parameters."""
    latent = problem.hyper.read(problem.params, problem.data).latent
    return {site: p.X[inducing.greedy(p.kernel, p.X, num)] for site, p in latent.items()}


def _inputs_name(site: str) -> str:
    return f"{site}_inducing_inputs"


class Natural(NamedTuple):
    """Natural parameters of a whitened q(v) = N(m, S), and the root that they are read by: factorised once a step."""

    shift: Array
    """S⁻¹ m, ``(M,)``."""
    precision: Array
    """S⁻¹, ``(M, M)``."""
    root: Array
    """R with R Rᵀ = S, upper triangular; NaN where the precision is not positive definite."""

    @property
    def mean(self) -> Array:
        return self.root @ (self.root.T @ self.shift)


def natural(shift: Array, inverse: Array) -> Natural:
    """From S⁻¹ m and S⁻¹."""
    factor = jnp.linalg.cholesky(inverse)
    root = solve_triangular(factor, jnp.eye(len(shift), dtype=factor.dtype), lower=True).T
    return Natural(shift, inverse, root)


def divergence(mean: Array, root: Array) -> Array:
    """KL(N(m, R Rᵀ) ‖ N(0, I)); R is triangular."""
    log_det = 2 * jnp.sum(jnp.log(jnp.abs(jnp.diagonal(root))))
    return 0.5 * (jnp.sum(root**2) + jnp.sum(mean**2) - len(mean) - log_det)


class SVGPProblem(ProcessProblem):
    """−ELBO − log prior; q is the state that the natural gradients move."""

    memory: Any = None
    """`Natural` parameters by site."""
    inputs: dict[str, Array] = field(default_factory=dict)
    """Inducing inputs where they are not parameters."""

    @property
    def deterministic(self) -> bool:
        return False

    def Z(self, params: Params, site: str) -> Array:
        return self.inputs[site] if self.inputs else params[_inputs_name(site)]

    def with_memory(self, memory: Any) -> SVGPProblem:
        return replace(self, memory=memory)

    def rows_of_step(self, rng_key: Array, data: Data) -> tuple[dict[str, Any], float]:
        n, size = self.num_units, self.options.batch_size
        if size is None or size >= n:
            return dict(data), 1.0
        return rows.take(data, rows.row_keys(data, n), rows.batch(rng_key, n, size)), n / size

    def projections(self, params: Params, data: Data) -> dict[str, tuple[Array, Array, Array]]:
        """Of each process: L⁻¹ k(Z, X) ``(M, B)``, the variance that u leaves, and the prior mean, at the rows."""
        out = {}
        for site, process in self.hyper.read(params, data).latent.items():
            Z = self.Z(params, site)
            factor = linalg.cholesky(gram(process.kernel, Z))
            white = solve_triangular(factor, gram(process.kernel, Z, process.X), lower=True)
            left = jnp.maximum(process.kernel(process.X) + process.noise - jnp.sum(white**2, 0), 0.0)
            out[site] = (white, left, process.mean)
        return out

    def expected(self, params: Params, data: Data, means: dict[str, Array], variances: dict[str, Array]) -> Array:
        """Σ_i E log p(y_i | f_i) over independent normals."""
        nodes, log_w = hermite(len(means))

        def at(node: Array) -> Array:
            f = {s: means[s] + jnp.sqrt(variances[s]) * node[i] for i, s in enumerate(means)}
            return self.hyper.read(params, data, f).log_prob

        return jnp.sum(jnp.exp(log_w)[:, None] * jax.vmap(at)(nodes))

    def refresh(self, memory: Any, params: Params, rng_key: Array) -> Any:
        """A natural-gradient step of every q; one that leaves the cone of covariances is not taken."""
        data, scale = self.rows_of_step(rng_key, self.data)
        projections = self.projections(params, data)
        means, variances = {}, {}
        for site, (white, left, prior) in projections.items():
            means[site] = prior + white.T @ memory[site].mean
            variances[site] = jnp.maximum(left + jnp.sum((memory[site].root.T @ white) ** 2, 0), 1e-10)
        gradient = jax.grad(lambda m, v: self.expected(params, data, m, v), argnums=(0, 1))
        by_mean, by_variance = gradient(means, variances)
        rho = self.options.natural_step
        out = {}
        for site, (white, _, prior) in projections.items():
            old = memory[site]
            centred = means[site] - prior
            shift = scale * white @ (by_mean[site] - 2 * by_variance[site] * centred)
            inverse = jnp.eye(len(old.shift), dtype=white.dtype) - 2 * scale * (white * by_variance[site]) @ white.T
            new = natural((1 - rho) * old.shift + rho * shift, (1 - rho) * old.precision + rho * inverse)
            good = jnp.isfinite(new.root[-1, -1]) & jnp.all(jnp.isfinite(new.shift))
            out[site] = jax.tree.map(lambda a, b, good=good: jnp.where(good, a, b), new, old)
        return out

    def objective(self, params: Params, data: Data, scale: Any = 1.0) -> Array:
        means, variances, total = {}, {}, jnp.zeros(())
        for site, (white, left, prior) in self.projections(params, data).items():
            mean, root = self.memory[site].mean, self.memory[site].root
            means[site] = prior + white.T @ mean
            variances[site] = jnp.maximum(left + jnp.sum((root.T @ white) ** 2, 0), 1e-10)
            total = total - divergence(mean, root)
        return total + scale * self.expected(params, data, means, variances)

    def loss(self, params: Params, rng_key: Array, data: Data) -> tuple[Array, Metrics]:
        data, scale = self.rows_of_step(rng_key, data)
        return -(self.objective(params, data, scale) + self.hyper.log_prior(params, data)), {}

    def functions(self, params: Params) -> dict[str, FunctionPosterior]:
        out: dict[str, FunctionPosterior] = {}
        for site, process in self.hyper.read(params, self.data).latent.items():
            Z = self.Z(params, site)
            mean, root = self.memory[site].mean, self.memory[site].root
            out[site] = Inducing(process.kernel, Z, linalg.cholesky(gram(process.kernel, Z)), mean, root)
        return out

    def sampler(self, params: Params) -> Any:
        latent = self.hyper.read(params, self.data).latent
        return {
            site: inducing.sampler(posterior, latent[site].X, latent[site].mean)  # type: ignore[arg-type]
            for site, posterior in self.functions(params).items()
        }

    def draw(self, state: Any, params: Params, rng_key: Array) -> tuple[dict[str, Array], Array]:
        functions, total = {}, jnp.zeros(())
        for key, (site, own) in zip(jax.random.split(rng_key, len(state)), state.items(), strict=True):
            functions[site], log_ratio = inducing.draw(own, key)
            total = total + log_ratio
        return functions, total + self.log_target(params, functions)

    def faults(self, params: Params) -> list[str]:
        """The precision of a whitened q has no eigenvalue below one (log-concave likelihoods), none above its trace."""
        lines = self.bad_noise(params)
        for site, q in self.memory.items():
            cause = f"for the data say more of {site!r} than that, by little noise"
            lines += precision.complaint(float(jnp.trace(q.precision)), q.precision.dtype, cause)
        return lines

    def remarks(self, params: Params) -> list[str]:
        lines = rows.remark(self.options.batch_size, self.num_units)
        if self.num_units > rows.MOST_CHECKED:
            return lines
        lines.append(f"ELBO over all rows {float(_elbo(self, params)):.3f}")
        return [*lines, "the data themselves: " + calibration.of_draws(self, params)]


@eqx.filter_jit
def _elbo(problem: SVGPProblem, params: Params) -> Array:
    return problem.objective(params, problem.data)
