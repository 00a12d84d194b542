"""Survival times with right censoring: Weibull, log-logistic, and the power generalised Weibull family.

A family is a cumulative hazard H(t): the survival function is exp(-H), and a censored time adds log S(t) = -H(t) to the
log-likelihood exactly, however far in the tail. Covariates act on the time scale (accelerated failure time, AFT:
positive b means longer survival) or on the hazard (proportional hazards, PH: positive b means higher risk).

The power generalised Weibull family is in the form of Burke, Jones and Noufaily, "A Flexible Parametric Modelling
Framework for Survival Analysis" (2020), with kappa > -1:

    H(t) = vertical H0((t / scale)^shape),   H0(z) = ((kappa + 1) / kappa) ((1 + z / (kappa + 1))^kappa - 1)

kappa = 0 is log-logistic, 1 Weibull, infinity Gompertz; below 0 some never fail, because H is bounded.

Data: days from a heart transplant to death and age of 69 patients (Miller, "Least Squares Regression with Censored
Data", 1976; statsmodels).
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
from ._regression import design, intercept, slopes, take
from ._smooth import expm1_over, log1p_over
from .registry import Model

__all__ = [
    "MODELS",
    "LogLogistic",
    "PowerGeneralizedWeibull",
    "RightCensored",
    "SurvivalTime",
    "Weibull",
    "data",
    "loglogistic_aft",
    "loglogistic_ph",
    "power_generalized_weibull_aft",
    "power_generalized_weibull_ph",
    "weibull_aft",
    "weibull_ph",
]


class SurvivalTime(dist.Distribution):
    """A positive time T, from log hazard, cumulative hazard H and its inverse; S(t) = exp(-H(t))."""

    support = constraints.positive

    def log_hazard(self, value: ArrayLike) -> Array:
        """log h(t), h = dH/dt; broadcasts `value` with the batch shape."""
        raise NotImplementedError

    def cumulative_hazard(self, value: ArrayLike) -> Array:
        """H(t); broadcasts `value` with the batch shape."""
        raise NotImplementedError

    def quantile_of_hazard(self, hazard: ArrayLike) -> Array:
        """The time t at which H(t) = `hazard`, infinite where H stays below."""
        raise NotImplementedError

    def log_survival(self, value: ArrayLike) -> Array:
        """log P(T > t)."""
        return -self.cumulative_hazard(value)

    @validate_sample
    def log_prob(self, value: ArrayLike) -> Array:
        return self.log_hazard(value) - self.cumulative_hazard(value)

    def cdf(self, value: ArrayLike) -> Array:
        return -jnp.expm1(-self.cumulative_hazard(value))

    def icdf(self, q: ArrayLike) -> Array:
        return self.quantile_of_hazard(-jnp.log1p(-jnp.asarray(q)))

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Array:
        assert key is not None
        return self.quantile_of_hazard(jax.random.exponential(key, self.shape(sample_shape)))


def _log_time(value: ArrayLike) -> Array:
    """log t, finite for a time of zero, where slopes in the parameters would be 0 x infinity."""
    value = jnp.asarray(value, jnp.result_type(float))
    return jnp.log(jnp.maximum(value, jnp.finfo(value.dtype).tiny))


class Weibull(SurvivalTime):
    """H(t) = vertical (t / scale)^shape.

    :param scale: > 0, the time by which a share 1 - exp(-vertical) has failed.
    :param shape: > 0; the hazard falls below 1 and rises above.
    :param vertical: > 0, the ratio of hazards, for proportional hazards.
    """

    arg_constraints: ClassVar = dict.fromkeys(("scale", "concentration", "vertical"), constraints.positive)
    pytree_data_fields: tuple[str, ...] = ("scale", "concentration", "vertical")

    def __init__(
        self,
        scale: ArrayLike,
        shape: ArrayLike,
        vertical: ArrayLike = 1.0,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.scale, self.concentration, self.vertical = promote_shapes(scale, shape, vertical)
        batch_shape = lax.broadcast_shapes(jnp.shape(scale), jnp.shape(shape), jnp.shape(vertical))
        super().__init__(batch_shape, validate_args=validate_args)

    def _log_z(self, value: ArrayLike) -> Array:
        """log of (t / scale)^shape."""
        return self.concentration * (_log_time(value) - jnp.log(self.scale))

    def log_hazard(self, value: ArrayLike) -> Array:
        return jnp.log(self.vertical * self.concentration) + self._log_z(value) - _log_time(value)

    def cumulative_hazard(self, value: ArrayLike) -> Array:
        return self.vertical * jnp.exp(self._log_z(value))

    def quantile_of_hazard(self, hazard: ArrayLike) -> Array:
        return self.scale * jnp.power(hazard / self.vertical, 1.0 / self.concentration)


class LogLogistic(Weibull):
    """H(t) = vertical log(1 + (t / scale)^shape); with vertical = 1, `scale` is the median."""

    def log_hazard(self, value: ArrayLike) -> Array:
        return super().log_hazard(value) - jax.nn.softplus(self._log_z(value))

    def cumulative_hazard(self, value: ArrayLike) -> Array:
        return self.vertical * jax.nn.softplus(self._log_z(value))

    def quantile_of_hazard(self, hazard: ArrayLike) -> Array:
        return self.scale * jnp.power(jnp.expm1(hazard / self.vertical), 1.0 / self.concentration)


class PowerGeneralizedWeibull(Weibull):
    """H(t) = vertical H0((t / scale)^shape; kappa), four parameters; see the module's first lines.

    :param scale: > 0, 1 / horizontal.
    :param shape: > 0.
    :param kappa: > -1.
    :param vertical: > 0.
    """

    arg_constraints: ClassVar = {**Weibull.arg_constraints, "kappa": constraints.greater_than(-1.0)}
    pytree_data_fields = ("kappa",)

    def __init__(
        self,
        scale: ArrayLike,
        shape: ArrayLike,
        kappa: ArrayLike,
        vertical: ArrayLike = 1.0,
        *,
        validate_args: bool | None = None,
    ) -> None:
        batch_shape = lax.broadcast_shapes(*map(jnp.shape, (scale, shape, kappa, vertical)))
        scale, shape, self.kappa, vertical = promote_shapes(scale, shape, kappa, vertical, shape=batch_shape)
        super().__init__(jnp.broadcast_to(scale, batch_shape), shape, vertical, validate_args=validate_args)

    def _log1p_z(self, value: ArrayLike) -> Array:
        """log(1 + z / (kappa + 1)), from log z: z itself may overflow."""
        return jax.nn.softplus(self._log_z(value) - jnp.log1p(self.kappa))

    def log_hazard(self, value: ArrayLike) -> Array:
        return super().log_hazard(value) + (self.kappa - 1.0) * self._log1p_z(value)

    def cumulative_hazard(self, value: ArrayLike) -> Array:
        u = self._log1p_z(value)
        return self.vertical * (self.kappa + 1.0) * u * expm1_over(self.kappa * u)

    def quantile_of_hazard(self, hazard: ArrayLike) -> Array:
        w = hazard / (self.vertical * (self.kappa + 1.0))
        reached = self.kappa * w > -1.0
        u = w * log1p_over(jnp.where(reached, self.kappa * w, 0.0))
        time = self.scale * jnp.power((self.kappa + 1.0) * jnp.expm1(u), 1.0 / self.concentration)
        return jnp.where(reached, time, jnp.inf)


class RightCensored(dist.Distribution):
    """Times of which some are only known to be longer: log f(t) where the event was seen, log S(t) where it was not.

    :param base: a `SurvivalTime`.
    :param event: 1 where the event was seen, 0 where the time is censored; broadcasts with the base.

    NumPyro's `RightCensoredDistribution` does the same for any distribution with a `cdf`; there log S is cut off near
    log of the machine's precision, here it is exact. Draws are times of events, without censoring.
    """

    arg_constraints: ClassVar = {"event": constraints.boolean}
    pytree_data_fields = ("base", "event")
    support = constraints.positive

    def __init__(self, base: SurvivalTime, event: ArrayLike, *, validate_args: bool | None = None) -> None:
        if not hasattr(base, "log_survival"):
            raise TypeError(f"RightCensored needs a distribution with log_survival, got {type(base).__name__}")
        self.base, self.event = base, jnp.asarray(event)
        batch_shape = lax.broadcast_shapes(base.batch_shape, self.event.shape)
        super().__init__(batch_shape, validate_args=validate_args)

    @validate_sample
    def log_prob(self, value: ArrayLike) -> Array:
        log_hazard = jnp.where(self.event == 1, self.base.log_hazard(value), 0.0)
        return log_hazard + self.base.log_survival(value)

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Array:
        return self.base.expand(self.batch_shape).sample(key, sample_shape)


def _observe(base: SurvivalTime, time: ArrayLike | None, event: ArrayLike | None) -> None:
    """Site time, inside the plate."""
    likelihood = base if event is None else RightCensored(base, take(event))
    numpyro.sample("time", likelihood, obs=take(time))


def _log_median(time: ArrayLike | None) -> Array | float:
    """Where the prior of the log scale is centred."""
    return 0.0 if time is None else jnp.log(jnp.median(jnp.asarray(time, jnp.result_type(float))))


def _shape() -> Array:
    return numpyro.sample("shape", dist.LogNormal(0.0, 1.0))


def _aft(family: type, x: ArrayLike, time: ArrayLike | None, event: ArrayLike | None, batch_size: int | None) -> None:
    x = design(x)
    constant, b, shape = intercept(x, loc=_log_median(time)), slopes(x), _shape()
    with numpyro.plate("data", x.shape[0], subsample_size=batch_size):
        scale = jnp.exp(constant + numpyro.subsample(x, event_dim=1) @ b)
        _observe(family(scale, shape), time, event)


def _ph(family: type, x: ArrayLike, time: ArrayLike | None, event: ArrayLike | None, batch_size: int | None) -> None:
    x = design(x)
    log_scale = numpyro.sample("log_scale", dist.Normal(_log_median(time), 2.5))
    b, shape = slopes(x), _shape()
    with numpyro.plate("data", x.shape[0], subsample_size=batch_size):
        vertical = jnp.exp((numpyro.subsample(x, event_dim=1) - jnp.mean(x, axis=0)) @ b)
        _observe(family(jnp.exp(log_scale), shape, vertical=vertical), time, event)


def weibull_aft(
    x: ArrayLike, time: ArrayLike | None = None, event: ArrayLike | None = None, batch_size: int | None = None
) -> None:
    """T ~ Weibull(scale = exp(intercept + x b), shape), in plate "data".

    `x`: (n, d); `time`: (n,) > 0; `event`: (n,), 1 seen and 0 censored, without it all are seen. Sites: intercept (), b
    (d,), shape () ~ LogNormal(0, 1).
    """
    _aft(Weibull, x, time, event, batch_size)


def loglogistic_aft(
    x: ArrayLike, time: ArrayLike | None = None, event: ArrayLike | None = None, batch_size: int | None = None
) -> None:
    """T log-logistic with median exp(intercept + x b) and a shape; arguments and sites as in `weibull_aft`."""
    _aft(LogLogistic, x, time, event, batch_size)


def weibull_ph(
    x: ArrayLike, time: ArrayLike | None = None, event: ArrayLike | None = None, batch_size: int | None = None
) -> None:
    """Hazard exp((x - mean(x)) b) times a Weibull's, in plate "data".

    Arguments as in `weibull_aft`. Sites: log_scale (), b (d,), the log ratios of hazards, shape ().
    """
    _ph(Weibull, x, time, event, batch_size)


def loglogistic_ph(
    x: ArrayLike, time: ArrayLike | None = None, event: ArrayLike | None = None, batch_size: int | None = None
) -> None:
    """Hazard exp((x - mean(x)) b) times a log-logistic's; arguments and sites as in `weibull_ph`."""
    _ph(LogLogistic, x, time, event, batch_size)


