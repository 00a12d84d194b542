"""Fixed points inside of an objective that does not change with them: its second derivatives alone see them move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

LIVE_SWEEPS = 20
"""Sweeps through which second derivatives are carried."""


@eqx.filter_custom_vjp
def forwards(x: Any, f: Callable) -> Any:
    """f(x), whose derivatives in x are carried forwards, and are zero backwards.

    With F the objective and s(x) its stationary point, dF/dx is ∂F/∂x at s fixed. The derivative of that is
    ∂²F/∂x² + (∂²F/∂x∂s) ds/dx: `jax.jvp` of `jax.grad` has both terms, and f is never differentiated backwards.

    Args:
        f: the way to s, live sweeps at its end. A pytree, what else it needs its leaves.
    """
    return f(x)


@forwards.def_fwd
def _forward(perturbed: Any, x: Any, f: Callable) -> tuple[Any, None]:
    return f(x), None


@forwards.def_bwd
def _backward(residuals: None, cotangents: Any, perturbed: Any, x: Any, f: Callable) -> Any:
    return jax.tree.map(jnp.zeros_like, eqx.filter(x, eqx.is_inexact_array))
