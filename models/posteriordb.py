"""Posteriors of posteriordb as NumPyro models, with their data and reference draws.

`load` reads any clone of the database (https://github.com/stan-dev/posteriordb) through its own layout; nothing is
downloaded. The densities are those of the database's Stan programs, parameters in the Stan programs' names (vectors as
one site), data on their raw scale.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints

__all__ = ["ENV", "Posterior", "load"]

ENV = "POSTERIORDB"
"""Environment variable naming the clone that `load` reads when it is given no folder."""

_FOLDER = "posterior_database"

Raw = dict[str, Any]
Data = dict[str, np.ndarray]


@dataclass(frozen=True)
class Posterior:
    """One posterior: a NumPyro model, the data that it is conditioned on and draws from the reference posterior."""

    name: str
    model: Callable[..., None]
    folder: Path
    data_name: str
    reference_name: str

    def data(self) -> Data:
        """The model's keyword arguments, float64 arrays (JAX narrows them unless x64 is on)."""
        raw = _read_json(self.folder / "data" / "data" / self.data_name)
        return {key: np.asarray(value, dtype=np.float64) for key, value in _ENTRIES[self.name][1](raw).items()}

    def reference(self) -> dict[str, np.ndarray]:
        """Draws per site that the database has draws of, shape (draws, *site shape), chain after chain."""
        chains = _read_json(self.folder / "reference_posteriors" / "draws" / "draws" / self.reference_name)
        return _to_sites({name: np.concatenate([chain[name] for chain in chains]) for name in chains[0]})


def load(root: str | os.PathLike[str] | None = None) -> dict[str, Posterior]:
    """The posteriors known here that the clone at `root` has, by posterior name.

    `root` is the clone or the folder `posterior_database` in it; without it, the environment variable POSTERIORDB names
    the clone.
    """
    folder = _database(root)
    posteriors = {}
    for name, (model, _) in _ENTRIES.items():
        path = folder / "posteriors" / f"{name}.json"
        if not path.is_file():  # a part of the database is a database too
            continue
        info = json.loads(path.read_text(encoding="utf-8"))
        reference = info.get("reference_posterior_name") or name
        posteriors[name] = Posterior(name, model, folder, info["data_name"], reference)
    if not posteriors:
        raise FileNotFoundError(f"none of the {len(_ENTRIES)} posteriors known here is in {folder}. {_HOW_TO_GET}")
    return posteriors


# --- reading -------------------------------------------------------------------------------------------------------

_HOW_TO_GET = (
    "Get the database with `git clone https://github.com/stan-dev/posteriordb` and pass the clone's folder as `root`, "
    f"or name it in the environment variable {ENV}."
)


def _database(root: str | os.PathLike[str] | None) -> Path:
    source = "the argument `root`"
    if root is None:
        root, source = os.environ.get(ENV), f"the environment variable {ENV}"
        if not root:
            raise FileNotFoundError(f"no posteriordb folder: neither `root` nor {ENV} is set. {_HOW_TO_GET}")
    path = Path(root).expanduser()
    for folder in (path / _FOLDER, path):
        if (folder / "posteriors").is_dir():
            return folder
    what = "has no posteriors" if path.is_dir() else "is not a folder"
    raise FileNotFoundError(f"no posteriordb at {str(path)!r} (from {source}): it {what}. {_HOW_TO_GET}")


def _read_json(stem: Path) -> Any:
    """The content of `stem`.json.zip (as the database keeps it) or of an unpacked `stem`.json."""
    packed, plain = stem.with_name(stem.name + ".json.zip"), stem.with_name(stem.name + ".json")
    if packed.is_file():
        with zipfile.ZipFile(packed) as archive:
            return json.loads(archive.read(plain.name))
    if plain.is_file():
        return json.loads(plain.read_text(encoding="utf-8"))
    raise FileNotFoundError(f"the posteriordb clone lacks {packed}. {_HOW_TO_GET}")


