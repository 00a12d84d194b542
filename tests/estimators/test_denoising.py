"""Denoising score matching against quadrature, closed forms of Gaussians, and the moments of both kinds of targets."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from numpyro.contrib.module import eqx_module
from numpyro.distributions import constraints
from scipy import stats

import estimax
from estimax.estimators import TIWDSM, DenoisingScoreMatching, TargetScoreMatching
from estimax.estimators.denoising import blending_share
from estimax.estimators.matching import unwrap
from estimax.models.diffusion import Diffusion, observed
from estimax.models.networks import TimeMLP
from estimax.models.noise_process import VE, VP, SubVP

POINTS = np.array([-1.2, 0.1, 0.4, 1.5], np.float32)[:, None]
THETA = jnp.array([-0.4, 0.3, 0.5])
rng = np.random.default_rng(3)
X = rng.normal(0.8, 0.6, (400, 1)).astype(np.float32)


def three_parameters(theta):
    return lambda x, t: theta[0] * x + theta[1] * t + theta[2] * jnp.tanh(x)


def by_quadrature(estimator, process):
    """Gradient of ½ ∫ λ E‖s − ∇log p_t‖² at THETA, p_t the mixture of normals around the data, on a grid of x and t."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    t = process.t_min + (1 - process.t_min) * (nodes + 1) / 2
    weights = weights / 2 * (1 - process.t_min)
    if not isinstance(estimator.times, str):
        t = np.array(estimator.times)
        weights = np.full(len(t), 1 / len(t))
    alpha, sigma = np.asarray(process.alpha(t)), np.asarray(process.sigma(t))
    z = np.linspace(-7, 7, 400)
    dz = stats.norm.pdf(z) * (z[1] - z[0])
    gradient = 0
    for mean in POINTS[:, 0]:  # x_t around each datum in turn
        x = alpha[:, None] * mean + sigma[:, None] * z
        residual = x[..., None] - alpha[:, None, None] * POINTS[:, 0]
        log_p = -(residual**2) / (2 * sigma[:, None, None] ** 2)
        share = np.exp(log_p - log_p.max(-1, keepdims=True))
        share /= share.sum(-1, keepdims=True)
        score = -(share * residual).sum(-1) / sigma[:, None] ** 2
        error = THETA[0] * x + THETA[1] * t[:, None] + THETA[2] * np.tanh(x) - score
        slopes = np.stack([x, np.broadcast_to(t[:, None], x.shape), np.tanh(x)])
        lam = {"noise": sigma**2, "likelihood": np.asarray(process.diffusion(t)) ** 2, "score": 1 + 0 * t}
        gradient += np.einsum("t,z,tz,ktz->k", weights * lam[estimator.weighting], dz, error, slopes) / len(POINTS)
    return gradient


@pytest.mark.parametrize(
    ("estimator", "process"),
    [
        (DenoisingScoreMatching(), VP()),
        (DenoisingScoreMatching("likelihood", "log_snr"), SubVP(0.2, 12.0, 0.05)),
        (DenoisingScoreMatching("score"), VE(0.3, 3.0)),
        (DenoisingScoreMatching("noise", "log_snr"), VE(0.1, 5.0)),
        (DenoisingScoreMatching("noise", (0.2, 0.5, 0.9)), VP()),
    ],
    ids=lambda v: type(v).__name__,
)
def test_gradient_is_that_of_matching_the_score_of_the_noisy_data(estimator, process):
    """Mean of 20,000 gradients within 4 standard errors of quadrature."""

    def loss(theta, key):
        fn = Diffusion(three_parameters(theta), process, 1, predicts="score")
        return jnp.mean(estimator.objective(fn, jnp.asarray(POINTS), key, None))

    draws = np.asarray(jax.jit(jax.vmap(lambda key: jax.grad(loss)(THETA, key)))(random.split(random.key(0), 20_000)))
    error = draws.std(0) / np.sqrt(len(draws))
    np.testing.assert_array_less(np.abs(draws.mean(0) - by_quadrature(estimator, process)), 4 * error)


