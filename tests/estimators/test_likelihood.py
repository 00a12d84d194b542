"""Maximum likelihood against statsmodels, closed forms and quadrature, in double precision."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
from numpyro.contrib.control_flow import scan
from scipy import integrate, optimize, special, stats

import estimax
from estimax.estimators import ELBO, MAP, MLE, Laplace
from estimax.models import glm

sm = pytest.importorskip("statsmodels.api")

fit = partial(estimax.fit, progress_bar=False)


def flat(size):
    return dist.ImproperUniform(dist.constraints.real, (), (size,))


def logistic(x, y=None):
    b = numpyro.sample("b", dist.Normal(0.0, 10.0).expand([x.shape[1]]).to_event(1))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Bernoulli(logits=x @ b), obs=y)


def poisson(x, y=None):
    b = numpyro.sample("b", flat(x.shape[1]))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Poisson(jnp.exp(x @ b)), obs=y)


def linear(x, y=None):
    b = numpyro.sample("b", flat(x.shape[1]))
    sigma = numpyro.param("sigma", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ b, sigma), obs=y)


@pytest.fixture(scope="module")
def spector():
    loaded = sm.datasets.spector.load_pandas()
    return {"x": sm.add_constant(loaded.exog).to_numpy(), "y": loaded.endog.to_numpy()}


@pytest.fixture(scope="module")
def spector_fit(spector):
    return fit(logistic, MLE(), spector)


CLUSTERS = np.arange(32) // 2


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("observed", {}),
        ("sandwich", {"cov_type": "HC0"}),
        (("cluster", CLUSTERS), {"cov_type": "cluster", "cov_kwds": {"groups": CLUSTERS, "use_correction": False}}),
    ],
    ids=["observed", "sandwich", "cluster"],
)
def test_logistic_regression_equals_statsmodels(spector, spector_fit, kind, options):
    peer = sm.Logit(spector["y"], spector["x"]).fit(disp=0, **options)
    table = spector_fit.summary(covariance=kind)
    np.testing.assert_allclose(table["estimate"], peer.params, rtol=1e-8)
    np.testing.assert_allclose(table["std_err"], peer.bse, rtol=1e-7)
    np.testing.assert_allclose(table["z"], peer.tvalues, rtol=1e-7)
    np.testing.assert_allclose(table["p_value"], peer.pvalues, rtol=1e-6)
    np.testing.assert_allclose(table[["lower", "upper"]], peer.conf_int(), rtol=1e-6)


def test_opg_covariance_is_the_inverse_of_summed_score_products(spector, spector_fit):
    x, y = spector["x"], spector["y"]
    b = spector_fit.params["b"]
    scores = (y - 1 / (1 + np.exp(-x @ b)))[:, None] * x  # closed form for the logistic model
    np.testing.assert_allclose(spector_fit.covariance("opg").matrix, np.linalg.inv(scores.T @ scores), rtol=1e-7)


def test_information_criteria_equal_statsmodels(spector, spector_fit):
    peer = sm.Logit(spector["y"], spector["x"]).fit(disp=0)
    ours = spector_fit.information_criteria()
    np.testing.assert_allclose([ours.log_likelihood, ours.AIC, ours.BIC], [peer.llf, peer.aic, peer.bic], rtol=1e-10)
    scores = peer.model.score_obs(peer.params)
    tic = -2 * peer.llf + 2 * np.trace(scores.T @ scores @ peer.normalized_cov_params)
    np.testing.assert_allclose(ours.TIC, tic, rtol=1e-7)
    k, n = 4, 32
    np.testing.assert_allclose(ours.AICc, peer.aic + 2 * k * (k + 1) / (n - k - 1), rtol=1e-10)
    assert spector_fit.summary().attrs["AIC"] == ours.AIC


def test_poisson_regression_on_raw_counts_equals_statsmodels():
    loaded = sm.datasets.randhie.load_pandas()
    rows = slice(0, 4000)
    x = sm.add_constant(loaded.exog.iloc[rows, :6]).to_numpy()
    y = loaded.endog.iloc[rows].to_numpy()
    peer = sm.Poisson(y, x).fit(disp=0, method="newton", tol=1e-12)
    result = fit(poisson, MLE(covariance="sandwich"), {"x": x, "y": y})
    table = result.summary()
    np.testing.assert_allclose(table["estimate"], peer.params, rtol=1e-6)
    robust = sm.Poisson(y, x).fit(disp=0, method="newton", tol=1e-12, cov_type="HC0")
    np.testing.assert_allclose(table["std_err"], robust.bse, rtol=1e-6)
    np.testing.assert_allclose(table.attrs["log_likelihood"], peer.llf, rtol=1e-10)


def test_longley_in_raw_units():
    """NIST's ill-conditioned regression: the scaled condition number is beyond single precision."""
    loaded = sm.datasets.longley.load_pandas()
    x, y = sm.add_constant(loaded.exog).to_numpy(), loaded.endog.to_numpy()
    peer = sm.OLS(y, x).fit()
    table = fit(linear, MLE(), {"x": x, "y": y}).summary()
    np.testing.assert_allclose(table["estimate"][:7], peer.params, rtol=1e-5)
    n, p = x.shape  # maximum likelihood divides by n, least squares by n − p
    np.testing.assert_allclose(table["std_err"][:7], peer.bse * np.sqrt((n - p) / n), rtol=1e-5)
    sigma = np.sqrt(peer.ssr / n)
    np.testing.assert_allclose(table["estimate"]["sigma"], sigma, rtol=1e-6)
    np.testing.assert_allclose(table["std_err"]["sigma"], sigma / np.sqrt(2 * n), rtol=1e-5)  # delta method, by hand


