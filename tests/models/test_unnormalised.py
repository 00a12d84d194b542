"""Models without normalising constants: their exact constants, and score matching against truth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers
from numpyro.infer.util import compute_log_probs
from scipy import special, stats

import estimax
from estimax import models
from estimax.estimators import NCE, ScoreMatching, log_normalizer
from estimax.models import counts, directional, energy_network, event_embedding, exponential_family, ising, toys_2d


def fit(model, estimator, data, **options):
    return estimax.fit(model, estimator, data, progress_bar=False, **options)


def log_density(model, data, params):
    """Of every unit, as the model adds it."""
    terms = compute_log_probs(handlers.seed(model, 0), (), data, params, sum_log_prob=False)[0]
    return np.sum([np.asarray(v, np.float64) for v in terms.values()], axis=0)


def within(result, truth, bound):
    """Whether every estimate is within so many standard errors of the truth."""
    table = result.summary()
    for name, value in truth.items():
        std_err = table["std_err"].filter(regex=rf"^{name}(\[|$)").to_numpy()
        assert np.all(np.abs(np.ravel(result.params[name]) - np.ravel(value)) < bound * std_err), name


@pytest.mark.long
def test_von_mises_fisher():
    """The constant against scipy's density; the estimate within 4 s.e. of the truth, and near scipy's MLE."""
    data, truth = directional.vmf_data(), directional.vmf_truth()
    kappa = np.linalg.norm(truth["theta"])
    expected = stats.vonmises_fisher(truth["theta"] / kappa, kappa).logpdf(data["x"])
    energy = log_density(directional.von_mises_fisher, data, {"theta": jnp.asarray(truth["theta"])})
    np.testing.assert_allclose(energy - directional.vmf_log_normalizer(truth["theta"]), expected, atol=1e-5)

    result = fit(directional.von_mises_fisher, ScoreMatching(domain="sphere"), data)
    within(result, truth, 4)
    mu, kappa = stats.vonmises_fisher.fit(data["x"])
    std_err = result.summary()["std_err"].to_numpy()
    assert np.all(np.abs(result.params["theta"] - kappa * mu) < 2 * std_err)


@pytest.mark.long
def test_bingham():
    """The constant against Kummer's function for one axis; the estimate within 4 s.e. of the truth."""
    a = np.array([2.0 - 1 / 3 * 2.0, 0.0, 0.0, -2.0 / 3, 0.0])  # 2 e₁e₁ᵀ less its trace over three
    expected = np.log(4 * np.pi * special.hyp1f1(0.5, 1.5, 2.0)) - 2.0 / 3
    np.testing.assert_allclose(directional.bingham_log_normalizer(a), expected, rtol=1e-6)
    np.testing.assert_allclose(np.trace(directional.symmetric(np.arange(5.0), 3)), 0, atol=1e-6)

    data, truth = directional.bingham_data(), directional.bingham_truth()
    assert data["x"].shape == (1000, 3)
    result = fit(directional.bingham, ScoreMatching(domain="sphere"), data)
    assert result.num_steps == 1  # linear in its parameters
    within(result, truth, 4)


@pytest.mark.long
def test_polynomial():
    """Score matching in one step, and NCE with its constant by quadrature, within 4 s.e."""
    data, truth = exponential_family.polynomial_data(), exponential_family.polynomial_truth()
    x = data["x"]
    grid = exponential_family.GRID
    p = np.exp(exponential_family._energy(truth["theta"], truth["quartic"], grid)
               - exponential_family.polynomial_log_normalizer(truth["theta"], truth["quartic"]))  # fmt: skip
    for power in (1, 2, 3):
        exact = np.trapezoid(p * grid**power, grid)
        assert abs(np.mean(x**power) - exact) < 4 * np.std(x**power) / np.sqrt(len(x))
    within(fit(exponential_family.polynomial, ScoreMatching(), data), truth, 4)
    result = fit(exponential_family.polynomial, NCE(), data)
    within(result, truth, 4)
    exact = exponential_family.polynomial_log_normalizer(result.params["theta"], result.params["quartic"])
    assert abs(result.params["log_z"] - exact) < 4 * result.summary().loc["log_z", "std_err"]


@pytest.mark.long
def test_gaussian_graphical():
    """The precision matrix is exactly the inverse covariance, in one step."""
    pytest.importorskip("sklearn")
    data = exponential_family.wine()
    result = fit(exponential_family.gaussian_graphical, ScoreMatching(), data)
    found = exponential_family.precision(result.params["diagonal"], result.params["upper"])
    np.testing.assert_allclose(found, np.linalg.inv(np.cov(data["x"].T, bias=True)), rtol=1e-4)
    assert result.num_steps == 1


@pytest.mark.long
def test_truncated_normal():
    within(fit(exponential_family.truncated_normal, ScoreMatching(), exponential_family.truncated_data()),
           exponential_family.truncated_truth(), 4)  # fmt: skip


