"""Partially observable Poisson GLM of spike trains: some neurons of a network are never recorded.

Li et al., "Forward chi^2 Divergence Based Variational Importance Sampling" (ICLR 2024), section 4.3, after Pillow and
Latham (2007). Neuron n fires s_{t,n} ~ Poisson(f_{t,n}) spikes in time bin t, with

    f_t = sigmoid(bias + weights c_t),    c_t = sum_{l=1..5} BASIS[l - 1] s_{t-l},

no spikes before the first bin. Of 5 neurons the first 3 are visible; the other 2 are discrete latents. Simulated after
the paper: weights and biases N(0, 0.1^2), bins of 50 ms, trials of 100 bins, 40 trials to train on and 20 to test.

Model and guide are made of one distribution, `SpikeTrain`: the spikes of one group of neurons when those of the other
group are given. In the model, hidden spikes are scored given the visible history and visible ones given the hidden
history; the product is the joint probability of all spikes. (A draw of the site "hidden" alone is therefore a draw with
the visible spikes held at their values, not a draw from a prior; `simulate` draws all neurons together.) The guide is
the paper's forward-self family: hidden spikes given visible and hidden history, with weights of its own.
"""

from __future__ import annotations

from itertools import permutations
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample
from scipy.special import gammaln

from .registry import Model

__all__ = [
    "BASIS",
    "MODEL",
    "SpikeTrain",
    "data",
    "draw_parameters",
    "filtered_history",
    "guide",
    "held_out",
    "model",
    "parameter_errors",
    "simulate",
    "test_set",
    "truth",
]

NUM_VISIBLE, NUM_HIDDEN = 3, 2
NUM_TRAIN, NUM_TEST, NUM_BINS = 40, 20, 100
BATCH_SIZE = 10
BIN_SECONDS, DECAY_PER_SECOND, WINDOW = 0.05, 5.0, 5


def _exponential_basis() -> np.ndarray:
    basis = np.exp(-DECAY_PER_SECOND * BIN_SECONDS * np.arange(1, WINDOW + 1))
    return basis / (BIN_SECONDS * basis.sum())


BASIS = _exponential_basis()
"""Weight of a spike 1..5 bins ago, (5,), in 1/s: an exponential decay (5 per second) that integrates to one."""

_LOG_FACTORIALS = gammaln(np.arange(1.0, 33.0))


def filtered_history(spikes, basis=BASIS) -> jax.Array:
    """c_t = sum_l basis[l - 1] spikes[t - l], zero before the start. `spikes` (..., T, n) -> (..., T, n)."""
    num_bins = spikes.shape[-2]
    pad = [(0, 0)] * (spikes.ndim - 2) + [(len(basis), 0), (0, 0)]
    padded = jnp.pad(spikes.astype(jnp.result_type(float)), pad)
    lags = range(1, len(basis) + 1)
    shifted = [jax.lax.slice_in_dim(padded, len(basis) - lag, len(basis) - lag + num_bins, axis=-2) for lag in lags]
    return sum(weight * past for weight, past in zip(basis.tolist(), shifted, strict=True))