def _to_sites(draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Gather scalars named `beta[1]`, `beta[2]`, ... (one-based, `a[1,2]` for matrices) into one array per site."""
    parts: dict[str, dict[Any, np.ndarray]] = {}
    for name, values in draws.items():
        match = re.fullmatch(r"([^\[\]]+)(?:\[([\d,]+)\])?", name)
        if match is None:
            raise ValueError(f"cannot read the parameter name {name!r} in the reference draws")
        index = tuple(int(i) - 1 for i in match[2].split(",")) if match[2] else ()
        parts.setdefault(match[1], {})[index] = values
    sites = {}
    for site, elements in parts.items():
        shape = tuple(1 + max(axis) for axis in zip(*elements, strict=True))
        array = np.full((len(next(iter(elements.values()))), *shape), np.nan)
        for index, values in elements.items():
            array[(slice(None), *index)] = values
        sites[site] = array
    return sites


# --- priors and likelihoods shared by the models -------------------------------------------------------------------


def _flat(name: str, support: constraints.Constraint, event_shape: tuple[int, ...] = ()) -> Array:
    return numpyro.sample(name, dist.ImproperUniform(support, (), event_shape))


def _flat_vector(name: str, size: int) -> Array:
    return _flat(name, constraints.real_vector, (size,))


def _flat_positive(name: str) -> Array:
    return _flat(name, constraints.positive)


def _observe_normal(y: Array, mean: Array, scale: Array) -> None:
    with numpyro.plate("data", y.shape[0]):
        numpyro.sample("y", dist.Normal(mean, scale), obs=y)


def _flat_regression(X: Array, y: Array) -> None:
    """Normal regression, flat in the coefficients and in sigma > 0."""
    beta = _flat_vector("beta", X.shape[1])
    sigma = _flat_positive("sigma")
    _observe_normal(y, X @ beta, sigma)


# --- the models and their data -------------------------------------------------------------------------------------
# A model takes data only, so that its identity is stable and jit caches are hit. Design matrices are made with the
# data, once and in float64, rather than in every evaluation of the density.


def eight_schools_noncentered(y: Array, sigma: Array) -> None:
    """Eight schools, non-centred; the reference has `theta` (deterministic here), not `theta_trans`."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", y.shape[0]):
        theta_trans = numpyro.sample("theta_trans", dist.Normal(0.0, 1.0))
        theta = numpyro.deterministic("theta", mu + tau * theta_trans)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def kidscore_momiq(X: Array, y: Array) -> None:
    """Children's test scores on the mother's IQ."""
    beta = _flat_vector("beta", X.shape[1])
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    _observe_normal(y, X @ beta, sigma)


def kidscore_mom_work(X: Array, y: Array) -> None:
    """Children's test scores on the mother's work."""
    _flat_regression(X, y)


def earn_height(X: Array, y: Array) -> None:
    """Earnings on height."""
    _flat_regression(X, y)


def logearn_height(X: Array, y: Array) -> None:
    """Log earnings on height."""
    _flat_regression(X, y)


def logmesquite_logvash(X: Array, y: Array) -> None:
    """Log weight of mesquite bushes on logs of volume, area, shape and height."""
    _flat_regression(X, y)


def nes(X: Array, y: Array) -> None:
    """Party identification (US National Election Study) on ideology and demography."""
    _flat_regression(X, y)