@pytest.mark.long
def test_negative_binomial_regression_equals_statsmodels():
    data = glm.negative_binomial_data()
    data = {"x": data["x"][:1500, :3], "y": data["y"][:1500]}
    design = sm.add_constant(data["x"])
    peer = sm.NegativeBinomial(data["y"], design).fit(disp=0, method="bfgs", maxiter=1000, gtol=1e-10)
    peer = sm.NegativeBinomial(data["y"], design).fit(disp=0, method="newton", start_params=peer.params, tol=1e-14)
    table = fit(glm.negative_binomial, MLE(), data).summary().loc[["intercept", "b[0]", "b[1]", "b[2]", "alpha"]]
    np.testing.assert_allclose(table["estimate"], peer.params, rtol=1e-5)
    np.testing.assert_allclose(table["std_err"], peer.bse, rtol=1e-5)
    np.testing.assert_allclose(table.attrs["AIC"], peer.aic, rtol=1e-8)


@pytest.mark.long
def test_ordinal_regression_equals_statsmodels():
    from statsmodels.miscmodels.ordinal_model import OrderedModel

    data = glm.ordinal_data()
    x, y = data["x"], data["y"]
    # standardised: its own Hessian is a finite difference
    standard = (x - x.mean(0)) / x.std(0)
    peer = OrderedModel(y, standard, distr="logit").fit(disp=0, method="bfgs", maxiter=2000, gtol=1e-9)
    table = fit(glm.ordinal, MLE(), {**data, "x": standard}).summary()
    slopes = table.loc[[f"b[{i}]" for i in range(x.shape[1])]]
    np.testing.assert_allclose(slopes["estimate"], peer.params[: x.shape[1]], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(slopes["std_err"], peer.bse[: x.shape[1]], rtol=1e-4)
    np.testing.assert_allclose(table.attrs["log_likelihood"], peer.llf, rtol=1e-9)
    np.testing.assert_allclose(table.attrs["AIC"], peer.aic, rtol=1e-9)


@pytest.mark.filterwarnings("ignore")  # of lifelines' use of pandas
@pytest.mark.parametrize(("name", "peer"), [("weibull", "WeibullAFTFitter"), ("loglogistic", "LogLogisticAFTFitter")])
def test_accelerated_failure_times_equal_lifelines(name, peer):
    lifelines = pytest.importorskip("lifelines")
    model = estimax.models.get(f"{name}_survival")
    data = model.data()
    frame = pd.DataFrame({"time": data["time"], "event": data["event"], "age": data["x"][:, 0]})
    # its own tolerance leaves it up to 0.004 s.e. from the maximum
    fitted = getattr(lifelines, peer)().fit(frame, "time", "event", fit_options={"ftol": 1e-16, "maxiter": 1000})
    table = fit(model.model, MLE(), data).summary()
    np.testing.assert_allclose(table.attrs["log_likelihood"], fitted.log_likelihood_, rtol=1e-11)
    log_shape = table["std_err"]["shape"] / table["estimate"]["shape"]  # lifelines reports log shape
    ours = [table["std_err"]["b[0]"], table["std_err"]["intercept"], log_shape]
    np.testing.assert_allclose(ours, fitted.standard_errors_, rtol=1e-6)
    found = [table["estimate"]["b[0]"], table["estimate"]["intercept"], np.log(table["estimate"]["shape"])]
    np.testing.assert_array_less(np.abs(found - fitted.params_) / fitted.standard_errors_, 1e-6)


@pytest.mark.long
def test_poisson_hmm_finds_the_published_maximum():
    """Zucchini and MacDonald's three-state model of yearly earthquakes: −log L = 329.4603."""
    model = estimax.models.get("poisson_hmm")
    np.testing.assert_allclose(fit(model.model, MLE(), model.data()).losses[-1], 329.4603, atol=1e-4)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # one series: the first state's distribution is at its boundary
def test_gaussian_hmm_finds_the_maximum_of_hmmlearn():
    hmm = pytest.importorskip("hmmlearn.hmm")
    model = estimax.models.get("gaussian_hmm")
    y = np.asarray(model.data()["y"]).reshape(-1, 1)
    peers = [hmm.GaussianHMM(2, n_iter=500, tol=1e-8, random_state=s).fit(y).score(y) for s in range(5)]
    result = fit(model.model, MLE(), {**model.data(), "stationary_start": False})
    np.testing.assert_allclose(-result.losses[-1], max(peers), atol=1e-3)


@pytest.mark.long
def test_weights_are_repetitions(spector):
    counts = np.random.default_rng(0).integers(1, 4, len(spector["y"]))
    weighted = fit(logistic, MLE(weights=counts), spector)
    repeated = fit(logistic, MLE(), {k: np.repeat(v, counts, axis=0) for k, v in spector.items()})
    np.testing.assert_allclose(weighted.params["b"], repeated.params["b"], rtol=1e-7)
    np.testing.assert_allclose(weighted.covariance().matrix, repeated.covariance().matrix, rtol=1e-6)


def test_map_is_the_ridge_estimate(spector):
    """With a normal prior the mode of a linear model has a closed form."""

    def ridge(x, y=None):
        b = numpyro.sample("b", dist.Normal(0.0, 2.0).expand([x.shape[1]]).to_event(1))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Normal(x @ b, 0.5), obs=y)

    x, y = spector["x"], spector["y"]
    precision = x.T @ x / 0.25 + np.eye(4) / 4
    result = fit(ridge, MAP(), spector)
    np.testing.assert_allclose(result.params["b"], np.linalg.solve(precision, x.T @ y / 0.25), rtol=1e-9)
    np.testing.assert_allclose(result.covariance().matrix, np.linalg.inv(precision), rtol=1e-8)
    tempered = fit(ridge, MAP(tempered=0.5), spector)
    half = x.T @ x / 0.5 + np.eye(4) / 4
    np.testing.assert_allclose(tempered.params["b"], np.linalg.solve(half, x.T @ y / 0.5), rtol=1e-9)