def gaussian_model(x, batch_size=None):
    """The score of N(m, sd²) under noise, with m and sd as parameters."""
    process = VP()
    m = numpyro.param("m", jnp.zeros(1))
    sd = numpyro.param("sd", jnp.ones(1), constraint=constraints.positive)

    def score(x, t):
        return -(x - process.alpha(t) * m) / ((process.alpha(t) * sd) ** 2 + process.sigma(t) ** 2)

    with numpyro.plate("data", len(x), subsample_size=batch_size):
        x = numpyro.subsample(x, event_dim=1)
        numpyro.sample("x", Diffusion(score, process, 1, predicts="score", num_steps=20), obs=x)


@pytest.fixture(scope="module")
def fitted():
    data = {"x": X, "batch_size": 100}
    return estimax.fit(gaussian_model, DenoisingScoreMatching(), data, num_steps=2000, progress_bar=False)


def test_gaussian_family_recovers_the_sample_moments(fitted):
    """Those are its minimum exactly; 0.03, their own standard error, is for the noise of the optimiser."""
    assert fitted.params["m"][0] == pytest.approx(X.mean(), abs=0.03)
    assert fitted.params["sd"][0] == pytest.approx(X.std(), abs=0.03)


@pytest.mark.long
def test_log_likelihood_is_the_models_own_on_all_data(fitted):
    process = VP()
    m, sd = fitted.params["m"][0], fitted.params["sd"][0]
    alpha, sigma = float(process.alpha(process.t_min)), float(process.sigma(process.t_min))
    truth = stats.norm(alpha * m, np.sqrt((alpha * sd) ** 2 + sigma**2)).logpdf(X).sum()
    found = float(fitted.problem.log_likelihood(fitted.unconstrained, fitted.data))
    assert found == pytest.approx(truth, abs=0.005 * len(X))  # α(1) = 0.007 of the data is left at t = 1


@pytest.mark.long
def test_arviz_groups_and_a_file_hold_one_draw_of_the_data(fitted, tmp_path):
    path = tmp_path / "fit.nc"
    fitted.save(path)
    again = estimax.load(path, gaussian_model)
    assert again.estimator == fitted.estimator
    assert again.resume(3, progress_bar=False).num_steps == 2003
    groups = fitted.to_arviz(20)
    assert groups["posterior_predictive"]["x"].shape == (1, 1, len(X), 1)
    assert groups["log_likelihood"]["x"].shape == (1, 1, len(X))
    fn = observed(gaussian_model, fitted.params, {"x": X})
    np.testing.assert_allclose(groups["log_likelihood"]["x"][0, 0], fn.log_prob(X), atol=1e-3)


def problem(model, data, estimator=None, seed=0):
    return (estimator or DenoisingScoreMatching()).problem(random.key(seed), model, None, data)


def test_loss_is_the_mean_over_data_with_or_without_plate_and_minibatch():
    x = jnp.asarray(X)

    def bare(x):
        m = numpyro.param("m", jnp.zeros(1))
        numpyro.sample("x", Diffusion(lambda x, t: m - x, VP(), 1, predicts="score"), obs=x)

    def plated(x, size=None):
        m = numpyro.param("m", jnp.zeros(1))
        fn = Diffusion(lambda x, t: m - x, VP(), 1, predicts="score")
        with numpyro.plate("data", len(x), subsample_size=size):
            numpyro.sample("x", fn, obs=numpyro.subsample(x, event_dim=1))

    def mean_loss(p):
        draws = jax.jit(jax.vmap(lambda key: p.loss(p.params, key, p.data)[0]))(random.split(random.key(1), 500))
        return float(jnp.mean(draws)), float(jnp.std(draws)) / np.sqrt(500)

    (a, sa), (b, sb), (c, sc) = (
        mean_loss(p)
        for p in (problem(bare, {"x": x}), problem(plated, {"x": x}), problem(plated, {"x": x, "size": 50}))
    )
    assert sa > 0
    assert abs(a - b) < 4 * np.hypot(sa, sb)
    assert abs(a - c) < 4 * np.hypot(sa, sc)


