"""MCEM on a random-effects model whose likelihood is closed form; losses with a memory."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints

import estimax
from estimax.estimators import MCEM, MLE

n, m = 50, 4
rng = np.random.default_rng(0)
Y = 2.0 + 1.5 * rng.normal(size=(n, 1)) + rng.normal(size=(n, m))


def effects(y):
    mu = numpyro.param("mu", 0.0)
    tau = numpyro.param("tau", 1.0, constraint=constraints.positive)
    sigma = numpyro.param("sigma", 1.0, constraint=constraints.positive)
    with numpyro.plate("group", y.shape[0]):
        u = numpyro.sample("u", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(u[:, None], sigma).expand([y.shape[0], y.shape[1]]).to_event(1), obs=y)


def closed_form():
    """Maximum likelihood of the balanced one-way layout, and its standard errors."""
    means = Y.mean(1)
    sigma2 = ((Y - means[:, None]) ** 2).sum() / (n * (m - 1))
    between = means.var()
    tau2 = between - sigma2 / m
    tau2_sd = np.sqrt(2 * (between**2 / n + sigma2**2 / (n * m**2 * (m - 1))))
    return {
        "mu": (means.mean(), np.sqrt(between / n)),
        "tau": (np.sqrt(tau2), tau2_sd / (2 * np.sqrt(tau2))),
        "sigma": (np.sqrt(sigma2), np.sqrt(sigma2 / (2 * n * (m - 1)))),
    }


@pytest.fixture(scope="module")
def fitted():
    return estimax.fit(effects, MCEM(), {"y": Y}, num_steps=800, learning_rate=0.03, progress_bar=False)


@pytest.mark.parametrize("kernel", ["mala", "random_walk"])
def test_maximum_likelihood_of_a_random_effects_model(fitted, kernel):
    if kernel == "random_walk":
        fitted = estimax.fit(
            effects, MCEM(kernel=kernel), {"y": Y}, num_steps=800, learning_rate=0.03, progress_bar=False
        )
    for name, (value, std_err) in closed_form().items():
        assert abs(float(fitted.params[name]) - value) < 0.15 * std_err, name
    assert abs(fitted.metrics["acceptance"][-200:].mean() - {"mala": 0.574, "random_walk": 0.35}[kernel]) < 0.05


def test_chains_hold_the_posterior_of_the_effects(fitted):
    value = {k: float(v) for k, v in fitted.params.items()}
    shrink = value["tau"] ** 2 / (value["tau"] ** 2 + value["sigma"] ** 2 / m)
    mean = value["mu"] + shrink * (Y.mean(1) - value["mu"])
    sd = np.sqrt(shrink * value["sigma"] ** 2 / m)
    problem = fitted.problem
    step = eqx.filter_jit(problem.refresh)
    memory, draws = problem.memory, []
    for i in range(100):
        memory = step(memory, fitted.unconstrained, jax.random.key(i))
        draws.append(problem.with_memory(memory).latents(fitted.unconstrained)["u"])
    draws = np.concatenate(draws)
    z = (draws.mean(0) - mean) / sd  # autocorrelated draws: some 130 independent ones a unit
    assert np.sqrt(np.mean(z**2)) < 2 / np.sqrt(130)
    assert np.mean(draws.std(0) / sd) == pytest.approx(1, abs=0.03)


@pytest.mark.long
def test_information_of_the_marginal_likelihood(fitted):
    """Louis' identity from draws against derivatives of the integrated, normal density at the same values."""

    def marginal(z):
        cov = jnp.exp(2 * z[1]) * jnp.eye(m) + jnp.exp(2 * z[2]) * jnp.ones((m, m))  # mu, log sigma, log tau
        residual = Y - z[0]
        return -0.5 * jnp.sum(residual @ jnp.linalg.inv(cov) * residual, 1) - 0.5 * jnp.linalg.slogdet(cov)[1]

    z = jnp.array([float(fitted.params["mu"]), *(jnp.log(float(fitted.params[k])) for k in ("sigma", "tau"))])
    observed = np.linalg.inv(-np.asarray(jax.hessian(lambda z: marginal(z).sum())(z)))
    scores = np.asarray(jax.jacobian(marginal)(z))
    found = fitted.covariance()
    sd = np.sqrt(np.diag(observed))
    np.testing.assert_allclose(np.diag(found.unconstrained), np.diag(observed), rtol=0.03)
    np.testing.assert_allclose(found.unconstrained / sd / sd[:, None], observed / sd / sd[:, None], atol=0.03)
    for kind, truth in (
        ("opg", np.linalg.inv(scores.T @ scores)),
        ("sandwich", observed @ scores.T @ scores @ observed),
    ):
        given = fitted.covariance(kind).unconstrained
        np.testing.assert_allclose(np.diag(given), np.diag(truth), rtol=0.05)
    for name, (_, std_err) in closed_form().items():
        assert fitted.summary()["std_err"][name] == pytest.approx(std_err, rel=0.06)
    with pytest.raises(ValueError, match='covariance="bootstrap" refits, and MCEM has no exact loss'):
        fitted.covariance("bootstrap")
    with pytest.raises(ValueError, match='method="profile" needs an exact loss'):
        fitted.confint(method="profile")


