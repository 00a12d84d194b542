"""log Z of a fitted energy by annealed importance sampling, with its standard error."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array, lax, random

from . import data_argument, moves
from . import noise as noises
from .checks import check_counts
from .contrastive import chain_values
from .score_matching import PointwiseProblem, check_latents, subsampled_plate
from .unnormalised import LOG_Z, UnnormalisedProblem

FAR = 5.0
"""How many times farther than the data a chain goes that has run away."""
DIVERGES = "the partition function diverges, as far as annealed importance sampling can tell"
WHY = "Is the energy without lower bound, flat at infinity, or NaN where data never are?"


@dataclass(frozen=True)
class LogNormalizer:
    """log ∫ p̃(x; θ) dx of one unit, or the sum where x is discrete; `print` it."""

    value: float
    """nats"""
    std_err: float
    """By the delta method from the spread of the chains' weights."""
    ess: float
    """Effective sample size of the weights."""
    num_chains: int

    @property
    def trusted(self) -> bool:
        """Whether there are enough effective chains for the standard error to mean something."""
        return self.ess >= max(10.0, 0.05 * self.num_chains)

    def __str__(self) -> str:
        text = f"log Z = {self.value:.4f} ± {self.std_err:.4f} (ESS {self.ess:.0f} of {self.num_chains} chains)"
        return text if self.trusted else f"{text}: few chains carry the weight, take more temperatures or another base"


@dataclass(frozen=True)
class _Chains:
    """What `chain_values` asks of an estimator."""

    kernel: str
    values: Any


