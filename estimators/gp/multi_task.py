"""Clusters of tasks that share mean processes: MagmaClust.

y_i | z_i = k ~ N(m_k + g_k, Ψ_i + σ²I) for tasks i on grids of their own, g_k ~ GP(0, c_k), z_i ~ Categorical(w). Mean
processes and labels have the variational posterior Π_k q(g_k) Π_i q(z_i), both of them in closed form given the other;
the bound at their fixed point is an exact loss of the hyper-parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax, random
from jax.scipy.special import logsumexp
from jax.tree_util import Partial
from numpyro import handlers
from numpyro.infer.initialization import init_to_uniform
from numpyro.primitives import Messenger

from .. import blocks
from ..base import Data, Estimator, Metrics, Params
from ..checks import check_counts
from . import calibration, linalg, view
from .clusters import (
    MAX_SWEEPS,
    Layout,
    Means,
    Stats,
    bound,
    converge,
    first_responsibilities,
    layout,
    means_given,
    sweep,
)
from .fixed_point import LIVE_SWEEPS, forwards
from .posterior import Conditional, FunctionPosterior
from .problem import Forecast, ProcessProblem, at_once, log_density
from .view import gram

ROWS = 64
"""Most rows predicted at once."""


@dataclass(frozen=True)
class MultiTaskGP(Estimator):
    """Cluster-specific multi-task Gaussian processes by variational EM: MagmaClust.

    The model has K latent processes over the rows' inputs (mean curves, in the order of the labels), one Categorical
    site of labels in a plate of tasks, and one observed process over ``X = (inputs, task)`` whose mean is
    ``jnp.stack(means)[label[task], row]`` and whose kernel is zero between tasks (`estimax.models.kernels.SameTask`).
    Hyper-parameters are shared, or of each cluster or task where the model has them so. The loss is −(evidence lower
    bound + log prior), with the closed-form posteriors of the mean processes on the distinct inputs (M of them,
    O(K M³)) and of labels at their fixed point (Cluster-Specific Predictions with Multi-Task Gaussian Processes). One
    cluster has no labels to sum out: its loss is the exact evidence.

    Args:
        num_clusters: K; None takes that of the model, a number must agree with it.
        num_starts: first responsibilities to try, of k-means on the tasks' values; every evaluation takes the best.

    Raises:
        ValueError: at `fit`, for a model that is not of this form, saying what is missing.
    """

    num_clusters: int | None = None
    num_starts: int = 4
    needs_guide = False
    exact = True

    def __post_init__(self) -> None:
        check_counts(num_starts=self.num_starts)
        if self.num_clusters is not None:
            check_counts(num_clusters=self.num_clusters)

    def problem(self, rng_key: Array, model: Callable, guide: Callable | None, data: Data) -> MultiTaskProblem:
        means, label = describe(model, dict(data), self.num_clusters)
        hyper = view.create(self, rng_key, Clustered(model), dict(data))
        seed = int(random.randint(random.fold_in(rng_key, 7), (), 0, 2**31 - 1))
        return MultiTaskProblem.create(self, hyper, model, means, label, dict(data), seed)


class _Clusters(Messenger):
    """Takes labels and mean processes out of a run, and gives them values."""

    def __init__(self, label: Array | int = 0, functions: Mapping[str, Array] | None = None) -> None:
        self.label, self.functions = label, {} if functions is None else functions
        self.means: dict[str, Any] = {}
        self.labels: dict[str, Any] = {}
        super().__init__()

    def process_message(self, msg: dict) -> None:
        if msg["type"] != "sample" or msg["is_observed"]:
            return
        name, fn = msg["name"], msg["fn"]
        if view.is_process(fn):
            self.means[name] = fn.gp
            msg["value"] = self.functions.get(name, fn.gp.mean)
        elif fn.support.is_discrete:
            self.labels[name] = fn
            msg["value"] = jnp.broadcast_to(jnp.asarray(self.label, int), fn.shape())
        else:
            return
        msg["type"] = "deterministic"


class Clustered(eqx.Module):
    """The model with every task in the first cluster and mean processes at their prior means: one observed process."""

    model: Callable

    def __call__(self, **data: Any) -> Any:
        with _Clusters():
            return self.model(**data)


class _Probe:
    """A model at given labels and mean processes that reports both; lives within one trace."""

    def __init__(self, model: Callable, label: Array | int, functions: Mapping[str, Array] | None) -> None:
        self.model = model
        self.found = _Clusters(label, functions)

    def __call__(self, **data: Any) -> Any:
        with self.found:
            return self.model(**data)


FORM = (
    "MultiTaskGP needs K latent processes over the rows (mean curves), one Categorical site in a plate of tasks, and "
    "one observed process over X = (inputs, task) with mean jnp.stack(means)[label[task], row]"
)


def describe(model: Callable, data: Data, num_clusters: int | None) -> tuple[tuple[str, ...], str]:
    """Names of the mean processes, in their order, and of the labels.

    Raises:
        ValueError: a model of another form.
    """
    found: dict[str, Any] = {}

    def run(key: Array) -> Array:
        probe = _Probe(model, 0, None)
        seeded = handlers.substitute(handlers.seed(probe, key), substitute_fn=init_to_uniform)
        tr = handlers.trace(seeded).get_trace(**data)
        found["observed"] = [
            n for n, s in tr.items() if s["type"] == "sample" and s["is_observed"] and view.is_process(s["fn"])
        ]
        found["means"] = tuple(probe.found.means)
        sizes = {n: _support(fn) for n, fn in probe.found.labels.items()}
        found["labels"] = {n: (fn.shape(), sizes[n]) for n, fn in probe.found.labels.items()}
        return jnp.zeros(())

    jax.eval_shape(run, random.key(0))
    means, labels, observed = found["means"], found["labels"], found["observed"]
    if len(observed) != 1 or not means or len(labels) != 1:
        raise ValueError(
            f"{FORM}; this one has {len(means)} latent and {len(observed)} observed processes and {len(labels)} "
            "discrete latent sites"
        )
    ((label, (shape, size)),) = labels.items()
    if len(shape) != 1:
        raise ValueError(f"site {label!r} has shape {shape}, it must have one label a task: put it in a plate of tasks")
    if size != len(means):
        raise ValueError(
            f"site {label!r} has {size} values, and there are {len(means)} latent processes: one a cluster"
        )
    if num_clusters not in (None, size):
        raise ValueError(
            f"num_clusters is {num_clusters}, the model has {size} clusters: give the model as many, or None"
        )
    return means, label


def _support(fn: Any) -> int:
    try:
        return fn.enumerate_support(expand=False).shape[0]
    except NotImplementedError:
        return -1


class MixtureForecast(Forecast):
    """Moments of new observations, and the mixture over clusters that they come from."""

    log_weights: Array
    """Of the clusters for the task of each row, ``(n, K)``."""
    means: Array
    """Of each component, ``(n, K)``."""
    variances: Array
    """``(n, K)``"""


class _Draws(NamedTuple):
    q: Means
    roots: Array
    log_r: Array
    stats: Stats
    prior_means: Array
    """``(K, n)``"""


class _Reading(NamedTuple):
    """The model at given labels."""

    kernel: Any
    X: Any
    mean: Array
    """Prior mean of the observations, ``(n,)``."""
    noise: Array
    y: Array
    means: dict[str, Any]
    """tinygp's processes of the mean curves."""
    label: Any
    """The distribution of the labels."""
    log_prior: Array


