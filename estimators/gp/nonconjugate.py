"""Non-conjugate likelihoods by Gaussian sites: Laplace, expectation propagation, CVI, and their hybrid.

Every method stands on one thing: q(f) ∝ p(f) Π_i exp(ν_i f_i − ½ τ_i f_i²), the prior conditioned on Gaussian
pseudo-observations (sites), one a row. Methods differ in the rule that moves the sites and in the objective that the
hyper-parameters see.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array, lax, random
from jax.scipy.linalg import lu_factor, lu_solve
from jax.tree_util import Partial

from ..base import Data, Estimator, Params
from . import calibration, linalg, view
from .fixed_point import LIVE_SWEEPS, forwards
from .posterior import Conditional, FunctionPosterior
from .problem import Moments, ProcessProblem, at_once
from .quadrature import LogLikelihood, expected, slopes, tilted
from .view import gram

METHODS = ("laplace", "ep", "cvi", "hybrid")
MAX_SWEEPS = 200
FIRST_SWEEPS = 5
TOLERANCE = 1e-9
"""Of the sites, relative: they are then at their fixed point to double precision."""


@dataclass(frozen=True)
class NonConjugateGP(Estimator):
    """A latent Gaussian process under any factorising likelihood, p(y_i | f_i).

    Args:
        method: what approximates the posterior, and what the hyper-parameters are fitted to:

            - "laplace": Gaussian at the mode; its evidence (Gaussian Processes for Machine Learning, algorithm 3.1).
            - "ep": expectation propagation, all sites at once with damping; its evidence (the same, section 3.6).
            - "cvi": the variational Gaussian by natural gradients of its sites (Conjugate-Computation Variational
            Inference);
              the ELBO, a lower bound of the evidence.
            - "hybrid": CVI for q, the EP-like evidence at its sites for the hyper-parameters, which alternate
            (Improving
              Hyperparameter Learning under Approximate Inference in Gaussian Process Models).
        damping: share of the new sites in each sweep of "ep", "cvi" and "hybrid". Smaller is safer.

    Raises:
        ValueError: at `fit`, for models without exactly one latent process and one observation a row.
    """

    method: str = "ep"
    damping: float = 0.7
    needs_guide = False
    exact = True

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if not 0 < self.damping <= 1:
            raise ValueError(f"damping must lie in (0, 1], got {self.damping!r}")

    def problem(self, rng_key: Array, model: Callable, guide: Callable | None, data: Data) -> SitesProblem:
        hyper = view.create(self, rng_key, model, dict(data))
        view.check_rows(hyper, type(self).__name__, dict(data))
        return SitesProblem(options=self, hyper=hyper, params=hyper.rest.params, data=dict(data))


class Sites(NamedTuple):
    """Natural parameters of the Gaussian sites, ``(n,)`` each; of f minus its prior mean."""

    precision: Array
    shift: Array


class Gaussian(NamedTuple):
    """q(f) given the sites, of f minus its prior mean."""

    mean: Array
    covariance: Array
    log_det: Array
    """log |I + K T|."""

    @property
    def variance(self) -> Array:
        return jnp.maximum(jnp.diagonal(self.covariance), 1e-300)


def solve(K: Array, sites: Sites) -> Gaussian:
    """q(f) = N(Σν, Σ) with Σ = (I + K T)⁻¹ K. By LU, because sites of a likelihood with heavy tails can be negative."""
    system = jnp.eye(len(K), dtype=K.dtype) + K * sites.precision
    lu = lu_factor(system)
    # the mean by a solve of its own: a sweep of Laplace's method has no use for the covariance, three times the LU
    log_det = jnp.sum(jnp.log(jnp.abs(jnp.diagonal(lu[0]))))
    return Gaussian(lu_solve(lu, K @ sites.shift), lu_solve(lu, K), log_det)


def cavities(q: Gaussian, sites: Sites, K: Array) -> tuple[Array, Array]:
    """Precision and shift of q(f_i) without its own site."""
    precision = 1 / q.variance - sites.precision
    return jnp.where(precision > 0, precision, 1 / jnp.diagonal(K)), q.mean / q.variance - sites.shift


def target(method: str, log_lik: LogLikelihood, K: Array, sites: Sites) -> Sites:
    """Where the method's rule wants the sites."""
    q = solve(K, sites)
    if method == "laplace":
        gradient, curvature = slopes(log_lik, q.mean)
        # where the likelihood is not log-concave a Newton step may go uphill: there the prior alone bends it
        precision = jnp.maximum(-curvature, 0.0)
        return Sites(precision, gradient + precision * q.mean)
    if method == "ep":
        precision, shift = cavities(q, sites, K)
        _, mean, variance = tilted(log_lik, shift / precision, 1 / precision)
        return Sites(1 / variance - precision, mean / variance - shift)
    by_mean, by_variance = jax.grad(lambda m, v: jnp.sum(expected(log_lik, m, v)), argnums=(0, 1))(q.mean, q.variance)
    return Sites(-2 * by_variance, by_mean - 2 * by_variance * q.mean)


