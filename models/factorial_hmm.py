"""Factorial hidden Markov model: several independent chains, and each step shows the sum of what they contribute.

Ghahramani and Jordan, "Factorial Hidden Markov Models" (1997). Exact, through one chain on the product of the state
spaces: M chains of K states make K^M states, so this is for few small chains.

Data: US inflation, per cent a year, 202 quarters from 1959Q2 (Federal Reserve Bank of St. Louis; statsmodels).
"""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.distributions.transforms import ExpTransform, OrderedTransform

from . import _statsmodels
from .hmm import HiddenMarkov, _series, stationary, transition_matrix
from .registry import Model

__all__ = ["MODEL", "chain_marginals", "data", "model", "product_chain", "product_states"]


def product_states(num_chains: int, num_states: int) -> np.ndarray:
    """State of each chain, (K^M, M), for each state of the product; the first chain changes slowest."""
    return np.array(list(itertools.product(range(num_states), repeat=num_chains)), np.int32)


def product_chain(log_initial: ArrayLike, log_transition: ArrayLike) -> tuple[Array, Array]:
    """Independent chains as one: (M, K) and (M, K, K) to (K^M,) and (K^M, K^M), all in logarithms."""
    log_initial, log_transition = jnp.asarray(log_initial), jnp.asarray(log_transition)
    joint_initial, joint_transition = log_initial[0], log_transition[0]
    for initial, transition in zip(log_initial[1:], log_transition[1:], strict=True):
        size = joint_initial.shape[0] * initial.shape[0]
        joint_initial = (joint_initial[:, None] + initial[None, :]).reshape(size)
        joint_transition = (joint_transition[:, None, :, None] + transition[None, :, None, :]).reshape(size, size)
    return joint_initial, joint_transition


def chain_marginals(marginals: ArrayLike, num_chains: int, num_states: int) -> Array:
    """Probabilities of the product's states, (..., K^M), to those of each chain's, (..., M, K)."""
    indicator = jax.nn.one_hot(product_states(num_chains, num_states), num_states)
    return jnp.einsum("...s,smk->...mk", jnp.asarray(marginals), indicator)


def model(y: ArrayLike | None = None, num_chains: int = 2, num_series: int = 1, num_steps: int | None = None) -> None:
    """y_t ~ N(mu + sum_m effect_m s_mt, sigma^2) with binary Markov chains s_m, summed out exactly.

    `y`: (series, T), independent series in plate "data". Sites: mu (), effect (M,), positive and increasing, so that
    chains and their states have an order, sigma (), transition (M, 2, 2). Chains start in their stationary
    distributions. Priors follow mean and standard deviation of y.
    """
    if not 1 <= num_chains <= 8:
        raise ValueError(f"num_chains must be 1 .. 8 (the product has 2^num_chains states), got {num_chains}")
    shape = _series(y, num_series, num_steps)
    loc, unit = (0.0, 1.0) if y is None else (jnp.mean(jnp.asarray(y)), jnp.std(jnp.asarray(y)))
    mu = numpyro.sample("mu", dist.Normal(loc - unit, unit))
    start = jnp.full(num_chains, -0.5).at[0].set(jnp.log(unit))
    transforms = [OrderedTransform(), ExpTransform(constraints.ordered_vector)]
    effect = numpyro.sample("effect", dist.TransformedDistribution(dist.Normal(start, 1.0).to_event(1), transforms))
    sigma = numpyro.sample("sigma", dist.LogNormal(jnp.log(0.5 * unit), 1.0))
    transition = transition_matrix(2, num_chains=num_chains)
    initial = jnp.maximum(stationary(transition), jnp.finfo(transition.dtype).tiny)
    joint_initial, joint_transition = product_chain(jnp.log(initial), jnp.log(transition))
    emission = dist.Normal(mu + product_states(num_chains, 2) @ effect, sigma)
    with numpyro.plate("data", shape[0]):
        numpyro.sample("y", HiddenMarkov(joint_initial, joint_transition, emission, num_steps=shape[1]), obs=y)


def data() -> dict[str, Any]:
    """Inflation `y` (1, 202), per cent a year, quarterly from 1959Q2; `num_chains` 2."""
    return {"y": _statsmodels.load("macrodata")["infl"].to_numpy(np.float64)[None, 1:], "num_chains": 2}


MODEL = Model(
    name="factorial_hmm",
    description="Two hidden binary chains whose effects add, US inflation: 202 quarters",
    model=model,
    data=data,
)
