"""The pictures of README and docs.

python docs/make_figures.py            gradient_snr.png, under a minute
python docs/make_figures.py compare    eight_schools_*.png: what `estimax compare eight_schools` draws
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure

from estimax import estimators
from estimax.inference.cli import main as command_line
from estimax.inference.result import gradient_snr
from estimax.models import tight_bounds

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


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    if sys.argv[1:] not in ([], ["compare"]):
        raise SystemExit(__doc__)
    compare() if sys.argv[1:] else snr()
