"""The E-step of clusters of tasks: labels given mean processes, mean processes given labels, and their bound.

Pure functions of arrays: what `multi_task` reads off a model enters as `Stats`.
"""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy.linalg import lu_factor, lu_solve

MAX_SWEEPS = 500
TOLERANCE = 1e-9
"""Of responsibilities: they are then at their fixed point."""
NEAREST = 200
"""Most inputs at which tasks are compared for the first responsibilities."""
LLOYD = 25


class Layout(eqx.Module):
    """Where the rows of the data belong."""

    task: Array
    """``(n,)``"""
    rows: Array
    """Rows of each task, ``(N, L)``, padded."""
    mask: Array
    """Which of them are there, ``(N, L)``."""
    place: Array
    """Of each of these rows among the distinct inputs, ``(N, L)``."""
    first: Array
    """A row that has each distinct input, ``(M,)``."""
    position: Array
    """Of each row among the distinct inputs, ``(n,)``."""

    @property
    def num_tasks(self) -> int:
        return self.rows.shape[0]


def layout(inputs: np.ndarray, task: np.ndarray, num_tasks: int) -> Layout:
    """Rows by task, and the distinct inputs."""
    members = [np.flatnonzero(task == i) for i in range(num_tasks)]
    longest = max(len(m) for m in members)
    rows, mask = np.zeros((num_tasks, longest), int), np.zeros((num_tasks, longest), bool)
    for i, m in enumerate(members):
        rows[i, : len(m)], mask[i, : len(m)] = m, True
    flat = inputs.reshape(len(inputs), -1)
    _, first, position = np.unique(flat, axis=0, return_index=True, return_inverse=True)
    position = position.ravel()
    return Layout(*(jnp.asarray(x) for x in (task, rows, mask, position[rows], first, position)))


def first_responsibilities(
    inputs: np.ndarray, y: np.ndarray, parts: Layout, num_clusters: int, num_starts: int, seed: int
) -> np.ndarray:
    """Soft partitions of the tasks by k-means, ``(starts, N, K)``; fewer starts where several agree.

    Tasks are compared by their values at the nearest of their inputs, so that their grids need not agree. Clusters are
    ordered by their mean values: partitions that differ in the order of labels alone are one.
    """
    n_tasks = parts.num_tasks
    flat = inputs.reshape(len(inputs), -1)
    flat = flat / np.where(flat.std(0) > 0, flat.std(0), 1.0)
    grid = flat[np.asarray(parts.first)]
    grid = grid[np.linspace(0, len(grid) - 1, min(NEAREST, len(grid))).astype(int)]
    curves = np.full((n_tasks, len(grid)), y.mean())
    for i in range(n_tasks):
        mine = np.asarray(parts.rows[i])[np.asarray(parts.mask[i])]
        if len(mine):
            distance = ((grid[:, None] - flat[mine]) ** 2).sum(-1)
            curves[i] = y[mine[distance.argmin(1)]]
    rng = np.random.default_rng(seed)
    partitions = {tuple(_k_means(curves, num_clusters, rng)) for _ in range(num_starts if num_clusters > 1 else 1)}
    hard = np.eye(num_clusters)[np.array(sorted(partitions))]
    return 0.9 * hard + 0.1 / num_clusters


def _k_means(curves: np.ndarray, num_clusters: int, rng: np.random.Generator) -> list[int]:
    centres = curves[[rng.integers(len(curves))]]
    for _ in range(num_clusters - 1):  # k-means++
        distance = ((curves[:, None] - centres) ** 2).sum(-1).min(1)
        weights = distance / distance.sum() if distance.sum() > 0 else np.full(len(curves), 1 / len(curves))
        centres = np.concatenate([centres, curves[[rng.choice(len(curves), p=weights)]]])
    for _ in range(LLOYD):
        labels = ((curves[:, None] - centres) ** 2).sum(-1).argmin(1)
        centres = np.array([curves[labels == k].mean(0) if (labels == k).any() else c for k, c in enumerate(centres)])
    rank = np.argsort(np.argsort(centres.mean(1), kind="stable"))
    return rank[labels].tolist()


class Stats(NamedTuple):
    """Everything that the sweeps need of a model at given hyper-parameters."""

    prior: Array
    """Covariances of the mean processes at the distinct inputs, ``(K, M, M)``."""
    precision: Array
    """Of the residuals of a task around a mean process of each cluster, ``(K, N, L, L)``; zero at the padding."""
    residual: Array
    """Observations less the prior means, ``(K, N, L)``."""
    log_normal: Array
    """log N(residual | 0, Ψ + σ²I), ``(K, N)``."""
    log_weights: Array
    """``(N, K)``"""
    place: Array
    """``(N, L)``"""
    log_prior: Array
    """Of the hyper-parameters."""


