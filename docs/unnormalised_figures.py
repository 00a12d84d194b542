"""The pictures of docs/unnormalised.md; run by ``python docs/make_figures.py unnormalised``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from matplotlib.figure import Figure
from numpyro import handlers
from numpyro.infer.util import compute_log_probs
from scipy import stats

import estimax
from estimax.estimators import NCE, CompositionalMLE, moves
from estimax.inference import engine
from estimax.models import energy_network, toys_2d

IMAGES = Path(__file__).parent / "images"
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"


def asymptotic_variance(ratio: float, noise: Any) -> np.ndarray:
    """Of NCE for eta and k in exp(eta x − ½ k x²) at N(0, 1), times n (Noise-Contrastive Estimation, theorem 3)."""
    t = np.linspace(-12, 12, 4001)
    step = t[1] - t[0]
    g = np.stack([t, -0.5 * t**2, -np.ones_like(t)])
    p, q = stats.norm.pdf(t), noise.pdf(t)
    share = ratio * q / (p + ratio * q)
    inverse = np.linalg.inv((g * share * p) @ g.T * step)
    mean = (g * share * p).sum(1) * step
    return np.diag(inverse - (1 + 1 / ratio) * inverse @ np.outer(mean, mean) @ inverse)[:2]


def shifted(x: Any) -> None:
    mu = numpyro.param("mu", 0.0)
    with numpyro.plate("data", x.shape[0]):
        numpyro.factor("energy", -0.5 * (x - mu) ** 2)


def path(estimator: Any, x: np.ndarray, step_size: float, num_steps: int) -> np.ndarray:
    """Distance of the mean from that of the data, by step, from 10; NCE starts at the true constant."""
    problem = estimator.problem(jax.random.key(0), shifted, None, {"x": jnp.asarray(x, jnp.float32)})
    params = {**problem.params, "mu": jnp.array(10.0)}
    if "log_z" in params:
        params["log_z"] = jnp.array(0.5 * np.log(2 * np.pi), jnp.float32)
    optimizer = optax.sgd(step_size)
    state = engine.init(problem, optimizer, params, jax.random.key(1))
    step = lambda state, _: (engine.update(problem, optimizer, state)[0], state.params["mu"])  # noqa: E731
    return np.abs(np.asarray(jax.lax.scan(step, state, None, num_steps)[1]) - x.mean())


def methods() -> None:
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    ratios = np.logspace(-1, 2, 60)
    for sd, color in ((1.0, BLUE), (1.5, ORANGE), (4.0, GREEN)):
        efficiency = [np.array([1.0, 2.0]) / asymptotic_variance(r, stats.norm(0, sd)) for r in ratios]
        left.semilogx(ratios, np.array(efficiency)[:, 1], color=color, label=f"noise N(0, {sd:g}²)")
    left.axhline(1.0, color="0.4", linestyle=":", label="maximum likelihood")
    left.set_xlabel("draws of noise a datum")
    left.set_ylabel("relative efficiency, precision of N(0, 1)")
    left.set_title("NCE", fontsize=11)
    left.legend(fontsize=9)

    x = np.random.default_rng(4).normal(4.0, 1.0, 1000)
    noise = dist.Normal(0.0, 2.0)
    for estimator, name, color in (
        (CompositionalMLE(noise), "CompositionalMLE", BLUE),
        (NCE(noise, 1, redraw=True), "NCE", ORANGE),
    ):
        for step_size, style in ((1e-4, "-"), (1e-3, ":")):
            error = path(estimator, x, step_size, 1000)
            far = np.flatnonzero(error >= 0.25)
            print(f"{name}, step size {step_size:g}: farther than 0.25 for the last time at step {far[-1]}")
            right.loglog(np.arange(1, 1001), error, style, color=color, label=f"{name}, step size {step_size:g}")
    right.set_xlabel("steps")
    right.set_ylabel("distance from the mean of the data")
    right.set_ylim(5e-3, 10)
    right.set_title("The mean of a Gaussian from a far start", fontsize=11)
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.grid(color="0.9", linewidth=0.6)
    figure.savefig(IMAGES / "unnormalised_methods.png", dpi=110)


def toys(num_steps: int = 1000) -> None:
    """Exact density, learned density, and draws of the learned one by Metropolis-adjusted Langevin from a Gaussian."""
    figure = Figure(figsize=(9.6, 7.2), layout="constrained")
    grid_axes = figure.subplots(3, 4, sharex="col", sharey="col")
    for column, (name, toy) in enumerate(toys_2d.TOYS.items()):
        data = energy_network.data(name)
        reach = 1.25 * np.abs(data["x"]).max()
        fit = estimax.fit(
            energy_network.model, NCE(dist.Normal(jnp.zeros(2), 0.6 * reach).to_event(1), 4, subsample=True), data=data,
            num_steps=num_steps, learning_rate=5e-3, progress_bar=False,
        )  # fmt: skip
        params = {"energy$params": fit.params["energy$params"]}

        def learned(x: Any, params: Any = params) -> Any:
            model = handlers.substitute(handlers.seed(energy_network.model, 0), data=params)
            return compute_log_probs(model, (), {"x": x}, {}, sum_log_prob=False)[0]["log_density"]

        ticks = np.linspace(-reach, reach, 150)
        grid = np.stack(np.meshgrid(ticks, ticks), -1)
        found = np.asarray(jax.jit(learned)(grid.reshape(-1, 2)), np.float64).reshape(150, 150)
        area = (ticks[1] - ticks[0]) ** 2
        log_z = np.log(np.sum(np.exp(found)) * area)
        exact = np.asarray(toy.log_prob(grid), np.float64)
        divergence = np.sum(np.exp(exact) * (exact - found + log_z)) * area
        print(f"{name}: KL(exact ‖ learned) {divergence:.3f} nats; log Z by quadrature {log_z:.3f}, learned "
              f"{float(fit.params['log_z']):.3f}")  # fmt: skip
        start = 0.6 * reach * jax.random.normal(jax.random.key(1), (1500, 2))
        keys = jax.random.split(jax.random.key(2), 1000)
        move = lambda x, key, f=learned: (moves.langevin(f, x, key, jnp.array(0.15))[0], None)  # noqa: E731
        draws = np.asarray(jax.jit(lambda s, k, move=move: jax.lax.scan(move, s, k)[0])(start, keys))
        box = (-reach, reach, -reach, reach)
        top = np.exp(exact).max()
        grid_axes[0, column].imshow(np.exp(exact), origin="lower", extent=box, cmap="viridis", vmax=top)
        grid_axes[1, column].imshow(np.exp(found - log_z), origin="lower", extent=box, cmap="viridis", vmax=top)
        grid_axes[2, column].scatter(*draws.T, s=1, color=BLUE)
        grid_axes[2, column].set_aspect("equal")
        grid_axes[0, column].set_title(f"{name}\nKL {divergence:.2f} nats", fontsize=10)
    for row, label in enumerate(("exact density", "energy network", "its draws")):
        grid_axes[row, 0].set_ylabel(label)
    figure.savefig(IMAGES / "unnormalised_toys.png", dpi=100)


def main() -> None:
    methods()
    toys()


if __name__ == "__main__":
    main()
