"""A new estimator beside the usual ones, on models whose posterior and evidence are exact.

The new one is any instance of an estimator; here VIS with few particles. Every run is kept in the folder, which also
gets report.html.

    python examples/bench_own_estimator.py [--quick]
"""

import argparse

import estimax
from estimax import estimators


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps, to see that it runs")
    quick = parser.parse_args().quick

    bench = estimax.benchmark(
        "conjugate",
        {"default": "default", "VIS of 4": estimators.VIS(num_particles=4), "a peer": "blackjax:Pathfinder"},
        models=["gamma_poisson"] if quick else ["gamma_poisson", "normal_gamma", "eight_schools"],
        seeds=1 if quick else 2,
        quick=quick,
        jobs=0 if quick else 2,
        out="estimax-results/bench-own-estimator" + ("-quick" if quick else ""),
        resume=True,
    )
    print(bench)
    print(bench.honesty().to_string())


if __name__ == "__main__":  # worker processes import this file: they must not start a bench of their own
    main()
