"""Gaussian-process models: a long series, a regression, a classification, counts in time.

Each is an ordinary NumPyro model with tinygp's own distribution, so that NUTS, variational inference and every
estimator of the Gaussian-process family run on the same function. Hyper-parameters have weakly informative priors in
the units of the data; a process is latent, site "f", where its likelihood is to be interchangeable, and observed for
the CO₂ series.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.typing import ArrayLike

from . import _sklearn, _statsmodels
from .registry import Model

JITTER = 1e-6
"""On the diagonal of latent processes."""


def around(name: str, median: float, spread: float = 1.0, shape: tuple[int, ...] = ()) -> Any:
    """A positive hyper-parameter, log-normal around `median`, `spread` the sd of its logarithm."""
    return numpyro.sample(name, dist.LogNormal(jnp.full(shape, np.log(median)), spread).to_event(len(shape)))


def co2(X: ArrayLike, y: ArrayLike) -> None:
    """Atmospheric CO₂: a long trend, a yearly cycle that changes slowly, irregularities, and noise.

    The kernel of Gaussian Processes for Machine Learning, eq. 5.15 to 5.19.

    Args:
        X: time in years, ``(n,)``. y: parts per million, ``(n,)``.
    """
    from tinygp import GaussianProcess, kernels

    trend = around("trend", 50.0) ** 2 * kernels.ExpSquared(around("trend_years", 50.0, 0.5))
    season = (
        around("season", 2.5) ** 2
        * kernels.ExpSquared(around("season_years", 90.0, 0.5))
        * kernels.ExpSineSquared(scale=1.0, gamma=around("season_gamma", 1.0))
    )
    medium = around("medium", 0.7) ** 2 * kernels.RationalQuadratic(
        scale=around("medium_years", 1.2, 0.5), alpha=around("medium_alpha", 1.0)
    )
    mean = numpyro.sample("mean", dist.Normal(340.0, 30.0))
    noise = around("noise", 0.2)
    gp = GaussianProcess(trend + season + medium, jnp.asarray(X), diag=noise**2, mean=mean)
    numpyro.sample("y", gp.numpyro_dist(), obs=y)


def co2_data() -> dict[str, np.ndarray]:
    """Monthly means at Mauna Loa until 1991: `X` years and `y` ppm."""
    return _co2(lambda X: X < 1992)


def co2_held_out() -> dict[str, np.ndarray]:
    """The ten years after those of `co2_data`."""
    return _co2(lambda X: X >= 1992)


def _co2(keep: Any) -> dict[str, np.ndarray]:
    series = _statsmodels.load("co2")["co2"].resample("MS").mean().dropna()
    X = series.index.year.to_numpy() + (series.index.month.to_numpy() - 0.5) / 12
    rows = keep(X)
    return {"X": X[rows], "y": series.to_numpy(np.float64)[rows]}


def diabetes(X: ArrayLike, y: ArrayLike) -> None:
    """Regression with a length-scale a column (automatic relevance determination).

    Args:
        X: standardised columns, ``(n, d)``. y: ``(n,)``.
    """
    from tinygp import GaussianProcess, kernels, transforms

    X = jnp.asarray(X)
    scale = around("length", 3.0, 1.0, (X.shape[1],))
    amplitude = around("amplitude", 50.0)
    noise = around("noise", 50.0)
    mean = numpyro.sample("mean", dist.Normal(150.0, 50.0))
    kernel = amplitude**2 * transforms.Linear(1 / scale, kernels.ExpSquared())
    f = numpyro.sample(
        "f", GaussianProcess(kernel, jnp.asarray(X), diag=JITTER * amplitude**2, mean=mean).numpyro_dist()
    )
    numpyro.sample("y", dist.Normal(f, noise), obs=y)


def _split(X: np.ndarray, y: np.ndarray, test: bool, seed: int = 0) -> dict[str, np.ndarray]:
    """Three quarters of the rows to fit, the rest to test; columns in units of the sd of the former."""
    order = np.random.default_rng(seed).permutation(len(X))
    cut = 3 * len(X) // 4
    train = X[order[:cut]]
    X = (X - train.mean(0)) / train.std(0)
    rows = order[cut:] if test else order[:cut]
    return {"X": X[rows], "y": y[rows]}


def diabetes_data() -> dict[str, np.ndarray]:
    """Three quarters of scikit-learn's 442 patients: `X` (331, 10) standardised, `y` disease progression."""
    found = _sklearn.load("diabetes")
    return _split(np.asarray(found.data), np.asarray(found.target, np.float64), False)


