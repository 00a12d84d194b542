"""Likelihood of a NumPyro model: point estimates by maximum likelihood and maximum a posteriori.

One function of the parameters serves the family: the log-likelihood of every independent unit, with latents that are
not estimated summed or integrated out. Estimates, all covariances, information criteria and EM follow from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array, lax, random
from jax.scipy.special import logsumexp
from numpyro import handlers
from numpyro.distributions.transforms import biject_to
from numpyro.distributions.util import sum_rightmost
from numpyro.infer.initialization import init_to_sample
from numpyro.infer.util import compute_log_probs
from numpyro.primitives import Messenger

from . import marginal, penalties
from .base import Data, Estimator, Metrics, Params, Problem
from .checks import check_number, check_positive, is_count
from .frozen import Frozen
from .guided import full_plates
from .roles import Roles, block_shape, check_lengths, combinations, from_blocks, inspect, is_factor
from .unconstrained import step_of_scan

COVARIANCES = ("observed", "opg", "sandwich", "bootstrap", "parametric_bootstrap")


JITTER = 1e-3
"""Distance from zero, in unconstrained space, of the latents' initial values."""
SHRINKAGE = 0.25
"""Of every other candidate to the mean of all: small enough for components to lie among the data, not to be alike."""


def freeze_covariance(kind: Any) -> Any:
    """A covariance option, checked and made hashable.

    Raises:
        ValueError: an unknown kind; cluster ids that are not one a unit, missing, or all the same.
    """
    if isinstance(kind, tuple) and len(kind) == 2 and kind[0] == "cluster":
        return kind if isinstance(kind[1], Frozen) else ("cluster", Frozen(_cluster_codes(kind[1])))
    if kind not in COVARIANCES:
        raise ValueError(f'covariance must be one of {", ".join(COVARIANCES)} or ("cluster", ids), got {kind!r}')
    return kind


def _cluster_codes(ids: Any) -> np.ndarray:
    given = np.asarray(ids, object)  # before NumPy makes the text "nan" of a missing one among strings
    if given.ndim != 1:
        raise ValueError(f"cluster ids must be one a unit, shape (n,), got shape {given.shape}")
    for i, value in enumerate(given):
        if not _is_id(value):
            raise ValueError(
                f"cluster ids[{i}] is {value}: leave out units whose cluster is not known, or give each an id of its "
                "own if it is independent of the others"
            )
    codes = np.unique(np.asarray(ids), return_inverse=True)[1]
    if not codes.any():  # scores add up to zero at an optimum, so that its sandwich is rounding error
        what = f"all {len(given)} cluster ids are {given[0]!r}" if len(given) else "there are no cluster ids"
        raise ValueError(
            f'covariance=("cluster", ids) needs two clusters or more, and {what}: one cluster says nothing of how '
            'clusters vary. Give ids that tell independent groups apart, or take "sandwich" if units are independent'
        )
    return codes


def _is_id(value: Any) -> bool:
    """Whether a value equals itself, as NaN, NaT and pandas' NA do not, and is not None."""
    same = value == value
    return value is not None and isinstance(same, (bool, np.bool_)) and bool(same)


