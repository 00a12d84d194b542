"""A variational auto-encoder of handwritten digits: an amortised guide and a latent vector per image.

ELBO, IWAE and VIS train the same network; an honest importance-sampling estimate on held-out images compares them.

    python examples/vae_digits.py [--quick]

Needs scikit-learn for the images (pip install 'estimax[models]').
"""

import argparse
import dataclasses

import jax
import numpy as np
from numpyro import handlers
from scipy.special import logsumexp

import estimax
from estimax import estimators
from estimax.models import vae_digits


def held_out_evidence(result: estimax.FitResult, num_samples: int) -> float:
    """log p(x) per image that the fit has not seen, by importance sampling from the amortised guide."""
    posterior = dataclasses.replace(result.posterior, data=vae_digits.held_out())
    log_w = np.asarray(posterior.log_weights(jax.random.key(1), num_samples))  # (draws, images)
    return float((logsumexp(log_w, axis=0) - np.log(num_samples)).mean())


def generate(result: estimax.FitResult, num_images: int) -> list[str]:
    """Pixel probabilities of images drawn from the model, as lines of characters."""
    blank = np.zeros((num_images, vae_digits.NUM_PIXELS), np.int32)  # says how many images, nothing else
    model = handlers.substitute(handlers.seed(vae_digits.model, jax.random.key(2)), result.params)
    sites = handlers.trace(handlers.uncondition(model)).get_trace(x=blank)
    pixels = np.asarray(sites["x"]["fn"].mean).reshape(num_images, 8, 8)
    shades = np.array(list("  .:+#@"))[np.minimum((7 * pixels).astype(int), 6)]
    return ["   ".join("".join(np.repeat(image[row], 2)) for image in shades) for row in range(8)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps, to see that it runs")
    quick = parser.parse_args().quick
    num_steps, names = (50, ["IWAE"]) if quick else (1500, ["ELBO", "IWAE", "VIS"])

    print(f"{num_steps} steps of {vae_digits.BATCH_SIZE} images, 16 particles")
    print(f"{'estimator':10} {'held-out log p(x) per image':>28} {'seconds':>8}")
    for name in names:
        result = estimax.fit(
            vae_digits.model,
            getattr(estimators, name)(),
            vae_digits.data(),
            guide=vae_digits.guide,
            num_steps=num_steps,
            learning_rate=0.003,
            progress_bar=False,
        )
        print(f"{name:10} {held_out_evidence(result, 200):28.2f} {result.seconds:8.1f}")
    print(f"\nimages drawn from the {names[-1]} model")
    print("\n".join(generate(result, 6)))


if __name__ == "__main__":
    main()
