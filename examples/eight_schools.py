"""Eight schools from model to trusted posterior: fit, diagnose, summarise, hand over to ArviZ, compare.

python examples/eight_schools.py [--quick]
"""

import argparse

import numpy as np
import numpyro
import numpyro.distributions as dist

import estimax
from estimax import estimators


def model(sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", len(sigma)):
        theta_base = numpyro.sample("theta_base", dist.Normal(0.0, 1.0))
        theta = numpyro.deterministic("theta", mu + tau * theta_base)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


DATA = {
    "y": np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]),
    "sigma": np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps, to see that it runs")
    quick = parser.parse_args().quick
    num_steps = 50 if quick else 1000

    num_samples = 400 if quick else 4000
    result = estimax.fit(model, estimators.RWS(), DATA, num_steps=num_steps, progress_bar=not quick)

    print("\n== what to trust of it")
    print(result.diagnose())

    print("\n== posterior, resampled by importance weights")
    print(result.summary(num_samples).loc[["mu", "tau", "theta[0]", "theta[6]"]].round(2).to_string())

    print("\n== the same fit in ArviZ")
    container = result.to_arviz(num_samples)
    for group in ("posterior", "posterior_predictive", "log_likelihood"):
        print(f"{group}: {dict(container[group].sizes)}")

    print("\n== other estimators of the same model, against the draws that ArviZ ships")
    names = ["ELBO"] if quick else ["ELBO", "IWAE", "VIS", "RWS"]
    comparison = estimax.compare(
        model,
        {name: getattr(estimators, name)() for name in names},
        DATA,
        start=result.start,  # found already: no need to search again
        reference=estimax.models.get("eight_schools").reference(),
        num_steps=num_steps,
        num_samples=num_samples,
        progress_bar=not quick,
    )
    print(comparison)


if __name__ == "__main__":
    main()
