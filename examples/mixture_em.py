"""EM for two models with a discrete latent a datum: two lines in one cloud, and waiting times of a geyser's kind.

Shows the log-likelihood that never falls, standard errors, and which component each datum belongs to.

    python examples/mixture_em.py [--quick]
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

import estimax
from estimax.estimators import EM
from estimax.estimators.em import assignments

RNG = np.random.default_rng(0)
WAITING = np.where(RNG.random(272) < 0.36, RNG.normal(54.6, 5.9, 272), RNG.normal(80.1, 5.9, 272))  # minutes, simulated
X = RNG.uniform(-2, 2, 200)
UPPER = RNG.random(200) < 1 / (1 + np.exp(-3 * X))
Y = np.where(UPPER, 1 + 2 * X, -1 - X) + 0.5 * RNG.normal(size=200)


def mixture(x):
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(2)))
    mu = numpyro.sample("mu", dist.Normal(jnp.mean(x), 2 * jnp.std(x)).expand([2]).to_event(1))
    sd = numpyro.sample("sd", dist.LogNormal(jnp.log(jnp.std(x) / 2), 0.5).expand([2]).to_event(1))
    with numpyro.plate("eruption", len(x)):
        z = numpyro.sample("z", dist.Categorical(probs=weights))
        numpyro.sample("x", dist.Normal(mu[z], sd[z]), obs=x)


def experts(x, y):
    gate = numpyro.param("gate", jnp.array([0.0, 0.5]))
    intercept = numpyro.param("intercept", jnp.array([-0.5, 0.5]))
    slope = numpyro.param("slope", jnp.array([-0.5, 0.5]))
    sd = numpyro.param("sd", jnp.ones(2), constraint=constraints.positive)
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(logits=gate[0] + gate[1] * x))
        numpyro.sample("y", dist.Normal(intercept[z] + slope[z] * x, sd[z]), obs=y)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one model, no standard errors: to see that it runs")
    quick = parser.parse_args().quick

    fit = estimax.fit(experts, EM(), data={"x": X, "y": Y}, progress_bar=not quick)
    print(f"== mixture of experts: {fit.message}")
    print("log-likelihood:", np.round(-fit.losses, 2))
    print(fit.params if quick else fit.summary().round(3).to_string())
    with jax.enable_x64(True):
        print("data of each expert:", np.bincount(assignments(fit.problem, fit.unconstrained)))
    if quick:
        return

    fit = estimax.fit(mixture, EM(), data={"x": WAITING}, num_restarts=5)
    print(f"\n== mixture: {fit.message}")
    print(fit.summary().round(3).to_string())


if __name__ == "__main__":
    main()