def _kappa() -> Array:
    # Median 1, the Weibull family; 0 and 3 are about one standard deviation away.
    return numpyro.deterministic("kappa", numpyro.sample("kappa_plus_1", dist.LogNormal(jnp.log(2.0), 0.7)) - 1.0)


def power_generalized_weibull_aft(
    x: ArrayLike, time: ArrayLike | None = None, event: ArrayLike | None = None, batch_size: int | None = None
) -> None:
    """T power generalised Weibull, all four parameters, with scale exp(intercept + x b), in plate "data".

    Arguments as in `weibull_aft`. Sites: intercept (), b (d,), shape (), kappa_plus_1 () > 0 and log_vertical () ~ N(0,
    1); deterministic: kappa. Near kappa = 1 scale and log_vertical say the same, and only the prior tells them apart.
    """
    x = design(x)
    constant, b, shape, kappa = intercept(x, loc=_log_median(time)), slopes(x), _shape(), _kappa()
    vertical = jnp.exp(numpyro.sample("log_vertical", dist.Normal(0.0, 1.0)))
    with numpyro.plate("data", x.shape[0], subsample_size=batch_size):
        scale = jnp.exp(constant + numpyro.subsample(x, event_dim=1) @ b)
        _observe(PowerGeneralizedWeibull(scale, shape, kappa, vertical), time, event)


