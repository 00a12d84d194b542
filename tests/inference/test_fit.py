"""`fit` with its defaults ends at the posterior, whatever the units of the data; truths are closed forms."""

from math import lgamma, log, pi

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro import optim
from numpyro.distributions import constraints
from scipy.special import digamma, polygamma

from estimax import estimators, fit, models
from estimax.estimators import ELBO, IWAE, VIS

FAMILY = {"ELBO": ELBO(), "IWAE": IWAE(), "VIS": VIS()}


def regression(X, y):
    """Flat priors on the coefficients and on log sigma: the posterior of the textbook."""
    b = numpyro.sample("b", dist.ImproperUniform(constraints.real_vector, (), (X.shape[1],)))
    log_sigma = numpyro.sample("log_sigma", dist.ImproperUniform(constraints.real, (), ()))
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.Normal(X @ b, jnp.exp(log_sigma)), obs=y)


def textbook(X, y):
    """Mean and sd of b (Student's t) and of log sigma (log of an inverse chi), and log of the integral."""
    n, p = X.shape
    q, r = np.linalg.qr(X)
    b = np.linalg.solve(r, q.T @ y)
    df, rss = n - p, float(np.sum((y - X @ b) ** 2))
    sd = np.linalg.norm(np.linalg.inv(r), axis=1) * np.sqrt(rss / (df - 2))
    log_sigma = 0.5 * (log(rss / 2) - digamma(df / 2)), 0.5 * np.sqrt(polygamma(1, df / 2))
    log_integral = -df / 2 * log(2 * pi) - np.sum(np.log(np.abs(np.diag(r)))) + lgamma(df / 2) - log(2)
    return {"b": (b, sd), "log_sigma": log_sigma}, log_integral - df / 2 * log(rss / 2)


def raw(name):
    """Data as they come, with a column of ones."""
    if name == "diabetes":  # ten columns, units from 1 to 300, two of them correlated at 0.9
        sklearn = pytest.importorskip("sklearn.datasets")
        X, y = sklearn.load_diabetes(return_X_y=True, scaled=False)
    elif name == "scores":  # an intercept at 87 with residual sd 5, iq far from zero
        rng = np.random.default_rng(0)
        X = rng.normal(100, 15, (400, 1))
        y = 87 + 0.6 * (X[:, 0] - 100) + rng.normal(0, 5, 400)
    else:
        frame = getattr(pytest.importorskip("statsmodels.api").datasets, name).load_pandas()
        X, y = np.asarray(frame.exog, float), np.asarray(frame.endog, float)
    return np.column_stack([np.ones(len(X)), X]), np.asarray(y, float)


def errors(draws, truth):
    """Largest error of a mean in posterior sds, and of a sd relative to it."""
    of_mean = of_sd = 0.0
    for name, (mean, sd) in truth.items():
        value = np.asarray(draws[name], np.float64)
        of_mean = max(of_mean, float(np.max(np.abs(value.mean(0) - mean) / sd)))
        of_sd = max(of_sd, float(np.max(np.abs(value.std(0) / sd - 1))))
    return of_mean, of_sd


SLOW = [
    pytest.param(data, name, marks=pytest.mark.slow)
    for data in ("scores", "ccard", "engel", "stackloss", "longley")
    for name in FAMILY
    if (data, name) != ("longley", "ELBO")
]


@pytest.mark.long
@pytest.mark.parametrize(("data", "name"), [("diabetes", n) for n in FAMILY] + SLOW)
def test_raw_regression_needs_no_tuning(data, name):
    """40,000 draws: Monte Carlo error 0.005 sd in a mean, 0.4 % in a sd (twice that where tails are heavy)."""
    X, y = raw(data)
    result = fit(regression, FAMILY[name], {"X": X, "y": y}, progress_bar=False)
    assert result.status == "finished"
    assert result.num_steps < 2000
    truth, log_integral = textbook(X, y)
    of_mean, of_sd = errors(result.sample(40_000, resample="psis"), truth)
    assert of_mean < 0.05, f"mean off by {of_mean:.3f} sd"
    assert of_sd < 0.05, f"sd off by {of_sd:.1%}"
    evidence = result.log_evidence(40_000)
    # float32 sums a log-density near −2400 to a few 1e-3
    assert abs(evidence.value - log_integral) < 4 * evidence.stderr + 0.005
    if data in ("diabetes", "scores"):  # hundreds of data: the posterior is all but Gaussian, and so is the guide
        of_mean, of_sd = errors(result.sample(40_000), truth)
        assert of_mean < 0.05
        assert of_sd < 0.05