def test_masked_data_do_not_count():
    def model(x, keep):
        m = numpyro.param("m", jnp.zeros(1))
        with numpyro.plate("data", len(x)), numpyro.handlers.mask(mask=keep):
            numpyro.sample("x", Diffusion(lambda x, t: m - x, VP(), 1, predicts="score"), obs=x)

    keep = np.arange(len(X)) < 100
    changed = np.where(keep[:, None], X, 50.0).astype(np.float32)
    one, other = (problem(model, {"x": jnp.asarray(x), "keep": keep}) for x in (X, changed))
    assert one.loss(one.params, random.key(1), one.data)[0] == other.loss(other.params, random.key(1), other.data)[0]


def test_positive_data_by_multiplicative_noise():
    """exp of a diffusion: the noise multiplies, and the loss is that of the logarithms."""

    def core():
        m = numpyro.param("m", jnp.zeros(1))
        return Diffusion(lambda x, t: m - x, VP(), 1, predicts="score")

    def positive(x):
        fn = dist.TransformedDistribution(core(), dist.transforms.ExpTransform())
        numpyro.sample("x", fn, obs=x)

    def logs(x):
        numpyro.sample("x", core(), obs=x)

    one, other = problem(positive, {"x": jnp.exp(X)}), problem(logs, {"x": jnp.asarray(X)})
    values = [float(p.loss(p.params, random.key(1), p.data)[0]) for p in (one, other)]
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    with pytest.raises(ValueError, match="site 'x' observes values outside the support"):
        problem(positive, {"x": jnp.asarray(X)})


def test_priors_of_latent_sites_count_once():
    """The loss gains −log prior/n: from 0 to 0.01, ten of its standard deviations, that is 50/n."""

    def model(x):
        m = numpyro.sample("m", dist.Normal(0, 0.001))
        numpyro.sample("x", Diffusion(lambda x, t: m - x, VP(), 1, predicts="score"), obs=x)

    p = problem(model, {"x": jnp.asarray(X)})
    far = {"m": jnp.array(0.01)}
    near = {"m": jnp.array(0.0)}
    change = p.loss(far, random.key(0), p.data)[0] - p.loss(near, random.key(0), p.data)[0]
    no_prior = problem(lambda x: gaussian_like(x), {"x": jnp.asarray(X)})
    slope = no_prior.loss(far, random.key(0), p.data)[0] - no_prior.loss(near, random.key(0), p.data)[0]
    assert float(change - slope) == pytest.approx(0.5 * 100 / len(X), rel=0.01)


def gaussian_like(x):
    m = numpyro.param("m", jnp.zeros(()))
    numpyro.sample("x", Diffusion(lambda x, t: m - x, VP(), 1, predicts="score"), obs=x)


MIXTURE = dist.MixtureSameFamily(dist.Categorical(jnp.array([0.4, 0.6])), dist.Normal(jnp.array([-1.5, 1.0]), 0.5))


def mixture_density(x):
    return MIXTURE.log_prob(x[0])


def targets(t, key, n=40_000):
    process = VP()
    key_x, key_noise = random.split(key)
    x = MIXTURE.sample(key_x, (n,))[:, None]
    noise = random.normal(key_noise, x.shape)
    fn = Diffusion(lambda x, t: x, process, 1)
    denoising = DenoisingScoreMatching().target(fn, x, noise, jnp.float32(t), None)
    clean = TargetScoreMatching(log_density=mixture_density, blend=False).target(fn, x, noise, jnp.float32(t), None)
    noisy = process.alpha(t) * x + process.sigma(t) * noise
    return np.asarray(noisy), np.asarray(denoising), np.asarray(clean)


