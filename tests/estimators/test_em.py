"""EM against scikit-learn, gradient maximum likelihood and Fisher's identity."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from scipy import stats
from sklearn.datasets import load_iris
from sklearn.mixture import GaussianMixture

import estimax
from estimax.estimators import EM, MLE

PETALS = load_iris().data[:, 2]
rng = np.random.default_rng(1)
X = rng.uniform(-2, 2, 120)
GATE = rng.random(120) < 1 / (1 + np.exp(-2 * X))
Y = np.where(GATE, 1 + 2 * X, -1 - X) + 0.4 * rng.normal(size=120)


def mixture(x):
    weights = numpyro.param("weights", jnp.array([0.4, 0.6]), constraint=constraints.simplex)
    mu = numpyro.param("mu", jnp.array([2.0, 4.0]))
    sd = numpyro.param("sd", jnp.array([1.0, 1.0]), constraint=constraints.positive)
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Categorical(probs=weights))
        numpyro.sample("x", dist.Normal(mu[z], sd[z]), obs=x)


def experts(x, y):
    gate = numpyro.param("gate", jnp.array([0.1, 0.5]))
    a = numpyro.param("a", jnp.array([-0.5, 0.5]))
    b = numpyro.param("b", jnp.array([-0.3, 0.6]))
    sd = numpyro.param("sd", jnp.array([1.0, 1.0]), constraint=constraints.positive)
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(logits=gate[0] + gate[1] * x))
        numpyro.sample("y", dist.Normal(a[z] + b[z] * x, sd[z]), obs=y)


@pytest.fixture(scope="module")
def fitted():
    return estimax.fit(mixture, EM(), {"x": PETALS}, progress_bar=False)


def test_log_likelihood_and_parameters_equal_scikit_learn(fitted):
    peer = GaussianMixture(2, tol=1e-13, max_iter=5000, reg_covar=0, means_init=[[2.0], [4.0]]).fit(PETALS[:, None])
    assert fitted.information_criteria()["log_likelihood"] == pytest.approx(peer.score(PETALS[:, None]) * 150, abs=1e-4)
    np.testing.assert_allclose(fitted.params["mu"], peer.means_[:, 0], rtol=1e-4)
    np.testing.assert_allclose(fitted.params["weights"], peer.weights_, rtol=1e-4)


@pytest.mark.long
def test_new_rows_have_new_components(fitted, tmp_path):
    """Moments and density of a mixture in closed form; and the model indexes its parameters by z in `to_arviz`."""
    w, mu, sd = (np.asarray(fitted.params[n]) for n in ("weights", "mu", "sd"))
    new = np.array([1.5, 2.5, 4.0, 6.0])
    found = fitted.predict({"x": new})
    mean, second = w @ mu, w @ (mu**2 + sd**2)
    draws = found.sample(4000)["x"]
    assert abs(draws.mean() - mean) < 4 * np.sqrt((second - mean**2) / draws.size)
    spread = (draws - mean) ** 2
    assert abs(spread.mean() - (second - mean**2)) < 4 * spread.std() / np.sqrt(draws.size)
    truth = np.log(stats.norm(mu, sd).pdf(new[:, None]) @ w)
    np.testing.assert_allclose(found.log_density(), truth, rtol=1e-9)
    fitted.save(tmp_path / "fit.nc", num_samples=10)
    np.testing.assert_array_equal(estimax.load(tmp_path / "fit.nc", mixture).params["mu"], mu)
    with pytest.raises(ValueError, match=r"a coordinate of their own, and weights\[0\] shares"):
        fitted.confint(method="profile")


@pytest.fixture(scope="module")
def lines():
    return estimax.fit(experts, EM(), {"x": X, "y": Y}, optimizer="em", progress_bar=False)


def test_log_likelihood_never_falls(fitted, lines):
    assert fitted.status == lines.status == "finished"
    for fit in (fitted, lines):  # accelerated and plain
        assert np.all(np.diff(fit.losses) <= 0)
        assert fit.losses[-1] < fit.losses[0] - 10
    assert len(lines.losses) > 10


@pytest.mark.long
def test_optimum_and_standard_errors_are_those_of_maximum_likelihood(fitted):
    direct = estimax.fit(mixture, MLE(), {"x": PETALS}, start=fitted.params, progress_bar=False)
    assert fitted.status == direct.status == "finished"
    assert fitted.losses[-1] == pytest.approx(direct.losses[-1], abs=1e-6)
    for name, value in fitted.params.items():
        np.testing.assert_allclose(value, direct.params[name], rtol=1e-6)
    np.testing.assert_allclose(fitted.summary()["std_err"], direct.summary()["std_err"], rtol=1e-5)


@pytest.mark.long
def test_fishers_identity_and_the_bound(x64):
    counts = np.random.default_rng(0).integers(0, 3, 150)  # weights: how often a datum is there
    problem = EM(weights=counts).problem(jax.random.key(0), mixture, None, {"x": jnp.asarray(PETALS)})
    anchor = {"weights": jnp.array([0.3]), "mu": jnp.array([1.5, 4.5]), "sd": jnp.array([-0.2, 0.1])}
    loss = jax.jit(lambda p: problem.loss(p, jax.random.key(0), problem.data)[0])
    expected = jax.jit(lambda a: problem.expect(a, problem.data))(anchor)
    surrogate = jax.jit(lambda p: problem.surrogate(p, expected, problem.data))
    value = jax.tree.map(np.asarray, problem.constrain(anchor))
    components = stats.norm(value["mu"], value["sd"]).pdf(PETALS[:, None])
    assert loss(anchor) == pytest.approx(-counts @ np.log(components @ value["weights"]), rel=1e-12)
    ours, truth = jax.grad(surrogate)(anchor), jax.grad(loss)(anchor)
    for name in anchor:
        np.testing.assert_allclose(ours[name], truth[name], rtol=1e-9, atol=1e-9)
    for seed in range(5):
        other = jax.tree.map(lambda x, s=seed: x + 0.5 * jax.random.normal(jax.random.key(s), x.shape), anchor)
        assert surrogate(other) - surrogate(anchor) >= loss(other) - loss(anchor) - 1e-9


def test_responsibilities_equal_scikit_learn(fitted, x64):
    peer = GaussianMixture(2, tol=1e-13, max_iter=5000, reg_covar=0, means_init=[[2.0], [4.0]]).fit(PETALS[:, None])
    found = fitted.problem.responsibilities(fitted.unconstrained, {"x": jnp.asarray(PETALS)})
    np.testing.assert_allclose(found.T, peer.predict_proba(PETALS[:, None]), atol=1e-5)


@pytest.mark.long
def test_mixture_of_experts_finds_both_lines(lines):
    direct = estimax.fit(experts, MLE(), {"x": X, "y": Y}, start=lines.params, progress_bar=False)
    assert lines.losses[-1] == pytest.approx(direct.losses[-1], abs=1e-6)
    table = lines.summary()
    for name, truth in {"a[0]": -1, "a[1]": 1, "b[0]": -1, "b[1]": 2, "gate[1]": 2, "sd[0]": 0.4}.items():
        assert abs(table.loc[name, "estimate"] - truth) < 4 * table.loc[name, "std_err"]


@pytest.mark.long
def test_start_breaks_the_symmetry_and_the_prior_keeps_a_component_from_collapsing():
    """One datum apart, the others alike: without prior the likelihood is infinite there."""
    x = np.r_[0.0, np.linspace(2.9, 3.1, 12)]

    def symmetric(x):
        mu = numpyro.sample("mu", dist.Normal(2.0, 2.0).expand([2]).to_event(1))
        sd = numpyro.sample("sd", dist.InverseGamma(3.0, 1.0).expand([2]).to_event(1))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Normal(mu[z], sd[z]), obs=x)

    fit = estimax.fit(symmetric, EM(prior=True), {"x": x}, progress_bar=False)
    assert fit.status == "finished"
    assert np.ptp(fit.params["mu"]) > 1.0
    assert fit.params["sd"].min() > 0.05


def single(x):
    mu = numpyro.param("mu", 0.0)
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def test_errors():
    with pytest.raises(ValueError, match="discrete latent site"):
        estimax.fit(single, EM(), {"x": PETALS})
    with pytest.raises(ValueError, match="data_noise=0.1"):
        EM(data_noise=0.1)
    with pytest.raises(ValueError, match="l2 only"):
        EM(l1=1.0)
    with pytest.raises(ValueError, match="goes with the estimator EM"):
        estimax.fit(mixture, MLE(), {"x": PETALS}, optimizer="em")
