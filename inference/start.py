"""Where a fit starts: the posterior mode and the curvature there, found in double precision from several places.

The start decides more than the optimiser that follows. It is found in float64 even when the fit runs in float32,
because curvature at raw scales (an intercept beside a slope times thousands) is beyond single precision.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array, random
from numpyro import handlers
from numpyro.distributions.transforms import biject_to
from numpyro.infer.initialization import init_to_uniform, init_to_value
from scipy.linalg import solve_triangular
from scipy.special import logsumexp

from ..estimators import blocks
from ..estimators import unconstrained as space
from ..estimators.guided import full_plates
from ..estimators.guides import WhitenedNormal

METHODS = ("laplace", "pathfinder", "prior")
HESSIAN_LIMIT = 1000
"""Largest dimension at which the exact Hessian is formed; above, an estimate of its diagonal."""
FULL_RANK_LIMIT = 100
"""Largest dimension at which the guide learns a full covariance on top of the whitening."""


_NO_SECOND_DERIVATIVE = (TypeError, NotImplementedError, ValueError)
"""What JAX raises for a second derivative of custom reverse-mode rules (ODE solvers)."""


@dataclass(frozen=True)
class Start:
    """A starting point and how it was found. Hand it to another fit as ``start=`` to save the search."""

    method: str
    loc: np.ndarray
    """Global latents, unconstrained, shape ``(D,)``."""
    scale: np.ndarray
    """Whitening factor, ``(D, D)`` lower triangular or ``(D,)``."""
    local_loc: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    local_scale: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    num_starts: int = 1
    num_agree: int = 1
    """How many of the starts ended at the chosen point."""
    log_joint: float = float("nan")
    elbo: float = float("nan")
    """Monte Carlo ELBO of the Gaussian at the start (100 draws), by which starts are compared."""
    bound: float = float("nan")
    """ELBO of the mixture of the Gaussians at all points where searches ended: no more than the log evidence. NaN where
    the model has parameters of its own, which the fit then moves."""
    bound_stderr: float = float("nan")
    unmet: float = 0.0
    """Chance that one more search ends at a mode that none has met, by Good and Turing's estimate: of all searches,
    those that met a mode alone (The Population Frequencies of Species and the Estimation of Population Parameters).
    Zero with fewer than four searches."""
    gradient_norm: float = float("nan")
    """Length of the Newton step at the chosen point, in units of posterior standard deviations."""
    condition_number: float = float("nan")
    """Of the curvature after scaling its diagonal to one."""
    curvature: str = "none"
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    def elsewhere(self) -> Start:
        """The same place for another model or other data, of whose evidence it knows nothing."""
        return replace(self, bound=float("nan"), bound_stderr=float("nan"), unmet=0.0)

    def __str__(self) -> str:
        text = f"start: {self.method}, curvature: {self.curvature}"
        if self.num_starts > 1:
            text += f", {self.num_agree} of {self.num_starts} searches agree"
        if np.isfinite(self.gradient_norm):
            text += f", Newton step left {self.gradient_norm:.1e} sd"
        if np.isfinite(self.condition_number):
            text += f", condition number {self.condition_number:.1e}"
        text += f" ({self.seconds:.1f} s)"
        return "\n  ".join([text, *self.notes])


class _Point(eqx.Module):
    """One candidate: where, how wide, how good."""

    loc: Array
    scale: Array
    log_joint: Array
    elbo: Array
    log_p: Array
    """Log joint at the draws that gave the ELBO."""
    gradient_norm: Array
    condition_number: Array
    diagonal: Array


class _Target(eqx.Module):
    """The log joint density in R^D of a model at fixed values of its own parameters, as a pytree."""

    model: Callable
    theta: dict[str, Any]
    data: dict[str, Any]
    sites: tuple[space.Site, ...] = eqx.field(static=True)

    def prepared(self, rng_key: Array | int = 0) -> Callable:
        """The model with its own parameters in place; the key draws what is not given."""
        # full_plates innermost: what blocks messages on their way out does not hide it
        return handlers.seed(full_plates(handlers.substitute(self.model, self.theta)), rng_key)

    def __call__(self, z: Array) -> Array:
        return space.log_joint(self.prepared(), self.data, space.unravel(z, self.sites))

    def potential(self, z: Array) -> Array:
        """−log joint, with non-finite values made +inf so that a line search turns back."""
        value = -self(z)
        return jnp.where(jnp.isfinite(value), value, jnp.inf)

    def initial(self, rng_key: Array) -> Array:
        """A feasible point: uniform on (−2, 2) in R^D, NumPyro's own habit."""
        tr = handlers.trace(handlers.substitute(self.prepared(rng_key), substitute_fn=init_to_uniform)).get_trace(
            **self.data
        )
        values = {s.name: biject_to(tr[s.name]["fn"].support).inv(tr[s.name]["value"]) for s in self.sites}
        return space.ravel(values, self.sites)


