"""Bayesian logistic regression on the breast-cancer data.

Data: Breast Cancer Wisconsin (Diagnostic), Street, Wolberg and Mangasarian (1993), 569 tumours with 30 measurements, as
shipped in scikit-learn; columns standardised. y = 1 is benign. The columns are nearly collinear, and without a prior
the classes separate, so b ~ N(0, 1) on the standardised scale does real work. The posterior is strongly correlated.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from . import _sklearn
from .registry import Model

__all__ = ["MODEL", "data", "model", "reference"]


def model(x, y=None) -> None:
    """intercept ~ N(0, 1), b ~ N(0, I), y ~ Bernoulli(sigmoid(intercept + x b)). `x`: (N, d); `y`: (N,) of 0 and 1."""
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 1.0))
    b = numpyro.sample("b", dist.Normal(jnp.zeros(x.shape[1]), 1.0).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Bernoulli(logits=intercept + x @ b), obs=y)


def data() -> dict[str, Any]:
    """Standardised measurements `x` (569, 30), float64, and `y` (569,), int32."""
    raw = _sklearn.load("breast_cancer")
    x = np.asarray(raw.data, np.float64)
    return {"x": (x - x.mean(0)) / x.std(0), "y": np.asarray(raw.target, np.int32)}


@lru_cache(maxsize=1)
def _nuts_draws() -> dict[str, np.ndarray]:
    from numpyro.infer import MCMC, NUTS

    mcmc = MCMC(
        NUTS(model), num_warmup=500, num_samples=1000, num_chains=4, chain_method="vectorized", progress_bar=False
    )
    mcmc.run(jax.random.key(0), **data())
    return {name: np.asarray(value) for name, value in mcmc.get_samples().items()}


def reference() -> dict[str, np.ndarray]:
    """4 x 1000 draws of NumPyro's NUTS, intercept (4000,) and b (4000, 30); run at the first call."""
    return {name: value.copy() for name, value in _nuts_draws().items()}


MODEL = Model(
    name="logistic_regression",
    description="Logistic regression, breast-cancer data: 569 tumours, 30 correlated measurements",
    model=model,
    data=data,
    reference=reference,
)
