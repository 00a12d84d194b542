"""Diffusions whose noise process has a nonlinear drift: dx = f(x, t) dt + g(t) dW, from the data at t = 0 to t = 1.

    def pull(x, t):
        return 4 * (x - x**3)

    def model(x):
        network = eqx_module("score", TimeMLP((1,)))
        process = NonlinearProcess(pull, diffusion=1.5)
        numpyro.sample("x", NonlinearDiffusion(network, process, 1, base=stationary), obs=x)

Its transitions have no closed form, so `estimators.LocalDSM` trains the network. Where a drift is linear take
`diffusion.Diffusion`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax, random
from jax.typing import ArrayLike
from numpyro.distributions import Distribution

from .transport import Transport

__all__ = ["NonlinearDiffusion", "NonlinearProcess"]

HALVINGS = 4
"""Of an interval, until the series below converges: they are undone by doubling."""
TERMS = 4


@dataclass(frozen=True)
class NonlinearProcess:
    """dx = drift(x, t) dt + diffusion(t) dW for t from 0 to 1.

    Args:
        drift: f of one x and a scalar t, with values of the shape of x; differentiable in x.
        diffusion: g, a positive number or a function of t.
        num_steps: of a simulation from t = 0, so many that ‖∂f/∂x‖/num_steps is below 1 wherever data lie.
        t_min: where generation stops, in (0, 1). x there stands for the data, so its noise, of variance ∫g² up to
            there, must be small beside their detail: let g rise from a small value, as `VP` does.
    """

    drift: Callable[[Array, Array], Array]
    diffusion: float | Callable[[Array], Array] = 1.0
    num_steps: int = 64
    t_min: float = 0.01

    def __post_init__(self) -> None:
        if not callable(self.drift):
            raise TypeError(f"drift must be a function of one x and a scalar t, got {self.drift!r}")
        if not callable(self.diffusion) and not 0 < self.diffusion < float("inf"):
            raise ValueError(f"diffusion, the noise scale, must be positive, got {self.diffusion!r}")
        if isinstance(self.num_steps, bool) or not isinstance(self.num_steps, int) or self.num_steps < 1:
            raise ValueError(f"num_steps must be a positive integer, got {self.num_steps!r}")
        if not 0 < self.t_min < 1:
            raise ValueError(f"t_min must lie between 0 and 1, got {self.t_min!r}")

    def g(self, t: ArrayLike) -> Array:
        """g(t), of the shape of t."""
        t = jnp.asarray(t, jnp.result_type(float))
        return self.diffusion(t) if callable(self.diffusion) else jnp.full_like(t, self.diffusion)

    def transition(self, x: Array, s: Array, t: Array) -> tuple[Array, Array]:
        """Mean, of the shape of one x, and Cholesky factor ``(d, d)`` of the covariance of x_t given x_s = x, by Taylor
        expansion of the drift about x: exact where it is linear and does not change in time.

        f(y) ≈ f(x) + J (y − x) + ½ g² Δf(x) (u − s), the last the mean of the second-order term at a time u. The
        moments then solve linear equations (A Local Linearization Approach to Nonlinear Filtering), by their series
        over a short time and doubling: t − s may be long beside 1/‖J‖. Costs d derivatives of the drift, and d³.
        """
        d, shape, middle = x.size, x.shape, 0.5 * (s + t)
        flat = lambda y: self.drift(y.reshape(shape), middle).reshape(d)  # noqa: E731
        point, eye, variance = x.reshape(d), jnp.eye(d, dtype=x.dtype), self.g(middle) ** 2

        def derivatives(v: Array) -> tuple[Array, Array]:
            return jax.jvp(lambda y: jax.jvp(flat, (y,), (v,))[1], (point,), (v,))

        slope, bend = jax.vmap(derivatives)(eye)
        # (x_u − x, u − s, 1) is linear in itself
        linear = jnp.zeros((d + 2, d + 2), x.dtype).at[:d, :d].set(slope.T).at[d, d + 1].set(1.0)
        linear = linear.at[:d, d].set(0.5 * variance * jnp.sum(bend, 0)).at[:d, d + 1].set(flat(point))
        step = (t - s) / 2**HALVINGS
        grown = power = jnp.eye(d + 2, dtype=x.dtype)
        spread = term = jnp.zeros_like(linear).at[:d, :d].set(step * variance * eye)
        for k in range(1, TERMS + 1):
            power = step / k * linear @ power
            term = step / (k + 1) * (linear @ term + term @ linear.T)
            grown, spread = grown + power, spread + term
        for _ in range(HALVINGS):
            spread, grown = spread + grown @ spread @ grown.T, grown @ grown
        return x + grown[:d, d + 1].reshape(shape), jnp.linalg.cholesky(0.5 * (spread + spread.T)[:d, :d])

    def simulate(self, x: Array, t: Array, key: Array) -> Array:
        """A draw of x_t, given one x at time 0, by `num_steps` steps of Heun's method, of weak order 2."""
        times = t * jnp.linspace(0.0, 1.0, self.num_steps + 1, dtype=x.dtype)

        def move(x: Array, args: tuple[Array, Array, Array]) -> tuple[Array, None]:
            s, t, key = args
            step, noise = t - s, self.g(0.5 * (s + t)) * jnp.sqrt(t - s) * random.normal(key, x.shape, x.dtype)
            slope = self.drift(x, s)
            return x + 0.5 * step * (slope + self.drift(x + step * slope + noise, t)) + noise, None

        return lax.scan(move, x, (times[:-1], times[1:], random.split(key, self.num_steps)))[0]


