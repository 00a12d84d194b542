"""Hidden Markov models with the states summed out: the distribution `HiddenMarkov`, and two models.

Likelihood, filter and posterior state probabilities are Baum's forward and backward recursions (`forward_backward`).

Sources: Rabiner, "A Tutorial on Hidden Markov Models and Selected Applications in Speech Recognition" (1989); Zucchini
and MacDonald, "Hidden Markov Models for Time Series" (2009); Särkkä and García-Fernández, "Temporal Parallelization of
Bayesian Smoothers" (2021).

Data: the flow of the Nile at Aswan, 1871-1970 (Cobb, "The Problem of the Nile", 1978; statsmodels); the number of
earthquakes of magnitude 7 or more in the world, 1900-2006 (US Geological Survey, as tabled by Zucchini and MacDonald).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array, lax
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.distributions.transforms import ExpTransform, OrderedTransform
from numpyro.distributions.util import validate_sample

from . import _statsmodels
from .forward_backward import FLOOR, expected, filtered, log_likelihood
from .registry import Model

__all__ = [
    "MODELS",
    "HiddenMarkov",
    "gaussian_data",
    "gaussian_hmm",
    "gaussian_start",
    "poisson_data",
    "poisson_hmm",
    "poisson_start",
    "stationary",
    "transition_matrix",
]


class HiddenMarkov(dist.Distribution):
    """Series y_1 .. y_T emitted by a Markov chain of K hidden states, with the states summed out.

    :param initial_logits: (*batch, K), log probabilities of the first state up to a constant.
    :param transition_logits: (*batch, K, K), row i the log probabilities of what follows state i, up to a constant.
        Minus infinity forbids a transition.
    :param emission: a distribution of batch shape (*batch, K), entry k what state k emits, of any event shape.
    :param num_steps: T.
    :param method: "scan", the forward recursion, in blocks of the series side by side for up to 4 states; "tree",
        products of K x K matrices in pairs, log2(T) vectorised steps, K^3 T operations and memory, longer to compile.
        None: "scan" on a CPU, and elsewhere "tree" for up to 8 states, because an accelerator waits between the steps
        of a recursion.

    The event shape is (T, *emission.event_shape).
    """

    arg_constraints: ClassVar[
        dict[str, Any]
    ] = {}  # logits may be minus infinity, which no constraint of NumPyro's allows
    pytree_data_fields = ("initial_logits", "transition_logits", "emission")
    pytree_aux_fields = ("num_steps", "method")

    def __init__(
        self,
        initial_logits: ArrayLike,
        transition_logits: ArrayLike,
        emission: dist.Distribution,
        *,
        num_steps: int,
        method: str | None = None,
        validate_args: bool | None = None,
    ) -> None:
        initial, transition = jnp.shape(initial_logits), jnp.shape(transition_logits)
        states = initial[-1] if initial else 0
        if not states or transition[-2:] != (states, states) or emission.batch_shape[-1:] != (states,):
            raise ValueError(
                f"HiddenMarkov needs initial_logits (..., K), transition_logits (..., K, K) and an emission of batch "
                f"shape (..., K); got {initial}, {transition} and {emission.batch_shape}"
            )
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}")
        if method not in (None, "scan", "tree"):
            raise ValueError(f"method must be 'scan', 'tree' or None, got {method!r}")
        self.initial_logits, self.transition_logits = jnp.asarray(initial_logits), jnp.asarray(transition_logits)
        self.emission, self.num_steps, self.method = emission, num_steps, method
        batch_shape = lax.broadcast_shapes(initial[:-1], transition[:-2], emission.batch_shape[:-1])
        super().__init__(batch_shape, (num_steps, *emission.event_shape), validate_args=validate_args)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        support = self.emission.support
        if any(jnp.ndim(leaf) for leaf in jax.tree.leaves(support)):
            # A support that moves with the state is no support of the series: the emission's log_prob must say so.
            return constraints.independent(constraints.real, self.event_dim)
        return constraints.independent(support, 1)

    @property
    def num_states(self) -> int:
        return self.initial_logits.shape[-1]

    @property
    def log_initial(self) -> Array:
        """(*batch, K), normalised."""
        return jnp.maximum(jax.nn.log_softmax(self.initial_logits), FLOOR)

    @property
    def log_transition(self) -> Array:
        """(*batch, K, K), rows normalised."""
        return jnp.maximum(jax.nn.log_softmax(self.transition_logits), FLOOR)

    def log_emission(self, value: ArrayLike) -> Array:
        """log p(y_t | state k), (T, ..., K): time first, as the recursions go."""
        value = jnp.asarray(value)
        value = jnp.broadcast_to(value, lax.broadcast_shapes(value.shape, self.batch_shape + self.event_shape))
        by_time = jnp.moveaxis(value, -self.event_dim, 0)
        return jnp.maximum(self.emission.log_prob(jnp.expand_dims(by_time, -self.event_dim)), FLOOR)

    @validate_sample
    def log_prob(self, value: ArrayLike) -> Array:
        log_emission = self.log_emission(value)
        accelerated = jax.default_backend() != "cpu" and self.num_states <= 8
        if (self.method or ("tree" if accelerated else "scan")) == "tree":
            total = _tree(self.log_initial, self.log_transition, log_emission)
        else:
            total = log_likelihood(self.log_initial, self.log_transition, log_emission)
        return jnp.where(total < 0.5 * FLOOR, -jnp.inf, total)

    def filter(self, value: ArrayLike) -> tuple[Array, Array]:
        """log p(state_t | y_1 .. y_t), (..., T, K), and log p(y_t | y_1 .. y_{t-1}), (..., T).

        The second adds up to `log_prob`, and is the pointwise likelihood by time.
        """
        states, increments = filtered(self.log_initial, self.log_transition, self.log_emission(value))
        return jnp.moveaxis(states, 0, -2), jnp.moveaxis(increments, 0, -1)

    def posterior_marginals(self, value: ArrayLike) -> Array:
        """p(state_t = k | y_1 .. y_T), (..., T, K)."""
        states = expected(self.log_initial, self.log_transition, self.log_emission(value))[1]
        return jnp.moveaxis(states, 0, -2)

    def expected_transitions(self, value: ArrayLike) -> Array:
        """Expected number of transitions i -> j given the series, (..., K, K): Baum and Welch's statistic."""
        return expected(self.log_initial, self.log_transition, self.log_emission(value))[2]

    def viterbi(self, value: ArrayLike) -> tuple[Array, Array]:
        """The most probable path of states, int32 (..., T), and its log joint density with the series, (...)."""
        log_emission = self.log_emission(value)
        log_transition = self.log_transition

        def forward(best: Array, log_emission: Array) -> tuple[Array, Array]:
            scores = best[..., :, None] + log_transition
            return jnp.max(scores, axis=-2) + log_emission, jnp.argmax(scores, axis=-2).astype(jnp.int32)

        best, previous = lax.scan(forward, self.log_initial + log_emission[0], log_emission[1:])
        last = jnp.argmax(best, axis=-1).astype(jnp.int32)

        def back(state: Array, previous: Array) -> tuple[Array, Array]:
            state = jnp.take_along_axis(previous, state[..., None], axis=-1)[..., 0]
            return state, state

        _, states = lax.scan(back, last, previous, reverse=True)
        return jnp.moveaxis(jnp.concatenate([states, last[None]]), 0, -1), jnp.max(best, axis=-1)

    def sample_states(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Paths of states from the chain, int32 (*sample_shape, *batch_shape, T)."""
        shape = (*sample_shape, *self.batch_shape)
        transition = jnp.broadcast_to(self.log_transition, (*shape, self.num_states, self.num_states))
        key_first, key_rest = jax.random.split(key)
        first = jax.random.categorical(key_first, jnp.broadcast_to(self.log_initial, (*shape, self.num_states)))

        def step(state: Array, key: Array) -> tuple[Array, Array]:
            row = jnp.take_along_axis(transition, state[..., None, None], axis=-2)[..., 0, :]
            state = jax.random.categorical(key, row).astype(state.dtype)
            return state, state

        _, rest = lax.scan(step, first, jax.random.split(key_rest, self.num_steps - 1))
        return jnp.moveaxis(jnp.concatenate([first[None], rest]), 0, -1).astype(jnp.int32)

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Array:
        assert key is not None
        key_states, key_emission = jax.random.split(key)
        states = self.sample_states(key_states, sample_shape)
        # Every state emits at every step, and the emission of the state that holds is kept.
        emission = self.emission.expand((*self.batch_shape, self.num_states))
        emitted = emission.sample(key_emission, (self.num_steps, *sample_shape))
        states = jnp.moveaxis(states, -1, 0)[(..., *(None,) * self.event_dim)]
        chosen = jnp.take_along_axis(emitted, states, axis=-self.event_dim)
        return jnp.moveaxis(jnp.squeeze(chosen, -self.event_dim), 0, -self.event_dim)


def _tree(log_initial: Array, log_transition: Array, log_emission: Array) -> Array:
    """log of the product of the matrices transition_ij emission_tj, neighbours multiplied in pairs. Returns (...)."""
    first = (log_initial + log_emission[0])[None, ..., None, :]
    rest = log_transition + log_emission[1:, ..., None, :]
    # The first factor is a row vector: the initial distribution, repeated as the rows of a matrix.
    first = jnp.broadcast_to(first, (1, *rest.shape[1:]))
    product = jnp.concatenate([first, rest])
    scale = jnp.zeros(product.shape[:-2], product.dtype)

    def normalised(product: Array, scale: Array) -> tuple[Array, Array]:
        # The largest entry of a product of n factors grows like n: kept apart, so that entries keep their digits.
        top = jnp.max(product, axis=(-2, -1))
        return jnp.maximum(product - top[..., None, None], FLOOR), scale + top

    product, scale = normalised(product, scale)
    while (length := product.shape[0]) > 1:
        even = length - length % 2
        left, right = product[0:even:2], product[1:even:2]
        pairs = logsumexp(left[..., :, :, None] + right[..., None, :, :], axis=-2)
        pairs, sums = normalised(pairs, scale[0:even:2] + scale[1:even:2])
        product, scale = jnp.concatenate([pairs, product[even:]]), jnp.concatenate([sums, scale[even:]])
    return logsumexp(product[0, ..., 0, :], axis=-1) + scale[0]


def stationary(transition: ArrayLike) -> Array:
    """The distribution (..., K) that a transition matrix (..., K, K) of an irreducible chain leaves as it is."""
    transition = jnp.asarray(transition)
    k = transition.shape[-1]
    # Rows of delta (I - P) = 0 and sum(delta) = 1 in one system (Zucchini and MacDonald, section 1.3).
    system = jnp.swapaxes(jnp.eye(k, dtype=transition.dtype) - transition + 1.0, -1, -2)
    return jnp.linalg.solve(system, jnp.ones((*transition.shape[:-2], k, 1), transition.dtype))[..., 0]


def transition_matrix(num_states: int, name: str = "transition", num_chains: int | None = None) -> Array:
    """Site `name`: rows of probabilities, (K, K) or (num_chains, K, K). Prior: Dirichlet, 4 more on the diagonal.

    States last: the prior's mean probability of staying is 5 / (4 + K).
    """
    concentration = jnp.ones((num_states, num_states)) + 4.0 * jnp.eye(num_states)
    if num_chains is not None:
        concentration = jnp.broadcast_to(concentration, (num_chains, num_states, num_states))
    return numpyro.sample(name, dist.Dirichlet(concentration).to_event(concentration.ndim - 1))


def _chain(num_states: int, stationary_start: bool) -> tuple[Array, Array]:
    """Log initial probabilities (K,) and log transition matrix (K, K), from sites transition and, if free, initial."""
    transition = transition_matrix(num_states)
    if stationary_start:
        initial = jnp.maximum(stationary(transition), jnp.finfo(transition.dtype).tiny)
    else:
        initial = numpyro.sample("initial", dist.Dirichlet(jnp.ones(num_states)))
    return jnp.log(initial), jnp.log(transition)


def _series(y: ArrayLike | None, num_series: int, num_steps: int | None) -> tuple[int, int]:
    if y is not None:
        if jnp.ndim(y) != 2:
            raise ValueError(f"y must have shape (series, steps), got {jnp.shape(y)}; one series is y[None]")
        return jnp.shape(y)[0], jnp.shape(y)[1]
    if num_steps is None:
        raise ValueError("without y the model needs num_steps")
    return num_series, num_steps


def gaussian_hmm(
    y: ArrayLike | None = None,
    num_states: int = 2,
    stationary_start: bool = True,
    num_series: int = 1,
    num_steps: int | None = None,
    method: str | None = None,
) -> None:
    """Series whose hidden state sets mean and standard deviation: y_t ~ N(mu_k, sigma_k^2), states summed out.

    `y`: (series, T), independent series in plate "data"; without it `num_series` and `num_steps` are used. Sites: mu
    (K,), increasing, sigma (K,), transition (K, K), and initial (K,) unless the chain starts in its stationary
    distribution (the default: from one series the likelihood puts a free initial distribution on the boundary). Priors
    follow mean and standard deviation of y. `method` as in `HiddenMarkov`.
    """
    shape = _series(y, num_series, num_steps)
    loc, unit = (0.0, 1.0) if y is None else (jnp.mean(jnp.asarray(y)), jnp.std(jnp.asarray(y)))
    start = jnp.full(num_states, jnp.log(unit)).at[0].set(loc - unit)
    width = jnp.ones(num_states).at[0].set(unit)
    ordered = dist.TransformedDistribution(dist.Normal(start, width).to_event(1), OrderedTransform())
    mu = numpyro.sample("mu", ordered)
    sigma = numpyro.sample("sigma", dist.LogNormal(jnp.log(0.5 * unit), 1.0).expand([num_states]).to_event(1))
    initial, transition = _chain(num_states, stationary_start)
    series = HiddenMarkov(initial, transition, dist.Normal(mu, sigma), num_steps=shape[1], method=method)
    with numpyro.plate("data", shape[0]):
        numpyro.sample("y", series, obs=y)


def poisson_hmm(
    y: ArrayLike | None = None,
    num_states: int = 2,
    stationary_start: bool = True,
    num_series: int = 1,
    num_steps: int | None = None,
    method: str | None = None,
) -> None:
    """Counts whose hidden state sets the rate: y_t ~ Poisson(rate_k), states summed out.

    `y`: (series, T) counts, independent series in plate "data"; without it `num_series` and `num_steps` are used.
    Sites: rate (K,), increasing, transition (K, K), and initial (K,) unless the chain starts in its stationary
    distribution. Prior: log of the first rate ~ N(log mean(y) - 1/2, 1), steps of log rate ~ LogNormal(-1, 1).
    """
    shape = _series(y, num_series, num_steps)
    loc = 0.0 if y is None else jnp.log(jnp.maximum(jnp.mean(jnp.asarray(y, jnp.result_type(float))), 0.1))
    start = jnp.full(num_states, -1.0).at[0].set(loc - 0.5)
    transforms = [OrderedTransform(), ExpTransform(constraints.ordered_vector)]
    rate = numpyro.sample("rate", dist.TransformedDistribution(dist.Normal(start, 1.0).to_event(1), transforms))
    initial, transition = _chain(num_states, stationary_start)
    series = HiddenMarkov(initial, transition, dist.Poisson(rate), num_steps=shape[1], method=method)
    with numpyro.plate("data", shape[0]):
        numpyro.sample("y", series, obs=y)


def _start(y: ArrayLike, num_states: int, stationary_start: bool) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Means of y in equal groups by size, and transitions that stay nine times in ten."""
    values = np.sort(np.asarray(y, np.float64).ravel())
    k = num_states
    means = np.array([group.mean() for group in np.array_split(values, k)])
    # Ties would put a start on the boundary of the ordered support.
    means = means + 1e-3 * max(values.std(), 1e-6) * np.arange(k)
    chain = {"transition": 0.9 * np.eye(k) + 0.1 * (1.0 - np.eye(k)) / (k - 1) if k > 1 else np.ones((1, 1))}
    return means, chain if stationary_start else {**chain, "initial": np.full(k, 1.0 / k)}


def gaussian_start(y: ArrayLike, num_states: int = 2, stationary_start: bool = True, **_: Any) -> dict[str, np.ndarray]:
    """Where a search for the maximum of `gaussian_hmm` may start, a value a site: from the quantiles of y."""
    means, chain = _start(y, num_states, stationary_start)
    return {"mu": means, "sigma": np.full(num_states, 0.5 * np.asarray(y, np.float64).std()), **chain}


def poisson_start(y: ArrayLike, num_states: int = 2, stationary_start: bool = True, **_: Any) -> dict[str, np.ndarray]:
    """Where a search for the maximum of `poisson_hmm` may start, a value a site: from the quantiles of y."""
    means, chain = _start(y, num_states, stationary_start)
    return {"rate": means + 0.1, **chain}


def gaussian_data() -> dict[str, Any]:
    """Flow of the Nile `y` (1, 100), 10^8 m^3 a year, 1871-1970; `num_states` 2."""
    return {"y": _statsmodels.load("nile")["volume"].to_numpy(np.float64)[None], "num_states": 2}


def poisson_data() -> dict[str, Any]:
    """Earthquakes a year `y` (1, 107), 1900-2006; `num_states` 3."""
    table = np.loadtxt(Path(__file__).parent / "data" / "earthquakes.csv", delimiter=",", skiprows=1, dtype=np.int32)
    return {"y": table[None, :, 1].copy(), "num_states": 3}


MODELS = (
    Model(
        name="gaussian_hmm",
        description="Hidden Markov model with 2 Gaussian states, flow of the Nile: 100 years",
        model=gaussian_hmm,
        data=gaussian_data,
    ),
    Model(
        name="poisson_hmm",
        description="Hidden Markov model with 3 Poisson states, earthquakes: 107 yearly counts",
        model=poisson_hmm,
        data=poisson_data,
    ),
)
