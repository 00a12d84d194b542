"""A partition function that diverges is named, by every estimator that does not compute it, and only then."""

import jax.numpy as jnp
import numpy as np
import numpyro
import pytest

import estimax
from estimax.estimators import NCE, ConditionalNCE, ScoreMatching
from estimax.estimators.tails import share_without_decay

X = np.random.default_rng(0).normal(size=300).astype(np.float32)


def model(energy):
    def of_data(x):
        k = numpyro.param("k", 0.5)
        with numpyro.plate("data", len(x)):
            numpyro.factor("energy", -energy(x, k))

    return of_data


RISING = model(lambda x, k: -k * jnp.cos(x) - 0.1 * x)
PERIODIC = model(lambda x, k: -k * jnp.cos(x))
NORMAL = model(lambda x, k: -k * jnp.cos(x) + 0.3 * x**2)


@pytest.mark.long
@pytest.mark.parametrize(
    "estimator",
    [ScoreMatching(), NCE(), ConditionalNCE()],
    ids=lambda e: type(e).__name__,
)
def test_the_verdict_says_so(estimator):
    for diverging in (RISING, PERIODIC):
        found = estimax.fit(diverging, estimator, {"x": X}, progress_bar=False).diagnose()
        assert found.verdict == "do not use"
        assert any("the partition function diverges" in line for line in found.advice)
    found = estimax.fit(NORMAL, estimator, {"x": X}, progress_bar=False).diagnose()
    assert found.verdict == "good"


@pytest.mark.parametrize(("dim", "df", "share"), [(1, 1.0, 0), (3, 0.5, 0), (1, -0.2, 1), (3, 0.0, 1), (3, -2.0, 1)])
def test_against_the_tails_of_student(dim, df, share):
    """|x|^−(df + D) has an integral over large x where df is positive; at df = 0 it is the logarithm."""
    x = jnp.asarray(np.random.default_rng(1).normal(3.0, 2.0, (50, dim)), jnp.float32)
    log_density = lambda x: -0.5 * (df + dim) * jnp.log1p(jnp.sum(x**2, axis=1))  # noqa: E731
    assert share_without_decay(log_density, x) == pytest.approx(share, abs=0.5 if df == 0 else 0)


def test_overflow_counts_and_half_lines_are_seen():
    x = jnp.asarray(X[:, None])
    assert share_without_decay(lambda x: x[:, 0] ** 20, x) == 1.0
    assert share_without_decay(lambda x: -jnp.maximum(x[:, 0], 0.0), x) == pytest.approx(0.5, abs=0.1)