class NonlinearDiffusion(Transport):
    """What a score network makes of draws of `base`: x at the process's `t_min`, which stands for the data.

    Args:
        network: the score ∇log p_t, of one x of shape `event_shape` and a scalar t.
        process: a `NonlinearProcess`.
        base: distribution at t = 1, of shape `event_shape` or of every number alike: the stationary one, where the
            process is near it then.
        num_steps: of the reversed process in `sample`.
        rtol, atol, trace, num_probes, probe_key: of the ordinary differential equation, see `Transport`.
    """

    pytree_data_fields = ("stationary",)
    pytree_aux_fields = ("process", "num_steps")
    t_base = 1.0

    def __init__(
        self, network: Callable, process: NonlinearProcess, event_shape: Any, *, base: Distribution,
        num_steps: int = 500, **options: Any,
    ) -> None:  # fmt: skip
        if not isinstance(process, NonlinearProcess):
            raise TypeError(f"process must be a NonlinearProcess, got {process!r}: linear ones belong to Diffusion")
        if not isinstance(base, Distribution):
            raise TypeError(f"base must be a NumPyro distribution, that of the process at t = 1, got {base!r}")
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps!r}")
        self.process, self.stationary, self.num_steps = process, base, num_steps
        super().__init__(network, event_shape, **options)
        shape = (*base.batch_shape, *base.event_shape)
        if shape not in ((), self.event_shape):
            raise ValueError(f"base has shape {shape}, it must be that of one datum, {self.event_shape}, or a number's")

    @property
    def t_data(self) -> float:  # type: ignore[override]
        return self.process.t_min

    @property
    def base(self) -> Any:
        return self.stationary

    def _base_draw(self, key: Array, sample_shape: tuple[int, ...]) -> Array:
        alike = not (self.stationary.batch_shape or self.stationary.event_shape)
        return self.stationary.sample(key, (*sample_shape, *self.event_shape) if alike else sample_shape)

    def _velocity(self, x: Array, t: Array) -> Array:
        return self.process.drift(x, t) - 0.5 * self.process.g(t) ** 2 * self.network(x, t)

    def score(self, x: Array, t: ArrayLike) -> Array:
        """∇ log p_t(x), of the shape of x."""
        return self._each(self.network, x, t)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws ``(*sample_shape, *event_shape)`` by the reversed process dx = (f − g² s) dt + g dW."""
        key_base, key_noise = random.split(key)
        x = self._base_draw(key_base, sample_shape)
        step = np.float32((self.t_base - self.t_data) / self.num_steps)

        def reverse(x: Array, t: Array) -> Array:
            return self.process.drift(x, t) - self.process.g(t) ** 2 * self.network(x, t)

        def move(x: Array, args: tuple[Array, Array]) -> tuple[Array, None]:
            t, key = args
            noise = self.process.g(t) * jnp.sqrt(step) * random.normal(key, x.shape, x.dtype)
            return x - step * self._each(reverse, x, t) + noise, None

        times = jnp.linspace(self.t_base, self.t_data, self.num_steps, endpoint=False, dtype=x.dtype)
        return lax.scan(move, x, (times, random.split(key_noise, self.num_steps)))[0]

    def sample_ode(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws by the probability-flow ordinary differential equation."""
        return Transport.sample(self, key, sample_shape)
