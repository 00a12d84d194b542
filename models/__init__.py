"""Probabilistic models with their real data and their truth: closed forms, quadrature, reference draws.

`names()` lists them, `get(name)` returns a `Model`, `register(model)` adds your own. Each built-in model is a module
of this package, with functions for its exact quantities, e.g. `linear_gaussian.posterior` or
`bernoulli_mixture.marginal_log_likelihood`.
"""

from . import (
    bernoulli_mixture,
    eight_schools,
    linear_gaussian,
    linear_gaussian_theta,
    logistic_regression,
    poglm,
    tight_bounds,
    vae_digits,
)
from .registry import Model, UnknownModelError, get, names, register

__all__ = [
    "Model",
    "UnknownModelError",
    "bernoulli_mixture",
    "eight_schools",
    "get",
    "linear_gaussian",
    "linear_gaussian_theta",
    "logistic_regression",
    "names",
    "poglm",
    "register",
    "tight_bounds",
    "vae_digits",
]

for _module in (
    eight_schools,
    logistic_regression,
    linear_gaussian,
    linear_gaussian_theta,
    tight_bounds,
    bernoulli_mixture,
    poglm,
    vae_digits,
):
    register(_module.MODEL)
del _module
