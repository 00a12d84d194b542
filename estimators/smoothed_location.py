"""Location estimation under a smoothed density, with intervals from its Fisher information."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax, random
from jax.scipy.special import logsumexp
from numpyro import handlers
from scipy import stats

from .base import Data, Params
from .checks import check_positive
from .likelihood import MLE, LikelihoodProblem, _real_supports
from .roles import is_factor

MAX_POINTS = 50_000


@dataclass(frozen=True, init=False)
class SmoothedLocation(MLE):
    """Maximum likelihood of a location μ under f_r = f * N(0, r²), f the density of the model at μ = 0.

    In finite samples the asymptotic theory of the MLE holds for the smoothed density, whose Fisher information I_r is
    finite and stable even where f has spikes or jumps; the price is I_r ≤ I (High-dimensional Location Estimation via
    Norm Concentration for Subgamma Vectors; Finite-Sample Maximum Likelihood Estimation of Location). Noise N(0, r²) is
    added to the data once, by the seed of `fit`, so that they do follow f_r: μ̂ is then N(μ, 1/(n I_r)) in the limit.
    `smoothed_interval` has the interval.

    The model has one scalar parameter, its location, and one observed continuous site of independent scalars.

    Args:
        radius: r, in the units of the data.
        perturb: False leaves the data as they are: no noise from the seed, but f_r is then not their density; take
            the covariance "sandwich".
        num_quadrature: points, at least, at which f is known to the convolution; they lie as far as the data reach,
            and closer than radius/4. A density with features narrower than their distance needs more.
        options: covariance, weights, latents, as in `MLE`.
    """

    radius: float = 1.0
    perturb: bool = True
    num_quadrature: int = 1000
    valid_covariances = ("observed", "opg", "sandwich", "bootstrap")
    """Not of data simulated from the fit: these are not smoothed."""

    def __init__(
        self, radius: float = 1.0, *, perturb: bool = True, num_quadrature: int = 1000, **options: Any
    ) -> None:
        # written out, so that the radius comes first
        given = {"radius": radius, "perturb": perturb, "num_quadrature": num_quadrature, **options}
        for each in fields(self):
            object.__setattr__(self, each.name, given.pop(each.name, each.default))
        if given:
            raise TypeError(f"SmoothedLocation has no argument {next(iter(given))!r}")
        self.__post_init__()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("radius", self.radius)
        if not isinstance(self.num_quadrature, int) or not 10 <= self.num_quadrature <= MAX_POINTS:
            raise ValueError(f"num_quadrature must be an integer from 10 to {MAX_POINTS}, got {self.num_quadrature!r}")
        for name in ("robust", "data_noise", "mollify", "subsample"):
            if getattr(self, name):
                raise ValueError(f"SmoothedLocation does not go with {name}={getattr(self, name)!r}")

    def problem(self, rng_key: Array, model: Callable, guide: Callable | None, data: Data) -> SmoothedLocationProblem:
        problem: SmoothedLocationProblem = SmoothedLocationProblem.create(self, rng_key, model, data)  # type: ignore[assignment]
        site, value = _observed(problem)
        noise = jnp.zeros_like(value)
        if self.perturb:
            # fold_in(key, i) is split(key)[i], and the model's own keys are splits: a number that no split reaches
            noise = random.normal(random.fold_in(rng_key, 2**31 - 1), value.shape, value.dtype)
        grid = _grid(value, self.radius, self.num_quadrature)
        centre = jnp.median(value)
        shift = _offset(problem, site)  # where the data lie when μ = 0
        log_density = _density(problem, site, value, grid, centre)
        params = {name: (centre - shift).reshape(jnp.shape(x)).astype(x.dtype) for name, x in problem.params.items()}
        return replace(
            problem, observed={site: value}, draws=noise, params=params, grid=grid, log_density=log_density
        )  # fmt: skip


class SmoothedLocationProblem(LikelihoodProblem):
    """−Σ log f_r(x_i − μ), f_r(y) = ∫ f(t) N(y − t; 0, r²) dt by the trapezoidal rule.

    f stays where it is and the normal moves, so that the loss is smooth in μ whatever f is.
    """

    draws: Array | None = None
    """Noise of unit variance that perturbs the data, ``(n,)``: of the units, so drawn once."""
    grid: Array | None = None
    """t, ``(K,)``, evenly spaced."""
    log_density: Array | None = None
    """log f(t), ``(K,)``"""

    def _log_smoothed(self, y: Array) -> tuple[Array, Array]:
        """log f_r and its derivative at y, ``(m,)`` each."""
        assert self.grid is not None
        assert self.log_density is not None
        radius = self.options.radius  # type: ignore[attr-defined]
        distance = (self.grid - y[:, None]) / radius
        constant = jnp.log(self.grid[1] - self.grid[0]) - jnp.log(radius) - 0.5 * jnp.log(2 * jnp.pi)
        terms = self.log_density - 0.5 * distance**2 + constant
        return logsumexp(terms, axis=1), jnp.sum(jax.nn.softmax(terms, axis=1) * distance, axis=1) / radius

    def terms(self, params: Params, data: Data, rng_key: Array | None = None) -> tuple[Array, Array, Array]:
        assert self.draws is not None
        (value,) = self.observed.values()
        value = value + self.options.radius * self.draws  # type: ignore[attr-defined]
        mu = jnp.ravel(next(iter(params.values())))
        return self._log_smoothed(value - mu)[0], jnp.zeros(()), jnp.zeros(())

    def smoothed_information(self) -> Array:
        """I_r = ∫ f_r'²/f_r of one datum: from the model, not from the data."""
        assert self.grid is not None
        log_f, score = lax.map(lambda y: self._log_smoothed(y[None]), self.grid, batch_size=256)
        f = jnp.exp(log_f[:, 0])
        return jnp.trapezoid(score[:, 0] ** 2 * f, self.grid) / jnp.trapezoid(f, self.grid)