@dataclass(frozen=True)
class MLE(Estimator):
    """Maximum likelihood: minimises −Σ_i w_i log p(x_i | parameters), in nats, not divided by n.

    Parameters are the model's `param` sites and the latent sites that are estimated, whose priors are dropped. Units i
    are the elements of the plates that observed sites share (without plates: the elements of the observed sites).

    Args:
        covariance: standard errors by "observed" information H⁻¹, "opg" G⁻¹, "sandwich" H⁻¹GH⁻¹, ("cluster", ids),
            "bootstrap" or "parametric_bootstrap"; H = −Σ∇²ℓ_i, G = Σ∇ℓ_i∇ℓ_iᵀ.
        latents: "auto" integrates random effects out, which are the latent sites whose own prior depends on a parameter
            or that lie in a plate with observations, and estimates the others; "estimate" estimates all continuous
            ones; a tuple of names estimates these and integrates the others. Discrete latents are always summed out.
        num_nodes: quadrature nodes per integrated dimension; 1 is Laplace's method.
        weights: one weight a unit (survey weights, density ratios under covariate shift), ``(n,)``, non-negative.
        robust: q of the maximum Lq-likelihood, which replaces log p by (p^q − 1)/q and so bounds the pull of outliers
            (Maximum Lq-likelihood Estimation); 0 is the likelihood.
        data_noise: standard deviation of noise that is added anew to the observed sites at each step: the likelihood
            of a distribution on a low-dimensional set is unbounded without it (A Likelihood Approach to Nonparametric
            Estimation of a Singular Distribution). Makes the loss stochastic.
        mollify: from 0 to 1, the share of noise that the data start from: the loss sees m + √(1 − σ_t²)(x − m) +
            σ_t s ε, m and s the mean and sd of a site's values, σ_t brought from `mollify` to zero along a
            cosine in `mollify_steps` steps, half of those of a fit (One-Line-of-Code Data Mollification Improves
            Optimization of Likelihood-based Generative Models). Makes the loss stochastic.
        l1, l2, group, fused: penalties added to the loss, by strength: a number for all parameters or a dict by site
            (`estimators.penalties` has the formulas). Under those with kinks `fit` takes proximal steps, estimates can
            be exactly zero, and there are no standard errors.
        nonnegative: names of sites with real support that are held at or above zero.
        subsample: honour the subsampling of the model's plates (a stochastic loss); False uses all data.
    """

    covariance: str | tuple[str, Any] = "observed"
    latents: str | tuple[str, ...] = "auto"
    num_nodes: int = 1
    weights: Any = None
    robust: float = 0.0
    data_noise: float = 0.0
    subsample: bool = False
    mollify: float = 0.0
    mollify_steps: int = 500
    l1: Any = 0.0
    l2: Any = 0.0
    group: Any = 0.0
    fused: Any = 0.0
    nonnegative: tuple[str, ...] = ()
    needs_guide = False
    has_prior = False
    """Whether the prior of estimated latent sites counts."""
    has_jacobian = False
    """Whether it counts as a density of the unconstrained values."""

    @property
    def exact(self) -> bool:  # type: ignore[override]
        return not self.data_noise and not self.mollify and not self.subsample

    @property
    def penalties(self) -> dict[str, Any]:
        """Penalty arguments by kind."""
        return {kind: getattr(self, kind) for kind in penalties.KINDS}

    @property
    def penalised(self) -> bool:
        """Whether the estimate is more than a maximum of likelihood (and prior)."""
        return any(bool(v) for v in self.penalties.values()) or bool(self.nonnegative)

    @property
    def nonsmooth(self) -> bool:
        """Whether the penalties have kinks."""
        return bool(self.l1 or self.group or self.fused or self.nonnegative)

    def __post_init__(self) -> None:
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        put("covariance", freeze_covariance(self.covariance))
        if isinstance(self.latents, (list, set, frozenset)):
            put("latents", tuple(self.latents))
        if not isinstance(self.latents, tuple) and self.latents not in ("auto", "estimate"):
            raise ValueError(f'latents must be "auto", "estimate" or a tuple of site names, got {self.latents!r}')
        if not is_count(self.num_nodes) or self.num_nodes > 100:
            raise ValueError(f"num_nodes must be an integer from 1 to 100, got {self.num_nodes!r}")
        if self.weights is not None and not isinstance(self.weights, Frozen):
            put("weights", Frozen(_checked_weights(self.weights)))
        check_number("robust", self.robust, 0)
        check_number("data_noise", self.data_noise, 0)
        check_number("mollify", self.mollify, 0, 1)
        check_number("mollify_steps", self.mollify_steps, 1)
        for kind, value in self.penalties.items():
            put(kind, penalties.freeze(kind, value))
        put("nonnegative", penalties.as_names(self.nonnegative))
        if self.nonsmooth and not self.exact:
            raise ValueError(
                "l1, group, fused and nonnegative need an exact loss: not together with data_noise, mollify or "
                "subsample"
            )
        if self.penalised and self.has_jacobian:
            raise ValueError(f"{type(self).__name__} approximates a posterior: give the sites a prior, not a penalty")

    def static(self) -> MLE:
        """The estimator without what enters a problem as arrays, so that other weights or strengths compile nothing."""
        return replace(self, weights=None, l1=0.0, l2=0.0, group=0.0, fused=0.0, nonnegative=())

    def problem(self, rng_key: Array, model: Callable, guide: Callable | None, data: Data) -> LikelihoodProblem:
        return LikelihoodProblem.create(self, rng_key, model, data)


