import jax
import numpy as np
from scipy import stats

from estimax.models import tight_bounds

X = tight_bounds.data()["x"]


def test_setting_of_the_paper():
    assert X.shape == (1024, 20)
    np.testing.assert_allclose(tight_bounds.SCALE**2, 2.0 / 3.0, rtol=1e-12)
    np.testing.assert_allclose((X.mean(0) - tight_bounds.truth()["mu"]) / np.sqrt(2.0 / 1024), 0.0, atol=4.0)
    np.testing.assert_allclose(X.var(0), 2.0, rtol=4.0 * np.sqrt(2.0 / 1024))


def test_log_evidence_against_scipy():
    mu = tight_bounds.truth()["mu"]
    expected = stats.multivariate_normal(mu, 2.0 * np.eye(20)).logpdf(X).sum()
    np.testing.assert_allclose(tight_bounds.log_evidence(mu, X), expected, rtol=1e-5)


def test_optimum():
    """There the ELBO misses the evidence by KL(N(0, 2/3) || N(0, 1/2)) in every coordinate, and is flat."""
    best = tight_bounds.optimum(X)
    gap = 0.5 * (4.0 / 3.0 - 1.0 - np.log(4.0 / 3.0))
    elbo = tight_bounds.elbo(**best, x=X)
    np.testing.assert_allclose(elbo, tight_bounds.log_evidence(best["mu"], X) - X.size * gap, rtol=1e-5)
    gradient = jax.grad(tight_bounds.elbo, argnums=(0, 1, 2))(best["mu"], best["A"], best["b"], X)
    for value in gradient:
        np.testing.assert_allclose(value / X.size, 0.0, atol=1e-5)


def test_start_is_a_small_step_from_the_optimum():
    start, best = tight_bounds.start(X), tight_bounds.optimum(X)
    offsets = np.concatenate([(start[name] - best[name]).ravel() for name in ("mu", "A", "b")])
    assert len(offsets) == 440
    np.testing.assert_allclose(offsets.std(), 0.01, rtol=0.15)
    assert tight_bounds.elbo(**start, x=X) < tight_bounds.elbo(**best, x=X)
