"""Normalising flows as NumPyro distributions: those of flowjax, and `networks.LinearFlow`.

    def model(x):
        base = flowjax.distributions.Normal(jnp.zeros(2))
        flow = eqx_module("flow", flowjax.flows.coupling_flow(key, base_dist=base, nn_activation=jnp.tanh))
        with numpyro.plate("data", len(x), subsample_size=128):
            numpyro.sample("x", FlowDensity(flow), obs=numpyro.subsample(x, event_dim=1))

`MLE` trains it by its likelihood, `EBFlow` by its score. Real NVP is flowjax's `coupling_flow`, with a
`RationalQuadraticSpline` as its transformer a neural spline flow; `masked_autoregressive_flow` is that. Residual
flows are in `models.residual_flow`, FFJORD is `models.transport.Flow`.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array
from numpyro.distributions import Distribution, constraints

__all__ = ["FlowDensity"]


class FlowDensity(Distribution):
    """The density of an unconditional flow.

    Args:
        flow: a flowjax distribution, `networks.LinearFlow`, or another pytree with `shape`, ``log_prob(x)`` for x of
            shape ``(*batch, *shape)`` and ``sample(key, sample_shape)``.

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
        return x.astype(jnp.promote_types(x.dtype, jnp.result_type(float)))  # that of the network's parameters

    def log_prob(self, value: Array) -> Array:
        return self.flow.log_prob(self.checked(value))

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        return self.flow.sample(key, sample_shape)
