"""Score matching against closed forms, maximum likelihood, and its own claims of coverage."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import lax, random
from scipy import stats

import estimax
from estimax.estimators import MLE, ScoreMatching, sliced
from estimax.inference import covariance, curvature
from estimax.inference.solve import objective

SETS = 2000
ERROR = np.sqrt(0.95 * 0.05 / SETS)


def fit(model, estimator, x, **options):
    return estimax.fit(model, estimator, {"x": x}, progress_bar=False, **options)


def gaussian(x):
    """In natural parameters, as an energy without its constant."""
    eta = numpyro.param("eta", jnp.zeros(3))
    root = numpyro.param("K", jnp.eye(3))
    precision = (root + root.T) / 2
    with numpyro.plate("data", x.shape[0]):
        numpyro.factor("energy", x @ eta - 0.5 * jnp.einsum("ni,ij,nj->n", x, precision, x))


def normal(x):
    mu = numpyro.sample("mu", dist.Normal(0, 2.0))
    sd = numpyro.param("sd", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("data", x.shape[0], subsample_size=min(20, x.shape[0])):
        numpyro.sample("x", dist.Normal(mu, sd), obs=numpyro.subsample(x, event_dim=0))


def truncated(x):
    mu = numpyro.param("mu", 1.0)
    sd = numpyro.param("sd", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("x", dist.TruncatedNormal(mu, sd, low=0.0), obs=x)


def angles(x):
    mu = numpyro.param("mu", 0.5)
    kappa = numpyro.param("kappa", 2.0, constraint=dist.constraints.positive)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("x", dist.VonMises(mu, kappa), obs=x)


@pytest.fixture(scope="module")
def cloud():
    rng = np.random.default_rng(0)
    return rng.multivariate_normal([1.0, 0.0, -1.0], [[1.0, 0.4, 0.0], [0.4, 0.8, -0.3], [0.0, -0.3, 1.5]], 400)


@pytest.fixture(scope="module")
def explicit(cloud):
    return fit(gaussian, ScoreMatching(), cloud)


def precision_of(params):
    return (params["K"] + params["K"].T) / 2


@pytest.mark.long
def test_gaussian_is_maximum_likelihood_in_one_step(cloud, explicit):
    """The closed form of the quadratic family: precision = inverse sample covariance."""
    expected = np.linalg.inv(np.cov(cloud.T, bias=True))
    np.testing.assert_allclose(precision_of(explicit.params), expected, rtol=1e-9)
    np.testing.assert_allclose(explicit.params["eta"], expected @ cloud.mean(0), rtol=1e-8)
    assert explicit.num_steps == 1
    x = cloud[:, 0]
    for estimator in (ScoreMatching(), ScoreMatching("sliced")):  # of one coordinate, where signs are exact
        found = fit(normal, estimator, x).params
        np.testing.assert_allclose([found["mu"], found["sd"]], [x.mean(), x.std()], rtol=1e-7)


@eqx.filter_jit
def redrawn(problem, keys):
    """Estimates under fresh directions or noise, one a key."""

    def one(key):
        p = replace(problem, draws=problem.draw(key, problem.flat_shape))
        z0, f, _ = objective(p)
        gradient, hessian = curvature.gradient_and_hessian(f, z0)
        return z0 - jnp.linalg.lstsq(hessian, gradient)[0]  # quadratic: one step; K's skew part is free

    return lax.map(one, keys)


@pytest.mark.parametrize(
    ("variant", "sigma", "options"),
    [
        ("sliced", 0.1, {}),
        # with random squares its Hessian is random: the bias falls by the directions, the spread by their root
        pytest.param("sliced", 0.1, {"variance_reduced": False, "num_directions": 16}, marks=pytest.mark.long),
        ("denoising", 0.02, {}),
        pytest.param("denoising", 0.6, {}, marks=pytest.mark.long),
    ],
    ids=["sliced", "plain", "0.02", "0.6"],
)
def test_sliced_and_denoising_agree_with_the_closed_form(cloud, explicit, variant, sigma, options):
    """Over 300 redraws the mean estimate is within 4 s.e. of the closed form: sliced and σ → 0 of MLE's; a large σ of
    the Gaussian with covariance S + σ²I, the smoothed density."""
    with jax.enable_x64(True):
        estimator = ScoreMatching(variant, sigma=sigma, **options)
        problem = estimator.problem(random.key(0), gaussian, None, {"x": jnp.asarray(cloud)})
        found = np.asarray(redrawn(replace(problem, params=explicit.unconstrained), random.split(random.key(5), 300)))
    k = found[:, :9].reshape(-1, 3, 3)
    k = (k + k.transpose(0, 2, 1)) / 2
    noise = 0.0 if variant == "sliced" else sigma**2
    expected = np.linalg.inv(np.cov(cloud.T, bias=True) + noise * np.eye(3))
    distance = (k.mean(0) - expected) / (k.std(0, ddof=1) / np.sqrt(len(k)))
    assert np.abs(distance).max() < (4 if sigma < 0.5 else 6)  # the noise's own covariance is random: O(1/n) bias
    assert k.std(0).max() > 1e-4


@eqx.filter_jit
def estimates(problem, xs):
    """Estimate and sandwich standard error of every row of xs, unconstrained."""

    def one(x):
        p = replace(problem, data={"x": x})
        z0, f, unravel = objective(p)
        z = curvature.newton(f, z0)[0]
        inverse = jnp.linalg.inv(curvature.gradient_and_hessian(f, z)[1])
        scores = covariance._scores(p, unravel(z))
        return jnp.concatenate([z, jnp.sqrt(jnp.diag(inverse @ scores.T @ scores @ inverse))])

    return lax.map(one, xs, batch_size=50)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "law", "truth", "least"),
    [
        (truncated, stats.truncnorm(-1, np.inf, 1, 1), [1.0, 0.0], 0.8),
        (angles, stats.vonmises(2.0, loc=0.5), [np.log(2.0), 0.5], 0.75),
    ],
    ids=["truncated normal", "von Mises"],
)
def test_sandwich_intervals_cover(model, law, truth, least):
    """95 % intervals cover within 2 standard errors of 2,000 data sets; the variance is a little above the MLE's."""
    xs = law.rvs((SETS, 1000), random_state=np.random.default_rng(0))
    found = {}
    with jax.enable_x64(True):
        for estimator in (MLE(), ScoreMatching()):
            problem = estimator.problem(random.key(0), model, None, {"x": jnp.asarray(xs[0])})
            found[type(estimator)] = np.asarray(estimates(problem, jnp.asarray(xs))).reshape(SETS, 2, -1)
    z, std_err = found[ScoreMatching][:, 0], found[ScoreMatching][:, 1]
    assert np.all(np.abs(z.mean(0) - truth) < 4 * z.std(0) / np.sqrt(SETS) + 2 * z.var(0))  # its bias is of order 1/n
    covered = np.mean(np.abs(z - truth) < stats.norm.ppf(0.975) * std_err, axis=0)
    assert np.all(np.abs(covered - 0.95) < 2 * ERROR)
    efficiency = found[MLE][:, 0].var(0) / z.var(0)
    print(f"{model.__name__}: efficiency {efficiency.round(3)} of the MLE, coverage {covered}")
    assert np.all((efficiency > least) & (efficiency < 1.02))