def _factor(hessian: Array) -> tuple[Array, Array]:
    """Lower-triangular L with L Lᵀ = H⁻¹, directions without curvature made finite; and the condition number.

    The diagonal is scaled to one first, so that units do not matter. Eigenvalues enter by magnitude: at a point that
    is not a maximum the negative ones still say how far the density reaches.
    """
    diagonal = jnp.abs(jnp.diag(hessian))
    d = 1 / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1.0))
    eigenvalues, vectors = jnp.linalg.eigh(hessian * d[:, None] * d)
    magnitude = jnp.maximum(jnp.abs(eigenvalues), 1e-12 * jnp.max(jnp.abs(eigenvalues)))
    covariance = (vectors / magnitude) @ vectors.T * d[:, None] * d
    return jnp.linalg.cholesky(covariance), magnitude.max() / magnitude.min()


def _newton(target: _Target, z: Array, max_steps: int = 50) -> tuple[Array, Array]:
    """Polish a mode by Newton steps with backtracking; affine-invariant, so raw scales do not slow it down."""
    hessian = jax.hessian(target.potential)

    def step(carry: tuple) -> tuple:
        z, value, _, i = carry
        gradient = jax.grad(target.potential)(z)
        factor, _ = _factor(hessian(z))
        whitened = factor.T @ gradient
        direction = -factor @ whitened
        sizes = 0.5 ** jnp.arange(12.0)
        values = jax.vmap(lambda t: target.potential(z + t * direction))(sizes)
        best = jnp.argmin(jnp.where(jnp.isfinite(values), values, jnp.inf))
        better = values[best] < value
        z = jnp.where(better, z + sizes[best] * direction, z)
        length = jnp.where(better, jnp.linalg.norm(whitened), 0.0)
        return z, jnp.where(better, values[best], value), length, i + 1

    def unfinished(carry: tuple) -> Array:
        return (carry[2] > 1e-7) & (carry[3] < max_steps)

    z, _, _, _ = jax.lax.while_loop(unfinished, step, (z, target.potential(z), jnp.inf, 0))
    return z, hessian(z)


def _score(target: _Target, loc: Array, scale: Array, noise: Array) -> tuple[Array, Array]:
    """Monte Carlo ELBO of N(loc, scale scaleᵀ), −inf where any draw has no density; and log p of the draws."""
    if scale.ndim == 2:
        draws, log_volume = loc + noise @ scale.T, jnp.sum(jnp.log(jnp.abs(jnp.diag(scale))))
    else:
        draws, log_volume = loc + noise * scale, jnp.sum(jnp.log(scale))
    log_p = jax.lax.map(target, draws, batch_size=20)
    # log q of the draws, not its mean: what is Gaussian in log p then cancels draw by draw
    log_q = -0.5 * jnp.sum(noise**2, 1) - 0.5 * loc.shape[0] * jnp.log(2 * jnp.pi) - log_volume
    elbo = jnp.mean(log_p - log_q)
    return jnp.where(jnp.isfinite(elbo), elbo, -jnp.inf), log_p


