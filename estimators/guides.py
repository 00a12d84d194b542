"""The default guide: a Gaussian in coordinates whitened at the posterior mode, Gaussians per datum for local latents.

Optimisers step in the guide's own units. In a model of raw data these differ by orders of magnitude between
parameters, and that is where stochastic VI loses people. Here the global latents are z = loc + scale u with `loc` the
mode and scale scaleᵀ the inverse curvature: the posterior of u is near N(0, I) whatever the units of the data.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpyro
from jax import Array, random
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.primitives import Messenger

from .low_rank import LowRank
from .unconstrained import Site, constrain, unravel


class WhitenedNormal(eqx.Module):
    """NumPyro guide for any model with continuous latents.

    Args:
        model: the NumPyro model, called as ``model(**data)``.
        sites: its latent sites (`unconstrained.latent_sites`).
        loc: mode of the global latents in unconstrained space, shape ``(D,)``.
        scale: lower-triangular factor ``(D, D)`` of their covariance, or standard deviations ``(D,)``, or `LowRank`.
        local_loc, local_scale: starting mean and standard deviation of each local site, of its full-size shape.
        full_rank: learn a full covariance in whitened coordinates, else standard deviations.

    The guide's parameters (``auto_loc``, ``auto_scale_tril`` or ``auto_scale``) are in units of posterior standard
    deviations at the mode. It is an ordinary guide function, with `numpyro.infer.SVI` too.
    """

    model: Callable
    loc: Array
    scale: Array | LowRank
    local_loc: dict[str, Array]
    local_scale: dict[str, Array]
    sites: tuple[Site, ...] = eqx.field(static=True)
    full_rank: bool = eqx.field(static=True)

    @property
    def global_sites(self) -> tuple[Site, ...]:
        return tuple(s for s in self.sites if not s.local)

    def __call__(self, *args: Any, **data: Any) -> dict[str, Array]:
        if args:
            raise TypeError("the default guide takes keyword arguments only: call model and guide as f(**data)")
        # One plate, opened many times: its subsample is drawn when it is made.
        plates = {p[0]: _plate(*p) for site in self.sites if site.local for p in site.plates}
        unconstrained = self._sample_global() | self._sample_local(plates)
        # The model runs only to say what the supports are: nothing else of it is kept, so nothing else is computed.
        model = _at_subsamples(handlers.seed(self.model, 0), plates)
        values, log_dets, _ = constrain(model, data, unconstrained)
        for site in self.sites:
            with _open(site, plates):
                numpyro.sample(
                    site.name,
                    dist.Delta(values[site.name], log_density=-log_dets[site.name], event_dim=site.event_dim),
                )
        return values

    def _sample_global(self) -> dict[str, Array]:
        dimension = self.loc.shape[0]
        if dimension == 0:
            return {}
        loc = numpyro.param("auto_loc", jnp.zeros(dimension, jnp.result_type(float)))
        base: dist.Distribution
        if self.full_rank:
            constraint = dist.constraints.scaled_unit_lower_cholesky
            tril = numpyro.param("auto_scale_tril", jnp.eye(dimension), constraint=constraint)
            base = PaddedNormal(loc, scale_tril=tril)
        else:
            scale = numpyro.param("auto_scale", jnp.ones(dimension), constraint=dist.constraints.positive)
            base = dist.Normal(loc, scale).to_event(1)
        u = numpyro.sample("_auto_latent", base, infer={"is_auxiliary": True})
        if isinstance(self.scale, LowRank):
            z, volume = self.loc + self.scale.times(u), self.scale.log_volume
        elif self.scale.ndim == 2:
            z, volume = self.loc + self.scale @ u, jnp.sum(jnp.log(jnp.abs(jnp.diag(self.scale))))
        else:
            z, volume = self.loc + self.scale * u, jnp.sum(jnp.log(self.scale))
        numpyro.sample("_auto_volume", dist.Delta(0.0, log_density=-volume), infer={"is_auxiliary": True})
        return unravel(z, self.global_sites)

    def _sample_local(self, plates: dict[str, numpyro.plate]) -> dict[str, Array]:
        values = {}
        for site in self.sites:
            if not site.local:
                continue
            event_dim = len(site.shape) - len(self._batch(site))
            with _open(site, plates):
                start, spread = self.local_loc[site.name], self.local_scale[site.name]
                loc = numpyro.param(f"{site.name}_auto_loc", start, event_dim=event_dim)
                scale = numpyro.param(
                    f"{site.name}_auto_scale", spread, constraint=dist.constraints.positive, event_dim=event_dim
                )
                values[site.name] = numpyro.sample(
                    f"_{site.name}_latent", dist.Normal(loc, scale).to_event(event_dim), infer={"is_auxiliary": True}
                )
        return values

    @staticmethod
    def _batch(site: Site) -> range:
        return range(-min(dim for *_, dim in site.plates))


_LANES = 8
"""Numbers that a vector unit takes at once: XLA vectorises a loop over a multiple of so many, not one over ten."""


class PaddedNormal(dist.MultivariateNormal):
    """NumPyro's multivariate normal with the same draws, a third of the time on CPUs: of standard normals of which the
    last few, up to a multiple of `_LANES`, are multiplied by zero.

    Noise stands on the left of the product, where no transpose makes XLA compute it twice.
    """

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        dimension = self.event_shape[0]
        excess = -dimension % _LANES
        noise = random.normal(key, (*sample_shape, *self.batch_shape, 1, dimension + excess))
        tril = jnp.pad(self.scale_tril, ((0, 0),) * (self.scale_tril.ndim - 1) + ((0, excess),))
        return self.loc + (noise @ tril.mT)[..., 0, :]


def _plate(name: str, size: int, subsample_size: int, dim: int) -> numpyro.plate:
    return numpyro.plate(name, size, subsample_size=subsample_size, dim=dim)


def _open(site: Site, plates: dict[str, numpyro.plate]) -> ExitStack:
    stack = ExitStack()
    for name, *_ in site.plates if site.local else ():
        stack.enter_context(plates[name])
    return stack


class _at_subsamples(Messenger):
    """Run a model on the subsamples that these plates have drawn."""

    def __init__(self, fn: Callable, plates: dict[str, numpyro.plate]) -> None:
        self.plates = plates
        super().__init__(fn)

    def process_message(self, msg: dict) -> None:
        if msg["type"] == "plate" and msg["name"] in self.plates:
            with self.plates[msg["name"]] as indices:
                msg["args"], msg["value"] = (msg["args"][0], len(indices)), indices
