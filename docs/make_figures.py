"""The pictures of README and docs.

python docs/make_figures.py            gradient_snr.png, under a minute
python docs/make_figures.py compare    eight_schools_*.png: what `estimax compare eight_schools` draws
python docs/make_figures.py diffusion  diffusion_2d.png, langevin_start.png, score_targets.png: some minutes
python docs/make_figures.py gp         gp_scaling.png, gp_dimension.png: from benchmarks/results, seconds
python docs/make_figures.py unnormalised  unnormalised_methods.png, unnormalised_toys.png: two minutes
python docs/make_figures.py ebflow     ebflow_cost.png, from benchmarks/results/scores.json: seconds
python docs/make_figures.py vis_paper  vis_paper.png, from benchmarks/results/vis-paper.csv: seconds
python docs/make_figures.py noisy      denoised_moons.png, recovery_ladder.png: some minutes
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from estimax import estimators
from estimax.inference.cli import main as command_line
from estimax.inference.result import gradient_snr
from estimax.models import diffusion_2d, tight_bounds

IMAGES = Path(__file__).parent / "images"
PARTICLES = (1, 16, 128, 1024)
NUM_DRAWS = 300
STYLES = {"reparam": ("#0072B2", "o"), "dreg": ("#D55E00", "s")}


def snr() -> None:
    """Signal-to-noise ratio of the φ-gradient of IWAE against K, all entries of A and b together.

    The setting of Tighter Variational Bounds are Not Necessarily Better: D = 20, one datum, parameters off the optimum
    by N(0, 0.01²). Both gradients have the same mean; it is taken from the `dreg` draws, because at a ratio of 0.003
    the plain ones would need millions.
    """
    data = {"x": tight_bounds.data()["x"][:1]}
    signal, noise = [], {"dreg": [], "reparam": []}
    for num_particles in PARTICLES:
        for gradient, noises in noise.items():
            estimator = estimators.IWAE(num_particles=num_particles, gradient=gradient)
            problem = estimator.problem(jax.random.key(0), tight_bounds.model, tight_bounds.guide, data)
            drawn = gradient_snr(problem, problem.params, NUM_DRAWS)
            mean, sd = (np.concatenate([np.ravel(x["phi"][n]) for n in ("A", "b")]) for x in (drawn.mean, drawn.sd))
            noises.append(np.sqrt(np.sum(sd**2)))
            if gradient == "dreg":
                signal.append(np.sqrt(np.sum(mean**2 - sd**2 / NUM_DRAWS)))

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    counts = np.array(PARTICLES)
    late = counts >= 16
    for gradient, (color, marker) in STYLES.items():
        ratio = np.array(signal) / np.array(noise[gradient])
        slope = np.polyfit(np.log(counts[late]), np.log(ratio[late]), 1)[0]
        print(f"{gradient}: SNR {ratio.round(4)} at K = {PARTICLES}; slope from K = 16 on {slope:+.2f}")
        axes.loglog(counts, ratio, marker=marker, color=color, label=f'gradient="{gradient}", slope {slope:+.2f}')
        theory = ratio[late][0] * (counts[late] / 16.0) ** (-0.5 if gradient == "reparam" else 0.5)
        axes.loglog(counts[late], theory, color="0.4", linestyle=":", linewidth=1.3)
    axes.plot([], [], color="0.4", linestyle=":", label="slopes −½ and +½")
    axes.set_xlabel("particles K")
    axes.set_ylabel("signal-to-noise ratio of one gradient")
    axes.set_title("Gradient of IWAE in the guide's parameters", fontsize=11)
    axes.grid(color="0.9", linewidth=0.6)
    axes.legend(fontsize=9)
    figure.savefig(IMAGES / "gradient_snr.png", dpi=110)


def compare() -> None:
    """Pictures of the comparison that the README shows, as the command draws them."""
    with tempfile.TemporaryDirectory() as folder:
        command_line(["compare", "eight_schools", "--out", folder])
        for name in ("losses", "weights", "posterior"):
            shutil.copy(Path(folder) / f"{name}.png", IMAGES / f"eight_schools_{name}.png")


def diffusion() -> None:
    """The fitted diffusion of `models.diffusion_2d`, Langevin chains, and variances of the targets of a score."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    import scores  # its fits and its data

    _plane(scores.fitted_plane())
    _langevin(scores)
    _targets(scores.targets()["rows"])


