"""Penalties of parameters and their proximal operators.

They act in the user's space, on sites whose support is the whole real line, and add to −log-likelihood, which is a sum
over the data. In that convention

- l1: λ Σ|b|; scikit-learn's Lasso and glmnet divide the likelihood by n, so λ = n·alpha; LogisticRegression: λ = 1/C,
- l2: ½ λ Σ b²; Ridge with unit noise: λ = alpha; PoissonRegressor: λ = n·alpha; LogisticRegression: λ = 1/C,
- group: λ Σ_g √|g| ‖b_g‖₂ (Model Selection and Estimation in Regression with Grouped Variables). Elements that share
  the last index are one group, so a matrix (outputs, features) is selected by features; a vector is one group,
- fused: λ Σ |b_{i+1} − b_i| along the last axis (Sparsity and Smoothness via the Fused Lasso), or along several: with
  both axes of an image that is its anisotropic total variation,
- nonnegative: b ≥ 0.

The proximal operator of a sum is the composition of those of its terms, fused first, then l1, the bound and the group:
each of them keeps the subgradients of those before it (On Decomposing the Proximal Map).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from numpyro.distributions import transforms

from .base import Params
from .frozen import Frozen

KINDS = ("l1", "l2", "group", "fused")


def freeze(kind: str, value: Any) -> Any:
    """A penalty argument, checked and made hashable: a number, or a tuple of (site, strength) sorted by site.

    A strength is a number; for l1 and l2 also an array, one an element; by site, for group also a pair (number, group
    ids), for fused a pair (number, axes).

    Raises:
        ValueError: a strength that is negative or not finite, or of another type.
    """
    if isinstance(value, tuple) and all(isinstance(v, tuple) and len(v) == 2 for v in value):
        value = dict(value)
    if not isinstance(value, Mapping):
        if isinstance(value, tuple) and kind in ("group", "fused"):
            what = "group ids" if kind == "group" else "axes"
            raise ValueError(f"{kind} with {what} goes by site: {kind}={{site: (strength, {what})}}, got {value!r}")
        return _strength(kind, value, kind)
    frozen = ((str(site), _strength(kind, v, f"{kind}[{site!r}]")) for site, v in value.items())
    return tuple(sorted(frozen, key=lambda pair: pair[0]))


def _strength(kind: str, value: Any, what: str) -> Any:
    if kind == "group" and isinstance(value, tuple) and len(value) == 2:
        given = value[1].values if isinstance(value[1], Frozen) else np.asarray(value[1])
        ids = np.unique(given, return_inverse=True)[1].reshape(given.shape)
        return (_strength("group", value[0], what), Frozen(ids))
    if kind == "fused" and isinstance(value, tuple) and len(value) == 2:
        axes = np.ravel(value[1].values if isinstance(value[1], Frozen) else np.asarray(value[1]))
        if axes.dtype.kind not in "if" or not axes.size or not np.array_equal(axes, axes.astype(int)):
            raise ValueError(f"axes of {what} must be integers, as in (strength, (0, 1)), got {value[1]!r}")
        return (_strength("fused", value[0], what), Frozen(axes.astype(int)))
    if isinstance(value, Frozen):
        return value
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        array = np.asarray(np.nan)
    if isinstance(value, bool) or not (np.isfinite(array).all() and (array >= 0).all()):
        raise ValueError(
            f"{what} must be a finite strength that is not negative, or a dict of them by site, got {value!r}"
        )
    if array.ndim and kind in ("group", "fused"):
        raise ValueError(f"{what} must be one number, got an array of shape {array.shape}")
    return Frozen(array) if array.ndim else float(array)


def as_names(value: Any) -> tuple[str, ...]:
    """`nonnegative` as a tuple of site names."""
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, (tuple, list, set, frozenset)) or not all(isinstance(n, str) for n in names):
        raise ValueError(f"nonnegative must be a tuple of site names, got {value!r}")
    return tuple(sorted(names))


class Penalties(eqx.Module):
    """Penalties by site. Strengths are arrays: other strengths compile nothing anew, and a path is a vmap axis."""

    l1: dict[str, Array]
    l2: dict[str, Array]
    group: dict[str, Array]
    fused: dict[str, Array]
    group_ids: tuple[tuple[str, Frozen], ...] = eqx.field(static=True)
    """Group ids of the sites whose groups were given."""
    nonnegative: tuple[str, ...] = eqx.field(static=True)
    fused_axes: tuple[tuple[str, tuple[int, ...]], ...] = eqx.field(static=True, default=())
    """Axes of the sites for which fused has several, or another than the last."""

    @property
    def nonsmooth(self) -> bool:
        return bool(self.l1 or self.group or self.fused or self.nonnegative)

    @property
    def separable(self) -> bool:
        """Whether every element has a term of its own."""
        return not (self.group or self.fused)

    @property
    def iterative(self) -> bool:
        """Whether the proximal operator is found by iteration: almost exact, and dear."""
        return any(len(axes) > 1 for _, axes in self.fused_axes)

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(sorted({*self.l1, *self.l2, *self.group, *self.fused, *self.nonnegative}))

    def scaled(self, factor: Array) -> Penalties:
        """All strengths times a factor."""
        return jax.tree.map(lambda s: s * factor, self)

    def smooth(self, params: Params) -> Array:
        """½ λ Σ b² over all sites with l2."""
        return sum(
            (0.5 * jnp.sum(s * x**2) for n, s in self.l2.items() for x in jax.tree.leaves(params[n])), jnp.zeros(())
        )

    def value(self, params: Params) -> Array:
        """The terms with kinks, the bounds aside."""
        total = jnp.zeros(())
        for name, strength in self.l1.items():
            total += sum(jnp.sum(strength * jnp.abs(x)) for x in jax.tree.leaves(params[name]))
        for name, strength in self.group.items():
            for x in jax.tree.leaves(params[name]):
                ids, sizes = self._groups(name, x)
                norms = jnp.sqrt(jax.ops.segment_sum(jnp.ravel(x) ** 2, ids, len(sizes)))
                total += strength * jnp.sum(jnp.sqrt(sizes) * norms)
        for name, strength in self.fused.items():
            for x in jax.tree.leaves(params[name]):
                total += strength * sum(jnp.sum(jnp.abs(jnp.diff(x, axis=a))) for a in self._axes(name, x))
        return total

    def l1_vector(self, params: Params) -> Params:
        """The l1 strength of every element, of the structure of `params`."""
        zero = {n: jax.tree.map(jnp.zeros_like, v) for n, v in params.items()}
        return zero | {
            n: jax.tree.map(lambda x, s=s: jnp.broadcast_to(s, x.shape), params[n]) for n, s in self.l1.items()
        }

    def bounded(self, params: Params) -> Params:
        """1 where an element is bounded below by zero, else 0, of the structure of `params`."""
        return {n: jax.tree.map(lambda x, b=n in self.nonnegative: jnp.full_like(x, b), v) for n, v in params.items()}

    def project(self, params: Params) -> Params:
        """The nearest values that respect the bounds."""
        return params | {n: jax.tree.map(lambda x: jnp.maximum(x, 0.0), params[n]) for n in self.nonnegative}

    def proximal(self, params: Params, steps: Params) -> Params:
        """argmin value(p) + ½ Σ (p − params)²/steps. `steps` must not vary within a site that has group or fused."""
        out = dict(params)
        for name in self.sites:
            leaves, structure = jax.tree.flatten(params[name])
            own_steps = jax.tree.leaves(steps[name])
            out[name] = jax.tree.unflatten(
                structure, [self._leaf(name, x, t) for x, t in zip(leaves, own_steps, strict=True)]
            )
        return out

    def _leaf(self, name: str, x: Array, step: Array) -> Array:
        if name in self.fused and x.ndim:
            strength, axes = self.fused[name] * jnp.ravel(step)[0], self._axes(name, x)
            if len(axes) > 1:
                x = total_variation_of_image(x, strength, axes)
            else:
                rows = jnp.moveaxis(x, axes[0], -1)
                found = jax.vmap(lambda row: total_variation(row, strength))(rows.reshape(-1, rows.shape[-1]))
                x = jnp.moveaxis(found.reshape(rows.shape), -1, axes[0])
        if name in self.l1:
            x = soft_threshold(x, self.l1[name] * step)
        if name in self.nonnegative:
            x = jnp.maximum(x, 0.0)
        if name in self.group:
            ids, sizes = self._groups(name, x)
            strength = self.group[name] * jnp.ravel(step)[0] * jnp.sqrt(sizes)
            x = group_threshold(jnp.ravel(x), strength, ids).reshape(x.shape)
        return x

    def _axes(self, name: str, x: Array) -> tuple[int, ...]:
        return dict(self.fused_axes).get(name, (x.ndim - 1,) if x.ndim else ())

    def _groups(self, name: str, x: Array) -> tuple[np.ndarray, np.ndarray]:
        """Group of every element, and sizes of the groups; known when tracing."""
        given = dict(self.group_ids)
        if name in given:
            ids = given[name].values.astype(int).ravel()
        elif x.ndim < 2:
            ids = np.zeros(x.size, int)
        else:
            ids = np.broadcast_to(np.arange(x.shape[-1]), x.shape).ravel()
        return ids, np.bincount(ids).astype(float)


def soft_threshold(x: Array, threshold: Array) -> Array:
    """argmin_u ½(u − x)² + threshold·|u|, element by element."""
    return jnp.where(jnp.abs(x) > threshold, x - jnp.sign(x) * threshold, 0.0)


def group_threshold(x: Array, thresholds: Array, ids: np.ndarray) -> Array:
    """argmin_u ½‖u − x‖² + Σ_g thresholds_g ‖u_g‖₂. `x`, `ids`: (D,); `thresholds`: (groups,)."""
    norms = jnp.sqrt(jax.ops.segment_sum(x**2, ids, thresholds.shape[0]))
    safe = jnp.where(norms > 0, norms, 1.0)
    return x * jnp.where(norms > thresholds, 1.0 - thresholds / safe, 0.0)[ids]


def total_variation(y: Array, strength: Array) -> Array:
    """argmin_u ½‖u − y‖² + strength·Σ|u_{i+1} − u_i|, exactly (A Direct Algorithm for 1-D Total Variation Denoising).

    Args:
        y: ``(D,)``
        strength: scalar, not negative.
    """
    n = y.shape[0]
    if n == 1:
        return y
    lam, index = strength, jnp.arange(n)

    # The segment that began at `start` has a value between `low` and `high`; `u_low`, `u_high` are the dual variables
    # that these would give at k, `at_low`, `at_high` the last places where they touched the bounds ±strength.
    class Walk(NamedTuple):
        x: Array
        k: Array
        start: Array
        at_low: Array
        at_high: Array
        low: Array
        high: Array
        u_low: Array
        u_high: Array
        done: Array

    def fill(w: Walk, end: Array, value: Array) -> Array:
        return jnp.where((index >= w.start) & (index <= end), value, w.x)

    def end_low(w: Walk) -> Walk:
        k = w.at_low + 1
        return w._replace(
            x=fill(w, w.at_low, w.low), k=k, start=k, at_low=k, low=y[k], u_low=lam, u_high=y[k] + lam - w.high
        )

    def end_high(w: Walk) -> Walk:
        k = w.at_high + 1
        return w._replace(
            x=fill(w, w.at_high, w.high), k=k, start=k, at_high=k, high=y[k], u_high=-lam, u_low=y[k] - lam - w.low
        )

    def end(w: Walk) -> Walk:
        value = w.low + w.u_low / (w.k - w.start + 1)
        return w._replace(x=fill(w, w.k, value), done=jnp.array(True))

    def jump_down(w: Walk) -> Walk:
        k = w.at_low + 1
        return Walk(fill(w, w.at_low, w.low), k, k, k, k, y[k], y[k] + 2 * lam, lam, -lam, w.done)

    def jump_up(w: Walk) -> Walk:
        k = w.at_high + 1
        return Walk(fill(w, w.at_high, w.high), k, k, k, k, y[k] - 2 * lam, y[k], lam, -lam, w.done)

    def go_on(w: Walk) -> Walk:
        k = w.k + 1
        length = k - w.start + 1
        u_low, u_high = w.u_low + y[k] - w.low, w.u_high + y[k] - w.high
        touches_low, touches_high = u_low >= lam, u_high <= -lam
        return w._replace(
            k=k,
            low=jnp.where(touches_low, w.low + (u_low - lam) / length, w.low),
            high=jnp.where(touches_high, w.high + (u_high + lam) / length, w.high),
            u_low=jnp.where(touches_low, lam, u_low),
            u_high=jnp.where(touches_high, -lam, u_high),
            at_low=jnp.where(touches_low, k, w.at_low),
            at_high=jnp.where(touches_high, k, w.at_high),
        )

    def step(w: Walk) -> Walk:
        last = w.k == n - 1
        following = y[jnp.minimum(w.k + 1, n - 1)]
        at_the_end = jnp.where(w.u_low < 0, 0, jnp.where(w.u_high > 0, 1, 2))
        before = jnp.where(w.u_low + following - w.low < -lam, 3, jnp.where(w.u_high + following - w.high > lam, 4, 5))
        case = jnp.where(last, at_the_end, before)
        return lax.switch(case, (end_low, end_high, end, jump_down, jump_up, go_on), w)

    lam = jnp.asarray(lam, y.dtype)
    zero = jnp.zeros((), index.dtype)
    walk = Walk(y, zero, zero, zero, zero, y[0] - lam, y[0] + lam, lam, -lam, jnp.array(False))
    return lax.while_loop(lambda w: ~w.done, step, walk).x


TV_TOLERANCE = 1e-11
"""Of the last step of the dual, relative to the largest element: so unequal are neighbours that should be equal."""
TV_STEPS = 20_000


def total_variation_of_image(y: Array, strength: Array, axes: tuple[int, ...]) -> Array:
    """argmin_u ½‖u − y‖² + strength·Σ_a Σ|differences of u along axis a|.

    Accelerated projected gradients of the dual, with restarts (Fast Gradient-Based Algorithms for Constrained Total
    Variation Image Denoising and Deblurring Problems), until none is longer than `TV_TOLERANCE`.

    Args:
        y: array of any shape.
        strength: scalar, not negative.
        axes: not negative, each once.
    """

    def differences(u: Array) -> list[Array]:
        return [jnp.diff(u, axis=a) for a in axes]

    def image(dual: list[Array]) -> Array:
        """y − Dᵀ dual."""
        pads = [[(1, 1) if i == a else (0, 0) for i in range(y.ndim)] for a in axes]
        return y + sum(jnp.diff(jnp.pad(p, pad), axis=a) for p, pad, a in zip(dual, pads, axes, strict=True))

    enough = TV_TOLERANCE * jnp.max(jnp.abs(y))

    def step(carry: tuple) -> tuple:
        dual, ahead, t, _, i = carry
        slope = differences(image(ahead))
        new = [jnp.clip(p + d / (4 * len(axes)), -strength, strength) for p, d in zip(ahead, slope, strict=True)]
        moves = [a - b for a, b in zip(new, dual, strict=True)]
        again = sum(jnp.vdot(p - n, m) for p, n, m in zip(ahead, new, moves, strict=True)) > 0  # momentum uphill
        t_new = jnp.where(again, 1.0, 0.5 * (1 + jnp.sqrt(1 + 4 * t**2)))
        pace = jnp.where(again, 0.0, (t - 1) / t_new)
        length = jnp.max(jnp.stack([jnp.max(jnp.abs(n - p), initial=0.0) for n, p in zip(new, ahead, strict=True)]))
        return new, [n + pace * m for n, m in zip(new, moves, strict=True)], t_new, length, i + 1

    zero = [jnp.zeros_like(d) for d in differences(y)]
    start = (zero, zero, jnp.ones((), y.dtype), jnp.array(jnp.inf, y.dtype), 0)
    dual = lax.while_loop(lambda c: (c[3] > enough) & (c[4] < TV_STEPS), step, start)[0]
    return image(dual)


def is_real(transform: Any) -> bool:
    """Whether a bijection to a site's support is the identity: unconstrained values are the user's own."""
    while isinstance(transform, transforms.IndependentTransform):
        transform = transform.base_transform
    return isinstance(transform, transforms.IdentityTransform)


def build(
    given: Mapping[str, Any], nonnegative: tuple[str, ...], params: Params, real: Mapping[str, bool]
) -> Penalties | None:
    """The penalties of a problem, from the frozen arguments of its estimator; None where there are none.

    Args:
        given: kind -> frozen argument (`freeze`).
        params: initial values by site.
        real: whether the support of each site is the real line.

    Raises:
        ValueError: a site that is no parameter or whose support is not real; an array of another shape.
    """
    by_kind: dict[str, dict[str, Array]] = {kind: {} for kind in KINDS}
    ids: list[tuple[str, Frozen]] = []
    axes: list[tuple[str, tuple[int, ...]]] = []
    for kind, value in given.items():
        pairs = value if isinstance(value, tuple) else [(n, value) for n in params] if value else []
        for name, strength in pairs:
            _check_site(f"{kind}", name, params, real, number=not isinstance(value, tuple))
            if isinstance(strength, tuple) and kind == "fused":
                axes.append((name, _checked_axes(name, strength[1].values.astype(int), params)))
                strength = strength[0]
            elif isinstance(strength, tuple):
                _check_shape("group ids of", name, strength[1], params)
                ids.append((name, strength[1]))
                strength = strength[0]
            if isinstance(strength, Frozen):
                _check_shape(f"{kind} strengths of", name, strength, params)
                strength = strength.values
            by_kind[kind][name] = jnp.asarray(strength, jnp.result_type(float))
    for name in nonnegative:
        _check_site("nonnegative", name, params, real)
    clash = sorted({n for n, _ in ids} & set(by_kind["fused"]))
    if clash:
        raise ValueError(f"site {clash[0]!r} has both fused and groups of its own: that penalty has no proximal step")
    found = Penalties(
        **by_kind, group_ids=tuple(sorted(ids, key=lambda p: p[0])), nonnegative=nonnegative,
        fused_axes=tuple(sorted(axes)),
    )  # fmt: skip
    return found if found.sites else None


def _check_site(kind: str, name: str, params: Params, real: Mapping[str, bool], number: bool = False) -> None:
    if name not in params:
        raise ValueError(f"{kind} names {name!r}, which is not estimated (parameters: {', '.join(params)})")
    if not real[name]:
        way = (
            f"give {kind}= a dict of the sites that it shall act on"
            if number else "declare the site with real support, and nonnegative= for a lower bound of zero"
        )  # fmt: skip
        raise ValueError(
            f"{kind} acts on values in the user's space, and the support of {name!r} is not the real line: {way}"
        )


def _checked_axes(name: str, axes: np.ndarray, params: Params) -> tuple[int, ...]:
    shape = getattr(params[name], "shape", ())
    outside = [int(a) for a in axes if not -len(shape) <= a < len(shape)]
    found = tuple(sorted({int(a) % len(shape) for a in axes})) if shape and not outside else ()
    if outside or len(found) < len(axes):
        raise ValueError(f"fused of {name!r} has axes {axes.tolist()}, the site has shape {shape}")
    return found


def _check_shape(what: str, name: str, values: Frozen, params: Params) -> None:
    shape = getattr(params[name], "shape", None)
    if values.values.shape != shape:
        raise ValueError(f"{what} {name!r} have shape {values.values.shape}, the site has {shape}")
