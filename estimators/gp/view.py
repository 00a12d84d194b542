"""What a NumPyro model says of its Gaussian processes: the one seam under all of their estimators.

A process is a sample site with tinygp's own distribution, ``GaussianProcess(kernel, X, ...).numpyro_dist()``:
observed, it is a regression with Gaussian noise; latent, other observed sites are its likelihood. So a model written
for NUTS is one for every estimator, and none of them needs a word of its own in the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array, random
from numpyro.primitives import Messenger
from tinygp.kernels.quasisep import Quasisep
from tinygp.noise import Diagonal
from tinygp.numpyro_support import TinyDistribution

from .. import blocks
from ..base import Data, Params
from ..likelihood import MAP, LikelihoodProblem
from .quick import quick

NOT_POSITIVE = (
    "the kernel matrix is not positive definite at these hyper-parameters, whatever the jitter: is the kernel a valid "
    "one, and are its inputs finite?"
)
BLOCK = 2**17
"""Elements of a kernel matrix that are computed at once: they and what they are made of stay in the cache."""
TILE = 64
"""Rows and columns of a tile of a symmetric kernel matrix, of which one half is computed."""


class Process(eqx.Module):
    """A Gaussian process prior at the rows of the data."""

    kernel: Any
    X: Any
    """Inputs, leading axis n."""
    mean: Array
    """``(n,)``"""
    noise: Array
    """Variance on the diagonal, ``(n,)``: of the observations where the site is observed, else a jitter."""


class Regression(NamedTuple):
    """A process seen through Gaussian noise: everything that exact inference needs."""

    kernel: Any
    X: Any
    mean: Array
    """``(n,)``"""
    noise: Array
    """Variances, ``(n,)``."""
    y: Array
    """``(n,)``"""

    @property
    def residual(self) -> Array:
        return self.y - self.mean

    def covariance(self) -> Array:
        """K + noise. Recomputed in the backward pass: the kernel's own residuals would be several n × n arrays."""
        return add_noise(gram(self.kernel, self.X), self.noise)

    def lower_covariance(self) -> Array:
        """The same on and below the diagonal, and not above: all that a factorisation reads."""
        return add_noise(lower_gram(self.kernel, self.X), self.noise)


