"""Residual flows for `flows.FlowDensity`: dense invertible layers z = x + g(x), g a network that contracts.

    flow = residual_flow(key, base_dist=flowjax.distributions.Normal(jnp.zeros(2)))

Not imported with the package: equinox and flowjax are loaded when it is.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flowjax.bijections import AbstractBijection, Affine, Chain, Invert, Scan
from flowjax.distributions import AbstractDistribution, Transformed
from jax import Array, lax, random
from jax.typing import ArrayLike

__all__ = ["ResidualBlock", "residual_flow", "spectral_bound"]

TRACES = ("exact", "hutchinson")
SURE_TERMS = 12
"""Terms of the power series that are always summed. Each further one is there with half the chance of the one before
and twice the weight: that has a small variance only where the terms themselves are small."""
MOST_TERMS = 20
MOST_ITERATIONS = 500
SQUARINGS = 6


def spectral_bound(matrix: Array) -> Array:
    """An upper bound on the largest singular value, at most rank^(1/128) times it, and smooth: from the Frobenius norm
    of a power of the matrix (Efficient Bound of Lipschitz Constant for Convolutional Layers by Gram Iteration)."""
    log_bound = jnp.zeros((), matrix.dtype)
    for i in range(SQUARINGS):
        norm = jnp.linalg.norm(matrix)
        log_bound, matrix = log_bound + jnp.log(norm) / 2**i, matrix / norm
        matrix = matrix.T @ matrix if matrix.shape[0] > matrix.shape[1] else matrix @ matrix.T
    return jnp.exp(log_bound + jnp.log(jnp.linalg.norm(matrix)) / 2**SQUARINGS)


class ResidualBlock(AbstractBijection):
    """x → x + g(x) with g of Lipschitz constant below `lipschitz` < 1, hence invertible: x = lim x ← y − g(x).

    Weights are scaled down to their spectral norm where it is too large (Invertible Residual Networks). The
    log-determinant of I + ∂g/∂x is exact, by d derivatives, or an unbiased estimate of Σ_k (−1)^{k+1} tr(∂g/∂x)^k/k, by
    one random direction and a series of random length, at most `MOST_TERMS` (Residual Flows for Invertible Generative
    Modeling).

    Args:
        key: draws the first weights.
        dim: d. width, depth: of the hidden layers.
        lipschitz: between 0 and 1.
        trace: "exact" or "hutchinson".
        probe_key: what draws directions and lengths, anew for every x; None takes the same for the same x every time.
            In training give ``numpyro.prng_key()``.
    """

    weights: list[Array]
    biases: list[Array]
    probe_key: Array
    shape: tuple[int, ...]
    cond_shape: tuple[int, ...] | None
    lipschitz: float
    trace: str  # no part of the tree's structure: weights trained with one serve the other

    def __init__(
        self, key: Array, dim: int, *, width: int = 64, depth: int = 2, lipschitz: float = 0.97, trace: str = "exact",
        probe_key: Array | None = None,
    ) -> None:  # fmt: skip
        for name, value in (("dim", dim), ("width", width), ("depth", depth)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value!r}")
        if not 0 < lipschitz < 1:
            raise ValueError(f"lipschitz must lie between 0 and 1, or the block has no inverse, got {lipschitz!r}")
        if trace not in TRACES:
            raise ValueError(f"trace must be one of {', '.join(TRACES)}, got {trace!r}")
        sizes = [dim, *[width] * depth, dim]
        keys = random.split(key, depth + 1)
        # entries of variance 1/(rows + columns): singular values below 1, so that gradients are not scaled at first
        self.weights = [
            random.normal(k, (n, m)) / np.sqrt(n + m) for k, m, n in zip(keys, sizes[:-1], sizes[1:], strict=True)
        ]
        self.biases = [jnp.zeros(n) for n in sizes[1:]]
        self.probe_key = random.key(0) if probe_key is None else probe_key
        self.shape, self.cond_shape, self.lipschitz, self.trace = (dim,), None, lipschitz, trace

    def contracting(self) -> list[Array]:
        """The weights, each with a spectral norm of at most lipschitz^(1/layers)."""
        most = self.lipschitz ** (1 / len(self.weights))
        return [w * jnp.minimum(1.0, most / spectral_bound(w)) for w in self.weights]

    def _residual(self, weights: list[Array], x: Array) -> Array:
        for i, (w, b) in enumerate(zip(weights, self.biases, strict=True)):
            x = w @ (x if i == 0 else jnp.sin(x)) + b  # of slope 1 where SiLU's is ½: deep networks keep their slope
        return x

    def transform_and_log_det(self, x: ArrayLike, condition: ArrayLike | None = None) -> tuple[Array, Array]:
        x = jnp.asarray(x)
        weights = self.contracting()
        g = lambda x: self._residual(weights, x)  # noqa: E731
        if self.trace == "exact":
            return x + g(x), jnp.linalg.slogdet(jnp.eye(x.size, dtype=x.dtype) + jax.jacfwd(g)(x))[1]
        value, slope = jax.linearize(g, x)
        bits = lax.bitcast_convert_type(lax.stop_gradient(jnp.sum(jnp.sin(x))).astype(jnp.float32), jnp.uint32)
        sign_key, length_key = random.split(random.fold_in(self.probe_key, bits))
        v = random.rademacher(sign_key, x.shape, x.dtype)
        extra = jnp.floor(-jnp.log2(random.uniform(length_key, minval=1e-12)))  # at least k with chance 2^−k
        k = jnp.arange(1, MOST_TERMS + 1)
        late = jnp.maximum(k - SURE_TERMS, 0)
        share = jnp.where(late <= extra, 2.0**late, 0.0) * (-1.0) ** (k + 1) / k

        def term(u: Array, share: Array) -> tuple[Array, Array]:
            u = slope(u)
            return u, share * jnp.vdot(v, u)

        return x + value, jnp.sum(lax.scan(term, v, share.astype(x.dtype))[1])

    def inverse_and_log_det(self, y: ArrayLike, condition: ArrayLike | None = None) -> tuple[Array, Array]:
        """By fixed-point iteration, to rounding; no derivatives in reverse mode."""
        y = jnp.asarray(y)
        weights = self.contracting()

        def going_on(carry: tuple[Array, Array, Array]) -> Array:
            x, before, i = carry
            return (i < MOST_ITERATIONS) & (jnp.max(jnp.abs(x - before)) > 1e-7 * (1 + jnp.max(jnp.abs(y))))

        def body(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            x, _, i = carry
            return y - self._residual(weights, x), x, i + 1

        x, _, _ = lax.while_loop(going_on, body, (y - self._residual(weights, y), y, jnp.asarray(0)))
        return x, -self.transform_and_log_det(x)[1]


def residual_flow(
    key: Array, *, base_dist: AbstractDistribution, flow_layers: int = 8, width: int = 64, depth: int = 2,
    lipschitz: float = 0.97, trace: str = "exact", probe_key: Array | None = None,
) -> Transformed:  # fmt: skip
    """A flow of `ResidualBlock`s, each followed by a learned shift and scale; z = f(x) is the direct way, draws take
    the inverse.

    Args:
        key: draws the first weights.
        base_dist: flowjax distribution of shape ``(d,)``.
        flow_layers: number of blocks; the others as in `ResidualBlock`.
    """
    if base_dist.ndim != 1:
        raise ValueError(f"base_dist must be over vectors, got one of shape {base_dist.shape}")
    if flow_layers < 1:
        raise ValueError(f"flow_layers must be at least 1, got {flow_layers!r}")
    dim = base_dist.shape[0]

    def layer(key: Array, probe_key: Array) -> Chain:
        block = ResidualBlock(
            key, dim, width=width, depth=depth, lipschitz=lipschitz, trace=trace, probe_key=probe_key
        )  # fmt: skip
        return Chain([block, Affine(jnp.zeros(dim), jnp.ones(dim))])

    probes = random.split(random.key(0) if probe_key is None else probe_key, flow_layers)
    return Transformed(base_dist, Invert(Scan(eqx.filter_vmap(layer)(random.split(key, flow_layers), probes))))
