"""Countries in clusters by their fertility since 1960: a mean curve a cluster, a process a country, irregular years.

Fits three clusters and one, and compares their predictions of the years that were left out.

    python examples/gp_clusters.py [--quick]
"""

import argparse

import numpy as np

import estimax
from estimax.estimators import MultiTaskGP
from estimax.models import multi_task_growth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few simulated tasks: to see that it runs")
    quick = parser.parse_args().quick
    if quick:
        data, held_out, _ = multi_task_growth.simulated(num_tasks=8, num_clusters=2, num_times=12, rows_per_task=(3, 6))
        names = [f"task {i}" for i in range(8)]
    else:
        data, held_out, names = multi_task_growth.data(), multi_task_growth.held_out(), multi_task_growth.countries()
    rows = {name: held_out[name] for name in ("t", "task", "y")}
    print(f"{data['num_tasks']} tasks, {len(data['y'])} observations, {len(rows['y'])} left out")

    for num_clusters in (2,) if quick else (1, 3):
        problem = {**data, "num_clusters": num_clusters}
        fit = estimax.fit(multi_task_growth.model, MultiTaskGP(), problem, progress_bar=not quick)
        prediction = fit.predict(rows)
        error = np.sqrt(np.mean((prediction.mean - rows["y"]) ** 2))
        print(f"\n== {num_clusters} clusters: {fit.message}")
        print("hyper-parameters:", {name: np.round(value, 3).tolist() for name, value in fit.params.items()})
        print(f"left out: error {error:.4f}, log predictive density {prediction.log_density().mean():.3f} a row")
        if num_clusters > 1:
            cluster = np.argmax(fit.problem.responsibilities(fit.unconstrained), 1)
            for k in range(num_clusters):
                members = [names[i] for i in np.flatnonzero(cluster == k)]
                print(f"cluster {k}: {len(members)}, such as {', '.join(members[:6])}")


if __name__ == "__main__":
    main()
