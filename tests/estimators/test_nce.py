"""Noise-contrastive estimation, compositional maximum likelihood and log Z, against closed forms and enumeration."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax import lax, random
from scipy import stats

import estimax
from estimax.estimators import DDO, MLE, NCE, CompositionalMLE, ConditionalNCE, ScoreMatching, log_normalizer
from estimax.inference import curvature
from estimax.inference.solve import objective
from estimax.models import ising


def fit(model, estimator, x, **options):
    return estimax.fit(model, estimator, {"x": x}, progress_bar=False, **options)


def gaussian(x):
    """Without its constant, in natural parameters."""
    eta = numpyro.param("eta", 0.0)
    k = numpyro.param("k", 1.0)
    with numpyro.plate("data", x.shape[0]):
        numpyro.factor("energy", eta * x - 0.5 * k * x**2)


def shifted(x):
    mu = numpyro.param("mu", 0.0)
    with numpyro.plate("data", x.shape[0], subsample_size=min(50, x.shape[0])):
        numpyro.factor("energy", -0.5 * (numpyro.subsample(x, event_dim=0) - mu) ** 2)


@eqx.filter_jit
def estimates(problem, xs, ys):
    def one(args):
        x, y = args
        z0, f, _ = objective(replace(problem, data={"x": x}, draws=y))
        return curvature.newton(f, z0)[0]

    return lax.map(one, (xs, ys), batch_size=50)


def asymptotic_variance(ratio, noise):
    """Of (eta, k, log_z) times n, by quadrature (Noise-Contrastive Estimation, theorem 3), the data N(0, 1)."""
    t = np.linspace(-12, 12, 4001)
    step = t[1] - t[0]
    g = np.stack([t, -0.5 * t**2, -np.ones_like(t)])
    p, q = stats.norm.pdf(t), noise.pdf(t)
    share = ratio * q / (p + ratio * q)
    inverse = np.linalg.inv((g * share * p) @ g.T * step)
    mean = (g * share * p).sum(1) * step
    return np.diag(inverse - (1 + 1 / ratio) * inverse @ np.outer(mean, mean) @ inverse)


@pytest.mark.slow
def test_variance_falls_to_the_mle_as_the_ratio_grows():
    """1,000 data sets of 500: the variance is the asymptotic one of the theory within 4 s.e. (18 %), at every ratio."""
    sets, n, noise = 1000, 500, stats.norm(0, 1.5)
    rng = np.random.default_rng(0)
    xs = rng.normal(size=(sets, n))
    found = {}
    with jax.enable_x64(True):
        for ratio in (1, 4, 20):
            problem = NCE(dist.Normal(0, 1.5), ratio).problem(random.key(0), gaussian, None, {"x": jnp.asarray(xs[0])})
            ys = jnp.asarray(noise.rvs((sets, ratio, n), random_state=rng))
            found[ratio] = np.asarray(estimates(problem, jnp.asarray(xs), ys))
    names = [0, 1, 2]  # eta, k, log_z: sorted as ravel_pytree does
    for ratio, z in found.items():
        np.testing.assert_allclose(n * z[:, names].var(0), asymptotic_variance(ratio, noise), rtol=0.22)
        truth = [0.0, 1.0, 0.5 * np.log(2 * np.pi)]
        assert np.all(np.abs(z.mean(0) - truth) < 4 * z.std(0) / np.sqrt(sets) + 3 * z.var(0))
    mle = np.array([1.0, 2.0])  # of mean and precision at N(0, 1), times n
    efficiency = {ratio: mle / (n * z[:, :2].var(0)) for ratio, z in found.items()}
    assert np.all(efficiency[20] > 0.85)
    assert np.all(efficiency[1] < efficiency[4])
    assert np.all(efficiency[1] < 0.8)


@pytest.mark.long
def test_ising_couplings_and_constant():
    """Estimates within 4.5 standard errors of the truth (36 of them, and log Z by enumeration)."""
    data, truth = ising.ising_data(), ising.ising_truth()
    result = fit(ising.ising, NCE(ratio=20), data["x"])
    std_err = result.summary()["std_err"]
    for name in ("w", "b"):
        error = np.abs(result.params[name] - truth[name])
        assert np.all(error < 4.5 * std_err.filter(regex=rf"^{name}\[").to_numpy())
    exact = ising.exact_log_normalizer(truth["w"], truth["b"])
    assert abs(result.params["log_z"] - exact) < 4 * std_err["log_z"]
    assert std_err["log_z"] < 0.1

    own = ising.exact_log_normalizer(result.params["w"], result.params["b"])
    annealed = log_normalizer(result, num_temperatures=100)
    assert abs(annealed.value - own) < 4 * annealed.std_err
    assert annealed.std_err < 0.02
    assert annealed.trusted
    assert "log Z =" in str(annealed)

    pairs = fit(ising.ising, ConditionalNCE(), data["x"])
    std_err = pairs.summary()["std_err"]
    for name in ("w", "b"):
        error = np.abs(pairs.params[name] - truth[name])
        assert np.all(error < 4.5 * std_err.filter(regex=rf"^{name}\[").to_numpy())


@pytest.fixture(scope="module")
def sample():
    return np.random.default_rng(3).normal(1.0, 0.7, 400)


@pytest.mark.long
def test_noise_that_is_fitted(sample):
    """A fitted model, and the default: both agree with the MLE within 4 of their standard errors."""

    def normal(x):
        mu = numpyro.param("mu", 0.0)
        sd = numpyro.param("sd", 1.0, constraint=dist.constraints.positive)
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("x", dist.Normal(mu, sd), obs=x)

    fitted = fit(normal, MLE(), sample)
    expected = {"eta": sample.mean() / sample.var(), "k": 1 / sample.var()}
    for noise in (None, fitted):
        result = fit(gaussian, NCE(noise, 10), sample)
        table = result.summary()
        for name, value in expected.items():
            assert abs(table.loc[name, "estimate"] - value) < 4 * table.loc[name, "std_err"]
        exact = 0.5 * np.log(2 * np.pi * sample.var()) + 0.5 * sample.mean() ** 2 / sample.var()
        assert abs(table.loc["log_z", "estimate"] - exact) < 4 * table.loc["log_z", "std_err"]


@pytest.mark.long
def test_a_file_holds_no_noise(sample, tmp_path):
    """A distribution is not written: what is missing is named, and with it the fit is the same."""
    estimator = NCE(dist.Normal(0.5, 1.5), 5)
    result = fit(gaussian, estimator, sample)
    result.save(tmp_path / "fit.nc")
    with pytest.raises(ValueError, match=r"no distributions: give the same again, load\(path, model, estimator="):
        estimax.load(tmp_path / "fit.nc", gaussian)
    again = estimax.load(tmp_path / "fit.nc", gaussian, estimator=estimator)
    np.testing.assert_allclose(again.summary()["std_err"], result.summary()["std_err"], rtol=1e-6)  # of the same draws
    assert again.params == result.params


@pytest.mark.long
def test_the_constant_is_learned_or_not(sample):
    def normal(x):
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("x", dist.Normal(numpyro.param("mu", 0.0), 1.0), obs=x)

    result = fit(normal, NCE(learn_constant=False), sample)
    assert "log_z" not in result.params
    assert "normalised" not in str(result.diagnose())
    given = fit(gaussian, NCE(), sample, start={"log_z": 1.5, "k": 2.0})
    np.testing.assert_allclose(given.params["k"], fit(gaussian, NCE(), sample).params["k"], rtol=1e-5)


@pytest.mark.long
def test_conditional_noise_of_small_size_is_score_matching(sample):
    """As sigma falls the two estimates meet: the difference is a small part of the standard error."""
    score = fit(gaussian, ScoreMatching(), sample)
    pairs = fit(gaussian, ConditionalNCE(sigma=0.01, ratio=200), sample)
    for name in ("eta", "k"):
        assert abs(pairs.params[name] - score.params[name]) < 0.5 * score.summary().loc[name, "std_err"]


def test_compositional_gradient_is_that_of_the_likelihood(sample):
    """With many draws and no memory it is n(E_θ[s] − mean s) within 4 s.e. of 400 draws, and its value log Z."""
    problem = CompositionalMLE(dist.Normal(0.5, 1.5), ratio=20, decay=1.0).problem(
        random.key(0), gaussian, None, {"x": jnp.asarray(sample, jnp.float32)}
    )
    params = {"eta": jnp.array(0.5), "k": jnp.array(1.5)}

    @jax.jit
    def draw(key):
        memory = problem.refresh(problem.memory, params, key)
        loss = lambda p: problem.with_memory(memory).loss(p, key, problem.data)  # noqa: E731
        (_, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return gradient, metrics["log_z"]

    gradient, log_z = jax.lax.map(draw, random.split(random.key(1), 400))
    n, mean, var = len(sample), 0.5 / 1.5, 1 / 1.5
    exact = {"eta": n * (mean - sample.mean()), "k": -0.5 * n * (var + mean**2 - np.mean(sample**2))}
    for name, value in exact.items():
        many = np.asarray(gradient[name], np.float64)
        assert abs(many.mean() - value) < 4 * many.std() / 20 + 1e-3 * abs(value)
    exact_log_z = 0.5 * np.log(2 * np.pi / 1.5) + 0.5 * 0.5**2 / 1.5
    assert abs(np.mean(log_z) - exact_log_z) < 4 * np.std(log_z) / 20 + 1e-3


def test_compositional_needs_fewer_steps_than_nce_from_afar():
    """1-D Gaussian mean 4, noise N(0, 2²), start at 10, one step size: NCE's logistic loss is flat on the way."""
    x = np.random.default_rng(4).normal(4.0, 1.0, 1000)
    noise, optimizer = dist.Normal(0.0, 2.0), optax.sgd(1e-4)

    start = {"mu": 10.0, "log_z": 0.5 * np.log(2 * np.pi)}  # NCE knows the constant

    def error(estimator, num_steps):
        result = fit(shifted, estimator, x, start=start, num_steps=num_steps, optimizer=optimizer, seed=1)
        return abs(result.params["mu"] - x.mean())

    assert error(CompositionalMLE(noise), 60) < 0.25
    assert error(NCE(noise, 1, redraw=True), 60) > 0.5
    assert error(NCE(noise, 1, redraw=True), 800) < 0.25


