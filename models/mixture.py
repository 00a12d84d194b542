"""Gaussian mixture with full covariances: the component summed out, or there as a discrete latent.

Both forms have the same sites and, summed over z, the same likelihood. Components are not ordered, so the posterior has
one copy of itself for each order of the labels. The likelihood of the plain mixture has no maximum (a component may
shrink onto one datum); priors on the scales keep MAP and posteriors away from that, and a maximum-likelihood fit is a
local maximum, as in every mixture program.

Data: the irises of Anderson and Fisher ("The Use of Multiple Measurements in Taxonomic Problems", 1936), 150 flowers
with four lengths in cm, as shipped in scikit-learn.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike

from . import _sklearn
from ._regression import design, spread
from .registry import Model

__all__ = ["MODEL", "data", "model", "model_with_labels", "start"]


def _parameters(x: Array, num_components: int) -> tuple[Array, Array, Array]:
    """Sites weights (K,), mu (K, d), scale (K, d), and for d > 1 corr_tril (K, d, d); returns weights, mu, tril."""
    k, d = num_components, x.shape[1]
    if k < 1:
        raise ValueError(f"num_components must be at least 1, got {k}")
    sd = spread(x)
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.full(k, 2.0))) if k > 1 else jnp.ones(1)
    centre = dist.Normal(jnp.broadcast_to(jnp.mean(x, axis=0), (k, d)), 2.0 * sd)
    mu = numpyro.sample("mu", centre.to_event(2))
    width = dist.LogNormal(jnp.broadcast_to(jnp.log(0.5 * sd), (k, d)), 1.0)
    scale = numpyro.sample("scale", width.to_event(2))
    if d == 1:
        return weights, mu, scale[..., None]
    correlation = numpyro.sample("corr_tril", dist.LKJCholesky(d, 2.0).expand([k]).to_event(1))
    return weights, mu, scale[..., None] * correlation


def model(x: ArrayLike, num_components: int, batch_size: int | None = None) -> None:
    """x ~ sum_k weights_k N(mu_k, Sigma_k), in plate "data"; the component is summed out.

    `x`: (n, d). Sites: weights (K,), mu (K, d), scale (K, d) and, for d > 1, corr_tril (K, d, d), the Cholesky factors
    of the correlations. Priors follow the mean and the standard deviations of the columns; to draw from the prior use
    `numpyro.handlers.uncondition`.
    """
    x = design(x)
    weights, mu, tril = _parameters(x, num_components)
    mixture = dist.MixtureSameFamily(dist.Categorical(probs=weights), dist.MultivariateNormal(mu, scale_tril=tril))
    with numpyro.plate("data", x.shape[0], subsample_size=batch_size):
        numpyro.sample("x", mixture, obs=numpyro.subsample(x, event_dim=1))


def model_with_labels(x: ArrayLike, num_components: int, batch_size: int | None = None) -> None:
    """The same mixture with the discrete site z (n,) in plate "data", for EM and enumeration."""
    x = design(x)
    weights, mu, tril = _parameters(x, num_components)
    with numpyro.plate("data", x.shape[0], subsample_size=batch_size):
        z = numpyro.sample("z", dist.Categorical(probs=weights), infer={"enumerate": "parallel"})
        component = dist.MultivariateNormal(mu[z], scale_tril=tril[z])
        numpyro.sample("x", component, obs=numpyro.subsample(x, event_dim=1))


def start(x: ArrayLike, num_components: int, **_: Any) -> dict[str, np.ndarray]:
    """Where a search for the maximum may start, a value a site: rows in equal groups along the first principal axis.

    The likelihood has many local maxima, and a start at random on raw scale finds poor ones.
    """
    rows = np.asarray(design(x), np.float64)
    k, d = num_components, rows.shape[1]
    sd = np.asarray(spread(jnp.asarray(rows)))
    axes = np.linalg.svd((rows - rows.mean(0)) / sd, full_matrices=False)[2]
    groups = np.array_split(rows[np.argsort(rows @ (axes[0] / sd))], k)
    values = {
        "weights": np.array([len(group) / len(rows) for group in groups]),
        "mu": np.array([group.mean(0) for group in groups]),
        "scale": np.array([np.maximum(group.std(0), 1e-3 * sd) for group in groups]),
        "corr_tril": np.broadcast_to(np.eye(d), (k, d, d)).copy(),
    }
    absent = [name for name, trivial in (("weights", k == 1), ("corr_tril", d == 1)) if trivial]
    return {name: value for name, value in values.items() if name not in absent}


def data() -> dict[str, Any]:
    """Measurements `x` (150, 4) in cm, and `num_components` 3."""
    return {"x": np.asarray(_sklearn.load("iris").data, np.float64), "num_components": 3}


MODEL = Model(
    name="gaussian_mixture",
    description="Mixture of 3 Gaussians with full covariances, irises: 150 flowers, 4 lengths",
    model=model,
    data=data,
)