class MultiTaskProblem(ProcessProblem):
    """−(evidence lower bound + log prior of the hyper-parameters)."""

    model: Callable
    means: tuple[str, ...] = eqx.field(static=True)
    label: str = eqx.field(static=True)
    layout: Layout
    starts: Array
    """First responsibilities, ``(starts, N, K)``."""
    live: int = eqx.field(static=True, default=0)
    """Sweeps that derivatives go through: none while solving, where the fixed point gives the exact gradient."""

    @classmethod
    def create(
        cls, options: MultiTaskGP, hyper: view.Hyper, model: Callable, means: tuple[str, ...], label: str,
        data: dict[str, Any], seed: int,
    ) -> MultiTaskProblem:  # fmt: skip
        """Sort the rows and try partitions.

        Raises:
            ValueError: inputs without tasks, task numbers outside of the plate, or a model of another form.
        """
        nothing = layout(np.zeros(1), np.zeros(1, int), 1)
        empty = cls(options=options, hyper=hyper, params=hyper.rest.params, data=data, model=model, means=means,
                    label=label, layout=nothing, starts=jnp.ones((1, 1, 1)))  # fmt: skip
        facts: dict[str, Any] = {n: v if isinstance(v, int) else np.asarray(v) for n, v in _facts(empty).items()}
        _check(facts, hyper.observed[0], means, label)
        parts = layout(facts["inputs"], facts["task"], facts["num_tasks"])
        residual = facts["residual"]
        starts = first_responsibilities(facts["inputs"], residual, parts, len(means), options.num_starts, seed)
        return replace(empty, layout=parts, starts=jnp.asarray(starts, residual.dtype))

    @property
    def num_clusters(self) -> int:
        return len(self.means)

    @property
    def site(self) -> str:
        """The observed process."""
        return self.hyper.observed[0]

    @property
    def batch(self) -> int:
        M, (N, L) = len(self.layout.first), self.layout.rows.shape
        return at_once(1e7 // (len(self.starts) * self.num_clusters * (M * M + N * L * L)))

    def finish(self, params: Params) -> MultiTaskProblem:
        return replace(self, live=LIVE_SWEEPS)

    def reading(self, params: Params, data: Data, label: Any, functions: Mapping[str, Array] | None = None) -> _Reading:
        """The model with all tasks in one cluster (a number), or with a label a task."""
        probe = _Probe(self.model, label, functions)
        read = replace(self.hyper, model=probe).read(params, data)
        process, y = read.observed[self.site]
        (fn,) = probe.found.labels.values()
        X = jax.tree.map(jnp.asarray, process.X)
        return _Reading(process.kernel, X, process.mean, process.noise, y, probe.found.means, fn, read.log_prior)

    def log_prior_labels(self, fn: Any) -> Array:
        """``(N, K)``"""
        support = fn.enumerate_support(expand=False)
        return jnp.stack([fn.log_prob(jnp.broadcast_to(v, fn.shape())) for v in support.reshape(-1)], 1)

    def nuggets(self, reading: _Reading) -> Array:
        """Variances that each mean process adds at each row by itself, ``(K, n)``."""
        processes = (reading.means[n] for n in self.means)
        return jnp.stack([jnp.broadcast_to(gp.noise.diagonal(), gp.mean.shape) for gp in processes])

    def stats(self, params: Params, data: Data) -> Stats:
        return _stats(self, params, data)

    def prior(self, reading: _Reading) -> Array:
        """Covariances of the mean processes at the distinct inputs, ``(K, M, M)``."""
        processes = [reading.means[n] for n in self.means]
        inputs = [_rows(gp.X, self.layout.first) for gp in processes]
        return jnp.stack([gp.kernel(X, X) for gp, X in zip(processes, inputs, strict=True)])

    def log_responsibilities(self, stats: Stats) -> Array:
        """At the best of the fixed points, ``(N, K)``; derivatives are carried through `live` more sweeps."""
        fixed = lax.stop_gradient(stats)
        found, values = jax.vmap(lambda s: converge(fixed, s))(self.starts)
        best = lax.stop_gradient(found[jnp.nanargmax(values)])
        if not self.live:
            return best
        return lax.scan(lambda r, _: (sweep(stats, r), None), best, length=self.live)[0]

    def objective(self, params: Params, data: Data) -> Array:
        stats = self.stats(params, data)
        return bound(stats, self.log_responsibilities(stats))

    def loss(self, params: Params, rng_key: Array, data: Data) -> tuple[Array, Metrics]:
        stats = self.stats(params, data)
        way: Callable = Partial(MultiTaskProblem.log_responsibilities, self)
        return -(bound(stats, forwards(stats, way) if self.live else way(stats)) + stats.log_prior), {}

    def responsibilities(self, params: Params) -> np.ndarray:
        """q(z_i = k), ``(tasks, K)``, in the precision of the fit."""
        with jax.enable_x64(self.starts.dtype == np.float64):
            return np.asarray(_responsibilities(self, params))

    def functions(self, params: Params) -> dict[str, FunctionPosterior]:
        """Mean processes less their prior means, by site."""
        stats = self.stats(params, self.data)
        q = means_given(stats, jnp.exp(self.log_responsibilities(stats)))
        return dict(self._posteriors(self.reading(params, self.data, 0), q))

    def _posteriors(self, reading: _Reading, q: Means) -> dict[str, Conditional]:
        out = {}
        for k, name in enumerate(self.means):
            gp, P = reading.means[name], q.precision[k]
            X = _rows(gp.X, self.layout.first)
            out[name] = Conditional(gp.kernel, X, q.shift[k] - P @ q.mean[k], P - P @ q.covariance[k] @ P)
        return out

    def forecast(self, params: Params, data: Data, context: Data | None = None) -> MixtureForecast:
        """Predictive mixtures at the rows of other data (what is observed there does not matter).

        Tasks that were there in the fit are known by their numbers, and predicted from all data. Others are new: they
        have the average weights of clusters, or, given observations of theirs in `context`, weights and curves
        conditioned on them.

        Args:
            context: arguments of the model that hold observed rows of new tasks, numbered as in `data`; the rows of
                known tasks there are ignored. Every row predicted is conditioned on it at O(rows³) cost.
        """
        stats = self.stats(params, self.data)
        log_r = self.log_responsibilities(stats)
        q = means_given(stats, jnp.exp(log_r))
        train = self.reading(params, self.data, 0)
        posteriors = self._posteriors(train, q)
        zero = self.reading(params, data, 0)
        task = self._known_or_new(zero.X[1])
        fresh = task >= self.layout.num_tasks
        known = jnp.minimum(task, self.layout.num_tasks - 1)
        average = logsumexp(jax.nn.log_softmax(stats.log_weights, 1), 0) - jnp.log(self.layout.num_tasks)
        log_w = jnp.where(fresh[:, None], average, log_r[known])
        rows, mask = self.layout.rows[known], self.layout.mask[known] & ~fresh[:, None]
        mean, variance, _ = self._components(params, data, self.data, posteriors, rows, mask, update=False)
        if context is not None:
            other = self.reading(params, context, 0).X[1]
            rows = jnp.broadcast_to(jnp.arange(len(other)), (len(task), len(other)))
            mask = (other == task[:, None]) & fresh[:, None]
            mean1, variance1, gain = self._components(params, data, context, posteriors, rows, mask, update=True)
            mean = jnp.where(fresh[:, None], mean1, mean)
            variance = jnp.where(fresh[:, None], variance1, variance)
            log_w = jnp.where(fresh[:, None], jax.nn.log_softmax(log_w + gain, 1), log_w)
        w = jnp.exp(log_w)
        total = jnp.sum(w * mean, 1)
        spread = jnp.sum(w * (variance + (mean - total[:, None]) ** 2), 1)
        curves = {n: p.marginals(zero.means[n].X) for n, p in posteriors.items()}
        return MixtureForecast(
            mean=total, variance=spread,
            function_mean={n: zero.means[n].mean + m for n, (m, _) in curves.items()},
            function_variance={n: v for n, (_, v) in curves.items()},
            log_weights=log_w, means=mean, variances=variance,
        )  # fmt: skip

    def _known_or_new(self, task: Array) -> Array:
        """Task numbers; an error, when it runs, where new tasks would need hyper-parameters of their own."""
        N = self.layout.num_tasks
        own = [n for n, v in self.hyper.rest.params.items() if N in jnp.shape(v)] if self.num_clusters != N else []
        if not own:
            return task
        return eqx.error_if(task, jnp.any(task >= N), f"new tasks have no {own[0]!r}, which every task of the fit has")

    def _components(
        self, params: Params, data: Data, source: Data, posteriors: dict[str, Conditional], rows: Array, mask: Array,
        update: bool,
    ) -> tuple[Array, Array, Array]:  # fmt: skip
        """Mean and variance of new observations in each cluster given rows of their own task, ``(n, K)`` each.

        Args:
            rows, mask: of `source`, observed in the task of each row of `data`, ``(n, L)``.
            update: whether these are news to the posterior of the mean processes; their log-density is then the third
                thing returned.
        """
        zero, source_zero = self.reading(params, data, 0), self.reading(params, source, 0)

        def curves(args: tuple) -> tuple[Array, Array]:
            """The mean processes at the rows given and the new one, ``(K, L + 1)``, and their covariances."""
            row, given, there = args
            moments = []
            for name in self.means:
                old, new = source_zero.means[name].X, zero.means[name].X
                X = jax.tree.map(
                    lambda a, b: jnp.concatenate([jnp.asarray(a)[given], jnp.asarray(b)[row][None]]), old, new
                )
                m, V = posteriors[name].joint(X)
                keep = jnp.append(there, True)
                moments.append((jnp.where(keep, m, 0.0), jnp.where(keep[:, None] & keep, V, 0.0)))
            return jax.tree.map(lambda *x: jnp.stack(x), *moments)

        index = jnp.arange(len(rows))
        size = blocks.size_of(len(rows), ROWS)
        means, covariances = blocks.apply(jax.vmap(curves), (index, rows, mask), size)

        def cluster(k: Array, m: Array, V: Array, nugget: Array, source_nugget: Array) -> tuple[Array, Array, Array]:
            here, there = self.reading(params, data, k), self.reading(params, source, k)
            here = here._replace(noise=here.noise + nugget)
            there = there._replace(noise=there.noise + source_nugget)
            one = lambda args: _component(here, there, *args, update=update)  # noqa: E731
            return blocks.apply(jax.vmap(one), (index, rows, mask, m, V), size)

        each = jax.vmap(cluster, in_axes=(0, 1, 1, 0, 0), out_axes=1)
        return each(jnp.arange(self.num_clusters), means, covariances, self.nuggets(zero), self.nuggets(source_zero))

    def predictive_log_density(self, params: Params, data: Data, context: Data | None = None) -> Array:
        """log p(y) of every row of other data under its mixture, ``(n,)``."""
        found = self.forecast(params, data, context)
        y = self.reading(params, data, 0).y
        return logsumexp(found.log_weights + log_density(y[:, None], found.means, found.variances), 1)

    def marginal_draws(self, params: Params, rng_key: Array, data: Data, num: int) -> Array:
        """Draws of each new observation by itself, ``(num, n)``."""
        found = self.forecast(params, data)
        pick, noise = random.split(rng_key)
        k = random.categorical(pick, found.log_weights, shape=(num, len(found.mean)))
        take = lambda x: jnp.take_along_axis(x, k.T, 1).T  # noqa: E731
        return take(found.means) + jnp.sqrt(take(found.variances)) * random.normal(noise, k.shape)

    def check(self, params: Params, rng_key: Array, num: int) -> calibration.Check:
        """Of every row given all, its own among them."""
        found = self.predictive_log_density(params, self.data)
        return calibration.Check(
            found, self.reading(params, self.data, 0).y, self.marginal_draws(params, rng_key, self.data, num)
        )

    def simulate(self, params: Params, rng_key: Array, data: Data, num: int) -> dict[str, Array]:
        """Joint draws of new observations at the rows of other data, and of the mean processes, ``(num, n)`` each."""
        stats = self.stats(params, self.data)
        log_r = self.log_responsibilities(stats)
        train = self.reading(params, self.data, 0)
        posteriors = self._posteriors(train, means_given(stats, jnp.exp(log_r)))
        zero = self.reading(params, data, 0)
        task, N, n = self._known_or_new(zero.X[1]), self.layout.num_tasks, len(self.layout.task)
        average = logsumexp(jax.nn.log_softmax(stats.log_weights, 1), 0) - jnp.log(N)
        log_w = jnp.where((task >= N)[:, None], average, log_r[jnp.minimum(task, N - 1)])
        pieces = [_dense(self, params, data, k, posteriors[name]) for k, name in enumerate(self.means)]

        def one(key: Array) -> dict[str, Array]:
            keys = random.split(key, len(pieces) + 2)
            # a label a task: the same noise for all its rows
            noise = jax.vmap(lambda i: random.gumbel(random.fold_in(keys[0], i), log_w.shape[1:]))(task)
            label = jnp.argmax(log_w + noise, 1)
            own = random.normal(keys[1], task.shape)
            values, curves = [], {}
            for key, name, piece in zip(keys[2:], self.means, pieces, strict=True):
                g = piece.curve + piece.curve_root @ random.normal(key, piece.curve.shape)
                curves[name] = zero.means[name].mean + g[n:]
                f = piece.mean + g[n:] + piece.gain @ (piece.residual - g[:n])
                # a triangular root keeps tasks apart, so that rows of different clusters may be put together
                values.append(f + piece.root @ own)
            y = jnp.take_along_axis(jnp.stack(values, 1), label[:, None], 1)[:, 0]
            return {self.site: y, **curves}

        return lax.map(one, random.split(rng_key, num), batch_size=min(num, 64))

    def sampler(self, params: Params) -> _Draws:
        stats = self.stats(params, self.data)
        log_r = self.log_responsibilities(stats)
        q = means_given(stats, jnp.exp(log_r))
        reading = self.reading(params, self.data, 0)
        prior_means = jnp.stack([reading.means[n].mean for n in self.means])
        return _Draws(q, jax.vmap(linalg.root)(q.covariance), log_r, stats, prior_means)

    def draw(self, state: Any, params: Params, rng_key: Array) -> tuple[dict[str, Array], Array]:
        """Mean processes at the rows and labels; log p(y, g, z) − log q(g, z)."""
        pick, noise = random.split(rng_key)
        z = random.categorical(pick, state.log_r, axis=1)
        q, stats = state.q, state.stats
        g = q.mean + jnp.einsum("kij,kj->ki", state.roots, random.normal(noise, q.mean.shape))
        at = g[:, stats.place]
        quadratic = jnp.einsum("kni,knij,knj->kn", at, stats.precision, stats.residual - 0.5 * at)
        joint = stats.log_weights + (stats.log_normal + quadratic).T
        chosen = jnp.take_along_axis(joint - state.log_r, z[:, None], 1)
        tilt = q.log_normaliser - jnp.sum(q.shift * g, 1) + 0.5 * jnp.einsum("ki,kij,kj->k", g, q.precision, g)
        rows = state.prior_means + g[:, self.layout.position]
        return {**dict(zip(self.means, rows, strict=True)), self.label: z}, jnp.sum(chosen) + jnp.sum(tilt)

    def remarks(self, params: Params) -> list[str]:
        change, r = (np.asarray(v) for v in _remarks(self, params))
        sizes = r.sum(0)
        lines = ["tasks in each cluster, in mean: " + ", ".join(f"{s:.1f}" for s in sizes)]
        unsure = int(np.sum(r.max(1) < 0.9))
        if self.num_clusters > 1:
            lines.append(f"{unsure} of {len(r)} tasks belong to no cluster with 90% probability")
        if sizes.min() < 0.5:
            lines.append(f"cluster {int(sizes.argmin())} is empty: fewer clusters say the same")
        if not change <= 1e-6:
            lines.append(f"responsibilities did not settle in {MAX_SWEEPS} sweeps (last change {change:.1e})")
        return [*lines, "the data themselves: " + calibration.of_draws(self, params)]


def _component(
    here: _Reading, there: _Reading, row: Array, rows: Array, mask: Array, m: Array, V: Array, *, update: bool
) -> tuple[Array, Array, Array]:
    """One new observation in one cluster: mean, variance, and log-density of the rows of its task if they are news.

    Args:
        m, V: of the mean process at these rows, ``(L,)``, and at the new one; zero where there is no row.
    """
    X, context, L = jax.tree.map(lambda x: x[row][None], here.X), _rows(there.X, rows), len(rows)
    residual = jnp.where(mask, (there.y - there.mean)[rows], 0.0)
    S = view.add_noise(there.kernel(context, context), there.noise[rows])
    S = jnp.where(mask[:, None] & mask, S, jnp.eye(L, dtype=S.dtype))
    cross = jnp.where(mask, here.kernel(X, context)[0], 0.0)
    log_news = jnp.zeros((), m.dtype)
    if update:
        precision, log_news = linalg._inverse_and_log_normal(S + V[:L, :L], residual - m[:L])
        log_news = log_news + 0.5 * linalg.LOG_2PI * jnp.sum(~mask)
        gain = V[:, :L] @ precision
        m, V = m + gain @ (residual - m[:L]), V - gain @ V[:L]
    G = cross @ linalg.inverse(S)
    pull = jnp.append(-G, 1.0)
    own = jnp.maximum(here.kernel(X)[0] - G @ cross, 0.0) + jnp.maximum(pull @ V @ pull, 0.0)
    return here.mean[row] + G @ residual + pull @ m, own + here.noise[row], log_news


class _Piece(NamedTuple):
    """One cluster at the rows of the fit and of other data."""

    curve: Array
    """Mean process less its prior mean, ``(n + m,)``."""
    curve_root: Array
    gain: Array
    """From residuals of the rows of the fit to the rows of other data, ``(m, n)``; zero between tasks."""
    residual: Array
    mean: Array
    root: Array
    """Lower triangular, of what is left, noise included, ``(m, m)``."""


def _dense(problem: MultiTaskProblem, params: Params, data: Data, k: int, posterior: Conditional) -> _Piece:
    there, here = problem.reading(params, problem.data, k), problem.reading(params, data, k)
    name = problem.means[k]
    both = jax.tree.map(lambda *x: jnp.concatenate(x), there.means[name].X, here.means[name].X)
    curve, covariance = posterior.joint(both)
    S = view.add_noise(gram(there.kernel, there.X), there.noise + problem.nuggets(there)[k])
    cross = gram(here.kernel, here.X, there.X)
    gain = cross @ linalg.inverse(S)
    left = view.add_noise(gram(here.kernel, here.X) - gain @ cross.T, here.noise + problem.nuggets(here)[k])
    root = linalg.jittered_cholesky(left)[0]
    return _Piece(curve, linalg.root(covariance), gain, there.y - there.mean, here.mean, root)


def _rows(X: Any, index: Array) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x)[index], X)