def sweep(method: str, damping: float | Array, log_lik: LogLikelihood, K: Array, sites: Sites) -> Sites:
    """The sites after one update of all of them; one that is not finite stays."""
    rate = 1.0 if method == "laplace" else damping
    new = target(method, log_lik, K, sites)
    moved = Sites(*((1 - rate) * a + rate * b for a, b in zip(sites, new, strict=True)))
    good = jnp.isfinite(moved.precision) & jnp.isfinite(moved.shift)
    return Sites(*(jnp.where(good, a, b) for a, b in zip(moved, sites, strict=True)))


def converge(method: str, damping: float, log_lik: LogLikelihood, K: Array) -> tuple[Sites, Array]:
    """The fixed point of the sweeps, and the last relative change. Not differentiated.

    All methods set out from a few sweeps of EP: its moments are finite far from the data too, where Newton and natural
    gradients overshoot (a count of a thousand seen from f = 0).
    """
    n = len(K)
    start = Sites(jnp.zeros(n, K.dtype), jnp.zeros(n, K.dtype))
    start = lax.fori_loop(0, FIRST_SWEEPS, lambda _, s: sweep("ep", min(damping, 0.7), log_lik, K, s), start)

    def going_on(carry: tuple) -> Array:
        return (carry[1] > TOLERANCE) & (carry[3] < MAX_SWEEPS)

    def body(carry: tuple) -> tuple:
        sites, before, rate, count = carry
        new = sweep(method, rate, log_lik, K, sites)
        size = sum(jnp.max(jnp.abs(a - b)) for a, b in zip(new, sites, strict=True))
        change = size / sum(jnp.max(jnp.abs(a)) for a in new)
        # sites that go round in circles take smaller steps
        return new, change, jnp.where(change > 0.9 * before, 0.7 * rate, rate), count + 1

    first = (start, jnp.asarray(jnp.inf, K.dtype), jnp.asarray(damping, K.dtype), jnp.zeros((), jnp.int32))
    sites, change, _, _ = lax.while_loop(going_on, body, first)
    return lax.stop_gradient(sites), change


def laplace_evidence(log_lik: LogLikelihood, K: Array, sites: Sites) -> Array:
    """log p(y | f̂) − ½ f̂ᵀK⁻¹f̂ − ½ log |I + K W| at the mode."""
    q = solve(K, sites)
    return jnp.sum(log_lik(q.mean)) - 0.5 * q.mean @ (sites.shift - sites.precision * q.mean) - 0.5 * q.log_det


def site_normaliser(K: Array, sites: Sites) -> Array:
    """log ∫ p(f) Π exp(ν f − ½ τ f²) df."""
    q = solve(K, sites)
    return 0.5 * sites.shift @ q.mean - 0.5 * q.log_det


def elbo(log_lik: LogLikelihood, K: Array, sites: Sites) -> Array:
    """Σ E_q log p(y_i | f_i) − KL(q ‖ p)."""
    q = solve(K, sites)
    log_sites = sites.shift @ q.mean - 0.5 * jnp.sum(sites.precision * (q.variance + q.mean**2))
    return jnp.sum(expected(log_lik, q.mean, q.variance)) - log_sites + site_normaliser(K, sites)


def ep_evidence(log_lik: LogLikelihood, K: Array, sites: Sites) -> Array:
    """Normaliser of p(f) Π t_i(f_i) with each t_i scaled so that its tilted density has the right mass."""
    q = solve(K, sites)
    precision, shift = cavities(q, sites, K)
    log_z, _, _ = tilted(log_lik, shift / precision, 1 / precision)
    cavity = 0.5 * shift**2 / precision - 0.5 * jnp.log(precision)
    marginal = 0.5 * q.mean**2 / q.variance + 0.5 * jnp.log(q.variance)
    return jnp.sum(log_z + cavity - marginal) + site_normaliser(K, sites)


OBJECTIVES = {"laplace": laplace_evidence, "ep": ep_evidence, "cvi": elbo, "hybrid": ep_evidence}


class Draws(NamedTuple):
    """What a draw of the functions needs."""

    prior: Array
    mean: Array
    root: Array
    """A square root of the covariance."""
    sites: Sites
    normaliser: Array


