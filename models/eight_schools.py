"""Eight schools: effects of coaching on a test score, in the non-centred parametrisation.

Data: Rubin, "Estimation in Parallel Randomized Experiments" (1981), Table 1; the example of chapter 5 of Gelman et
al., "Bayesian Data Analysis". Model and priors are those of ArviZ's example data set `non_centered_eight`, whose 2,000
NUTS draws are the reference here. ArviZ 0.x and 1.x ship different draws from the same posterior.

Given tau all else is Gaussian, so every posterior moment and the evidence is an integral over tau alone:
`log_evidence` and `posterior_moments` do it by quadrature, free of the Monte Carlo error of 2,000 draws (up to 0.05
posterior sd in a mean and 5 % in a sd).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpyro
import numpyro.distributions as dist

from .registry import Model

__all__ = ["MODEL", "SCHOOLS", "data", "log_evidence", "model", "posterior_moments", "reference"]

SCHOOLS = (
    "Choate",
    "Deerfield",
    "Phillips Andover",
    "Phillips Exeter",
    "Hotchkiss",
    "Lawrenceville",
    "St. Paul's",
    "Mt. Hermon",
)
"""Names that the schools go by in ArviZ's data set, in the order of the data."""

PRIOR_SCALE = 5.0  # of mu (normal) and of tau (half-Cauchy), in points of the test score


def model(sigma, y=None) -> None:
    """mu ~ N(0, 5), tau ~ HalfCauchy(5), theta_base ~ N(0, 1), theta = mu + tau theta_base, y ~ N(theta, sigma).

    `sigma`, `y`: (8,), in points of the test score.
    """
    mu = numpyro.sample("mu", dist.Normal(0.0, PRIOR_SCALE))
    tau = numpyro.sample("tau", dist.HalfCauchy(PRIOR_SCALE))
    with numpyro.plate("school", len(sigma)):
        theta_base = numpyro.sample("theta_base", dist.Normal(0.0, 1.0))
        theta = numpyro.deterministic("theta", mu + tau * theta_base)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def data() -> dict[str, np.ndarray]:
    """Estimated effects `y` and their standard errors `sigma`, (8,) each."""
    return {
        "y": np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]),
        "sigma": np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]),
    }


def reference() -> dict[str, np.ndarray]:
    """ArviZ's 4 x 500 draws as mu (2000,), tau (2000,), theta_base (2000, 8), theta (2000, 8); read from its files."""
    import arviz

    posterior: Any = arviz.load_arviz_data("non_centered_eight")["posterior"]
    theirs = {"mu": "mu", "tau": "tau", "theta_base": "theta_t", "theta": "theta"}
    draws = {ours: np.asarray(posterior[name].values) for ours, name in theirs.items()}
    return {name: value.reshape(-1, *value.shape[2:]) for name, value in draws.items()}


def _given_tau(num_points: int = 100_000) -> dict[str, np.ndarray]:
    """The Gaussian posterior given each tau of a grid on which the half-Cauchy prior puts equal mass.

    Leading axis: the grid. `log_marginal`: log p(y | tau). mu | tau, y ~ N(mu_mean, mu_var).
    theta_base | mu, tau, y ~ N(offset - slope mu, base_var) independently.
    """
    y, sigma = data()["y"], data()["sigma"]
    tau = PRIOR_SCALE * np.tan(0.5 * np.pi * (np.arange(num_points) + 0.5) / num_points)
    var = sigma**2 + tau[:, None] ** 2  # of y given mu
    precision = PRIOR_SCALE**-2 + (1.0 / var).sum(1)
    mu_mean = (y / var).sum(1) / precision
    log_marginal = -0.5 * (np.log(2.0 * np.pi * var) + y**2 / var).sum(1)
    log_marginal += 0.5 * (precision * mu_mean**2 - np.log(precision * PRIOR_SCALE**2))
    slope = tau[:, None] / var
    return {
        "tau": tau,
        "log_marginal": log_marginal,
        "mu_mean": mu_mean,
        "mu_var": 1.0 / precision,
        "offset": slope * y,
        "slope": slope,
        "base_var": sigma**2 / var,
    }


def log_evidence() -> float:
    """log p(y), by quadrature over tau (six digits)."""
    log_marginal = _given_tau()["log_marginal"]
    return float(np.logaddexp.reduce(log_marginal) - np.log(len(log_marginal)))


def posterior_moments() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Exact posterior (mean, sd) of mu, tau, theta_base and theta, by quadrature over tau."""
    g = _given_tau()
    weight = np.exp(g["log_marginal"] - np.logaddexp.reduce(g["log_marginal"]))
    tau, mu_mean, mu_var = g["tau"][:, None], g["mu_mean"][:, None], g["mu_var"][:, None]
    zero = np.zeros_like(tau)
    shrink = 1.0 - tau * g["slope"]  # theta = tau offset + shrink mu + noise
    conditional = {
        "mu": (mu_mean, mu_var),
        "tau": (tau, zero),
        "theta_base": (g["offset"] - g["slope"] * mu_mean, g["base_var"] + g["slope"] ** 2 * mu_var),
        "theta": (tau * g["offset"] + shrink * mu_mean, tau**2 * g["base_var"] + shrink**2 * mu_var),
    }
    moments = {}
    for name, (mean_given_tau, var_given_tau) in conditional.items():
        mean = weight @ mean_given_tau
        sd = np.sqrt(weight @ (var_given_tau + (mean_given_tau - mean) ** 2))
        moments[name] = (mean, sd) if name.startswith("theta") else (mean[0], sd[0])
    return moments


MODEL = Model(
    name="eight_schools",
    description="Eight schools, non-centred: a hierarchical model of 8 coaching effects (Rubin 1981)",
    model=model,
    data=data,
    reference=reference,
    log_evidence=log_evidence,
)
