"""Linear-Gaussian model with one global latent vector: posterior and evidence are closed forms.

z ~ N(0, I_d), x_i ~ N(A z, scale^2 I_m) for i = 1..N; simulated, with d = 3, m = 2, N = 20. Two noisy projections of
three latents leave a correlated posterior, with one direction that only the prior knows.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from .registry import Model

__all__ = ["MODEL", "data", "log_evidence", "model", "posterior", "reference"]


def model(x, A, scale) -> None:
    """z ~ N(0, I_d), x_i ~ N(A z, scale^2 I). `x`: (N, m); `A`: (m, d); `scale`: scalar."""
    z = numpyro.sample("z", dist.Normal(jnp.zeros(A.shape[1]), 1.0).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("x", dist.Normal(jnp.asarray(A) @ z, scale).to_event(1), obs=x)


def data() -> dict[str, Any]:
    """Simulated `x` (20, 2) with its `A` (2, 3) and noise `scale` (0-d)."""
    rng = np.random.RandomState(0)  # RandomState, not default_rng: its stream never changes between NumPy versions
    A = np.array([[1.0, 0.6, -0.3], [-0.4, 0.8, 0.5]])
    scale = 1.5
    z = rng.standard_normal(3)
    return {"x": A @ z + scale * rng.standard_normal((20, 2)), "A": A, "scale": np.array(scale)}


def posterior(data: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) and covariance (d, d) of z given `data`, in float64."""
    A, x, variance = np.asarray(data["A"], np.float64), np.asarray(data["x"], np.float64), float(data["scale"]) ** 2
    precision = np.eye(A.shape[1]) + len(x) * A.T @ A / variance
    return np.linalg.solve(precision, A.T @ x.sum(0) / variance), np.linalg.inv(precision)


def log_evidence(data: dict[str, Any]) -> float:
    """log p(x) in nats: Bayes' rule log p(x | z) + log p(z) - log p(z | x), at z = posterior mean."""
    mean, covariance = posterior(data)
    A, x, scale = np.asarray(data["A"], np.float64), np.asarray(data["x"], np.float64), float(data["scale"])
    residual = (x - A @ mean) / scale
    log_likelihood = -0.5 * np.sum(residual**2) - x.size * (np.log(scale) + 0.5 * np.log(2.0 * np.pi))
    log_prior = -0.5 * mean @ mean  # its (2 pi)^(-d/2) cancels with the posterior's
    return float(log_likelihood + log_prior + 0.5 * np.linalg.slogdet(covariance)[1])


def reference(num_draws: int = 10_000) -> dict[str, np.ndarray]:
    """Independent draws from the exact posterior, z (num_draws, d)."""
    mean, covariance = posterior(data())
    noise = np.random.RandomState(1).standard_normal((num_draws, len(mean)))
    return {"z": mean + noise @ np.linalg.cholesky(covariance).T}


MODEL = Model(
    name="linear_gaussian",
    description="Linear-Gaussian with a global 3-vector: posterior and evidence in closed form (simulated)",
    model=model,
    data=data,
    reference=reference,
    log_evidence=lambda: log_evidence(data()),
)
