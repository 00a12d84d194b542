"""Normalising flows as NumPyro distributions: those of flowjax, and one of dense linear layers.

    def model(x):
        base = flowjax.distributions.Normal(jnp.zeros(2))
        flow = eqx_module("flow", flowjax.flows.coupling_flow(key, base_dist=base, nn_activation=jnp.tanh))
        with numpyro.plate("data", len(x), subsample_size=128):
            numpyro.sample("x", FlowDensity(flow), obs=numpyro.subsample(x, event_dim=1))

`MLE` trains it by its likelihood, `EBFlow` by its score. Real NVP is flowjax's `coupling_flow`, with a
`RationalQuadraticSpline` as its transformer a neural spline flow; `masked_autoregressive_flow` is that. FFJORD is
`models.transport.Flow`.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array, random
from numpyro.distributions import Distribution, constraints

__all__ = ["FlowDensity", "LinearFlow"]


class FlowDensity(Distribution):
    """The density of an unconditional flow.

    Args:
        flow: a flowjax distribution, `LinearFlow`, or another pytree with `shape`, ``log_prob(x)`` for x of shape
            ``(*batch, *shape)`` and ``sample(key, sample_shape)``.

    Raises:
        TypeError: it is none of these.
        ValueError: a flow that wants a condition.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    pytree_data_fields = ("flow",)

    def __init__(self, flow: Any) -> None:
        missing = [name for name in ("shape", "log_prob", "sample") if not hasattr(flow, name)]
        if missing:
            raise TypeError(f"flow must be a flowjax distribution or a LinearFlow, got {type(flow).__name__}, which "
                            f"has no {missing[0]!r}")  # fmt: skip
        if getattr(flow, "cond_shape", None) is not None:
            raise ValueError(f"the flow wants a condition of shape {flow.cond_shape}: make it without cond_dim")
        self.flow = flow
        super().__init__(batch_shape=(), event_shape=tuple(flow.shape))

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    def checked(self, x: Array) -> Array:
        """x as floats.

        Raises:
            ValueError: integers, or another shape than the flow's.
        """
        x = jnp.asarray(x)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"a flow is a density of continuous data, got values of type {x.dtype}: turn counts into "
                             "floats and spread them by uniform noise of one step (dequantise) first")  # fmt: skip
        if x.shape[x.ndim - self.event_dim :] != self.event_shape:
            raise ValueError(f"the flow is over arrays of shape {self.event_shape}, got data of {x.shape}")
        return x

    def log_prob(self, value: Array) -> Array:
        return self.flow.log_prob(self.checked(value))

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        return self.flow.sample(key, sample_shape)


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
