"""Objectives of the log-weight family: pure functions of an array of log importance weights.

With ``log_w`` of shape ``(K, *plates)``, log w_k = log p(x, z_k) − log q(z_k), an objective says what to climb, and
with which coefficients each gradient estimator combines the particles. All reductions are over the first axis, per
plate element. Two kinds follow from two lines of algebra:

* `Bound`: a function F of the weights whose expectation is climbed. Every coefficient follows from F alone:
  v = ∂F/∂log w for the total derivative, c = v − diag ∂²F/∂log w² for the doubly reparameterised one
  (Doubly Reparameterized Gradient Estimators, eq. 7), and (F − F without particle k) − v for the score function one
  (Variational Inference for Monte Carlo Objectives, eq. 9–10).
* `ForwardKL`, `ForwardChi2`: divergences from p to q, descended. Their gradient is an expectation under p,
  −Σ_k s_k ∂ log q(z_k) with self-normalised s.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp, xlogy

GRADIENTS = ("reparam", "score", "path", "dreg")


class Objective(abc.ABC):
    """What to climb, with the coefficient of each particle in the ascent direction of every gradient estimator.

    Each method maps ``(K, *plates)`` log-weights to coefficients of the same shape, of

    * ``total``: d log w_k / dφ, through z_k and through log q             (gradient="reparam")
    * ``path``: (∂ log w_k/∂z_k)(∂z_k/∂φ), the score term dropped            (gradient="path")
    * ``double``: the same, the score term doubly reparameterised            (gradient="dreg")
    * ``score``: ∂ log q(z_k)/∂φ at fixed z_k                                (gradient="score")
    """

    gradients: ClassVar[tuple[str, ...]] = GRADIENTS
    """Gradient estimators that exist for this objective."""

    @property
    def linear(self) -> bool:
        """Whether the objective is linear in log w: then a subsampled plate may sit inside the model, and dropping
        the score term ("path") leaves the gradient unbiased."""
        return False

    @property
    def tail(self) -> float:
        """A power of its weight like which the coefficient of a particle vanishes, or faster."""
        return 0.0

    def follows(self, other: Objective) -> bool:
        """Whether each coefficient is at most 2K times that of `other`'s `total`, whatever the K weights."""
        return isinstance(other, PowerMean) and 0 <= other.order <= self.tail

    @abc.abstractmethod
    def __call__(self, log_w: Array) -> Array:
        """Value of the objective per plate element, in nats: ``(K, *plates) -> plates``."""

    @abc.abstractmethod
    def total(self, log_w: Array) -> Array: ...

    def path(self, log_w: Array) -> Array:
        return self.total(log_w)

    @abc.abstractmethod
    def double(self, log_w: Array) -> Array: ...

    @abc.abstractmethod
    def score(self, log_w: Array) -> Array: ...


class Bound(Objective):
    """A function of the log-weights that is climbed in expectation; coefficients derived from the function itself."""

    def total(self, log_w: Array) -> Array:
        return jax.grad(lambda lw: jnp.sum(self(lw)))(log_w)

    def double(self, log_w: Array) -> Array:
        """v − diag(∂v/∂log w); subclasses with a closed form save the K Hessian-vector products of this one."""
        basis = jnp.eye(log_w.shape[0], dtype=log_w.dtype).reshape(-1, log_w.shape[0], *(1,) * (log_w.ndim - 1))
        columns = jax.vmap(lambda e: jnp.sum(e * jax.jvp(self.total, (log_w,), (e * jnp.ones_like(log_w),))[1], 0))
        return self.total(log_w) - columns(basis)

    def score(self, log_w: Array) -> Array:
        # Any function of the other particles is a valid baseline: none where all of their weights are zero.
        baseline = self.leave_one_out(log_w)
        return self(log_w) - jnp.where(baseline > -jnp.inf, baseline, 0.0) - self.total(log_w)

    def leave_one_out(self, log_w: Array) -> Array:
        """F with log w_k replaced by the mean of the others (geometric mean of the weights), for every k.

        With K = 1 there are no others: the baseline is zero.
        """
        num_particles = log_w.shape[0]
        if num_particles == 1:
            return jnp.zeros_like(log_w)
        others = _mean_of_others(log_w)
        indices = jnp.arange(num_particles)
        return jax.vmap(lambda k: self(log_w.at[k].set(others[k])))(indices)