class SpikeTrain(dist.Distribution):
    """Spike counts of n neurons over T bins, Poisson given their own past and a known drive.

    counts_t ~ Poisson(sigmoid(drive_t + self_weights c_t)), where c is `filtered_history(counts)`.

    :param drive: (*batch, T, n), bias plus the input of all other neurons.
    :param self_weights: (n, n), from column to row.

    `sample` walks through the bins; `log_prob` needs no walk, since the whole past is in `value`. Rates are below one,
    so a count is drawn by inverting the distribution function over 0..12; beyond lies a probability below 1e-10.
    """

    arg_constraints: ClassVar = {"drive": constraints.real_matrix, "self_weights": constraints.real_matrix}
    support = constraints.independent(constraints.nonnegative_integer, 2)
    MAX_COUNT = 12

    def __init__(self, drive, self_weights, *, validate_args=None):
        self.drive, self.self_weights = jnp.asarray(drive), jnp.asarray(self_weights)
        super().__init__(self.drive.shape[:-2], self.drive.shape[-2:], validate_args=validate_args)

    def sample(self, key, sample_shape=()):
        shape = sample_shape + self.batch_shape + self.event_shape
        dtype = jnp.result_type(self.drive, self.self_weights, float)
        basis, self_weights = jnp.asarray(BASIS, dtype), self.self_weights.astype(dtype)
        drive = jnp.moveaxis(self.drive.astype(dtype), -2, 0)  # time first, to be scanned over
        uniform = jnp.moveaxis(jax.random.uniform(key, shape, dtype), -2, 0)
        window = jnp.zeros((len(BASIS), *uniform.shape[1:]), dtype)  # the last bins, latest first

        def one_bin(window, inputs):
            drive, uniform = inputs
            history = jnp.tensordot(basis, window, axes=1)
            counts = _invert_poisson(uniform, jax.nn.sigmoid(drive + history @ self_weights.T), self.MAX_COUNT)
            return jnp.concatenate([counts[None], window[:-1]]), counts

        _, counts = jax.lax.scan(one_bin, window, (drive, uniform))
        return jnp.moveaxis(counts, 0, -2).astype(jnp.result_type(int))

    @validate_sample
    def log_prob(self, value):
        logit = self.drive + filtered_history(value) @ self.self_weights.T
        log_rate = jax.nn.log_sigmoid(logit)
        return jnp.sum(value * log_rate - jnp.exp(log_rate) - _log_factorial(value), axis=(-2, -1))


def _invert_poisson(uniform, rate, max_count: int) -> jax.Array:
    """Count with P(count <= k) = Poisson distribution function, for `uniform` in [0, 1); of the dtype of `rate`."""
    probability = jnp.exp(-rate)
    cumulative, counts = probability, jnp.zeros_like(rate)
    for k in range(1, max_count + 1):
        counts = counts + (uniform >= cumulative)
        probability = probability * (rate / k)
        cumulative = cumulative + probability
    return counts


def _log_factorial(count) -> jax.Array:
    """log(count!): a table below 32, Stirling's series (error below 1e-10) above; 3x faster than `gammaln`."""
    count = jnp.asarray(count)
    index = jnp.clip(count, 0, len(_LOG_FACTORIALS) - 1).astype(jnp.int32)
    n = jnp.maximum(count, 1).astype(jnp.result_type(float))
    stirling = (n + 0.5) * jnp.log(n) - n + 0.5 * np.log(2.0 * np.pi) + 1.0 / (12.0 * n) - 1.0 / (360.0 * n**3)
    return jnp.where(count < len(_LOG_FACTORIALS), jnp.asarray(_LOG_FACTORIALS)[index], stirling)


def model(x, batch_size=None, num_hidden=NUM_HIDDEN) -> None:
    """Joint law of hidden and visible spikes, in plate "trial". `x`: (trials, T, V) counts.

    Params, visible neurons first, both started at 0: weights (V + H, V + H), from column to row, and bias (V + H,).
    """
    num_visible = x.shape[-1]
    num_neurons = num_visible + num_hidden
    weights = numpyro.param("weights", jnp.zeros((num_neurons, num_neurons)))
    bias = numpyro.param("bias", jnp.zeros(num_neurons))
    to_visible, to_hidden = weights[:num_visible], weights[num_visible:]
    with numpyro.plate("trial", x.shape[0], subsample_size=batch_size):
        x = numpyro.subsample(x, event_dim=2)
        drive = bias[num_visible:] + filtered_history(x) @ to_hidden[:, :num_visible].T
        hidden = numpyro.sample("hidden", SpikeTrain(drive, to_hidden[:, num_visible:]))
        drive = bias[:num_visible] + filtered_history(hidden) @ to_visible[:, num_visible:].T
        numpyro.sample("visible", SpikeTrain(drive, to_visible[:, :num_visible]), obs=x)