@pytest.mark.long
def test_hyvarinens_nonnegative_form():
    """p ∝ exp(−λx): the objective −2λ x̄ + ½λ² mean(x²) has its minimum at 2 x̄ / mean(x²)."""
    x = np.random.default_rng(1).exponential(2.0, 300)

    def model(x):
        rate = numpyro.param("rate", 1.0)
        with numpyro.plate("data", x.shape[0]):
            numpyro.factor("energy", -rate * x)

    result = fit(model, ScoreMatching(domain="nonnegative"), x)
    np.testing.assert_allclose(result.params["rate"], 2 * x.mean() / np.mean(x**2), rtol=1e-9)
    own = fit(model, ScoreMatching(domain=lambda row: row**2), x)
    np.testing.assert_allclose(own.params["rate"], result.params["rate"], rtol=1e-12)
    # its sandwich by hand: scores −2x_i + λ x_i², curvature Σ x_i²
    scores = -2 * x + result.params["rate"] * x**2
    np.testing.assert_allclose(result.summary()["std_err"], np.sqrt(np.sum(scores**2)) / np.sum(x**2), rtol=1e-9)
    with pytest.raises(ValueError, match=r"function to \(3,\): of one unit's x, \(1,\), it must give"):
        fit(model, ScoreMatching(domain=lambda row: jnp.ones(3)), x)
    with pytest.raises(ValueError, match=r"data\['x'\]\[7\] is -1.0, outside of the domain"):
        fit(model, ScoreMatching(domain="nonnegative"), np.r_[x[:7], -1.0, x[7:]])


