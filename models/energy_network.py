"""Energy network on toy densities in the plane: p(x) ∝ exp(−E(x) − |x|²/(2 s²)), E a smooth network.

The second term keeps the density normalisable where there are no data. The network is an equinox MLP with SiLU units,
so that the log-density has two derivatives; its initial weights come from the model's random key.

Data: 2,000 draws of a toy of `toys_2d`, whose density is known.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax.typing import ArrayLike

from . import toys_2d
from .registry import Model

__all__ = ["MODEL", "data", "model"]

NUM_DRAWS, NUM_UNITS, DEPTH, FAR = 2000, 64, 3, 4.0


def model(x: ArrayLike, batch_size: int | None = None) -> None:
    """Param: energy$params. `x`: (n, 2)."""
    import equinox
    from numpyro.contrib.module import eqx_module

    x = jnp.asarray(x, jnp.result_type(float))
    key = numpyro.prng_key()
    key = jax.random.key(0) if key is None else key  # no seed handler: the weights are given
    network = equinox.nn.MLP(x.shape[1], "scalar", NUM_UNITS, DEPTH, activation=jax.nn.silu, key=key)
    energy = jax.vmap(eqx_module("energy", network))
    with numpyro.plate("data", x.shape[0], subsample_size=batch_size):
        batch = numpyro.subsample(x, event_dim=1)
        numpyro.factor("log_density", -energy(batch) - 0.5 * jnp.sum(batch**2, axis=-1) / FAR**2)


def data(toy: str = "two_moons") -> dict[str, Any]:
    """Draws `x` (2000, 2) and a `batch_size`."""
    return {"x": np.asarray(toys_2d.TOYS[toy](jax.random.key(0), NUM_DRAWS)), "batch_size": 500}


MODEL = Model(
    name="energy_two_moons",
    description="Energy network in the plane, no normalising constant: 2000 draws of two moons",
    model=model,
    data=data,
    num_steps=1000,
    learning_rate=5e-3,
)
