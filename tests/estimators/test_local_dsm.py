"""Score matching under nonlinear drift: against linear closed forms and the Fokker-Planck equation on a grid."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from scipy import sparse, stats
from scipy.linalg import expm
from scipy.sparse.linalg import expm_multiply

import estimax
from estimax.estimators import DenoisingScoreMatching, LocalDSM
from estimax.models.diffusion import observed
from estimax.models.noise_process import VP
from estimax.models.nonlinear_diffusion import NonlinearDiffusion, NonlinearProcess

MATRIX = jnp.array([[-1.0, 2.0], [0.5, -3.0]])
LINEAR = VP(5.0, 5.0)
X = np.random.default_rng(0).normal(0.7, 0.6, (400, 1)).astype(np.float32)


def relax(x, t):
    """Of the same process as LINEAR."""
    return -2.5 * x


def rotate(x, t):
    return MATRIX @ x + 1.0


def pull(x, t):
    """To −1 and 1."""
    return 4 * (x - x**3)


OU = NonlinearProcess(relax, 5.0**0.5)


@pytest.mark.long
def test_transitions_of_a_linear_drift_are_exact():
    """Against the matrix exponential of scipy, over a time that is long beside that of the drift; and those of VP."""
    process, x, h = NonlinearProcess(rotate, 1.3), np.array([0.3, -1.0]), 0.6
    a = np.asarray(MATRIX, np.float64)
    mean, factor = process.transition(jnp.asarray(x, jnp.float32), jnp.float32(0.1), jnp.float32(0.1 + h))
    np.testing.assert_allclose(
        mean, expm(a * h) @ x + np.linalg.solve(a, (expm(a * h) - np.eye(2)) @ np.ones(2)), rtol=1e-4
    )
    u, w = np.polynomial.legendre.leggauss(40)
    cov = sum(w * h / 2 * 1.3**2 * expm(a * v) @ expm(a.T * v) for w, v in zip(w, (u + 1) * h / 2, strict=True))
    np.testing.assert_allclose(factor @ factor.T, cov, rtol=1e-4)
    mean, factor = OU.transition(jnp.array([1.3, -2.0]), jnp.float32(0.2), jnp.float32(0.7))
    scale, sd = LINEAR.transition(0.2, 0.7)
    np.testing.assert_allclose(mean, scale * jnp.array([1.3, -2.0]), rtol=1e-5)
    np.testing.assert_allclose(factor, sd * np.eye(2), rtol=1e-5, atol=1e-6)


@pytest.mark.long
def test_targets_of_a_linear_drift_are_those_of_denoising():
    """Over the whole time, −(x_t − α x)/σ²; over a part of it of the same mean, within 4 s.e."""
    t, x, n = jnp.float32(0.6), jnp.array([0.8]), 20_000
    alpha, sigma = float(LINEAR.alpha(t)), float(LINEAR.sigma(t))

    def pairs(interval):
        one = lambda key: LocalDSM(interval).pair(OU, x, t, key)  # noqa: E731
        noisy, target = jax.jit(jax.vmap(one))(random.split(random.key(0), n))
        return np.asarray(noisy, np.float64)[:, 0], np.asarray(target, np.float64)[:, 0]

    noisy, target = pairs(1.0)
    np.testing.assert_allclose(target, -(noisy - 0.8 * alpha) / sigma**2, rtol=1e-3, atol=1e-3)
    noisy, target = pairs(0.1)
    assert stats.kstest(noisy, stats.norm(0.8 * alpha, sigma).cdf).pvalue > 0.01
    gap = target + (noisy - 0.8 * alpha) / sigma**2  # given one datum, the score of x_t is the denoising target
    for function in (np.ones(n), noisy, noisy**2):
        assert abs((gap * function).mean()) < 4 * (gap * function).std() / np.sqrt(n)


def fokker_planck(t, mean, sd, g):
    """The density at t on a grid, of normal data under `pull`: finite volumes, two digits finer than the test asks."""
    grid = np.linspace(-2.6, 2.6, 801)
    h, middle = grid[1] - grid[0], 0.5 * (grid[1:] + grid[:-1])
    drift = np.asarray(pull(middle, t))
    out, back = (drift / 2 + g**2 / 2 / h) / h, (drift / 2 - g**2 / 2 / h) / h  # flux: out p_i + back p_{i+1}
    own = -np.append(out, 0) + np.insert(back, 0, 0)
    p = expm_multiply(sparse.diags([out, own, -back], [-1, 0, 1]).tocsr() * t, stats.norm(mean, sd).pdf(grid))
    return grid, p / (p.sum() * h)


@pytest.mark.long
def test_double_well_against_the_fokker_planck_equation():
    """Draws and the mean of their targets at t = 0.3, within 4 s.e.; over a long interval the bias shows."""
    t, n = 0.3, 40_000
    grid, p = fokker_planck(t, 0.6, 0.3, 1.5)
    score = np.gradient(np.log(p), grid)
    below = np.cumsum(p) / p.sum()
    process = NonlinearProcess(pull, 1.5)
    start = 0.6 + 0.3 * random.normal(random.key(1), (n, 1))

    def gaps(interval):
        one = lambda x, key: LocalDSM(interval).pair(process, x, jnp.float32(t), key)  # noqa: E731
        noisy, target = jax.jit(jax.vmap(one))(start, random.split(random.key(2), n))
        x = np.asarray(noisy, np.float64)[:, 0]
        gap = np.asarray(target, np.float64)[:, 0] - np.interp(x, grid, score)
        tests = [np.ones(n), x, np.tanh(3 * x), np.cos(3 * x), *np.eye(8)[np.digitize(x, np.linspace(-1.2, 1.4, 7))].T]
        return x, max(abs((gap * f).mean()) / ((gap * f).std() / np.sqrt(n)) for f in tests)

    x, distance = gaps(0.02)
    assert stats.kstest(x, lambda x: np.interp(x, grid + (grid[1] - grid[0]) / 2, below)).pvalue > 0.01
    assert distance < 4
    assert gaps(0.1)[1] > 10


def gaussian_model(x):
    """The exact score of N(m, sd²) under LINEAR."""
    m = numpyro.param("m", jnp.zeros(1))
    sd = numpyro.param("sd", jnp.ones(1), constraint=dist.constraints.positive)

    def score(x, t):
        alpha = LINEAR.alpha(t)
        return -(x - alpha * m) / ((alpha * sd) ** 2 + LINEAR.sigma(t) ** 2)

    fn = NonlinearDiffusion(score, OU, 1, base=dist.Normal(0, 1), num_steps=200)
    numpyro.sample("x", fn, obs=x)


@pytest.fixture(scope="module")
def fitted():
    return estimax.fit(
        gaussian_model, LocalDSM(0.2), {"x": X}, num_steps=800, learning_rate=0.02, progress_bar=False
    )  # fmt: skip


def test_parameters_of_a_gaussian(fitted):
    """Those are its minimum; 0.03, their own standard error, is for the noise of the optimiser."""
    assert fitted.params["m"][0] == pytest.approx(X.mean(), abs=0.03)
    assert fitted.params["sd"][0] == pytest.approx(X.std(), abs=0.03)


@pytest.mark.long
def test_draws_and_density(fitted):
    fn = observed(gaussian_model, fitted.params, {"x": X})
    m, sd = fitted.params["m"][0], fitted.params["sd"][0]
    alpha, sigma = (float(f(OU.t_min)) for f in (LINEAR.alpha, LINEAR.sigma))
    law = stats.norm(alpha * m, np.hypot(alpha * sd, sigma))
    x = X[:20]
    # what is left of the data at t = 1 is e^−2.5 = 8 % of their mean, which base=N(0, 1) does not have
    np.testing.assert_allclose(fn.log_prob(x), law.logpdf(x[:, 0]), atol=0.3)
    exact = NonlinearDiffusion(fn.network, OU, 1, base=dist.Normal(
        m * LINEAR.alpha(1.0), jnp.hypot(LINEAR.alpha(1.0) * sd, LINEAR.sigma(1.0))), num_steps=200)  # fmt: skip
    np.testing.assert_allclose(exact.log_prob(x), law.logpdf(x[:, 0]), atol=2e-3)
    for draws in (exact.sample(random.key(0), (4000,)), exact.sample_ode(random.key(1), (4000,))):
        assert abs(np.mean(draws) - law.mean()) < 4 * law.std() / np.sqrt(4000) + 0.01
        assert np.std(draws) == pytest.approx(law.std(), abs=4 * law.std() / np.sqrt(8000) + 0.01)


def nonlinear(x):
    m = numpyro.param("m", jnp.zeros(2))
    numpyro.sample("x", NonlinearDiffusion(lambda x, t: m - x, OU, 2, base=dist.Normal(0, 1)), obs=x)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LocalDSM(0.0), ValueError, "interval must lie in \\(0, 1\\], got 0.0"),
        (lambda: NonlinearProcess(pull, 0.0), ValueError, "diffusion, the noise scale, must be positive, got 0.0"),
        (lambda: NonlinearProcess(3.0), TypeError, "drift must be a function"),
        (lambda: NonlinearProcess(pull, num_steps=0), ValueError, "num_steps must be a positive integer"),
        (lambda: NonlinearProcess(pull, t_min=0.0), ValueError, "t_min must lie between 0 and 1"),
        (lambda: NonlinearDiffusion(pull, VP(), 1, base=dist.Normal()), TypeError, "linear ones belong to Diffusion"),
        (lambda: NonlinearDiffusion(pull, OU, 1, base=1.0), TypeError, "base must be a NumPyro distribution"),
        (lambda: NonlinearDiffusion(pull, OU, 2, base=dist.Normal(jnp.zeros(3))), ValueError,
         "base has shape \\(3,\\)"),
        (lambda: DenoisingScoreMatching().problem(random.key(0), nonlinear, None, {"x": jnp.zeros((4, 2))}),
         ValueError, "'x' is NonlinearDiffusion"),
        (lambda: LocalDSM().problem(random.key(0), nonlinear, None, {"x": jnp.zeros((4, 2), int)}), ValueError,
         "dequantise"),
    ],
)  # fmt: skip
def test_mistakes_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