def _bend(target: _Target, z: Array, signs: Array) -> tuple[Array, Array]:
    """Diagonal of the Hessian and its standard errors, from products with random signs ``(S, D)``: no errors where the
    Hessian is diagonal (An Estimator for the Diagonal of a Matrix)."""

    def product(v: Array) -> Array:
        return v * jax.jvp(jax.grad(target.potential), (z,), (v,))[1]

    products = blocks.apply(jax.vmap(product), signs, blocks.size_of(len(signs), 8))
    return jnp.mean(products, 0), jnp.std(products, 0) / jnp.sqrt(len(signs))


@eqx.filter_jit
def _laplace(target: _Target, starts: Array, noise: Array, twice: bool) -> _Point:
    """Candidates of every start: L-BFGS far from the mode, Newton and the Hessian near it.

    Args:
        twice: whether the log-density has second derivatives.
    """
    import optimistix as optx

    exact = twice and starts.shape[1] <= HESSIAN_LIMIT
    # BFGS compiles faster where a dense inverse Hessian is cheap; Newton finishes the work in either case.
    small = exact and starts.shape[1] <= FULL_RANK_LIMIT
    solver: Any = optx.BFGS(rtol=1e-8, atol=1e-8) if small else optx.LBFGS(rtol=1e-8, atol=1e-8)

    def one(z0: Array) -> _Point:
        solution: Any = optx.minimise(
            lambda z, _: target.potential(z), solver, z0, max_steps=1000 if exact else 3000, throw=False
        )
        z = jnp.where(jnp.all(jnp.isfinite(solution.value)), solution.value, z0)
        if exact:
            z, hessian = _newton(target, z)
            scale, condition = _factor(hessian)
            newton_step = jnp.linalg.norm(scale.T @ jax.grad(target.potential)(z))
            diagonal = 1 / jnp.sqrt(jnp.abs(jnp.diag(hessian)))
        else:
            inverse = solution.state.f_info.hessian_inv
            units = jnp.eye(z.shape[0]) if z.shape[0] <= HESSIAN_LIMIT else None
            if units is not None:
                covariance = jax.lax.map(inverse.mv, units, batch_size=64)
                scale = jnp.linalg.cholesky((covariance + covariance.T) / 2)
                diagonal = jnp.sqrt(jnp.abs(jnp.diag(covariance)))
            else:
                variance = jax.lax.map(
                    lambda i: inverse.mv(jnp.zeros_like(z).at[i].set(1.0))[i], jnp.arange(z.shape[0]), batch_size=64
                )
                if twice:  # what L-BFGS has not seen along a coordinate it guesses, up to ten times too narrow
                    bend, error = _bend(target, z, jnp.sign(noise[: len(noise) // 2]))
                    variance = jnp.where(bend > 3 * error, 1 / bend, variance)
                scale = diagonal = jnp.sqrt(jnp.abs(variance))
            condition = jnp.array(jnp.nan)
            newton_step = jnp.linalg.norm(diagonal * jax.grad(target.potential)(z))
        return _Point(z, scale, target(z), *_score(target, z, scale, noise), newton_step, condition, diagonal)

    return jax.vmap(one)(starts)


@eqx.filter_jit
def _prior(target: _Target, keys: Array, noise: Array) -> _Point:
    """Mean and spread of the prior in R^D; a unit Gaussian where the prior has no sampler."""

    def draw(key: Array) -> Array:
        tr = handlers.trace(target.prepared(key)).get_trace(**target.data)
        values = {s.name: biject_to(tr[s.name]["fn"].support).inv(tr[s.name]["value"]) for s in target.sites}
        return space.ravel(values, target.sites)

    draws = jax.lax.map(draw, keys, batch_size=100)
    loc, scale = jnp.mean(draws, 0), jnp.maximum(jnp.std(draws, 0), 1e-6)
    nan = jnp.array(jnp.nan)
    return _Point(loc, scale, target(loc), *_score(target, loc, scale, noise), nan, nan, scale)


@eqx.filter_jit
def _curvature_at(target: _Target, z: Array, noise: Array) -> _Point:
    """The Gaussian with the curvature at a point that the user chose."""
    hessian = jax.hessian(target.potential)(z)
    scale, condition = _factor(hessian)
    newton_step = jnp.linalg.norm(scale.T @ jax.grad(target.potential)(z))
    diagonal = 1 / jnp.sqrt(jnp.abs(jnp.diag(hessian)))
    return _Point(z, scale, target(z), *_score(target, z, scale, noise), newton_step, condition, diagonal)


@eqx.filter_jit
def _unit_scale(target: _Target, z: Array, noise: Array) -> _Point:
    one, nan = jnp.ones(z.shape[0]), jnp.array(jnp.nan)
    return _Point(z, one, target(z), *_score(target, z, one, noise), nan, nan, one)


@eqx.filter_jit
def _pathfinder(target: _Target, starts: Array, keys: Array, noise: Array) -> _Point:
    """Single-path Pathfinder from every start (Pathfinder: Parallel Quasi-Newton Variational Inference)."""
    from blackjax.vi import pathfinder

    def one(z0: Array, key: Array) -> _Point:
        state, _ = pathfinder.approximate(key, target, z0, num_samples=100, maxiter=100)
        covariance = jnp.diag(state.alpha) + state.beta @ state.gamma @ state.beta.T
        correction = jnp.sqrt(state.alpha)
        # mean of the local Gaussian: one quasi-Newton step from the point of the path
        loc = state.position + covariance @ state.grad_position
        scale = jnp.linalg.cholesky((covariance + covariance.T) / 2)
        nan = jnp.array(jnp.nan)
        return _Point(loc, scale, target(loc), *_score(target, loc, scale, noise), nan, nan, correction)

    return jax.vmap(one)(starts, keys)


@eqx.filter_jit
def _starting_points(target: _Target, keys: Array) -> Array:
    return jax.vmap(target.initial)(keys)


def find_start(
    model: Callable,
    data: dict[str, Any],
    *,
    theta: dict[str, Any] | None = None,
    method: str | dict[str, Any] | Start = "laplace",
    seed: int = 0,
    num_starts: int | None = None,
) -> Start:
    """Find where the guide of a model should start, in float64 whatever the session's default.

    Args:
        model: NumPyro model with continuous latents, called as ``model(**data)``.
        theta: values of the model's `param` sites, held fixed.
        method: "laplace", "pathfinder", "prior", a dict of values of the latent sites, or a `Start`.
        seed: of the starting points and of the draws that score them.
        num_starts: searches from different points; None: 8 up to 100 dimensions, 4 up to 300, 2 above.

    Raises:
        ValueError: an unknown method, a discrete latent, or a dict that names no latent site.
    """
    if isinstance(method, Start):
        return method.elsewhere()
    if isinstance(method, str) and method not in METHODS:
        raise ValueError(f"start must be one of {', '.join(METHODS)}, a dict of values or a Start, got {method!r}")
    began = time.perf_counter()
    with jax.enable_x64(True):
        start = _find(model, _as_float64(data), _as_float64(theta or {}), method, seed, num_starts)
    return replace(start, seconds=time.perf_counter() - began)


def _as_float64(tree: Any) -> Any:
    def cast(x: Any) -> Any:
        if isinstance(x, (np.ndarray, jax.Array)) and jnp.issubdtype(x.dtype, jnp.floating):
            return jnp.asarray(np.asarray(x), jnp.float64)
        return x

    return jax.tree.map(cast, tree)


def _find(model: Callable, data: dict, theta: dict, method: Any, seed: int, num_starts: int | None) -> Start:
    sites = space.sites_of(model, theta, data, whole=True)
    target = _Target(model, theta, data, sites)
    dimension = sum(s.size for s in sites)
    if dimension == 0:
        return Start("none", np.zeros(0), np.zeros(0), curvature="no continuous latents")
    if num_starts is None:
        num_starts = 8 if dimension <= 100 else 4 if dimension <= 300 else 2
    key_starts, key_noise, key_prior = random.split(random.key(seed), 3)
    noise = random.normal(key_noise, (100, dimension))
    noise = jnp.concatenate([noise[:50], -noise[:50]])  # antithetic: what is odd in the draws cancels
    notes: list[str] = []

    if isinstance(method, dict):
        z = _user_point(target, method)
        if dimension <= HESSIAN_LIMIT:
            try:
                point = _curvature_at(target, z, noise)
                return _chosen("values", point, sites, 1, 1, "exact Hessian at the given values", notes)
            except _NO_SECOND_DERIVATIVE as error:
                notes.append(f"no exact Hessian ({type(error).__name__}): took unit scale")
        return _chosen("values", _unit_scale(target, z, noise), sites, 1, 1, "unit scale", notes)

    if method != "prior":
        starts = _starting_points(target, random.split(key_starts, num_starts))
        order = ("laplace", "pathfinder") if method == "laplace" else ("pathfinder", "laplace")
        for name in order:
            points, curvature = _search(name, target, starts, key_prior, noise, notes)
            if points is not None and np.isfinite(points.elbo).any():
                found = _best_of(name, points, sites, curvature, notes)
                if theta:
                    return found
                bound, uncertain = mixture_bound(points.loc, points.scale, points.elbo, points.log_p, noise)
                return replace(found, bound=bound, bound_stderr=uncertain, unmet=_unmet(points))
            notes.append(f"{name} found no point with a finite ELBO")
    try:
        point = _prior(target, random.split(key_prior, 1000), noise)
    except NotImplementedError:  # improper priors have no sampler
        point = _unit_scale(target, _starting_points(target, random.split(key_starts, 1))[0], noise)
        notes.append("a prior without sampler (improper): started at a feasible point with unit scale")
    return _chosen("prior", point, sites, 1, 1, "prior spread", notes)


def _best_of(name: str, points: _Point, sites: tuple, curvature: str, notes: list[str]) -> Start:
    """The candidate of highest ELBO: a broad mode beats a high but narrow one."""
    elbo, value = np.asarray(points.elbo), np.asarray(points.log_joint)
    best = int(np.argmax(elbo))
    distance = _distance(np.asarray(points.loc - points.loc[best]), np.asarray(points.scale[best]))
    # as high, and less than a posterior sd away: modes that mirror each other are as high too
    agree = int(np.sum((np.abs(value - value[best]) < 1e-3 * (1 + points.loc.shape[1])) & (distance < 1)))
    others = int(np.sum(np.isfinite(elbo))) - agree
    if others > 0 and name == "laplace":
        notes.append(f"{others} of {len(elbo)} searches ended elsewhere: the posterior may have several modes")
    chosen = jax.tree.map(lambda x: x[best], points)
    return _chosen(name, chosen, sites, len(elbo), agree, curvature, notes)


def _distance(gap: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Lengths ``(n,)`` of vectors ``(n, D)`` in units of a Gaussian's standard deviations."""
    whitened = solve_triangular(scale, gap.T, lower=True).T if scale.ndim == 2 else gap / scale
    return np.linalg.norm(whitened, axis=1)


def _modes(loc: np.ndarray, scale: np.ndarray, elbo: np.ndarray) -> dict[int, list[int]]:
    """Searches by the mode where they ended, under the best one of each; ends that weigh nothing are left out.

    Ends within an sd of each other, by the better one's Gaussian, are the same mode.
    """
    modes: dict[int, list[int]] = {}
    for i in np.argsort(-elbo, kind="stable"):
        if not elbo[i] > np.max(elbo) - 20:
            break
        own = next((j for j in modes if _distance(loc[i : i + 1] - loc[j], scale[j])[0] <= 1), int(i))
        modes.setdefault(own, []).append(int(i))
    return modes


def _unmet(points: _Point) -> float:
    """See `Start.unmet`. A search that stopped on the way met no mode."""
    loc, scale, elbo, step = (np.asarray(a) for a in (points.loc, points.scale, points.elbo, points.gradient_norm))
    if len(elbo) < 4:
        return 0.0
    alone = [found[0] for found in _modes(loc, scale, elbo).values() if len(found) == 1]
    return float(np.sum(step[alone] < 0.1)) / len(elbo)


def mixture_bound(loc: Any, scale: Any, elbo: Any, log_p: Any, noise: Any) -> tuple[float, float]:
    """ELBO of a mixture of Gaussians, and its Monte Carlo standard error: a lower bound of log ∫ p.

    Where the Gaussians lie apart it is the logarithm of the sum of exp(their own ELBOs), so it counts every mode that
    was found, once: of Gaussians within an sd of each other the better one is taken.

    Args:
        loc, scale: of M Gaussians, ``(M, D)`` and ``(M, D, D)`` lower triangular or ``(M, D)``.
        elbo: of each, ``(M,)``; the mixture's weights are their exponentials. Not finite: left out.
        log_p: at the draws loc + scale noise, ``(M, S)``.
        noise: ``(S, D)``, the second half the negative of the first.
    """
    loc, scale, elbo, log_p = (np.asarray(a) for a in (loc, scale, elbo, log_p))
    kept = list(_modes(loc, scale, elbo))
    loc, scale, log_p = loc[kept], scale[kept], log_p[kept]
    noise, log_share = np.asarray(noise), elbo[kept] - logsumexp(elbo[kept])
    full = scale.ndim == 3
    draws = loc[:, None] + (np.einsum("sd,mcd->msc", noise, scale) if full else noise * scale[:, None])
    volume = np.log(np.abs(np.diagonal(scale, axis1=1, axis2=2) if full else scale)).sum(1)
    log_q = []
    for own_loc, own_scale, own_volume in zip(loc, scale, volume, strict=True):
        distance = _distance((draws - own_loc).reshape(-1, loc.shape[1]), own_scale)
        log_q.append(-0.5 * distance**2 - own_volume)
    log_mixture = logsumexp(np.stack(log_q) + log_share[:, None], axis=0) - 0.5 * loc.shape[1] * np.log(2 * np.pi)
    ratio = log_p - log_mixture.reshape(log_p.shape)
    half = len(noise) // 2
    pairs = 0.5 * (ratio[:, :half] + ratio[:, half:])
    share = np.exp(log_share)
    return float(share @ pairs.mean(1)), float(np.sqrt(share**2 @ pairs.var(1, ddof=1) / half))


def _search(
    name: str, target: _Target, starts: Array, key: Array, noise: Array, notes: list[str]
) -> tuple[_Point | None, str]:
    dimension = starts.shape[1]
    if name == "pathfinder":
        try:
            return _pathfinder(target, starts, random.split(key, starts.shape[0]), noise), "Pathfinder inverse Hessian"
        except ImportError:
            notes.append("blackjax is not installed: no Pathfinder")
            return None, ""
    small = dimension <= HESSIAN_LIMIT
    try:
        return _laplace(target, starts, noise, True), "exact Hessian" if small else "diagonal of the Hessian, estimated"
    except _NO_SECOND_DERIVATIVE as error:
        notes.append(f"no exact Hessian ({type(error).__name__}): took the L-BFGS inverse Hessian")
    return _laplace(target, starts, noise, False), (
        "L-BFGS inverse Hessian" if small else "diagonal of the L-BFGS inverse Hessian"
    )


def _shapes(target: _Target) -> dict[str, tuple[int, ...]]:
    """Shapes of the latent sites in the user's space."""

    def run(key: Array) -> dict[str, Array]:
        model = handlers.substitute(target.prepared(key), substitute_fn=init_to_uniform)
        tr = handlers.trace(model).get_trace(**target.data)
        return {s.name: tr[s.name]["value"] for s in target.sites}

    return {name: value.shape for name, value in jax.eval_shape(run, random.key(0)).items()}


def _user_point(target: _Target, values: dict[str, Any]) -> Array:
    names = {s.name for s in target.sites}
    unknown = sorted(set(values) - names)
    if unknown:
        raise ValueError(
            f"start names {unknown[0]!r}, which is not a latent site of the model (sites: {', '.join(sorted(names))})"
        )
    shapes = _shapes(target)
    given = {k: jnp.asarray(v, jnp.result_type(float)) for k, v in values.items()}
    for name, value in given.items():
        if value.shape != shapes[name]:
            raise ValueError(f"start[{name!r}] has shape {value.shape}, the site has {shapes[name]}")
    model = handlers.substitute(target.prepared(), substitute_fn=init_to_value(values=given))
    with numpyro.validation_enabled(False):  # a value outside the support is named below
        tr = handlers.trace(model).get_trace(**target.data)
    out = {}
    for site in target.sites:
        support, value = tr[site.name]["fn"].support, tr[site.name]["value"]
        if not bool(jnp.all(support(value))):
            raise ValueError(f"start[{site.name!r}] = {value} lies outside the site's support {support}")
        out[site.name] = biject_to(support).inv(value)
    return space.ravel(out, target.sites)


def _chosen(
    method: str, point: _Point, sites: tuple, num_starts: int, agree: int, curvature: str, notes: list[str]
) -> Start:
    """Split a point over all latents into the whitened global part and the per-datum local part."""
    is_global = np.concatenate([np.full(s.size, not s.local) for s in sites])
    loc, scale = np.asarray(point.loc), np.asarray(point.scale)
    diagonal = np.asarray(point.diagonal)
    if scale.ndim == 2 and not is_global.all():
        covariance = (scale @ scale.T)[np.ix_(is_global, is_global)]
        scale = np.linalg.cholesky(covariance) if is_global.any() else np.zeros((0, 0))
    elif scale.ndim == 1:
        scale = scale[is_global]
    local = tuple(s for s in sites if s.local)
    everything = {s.name: v for s, v in zip(sites, _pieces(loc, sites), strict=True)}
    spread = {s.name: v for s, v in zip(sites, _pieces(diagonal, sites), strict=True)}
    return Start(
        method=method,
        loc=loc[is_global],
        scale=scale,
        local_loc={s.name: everything[s.name] for s in local},
        local_scale={s.name: np.clip(spread[s.name], 1e-6, 1e6) for s in local},
        num_starts=num_starts,
        num_agree=agree,
        log_joint=float(point.log_joint),
        elbo=float(point.elbo),
        gradient_norm=float(point.gradient_norm),
        condition_number=float(point.condition_number),
        curvature=curvature,
        notes=tuple(notes),
    )


def _pieces(vector: np.ndarray, sites: tuple) -> list[np.ndarray]:
    offsets = np.cumsum([s.size for s in sites])[:-1]
    return [piece.reshape(s.shape) for piece, s in zip(np.split(vector, offsets), sites, strict=True)]


def default_guide(model: Callable, data: dict[str, Any], start: Start, theta: dict[str, Any]) -> WhitenedNormal:
    """The guide that lives in the start's whitened coordinates."""
    sites = space.sites_of(model, theta, data)
    dtype = jnp.result_type(float)
    return WhitenedNormal(
        model=model,
        loc=jnp.asarray(start.loc, dtype),
        scale=jnp.asarray(start.scale, dtype),
        local_loc={k: jnp.asarray(v, dtype) for k, v in start.local_loc.items()},
        local_scale={k: jnp.asarray(v, dtype) for k, v in start.local_scale.items()},
        sites=sites,
        full_rank=start.loc.shape[0] <= FULL_RANK_LIMIT,
    )