class SitesProblem(ProcessProblem):
    """−(evidence or bound) − log prior."""

    live: int = eqx.field(static=True, default=0)
    """Sweeps that derivatives go through: none while solving, where fixed sites give the exact gradient."""

    @property
    def method(self) -> str:
        return self.options.method

    @property
    def solver(self) -> str:
        return "alternate" if self.method == "hybrid" else "lbfgs"

    @property
    def has_curvature(self) -> bool:
        return self.method != "hybrid"

    @property
    def batch(self) -> int:
        """By the time that the sweeps of one loss take."""
        return at_once(2e7 // self.num_units**3)

    @property
    def factorised(self) -> int:
        return self.num_units

    @property
    def site(self) -> str:
        return self.hyper.latent[0]

    def finish(self, params: Params) -> SitesProblem:
        return replace(self, live=LIVE_SWEEPS)

    def parts(self, params: Params, data: Data) -> tuple[LogLikelihood, Array, view.Process]:
        """log p(y | prior mean + f), the prior covariance, and the process."""
        process = self.hyper.read(params, data).latent[self.site]

        def log_lik(f: Array) -> Array:
            return self.hyper.read(params, data, {self.site: process.mean + f}).log_prob

        return log_lik, view.add_noise(gram(process.kernel, process.X), process.noise), process

    @property
    def rule(self) -> str:
        """What moves the sites."""
        return "cvi" if self.method == "hybrid" else self.method

    def sites(self, params: Params, data: Data) -> Sites:
        """The sites at their fixed point.

        Derivatives are carried through `live` more sweeps; at the fixed point of EP and CVI the objective does not
        change with the sites, so that none are needed for its gradient.
        """
        found = self._converge(*self.parts(lax.stop_gradient(params), data)[:2])[0]
        log_lik, K, _ = self.parts(params, data)
        if self.method == "laplace":  # two Newton steps from the mode carry derivatives to third order
            for _ in range(2):
                found = sweep("laplace", 1.0, log_lik, K, found)
            mode = solve(K, found).mean
            gradient, curvature = slopes(log_lik, mode)
            return Sites(-curvature, gradient - curvature * mode)
        if not self.live:
            return found
        once = lambda s, _: (sweep(self.rule, self.options.damping, log_lik, K, s), None)  # noqa: E731
        return lax.scan(once, found, length=self.live)[0]

    def _converge(self, log_lik: LogLikelihood, K: Array) -> tuple[Sites, Array]:
        return converge(self.rule, self.options.damping, log_lik, K)

    def objective(self, params: Params, data: Data) -> Array:
        log_lik, K, _ = self.parts(params, data)
        sites: Callable = Partial(SitesProblem.sites, self, data=data)
        stationary = self.method in ("ep", "cvi") and self.live
        return OBJECTIVES[self.method](log_lik, K, forwards(params, sites) if stationary else sites(params))

    def expect(self, anchor: Params, data: Data) -> Sites:
        return self.sites(anchor, data)

    def surrogate(self, params: Params, expected: Sites, data: Data) -> Array:
        """The objective at fixed sites: what the hyper-parameters see in a step of the hybrid."""
        log_lik, K, _ = self.parts(params, data)
        return -(OBJECTIVES[self.method](log_lik, K, expected) + self.hyper.log_prior(params, data))

    def functions(self, params: Params) -> dict[str, FunctionPosterior]:
        _, K, process = self.parts(params, self.data)
        sites = self.sites(params, self.data)
        q = solve(K, sites)
        precision = sites.precision
        A = jnp.diag(precision) - precision[:, None] * q.covariance * precision
        return {self.site: Conditional(process.kernel, process.X, sites.shift - precision * q.mean, A)}

    def sampler(self, params: Params) -> Draws:
        _, K, process = self.parts(params, self.data)
        sites = self.sites(params, self.data)
        q = solve(K, sites)
        return Draws(process.mean, q.mean, linalg.root(q.covariance), sites, site_normaliser(K, sites))

    def draw(self, state: Any, params: Params, rng_key: Array) -> tuple[dict[str, Array], Array]:
        f = state.mean + state.root @ random.normal(rng_key, state.mean.shape)
        functions = {self.site: state.prior + f}
        log_sites = jnp.sum(state.sites.shift * f - 0.5 * state.sites.precision * f**2)
        return functions, self.log_target(params, functions) - log_sites + state.normaliser

    def faults(self, params: Params) -> list[str]:
        """The sites are found without a factor of the prior covariance, so that this is the place to see it has one."""
        lines = self.bad_noise(params)
        return lines if lines or bool(_positive(self, params)) else [view.NOT_POSITIVE]

    def moments_for_check(self, params: Params) -> Moments:
        """Given all rows but its own, by taking its site away."""
        _, K, process = self.parts(params, self.data)
        sites = self.sites(params, self.data)
        precision, shift = cavities(solve(K, sites), sites, K)
        return {self.site: (process.mean + shift / precision, 1 / precision)}

    def remarks(self, params: Params) -> list[str]:
        change, negative = (float(v) for v in _remarks(self, params))
        lines = ["left out one by one (by taking their sites away): " + calibration.of_draws(self, params)]
        if not change <= 1e-6:
            lines.append(
                f"the sites did not settle in {MAX_SWEEPS} sweeps (last relative change {change:.1e}): take a smaller "
                f"damping than {self.options.damping}"
            )
        if negative:
            lines.append(
                f"{negative:.0f} sites have negative precision: the likelihood is not log-concave there, and the "
                f"posterior "
                "may have several modes"
            )
        return lines


@eqx.filter_jit
def _positive(problem: SitesProblem, params: Params) -> Array:
    return jnp.isfinite(linalg.jittered_cholesky(problem.parts(params, problem.data)[1])[0][-1, -1])


@eqx.filter_jit
def _remarks(problem: SitesProblem, params: Params) -> tuple[Array, Array]:
    log_lik, K, _ = problem.parts(params, problem.data)
    sites, change = problem._converge(log_lik, K)
    return change, jnp.sum(sites.precision < 0)
