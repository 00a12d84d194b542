"""Pictures of estimators that see noisy data; run by ``python docs/make_figures.py noisy``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from matplotlib.figure import Figure
from numpyro.contrib.module import eqx_module

import estimax
from estimax.estimators import RecoveryLikelihood, SUREScore
from estimax.models import diffusion_2d, toys_2d
from estimax.models.diffusion import observed

IMAGES = Path(__file__).parent / "images"
BLUE, ORANGE = "#0072B2", "#D55E00"
NOISE_SD, NUM_NOISY = 0.3, 30_000
LADDER = (0.1, 0.3, 0.8, 2.0)


def posterior_mean(noisy: np.ndarray) -> np.ndarray:
    """E[clean | noisy] of two moons, by weights of half a million clean draws."""
    clean = toys_2d.two_moons(jax.random.key(7), 500_000)

    def one(y: Any) -> Any:
        weights = jax.nn.softmax(-0.5 * jnp.sum((y - clean) ** 2, 1) / NOISE_SD**2)
        return weights @ clean

    return np.asarray(jax.lax.map(one, jnp.asarray(noisy)))


def denoised(num_steps: int = 3000) -> None:
    rng = np.random.default_rng(0)
    clean = np.asarray(toys_2d.two_moons(jax.random.key(0), NUM_NOISY + 1000))
    noisy = (clean + NOISE_SD * rng.normal(size=clean.shape)).astype(np.float32)
    data = {**diffusion_2d.data(), "x": noisy[:NUM_NOISY]}
    estimator = SUREScore(noise_sd=NOISE_SD)
    fit = estimax.fit(diffusion_2d.model, estimator, data, num_steps=num_steps, learning_rate=3e-3, progress_bar=False)
    fitted = observed(diffusion_2d.model, fit.params, data)
    level = estimator.level(diffusion_2d.PROCESS)
    y, x = noisy[NUM_NOISY:], clean[NUM_NOISY:]
    panels = {
        "noisy data": y,
        "denoised by the learned score": np.asarray(fitted.denoise(diffusion_2d.PROCESS.alpha(level) * y, level)),
        "exact posterior mean": posterior_mean(y),
    }
    figure = Figure(figsize=(9.6, 3.0), layout="constrained")
    for axes, (name, points) in zip(figure.subplots(1, 3, sharex=True, sharey=True), panels.items(), strict=True):
        error = np.mean(np.sum((points - x) ** 2, 1))
        print(f"{name}: squared error {error:.4f}")
        axes.scatter(*x.T, s=2, color="0.85", linewidths=0)
        axes.scatter(*points.T, s=3, color=BLUE if name != "noisy data" else ORANGE, alpha=0.6, linewidths=0)
        axes.set_title(f"{name}\nsquared error {error:.3f}", fontsize=10)
        axes.set_aspect("equal")
    figure.savefig(IMAGES / "denoised_moons.png", dpi=90)


def with_level(x: Any, s: Any, batch_size: int | None = None) -> None:
    """Energy network that is told its noise level."""
    network = eqx.nn.MLP(3, "scalar", 64, 3, activation=jax.nn.silu, key=jax.random.key(0))
    energy = jax.vmap(eqx_module("energy", network))
    with numpyro.plate("data", x.shape[0], subsample_size=batch_size):
        x, s = numpyro.subsample(x, event_dim=1), numpyro.subsample(s, event_dim=0)
        told = jnp.concatenate([x / jnp.sqrt(1 + s[:, None] ** 2), jnp.log(s[:, None] + 0.05)], 1)
        numpyro.factor("log_density", -energy(told) - 0.5 * jnp.sum(x**2, 1) / (16.0 + s**2))


def ladder(num_steps: int = 2000) -> None:
    """Draws on their way down the ladder, level by level."""
    x = np.asarray(toys_2d.two_moons(jax.random.key(0), 2000))
    data = {"x": x, "s": np.zeros(len(x), np.float32), "batch_size": 500}
    fit = estimax.fit(
        with_level, RecoveryLikelihood(LADDER, level="s", steps=20, subsample=True), data,
        num_steps=num_steps, learning_rate=2e-3, progress_bar=False,
    )  # fmt: skip
    problem: Any = fit.problem
    levels = (0.0, *LADDER)
    rng = np.random.default_rng(1)
    draws = x.mean(0) + np.sqrt(x.var(0) + LADDER[-1] ** 2) * rng.normal(size=x.shape)
    shown = [draws]
    down = eqx.filter_jit(lambda *args: problem.recovered(*args))
    for i in range(len(LADDER), 0, -1):
        low, high = levels[i - 1], levels[i]
        wide = jnp.full(x.shape, np.sqrt(high**2 - low**2), jnp.float32)
        at = problem.at_level(problem.data, problem.rows.reshape(x.shape), jnp.full(len(x), low, jnp.float32))
        draws = down(
            fit.unconstrained, problem.memory, jax.random.key(i), at, jnp.asarray(draws, jnp.float32), wide,
            jnp.full(x.shape, low, jnp.float32), None,
        )["x"].reshape(x.shape)  # fmt: skip
        shown.append(draws)
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    axes = figure.subplots(2, len(levels))
    for column, (points, s) in enumerate(zip(shown, levels[::-1], strict=True)):
        exact = x + s * rng.normal(size=x.shape)
        for one, rows, colour in zip(axes[:, column], (exact, points), ("0.5", BLUE), strict=True):
            one.scatter(*np.asarray(rows)[:1000].T, s=2, color=colour, alpha=0.6, linewidths=0)
            one.set_xlim(exact[:, 0].min(), exact[:, 0].max())
            one.set_ylim(exact[:, 1].min(), exact[:, 1].max())
            one.set_aspect("equal")
        outside = np.mean(np.any(np.abs(np.asarray(points) - exact.mean(0)) > 1.5 * np.abs(exact).max(0), 1))
        print(f"noise {s}: share of draws far outside {outside:.4f}")
        axes[0, column].set_title(f"noise {s:g}" if s else "no noise", fontsize=10)
    for one, label in zip(axes[:, 0], ("data", "draws"), strict=True):
        one.set_ylabel(label)
    log_p = toys_2d.two_moons.log_prob
    print(f"median exact log-density of draws {np.median(log_p(shown[-1])):.3f}, of data {np.median(log_p(x)):.3f}")
    figure.savefig(IMAGES / "recovery_ladder.png", dpi=80)


def main() -> None:
    denoised()
    ladder()