@pytest.mark.long
def test_laplace_is_exact_for_a_gaussian_model(spector):
    def ridge(x, y=None):
        b = numpyro.sample("b", dist.Normal(0.0, 2.0).expand([x.shape[1]]).to_event(1))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Normal(x @ b, 0.5), obs=y)

    x, y = spector["x"], spector["y"]
    exact = stats.multivariate_normal(np.zeros(32), 4 * x @ x.T + 0.25 * np.eye(32)).logpdf(y)
    result = fit(ridge, Laplace(), spector)
    np.testing.assert_allclose(result.metrics["laplace_log_evidence"][-1], exact, atol=1e-6)
    with jax.enable_x64(True):
        double = fit(ridge, Laplace(), spector).log_evidence(300)
    np.testing.assert_allclose(double.value, exact, atol=1e-6)
    draws = np.asarray(result.sample(20_000)["b"])
    precision = x.T @ x / 0.25 + np.eye(4) / 4
    sd = np.sqrt(np.diag(np.linalg.inv(precision)))
    error = (draws.mean(0) - np.linalg.solve(precision, x.T @ y / 0.25)) / sd
    assert np.abs(error).max() < 4 / np.sqrt(20_000)
    np.testing.assert_allclose(draws.std(0) / sd, 1, atol=4 / np.sqrt(40_000))


@pytest.mark.long
def test_laplace_evidence_of_a_logistic_regression_against_quadrature(spector):
    def two(x, y=None):
        b = numpyro.sample("b", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Bernoulli(logits=x @ b), obs=y)

    x = np.column_stack([np.ones(32), spector["x"][:, 1] - 3.1])

    # the rectangle rule, exact to many digits for what is smooth and vanishes at the ends
    b0, b1 = np.meshgrid(np.linspace(-8, 6, 401), np.linspace(-8, 12, 401), indexing="ij")
    eta = b0[..., None] * x[:, 0] + b1[..., None] * x[:, 1]
    log_p = np.sum(spector["y"] * eta - np.logaddexp(0, eta), -1) + stats.norm(0, 2).logpdf([b0, b1]).sum(0)
    exact = special.logsumexp(log_p) + np.log(14 / 400 * 20 / 400)
    result = fit(two, Laplace(), {"x": x, "y": spector["y"]})
    assert abs(result.metrics["laplace_log_evidence"][-1] - exact) < 0.1
    evidence = result.log_evidence(10_000)
    assert abs(evidence.value - exact) < 4 * evidence.stderr
    assert evidence.verdict == "good"


@pytest.mark.long
def test_laplace_kinds_and_last_layer(spector):
    full = fit(logistic, Laplace(), spector)
    diagonal = fit(logistic, Laplace(hessian="diagonal"), spector)
    scale = np.asarray(full.problem.scale)
    precision = np.linalg.inv(scale @ scale.T)
    np.testing.assert_allclose(diagonal.problem.scale, 1 / np.sqrt(np.diag(precision)), rtol=1e-6)

    def network(x, y=None):
        w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([4, 3]).to_event(2))
        v = numpyro.sample("v", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Bernoulli(logits=jnp.tanh(x @ w) @ v), obs=y)

    # away from zero, which is a saddle of every network
    start = {"w": np.random.default_rng(0).normal(size=(4, 3)), "v": np.ones(3)}
    last = fit(network, Laplace(sites=("v",)), spector, start=start)
    draws = last.sample(500)
    assert draws["v"].shape == (500, 3)
    assert "w" not in draws
    h = np.tanh(spector["x"] @ last.params["w"])
    p = 1 / (1 + np.exp(-h @ last.params["v"]))
    hessian = (h * (p * (1 - p))[:, None]).T @ h + np.eye(3)
    scale = np.asarray(last.problem.scale)
    np.testing.assert_allclose(scale @ scale.T, np.linalg.inv(hessian), rtol=1e-6)


