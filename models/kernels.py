"""Kernels that tinygp does not have: of infinitely wide networks, of several outputs, and of tasks.

They are tinygp kernels: they add and multiply with its own, and their hyper-parameters may be sites of a model.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from tinygp.kernels import Kernel

__all__ = ["ICM", "ArcCosine", "Erf", "SameTask"]

NEAR_ONE = 1e-12
"""Least 1 − c² in second derivatives at correlation c, which are infinite at c = 1."""


@jax.custom_jvp
def _angle(c: Array) -> Array:
    """π − arccos c."""
    return jnp.pi - jnp.arccos(jnp.clip(c, -1.0, 1.0))


@_angle.defjvp
def _angle_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (c,), (dc,) = primals, tangents
    return _angle(c), dc / jnp.sqrt(jnp.maximum(1 - c**2, NEAR_ONE))


@jax.custom_jvp
def _rectified(c: Array) -> Array:
    """sin θ + (π − θ) cos θ at θ = arccos c: 2π E[relu(u) relu(v)] of standard normals with correlation c.

    Its derivative is π − θ, finite where those of its terms are not: on the diagonal of a kernel matrix.
    """
    c = jnp.clip(c, -1.0, 1.0)
    return jnp.sqrt(1 - c**2) + _angle(c) * c


@_rectified.defjvp
def _rectified_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (c,), (dc,) = primals, tangents
    return _rectified(c), _angle(c) * dc


class _Network(Kernel):
    """A fully connected network with layers of infinite width; what its layers do is left to the subclass."""

    depth: int = eqx.field(static=True, default=1)
    weight_variance: Any = 2.0
    bias_variance: Any = 0.1

    def __check_init__(self) -> None:
        if isinstance(self.depth, bool) or not isinstance(self.depth, int) or self.depth < 1:
            raise ValueError(f"depth counts hidden layers and must be an integer of at least 1, got {self.depth!r}")

    def moment(self, k11: Array, k12: Array, k22: Array) -> Array:
        """E[φ(u) φ(v)] of centred normals u, v with these variances and covariance."""
        raise NotImplementedError

    def evaluate(self, X1: Array, X2: Array) -> Array:
        k11, k12, k22 = self._inputs(X1, X1), self._inputs(X1, X2), self._inputs(X2, X2)
        for _ in range(self.depth):
            k12 = self.bias_variance + self.weight_variance * self.moment(k11, k12, k22)
            k11, k22 = (self.bias_variance + self.weight_variance * self.moment(k, k, k) for k in (k11, k22))
        return k12

    def evaluate_diag(self, X: Array) -> Array:
        k = self._inputs(X, X)
        for _ in range(self.depth):
            k = self.bias_variance + self.weight_variance * self.moment(k, k, k)
        return k

    def _inputs(self, X1: Array, X2: Array) -> Array:
        return self.bias_variance + self.weight_variance * jnp.mean(jnp.asarray(X1) * X2)


class ArcCosine(_Network):
    """Infinitely wide network of rectified linear units.

    Layer by layer K ← σ_b² + σ_w²/(2π) √(K₁₁K₂₂) (sin θ + (π − θ) cos θ), cos θ = K₁₂/√(K₁₁K₂₂), from K = σ_b² +
    σ_w² x·x'/d: the arc-cosine kernel of order one (Kernel Methods for Deep Learning) as the prior of a network (Deep
    Neural Networks as Gaussian Processes). Inputs are scalars or ``(d,)``.

    Args:
        depth: hidden layers.
        weight_variance: σ_w²; 2 keeps the variance from layer to layer where there is no bias.
        bias_variance: σ_b².
    """

    def moment(self, k11: Array, k12: Array, k22: Array) -> Array:
        size = jnp.sqrt(jnp.maximum(k11 * k22, jnp.finfo(jnp.result_type(k11)).tiny))
        return size * _rectified(k12 / size) / (2 * jnp.pi)


class Erf(_Network):
    """Infinitely wide network of sigmoids, φ(u) = erf(u).

    Layer by layer K ← σ_b² + σ_w² (2/π) arcsin(2K₁₂/√((1 + 2K₁₁)(1 + 2K₂₂))) (Computing with Infinite Networks), from
    K = σ_b² + σ_w² x·x'/d. Inputs are scalars or ``(d,)``. Arguments as in `ArcCosine`.
    """

    weight_variance: Any = 1.0

    def moment(self, k11: Array, k12: Array, k22: Array) -> Array:
        return 2 / jnp.pi * jnp.arcsin(2 * k12 / jnp.sqrt((1 + 2 * k11) * (1 + 2 * k22)))


class ICM(Kernel):
    """Several outputs over inputs ``(x, output)``: k(x, x') B[output, output'], B = W Wᵀ + diag(κ).

    The intrinsic coregionalisation model. A sum of them, ``ICM(k1, W1, kappa1) + ICM(k2, W2, kappa2)``, is the linear
    model of coregionalisation (Kernels for Vector-Valued Functions: a Review).

    Args:
        kernel: over x.
        weights: W, ``(outputs, rank)``.
        kappa: κ ≥ 0, a scalar or ``(outputs,)``: what each output has to itself.

    Raises:
        ValueError: weights that are no matrix, or kappa of another length.
    """

    kernel: Kernel
    weights: Array
    kappa: ArrayLike = 0.0

    def __check_init__(self) -> None:
        if jnp.ndim(self.weights) != 2:
            raise ValueError(f"weights must have shape (outputs, rank), got {jnp.shape(self.weights)}")
        if jnp.shape(self.kappa) not in ((), jnp.shape(self.weights)[:1]):
            raise ValueError(
                f"kappa must be a scalar or have one value for each of {jnp.shape(self.weights)[0]} outputs, got shape "
                f"{jnp.shape(self.kappa)}"
            )

    def covariance(self) -> Array:
        """B, ``(outputs, outputs)``."""
        W = jnp.asarray(self.weights)
        return W @ W.T + jnp.diag(jnp.broadcast_to(jnp.asarray(self.kappa, W.dtype), W.shape[:1]))

    def evaluate(self, X1: Any, X2: Any) -> Array:
        (x1, output1), (x2, output2) = X1, X2
        return self.kernel.evaluate(x1, x2) * self.covariance()[output1, output2]


class SameTask(Kernel):
    """A kernel within tasks over inputs ``(x, task)``, zero between them: every task has a function of its own.

    Args:
        kernel: over x.
        per_task: whether hyper-parameters with a leading axis are those of each task, indexed by its number; scalars
            are shared.
    """

    kernel: Kernel
    per_task: bool = eqx.field(static=True, default=False)

    def evaluate(self, X1: Any, X2: Any) -> Array:
        (x1, task1), (x2, task2) = X1, X2
        kernel = self.kernel
        if self.per_task:
            kernel = jax.tree.map(lambda v: v[task1] if jnp.ndim(v) else v, kernel)
        return jnp.where(task1 == task2, kernel.evaluate(x1, x2), 0.0)
