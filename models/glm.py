"""Regression with a linear predictor: Gaussian, logistic, Poisson, negative binomial, and ordinal.

Each model is a function (x, y) on raw scale: a site `intercept` and a site `b` (d,), no column of ones. The predictor
is intercept + x b + offset. Priors are weak and follow the units of the columns (`_regression`); a maximum-likelihood
fit drops them. Where y is given, priors follow its location and unit too. Without y the model draws it. The prior
predictive with the very priors of a fit comes from `numpyro.handlers.uncondition(model)` called with y.

Sources: McCullagh and Nelder, "Generalized Linear Models" (1989); McCullagh, "Regression Models for Ordinal Data"
(1980); Hilbe, "Negative Binomial Regression" (2011).
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from jax.scipy.special import gammaln
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.distributions.transforms import OrderedTransform
from numpyro.distributions.util import validate_sample

from . import _statsmodels
from ._regression import design, intercept, intercept_scale, slopes, spread, take
from ._smooth import log_rising
from .registry import Model

__all__ = [
    "MODELS",
    "LogMeanNegativeBinomial",
    "LogRatePoisson",
    "gaussian",
    "gaussian_data",
    "logistic",
    "logistic_data",
    "negative_binomial",
    "negative_binomial_data",
    "ordinal",
    "ordinal_data",
    "poisson",
    "poisson_data",
    "proportional_odds",
]


class LogRatePoisson(dist.Poisson):
    """Poisson by the logarithm of its rate, finite where the rate itself underflows.

    :param log_rate: any shape.
    """

    arg_constraints: ClassVar = {"log_rate": constraints.real}
    pytree_data_fields = ("log_rate",)

    def __init__(self, log_rate: ArrayLike, *, validate_args: bool | None = None) -> None:
        self.log_rate = jnp.asarray(log_rate)
        super().__init__(jnp.exp(self.log_rate), validate_args=validate_args)

    @validate_sample
    def log_prob(self, value: ArrayLike) -> Array:
        return value * self.log_rate - self.rate - gammaln(jnp.asarray(value, self.rate.dtype) + 1.0)


class LogMeanNegativeBinomial(dist.GammaPoisson):
    """Negative binomial with variance mu + alpha mu^2 (NB2), by log mu and the dispersion alpha.

    :param log_mean: any shape.
    :param dispersion: alpha > 0; towards 0 this is the Poisson distribution, in single precision too.
    """

    arg_constraints: ClassVar = {"log_mean": constraints.real, "dispersion": constraints.positive}
    pytree_data_fields = ("log_mean", "dispersion")

    def __init__(self, log_mean: ArrayLike, dispersion: ArrayLike, *, validate_args: bool | None = None) -> None:
        self.log_mean, self.dispersion = jnp.asarray(log_mean), jnp.asarray(dispersion)
        size = 1.0 / self.dispersion
        super().__init__(size, size * jnp.exp(-self.log_mean), validate_args=validate_args)

    @validate_sample
    def log_prob(self, value: ArrayLike) -> Array:
        size = 1.0 / self.dispersion
        logits = self.log_mean + jnp.log(self.dispersion)
        coefficient = log_rising(size, value) - gammaln(jnp.asarray(value, size.dtype) + 1.0)
        return coefficient - size * jax.nn.softplus(logits) - value * jax.nn.softplus(-logits)


def proportional_odds(predictor: ArrayLike, cutpoints: ArrayLike) -> Array:
    """log P(y = k) where P(y <= k) = sigmoid(cutpoints_k - predictor). `predictor`: (...), `cutpoints`: (K - 1,).

    Returns (..., K). The difference of two sigmoids is formed in logarithms, so that no category is ever log 0.
    """
    edges = jnp.asarray(cutpoints) - jnp.asarray(predictor)[..., None]
    upper, lower = edges[..., 1:], edges[..., :-1]
    # sigmoid(u) - sigmoid(l) = sigmoid(u) sigmoid(-l) (1 - exp(l - u))
    inner = jax.nn.log_sigmoid(upper) + jax.nn.log_sigmoid(-lower) + jnp.log(-jnp.expm1(lower - upper))
    return jnp.concatenate([jax.nn.log_sigmoid(edges[..., :1]), inner, jax.nn.log_sigmoid(-edges[..., -1:])], axis=-1)


def _predictor(x: Array, constant: ArrayLike, b: Array, offset: ArrayLike | None, exposure: ArrayLike | None) -> Array:
    """Inside the plate: constant + x b + offset + log exposure, for the rows that are used."""
    eta = constant + numpyro.subsample(x, event_dim=1) @ b
    if offset is not None:
        eta = eta + take(offset)
    return eta if exposure is None else eta + jnp.log(take(exposure))


def _log_mean(y: ArrayLike | None, exposure: ArrayLike | None) -> Array | float:
    """log of the mean count (per unit of exposure), where the intercept's prior is centred."""
    if y is None:
        return 0.0
    y = jnp.asarray(y, jnp.result_type(float))
    total = jnp.shape(y)[0] if exposure is None else jnp.sum(jnp.asarray(exposure))
    return jnp.log(jnp.maximum(jnp.sum(y), 0.5) / total)