@pytest.mark.long
def test_sphere_is_the_circle_in_two_dimensions():
    """Unit vectors with energy θᵀx against angles with a von Mises density: one objective in two charts."""
    t = stats.vonmises.rvs(1.5, loc=0.5, size=200, random_state=0)

    def vectors(x):
        theta = numpyro.param("theta", jnp.ones(2))
        with numpyro.plate("data", x.shape[0]):
            numpyro.factor("energy", x @ theta)

    chart = fit(angles, ScoreMatching(), t).params
    x = np.stack([np.cos(t), np.sin(t)], 1)
    result = fit(vectors, ScoreMatching(domain="sphere"), x)
    expected = chart["kappa"] * np.array([np.cos(chart["mu"]), np.sin(chart["mu"])])
    np.testing.assert_allclose(result.params["theta"], expected, rtol=1e-6)
    with pytest.raises(ValueError, match="unit vectors"):
        fit(vectors, ScoreMatching(domain="sphere"), 2 * x)


@pytest.mark.long
def test_weights_clusters_and_bootstrap():
    """Weight 2 is a unit twice; a bootstrap and the sandwich agree (400 replicates: 4 s.e. are 14 %)."""
    x = np.random.default_rng(2).normal(1.0, 2.0, 60)
    twice = np.r_[x, x[:20]]
    weighted = fit(truncated_free, ScoreMatching(weights=np.r_[np.full(20, 2.0), np.ones(40)]), x)
    doubled = fit(truncated_free, ScoreMatching(), twice)
    for name in ("mu", "sd"):
        np.testing.assert_allclose(weighted.params[name], doubled.params[name], rtol=1e-7)
    ids = np.r_[np.arange(60), np.arange(20)]
    clustered = doubled.covariance(("cluster", ids)).std_err
    np.testing.assert_allclose(clustered, weighted.covariance().std_err, rtol=1e-6)
    resampled = doubled.covariance("bootstrap", num_replicates=400).std_err
    np.testing.assert_allclose(resampled, doubled.covariance().std_err, rtol=0.2)


