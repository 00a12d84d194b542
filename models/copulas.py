"""Bivariate copulas: Gaussian, Clayton, Gumbel and Frank. Density, draws, Kendall's tau and its inverse, a model each.

A copula is the distribution of two variables after each has been put on (0, 1) by its own distribution function. Here
the data are ranks divided by n + 1, so that the margins need no model; the likelihood is then Genest, Ghoudi and
Rivest's pseudo-likelihood ("A Semiparametric Estimation Procedure of Dependence Parameters", 1995), whose standard
errors neglect that the margins were estimated.

Densities are written so that no step cancels: each is smooth through independence and far into the corners. Sources:
Nelsen, "An Introduction to Copulas" (2006); Joe, "Dependence Modeling with Copulas" (2014).

Data: income and food expenditure of 235 Belgian households (Engel 1857), as shipped in statsmodels, as ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from jax.scipy.special import ndtr, ndtri
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from . import _statsmodels
from ._smooth import expm1_over, log1p_over
from .registry import Model

__all__ = [
    "MODELS",
    "ClaytonCopula",
    "Copula",
    "FrankCopula",
    "GaussianCopula",
    "GumbelCopula",
    "clayton",
    "data",
    "frank",
    "gaussian",
    "gumbel",
    "pseudo_observations",
]


class Copula(dist.Distribution):
    """A distribution of pairs (..., 2) in the unit square with uniform margins and one parameter.

    A family states `log_density(u, v)`, `tau()` and `from_tau(tau)`, and its own `sample` or `conditional_quantile(u,
    p)`, the v below which lies a share p of the distribution given u.
    """

    support = constraints.independent(constraints.unit_interval, 1)

    def __init__(self, parameter: Array, *, validate_args: bool | None = None) -> None:
        super().__init__(jnp.shape(parameter), (2,), validate_args=validate_args)

    def log_density(self, u: Array, v: Array) -> Array:
        raise NotImplementedError

    def conditional_quantile(self, u: Array, p: Array) -> Array:
        raise NotImplementedError

    def tau(self) -> Array:
        """Kendall's tau, of the batch shape."""
        raise NotImplementedError

    @validate_sample
    def log_prob(self, value: ArrayLike) -> Array:
        u = _inside(jnp.asarray(value, jnp.result_type(float)))
        return self.log_density(u[..., 0], u[..., 1])

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Array:
        assert key is not None
        u, p = _inside(jax.random.uniform(key, (2, *sample_shape, *self.batch_shape)))
        return jnp.stack([u, _inside(self.conditional_quantile(u, p))], axis=-1)


def _inside(u: Array) -> Array:
    """Off the edges of (0, 1) by less than the machine's precision: ranks never are there, draws may round to them."""
    return jnp.clip(u, jnp.finfo(u.dtype).tiny, 1.0 - jnp.finfo(u.dtype).epsneg)


class GaussianCopula(Copula):
    """The copula of a bivariate normal distribution.

    :param rho: correlation, in (-1, 1).
    """

    arg_constraints: ClassVar = {"rho": constraints.open_interval(-1.0, 1.0)}
    pytree_data_fields = ("rho",)

    def __init__(self, rho: ArrayLike, *, validate_args: bool | None = None) -> None:
        self.rho = jnp.asarray(rho)
        super().__init__(self.rho, validate_args=validate_args)

    def log_density(self, u: Array, v: Array) -> Array:
        x, y = ndtri(u), ndtri(v)
        rest = (1.0 - self.rho) * (1.0 + self.rho)
        # The density of y given x over that of y; the form symmetric in x and y would cancel near rho = 1.
        return -0.5 * jnp.log(rest) - 0.5 * (y - self.rho * x) ** 2 / rest + 0.5 * y**2

    def conditional_quantile(self, u: Array, p: Array) -> Array:
        return ndtr(self.rho * ndtri(u) + jnp.sqrt((1.0 - self.rho) * (1.0 + self.rho)) * ndtri(p))

    def tau(self) -> Array:
        return 2.0 / jnp.pi * jnp.arcsin(self.rho)

    @classmethod
    def from_tau(cls, tau: ArrayLike) -> GaussianCopula:
        """The copula of that Kendall's tau, in (-1, 1)."""
        return cls(jnp.sin(0.5 * jnp.pi * jnp.asarray(tau)))