def _checked_weights(weights: Any) -> np.ndarray:
    try:
        weights = np.asarray(weights, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"weights must be numbers, one a unit, shape (n,), got {str(weights)[:60]!r}") from None
    if weights.ndim != 1:
        raise ValueError(f"weights must be one a unit, shape (n,), got shape {weights.shape}")
    bad = ~(np.isfinite(weights) & (weights >= 0))
    if bad.any():
        i = int(np.argmax(bad))
        raise ValueError(f"weights[{i}] is {weights[i]}: weights must be finite and not negative")
    if not weights.sum() > 0:
        raise ValueError("weights are all zero: no unit counts")
    return weights


@dataclass(frozen=True)
class MAP(MLE):
    """Maximum a posteriori: MLE with the log-prior of the estimated latent sites added.

    The density is the one in the user's space, as in Stan's optimiser; `Laplace` has the mode in unconstrained space.

    Args:
        tempered: power of the likelihood, the learning rate of a generalised posterior; the rest as in `MLE`.
    """

    latents: str | tuple[str, ...] = "estimate"
    tempered: float = 1.0
    has_prior = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("tempered", self.tempered)


class _replace_observed(Messenger):
    """Other values at the observed sites, and noise in them: additive of sd `noise`, or a share `mollify` of it."""

    def __init__(
        self, fn: Callable, values: dict[str, Array], noise: float = 0.0, key: Array | None = None,
        mollify: Array | None = None,
    ) -> None:  # fmt: skip
        self.values, self.noise, self.key, self.mollify = values, noise, key, mollify
        super().__init__(fn)

    def process_message(self, msg: dict) -> None:
        if msg["type"] != "sample" or not msg["is_observed"]:
            return
        if msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]
        if self.key is None or msg["fn"].support.is_discrete or is_factor(msg):
            return
        value = jnp.asarray(msg["value"])
        if self.noise:
            self.key, key = random.split(self.key)
            value = value + self.noise * random.normal(key, value.shape, value.dtype)
        if self.mollify is not None:
            self.key, key = random.split(self.key)
            axes = tuple(range(value.ndim - msg["fn"].event_dim))  # one mean and sd an element of the event
            mean, sd = jnp.mean(value, axes), jnp.std(value, axes)
            fresh = sd * random.normal(key, value.shape, value.dtype)
            value = mean + jnp.sqrt(1 - self.mollify**2) * (value - mean) + self.mollify * fresh
        msg["value"] = value


class unobserve(Messenger):
    """Draw the observed sites anew, factors aside."""

    def process_message(self, msg: dict) -> None:
        if msg["type"] == "sample" and msg["is_observed"] and not is_factor(msg):
            msg["is_observed"], msg["value"] = False, None