@pytest.mark.slow
def test_sixteen_rows_and_seven_collinear_columns_are_not_called_good_for_the_elbo():
    """Student's t with 9 degrees of freedom: too heavy for the ELBO's Gaussian, and it says so."""
    X, y = raw("longley")
    result = fit(regression, ELBO(), {"X": X, "y": y}, progress_bar=False)
    assert result.log_evidence(20_000).verdict != "good"
    assert errors(result.sample(40_000), textbook(X, y)[0])[1] > 0.05


def test_no_arguments_but_model_and_data():
    entry = models.linear_gaussian
    result = fit(entry.model, data=entry.data(), progress_bar=False)
    assert isinstance(result.estimator, ELBO)
    mean, covariance = entry.posterior(entry.data())
    of_mean, of_sd = errors(result.sample(40_000), {"z": (mean, np.sqrt(np.diag(covariance)))})
    assert of_mean < 0.05
    assert of_sd < 0.05


@pytest.mark.long
@pytest.mark.parametrize("name", ["IWAE", "VIS"])
def test_eight_schools_resampled(default_fit, name):
    result = default_fit("eight_schools", name)
    of_mean, of_sd = errors(result.sample(20_000, resample="psis"), models.eight_schools.posterior_moments())
    assert of_mean < 0.1
    assert of_sd < 0.1
    evidence = result.log_evidence(20_000)
    assert evidence.verdict != "do not use"
    assert abs(evidence.value - models.eight_schools.log_evidence()) < 4 * evidence.stderr + 0.001


@pytest.mark.long
def test_eight_schools_bias_of_the_plain_elbo_is_visible(default_fit):
    truth = models.eight_schools.posterior_moments()
    of_mean, of_sd = errors(default_fit("eight_schools", "ELBO").sample(20_000), truth)
    assert of_mean > 0.1
    assert of_sd > 0.1


# Supports


@pytest.mark.long
def test_support_that_depends_on_another_latent():
    """As in GARCH: b ~ Uniform(0, 1 − a). Nothing is observed of it but that y ~ N(a + b, 0.1)."""

    def model(y):
        a = numpyro.sample("a", dist.Uniform(0.0, 1.0))
        b = numpyro.sample("b", dist.Uniform(0.0, 1.0 - a))
        numpyro.sample("y", dist.Normal(a + b, 0.1), obs=y)

    result = fit(model, VIS(), {"y": 0.6}, progress_bar=False)
    draws = {k: np.asarray(v) for k, v in result.sample(40_000, resample="psis").items()}
    assert (draws["a"] + draws["b"] <= 1).all()
    # quadrature on the triangle, where the prior density is 1/(1 − a)
    grid = (np.arange(2000) + 0.5) / 2000
    a, b = np.meshgrid(grid, grid, indexing="ij")
    weight = np.where(a + b < 1, np.exp(-0.5 * ((0.6 - a - b) / 0.1) ** 2) / (1 - a), 0)
    for name, x in (("a", a), ("b", b)):
        mean = (weight * x).sum() / weight.sum()
        sd = np.sqrt((weight * (x - mean) ** 2).sum() / weight.sum())
        assert abs(draws[name].mean() - mean) < 0.05 * sd
        assert abs(draws[name].std() / sd - 1) < 0.05


