"""Curves of many tasks in a few clusters, each on times of its own: fertility of countries since 1960.

Every cluster has a mean curve, a Gaussian process; every task follows that of its cluster up to a process of its own
and noise. The model is that of `estimax.estimators.MultiTaskGP` (Cluster-Specific Predictions with Multi-Task Gaussian
Processes). The labels are discrete, and all rows one observed site: NUTS alone cannot sum them out.

Data: births per woman by country and year (World Bank), as shipped in statsmodels. They decline rather than grow,
along a few typical paths. Every third country with a full record, seen in 8 to 14 years of its own; the other years
are held out. `simulated` draws tasks from the model, with labels that are known.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array

from . import _statsmodels
from .registry import Model

__all__ = ["MODEL", "countries", "data", "held_out", "model", "simulated"]

NUGGET = 1e-6
"""Variance that keeps the mean curves' covariance regular where times repeat, in units of their own variance."""


def model(t: Array, task: Array, y: Array, num_clusters: int, num_tasks: int) -> None:
    """Clustered curves.

    `t`, `task` (integers from 0), `y`: ``(n,)``, a row an observation. Sites: weights (K,), level and mean_scale (sd of
    the mean curves around it), mean_length, task_scale, task_length, noise; mean_0, mean_1, ... (n,), the curves at the
    rows; cluster (num_tasks,) in plate "task"; y. Priors follow the spread of t and y.
    """
    from tinygp import GaussianProcess, kernels

    from .kernels import SameTask

    t, y = jnp.asarray(t), jnp.asarray(y)
    span, size = jnp.max(t) - jnp.min(t), jnp.std(y)
    weights = (
        numpyro.sample("weights", dist.Dirichlet(jnp.full(num_clusters, 2.0))) if num_clusters > 1 else jnp.ones(1)
    )
    level = numpyro.sample("level", dist.Normal(jnp.mean(y), size))
    mean_scale = numpyro.sample("mean_scale", dist.LogNormal(jnp.log(size), 1.0))
    mean_length = numpyro.sample("mean_length", dist.LogNormal(jnp.log(span / 2), 1.0))
    task_scale = numpyro.sample("task_scale", dist.LogNormal(jnp.log(size / 4), 1.0))
    task_length = numpyro.sample("task_length", dist.LogNormal(jnp.log(span / 4), 1.0))
    noise = numpyro.sample("noise", dist.LogNormal(jnp.log(size / 10), 2.0))
    mean_kernel = mean_scale**2 * kernels.ExpSquared(mean_length)
    task_kernel = SameTask(task_scale**2 * kernels.Matern52(task_length))
    curves = GaussianProcess(mean_kernel, t, diag=NUGGET * mean_scale**2, mean=level)
    means = [numpyro.sample(f"mean_{k}", curves.numpyro_dist()) for k in range(num_clusters)]
    with numpyro.plate("task", num_tasks):
        cluster = numpyro.sample("cluster", dist.Categorical(probs=weights))
    inputs: Any = (t, task)
    mean = jnp.stack(means)[cluster[task], jnp.arange(len(t))]
    numpyro.sample("y", GaussianProcess(task_kernel, inputs, diag=noise**2, mean_value=mean).numpyro_dist(), obs=y)


@cache
def _rows() -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    frame = _statsmodels.load("fertility")
    frame = frame.dropna(subset=[str(year) for year in range(1960, 2012)])
    several = frame["Country Name"].str.contains("IFC|income levels|members|small states")
    frame = frame[~several].sort_values("Country Name").iloc[::3]
    years = np.arange(1960, 2012)
    rng = np.random.default_rng(0)
    pieces = []
    for task, values in enumerate(frame[[str(year) for year in years]].to_numpy(float)):
        seen = np.isin(np.arange(len(years)), rng.choice(len(years), rng.integers(8, 15), replace=False))
        pieces.append((years, np.full(len(years), task), values, seen))
    columns = [np.concatenate(x) for x in zip(*pieces, strict=True)]
    columns[0] = columns[0].astype(float)
    return tuple(frame["Country Name"]), dict(zip(("t", "task", "y", "seen"), columns, strict=True))


def _part(seen: bool) -> dict[str, Any]:
    names, rows = _rows()
    keep = rows["seen"] == seen
    return {**{k: rows[k][keep] for k in ("t", "task", "y")}, "num_clusters": 3, "num_tasks": len(names)}


def countries() -> tuple[str, ...]:
    """Names of the tasks, in their order."""
    return _rows()[0]


def data() -> dict[str, Any]:
    """`t` in years, `task`, `y` in births per woman; `num_clusters` 3 and `num_tasks`."""
    return _part(True)


def held_out() -> dict[str, Any]:
    """The years of the same countries that `data` leaves out."""
    return _part(False)


def simulated(
    num_tasks: int = 30, num_clusters: int = 3, rows_per_task: tuple[int, int] = (6, 12), num_times: int = 40,
    noise: float = 0.2, seed: int = 0,
) -> tuple[dict[str, Any], dict[str, Any], np.ndarray]:  # fmt: skip
    """Tasks with known clusters on irregular times in [0, 10]: data, held-out rows of the same tasks, labels.

    Mean curves have standard deviation 2 and length 2, tasks deviate from them by 0.3 at length 1.
    """
    rng = np.random.default_rng(seed)
    grid = np.linspace(0, 10, num_times)
    square = (grid[:, None] - grid) ** 2

    def draws(scale: float, length: float, size: int) -> np.ndarray:
        covariance = scale**2 * (np.exp(-0.5 * square / length**2) + 1e-10 * np.eye(num_times))
        return rng.standard_normal((size, num_times)) @ np.linalg.cholesky(covariance).T

    labels = rng.permutation(np.arange(num_tasks) % num_clusters)
    y = (
        draws(2.0, 2.0, num_clusters)[labels]
        + draws(0.3, 1.0, num_tasks)
        + noise * rng.standard_normal((num_tasks, num_times))
    )
    seen = np.zeros((num_tasks, num_times), bool)
    for row in seen:
        row[rng.choice(num_times, rng.integers(rows_per_task[0], rows_per_task[1] + 1), replace=False)] = True
    sizes = {"num_clusters": num_clusters, "num_tasks": num_tasks}

    def part(keep: np.ndarray) -> dict[str, Any]:
        task, where = np.nonzero(keep)
        return {"t": grid[where], "task": task, "y": y[keep], **sizes}

    return part(seen), part(~seen), labels


MODEL = Model(
    name="multi_task_growth",
    description="3 clusters of Gaussian-process curves, fertility of countries 1960 to 2011, each in a few years",
    model=model,
    data=data,
    held_out=held_out,
)