def gram(kernel: Any, X: Any, Z: Any = None) -> Array:
    """Kernel matrix ``(n, m)``, recomputed where it is differentiated, some rows at a time in both passes."""
    other = X if Z is None else Z
    size = blocks.size_of(num_rows(X), BLOCK // num_rows(other))
    return blocks.recomputed(lambda fixed, rows: fixed[0](rows, fixed[1]), (kernel, other), X, size)


def lower_gram(kernel: Any, X: Any) -> Array:
    """Kernel matrix ``(n, n)`` with zeros for the tiles above the diagonal: a little more than half of the work."""
    tiles = blocks.split(X, blocks.size_of(num_rows(X), TILE))
    count, size = jax.tree.leaves(tiles)[0].shape[:2]
    i, j = np.tril_indices(count)

    def some(fixed: tuple, pairs: tuple[Array, Array]) -> Array:
        kernel, tiles = fixed
        rows, columns = (jax.tree.map(lambda x, at=at: x[at], tiles) for at in pairs)
        return jax.vmap(kernel)(rows, columns)

    pairs = jnp.asarray(i), jnp.asarray(j)
    found = blocks.recomputed(some, (kernel, tiles), pairs, blocks.size_of(len(i), BLOCK // size**2))
    grid = jnp.zeros((count, count, size, size), found.dtype)
    grid = grid.at[i, j].set(found, indices_are_sorted=True, unique_indices=True)
    n = num_rows(X)
    return grid.transpose(0, 2, 1, 3).reshape(count * size, count * size)[:n, :n]


def add_noise(matrix: Array, noise: Array) -> Array:
    i = jnp.arange(matrix.shape[-1])
    return matrix.at[i, i].add(noise)


def is_process(fn: Any) -> bool:
    return isinstance(fn, TinyDistribution)


class _Processes(Messenger):
    """Takes the processes out of a run: latent ones get given values, observed ones leave the likelihood to us."""

    def __init__(self, values: Mapping[str, Array] | None = None) -> None:
        self.values = {} if values is None else values
        self.found: dict[str, tuple[Any, Any]] = {}
        super().__init__()

    def process_message(self, msg: dict) -> None:
        if msg["type"] != "sample" or not is_process(msg["fn"]):
            return
        gp = msg["fn"].gp
        self.found[msg["name"]] = (gp, msg["value"] if msg["is_observed"] else None)
        msg["type"] = "deterministic"
        msg["is_observed"] = False
        if msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]
        elif msg["value"] is None:
            msg["value"] = gp.mean


class Rest(eqx.Module):
    """The model without its processes: hyper-parameters and the likelihoods of latent processes."""

    model: Callable

    def __call__(self, **data: Any) -> Any:
        with _Processes():
            return self.model(**data)


class Read(NamedTuple):
    """One run of a model at given hyper-parameters and given values of its latent processes."""

    latent: dict[str, Process]
    observed: dict[str, tuple[Process, Array]]
    log_prob: Array
    """log p(y_i | f_i) of the likelihood sites, ``(n,)``, zero where the process itself is observed."""
    log_prior: Array
    """Log-density of the hyper-parameters and of what belongs to no row."""
    sites: dict[str, Any]
    """Observed sites of the likelihood, by name: NumPyro's site records."""

    @property
    def processes(self) -> dict[str, Process]:
        """All of them."""
        return {**self.latent, **{n: p for n, (p, _) in self.observed.items()}}


class Hyper(eqx.Module):
    """Hyper-parameters of a model with Gaussian processes, and what the model is at their values."""

    rest: LikelihoodProblem
    """Parameters and their prior, in the unconstrained space that MAP has."""
    model: Callable
    latent: tuple[str, ...] = eqx.field(static=True)
    observed: tuple[str, ...] = eqx.field(static=True)

    def read(self, params: Params, data: Data, functions: Mapping[str, Array] | None = None) -> Read:
        """Run the model.

        Args:
            functions: values of latent processes, ``(n,)`` each; their prior means where they are not given.
        """
        probe = _Probe(self.model, functions)
        problem = replace(self.rest, model=probe)
        own = {n: v for n, v in params.items() if n in self.rest.params}
        log_probs, trace = problem._log_probs(own, data, None, {}, None)
        roles = self.rest.roles
        sites = {n: s for n, s in trace.items() if s["type"] == "sample" and s["is_observed"] and n in roles.units}
        terms = [_by_row(log_probs[n]) for n in sites]
        log_prior = sum((jnp.sum(v) for n, v in log_probs.items() if n not in sites), jnp.zeros(()))
        latent, observed = {}, {}
        for name, (gp, value) in probe.found.items():
            process = Process(quick(gp.kernel), gp.X, gp.mean, jnp.broadcast_to(gp.noise.diagonal(), gp.mean.shape))
            if name in self.observed:
                observed[name] = (process, value)
            else:
                latent[name] = process
        total = sum(terms[1:], terms[0]) if terms else jnp.zeros(())
        return Read(latent, observed, total, log_prior, sites)

    def log_prior(self, params: Params, data: Data) -> Array:
        return self.read(params, data).log_prior

    def constrain(self, params: Params) -> dict[str, Array]:
        """Hyper-parameters in the user's space. Compiled, so that no n × n array of the model's own is formed."""
        return _constrain(self.rest, {n: params[n] for n in self.rest.params})

    def regression(self, params: Params, data: Data) -> Regression:
        """The model as a process with Gaussian noise; see `check_gaussian` for what makes it one."""
        if self.observed:
            process, y = self.read(params, data).observed[self.observed[0]]
            return Regression(process.kernel, process.X, process.mean, process.noise, y)
        name = self.latent[0]
        read = self.read(params, data)
        process = read.latent[name]
        (site,) = read.sites.values()
        normal = base(site["fn"])
        shape = process.mean.shape
        return Regression(
            process.kernel, process.X,
            mean=jnp.broadcast_to(normal.loc, shape),  # the functions stand at their prior mean
            noise=jnp.broadcast_to(normal.scale, shape) ** 2 + process.noise,
            y=jnp.asarray(site["value"], process.mean.dtype),
        )  # fmt: skip


class _Probe:
    """A model that reports its processes; lives within one trace."""

    def __init__(self, model: Callable, functions: Mapping[str, Array] | None) -> None:
        self.model, self.functions = model, functions
        self.found: dict[str, tuple[Any, Any]] = {}

    def __call__(self, **data: Any) -> Any:
        processes = _Processes(self.functions)
        with processes:
            out = self.model(**data)
        self.found = processes.found
        return out


@eqx.filter_jit
def _constrain(rest: LikelihoodProblem, params: Params) -> dict[str, Array]:
    return rest.constrain(params)


def base(fn: Any) -> Any:
    """A distribution without wrappers that keep its density."""
    while isinstance(fn, (dist.Independent, dist.ExpandedDistribution)):
        fn = fn.base_dist
    return fn


def _by_row(log_prob: Array) -> Array:
    """Sum over all but the leading axis."""
    return jnp.sum(log_prob.reshape(log_prob.shape[0], -1), 1) if log_prob.ndim else log_prob


def num_rows(X: Any) -> int:
    return jax.tree.leaves(X)[0].shape[0]


def create(estimator: Any, rng_key: Array, model: Callable, data: Data) -> Hyper:
    """Find the processes of a model and its hyper-parameters, with initial values.

    Raises:
        ValueError: a model without Gaussian process, or one whose shapes do not fit.
    """
    name = type(estimator).__name__
    probe = _Probe(model, None)
    shapes: dict[str, Any] = {}

    def run(key: Array) -> Array:
        rest = LikelihoodProblem.create(MAP(), key, Rest(model), data)
        replace(rest, model=probe)._log_probs(rest.params, data, None, {}, None)
        for site, (gp, value) in probe.found.items():
            shapes[site] = (gp.num_data, type(gp.noise), None if value is None else jnp.shape(value))
        return jnp.zeros(())

    _check_processes(model, data, name)
    rest = LikelihoodProblem.create(MAP(), rng_key, Rest(model), data)
    jax.eval_shape(run, rng_key)
    observed = tuple(n for n, (_, _, value) in shapes.items() if value is not None)
    latent = tuple(n for n in shapes if n not in observed)
    for site, (n, noise, _) in shapes.items():
        if noise is not Diagonal:
            raise ValueError(
                f"the process {site!r} has {noise.__name__} noise: give independent noise by diag=, and put correlated "
                "noise into the kernel"
            )
        if n < 1:
            raise ValueError(f"the process {site!r} has no rows")
    if observed and (latent or len(observed) > 1):
        raise ValueError(
            f"{name} takes one observed process, or latent ones with a likelihood; the model has "
            f"{', '.join(repr(s) for s in shapes)}"
        )
    if latent and not rest.roles.units:
        raise ValueError(f"the process {latent[0]!r} is latent and nothing is observed: give the model its data")
    return Hyper(rest, model, latent, observed)


def _check_processes(model: Callable, data: Data, name: str) -> None:
    """One abstract run: is there a process at all?"""
    found: dict[str, Any] = {}

    def run(key: Array) -> Array:
        from numpyro import handlers
        from numpyro.infer.initialization import init_to_uniform

        probe = _Probe(model, None)
        handlers.trace(handlers.substitute(handlers.seed(probe, key), substitute_fn=init_to_uniform)).get_trace(**data)
        found.update(probe.found)
        for site, (gp, _) in probe.found.items():
            _check_sorted(site, gp)
        return jnp.zeros(())

    jax.eval_shape(run, random.key(0))
    if not found:
        raise ValueError(
            f"{name} needs a Gaussian process: a site like numpyro.sample('f', tinygp.GaussianProcess(kernel, X, "
            "diag=noise).numpyro_dist()), observed or with a likelihood; the model has none"
        )


def _check_sorted(site: str, gp: Any) -> None:
    """Whether the inputs of a quasiseparable kernel ascend, which tinygp wants when it builds the process.

    Raises:
        ValueError: they do not.
    """
    if not isinstance(gp.kernel, Quasisep) or isinstance(gp.X, jax.core.Tracer) or np.ndim(gp.X) != 1:
        return
    if (down := np.flatnonzero(np.diff(np.asarray(gp.X)) < 0)).size:
        raise ValueError(
            f"the inputs of the process {site!r} descend after row {down[0]}, and the model has a kernel of "
            "tinygp.kernels.quasisep, which wants them sorted: sort the rows of the data, or take the kernel of the "
            "same name in tinygp.kernels, which StateSpaceGP sorts by itself"
        )


@eqx.filter_jit
def _probe_likelihood(hyper: Hyper, key: Array) -> tuple[Any, ...]:
    """The Normal's location and scale at two values of the latent process."""
    name = hyper.latent[0]
    mean = hyper.read(hyper.rest.params, hyper.rest.data).latent[name].mean
    shift = random.normal(key, mean.shape)
    out = []
    for f in (mean, mean + shift):
        (site,) = hyper.read(hyper.rest.params, hyper.rest.data, {name: f}).sites.values()
        normal = base(site["fn"])
        out += [jnp.broadcast_to(normal.loc, mean.shape), jnp.broadcast_to(normal.scale, mean.shape)]
    return shift, *out


def check_gaussian(hyper: Hyper, name: str) -> None:
    """Whether the model is a process plus Gaussian noise, y = f + offset + ε.

    Raises:
        ValueError: several processes, another likelihood, or a Normal whose location is not f plus a constant.
    """
    if hyper.observed:
        return
    way_out = "NonConjugateGP, SVGP and CoresetGP take any likelihood"
    if len(hyper.latent) > 1:
        raise ValueError(f"{name} takes one process, the model has {', '.join(hyper.latent)}: {way_out}")
    kinds: dict[str, Any] = {}

    def run() -> Array:
        for site, record in hyper.read(hyper.rest.params, hyper.rest.data).sites.items():
            kinds[site] = (type(base(record["fn"])), jnp.shape(record["value"]))
        kinds[""] = hyper.read(hyper.rest.params, hyper.rest.data).latent[hyper.latent[0]].mean.shape
        return jnp.zeros(())

    jax.eval_shape(run)
    shape = kinds.pop("")
    if len(kinds) != 1:
        raise ValueError(f"{name} takes one observed site, the model has {', '.join(kinds)}: {way_out}")
    ((site, (kind, value_shape)),) = kinds.items()
    if kind is not dist.Normal:
        raise ValueError(f"{name} needs Gaussian noise, site {site!r} is {kind.__name__}: {way_out}")
    if value_shape != shape:
        raise ValueError(
            f"site {site!r} has shape {value_shape}, the process {shape}: {name} needs one observation a row; repeated "
            "inputs may stand in X as they are"
        )
    shift, loc0, scale0, loc1, scale1 = (np.asarray(v) for v in _probe_likelihood(hyper, random.key(1)))
    tolerance = 1e-4 * (1 + np.abs(shift))
    if not (np.abs(loc1 - loc0 - shift) < tolerance).all() or not np.allclose(scale0, scale1):
        raise ValueError(
            f"site {site!r} is not the process {hyper.latent[0]!r} plus Gaussian noise (its mean must be the "
            f"process plus "
            f"what does not depend on it, its scale free of it), which {name} needs: {way_out}"
        )


def check_rows(hyper: Hyper, name: str, data: Data, most: int = 1) -> None:
    """Whether every observation depends on the latent processes at its own row alone.

    Raises:
        ValueError: observations outside of their support, an observed process, more than `most` latent ones,
            observations of another shape, or discrete latents.
    """
    if hyper.observed:
        raise ValueError(
            f"{name} wants the process latent: f = numpyro.sample('f', GaussianProcess(...).numpyro_dist()), and "
            f"then the "
            f"likelihood. In this model the process {hyper.observed[0]!r} is observed, under Gaussian noise: "
            f"GPEvidence is exact"
        )
    if len(hyper.latent) > most:
        raise ValueError(
            f"{name} takes {'one latent process' if most == 1 else f'at most {most} latent processes'}, the model has "
            f"{', '.join(hyper.latent)}" + (": SVGP takes up to three" if most == 1 else "")
        )
    if hyper.rest.roles.enumerated:
        raise ValueError(f"{name} cannot sum out {hyper.rest.roles.enumerated[0].name!r}: use a mixture distribution")
    check_support(hyper, data)
    ok = eqx.filter_jit(_rows_depend)(hyper, data)
    shape, rows = ok[0].shape, ok[1].shape
    if shape[:1] != rows:
        raise ValueError(
            f"the observations have shape {shape}, the process {rows}: {name} needs one (or one vector) a row; "
            f"repeated "
            "inputs may stand in X as they are"
        )
    if np.abs(np.asarray(ok[2])).max() > 1e-6:
        raise ValueError(
            f"the observation of a row depends on the process at other rows, which {name} cannot have: p(y_i | "
            f"f_i) only"
        )


def check_support(hyper: Hyper, data: Data) -> None:
    """Whether the observations can come from their distributions.

    Raises:
        ValueError: one that cannot, naming its site, row and value.
    """
    for site, (inside, value) in _supported(hyper, data).items():
        if not inside.all():
            row = int(np.argmin(inside))
            raise ValueError(
                f"row {row} of site {site!r} is {np.asarray(value)[row]}, which its distribution never gives "
                f"({int((~inside).sum())} such rows)"
            )


def _supported(hyper: Hyper, data: Data) -> dict[str, tuple[np.ndarray, Any]]:
    """Which rows are inside of the support of their distribution, and the values."""

    def run(data: Data) -> dict[str, tuple[Array, Any]]:
        sites = hyper.read(hyper.rest.params, data).sites
        return {n: (_by_row(~s["fn"].support(s["value"])) == 0, s["value"]) for n, s in sites.items()}

    return {n: (np.asarray(inside), value) for n, (inside, value) in eqx.filter_jit(run)(data).items()}


def _rows_depend(hyper: Hyper, data: Data) -> tuple[Array, Array, Array]:
    """Pointwise log-likelihood, and how that of the first row changes with the process elsewhere."""
    read = hyper.read(hyper.rest.params, data)
    functions = {n: p.mean + 0.1 for n, p in read.latent.items()}
    log_prob = hyper.read(hyper.rest.params, data, functions).log_prob
    if log_prob.ndim == 0:
        return log_prob, read.latent[hyper.latent[0]].mean, jnp.zeros(1)
    gradient = jax.grad(lambda f: hyper.read(hyper.rest.params, data, f).log_prob[0])(functions)
    return log_prob, read.latent[hyper.latent[0]].mean, jnp.concatenate([g[1:] for g in gradient.values()])
