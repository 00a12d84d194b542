"""Probabilistic models with their real data and their truth: closed forms, quadrature, reference draws.

`names()` lists them, `get(name)` returns a `Model`, `register(model)` adds your own. Each built-in model is a module
of this package, with functions for its exact quantities, e.g. `linear_gaussian.posterior` or
`bernoulli_mixture.marginal_log_likelihood`. Some modules hold several models of one kind, and the distributions that
they need: `glm`, `hmm`, `survival`, `copulas`, `returns`.
"""

from . import (
    bernoulli_mixture,
    copulas,
    diffusion,
    diffusion_2d,
    eight_schools,
    factorial_hmm,
    flows,
    glm,
    hmm,
    linear_gaussian,
    linear_gaussian_theta,
    logistic_regression,
    mixture,
    mixture_of_experts,
    noise_process,
    poglm,
    returns,
    score_digits,
    survival,
    tight_bounds,
    toys_2d,
    transport,
    vae_digits,
)
from .registry import Model, UnknownModelError, get, names, register

__all__ = [
    "Model",
    "UnknownModelError",
    "bernoulli_mixture",
    "copulas",
    "diffusion",
    "diffusion_2d",
    "eight_schools",
    "factorial_hmm",
    "flows",
    "get",
    "glm",
    "hmm",
    "linear_gaussian",
    "linear_gaussian_theta",
    "logistic_regression",
    "mixture",
    "mixture_of_experts",
    "names",
    "noise_process",
    "poglm",
    "register",
    "returns",
    "score_digits",
    "survival",
    "tight_bounds",
    "toys_2d",
    "transport",
    "vae_digits",
]

for _model in (
    eight_schools.MODEL,
    logistic_regression.MODEL,
    linear_gaussian.MODEL,
    linear_gaussian_theta.MODEL,
    tight_bounds.MODEL,
    bernoulli_mixture.MODEL,
    poglm.MODEL,
    vae_digits.MODEL,
    *glm.MODELS,
    mixture.MODEL,
    mixture_of_experts.MODEL,
    *hmm.MODELS,
    factorial_hmm.MODEL,
    *survival.MODELS,
    *copulas.MODELS,
    *returns.MODELS,
    diffusion_2d.MODEL,
    score_digits.MODEL,
):
    register(_model)
del _model
