"""What the regression models share: priors that do not depend on the units of the columns, and optional arguments.

A slope has the prior N(0, (2.5 unit / sd(column))^2), and so has, at the mean of the columns, the intercept (the
default of R's rstanarm, "Prior Distributions for rstanarm Models"). The intercept is stated at x = 0, as people read
it; there its prior is as wide as the one at the mean and the slopes make it. The priors are proper and weak, so that
the same model can be sampled, approximated and maximised on data of any unit.
"""

from __future__ import annotations

from typing import overload

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike

PRIOR_SCALE = 2.5


def design(x: ArrayLike) -> Array:
    """`x` as floats; ValueError unless its shape is (n, d)."""
    if jnp.ndim(x) != 2:
        raise ValueError(f"x must have shape (n, d), one row a datum, got {jnp.shape(x)}; one column is x[:, None]")
    return jnp.asarray(x, jnp.result_type(float))


def spread(values: Array) -> Array:
    """Standard deviation along the first axis, 1 where there is none."""
    sd = jnp.std(values, axis=0)
    return jnp.where(sd > 0.0, sd, 1.0)


def intercept_scale(x: Array, unit: ArrayLike = 1.0) -> Array:
    """Prior standard deviation of the intercept at x = 0. `x`: (n, d)."""
    return PRIOR_SCALE * jnp.asarray(unit) * jnp.sqrt(1.0 + jnp.sum((jnp.mean(x, axis=0) / spread(x)) ** 2))


def slopes(x: Array, name: str = "b", unit: ArrayLike = 1.0, num_outputs: int | None = None) -> Array:
    """Site `name`, (d,) or (num_outputs, d). Without columns there is no site."""
    shape = (x.shape[1],) if num_outputs is None else (num_outputs, x.shape[1])
    if not x.shape[1]:
        return jnp.zeros(shape)
    scale = jnp.broadcast_to(PRIOR_SCALE * unit / spread(x), shape)
    return numpyro.sample(name, dist.Normal(jnp.zeros(shape), scale).to_event(len(shape)))


def intercept(
    x: Array, name: str = "intercept", loc: ArrayLike = 0.0, unit: ArrayLike = 1.0, num_outputs: int | None = None
) -> Array:
    """Site `name`, () or (num_outputs,)."""
    scale = intercept_scale(x, unit)
    if num_outputs is None:
        return numpyro.sample(name, dist.Normal(loc, scale))
    return numpyro.sample(name, dist.Normal(loc, scale).expand([num_outputs]).to_event(1))


@overload
def take(value: None, event_dim: int = 0) -> None: ...
@overload
def take(value: ArrayLike, event_dim: int = 0) -> Array: ...
def take(value: ArrayLike | None, event_dim: int = 0) -> Array | None:
    """The part of an optional argument that the enclosing plate asks for."""
    return None if value is None else numpyro.subsample(jnp.asarray(value), event_dim=event_dim)
