"""Pairwise-embedding model of categorical events: how likely the entities of an event are to occur together.

An event is one entity of each of m types, say a user, a machine and a program. With an embedding v of every entity,
log p(event) = Σ_{s<t} w_st ⟨v_s, v_t⟩ + Σ_s b_s up to a constant, w ≥ 0 the weight of a pair of types (Entity
Embedding-based Anomaly Detection for Heterogeneous Categorical Events). The constant is a sum over all possible events.

The scale of w and that of v are not told apart by data: give v a penalty, ``l2={"v": 1.0}``.

Data: simulated. Entities of every type belong to one of three groups; four events in five have entities of one group,
the others are at random.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.typing import ArrayLike

from .registry import Model

__all__ = ["MODEL", "data", "group", "log_density", "model"]

NUM_TYPES, NUM_ENTITIES, NUM_GROUPS, NUM_EVENTS, RANDOM_SHARE = 3, 12, 3, 3000, 0.2


def log_density(x: ArrayLike, v: ArrayLike, w: ArrayLike, b: ArrayLike):
    """Up to a constant, (n,). `x`: (n, m) entities; `v`: (m, K, dim); `w`: (m (m − 1) / 2,); `b`: (m, K)."""
    x, types = jnp.asarray(x), np.arange(jnp.shape(x)[1], dtype=np.int32)
    found = jnp.asarray(v)[types, x]  # (n, m, dim)
    first, second = (i.astype(np.int32) for i in np.triu_indices(len(types), 1))
    pairs = jnp.sum(jnp.take(found, first, 1) * jnp.take(found, second, 1), axis=-1)
    return pairs @ jnp.asarray(w) + jnp.sum(jnp.asarray(b)[types, x], axis=1)


def model(x: ArrayLike, num_entities: int, dim: int) -> None:
    """Params: v (m, num_entities, dim), w (m (m − 1) / 2,) positive, b (m, num_entities). `x`: (n, m) of 0, 1, ..."""
    x = jnp.asarray(x)
    m = x.shape[1]
    key = numpyro.prng_key()
    key = jax.random.key(0) if key is None else key  # no seed handler: values are given, and these are not used
    v = numpyro.param("v", 0.3 * jax.random.normal(key, (m, num_entities, dim)))
    w = numpyro.param("w", jnp.ones(m * (m - 1) // 2), constraint=dist.constraints.positive)
    b = numpyro.param("b", jnp.zeros((m, num_entities)))
    with numpyro.plate("data", x.shape[0]):
        numpyro.factor("log_density", log_density(x, v, w, b))


def group(entity: ArrayLike) -> np.ndarray:
    """The group that an entity belongs to, whatever its type."""
    return np.asarray(entity) % NUM_GROUPS


def data() -> dict[str, Any]:
    """Events `x` (3000, 3), int32, `num_entities` 12 and `dim` 2."""
    rng = np.random.default_rng(0)
    groups = rng.integers(0, NUM_GROUPS, (NUM_EVENTS, 1))
    together = groups + NUM_GROUPS * rng.integers(0, NUM_ENTITIES // NUM_GROUPS, (NUM_EVENTS, NUM_TYPES))
    anything = rng.integers(0, NUM_ENTITIES, (NUM_EVENTS, NUM_TYPES))
    x = np.where(rng.random((NUM_EVENTS, 1)) < RANDOM_SHARE, anything, together)
    return {"x": x.astype(np.int32), "num_entities": NUM_ENTITIES, "dim": 2}


MODEL = Model(
    name="event_embedding",
    description="Pairwise embeddings of categorical events, no constant: 3000 events, 3 types of 12 entities",
    model=model,
    data=data,
)
