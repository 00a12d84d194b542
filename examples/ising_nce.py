"""Couplings of an Ising model from its states, without the sum over all of them.

Noise-contrastive estimation learns couplings and log Z with standard errors; persistent contrastive divergence learns
the couplings by Gibbs sampling; annealed importance sampling finds log Z from there. With 8 spins the truth can be
enumerated.

    python examples/ising_nce.py [--quick]
"""

import argparse

import numpy as np

import estimax
from estimax.estimators import NCE, ContrastiveDivergence, log_normalizer
from estimax.models import ising


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="without contrastive divergence: to see that it runs")
    quick = parser.parse_args().quick
    data, truth = ising.ising_data(), ising.ising_truth()

    fit = estimax.fit(ising.ising, NCE(ratio=10), data=data, progress_bar=not quick)
    table = fit.summary()
    table["truth"] = [*truth["b"], ising.exact_log_normalizer(truth["w"], truth["b"]), *truth["w"]]
    print(f"== NCE: {fit.message}")
    print(table[["estimate", "std_err", "truth"]].round(3).to_string())
    print("log Z at the estimate by enumeration:", ising.exact_log_normalizer(fit.params["w"], fit.params["b"]))
    print("and by annealing:", log_normalizer(fit, num_temperatures=100))
    if quick:
        return

    estimator = ContrastiveDivergence(steps=1, persistent=True)
    fit = estimax.fit(ising.ising, estimator, data=data, num_steps=1000, learning_rate=0.02)
    print("\n== persistent contrastive divergence: largest error of a coupling",
          np.abs(fit.params["w"] - truth["w"]).max().round(3))  # fmt: skip


if __name__ == "__main__":
    main()
