"""Doctor visits: a Poisson regression whose standard errors are wrong, and four ways to better ones.

Counts of the RAND health insurance experiment (a part of it, from statsmodels). A Poisson model says that the variance
equals the mean; visits vary far more. The information ratio shows it, the sandwich and the bootstrap repair the
standard errors, a negative binomial model repairs the model.

    python examples/glm_standard_errors.py [--quick]
"""

import argparse

import numpy as np
import pandas as pd

import estimax
from estimax import estimators
from estimax.models import glm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer data, to see that it runs")
    quick = parser.parse_args().quick

    data = estimax.models.get("negative_binomial_regression").data()
    rows = np.random.default_rng(0).choice(len(data["y"]), 500 if quick else 5000, replace=False)
    data = {"x": np.asarray(data["x"])[rows, :4], "y": np.asarray(data["y"])[rows]}

    poisson = estimax.fit(glm.poisson, estimators.MLE(), data, progress_bar=not quick)
    print(poisson.diagnose())
    kinds = ["observed", "opg", "sandwich", "bootstrap"]
    errors = {k: poisson.covariance(k, num_replicates=100 if quick else 500).std_err for k in kinds}
    table = pd.DataFrame(errors, index=poisson.summary().index)
    table.insert(0, "estimate", poisson.summary()["estimate"])
    print("\nPoisson regression: the estimates and four kinds of standard errors")
    print(table.round(4).to_string())

    wider = estimax.fit(glm.negative_binomial, estimators.MLE(), data, progress_bar=not quick)
    print("\nnegative binomial regression")
    print(wider.summary().round(4).to_string())
    criteria = pd.DataFrame(
        {"Poisson": poisson.information_criteria(), "negative binomial": wider.information_criteria()}
    )
    print(f"\n{criteria.round(1).to_string()}")
    print(f"\n{wider.sample_size_check()}")


if __name__ == "__main__":
    main()