def _mean_of_others(log_w: Array) -> Array:
    """mean_{j≠k} log w_j for every k, at least two particles; −inf (a weight of zero) counts for the others only."""
    finite = log_w > -jnp.inf
    total = jnp.sum(jnp.where(finite, log_w, 0.0), 0)
    zeros = jnp.sum(~finite, 0) - ~finite
    return jnp.where(zeros > 0, -jnp.inf, total - jnp.where(finite, log_w, 0.0)) / (log_w.shape[0] - 1)


@dataclass(frozen=True)
class PowerMean(Bound):
    """(1/a) log mean_k w_k^a, the one formula behind most bounds; a → 0 is mean_k log w_k.

    a = 0 ELBO, a = 1 importance-weighted bound, a = 1 − α the Rényi bound, a = n the CUBO_n (which bounds the
    evidence from above only as K → ∞: its K-sample estimate is biased down).
    """

    order: float = 1.0

    @property
    def tail(self) -> float:
        return self.order

    @property
    def linear(self) -> bool:
        return self.order == 0

    def __call__(self, log_w: Array) -> Array:
        if self.order == 0:
            return jnp.mean(log_w, 0)
        return (logsumexp(self.order * log_w, 0) - jnp.log(log_w.shape[0])) / self.order

    def total(self, log_w: Array) -> Array:
        if self.order == 0:
            return jnp.full_like(log_w, 1 / log_w.shape[0])
        return jax.nn.softmax(self.order * log_w, 0)

    def double(self, log_w: Array) -> Array:
        v = self.total(log_w)
        return v - self.order * (v - v**2)

    def leave_one_out(self, log_w: Array) -> Array:
        num_particles = log_w.shape[0]
        if num_particles == 1:
            return jnp.zeros_like(log_w)
        others = _mean_of_others(log_w)
        if self.order == 0:
            return others
        # log(Σ_j w_j − w_k + replacement) in the log domain, without a K×K table. The subtraction cancels only at the
        # particle that dominates, so the rest of that one is summed explicitly.
        scaled = self.order * log_w
        total = logsumexp(scaled, 0)
        rest = total + jnp.log1p(-jnp.exp(jnp.minimum(scaled - total, 0.0)))
        top = jax.nn.one_hot(jnp.argmax(scaled, 0), num_particles, dtype=bool, axis=0)
        rest = jnp.where(top, logsumexp(jnp.where(top, -jnp.inf, scaled), 0), rest)
        return (jnp.logaddexp(rest, self.order * others) - jnp.log(num_particles)) / self.order


@dataclass(frozen=True)
class Grouped(Bound):
    """The mean of a bound over `num_groups` equal groups of particles (MIWAE)."""

    bound: Bound
    num_groups: int

    def _split(self, log_w: Array) -> Array:
        size = log_w.shape[0] // self.num_groups
        return jnp.moveaxis(log_w.reshape(self.num_groups, size, *log_w.shape[1:]), 0, -1)

    def _join(self, grouped: Array) -> Array:
        joined = jnp.moveaxis(grouped, -1, 0)
        return joined.reshape(-1, *joined.shape[2:]) / self.num_groups

    def __call__(self, log_w: Array) -> Array:
        return jnp.mean(self.bound(self._split(log_w)), -1)

    def total(self, log_w: Array) -> Array:
        return self._join(self.bound.total(self._split(log_w)))

    def double(self, log_w: Array) -> Array:
        return self._join(self.bound.double(self._split(log_w)))

    def score(self, log_w: Array) -> Array:
        # Groups are independent: a baseline within the group has lower variance than one across all particles.
        return self._join(self.bound.score(self._split(log_w)))