class Means(NamedTuple):
    """q(g_k) ∝ p(g_k) exp(shift_kᵀ g_k − ½ g_kᵀ precision_k g_k)."""

    mean: Array
    """``(K, M)``"""
    covariance: Array
    """``(K, M, M)``"""
    precision: Array
    shift: Array
    log_normaliser: Array
    """``(K,)``"""


@jax.custom_jvp
def _tilt(C: Array, precision: Array, shift: Array) -> tuple[Array, Array, Array]:
    """Mean, covariance and log-normaliser of N(0, C) tilted by exp(shiftᵀ g − ½ gᵀ precision g).

    By LU of I + C precision, because C may be singular; derivatives need no further factorisation.
    """
    lu = lu_factor(jnp.eye(len(C), dtype=C.dtype) + C @ precision)
    covariance = lu_solve(lu, C)
    covariance = (covariance + covariance.T) / 2
    mean = covariance @ shift
    log_det = jnp.sum(jnp.log(jnp.abs(jnp.diagonal(lu[0]))))
    return mean, covariance, 0.5 * shift @ mean - 0.5 * log_det


@_tilt.defjvp
def _tilt_jvp(primals: tuple, tangents: tuple) -> tuple:
    (C, precision, shift), (dC, d_precision, d_shift) = primals, tangents
    mean, covariance, value = _tilt(C, precision, shift)
    half = precision @ covariance
    left = jnp.eye(len(C), dtype=C.dtype) - half.T
    d_covariance = left @ dC @ left.T - covariance @ d_precision @ covariance
    alpha = shift - precision @ mean
    d_value = 0.5 * jnp.sum((alpha[:, None] * alpha - precision + half @ precision) * dC)
    d_value = d_value - 0.5 * jnp.sum((covariance + mean[:, None] * mean) * d_precision) + mean @ d_shift
    return (mean, covariance, value), (d_covariance @ shift + covariance @ d_shift, d_covariance, d_value)


def means_given(stats: Stats, responsibilities: Array) -> Means:
    """The posterior of the mean processes, tasks weighted by their responsibilities ``(N, K)``."""
    i, j = stats.place[:, :, None], stats.place[:, None, :]
    size = stats.prior.shape[-1]

    def one(C: Array, P: Array, r: Array, w: Array) -> Means:
        weighted = w[:, None, None] * P
        precision = jnp.zeros((size, size), C.dtype).at[i, j].add(weighted)
        shift = jnp.zeros(size, C.dtype).at[stats.place].add(jnp.einsum("nij,nj->ni", weighted, r))
        mean, covariance, value = _tilt(C, precision, shift)
        return Means(mean, covariance, precision, shift, value)

    return jax.vmap(one)(stats.prior, stats.precision, stats.residual, responsibilities.T)


def scores(stats: Stats, q: Means) -> Array:
    """log w_k + E_q log N(y_i | g_k, Ψ_i + σ²I), ``(N, K)``."""
    i, j = stats.place[:, :, None], stats.place[:, None, :]

    def one(P: Array, r: Array, mean: Array, covariance: Array) -> Array:
        m = mean[stats.place]
        pull = jnp.einsum("nij,nj->ni", P, r - 0.5 * m)
        return jnp.sum(m * pull, 1) - 0.5 * jnp.sum(P * covariance[i, j], (1, 2))

    expected = jax.vmap(one)(stats.precision, stats.residual, q.mean, q.covariance)
    return stats.log_weights + (stats.log_normal + expected).T


def sweep(stats: Stats, log_r: Array) -> Array:
    """Log-responsibilities after one update of the mean processes and then of themselves, ``(N, K)``."""
    return jax.nn.log_softmax(scores(stats, means_given(stats, jnp.exp(log_r))), axis=1)


def converge(stats: Stats, start: Array) -> tuple[Array, Array]:
    """Log-responsibilities at the fixed point of the sweeps, and the bound there. Not differentiated."""

    def going_on(carry: tuple) -> Array:
        return (carry[2] > TOLERANCE) & (carry[3] < MAX_SWEEPS)

    def body(carry: tuple) -> tuple:
        log_r, _, _, count = carry
        q = means_given(stats, jnp.exp(log_r))
        new = jax.nn.log_softmax(scores(stats, q), axis=1)
        return new, _bound(stats, log_r, q), jnp.max(jnp.abs(jnp.exp(new) - jnp.exp(log_r))), count + 1

    far = jnp.asarray(jnp.inf, start.dtype)
    log_r, value, _, _ = lax.while_loop(going_on, body, (jnp.log(start), -far, far, jnp.zeros((), jnp.int32)))
    return log_r, value


def _bound(stats: Stats, log_r: Array, q: Means) -> Array:
    labels = jnp.sum(jnp.exp(log_r) * (stats.log_weights - log_r + stats.log_normal.T))
    return labels + jnp.sum(q.log_normaliser)


def bound(stats: Stats, log_r: Array) -> Array:
    """Evidence lower bound at the best q(g) for these responsibilities, nats."""
    return _bound(stats, log_r, means_given(stats, jnp.exp(log_r)))