def random_intercepts(group, y=None, num_groups=12):
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    tau = numpyro.sample("tau", dist.HalfNormal(5.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(5.0))
    with numpyro.plate("groups", num_groups):
        a = numpyro.sample("a", dist.Normal(mu, tau))
    with numpyro.plate("data", group.shape[0]):
        numpyro.sample("y", dist.Normal(a[group], sigma), obs=y)


@pytest.fixture(scope="module")
def grouped():
    rng = np.random.default_rng(1)
    group = np.repeat(np.arange(12), 5)
    return {"group": group, "y": 2 + 1.5 * rng.normal(size=12)[group] + rng.normal(size=60), "num_groups": 12}


@pytest.mark.long
def test_random_effects_are_integrated_by_default(grouped):
    """Linear mixed model: the marginal likelihood is a normal density, and statsmodels maximises it too."""
    result = fit(random_intercepts, MLE(), grouped)
    assert result.problem.roles.estimated == ("mu", "tau", "sigma")
    group, y = grouped["group"], grouped["y"]

    def negative(v):
        mu, tau, sigma = v[0], np.exp(v[1]), np.exp(v[2])
        cov = tau**2 * (group[:, None] == group) + sigma**2 * np.eye(60)
        return -stats.multivariate_normal(np.full(60, mu), cov).logpdf(y)

    best = optimize.minimize(negative, [2, 0, 0], method="BFGS", options={"gtol": 1e-7})
    found = [result.params["mu"], np.log(result.params["tau"]), np.log(result.params["sigma"])]
    np.testing.assert_allclose(found, best.x, atol=2e-5)
    np.testing.assert_allclose(-result.losses[-1], -best.fun, atol=1e-8)
    peer = sm.MixedLM(y, np.ones((60, 1)), groups=group).fit(reml=False)
    np.testing.assert_allclose(-result.losses[-1], peer.llf, rtol=1e-6)
    with pytest.raises(ValueError, match="independent units"):
        result.covariance("sandwich")


def binary_panel(x, y=None):
    b = numpyro.sample("b", flat(1))
    tau = numpyro.param("tau", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("subject", x.shape[0]):
        a = numpyro.sample("a", dist.Normal(0.0, tau))
        numpyro.sample("y", dist.Bernoulli(logits=a[:, None] + x * b).to_event(1), obs=y)


@pytest.mark.slow
def test_adaptive_quadrature_equals_quadrature_where_laplace_does_not():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(40, 4))
    y = (rng.random((40, 4)) < 1 / (1 + np.exp(-(1.5 * rng.normal(size=(40, 1)) + x)))).astype(int)
    result = fit(binary_panel, MLE(num_nodes=15), {"x": x, "y": y})
    assert result.problem.num_units == 40
    b, tau = float(result.params["b"][0]), float(result.params["tau"])

    def one(i):
        def density(a):
            eta = a + x[i] * b
            return np.exp(np.sum(y[i] * eta - np.logaddexp(0, eta))) * stats.norm(0, tau).pdf(a)

        return np.log(integrate.quad(density, -12 * tau, 12 * tau, epsabs=1e-13, limit=200)[0])

    exact = np.array([one(i) for i in range(40)])
    with result.precision():
        np.testing.assert_allclose(
            -result.problem.pointwise(result.unconstrained, result.problem.data), exact, atol=1e-6
        )
    laplace = fit(binary_panel, MLE(), {"x": x, "y": y}, start={"b": [b], "tau": tau})
    assert abs(laplace.losses[0] + exact.sum()) > 0.1  # the start's loss is Laplace's value at the same parameters
    assert result.covariance("sandwich").std_err.shape == (2,)


@pytest.mark.long
def test_hessian_through_the_integral_is_exact():
    """Second derivatives through the inner optimum: against the closed form of a normal-normal model."""

    def normal(y=None):
        mu = numpyro.param("mu", 0.0)
        tau = numpyro.param("tau", 1.0, constraint=dist.constraints.positive)
        with numpyro.plate("unit", y.shape[0]):
            z = numpyro.sample("z", dist.Normal(mu, tau))
            numpyro.sample("y", dist.Normal(z, 1.0), obs=y)

    y = np.random.default_rng(3).normal(1.0, 2.0, size=50)
    result = fit(normal, MLE(), {"y": y})
    variance = y.var()
    np.testing.assert_allclose(result.params["mu"], y.mean(), rtol=1e-8)
    np.testing.assert_allclose(result.params["tau"], np.sqrt(variance - 1), rtol=1e-7)
    covariance = result.covariance()
    i = covariance.names.index("mu")
    np.testing.assert_allclose(covariance.std_err[i], np.sqrt(variance / 50), rtol=1e-7)
    # sd of τ̂ by the delta method from that of the marginal variance, v√(2/n)
    expected = variance * np.sqrt(2 / 50) / (2 * np.sqrt(variance - 1))
    np.testing.assert_allclose(covariance.std_err[1 - i], expected, rtol=1e-6)


def two_coins(y=None):
    weight = numpyro.param("weight", 0.3, constraint=dist.constraints.unit_interval)
    p = numpyro.param("p", jnp.array([0.2, 0.7]), constraint=dist.constraints.unit_interval)
    with numpyro.plate("unit", y.shape[0]):
        z = numpyro.sample("z", dist.Bernoulli(weight))
        numpyro.sample("y", dist.Binomial(10, p[z]), obs=y)


@pytest.mark.long
def test_discrete_latents_are_summed_out():
    rng = np.random.default_rng(4)
    y = rng.binomial(10, np.where(rng.random(200) < 0.4, 0.8, 0.3))
    result = fit(two_coins, MLE(), {"y": y})

    def negative(v):
        w, p, q = 1 / (1 + np.exp(-np.asarray(v)))
        return -np.sum(np.log((1 - w) * stats.binom(10, p).pmf(y) + w * stats.binom(10, q).pmf(y)))

    best = optimize.minimize(negative, [-0.5, -1, 1], method="BFGS", options={"gtol": 1e-8})
    np.testing.assert_allclose(result.losses[-1], best.fun, atol=1e-8)
    w, p, q = 1 / (1 + np.exp(-best.x))
    np.testing.assert_allclose([result.params["weight"], *result.params["p"]], [w, p, q], atol=1e-5)
    with result.precision():
        r = np.asarray(result.problem.responsibilities(result.unconstrained, result.problem.data))
    joint = np.stack([(1 - w) * stats.binom(10, p).pmf(y), w * stats.binom(10, q).pmf(y)])
    np.testing.assert_allclose(r, joint / joint.sum(0), atol=1e-5)


def test_factor_sites_and_models_without_plates():
    def model(y=None):
        mu = numpyro.param("mu", 0.0)
        numpyro.factor("prior", -0.5 * mu**2 / 4)
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    y = np.array([1.0, 2.0, 4.0])
    result = fit(model, MLE(), {"y": y})
    np.testing.assert_allclose(result.params["mu"], y.sum() / (3 + 1 / 4), rtol=1e-9)
    assert result.problem.num_units == 3


def test_gradient_of_float32_sessions_is_solved_in_double():
    result = fit(linear, MLE(), {"x": np.ones((3, 1)), "y": np.array([1e6 + 1, 1e6 + 2, 1e6 + 3])})
    np.testing.assert_allclose(result.params["b"], 1e6 + 2, rtol=1e-12)
    assert not jax.config.jax_enable_x64


def test_first_order_optimizers_reach_the_same_optimum(spector, spector_fit):
    standard = (spector["x"] - spector["x"].mean(0)) / np.maximum(spector["x"].std(0), 1e-9)
    standard[:, 0] = 1
    data = {"x": standard, "y": spector["y"]}
    exact = fit(logistic, MLE(), data)
    adam = fit(logistic, MLE(), data, optimizer="adam", learning_rate=0.05, num_steps=2000)
    lbfgs = fit(logistic, MLE(), data, optimizer="lbfgs")
    np.testing.assert_allclose(adam.params["b"], exact.params["b"], atol=2e-3)
    np.testing.assert_allclose(lbfgs.params["b"], exact.params["b"], atol=1e-6)
    assert lbfgs.status == "finished"


def test_lq_likelihood_resists_an_outlier():
    y = np.r_[np.random.default_rng(5).normal(size=99), 60.0]

    def model(y=None):
        mu = numpyro.param("mu", 0.0)
        with numpyro.plate("data", y.shape[0]):
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    plain, robust = fit(model, MLE(), {"y": y}), fit(model, MLE(robust=0.5), {"y": y})
    np.testing.assert_allclose(plain.params["mu"], y.mean(), rtol=1e-8)
    # stationary point: a mean weighted by p^q
    mu = float(robust.params["mu"])
    w = stats.norm(mu, 1).pdf(y) ** 0.5
    np.testing.assert_allclose(mu, np.sum(w * y) / w.sum(), rtol=1e-6)
    assert abs(mu - y[:99].mean()) < 0.05


@pytest.mark.long
def test_instance_noise_makes_a_singular_likelihood_finite():
    """Data on a line in the plane: the likelihood of a Gaussian is unbounded, with noise σ its optimum is S + σ²I."""
    rng = np.random.default_rng(6)
    t = rng.normal(size=400)
    y = np.stack([t, 2 * t], 1)

    def model(y=None):
        tril = numpyro.param("tril", jnp.eye(2), constraint=dist.constraints.lower_cholesky)
        with numpyro.plate("data", y.shape[0]):
            numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(2), scale_tril=tril), obs=y)

    with pytest.warns(RuntimeWarning):
        singular = fit(model, MLE(), {"y": y}, num_steps=200)
    assert np.linalg.det(singular.params["tril"]) < 1e-6
    noisy = fit(model, MLE(data_noise=0.3), {"y": y}, learning_rate=0.02, num_steps=1000)
    expected = y.T @ y / 400 + 0.09 * np.eye(2)
    found = noisy.params["tril"] @ noisy.params["tril"].T
    np.testing.assert_allclose(found, expected, atol=0.05)


