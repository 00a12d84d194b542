"""Posteriors over functions: what an estimator knows of f at any inputs."""

from __future__ import annotations

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import solve_triangular

from . import linalg
from .view import gram


class FunctionPosterior(eqx.Module):
    """A Gaussian process posterior of f minus its prior mean."""

    @abc.abstractmethod
    def marginals(self, X: Any) -> tuple[Array, Array]:
        """Mean and variance at each input, ``(n,)`` each."""

    @abc.abstractmethod
    def joint(self, X: Any) -> tuple[Array, Array]:
        """Mean ``(n,)`` and covariance ``(n, n)``."""


class Conditional(FunctionPosterior):
    """The prior conditioned on (pseudo-)observations: mean k(x, X) α, covariance k(x, x') − k(x, X) A k(X, x').

    With noise variances S and residuals r, A = (K + S)⁻¹ and α = A r.
    """

    kernel: Any
    X: Any
    alpha: Array
    """``(n,)``"""
    A: Array
    """``(n, n)``"""

    def marginals(self, X: Any) -> tuple[Array, Array]:
        cross = gram(self.kernel, X, self.X)
        variance = self.kernel(X) - jnp.sum((cross @ self.A) * cross, 1)
        return cross @ self.alpha, jnp.maximum(variance, 0.0)

    def joint(self, X: Any) -> tuple[Array, Array]:
        cross = gram(self.kernel, X, self.X)
        return cross @ self.alpha, gram(self.kernel, X) - cross @ self.A @ cross.T


class Inducing(FunctionPosterior):
    """q(u) = N(L m, L C Cᵀ Lᵀ) at inducing inputs Z with K_ZZ = L Lᵀ, and f given u as in the prior."""

    kernel: Any
    Z: Array
    factor: Array
    """L, ``(M, M)``"""
    mean: Array
    """m, ``(M,)``"""
    root: Array
    """C, ``(M, M)``: a square root of the whitened covariance."""

    def marginals(self, X: Any) -> tuple[Array, Array]:
        white = solve_triangular(self.factor, gram(self.kernel, self.Z, X), lower=True)
        variance = self.kernel(X) - jnp.sum(white**2, 0) + jnp.sum((self.root.T @ white) ** 2, 0)
        return white.T @ self.mean, jnp.maximum(variance, 0.0)

    def joint(self, X: Any) -> tuple[Array, Array]:
        white = solve_triangular(self.factor, gram(self.kernel, self.Z, X), lower=True)
        spread = self.root.T @ white
        return white.T @ self.mean, gram(self.kernel, X) - white.T @ white + spread.T @ spread


def condition(kernel: Any, X: Any, noise: Array, residual: Array) -> Conditional:
    """The prior conditioned on observations with Gaussian noise."""
    factor, _ = linalg.jittered_cholesky(linalg.add_diagonal(gram(kernel, X), noise))
    A = linalg.inverse_of_factor(factor)
    return Conditional(kernel, X, A @ residual, A)
