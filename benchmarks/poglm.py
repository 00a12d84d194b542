"""Partially observable Poisson GLM: VI, CHIVI, VBIS, VIS over seeds of the fit.

Held-out log-likelihood per trial by importance sampling from the fitted guide (a lower bound on average), and errors of
weights and biases with hidden neurons matched.
"""

from __future__ import annotations

import argparse
from typing import Any

import pandas as pd
from common import write

import estimax
from estimax import estimators, models
from estimax.models import poglm

METHODS = {"VI": estimators.ELBO, "CHIVI": estimators.CHIVI, "VBIS": estimators.VBIS, "VIS": estimators.VIS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--particles", type=int, default=500)
    parser.add_argument("--steps", type=int, default=500)
    arguments = parser.parse_args()
    model = models.get("poglm")
    rows: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        for name, estimator in METHODS.items():
            result = estimax.fit(
                model.model, estimator(arguments.particles, "score"), model.data(), guide=model.guide,
                learning_rate=model.learning_rate, num_steps=arguments.steps, seed=seed,
            )  # fmt: skip
            held_out = model.held_out()
            evidence = result.with_data(held_out).log_evidence(2000, seed=seed)
            errors = poglm.parameter_errors(result.params, model.truth())
            rows.append(
                {
                    "method": name,
                    "seed": seed,
                    "held_out": evidence.value / len(held_out["x"]),
                    **{f"{k}_error": v for k, v in errors.items()},
                    "seconds": result.seconds,
                }
            )
            print(rows[-1])
    frame = pd.DataFrame(rows)
    print(frame.drop(columns="seed").groupby("method", sort=False).agg(["mean", "sem"]).to_string(float_format="%.4f"))
    write("poglm", {"runs": rows, "paper_claims": "VIS >= VBIS >= VI in held-out log-likelihood"})


if __name__ == "__main__":
    main()