def _plane(fitted: Any) -> None:
    plane = diffusion_2d
    figure = Figure(figsize=(12, 4), layout="constrained")
    field, path, error = figure.subplots(1, 3)
    grid = np.linspace(-2.4, 2.4, 61, dtype=np.float32)
    points = np.stack(np.meshgrid(grid, grid), -1)
    density = np.asarray(fitted.log_prob(points))
    image = field.contourf(grid, grid, np.maximum(density, -12), levels=np.arange(-12, 0.1, 1), cmap="Blues")
    exact = np.asarray(plane.log_density(points))
    field.contour(grid, grid, exact, levels=[-6, -4, -2], colors="0.2", linewidths=0.8, linestyles="--")
    figure.colorbar(image, ax=field, label="log-density, nats", shrink=0.85)
    coarse = points[::5, ::5]
    arrows = np.array(fitted.score(coarse, 0.1))
    arrows /= np.maximum(np.linalg.norm(arrows, axis=-1, keepdims=True), 1e-3) ** 0.6
    field.quiver(coarse[..., 0], coarse[..., 1], arrows[..., 0], arrows[..., 1], color="#D55E00", width=0.004)
    field.set_title("fitted density (dashed: exact) and score at t = 0.1", fontsize=10)

    z = jax.random.normal(jax.random.key(4), (40, 2))
    times = jax.numpy.linspace(1, plane.PROCESS.t_min, 400)
    step = (plane.PROCESS.t_min - 1) / 400

    def move(x: Any, t: Any) -> tuple[Any, Any]:
        x = x + step * fitted.velocity(x, t)
        return x, x

    lines = np.concatenate([np.asarray(z)[None], np.asarray(jax.lax.scan(move, z, times)[1])])
    path.plot(lines[..., 0], lines[..., 1], color="0.7", linewidth=0.6)
    draws = np.asarray(fitted.sample(jax.random.key(1), (1500,)))
    path.scatter(draws[:, 0], draws[:, 1], s=3, color="#0072B2", alpha=0.4, linewidths=0)
    path.scatter(lines[0, :, 0], lines[0, :, 1], s=12, facecolors="none", edgecolors="0.4", linewidths=0.7)
    path.set_title("1,500 draws; the ways of 40 from noise (circles)", fontsize=10)
    for axes in (field, path):
        axes.set_aspect("equal")
        axes.set_xlim(-2.4, 2.4)
        axes.set_ylim(-2.4, 2.4)

    rng, x = np.random.default_rng(0), plane.held_out()["x"]
    sigmas, errors, sizes = [], [], []
    for t in np.geomspace(0.001, 1, 20):
        alpha, sigma = float(plane.PROCESS.alpha(t)), float(plane.PROCESS.sigma(t))
        noisy = (alpha * x + sigma * rng.normal(size=x.shape)).astype(np.float32)
        truth = np.asarray(plane.score(noisy, t))
        sigmas.append(sigma)
        errors.append(np.sqrt(np.mean((np.asarray(fitted.score(noisy, t)) - truth) ** 2)))
        sizes.append(np.sqrt(np.mean(truth**2)))
    error.loglog(sigmas, sizes, color="0.4", linestyle=":", label="exact score")
    error.loglog(sigmas, errors, color="#D55E00", marker="o", markersize=3, label="error of the fitted one")
    error.set_xlabel("noise level σ(t)")
    error.set_ylabel("root mean square, per coordinate")
    error.grid(color="0.9", linewidth=0.6)
    error.legend(fontsize=9)
    error.set_title("error of the score by noise level", fontsize=10)
    figure.savefig(IMAGES / "diffusion_2d.png", dpi=110)