def truncated_free(x):
    mu = numpyro.param("mu", 0.0)
    sd = numpyro.param("sd", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("x", dist.Normal(mu, sd), obs=x)


@pytest.mark.long
def test_prior_makes_a_generalised_posterior_mode():
    """N(0, 2²) on the mean, known sd 1: J = ½(x − μ)² − 1, so the mode is the conjugate one."""
    x = np.random.default_rng(3).normal(1.0, 1.0, 30)

    def model(x):
        mu = numpyro.sample("mu", dist.Normal(0, 2.0))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    for tempered in (1.0, 0.3):
        found = fit(model, ScoreMatching(prior=True, tempered=tempered), x).params["mu"]
        np.testing.assert_allclose(found, tempered * x.sum() / (tempered * 30 + 0.25), rtol=1e-7)


@pytest.mark.long
def test_minibatches_are_unbiased():
    """Mean gradient of 2,000 batches of 20 of 50 within 4 standard errors of the full one; and a fit gets there."""
    x = np.random.default_rng(4).normal(1.0, 2.0, 50)
    full = ScoreMatching().problem(random.key(0), normal, None, {"x": jnp.asarray(x, jnp.float32)})
    some = ScoreMatching(subsample=True).problem(random.key(0), normal, None, {"x": jnp.asarray(x, jnp.float32)})
    gradient = lambda problem: lambda key: jax.grad(lambda p: problem.loss(p, key, problem.data)[0])(full.params)  # noqa: E731
    exact = gradient(full)(random.key(0))
    drawn = jax.jit(jax.vmap(gradient(some)))(random.split(random.key(1), 2000))
    for name, value in exact.items():
        many = np.asarray(drawn[name], np.float64)
        assert abs(many.mean() - value) < 4 * many.std() / np.sqrt(2000)
    result = fit(normal, ScoreMatching("denoising", sigma=0.1, redraw=True, subsample=True), x, num_steps=1500)
    assert not result.has_curvature
    assert abs(result.params["mu"] - x.mean()) < 0.3
    np.testing.assert_allclose(result.params["sd"], x.std(), rtol=0.2)


def energy(x):
    """A network of one hidden layer, written out, with weights of its units."""
    W = numpyro.param("W", random.normal(random.key(1), (3, 4)))
    a = numpyro.param("a", random.normal(random.key(2), (4,)))
    with numpyro.plate("data", x.shape[0], subsample_size=5):
        numpyro.factor("x", jnp.tanh(numpyro.subsample(x, event_dim=1) @ W) @ a)


@pytest.mark.parametrize("reduced", [True, False], ids=["reduced", "plain"])
@pytest.mark.parametrize(
    "redraw", [True, pytest.param(False, marks=pytest.mark.long)], ids=["redrawn", "of their units"]
)
def test_sliced_gradient_of_a_batch_is_that_of_the_formula(redraw, reduced):
    """½‖s‖² or ½(vᵀs)², and vᵀ(∇s)v, by the gradient and the Hessian in x of every unit, differentiated backwards."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
    estimator = ScoreMatching("sliced", num_directions=2, subsample=True, redraw=redraw, variance_reduced=reduced)
    with jax.enable_x64(True):
        problem = estimator.problem(random.key(0), energy, None, {"x": jnp.asarray(x, float)})
        key = random.key(3)
        chosen, drawn = random.split(key)
        index = problem.chosen(chosen)
        v = problem.draw(drawn, (5, 3)) if redraw else problem.draws[:, index]

        def one(params, x, v):
            log_p = lambda x: jnp.tanh(x @ params["W"]) @ params["a"]  # noqa: E731
            bend, s = jax.hessian(log_p)(x), jax.grad(log_p)(x)
            square = jnp.sum(s**2) if reduced else jnp.mean((v @ s) ** 2)
            return 0.5 * square + jnp.mean(jnp.einsum("mi,ij,mj->m", v, bend, v))

        def formula(params):
            return 8 / 5 * jnp.sum(jax.vmap(one, (None, 0, 1))(params, problem.data["x"][index], v))

        value, slope = jax.jit(jax.value_and_grad(lambda p: problem.loss(p, key, problem.data)[0]))(problem.params)
        expected, expected_slope = jax.jit(jax.value_and_grad(formula))(problem.params)
        np.testing.assert_allclose(value, expected, rtol=1e-12)
        for name in ("W", "a"):
            np.testing.assert_allclose(slope[name], expected_slope[name], rtol=1e-11, atol=1e-12)


def test_signs_are_fair_and_independent():
    """Means and all pairwise products of neighbours, of the same bit in two words and of two rows, within 4 s.e."""
    drawn = np.asarray(sliced.signs(random.key(0), (3, 7001), jnp.float32))
    assert drawn.dtype == np.float32
    assert np.all(np.abs(drawn) == 1)
    flat = drawn.ravel()
    products = [drawn.mean(1), flat[1:] * flat[:-1], flat[32:] * flat[:-32], drawn[0] * drawn[2]]
    for product in products[1:]:
        assert abs(product.mean()) < 4 / np.sqrt(product.size)
    assert np.abs(products[0]).max() < 4 / np.sqrt(7001)


@pytest.mark.long
def test_latents_are_summed_out():
    """A mixture with its labels as a discrete latent and with them summed by hand: one loss."""
    x = np.r_[np.random.default_rng(5).normal(-2, 1, 20), np.random.default_rng(6).normal(2, 0.5, 20)]

    def labels(x):
        mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Bernoulli(0.4), infer={"enumerate": "parallel"})
            numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)

    def by_hand(x):
        mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
        terms = dist.Normal(mu, 1.0).log_prob(x[:, None]) + jnp.log(jnp.array([0.6, 0.4]))
        with numpyro.plate("data", x.shape[0]):
            numpyro.factor("x", jax.scipy.special.logsumexp(terms, -1))

    losses = []
    for model in (labels, by_hand):
        problem = ScoreMatching().problem(random.key(0), model, None, {"x": jnp.asarray(x, jnp.float32)})
        losses.append(float(problem.loss(problem.params, random.key(0), problem.data)[0]))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


@pytest.mark.long
def test_the_loss_is_not_taken_for_a_likelihood(cloud):
    x = cloud[:, 0]
    result = fit(truncated_free, ScoreMatching(), x)
    assert set(result.summary().attrs) == {"covariance"}
    assert result.covariance().kind == "sandwich"
    for refused in (result.information_criteria, result.sample_size_check):
        with pytest.raises(TypeError, match="ScoreMatching is not a likelihood estimator"):
            refused()
    with pytest.raises(ValueError, match="holds for likelihoods"):
        result.covariance("observed")
    with pytest.raises(ValueError, match="and the profile"):
        result.confint(method="profile")
    assert result.diagnose().verdict == "good"
    assert np.isnan(result.diagnose().information_ratio)
    table = estimax.compare(truncated_free, {"sm": ScoreMatching(), "mle": MLE()}, {"x": x}, progress_bar=False).frame
    assert np.isnan(table.loc["sm", "aic"])
    assert np.isnan(table.loc["sm", "log_likelihood"])
    assert np.isfinite(table.loc["mle", "aic"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "implicit"}, "variant must be one of explicit, sliced, denoising"),
        ({"variance_reduced": False}, "variance_reduced=False is for variant=\"sliced\", not 'explicit'"),
        ({"sigma": 0.0}, "sigma, the noise scale, must be positive, got 0.0"),
        ({"sigma": -1.0}, "must be positive, got -1.0"),
        ({"sigma": "small"}, "must be positive, got 'small'"),
        ({"num_directions": 0}, "num_directions must be an integer of at least 1"),
        ({"redraw": True}, "redraw=True is for"),
        ({"domain": "half"}, "domain must be one of"),
        ({"covariance": "observed"}, "holds for likelihoods only"),
        ({"robust": 0.5}, "does not go with robust"),
        ({"tempered": 0.0}, "tempered must be positive"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        ScoreMatching(**options)
    with pytest.raises(TypeError, match="no argument 'sigmas'"):
        ScoreMatching(sigmas=1.0)


def simple(observe):
    def model(x, y=None):
        theta = numpyro.param("theta", 0.5)
        with numpyro.plate("data", x.shape[0]):
            observe(theta, x, y)

    return model


REALS = np.linspace(-1.0, 2.0, 12)


@pytest.mark.parametrize(
    ("observe", "data", "error", "message"),
    [
        (lambda t, x, y: None, {"x": REALS}, ValueError, "no observed site"),
        (lambda t, x, y: numpyro.sample("x", dist.Poisson(jnp.exp(t)), obs=x), {"x": np.arange(12)}, ValueError,
         "these are discrete"),
        (lambda t, x, y: numpyro.sample("x", dist.Bernoulli(logits=t), obs=x), {"x": np.ones(12)}, ValueError,
         "these are discrete"),
        (lambda t, x, y: numpyro.sample("x", dist.Laplace(t, 1.0), obs=x), {"x": REALS}, ValueError,
         "not twice differentiable"),
        (lambda t, x, y: numpyro.factor("e", -t * jnp.sqrt(x - 5.0)), {"x": REALS}, ValueError,
         r"the log-density is NaN at .*-1\..*, which is unit 0 of data\['x'\] \(12 of 12 are\)"),
        (lambda t, x, y: numpyro.factor("e", -t * jnp.log(x)), {"x": REALS[::-1]}, ValueError,
         r"which is unit 8 of data\['x'\] \(4 of 12 are\)"),
        (lambda t, x, y: numpyro.factor("e", -t * x**2 * y), {"x": REALS, "y": REALS}, ValueError,
         "several data arguments"),
        (lambda t, x, y: numpyro.factor("e", -t * jnp.ones(12)), {"x": REALS}, ValueError, "no data argument"),
        (lambda t, x, y: numpyro.factor("e", -t * (x - x.mean()) ** 2), {"x": REALS}, ValueError, "of another"),
        (lambda t, x, y: numpyro.sample("x", dist.Uniform(-2.0, 2 + t**2), obs=x), {"x": REALS}, ValueError,
         "depends on the parameters"),
        (lambda t, x, y: numpyro.sample("x", dist.HalfNormal(jnp.exp(t)), obs=x), {"x": REALS}, ValueError,
         r"data\['x'\]\[0\] is -1.0, outside"),
    ],
    ids=["unobserved", "counts", "binary", "kink", "nan", "some nan", "two", "none", "leak", "support", "negative"],
)  # fmt: skip
def test_bad_models_and_data(observe, data, error, message):
    with pytest.raises(error, match=message):
        estimax.fit(simple(observe), ScoreMatching(), data, progress_bar=False)


def test_directions_for_the_square_need_the_real_space():
    model = simple(lambda t, x, y: numpyro.sample("x", dist.HalfNormal(jnp.exp(t)), obs=x))
    with pytest.raises(ValueError, match="on the whole real space, not in the domain 'boundary'"):
        estimax.fit(model, ScoreMatching("sliced", variance_reduced=False), {"x": REALS**2}, progress_bar=False)


def test_energies_that_are_nan_are_looked_for_in_all_batches():
    def model(x):
        t = numpyro.param("t", 1.0)
        with numpyro.plate("data", len(x), subsample_size=4):
            numpyro.factor("e", -t * jnp.sqrt(numpyro.subsample(x, event_dim=0)))

    x = np.linspace(1.0, 2.0, 30)
    x[17] = -1.0
    with pytest.raises(ValueError, match=r"which is unit 17 of data\['x'\] \(1 of 30 are\)"):
        estimax.fit(model, ScoreMatching("sliced", subsample=True, redraw=True), {"x": x}, progress_bar=False)


def test_an_argument_can_be_named():
    rng = np.random.default_rng(7)
    y = rng.normal(size=80)
    x = 1.5 * y + rng.normal(size=80)

    def model(x, y):
        slope = numpyro.param("slope", 0.0)
        with numpyro.plate("data", x.shape[0]):
            numpyro.factor("energy", -0.5 * (x - slope * y) ** 2)

    result = estimax.fit(model, ScoreMatching(argument="x"), {"x": x, "y": y}, progress_bar=False)
    np.testing.assert_allclose(result.params["slope"], x @ y / (y @ y), rtol=1e-9)
    with pytest.raises(ValueError, match="argument='z' is no array"):
        estimax.fit(model, ScoreMatching(argument="z"), {"x": x, "y": y}, progress_bar=False)


def test_denoising_leaves_bounded_domains_alone():
    with pytest.raises(ValueError, match="noise leaves the domain"):
        fit(truncated, ScoreMatching("denoising"), np.linspace(0.1, 2.0, 20))
