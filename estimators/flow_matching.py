"""Flow matching: the velocity field of a continuous flow by regression, without solving its equation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax, random

from .matching import Matching

COUPLINGS = ("independent", "ot", "weighted")
EPSILON = 0.05
"""Entropy of the minibatch transport, in units of the mean squared distance: small, so near to the sharp one."""
MARGIN = 1e-3
"""Distance from 0 and 1 of the times at which a stochastic interpolant is trained: γ' is infinite there."""


class VelocityMatching(Matching):
    """What the estimators of a `models.transport.Flow` share."""

    @property
    def wanted(self) -> str:
        return "a models.transport.Flow (a velocity field)"

    def matches(self, fn: Any) -> bool:
        return hasattr(fn, "velocity") and not hasattr(fn, "process")


def stratified(rng_key: Array, shape: tuple[int, ...]) -> Array:
    """Times between 0 and 1, each uniform, evenly spread over the batch."""
    size = int(np.prod(shape))
    return ((random.uniform(rng_key) + jnp.arange(size) / max(size, 1)) % 1.0).reshape(shape)


@dataclass(frozen=True)
class ConditionalFlowMatching(VelocityMatching):
    """Minimises ½ E‖v(x_t, t) − (x_1 − x_0)‖² over t uniform in (0, 1), x_t = (1 − t) x_0 + t x_1, x_0 ~ N(0, I) and
    x_1 a datum (Flow Matching for Generative Modeling; Improving and Generalizing Flow-Based Generative Models with
    Minibatch Optimal Transport).

    The model observes a `models.transport.Flow`. At its minimum the velocity carries the normal draws to the data.

    Args:
        coupling: how x_0 and x_1 are paired. "independent"; "ot": by the optimal transport between the minibatch and as
            many normal draws (ott-jax), which makes paths straighter and the target less noisy; "weighted": pairs
            drawn independently and weighted by exp(−‖x_1 − x_0‖²/(2 `epsilon` d)), the pairing of entropic transport
            without solving it (Weighted Conditional Flow Matching); its marginals are tilted, less so for large
            `epsilon`.
        epsilon: entropy. Of "ot" in units of the mean squared distance, None is 0.05; of "weighted" in units of the
            data's squared scale, None is 10.
    """

    coupling: str = "independent"
    epsilon: float | None = None

    def __post_init__(self) -> None:
        if self.coupling not in COUPLINGS:
            raise ValueError(f"coupling must be one of {', '.join(COUPLINGS)}, got {self.coupling!r}")
        if self.epsilon is not None and not self.epsilon > 0:
            raise ValueError(f"epsilon must be positive, got {self.epsilon!r}")
        if self.coupling == "ot":
            _ott()

    def objective(self, fn: Any, x: Array, rng_key: Array, table: Any) -> Array:
        x = fn.checked(x)
        key_time, key_base, key_pair = random.split(rng_key, 3)
        axes = tuple(range(x.ndim - fn.event_dim, x.ndim))
        t = stratified(key_time, x.shape[: axes[0]])
        base = random.normal(key_base, x.shape, x.dtype)
        weight: Array | float = 1.0
        if self.coupling == "ot":
            base = self.transported(base, x, axes, key_pair)
        if self.coupling == "weighted":
            cost = jnp.mean((x - base) ** 2, axes) / 2
            log_w = -cost / (10.0 if self.epsilon is None else self.epsilon)
            weight = jnp.size(log_w) * jax.nn.softmax(log_w.reshape(-1)).reshape(log_w.shape)
        wide = jnp.expand_dims(t, axes)
        moved = fn.velocity((1 - wide) * base + wide * x, t)
        return weight * 0.5 * jnp.sum((moved - (x - base)) ** 2, axes)

    def transported(self, base: Array, x: Array, axes: tuple[int, ...], rng_key: Array) -> Array:
        """For every datum the draw of `base` that the minibatch's transport plan pairs with it."""
        pointcloud, solve = _ott()
        rows = int(np.prod(x.shape[: axes[0]]))
        a, b = base.reshape(rows, -1), x.reshape(rows, -1)
        spread = jnp.mean(jnp.sum((a[:, None] - b[None]) ** 2, -1))
        epsilon = (EPSILON if self.epsilon is None else self.epsilon) * spread
        plan = solve(pointcloud.PointCloud(a, b, epsilon=epsilon)).matrix
        chosen = random.categorical(rng_key, jnp.log(lax.stop_gradient(plan)), axis=0)
        return a[chosen].reshape(base.shape)


@dataclass(frozen=True)
class StochasticInterpolant(VelocityMatching):
    """Trains velocity and score of x_t = (1 − t) x_0 + t x_1 + γ(t) z, z ~ N(0, I), x_0 ~ N(0, I) and x_1 a datum.

    Minimises ½ E‖v(x_t, t) − (x_1 − x_0 + γ'(t) z)‖² + ½ E‖η(x_t, t) − z‖²; the score is −η/γ (Stochastic Interpolants:
    A Unifying Framework for Flows and Diffusions). x_t and its mirror image, with −z, are taken together: that bounds
    the variance where γ' is large.

    The model observes a `models.transport.Flow` with a `denoiser`, which then draws by `sample` or, with noise on the
    way, by `sample_sde`. Without a denoiser only the velocity is trained.
    """

    def matches(self, fn: Any) -> bool:
        return super().matches(fn) and hasattr(fn, "gamma")

    def objective(self, fn: Any, x: Array, rng_key: Array, table: Any) -> Array:
        x = fn.checked(x)
        key_time, key_base, key_noise = random.split(rng_key, 3)
        axes = tuple(range(x.ndim - fn.event_dim, x.ndim))
        t = MARGIN + (1 - 2 * MARGIN) * stratified(key_time, x.shape[: axes[0]])
        wide = jnp.expand_dims(t, axes)
        base = random.normal(key_base, x.shape, x.dtype)
        z = random.normal(key_noise, x.shape, x.dtype)
        gamma, slope = jax.jvp(fn.gamma, (wide,), (jnp.ones_like(wide),))
        mean, drift = (1 - wide) * base + wide * x, x - base

        def one(z: Array) -> Array:
            place = mean + gamma * z
            loss = 0.5 * jnp.sum((fn.velocity(place, t) - drift - slope * z) ** 2, axes)
            if getattr(fn, "denoiser", None) is not None:
                loss = loss + 0.5 * jnp.sum((-gamma * fn.score(place, t) - z) ** 2, axes)
            return loss

        return 0.5 * (one(z) + one(-z))


def _ott() -> Any:
    try:
        from ott.geometry import pointcloud
        from ott.solvers.linear import solve
    except ImportError as error:
        raise ImportError("coupling='ot' needs ott-jax: pip install 'estimax[flows]'") from error
    return pointcloud, solve
