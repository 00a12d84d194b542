"""Variational auto-encoder of small handwritten digits.

Data: the 8x8 digits of scikit-learn (Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", 1998), made
binary: a pixel is 1 where its grey level, 0..16, is 8 or more. 1500 images to train on and 297 to test, after a fixed
shuffle.

One stochastic layer: z ~ N(0, I_10), pixels ~ Bernoulli(decoder(z)); the guide is an amortised diagonal Gaussian.
Encoder and decoder are equinox MLPs with one hidden layer of 64, declared by NumPyro's `eqx_module`. Their initial
weights come from the model's own random key, so they differ between seeds and repeat with one.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from . import _sklearn
from .registry import Model

__all__ = ["MODEL", "data", "guide", "held_out", "model"]

NUM_PIXELS, NUM_LATENT, NUM_UNITS = 64, 10, 64
NUM_TRAIN, BATCH_SIZE = 1500, 100


def _network(name: str, num_in: int, num_out: int):
    """An MLP, declared as the param site NAME$params, as a function (B, num_in) -> (B, num_out)."""
    import equinox
    from numpyro.contrib.module import eqx_module

    key = numpyro.prng_key()
    if key is None:  # no seed handler: the params are given, and these weights are not used
        key = jax.random.key(0)
    return jax.vmap(eqx_module(name, equinox.nn.MLP(num_in, num_out, NUM_UNITS, depth=1, activation=jnp.tanh, key=key)))


def model(x, batch_size=None) -> None:
    """z ~ N(0, I_10), x ~ Bernoulli(decoder(z)), in plate "data". `x`: (N, 64) of 0 and 1. Param: decoder$params."""
    decode = _network("decoder", NUM_LATENT, NUM_PIXELS)
    with numpyro.plate("data", x.shape[0], subsample_size=batch_size):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(NUM_LATENT), 1.0).to_event(1))
        logits = decode(z)
        numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=numpyro.subsample(x, event_dim=1))


def guide(x, batch_size=None) -> None:
    """q(z | x) = N(loc, diag(scale^2)), (loc, log scale) = encoder(x). Param: encoder$params."""
    encode = _network("encoder", NUM_PIXELS, 2 * NUM_LATENT)
    with numpyro.plate("data", x.shape[0], subsample_size=batch_size):
        x = numpyro.subsample(x, event_dim=1)
        loc, log_scale = jnp.split(encode(x.astype(jnp.result_type(float))), 2, axis=-1)
        numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))


def _images() -> np.ndarray:
    """All images in a fixed random order, (1797, 64), int32: neighbours in the file come from the same writer."""
    pixels = (_sklearn.load("digits").data >= 8).astype(np.int32)
    return pixels[np.random.RandomState(0).permutation(len(pixels))]


def data() -> dict[str, Any]:
    """Training images `x` (1500, 64), int32, and a `batch_size`."""
    return {"x": _images()[:NUM_TRAIN], "batch_size": BATCH_SIZE}


def held_out() -> dict[str, Any]:
    """Test images `x` (297, 64), int32."""
    return {"x": _images()[NUM_TRAIN:]}


MODEL = Model(
    name="vae_digits",
    description="Variational auto-encoder of binary 8x8 digits: amortised guide, one stochastic layer of 10",
    model=model,
    data=data,
    guide=guide,
    held_out=held_out,
    num_steps=4000,
    learning_rate=0.003,
)