class ClaytonCopula(Copula):
    """C(u, v) = (u^-theta + v^-theta - 1)^(-1 / theta): dependence in the lower tail.

    :param theta: > 0; 0, its limit, is independence.
    """

    arg_constraints: ClassVar = {"theta": constraints.nonnegative}
    pytree_data_fields = ("theta",)

    def __init__(self, theta: ArrayLike, *, validate_args: bool | None = None) -> None:
        self.theta = jnp.asarray(theta)
        super().__init__(self.theta, validate_args=validate_args)

    def log_density(self, u: Array, v: Array) -> Array:
        theta, a, b = self.theta, -jnp.log(u), -jnp.log(v)
        low, high = jnp.minimum(a, b), jnp.maximum(a, b)
        # log(e^{theta a} + e^{theta b} - 1) / theta = high + log(1 + r) / theta, r = theta ratio: nothing cancels
        ratio = jnp.exp(-theta * (high - low)) * low * expm1_over(-theta * low)
        power = high + ratio * log1p_over(theta * ratio)
        return jnp.log1p(theta) + (1.0 + theta) * (a + b) - (2.0 * theta + 1.0) * power

    def conditional_quantile(self, u: Array, p: Array) -> Array:
        # v^-theta = 1 + (p^{-theta / (1 + theta)} - 1) u^-theta
        theta = jnp.maximum(self.theta, jnp.finfo(u.dtype).eps)
        c = -theta / (1.0 + theta) * jnp.log(p)
        return jnp.exp(-jax.nn.softplus(c + jnp.log(-jnp.expm1(-c)) - theta * jnp.log(u)) / theta)

    def tau(self) -> Array:
        return self.theta / (self.theta + 2.0)

    @classmethod
    def from_tau(cls, tau: ArrayLike) -> ClaytonCopula:
        """The copula of that Kendall's tau, in [0, 1)."""
        tau = jnp.asarray(tau)
        return cls(2.0 * tau / (1.0 - tau))


class GumbelCopula(Copula):
    """C(u, v) = exp(-((-log u)^theta + (-log v)^theta)^(1 / theta)): dependence in the upper tail.

    :param theta: >= 1; 1 is independence.
    """

    arg_constraints: ClassVar = {"theta": constraints.greater_than_eq(1.0)}
    pytree_data_fields = ("theta",)

    def __init__(self, theta: ArrayLike, *, validate_args: bool | None = None) -> None:
        self.theta = jnp.asarray(theta)
        super().__init__(self.theta, validate_args=validate_args)

    def log_density(self, u: Array, v: Array) -> Array:
        theta, a, b = self.theta, -jnp.log(u), -jnp.log(v)
        log_a, log_b = jnp.log(a), jnp.log(b)
        log_s = jnp.logaddexp(theta * log_a, theta * log_b) / theta
        s = jnp.exp(log_s)
        return a + b - s + (theta - 1.0) * (log_a + log_b) - (2.0 * theta - 1.0) * log_s + jnp.log(s + (theta - 1.0))

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Array:
        """Marshall and Olkin's construction with a positive stable variable (Kanter 1975) of index 1 / theta."""
        assert key is not None
        key_angle, key_stable, key_pair = jax.random.split(key, 3)
        shape, alpha = (*sample_shape, *self.batch_shape), 1.0 / self.theta
        angle = jnp.pi * _inside(jax.random.uniform(key_angle, shape))
        tiny = jnp.finfo(angle.dtype).tiny
        ratio = jnp.log(jnp.maximum(jnp.sin((1.0 - alpha) * angle), tiny))
        ratio = ratio - jnp.log(jax.random.exponential(key_stable, shape))
        log_stable = jnp.log(jnp.sin(alpha * angle)) - jnp.log(jnp.sin(angle)) / alpha
        log_stable = log_stable + (1.0 - alpha) / alpha * ratio
        log_hazard = jnp.log(jax.random.exponential(key_pair, (*shape, 2))) - log_stable[..., None]
        return _inside(jnp.exp(-jnp.exp(alpha[..., None] * log_hazard)))

    def tau(self) -> Array:
        return 1.0 - 1.0 / self.theta

    @classmethod
    def from_tau(cls, tau: ArrayLike) -> GumbelCopula:
        """The copula of that Kendall's tau, in [0, 1)."""
        return cls(1.0 / (1.0 - jnp.asarray(tau)))


class FrankCopula(Copula):
    """C(u, v) = -log(1 + (e^{-theta u} - 1)(e^{-theta v} - 1) / (e^{-theta} - 1)) / theta: no dependence in the tails.

    :param theta: real; 0 is independence, negative values turn one margin around.
    """

    arg_constraints: ClassVar = {"theta": constraints.real}
    pytree_data_fields = ("theta",)

    def __init__(self, theta: ArrayLike, *, validate_args: bool | None = None) -> None:
        self.theta = jnp.asarray(theta)
        super().__init__(self.theta, validate_args=validate_args)

    def log_density(self, u: Array, v: Array) -> Array:
        # c(u, v; -theta) = c(1 - u, v; theta). Turned around only well below 0: the formula is smooth through 0.
        turned = self.theta < -1.0
        theta, u = jnp.where(turned, -self.theta, self.theta), jnp.where(turned, 1.0 - u, u)
        low, high = jnp.minimum(u, v), jnp.maximum(u, v)

        def mass(x: Array) -> Array:
            """(1 - e^{-theta x}) / theta"""
            return x * expm1_over(-theta * x)

        # The square in the denominator is e^{-theta low} times this sum of positive terms.
        rest = mass(high) + jnp.exp(-theta * (high - low)) * mass(1.0 - high)
        return jnp.log(mass(jnp.ones_like(high))) - theta * (high - low) - 2.0 * jnp.log(rest)

    def conditional_quantile(self, u: Array, p: Array) -> Array:
        theta = self.theta
        near = jnp.abs(theta) < 0.1
        small, large = jnp.where(near, theta, 0.0), jnp.where(near, 1.0, theta)
        q = p * expm1_over(-small) / (jnp.exp(-small * u) + small * p * u * expm1_over(-small * u))
        log_p, log_rest = jnp.log(p), jnp.log1p(-p) - large * u
        far = (jnp.logaddexp(log_p, log_rest) - jnp.logaddexp(log_rest, log_p - large)) / large
        return jnp.where(near, q * log1p_over(-small * q), far)

    def tau(self) -> Array:
        return _frank_tau(self.theta)

    @classmethod
    def from_tau(cls, tau: ArrayLike) -> FrankCopula:
        """The copula of that Kendall's tau, in (-1, 1), by Newton's method."""
        tau = jnp.asarray(tau, jnp.result_type(float))

        def newton(_: int, theta: Array) -> Array:
            value, slope = jax.jvp(_frank_tau, (theta,), (jnp.ones_like(theta),))
            return theta - (value - tau) / slope

        # |tau| is concave in |theta| with slope 1/9 at 0: from 9 tau Newton's steps never overshoot
        return cls(jax.lax.fori_loop(0, 30, newton, 9.0 * tau))


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