@pytest.mark.slow
def test_simplex_and_ordered_vectors():
    """Dirichlet–multinomial in closed form; an ordered pair against quadrature."""
    counts = np.array([3, 9, 1, 7])

    def model(counts, y):
        p = numpyro.sample("p", dist.Dirichlet(jnp.ones(4)))
        cuts = numpyro.sample(
            "cuts", dist.TransformedDistribution(dist.Normal(0, 1).expand([2]), dist.transforms.OrderedTransform())
        )
        numpyro.sample("counts", dist.Multinomial(20, p), obs=counts)
        numpyro.sample("y", dist.Normal(cuts, 1.0).to_event(1), obs=y)

    y = np.array([0.5, 1.5])
    result = fit(model, IWAE(), {"counts": counts, "y": y}, progress_bar=False)
    draws = {k: np.asarray(v, np.float64) for k, v in result.sample(40_000, resample="psis").items()}
    np.testing.assert_allclose(draws["p"].sum(1), 1, atol=1e-5)
    assert (np.diff(draws["cuts"], axis=1) > 0).all()
    alpha = 1.0 + counts
    mean = alpha / alpha.sum()
    sd = np.sqrt(mean * (1 - mean) / (alpha.sum() + 1))
    u = np.linspace(-6, 6, 1201)
    u0, u1 = np.meshgrid(u, u, indexing="ij")
    c0, c1 = u0, u0 + np.exp(u1)
    weight = np.exp(-0.5 * (u0**2 + u1**2 + (y[0] - c0) ** 2 + (y[1] - c1) ** 2))
    weight /= weight.sum()
    c_mean = np.array([(weight * c).sum() for c in (c0, c1)])
    c_sd = np.sqrt([(weight * (c - m) ** 2).sum() for c, m in zip((c0, c1), c_mean, strict=True)])
    of_mean, of_sd = errors(draws, {"p": (mean, sd), "cuts": (c_mean, c_sd)})
    assert of_mean < 0.05
    assert of_sd < 0.05


# θ and local latents


def test_only_params():
    """Maximum likelihood by the ELBO of a model without latents: the loss is minus the log-likelihood."""

    def model(y):
        mu = numpyro.param("mu", 0.0)
        sigma = numpyro.param("sigma", 1.0, constraint=constraints.positive)
        with numpyro.plate("n", len(y)):
            numpyro.sample("y", dist.Normal(mu, sigma), obs=y)

    y = np.random.default_rng(0).normal(3, 2, 50)
    result = fit(model, ELBO(1), {"y": y}, learning_rate=0.1, num_steps=1500, progress_bar=False)
    assert result.params["mu"] == pytest.approx(y.mean(), abs=1e-3)
    assert result.params["sigma"] == pytest.approx(y.std(), abs=1e-3)
    exact = -0.5 * np.sum(np.log(2 * np.pi * y.var()) + 1 + 0 * y)
    assert -result.losses[-1] == pytest.approx(exact, abs=1e-3)
    assert result.log_evidence(10).value == pytest.approx(exact, abs=1e-3)
    assert result.sample(5) == {}
    assert result.at_start().params["mu"] == 0


@pytest.mark.long
def test_theta_and_local_latents(default_fit):
    """z_i ~ N(theta, 1), x_i ~ N(z_i, 1): theta's maximum is the mean, evidence and posterior are Gaussian."""
    entry = models.linear_gaussian_theta
    x = entry.data()["x"]
    result = default_fit("linear_gaussian_theta", "ELBO")
    assert result.params["theta"] == pytest.approx(x.mean(), abs=0.02)
    evidence = result.log_evidence(2000)
    assert evidence.local["value"].shape == x.shape
    exact = -0.25 * (x - result.params["theta"]) ** 2 - 0.5 * np.log(4 * np.pi)
    difference = (evidence.local["value"] - exact) / (evidence.local["stderr"] + 1e-6)
    assert np.max(np.abs(difference)) < 4.5
    assert evidence.value == pytest.approx(exact.sum(), abs=4 * evidence.stderr + 1e-4)
    draws = result.sample(20_000, resample="psis")["z"]
    assert np.max(np.abs(draws.mean(0) - (x + result.params["theta"]) / 2)) < 4.5 * np.sqrt(0.5 / 20_000)