@pytest.mark.long
def test_circle_in_the_plane():
    """A ring of width s around data without width: the likelihood grows without bound as s falls; with instance noise σ
    the estimate comes nearer to the circle with s = σ as n grows: in eight data sets each, by two standard errors."""

    def circle(n, seed):
        angle = np.random.default_rng(seed).uniform(0, 2 * np.pi, n)
        return np.stack([1.0 + 2 * np.cos(angle), -0.5 + 2 * np.sin(angle)], 1)

    class Ring(dist.Distribution):
        """A uniform angle, and normal noise of sd s in both coordinates: Rice's density over the circumference."""

        support = dist.constraints.real_vector

        def __init__(self, centre, radius, s):
            self.centre, self.radius, self.s = centre, radius, s
            super().__init__(event_shape=(2,))

        def log_prob(self, y):
            length = jnp.linalg.norm(y - self.centre, axis=-1)
            bessel = jnp.log(jax.scipy.special.i0e(length * self.radius / self.s**2))
            return bessel - (length - self.radius) ** 2 / (2 * self.s**2) - jnp.log(2 * jnp.pi * self.s**2)

    def ring(y=None):
        centre = numpyro.param("centre", jnp.zeros(2))
        radius = numpyro.param("radius", 1.5, constraint=dist.constraints.positive)
        s = numpyro.param("s", 0.5, constraint=dist.constraints.positive)
        with numpyro.plate("data", y.shape[0]):
            numpyro.sample("y", Ring(centre, radius, s), obs=y)

    def errors(n, seed):
        options = {"learning_rate": 0.02, "num_steps": 1000, "seed": seed}
        found = fit(ring, MLE(data_noise=0.2), {"y": circle(n, seed)}, **options).params
        return np.array([*(found["centre"] - np.array([1.0, -0.5])), found["radius"] - 2.0, found["s"] - 0.2])

    with pytest.warns(RuntimeWarning):
        singular = fit(ring, MLE(), {"y": circle(60, 7)}, num_steps=200)
    assert float(singular.params["s"]) < 1e-3
    squares = np.array([[np.square(errors(n, seed)).sum() for seed in range(8)] for n in (10, 80, 640)])
    mean, variance = squares.mean(1), squares.var(1, ddof=1) / 8
    assert (np.diff(mean) < -2 * np.sqrt(variance[1:] + variance[:-1])).all()
    assert mean[-1] < 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"covariance": "hessian"}, "covariance must be one of"),
        ({"weights": [1.0, -1.0]}, r"weights\[1\] is -1.0"),
        ({"weights": np.zeros(3)}, "all zero"),
        ({"latents": "all"}, "latents must be"),
        ({"num_nodes": 0}, "num_nodes"),
        ({"data_noise": -1.0}, "data_noise must be a finite number of at least 0, got -1.0"),
        ({"data_noise": np.inf}, "data_noise must be a finite number of at least 0, got inf"),
        ({"robust": "0.1"}, "robust must be a finite number of at least 0, got '0.1'"),
        ({"robust": np.nan}, "robust must be a finite number of at least 0, got nan"),
        ({"weights": "equal"}, "weights must be numbers, one a unit, .* got 'equal'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        MLE(**options)


def test_bad_lengths(spector):
    with pytest.raises(ValueError, match="weights has length 3, the model has 32"):
        fit(logistic, MLE(weights=np.ones(3)), spector)
    with pytest.raises(ValueError, match="cluster ids has length 2, the model has 32"):
        fit(logistic, MLE(covariance=("cluster", ["a", "b"])), spector)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.zeros(32), 'needs two clusters or more, and all 32 cluster ids are 0.0: .* take "sandwich"'),
        (["a"] * 32, "all 32 cluster ids are 'a'"),
        ([], "there are no cluster ids"),
        ([1.0, 2.0, np.nan, *[3.0] * 29], r"cluster ids\[2\] is nan: leave out units"),
        (["a", np.nan, *["b"] * 30], r"cluster ids\[1\] is nan"),
        (["a", *["b"] * 30, None], r"cluster ids\[31\] is None"),
        (pd.array([1, None, *[2] * 30], dtype="Int64"), r"cluster ids\[1\] is <NA>"),
        (np.zeros((32, 1)), r"one a unit, shape \(n,\), got shape \(32, 1\)"),
        (np.arange(31), "cluster ids has length 31, the model has 32 independent units"),
    ],
    ids=["one number", "one word", "none", "nan", "nan among words", "None", "NA", "column", "short"],
)
def test_bad_cluster_ids(spector_fit, ids, message):
    with pytest.raises(ValueError, match=message):
        spector_fit.covariance(("cluster", ids))
    if len(ids) == 32:
        with pytest.raises(ValueError, match=message):
            MLE(covariance=("cluster", ids))


