"""Diffusions and flows with their exact score or velocity, against closed forms of scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from jax import random
from numpyro.contrib.module import eqx_module
from scipy import stats

import estimax
from estimax.estimators import MLE
from estimax.models.diffusion import Diffusion, observed
from estimax.models.networks import TimeMLP
from estimax.models.noise_process import VE, VP, SubVP
from estimax.models.transport import Flow

MEAN = np.array([1.0, -0.5])
COV = np.array([[1.0, 0.5], [0.5, 0.74]])
X = np.random.default_rng(0).multivariate_normal(MEAN, COV, 6)
WEIGHTS, CENTRES, SD = np.array([0.3, 0.7]), np.array([[-2.0, 0.0], [1.5, 1.0]]), 0.4


def gaussian(process, predicts="score", **options):
    """A diffusion with the exact score of N(MEAN, COV) under noise, in any of the three forms."""

    def score(x, t):
        spread = process.alpha(t) ** 2 * COV + process.sigma(t) ** 2 * jnp.eye(2)
        return -jnp.linalg.solve(spread, x - process.alpha(t) * MEAN)

    forms = {
        "score": score,
        "noise": lambda x, t: -process.sigma(t) * score(x, t),
        "data": lambda x, t: (x + process.sigma(t) ** 2 * score(x, t)) / process.alpha(t),
    }
    sd = np.sqrt(np.diag(COV))
    options = {"loc": MEAN, "scale": sd, "rtol": 1e-5, "atol": 1e-5, **options}
    return Diffusion(forms[predicts], process, 2, predicts=predicts, **options)


def mixture_score(x, alpha, sigma):
    variance = (alpha * SD) ** 2 + sigma**2
    log_prob = lambda x: jax.nn.logsumexp(  # noqa: E731
        jnp.log(WEIGHTS) - jnp.sum((x - alpha * CENTRES) ** 2, 1) / (2 * variance)
    )
    return jax.grad(log_prob)(x)


def under_noise(process, t):
    return process.alpha(t) * MEAN, process.alpha(t) ** 2 * COV + process.sigma(t) ** 2 * np.eye(2)


@pytest.mark.parametrize(
    "process", [VP(), VE(), pytest.param(SubVP(), marks=pytest.mark.long)], ids=lambda p: type(p).__name__
)
def test_density_of_a_gaussian_is_exact(process):
    diffusion = gaussian(process)
    truth = stats.multivariate_normal(*under_noise(process, process.t_min)).logpdf(X)
    # what is left of the correlation at t = 1 (α = 0.007 for VP, of variance 20² for VE) is all that is missing
    np.testing.assert_allclose(diffusion.log_prob(X.astype(np.float32)), truth, atol=2e-3)


@pytest.mark.long
def test_density_of_a_mixture_is_exact():
    process = VP()
    diffusion = Diffusion(
        lambda x, t: mixture_score(x, process.alpha(t), process.sigma(t)), process, 2, predicts="score",
        loc=WEIGHTS @ CENTRES, scale=1.6, rtol=1e-5, atol=1e-5,
    )  # fmt: skip
    x = np.concatenate([CENTRES, X[:4]]).astype(np.float32)
    alpha, sigma = process.alpha(process.t_min), process.sigma(process.t_min)
    sd = np.sqrt((alpha * SD) ** 2 + sigma**2)
    truth = np.log(sum(w * stats.norm(alpha * c, sd).pdf(x).prod(1) for w, c in zip(WEIGHTS, CENTRES, strict=True)))
    np.testing.assert_allclose(diffusion.log_prob(x), truth, atol=0.01)


def test_the_three_forms_of_a_network_are_the_same():
    diffusions = [gaussian(VP(), form) for form in ("score", "noise", "data")]
    times = np.linspace(0.05, 1, len(X)).astype(np.float32)
    first, *others = (d.score(X.astype(np.float32), times) for d in diffusions)
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-3, atol=1e-4)


@pytest.mark.long
def test_hutchinson_is_unbiased():
    """Mean over 400 sets of directions within 4 standard errors of the exact trace."""
    exact = gaussian(VP()).log_prob(X.astype(np.float32))
    one = lambda key: gaussian(VP(), trace="hutchinson", probe_key=key).log_prob(X.astype(np.float32))  # noqa: E731
    draws = np.asarray(jax.vmap(one)(random.split(random.key(0), 400)))
    error = draws.std(0) / 20
    assert (error > 1e-3).all()  # the directions matter
    np.testing.assert_array_less(np.abs(draws.mean(0) - exact), 4 * error)


@pytest.mark.long
@pytest.mark.parametrize("process", [VP(), VE(0.02, 15.0)], ids=lambda p: type(p).__name__)
def test_samplers_draw_the_gaussian(process):
    """Means within 4 standard errors; covariances within 4 and 2 % for the steps of the reversed process."""
    diffusion = gaussian(process)
    mean, cov = under_noise(process, process.t_min)
    n = 8_000
    for draws in (diffusion.sample(random.key(1), (n,)), diffusion.sample_ode(random.key(2), (n,))):
        draws = np.asarray(draws)
        sd = np.sqrt(np.diag(cov))
        np.testing.assert_array_less(np.abs(draws.mean(0) - mean), 4 * sd / np.sqrt(n) + 0.005)
        np.testing.assert_array_less(np.abs(np.cov(draws.T) - cov), 4 * np.outer(sd, sd) * np.sqrt(2 / n) + 0.02)


@pytest.mark.long
def test_conditional_draws_of_a_linear_inverse_problem():
    operator, noise, y = np.array([[1.0, 2.0]], np.float32), 0.3, np.array([0.7], np.float32)
    n = 8_000
    draws = np.asarray(gaussian(VP()).sample_given(random.key(1), y, operator, noise, (n,)))
    gain = COV @ operator.T / (operator @ COV @ operator.T + noise**2)
    mean, cov = MEAN + gain @ (y - operator @ MEAN), COV - gain @ operator @ COV
    sd = np.sqrt(np.diag(cov))
    np.testing.assert_array_less(np.abs(draws.mean(0) - mean), 4 * sd / np.sqrt(n) + 0.02)
    np.testing.assert_array_less(np.abs(np.cov(draws.T) - cov), 4 * np.outer(sd, sd) * np.sqrt(2 / n) + 0.01)


def test_conditional_draws_without_derivative_are_exact_for_independent_coordinates():
    process, operator, noise, y, n = VP(), np.array([[1.0, 2.0]], np.float32), 0.3, np.array([0.7], np.float32), 8_000
    score = lambda x, t: -x  # noqa: E731  # of N(0, I) at every t of VP
    diffusion = Diffusion(score, process, 2, predicts="score", num_steps=300)
    draws = np.asarray(diffusion.sample_given(random.key(1), y, operator, noise, (n,), derivative=False))
    gain = operator.T / (5 + noise**2)
    np.testing.assert_array_less(np.abs(draws.mean(0) - (gain @ y)), 4 / np.sqrt(n) + 0.02)
    cov = np.eye(2) - gain @ operator
    np.testing.assert_array_less(np.abs(np.cov(draws.T) - cov), 4 * np.sqrt(2 / n) + 0.01)


def test_draws_guided_by_the_score_of_a_classifier():
    """The exact classifier of a mixture under noise: draws given the class are those of its normal component."""
    process, n = VP(), 4000

    def log_class(x, t):
        """log p(class 0 | x_t), in closed form."""
        alpha = process.alpha(t)
        variance = (alpha * SD) ** 2 + process.sigma(t) ** 2
        return jax.nn.log_softmax(jnp.log(WEIGHTS) - jnp.sum((x - alpha * CENTRES) ** 2, 1) / (2 * variance))[0]

    diffusion = Diffusion(
        lambda x, t: mixture_score(x, process.alpha(t), process.sigma(t)), process, 2, predicts="score"
    )
    draws = np.asarray(diffusion.sample_guided(random.key(0), (n,), jax.grad(log_class)))
    alpha, sigma = float(process.alpha(process.t_min)), float(process.sigma(process.t_min))
    sd = np.hypot(alpha * SD, sigma)
    np.testing.assert_array_less(np.abs(draws.mean(0) - alpha * CENTRES[0]), 4 * sd / np.sqrt(n) + 0.01)
    np.testing.assert_array_less(np.abs(np.cov(draws.T) - sd**2 * np.eye(2)), 4 * sd**2 * np.sqrt(2 / n) + 0.01)


def test_denoising_moments_are_the_posterior_of_the_clean_datum():
    process, t = VP(), 0.3
    diffusion = gaussian(process)
    a, s = float(process.alpha(t)), float(process.sigma(t))
    gain = a * COV @ np.linalg.inv(a**2 * COV + s**2 * np.eye(2))
    x = X.astype(np.float32)
    np.testing.assert_allclose(diffusion.denoise(x, t), MEAN + (x - a * MEAN) @ gain.T, rtol=1e-4, atol=1e-4)
    cov = diffusion.denoising_covariance(x, t)
    np.testing.assert_allclose(cov, np.broadcast_to(COV - a * gain @ COV, cov.shape), rtol=1e-3, atol=1e-4)


def test_calibration_takes_a_mean_error_off_the_score():
    """A score with a constant error, in units of the noise: what is left is within 4 standard errors of the mean."""
    process = VP()
    exact = gaussian(process)
    error = jnp.array([0.3, -0.2])
    wrong = Diffusion(lambda x, t: exact._score(x, t) + error / process.sigma(t), process, 2, predicts="score")
    n = 4000
    data = np.random.default_rng(1).multivariate_normal(MEAN, COV, n).astype(np.float32)
    right = wrong.calibrated(data, random.key(0), num_levels=8)
    for t in np.linspace(process.t_min, 1, 8)[[1, 4, 7]]:
        left = process.sigma(t) * (right.score(X.astype(np.float32), t) - exact.score(X.astype(np.float32), t))
        np.testing.assert_allclose(left, np.tile(left[:1], (6, 1)), atol=1e-4)  # a constant
        assert np.abs(left).max() < 4 / np.sqrt(n)  # σ s has variance at most 1


def test_langevin_keeps_the_shares_of_modes_when_started_at_the_data():
    """Two far modes of shares 0.3 and 0.7: from the data both keep theirs, from one mode the other is not found."""
    process, n = VE(0.05, 20.0), 2000
    far = CENTRES * 4
    score = lambda x, t: jax.grad(lambda x: jax.nn.logsumexp(  # noqa: E731
        jnp.log(WEIGHTS) - jnp.sum((x - far) ** 2, 1) / (2 * (SD**2 + process.sigma(t) ** 2))))(x)  # fmt: skip
    diffusion = Diffusion(score, process, 2, predicts="score")
    which = np.random.default_rng(0).choice(2, n, p=WEIGHTS)
    moved = np.asarray(diffusion.langevin(random.key(0), far[which].astype(np.float32), num_steps=400, step_size=0.01))
    share = (np.linalg.norm(moved - far[1], axis=1) < np.linalg.norm(moved - far[0], axis=1)).mean()
    assert share == pytest.approx((which == 1).mean(), abs=1e-9)
    sd = np.sqrt(SD**2 + 0.05**2)
    residual = moved - far[which]
    assert residual.std() == pytest.approx(sd, rel=0.04)  # mixed within its mode; a step of 0.01 adds 3 %
    lost = np.asarray(diffusion.langevin(random.key(0), np.tile(far[:1], (n, 1)).astype(np.float32), num_steps=400,
                                         step_size=0.01))  # fmt: skip
    assert (np.linalg.norm(lost - far[1], axis=1) < 4).sum() == 0


def linear_velocity(x, t):
    """The velocity that carries N(0, I) to N(MEAN, sd²) along the straight path of flow matching, sd = (0.5, 2)."""
    sd = jnp.array([0.5, 2.0])
    scale = jnp.sqrt((1 - t) ** 2 + (t * sd) ** 2)
    slope = (-(1 - t) + t * sd**2) / scale
    return MEAN + slope / scale * (x - t * MEAN)


@pytest.mark.long
def test_flow_with_the_exact_velocity_has_the_gaussian_density_and_draws():
    flow = Flow(linear_velocity, 2, rtol=1e-6, atol=1e-6)
    x = X.astype(np.float32)
    truth = stats.norm(MEAN, [0.5, 2.0]).logpdf(x).sum(1)
    np.testing.assert_allclose(flow.log_prob(x), truth, atol=1e-4)
    np.testing.assert_allclose(flow.to_base(x), (x - MEAN) / [0.5, 2.0], atol=1e-4)
    np.testing.assert_allclose(flow.from_base(flow.to_base(x)), x, atol=1e-4)
    draws = np.asarray(flow.sample(random.key(0), (8_000,)))
    np.testing.assert_array_less(np.abs(draws.mean(0) - MEAN), 4 * np.array([0.5, 2.0]) / np.sqrt(8_000))


@pytest.mark.long
def test_a_flow_learns_a_known_density_by_its_likelihood():
    """FFJORD on two modes: within 0.06 nats of the truth on other draws, above it by no more than 4 standard errors;
    and at the tolerance of its training the density integrates to one: a loose solver would be exploited."""
    rng = np.random.default_rng(0)
    x = (np.where(rng.random(4000) < 0.3, -1.5, 1.0) + 0.5 * rng.normal(size=4000)).astype(np.float32)[:, None]
    truth = np.log(0.3 * stats.norm.pdf(x[:, 0], -1.5, 0.5) + 0.7 * stats.norm.pdf(x[:, 0], 1, 0.5))

    def model(x, batch_size):
        velocity = eqx_module("velocity", TimeMLP((1,), width=16, key=random.key(0)))
        with numpyro.plate("data", len(x), subsample_size=batch_size):
            numpyro.sample("x", Flow(velocity, 1), obs=numpyro.subsample(x, event_dim=1))

    data = {"x": x[:2000], "batch_size": 100}
    fit = estimax.fit(model, MLE(subsample=True), data, num_steps=200, learning_rate=0.02, progress_bar=False)
    log_prob = jax.jit(observed(model, fit.params, data).log_prob)
    gap = truth[2000:] - np.asarray(log_prob(x[2000:]))
    assert -4 * gap.std() / np.sqrt(2000) < gap.mean() < 0.06
    grid = np.linspace(-8, 8, 1601, dtype=np.float32)[:, None]
    assert np.exp(np.asarray(log_prob(grid))).sum() * 0.01 == pytest.approx(1, abs=0.003)


@pytest.mark.long
def test_second_derivatives_pass_through_the_equation_in_double_precision(x64):
    """Of the log-density of N(m, 1) in m, data in single precision: x − m and −1."""
    log_prob = lambda m: Flow(lambda x, t: m, 1).log_prob(X[:1, :1].astype(np.float32))[0]  # noqa: E731
    m = jnp.array([0.4])
    np.testing.assert_allclose(jax.grad(log_prob)(m), X[0, :1] - m, rtol=1e-5)
    np.testing.assert_allclose(jax.hessian(log_prob)(m), [[-1.0]], rtol=1e-5)


@pytest.mark.long
def test_interpolant_draws_with_noise_on_the_way():
    """Exact velocity and denoiser of x_t = (1 − t) x_0 + t x_1 + γ z for normal data N(1, 0.5²)."""

    def moments(t):
        variance = (1 - t) ** 2 + (0.5 * t) ** 2
        return t, variance + 2 * t * (1 - t)

    def velocity(x, t):
        mean, total = moments(t)
        return 1 + (-(1 - t) + 0.25 * t + (1 - 2 * t)) / total * (x - mean)  # γ γ' = 1 − 2t

    def denoiser(x, t):
        mean, total = moments(t)
        return jnp.sqrt(2 * t * (1 - t)) / total * (x - mean)

    flow = Flow(velocity, 1, denoiser=denoiser)
    n = 8_000
    for draws in (flow.sample(random.key(0), (n,)), flow.sample_sde(random.key(1), (n,), diffusion=1.0)):
        assert np.mean(draws) == pytest.approx(1, abs=4 * 0.5 / np.sqrt(n) + 0.005)
        assert np.std(draws) == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(2 * n) + 0.01)


def test_the_fitted_distribution_is_found_by_its_site():
    def model(x):
        shift = numpyro.param("shift", jnp.zeros(2))
        with numpyro.plate("data", len(x), subsample_size=2):
            x = numpyro.subsample(x, event_dim=1)
            numpyro.sample("x", Flow(lambda x, t: shift, 2), obs=x)
            numpyro.sample("size", numpyro.distributions.Normal(), obs=x[:, 0])

    found = observed(model, {"shift": jnp.array([1.0, 2.0])}, {"x": X}, "x")
    np.testing.assert_allclose(found.from_base(jnp.zeros((3, 2))), np.tile([1.0, 2.0], (3, 1)), rtol=1e-6)
    with pytest.raises(ValueError, match="site must name an observed site \\(x, size\\), got None"):
        observed(model, {}, {"x": X})


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Flow(lambda x, t: x[:1], 2), ValueError, "to \\(1,\\), it must keep the shape"),
        (lambda: Flow(lambda x: x, 2), ValueError, "could not be called with one x of shape \\(2,\\)"),
        (lambda: Flow(3.0, 2), TypeError, "needs a function of x and t, got float"),
        (lambda: Flow(lambda x, t: x, ()), ValueError, "event_shape must be"),
        (lambda: Flow(lambda x, t: x, 2, trace="full"), ValueError, "trace must be one of exact, hutchinson"),
        (lambda: Flow(lambda x, t: x, 2).score(X, 0.5), ValueError, "the flow has no denoiser"),
        (lambda: Flow(lambda x, t: x, 2).log_prob(jnp.zeros((3, 4))), ValueError, "got data of \\(3, 4\\)"),
        (lambda: Flow(lambda x, t: x, 2).log_prob(jnp.zeros((3, 2), int)), ValueError, "dequantise"),
        (lambda: Diffusion(lambda x, t: x, "VP", 2), TypeError, "process must be a NoiseProcess"),
        (lambda: Diffusion(lambda x, t: x, VP(), 2, predicts="x"), ValueError, "predicts must be one of"),
        (lambda: gaussian(VP()).langevin(random.key(0), X, step_size=0.0), ValueError, "step_size must be positive"),
        (lambda: gaussian(VP()).sample_given(random.key(0), jnp.ones(1), jnp.ones((1, 3)), 0.1), ValueError,
         "operator must have shape \\(m, 2\\)"),
        (lambda: gaussian(VP()).sample_given(random.key(0), jnp.ones(1), jnp.ones((1, 2)), 0.0), ValueError,
         "noise_sd must be positive"),
    ],
)  # fmt: skip
def test_mistakes_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_solver_that_gives_up_leaves_nan():
    wild = Flow(lambda x, t: jnp.sin(1e6 * x) * 1e6, 1, rtol=1e-6, atol=1e-6)
    assert np.isnan(wild.log_prob(jnp.ones((1, 1)))).all()
