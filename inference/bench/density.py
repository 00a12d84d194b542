"""Densities learned from draws: toys in the plane whose log-density is known, and small handwritten digits.

One table for estimators that do not fit the same kind of model: a normalising flow by its likelihood or its score, a
diffusion, a velocity, an energy without a constant. Steps and batches are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
from jax import random
from numpyro import handlers

from .cases import Case, Suite
from .measures import sliced_wasserstein

NUM_TRAIN, NUM_TEST, BATCH_SIZE, NUM_STEPS, WIDTH, DEPTH = 10_000, 1000, 256, 3000, 64, 3
NUM_TEST_DIGITS = 100
"""An exact trace takes 64 derivatives at every step of the equation."""
FAR = 8.0
"""Half the side of the square that energies are summed over; the normal factor of the energy has sd 4 and the toys end
at 4."""

COLUMNS = (
    "MLE", "EBFlow", "DenoisingScoreMatching", "ConditionalFlowMatching", "StochasticInterpolant",
    "ScoreMatching(variant=denoising)", "NCE", "ContrastiveDivergence",
)  # fmt: skip

MEASURES = {
    "held_out": "mean log-density of held-out draws, nats a datum",
    "divergence": "toys: KL from truth to fit, nats: mean of the true less the fitted log-density of held-out draws",
    "divergence_stderr": "its Monte Carlo standard error",
    "wasserstein": "toys: sliced 1-Wasserstein distance of draws of the fit to exact draws, sd of the data = 1",
    "bits_per_pixel": "digits: of the grey levels, an upper bound",
}


def _key() -> Any:
    key = numpyro.prng_key()
    return random.key(0) if key is None else key  # no seed handler: the weights are given


def _observe(distribution: Any, x: Any, batch_size: int | None) -> None:
    with numpyro.plate("data", len(x), subsample_size=batch_size):
        numpyro.sample("x", distribution, obs=numpyro.subsample(x, event_dim=1))


def flow(x: Any, batch_size: int | None = None) -> None:
    """Real NVP of flowjax with six layers."""
    import flowjax.distributions
    import flowjax.flows
    from numpyro.contrib.module import eqx_module

    from ...models.flows import FlowDensity

    base = flowjax.distributions.Normal(jnp.zeros(x.shape[1]))
    made = flowjax.flows.coupling_flow(_key(), base_dist=base, flow_layers=6, nn_activation=jnp.tanh)
    _observe(FlowDensity(eqx_module("flow", made)), x, batch_size)


def diffusion(x: Any, batch_size: int | None = None) -> None:
    from numpyro.contrib.module import eqx_module

    from ...models.diffusion import Diffusion
    from ...models.networks import TimeMLP
    from ...models.noise_process import VP

    score = eqx_module("score", TimeMLP((x.shape[1],), WIDTH, DEPTH, key=_key()))
    _observe(Diffusion(score, VP(), x.shape[1]), x, batch_size)


def velocity(x: Any, batch_size: int | None = None, with_denoiser: bool = False) -> None:
    from numpyro.contrib.module import eqx_module

    from ...models.networks import TimeMLP
    from ...models.transport import Flow

    size, keys = x.shape[1], random.split(_key())
    field = eqx_module("velocity", TimeMLP((size,), WIDTH, DEPTH, key=keys[0]))
    denoiser = eqx_module("denoiser", TimeMLP((size,), WIDTH, DEPTH, key=keys[1])) if with_denoiser else None
    _observe(Flow(field, size, denoiser=denoiser), x, batch_size)


def interpolant(x: Any, batch_size: int | None = None) -> None:
    velocity(x, batch_size, with_denoiser=True)


def energy(x: Any, batch_size: int | None = None) -> None:
    from ...models import energy_network

    energy_network.model(x, batch_size)


MODELS: Mapping[str, Callable[..., None]] = {
    "DenoisingScoreMatching": diffusion,
    "ConditionalFlowMatching": velocity,
    "StochasticInterpolant": interpolant,
    "ScoreMatching": energy,
    "NCE": energy,
    "ConditionalNCE": energy,
    "CompositionalMLE": energy,
    "ContrastiveDivergence": energy,
    "DDO": flow,
}
"""By name of the estimator's class or one that it derives from; every other gets `flow`."""