def test_unidentified_direction_is_named(spector):
    doubled = {"x": np.column_stack([spector["x"], spector["x"][:, 1]]), "y": spector["y"]}
    result = fit(logistic, MLE(), doubled)
    with pytest.warns(RuntimeWarning, match=r"not identified: .*b\[[14]\].*b\[[14]\]"):
        table = result.summary()
    assert np.isinf(table["std_err"][["b[1]", "b[4]"]]).all()
    peer = sm.Logit(spector["y"], spector["x"]).fit(disp=0)
    np.testing.assert_allclose(table["std_err"][["b[0]", "b[2]", "b[3]"]], peer.bse[[0, 2, 3]], rtol=1e-5)
    assert result.diagnose().verdict == "do not use"


def test_perfect_separation_is_named():
    x = np.column_stack([np.ones(20), np.arange(20.0)])
    result_of = lambda: fit(logistic, MLE(), {"x": x, "y": (np.arange(20) > 9).astype(int)})  # noqa: E731
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = result_of()
    assert "perfect separation" in " ".join(result.diagnose().advice)
    with pytest.warns(RuntimeWarning, match="perfect separation"):
        result.summary()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("n", "d", "seed"), [(60, 3, 4), (60, 6, 10)])
def test_separation_by_a_plane_is_named(n, d, seed):
    """Outcomes that a plane tells apart, by construction; the tangents of the coordinates' profiles leave its side."""
    rng = np.random.default_rng(seed)
    x = np.c_[np.ones(n), rng.normal(size=(n, d - 1))]
    diagnosis = fit(logistic, MLE(), {"x": x, "y": (x @ rng.normal(size=d) > 0).astype(int)}).diagnose()
    assert "perfect separation" in " ".join(diagnosis.advice)
    assert diagnosis.verdict == "do not use"


