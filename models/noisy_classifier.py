"""The class of a datum that may be under noise: what guides a diffusion to draws of one class.

    def model(x, label):
        network = eqx_module("classifier", ...)  # (x, t) -> logits
        with numpyro.plate("data", len(x)):
            numpyro.sample("label", NoisyClassifier(network, diffusion, x), obs=label)

`estimators.DLSM` trains it under noise, `MLE` on the data as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import Categorical, Distribution, constraints

from .diffusion import Diffusion

__all__ = ["NoisyClassifier"]


class NoisyClassifier(Distribution):
    """label ~ Categorical(softmax network(x_t, t)), where x_t is x under the noise that a diffusion adds until t.

    As a distribution its values are labels 0, 1, ..., C − 1 of the data x as they are, at the process's `t_min`.

    Args:
        network: function of one x_t and a scalar t, with C logits as its value.
        diffusion: of x: the noise process, and the score of all classes together.
        x: data, ``(*batch, *event_shape)`` of the diffusion.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    pytree_data_fields = ("network", "diffusion", "x")
    pytree_aux_fields = ("num_classes",)

    def __init__(self, network: Callable, diffusion: Diffusion, x: Array) -> None:
        if not isinstance(diffusion, Diffusion):
            raise TypeError(f"NoisyClassifier needs the Diffusion of its data, got {type(diffusion).__name__}")
        self.network, self.diffusion, self.x = network, diffusion, diffusion.checked(x)
        one = jax.ShapeDtypeStruct(diffusion.event_shape, self.x.dtype)
        shape = jax.eval_shape(network, one, jax.ShapeDtypeStruct((), self.x.dtype)).shape
        if len(shape) != 1 or shape[0] < 2:
            raise ValueError(f"NoisyClassifier: the network must map x and t to two logits or more, got shape {shape}")
        self.num_classes = shape[0]
        super().__init__(self.x.shape[: self.x.ndim - diffusion.event_dim], ())

    @property
    def process(self) -> Any:
        return self.diffusion.process

    @property
    def support(self) -> constraints.Constraint:
        return constraints.integer_interval(0, self.num_classes - 1)

    def checked(self, value: ArrayLike) -> Array:
        """Labels as integers.

        Raises:
            ValueError: values of another type.
        """
        value = jnp.asarray(value)
        if not jnp.issubdtype(value.dtype, jnp.integer):
            raise ValueError(f"NoisyClassifier observes integer labels 0, 1, ..., got values of type {value.dtype}")
        return value

    def logits(self, x: Array, t: ArrayLike) -> Array:
        """Logits ``(*batch, C)`` of data under noise."""
        return self.diffusion._each(self.network, x, t)

    def log_prob(self, value: ArrayLike) -> Array:
        return Categorical(logits=self.logits(self.x, self.process.t_min)).log_prob(value)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        return Categorical(logits=self.logits(self.x, self.process.t_min)).sample(key, sample_shape)

    def log_likelihood(self, x: Array, t: Array, label: Array) -> Array:
        """log p(label | x_t = x) of one x."""
        return jax.nn.log_softmax(self.network(x, t))[label]

    def guidance(self, label: int) -> Callable[[Array, Array], Array]:
        """∇_x log p(label | x_t = x), for `Diffusion.sample_guided`: draws of this class.

        Raises:
            ValueError: no such label.
        """
        if not 0 <= label < self.num_classes:
            raise ValueError(f"label must be one of 0, ..., {self.num_classes - 1}, got {label!r}")
        return lambda x, t: jax.grad(self.log_likelihood)(x, t, jnp.asarray(label))
