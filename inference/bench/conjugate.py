"""Models with conjugate priors: posterior and evidence in closed form, on small simulated or counted data.

The formulas are those of Gelman et al., "Bayesian Data Analysis", chapters 2 and 3.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy import special, stats

from .cases import Case, Truth

NUM_DRAWS = 10_000


def beta_binomial(counts, totals) -> None:
    """p ~ Beta(2, 3), counts_i ~ Binomial(totals_i, p). `counts`, `totals`: (N,)."""
    p = numpyro.sample("p", dist.Beta(2.0, 3.0))
    with numpyro.plate("data", len(counts)):
        numpyro.sample("counts", dist.Binomial(totals, p), obs=counts)


def _beta_binomial_data() -> dict[str, Any]:
    return {"counts": np.array([3, 1, 4, 1, 5]), "totals": np.array([10, 9, 12, 8, 11])}


def _beta_binomial_truth() -> Truth:
    data = _beta_binomial_data()
    successes, failures = data["counts"].sum(), (data["totals"] - data["counts"]).sum()
    posterior = stats.beta(2.0 + successes, 3.0 + failures)
    n, k = data["totals"], data["counts"]
    choose = special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)
    evidence = choose.sum() + special.betaln(2.0 + successes, 3.0 + failures) - special.betaln(2.0, 3.0)
    return _truth({"p": posterior}, float(evidence))


def gamma_poisson(y) -> None:
    """rate ~ Gamma(2, 1), y_i ~ Poisson(rate). `y`: (N,) counts."""
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Poisson(rate), obs=y)


def _gamma_poisson_data() -> dict[str, Any]:
    return {"y": np.array([2, 0, 1, 3, 1, 0])}


def _gamma_poisson_truth() -> Truth:
    y = _gamma_poisson_data()["y"]
    shape, rate = 2.0 + y.sum(), 1.0 + len(y)
    evidence = -special.gammaln(y + 1.0).sum() + special.gammaln(shape) - special.gammaln(2.0) - shape * np.log(rate)
    return _truth({"rate": stats.gamma(shape, scale=1 / rate)}, float(evidence))


PRIOR = {"mean": 1.0, "strength": 0.5, "shape": 3.0, "rate": 2.0}


def normal_gamma(y) -> None:
    """tau ~ Gamma(3, 2), mu ~ N(1, 1 / (0.5 tau)), y_i ~ N(mu, 1 / tau). `y`: (N,)."""
    tau = numpyro.sample("tau", dist.Gamma(PRIOR["shape"], PRIOR["rate"]))
    mu = numpyro.sample("mu", dist.Normal(PRIOR["mean"], (PRIOR["strength"] * tau) ** -0.5))
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Normal(mu, tau**-0.5), obs=y)


def _normal_gamma_data() -> dict[str, Any]:
    return {"y": 2.0 + 1.5 * np.random.RandomState(0).standard_normal(12)}


def _normal_gamma_truth() -> Truth:
    """tau | y is a gamma, mu | y a Student t."""
    y = _normal_gamma_data()["y"]
    n, mean = len(y), y.mean()
    strength, shape = PRIOR["strength"] + n, PRIOR["shape"] + n / 2
    location = (PRIOR["strength"] * PRIOR["mean"] + n * mean) / strength
    rate = PRIOR["rate"] + 0.5 * ((y - mean) ** 2).sum()
    rate += 0.5 * PRIOR["strength"] * n * (mean - PRIOR["mean"]) ** 2 / strength
    evidence = special.gammaln(shape) - special.gammaln(PRIOR["shape"]) - 0.5 * n * np.log(2 * np.pi)
    evidence += PRIOR["shape"] * np.log(PRIOR["rate"]) - shape * np.log(rate)
    evidence += 0.5 * (np.log(PRIOR["strength"]) - np.log(strength))
    rng = np.random.RandomState(1)
    tau = rng.gamma(shape, 1 / rate, NUM_DRAWS)
    mu = location + rng.standard_normal(NUM_DRAWS) / np.sqrt(strength * tau)
    t = stats.t(2 * shape, location, np.sqrt(rate / (shape * strength)))
    moments = {"tau": (np.asarray(shape / rate), np.asarray(np.sqrt(shape) / rate)), "mu": _moments(t)}
    return Truth({"tau": tau, "mu": mu}, moments, float(evidence))


CONCENTRATION = np.array([2.0, 1.0, 3.0, 1.5])


def dirichlet_multinomial(counts) -> None:
    """p ~ Dirichlet(2, 1, 3, 1.5), counts ~ Multinomial(p). `counts`: (4,)."""
    p = numpyro.sample("p", dist.Dirichlet(CONCENTRATION))
    total = int(np.sum(_dirichlet_data()["counts"]))
    numpyro.sample("counts", dist.Multinomial(total, p), obs=counts)


def _dirichlet_data() -> dict[str, Any]:
    return {"counts": np.array([7, 2, 11, 4])}


def _dirichlet_truth() -> Truth:
    counts = _dirichlet_data()["counts"]
    after = CONCENTRATION + counts
    evidence = special.gammaln(counts.sum() + 1.0) - special.gammaln(counts + 1.0).sum()
    evidence += special.gammaln(CONCENTRATION.sum()) - special.gammaln(after.sum())
    evidence += (special.gammaln(after) - special.gammaln(CONCENTRATION)).sum()
    posterior = stats.dirichlet(after)
    draws = posterior.rvs(NUM_DRAWS, random_state=1)
    return Truth({"p": draws}, {"p": (posterior.mean(), np.sqrt(posterior.var()))}, float(evidence))


def _moments(distribution: Any) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(distribution.mean()), np.asarray(distribution.std())


def _truth(posterior: dict[str, Any], log_evidence: float) -> Truth:
    """From independent scipy distributions by site."""
    return Truth(
        {name: d.rvs(NUM_DRAWS, random_state=1) for name, d in posterior.items()},
        {name: _moments(d) for name, d in posterior.items()},
        log_evidence,
    )


# --- models that ship with the package and whose truth is exact ------------------------------------------------------


def _linear_gaussian_truth() -> Truth:
    from ...models import linear_gaussian as m

    mean, covariance = m.posterior(m.data())
    return Truth(m.reference(), {"z": (mean, np.sqrt(np.diag(covariance)))}, m.log_evidence(m.data()))


def _eight_schools_truth() -> Truth:
    """Moments and evidence by quadrature; the draws are ArviZ's."""
    from ...models import eight_schools as m

    return Truth(m.reference(), m.posterior_moments(), m.log_evidence())


def cases() -> tuple[Case, ...]:
    from ...models import eight_schools, linear_gaussian

    return (
        Case("linear_gaussian", linear_gaussian.model, linear_gaussian.data, _linear_gaussian_truth),
        Case("beta_binomial", beta_binomial, _beta_binomial_data, _beta_binomial_truth),
        Case("gamma_poisson", gamma_poisson, _gamma_poisson_data, _gamma_poisson_truth),
        Case("normal_gamma", normal_gamma, _normal_gamma_data, _normal_gamma_truth),
        Case("dirichlet_multinomial", dirichlet_multinomial, _dirichlet_data, _dirichlet_truth),
        Case("eight_schools", eight_schools.model, eight_schools.data, _eight_schools_truth),
    )
