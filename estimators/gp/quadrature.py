"""Gauss-Hermite quadrature over one or a few independent normal variables."""

from __future__ import annotations

from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from jax import Array

NODES = {1: 32, 2: 16, 3: 8}
"""Nodes a dimension."""


@lru_cache
def _rule(dimension: int, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    x, w = np.polynomial.hermite_e.hermegauss(nodes)
    log_w = np.log(w / w.sum())
    grids = np.meshgrid(*[x] * dimension, indexing="ij")
    logs = np.meshgrid(*[log_w] * dimension, indexing="ij")
    return np.stack([g.ravel() for g in grids], 1), sum(g.ravel() for g in logs)


def hermite(dimension: int = 1, nodes: int | None = None) -> tuple[Array, Array]:
    """Nodes ``(J, dimension)`` of the standard normal and log-weights ``(J,)`` that sum to one.

    Raises:
        ValueError: more than three dimensions.
    """
    if dimension not in NODES:
        raise ValueError(f"likelihoods of up to {max(NODES)} latent processes are integrated, this one has {dimension}")
    x, log_w = _rule(dimension, nodes or NODES[dimension])
    dtype = jnp.result_type(float)
    return jnp.asarray(x, dtype), jnp.asarray(log_w, dtype)