@pytest.mark.long
def test_minibatches_of_nce(sample):
    """Mean gradient over batches and noise within 4 s.e. of that with all data and as much noise."""
    x = jnp.asarray(sample, jnp.float32)
    params = {"mu": jnp.array(0.3), "log_z": jnp.array(0.9)}
    full = NCE(dist.Normal(0.0, 2.0), 5, redraw=True).problem(random.key(0), shifted, None, {"x": x})
    some = NCE(dist.Normal(0.0, 2.0), 5, subsample=True).problem(random.key(0), shifted, None, {"x": x})
    gradient = lambda p: lambda key: jax.grad(lambda v: p.loss(v, key, p.data)[0])(params)  # noqa: E731
    a, b = (jax.jit(jax.vmap(gradient(p)))(random.split(random.key(1), 1000)) for p in (full, some))
    for name in params:
        u, v = np.asarray(a[name], np.float64), np.asarray(b[name], np.float64)
        assert abs(u.mean() - v.mean()) < 4 * np.sqrt((u.var() + v.var()) / 1000)
        assert v.std() > u.std()


@pytest.mark.long
def test_nce_is_not_taken_for_a_likelihood(sample):
    result = fit(gaussian, NCE(), sample)
    with pytest.raises(TypeError, match="not a likelihood"):
        result.information_criteria()
    assert result.covariance().kind == "sandwich"
    assert result.diagnose().verdict == "good"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: NCE(3.0), TypeError, "noise must be a NumPyro distribution"),
        (lambda: NCE(dist.Normal), TypeError, "noise must be"),
        (lambda: NCE(ratio=0), ValueError, "ratio must be an integer of at least 1"),
        (lambda: NCE(covariance="observed"), ValueError, "likelihoods only"),
        (lambda: NCE(rate=1), TypeError, "no argument 'rate'"),
        (lambda: ConditionalNCE(sigma=0.0), ValueError, "sigma, the noise scale, must be positive, got 0.0"),
        (lambda: CompositionalMLE(decay=0.0), ValueError, r"decay must lie in \(0, 1\]"),
        (lambda: CompositionalMLE(l1=1.0), ValueError, "CompositionalMLE has no exact loss"),
    ],
)
def test_bad_options(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_bad_noise(sample):
    with pytest.raises(ValueError, match=r"noise does not cover the data: its log-density at data\['x'\]"):
        fit(gaussian, NCE(dist.Uniform(0.0, 1.5)), sample)
    with pytest.raises(ValueError, match="noise has shape"):
        fit(gaussian, NCE(dist.Normal(jnp.zeros(3), 1.0).to_event(1)), sample)
    with pytest.raises(ValueError, match="normalised model by MLE or MAP|fit of a normalised model"):
        fit(gaussian, NCE(fit(gaussian, ScoreMatching(), sample)), sample)


def test_models_that_cannot_be(sample):
    def named(x):
        log_z = numpyro.param("log_z", 0.0)
        with numpyro.plate("data", x.shape[0]):
            numpyro.factor("energy", -log_z * x**2)

    with pytest.raises(ValueError, match="rename it"):
        fit(named, NCE(), sample)

    def broken(x):
        k = numpyro.param("k", 1.0)
        with numpyro.plate("data", x.shape[0]):
            numpyro.factor("energy", -k * jnp.sqrt(x - 5.0))

    with pytest.raises(FloatingPointError, match="site 'energy' is not finite"):
        fit(broken, NCE(), sample)

    def outside(x):
        scale = numpyro.param("scale", 1.0, constraint=dist.constraints.positive)
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("x", dist.HalfNormal(scale), obs=x)

    with pytest.raises(ValueError, match="outside of the model's support"):
        fit(outside, NCE(), sample)


@pytest.mark.long
def test_a_partition_function_that_diverges_is_named(sample):
    def endless(x):
        k = numpyro.param("k", 1.0)
        with numpyro.plate("data", x.shape[0]):
            numpyro.factor("energy", k * jnp.cos(x) + 0.3 * x**2)

    result = fit(endless, ScoreMatching(), sample)
    with pytest.raises(FloatingPointError, match="partition function diverges"):
        log_normalizer(result, num_temperatures=100)

    def explosive(x):
        k = numpyro.param("k", 1.0)
        with numpyro.plate("data", x.shape[0]):
            numpyro.factor("energy", 0.1 * k**2 * x**4)

    found = fit(explosive, CompositionalMLE(dist.Normal(0.0, 4.0)), sample, num_steps=20)
    assert any("partition function diverges" in line for line in found.diagnose().advice)


@pytest.mark.long
def test_log_normalizer_of_a_density_on_the_line(sample):
    """Closed form, by both gradient kernels, within 4 s.e."""
    result = fit(gaussian, ScoreMatching(), sample)
    eta, k = result.params["eta"], result.params["k"]
    exact = 0.5 * np.log(2 * np.pi / k) + 0.5 * eta**2 / k
    for kernel in ("langevin", "hmc"):
        found = log_normalizer(result, base=dist.Normal(0.0, 2.0), num_temperatures=100, kernel=kernel)
        assert abs(found.value - exact) < 4 * found.std_err
        assert found.std_err < 0.1

    def regression(x, y):
        slope = numpyro.param("slope", 0.5)
        with numpyro.plate("data", x.shape[0]):
            numpyro.factor("energy", -0.5 * (x - slope * y) ** 2 + y * x)

    y = np.random.default_rng(0).normal(size=len(sample))
    fitted = estimax.fit(regression, ScoreMatching(argument="x"), {"x": sample, "y": y}, progress_bar=False)
    with pytest.raises(ValueError, match="densities of their own"):
        log_normalizer(fitted)


@pytest.mark.parametrize(
    "estimator",
    [NCE(learn_constant=False), pytest.param(DDO(dist.Normal(1.0, 1.0), 5), marks=pytest.mark.long)],
    ids=["NCE", "DDO"],
)
def test_a_model_wrongly_taken_as_normalised_is_named(sample, estimator):
    """Half of a density integrates to a half, whatever its location."""

    def half(x):
        mu = numpyro.param("mu", 0.0)
        with numpyro.plate("data", x.shape[0]):
            numpyro.factor("energy", dist.Normal(mu, 0.7).log_prob(x) - np.log(2.0))

    diagnosis = fit(half, estimator, sample).diagnose()
    assert diagnosis.verdict == "do not use"
    assert "integrates to exp(-0." in str(diagnosis)


@pytest.mark.long
def test_ddo_refines_a_reference(sample):
    """A reference stopped short of its optimum: the refined fit is within 4 s.e. of the truth."""

    def normal(x):
        mu = numpyro.param("mu", 0.0)
        sd = numpyro.param("sd", 1.0, constraint=dist.constraints.positive)
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("x", dist.Normal(mu, sd), obs=x)

    reference = fit(normal, MLE(), sample, num_steps=3, optimizer="sgd", learning_rate=1e-4)
    assert abs(reference.params["mu"] - sample.mean()) > 0.3
    result = fit(normal, DDO(reference, 5), sample)
    table = result.summary()
    assert "log_z" not in result.params
    assert abs(table.loc["mu", "estimate"] - 1.0) < 4 * table.loc["mu", "std_err"]
    assert abs(table.loc["sd", "estimate"] - 0.7) < 4 * table.loc["sd", "std_err"]
    with pytest.raises(ValueError, match="DDO needs a reference"):
        fit(normal, DDO(), sample)
    with pytest.raises(ValueError, match="alpha must be positive"):
        DDO(reference, alpha=0.0)
    with pytest.raises(ValueError, match="no constant to learn"):
        DDO(reference, learn_constant=True)
