"""One normalising flow, fitted by its likelihood and by its score, on tables of measurements.

The score of a flow does not contain the determinants of its linear layers, which are most of what a dense layer's
likelihood costs in many dimensions. Is the density as good? Tables of a few hundred rows need the noise of denoising:
the sliced score overfits them far more than the likelihood does. Whole numbers in a column (diabetes has a few) give
the likelihood spikes that noise smooths away.

    python examples/flow_two_ways.py [--quick]

Needs scikit-learn for the data (pip install 'estimax[models]').
"""

import argparse

import jax
import numpy as np
import numpyro
from numpyro.contrib.module import eqx_module
from sklearn import datasets

import estimax
from estimax import estimators
from estimax.models.flows import FlowDensity
from estimax.models.networks import LinearFlow
from estimax.models.transport import observed


def model(x):
    key = numpyro.prng_key()
    flow = LinearFlow(x.shape[1], 3, key=jax.random.key(0) if key is None else key)
    with numpyro.plate("row", len(x)):
        numpyro.sample("x", FlowDensity(eqx_module("flow", flow)), obs=x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps, to see that it runs")
    quick = parser.parse_args().quick
    tables = {"iris": datasets.load_iris, "wine": datasets.load_wine, "diabetes": datasets.load_diabetes}

    print("nats a row of held-out data, more is better")
    print(f"{'table':10} {'by likelihood':>14} {'by score':>10} {'steps a second':>22}")
    for name, load in list(tables.items())[: 1 if quick else 3]:
        x = load().data
        x = ((x - x.mean(0)) / x.std(0)).astype(np.float32)
        x = x[np.random.default_rng(0).permutation(len(x))]
        train, test = x[len(x) // 5 :], x[: len(x) // 5]
        found = []
        for estimator in (estimators.MLE(subsample=True), estimators.EBFlow("denoising", sigma=0.3)):
            fit = estimax.fit(
                model,
                estimator,
                {"x": train},
                optimizer="adam",
                num_steps=50 if quick else 500,
                learning_rate=0.003,
                progress_bar=False,
            )
            found.append((float(observed(model, fit.params, {"x": train}).log_prob(test).mean()), fit.steps_per_second))
        (a, fast), (b, other) = found
        print(f"{name:10} {a:14.2f} {b:10.2f} {fast:11.0f} {other:10.0f}")


if __name__ == "__main__":
    main()