def log_normalizer(
    result: Any, *, base: Any = None, num_temperatures: int = 500, num_chains: int = 200, steps: int = 1,
    kernel: str = "auto", values: Any = None, argument: str | None = None, seed: int = 0,
) -> LogNormalizer:  # fmt: skip
    """log Z of the density that a fit leaves unnormalised, by annealed importance sampling from a normalised base.

    Chains go from draws of the base through densities p_base^(1−β) p̃^β to p̃, a Markov move at each temperature
    (Annealed Importance Sampling). But for the tuning of step sizes exp(value) is unbiased. All units must share one
    density.

    Args:
        result: a fit of `ScoreMatching`, `NCE`, `ContrastiveDivergence` or another estimator of a model's log-density.
        base: where chains start: a NumPyro distribution; None fits one to the data.
        num_chains: at least; they are rounded up to a multiple of the units.
        steps: moves at each temperature.
        kernel, values: as in `ContrastiveDivergence`.

    Raises:
        TypeError: a fit without a pointwise log-density. ValueError: units of different densities.
        FloatingPointError: weights that are not finite: the partition function diverges, or p̃ is NaN.
    """
    check_counts(num_temperatures=num_temperatures, num_chains=num_chains, steps=steps)
    problem = result.problem
    if not hasattr(problem, "_split"):
        raise TypeError(f"log_normalizer needs a fit with a log-density by unit, got one of {result.estimator!r}")
    with result.precision():
        problem = _view(problem, argument)
        params = {n: v for n, v in result.unconstrained.items() if n != LOG_Z}
        x = np.asarray(problem.rows)
        law = noises.build(base, x, problem.support, "log_normalizer", problem.argument)
        points, kernel = chain_values(_Chains(kernel, values), x.reshape(problem.flat_shape))
        given = None if points is None else jnp.asarray(points)
        blocks = -(-num_chains // len(x))
        if not bool(_shared(problem, params, law, random.key(seed))):
            raise ValueError(
                "the units have densities of their own (covariates?), so there is no one log Z: fit a model without "
                "them, or fix them at one value"
            )
        spread = np.where(x.reshape(len(x), -1).std(0) > 0, x.reshape(len(x), -1).std(0), 1.0)
        found = _run(
            problem, params, law, jnp.asarray(spread, float), given, kernel, num_temperatures, steps, blocks,
            random.key(seed),
        )  # fmt: skip
    log_w, reach = (np.asarray(v, np.float64) for v in found)
    top = log_w.max()
    if not np.isfinite(top):
        raise FloatingPointError(f"{DIVERGES}: its weights are not finite. {WHY}")
    w = np.exp(log_w - top)
    n, ess = len(w), float(w.sum() ** 2 / np.sum(w**2))
    if ess < 10 and not reach < FAR:
        raise FloatingPointError(f"{DIVERGES}: chains ran {reach:.1f} times farther than the data reach. {WHY}")
    std_err = float(w.std(ddof=1) / w.mean() / np.sqrt(n))
    return LogNormalizer(float(top + np.log(w.mean())), std_err, ess, n)


def _view(problem: Any, argument: str | None) -> UnnormalisedProblem:
    """The log-density of the problem's model at any x, of all units whether the fit took batches of them or not."""
    if isinstance(problem, UnnormalisedProblem):
        return problem
    names = ("options", "model", "transforms", "roles", "data", "weights", "observed")
    kept = {n: getattr(problem, n) for n in names}
    params = {n: v for n, v in problem.params.items() if n != LOG_Z}
    view = UnnormalisedProblem(params=params, **kept)
    check_latents(view)
    view = replace(view, plate=subsampled_plate(view))
    if isinstance(problem, PointwiseProblem):
        argument = problem.argument
    view = replace(view, argument=data_argument.find(view, argument, "log_normalizer"))
    return replace(view, support=data_argument.support_of(view, params))


@eqx.filter_jit
def _shared(problem: UnnormalisedProblem, params: Any, law: Any, key: Array) -> Array:
    """Whether log p̃ of all units is the same at the same points."""
    x, log_density, _ = problem.density(params, problem.data)
    point = jnp.broadcast_to(x[:1], x.shape)
    value = log_density(point)
    return jnp.allclose(value, value[0], rtol=1e-5, atol=1e-5)


@eqx.filter_jit
def _run(
    problem: UnnormalisedProblem, params: Any, law: Any, spread: Array, values: Array | None, kernel: str,
    num_temperatures: int, steps: int, blocks: int, key: Array,
) -> tuple[Array, Array]:  # fmt: skip
    """Log-weights of all chains, ``(blocks · n,)``, and how many times farther than the data they end."""
    x0, log_density, _ = problem.density(params, problem.data)
    n, d = x0.shape

    def one(key: Array) -> tuple[Array, Array]:
        draw_key, move_key = random.split(key)
        x = law.draw(draw_key, 1)[0].reshape(n, d)
        target = lambda y: problem.at(log_density, x0, y[None])[0]  # noqa: E731
        base = lambda y: law.log_prob(y.reshape(1, n, *problem.event))[0]  # noqa: E731
        betas = jnp.linspace(0.0, 1.0, num_temperatures + 1) ** 2  # p̃ and base differ most where chains just left

        def anneal(carry: tuple, args: tuple) -> tuple[tuple, None]:
            x, log_w, log_step, count = carry
            before, beta, key = args
            gap = target(x) - base(x)
            log_w = log_w + jnp.where(beta > before, (beta - before) * gap, 0.0)

            def density(y: Array) -> Array:
                return (1 - beta) * base(y) + beta * target(y)

            def move(carry: tuple, key: Array) -> tuple[tuple, None]:
                x, log_step, count = carry
                if kernel == "gibbs":
                    return (moves.gibbs(density, x, key, values), log_step, count), None  # type: ignore[arg-type]
                step = moves.CONTINUOUS[kernel]
                x, rate = step(density, x, key, jnp.exp(log_step) * spread)
                return (x, moves.tuned(log_step, count, rate, moves.TARGETS[kernel]), count + 1), None

            (x, log_step, count), _ = lax.scan(move, (x, log_step, count), random.split(key, steps))
            return (x, log_w, log_step, count), None

        start = (x, jnp.zeros(n, spread.dtype), jnp.log(jnp.asarray(0.5, spread.dtype)), jnp.zeros((), spread.dtype))
        keys = random.split(move_key, num_temperatures)
        (x, log_w, _, _), _ = lax.scan(anneal, start, (betas[:-1], betas[1:], keys))
        far = lambda y: jnp.max(jnp.abs(y - jnp.mean(x0, axis=0)) / spread)  # noqa: E731
        return log_w, far(x) / far(x0)

    log_w, reach = lax.map(one, random.split(key, blocks))
    return log_w.reshape(-1), jnp.max(reach)
