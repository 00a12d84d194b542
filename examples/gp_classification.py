"""One classification, several posteriors: Laplace, EP, CVI and the hybrid side by side."""

import argparse

import pandas as pd

import estimax
from estimax import estimators, models

parser = argparse.ArgumentParser()
parser.add_argument("--quick", action="store_true", help="forty points, one method")
args = parser.parse_args()

shelf = models.get("banana_classification")
data, test = shelf.data(), shelf.held_out()
methods = ("laplace", "ep", "cvi", "hybrid")
if args.quick:
    data, methods = {name: value[:40] for name, value in data.items()}, ("ep",)

rows = {}
for method in methods:
    result = estimax.fit(shelf.model, estimators.NonConjugateGP(method), data, progress_bar=not args.quick)
    # the weights of importance sampling tell how far the approximation is from the posterior
    evidence = result.log_evidence(1000)
    rows[method] = {
        "amplitude": float(result.params["amplitude"]),
        "length": float(result.params["length"]),
        "its own evidence": float(result.information_criteria()["log_likelihood"]) if result.has_curvature else None,
        "evidence by its weights": evidence.value,
        "k̂": evidence.khat,
        "held-out log density": result.predict(test).log_density().mean(),
    }
print(pd.DataFrame(rows).T.round(3).to_string())
