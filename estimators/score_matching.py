"""Score matching: models whose normalising constant nobody knows, fitted by the gradient of their log-density in x."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax, random
from jax.tree_util import Partial
from numpyro import handlers
from numpyro.primitives import Messenger

from . import blocks, data_argument, domains, sliced, tails
from .base import Data, Params
from .checks import check_counts, check_positive
from .frozen import fill
from .guided import full_plates
from .likelihood import MLE, LikelihoodProblem

VARIANTS = ("explicit", "sliced", "denoising")
COVARIANCES = ("sandwich", "bootstrap")
MOST_DIRECTIONS = 4096
"""Dimension of one unit above which the exact divergence is refused."""
BATCH = 16
"""Coordinates whose second derivatives are taken at once."""


@dataclass(frozen=True, init=False)
class ScoreMatching(MLE):
    """Score matching: minimises Σ_i w_i J_i, J_i = ½‖s_i‖² + div s_i, with s_i = ∇_x log p(x_i | parameters).

    The normalising constant of p does not depend on x and drops out, so the model may be an energy
    (``numpyro.factor``) or observe x (``numpyro.sample(..., obs=x)``). Units, parameters, weights and penalties are
    those of `MLE`. An M-estimator: standard errors are the sandwich's. The loss is no likelihood: there are no
    information criteria. Where log p is linear in the parameters the loss is quadratic, and `fit` takes one Newton
    step, the closed form (Estimation of Non-Normalized Statistical Models by Score Matching).

    Args:
        variant: "explicit" takes div s by one derivative a coordinate of x; "sliced" takes vᵀ(∇s)v for random signs v,
            one derivative whatever the dimension (Sliced Score Matching); "denoising"
            matches the score of the data with noise N(0, sigma²) added, so it fits the smoothed density (A Connection
            Between Score Matching and Denoising Autoencoders; each draw with its mirror image, which keeps the
            variance bounded as sigma falls).
        sigma: of "denoising", in the units of x.
        num_directions: directions v, or pairs of noise, a unit.
        variance_reduced: of "sliced": with ½‖s‖². False takes ½(vᵀs)² in its place, where x is in the whole real space:
            a cheaper step for networks with wide input, a noisier one.
        redraw: draw these anew at each step: a stochastic loss, for networks. Else they are drawn once and belong to
            their unit; the loss is exact and its sandwich counts their noise.
        domain: where x lives. "auto" follows the support of the observed site: "real"; "boundary", bounded on one or
            both sides, each coordinate weighted by its distance to the bound, up to one standard deviation of the
            data; "sphere", unit vectors. "nonnegative" weights by x², Hyvärinen's choice, which is less efficient. A
            function g of one unit's x, (D,) to (D,) or a number, is a weight of your own: it must be
            zero at the boundary.
        argument: name of the data argument that carries x; None finds it.
        prior: add the log-prior of latent sites: the mode of a generalised posterior, as `MAP` has it.
        tempered: weight of the loss against the prior.
        covariance: "sandwich", "bootstrap" or ("cluster", ids).
    """

    variant: str = "explicit"
    sigma: float = 0.1
    num_directions: int = 1
    variance_reduced: bool = True
    redraw: bool = False
    domain: str | Callable = "auto"
    argument: str | None = None
    prior: bool = False
    tempered: float = 1.0
    covariance: str | tuple[str, Any] = "sandwich"
    valid_covariances = COVARIANCES
    """Kinds that hold for this estimator: the curvature alone says nothing of its variance."""

    def __init__(self, variant: str = "explicit", **options: Any) -> None:
        fill(self, {"variant": variant, **options})

    @property
    def has_prior(self) -> bool:  # type: ignore[override]
        return self.prior

    @property
    def exact(self) -> bool:  # type: ignore[override]
        return not self.redraw and not self.subsample

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {self.variant!r}")
        check_positive("sigma, the noise scale,", self.sigma)
        check_counts(num_directions=self.num_directions)
        if self.redraw and self.variant == "explicit":
            raise ValueError('redraw=True is for the variants that draw: "sliced" and "denoising"')
        if not self.variance_reduced and self.variant != "sliced":
            raise ValueError(f'variance_reduced=False is for variant="sliced", not {self.variant!r}')
        if not callable(self.domain) and self.domain not in domains.DOMAINS:
            raise ValueError(f"domain must be one of {', '.join(domains.DOMAINS)} or a function, got {self.domain!r}")
        check_positive("tempered", self.tempered)
        check_options(self, self.valid_covariances)

    def problem(self, rng_key: Array, model: Callable, guide: Callable | None, data: Data) -> ScoreMatchingProblem:
        problem: ScoreMatchingProblem = ScoreMatchingProblem.create(self, rng_key, model, data)  # type: ignore[assignment]
        check_latents(problem)
        problem = replace(problem, argument=data_argument.find(problem, self.argument, "ScoreMatching"))
        support = data_argument.support_of(problem, problem.params)
        x = checked_reals(problem, support)
        moved = data_argument.support_of(problem, jax.tree.map(lambda p: p + 0.25, problem.params))
        if not domains.same_bounds(support, moved):
            raise ValueError(
                f"the support of the data ({support}) depends on the parameters: score matching says nothing of where "
                "a density ends. Fix its bounds, or take MLE"
            )
        problem = replace(problem, plate=subsampled_plate(problem))
        domain = domains.resolve(self.domain, support, x, problem.flat_shape, "ScoreMatching", problem.argument)
        if self.variant == "denoising" and domain.kind != "real":
            raise ValueError(
                f'variant="denoising" needs x on the whole real space: noise leaves the domain {domain.kind!r}. Take '
                '"explicit" or "sliced"'
            )
        if not self.variance_reduced and domain.kind != "real":
            raise ValueError(
                "variance_reduced=False takes ½(vᵀs)² for ½‖s‖², which needs x on the whole real space, not in the "
                f"domain {domain.kind!r}: take variance_reduced=True"
            )
        problem = replace(problem, domain=domain)
        n, d = problem.flat_shape
        if self.variant == "explicit" and d > MOST_DIRECTIONS:
            raise ValueError(
                f"one unit has {d} coordinates, too many for the exact divergence: put independent rows into a plate, "
                'or take variant="sliced"'
            )
        if self.variant != "explicit" and not self.redraw:
            # fold_in(key, i) is split(key)[i], and the model's own keys are splits: a number that no split reaches
            draws = problem.draw(random.fold_in(rng_key, 2**31 - 1), (n, d))
            problem = replace(problem, draws=draws)
        _check(problem)
        return problem


def check_options(estimator: MLE, covariances: tuple[str, ...]) -> None:
    """Refuse what only likelihoods have.

    Raises:
        ValueError: an option that does not go with an estimator by data at other values of x.
    """
    who = type(estimator).__name__
    for name in ("robust", "data_noise", "mollify"):
        if getattr(estimator, name):
            raise ValueError(f"{who} does not go with {name}={getattr(estimator, name)!r}")
    kind = estimator.covariance if isinstance(estimator.covariance, str) else "cluster"
    if kind not in (*covariances, "cluster"):
        raise ValueError(
            f"{who} is an M-estimator: covariance must be one of {', '.join(covariances)} or ('cluster', ids), got "
            f"{kind!r}, which holds for likelihoods only"
        )


def check_latents(problem: LikelihoodProblem) -> None:
    """
    Raises:
        NotImplementedError: latents to be integrated out.
    """
    roles, who = problem.roles, type(problem.options).__name__
    if roles.integrated:
        names = ", ".join(repr(s.name) for s in roles.integrated)
        raise NotImplementedError(
            f"{who} would integrate {names} out by Laplace's method, whose derivatives are not exact to the order that "
            f'it takes: estimate them, {who}(latents="estimate"), or take MLE'
        )


def checked_reals(problem: Any, support: Any) -> np.ndarray:
    """The data as NumPy has them.

    Raises:
        ValueError: discrete data.
    """
    x = np.asarray(problem.data[problem.argument])
    if x.dtype.kind != "f" or support.is_discrete:
        raise ValueError(
            f"ScoreMatching takes the gradient of log p in data[{problem.argument!r}], and these are discrete (dtype "
            f"{x.dtype}, support {support}): take NCE or ContrastiveDivergence, or pass floats if they are continuous"
        )
    return x


class batch_of(Messenger):
    """The plate of the units at given indices."""

    def __init__(self, name: str, indices: Array) -> None:
        self.name, self.indices = name, indices
        super().__init__()

    def process_message(self, msg: dict) -> None:
        if msg["type"] == "plate" and msg["name"] == self.name:
            msg["value"] = self.indices


def subsampled_plate(problem: LikelihoodProblem) -> tuple[str, int, int] | None:
    """Name, size and batch size of the plate of the units, where it is subsampled.

    Raises:
        NotImplementedError: subsampled plates that are not the units' only one.
    """
    if not (problem.options.subsample and problem.roles.subsampled):
        return None
    trace = handlers.trace(handlers.substitute(problem._prepared(), substitute_fn=problem._values(
        problem.params, {}, data_argument._first_combination(problem)))).get_trace(**problem.data)  # fmt: skip
    plates = [(n, *s["args"]) for n, s in trace.items() if s["type"] == "plate"]
    found = [p for p in plates if p[2] is not None and p[1] != p[2]]
    if len(found) != 1 or len(problem.roles.unit_dims) != 1:
        raise NotImplementedError(
            f"{type(problem.options).__name__} subsamples one plate, that of the units; the model has {found}"
        )
    return found[0]


class PointwiseProblem(LikelihoodProblem):
    """A model whose log-density of every unit is asked at any x: `data_argument` says which data these are."""

    argument: str = eqx.field(static=True, default="")
    plate: tuple[str, int, int] | None = eqx.field(static=True, default=None)
    """Name, size and batch size of the plate that is subsampled."""

    @property
    def log_likelihood(self) -> Any:  # type: ignore[override]
        """The loss is no likelihood: no criteria, tests or profiles follow from it."""
        raise AttributeError(f"{type(self).__name__} has no likelihood")

    @property
    def flat_shape(self) -> tuple[int, int]:
        """(n, D): all units, and the coordinates of one."""
        shape = jnp.shape(self.data[self.argument])
        units = 1 if self.plate else len(self.roles.unit_shape)
        return int(np.prod(shape[:units])), int(np.prod(shape[units:]))

    def density(self, params: Params, data: Data, batch: Array | None = None) -> tuple[Array, Callable, float]:
        """Data of the units ``(n, D)``, their log-density as a function of that, ``(n, D) -> (n,)``, and its scale.

        With a `batch`, see `chosen`: of its units alone, each of which stands for `scale` of them.
        """
        rows, placed, scale = self.placed(data, batch)

        def log_density(x: Array) -> Array:
            moved, context = placed(x)
            with context:
                return LikelihoodProblem.terms(self, params, moved)[0] / scale

        return rows, log_density, scale

    @property
    def has_normaliser(self) -> bool:
        """Whether ∫ p̃ dx is finite whatever the parameters: x has bounds, or is discrete."""
        return not jnp.issubdtype(jnp.asarray(self.data[self.argument]).dtype, jnp.floating)

    def faults(self, params: Params) -> list[str]:
        """Whether the tails have no normaliser."""
        return [] if self.has_normaliser else tails.complaint(float(_share_without_decay(self, params)))

    def placed(self, data: Data, batch: Array | None = None) -> tuple[Array, Callable, float]:
        """As `density`, with a function that puts other x in the place of the data: the new data, and a context in
        which the model is to run on them."""
        own = data[self.argument]
        shape = jnp.shape(own)
        if self.plate is None or batch is None:
            whole = lambda: nullcontext() if self.plate is None else full_plates()  # noqa: E731
            return (
                own.reshape(self.flat_shape),
                lambda x: ({**data, self.argument: x.reshape(shape)}, whole()),
                1.0,
            )
        name, size, count = self.plate

        def of_batch(x: Array) -> tuple[Data, Any]:
            moved = own.at[batch].set(x.reshape(count, *shape[1:]))
            return {**data, self.argument: moved}, batch_of(name, batch)

        return own[batch].reshape(count, -1), of_batch, size / count

    def chosen(self, key: Array | None) -> Array | None:
        """Indices of the units of a batch; None for all of them. A shuffle of all units, so draw it once and hand it
        on."""
        if self.plate is None or key is None:
            return None
        _, size, count = self.plate
        return random.choice(key, size, (count,), replace=False)

    def log_prior(self, params: Params, data: Data) -> Array:
        return LikelihoodProblem.terms(self, params, data)[2]


class ScoreMatchingProblem(PointwiseProblem):
    """Σ_i w_i J_i of one model on one data set."""

    domain: domains.Domain | None = None
    draws: Array | None = None
    """Directions or noise, ``(num_directions, n, D)``, where they are drawn once."""

    @property
    def has_normaliser(self) -> bool:
        return super().has_normaliser or self.domain is None or self.domain.kind != "real"

    @property
    def deterministic(self) -> bool:
        return not self.options.redraw and self.plate is None  # type: ignore[attr-defined]

    def draw(self, rng_key: Array, shape: tuple[int, ...]) -> Array:
        full = (self.options.num_directions, *shape)  # type: ignore[attr-defined]
        kind = self.data[self.argument].dtype
        if self.options.variant == "sliced":  # type: ignore[attr-defined]
            return sliced.signs(rng_key, full, kind)
        return random.normal(rng_key, full, kind)

    def score(self, log_density: Callable, x: Array) -> Array:
        """∇_x log p of every unit, ``(n, D)``."""
        return jax.grad(lambda x: jnp.sum(log_density(x)))(x)

    def terms(self, params: Params, data: Data, rng_key: Array | None = None) -> tuple[Array, Array, Array]:
        """−J_i of every unit ``(n,)``, zero, and the log-prior. What belongs to no unit is constant in x: left out."""
        key = draw_key = None
        if rng_key is not None:
            key, draw_key = random.split(rng_key)
        batch = self.chosen(key)
        x, log_density, scale = self.density(params, data, batch)
        draws = self.draws
        if draws is None and draw_key is not None:
            draws = self.draw(draw_key, x.shape)
        elif draws is not None and batch is not None:
            draws = draws[:, batch]
        variant = self.options.variant  # type: ignore[attr-defined]
        if variant == "denoising":
            value = self._denoising(log_density, x, draws)
        elif variant == "sliced" and draw_key is not None and self.domain.kind == "real":  # type: ignore[union-attr]
            # a stochastic loss takes gradients only; an exact one takes second derivatives too
            reduced = self.options.variance_reduced  # type: ignore[attr-defined]
            value = sliced.objective(params, Partial(_log_density, self, data, batch), x, draws, reduced)
        else:
            value = self._implicit(log_density, x, None if variant == "explicit" else draws)
        prior = self.log_prior(params, data) if self.options.has_prior else jnp.zeros(())
        return -scale * value, jnp.zeros(()), prior

    def _implicit(self, log_density: Callable, x: Array, directions: Array | None) -> Array:
        """½ sᵀA s + div(A s), the divergence exact or along directions ``(m, n, D)``, as the square may be too."""
        assert self.domain is not None
        domain, reduced = self.domain, self.options.variance_reduced  # type: ignore[attr-defined]

        def field(x: Array) -> tuple[Array, Array]:
            s = self.score(log_density, x)
            u = domain.apply(x, s)
            return u, 0.5 * jnp.sum(s * u, axis=-1)

        if directions is not None:
            total = jnp.zeros(x.shape[0], x.dtype)
            for v in directions:
                v = domain.project(x, v)
                (u, value), (du, _) = jax.jvp(field, (x,), (v,))
                square = value if reduced else 0.5 * jnp.sum(v * u, axis=-1) ** 2
                total = total + square + jnp.sum(v * du, axis=-1)
            return total / len(directions)
        (_, value), tangent = jax.linearize(field, x)

        def one(d: Array) -> Array:
            du = tangent(jnp.zeros_like(x).at[:, d].set(1.0))[0]
            return domain.project(x, du)[:, d]

        size = x.shape[1]
        return value + jnp.sum(lax.map(one, jnp.arange(size), batch_size=min(size, BATCH)), axis=0)

    def _denoising(self, log_density: Callable, x: Array, noise: Array | None) -> Array:
        """½‖s(x̃) + ε/σ‖² at x̃ = x ± σε, less ½‖ε‖²/σ², which no parameter enters."""
        assert noise is not None
        return denoising(lambda x: self.score(log_density, x), x, noise, self.options.sigma)  # type: ignore[attr-defined]


def denoising(score: Callable, x: Array, noise: Array, sigma: float) -> Array:
    """½‖s(x̃) + ε/σ‖² at x̃ = x ± σε, less ½‖ε‖²/σ², of every unit ``(n,)``; the mean over noise ``(m, n, D)``."""

    def one(e: Array) -> Array:
        plus, minus = (score(x + sign * sigma * e) for sign in (1.0, -1.0))
        return jnp.sum(0.25 * (plus**2 + minus**2) + 0.5 * (plus - minus) * e / sigma, axis=-1)

    return sum((one(e) for e in noise), jnp.zeros(())) / len(noise)


def _log_density(problem: PointwiseProblem, data: Data, batch: Array | None, params: Params, x: Array) -> Array:
    return problem.density(params, data, batch)[1](x)


@eqx.filter_jit
def _share_without_decay(problem: PointwiseProblem, params: Params) -> Array:
    x, log_density, _ = problem.density(params, problem.data)
    return tails.share_without_decay(log_density, x)


@eqx.filter_jit
def _probe(problem: ScoreMatchingProblem) -> tuple[Array, ...]:
    """At parameters moved off their start: whether scores are finite, whether they and their derivatives are zero, and
    whether one unit's log-density depends on the data of another. At the start: data, and where log p̃ is NaN."""
    keys = iter(random.split(random.key(1), 2 + len(jax.tree.leaves(problem.params))))
    params = jax.tree.map(lambda p: p + 0.3 * random.normal(next(keys), p.shape, p.dtype), problem.params)
    x, log_density, _ = problem.density(params, problem.data, problem.chosen(next(keys)))
    v = random.normal(next(keys), x.shape, x.dtype)
    s, ds = jax.jvp(lambda x: problem.score(log_density, x), (x,), (v,))
    if x.shape[0] > 1:
        c = 1.5 + jnp.sin(jnp.arange(x.shape[0], dtype=x.dtype))
        crossed = jax.grad(lambda x: jnp.sum(c * log_density(x)))(x)
        leak = jnp.any(jnp.abs(crossed - c[:, None] * s) > 1e-3 * jnp.max(jnp.abs(s)))
    else:
        leak = jnp.array(False)
    smooth = jnp.all(jnp.isfinite(s)) & jnp.all(jnp.isfinite(ds))

    def undefined(units: Array | None) -> tuple[Array, Array]:
        x, log_density, _ = problem.density(problem.params, problem.data, units)
        return x, jnp.isnan(log_density(x))

    n = problem.flat_shape[0]  # all units, though no more at once than a step takes
    at = undefined(None) if problem.plate is None else blocks.apply(undefined, jnp.arange(n), problem.plate[2])
    return smooth, jnp.all(s == 0), jnp.all(ds == 0), leak, *at


def _check(problem: ScoreMatchingProblem) -> None:
    """
    Raises:
        ValueError: a log-density that score matching cannot use; see the messages.
    """
    assert problem.domain is not None
    *found, x, undefined = _probe(problem)
    finite, flat, linear, leak = (bool(v) for v in found)
    name = problem.argument
    if (bad := np.asarray(undefined)).any():
        row = int(np.argmax(bad))
        raise ValueError(
            f"the log-density is NaN at {np.asarray(x)[row]}, which is unit {row} of data[{name!r}] "
            f"({int(bad.sum())} of {bad.size} are): is there a logarithm or a root of what is negative there?"
        )
    if finite and flat:
        raise ValueError(f"the log-density of the units does not depend on data[{name!r}]: its score is zero")
    if finite and linear and problem.domain.kind == "real":
        raise ValueError(
            f"the log-density is not twice differentiable in data[{name!r}]: its second derivative is zero everywhere "
            "(an absolute value, a ReLU network). Score matching then has no minimum: take a smooth density, NCE or MLE"
        )
    if finite and leak:
        raise ValueError(
            f"the log-density of one unit depends on data[{name!r}] of another: put what is independent into a plate"
        )