def arK(lags: Array, y: Array) -> None:
    """Autoregression of order K, given the first K values: row t of `lags` is (y_{t-1}, ..., y_{t-K})."""
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 10.0).expand([lags.shape[1]]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    _observe_normal(y, alpha + lags @ beta, sigma)


def garch11(y: Array, sigma1: Array) -> None:
    """GARCH(1, 1), flat over its constrained parameters."""
    mu = _flat("mu", constraints.real)
    alpha0 = _flat_positive("alpha0")
    alpha1 = numpyro.sample("alpha1", dist.Uniform(0.0, 1.0))
    # Flat on (0, 1 - alpha1): the factor takes out the uniform's density. ImproperUniform on the interval has the same
    # density, but NumPyro does not see that its support moves with alpha1: MCMC would map its draws of beta1 to the
    # interval of the first trace.
    beta1 = numpyro.sample("beta1", dist.Uniform(0.0, 1.0 - alpha1))
    numpyro.factor("beta1_flat", jnp.log1p(-alpha1))

    y = jnp.asarray(y)
    shock = alpha0 + alpha1 * jnp.square(y[:-1] - mu)
    variance1 = jnp.asarray(jnp.square(sigma1), dtype=jnp.result_type(shock, beta1))  # a scan keeps its carry's dtype

    def step(variance: Array, shock: Array) -> tuple[Array, Array]:
        variance = shock + beta1 * variance
        return variance, variance

    _, variances = jax.lax.scan(step, variance1, shock)
    # Each y_t is normal given the past, and the past is data: no state is left to integrate out.
    _observe_normal(y, mu, jnp.sqrt(jnp.concatenate([variance1[None], variances])))


def gp_regr(x: Array, y: Array) -> None:
    """Gaussian process regression, squared exponential kernel; sigma is the noise's variance."""
    rho = numpyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = numpyro.sample("alpha", dist.HalfNormal(2.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    x = jnp.asarray(x)
    distance = (x[:, None] - x) / rho
    covariance = alpha**2 * jnp.exp(-0.5 * distance**2) + sigma * jnp.eye(x.shape[0])
    numpyro.sample("y", dist.MultivariateNormal(jnp.zeros_like(x), covariance_matrix=covariance), obs=y)


def hmm_example(y: Array) -> None:
    """Hidden Markov model of two normal states, the states summed out by the forward algorithm."""
    theta1 = numpyro.sample("theta1", dist.Dirichlet(jnp.ones(2)))
    theta2 = numpyro.sample("theta2", dist.Dirichlet(jnp.ones(2)))
    mu = _flat("mu", constraints.positive_ordered_vector, (2,))
    numpyro.factor("mu_prior", dist.Normal(jnp.array([3.0, 10.0]), 1.0).log_prob(mu).sum())
    log_transition = jnp.log(jnp.stack([theta1, theta2]))
    log_emission = dist.Normal(mu, 1.0).log_prob(jnp.asarray(y)[:, None])

    def step(log_forward: Array, log_emission: Array) -> tuple[Array, None]:
        return jax.nn.logsumexp(log_forward[:, None] + log_transition, axis=0) + log_emission, None

    # No initial-state term: each state's first emission enters with weight 1. The carry keeps the steps' dtype.
    start = log_emission[0].astype(jnp.result_type(log_emission, log_transition))
    log_forward, _ = jax.lax.scan(step, start, log_emission[1:])
    numpyro.factor("likelihood", jax.nn.logsumexp(log_forward))


def low_dim_gauss_mix(y: Array) -> None:
    """Mixture of two normals, means ordered."""
    mu = _flat("mu", constraints.ordered_vector, (2,))
    numpyro.factor("mu_prior", dist.Normal(0.0, 2.0).log_prob(mu).sum())
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = numpyro.sample("theta", dist.Beta(5.0, 5.0))
    weights = dist.Categorical(probs=jnp.stack([theta, 1.0 - theta]))
    with numpyro.plate("data", y.shape[0]):
        numpyro.sample("y", dist.MixtureSameFamily(weights, dist.Normal(mu, sigma)), obs=y)


def blr(X: Array, y: Array) -> None:
    """Bayesian linear regression on correlated columns."""
    beta = numpyro.sample("beta", dist.Normal(0.0, 10.0).expand([X.shape[1]]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(10.0))
    _observe_normal(y, X @ beta, sigma)


def kilpisjarvi(x: Array, y: Array, pmualpha: Array, psalpha: Array, pmubeta: Array, psbeta: Array) -> None:
    """Summer temperatures in Kilpisjärvi on the year, uncentred: alpha and beta are almost collinear."""
    alpha = numpyro.sample("alpha", dist.Normal(pmualpha, psalpha))
    beta = numpyro.sample("beta", dist.Normal(pmubeta, psbeta))
    sigma = _flat_positive("sigma")
    _observe_normal(y, alpha + beta * x, sigma)


def _columns(raw: Raw, *names: str) -> list[np.ndarray]:
    return [np.asarray(raw[name], dtype=np.float64) for name in names]


def _design(*columns: np.ndarray) -> np.ndarray:
    """Design matrix with a column of ones first."""
    return np.stack([np.ones(len(columns[0])), *columns], axis=1)


def _pick(*names: str) -> Callable[[Raw], Raw]:
    return lambda raw: {name: raw[name] for name in names}


def _data_kidscore_momiq(raw: Raw) -> Raw:
    return {"X": _design(*_columns(raw, "mom_iq")), "y": raw["kid_score"]}


def _data_kidscore_mom_work(raw: Raw) -> Raw:
    (work,) = _columns(raw, "mom_work")
    return {"X": _design(work == 2, work == 3, work == 4), "y": raw["kid_score"]}


def _data_earn_height(raw: Raw) -> Raw:
    return {"X": _design(*_columns(raw, "height")), "y": raw["earn"]}


def _data_logearn_height(raw: Raw) -> Raw:
    return {"X": _design(*_columns(raw, "height")), "y": np.log(raw["earn"])}


def _data_mesquite(raw: Raw) -> Raw:
    diam1, diam2, canopy, height, group = _columns(raw, "diam1", "diam2", "canopy_height", "total_height", "group")
    logs = [np.log(diam1 * diam2 * canopy), np.log(diam1 * diam2), np.log(diam1 / diam2), np.log(height)]
    return {"X": _design(*logs, group), "y": np.log(raw["weight"])}


def _data_nes(raw: Raw) -> Raw:
    ideology, race, age = _columns(raw, "real_ideo", "race_adj", "age_discrete")
    others = _columns(raw, "educ1", "gender", "income")
    return {"X": _design(ideology, race, age == 2, age == 3, age == 4, *others), "y": raw["partyid7"]}


def _data_arK(raw: Raw) -> Raw:
    (y,), order = _columns(raw, "y"), int(raw["K"])
    return {"lags": np.stack([y[order - k : len(y) - k] for k in range(1, order + 1)], axis=1), "y": y[order:]}


_ENTRIES: dict[str, tuple[Callable[..., None], Callable[[Raw], Raw]]] = {
    "arK-arK": (arK, _data_arK),
    "earnings-earn_height": (earn_height, _data_earn_height),
    "earnings-logearn_height": (logearn_height, _data_logearn_height),
    "eight_schools-eight_schools_noncentered": (eight_schools_noncentered, _pick("y", "sigma")),
    "garch-garch11": (garch11, _pick("y", "sigma1")),
    "gp_pois_regr-gp_regr": (gp_regr, _pick("x", "y")),
    "hmm_example-hmm_example": (hmm_example, _pick("y")),
    "kidiq-kidscore_momiq": (kidscore_momiq, _data_kidscore_momiq),
    "kidiq_with_mom_work-kidscore_mom_work": (kidscore_mom_work, _data_kidscore_mom_work),
    "kilpisjarvi_mod-kilpisjarvi": (kilpisjarvi, _pick("x", "y", "pmualpha", "psalpha", "pmubeta", "psbeta")),
    "low_dim_gauss_mix-low_dim_gauss_mix": (low_dim_gauss_mix, _pick("y")),
    "mesquite-logmesquite_logvash": (logmesquite_logvash, _data_mesquite),
    "nes1996-nes": (nes, _data_nes),
    "sblrc-blr": (blr, _pick("X", "y")),
}
