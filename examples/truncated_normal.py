"""A truncated normal by score matching and by maximum likelihood, then without its normalising constant.

The constant of a truncated normal is known, so both estimators can be compared: estimates, standard errors, and what
happens when the constant is left out of the model, where only score matching goes on working.

    python examples/truncated_normal.py [--quick]
"""

import argparse

import numpyro
from numpyro.distributions import constraints

import estimax
from estimax.estimators import MLE, ScoreMatching
from estimax.models import exponential_family


def without_constant(x):
    """The same density up to its constant: an energy."""
    mu = numpyro.param("mu", 0.5)
    sigma = numpyro.param("sigma", 1.0, constraint=constraints.positive)
    with numpyro.plate("data", x.shape[0]):
        numpyro.factor("energy", -0.5 * ((x - mu) / sigma) ** 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="no profile of maximum likelihood: to see that it runs")
    quick = parser.parse_args().quick
    data = exponential_family.truncated_data()
    print("truth:", {k: float(v) for k, v in exponential_family.truncated_truth().items()})

    model = exponential_family.truncated_normal
    if not quick:
        fit = estimax.fit(model, MLE(), data=data)
        print(f"\n== maximum likelihood: {fit.message}\n{fit.summary().round(3).to_string()}")
    fit = estimax.fit(model, ScoreMatching(), data=data, progress_bar=not quick)
    print(f"\n== score matching: {fit.message}\n{fit.summary().round(3).to_string()}")

    # an energy does not say where its density ends: the weight min(x, 1) is zero at the boundary, x = 0
    fit = estimax.fit(without_constant, ScoreMatching(domain=weight), data=data, progress_bar=not quick)
    print(f"\n== score matching without the constant\n{fit.summary().round(3).to_string()}")


def weight(x):
    return x.clip(max=1.0)


if __name__ == "__main__":
    main()
