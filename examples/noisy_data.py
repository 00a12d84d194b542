"""A denoiser from noisy data alone, as good as one that has seen clean data.

Trains a score network on noisy points of a mixture in the plane by Stein's unbiased risk estimate, and compares its
denoiser with the exact posterior mean, which is known here.

    python examples/noisy_data.py [--quick]

Needs diffrax (pip install 'estimax[flows]').
"""

import argparse

import jax
import numpy as np

import estimax
from estimax.estimators import SUREScore, sure
from estimax.models import diffusion_2d as plane
from estimax.models.diffusion import observed

NOISE_SD = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps, to see that it runs")
    quick = parser.parse_args().quick

    rng = np.random.default_rng(0)
    data, held_out = plane.data(), plane.held_out()["x"]
    noisy, new = (x + NOISE_SD * rng.normal(size=x.shape).astype(np.float32) for x in (data["x"], held_out))
    estimator = SUREScore(noise_sd=NOISE_SD)
    fit = estimax.fit(
        plane.model,
        estimator,
        {**data, "x": noisy},
        num_steps=300 if quick else 3000,
        learning_rate=0.003,
        progress_bar=False,
    )
    diffusion = observed(plane.model, fit.params, data)

    t = estimator.level(plane.PROCESS)  # the time at which the process has the noise of the data
    alpha, sigma = plane.PROCESS.alpha(t), plane.PROCESS.sigma(t)
    denoisers = {
        "none": lambda y: y,
        "learned": lambda y: diffusion.denoise(alpha * y, t),
        "exact posterior mean": lambda y: y + sigma**2 / alpha * plane.score(alpha * y, t),
    }
    print(f"squared error of denoisers of noise {NOISE_SD}, on {len(new)} new points, and what SURE says without x")
    for name, denoiser in denoisers.items():
        error = np.sum((np.asarray(denoiser(new)) - held_out) ** 2, 1)
        risk = np.asarray(sure(denoiser, new, NOISE_SD, jax.random.key(0)))
        print(f"{name:22} {error.mean():.3f}   SURE {risk.mean():.3f} ± {risk.std() / len(risk) ** 0.5:.3f}")


if __name__ == "__main__":
    main()
