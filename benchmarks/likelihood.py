"""Speed of the likelihood family: MLE with standard errors, and a bootstrap, against statsmodels and scikit-learn.

Ratios of peer time over ours in one run, medians over alternating pairs. Needs statsmodels and scikit-learn.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from common import paired, seconds, write

import estimax
from estimax import estimators


def logistic(x: Any, y: Any = None) -> None:
    b = numpyro.sample("b", dist.Normal(0.0, 10.0).expand([x.shape[1]]).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Bernoulli(logits=x @ b), obs=y)


def simulated(n: int, d: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A logistic regression of n rows and d columns, the first of ones."""
    rng = np.random.default_rng(seed)
    x = np.column_stack([np.ones(n), rng.normal(size=(n, d - 1))])
    b = rng.normal(size=d) / np.sqrt(d)
    return {"x": x, "y": (rng.random(n) < 1 / (1 + np.exp(-x @ b))).astype(int)}


def regression(n: int, d: int, repeats: int) -> dict[str, Any]:
    """MLE with observed-information standard errors against statsmodels, and against scikit-learn's L-BFGS alone."""
    import statsmodels.api as sm
    from sklearn.linear_model import LogisticRegression

    data = simulated(n, d)

    def ours() -> Any:
        result = estimax.fit(logistic, estimators.MLE(), data, progress_bar=False)
        return result, result.covariance()

    def statsmodels_fit() -> Any:
        return sm.Logit(data["y"], data["x"]).fit(disp=0)  # its Newton, standard errors included

    def sklearn_fit() -> Any:
        # the objective divided by n, so its tolerance is one of the mean gradient
        return LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-6, max_iter=1000).fit(data["x"], data["y"])

    cold = seconds(ours)
    result, covariance = ours()
    peer = statsmodels_fit()
    out = {
        "n": n, "d": d, "first_fit_with_compilation_seconds": cold,
        "largest_difference_of_coefficients_in_se": float(
            np.max(np.abs(result.params["b"] - peer.params) / peer.bse)),
        "largest_relative_difference_of_standard_errors": float(np.max(np.abs(covariance.std_err / peer.bse - 1))),
        "statsmodels": paired(ours, statsmodels_fit, repeats),
        "sklearn_fit_alone": paired(ours, sklearn_fit, repeats),
    }  # fmt: skip
    print(f"logistic {n}x{d}: statsmodels/ours {out['statsmodels']['speed_ratio']:.2f}, "
          f"sklearn/ours {out['sklearn_fit_alone']['speed_ratio']:.2f}, cold {cold:.1f} s")  # fmt: skip
    return out


def bootstrap(n: int, d: int, replicates: int, loop: int) -> dict[str, Any]:
    """Replicates a second against a loop of statsmodels, with and without our compilation."""
    import statsmodels.api as sm

    data = simulated(n, d, seed=1)
    result = estimax.fit(logistic, estimators.MLE(), data, progress_bar=False)

    def ours(seed: int) -> float:
        began = time.perf_counter()
        result.covariance("bootstrap", num_replicates=replicates, seed=seed)
        return (time.perf_counter() - began) / replicates

    def theirs(seed: int) -> float:
        rng = np.random.default_rng(seed)
        began = time.perf_counter()
        for _ in range(loop):
            rows = rng.integers(0, n, n)
            sm.Logit(data["y"][rows], data["x"][rows]).fit(disp=0)
        return (time.perf_counter() - began) / loop

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiling = []
        for seed in range(5):
            jax.clear_caches()
            cold = ours(100 + seed)
            compiling.append(theirs(100 + seed) / cold)
        ratios = [theirs(seed) / ours(seed) for seed in range(1, 6)]
        out = {
            "n": n, "d": d, "replicates": replicates, "ratio_after_compilation": float(np.median(ratios)),
            "ratios": ratios, "ratio_with_compilation": float(np.median(compiling)), "compiling": compiling,
        }  # fmt: skip
    print(f"bootstrap {n}x{d}: {out['ratio_after_compilation']:.0f}x after compilation, "
          f"{out['ratio_with_compilation']:.1f}x with it")  # fmt: skip
    return out


def hidden_markov(steps: int) -> dict[str, Any]:
    """A Gaussian HMM's maximum likelihood against hmmlearn's EM, to the same log-likelihood."""
    from hmmlearn.hmm import GaussianHMM

    from estimax.models import hmm

    rng = np.random.default_rng(2)
    states = np.zeros(steps, int)
    for t in range(1, steps):
        states[t] = states[t - 1] if rng.random() < 0.95 else 1 - states[t - 1]
    y = np.where(states, 2.0, -1.0) + np.where(states, 1.0, 0.5) * rng.normal(size=steps)

    def model(y: Any = None) -> None:
        simplex = dist.constraints.simplex
        start = numpyro.param("start", jnp.full(2, 0.5), constraint=simplex)
        transition = numpyro.param("transition", jnp.array([[0.9, 0.1], [0.1, 0.9]]), constraint=simplex)
        loc = numpyro.param("loc", jnp.array([-0.5, 0.5]))
        scale = numpyro.param("scale", jnp.ones(2), constraint=dist.constraints.positive)
        chain = hmm.HiddenMarkov(jnp.log(start), jnp.log(transition), dist.Normal(loc, scale), num_steps=y.shape[0])
        numpyro.sample("y", chain, obs=y)

    def ours() -> Any:
        return estimax.fit(model, estimators.MLE(), {"y": y}, progress_bar=False, optimizer="lbfgs")

    def theirs(tolerance: float = 1e-2) -> Any:
        return GaussianHMM(2, tol=tolerance, n_iter=1000, random_state=0).fit(y[:, None])

    result, peer = ours(), theirs()
    out = {
        "steps": steps, "ours": -float(result.losses[-1]), "hmmlearn": float(peer.score(y[:, None])),
        "paired": paired(ours, theirs, 9),
    }  # fmt: skip
    print(f"HMM {steps}: hmmlearn/ours {out['paired']['speed_ratio']:.2f}, log-likelihoods {out['ours']:.2f} and "
          f"{out['hmmlearn']:.2f}")  # fmt: skip
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small data, to see that it runs")
    quick = parser.parse_args().quick
    results = {
        "regression": regression(2000 if quick else 100_000, 10 if quick else 50, 1 if quick else 9),
        "bootstrap": bootstrap(500, 10, 100 if quick else 1000, 10 if quick else 100),
        "hidden_markov": hidden_markov(2000 if quick else 100_000),
    }
    if not quick:
        write("likelihood", results)


if __name__ == "__main__":
    main()