def noisy_score(x, t):
    """∇log p_t of the mixture in closed form."""
    alpha, sigma = float(VP().alpha(t)), float(VP().sigma(t))
    sd = np.sqrt((0.5 * alpha) ** 2 + sigma**2)
    p = np.array([0.4, 0.6]) * stats.norm(alpha * np.array([-1.5, 1.0]), sd).pdf(x)
    return -(p * (x - alpha * np.array([-1.5, 1.0]))).sum(1, keepdims=True) / sd**2 / p.sum(1, keepdims=True)


def test_both_targets_have_the_score_as_their_mean():
    """Their errors are uncorrelated with functions of x_t, within 4 standard errors."""
    for t in (0.05, 0.5):
        noisy, denoising, clean = targets(t, random.key(1))
        score = noisy_score(noisy, t)
        for target in (denoising, clean):
            for function in (np.ones_like(noisy), noisy, np.tanh(3 * noisy)):
                terms = ((target - score) * function)[:, 0]
                assert abs(terms.mean()) < 4 * terms.std() / np.sqrt(len(terms))


@pytest.mark.long
def test_clean_targets_win_at_small_noise_the_others_at_large_and_their_blend_always():
    fn = Diffusion(lambda x, t: x, VP(), 1)
    estimator = TargetScoreMatching(log_density=mixture_density)
    table = estimator.prepare(fn, MIXTURE.sample(random.key(0), (4096,))[:, None], random.key(1))
    ratios = []
    for t in (0.02, 0.1, 0.3, 0.5, 0.8):
        noisy, denoising, clean = targets(t, random.key(2))
        kappa = np.interp(t, table["levels"], table["shares"])
        assert kappa == pytest.approx(float(blending_share(clean, denoising)), abs=0.05)
        score = noisy_score(noisy, t)
        variance = [np.mean((v - score) ** 2) for v in (clean, denoising, kappa * clean + (1 - kappa) * denoising)]
        assert variance[2] <= 1.01 * min(variance[:2])  # κ is estimated
        ratios.append(variance[0] / variance[1])
    assert ratios[0] < 0.1
    assert ratios[-1] > 10
    assert ratios == sorted(ratios)


@pytest.mark.long
def test_a_regularised_auto_encoder_estimates_the_score():
    """Trained to restore data with noise of one level, (r(x) − x)/σ² is the score of the mixture with variance
    0.5² + σ²: less than a twentieth of its mean square is left over 3,000 points."""
    sigma = 0.3
    process = VE(sigma, 10.0)

    def model(x, batch_size):
        encoder = eqx_module("encoder", TimeMLP((1,), width=32, key=random.key(0)))
        with numpyro.plate("data", len(x), subsample_size=batch_size):
            fn = Diffusion(encoder, process, 1, predicts="data")
            numpyro.sample("x", fn, obs=numpyro.subsample(x, event_dim=1))

    keys = random.split(random.key(0), 3)
    data = {"x": np.asarray(MIXTURE.sample(keys[0], (5000,)))[:, None], "batch_size": 256}
    estimator = DenoisingScoreMatching(times=(0.0,))  # σ(0) is the least of VE
    fit = estimax.fit(model, estimator, data, num_steps=1000, progress_bar=False)
    x = MIXTURE.sample(keys[1], (3000,))[:, None] + sigma * random.normal(keys[2], (3000, 1))
    restored = jax.vmap(lambda one: observed(model, fit.params, data).network(one, 0.0))(x)
    sd = np.hypot(0.5, sigma)
    p = np.array([0.4, 0.6]) * stats.norm(np.array([-1.5, 1.0]), sd).pdf(x)
    exact = -(p * (x - np.array([-1.5, 1.0]))).sum(1, keepdims=True) / sd**2 / p.sum(1, keepdims=True)
    assert np.mean((np.asarray(restored - x) / sigma**2 - exact) ** 2) < 0.05 * np.mean(exact**2)