@pytest.mark.long
def test_subsampled_plate():
    """Batches of ten: theta and the local guide still end where all of the data puts them."""
    entry = models.linear_gaussian_theta
    x = entry.data()["x"]
    result = fit(entry.model, ELBO(16), {"x": x, "batch_size": 10}, num_steps=3000, progress_bar=False)
    assert result.params["theta"] == pytest.approx(x.mean(), abs=0.05)
    draws = result.sample(4000)["z"]
    assert draws.shape == (4000, 50)
    assert np.max(np.abs(draws.mean(0) - (x + result.params["theta"]) / 2)) < 0.15
    evidence = result.log_evidence(2000)
    assert evidence.local["value"].shape == (50,)
    exact = -0.25 * (x - result.params["theta"]) ** 2 - 0.5 * np.log(4 * np.pi)
    assert abs(evidence.value - exact.sum()) < 4 * evidence.stderr + 1e-3


@pytest.mark.slow
def test_subsampled_plate_of_observations_only():
    """A mean of 400 data from batches of 20: conjugate Gaussian."""

    def model(y, batch_size):
        mu = numpyro.sample("mu", dist.Normal(0, 10))
        with numpyro.plate("n", len(y), subsample_size=batch_size):
            numpyro.sample("y", dist.Normal(mu, 2.0), obs=numpyro.subsample(y, event_dim=0))

    y = np.random.default_rng(1).normal(5, 2, 400)
    result = fit(model, ELBO(16), {"y": y, "batch_size": 20}, progress_bar=False)
    sd = 1 / np.sqrt(1 / 100 + 400 / 4)
    draws = np.asarray(result.sample(20_000)["mu"], np.float64)
    assert abs(draws.mean() - sd**2 * y.sum() / 4) < 0.3 * sd  # the step's noise is that of the batches
    assert abs(draws.std() / sd - 1) < 0.1
    resampled = np.asarray(result.sample(20_000, resample="psis")["mu"], np.float64)
    assert abs(resampled.mean() - sd**2 * y.sum() / 4) < 0.03 * sd
    assert abs(resampled.std() / sd - 1) < 0.03


# Optimisers


def gaussian(y):
    numpyro.sample("y", dist.Normal(numpyro.sample("mu", dist.Normal(0, 1)), 1), obs=y)


def gaussian_guide(y):
    numpyro.sample("mu", dist.Normal(numpyro.param("m", 0.0), 0.70710678))


def optimised(**options):
    return fit(
        gaussian, ELBO(16), {"y": 2.0}, guide=gaussian_guide, progress_bar=False, **{"num_steps": 1000, **options}
    )


@pytest.mark.parametrize(
    ("optimizer", "learning_rate"),
    [
        (None, None),
        ("adam", 0.05),
        ("rmsprop", 0.01),
        ("sgd", 0.05),
        (optax.adam(0.02), None),
        (optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.02)), None),
        (optim.Adam(0.02), None),
        (optim.optax_to_numpyro(optax.adam(0.02)), None),
    ],
)
def test_optimizers(optimizer, learning_rate):
    result = optimised(optimizer=optimizer, learning_rate=learning_rate)
    # the path gradient has no noise at the optimum, the posterior N(1, 1/2)
    assert result.params["m"] == pytest.approx(1.0, abs=0.02)


def test_optimizer_that_is_wrong():
    with pytest.raises(ValueError, match=r"no optimizer 'adamm'; did you mean 'adam'\?"):
        optimised(optimizer="adamm")
    with pytest.raises(ValueError, match=r"'lamda'|'chain'"):
        optimised(optimizer="chain")  # of optax, but no optimizer
    with pytest.raises(TypeError, match=r"optimizer must be an optax.GradientTransformation.*got object"):
        optimised(optimizer=object())
    with pytest.raises(TypeError, match="function"):
        optimised(optimizer=optax.adam)
    with pytest.raises(TypeError, match="Minimize"):  # a whole minimisation, not a step
        optimised(optimizer=optim.Minimize())
    with pytest.raises(ValueError, match="learning_rate goes with a named optimizer"):
        optimised(optimizer=optax.adam(0.1), learning_rate=0.1)
    for rate in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="learning_rate must be positive"):
            optimised(learning_rate=rate)


def test_same_seed_same_answer():
    first, second, other = optimised(seed=3), optimised(seed=3), optimised(seed=4)
    np.testing.assert_array_equal(first.losses, second.losses)
    assert first.params["m"] == second.params["m"]
    assert not np.array_equal(first.losses, other.losses)
    np.testing.assert_array_equal(optimised(rng_key=jax.random.key(3)).losses, first.losses)