class LikelihoodProblem(Problem):
    """−log-likelihood, or −log-posterior, of one model on one data set."""

    options: MLE = eqx.field(static=True)
    """The estimator, its weights aside: these are data."""
    model: Callable
    transforms: dict[str, Any]
    roles: Roles = eqx.field(static=True)
    params: Params
    data: dict[str, Any]
    weights: Array
    """``(n,)``, or a scalar one where all units count alike."""
    observed: dict[str, Array]
    """Values in place of those that the model observes: replicates of a parametric bootstrap."""
    penalties: penalties.Penalties | None = None
    memory: Any = None
    """Steps taken, where the loss is mollified."""

    @classmethod
    def create(cls, estimator: MLE, rng_key: Array, model: Callable, data: Data) -> LikelihoodProblem:
        """Inspect the model, give every site its role, and draw initial values.

        Raises:
            ValueError: nothing to estimate, weights or clusters of another length, an integral or sum too large.
        """
        roles, transforms = inspect(estimator, model, dict(data))
        weights = jnp.ones(()) if estimator.weights is None else jnp.asarray(estimator.weights.values)
        problem = cls(
            options=estimator.static(), model=model, transforms=transforms, roles=roles, params={},
            data=dict(data), weights=weights, observed={},
            memory=jnp.zeros((), jnp.int32) if estimator.mollify else None,
        )  # fmt: skip
        check_lengths(estimator, roles)
        problem = replace(problem, params=_initial(problem, rng_key))
        if not estimator.penalised:
            return problem
        given = penalties.build(estimator.penalties, estimator.nonnegative, problem.params, _real_supports(problem))
        return replace(problem, penalties=given)

    @property
    def deterministic(self) -> bool:
        return self.options.exact or not (self.options.data_noise or self.options.mollify or self.roles.subsampled)

    @property
    def nonsmooth(self) -> bool:
        return self.penalties is not None and self.penalties.nonsmooth

    @property
    def solver(self) -> str | None:
        """L-BFGS first for mixtures: far from a maximum Newton's steps follow negative curvature astray."""
        return "lbfgs_newton" if self.roles.mixture else None

    @property
    def num_units(self) -> int:
        """Independent units n, by which BIC and the sandwich count."""
        return self.roles.num_units

    def init(self, rng_key: Array) -> Params:
        """Param sites as the model draws them; latents beside zero in unconstrained space.

        Not at zero: that is where gradients of absolute values (NumPyro's Bernoulli has one) and symmetric saddles are.
        """
        model_key, jitter_key = random.split(rng_key)

        def zeros(site: dict) -> Array | None:
            if site["type"] == "sample" and not site["is_observed"] and not site["fn"].support.is_discrete:
                bijection = biject_to(site["fn"].support)
                return bijection(jnp.zeros(bijection.inverse_shape(site["fn"].shape())))
            return None

        tr = handlers.trace(handlers.substitute(self._prepared(model_key), substitute_fn=zeros)).get_trace(**self.data)
        out = {}
        for name, site in tr.items():
            if site["type"] == "param":
                out[name] = self.transforms[name].inv(site["value"])
            elif name in self.roles.estimated:
                jitter_key, key = random.split(jitter_key)
                shape = biject_to(site["fn"].support).inverse_shape(jnp.shape(site["value"]))
                out[name] = JITTER * random.normal(key, shape)
        return {
            n: jax.tree.map(lambda x: lax.convert_element_type(x, jnp.result_type(x, float)), v) for n, v in out.items()
        }

    def drawn(self, rng_key: Array) -> Params:
        """Param sites as the model draws them, latent sites drawn from their prior (feasible where it is improper)."""
        model = handlers.substitute(self._prepared(rng_key), substitute_fn=init_to_sample)
        tr = handlers.trace(model).get_trace(**self.data)
        out = {}
        for name, site in tr.items():
            if site["type"] == "param":
                out[name] = self.transforms[name].inv(site["value"])
            elif name in self.roles.estimated:
                out[name] = biject_to(site["fn"].support).inv(site["value"])
        return {
            n: jax.tree.map(lambda x: lax.convert_element_type(x, jnp.result_type(x, float)), v) for n, v in out.items()
        }

    def candidates(self, rng_key: Array, num: int) -> Params:
        """Draws of the prior, every other one brought nearer to their mean: priors are wide, and raw draws far off."""
        if not self.roles.estimated:
            return None
        draws = jax.vmap(self.drawn)(random.split(rng_key, num))
        near = jnp.arange(num) % 2 == 1

        def shrink(x: Array) -> Array:
            mean = jnp.mean(x, axis=0)
            return jnp.where(near.reshape(-1, *[1] * (x.ndim - 1)), mean + SHRINKAGE * (x - mean), x)

        return jax.tree.map(shrink, draws)

    def _prepared(self, rng_key: Array | int = 0) -> Callable:
        model = handlers.seed(self.model, rng_key)
        return model if self.options.subsample else full_plates(model)

    def _values(self, params: Params, extra: dict[str, Array], combination: Array | None) -> Callable:
        """What `handlers.substitute` asks at every site."""
        index = {s.name: i for i, s in enumerate(self.roles.enumerated)}

        def substitute(site: dict) -> Any:
            name = site["name"]
            if site["type"] == "param":
                return self.transforms[name](params[name])
            if site["type"] != "sample":
                return None
            if name in extra or name in self.roles.estimated:
                x = extra[name] if name in extra else params[name]
                return biject_to(site["fn"].support)(step_of_scan(site, x))
            if combination is not None and name in index:
                support = site["fn"].enumerate_support(expand=False)
                return jnp.broadcast_to(support[combination[index[name]]], site["fn"].shape())
            return None

        return substitute

    def _log_probs(
        self, params: Params, data: Data, key: Array | None, extra: dict[str, Array], combination: Array | None
    ) -> tuple[dict[str, Array], dict]:
        model = handlers.substitute(
            self._prepared(0 if key is None else key), substitute_fn=self._values(params, extra, combination)
        )
        # fold_in(key, i) is split(key)[i], which NumPyro's seed handler uses: a number that it does not reach
        noise_key = None if key is None else random.fold_in(key, 2**31 - 1)
        share = None
        if self.memory is not None and self.options.mollify:
            done = jnp.minimum((self.memory - 1) / self.options.mollify_steps, 1.0)
            share = self.options.mollify * 0.5 * (1 + jnp.cos(jnp.pi * done))
        model = _replace_observed(model, self.observed, self.options.data_noise, noise_key, share)
        if not self.options.has_prior:  # nobody asks for it: not even to be traced
            model = handlers.block(model, hide=list(self.roles.estimated))
        return compute_log_probs(model, (), dict(data), {}, sum_log_prob=False)

    def _split(self, params: Params, data: Data, key: Array | None, extra: dict[str, Array],
               combination: Array | None) -> tuple[Array, Array, Array]:  # fmt: skip
        """Log-likelihood of the units ``(n,)``, that of sites outside of them, and the log-prior of estimated sites."""
        log_probs, tr = self._log_probs(params, data, key, extra, combination)
        roles = self.roles
        hidden = {s.name for s in roles.integrated + roles.enumerated}
        units: list[Array] = []
        rest = prior = jnp.zeros(())
        for name, log_prob in log_probs.items():
            if name in extra:  # a density in R^d, where it is integrated
                log_prob = log_prob + _log_det(tr[name], extra[name])
            if name in roles.estimated:
                if self.options.has_prior:
                    prior = prior + jnp.sum(log_prob)
                if self.options.has_jacobian:
                    prior = prior + jnp.sum(_log_det(tr[name], params[name]))
            elif name in roles.units or (name in hidden and roles.blocks):
                units.append(_to_units(log_prob, roles.unit_dims))
            else:
                rest = rest + jnp.sum(log_prob)
        if not roles.unit_dims and len({u.shape for u in units}) > 1:
            return jnp.concatenate([jnp.ravel(u) for u in units]), rest, prior
        total = sum(units[1:], units[0]) if units else jnp.zeros((1,))
        return jnp.ravel(total), rest, prior

    def terms(self, params: Params, data: Data, rng_key: Array | None = None) -> tuple[Array, Array, Array]:
        """Log-likelihood of every unit ``(n,)``, of what belongs to no unit, and the log-prior (zero for `MLE`)."""
        roles = self.roles
        if not roles.integrated and not roles.enumerated:
            return self._split(params, data, rng_key, {}, None)
        if roles.blocks:

            def block(extra: dict, combination: Array | None) -> Array:
                return self._split(params, data, rng_key, extra, combination)[0]
        else:

            def block(extra: dict, combination: Array | None) -> Array:
                units, rest, _ = self._split(params, data, rng_key, extra, combination)
                return (jnp.sum(units) + rest)[None]

        if roles.enumerated:
            values = logsumexp(jax.vmap(lambda c: block({}, c))(combinations(roles)), axis=0)
        else:
            u = jnp.full(block_shape(roles), JITTER, jnp.result_type(float))
            values = marginal.integrate(lambda u: block(from_blocks(u, roles), None), u, self.options.num_nodes)
        first = {s.name: jnp.zeros(s.shape) for s in roles.integrated}
        combination = combinations(roles)[0] if roles.enumerated else None
        _, rest, prior = self._split(params, data, rng_key, first, combination)
        return values, rest if roles.blocks else jnp.zeros(()), prior

    def pointwise(self, params: Params, data: Data) -> Array:
        return -self.terms(params, data)[0]

    def log_likelihood(self, params: Params, data: Data) -> Array:
        """Σ_i w_i ℓ_i and what belongs to no unit, in nats."""
        units, rest, _ = self.terms(params, data)
        return jnp.sum(self.weights * units) + rest

    def responsibilities(self, params: Params, data: Data) -> Array:
        """p(z | x, parameters) of every joint value of the discrete latents, ``(values, n)``."""
        joint = jax.vmap(lambda c: self._split(params, data, None, {}, c)[0])(combinations(self.roles))
        return jax.nn.softmax(joint, axis=0)

    def smooth(self, params: Params, rng_key: Array, data: Data) -> Array:
        units, rest, prior = self.terms(params, data, None if self.deterministic else rng_key)
        if self.options.robust:
            units = jnp.expm1(self.options.robust * units) / self.options.robust
        value = jnp.sum(self.weights * units) + rest
        # only what counts: every operation on zeros is traced, differentiated and batched like any other
        power = getattr(self.options, "tempered", 1.0)
        if power != 1:
            value = power * value
        if self.options.has_prior or self.options.has_jacobian:
            value = value + prior
        value = -value
        if self.penalties is not None:
            value = value + self.penalties.smooth(params)
        return value

    def loss(self, params: Params, rng_key: Array, data: Data) -> tuple[Array, Metrics]:
        value = self.smooth(params, rng_key, data)
        return value if self.penalties is None else value + self.penalty(params), {}

    def penalty(self, params: Params) -> Array:
        return jnp.zeros(()) if self.penalties is None else self.penalties.value(params)

    def project(self, params: Params) -> Params:
        return params if self.penalties is None else self.penalties.project(params)

    def proximal(self, params: Params, steps: Params) -> Params:
        return params if self.penalties is None else self.penalties.proximal(params, steps)

    def refresh(self, memory: Any, params: Params, rng_key: Array) -> Any:
        return memory + 1

    def with_memory(self, memory: Any) -> LikelihoodProblem:
        return replace(self, memory=memory)

    def constrain(self, params: Params) -> dict[str, Array]:
        """Param sites and estimated latent sites in the user's space."""
        extra = {s.name: jnp.zeros(s.shape) for s in self.roles.integrated}
        combination = combinations(self.roles)[0] if self.roles.enumerated else None
        model = handlers.substitute(self._prepared(), substitute_fn=self._values(params, extra, combination))
        tr = handlers.trace(model).get_trace(**self.data)
        return {n: tr[n]["value"] for n in params}

    def unconstrain(self, values: Mapping[str, Any]) -> Params:
        out = {}
        given = {n: _as_value(n, v) for n, v in values.items()}
        extra = {s.name: jnp.zeros(s.shape) for s in self.roles.integrated}
        combination = combinations(self.roles)[0] if self.roles.enumerated else None
        others = self._values(self.params, extra, combination)
        model = handlers.substitute(
            self._prepared(), substitute_fn=lambda site: given.get(site["name"], others(site))
        )  # fmt: skip
        unknown = sorted(set(given) - set(self.params))
        if unknown:
            raise ValueError(
                f"start names {unknown[0]!r}, which is not a parameter (parameters: {', '.join(self.params)})"
            )
        shapes = jax.eval_shape(self.constrain, self.params)
        for name, value in given.items():
            found, wanted = (jax.tree.map(jnp.shape, x) for x in (value, shapes[name]))
            if found != wanted and isinstance(found, tuple) and isinstance(wanted, tuple):
                raise ValueError(f"start[{name!r}] has shape {value.shape}, the site has {shapes[name].shape}")
            if found != wanted:
                raise ValueError(f"start[{name!r}] is not a network like the model's: its arrays have other shapes")
        with numpyro.validation_enabled(False):  # a value outside the support is named here
            tr = handlers.trace(model).get_trace(**self.data)
        for name, value in given.items():
            bijection = self.transforms[name] if name in self.transforms else biject_to(tr[name]["fn"].support)
            out[name] = jax.tree.map(bijection.inv, value)
            if not all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(out[name])):
                raise ValueError(f"start[{name!r}] = {value} lies outside the site's support")
        return out

    def simulate(self, params: Params, rng_key: Array) -> dict[str, Array]:
        """New values of the observed sites from the fitted model, latents that are not estimated drawn too."""
        substitute = self._values(params, {}, None)
        was = handlers.trace(handlers.substitute(self._prepared(), substitute_fn=substitute)).get_trace(**self.data)
        # innermost: the seed must see that these sites are to be drawn
        drawn = full_plates(handlers.seed(unobserve(self.model), rng_key))
        tr = handlers.trace(handlers.substitute(drawn, substitute_fn=substitute)).get_trace(**self.data)
        return {
            n: tr[n]["value"]
            for n, site in was.items()
            if site["type"] == "sample" and site["is_observed"] and not is_factor(site)
        }

    def explain(self, params: Params, rng_key: Array, data: Data) -> str:
        """Name the parameter that is not finite, else the sites whose log-density is not."""
        with numpyro.validation_enabled(False):
            for name, value in self.constrain(params).items():
                if not all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(value)):
                    return f"parameter {name!r} is not finite"
            extra = {s.name: jnp.zeros(s.shape) for s in self.roles.integrated}
            combination = combinations(self.roles)[0] if self.roles.enumerated else None
            log_probs, tr = self._log_probs(params, data, None, extra, combination)
            for name, log_prob in log_probs.items():
                inside = tr[name]["fn"].support(tr[name]["value"]) if tr[name]["is_observed"] else True
                if not np.all(inside):
                    index = tuple(np.argwhere(~np.broadcast_to(inside, np.shape(inside)))[0])
                    value = np.asarray(tr[name]["value"])[index]
                    return f"site {name!r} observes {value} at {list(map(int, index))}, outside of its support"
                if not bool(jnp.all(jnp.isfinite(log_prob))):
                    return f"the log-density of site {name!r} is not finite: is its value outside the support?"
        return "a gradient is not finite although every site's log-density is (a square root or logarithm at zero?)"