# compiled as a piece: the model is traced once, however many times a solver asks for the loss
@eqx.filter_jit
def _stats(problem: MultiTaskProblem, params: Params, data: Data) -> Stats:
    parts = problem.layout
    both = parts.mask[:, :, None] & parts.mask[:, None, :]
    padding = jnp.sum(~parts.mask, 1)

    def cluster(k: Array) -> tuple[Array, ...]:
        found = problem.reading(params, data, k)
        if found.y.shape != parts.task.shape:
            raise ValueError(
                f"the data have {found.y.shape[0]} rows, {parts.task.shape[0]} in the fit, which knows their tasks: "
                "fit again, or ask forecast(params, data, context) about new tasks"
            )
        residual = jnp.where(parts.mask, (found.y - found.mean)[parts.rows], 0.0)
        variance = (found.noise + problem.nuggets(found)[k])[parts.rows]

        def task(rows: Array, v: Array, within: Array) -> Array:
            X = _rows(found.X, rows)
            return jnp.where(within, view.add_noise(found.kernel(X, X), v), jnp.eye(len(rows), dtype=v.dtype))

        S = jax.vmap(task)(parts.rows, variance, both)
        precision, value = jax.vmap(linalg._inverse_and_log_normal)(S, residual)
        prior = problem.prior(found)
        value = value + 0.5 * linalg.LOG_2PI * padding
        log_weights = problem.log_prior_labels(found.label)
        return jnp.where(both, precision, 0.0), residual, value, prior, log_weights, found.log_prior

    precision, residual, value, *shared = jax.vmap(cluster)(jnp.arange(problem.num_clusters))
    prior, log_weights, log_prior = (x[0] for x in shared)
    return Stats(prior, precision, residual, value, log_weights, parts.place, log_prior)


