"""The contract between estimators (what is optimised) and `inference` (how, and what comes of it).

An estimator turns a model, a guide and data into a `Problem`. A problem is a pytree: everything that changes from
one data set to the next (data, initial values, the affine map that whitens a guide) is an array leaf, everything
that does not (the model, the guide's class, the estimator) is static. Two problems with equal static parts and
equal shapes therefore share one compiled program: that is how a second fit costs no compilation.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

Params = Any
"""A pytree of unconstrained parameter values."""
Data = Mapping[str, Any]
"""Keyword arguments of the model: the model is called as ``model(**data)``."""
Metrics = dict[str, Array]


class Posterior(eqx.Module):
    """Draws from an approximate posterior, with the importance weights that correct them.

    The same key gives the same draws in both methods, so that weights and draws can be paired.
    """

    double: ClassVar[bool] = False
    """Whether draws of a fit in double precision are made in it too; else in the session's precision."""

    @abc.abstractmethod
    def sample(self, rng_key: Array, num_samples: int) -> dict[str, Array]:
        """Draws of the latent and deterministic sites, each of shape ``(num_samples, *event)``."""

    @abc.abstractmethod
    def log_weights(self, rng_key: Array, num_samples: int) -> Array:
        """log p(x, z_s) − log q(z_s) in nats, shape ``(num_samples, *local plates)``.

        The local plates are those that every sample site shares: there the evidence factorises per datum.
        """

    def complete(self, draws: dict[str, Array]) -> dict[str, Array]:
        """Deterministic sites at given latents, each ``(num_samples, *event)``."""
        return {}

    def local_axes(self) -> dict[str, tuple[int, ...]]:
        """Axes of each site's draws that run over the local plates, in their order."""
        return {}