def _frank_tau(theta: ArrayLike) -> Array:
    """1 - 4 (1 - D_1(theta)) / theta with Debye's function D_1(theta) = integral_0^1 theta s / (e^{theta s} - 1) ds."""
    theta = jnp.asarray(theta, jnp.result_type(float))
    size = jnp.abs(theta)  # tau is odd
    near = size < 0.2
    series = size / 9.0 - size**3 / 900.0 + size**5 / 52920.0 - size**7 / 2721600.0
    safe = jnp.where(near, 1.0, size)
    # The integrand is 1 over a range of 1 / theta: integrate over the part that is not negligible.
    reach = jnp.minimum(safe, 40.0)
    t = 0.5 * reach[..., None] * (_NODES + 1.0)
    debye = 0.5 * reach / safe * ((t * jnp.exp(-t) / -jnp.expm1(-t)) @ _WEIGHTS)
    return jnp.sign(theta) * jnp.where(near, series, 1.0 - 4.0 * (1.0 - debye) / safe)


def pseudo_observations(values: ArrayLike) -> np.ndarray:
    """Ranks over n + 1, column by column, ties at their mean rank. `values`: (n, d)."""
    from scipy.stats import rankdata

    values = np.asarray(values)
    return rankdata(values, axis=0) / (len(values) + 1.0)


def _model(u: ArrayLike | None, num_data: int | None, copula: Callable[[], Copula]) -> None:
    if u is None and num_data is None:
        raise ValueError("without u the model needs num_data")
    if u is not None and (jnp.ndim(u) != 2 or jnp.shape(u)[1] != 2):
        raise ValueError(f"u must have shape (n, 2), got {jnp.shape(u)}")
    fitted = copula()
    numpyro.deterministic("tau", fitted.tau())
    with numpyro.plate("data", num_data if u is None else jnp.shape(u)[0]):
        numpyro.sample("u", fitted, obs=u)


def gaussian(u: ArrayLike | None = None, num_data: int | None = None) -> None:
    """Pairs `u` (n, 2) in (0, 1) in plate "data". Site rho () ~ Uniform(-1, 1); deterministic: Kendall's tau."""
    _model(u, num_data, lambda: GaussianCopula(numpyro.sample("rho", dist.Uniform(-1.0, 1.0))))


def clayton(u: ArrayLike | None = None, num_data: int | None = None) -> None:
    """Pairs `u` (n, 2) in (0, 1) in plate "data". Site theta () ~ LogNormal(0, 1.5^2); deterministic: tau."""
    _model(u, num_data, lambda: ClaytonCopula(numpyro.sample("theta", dist.LogNormal(0.0, 1.5))))


def gumbel(u: ArrayLike | None = None, num_data: int | None = None) -> None:
    """Pairs `u` (n, 2) in (0, 1) in plate "data". Site theta_minus_1 () ~ LogNormal(0, 1.5^2); deterministic: tau."""
    _model(u, num_data, lambda: GumbelCopula(1.0 + numpyro.sample("theta_minus_1", dist.LogNormal(0.0, 1.5))))


def frank(u: ArrayLike | None = None, num_data: int | None = None) -> None:
    """Pairs `u` (n, 2) in (0, 1) in plate "data". Site theta () ~ N(0, 10^2); deterministic: tau."""
    _model(u, num_data, lambda: FrankCopula(numpyro.sample("theta", dist.Normal(0.0, 10.0))))


def data() -> dict[str, Any]:
    """Ranks of income and of food expenditure, `u` (235, 2)."""
    return {"u": pseudo_observations(_statsmodels.load("engel")[["income", "foodexp"]].to_numpy(np.float64))}


MODELS = tuple(
    Model(
        name=f"{family.__name__}_copula",
        description=f"{family.__name__.title()} copula, income and food expenditure of 235 households as ranks",
        model=family,
        data=data,
    )
    for family in (gaussian, clayton, gumbel, frank)
)