def test_ising_draws_and_constant():
    """Moments of the draws within 4.5 s.e. of enumeration by hand; the constant from its definition."""
    truth, x = ising.ising_truth(), ising.ising_data()["x"].astype(float)
    s = ising.spins(8).astype(float)
    upper = np.triu_indices(8, 1)
    energy = s @ truth["b"] + (s[:, upper[0]] * s[:, upper[1]]) @ truth["w"]
    assert len(np.unique(s, axis=0)) == 256
    np.testing.assert_allclose(ising.exact_log_normalizer(truth["w"], truth["b"]), special.logsumexp(energy), rtol=1e-6)
    p = np.exp(energy - special.logsumexp(energy))
    drawn, exact = (v[:, upper[0]] * v[:, upper[1]] for v in (x, s))
    assert np.all(np.abs(drawn.mean(0) - p @ exact) < 4.5 * drawn.std(0) / np.sqrt(len(x)))
    params = {k: jnp.asarray(v) for k, v in truth.items()}
    np.testing.assert_allclose(log_density(ising.ising, {"x": s}, params), energy, rtol=1e-5, atol=1e-5)


@pytest.mark.long
def test_counts():
    """Independent Poisson where nothing ties the counts; NCE within 4 s.e. of the truth, its constant of the sum."""
    rates = np.array([1.5, 3.0])
    np.testing.assert_allclose(counts.log_normalizer(np.zeros(2), np.log(rates), [0.0]), rates.sum(), rtol=1e-5)
    data, truth = counts.data(), counts.truth()
    result = fit(counts.model, NCE(ratio=20), data)
    within(result, truth, 4)
    exact = counts.log_normalizer(*(result.params[k] for k in ("theta", "diagonal", "upper")))
    assert abs(result.params["log_z"] - exact) < 4 * result.summary().loc["log_z", "std_err"]


@pytest.mark.slow
def test_event_embedding():
    """The fit ranks events of one group above events at random, which are new to it, as the simulation has them."""
    data = event_embedding.data()
    result = fit(
        event_embedding.model, NCE(ratio=5, l2={"v": 1.0}), data, optimizer="adam", num_steps=400, learning_rate=0.03
    )
    x = np.random.default_rng(7).integers(0, event_embedding.NUM_ENTITIES, (4000, 3))
    groups = event_embedding.group(x)
    same = (groups == groups[:, :1]).all(1)
    score = np.asarray(event_embedding.log_density(x, *(result.params[k] for k in ("v", "w", "b"))))
    assert stats.mannwhitneyu(score[same], score[~same]).statistic / (same.sum() * (~same).sum()) > 0.97


@pytest.fixture(scope="module")
def network():
    """Fitted to the grid of Gaussians by denoising at sigma = 0.15, and its log-density."""
    pytest.importorskip("equinox")
    estimator = ScoreMatching("denoising", sigma=0.15, redraw=True, subsample=True)
    data = energy_network.data("gaussian_grid")
    result = fit(energy_network.model, estimator, data, num_steps=600, learning_rate=5e-3)

    @jax.jit
    def log_p(x):
        model = handlers.substitute(handlers.seed(energy_network.model, 0), data=result.params)
        return compute_log_probs(model, (), {"x": x}, {}, sum_log_prob=False)[0]["log_density"]

    return result, log_p


@pytest.mark.long
def test_energy_network_learns_the_score_of_the_noisy_data(network):
    """The grid's Gaussians with variance sd² + sigma²: a tenth of its mean square is left (0.05 found), and less than
    half of that if the data were taken for the clean ones."""
    log_p = network[1]
    variance = toys_2d.GRID_SD**2 + 0.15**2

    def smoothed(x):
        return jax.scipy.special.logsumexp(-0.5 * jnp.sum((x - toys_2d.grid_centres()) ** 2, -1) / variance)

    clean_key, noise_key = jax.random.split(jax.random.key(9))
    x = toys_2d.gaussian_grid(clean_key, 2000) + 0.15 * jax.random.normal(noise_key, (2000, 2))
    exact, clean = (jax.vmap(jax.grad(f))(x) for f in (smoothed, toys_2d.gaussian_grid.log_prob))
    learned = jax.grad(lambda x: jnp.sum(log_p(x)))(x)
    error, other = (np.mean(np.square(learned - s)) / np.mean(np.square(exact)) for s in (exact, clean))
    assert error < 0.1
    assert error < 0.5 * other


@pytest.mark.long
def test_log_z_of_an_energy_network(network):
    """Of a fit by batches: annealing within 4 of its standard errors of a sum over a grid."""
    result, log_p = network
    ticks = np.linspace(-8, 8, 401, dtype=np.float32)
    grid = np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2)
    exact = special.logsumexp(np.asarray(log_p(grid), np.float64)) + 2 * np.log(ticks[1] - ticks[0])
    found = log_normalizer(result, num_temperatures=100)
    assert found.trusted
    assert found.std_err < 0.05
    assert abs(found.value - exact) < 4 * found.std_err


def test_they_are_on_the_shelf():
    names = {"von_mises_fisher", "bingham", "polynomial", "gaussian_graphical", "truncated_normal", "ising",
             "rbm_digits", "energy_two_moons", "count_graph", "event_embedding"}  # fmt: skip
    assert names <= set(models.names())
    for name in names - {"rbm_digits", "gaussian_graphical"}:
        entry = models.get(name)
        assert len(entry.description) <= 100
        data = entry.data()
        assert all(np.array_equal(value, entry.data()[key]) for key, value in data.items())
