"""Survival after a heart transplant: three families of censored lifetimes, compared by AIC, with profile intervals.

Days to death and age of 69 patients, some still alive at the end of the study (Miller 1976, from statsmodels).

    python examples/survival.py [--quick]
"""

import argparse

import pandas as pd

import estimax
from estimax import estimators


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two families instead of three")
    quick = parser.parse_args().quick

    fits = {}
    for name in ("weibull_survival", "loglogistic_survival", "power_generalized_weibull")[: 2 if quick else 3]:
        entry = estimax.models.get(name)
        fits[name] = estimax.fit(entry.model, estimators.MLE(), entry.data(), progress_bar=not quick)
        print(f"\n== {entry.description}")
        print(fits[name].summary().round(4).to_string())

    criteria = pd.DataFrame({name: result.information_criteria() for name, result in fits.items()}).T
    print(f"\n{criteria[['log_likelihood', 'num_params', 'AIC', 'AICc', 'BIC']].round(2).to_string()}")

    print("\n95 % intervals of the log-logistic model: Wald, and by the profile of the likelihood")
    best = fits["loglogistic_survival"]
    profile = best.confint(method="profile")[["lower", "upper"]].add_suffix(" (profile)")
    both = best.confint().join(profile)
    print(both.round(4).to_string())
    if not quick:
        test = estimax.lr_test(fits["weibull_survival"], fits["power_generalized_weibull"])
        print(f"\nWeibull within the power generalised family: {test}")


if __name__ == "__main__":
    main()
