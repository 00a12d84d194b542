"""Low-rank Laplace against closed forms, known spectra and the full Hessian."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

import estimax
from estimax.estimators import Laplace, low_rank

pytestmark = pytest.mark.usefixtures("x64_module")

SIZE, RANK = 300, 5
rng = np.random.default_rng(0)
SPECTRUM = np.r_[[400.0, 100.0, 100.0, 30.0, 8.0], np.full(SIZE - RANK, 0.0)]
BASIS = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0]
SD = np.linspace(0.5, 2.0, SIZE)
ROWS = np.sqrt(SPECTRUM[:RANK, None]) * BASIS[:, :RANK].T
X = ROWS / SD  # five rows tell of 300 coefficients; in units of the prior xᵀx has that spectrum
Y = ROWS @ rng.normal(size=SIZE) + rng.normal(size=RANK)
DATA = {"x": X, "y": Y, "sd": SD}
EXACT = stats.multivariate_normal(np.zeros(RANK), ROWS @ ROWS.T + np.eye(RANK)).logpdf(Y)
COVARIANCE = np.linalg.inv(X.T @ X + np.diag(1 / SD**2))


def fit(model, estimator, data):
    return estimax.fit(model, estimator, data, progress_bar=False)


def ridge(x, y, sd):
    b = numpyro.sample("b", dist.Normal(0.0, sd).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ b, 1.0), obs=y)


def network(x, y):
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1], 4]).to_event(2))
    log_sd = numpyro.sample("log_sd", dist.Normal(0.0, 1.0))
    v = numpyro.sample("v", dist.Normal(0.0, jnp.exp(log_sd)).expand([4]).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(jnp.tanh(x @ w) @ v, 0.1), obs=y)


@pytest.fixture(scope="module")
def linear():
    return fit(ridge, Laplace(hessian="low_rank", rank=RANK), DATA)


def test_eigenpairs_of_a_known_spectrum():
    """Both ends, a repeated value among them, in a space far smaller than the matrix."""
    known = np.r_[50.0, 20.0, 20.0, 20.0, 5.0, -0.9, np.linspace(-0.01, 0.01, 494)]
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(500, 500)))[0]
    matrix = jnp.asarray((basis * known) @ basis.T)
    values, vectors = low_rank.eigenpairs(lambda v: matrix @ v, 500, 6, jax.random.key(0))
    assert vectors.shape == (500, 64)
    order = np.argsort(-np.abs(values))[:6]
    np.testing.assert_allclose(np.sort(values[order]), np.sort(known[:6]), rtol=1e-10)
    np.testing.assert_allclose(matrix @ vectors[:, order], values[order] * vectors[:, order], atol=1e-6)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(64), atol=1e-12)


def test_diagonals():
    for matrix in (jnp.diag(jnp.array([1.0, 2.0, 0.5])), jnp.diag(jnp.array([1.0, 2.0, 0.5])) + 0.3):
        found = low_rank.diagonal_if_so(matrix.__matmul__, 3, jax.random.key(0))
        np.testing.assert_allclose(found, np.diag(matrix), rtol=1e-12)


def test_rank_of_the_data_gives_the_exact_posterior(linear):
    """Five rows of data: the posterior of 300 coefficients differs from the prior in five directions."""
    np.testing.assert_allclose(linear.metrics["laplace_log_evidence"][-1], EXACT, atol=1e-6)
    scale = linear.problem.scale
    np.testing.assert_allclose(np.sort(1 / scale.shrink**2 - 1), np.sort(SPECTRUM[:RANK]), rtol=1e-8)
    np.testing.assert_allclose(scale.covariance(), COVARIANCE, atol=1e-9)
    draws = np.asarray(linear.sample(20_000)["b"], float)
    mean = COVARIANCE @ X.T @ Y
    along = BASIS[:, [0, 3, 250]] / SD[:, None]  # two directions that the data know, one of the prior alone
    sd = np.sqrt(np.sum(along * (COVARIANCE @ along), 0))
    assert np.abs((draws @ along).mean(0) - mean @ along).max() < (4 * sd / np.sqrt(20_000)).max()
    np.testing.assert_allclose((draws @ along).std(0) / sd, 1, atol=4 / np.sqrt(40_000))


@pytest.mark.long
def test_weights_and_evidence_go_through_psis(linear):
    evidence = linear.log_evidence(1000)
    assert evidence.value == pytest.approx(EXACT, abs=1e-6)  # weights are constant
    assert evidence.verdict == "good"
    assert linear.sample(100, resample="psis")["b"].shape == (100, SIZE)


@pytest.mark.long
def test_too_low_a_rank_is_too_wide_never_too_narrow():
    result = fit(ridge, Laplace(hessian="low_rank", rank=2), DATA)
    kept = np.sort(1 / np.asarray(result.problem.scale.shrink) ** 2 - 1)
    np.testing.assert_allclose(kept, [100.0, 400.0], rtol=1e-6)  # the two largest
    excess = np.asarray(result.problem.scale.covariance()) - COVARIANCE
    assert np.linalg.eigvalsh(excess).min() > -1e-9
    # the volume that is too large, in closed form
    left_out = 0.5 * np.log1p([100.0, 30.0, 8.0]).sum()
    np.testing.assert_allclose(result.metrics["laplace_log_evidence"][-1], EXACT + left_out, atol=1e-6)


@pytest.mark.long
def test_full_rank_is_the_full_hessian_in_a_network():
    """The prior's curvature is not diagonal here: the scale of v is a latent too."""
    x = rng.normal(size=(60, 3))
    data = {"x": x, "y": np.tanh(x @ rng.normal(size=(3, 4))) @ np.ones(4) + 0.1 * rng.normal(size=60)}
    start = {"w": np.random.default_rng(3).normal(size=(3, 4)), "v": np.ones(4)}
    low, full = (
        estimax.fit(network, e, data, start=start, progress_bar=False)
        for e in (Laplace(hessian="low_rank", rank=17), Laplace())
    )
    np.testing.assert_allclose(
        low.problem.scale.covariance(), full.problem.scale @ full.problem.scale.T, rtol=1e-5, atol=1e-9
    )
    assert low.metrics["laplace_log_evidence"][-1] == pytest.approx(full.metrics["laplace_log_evidence"][-1], abs=1e-6)
    assert set(low.sample(10)) == {"w", "log_sd", "v"}


