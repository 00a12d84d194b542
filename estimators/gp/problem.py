"""The problem of every Gaussian-process estimator: hyper-parameters, an objective, a posterior over functions."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array, lax, random

from ..base import Data, Metrics, Params, Posterior, Problem
from . import calibration, linalg
from .posterior import FunctionPosterior
from .quadrature import hermite, tilted
from .view import NOT_POSITIVE, Hyper, base, num_rows

AT_ONCE = 4
"""Most losses under one vmap."""
MAX_JOINT = 4000
"""Most rows at which functions are drawn jointly."""


def at_once(most: float) -> int:
    """Losses that are evaluated at once: as many as suit their size, and one on CPUs, where a loss has all cores."""
    return 1 if jax.default_backend() == "cpu" else int(np.clip(most, 1, AT_ONCE))


Moments = dict[str, tuple[Array, Array]]
"""Mean and variance of each function at some rows, ``(n,)`` each, by site."""


class Forecast(eqx.Module):
    """Predictive moments at new rows."""

    mean: Array
    """Of a new observation, ``(n,)``."""
    variance: Array
    function_mean: dict[str, Array]
    """Of the latent functions, prior means included, by site."""
    function_variance: dict[str, Array]


class ProcessProblem(Problem):
    """−(objective + log prior of the hyper-parameters), in nats, over all rows."""

    options: Any = eqx.field(static=True)
    hyper: Hyper
    params: Params
    data: dict[str, Any]

    @property
    def deterministic(self) -> bool:
        return True

    @property
    def solver(self) -> str | None:
        return "lbfgs" if self.deterministic else None

    @property
    def batch(self) -> int:
        """Losses that are evaluated at once: each holds a few n × n arrays."""
        return at_once(3e7 // max(self.num_units**2, 1))

    @property
    def auxiliary(self) -> tuple[str, ...]:
        return tuple(n for n in self.params if n not in self.hyper.rest.params)

    @property
    def num_units(self) -> int:
        """Rows."""
        found = eqx.filter_eval_shape(lambda p: self.hyper.read(p, self.data).processes, self.params)
        return num_rows(next(iter(found.values())).X)

    def init(self, rng_key: Array) -> Params:
        return {**self.hyper.rest.init(rng_key), **{n: self.params[n] for n in self.auxiliary}}

    def candidates(self, rng_key: Array, num: int) -> Params | None:
        drawn = self.hyper.rest.candidates(rng_key, num)
        if drawn is None:
            return None
        own = {n: v for n, v in self.params.items() if n not in self.hyper.rest.params}
        return {**drawn, **jax.tree.map(lambda x: jnp.broadcast_to(x, (num, *x.shape)), own)}

    @abc.abstractmethod
    def objective(self, params: Params, data: Data) -> Array:
        """Log marginal likelihood or what stands in its place, nats."""

    @abc.abstractmethod
    def functions(self, params: Params) -> dict[str, FunctionPosterior]:
        """Posteriors of the functions minus their prior means, by site."""

    def log_likelihood(self, params: Params, data: Data) -> Array:
        return self.objective(params, data)

    def loss(self, params: Params, rng_key: Array, data: Data) -> tuple[Array, Metrics]:
        return -(self.objective(params, data) + self.hyper.log_prior(params, data)), {}

    def is_point(self, params: Params) -> bool:
        return True

    def constrain(self, params: Params) -> dict[str, Array]:
        own = {n: v for n, v in params.items() if n not in self.hyper.rest.params}
        return {**self.hyper.constrain(params), **own}

    def unconstrain(self, values: Mapping[str, Any]) -> Params:
        own = {n: jnp.asarray(v) for n, v in values.items() if n in self.params and n not in self.hyper.rest.params}
        for name, value in own.items():
            if value.shape != self.params[name].shape:
                raise ValueError(f"start[{name!r}] has shape {value.shape}, it should be {self.params[name].shape}")
        return {**self.hyper.rest.unconstrain({n: v for n, v in values.items() if n not in own}), **own}

    def explain(self, params: Params, rng_key: Array, data: Data) -> str:
        for name, value in self.constrain(params).items():
            if not bool(jnp.all(jnp.isfinite(value))):
                return f"hyper-parameter {name!r} is not finite"
        if bad := self.bad_noise(params):
            return bad[0]
        double = jnp.result_type(float) == jnp.float64
        way_out = "" if double else ' This is single precision: set jax.config.update("jax_enable_x64", True)'
        return NOT_POSITIVE + way_out

    def bad_noise(self, params: Params) -> list[str]:
        """In words, which noise is negative or not a number: a jitter may hide that from the factorisation."""
        return [
            f"{name} is {float(least):.3g} at its least, and must not be negative: give what it is made of a positive "
            "constraint (constraints.positive) or a prior on positive values"
            for name, least in _least_noise(self, params).items()
            if not float(least) >= 0
        ]

    def faults(self, params: Params) -> list[str]:
        return self.bad_noise(params)

    def posterior(self, params: Params) -> Posterior | None:
        """Draws of the functions at the rows of the data; None beyond `MAX_JOINT` rows."""
        if self.num_units > MAX_JOINT:
            return None
        return _draws(self, params)

    def log_target(self, params: Params, functions: dict[str, Array]) -> Array:
        """log p(y | f) at given values of the functions, summed over rows."""
        reading = self.hyper.read(params, self.data, functions)
        if not self.hyper.observed:
            return jnp.sum(reading.log_prob)
        ((name, (process, y)),) = reading.observed.items()
        return jnp.sum(log_density(y, functions[name], process.noise))

    @abc.abstractmethod
    def sampler(self, params: Params) -> Any:
        """What `draw` needs, computed once: factors and constants. A pytree."""

    @abc.abstractmethod
    def draw(self, state: Any, params: Params, rng_key: Array) -> tuple[dict[str, Array], Array]:
        """One draw of the functions at the data, and log p(y, f) − log q(f)."""

    def forecast(self, params: Params, data: Data) -> Forecast:
        """Predictive moments at the rows of other data (what is observed there does not matter)."""
        moments = _function_moments(self, params, data)
        nodes, log_weights = hermite(len(moments))
        weights = jnp.exp(log_weights)[:, None]

        def at(node: Array) -> tuple[Array, Array]:
            f = {n: m + jnp.sqrt(v) * node[i] for i, (n, (m, v)) in enumerate(moments.items())}
            (site,) = self.hyper.read(params, data, f).sites.values()
            return _moments(site["fn"])

        means, variances = lax.map(at, nodes)
        mean = jnp.sum(weights * means, 0)
        second = jnp.sum(weights * (variances + (means - mean) ** 2), 0)
        names = list(moments)
        return Forecast(mean, second, {n: moments[n][0] for n in names}, {n: moments[n][1] for n in names})

    def predictive_log_density(self, params: Params, data: Data) -> Array:
        """log ∫ p(y_i | f_i) q(f_i) df_i of every row of other data, ``(n,)``."""
        return self._log_density(params, data, _function_moments(self, params, data))

    def _log_density(self, params: Params, data: Data, moments: Moments) -> Array:
        if len(moments) == 1:
            ((name, (mean, variance)),) = moments.items()
            return tilted(lambda f: self.hyper.read(params, data, {name: f}).log_prob, mean, variance)[0]
        nodes, log_weights = hermite(len(moments))

        def at(node: Array) -> Array:
            f = {n: m + jnp.sqrt(v) * node[i] for i, (n, (m, v)) in enumerate(moments.items())}
            return self.hyper.read(params, data, f).log_prob

        return jax.scipy.special.logsumexp(lax.map(at, nodes) + log_weights[:, None], 0)

    def simulate(self, params: Params, rng_key: Array, data: Data, num: int) -> dict[str, Array]:
        """Joint draws of the functions at the rows of other data, and of new observations there, ``(num, n)`` each."""
        processes = self.hyper.read(params, data).processes
        roots = {}
        for name, posterior in self.functions(params).items():
            mean, covariance = posterior.joint(processes[name].X)
            roots[name] = (processes[name].mean + mean, linalg.root(covariance))

        def one(key: Array) -> dict[str, Array]:
            keys = random.split(key, len(roots) + 1)
            f = {n: m + R @ random.normal(k, m.shape) for k, (n, (m, R)) in zip(keys[1:], roots.items(), strict=True)}
            return {**self._observe(params, data, f, keys[0]), **({} if self.hyper.observed else f)}

        return lax.map(one, random.split(rng_key, num), batch_size=min(num, 64))

    def marginal_draws(self, params: Params, rng_key: Array, data: Data, num: int) -> Array:
        """Draws of each new observation by itself, ``(num, n)``."""
        return self._marginal_draws(params, rng_key, data, num, _function_moments(self, params, data))

    def _marginal_draws(self, params: Params, rng_key: Array, data: Data, num: int, moments: Moments) -> Array:
        def one(key: Array) -> Array:
            keys = random.split(key, len(moments) + 1)
            f = {
                n: m + jnp.sqrt(v) * random.normal(k, m.shape)
                for k, (n, (m, v)) in zip(keys[1:], moments.items(), strict=True)
            }
            return next(iter(self._observe(params, data, f, keys[0]).values()))

        return lax.map(one, random.split(rng_key, num), batch_size=min(num, 64))

    def moments_for_check(self, params: Params) -> Moments:
        """Of the functions at the data, for `check`."""
        return _function_moments(self, params, self.data)

    def check(self, params: Params, rng_key: Array, num: int) -> calibration.Check:
        """Log predictive density and draws of every observation of the data, for `diagnose`."""
        moments = self.moments_for_check(params)
        sites = list(self.hyper.read(params, self.data).sites.values())
        density = self._log_density(params, self.data, moments)
        y = jnp.asarray(sites[0]["value"])
        if len(sites) > 1 or y.ndim > 1:
            return calibration.Check(density, y, None)
        return calibration.Check(density, y, self._marginal_draws(params, rng_key, self.data, num, moments))

    def _observe(self, params: Params, data: Data, functions: dict[str, Array], rng_key: Array) -> dict[str, Array]:
        """New observations at given functions, by site."""
        if self.hyper.observed:
            (name,) = self.hyper.observed
            noise = jnp.sqrt(self.hyper.read(params, data).observed[name][0].noise)
            return {name: functions[name] + noise * random.normal(rng_key, noise.shape)}
        sites = self.hyper.read(params, data, functions).sites
        return {n: s["fn"].sample(random.fold_in(rng_key, i)) for i, (n, s) in enumerate(sites.items())}

    def pointwise_given(self, params: Params, functions: dict[str, Array]) -> dict[str, Array]:
        """log p(y_i | f_i) of draws of the functions ``(S, n)`` by site, as `posterior` names them."""
        if self.hyper.observed:
            (name,) = self.hyper.observed
            process, y = self.hyper.read(params, self.data).observed[name]
            return {name: log_density(y, next(iter(functions.values())), process.noise)}
        names = list(self.hyper.read(params, self.data).sites)
        latent = {n: functions[n] for n in self.hyper.latent}
        values = lax.map(lambda f: self.hyper.read(params, self.data, f).log_prob, latent, batch_size=64)
        return {names[0]: values}

    def inputs_of(self, params: Params) -> Any:
        """Inputs of the first process, as the model makes them from the data."""
        return _inputs_of(self, params)


@eqx.filter_jit
def _least_noise(problem: ProcessProblem, params: Params) -> dict[str, Array]:
    """The least noise variance of every process, and the least scale of every Normal likelihood; NaN if one is."""
    read = problem.hyper.read(params, problem.data)
    out = {f"the noise variance (diag=) of the process {n!r}": jnp.min(p.noise) for n, p in read.processes.items()}
    normals = {n: base(s["fn"]) for n, s in read.sites.items() if isinstance(base(s["fn"]), dist.Normal)}
    return out | {f"the scale of the noise of site {n!r}": jnp.min(fn.scale) for n, fn in normals.items()}


@eqx.filter_jit
def _inputs_of(problem: ProcessProblem, params: Params) -> Any:
    return next(iter(problem.hyper.read(params, problem.data).processes.values())).X


def _moments(fn: Any) -> tuple[Array, Array]:
    """Mean and variance; of categories (ordinal data) by their numbers, where NumPyro has NaN."""
    own = base(fn)
    if not isinstance(own, (dist.CategoricalProbs, dist.CategoricalLogits)):
        return fn.mean, fn.variance
    number = jnp.arange(own.probs.shape[-1])
    mean = own.probs @ number
    return mean, own.probs @ number**2 - mean**2


def log_density(y: Array, mean: Array, variance: Array) -> Array:
    """log N(y | mean, variance), elementwise."""
    return -0.5 * ((y - mean) ** 2 / variance + jnp.log(variance) + linalg.LOG_2PI)


def _function_moments(problem: ProcessProblem, params: Params, data: Data) -> Moments:
    processes = problem.hyper.read(params, data).processes
    out = {}
    for name, posterior in problem.functions(params).items():
        mean, variance = posterior.marginals(processes[name].X)
        out[name] = (processes[name].mean + mean, variance)
    return out


class FunctionDraws(Posterior):
    """Draws of the latent functions at the data, with the weights that correct the approximation.

    Hyper-parameters stay at their estimates. For exact inference the weights are all the marginal likelihood.
    """

    problem: ProcessProblem
    params: Params
    state: Any
    double: ClassVar[bool] = True

    def sample(self, rng_key: Array, num_samples: int) -> dict[str, Array]:
        keys = random.split(rng_key, num_samples)
        return jax.vmap(lambda k: self.problem.draw(self.state, self.params, k)[0])(keys)

    def log_weights(self, rng_key: Array, num_samples: int) -> Array:
        keys = random.split(rng_key, num_samples)
        return lax.map(lambda k: self.problem.draw(self.state, self.params, k)[1], keys, batch_size=64)


@eqx.filter_jit
def _draws(problem: ProcessProblem, params: Params) -> FunctionDraws:
    return FunctionDraws(problem, params, problem.sampler(params))


def with_own(problem: ProcessProblem, **params: Any) -> Any:
    """The problem with parameters of its own beside the hyper-parameters."""
    return replace(problem, params={**problem.params, **params})
