"""Heavy-tailed returns: Student's t, and Hansen's skew t.

Hansen, "Autoregressive Conditional Density Estimation" (1994): two halves of a Student t of different width, joined at
the mode, then shifted and scaled so that mean and variance are the location and the squared scale. Its density needs
Gamma functions only, so that it can be differentiated in the degrees of freedom.

Data: quarterly growth of US real gross private domestic investment, 202 quarters from 1959Q2 (Federal Reserve Bank of
St. Louis; statsmodels), in per cent: 100 times differences of logarithms.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array, lax
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.distributions.util import promote_shapes, validate_sample

from . import _statsmodels
from ._smooth import log_rising
from .registry import Model

__all__ = ["MODELS", "SkewT", "data", "skew_t", "student_t"]


class SkewT(dist.Distribution):
    """Hansen's skew t with mean `loc` and standard deviation `scale`.

    :param df: degrees of freedom, > 2, so that there is a variance.
    :param skew: in (-1, 1); negative: the left tail is the longer one. 0: Student's t.
    :param loc: mean.
    :param scale: standard deviation, > 0.
    """

    arg_constraints: ClassVar = {
        "df": constraints.greater_than(2.0),
        "skew": constraints.open_interval(-1.0, 1.0),
        "loc": constraints.real,
        "scale": constraints.positive,
    }
    support = constraints.real
    pytree_data_fields = ("df", "skew", "loc", "scale")

    def __init__(
        self,
        df: ArrayLike,
        skew: ArrayLike,
        loc: ArrayLike = 0.0,
        scale: ArrayLike = 1.0,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.df, self.skew, self.loc, self.scale = promote_shapes(df, skew, loc, scale)
        batch_shape = lax.broadcast_shapes(*map(jnp.shape, (df, skew, loc, scale)))
        super().__init__(batch_shape, validate_args=validate_args)

    def _constants(self) -> tuple[Array, Array, Array]:
        """Hansen's a, b and log c."""
        df = jnp.asarray(self.df, jnp.result_type(float))
        log_c = log_rising(0.5 * df, 0.5) - 0.5 * jnp.log(jnp.pi * (df - 2.0))
        a = 4.0 * self.skew * jnp.exp(log_c) * (df - 2.0) / (df - 1.0)
        return a, jnp.sqrt(1.0 + 3.0 * self.skew**2 - a**2), log_c

    @validate_sample
    def log_prob(self, value: ArrayLike) -> Array:
        a, b, log_c = self._constants()
        z = b * (value - self.loc) / self.scale + a
        z = z / (1.0 + jnp.where(z < 0.0, -self.skew, self.skew))
        kernel = -0.5 * (self.df + 1.0) * jnp.log1p(z**2 / (self.df - 2.0))
        return jnp.log(b) + log_c + kernel - jnp.log(self.scale)

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Array:
        assert key is not None
        key_side, key_size = jax.random.split(key)
        shape = self.shape(sample_shape)
        a, b, _ = self._constants()
        size = jnp.abs(jax.random.t(key_size, self.df, shape)) * jnp.sqrt((self.df - 2.0) / self.df)
        right = jax.random.uniform(key_side, shape) < 0.5 * (1.0 + self.skew)
        z = jnp.where(right, (1.0 + self.skew) * size, -(1.0 - self.skew) * size)
        return self.loc + self.scale * (z - a) / b

    @property
    def mean(self) -> Array:
        return jnp.broadcast_to(self.loc, self.batch_shape)

    @property
    def variance(self) -> Array:
        return jnp.broadcast_to(jnp.square(self.scale), self.batch_shape)


def _size(y: ArrayLike | None, num_data: int | None) -> int:
    if y is not None:
        return jnp.shape(y)[0]
    if num_data is None:
        raise ValueError("without y the model needs num_data")
    return num_data


def _location(y: ArrayLike | None) -> tuple[Array, Array]:
    """Sites mu and sigma, with priors that follow mean and standard deviation of y."""
    loc, unit = (0.0, 1.0) if y is None else (jnp.mean(jnp.asarray(y)), jnp.std(jnp.asarray(y)))
    return numpyro.sample("mu", dist.Normal(loc, unit)), numpyro.sample("sigma", dist.LogNormal(jnp.log(unit), 1.0))


def student_t(y: ArrayLike | None = None, num_data: int | None = None) -> None:
    """y ~ Student t(df, mu, sigma) in plate "data"; sigma is the scale, not the standard deviation. `y`: (n,).

    Sites: mu (), sigma (), df () ~ Gamma(2, 0.1) (Juarez and Steel, "Model-Based Clustering of Non-Gaussian Panel Data
    Based on Skew-t Distributions", 2010).
    """
    mu, sigma = _location(y)
    df = numpyro.sample("df", dist.Gamma(2.0, 0.1))
    with numpyro.plate("data", _size(y, num_data)):
        numpyro.sample("y", dist.StudentT(df, mu, sigma), obs=y)


def skew_t(y: ArrayLike | None = None, num_data: int | None = None) -> None:
    """y ~ Hansen's skew t in plate "data", with mean mu and standard deviation sigma. `y`: (n,).

    Sites: mu (), sigma (), df_minus_2 () ~ Gamma(2, 0.1), skew () ~ Uniform(-1, 1).
    """
    mu, sigma = _location(y)
    df = 2.0 + numpyro.sample("df_minus_2", dist.Gamma(2.0, 0.1))
    skew = numpyro.sample("skew", dist.Uniform(-1.0, 1.0))
    with numpyro.plate("data", _size(y, num_data)):
        numpyro.sample("y", SkewT(df, skew, mu, sigma), obs=y)


def data() -> dict[str, Any]:
    """Growth of investment `y` (202,), per cent a quarter."""
    level = _statsmodels.load("macrodata")["realinv"].to_numpy(np.float64)
    return {"y": 100.0 * np.diff(np.log(level))}


MODELS = (
    Model(
        name="student_t_returns",
        description="Student t, quarterly growth of US investment: 202 quarters",
        model=student_t,
        data=data,
    ),
    Model(
        name="skew_t_returns",
        description="Hansen's skew t, quarterly growth of US investment: 202 quarters",
        model=skew_t,
        data=data,
    ),
)