class OnGrid:
    """The density of a fitted energy in the plane: a sum over 400 x 400 points, at which it is evaluated."""

    def __init__(self, result: Any, half_width: float = FAR, num_points: int = 400) -> None:
        self.model, self.params = result.model, result.params
        ticks = (np.arange(num_points) + 0.5) / num_points * 2 * half_width - half_width
        self.cell = ticks[1] - ticks[0]
        self.points = np.stack(np.meshgrid(ticks, ticks, indexing="ij"), -1).reshape(-1, 2)
        log_p = self._unnormalised(self.points)
        self.log_z = float(np.logaddexp.reduce(log_p)) + 2 * math.log(self.cell)
        self.weights = np.exp(log_p - self.log_z) * self.cell**2

    def _unnormalised(self, x: Any) -> np.ndarray:
        with handlers.substitute(data=self.params), handlers.trace() as tr:
            self.model(jnp.asarray(x, jnp.result_type(float)))
        (factor,) = (s for s in tr.values() if s["type"] == "sample")
        return np.asarray(factor["fn"].log_factor, np.float64)

    def log_prob(self, x: Any) -> np.ndarray:
        return self._unnormalised(x) - self.log_z

    def sample(self, key: Any, sample_shape: tuple[int]) -> np.ndarray:
        rng = np.random.default_rng(np.asarray(random.key_data(key)))
        chosen = rng.choice(len(self.points), sample_shape, p=self.weights / self.weights.sum())
        return self.points[chosen] + self.cell * (rng.random((*sample_shape, 2)) - 0.5)


def _fitted(result: Any) -> Any:
    """What has `log_prob` and `sample` of a fit."""
    from ...models.transport import observed

    if result.model is energy:
        return OnGrid(result)
    return observed(result.model, result.params, {**result.data, "batch_size": None})


def toy_score(result: Any, seed: int, name: str) -> dict[str, float]:
    from ...models.toys_2d import TOYS

    toy, found = TOYS[name], _fitted(result)
    x = np.asarray(toy(random.key(1), NUM_TEST))
    own = np.asarray(found.log_prob(x), np.float64)
    gap = np.asarray(toy.log_prob(x), np.float64) - own
    scale = x.std(0)
    draws = np.asarray(found.sample(random.key(seed), (NUM_TEST,)))
    return {
        "held_out": own.mean(), "divergence": gap.mean(), "divergence_stderr": gap.std(ddof=1) / math.sqrt(len(gap)),
        "wasserstein": sliced_wasserstein(draws / scale, x / scale),
    }  # fmt: skip


def digits_score(result: Any, seed: int) -> dict[str, float]:
    from ...models import score_digits

    x = score_digits.held_out()["x"][:NUM_TEST_DIGITS]
    found = np.asarray(_fitted(result).log_prob(x), np.float64)
    return {"held_out": found.mean(), "bits_per_pixel": score_digits.bits_per_pixel(found)}


def figure(frame: Any) -> Any:
    """Divergence from the truth by toy, a mark a method, averaged over seeds; the axis is logarithmic."""
    from matplotlib.figure import Figure

    from ..plots import COLORS, GRID

    means = frame.pivot_table("divergence", "case", "column", sort=False)
    drawn = Figure(figsize=(8.0, 1.2 + 0.6 * len(means)), layout="constrained")
    axes = drawn.subplots()
    for i, column in enumerate(means):
        axes.plot(means[column], range(len(means)), "o", color=COLORS[i % len(COLORS)], label=column, markersize=6)
    axes.set_yticks(range(len(means)), means.index)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("divergence of the fit from the truth, nats")
    axes.grid(**GRID)
    drawn.legend(loc="outside right upper", fontsize=9, frameon=False)
    return drawn


def _toy_data(name: str) -> dict[str, Any]:
    from ...models.toys_2d import TOYS

    return {"x": np.asarray(TOYS[name](random.key(0), NUM_TRAIN), np.float32), "batch_size": BATCH_SIZE}


def _digits_data() -> dict[str, Any]:
    from ...models import score_digits

    return {"x": score_digits.data()["x"], "batch_size": score_digits.BATCH_SIZE}


def suite() -> Suite:
    from ...models.toys_2d import TOYS

    def case(name: str, data: Callable, score: Callable, models: Mapping[str, Callable]) -> Case:
        minibatches = {"subsample": True, "redraw": True}
        return Case(name, flow, data, settings=minibatches, num_steps=NUM_STEPS, learning_rate=0.003, score=score,
                    models=models)  # fmt: skip

    toys = [case(name, partial(_toy_data, name), partial(toy_score, name=name), MODELS) for name in TOYS]
    normalised = {name: model for name, model in MODELS.items() if model is not energy}
    digits = case("digits", _digits_data, digits_score, normalised)
    return Suite(
        "density",
        "densities learned from draws: four toys in the plane, exact, and digits",
        (*toys, digits),
        COLUMNS,
        (("two_moons",), ("MLE", "DenoisingScoreMatching", "NCE")),
        MEASURES,
        figure=figure,
    )