def gaussian(
    x: ArrayLike, y: ArrayLike | None = None, offset: ArrayLike | None = None, batch_size: int | None = None
) -> None:
    """y ~ N(intercept + x b + offset, sigma^2), in plate "data".

    `x`: (n, d); `y`, `offset`: (n,). Sites: intercept (), b (d,), sigma (). sigma ~ HalfNormal(2.5 sd(y)).
    """
    x = design(x)
    loc, unit = (0.0, 1.0) if y is None else (jnp.mean(jnp.asarray(y)), spread(jnp.asarray(y)))
    constant, b = intercept(x, loc=loc, unit=unit), slopes(x, unit=unit)
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.5 * unit))
    with numpyro.plate("data", x.shape[0], subsample_size=batch_size):
        numpyro.sample("y", dist.Normal(_predictor(x, constant, b, offset, None), sigma), obs=take(y))


def logistic(
    x: ArrayLike,
    y: ArrayLike | None = None,
    trials: ArrayLike | None = None,
    offset: ArrayLike | None = None,
    batch_size: int | None = None,
) -> None:
    """y ~ Bernoulli, or Binomial(trials), with logit intercept + x b + offset, in plate "data".

    `x`: (n, d); `y`: (n,) of 0 and 1, or successes out of `trials` (n,). Sites: intercept (), b (d,).
    """
    x = design(x)
    constant, b = intercept(x), slopes(x)
    with numpyro.plate("data", x.shape[0], subsample_size=batch_size):
        logits = _predictor(x, constant, b, offset, None)
        likelihood = dist.Bernoulli(logits=logits) if trials is None else dist.Binomial(take(trials), logits=logits)
        numpyro.sample("y", likelihood, obs=take(y))


def poisson(
    x: ArrayLike,
    y: ArrayLike | None = None,
    exposure: ArrayLike | None = None,
    offset: ArrayLike | None = None,
    batch_size: int | None = None,
) -> None:
    """y ~ Poisson(exposure exp(intercept + x b + offset)), in plate "data".

    `x`: (n, d); `y`: (n,) counts; `exposure`: (n,) > 0, time or people at risk. Sites: intercept (), b (d,).
    """
    x = design(x)
    constant, b = intercept(x, loc=_log_mean(y, exposure)), slopes(x)
    with numpyro.plate("data", x.shape[0], subsample_size=batch_size):
        numpyro.sample("y", LogRatePoisson(_predictor(x, constant, b, offset, exposure)), obs=take(y))


def negative_binomial(
    x: ArrayLike,
    y: ArrayLike | None = None,
    exposure: ArrayLike | None = None,
    offset: ArrayLike | None = None,
    batch_size: int | None = None,
) -> None:
    """Counts with mean mu = exposure exp(intercept + x b + offset) and variance mu + alpha mu^2, in plate "data".

    `x`: (n, d); `y`: (n,) counts; `exposure`: (n,) > 0. Sites: intercept (), b (d,), alpha () ~ LogNormal(0, 1.5^2).
    """
    x = design(x)
    constant, b = intercept(x, loc=_log_mean(y, exposure)), slopes(x)
    alpha = numpyro.sample("alpha", dist.LogNormal(0.0, 1.5))
    with numpyro.plate("data", x.shape[0], subsample_size=batch_size):
        eta = _predictor(x, constant, b, offset, exposure)
        numpyro.sample("y", LogMeanNegativeBinomial(eta, alpha), obs=take(y))