def _langevin(scores: Any) -> None:
    fitted = scores.fitted_vanilla()
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, (name, start) in zip(figure.subplots(1, 2), scores.langevin_starts(1000).items(), strict=True):
        x = np.asarray(fitted.langevin(jax.random.key(0), start, num_steps=500, step_size=0.01))
        shares = scores.mode_shares(x)
        axes.scatter(start[:, 0], start[:, 1], s=3, color="0.75", linewidths=0, label="start")
        axes.scatter(x[:, 0], x[:, 1], s=3, color="#0072B2", alpha=0.6, linewidths=0, label="after 500 steps")
        for centre, share, true in zip(scores.FAR, shares, scores.SHARES, strict=True):
            axes.annotate(f"{share:.2f} (true {true})", (centre[0], centre[1] + 2.3), ha="center", fontsize=9)
        axes.set_xlim(-12, 12)
        axes.set_ylim(-10, 12)
        axes.set_title(f"chains from {'the data' if name == 'data' else 'a wide normal distribution'}", fontsize=10)
        axes.legend(fontsize=8, loc="lower right")
    figure.savefig(IMAGES / "langevin_start.png", dpi=110)


def _targets(rows: list[dict[str, float]]) -> None:
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for name, color in (("denoising", "#0072B2"), ("clean", "#D55E00"), ("blend", "0.2")):
        label = {"denoising": "−ε/σ", "clean": "∇log p(x)/α", "blend": "their blend"}[name]
        axes.loglog([r["sigma"] for r in rows], [r[name] for r in rows], "o-", color=color, markersize=3, label=label)
    axes.set_xlabel("noise level σ(t)")
    axes.set_ylabel("variance about the exact score")
    axes.set_title("What a score network is regressed on: two normals on the line", fontsize=11)
    axes.grid(color="0.9", linewidth=0.6)
    axes.legend(fontsize=9)
    figure.savefig(IMAGES / "score_targets.png", dpi=110)


def unnormalised() -> None:
    """Efficiency of NCE, steps from a far start, and energy networks in the plane."""
    import unnormalised_figures

    unnormalised_figures.main()


def noisy() -> None:
    """A denoiser that never saw clean data, and draws down a ladder of noise levels."""
    import noisy_data_figures

    noisy_data_figures.main()


def ebflow() -> None:
    """Processor seconds a step by dimension, from the committed runs, with lines of the slopes D² and D³."""
    text = (Path(__file__).parents[1] / "benchmarks" / "results" / "scores.json").read_text(encoding="utf-8")
    rows = json.loads(text)["results"]["step_cost"]["rows"]
    sizes = np.array([row["D"] for row in rows])
    figure = Figure(figsize=(5.0, 3.4), layout="constrained")
    axes = figure.subplots()
    for name, label, power, color, mark in (
        ("likelihood", "MLE: determinants", 3, "#D55E00", "s"), ("score", "EBFlow: none", 2, "#0072B2", "o"),
    ):  # fmt: skip
        spent = 1e3 * np.array([row[f"{name}_seconds"] for row in rows])
        axes.loglog(sizes, spent, mark + "-", color=color, label=label)
        axes.loglog(sizes[-3:], spent[-1] * (sizes[-3:] / sizes[-1]) ** power, ":", color=color, label=f"slope {power}")
    axes.set_xlabel("dimension D")
    axes.set_ylabel("processor milliseconds a step")
    axes.set_xticks(sizes, [str(d) for d in sizes])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(IMAGES / "ebflow_cost.png", dpi=110)


def vis_paper() -> None:
    """From the committed runs: the figure of the suite's report."""
    import pandas as pd

    from estimax.inference.bench.vis_paper import figure

    runs = pd.read_csv(Path(__file__).parents[1] / "benchmarks" / "results" / "vis-paper.csv")
    figure(runs).savefig(IMAGES / "vis_paper.png", dpi=90)


def gaussian_processes() -> None:
    """Cost and dimension, from the result files."""
    import gp_figures

    gp_figures.main()


PICTURES = {
    "compare": compare,
    "diffusion": diffusion,
    "unnormalised": unnormalised,
    "noisy": noisy,
    "vis_paper": vis_paper,
    "ebflow": ebflow,
    "gp": gaussian_processes,
}

if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    if len(sys.argv) > 2 or not set(sys.argv[1:]) <= set(PICTURES):
        raise SystemExit(__doc__)
    PICTURES[sys.argv[1]]() if sys.argv[1:] else snr()
