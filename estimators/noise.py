"""Noise with a known density, against which an unnormalised model is measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array, random
from numpyro.distributions import constraints

from . import data_argument
from .likelihood import LikelihoodProblem

MOST_VALUES = 64
"""Of discrete data whose default noise follows their frequencies."""


class Held:
    """An object that has no hash, known by its identity."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return type(self.value).__name__


def freeze(noise: Any) -> Any:
    """A noise argument, made hashable.

    Raises:
        TypeError: neither None, nor a fit, nor something with `sample` and `log_prob`.
    """
    if isinstance(noise, Held) or noise is None:
        return noise
    if isinstance(noise, type) or not (_is_fit(noise) or (hasattr(noise, "sample") and hasattr(noise, "log_prob"))):
        raise TypeError(
            "noise must be a NumPyro distribution, a flow with sample and log_prob, or the FitResult of a normalised "
            f"model, got {noise!r}"
        )
    try:
        hash(noise)
    except TypeError:
        return Held(noise)
    return noise


def _is_fit(noise: Any) -> bool:
    return hasattr(noise, "problem") and hasattr(noise, "unconstrained")


class Noise(eqx.Module):
    """Draws and log-density for blocks of n units: values are ``(blocks, n, *event)``."""

    law: Any
    """A distribution, or a pair of a likelihood problem and its parameters."""
    shape: tuple[int, ...] = eqx.field(static=True)
    """(n, *event) of the data."""
    kind: Any = eqx.field(static=True)
    """dtype of the data."""
    argument: str | None = eqx.field(static=True, default=None)
    """Of the fitted model, where the noise is one."""

    def draw(self, rng_key: Array, blocks: int, n: int | None = None) -> Array:
        n = self.shape[0] if n is None else n
        if self.argument is None:
            return self.law.sample(rng_key, (blocks, n)).reshape(blocks, n, *self.shape[1:]).astype(self.kind)
        if n != self.shape[0]:
            raise ValueError("noise from a fitted model comes for all units at once: not together with subsample=True")
        problem, params = self.law
        keys = random.split(rng_key, blocks)
        drawn = jax.vmap(lambda key: next(iter(problem.simulate(params, key).values())))(keys)
        return drawn.reshape(blocks, *self.shape).astype(self.kind)

    def log_prob(self, y: Array) -> Array:
        """``(blocks, n)``"""
        if self.argument is None:
            value = self.law.log_prob(y)
            return jnp.sum(value.reshape(*y.shape[:2], -1), axis=-1)
        problem, params = self.law
        argument = self.argument
        return jax.vmap(
            lambda one: LikelihoodProblem.terms(
                problem, params, {**problem.data, argument: one.reshape(problem.data[argument].shape)}
            )[0]
        )(y)


def build(given: Any, x: np.ndarray, support: constraints.Constraint, who: str, name: str) -> Noise:
    """The noise that was asked for, or one fitted to the data.

    Args:
        x: the data, ``(n, *event)``; `name`: of the argument that holds them.

    Raises:
        ValueError: noise of another shape, or one that does not cover the data.
    """
    given = given.value if isinstance(given, Held) else given
    argument = None
    if given is None:
        law = fitted(x, support)
    elif _is_fit(given):
        problem = given.problem
        if not hasattr(problem, "log_likelihood") or not isinstance(problem, LikelihoodProblem):
            raise ValueError(
                f"noise must be the fit of a normalised model (MLE or MAP), got one of {given.estimator!r}"
            )
        argument = data_argument.find(problem, None, who)
        if jnp.shape(problem.data[argument]) != x.shape:
            raise ValueError(
                f"noise was fitted to data of shape {jnp.shape(problem.data[argument])}, data[{name!r}] has {x.shape}: "
                "fit it to the same data"
            )
        cast = lambda v: v.astype(x.dtype) if _is_float(v) and x.dtype.kind == "f" else v  # noqa: E731
        law = jax.tree.map(cast, (problem, given.unconstrained))
    else:
        law = given
    noise = Noise(law, x.shape, x.dtype, argument)
    event = getattr(given, "event_shape", None)
    if argument is None and event is not None and (*given.batch_shape, *event) not in (x.shape[1:], ()):
        raise ValueError(
            f"noise has shape {(*given.batch_shape, *event)}, one unit of data[{name!r}] has {x.shape[1:]}"
        )
    if argument is None and given is not None and event is not None and (*given.batch_shape, *event) != x.shape[1:]:
        noise = Noise(given.expand(x.shape[1:]), x.shape, x.dtype)
    log_prob = np.asarray(noise.log_prob(jnp.asarray(x)[None]))[0]
    if not np.isfinite(log_prob).all():
        i = int(np.argmin(np.isfinite(log_prob)))
        raise ValueError(
            f"the noise does not cover the data: its log-density at data[{name!r}][{i}] is {log_prob[i]}. Noise must "
            "have density wherever data can be: take a wider one, or noise=None for one fitted to the data"
        )
    return noise


