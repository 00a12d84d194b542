"""Two studies of maximum likelihood, every fit of a study in one vmapped program.

Covariate shift: MLE against likelihood weighted by target/source density (MLE Is All You Need for Well-Specified
Covariate Shift), for linear and logistic regression and phase retrieval, with the model right and wrong. Generative
against discriminative: naive Bayes against logistic regression by sample size (Revisiting Discriminative vs. Generative
Classifiers). Writes results/likelihood_studies.json and the two pictures of docs/standard-errors.md.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from common import write
from jax import lax, random

from estimax.estimators import MLE
from estimax.inference import curvature
from estimax.inference.solve import objective

IMAGES = Path(__file__).parents[1] / "docs" / "images"


def linear(x: Any, y: Any = None) -> None:
    b = numpyro.param("b", jnp.zeros(2))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(b[0] + b[1] * x, 0.5), obs=y)


def logistic(x: Any, y: Any = None) -> None:
    b = numpyro.param("b", jnp.full(2, 0.01))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Bernoulli(logits=b[0] + b[1] * x), obs=y)


def phase(x: Any, y: Any = None) -> None:
    """The square of a linear function, seen with noise: b and −b are alike."""
    b = numpyro.param("b", jnp.array([0.8, 0.8]))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal((b[0] + b[1] * x) ** 2, 0.5), obs=y)


SOURCE, TARGET = 0.0, 1.5  # means of x, both with unit variance
CASES = {
    # model, mean of y given x when it is right, and when it is wrong, as a function of x
    "linear": (linear, lambda x: 1 + x, lambda x: 1 + x + 0.5 * x**2),
    "logistic": (logistic, lambda x: 1 / (1 + np.exp(-x)), lambda x: 1 / (1 + np.exp(-(x - 0.6 * x**2)))),
    "phase retrieval": (phase, lambda x: (1 + x) ** 2, lambda x: (1 + x) ** 2 + 0.5 * x**3),
}
PREDICT = {
    "linear": lambda b, x: b[:, :1] + b[:, 1:] * x,
    "logistic": lambda b, x: 1 / (1 + np.exp(-(b[:, :1] + b[:, 1:] * x))),
    "phase retrieval": lambda b, x: (b[:, :1] + b[:, 1:] * x) ** 2,
}


@eqx.filter_jit
def fit_all(problem: Any, xs: jax.Array, ys: jax.Array, weights: jax.Array) -> jax.Array:
    """Parameter vectors of every data set."""

    def one(args: tuple) -> jax.Array:
        x, y, w = args
        changed = replace(problem, data={"x": x, "y": y}, weights=w)
        z0, f, _ = objective(changed)
        return curvature.newton(f, z0, max_steps=50)[0]

    return lax.map(one, (xs, ys, weights), batch_size=50)


def covariate_shift(sets: int, n: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    grid = rng.normal(TARGET, 1, 4000)
    out: dict[str, Any] = {}
    for name, (model, right, wrong) in CASES.items():
        for truth, mean in (("well specified", right), ("misspecified", wrong)):
            x = rng.normal(SOURCE, 1, (sets, n))
            y = rng.random((sets, n)) < mean(x) if name == "logistic" else mean(x) + 0.5 * rng.normal(size=(sets, n))
            ratio = np.exp((TARGET - SOURCE) * x - (TARGET**2 - SOURCE**2) / 2)  # of two unit normals
            with jax.enable_x64(True):
                arrays = [jnp.asarray(v, float) for v in (x, y, ratio)]
                problem = MLE().problem(random.key(0), model, None, {"x": arrays[0][0], "y": arrays[1][0]})
                plain = np.asarray(fit_all(problem, arrays[0], arrays[1], jnp.ones((sets, n))))
                weighted = np.asarray(fit_all(problem, *arrays))
            for label, b in (("MLE", plain), ("weighted MLE", weighted)):
                error = np.mean((PREDICT[name](b, grid) - mean(grid)) ** 2, axis=1)
                # medians would hide what a rare data set costs; means are what the theory is about
                out[f"{name}, {truth}, {label}"] = {"mean": error.mean(), "stderr": error.std() / np.sqrt(sets)}
    return out


def classifiers(repeats: int, sizes: tuple[int, ...]) -> dict[str, Any]:
    """Test error of both by training size: binary features that depend on each other given the class."""
    features = 20
    rng = np.random.default_rng(1)
    shift = rng.normal(0, 0.7, features)

    def draw(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        y = rng.integers(0, 2, n)
        common = rng.normal(size=(n, 1))  # what makes the features dependent: naive Bayes is wrong
        logits = (2 * y[:, None] - 1) * shift + 0.7 * common
        return (rng.random((n, features)) < 1 / (1 + np.exp(-logits))).astype(float), y

    x_test, y_test = draw(10_000, rng)

    def naive_bayes(x: Any, y: Any = None) -> None:
        p = numpyro.sample("p", dist.Beta(2.0, 2.0).expand([2, features]).to_event(2))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("x", dist.Bernoulli(p[y]).to_event(1), obs=x)

    def regression(x: Any, y: Any = None) -> None:
        b = numpyro.sample("b", dist.Normal(0.0, 3.0).expand([features + 1]).to_event(1))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Bernoulli(logits=b[0] + x @ b[1:]), obs=y)

    from estimax.estimators import MAP

    out: dict[str, Any] = {}
    for n in sizes:
        sets = [draw(n, rng) for _ in range(repeats)]
        xs, ys = np.stack([s[0] for s in sets]), np.stack([s[1] for s in sets])
        for label, model in (("naive Bayes", naive_bayes), ("logistic regression", regression)):
            with jax.enable_x64(True):
                first = {"x": jnp.asarray(xs[0]), "y": jnp.asarray(ys[0])}
                problem = MAP().problem(random.key(0), model, None, first)
                z = np.asarray(fit_all(problem, jnp.asarray(xs), jnp.asarray(ys), jnp.ones((repeats, 1))))
            if label == "naive Bayes":
                p = 1 / (1 + np.exp(-z.reshape(repeats, 2, features)))
                scores = [x_test @ np.log(q).T + (1 - x_test) @ np.log1p(-q).T for q in p]
                prior = np.log(np.stack([1 - ys.mean(1), ys.mean(1)], 1).clip(1e-9))
                predicted = np.stack([np.argmax(s + c, 1) for s, c in zip(scores, prior, strict=True)])
            else:
                predicted = (z[:, :1] + z[:, 1:] @ x_test.T) > 0
            error = np.mean(predicted != y_test, axis=1)
            out[f"{label}, n={n}"] = {"n": n, "mean": error.mean(), "stderr": error.std() / np.sqrt(repeats)}
    return out


def draw_shift(results: dict[str, Any]) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
    for axis, truth in zip(axes, ("well specified", "misspecified"), strict=True):
        for offset, label, colour in ((-0.12, "MLE", "C0"), (0.12, "weighted MLE", "C1")):
            rows = [results[f"{name}, {truth}, {label}"] for name in CASES]
            axis.errorbar(np.arange(len(CASES)) + offset, [r["mean"] for r in rows],
                          yerr=[2 * r["stderr"] for r in rows], fmt="o", color=colour, label=label,
                          capsize=3)  # fmt: skip
        axis.set(xticks=range(len(CASES)), xticklabels=list(CASES), yscale="log", title=truth)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("squared error of the mean on the target\n(± 2 s.e.)")
    axes[0].legend()
    figure.savefig(IMAGES / "covariate_shift.png", dpi=120)


def draw_classifiers(results: dict[str, Any]) -> None:
    figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for label in ("naive Bayes", "logistic regression"):
        rows = [r for name, r in results.items() if name.startswith(label)]
        axis.errorbar([r["n"] for r in rows], [100 * r["mean"] for r in rows],
                      yerr=[200 * r["stderr"] for r in rows], marker="o", label=label, capsize=3)  # fmt: skip
    axis.set(xscale="log", xlabel="training data", ylabel="test error, % (± 2 s.e.)")
    axis.legend()
    axis.grid(alpha=0.3)
    figure.savefig(IMAGES / "generative_discriminative.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few data sets, to see that it runs")
    quick = parser.parse_args().quick
    shift = covariate_shift(20 if quick else 400, 200)
    both = classifiers(5 if quick else 60, (20, 80) if quick else (15, 30, 60, 120, 250, 500, 1000, 3000))
    for results in (shift, both):
        for name, row in results.items():
            print(f"{name}: {row['mean']:.4f} ± {row['stderr']:.4f}")
    if not quick:
        draw_shift(shift)
        draw_classifiers(both)
        write("likelihood_studies", {"covariate_shift": shift, "classifiers": both})


if __name__ == "__main__":
    main()
