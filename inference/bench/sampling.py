"""Densities of the diffusion-sampler literature as NumPyro models: normalising constant known, exact draws at hand.

Each is a flat vector with its log-density as a factor, as in "Denoising Diffusion Samplers" and "Flow Annealed
Importance Sampling Bootstrap": there are no data, log evidence is log Z.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints
from scipy import integrate
from scipy.special import logsumexp

from .cases import Case, Truth

NUM_DRAWS = 10_000


def _flat(size: int) -> Array:
    return numpyro.sample("x", dist.ImproperUniform(constraints.real_vector, (), (size,)))


def _no_data() -> dict[str, Any]:
    return {}


# --- Neal's funnel ---------------------------------------------------------------------------------------------------

FUNNEL_DIMENSION = 10


def funnel() -> None:
    """x_0 ~ N(0, 3²), x_i | x_0 ~ N(0, exp(x_0)) for i = 1..9 (Neal, "Slice Sampling", 2003)."""
    x = _flat(FUNNEL_DIMENSION)
    numpyro.factor("density", dist.Normal(0.0, 3.0).log_prob(x[0]) + dist.Normal(0.0, jnp.exp(x[0] / 2)).log_prob(
        x[1:]).sum())  # fmt: skip


def _funnel_truth() -> Truth:
    rng = np.random.RandomState(0)
    neck = 3.0 * rng.standard_normal(NUM_DRAWS)
    rest = np.exp(neck / 2)[:, None] * rng.standard_normal((NUM_DRAWS, FUNNEL_DIMENSION - 1))
    # E exp(x_0) = exp(9 / 2): draws alone would be far off it, the tail is too heavy
    sd = np.array([3.0, *[math.exp(9.0 / 4.0)] * (FUNNEL_DIMENSION - 1)])
    return Truth({"x": np.column_stack([neck, rest])}, {"x": (np.zeros(FUNNEL_DIMENSION), sd)}, 0.0)


# --- the banana ------------------------------------------------------------------------------------------------------

CURVATURE, LENGTH = 0.03, 10.0


def banana() -> None:
    """x_0 ~ N(0, 10²), x_1 | x_0 ~ N(0.03 (100 − x_0²), 1) (Haario et al., "Adaptive Metropolis", 2001)."""
    x = _flat(2)
    bent = CURVATURE * (LENGTH**2 - x[0] ** 2)
    numpyro.factor("density", dist.Normal(0.0, LENGTH).log_prob(x[0]) + dist.Normal(bent, 1.0).log_prob(x[1]))


def _banana_truth() -> Truth:
    rng = np.random.RandomState(0)
    first = LENGTH * rng.standard_normal(NUM_DRAWS)
    second = CURVATURE * (LENGTH**2 - first**2) + rng.standard_normal(NUM_DRAWS)
    sd = np.array([LENGTH, math.sqrt(1.0 + 2.0 * (CURVATURE * LENGTH**2) ** 2)])  # var of x² is 2 sd⁴
    return Truth({"x": np.column_stack([first, second])}, {"x": (np.zeros(2), sd)}, 0.0)


# --- Gaussian mixtures -----------------------------------------------------------------------------------------------


def _forty_means() -> np.ndarray:
    """40 centres, uniform on (−40, 40)²; our own draw, as the paper's comes from another library's stream."""
    return np.random.RandomState(0).uniform(-40.0, 40.0, (40, 2))


def _nine_means() -> np.ndarray:
    return 5.0 * np.array([[i, j] for i in (-1, 0, 1) for j in (-1, 0, 1)], float)


FORTY_SCALE = float(np.log1p(np.e))  # softplus(1)
NINE_SCALE = math.sqrt(0.3)


def _mixture(means: np.ndarray, scale: float) -> None:
    x = _flat(2)
    distance = (x - jnp.asarray(means)) / scale
    terms = -0.5 * jnp.sum(distance**2, -1)
    constant = math.log(len(means)) + math.log(2 * math.pi) + 2 * math.log(scale)
    numpyro.factor("density", jax.nn.logsumexp(terms) - constant)


def gmm40() -> None:
    """40 equal Gaussians of sd 1.31, centres uniform on (−40, 40)² ("Flow Annealed Importance Sampling Bootstrap")."""
    _mixture(_forty_means(), FORTY_SCALE)


def gmm9() -> None:
    """9 equal Gaussians of variance 0.3 on the grid {−5, 0, 5}² ("Path Integral Sampler")."""
    _mixture(_nine_means(), NINE_SCALE)


def _mixture_truth(means: np.ndarray, scale: float) -> Truth:
    rng = np.random.RandomState(1)
    draws = means[rng.randint(len(means), size=NUM_DRAWS)] + scale * rng.standard_normal((NUM_DRAWS, 2))
    return Truth({"x": draws}, {"x": (means.mean(0), np.sqrt(scale**2 + means.var(0)))}, 0.0)


def _gmm40_truth() -> Truth:
    return _mixture_truth(_forty_means(), FORTY_SCALE)


def _gmm9_truth() -> Truth:
    return _mixture_truth(_nine_means(), NINE_SCALE)


# --- many wells ------------------------------------------------------------------------------------------------------

WELLS = 16


def many_well() -> None:
    """16 pairs (a, b) of log-density −a⁴ + 6 a² + a/2 − b²/2, 2¹⁶ modes in 32 dimensions
    ("Flow Annealed Importance Sampling Bootstrap")."""
    x = _flat(2 * WELLS)
    a, b = x[0::2], x[1::2]
    numpyro.factor("density", jnp.sum(-(a**4) + 6 * a**2 + 0.5 * a - 0.5 * b**2))


def _well(a: Any) -> Any:
    return -(a**4) + 6 * a**2 + 0.5 * a


def _many_well_truth() -> Truth:
    """Each `a` alone has a density on the line: constant and moments by quadrature, draws by inverting its integral."""
    grid = np.linspace(-5.0, 5.0, 20_001)
    log_density = _well(grid)
    density = np.exp(log_density - logsumexp(log_density))
    norm = integrate.quad(lambda a: math.exp(_well(a) - 9.0), -6.0, 6.0, points=[-1.7, 1.7])[0]  # 9: near the maximum
    log_z = WELLS * (math.log(norm) + 9.0 + 0.5 * math.log(2 * math.pi))
    mean = density @ grid
    sd = math.sqrt(density @ (grid - mean) ** 2)
    rng = np.random.RandomState(0)
    draws = np.empty((NUM_DRAWS, 2 * WELLS))
    draws[:, 0::2] = np.interp(rng.random_sample((NUM_DRAWS, WELLS)), np.cumsum(density), grid)
    draws[:, 1::2] = rng.standard_normal((NUM_DRAWS, WELLS))
    moments = np.tile([mean, 0.0], WELLS), np.tile([sd, 1.0], WELLS)
    return Truth({"x": draws}, {"x": moments}, log_z)


def cases() -> tuple[Case, ...]:
    def case(model: Callable, truth: Callable[[], Truth]) -> Case:
        return Case(model.__name__, model, _no_data, truth)

    return (
        case(funnel, _funnel_truth),
        case(banana, _banana_truth),
        case(gmm9, _gmm9_truth),
        case(gmm40, _gmm40_truth),
        case(many_well, _many_well_truth),
    )
