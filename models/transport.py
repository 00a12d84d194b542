"""Distributions that an ordinary differential equation carries from a normal distribution to the data.

`Flow` holds a velocity field: a continuous normalising flow. Observed as ``numpyro.sample("x", Flow(...), obs=x)`` it
has a density and draws like any other distribution: `MLE` then trains it by its likelihood (FFJORD), and
`ConditionalFlowMatching` and `StochasticInterpolant` without solving the equation. `observed` gives it back fitted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array, lax, random
from jax.typing import ArrayLike
from numpyro import handlers
from numpyro.distributions import Distribution, Normal, constraints

__all__ = ["Flow", "Transport", "observed"]

TRACES = ("exact", "hutchinson")
MAX_STEPS = 4096
"""Most steps of the solver between noise and data."""


class Transport(Distribution):
    """x_1 → x_0 along dx/dt = velocity(x, t), from a normal distribution at `t_base` to the data at `t_data`.

    Subclasses say what the velocity is. Arrays x are ``(*batch, *event_shape)``, times scalars or of the batch's shape.

    Args:
        network: function of one x of shape `event_shape` and a scalar t, with values of shape `event_shape`.
        event_shape: of one datum.
        rtol, atol: tolerances of the solver (diffrax, Tsitouras' method of order 5). Training by the likelihood finds
            what a loose solver gets wrong: at 1e-3 a density was learned that integrates to 1.07, at 1e-4 to 1.0007.
        trace: "exact" sums the divergence over all dimensions, at a cost of one derivative each; "hutchinson"
            estimates it by random directions (FFJORD).
        num_probes: of these directions.
        probe_key: what draws them; None takes the same directions every time. In training give
            ``numpyro.prng_key()``, which is another key at every step.
    """

    costly = True
    """Draws and densities solve an equation: nobody should ask for thousands of them in passing."""
    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    pytree_data_fields: tuple[str, ...] = ("network", "probe_key")
    pytree_aux_fields: tuple[str, ...] = ("rtol", "atol", "trace", "num_probes")
    t_base: float
    t_data: float

    def __init__(
        self, network: Callable, event_shape: Any, *, rtol: float = 1e-4, atol: float = 1e-4, trace: str = "exact",
        num_probes: int = 1, probe_key: Array | None = None,
    ) -> None:  # fmt: skip
        event_shape = _as_shape(event_shape)
        check_network(network, event_shape, type(self).__name__)
        if not (rtol > 0 and atol > 0):
            raise ValueError(f"rtol and atol must be positive, got {rtol!r} and {atol!r}")
        if trace not in TRACES:
            raise ValueError(f"trace must be one of {', '.join(TRACES)}, got {trace!r}")
        if num_probes < 1:
            raise ValueError(f"num_probes must be at least 1, got {num_probes!r}")
        self.network, self.rtol, self.atol = network, rtol, atol
        self.trace, self.num_probes, self.probe_key = trace, num_probes, probe_key
        super().__init__(batch_shape=(), event_shape=event_shape)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def base(self) -> Normal:
        """Distribution of every number at `t_base`."""
        return Normal(0.0, 1.0)

    def _velocity(self, x: Array, t: Array) -> Array:
        """dx/dt of one x."""
        raise NotImplementedError

    def velocity(self, x: Array, t: ArrayLike) -> Array:
        """dx/dt, of the shape of x."""
        return self._each(self._velocity, x, t)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws ``(*sample_shape, *event_shape)`` by the ordinary differential equation."""
        return self.from_base(self._base_draw(key, sample_shape))

    def _base_draw(self, key: Array, sample_shape: tuple[int, ...]) -> Array:
        return self.base.expand(self.event_shape).sample(key, sample_shape)

    def from_base(self, z: Array) -> Array:
        """The data to which draws z of the base are carried, and of its shape."""
        return self.carry(z, self.t_base, self.t_data)

    def to_base(self, x: Array) -> Array:
        """The draws of the base that are carried to the data x."""
        return self.carry(self.checked(x), self.t_data, self.t_base)

    def log_prob(self, value: Array) -> Array:
        """Log-density in nats, ``(*batch,)``, by the change of volume along the path (Neural Ordinary Differential
        Equations; FFJORD)."""
        x = self.checked(value)
        batch = x.shape[: x.ndim - self.event_dim]
        flat = x.reshape(-1, *self.event_shape)
        probes = self._probes(x.dtype)

        def one(x: Array) -> Array:
            z, volume = self._solve(x, self.t_data, self.t_base, probes)
            return jnp.sum(self.base.log_prob(z)) + volume

        return jax.vmap(one)(flat).reshape(batch)

    def checked(self, x: Array) -> Array:
        """x as floats.

        Raises:
            ValueError: integers, or another shape than the network's.
        """
        x = jnp.asarray(x)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"{type(self).__name__} is a density of continuous data, got values of type {x.dtype}: turn counts or "
                "grey levels into floats and spread them by uniform noise of one step (dequantise) first"
            )
        if x.shape[x.ndim - self.event_dim :] != self.event_shape:
            raise ValueError(f"{type(self).__name__} is over arrays of shape {self.event_shape}, got data of {x.shape}")
        return x.astype(jnp.promote_types(x.dtype, jnp.result_type(float)))  # that of the network's parameters

    def _each(self, function: Callable, x: Array, t: Any) -> Array:
        """A function of one x and t at every element of the batch."""
        x = self.checked(x)
        batch = x.shape[: x.ndim - self.event_dim]
        times = jnp.broadcast_to(jnp.asarray(t, x.dtype), batch).reshape(-1)
        out = jax.vmap(function)(x.reshape(-1, *self.event_shape), times)
        return out.reshape(*batch, *out.shape[1:])

    def carry(self, x: Array, start: float, stop: float) -> Array:
        """Where x at time `start` is at time `stop`, of its shape."""
        flat = x.reshape(-1, *self.event_shape)
        return jax.vmap(lambda one: self._solve(one, start, stop, None)[0])(flat).reshape(x.shape)

    def _probes(self, dtype: Any) -> Array:
        """Directions that the divergence is taken along, ``(k, d)``: their outer products sum to the identity."""
        size = int(np.prod(self.event_shape))
        if self.trace == "exact":
            return jnp.eye(size, dtype=dtype)
        key = random.key(0) if self.probe_key is None else self.probe_key
        return random.rademacher(key, (self.num_probes, size), dtype) / np.sqrt(self.num_probes)

    def _solve(self, x: Array, start: float, stop: float, probes: Array | None) -> tuple[Array, Array]:
        """x at `stop`, and the integral of the divergence on the way (0 without probes)."""
        diffrax = _diffrax()

        def field(t: Array, state: tuple[Array, Array], _: Any) -> tuple[Array, Array]:
            x = state[0]
            if probes is None:
                return self._velocity(x, t), jnp.zeros_like(state[1])
            velocity, slope = jax.linearize(lambda x: self._velocity(x, t), x)
            along = jax.vmap(lambda v: jnp.vdot(v, slope(v.reshape(x.shape))))(probes)
            return velocity, jnp.sum(along)

        # exact losses are solved in double precision, by second derivatives: these only the direct adjoint has, which
        # takes four times as long for a gradient
        adjoint = diffrax.DirectAdjoint if x.dtype == jnp.float64 else diffrax.RecursiveCheckpointAdjoint
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field), diffrax.Tsit5(), t0=start, t1=stop, dt0=None,
            y0=(x, jnp.zeros((), x.dtype)), max_steps=MAX_STEPS, adjoint=adjoint(), throw=False,
            stepsize_controller=diffrax.PIDController(rtol=self.rtol, atol=self.atol),
        )  # fmt: skip
        # a solver that gave up has no answer: NaN, which the fit names, rather than a wrong number
        good = solution.result == diffrax.RESULTS.successful
        end, volume = jax.tree.map(lambda y: jnp.where(good, y[-1], jnp.nan), solution.ys)
        return end, volume


