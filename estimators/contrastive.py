"""Contrastive divergence: maximum likelihood of an unnormalised model with draws of short Markov chains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax, random

from . import moves
from .base import Data, Metrics, Params
from .checks import check_counts, check_positive
from .frozen import fill
from .nce import seen_values
from .unnormalised import Unnormalised, UnnormalisedProblem, check_smooth

FAR = 100.0
"""How many times farther than the data chains may go before they count as run away."""
KERNELS = ("auto", "langevin", "hmc", "gibbs")


@dataclass(frozen=True, init=False)
class ContrastiveDivergence(Unnormalised):
    """Contrastive divergence: the gradient Σ_i w_i [∇ log p̃(x_i) − ∇ log p̃(y_i)], y_i from a Markov chain of p_θ.

    CD-k starts each chain at its datum and takes k `steps` (Training Products of Experts by Minimizing Contrastive
    Divergence): cheap and biased. With ``persistent=True`` chains go on from step to step of the fit, so the bias
    vanishes with the step size (Training Restricted Boltzmann Machines Using Approximations to the Likelihood
    Gradient). The loss says nothing of the likelihood, and there are no standard errors: fit `NCE` from the estimate
    (``start=result.params``) for these.

    Args:
        steps: moves of a chain before each step: Metropolis moves, or sweeps of Gibbs.
        persistent: go on from where the chains were.
        kernel: "langevin" and "hmc" for real x, their step size tuned by acceptance; "gibbs" for discrete x, one
            coordinate at a time from the log-density; "auto" is langevin or gibbs.
        step_size: the first one, in standard deviations of the data.
        values: what a coordinate of discrete x can be; None takes those that the data show.
        argument: name of the data argument that carries x; None finds it.
    """

    steps: int = 1
    persistent: bool = False
    kernel: str = "auto"
    step_size: float = 0.3
    values: tuple | None = None

    def __init__(self, steps: int = 1, persistent: bool = False, **options: Any) -> None:
        fill(self, {"steps": steps, "persistent": persistent, **options})

    def __post_init__(self) -> None:
        check_smooth(self)
        super().__post_init__()
        check_counts(steps=self.steps)
        check_positive("step_size", self.step_size)
        if self.kernel not in KERNELS:
            raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, got {self.kernel!r}")
        if self.values is not None:
            object.__setattr__(self, "values", tuple(float(v) for v in np.sort(np.ravel(self.values))))

    @property
    def exact(self) -> bool:  # type: ignore[override]
        return False

    def problem(self, rng_key: Array, model: Callable, guide: Callable | None, data: Data) -> ContrastiveProblem:
        problem, _ = self.pose(self._problem_class(), rng_key, model, data)
        assert isinstance(problem, ContrastiveProblem)
        if self.persistent and problem.plate is not None:
            raise ValueError("persistent chains belong to their units: not together with subsample=True")
        x = np.asarray(problem.rows).reshape(problem.flat_shape)
        values, kernel = chain_values(self, x)
        spread = np.where(x.std(0) > 0, x.std(0), 1.0) if values is None else np.ones(x.shape[1])
        kind = jnp.result_type(float)
        memory = {
            "x": jnp.asarray(x) if problem.plate is None else jnp.asarray(x[: problem.plate[2]]),
            "log_step": jnp.log(jnp.asarray(self.step_size, kind)),
            "count": jnp.zeros((), kind),
            "rate": jnp.ones((), kind),
            "key": random.key(0),
        }
        return replace(
            problem, memory=memory, kernel=kernel, spread=jnp.asarray(spread, kind),
            values=None if values is None else jnp.asarray(values),
        )  # fmt: skip

    def _problem_class(self) -> type:
        return ContrastiveProblem


def chain_values(estimator: Any, x: np.ndarray) -> tuple[np.ndarray | None, str]:
    """Values of a coordinate where x is discrete, and the kernel.

    Raises:
        ValueError: a kernel that does not go with the data.
    """
    who = type(estimator).__name__
    discrete = x.dtype.kind != "f" or estimator.values is not None or estimator.kernel == "gibbs"
    if not discrete:
        return None, "langevin" if estimator.kernel == "auto" else estimator.kernel
    if estimator.kernel not in ("auto", "gibbs"):
        raise ValueError(f"kernel={estimator.kernel!r} follows gradients in x, and the data are discrete: take 'gibbs'")
    values = seen_values(x, who) if estimator.values is None else np.asarray(estimator.values)
    outside = ~np.isin(x, values)
    if outside.any():
        raise ValueError(f"the data take the value {x[outside][0]}, which is not among values={values.tolist()}")
    return values, "gibbs"


class ContrastiveProblem(UnnormalisedProblem):
    """Σ_i w_i [log p̃(y_i) − log p̃(x_i)], y_i the chains in its memory."""

    kernel: str = eqx.field(static=True, default="langevin")
    spread: Array = eqx.field(default_factory=lambda: jnp.ones(()))
    """Standard deviation of the data by coordinate, where they are real."""
    values: Array | None = None

    @property
    def deterministic(self) -> bool:
        return False

    @property
    def has_curvature(self) -> bool:
        return False

    @property
    def loss_tells(self) -> bool:
        return False  # data and chains rise and fall together

    def chain_density(self, log_density: Callable, x: Array) -> Callable[[Array], Array]:
        """log p̃ of the chains, −inf outside of the support."""
        return lambda y: self.at(log_density, x, y[None])[0]

    def refresh(self, memory: Any, params: Params, rng_key: Array) -> Any:
        batch_key, rng_key = random.split(rng_key)
        options: Any = self.options
        x, log_density, _ = self.density(params, self.data, self.chosen(batch_key))
        density = self.chain_density(log_density, x)
        y = memory["x"] if options.persistent else x
        keys = random.split(rng_key, options.steps)
        if self.kernel == "gibbs":
            assert self.values is not None
            values = self.values
            y = lax.scan(lambda y, key: (moves.gibbs(density, y, key, values), None), y, keys)[0]
            return memory | {"x": y, "key": batch_key, "count": memory["count"] + 1}
        return self.walked(memory, density, y, keys, self.spread) | {"key": batch_key}

    def walked(self, memory: Any, density: Callable, y: Array, keys: Array, width: Array) -> Any:
        """The memory after as many Metropolis moves from y as there are keys, at steps in units of `width`."""
        step, target = moves.CONTINUOUS[self.kernel], moves.TARGETS[self.kernel]

        def move(carry: tuple, key: Array) -> tuple[tuple, Array]:
            y, log_step, count = carry
            y, rate = step(density, y, key, jnp.exp(log_step) * width)
            return (y, moves.tuned(log_step, count, rate, target), count + 1), rate

        (y, log_step, count), rates = lax.scan(move, (y, memory["log_step"], memory["count"]), keys)
        return memory | {"x": y, "log_step": log_step, "count": count, "rate": jnp.mean(rates)}

    def loss(self, params: Params, rng_key: Array, data: Data) -> tuple[Array, Metrics]:
        x, log_density, scale = self.density(params, data, self.chosen(self.memory["key"]))
        y = lax.stop_gradient(self.memory["x"])
        value = scale * jnp.sum(self.weights * (log_density(y) - log_density(x)))
        if self.penalties is not None:
            value = value + self.penalties.smooth(params)
        return value, {} if self.kernel == "gibbs" else {"acceptance": self.memory["rate"]}

    def faults(self, params: Params) -> list[str]:
        """Whether p̃ has a normaliser, and the chains have not run away."""
        found = super().faults(params)
        if self.kernel == "gibbs":
            return found
        x = self.rows.reshape(self.flat_shape)
        reach = float(jnp.max(jnp.abs(self.memory["x"] - jnp.mean(x, axis=0)) / self.spread))
        if reach < FAR * float(jnp.max(jnp.abs(x - jnp.mean(x, axis=0)) / self.spread)):
            return found
        return [
            *found,
            f"chains have run {reach:.1e} standard deviations away from the data: the partition function diverges "
            "(an energy without lower bound, or flat at infinity); bound the energy or penalise its parameters",
        ]

    def chains(self) -> Array:
        """Where the chains are, ``(n, *event)``: draws of the fitted model, where they are persistent."""
        return self.memory["x"].reshape(-1, *self.event)


@dataclass(frozen=True, init=False)
class UnbiasedCD(ContrastiveDivergence):
    """Contrastive divergence without bias: pairs of coupled chains, run until they meet.

    Two chains of p_θ start at the datum, one a step behind the other, and share their random numbers. The sum of
    ∇log p̃ along the first less that along the second is, once they have met, an unbiased estimate of ∇log Z however
    short the chains are (Unbiased Contrastive Divergence Algorithm for Training Energy-Based Latent Variable Models;
    Unbiased Markov Chain Monte Carlo Methods with Couplings). The price is variance, and chains of random length; it is
    paid where chains meet soon: models of weak dependence, or few coordinates.

    Args:
        burn_in: steps k before the estimate begins: less variance, more time.
        most_steps: after which pairs that have not met are given up: the metric "unmet" is their share, and while it is
            zero there is no bias.
        kernel: "gibbs" for discrete x; "random_walk" for real x, of `step_size` standard deviations of the data.
    """

    burn_in: int = 1
    most_steps: int = 1000
    step_size: float = 0.8

    def __init__(self, burn_in: int = 1, **options: Any) -> None:
        fill(self, {"burn_in": burn_in, **options})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(burn_in=self.burn_in, most_steps=self.most_steps)
        if self.persistent or self.steps != 1 or self.kernel not in ("auto", "gibbs"):
            raise ValueError(
                "UnbiasedCD runs chains until they meet: it takes burn_in, not steps, persistent or kernel"
            )

    def _problem_class(self) -> type:
        return UnbiasedProblem

    def problem(self, rng_key: Array, model: Callable, guide: Callable | None, data: Data) -> UnbiasedProblem:
        problem = super().problem(rng_key, model, guide, data)
        assert isinstance(problem, UnbiasedProblem)
        return problem.with_gradient()


class UnbiasedProblem(ContrastiveProblem):
    """Memory: the estimate of Σ_i w_i ∇ log Z, a gradient of the parameters."""

    def with_gradient(self) -> UnbiasedProblem:
        zero = jax.tree.map(jnp.zeros_like, self.params)
        return replace(self, memory=self.memory | {"gradient": zero, "unmet": jnp.zeros(()), "length": jnp.zeros(())})

    def log_z_gradient(self, params: Params, batch_key: Array, rng_key: Array) -> tuple[Params, Array, Array]:
        """An unbiased draw of scale · Σ_i w_i ∇log Z; the share of pairs that did not meet, and the steps taken."""
        options: Any = self.options
        k = options.burn_in
        batch = self.chosen(batch_key)
        x, log_density, scale = self.density(params, self.data, batch)
        density = self.chain_density(log_density, x)
        if self.values is None:
            step = options.step_size * self.spread
            one = lambda y, key: moves.random_walk(density, y, key, step)  # noqa: E731
            two = lambda pair, key: moves.coupled_random_walk(density, pair, key, step)  # noqa: E731
        else:
            values = self.values
            one = lambda y, key: moves.gibbs(density, y, key, values)  # noqa: E731
            two = lambda pair, key: moves.coupled_gibbs(density, pair, key, values)  # noqa: E731
        first_key, loop_key = random.split(rng_key)
        ahead, behind = one(x, first_key), x
        weights = jnp.broadcast_to(self.weights, (x.shape[0],))

        def slope(points: Array, amounts: Array) -> Params:
            def total(params: Params) -> Array:
                f = self.density(params, self.data, batch)[1]
                return jnp.sum(weights * amounts * f(points))

            return jax.grad(total)(params)

        add = lambda a, b: jax.tree.map(jnp.add, a, b)  # noqa: E731
        gradient = slope(ahead, jnp.full(x.shape[0], float(k == 1)))

        def going_on(carry: tuple) -> Array:
            t, met = carry[0], carry[3]
            return (t < k) | (jnp.any(~met) & (t < options.most_steps))

        def body(carry: tuple) -> tuple:
            """From (ahead at t, behind at t − 1) to t + 1."""
            t, ahead, behind, met, gradient = carry
            ahead, behind = two((ahead, behind), random.fold_in(loop_key, t))
            t = t + 1
            met = met | jnp.all(ahead == behind, axis=1)
            first = jnp.where(t == k, 1.0, 0.0)
            late = jnp.where((t > k) & ~met, 1.0, 0.0)
            gradient = add(gradient, slope(ahead, first + late))
            gradient = add(gradient, slope(behind, -late))
            return t, ahead, behind, met, gradient

        start = (jnp.asarray(1), ahead, behind, jnp.all(ahead == behind, axis=1), gradient)
        t, _, _, met, gradient = lax.while_loop(going_on, body, start)
        return jax.tree.map(lambda g: scale * g, gradient), jnp.mean(~met), t

    def refresh(self, memory: Any, params: Params, rng_key: Array) -> Any:
        batch_key, rng_key = random.split(rng_key)
        gradient, unmet, length = self.log_z_gradient(params, batch_key, rng_key)
        kind = memory["rate"].dtype
        return memory | {
            "gradient": gradient, "unmet": unmet.astype(kind), "length": length.astype(kind), "key": batch_key,
        }  # fmt: skip

    def loss(self, params: Params, rng_key: Array, data: Data) -> tuple[Array, Metrics]:
        x, log_density, scale = self.density(params, data, self.chosen(self.memory["key"]))
        slope = lax.stop_gradient(self.memory["gradient"])
        products = jax.tree.map(lambda g, p: jnp.sum(g * (p - lax.stop_gradient(p))), slope, params)
        value = -scale * jnp.sum(self.weights * log_density(x)) + sum(jax.tree.leaves(products))
        if self.penalties is not None:
            value = value + self.penalties.smooth(params)
        return value, {"unmet": self.memory["unmet"], "chain_steps": self.memory["length"]}

    def remarks(self, params: Params) -> list[str]:
        """Whether the last gradient had pairs of chains that never met."""
        unmet, options = float(self.memory["unmet"]), self.options
        if not unmet > 0:
            return []
        return [
            f"{unmet:.1%} of the pairs of chains had not met after most_steps={options.most_steps}: "  # type: ignore[attr-defined]
            "the gradient is biased by what they miss. Raise most_steps, or take another step_size"
        ]
