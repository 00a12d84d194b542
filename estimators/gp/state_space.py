"""Processes in time with Markovian kernels: exact inference in O(n)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from tinygp import GaussianProcess, kernels
from tinygp.kernels import quasisep, stationary

from ..base import Data, Estimator, Params
from . import calibration, linalg
from .evidence import RegressionProblem, repeats, without
from .posterior import FunctionPosterior
from .problem import at_once
from .view import Regression

SCANS = ("auto", "sequential", "parallel")
MARKOVIAN = {
    stationary.Exp: quasisep.Exp,
    stationary.Matern32: quasisep.Matern32,
    stationary.Matern52: quasisep.Matern52,
    stationary.Cosine: quasisep.Cosine,
}


@dataclass(frozen=True)
class StateSpaceGP(Estimator):
    """Exact marginal likelihood of a process over one-dimensional inputs in O(n), for kernels that are Markovian.

    These are Exp (Matérn-1/2), Matern32, Matern52, Cosine, their sums and products, products with constants, and all of
    ``tinygp.kernels.quasisep``. Inputs are sorted if they are not.

    Args:
        scan: "sequential" is tinygp's quasiseparable solver (Fast and Scalable Gaussian Process Modeling with
            Applications to
            Astronomical Time Series); "parallel" is a Kalman filter by an associative scan, O(log n) deep, for
            accelerators (Temporal Parallelization of Bayesian Smoothers); "auto" takes the one that suits the device.

    Raises:
        ValueError: at `fit`, for other kernels or inputs, and for inputs that repeat without noise, naming them.
    """

    scan: str = "auto"
    needs_guide = False
    exact = True

    def __post_init__(self) -> None:
        if self.scan not in SCANS:
            raise ValueError(f"scan must be one of {', '.join(SCANS)}, got {self.scan!r}")

    def problem(self, rng_key: Array, model: Callable, guide: Callable | None, data: Data) -> StateSpaceProblem:
        problem = StateSpaceProblem.create(self, rng_key, model, data, order=None)
        X, noise = (np.asarray(v) for v in _inputs_and_noise(problem))
        if X.ndim > 2 or (X.ndim == 2 and X.shape[1] != 1):
            raise ValueError(
                f"StateSpaceGP needs one-dimensional inputs, X has shape {X.shape}: take GPEvidence or SparseGP"
            )
        order = np.argsort(X.ravel(), kind="stable")
        _check_repeats(X.ravel(), noise)
        return eqx.tree_at(lambda p: p.order, problem, jnp.asarray(order), is_leaf=lambda x: x is None)


@eqx.filter_jit
def _inputs_and_noise(problem: RegressionProblem) -> tuple[Any, Array]:
    r = problem.hyper.regression(problem.params, problem.data)
    markovian(r.kernel)
    return r.X, r.noise


def _check_repeats(t: np.ndarray, noise: np.ndarray) -> None:
    """Whether every two observations at one time have noise: there is no jitter here, and nothing to divide by.

    Raises:
        ValueError: two that have none, naming their rows and their time.
    """
    pairs = repeats(t[:, None], noise)
    if len(pairs):
        first, second = pairs[0]
        raise ValueError(
            f"inputs repeat without noise: rows {first} and {second} both have the input {t[first]:g} and noise "
            f"variance zero ({len(pairs)} such pairs); give noise (diag=), or keep one row an input"
        )


def markovian(kernel: Any) -> Any:
    """The same kernel in its quasiseparable form.

    Raises:
        ValueError: a kernel that has none.
    """
    if isinstance(kernel, quasisep.Quasisep):
        return kernel
    if type(kernel) in MARKOVIAN:
        return MARKOVIAN[type(kernel)](scale=kernel.scale)  # type: ignore[abstract]
    if isinstance(kernel, kernels.Sum):
        return markovian(kernel.kernel1) + markovian(kernel.kernel2)
    if isinstance(kernel, kernels.Product):
        for one, other in ((kernel.kernel1, kernel.kernel2), (kernel.kernel2, kernel.kernel1)):
            if isinstance(one, kernels.Constant):
                return one.value * markovian(other)
        return markovian(kernel.kernel1) * markovian(kernel.kernel2)
    raise ValueError(
        f"the kernel {type(kernel).__name__} has no state space of finite dimension: StateSpaceGP takes Exp, "
        f"Matern32, Matern52, "
        "Cosine, their sums and products, and tinygp.kernels.quasisep; for others take GPEvidence, SparseGP or "
        "IterativeGP"
    )


class StateSpaceProblem(RegressionProblem):
    """−log marginal likelihood − log prior, rows in the order of time."""

    order: Array | None = None
    """Rows sorted by input."""

    @property
    def batch(self) -> int:
        return at_once(3e5 // self.num_units)

    @property
    def parallel(self) -> bool:
        return self.options.scan == "parallel" or (self.options.scan == "auto" and jax.default_backend() != "cpu")

    def ordered(self, params: Params, data: Data) -> Regression:
        r = self.hyper.regression(params, data)
        return Regression(
            markovian(r.kernel), jnp.ravel(r.X)[self.order], r.mean[self.order], r.noise[self.order], r.y[self.order]
        )

    def objective(self, params: Params, data: Data) -> Array:
        r = self.ordered(params, data)
        if self.parallel:
            return kalman(r.kernel, r.X, r.noise, r.residual, jnp.ones(len(r.y), bool))[1]
        gp = GaussianProcess(r.kernel, r.X, diag=r.noise, assume_sorted=True)
        return gp.log_probability(r.residual)

    def faults(self, params: Params) -> list[str]:
        """Not by the condition number of a matrix that is never formed."""
        return self.bad_noise(params)

    def function(self, params: Params) -> FunctionPosterior:
        r = self.ordered(params, self.data)
        return Smoothed(r.kernel, r.X, r.noise, r.residual, self.parallel)

    def residuals(self, params: Params) -> tuple[Array, Array]:
        """Leave-one-out, from the smoothed marginals: taking an observation out of N(m, v) is a division."""
        r = self.ordered(params, self.data)
        mean, variance = smooth(r.kernel, r.X, r.noise, r.residual, jnp.ones(len(r.y), bool), self.parallel)
        mean, left = without(mean, variance, r.residual, r.noise)
        return r.residual - mean, left + r.noise

    def remarks(self, params: Params) -> list[str]:
        residual, variance = (np.asarray(v) for v in _residuals(self, params))
        return ["left out one by one: " + calibration.of_moments(residual, variance)]


@eqx.filter_jit
def _residuals(problem: StateSpaceProblem, params: Params) -> tuple[Array, Array]:
    return problem.residuals(params)


class _Element(NamedTuple):
    """Of the filtering scan: p(x_k | y_k, x_{k−1}) and p(y_k | x_{k−1})."""

    A: Array
    b: Array
    C: Array
    eta: Array
    J: Array


def _elements(F: Array, Q: Array, H: Array, R: Array, y: Array, seen: Array) -> _Element:
    """One element from its transition, noise, observation vector, noise variance, value, and whether it was
    observed."""
    S = H @ Q @ H + R
    gain = jnp.where(seen, Q @ H / S, 0.0)
    back = jnp.where(seen, F.T @ H / S, 0.0)
    keep = jnp.eye(len(H), dtype=F.dtype) - jnp.outer(gain, H)
    return _Element(keep @ F, gain * y, keep @ Q, back * y, jnp.outer(back, H @ F))


def _combine(first: _Element, second: _Element) -> _Element:
    eye = jnp.eye(first.C.shape[-1], dtype=first.C.dtype)
    transposed = lambda x: jnp.swapaxes(x, -1, -2)  # noqa: E731
    times = lambda m, v: (m @ v[..., None])[..., 0]  # noqa: E731
    forward = transposed(jnp.linalg.solve(transposed(eye + first.C @ second.J), transposed(second.A)))
    backward = transposed(jnp.linalg.solve(transposed(eye + second.J @ first.C), first.A))
    return _Element(
        forward @ first.A,
        times(forward, first.b + times(first.C, second.eta)) + second.b,
        forward @ first.C @ transposed(second.A) + second.C,
        times(backward, second.eta - times(second.J, first.b)) + first.eta,
        backward @ second.J @ first.A + first.J,
    )


def _dense(matrix: Any) -> Array:
    """The states of a sum are blocks."""
    return matrix.to_dense() if hasattr(matrix, "to_dense") else matrix


class _Filtered(NamedTuple):
    mean: Array
    covariance: Array
    predicted_mean: Array
    predicted_covariance: Array
    transition: Array


def running(combine: Callable, elements: Any, parallel: bool, reverse: bool = False) -> Any:
    """Each element combined with all those before it, or after it where reversed.

    An associative scan is O(log n) deep, and its program as long: one loop compiles in a tenth of the time.
    """
    if parallel:
        return lax.associative_scan(combine, elements, reverse=reverse)
    others = slice(None, -1) if reverse else slice(1, None)
    first = jax.tree.map(lambda x: x[-1 if reverse else 0], elements)
    _, rest = lax.scan(
        lambda carry, x: (combine(carry, x),) * 2, first, jax.tree.map(lambda x: x[others], elements), reverse=reverse
    )
    join = (lambda a, b: jnp.concatenate([b, a[None]])) if reverse else (lambda a, b: jnp.concatenate([a[None], b]))
    return jax.tree.map(join, first, rest)


def kalman(
    kernel: Any, t: Array, noise: Array, y: Array, seen: Array, parallel: bool = True
) -> tuple[_Filtered, Array]:
    """Filtered states at sorted times, and the log-likelihood of the observations that were seen."""
    before = jnp.concatenate([t[:1], t[:-1]])
    # tinygp states the transpose
    F = jax.vmap(lambda a, b: _dense(kernel.transition_matrix(a, b)).T)(before, t)
    stationary = _dense(kernel.stationary_covariance())
    F = F.at[0].set(0.0)  # nothing is known before the first time
    Q = stationary - F @ stationary @ jnp.swapaxes(F, 1, 2)
    H = jax.vmap(kernel.observation_model)(t)
    elements = jax.vmap(_elements)(F, Q, H, noise, y, seen)
    found = running(_combine, elements, parallel)
    mean, covariance = found.b, (found.C + jnp.swapaxes(found.C, 1, 2)) / 2
    last_mean = jnp.concatenate([jnp.zeros_like(mean[:1]), mean[:-1]])
    last_covariance = jnp.concatenate([jnp.zeros_like(covariance[:1]), covariance[:-1]])
    predicted_mean = jnp.einsum("nij,nj->ni", F, last_mean)
    predicted = F @ last_covariance @ jnp.swapaxes(F, 1, 2) + Q
    variance = jnp.einsum("ni,nij,nj->n", H, predicted, H) + noise
    residual = y - jnp.sum(H * predicted_mean, 1)
    terms = -0.5 * (residual**2 / variance + jnp.log(variance) + linalg.LOG_2PI)
    return _Filtered(mean, covariance, predicted_mean, predicted, F), jnp.sum(jnp.where(seen, terms, 0.0))


def smooth(kernel: Any, t: Array, noise: Array, y: Array, seen: Array, parallel: bool = True) -> tuple[Array, Array]:
    """Posterior mean and variance of f at sorted times, ``(n,)`` each."""
    f = kalman(kernel, t, noise, y, seen, parallel)[0]
    F = jnp.concatenate([f.transition[1:], jnp.zeros_like(f.transition[:1])])
    ahead_mean = jnp.concatenate([f.predicted_mean[1:], jnp.zeros_like(f.predicted_mean[:1])])
    eye = jnp.eye(f.covariance.shape[-1], dtype=t.dtype)
    ahead = jnp.concatenate([f.predicted_covariance[1:], eye[None]])
    # times that coincide leave the predicted covariance singular
    size = jnp.trace(ahead, axis1=1, axis2=2)[:, None, None]
    gain = jnp.swapaxes(jnp.linalg.solve(ahead + 1e-12 * size * eye, F @ f.covariance), 1, 2)
    offset = f.mean - jnp.einsum("nij,nj->ni", gain, ahead_mean)
    left = f.covariance - gain @ ahead @ jnp.swapaxes(gain, 1, 2)

    def combine(later: tuple, earlier: tuple) -> tuple:
        E, g, L = later
        E0, g0, L0 = earlier
        return E0 @ E, (E0 @ g[..., None])[..., 0] + g0, E0 @ L @ jnp.swapaxes(E0, -1, -2) + L0

    _, mean, covariance = running(combine, (gain, offset, left), parallel, reverse=True)
    H = jax.vmap(kernel.observation_model)(t)
    return jnp.sum(H * mean, 1), jnp.maximum(jnp.einsum("ni,nij,nj->n", H, covariance, H), 0.0)


class Smoothed(FunctionPosterior):
    """The exact posterior by smoothing over the times of the data and those asked for."""

    kernel: Any
    t: Array
    """Sorted."""
    noise: Array
    residual: Array
    parallel: bool = eqx.field(static=True)

    def marginals(self, X: Any) -> tuple[Array, Array]:
        new = jnp.ravel(X)
        times = jnp.concatenate([self.t, new])
        order = jnp.argsort(times, stable=True)
        pad = lambda x, fill: jnp.concatenate([x, jnp.full(len(new), fill, x.dtype)])[order]  # noqa: E731
        seen = jnp.concatenate([jnp.ones(len(self.t), bool), jnp.zeros(len(new), bool)])[order]
        rows = (times[order], pad(self.noise, 1.0), pad(self.residual, 0.0), seen)
        mean, variance = smooth(self.kernel, *rows, self.parallel)
        where = jnp.argsort(order)[len(self.t) :]
        return mean[where], variance[where]

    def joint(self, X: Any) -> tuple[Array, Array]:
        """Dense, O((n + m)³): for few inputs."""
        from .posterior import condition

        return condition(self.kernel, self.t, self.noise, self.residual).joint(jnp.ravel(X))