def test_biased_sample_is_corrected_by_the_density_ratio():
    """Data from N(1, 1), wanted N(0, 1). Of 4,000 draws weighted by at most e², 4 standard errors are 0.1."""
    x = (1 + rng.normal(size=(4000, 1))).astype(np.float32)
    process = VE(0.2, 5.0)

    def model(x):
        m = numpyro.param("m", jnp.full(1, 0.5))
        fn = Diffusion(lambda x, t: -(x - m) / (1 + process.sigma(t) ** 2), process, 1, predicts="score")
        numpyro.sample("x", fn, obs=x)

    def log_ratio(x, t):
        variance = 1 + process.sigma(t) ** 2
        return (-(x[0] ** 2) + (x[0] - 1) ** 2) / (2 * variance)

    fits = [
        estimax.fit(model, estimator, {"x": x}, num_steps=400, learning_rate=0.03, progress_bar=False).params["m"][0]
        for estimator in (DenoisingScoreMatching(), TIWDSM(log_ratio=log_ratio))
    ]
    assert fits[0] == pytest.approx(x.mean(), abs=0.05)
    assert fits[1] == pytest.approx(0.0, abs=0.1)


def normal_model(x):
    m = numpyro.param("m", jnp.zeros(()))
    numpyro.sample("x", dist.Normal(m, 1), obs=x)


def with_classes(x):
    m = numpyro.param("m", jnp.zeros(2))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("x", dist.Normal(m[z], 1), obs=x[:, 0])
        numpyro.sample("y", Diffusion(lambda x, t: m - x, VP(), 2), obs=x)


def two_dimensional(x):
    m = numpyro.param("m", jnp.zeros(2))
    numpyro.sample("x", Diffusion(lambda x, t: m - x, VP(), 2), obs=x)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: DenoisingScoreMatching("nois"), "weighting must be one of noise, likelihood, score"),
        (lambda: DenoisingScoreMatching(times="log"), "times must be one of uniform, log_snr"),
        (lambda: DenoisingScoreMatching(times=(0.5, 1.5)), "times must lie between 0 and 1"),
        (lambda: problem(two_dimensional, {"x": jnp.zeros((3, 2))}, DenoisingScoreMatching(times=(0.0, 1.0))),
         "times has 0.0, where the process has no noise"),
        (lambda: TargetScoreMatching(), "needs log_density"),
        (lambda: TIWDSM(), "needs log_ratio"),
        (lambda: estimax.fit(normal_model, DenoisingScoreMatching(), {"x": X}), "'x' is Normal.*take ScoreMatching"),
        (lambda: estimax.fit(with_classes, DenoisingScoreMatching(), {"x": np.zeros((5, 2))}), "cannot sum out 'z'"),
        (lambda: estimax.fit(two_dimensional, DenoisingScoreMatching(), {"x": np.zeros((5, 3))}),
         "observes shape \\(5, 3\\)"),
        (lambda: estimax.fit(two_dimensional, DenoisingScoreMatching(), {"x": np.zeros((5, 1))}),
         "over arrays of shape \\(2,\\), got data of \\(5, 1\\)"),
        (lambda: estimax.fit(two_dimensional, DenoisingScoreMatching(), {"x": np.zeros((5, 2), int)}), "dequantise"),
        (lambda: problem(two_dimensional, {"x": jnp.zeros((3, 2))},
                         TargetScoreMatching(log_density=lambda x: jnp.log(x).sum())),
         "no finite gradient at 6 values"),
    ],
)  # fmt: skip
def test_mistakes_are_named(run, message):
    with pytest.raises(ValueError, match=message):
        run()


def test_networks_inside_other_distributions_are_found():
    fn = Diffusion(lambda x, t: x, VP(), 2)
    wrapped = dist.TransformedDistribution(fn, [dist.transforms.ExpTransform()]).expand([3]).mask(np.ones(3, bool))
    core, transforms, masks = unwrap(wrapped)
    assert core is fn
    assert len(transforms) == len(masks) == 1