@pytest.mark.long
def test_a_prior_without_curvature_takes_the_diagonal_of_the_loss():
    def flat(y):
        b = numpyro.sample("b", dist.Laplace(0.0, 1.0).expand([3]).to_event(1))
        with numpyro.plate("data", 3):
            numpyro.sample("y", dist.Normal(b, jnp.array([0.5, 1.0, 0.1])), obs=y)

    result = fit(flat, Laplace(hessian="low_rank", rank=3), {"y": np.array([5.0, 7.0, 3.0])})
    np.testing.assert_allclose(np.diag(result.problem.scale.covariance()), [0.25, 1.0, 0.01], rtol=1e-6)


def test_errors():
    with pytest.raises(ValueError, match="rank=3 goes with hessian=\"low_rank\", not with 'full'"):
        Laplace(rank=3)
    with pytest.raises(ValueError, match="rank must be an integer of at least 1, got 0"):
        Laplace(hessian="low_rank", rank=0)

    def unidentified(y):
        a = numpyro.sample("a", dist.ImproperUniform(dist.constraints.real, (), ()))
        b = numpyro.sample("b", dist.ImproperUniform(dist.constraints.real, (), ()))
        with numpyro.plate("data", 4):
            numpyro.sample("y", dist.Normal(a + b, 1.0), obs=y)

    for hessian in ("full", "low_rank"):
        with pytest.raises(ValueError, match="a direction that neither prior nor data say anything of"):
            fit(unidentified, Laplace(hessian=hessian), {"y": np.arange(4.0)})