def _is_float(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)


def fitted(x: np.ndarray, support: constraints.Constraint) -> dist.Distribution:
    """A law that covers the support, of the data's own location and spread: independent coordinates unless real.

    Real data: a Gaussian with their mean and covariance; positive: log-normal; bounded: uniform; unit vectors: uniform;
    two values: independent coins; up to `MOST_VALUES` values where data can take no others: their frequencies;
    other whole numbers: negative binomial.
    """
    rows = x.reshape(len(x), -1).astype(np.float64)
    event = x.shape[1:]
    lower, upper = (np.asarray(getattr(support, k, d)) for k, d in (("lower_bound", -np.inf), ("upper_bound", np.inf)))
    shaped = lambda v: jnp.asarray(v, jnp.result_type(float)).reshape(event)  # noqa: E731
    if x.dtype.kind != "f" or support.is_discrete:
        return _discrete(x, shaped, rows, isinstance(support, type(constraints.nonnegative_integer)))
    if isinstance(support, type(constraints.sphere)):
        return dist.ProjectedNormal(jnp.zeros(x.shape[-1]))
    mean, sd = rows.mean(0), np.maximum(rows.std(0), 1e-6)
    if np.isfinite(lower).all() and np.isfinite(upper).all():
        return dist.Uniform(*(jnp.broadcast_to(jnp.asarray(v, jnp.result_type(float)), event) for v in (lower, upper)))
    if np.isfinite(lower).all():
        logs = np.log(np.maximum(rows - lower.reshape(-1), 1e-12 * sd))
        base = dist.LogNormal(shaped(logs.mean(0)), shaped(np.maximum(logs.std(0), 0.1)))
        shift = dist.transforms.AffineTransform(jnp.asarray(lower, jnp.result_type(float)), 1.0)
        return base if not lower.any() else dist.TransformedDistribution(base, shift)
    if len(event) == 1 and len(rows) > rows.shape[1]:
        covariance = np.atleast_2d(np.cov(rows.T, bias=True)) + 1e-6 * np.diag(sd**2)
        kind = jnp.result_type(float)
        return dist.MultivariateNormal(jnp.asarray(mean, kind), jnp.asarray(covariance, kind))
    return dist.Normal(shaped(mean), shaped(sd))


def _discrete(x: np.ndarray, shaped: Callable, rows: np.ndarray, endless: bool) -> dist.Distribution:
    values = np.unique(rows)
    if len(values) <= 2 and not endless:
        low, high = values[0], values[-1] if len(values) > 1 else values[0] + 1
        probs = shaped((np.sum(rows == high, 0) + 0.5) / (len(rows) + 1))
        coin = dist.Bernoulli(probs=probs)
        if (low, high) == (0, 1):
            return coin
        return Lattice(jnp.stack([1 - probs, probs], -1), jnp.asarray([low, high]))
    if len(values) <= MOST_VALUES and not endless:
        counts = np.stack([np.sum(rows == v, 0) for v in values], -1) + 0.5
        probs = counts / counts.sum(-1, keepdims=True)
        return Lattice(jnp.asarray(probs, jnp.result_type(float)).reshape(*x.shape[1:], -1), jnp.asarray(values))
    if values[0] < 0:
        raise ValueError("there is no default noise for discrete data with many values below zero: give noise=")
    mean, variance = rows.mean(0) + 0.01, rows.var(0)
    concentration = np.clip(mean**2 / np.maximum(variance - mean, 1e-2 * mean), 0.1, 100.0)
    return dist.NegativeBinomial2(shaped(mean), shaped(concentration))


class Lattice(dist.Distribution):
    """Independent coordinates on a few values that need not be 0, 1, 2, ...

    :param probs: (*event, K). :param values: (K,), increasing.
    """

    support = constraints.real
    pytree_data_fields = ("probs", "values")

    def __init__(self, probs: Array, values: Array, *, validate_args: bool | None = None) -> None:
        self.probs, self.values = probs, values
        super().__init__(jnp.shape(probs)[:-1], validate_args=validate_args)

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Array:
        assert key is not None
        return self.values[random.categorical(key, jnp.log(self.probs), shape=(*sample_shape, *self.batch_shape))]

    def log_prob(self, value: Array) -> Array:
        hits = value[..., None] == self.values
        return jnp.where(hits.any(-1), jnp.sum(jnp.where(hits, jnp.log(self.probs), 0.0), -1), -jnp.inf)