# Restarts


def bimodal(y):
    """w at ±2 explain y = 4 equally well; the guide's mean starts where its own random draw puts it."""
    w = numpyro.sample("w", dist.Normal(0.3, 3))
    numpyro.sample("y", dist.Normal(w**2, 0.5), obs=y)


def bimodal_guide(y):
    m = numpyro.param("m", 0.3)
    numpyro.sample("w", dist.Normal(m, numpyro.param("s", 0.2, constraint=constraints.positive)))


def test_restarts_keep_all_and_return_the_best():
    options = {"guide": bimodal_guide, "num_steps": 400, "progress_bar": False, "learning_rate": 0.02}
    single = fit(bimodal, IWAE(8), {"y": 4.0}, **options)
    many = fit(bimodal, IWAE(8), {"y": 4.0}, num_restarts=5, **options)
    assert many.metrics["loss"].shape == (5, 400)
    assert many.metrics["ess"].shape == (5, 400)
    assert many.losses.shape == (400,)
    best = np.argmin(many.metrics["loss"][:, -40:].mean(1))
    np.testing.assert_array_equal(many.losses, many.metrics["loss"][best])
    assert many.params["m"].shape == ()
    # the first restart starts where a single run does: other noise, the same first parameters
    assert many.metrics["loss"][0, 0] == pytest.approx(single.losses[0], rel=0.5)
    np.testing.assert_allclose(many.metrics["loss"][0, -40:].mean(), single.losses[-40:].mean(), atol=0.3)
    assert len(np.unique(many.metrics["loss"][:, 0])) == 5
    assert many.sample(7)["w"].shape == (7,)


def test_restart_that_goes_bad_loses_to_the_others():
    """The factor has no value beyond m = 0.4: jittered restarts start there, the first does not."""

    def model(y):
        w = numpyro.sample("w", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(w, 1.0), obs=y)
        numpyro.factor("edge", 0.0)

    def guide(y):
        m = numpyro.param("m", 0.0)
        shift = jnp.where(m > 0.2, jnp.nan, 0.0)
        numpyro.sample("w", dist.Normal(m + shift, 0.7))

    result = fit(model, ELBO(4), {"y": -1.0}, guide=guide, num_restarts=8, num_steps=50, progress_bar=False)
    finite = np.isfinite(result.metrics["loss"]).all(1)
    assert 0 < finite.sum() < 8
    assert finite[0]
    assert result.status == "finished"
    assert np.isfinite(result.losses).all()
    assert np.isfinite(result.params["m"])


@pytest.mark.long
def test_default_guide_restarts():
    entry = models.linear_gaussian
    result = fit(entry.model, ELBO(), entry.data(), num_restarts=3, num_steps=1000, progress_bar=False)
    assert result.metrics["loss"].shape == (3, 1000)
    assert abs(result.log_evidence(4000).value - entry.log_evidence(entry.data())) < 0.02
    assert result.at_start().log_evidence(1000).khat < 0.7


def test_rng_key_instead_of_seed_and_nothing_global():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    optimised(num_steps=2)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.slow
def test_numpyro_handlers_reparam_is_a_model_like_any_other():
    """A user's wrapped model: effect handlers compose with `fit`."""
    from numpyro.infer.reparam import LocScaleReparam

    def centred(sigma, y):
        mu = numpyro.sample("mu", dist.Normal(0, 5))
        tau = numpyro.sample("tau", dist.HalfCauchy(5))
        with numpyro.plate("school", 8):
            theta = numpyro.sample("theta", dist.Normal(mu, tau))
            numpyro.sample("y", dist.Normal(theta, sigma), obs=y)

    model = numpyro.handlers.reparam(centred, config={"theta": LocScaleReparam(0)})
    result = fit(model, estimators.VIS(), models.eight_schools.data(), num_steps=1500, progress_bar=False)
    draws = result.sample(20_000, resample="psis")
    moments = models.eight_schools.posterior_moments()
    of_mean, of_sd = errors(draws, {name: moments[name] for name in ("mu", "tau", "theta")})
    assert of_mean < 0.1
    assert of_sd < 0.1