def ordinal(
    x: ArrayLike,
    num_categories: int,
    y: ArrayLike | None = None,
    offset: ArrayLike | None = None,
    batch_size: int | None = None,
) -> None:
    """Proportional odds: P(y <= k) = sigmoid(cutpoints_k - x b - offset), in plate "data".

    `x`: (n, d); `y`: (n,) of 0 .. num_categories - 1. Sites: b (d,), cutpoints (num_categories - 1,), increasing, in
    place of an intercept. The first cutpoint is as wide as an intercept, the steps between them are LogNormal(0, 1).
    """
    if num_categories < 2:
        raise ValueError(f"num_categories must be at least 2, got {num_categories}")
    x = design(x)
    b = slopes(x)
    scale = jnp.ones(num_categories - 1).at[0].set(intercept_scale(x))
    first = dist.Normal(jnp.zeros(num_categories - 1), scale).to_event(1)
    cutpoints = numpyro.sample("cutpoints", dist.TransformedDistribution(first, OrderedTransform()))
    with numpyro.plate("data", x.shape[0], subsample_size=batch_size):
        logits = proportional_odds(_predictor(x, 0.0, b, offset, None), cutpoints)
        numpyro.sample("y", dist.Categorical(logits=logits), obs=take(y))


def _columns(name: str, response: str, columns: tuple[str, ...], dtype: type = np.int32) -> dict[str, Any]:
    frame = _statsmodels.load(name)
    return {"x": frame[list(columns)].to_numpy(np.float64), "y": frame[response].to_numpy(dtype)}


def gaussian_data() -> dict[str, Any]:
    """Stack loss of an ammonia plant, 21 days, on air flow, water temperature and acid (Brownlee 1965)."""
    return _columns("stackloss", "STACKLOSS", ("AIRFLOW", "WATERTEMP", "ACIDCONC"), np.float64)


def logistic_data() -> dict[str, Any]:
    """Whether a student's grade rose, 32 students, on GPA, test score, teaching method (Spector and Mazzeo 1980)."""
    return _columns("spector", "GRADE", ("GPA", "TUCE", "PSI"))


def poisson_data() -> dict[str, Any]:
    """Executions in 17 US states in 1997 on income, poverty, black share, violent crime, South, degrees (Gill 2001)."""
    columns = ("INCOME", "PERPOVERTY", "PERBLACK", "VC100k96", "SOUTH", "DEGREE")
    return _columns("cpunish", "EXECUTIONS", columns)


def negative_binomial_data() -> dict[str, Any]:
    """Visits to a doctor, 20,190 person-years of the RAND Health Insurance Experiment, nine columns."""
    columns = ("lncoins", "idp", "lpi", "fmde", "physlm", "disea", "hlthg", "hlthf", "hlthp")
    return _columns("randhie", "mdvis", columns)


def ordinal_data() -> dict[str, Any]:
    """Party identification in 7 steps, 944 voters of 1996, on log population, leaning, age, education, income."""
    data = _columns("anes96", "PID", ("logpopul", "selfLR", "age", "educ", "income"))
    return {**data, "num_categories": 7}


MODELS = (
    Model(
        name="gaussian_regression",
        description="Linear regression, stack loss of an ammonia plant: 21 days, 3 columns",
        model=gaussian,
        data=gaussian_data,
    ),
    Model(
        name="binary_regression",
        description="Logistic regression on raw scale, Spector's grades: 32 students, 3 columns",
        model=logistic,
        data=logistic_data,
    ),
    Model(
        name="poisson_regression",
        description="Poisson regression on raw scale, executions in US states: 17 counts, 6 columns",
        model=poisson,
        data=poisson_data,
    ),
    Model(
        name="negative_binomial_regression",
        description="Negative binomial regression, visits to a doctor: 20,190 counts, 9 columns",
        model=negative_binomial,
        data=negative_binomial_data,
    ),
    Model(
        name="ordinal_regression",
        description="Proportional odds, party identification of 1996: 944 voters, 7 categories, 5 columns",
        model=ordinal,
        data=ordinal_data,
    ),
)