class Flow(Transport):
    """A continuous normalising flow: x_0 ~ N(0, I) at t = 0 is carried to the data at t = 1 by dx/dt = network(x, t).

    Args:
        network: the velocity, of one x and a scalar t; the rest as in `Transport`.
        denoiser: E[z | x_t = x] of a stochastic interpolant x_t = (1 − t) x_0 + t x_1 + γ(t) z with γ = √(2t(1 − t)),
            a function like `network`; the score is −denoiser/γ. `StochasticInterpolant` trains both.
    """

    pytree_data_fields = ("denoiser",)
    t_base, t_data = 0.0, 1.0

    def __init__(
        self, network: Callable, event_shape: Any, *, denoiser: Callable | None = None, **options: Any
    ) -> None:
        super().__init__(network, event_shape, **options)
        if denoiser is not None:
            check_network(denoiser, self.event_shape, "Flow's denoiser")
        self.denoiser = denoiser

    def _velocity(self, x: Array, t: Array) -> Array:
        return self.network(x, t)

    def gamma(self, t: Array) -> Array:
        """γ(t) of the stochastic interpolant."""
        return jnp.sqrt(2 * t * (1 - t))

    def _score(self, x: Array, t: Array) -> Array:
        return -self._denoise(x, t) / self.gamma(t)

    def score(self, x: Array, t: ArrayLike) -> Array:
        """∇ log p_t(x) by the denoiser, for 0 < t < 1."""
        self._needs_denoiser()
        return self._each(self._score, x, t)

    def sample_sde(
        self, key: Array, sample_shape: tuple[int, ...] = (), *, diffusion: float = 1.0, num_steps: int = 500
    ) -> Array:
        """Draws by dx = (v + ε γ s) dt + √(2εγ) dW with ε = `diffusion`: the same marginals as the equation without
        noise, which correct errors of v on the way (Stochastic Interpolants: A Unifying Framework for Flows and
        Diffusions)."""
        self._needs_denoiser()
        key_base, key_noise = random.split(key)
        x = self._base_draw(key_base, sample_shape)
        step = 1.0 / num_steps

        def move(x: Array, args: tuple[Array, Array]) -> tuple[Array, None]:
            t, key = args
            noise = jnp.sqrt(2 * diffusion * self.gamma(t) * step) * random.normal(key, x.shape, x.dtype)
            correction = -diffusion * self._each(self._denoise, x, t)  # ε γ s
            return x + step * (self.velocity(x, t) + correction) + noise, None

        times = (jnp.arange(num_steps) + 0.5) * step
        return lax.scan(move, x, (times, random.split(key_noise, num_steps)))[0]

    def _denoise(self, x: Array, t: Array) -> Array:
        assert self.denoiser is not None
        return self.denoiser(x, t)

    def _needs_denoiser(self) -> None:
        if self.denoiser is None:
            raise ValueError("the flow has no denoiser: give Flow(velocity, event_shape, denoiser=...), trained by "
                             "StochasticInterpolant")  # fmt: skip