@pytest.mark.long
def test_control_variate_leaves_the_mean_and_lowers_the_variance():
    """Gradients at fixed parameters, with data that say little, against that of the closed-form likelihood."""
    y = np.asarray(0.3 + 0.5 * np.random.default_rng(3).normal(size=(40, 1)), np.float32)
    mu, tau = 0.0, 0.5  # sigma is 1
    params = {"mu": jnp.asarray(mu), "tau": jnp.log(tau), "sigma": jnp.asarray(0.0)}
    spread = tau**2 + 1
    truth = np.array([-np.sum(y - mu) / spread, -np.sum((y - mu) ** 2 / spread - 1) * tau**2 / spread])  # of the loss
    found = {}
    for flag in (False, True):
        problem = MCEM(num_chains=1, num_moves=3, control_variate=flag).problem(
            jax.random.key(0), effects, None, {"y": y}
        )

        @eqx.filter_jit
        def run(problem, keys):
            def step(memory, key):
                memory = problem.refresh(memory, params, key)
                now = problem.with_memory(memory)
                grad = jax.grad(lambda p: now.loss(p, key, problem.data)[0])(params)
                return memory, jnp.stack([grad["mu"], grad["tau"]])

            return jax.lax.scan(step, problem.memory, keys)

        memory, gradients = run(problem, jax.random.split(jax.random.key(1), 4000))
        found[flag] = np.asarray(gradients)[500:]
        batches = found[flag].reshape(50, -1, 2).mean(1)  # their spread knows the autocorrelation
        assert np.all(np.abs(batches.mean(0) - truth) < 4 * batches.std(0) / np.sqrt(50))
    assert memory["prior_acceptance"].mean() > 0.5
    assert np.all(found[True].var(0) < 0.8 * found[False].var(0))


def test_resume_keeps_the_chains(fitted):
    more = fitted.resume(5, progress_bar=False)
    assert more.num_steps == 805
    # near the optimum, chains that began anew at zero would have another loss
    assert abs(more.losses[800] - fitted.losses[-50:].mean()) < 5 * fitted.losses[-200:].std()


@pytest.mark.long
def test_restarts_have_chains_of_their_own():
    fit = estimax.fit(effects, MCEM(num_chains=2), {"y": Y}, num_steps=3, num_restarts=2, progress_bar=False)
    assert fit.problem.memory["u"].shape == (2, n, 1)
    assert fit.metrics["loss"][0, -1] != fit.metrics["loss"][1, -1]


def test_mollified_data_are_noise_at_first_and_themselves_at_last(x64):
    def model(x):
        mu = numpyro.param("mu", 5.0)
        with numpyro.plate("data", len(x)):
            numpyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    x = np.r_[np.zeros(300), np.full(100, 8.0)]  # skewed: noise has the moments of the data but not the shape
    problem = MLE(mollify=1.0, mollify_steps=10).problem(jax.random.key(0), model, None, {"x": jnp.asarray(x)})
    at = lambda t: problem.with_memory(jnp.asarray(t)).loss(problem.params, jax.random.key(1), problem.data)[0]  # noqa: E731
    exact = 0.5 * np.sum((x - 5) ** 2) + 200 * np.log(2 * np.pi)
    assert at(11) == pytest.approx(exact, rel=1e-12)
    assert at(1) != pytest.approx(exact, rel=1e-3)
    # pure noise N(mean, sd): E (x − 5)² = sd² + (mean − 5)², and its standard error
    sd, gap = x.std(), x.mean() - 5
    error = 0.5 * np.sqrt(400 * (2 * sd**4 + 4 * sd**2 * gap**2))
    assert abs(at(1) - exact) < 4 * error
    fit = estimax.fit(
        model, MLE(mollify=0.9, mollify_steps=200), {"x": x}, num_steps=400, learning_rate=0.1, progress_bar=False
    )
    assert int(fit.problem.memory) == 400
    assert fit.params["mu"] == pytest.approx(2.0, abs=0.02)


def test_errors():
    def plain(y):
        mu = numpyro.param("mu", 0.0)
        with numpyro.plate("group", len(y)):
            numpyro.sample("y", dist.Normal(mu, 1.0).expand([4]).to_event(1), obs=y)

    with pytest.raises(ValueError, match="MCEM needs continuous latents"):
        estimax.fit(plain, MCEM(), {"y": Y})
    with pytest.raises(ValueError, match="kernel must be one of mala, random_walk, got 'hmc'"):
        MCEM(kernel="hmc")
    with pytest.raises(ValueError, match="mollify must be a finite number from 0 to 1, got 2"):
        MLE(mollify=2)