@dataclass(frozen=True)
class Mixture(Bound):
    """A linear combination Σ_i a_i F_i of bounds, as ``terms = ((a_1, F_1), ...)`` (CIWAE, CHIVI's sandwich)."""

    terms: tuple[tuple[float, Bound], ...]

    @property
    def tail(self) -> float:
        return min(bound.tail for _, bound in self.terms)

    @staticmethod
    def _sum(terms: Iterable[Array]) -> Array:
        return functools.reduce(jnp.add, terms)

    def __call__(self, log_w: Array) -> Array:
        return self._sum(a * bound(log_w) for a, bound in self.terms)

    def total(self, log_w: Array) -> Array:
        return self._sum(a * bound.total(log_w) for a, bound in self.terms)

    def double(self, log_w: Array) -> Array:
        return self._sum(a * bound.double(log_w) for a, bound in self.terms)

    def score(self, log_w: Array) -> Array:
        return self._sum(a * bound.score(log_w) for a, bound in self.terms)


@dataclass(frozen=True)
class ForwardKL(Objective):
    """KL(p ‖ q), the wake-phase update of φ in Reweighted Wake-Sleep; it has no plain reparameterised gradient.

    The value is −Σ_k ŵ_k log(K ŵ_k), the self-normalised estimate of −KL(p‖q).
    """

    gradients: ClassVar[tuple[str, ...]] = ("score", "dreg")
    tail: ClassVar[float] = 1.0

    def __call__(self, log_w: Array) -> Array:
        w = jax.nn.softmax(log_w, 0)
        return -jnp.sum(xlogy(w, log_w.shape[0] * w), 0)

    def total(self, log_w: Array) -> Array:
        raise ValueError("forward KL has no plain reparameterised gradient; take 'dreg' or 'score'")

    def double(self, log_w: Array) -> Array:
        w = jax.nn.softmax(log_w, 0)
        return w - w**2

    def score(self, log_w: Array) -> Array:
        return jax.nn.softmax(log_w, 0)


@dataclass(frozen=True)
class ForwardChi2(Objective):
    """χ²(p ‖ q) = V/p(x)² − 1 with V = E_q w²: climbs −log V̂, V̂ = mean_k w_k².

    Source: Forward χ² Divergence Based Variational Importance Sampling, eq. 8. The gradient of log V is
    −Σ_k ŵ_k ∂ log q(z_k), ŵ = softmax(2 log w): automatic differentiation of log mean exp(2 log w) at fixed z gives
    twice that, because there the dependence of the sampling density on φ is missing.
    """

    gradients: ClassVar[tuple[str, ...]] = ("score", "reparam", "dreg")
    tail: ClassVar[float] = 2.0

    def __call__(self, log_w: Array) -> Array:
        return jnp.log(log_w.shape[0]) - logsumexp(2 * log_w, 0)

    def total(self, log_w: Array) -> Array:
        return -2 * jax.nn.softmax(2 * log_w, 0)

    def double(self, log_w: Array) -> Array:
        return 2 * jax.nn.softmax(2 * log_w, 0)

    def score(self, log_w: Array) -> Array:
        return jax.nn.softmax(2 * log_w, 0)


def ELBOBound() -> PowerMean:
    """mean_k log w_k."""
    return PowerMean(0.0)


def IWBound() -> PowerMean:
    """L_K = log mean_k w_k (Importance Weighted Autoencoders, eq. 8)."""
    return PowerMean(1.0)


def CUBOBound(order: float = 2.0) -> Mixture:
    """−CUBO_n = −(1/n) log mean_k w_k^n, to be climbed (Variational Inference via χ Upper Bound Minimization)."""
    return Mixture(((-1.0, PowerMean(order)),))