class LocationInterval(NamedTuple):
    estimate: float
    lower: float
    upper: float
    std_err: float
    """1/√(n I_r)"""
    information: float
    """I_r, of one datum."""


def smoothed_interval(result: Any, prob: float = 0.95) -> LocationInterval:
    """μ̂ ± quantile/√(n I_r) of a fit of `SmoothedLocation`.

    Raises:
        TypeError: a fit of another estimator. ValueError: `prob` outside of (0, 1).
    """
    problem = result.problem
    if not isinstance(problem, SmoothedLocationProblem):
        raise TypeError(f"smoothed_interval needs a fit of SmoothedLocation, got one of {result.estimator!r}")
    if not 0 < prob < 1:
        raise ValueError(f"prob must lie strictly between 0 and 1, got {prob}")
    with result.precision():
        information = float(problem.smoothed_information())
    n = float(np.sum(np.broadcast_to(problem.weights, (problem.num_units,))))
    estimate = float(np.ravel(next(iter(result.params.values())))[0])
    std_err = 1 / np.sqrt(n * information)
    half = float(stats.norm.ppf((1 + prob) / 2)) * std_err
    return LocationInterval(estimate, estimate - half, estimate + half, std_err, information)


def _observed(problem: LikelihoodProblem) -> tuple[str, Array]:
    """The one observed site and its values.

    Raises:
        ValueError: a model that is no location model, as far as its sites tell.
    """
    sizes = {n: sum(int(np.size(x)) for x in jax.tree.leaves(v)) for n, v in problem.params.items()}
    if sum(sizes.values()) != 1:
        raise ValueError(f"SmoothedLocation needs one scalar parameter, the location; the model has {sizes}")
    if problem.roles.integrated or problem.roles.enumerated:
        raise ValueError("SmoothedLocation needs a model without latents beside its location")
    trace = handlers.trace(
        handlers.substitute(problem._prepared(), substitute_fn=problem._values(problem.params, {}, None))
    )
    observed = [s for s in trace.get_trace(**problem.data).values() if s["type"] == "sample" and s["is_observed"]]
    if len(observed) != 1 or is_factor(observed[0]) or observed[0]["fn"].support.is_discrete:
        raise ValueError("SmoothedLocation needs exactly one observed site, and a continuous one")
    value = jnp.asarray(observed[0]["value"], jnp.result_type(float))
    if value.ndim != 1 or observed[0]["fn"].event_dim:
        raise ValueError(f"SmoothedLocation needs independent scalars, shape (n,), got {value.shape}")
    return observed[0]["name"], value


def _log_density(problem: LikelihoodProblem, site: str, value: Array, mu: Array) -> Array:
    moved = replace(problem, observed={site: value})
    params = {n: jnp.asarray(mu, x.dtype).reshape(jnp.shape(x)) for n, x in problem.params.items()}
    return LikelihoodProblem.terms(moved, params, problem.data)[0]


def _grid(value: Array, radius: float, num_points: int) -> Array:
    """Points t = x − μ that matter to the data, perturbed or not, for every μ among them."""
    spread = float(jnp.max(value) - jnp.min(value)) + 20 * radius
    num_points = max(num_points, int(np.ceil(8 * spread / radius)))
    if num_points > MAX_POINTS:
        raise ValueError(
            f"radius={radius} is too small for data that span {spread:.3g}: the convolution would need {num_points} "
            "points. Take a larger radius, or set outliers aside"
        )
    return jnp.linspace(-spread, spread, num_points)


def _density(problem: LikelihoodProblem, site: str, value: Array, grid: Array, centre: Array) -> Array:
    """log f on the grid. The model observes n values at a time.

    Raises:
        ValueError: p(x | μ) is no function of x − μ, or not the same for every unit.
    """
    n, count = value.size, grid.size
    blocks = jnp.pad(grid, (0, -count % n), mode="edge").reshape(-1, n)
    at = lambda mu: lax.map(lambda t: _log_density(problem, site, mu + t, mu), blocks).reshape(-1)[:count]  # noqa: E731
    here, there = at(centre), at(centre + 0.37 * (grid[-1] - grid[0]) + 1.0)
    same = _log_density(problem, site, jnp.full_like(value, centre), centre)
    both = jnp.isfinite(here) & jnp.isfinite(there)
    moved = jnp.allclose(jnp.where(both, here, 0.0), jnp.where(both, there, 0.0), rtol=1e-3, atol=1e-3)
    if not all(_real_supports(problem).values()) or not bool(moved & jnp.any(both)):
        raise ValueError(
            "the model's parameter is not a location: moving data and parameter together changes the density. "
            "SmoothedLocation needs p(x | μ) = f(x − μ), μ without constraint"
        )
    if not bool(jnp.allclose(same, same[0])):
        raise ValueError("SmoothedLocation needs data of one distribution, and the model has another for every unit")
    return jnp.where(jnp.isnan(here), -jnp.inf, here)


def _offset(problem: LikelihoodProblem, site: str) -> Array:
    """A guess of mean(x) − μ under the model: the mean of one simulated data set at μ = 0, if it can be drawn."""
    try:
        params = jax.tree.map(jnp.zeros_like, problem.params)
        drawn = problem.simulate(params, random.key(0))[site]
    except NotImplementedError:
        return jnp.zeros(())
    middle = jnp.median(drawn)
    return jnp.where(jnp.isfinite(middle), middle, 0.0)
