"""The posterior of a clean datum from the score of noisy data alone: Tweedie's formula by kinds of noise.

    noise = GaussianNoise(0.3)
    noise.mean(score, y), noise.variance(score, y)

`score` is ∇ log p of the noisy data, a function of one datum y with values of its shape: of a fitted
`models.diffusion.Diffusion` at the level of the noise, or any other. For many data ``jax.vmap``. No clean data enter
(Noise2Score: Tweedie's Approach to Self-Supervised Image Denoising without Clean Images).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .checks import check_counts, check_positive

Score = Callable[[Array], Array]


def _with_slope(score: Score, y: Array) -> tuple[Array, Array]:
    """The score at one y, and its own derivative by coordinate: the diagonal of the Hessian of log p."""
    flat = lambda y_: score(y_.reshape(y.shape)).reshape(-1)  # noqa: E731
    return score(y), jnp.diagonal(jax.jacfwd(flat)(y.reshape(-1))).reshape(y.shape)


@dataclass(frozen=True)
class GaussianNoise:
    """y = x + sd·ε."""

    sd: float

    def __post_init__(self) -> None:
        check_positive("sd", self.sd)

    def mean(self, score: Score, y: Array) -> Array:
        """E[x | y] = y + sd² s(y), of the shape of one y."""
        return y + self.sd**2 * score(y)

    def variance(self, score: Score, y: Array) -> Array:
        """Var[x | y] of every coordinate: sd² + sd⁴ ∂s/∂y."""
        return self.sd**2 + self.sd**4 * _with_slope(score, y)[1]


@dataclass(frozen=True)
class PoissonNoise:
    """y = scale·z, z ~ Poisson(x/scale): counts in units of `scale`, x of the units of y.

    E[x | y] = (y + scale) p(y + scale)/p(y), p the probabilities of y as a smooth function of it. The logarithm of the
    ratio is the integral of the score.

    Args:
        scale: of one count.
        nodes: of Gauss and Legendre's rule for that integral. One is Noise2Score's, good where counts are not few; with
            more it is exact, for coordinates that are independent.
    """

    scale: float = 1.0
    nodes: int = 1

    def __post_init__(self) -> None:
        check_positive("scale", self.scale)
        check_counts(nodes=self.nodes)

    def mean(self, score: Score, y: Array) -> Array:
        """E[x | y], of the shape of one y."""
        places, weights = np.polynomial.legendre.leggauss(self.nodes)
        along = sum(w / 2 * score(y + self.scale * (u + 1) / 2) for u, w in zip(places, weights, strict=True))
        return (y + self.scale) * jnp.exp(self.scale * along)

    def variance(self, score: Score, y: Array) -> Array:
        """Var[x | y] = m(y) (m(y + scale) − m(y)) of every coordinate, m the mean: E[x² | y] = m(y) m(y + scale)."""
        mean = self.mean(score, y)
        return mean * (self.mean(score, y + self.scale) - mean)


@dataclass(frozen=True)
class GammaNoise:
    """y = x·z, z ~ Gamma(shape, shape) of mean 1: speckle, y and x positive.

    The score knows the posterior of 1/x, the natural parameter; `mean` is its inverse, below E[x | y] by Jensen's
    inequality.

    Args:
        shape: of the gamma distribution; the relative variance of the noise is 1/shape.
    """

    shape: float

    def __post_init__(self) -> None:
        check_positive("shape", self.shape)

    def mean(self, score: Score, y: Array) -> Array:
        """1/E[1/x | y], of the shape of one y."""
        return 1 / self.inverse_moments(score, y)[0]

    def inverse_moments(self, score: Score, y: Array) -> tuple[Array, Array]:
        """E[1/x | y] = ((shape − 1)/y − s(y))/shape and Var[1/x | y] = ((shape − 1)/y² + ∂s/∂y)/shape²."""
        value, slope = _with_slope(score, y)
        excess = self.shape - 1
        return (excess / y - value) / self.shape, (excess / y**2 + slope) / self.shape**2