@eqx.filter_jit
def _facts(problem: MultiTaskProblem) -> dict[str, Any]:
    """What has to be known of the model before its rows can be sorted, and whether it is of the right form."""
    params, data = problem.params, problem.data
    zero = problem.reading(params, data, 0)
    X, site = zero.X, problem.site
    if not (isinstance(X, tuple) and len(X) == 2 and jnp.issubdtype(X[1].dtype, jnp.integer)):
        raise ValueError(
            f"the process {site!r} must have inputs X = (inputs, task), a pair whose second part holds the task of "
            "each row as an integer"
        )
    processes = [zero.means[n] for n in problem.means]
    if any(gp.mean.shape != zero.y.shape for gp in processes):
        raise ValueError(f"the processes {', '.join(problem.means)} must have one value for each row of {site!r}")
    shifts = {
        n: gp.mean + random.normal(random.key(i), gp.mean.shape)
        for i, (n, gp) in enumerate(zip(problem.means, processes, strict=True))
    }
    moves = jnp.stack([shifts[n] - gp.mean for n, gp in zip(problem.means, processes, strict=True)])

    def error(k: Array, move: Array) -> Array:
        moved = problem.reading(params, data, k, shifts).mean - problem.reading(params, data, k).mean
        return jnp.max(jnp.abs(moved - move))

    num_tasks = zero.label.shape()[0]
    member = X[1] == jnp.arange(num_tasks)[:, None]
    there, first = jnp.any(member, 1), _rows(X, jnp.argmax(member, 1))
    other = there[:, None] & there & ~jnp.eye(num_tasks, dtype=bool)
    return {
        "inputs": X[0], "task": X[1], "residual": zero.y - zero.mean, "num_tasks": num_tasks,
        "elsewhere": jnp.stack([_distance(gp.X, X[0]) for gp in processes]),
        "errors": jax.vmap(error)(jnp.arange(len(processes)), moves),
        "between": jnp.max(jnp.where(other, jnp.abs(zero.kernel(first, first)), 0.0)),
    }  # fmt: skip