def power_generalized_weibull_ph(
    x: ArrayLike, time: ArrayLike | None = None, event: ArrayLike | None = None, batch_size: int | None = None
) -> None:
    """Hazard exp(log_vertical + (x - mean(x)) b) times a power generalised Weibull's, in plate "data".

    Arguments as in `weibull_aft`. Sites: log_scale (), b (d,), shape (), kappa_plus_1 () > 0, log_vertical ();
    deterministic: kappa.
    """
    x = design(x)
    log_scale = numpyro.sample("log_scale", dist.Normal(_log_median(time), 2.5))
    b, shape, kappa = slopes(x), _shape(), _kappa()
    log_vertical = numpyro.sample("log_vertical", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", x.shape[0], subsample_size=batch_size):
        vertical = jnp.exp(log_vertical + (numpyro.subsample(x, event_dim=1) - jnp.mean(x, axis=0)) @ b)
        _observe(PowerGeneralizedWeibull(jnp.exp(log_scale), shape, kappa, vertical), time, event)


def data() -> dict[str, Any]:
    """Age `x` (69, 1) in years, `time` (69,) in days after the transplant, `event` (69,), 1 for death."""
    frame = _statsmodels.load("heart")
    return {
        "x": frame[["age"]].to_numpy(np.float64),
        "time": frame["survival"].to_numpy(np.float64),
        "event": frame["censors"].to_numpy(np.int32),
    }


MODELS = (
    Model(
        name="weibull_survival",
        description="Weibull accelerated failure times, heart transplants: 69 patients, censored, on age",
        model=weibull_aft,
        data=data,
    ),
    Model(
        name="loglogistic_survival",
        description="Log-logistic accelerated failure times, heart transplants: 69 patients, censored",
        model=loglogistic_aft,
        data=data,
    ),
    Model(
        name="power_generalized_weibull",
        description="Power generalised Weibull, 4 parameters and age on the scale, heart transplants",
        model=power_generalized_weibull_aft,
        data=data,
    ),
)
