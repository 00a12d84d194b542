"""Inducing inputs: where they start, and draws of functions that go through them."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax, random
from jax.scipy.linalg import solve_triangular

from . import linalg
from .posterior import Inducing
from .view import gram, num_rows


@partial(jax.jit, static_argnums=2)
def greedy(kernel: Any, X: Array, num: int) -> Array:
    """Indices of rows, each the one of largest variance given those before it.

    (Convergence of Sparse Variational Inference in Gaussian Processes Regression, section on greedy selection.)
    """
    return pivoted_cholesky(kernel, X, num)[0]


def pivoted_cholesky(kernel: Any, X: Array, num: int) -> tuple[Array, Array]:
    """Pivots ``(num,)`` and C ``(num, n)`` with CᵀC ≈ K, the largest remaining variance first.

    Rows of C are zero once what remains is rounding: scaled up to a unit variance it would be as large as the kernel.
    """
    diagonal = kernel(X)
    rounding = 10 * jnp.finfo(diagonal.dtype).eps * jnp.max(diagonal)
    columns = jnp.zeros((num, num_rows(X)), diagonal.dtype)

    def step(i: Array, carry: tuple) -> tuple:
        chosen, columns, left = carry
        pivot = jnp.argmax(left)
        row = kernel(X[pivot][None], X)[0] - columns[:, pivot] @ columns
        column = jnp.where(left[pivot] > rounding, row / jnp.sqrt(jnp.maximum(left[pivot], rounding)), 0.0)
        left = jnp.maximum(left - column**2, 0.0).at[pivot].set(-1.0)  # never twice
        return chosen.at[i].set(pivot), columns.at[i].set(column), left

    chosen, columns, _ = lax.fori_loop(0, num, step, (jnp.zeros(num, int), columns, diagonal))
    return chosen, columns


def check(X: Any, num: int, name: str, argument: str = "num_inducing") -> None:
    """Whether inputs can be moved, and suffice.

    Raises:
        ValueError: inputs that are no array of real numbers, or more inducing inputs than rows or than distinct ones.
    """
    if not hasattr(X, "dtype") or not jnp.issubdtype(X.dtype, jnp.floating):
        raise ValueError(f"{name} moves inducing inputs: X must be one array of real numbers, not {type(X).__name__}")
    if num > X.shape[0]:
        raise ValueError(
            f"{argument}={num} is more than the {X.shape[0]} rows of the data: take fewer, or GPEvidence, which "
            f"is exact"
        )
    if (found := distinct(X, num)) < num:
        raise ValueError(
            f"{argument}={num} is more than the {found} distinct inputs among the {X.shape[0]} rows: "
            f"take at most {found}"
        )


def distinct(X: Any, enough: int) -> int:
    """Distinct rows, counted only until there are `enough`: mostly among the first few."""
    values = np.asarray(X)
    first = len(np.unique(values[: 4 * enough], axis=0))
    return first if first >= enough else len(np.unique(values, axis=0))


class State(NamedTuple):
    """What a draw through inducing inputs needs."""

    prior: Array
    """Prior mean at the data, ``(n,)``."""
    projection: Array
    """L⁻¹ K_ZX, ``(M, n)``."""
    conditional: Array
    """A square root of the covariance of f given u, ``(n, n)``."""
    mean: Array
    root: Array


def sampler(posterior: Inducing, X: Any, prior: Array) -> State:
    white = solve_triangular(posterior.factor, gram(posterior.kernel, posterior.Z, X), lower=True)
    conditional = linalg.root(gram(posterior.kernel, X) - white.T @ white)
    return State(prior, white, conditional, posterior.mean, posterior.root)


def draw(state: State, rng_key: Array) -> tuple[Array, Array]:
    """f at the data, and log p(u) − log q(u) of the inducing values that it went through."""
    key, rest = random.split(rng_key)
    noise = random.normal(key, state.mean.shape)
    white = state.mean + state.root @ noise
    log_det = jnp.linalg.slogdet(state.root)[1]
    f = state.prior + state.projection.T @ white + state.conditional @ random.normal(rest, state.prior.shape)
    return f, 0.5 * (jnp.sum(noise**2) - jnp.sum(white**2)) + log_det
