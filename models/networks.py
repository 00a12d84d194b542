"""Networks of equinox for scores and flows. Not imported with the package: equinox is loaded when they are."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random

__all__ = ["LinearFlow", "TimeMLP"]


class TimeMLP(eqx.Module):
    """An MLP of one x of shape `event_shape` and a scalar t in [0, 1], with values of the shape of x.

    Time enters through sines and cosines of πt, 2πt, 4πt, ... and log(t + 0.001), added to the first hidden layer and
    scaling the others: noise levels near t = 0 are told apart.

    Args:
        event_shape: of x.
        width, depth: of the hidden layers.
        key: draws the first weights; None a fixed one, for where they are given.
    """

    inner: eqx.nn.Linear
    hidden: list[eqx.nn.Linear]
    times: list[eqx.nn.Linear]
    outer: eqx.nn.Linear
    event_shape: tuple[int, ...] = eqx.field(static=True)
    num_frequencies: int = eqx.field(static=True)

    def __init__(
        self, event_shape: tuple[int, ...], width: int = 128, depth: int = 3, *, num_frequencies: int = 4,
        key: Array | None = None,
    ) -> None:  # fmt: skip
        size = int(np.prod(event_shape))
        keys = random.split(random.key(0) if key is None else key, 2 * depth + 2)
        self.event_shape, self.num_frequencies = tuple(event_shape), num_frequencies
        self.inner = eqx.nn.Linear(size, width, key=keys[0])
        self.outer = eqx.nn.Linear(width, size, key=keys[1])
        self.hidden = [eqx.nn.Linear(width, width, key=k) for k in keys[2 : depth + 1]]
        self.times = [eqx.nn.Linear(2 * num_frequencies + 1, width, key=k) for k in keys[depth + 2 :]]

    def __call__(self, x: Array, t: Array) -> Array:
        angles = jnp.pi * 2.0 ** jnp.arange(self.num_frequencies) * t
        features = jnp.concatenate([jnp.sin(angles), jnp.cos(angles), jnp.log(t + 1e-3)[None] / 4])
        first, *others = self.times
        h = jax.nn.silu(self.inner(x.reshape(-1)) + first(features))
        for layer, time in zip(self.hidden, others, strict=False):
            h = h + jax.nn.silu(layer(h) * (1 + time(features)))
        return self.outer(h).reshape(self.event_shape)


class LinearFlow(eqx.Module):
    """z = N(0, I) behind layers x → sinh(δ arcsinh(W x + b) − ε) with dense W, the last without the bend.

    Its likelihood has a determinant of order D³ a layer (Jones and Pewsey's bend is elementwise), its score none: the
    subject of `estimators.EBFlow`.

    Args:
        size: D.
        num_layers: linear layers.
        key: draws the first weights, near to orthogonal ones.
    """

    weights: Array
    biases: Array
    log_delta: Array
    epsilon: Array

    def __init__(self, size: int, num_layers: int = 3, *, key: Array) -> None:
        if size < 1 or num_layers < 1:
            raise ValueError(f"size and num_layers must be at least 1, got {size!r} and {num_layers!r}")
        self.weights = random.orthogonal(key, size, (num_layers,))
        self.biases = jnp.zeros((num_layers, size))
        self.log_delta = jnp.zeros((num_layers - 1, size))
        self.epsilon = jnp.zeros((num_layers - 1, size))

    @property
    def shape(self) -> tuple[int]:
        return (self.biases.shape[1],)

    def log_prob(self, x: Array) -> Array:
        """Log-density in nats, ``(*batch,)``, for x ``(*batch, D)``."""
        total = jnp.zeros(x.shape[:-1], x.dtype)
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = x @ weight.T + bias
            total = total + jnp.linalg.slogdet(weight)[1]
            if i < last:
                inner = jnp.exp(self.log_delta[i]) * jnp.arcsinh(x) - self.epsilon[i]
                slope = self.log_delta[i] + jnp.log(jnp.cosh(inner)) - 0.5 * jnp.log1p(x**2)
                total, x = total + jnp.sum(slope, -1), jnp.sinh(inner)
        return total + jnp.sum(jax.scipy.stats.norm.logpdf(x), -1)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws ``(*sample_shape, D)``: every layer has its inverse in closed form."""
        z = random.normal(key, (*sample_shape, *self.shape))
        last = len(self.weights) - 1
        for i in range(last, -1, -1):
            if i < last:
                z = jnp.sinh((jnp.arcsinh(z) + self.epsilon[i]) * jnp.exp(-self.log_delta[i]))
            flat = (z - self.biases[i]).reshape(-1, self.shape[0])
            z = jnp.linalg.solve(self.weights[i], flat.T).T.reshape(z.shape)
        return z
