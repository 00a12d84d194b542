"""A diffusion model of handwritten digits: draw new ones, and restore those of which a half is hidden.

    python examples/score_digits.py [--quick]

Needs diffrax and scikit-learn (pip install 'estimax[flows,models]').
"""

import argparse

import jax
import numpy as np

import estimax
from estimax import estimators
from estimax.models import score_digits
from estimax.models.diffusion import Diffusion, observed
from estimax.models.noise_process import VP


def lines(images: np.ndarray) -> str:
    """Images of 0..16, ``(n, 8, 8)``, side by side as characters."""
    shades = np.array(list(" .:-=+*#%"))[images // 2]
    return "\n".join("   ".join("".join(np.repeat(image[row], 2)) for image in shades) for row in range(8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps, to see that it runs")
    quick = parser.parse_args().quick

    data = score_digits.data()
    fit = estimax.fit(
        score_digits.model,
        estimators.DenoisingScoreMatching(),
        data,
        num_steps=100 if quick else 4000,
        learning_rate=0.002,
        progress_bar=False,
    )
    print(fit)
    network = observed(score_digits.model, fit.params, data).network
    diffusion = Diffusion(network, VP(), 64, trace="hutchinson", num_steps=50 if quick else 500)

    print("\ndrawn")
    print(lines(score_digits.grey_levels(np.asarray(diffusion.sample(jax.random.key(1), (5,))))))

    image = score_digits.held_out()["x"][3]
    upper = np.eye(64, dtype=np.float32)[:32]  # what is seen: the upper four rows
    restored = np.asarray(diffusion.sample_given(jax.random.key(2), upper @ image, upper, 0.1, (4,), derivative=False))
    print("\nan image, and four draws of it given its upper half")
    print(lines(score_digits.grey_levels(np.concatenate([image[None], restored]))))

    x = score_digits.held_out()["x"][: 10 if quick else 100]
    bits = score_digits.bits_per_pixel(np.asarray(diffusion.log_prob(x)))
    print(f"\nimages it has not seen: {bits:.2f} bits a pixel (uniform: {np.log2(17):.2f})")


if __name__ == "__main__":
    main()