def observed(model: Callable, params: dict[str, Any], data: dict[str, Any], site: str | None = None) -> Any:
    """The distribution of an observed site at given values of the parameters: after a fit ``result.params``.

    Args:
        site: its name; None where the model observes one site alone.

    Raises:
        ValueError: no such site, or several to choose from.
    """
    with numpyro.validation_enabled(False):
        seeded = handlers.seed(handlers.substitute(model, params), random.key(0))
        tr = handlers.trace(seeded).get_trace(**data)
    names = [n for n, s in tr.items() if s["type"] == "sample" and s["is_observed"]]
    if site is None and len(names) == 1:
        site = names[0]
    if site not in names:
        raise ValueError(f"site must name an observed site ({', '.join(names) or 'the model has none'}), got {site!r}")
    fn = tr[site]["fn"]
    while hasattr(fn, "base_dist") and type(fn).__name__ in ("ExpandedDistribution", "MaskedDistribution"):
        fn = fn.base_dist
    return fn


def _as_shape(event_shape: Any) -> tuple[int, ...]:
    shape = (event_shape,) if isinstance(event_shape, (int, np.integer)) else tuple(event_shape)
    if not shape or not all(isinstance(n, (int, np.integer)) and n > 0 for n in shape):
        raise ValueError(f"event_shape must be a size or a tuple of sizes, at least one, got {event_shape!r}")
    return tuple(int(n) for n in shape)


def check_network(network: Callable, event_shape: tuple[int, ...], owner: str) -> None:
    """Raise unless `network` maps one x and a scalar t to an array of the shape of x."""
    if not callable(network):
        raise TypeError(f"{owner} needs a function of x and t, got {type(network).__name__}")
    kind = jnp.result_type(float)
    x, t = jax.ShapeDtypeStruct(event_shape, kind), jax.ShapeDtypeStruct((), kind)
    try:
        out = jax.eval_shape(network, x, t)
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"{owner}: the network could not be called with one x of shape {event_shape} and a scalar t: "
            f"{type(error).__name__}: {reason}"
        ) from error
    shape = getattr(out, "shape", None)
    if shape != event_shape:
        raise ValueError(f"{owner}: the network maps x of shape {event_shape} to {shape}, it must keep the shape")


def _diffrax() -> Any:
    try:
        import diffrax
    except ImportError as error:
        raise ImportError("differential equations need diffrax: pip install 'estimax[flows]'") from error
    return diffrax