def diabetes_held_out() -> dict[str, np.ndarray]:
    """The other quarter."""
    found = _sklearn.load("diabetes")
    return _split(np.asarray(found.data), np.asarray(found.target, np.float64), True)


def classification(X: ArrayLike, y: ArrayLike) -> None:
    """Classes 0 and 1 with log-odds f.

    Args:
        X: ``(n, d)``. y: 0 or 1, ``(n,)``.
    """
    from tinygp import GaussianProcess, kernels

    amplitude = around("amplitude", 2.0)
    length = around("length", 1.0)
    kernel = amplitude**2 * kernels.ExpSquared(length)
    f = numpyro.sample("f", GaussianProcess(kernel, jnp.asarray(X), diag=JITTER * amplitude**2).numpyro_dist())
    numpyro.sample("y", dist.Bernoulli(logits=f), obs=y)


def banana(n: int = 200, seed: int = 0) -> dict[str, np.ndarray]:
    """Two noisy crescents in the plane, simulated: `X` (n, 2), `y` 0 or 1."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    angle = np.pi * rng.uniform(size=n)
    crescent = np.stack([np.cos(angle), np.sin(angle)], 1)
    X = np.where(y[:, None] == 0, crescent, np.array([1.0, 0.5]) - crescent) + 0.3 * rng.normal(size=(n, 2))
    return {"X": X, "y": y}


def banana_data() -> dict[str, np.ndarray]:
    return banana(200, 0)


def banana_held_out() -> dict[str, np.ndarray]:
    return banana(1000, 1)


def counts(X: ArrayLike, y: ArrayLike) -> None:
    """Counts in time with log-rate f.

    Args:
        X: time, ``(n,)``. y: counts, ``(n,)``.
    """
    from tinygp import GaussianProcess, kernels

    amplitude = around("amplitude", 1.0)
    years = around("years", 20.0)
    mean = numpyro.sample("mean", dist.Normal(0.0, 2.0))
    kernel = amplitude**2 * kernels.Matern32(years)
    f = numpyro.sample(
        "f", GaussianProcess(kernel, jnp.asarray(X), diag=JITTER * amplitude**2, mean=mean).numpyro_dist()
    )
    numpyro.sample("y", dist.Poisson(jnp.exp(f)), obs=y)


COAL = (
    "4541043406334026335453144155342522342132211113001011003103220111010100021000110233112111124200014000100000100101"
)
"""Disasters a year from 1851 on in British coal mines (Jarrett, A Note on the Intervals Between Coal-Mining
Disasters)."""


def coal_data() -> dict[str, np.ndarray]:
    """The 112 years 1851 to 1962: `X` years, `y` numbers of disasters, 191 in all."""
    return {"X": np.arange(1851.0, 1963.0), "y": np.array([int(c) for c in COAL])}


MODELS = (
    Model(
        name="co2_gp",
        description="Gaussian process, CO₂ at Mauna Loa: trend, season, noise; 405 months",
        model=co2,
        data=co2_data,
        held_out=co2_held_out,
    ),
    Model(
        name="diabetes_gp",
        description="Gaussian process with a length-scale a column, 331 patients, 10 columns",
        model=diabetes,
        data=diabetes_data,
        held_out=diabetes_held_out,
    ),
    Model(
        name="banana_classification",
        description="Gaussian-process classification, two crescents in the plane (simulated), 200 points",
        model=classification,
        data=banana_data,
        held_out=banana_held_out,
    ),
    Model(
        name="coal_counts",
        description="Gaussian-process Poisson regression, coal-mining disasters 1851 to 1962",
        model=counts,
        data=coal_data,
    ),
)
