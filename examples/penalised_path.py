"""Four penalised likelihoods, a few lines each: the model is yours, the penalty is an argument.

1. Lasso logistic regression along a path of strengths, the strength by cross-validation.
2. A sparse mixture of two experts: l1 on the experts' slopes.
3. Sparse proportional-odds regression of an ordinal grade.
4. A blurred image of counts made sharp again: Poisson likelihood, non-negative and piecewise constant along both axes.

    python examples/penalised_path.py [--quick] [--plot FILE.png]
"""

import argparse

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

import estimax
from estimax.estimators import MLE

RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 12))
USED = [0, 3]


def logistic(x, y):
    c = numpyro.param("c", 0.0)
    b = numpyro.param("b", jnp.zeros(x.shape[1]))
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", dist.Bernoulli(logits=c + x @ b), obs=y)


def experts(x, y):
    gate = numpyro.param("gate", jnp.array([0.0, 0.5]))
    b = numpyro.param("b", 0.1 * jnp.array([[1.0], [-1.0]]) * jnp.ones((2, x.shape[1])))
    sd = numpyro.param("sd", jnp.ones(2), constraint=constraints.positive)
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(logits=gate[0] + gate[1] * x[:, 0]))
        numpyro.sample("y", dist.Normal((x @ b.T)[jnp.arange(len(x)), z], sd[z]), obs=y)


def ordinal(x, y):
    cuts = numpyro.param("cuts", jnp.array([-1.0, 0.0, 1.0]), constraint=constraints.ordered_vector)
    b = numpyro.param("b", jnp.zeros(x.shape[1]))
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", dist.OrderedLogistic(x @ b, cuts), obs=y)


def blurred(counts, blur):
    n = len(counts)
    image = numpyro.param("image", jnp.full((n, n), jnp.mean(counts)))
    with numpyro.plate("column", n), numpyro.plate("row", n):
        numpyro.sample("counts", dist.Poisson(blur @ image @ blur.T + 0.1), obs=counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short path and the deblurring, to see that it runs")
    parser.add_argument("--plot", help="write the path's picture to this file")
    options = parser.parse_args()

    y = (1.5 * X[:, 0] - 1.0 * X[:, 3] + RNG.logistic(size=200) > 0).astype(float)
    data = {"x": X, "y": y}
    path = estimax.penalty_path(logistic, MLE(l1={"b": 1.0}), data, num_strengths=8 if options.quick else 30)
    print(f"== logistic path (columns {USED} have an effect)\n{path}")
    chosen = estimax.fit(logistic, path.estimator(path.one_se), data, progress_bar=False)
    print("chosen:", np.round(chosen.params["b"], 2))
    if options.plot:
        path.plot()[0].figure.savefig(options.plot, dpi=150, bbox_inches="tight")

    if not options.quick:
        upper = RNG.random(200) < 1 / (1 + np.exp(-2 * X[:, 0]))
        y = np.where(upper, 2 * X[:, 1], -2 * X[:, 2]) + 0.5 * RNG.normal(size=200)
        fit = estimax.fit(experts, MLE(l1={"b": 5.0}), {"x": X, "y": y}, num_restarts=5, progress_bar=False)
        print(f"\n== mixture of experts (column 1 in one, column 2 in the other): {fit.message}")
        print(np.round(fit.params["b"], 2))

        grade = np.digitize(1.5 * X[:, 0] - X[:, 3] + RNG.logistic(size=200), [-1.5, 0.0, 1.5])
        fit = estimax.fit(ordinal, MLE(l1={"b": 6.0}), {"x": X, "y": grade}, progress_bar=False)
        print(f"\n== ordinal regression (columns {USED}): {fit.message}")
        print(np.round(fit.params["b"], 2))

    n = 16 if options.quick else 32
    truth = np.zeros((n, n))
    truth[n // 4 : n // 2, n // 4 : 3 * n // 4], truth[n // 2 : 3 * n // 4, n // 2 : 5 * n // 8] = 30, 60
    blur = np.exp(-0.5 * ((np.arange(n)[:, None] - np.arange(n)) / (n / 20)) ** 2)
    blur /= blur.sum(1, keepdims=True)
    counts = RNG.poisson(blur @ truth @ blur.T + 0.1)
    penalty = MLE(fused={"image": (0.05, (0, 1))}, nonnegative=("image",))
    fit = estimax.fit(blurred, penalty, {"counts": counts, "blur": blur}, num_steps=3000, progress_bar=False)
    error = {
        name: np.sqrt(np.mean((v - truth) ** 2)) for name, v in (("blurred", counts), ("sharp", fit.params["image"]))
    }
    print(f"\n== deblurring: {fit.message}")
    print(f"root mean squared error: {error['blurred']:.2f} blurred, {error['sharp']:.2f} reconstructed")


if __name__ == "__main__":
    main()
