"""Maximum likelihood of an unnormalised model, its normaliser tracked by importance sampling through the steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax, random
from jax.scipy.special import logsumexp

from . import noise as noises
from .base import Data, Metrics, Params
from .checks import check_counts
from .frozen import fill
from .unnormalised import Unnormalised, UnnormalisedProblem, build_noise, check_smooth


@dataclass(frozen=True, init=False)
class CompositionalMLE(Unnormalised):
    """Maximum likelihood with log Z = log E_noise[p̃/p_noise], its gradient over a running average of the ratio.

    A few draws a step would bias the logarithm; u ← (1 − decay) u + decay mean(p̃/p_noise), kept from step to step,
    takes the place of their mean in the denominator (Learning Unnormalized Statistical Models via Compositional
    Optimization). Unlike the logistic loss of `NCE` its gradient does not vanish far from the truth. The metric "log_z"
    is log u. The loss is stochastic; for standard errors fit `NCE` from the estimate (``start=result.params``).

    Args:
        noise: as in `NCE`; the ratio p̃/p_noise must have a mean, so its tails must not be lighter than the model's.
        ratio: draws of noise a datum and step.
        decay: weight of the latest step in the running average; 1 forgets all that was before.
        argument: name of the data argument that carries x; None finds it.
    """

    noise: Any = None
    ratio: int = 1
    decay: float = 0.1

    def __init__(self, noise: Any = None, ratio: int = 1, **options: Any) -> None:
        fill(self, {"noise": noise, "ratio": ratio, **options})

    def __post_init__(self) -> None:
        check_smooth(self)
        super().__post_init__()
        object.__setattr__(self, "noise", noises.freeze(self.noise))
        check_counts(ratio=self.ratio)
        if isinstance(self.decay, bool) or not 0 < self.decay <= 1:
            raise ValueError(f"decay must lie in (0, 1], got {self.decay!r}")

    @property
    def exact(self) -> bool:  # type: ignore[override]
        return False

    def static(self) -> CompositionalMLE:
        return replace(super().static(), noise=None)  # type: ignore[call-arg, return-value]

    def problem(self, rng_key: Array, model: Callable, guide: Callable | None, data: Data) -> CompositionalProblem:
        problem, support = self.pose(CompositionalProblem, rng_key, model, data)
        noise = build_noise(problem, self.noise, support, "CompositionalMLE")
        kind = jnp.result_type(float)
        size = self.ratio, *(np.asarray(problem.rows).shape if problem.plate is None else
                             (problem.plate[2], *problem.event))  # fmt: skip
        memory = {
            "log_u": jnp.array(-jnp.inf, kind),
            "y": jnp.zeros(size, problem.rows.dtype),
            "key": random.key(0),
        }
        return replace(problem, noise=noise, memory=memory)  # type: ignore[call-arg, return-value]


class CompositionalProblem(UnnormalisedProblem):
    """−Σ_i w_i log p̃(x_i) + W log u, W the sum of weights; u and the draws of noise are its memory."""

    noise: Any = None

    @property
    def deterministic(self) -> bool:
        return False

    def ratios(self, params: Params, data: Data, y: Array, key: Array) -> tuple[Array, Array, Array]:
        """log p̃/p_noise of noise y ``(ratio, n)``, log p̃ of the batch ``(n,)``, and the batch's scale."""
        x, log_density, scale = self.density(params, data, self.chosen(key))
        log_w = self.at(log_density, x, y.reshape(*y.shape[:2], -1)) - self.noise.log_prob(y)
        return log_w, log_density(x), jnp.asarray(scale)

    def refresh(self, memory: Any, params: Params, rng_key: Array) -> Any:
        options: Any = self.options
        draw_key, batch_key = random.split(rng_key)
        y = self.noise.draw(draw_key, options.ratio, memory["y"].shape[1])
        log_w = self.ratios(params, self.data, y, batch_key)[0]
        latest = logsumexp(log_w) - jnp.log(log_w.size)
        mixed = jnp.logaddexp(jnp.log1p(-options.decay) + memory["log_u"], jnp.log(options.decay) + latest)
        log_u = jnp.where(jnp.isfinite(memory["log_u"]), mixed, latest)
        return {"log_u": log_u, "y": y, "key": batch_key}

    def loss(self, params: Params, rng_key: Array, data: Data) -> tuple[Array, Metrics]:
        memory = self.memory
        log_w, of_data, scale = self.ratios(params, data, memory["y"], memory["key"])
        log_u = lax.stop_gradient(memory["log_u"])
        ratio = jnp.mean(jnp.exp(log_w - log_u))
        total = jnp.sum(jnp.broadcast_to(self.weights, of_data.shape))
        log_z = log_u + ratio - lax.stop_gradient(ratio)  # its value is log u, its gradient ∇mean(p̃/p_noise)/u
        value = scale * (total * log_z - jnp.sum(self.weights * of_data))
        if self.penalties is not None:
            value = value + self.penalties.smooth(params)
        return value, {"log_z": log_u}

    def explain(self, params: Params, rng_key: Array, data: Data) -> str:
        if not bool(jnp.isfinite(self.ratios(params, data, self.memory["y"], self.memory["key"])[0]).any()):
            return (
                "no draw of noise has a finite ratio p̃/p_noise: the energy is not finite, or the noise misses the model"
            )
        return (
            "the ratio p̃/p_noise overflows: the partition function diverges (an energy without lower bound), or the "
            "noise's tails are lighter than the model's"
        )

    def faults(self, params: Params) -> list[str]:
        """Whether p̃ has a normaliser, and its ratio to the noise still means something at the end."""
        log_w = self.ratios(params, self.data, self.memory["y"], self.memory["key"])[0]
        return super().faults(params) + self.faults_of(log_w)
