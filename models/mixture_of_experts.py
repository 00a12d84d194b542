"""Mixture of experts: linear regressions, and a softmax gate that says where each of them holds.

Jacobs, Jordan, Nowlan and Hinton, "Adaptive Mixtures of Local Experts" (1991). Expert k is N(intercept_k + x b_k,
sigma_k^2), and it is chosen with probability softmax(gate_intercept + x gate_b)_k; the last gate is the reference, 0.
Both forms, expert summed out or there as a discrete latent, have the same sites.

Data: US unemployment by inflation in 203 quarters, 1959 to 2009, as shipped in statsmodels: two Phillips curves, of low
and of high unemployment, the latter the likelier the more prices rise.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike

from . import _statsmodels
from ._regression import design, intercept, slopes, spread, take
from .registry import Model

__all__ = ["MODEL", "data", "model", "model_with_labels", "start"]


def _parameters(x: Array, y: ArrayLike | None, num_experts: int) -> tuple[Array, Array, Array]:
    """Gate logits (n, K), means (n, K) and sigma (K,)."""
    if num_experts < 2:
        raise ValueError(f"num_experts must be at least 2, got {num_experts}")
    loc, unit = (0.0, 1.0) if y is None else (jnp.mean(jnp.asarray(y)), spread(jnp.asarray(y)))
    gate = intercept(x, "gate_intercept", num_outputs=num_experts - 1)
    gate = gate + x @ slopes(x, "gate_b", num_outputs=num_experts - 1).T
    means = intercept(x, loc=loc, unit=unit, num_outputs=num_experts)
    means = means + x @ slopes(x, unit=unit, num_outputs=num_experts).T
    sigma = numpyro.sample("sigma", dist.LogNormal(jnp.log(0.5 * unit), 1.0).expand([num_experts]).to_event(1))
    return jnp.concatenate([gate, jnp.zeros((x.shape[0], 1))], axis=-1), means, sigma


def model(x: ArrayLike, num_experts: int, y: ArrayLike | None = None, batch_size: int | None = None) -> None:
    """y ~ sum_k gate_k(x) N(intercept_k + x b_k, sigma_k^2), in plate "data"; the expert is summed out.

    `x`: (n, d); `y`: (n,). Sites: gate_intercept (K - 1,), gate_b (K - 1, d), intercept (K,), b (K, d), sigma (K,).
    """
    x = design(x)
    logits, means, sigma = _parameters(x, y, num_experts)
    with numpyro.plate("data", x.shape[0], subsample_size=batch_size):
        gate = dist.Categorical(logits=numpyro.subsample(logits, event_dim=1))
        experts = dist.Normal(numpyro.subsample(means, event_dim=1), sigma)
        numpyro.sample("y", dist.MixtureSameFamily(gate, experts), obs=take(y))


def model_with_labels(
    x: ArrayLike, num_experts: int, y: ArrayLike | None = None, batch_size: int | None = None
) -> None:
    """The same mixture with the discrete site z (n,) in plate "data", for EM and enumeration."""
    x = design(x)
    logits, means, sigma = _parameters(x, y, num_experts)
    with numpyro.plate("data", x.shape[0], subsample_size=batch_size):
        gate, means = numpyro.subsample(logits, event_dim=1), numpyro.subsample(means, event_dim=1)
        z = numpyro.sample("z", dist.Categorical(logits=gate), infer={"enumerate": "parallel"})
        # z is (n,), or (K, 1) where it is enumerated: either way the row index broadcasts with it.
        numpyro.sample("y", dist.Normal(means[jnp.arange(means.shape[0]), z], sigma[z]), obs=take(y))


def start(x: ArrayLike, num_experts: int, y: ArrayLike, **_: Any) -> dict[str, np.ndarray]:
    """Where a search for the maximum may start, a value a site: least squares, rows split by the size of its residuals.

    Expert k then takes the k-th part of the rows by |residual|, and the gate is even. The likelihood has several local
    maxima, and a start at random on raw scale finds poor ones.
    """
    x, y = np.asarray(design(x), np.float64), np.asarray(y, np.float64)
    d, columns = x.shape[1], np.column_stack([np.ones(len(x)), x])
    order = np.argsort(np.abs(y - columns @ np.linalg.lstsq(columns, y, rcond=None)[0]))
    groups = np.array_split(order, num_experts)
    fits = np.array([np.linalg.lstsq(columns[rows], y[rows], rcond=None)[0] for rows in groups])
    residuals = [y[rows] - columns[rows] @ fit for rows, fit in zip(groups, fits, strict=True)]
    values = {
        "gate_intercept": np.zeros(num_experts - 1),
        "gate_b": np.zeros((num_experts - 1, d)),
        "intercept": fits[:, 0],
        "b": fits[:, 1:],
        "sigma": np.array([max(r.std(), 1e-3 * y.std()) for r in residuals]),
    }
    return {name: value for name, value in values.items() if value.size}


def data() -> dict[str, Any]:
    """Inflation `x` (203, 1), percent a year, and unemployment `y` (203,), percent, of US quarters; `num_experts` 2."""
    frame = _statsmodels.load("macrodata")
    return {
        "x": frame[["infl"]].to_numpy(np.float64),
        "y": frame["unemp"].to_numpy(np.float64),
        "num_experts": 2,
    }


MODEL = Model(
    name="mixture_of_experts",
    description="Two linear experts with a softmax gate, US unemployment by inflation: 203 quarters",
    model=model,
    data=data,
)