@pytest.mark.filterwarnings("ignore:not converged")
def test_curvature_that_is_not_finite_is_named():
    """A probit model written with probabilities: far out they round to 1, and derivatives of their logarithms fail."""

    def probit(x, y=None):
        b = numpyro.sample("b", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("y", dist.Bernoulli(probs=jax.scipy.stats.norm.cdf(x @ b)), obs=y)

    x = np.column_stack([np.ones(20), np.arange(20.0) - 9.5])
    result = fit(probit, MLE(), {"x": x, "y": (np.arange(20) > 9).astype(int)}, start={"b": np.array([0.0, 80.0])})
    with pytest.warns(RuntimeWarning, match=r"second derivatives .* not finite at the estimate \(b\[0\]"):
        table = result.summary()
    assert np.isinf(table["std_err"]).all()
    assert result.diagnose().verdict == "do not use"
    with pytest.raises(ValueError, match="refits from the estimate, where the second derivatives"):
        result.covariance("bootstrap")


def test_few_clusters_are_remarked_on(spector_fit):
    """Four clusters, four parameters: scores of an optimum add up to zero, so three of their sums are free."""
    with pytest.warns(RuntimeWarning, match="4 clusters for 4 parameters: .* rank 3 at most"):
        matrix = spector_fit.covariance(("cluster", np.arange(32) % 4)).unconstrained
    assert np.linalg.matrix_rank(matrix, tol=1e-9 * np.abs(matrix).max()) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        matrix = spector_fit.covariance(("cluster", np.arange(32) % 5)).unconstrained
    assert np.linalg.matrix_rank(matrix, tol=1e-9 * np.abs(matrix).max()) == 4


@pytest.mark.long
def test_boundary_estimate_is_named():
    model = estimax.models.get("eight_schools")
    result = fit(model.model, MLE(), model.data())
    assert float(result.params["tau"]) < 1e-3  # known: the marginal likelihood of the eight schools is highest at 0
    y, sigma = model.data()["y"], model.data()["sigma"]
    np.testing.assert_allclose(result.params["mu"], np.average(y, weights=1 / sigma**2), rtol=1e-6)
    assert "tau → −∞" in " ".join(result.diagnose().advice)


@pytest.mark.filterwarnings("ignore")
def test_nothing_to_estimate_and_infeasible_starts(spector):
    def fixed(y=None):
        numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    with pytest.raises(ValueError, match="nothing to estimate"):
        fit(fixed, MLE(), {"y": np.ones(3)})
    with pytest.raises(ValueError, match="outside the site's support"):
        fit(linear, MLE(), spector, start={"sigma": -1.0})
    with pytest.raises(ValueError, match="start names 'c'"):
        fit(linear, MLE(), spector, start={"c": -1.0})

    def impossible(y=None):
        mu = numpyro.param("mu", 0.0)
        numpyro.sample("y", dist.LogNormal(mu, 1.0), obs=y)

    with pytest.raises(FloatingPointError, match=r"site 'y' observes -1.0 at \[1\], outside of its support"):
        fit(impossible, MLE(), {"y": np.array([1.0, -1.0])})
    for value, shown in (("a", "'a'"), ([[1.0], [2.0, 3.0]], r"\[\[1.0\], \[2.0, 3.0\]\]")):
        with pytest.raises(ValueError, match=rf"start\['sigma'\] must be an array of numbers, got {shown}"):
            fit(linear, MLE(), spector, start={"sigma": value})
    with pytest.raises(ValueError, match="there is no optimizer 'L-BFGS'; did you mean 'lbfgs'"):
        fit(linear, MLE(), spector, optimizer="L-BFGS")


def test_enumeration_too_large():
    def chain(y=None):
        p = numpyro.param("p", 0.5, constraint=dist.constraints.unit_interval)
        z = 0
        for t in range(y.shape[0]):
            z = numpyro.sample(f"z{t}", dist.Bernoulli(jnp.where(z == 1, p, 1 - p)))
            numpyro.sample(f"y{t}", dist.Normal(z, 1.0), obs=y[t])

    with pytest.raises(ValueError, match="10\\^9 joint values"):
        fit(chain, MLE(), {"y": np.ones(30)})
    small = fit(chain, MLE(), {"y": np.array([0.1, 1.2, 0.8])})

    def negative(v):
        p, total = 1 / (1 + np.exp(-v)), 0.0
        for bits in np.ndindex(2, 2, 2):
            q, last = 1.0, 0
            for b in bits:
                one = p if last == 1 else 1 - p
                q, last = q * (one if b else 1 - one), b
            total += q * np.prod(stats.norm(bits, 1).pdf([0.1, 1.2, 0.8]))
        return -np.log(total)

    np.testing.assert_allclose(small.losses[-1], optimize.minimize_scalar(negative).fun, atol=1e-7)


def test_dependent_discrete_latents_are_refused_for_what_they_are():
    """Eight steps of a chain have 256 joint values, few enough: it is their dependence that is not summed over."""

    def scanned(y=None):
        p = numpyro.param("p", 0.5, constraint=dist.constraints.unit_interval)

        def step(last, y):
            z = numpyro.sample("z", dist.Bernoulli(jnp.where(last == 1, p, 1 - p)))
            numpyro.sample("y", dist.Normal(z, 1.0), obs=y)
            return z, None

        scan(step, 0, y)

    def plateless(y=None):
        p = numpyro.param("p", 0.5, constraint=dist.constraints.unit_interval)
        z = numpyro.sample("z", dist.Bernoulli(p).expand([8]))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)

    message = r"'z' of shape \(8,\) is not in a plate .* all 256 joint values.* models.hmm.HiddenMarkov"
    for model in (scanned, plateless):
        with pytest.raises(ValueError, match=message):
            fit(model, MLE(), {"y": np.ones(8)})