def _distance(X: Any, inputs: Array) -> Array:
    if jnp.shape(X) != inputs.shape:
        return jnp.asarray(jnp.inf)
    return jnp.max(jnp.abs(jnp.asarray(X) - inputs))


def _check(facts: dict[str, Any], site: str, means: tuple[str, ...], label: str) -> None:
    if (facts["elsewhere"] != 0).any():
        name = means[int(np.argmax(facts["elsewhere"] != 0))]
        raise ValueError(f"the process {name!r} must stand at the inputs of the rows, the first part of X of {site!r}")
    wrong = ~(facts["errors"] < 1e-4)
    if wrong.any():
        k = int(np.argmax(wrong))
        raise ValueError(
            f"with all tasks in cluster {k} the mean of {site!r} is not {means[k]!r} at the same row (plus what does "
            f"not depend on it): write mean_value=jnp.stack([{', '.join(means)}])[{label}[task], jnp.arange(len(task))]"
        )
    task, size = facts["task"], facts["num_tasks"]
    if task.min() < 0 or task.max() >= size:
        raise ValueError(f"task numbers go from {task.min()} to {task.max()}, the plate of {label!r} has {size} tasks")
    if not facts["between"] == 0:
        raise ValueError(
            f"the kernel of {site!r} is not zero between tasks: wrap it as estimax.models.kernels.SameTask(kernel); "
            "what tasks share belongs into the mean processes"
        )


@eqx.filter_jit
def _responsibilities(problem: MultiTaskProblem, params: Params) -> Array:
    return jnp.exp(problem.log_responsibilities(problem.stats(params, problem.data)))


@eqx.filter_jit
def _remarks(problem: MultiTaskProblem, params: Params) -> tuple[Array, Array]:
    """Change in one more sweep, and responsibilities."""
    stats = problem.stats(params, problem.data)
    log_r = problem.log_responsibilities(stats)
    return jnp.max(jnp.abs(jnp.exp(sweep(stats, log_r)) - jnp.exp(log_r))), jnp.exp(log_r)
