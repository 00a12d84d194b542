"""Tighter Variational Bounds are Not Necessarily Better, figure 1, and its mend by double reparameterisation.

The signal-to-noise ratio |mean| / sd of the φ-gradient of IWAE falls as K^-1/2 with the plain reparameterised gradient
(tighter bounds teach the guide less) and rises as K^1/2 with the doubly reparameterised one.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from estimax import estimators as es
from estimax.models import linear_gaussian_theta, tight_bounds


def moments(estimator, params, model, guide, x, num_draws, names, seed=0, batch=4_000_000):
    """Mean and variance of the gradient, over draws in batches that fit in memory."""
    size = max(1, min(num_draws, batch // (estimator.num_particles * x.size)))
    gradient = jax.vmap(lambda key: jax.grad(lambda p: estimator.loss(key, p, model, guide, x))(params))

    @jax.jit
    def sums(key):
        draws = gradient(jax.random.split(key, size))
        flat = jnp.concatenate([draws[n].reshape(size, -1) for n in names], 1)
        return jnp.mean(flat, 0), jnp.mean(flat**2, 0)

    repeats = -(-num_draws // size)
    parts = [sums(key) for key in jax.random.split(jax.random.key(seed), repeats)]
    first, second = (np.mean([np.asarray(p[i], np.float64) for p in parts], 0) for i in (0, 1))
    return first, second - first**2, size * repeats


def slope(counts, ratios):
    return np.polyfit(np.log(counts), np.log(ratios), 1)[0]


@pytest.mark.long
def test_the_papers_setting():
    """D = 20, parameters off the optimum by N(0, 0.01²), one datum; SNR over all entries of A and b together.

    Both gradients have the same mean. It is taken from the `dreg` draws: at SNR 0.003 the plain ones would need 10^7.
    """
    x = tight_bounds.data()["x"][:1]
    params = {n: jnp.asarray(v, jnp.float32) for n, v in tight_bounds.start(x).items()}
    counts, plain, double = (16, 128, 1024), [], []
    for count in counts:
        args = (params, tight_bounds.model, tight_bounds.guide, x, 300, ("A", "b"))
        mean, variance, num_draws = moments(es.IWAE(count, "dreg"), *args)
        _, plain_variance, _ = moments(es.IWAE(count, "reparam"), *args, seed=1)
        signal = np.sum(mean**2 - variance / num_draws)
        plain.append(np.sqrt(signal / plain_variance.sum()))
        double.append(np.sqrt(signal / variance.sum()))
    assert slope(counts, plain) == pytest.approx(-0.5, abs=0.15)
    assert slope(counts, double) == pytest.approx(0.5, abs=0.15)


@pytest.mark.slow
def test_in_one_dimension():
    """The same with every mean from its own draws: a guide 1.3 times too wide and 0.57 sd off."""
    x = np.array([1.0])
    params = {"theta": jnp.asarray(0.0), "loc": jnp.array([0.9]), "scale": jnp.array([1.3 * np.sqrt(0.5)])}
    counts, ratios = (8, 32, 128), {"reparam": [], "dreg": []}
    for gradient, num_draws in (("reparam", 60_000), ("dreg", 1_000)):
        for count in counts:
            args = (linear_gaussian_theta.model, linear_gaussian_theta.guide, x, num_draws, ("loc",))
            mean, variance, _ = moments(es.IWAE(count, gradient), params, *args)
            ratios[gradient].append(np.abs(mean[0]) / np.sqrt(variance[0]))
    assert slope(counts, ratios["reparam"]) == pytest.approx(-0.5, abs=0.15)  # 3 s.e.
    assert slope(counts, ratios["dreg"]) == pytest.approx(0.5, abs=0.15)
    assert np.array(ratios["reparam"]).min() * np.sqrt(60_000) > 4  # each mean is told from zero
