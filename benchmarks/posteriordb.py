"""How good is the default? Fits 14 posteriors of posteriordb that come with reference draws; errors in reference sd.

Needs a copy of the database: `--root` or the environment variable POSTERIORDB.
"""

from __future__ import annotations

import argparse
from typing import Any

import pandas as pd
from common import write

import estimax
from estimax import estimators
from estimax.inference.compare import posterior_error
from estimax.models import posteriordb

ESTIMATORS = {"ELBO": estimators.ELBO(16), "IWAE": estimators.IWAE(16), "VIS": estimators.VIS(64)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default=None)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name, posterior in posteriordb.load(arguments.root).items():
        reference = posterior.reference()
        for label, estimator in ESTIMATORS.items():
            for seed in range(arguments.seeds):
                result = estimax.fit(posterior.model, estimator, posterior.data(), seed=seed, progress_bar=False)
                evidence = result.log_evidence(10_000, seed=seed)
                plain = posterior_error(result.sample(20_000, seed=seed), reference)
                psis = posterior_error(result.sample(10_000, seed=seed, resample="psis"), reference)
                rows.append(
                    {
                        "posterior": name,
                        "estimator": label,
                        "seed": seed,
                        "mean_error": plain[0],
                        "sd_error": plain[1],
                        "psis_mean_error": psis[0],
                        "psis_sd_error": psis[1],
                        "khat": evidence.khat,
                        "verdict": evidence.verdict,
                        "seconds": result.seconds,
                    }
                )
                print({k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    frame = pd.DataFrame(rows)
    measures = ["mean_error", "sd_error", "psis_mean_error", "psis_sd_error", "khat", "seconds"]
    table = frame.groupby(["posterior", "estimator"], sort=False)[measures].mean()
    print(table.to_string(float_format="%.3f"))
    passed = (table["psis_mean_error"] <= 0.1) & (table["psis_sd_error"] <= 0.1)
    print("within 0.1 sd and 10 % after PSIS:", passed.groupby("estimator", sort=False).sum().to_dict())
    write("posteriordb", {"runs": rows, "within_0.1_sd_and_10_percent": passed.groupby("estimator").sum().to_dict()})


if __name__ == "__main__":
    main()