def _as_value(name: str, value: Any) -> Any:
    """A starting value as an array; a network, by whatever library, as it is."""
    try:
        network = isinstance(value, Mapping | eqx.Module)
        return jax.tree.map(jnp.asarray, value) if network else jnp.asarray(np.asarray(value, float))
    except (TypeError, ValueError):
        raise ValueError(f"start[{name!r}] must be an array of numbers, got {value!r}") from None


@eqx.filter_jit
def _initial(problem: LikelihoodProblem, rng_key: Array) -> Params:
    return problem.init(rng_key)


def _real_supports(problem: LikelihoodProblem) -> dict[str, bool]:
    """Whether the unconstrained values of each parameter are the user's own."""
    found: dict[str, bool] = {}

    def run() -> Array:
        extra = {s.name: jnp.zeros(s.shape) for s in problem.roles.integrated}
        combination = combinations(problem.roles)[0] if problem.roles.enumerated else None
        substitute = problem._values(problem.params, extra, combination)
        tr = handlers.trace(handlers.substitute(problem._prepared(), substitute_fn=substitute)).get_trace(
            **problem.data
        )
        for name in problem.params:
            transform = problem.transforms[name] if name in problem.transforms else biject_to(tr[name]["fn"].support)
            found[name] = penalties.is_real(transform)
        return jnp.zeros(())

    jax.eval_shape(run)
    return found


def _log_det(site: dict, x: Array) -> Array:
    """log |∂ value/∂ unconstrained| of a site, of its batch shape."""
    log_det = biject_to(site["fn"].support).log_abs_det_jacobian(x, site["value"])
    return sum_rightmost(log_det, jnp.ndim(log_det) - jnp.ndim(site["value"]) + site["fn"].event_dim)


def _to_units(log_prob: Array, dims: tuple[int, ...]) -> Array:
    """Sum over all batch dimensions that are not those of the units."""
    if not dims:
        return log_prob
    keep = {log_prob.ndim + d for d in dims}
    others = tuple(a for a in range(log_prob.ndim) if a not in keep)
    return jnp.sum(log_prob, axis=others) if others else log_prob
