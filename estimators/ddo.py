"""Direct discriminative optimisation: refine a normalised model against a frozen copy of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from . import noise as noises
from .base import Data, Params
from .checks import check_positive
from .frozen import fill
from .nce import NCE, NCEProblem


@dataclass(frozen=True, init=False)
class DDO(NCE):
    """Direct discriminative optimisation: the model's own log-ratio to a frozen reference tells data from its draws.

    Minimises Σ_i w_i [softplus(−β r(x_i)) + α mean_j softplus(β r(y_ij))], r = log p_θ − log p_ref, y drawn from the
    reference: the discriminator of a GAN without a network of its own (Direct Discriminative Optimization: Your
    Likelihood-Based Visual Generative Model is Secretly a GAN Discriminator). Where the model can be the law of the
    data that is its minimum, for α = β = 1; elsewhere it leans less on covering all data than maximum likelihood does.
    Parameters that the reference shares start at its values.

    Args:
        reference: the `FitResult` of a normalised model on the same data, or a distribution.
        ratio: draws of the reference a datum.
        alpha, beta: weight of the draws, and sharpness of the log-ratio.
        redraw, argument, covariance: as in `NCE`.
    """

    learn_constant: bool = False
    alpha: float = 1.0
    beta: float = 1.0

    def __init__(self, reference: Any = None, ratio: int = 1, **options: Any) -> None:
        noise = options.pop("noise", None)  # what `dataclasses.replace` calls it
        fill(self, {"noise": noise if reference is None else reference, "ratio": ratio, **options})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("alpha", self.alpha)
        check_positive("beta", self.beta)
        if self.learn_constant:
            raise ValueError("DDO compares normalised densities: there is no constant to learn (NCE has one)")

    def problem(self, rng_key: Array, model: Callable, guide: Callable | None, data: Data) -> NCEProblem:
        if self.noise is None:
            raise ValueError("DDO needs a reference, the fit that it refines: DDO(estimax.fit(model, MLE(), ...))")
        problem = super().problem(rng_key, model, guide, data)
        reference = self.noise.value if isinstance(self.noise, noises.Held) else self.noise
        known = getattr(reference, "unconstrained", {})
        shared = {n: known[n] for n, v in problem.params.items() if n in known and _alike(known[n], v)}
        cast = lambda new, old: jnp.asarray(new, old.dtype)  # noqa: E731
        params = {n: jax.tree.map(cast, shared.get(n, v), v) for n, v in problem.params.items()}
        return replace(problem, params=params)

    def problem_class(self) -> type[NCEProblem]:
        return DDOProblem


def _alike(a: Any, b: Any) -> bool:
    shapes = lambda tree: [jnp.shape(x) for x in jax.tree.leaves(tree)]  # noqa: E731
    return bool(jax.tree.structure(a) == jax.tree.structure(b)) and shapes(a) == shapes(b)  # type: ignore[operator]


class DDOProblem(NCEProblem):
    """Σ_i w_i [softplus(−β r(x_i)) + α mean_j softplus(β r(y_ij))]."""

    @property
    def has_normaliser(self) -> bool:
        return True  # what it refines is a density

    def losses(self, params: Params, of_data: Array, of_noise: Array) -> Array:
        options: Any = self.options
        drawn = jnp.mean(jax.nn.softplus(options.beta * of_noise), axis=0)
        return jax.nn.softplus(-options.beta * of_data) + options.alpha * drawn
