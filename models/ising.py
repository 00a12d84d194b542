"""Ising model (Boltzmann machine without hidden units) and restricted Boltzmann machine, with their exact constants.

Ising: p(x) ∝ exp(Σ_{i<j} w_ij x_i x_j + Σ_i b_i x_i), spins x_i = ±1. Restricted: visible and hidden units in {0, 1},
p(x, h) ∝ exp(xᵀWh + bᵀx + cᵀh), the hidden ones summed out in closed form. Both are energies: `numpyro.factor` alone,
no normalising constant. `exact_log_normalizer` and `rbm_log_normalizer` enumerate it, for sizes where that is possible.

Data: draws of the Ising model at known couplings, from its enumerated law; and the binary digits of `vae_digits`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike

from . import vae_digits
from .registry import Model

__all__ = [
    "MODELS",
    "exact_log_normalizer",
    "ising",
    "ising_data",
    "ising_truth",
    "rbm",
    "rbm_data",
    "rbm_log_normalizer",
    "spins",
]

NUM_SPINS, NUM_DRAWS = 8, 2000
NUM_HIDDEN = 12


def pairs(w: ArrayLike, num_spins: int) -> Array:
    """Couplings ``(D (D − 1) / 2,)``, row by row above the diagonal, as a matrix ``(D, D)`` that is zero elsewhere."""
    upper = np.triu_indices(num_spins, 1)
    place = np.zeros((num_spins * (num_spins - 1) // 2, num_spins, num_spins), np.float32)
    place[np.arange(len(place)), upper[0], upper[1]] = 1
    return jnp.einsum("k,kij->ij", jnp.asarray(w), place)


def ising(x: ArrayLike, batch_size: int | None = None) -> None:
    """Params: w (D (D − 1) / 2,) couplings, b (D,) fields. `x`: (n, D) of −1 and 1."""
    x = jnp.asarray(x)
    d = x.shape[1]
    w = numpyro.param("w", jnp.zeros(d * (d - 1) // 2))
    b = numpyro.param("b", jnp.zeros(d))
    with numpyro.plate("data", x.shape[0], subsample_size=batch_size):
        s = numpyro.subsample(x, event_dim=1).astype(jnp.result_type(float))
        numpyro.factor("energy", jnp.einsum("ni,ij,nj->n", s, pairs(w, d), s) + s @ b)


def spins(num_spins: int) -> np.ndarray:
    """All states, (2^D, D) of −1 and 1."""
    return 2 * ((np.arange(2**num_spins)[:, None] >> np.arange(num_spins)) & 1) - 1


def _log_weights(w: ArrayLike, b: ArrayLike) -> Array:
    s = spins(len(np.asarray(b))).astype(np.float64)
    return jnp.einsum("si,ij,sj->s", s, pairs(w, s.shape[1]), s) + s @ jnp.asarray(b)


def exact_log_normalizer(w: ArrayLike, b: ArrayLike) -> float:
    """log Z of `ising` by enumeration, in nats."""
    return float(logsumexp(_log_weights(w, b)))


def ising_truth() -> dict[str, np.ndarray]:
    """A ring of alternating couplings with weak others, and fields."""
    rng = np.random.default_rng(0)
    upper = np.triu_indices(NUM_SPINS, 1)
    ring = (upper[1] - upper[0] == 1) | (upper[1] - upper[0] == NUM_SPINS - 1)
    w = np.where(ring, 0.5 * (-1.0) ** upper[0], 0.0) + 0.1 * rng.normal(size=len(ring)) * ring
    return {"w": w, "b": 0.2 * rng.normal(size=NUM_SPINS)}


def ising_data() -> dict[str, Any]:
    """Independent draws `x` (2000, 8), int32, of the law at `ising_truth`."""
    truth = ising_truth()
    p = np.exp(np.asarray(_log_weights(truth["w"], truth["b"]), np.float64))
    chosen = np.random.default_rng(1).choice(len(p), NUM_DRAWS, p=p / p.sum())
    return {"x": spins(NUM_SPINS)[chosen].astype(np.int32)}


def rbm(x: ArrayLike, num_hidden: int, batch_size: int | None = None) -> None:
    """Params: W (D, num_hidden), b (D,) visible, c (num_hidden,) hidden fields. `x`: (n, D) of 0 and 1."""
    x = jnp.asarray(x)
    d = x.shape[1]
    key = numpyro.prng_key()
    key = jax.random.key(0) if key is None else key  # no seed handler: values are given, and these are not used
    w = numpyro.param("W", 0.1 * jax.random.normal(key, (d, num_hidden)))
    b, c = numpyro.param("b", jnp.zeros(d)), numpyro.param("c", jnp.zeros(num_hidden))
    with numpyro.plate("data", x.shape[0], subsample_size=batch_size):
        v = numpyro.subsample(x, event_dim=1).astype(jnp.result_type(float))
        numpyro.factor("energy", v @ b + jnp.sum(jax.nn.softplus(v @ w + c), axis=-1))


def rbm_log_normalizer(W: ArrayLike, b: ArrayLike, c: ArrayLike) -> float:
    """log Z of `rbm` by enumeration of its hidden units, in nats."""
    h = ((spins(np.shape(W)[1]) + 1) // 2).astype(np.float32)
    return float(logsumexp(h @ jnp.asarray(c) + jnp.sum(jax.nn.softplus(h @ jnp.asarray(W).T + jnp.asarray(b)), -1)))


def rbm_data() -> dict[str, Any]:
    """Binary digits `x` (1500, 64), int32, `num_hidden` 12 and a `batch_size`."""
    return {**vae_digits.data(), "num_hidden": NUM_HIDDEN}


MODELS = (
    Model(
        name="ising",
        description="Ising model of 8 spins without its normalising constant: 2000 draws, couplings known",
        model=ising,
        data=ising_data,
        truth=ising_truth,
    ),
    Model(
        name="rbm_digits",
        description="Restricted Boltzmann machine, 12 hidden units, binary 8x8 digits",
        model=rbm,
        data=rbm_data,
    ),
)
