"""Many rows: the same model by four estimators that scale, and what each costs."""

import argparse
import time

import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
from tinygp import GaussianProcess, kernels

import estimax
from estimax import estimators

parser = argparse.ArgumentParser()
parser.add_argument("--quick", action="store_true", help="a thousand rows")
args = parser.parse_args()

rng = np.random.default_rng(0)
n = 1_000 if args.quick else 20_000
X = np.sort(rng.uniform(0, n / 50, n))
y = np.sin(X) + 0.5 * np.sin(0.3 * X) + 0.3 * rng.normal(size=n)


def model(X, y):
    amplitude = numpyro.sample("amplitude", dist.LogNormal(0.0, 1.0))
    length = numpyro.sample("length", dist.LogNormal(0.0, 1.0))
    noise = numpyro.sample("noise", dist.LogNormal(-1.0, 1.0))
    f = numpyro.sample("f", GaussianProcess(amplitude**2 * kernels.Matern32(length), X, diag=1e-6).numpyro_dist())
    numpyro.sample("y", dist.Normal(f, noise), obs=y)


steps, points = (5, 30) if args.quick else (300, 200)
contestants = {
    "StateSpaceGP": (estimators.StateSpaceGP(), {}),
    f"SVGP, {points} inducing": (estimators.SVGP(points, 256), {"num_steps": steps, "learning_rate": 0.02}),
    f"CoresetGP, {points} points": (estimators.CoresetGP(points, 256), {"num_steps": steps, "learning_rate": 0.02}),
}
if args.quick:
    contestants["IterativeGP"] = (estimators.IterativeGP(num_iterations=10), {"num_steps": 3, "learning_rate": 0.1})

rows = {}
new = {"X": np.linspace(0, n / 50, 500)}
for name, (estimator, options) in contestants.items():
    began = time.perf_counter()
    result = estimax.fit(model, estimator, {"X": X, "y": y}, **options)
    prediction = result.predict(new)
    truth = np.sin(new["X"]) + 0.5 * np.sin(0.3 * new["X"])
    rows[name] = {site: float(value) for site, value in result.params.items() if np.ndim(value) == 0}
    rows[name] |= {"error of the mean": np.sqrt(np.mean((prediction.means["f"] - truth) ** 2))}
    rows[name] |= {"seconds": time.perf_counter() - began}
print(pd.DataFrame(rows).T.round(3).to_string())
