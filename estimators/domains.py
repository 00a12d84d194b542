"""Where data live, as far as score matching must know: weights that vanish at the boundary, tangents of the sphere.

With s = ∇_x log p and a matrix A(x) that is zero at the boundary, integration by parts gives the objective
½ sᵀA s + div(A s) without the normalising constant of p. A = I is Hyvärinen's; a diagonal one serves truncated data
(Some Extensions of Score Matching; Generalized Score Matching for Non-Negative Data; Estimating Density Models with
Truncation Boundaries using Score Matching); the projection on the tangent space serves the sphere (Score Matching
Estimators for Directional Distributions).
"""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.distributions import constraints

DOMAINS = ("auto", "real", "nonnegative", "boundary", "sphere")


class Domain(eqx.Module):
    """The matrix A(x), for all units at once: x and what it acts on are ``(n, D)``."""

    kind: str | Callable = eqx.field(static=True)
    lower: Array
    """Bounds that broadcast with ``(n, D)``; infinite where there are none."""
    upper: Array
    cap: Array
    """Distance to the boundary beyond which a weight no longer grows: far data would have it all, and efficiency and
    the normal approximation would suffer."""

    def weight(self, x: Array) -> Array | None:
        """The diagonal of A, ``(n, D)``; None for the identity and for the sphere."""
        kind = self.kind
        if not isinstance(kind, str):
            return jax.vmap(lambda row: jnp.broadcast_to(kind(row), row.shape))(x)
        if self.kind == "nonnegative":
            return (x - self.lower) ** 2
        if self.kind == "boundary":
            return jnp.minimum(jnp.minimum(x - self.lower, self.upper - x), self.cap)
        return None

    def project(self, x: Array, v: Array) -> Array:
        """The part of v that is tangent to the domain."""
        if self.kind != "sphere":
            return v
        unit = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
        return v - unit * jnp.sum(unit * v, axis=-1, keepdims=True)

    def apply(self, x: Array, s: Array) -> Array:
        """A(x) s."""
        weight = self.weight(x)
        return self.project(x, s) if weight is None else weight * s


def resolve(
    kind: str | Callable, support: constraints.Constraint, x: np.ndarray, shape: tuple[int, int], who: str, name: str
) -> Domain:
    """The domain that was asked for, or for "auto" the one that goes with the support of the observed site.

    Args:
        x: the data; `shape`: (n, D), the same as rows; `name`: of the argument that holds them.

    Raises:
        ValueError: data outside of the domain, or a support that no domain here fits.
    """
    lower, upper = _bounds(support)
    if not isinstance(kind, str):
        made = jax.eval_shape(kind, jax.ShapeDtypeStruct(shape[1:], jnp.result_type(x))).shape
        if made not in ((), (1,), shape[1:]):
            raise ValueError(f"domain= is a function to {made}: of one unit's x, {shape[1:]}, it must give a number or "
                             "a weight for each coordinate")  # fmt: skip
    if kind == "auto":
        kind = _suited(support, lower, upper, who)
    if kind == "nonnegative" and not np.isfinite(lower).all():
        lower = np.zeros(())
    if kind == "boundary" and not (np.isfinite(lower) | np.isfinite(upper)).all():
        raise ValueError(
            f'domain="boundary" needs an observed site whose support has a bound (it has {support}): truncate the '
            'distribution, take domain="nonnegative", or give a function g(x) that is zero at the boundary'
        )
    if kind in ("nonnegative", "boundary"):
        bad = ~((x >= lower) & (x <= upper))
        if bad.any():
            i = tuple(int(k) for k in np.argwhere(bad)[0])
            where = ", ".join(map(str, i))
            raise ValueError(f"data[{name!r}][{where}] is {x[i]}, outside of the domain {kind!r} ({support})")
    if kind == "sphere":
        norms = np.linalg.norm(x.reshape(shape), axis=-1)
        if shape[1] < 2 or not np.allclose(norms, 1, atol=1e-4):
            raise ValueError(
                f"data[{name!r}] must be unit vectors (n, D) for domain='sphere'; norms go from {norms.min():.4g} to "
                f"{norms.max():.4g}"
            )
    rows = x.reshape(shape)
    cap = np.where(np.std(rows, axis=0) > 0, np.std(rows, axis=0), 1.0)
    flat = [np.broadcast_to(v, x.shape).reshape(shape) if v.ndim else v for v in (lower, upper)]
    return Domain(kind, *(jnp.asarray(v, x.dtype) for v in (*flat, cap)))


def same_bounds(a: constraints.Constraint, b: constraints.Constraint) -> bool:
    """Whether two supports of one kind have the same ends."""
    return all(np.array_equal(u, v) for u, v in zip(_bounds(a), _bounds(b), strict=True))


def _bounds(support: constraints.Constraint) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(support, type(constraints.circular)):  # an angle has no boundary
        return np.asarray(-np.inf), np.asarray(np.inf)
    lower, upper = getattr(support, "lower_bound", -np.inf), getattr(support, "upper_bound", np.inf)
    return np.asarray(lower, np.float64), np.asarray(upper, np.float64)


def _suited(support: constraints.Constraint, lower: np.ndarray, upper: np.ndarray, who: str) -> str:
    if isinstance(support, (type(constraints.real), type(constraints.circular))):
        return "real"
    if isinstance(support, type(constraints.sphere)):
        return "sphere"
    if (np.isfinite(lower) | np.isfinite(upper)).all():
        return "boundary"
    raise ValueError(
        f"{who} has no weight for the support {support}: give domain=, one of {', '.join(DOMAINS[1:])} or a function "
        "g(x) that is zero at the boundary"
    )
