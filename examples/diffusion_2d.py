"""A diffusion model whose truth is known: score, density and draws of a mixture in the plane.

Trains the score network by denoising, and says how far score and density are from the exact ones.

    python examples/diffusion_2d.py [--quick]

Needs diffrax (pip install 'estimax[flows]').
"""

import argparse

import jax
import numpy as np

import estimax
from estimax import estimators
from estimax.models import diffusion_2d as plane
from estimax.models.diffusion import observed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps, to see that it runs")
    quick = parser.parse_args().quick

    fit = estimax.fit(
        plane.model,
        estimators.DenoisingScoreMatching(),
        plane.data(),
        num_steps=300 if quick else 5000,
        learning_rate=0.003,
        progress_bar=False,
    )
    print(fit)
    diffusion = observed(plane.model, fit.params, plane.data())

    x = plane.held_out()["x"][: 200 if quick else 2000]
    gap = np.asarray(diffusion.log_prob(x) - plane.log_density(x))
    print(
        f"mean log-density of other points less the truth: {gap.mean():+.3f} ± {gap.std() / len(gap) ** 0.5:.3f} nats"
    )

    rng = np.random.default_rng(0)
    print("\nnoise level   relative error of the score")
    for t in (0.01, 0.05, 0.2, 0.6):
        alpha, sigma = plane.PROCESS.alpha(t), plane.PROCESS.sigma(t)
        noisy = np.asarray(alpha * x + sigma * rng.normal(size=x.shape).astype(np.float32))
        truth = np.asarray(plane.score(noisy, t))
        error = np.asarray(diffusion.score(noisy, t)) - truth
        print(f"{float(sigma):11.3f}   {np.sqrt(np.mean(error**2) / np.mean(truth**2)):.3f}")

    draws = np.asarray(diffusion.sample(jax.random.key(0), (500 if quick else 2000,)))
    nearest = np.linalg.norm(draws[:, None] - plane.CENTRES, axis=-1).argmin(1)
    shares = np.bincount(nearest, minlength=4) / len(draws)
    print(f"\nshares of the four modes: {shares.round(2)}, true {plane.WEIGHTS}")


if __name__ == "__main__":
    main()
