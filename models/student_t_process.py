"""Student-t process: a Gaussian process whose variance is unknown, with the variance integrated out.

f | s ~ GP(m, s k) with s ~ InverseGamma(df/2, df/2) is Student-t at any inputs, and stays so given data (Student-t
Processes as Alternatives to Gaussian Processes; Scale Mixtures of Neural Network Gaussian Processes, where k is the
kernel of a wide network whose last layer has a random variance). Unlike a Gaussian process its predictive variance
depends on the targets: data that are larger than k expects widen it. For another prior of s put a site into the model,
``s = numpyro.sample("s", ...)`` and ``GaussianProcess(s * kernel, X, diag=s * diag)``.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.scipy.linalg import solve_triangular
from jax.typing import ArrayLike
from tinygp.kernels import Kernel

__all__ = ["StudentTProcess"]


class StudentTProcess(dist.MultivariateStudentT):
    """Values of a Student-t process with additive noise at inputs X, a NumPyro distribution over ``(n,)``.

    Args:
        df: degrees of freedom, positive; the covariance is df/(df − 2) (K + diag) where df > 2. A large one is nearly
            a Gaussian process.
        kernel: tinygp kernel.
        X: inputs, leading axis n.
        diag: variance of the noise on the same scale as the kernel, a scalar or ``(n,)``. It shares the random scale,
            so that the closed form holds.
        mean: prior mean, a scalar or ``(n,)``.

    Raises:
        ValueError: diag or mean of another length.
    """

    pytree_data_fields = ("kernel", "X", "diag")

    def __init__(
        self,
        df: ArrayLike,
        kernel: Kernel,
        X: Any,
        diag: ArrayLike = 0.0,
        *,
        mean: ArrayLike = 0.0,
        validate_args: bool | None = None,
    ) -> None:
        n = jax.tree.leaves(X)[0].shape[0]
        for name, value in (("diag", diag), ("mean", mean)):
            if jnp.shape(value) not in ((), (n,)):
                raise ValueError(f"{name} must be a scalar or have shape ({n},), got shape {jnp.shape(value)}")
        self.kernel, self.X, self.diag = kernel, X, jnp.asarray(diag)
        covariance = kernel(X, X)
        tril = jnp.linalg.cholesky(covariance + jnp.diag(jnp.broadcast_to(diag, (n,)).astype(covariance.dtype)))
        super().__init__(df, jnp.broadcast_to(mean, (n,)), tril, validate_args=validate_args)

    def condition(
        self, y: ArrayLike, X_new: Any, diag: ArrayLike = 0.0, *, mean: ArrayLike = 0.0
    ) -> dist.MultivariateStudentT:
        """The process at new inputs given its values y ``(n,)`` (noise included) at X.

        Degrees of freedom df + n, location m' + K' (K + D)⁻¹ (y − m), squared scale (df + β)/(df + n) times the
        covariance of the Gaussian process, β = (y − m)ᵀ (K + D)⁻¹ (y − m).

        Args:
            diag: noise at the new inputs, a scalar or ``(m,)``; a little makes the covariance of a smooth process
                regular.
            mean: prior mean there, a scalar or ``(m,)``.

        Raises:
            ValueError: y of another shape.
        """
        if jnp.shape(y) != self.loc.shape:
            raise ValueError(f"y must have shape {self.loc.shape}, one value an input, got {jnp.shape(y)}")
        n, m = self.loc.shape[0], jax.tree.leaves(X_new)[0].shape[0]
        white = solve_triangular(self.scale_tril, jnp.asarray(y) - self.loc, lower=True)
        cross = solve_triangular(self.scale_tril, self.kernel(self.X, X_new), lower=True)
        covariance = self.kernel(X_new, X_new) - cross.T @ cross
        covariance = covariance + jnp.diag(jnp.broadcast_to(diag, (m,)).astype(covariance.dtype))
        widening = (self.df + white @ white) / (self.df + n)
        tril = jnp.sqrt(widening) * jnp.linalg.cholesky(covariance)
        return dist.MultivariateStudentT(self.df + n, mean + cross.T @ white, tril)

    def scale_posterior(self, y: ArrayLike) -> dist.InverseGamma:
        """p(s | y) = InverseGamma((df + n)/2, (df + β)/2)."""
        white = solve_triangular(self.scale_tril, jnp.asarray(y) - self.loc, lower=True)
        half = jnp.asarray(0.5, white.dtype)
        return dist.InverseGamma(half * (self.df + len(white)), half * (self.df + white @ white))

    @property
    def gaussian_covariance(self) -> Array:
        """K + D, the covariance at scale one, ``(n, n)``."""
        return self.scale_tril @ self.scale_tril.T