def test_discrete_latents_cannot_be_maximised():
    with pytest.raises(ValueError, match="'z', which is discrete"):
        fit(two_coins, MLE(latents=("z",)), {"y": np.array([3, 8])})
    with pytest.raises(ValueError, match="Laplace draws every latent"):
        fit(two_coins, Laplace(), {"y": np.array([3, 8])})


def test_lr_test_equals_the_closed_form(spector, spector_fit):
    small = fit(logistic, MLE(), {"x": spector["x"][:, :3], "y": spector["y"]})
    test = estimax.lr_test(small, spector_fit)
    peers = [sm.Logit(spector["y"], spector["x"][:, :k]).fit(disp=0).llf for k in (3, 4)]
    np.testing.assert_allclose(test.statistic, 2 * (peers[1] - peers[0]), rtol=1e-8)
    np.testing.assert_allclose(test.p_value, stats.chi2.sf(test.statistic, 1), rtol=1e-10)
    assert "χ²(1)" in str(test)
    with pytest.raises(ValueError, match="neither is nested"):
        estimax.lr_test(small, small)
    with pytest.raises(TypeError, match="fits of MLE"):
        estimax.lr_test(small, fit(logistic, MAP(), spector))


@pytest.mark.long
def test_point_estimates_have_no_posterior(spector_fit, spector):
    with pytest.raises(ValueError, match="no posterior"):
        spector_fit.sample()
    with pytest.raises(TypeError, match="no exact loss"):
        fit(logistic, ELBO(), spector, num_steps=2).covariance()
    with pytest.raises(ValueError, match="method must be"):
        spector_fit.confint(method="exact")


def test_save_load_and_arviz(tmp_path, spector_fit):
    spector_fit.save(tmp_path / "fit.nc")
    loaded = estimax.load(tmp_path / "fit.nc", logistic)
    np.testing.assert_array_equal(loaded.summary(), spector_fit.summary())
    posterior = spector_fit.to_arviz(4000).posterior["b"].to_numpy()[0]
    se = spector_fit.summary()["std_err"].to_numpy()
    np.testing.assert_allclose(posterior.std(0) / se, 1, atol=4 / np.sqrt(8000))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("estimator", [MAP(), MLE()], ids=["MAP", "MLE"])
def test_estimates_at_a_boundary_are_saved(tmp_path, estimator):
    """A standard error of e^20 must not overflow into draws that no distribution takes."""
    model = estimax.models.get("eight_schools")
    result = fit(model.model, estimator, model.data())
    result.save(tmp_path / "fit.nc")
    assert np.isfinite(result.to_arviz(200).posterior["tau"].to_numpy()).all()


def test_sample_size_check_counts_parameters(spector_fit):
    check = spector_fit.sample_size_check()
    assert check.well_specified_kl == 4 / 64
    ratio = spector_fit.information_criteria()
    trace = (ratio.TIC + 2 * ratio.log_likelihood) / 2
    np.testing.assert_allclose(check.expected_kl, trace / 64, rtol=1e-10)
    assert "do not suffice" in str(check)


def test_expected_kl_is_what_simulation_shows():
    """p/(2n) against the mean KL of fitted normals from the truth, whose closed form is known."""
    n = 200
    y = np.random.default_rng(7).normal(size=(4000, n))
    mu, var = y.mean(1), y.var(1)
    kl = 0.5 * (np.log(var) + (1 + mu**2) / var - 1)  # KL(N(0,1) ‖ N(mu, var))

    def model(y=None):
        loc, scale = numpyro.param("loc", 0.0), numpyro.param("scale", 1.0, constraint=dist.constraints.positive)
        with numpyro.plate("data", y.shape[0]):
            numpyro.sample("y", dist.Normal(loc, scale), obs=y)

    check = fit(model, MLE(), {"y": y[0]}).sample_size_check()
    assert abs(kl.mean() - check.well_specified_kl) < 4 * kl.std() / np.sqrt(4000) + 3 / n**2 * 2
