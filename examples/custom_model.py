"""A model of your own on raw data: nothing is scaled, centred or tuned.

Distance to stop of 50 cars against their speed (Ezekiel, "Methods of Correlation Analysis", 1930; R's data set `cars`).
The unexplained spread grows with speed, so one regression is fitted with constant and one with growing noise; the
verdict says how far each fit can be trusted, the evidence which of the two the data favour.

    python examples/custom_model.py [--quick]
"""

import argparse

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import estimax
from estimax import estimators

SPEED = np.fromstring(  # miles per hour
    "4 4 7 7 8 9 10 10 10 11 11 12 12 12 12 13 13 13 13 14 14 14 14 15 15 "
    "15 16 16 17 17 17 18 18 18 18 19 19 19 20 20 20 20 20 22 23 24 24 24 24 25",
    sep=" ",
)
DISTANCE = np.fromstring(  # feet
    "2 10 4 22 16 10 18 26 34 17 28 14 20 24 28 26 34 34 46 26 36 60 80 20 26 "
    "54 32 40 32 40 50 42 56 76 84 36 46 68 32 48 52 56 64 66 54 70 92 93 120 85",
    sep=" ",
)


def constant_noise(speed, distance=None):
    a = numpyro.sample("a", dist.Normal(0.0, 5.0))
    b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(30.0))
    with numpyro.plate("car", len(speed)):
        numpyro.sample("distance", dist.Normal(a * speed + b * speed**2, sigma), obs=distance)


def growing_noise(speed, distance=None):
    a = numpyro.sample("a", dist.Normal(0.0, 5.0))
    b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(30.0))
    power = numpyro.sample("power", dist.Normal(0.0, 1.0))
    with numpyro.plate("car", len(speed)):
        spread = sigma * jnp.exp(power * jnp.log(speed / 15.0))
        numpyro.sample("distance", dist.Normal(a * speed + b * speed**2, spread), obs=distance)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps, to see that it runs")
    quick = parser.parse_args().quick

    evidence = {}
    for model in (constant_noise, growing_noise):
        result = estimax.fit(
            model,
            estimators.IWAE(),
            data={"speed": SPEED, "distance": DISTANCE},
            num_steps=50 if quick else 1000,
            progress_bar=not quick,
        )
        print(f"\n== {model.__name__}")
        diagnosis = result.diagnose()
        evidence[model.__name__] = diagnosis.evidence
        print(diagnosis)
        print(result.summary(400 if quick else 4000).round(3).to_string())

    constant, growing = evidence["constant_noise"], evidence["growing_noise"]
    difference = growing.value - constant.value
    error = np.hypot(growing.stderr, constant.stderr)
    print(f"\nlog Bayes factor, growing over constant noise: {difference:.2f} ± {error:.2f}")
    if "do not use" in (growing.verdict, constant.verdict):
        print("one of the two verdicts is 'do not use': so is this number")


if __name__ == "__main__":
    main()