def guide(x, batch_size=None, num_hidden=NUM_HIDDEN) -> None:
    """Forward-self: q(h_t | x_<t, h_<t) = Poisson, with params guide_weights (H, V + H) and guide_bias (H,), from 0."""
    num_visible = x.shape[-1]
    weights = numpyro.param("guide_weights", jnp.zeros((num_hidden, num_visible + num_hidden)))
    bias = numpyro.param("guide_bias", jnp.zeros(num_hidden))
    with numpyro.plate("trial", x.shape[0], subsample_size=batch_size):
        x = numpyro.subsample(x, event_dim=2)
        drive = bias + filtered_history(x) @ weights[:, :num_visible].T
        numpyro.sample("hidden", SpikeTrain(drive, weights[:, num_visible:]))


def draw_parameters(seed: int) -> dict[str, np.ndarray]:
    """A network as the paper draws them: weights (5, 5) and bias (5,), N(0, 0.1^2)."""
    rng = np.random.RandomState(seed)  # RandomState, not default_rng: its stream never changes between NumPy versions
    num_neurons = NUM_VISIBLE + NUM_HIDDEN
    return {
        "weights": 0.1 * rng.standard_normal((num_neurons, num_neurons)),
        "bias": 0.1 * rng.standard_normal(num_neurons),
    }


def simulate(params: dict[str, Any], num_trials: int, seed: int, num_bins: int = NUM_BINS) -> np.ndarray:
    """Spike counts of all neurons of a network, (num_trials, num_bins, neurons), int32."""
    rng = np.random.RandomState(seed)
    weights, bias = np.asarray(params["weights"], np.float64), np.asarray(params["bias"], np.float64)
    spikes = np.zeros((num_trials, WINDOW + num_bins, len(bias)), np.int32)
    for t in range(WINDOW, WINDOW + num_bins):
        history = np.einsum("l,iln->in", BASIS[::-1], spikes[:, t - WINDOW : t])
        spikes[:, t] = rng.poisson(1.0 / (1.0 + np.exp(-bias - history @ weights.T)))
    return spikes[:, WINDOW:]


def truth() -> dict[str, np.ndarray]:
    """The network that generated the data: weights (5, 5), bias (5,)."""
    return draw_parameters(seed=0)


def _spikes() -> np.ndarray:
    return simulate(truth(), NUM_TRAIN + NUM_TEST, seed=1)


def data() -> dict[str, Any]:
    """Visible spikes `x` (40, 100, 3), int32, of the training trials, and the paper's `batch_size`."""
    return {"x": _spikes()[:NUM_TRAIN, :, :NUM_VISIBLE], "batch_size": BATCH_SIZE}


def held_out() -> dict[str, Any]:
    """Visible spikes `x` (20, 100, 3), int32, of the test trials."""
    return {"x": test_set()[0]}


def test_set() -> tuple[np.ndarray, np.ndarray]:
    """Visible (20, 100, 3) and hidden (20, 100, 2) spikes of the test trials, int32."""
    spikes = _spikes()[NUM_TRAIN:]
    return spikes[:, :, :NUM_VISIBLE], spikes[:, :, NUM_VISIBLE:]


test_set.__test__ = False  # type: ignore[attr-defined]  # no test, whatever pytest makes of the name


def parameter_errors(params: dict[str, Any], truth: dict[str, Any], num_hidden: int = NUM_HIDDEN) -> dict[str, float]:
    """Mean absolute error of "weights" and of "bias", hidden neurons matched to the true ones.

    Hidden neurons have no names: of all their orders the one with the smallest error of the weights counts.
    """
    weights, bias = np.asarray(params["weights"]), np.asarray(params["bias"])
    num_visible = len(bias) - num_hidden
    candidates = []
    for order in permutations(range(num_visible, len(bias))):
        index = np.array([*range(num_visible), *order])
        weight_error = np.abs(weights[np.ix_(index, index)] - truth["weights"]).mean()
        bias_error = np.abs(bias[index] - truth["bias"]).mean()
        candidates.append({"weights": float(weight_error), "bias": float(bias_error)})
    return min(candidates, key=lambda errors: errors["weights"])


MODEL = Model(
    name="poglm",
    description="Poisson GLM of 5 spiking neurons of which 2 are hidden: discrete latents (simulated)",
    model=model,
    data=data,
    guide=guide,
    held_out=held_out,
    truth=truth,
    gradient="score",
    num_steps=500,
    learning_rate=0.01,
)
