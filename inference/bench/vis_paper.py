"""The tables of "Forward χ² Divergence Based Variational Importance Sampling": toy mixture and POGLM, at its settings.

Models with parameters of their own: the yardstick is how well they predict held-out data, not a posterior.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .cases import Case, Suite

COLUMNS = ("ELBO", "CHIVI", "VBIS", "IWAE", "VIS")
"""VI, CHIVI, VBIS, IWAE and VIS: the paper's five methods."""

MEASURES = {
    "marginal": "mixture: mean log p(x) of 1,000 held-out points, by quadrature",
    "complete": "mixture: mean log p(x, z) of the held-out points at their true z",
    "hidden": "mixture: mean log q(z | x) of the held-out points at their true z",
    "held_out": "POGLM: held-out log-likelihood a trial, by importance sampling from the guide (low on average)",
    "weights_error": "POGLM: mean absolute error of the weights, hidden neurons matched",
    "bias_error": "POGLM: mean absolute error of the biases",
}

CLAIMS = (
    "Mixture, VIS, 5,000 particles (the authors' code): marginal −0.630, complete −3.17, hidden −2.76.",
    "Mixture: VIS is best in the complete and in the hidden log-likelihood.",
    "POGLM: held-out log-likelihood VIS ≥ VBIS ≥ VI.",
)


def _slow_adam() -> Any:
    import optax

    return optax.adam(0.002)


def mixture_score(result: Any, seed: int) -> dict[str, float]:
    from ...models import bernoulli_mixture as m

    x, z = m.test_set()
    return {
        "marginal": float(m.marginal_log_likelihood(result.params, x)),
        "complete": float(m.complete_log_likelihood(result.params, x, z)),
        "hidden": float(m.hidden_log_likelihood(result.params, x, z)),
    }


def poglm_score(result: Any, seed: int) -> dict[str, float]:
    from ...models import poglm as m

    held_out = m.held_out()
    evidence = result.with_data(held_out).log_evidence(2000, seed=seed)
    errors = m.parameter_errors({k: np.asarray(v) for k, v in result.params.items()}, m.truth())
    return {"held_out": evidence.value / len(held_out["x"]), **{f"{k}_error": v for k, v in errors.items()}}


def suite() -> Suite:
    from ...models import bernoulli_mixture, poglm

    def settings(particles: int) -> dict[str, Any]:
        return {"num_particles": particles, "gradient": "score"}

    cases = (
        Case("mixture", bernoulli_mixture.model, bernoulli_mixture.data, guide=bernoulli_mixture.guide,
             settings=settings(5000), num_steps=2000, optimizer=_slow_adam, score=mixture_score),
        Case("poglm", poglm.model, poglm.data, guide=poglm.guide, settings=settings(500), num_steps=500,
             learning_rate=0.01, score=poglm_score),
    )  # fmt: skip
    return Suite(
        "vis-paper",
        "toy mixture and partially observed spike trains at the VIS paper's settings",
        cases,
        COLUMNS,
        (("mixture", "poglm"), ("ELBO", "VIS")),
        MEASURES,
        CLAIMS,
    )