class Problem(eqx.Module):
    """What `inference` needs of an estimator on one model and data set, and nothing more."""

    params: eqx.AbstractVar[Params]
    """Initial values, unconstrained."""
    data: eqx.AbstractVar[dict[str, Any]]
    """Keyword arguments of the model."""

    @property
    def deterministic(self) -> bool:
        """True where the loss is exact (it ignores its key): second-order solvers are allowed."""
        return False

    @property
    def solver(self) -> str | None:
        """The solver of exact losses that suits the problem best; None leaves the choice to `inference`."""
        return None

    @property
    def nonsmooth(self) -> bool:
        """Whether the loss is `smooth` plus a term with kinks, which has a proximal operator."""
        return False

    @property
    def auxiliary(self) -> tuple[str, ...]:
        """Parameters of the estimator's own (inducing inputs, say), which tables of estimates leave out."""
        return ()

    @property
    def has_curvature(self) -> bool:
        """Whether standard errors follow from derivatives of the loss: it is exact, smooth, and an estimating
        equation."""
        return self.deterministic and not self.nonsmooth

    @property
    def loss_tells(self) -> bool:
        """Whether the loss falls as the fit gets better: False where its gradient alone means something."""
        return True

    @property
    def batch(self) -> int:
        """Most losses to evaluate at once, by the memory that each one takes."""
        return 32

    @property
    def factorised(self) -> int:
        """Rows of the matrices that a loss factorises; zero where they are few, whatever the data."""
        return 0

    @property
    def memory(self) -> Any:
        """What a stateful loss remembers between steps (chains, a counter), a pytree; None where it has no state."""
        return None

    def refresh(self, memory: Any, params: Params, rng_key: Array) -> Any:
        """The memory for the next loss; called before each one where there is a memory. Pure, no gradient flows."""
        return memory

    def with_memory(self, memory: Any) -> Problem:
        """The problem whose loss uses this memory."""
        return self

    @abc.abstractmethod
    def init(self, rng_key: Array) -> Params:
        """Initial unconstrained values drawn with another key: the starting points of restarts. Pure, vmappable."""

    def candidates(self, rng_key: Array, num: int) -> Params | None:
        """More starting points for a loss with several minima, with a leading axis; None where there are none."""
        return None

    @abc.abstractmethod
    def loss(self, params: Params, rng_key: Array, data: Data) -> tuple[Array, Metrics]:
        """The scalar to be minimised, and a dict of scalars that the engine logs at every step."""

    @abc.abstractmethod
    def constrain(self, params: Params) -> dict[str, Array]:
        """Parameters in the user's space, keyed by site name."""

    def expect(self, anchor: Params, data: Data) -> Any:
        """What the surrogate needs of its anchor, computed once an anchor: an E-step. A pytree."""
        return anchor

    def surrogate(self, params: Params, expected: Any, data: Data) -> Array:
        """Majorises the loss and touches it at the anchor, up to a constant. `expected` comes from `expect`.

        surrogate(p) − surrogate(anchor) ≥ loss(p) − loss(anchor): what lowers the surrogate lowers the loss, as much or
        more.
        """
        raise NotImplementedError(f"{type(self).__name__} has no surrogate: it is not solved by EM")

    def smooth(self, params: Params, rng_key: Array, data: Data) -> Array:
        """The loss without the terms that have kinks."""
        return self.loss(params, rng_key, data)[0]

    def penalty(self, params: Params) -> Array:
        """The terms with kinks: loss = smooth + penalty."""
        return jnp.zeros(())

    def project(self, params: Params) -> Params:
        """The nearest values at which the loss is defined: starting points are brought there."""
        return params

    def proximal(self, params: Params, steps: Params) -> Params:
        """argmin_p penalty(p) + ½ Σ (p − params)²/steps; `steps` is constant over the elements of a parameter."""
        return params

    def posterior(self, params: Params) -> Posterior | None:
        """The posterior that the fitted parameters stand for; None where there is nothing to draw."""
        return None

    def is_point(self, params: Params) -> bool:
        """Whether the fitted parameters are a point estimate, with standard errors of their own."""
        return self.posterior(params) is None

    def remarks(self, params: Params) -> list[str]:
        """What the estimator itself has to say of its fit, in words, for `diagnose`."""
        return []

    def faults(self, params: Params) -> list[str]:
        """What makes the fit unusable, in words: `diagnose` then says "do not use"."""
        return []

    def report(self, params: Params) -> tuple[list[str], list[str]]:
        """`faults` and `remarks`; at one go where both need the same work."""
        return self.faults(params), self.remarks(params)

    def unconstrain(self, values: Mapping[str, Any]) -> Params:
        """Unconstrained values of the parameters that `values` gives in the user's space; the inverse of `constrain`.

        Raises:
            ValueError: a name that is no parameter, a wrong shape, or a value outside the support.
        """
        raise NotImplementedError

    def finish(self, params: Params) -> Problem:
        """The problem with what is computed once, after the last step (a curvature, say)."""
        return self

    def gradient_parts(self, params: Params, rng_key: Array, data: Data) -> dict[str, Any]:
        """The descent gradient split by role, as ``{"theta": ..., "phi": ...}`` of pytrees keyed by site name."""
        return {"theta": jax.grad(lambda p: self.loss(p, rng_key, data)[0])(params)}

    def explain(self, params: Params, rng_key: Array, data: Data) -> str:
        """In words: which site or parameter makes the loss non-finite at these values."""
        return "the loss is not finite"


class Estimator(abc.ABC):
    """An objective for a NumPyro model. Hashable and immutable: two equal estimators compile once."""

    exact: bool = False
    """Whether its losses ignore their key: `fit` then solves in double precision, by Newton or L-BFGS."""
    needs_guide: bool = True
    """Whether `fit` must resolve a guide (``guide=None`` becomes the default one) before it asks for the problem."""

    @abc.abstractmethod
    def problem(self, rng_key: Array, model: Callable, guide: Callable | None, data: Data) -> Problem:
        """The optimisation problem that this estimator poses.

        Args:
            rng_key: draws initial values.
            model: NumPyro model, called as ``model(**data)``.
            guide: NumPyro guide of the same arguments; None where `needs_guide` is False.
            data: keyword arguments of the model.
        """
