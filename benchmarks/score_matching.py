"""Cost of a step of score matching over one gradient of the log-density, against the dimension D of a unit.

The energy is a network of two hidden layers of 256 units, at 256 units of data. A step is the loss and its gradient in
the parameters; "one gradient" is the same of −Σ log p̃, which is what a step of maximum likelihood would cost if the
constant were known. Sliced: the same factor at every D without ½‖s‖², which a layer that reads x pays for. Explicit:
linear in D.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from common import least, write
from numpyro.contrib.module import eqx_module

from estimax.estimators import ScoreMatching

NUM_UNITS, WIDTH = 256, 256
DIMENSIONS = (4, 16, 64, 256, 1024)
MOST_EXPLICIT = 256


def energy(x: Any) -> None:
    network = eqx.nn.MLP(x.shape[1], "scalar", WIDTH, 2, activation=jax.nn.softplus, key=jax.random.key(0))
    network = eqx_module("energy", network)
    with numpyro.plate("data", x.shape[0]):
        numpyro.factor("log_density", -jax.vmap(network)(x))


def steps(problem: Any, count: int) -> Any:
    """`count` steps of loss and gradient in one compiled call, and `count` gradients of the log-density."""
    key = jax.random.key(0)

    def objective(params: Any, key: Any) -> Any:
        return problem.loss(params, key, problem.data)[0]

    def plain(params: Any, key: Any) -> Any:
        x, log_density, _ = problem.density(params, problem.data)
        return -jnp.sum(log_density(x))

    def many(f: Any) -> Any:
        @jax.jit
        def run(params: Any) -> Any:
            def body(params: Any, key: Any) -> Any:
                gradient = jax.grad(f)(params, key)
                return jax.tree.map(lambda p, g: p - 1e-9 * g, params, gradient), None

            return jax.lax.scan(body, params, jax.random.split(key, count))[0]

        return lambda: jax.block_until_ready(run(problem.params))

    return many(objective), many(plain)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small dimensions, to see that it runs")
    quick = parser.parse_args().quick
    began = time.perf_counter()
    rows = []
    for d in DIMENSIONS[: 2 if quick else None]:
        x = jnp.asarray(np.random.default_rng(0).normal(size=(NUM_UNITS, d)), jnp.float32)
        row: dict[str, Any] = {"dimension": d}
        for name, estimator in (
            ("sliced", ScoreMatching("sliced", redraw=True)),
            ("sliced, not variance-reduced", ScoreMatching("sliced", variance_reduced=False, redraw=True)),
            ("denoising", ScoreMatching("denoising", redraw=True)),
            ("explicit", ScoreMatching()),
        ):
            if name == "explicit" and d > MOST_EXPLICIT:
                continue
            problem = estimator.problem(jax.random.key(0), energy, None, {"x": x})
            ours, gradient = steps(problem, 3 if name == "explicit" and d > 64 else 10)
            ours(), gradient()
            took = least([ours, gradient], 3 if quick else 15)
            row[name] = {"over_one_gradient": float(took[0] / took[1]), "seconds": took[0], "gradient_seconds": took[1]}
        rows.append(row)
        print(d, {k: round(v["over_one_gradient"], 2) for k, v in row.items() if k != "dimension"}, flush=True)
    explicit = [(r["dimension"], r["explicit"]["over_one_gradient"]) for r in rows if "explicit" in r]
    slope = np.polyfit(*np.log(np.array(explicit)).T, 1)[0]
    results = {"rows": rows, "slope_of_explicit": slope, "seconds": time.perf_counter() - began}
    print(f"explicit grows as D^{slope:.2f}")
    if not quick:
        write("score_matching", results)


if __name__ == "__main__":
    main()
