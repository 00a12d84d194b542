"""Profile-likelihood intervals: where the loss, minimised over all other parameters, has risen by χ²₁/2."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax import Array, lax
from jax.flatten_util import ravel_pytree
from scipy import stats

from . import curvature
from .covariance import Covariance
from .solve import objective

if TYPE_CHECKING:
    from .result import FitResult

EXPANSIONS = 8
"""Doublings of the Wald half-width before an end is called infinite."""
REFINEMENTS = 25


@eqx.filter_jit
def _ends(problem: Any, params: Any, index: Array, sign: Array, widths: Array, drop: Array) -> tuple[Array, Array]:
    """Value of coordinate `index` at which the profiled loss has risen by `drop`, and whether there is one."""
    z_hat, f, _ = objective(replace(problem, params=params))
    base = f(z_hat)

    def one(k: Array, sign: Array, width: Array) -> tuple[Array, Array]:
        chosen = jnp.arange(z_hat.shape[0]) == k

        def profiled(t: Array, z: Array) -> tuple[Array, Array]:
            """Rise of the loss at distance t, and where the other parameters are there."""
            value = z_hat[k] + sign * t
            # The fixed coordinate gets a parabola of its own, so that the Hessian stays regular.
            fixed = lambda z: f(jnp.where(chosen, value, z)) + 0.5 * ((z[k] - value) / width) ** 2  # noqa: E731
            z, rise, _ = curvature.newton(fixed, jnp.where(chosen, value, z), max_steps=50, tolerance=1e-6)
            return rise - base, z

        def expand(carry: tuple) -> tuple:
            low, high, z, _, i = carry
            rise, z_new = profiled(2 * high, z)
            return high, 2 * high, jnp.where(jnp.isfinite(rise), z_new, z), rise, i + 1

        first, z = profiled(width, z_hat)
        low, high, z, rise, _ = lax.while_loop(
            lambda c: (c[3] < drop) & (c[4] < EXPANSIONS), expand, (jnp.zeros_like(width), width, z, first, 0)
        )
        reached = ~(rise < drop)

        def halve(carry: tuple) -> tuple:
            low, high, rise_low, rise_high, z, i = carry
            # √rise is almost linear in t: regula falsi on it, held away from the ends
            a, b, c = jnp.sqrt(jnp.maximum(rise_low, 0)), jnp.sqrt(jnp.maximum(rise_high, 0)), jnp.sqrt(drop)
            share = jnp.where(jnp.isfinite(b) & (b > a), (c - a) / (b - a), 0.5)
            t = low + jnp.clip(share, 0.02, 0.98) * (high - low)
            rise, z_new = profiled(t, z)
            below = rise < drop
            z = jnp.where(jnp.isfinite(rise), z_new, z)
            return (
                jnp.where(below, t, low), jnp.where(below, high, t),
                jnp.where(below, rise, rise_low), jnp.where(below, rise_high, rise), z, i + 1,
            )  # fmt: skip

        rise_low = jnp.where(low > 0, profiled(jnp.maximum(low, 1e-300), z_hat)[0], 0.0)
        low, high, rise_low, rise_high, _, _ = lax.while_loop(
            lambda c: (c[1] - c[0] > 1e-7 * width) & (jnp.abs(c[3] - drop) > 1e-8) & (c[5] < REFINEMENTS),
            halve, (low, high, rise_low, rise, z_hat, 0),
        )  # fmt: skip
        t = jnp.where(jnp.abs(rise_high - drop) < jnp.abs(rise_low - drop), high, low)
        return z_hat[k] + sign * t, reached

    return lax.map(lambda args: one(*args), (index, sign, widths))


def intervals(result: FitResult, covariance: Covariance, prob: float) -> pd.DataFrame:
    """Columns estimate, lower, upper; an end where the likelihood never falls that far is the end of the support.

    Raises:
        ValueError: a loss that is not exact; an element that is a function of several unconstrained ones, as of a
            simplex or a covariance.
    """
    if not 0 < prob < 1:
        raise ValueError(f"prob must lie strictly between 0 and 1, got {prob}")
    problem, params = result.problem, result.unconstrained
    if not problem.deterministic:
        raise ValueError(
            f'method="profile" needs an exact loss, and that of {type(result.estimator).__name__} is drawn: take '
            'method="wald", or MLE where its integral is good enough'
        )
    z, unravel = ravel_pytree(params)
    flat = lambda v: ravel_pytree(problem.constrain(unravel(v)))[0]  # noqa: E731
    jacobian = np.asarray(jax.jacfwd(flat)(z))
    if jacobian.shape[0] != jacobian.shape[1] or np.count_nonzero(jacobian - np.diag(np.diag(jacobian))):
        shared = (jacobian[:, np.count_nonzero(jacobian, axis=0) > 1] != 0).any(1)
        mixed = [n for n, s in zip(covariance.names, shared, strict=True) if s]
        raise ValueError(
            f"profile intervals need elements with a coordinate of their own, and {mixed[0]} shares its coordinates "
            'with others. Take covariance="bootstrap" or Wald intervals'
        )
    d = len(z)
    widths = np.sqrt(np.maximum(np.diag(covariance.unconstrained), 1e-300)) * stats.norm.ppf((1 + prob) / 2)
    widths = np.where(np.isfinite(widths), widths, 1.0)
    index = np.tile(np.arange(d), 2)
    sign = np.repeat([-1.0, 1.0], d)
    drop = jnp.asarray(stats.chi2.ppf(prob, 1) / 2)
    ends, reached = _ends(problem, params, jnp.asarray(index), jnp.asarray(sign), jnp.asarray(np.tile(widths, 2)), drop)
    found = np.where(np.asarray(reached), np.asarray(ends), sign * np.inf)
    bounds = []
    for half in (found[:d], found[d:]):
        # one coordinate at a time: an infinite one must not spoil what the others map to
        bounds.append([float(flat(z.at[k].set(half[k]))[k]) for k in range(d)])
    low, high = np.min(bounds, 0), np.max(bounds, 0)
    return pd.DataFrame({"estimate": covariance.estimate, "lower": low, "upper": high}, index=covariance.names)
