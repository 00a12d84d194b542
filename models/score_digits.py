"""Diffusion model of small handwritten digits.

Data: the 8x8 digits of scikit-learn (Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", 1998) with their
grey levels 0..16, spread by uniform noise of one level (dequantised) and then standardised: 1500 images to train on and
297 to test, after a fixed shuffle. `bits_per_pixel` turns a density of these into one of the grey levels.

The score network is an MLP with three hidden layers of 256, declared by NumPyro's `eqx_module`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpyro

from . import _sklearn
from .diffusion import Diffusion
from .noise_process import VP
from .registry import Model

__all__ = ["MODEL", "bits_per_pixel", "data", "grey_levels", "held_out", "model"]

NUM_PIXELS, LEVELS, NUM_TRAIN, BATCH_SIZE = 64, 17, 1500, 128
CENTRE, SCALE = 5.4, 6.0
"""Mean and standard deviation of the dequantised grey levels, rounded."""


def model(x, batch_size=None) -> None:
    """x ~ Diffusion(score network), in plate "data". `x`: (N, 64), from `data`. Param: score$params."""
    from numpyro.contrib.module import eqx_module

    from .networks import TimeMLP

    network = eqx_module("score", TimeMLP((NUM_PIXELS,), 256, 3, key=numpyro.prng_key()))
    with numpyro.plate("data", len(x), subsample_size=batch_size):
        numpyro.sample("x", Diffusion(network, VP(), NUM_PIXELS), obs=numpyro.subsample(x, event_dim=1))


def _images() -> np.ndarray:
    """All images, dequantised and standardised, in a fixed random order: neighbours come from the same writer."""
    rng = np.random.RandomState(0)
    pixels = _sklearn.load("digits").data
    pixels = pixels[rng.permutation(len(pixels))]
    return ((pixels + rng.uniform(size=pixels.shape) - CENTRE) / SCALE).astype(np.float32)


def data() -> dict[str, Any]:
    """Training images `x` (1500, 64), float32, and a `batch_size`."""
    return {"x": _images()[:NUM_TRAIN], "batch_size": BATCH_SIZE}


def held_out() -> dict[str, Any]:
    """Test images `x` (297, 64), float32."""
    return {"x": _images()[NUM_TRAIN:]}


def grey_levels(x: np.ndarray) -> np.ndarray:
    """Images 0..16, integers ``(..., 8, 8)``, of standardised ones ``(..., 64)``."""
    pixels = np.floor(np.asarray(x) * SCALE + CENTRE)
    return np.clip(pixels, 0, LEVELS - 1).astype(int).reshape(*x.shape[:-1], 8, 8)


def bits_per_pixel(log_prob: np.ndarray) -> float:
    """Of the grey levels, an upper bound: mean of −log₂ density of the dequantised images over their pixels.

    Args:
        log_prob: log-densities of standardised images in nats, ``(n,)``.
    """
    return float(np.log2(SCALE) - np.mean(log_prob) / (NUM_PIXELS * np.log(2)))


MODEL = Model(
    name="score_digits",
    description="Diffusion model of 8x8 grey digits: a score network (DenoisingScoreMatching)",
    model=model,
    data=data,
    held_out=held_out,
    num_steps=10_000,
    learning_rate=0.001,
)
