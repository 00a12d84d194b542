"""Penalised likelihood against scikit-learn and convex programs of SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from scipy.optimize import lsq_linear, minimize
from sklearn.datasets import load_diabetes
from sklearn.linear_model import ElasticNet, Lasso, LogisticRegression, PoissonRegressor

import estimax
from estimax.estimators import EM, MAP, MLE, Laplace, penalties
from estimax.inference.path import scaled

DIABETES = load_diabetes(scaled=False)
X = DIABETES.data[:150]  # raw scales: columns differ by a factor of 100
Y = DIABETES.target[:150] / 50
XS = (X - X.mean(0)) / X.std(0)
rng = np.random.default_rng(0)
COUNTS = rng.poisson(np.exp(0.3 * XS[:, 2] + 0.2))


def linear(x, y):
    c = numpyro.param("c", 0.0)
    b = numpyro.param("b", jnp.zeros(x.shape[1]))
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", dist.Normal(c + x @ b, 1.0), obs=y)


def logistic(x, y):
    c = numpyro.sample("c", dist.Normal(0.0, 1.0))
    b = numpyro.sample("b", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", dist.Bernoulli(logits=c + x @ b), obs=y)


def poisson(x, y):
    c = numpyro.param("c", 0.0)
    b = numpyro.param("b", jnp.zeros(x.shape[1]))
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", dist.Poisson(jnp.exp(c + x @ b)), obs=y)


def signal(y, a):
    f = numpyro.param("f", jnp.zeros(a.shape[1]))
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Normal(a @ f, 1.0), obs=y)


def fit(model, estimator, data, **options):
    return estimax.fit(model, estimator, data, progress_bar=False, **options)


@pytest.mark.long
def test_lasso_on_raw_scales():
    found = fit(linear, MLE(l1={"b": 15.0}), {"x": X, "y": Y})
    peer = Lasso(alpha=0.1, tol=1e-13, max_iter=10**6).fit(X, Y)
    assert 0 < np.sum(peer.coef_ == 0) < 10
    np.testing.assert_allclose(found.params["b"], peer.coef_, rtol=1e-5, atol=1e-9)
    np.testing.assert_array_equal(found.params["b"] == 0, peer.coef_ == 0)
    assert found.params["c"] == pytest.approx(peer.intercept_, rel=1e-5)
    objective = 0.5 * np.sum((Y - peer.predict(X)) ** 2) + 15 * np.abs(peer.coef_).sum() + 75 * np.log(2 * np.pi)
    assert found.losses[-1] == pytest.approx(objective, rel=1e-9)


def test_information_criteria_count_what_is_not_zero():
    found = fit(linear, MLE(l1={"b": 15.0}), {"x": X, "y": Y}).information_criteria()
    peer = Lasso(alpha=0.1, tol=1e-13, max_iter=10**6).fit(X, Y)
    free = np.count_nonzero(peer.coef_) + 1  # and the intercept
    value = -0.5 * np.sum((Y - peer.predict(X)) ** 2) - 75 * np.log(2 * np.pi)
    assert found["log_likelihood"] == pytest.approx(value, rel=1e-9)
    assert found["num_params"] == free
    assert found["AIC"] == pytest.approx(-2 * value + 2 * free, rel=1e-9)
    assert found["AICc"] == pytest.approx(found["AIC"] + 2 * free * (free + 1) / (150 - free - 1), rel=1e-9)


def test_fista_agrees():
    found = fit(linear, MLE(l1={"b": 15.0}), {"x": XS, "y": Y}, optimizer="fista", num_steps=2000)
    peer = Lasso(alpha=0.1, tol=1e-13, max_iter=10**6).fit(XS, Y)
    assert found.status == "finished"
    np.testing.assert_allclose(found.params["b"], peer.coef_, rtol=1e-5, atol=1e-8)


def test_elastic_net():
    found = fit(linear, MLE(l1={"b": 9.0}, l2={"b": 6.0}), {"x": XS, "y": Y})
    peer = ElasticNet(alpha=0.1, l1_ratio=0.6, tol=1e-13, max_iter=10**6).fit(XS, Y)
    np.testing.assert_allclose(found.params["b"], peer.coef_, rtol=1e-5, atol=1e-9)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_l1_logistic_regression():
    y = (np.median(Y) < Y).astype(float)
    found = fit(logistic, MLE(l1={"b": 4.0}), {"x": XS, "y": y})
    peer = LogisticRegression(C=0.25, l1_ratio=1.0, penalty="l1", solver="saga", tol=1e-10, max_iter=10**5).fit(XS, y)
    np.testing.assert_array_equal(found.params["b"] == 0, peer.coef_[0] == 0)
    np.testing.assert_allclose(found.params["b"], peer.coef_[0], rtol=1e-5, atol=1e-7)


@pytest.mark.long
def test_l2_poisson_regression_and_its_standard_errors():
    found = fit(poisson, MLE(l2={"b": 30.0}), {"x": XS, "y": COUNTS})
    peer = PoissonRegressor(alpha=0.2, solver="newton-cholesky", tol=1e-12).fit(XS, COUNTS)
    np.testing.assert_allclose(found.params["b"], peer.coef_, rtol=1e-5)
    design = np.column_stack([XS, np.ones(150)])
    hessian = design.T * peer.predict(XS) @ design + np.diag([30.0] * 10 + [0.0])
    np.testing.assert_allclose(found.summary()["std_err"], np.sqrt(np.diag(np.linalg.inv(hessian))), rtol=1e-5)


@pytest.mark.long
def test_l2_is_the_map_of_a_normal_prior():
    y = (np.median(Y) < Y).astype(float)
    with_prior = fit(logistic, MAP(), {"x": XS, "y": y})
    penalised = fit(logistic, MLE(l2=1.0), {"x": XS, "y": y})  # a number acts on every parameter
    np.testing.assert_allclose(penalised.params["b"], with_prior.params["b"], rtol=1e-6)


def test_nonnegative_least_squares():
    a = rng.normal(size=(30, 8))
    y = a @ np.array([1, 0, 2, 0, 0, 3, 0, 0.5]) + rng.normal(size=30)
    found = fit(signal, MLE(nonnegative=("f",)), {"y": y, "a": a})
    peer = lsq_linear(a, y, (0, np.inf), method="bvls", tol=1e-14).x
    np.testing.assert_allclose(found.params["f"], peer, atol=1e-8)
    assert (found.params["f"] == 0).sum() == (peer < 1e-10).sum() > 0


@pytest.mark.parametrize("l1", [0.0, 0.4])
def test_fused_lasso_equals_a_convex_program(l1):
    n, lam = 20, 1.3
    y = np.repeat([0.0, 3.0, 1.0, 0.2], 5) + rng.normal(size=n)
    a = np.eye(n)
    penalty = {"fused": {"f": lam}, **({"l1": {"f": l1}} if l1 else {})}
    found = fit(signal, MLE(**penalty), {"y": y, "a": a}).params["f"]
    # the dual: |u| ≤ λ for differences, |v| ≤ l1 for elements; f = y − Dᵀu − v
    d = np.vstack([np.diff(np.eye(n), axis=0), np.eye(n)])
    bound = np.r_[np.full(n - 1, lam), np.full(n, max(l1, 1e-300))]
    dual = lsq_linear(d.T, y, (-bound, bound), tol=1e-15, max_iter=10**4)
    np.testing.assert_allclose(found, y - d.T @ dual.x, atol=1e-5)


@pytest.mark.long
def test_fused_regression_is_optimal():
    a = rng.normal(size=(40, 12))
    y = a @ np.repeat([1.0, -1.0, 0.0], 4) + rng.normal(size=40)
    found = fit(signal, MLE(fused={"f": 6.0}), {"y": y, "a": a}).params["f"]

    # smooth form: f = c + cumsum(p − q) with p, q ≥ 0
    def objective(v):
        f = np.r_[v[0], v[0] + np.cumsum(v[1:12] - v[12:])]
        residual = a @ f - y
        g = a.T @ residual
        tail = np.cumsum(g[::-1])[::-1]
        return 0.5 * residual @ residual + 6 * v[1:].sum(), np.r_[tail[0], tail[1:] + 6, -tail[1:] + 6]

    bounds = [(None, None)] + [(0, None)] * 22
    peer = minimize(
        objective, np.zeros(23), jac=True, bounds=bounds, options={"ftol": 1e-16, "gtol": 1e-11, "maxiter": 5000}
    ).x
    np.testing.assert_allclose(found, np.r_[peer[0], peer[0] + np.cumsum(peer[1:12] - peer[12:])], atol=1e-5)
    assert np.sum(np.diff(found) == 0) > 0


def grid_differences(rows, columns):
    """Both kinds of differences of an image as one matrix."""
    down = np.kron(np.diff(np.eye(rows), axis=0), np.eye(columns))
    return np.vstack([down, np.kron(np.eye(rows), np.diff(np.eye(columns), axis=0))])


@pytest.mark.parametrize("strength", [0.0, 0.3, 5.0])
def test_proximal_operator_of_an_image_equals_a_convex_program(x64, strength):
    y = rng.normal(size=(7, 5)) + 2 * (np.arange(7) < 3)[:, None]
    d = grid_differences(7, 5)
    dual = lsq_linear(d.T, y.ravel(), (-max(strength, 1e-300), max(strength, 1e-300)), method="bvls", tol=1e-15)
    found = penalties.total_variation_of_image(jnp.asarray(y), jnp.asarray(strength), (0, 1))
    np.testing.assert_allclose(np.ravel(found), y.ravel() - d.T @ dual.x, atol=1e-8)
    rows = penalties.total_variation_of_image(jnp.asarray(y), jnp.asarray(strength), (1,))  # against the direct method
    direct = jax.vmap(lambda row: penalties.total_variation(row, jnp.asarray(strength)))(jnp.asarray(y))
    np.testing.assert_allclose(rows, direct, atol=1e-8)


@pytest.mark.long
def test_counts_of_a_blurred_image_are_optimal():
    """Poisson, fused along both axes, non-negative: the optimality conditions, a bounded least-squares problem."""
    truth = np.zeros((5, 5))
    truth[1:3, 1:3] = 40.0
    blur = np.exp(-0.5 * (np.arange(5)[:, None] - np.arange(5)) ** 2)
    counts = np.random.default_rng(5).poisson(blur @ truth @ blur + 3.0)
    counts[4] = 0  # below the background: the bound holds there
    lam = 0.3

    def image(counts, blur):
        f = numpyro.param("f", jnp.full((5, 5), 3.0))
        with numpyro.plate("column", 5), numpyro.plate("row", 5):
            numpyro.sample("counts", dist.Poisson(blur @ f @ blur + 3.0), obs=counts)

    found = fit(image, MLE(fused={"f": (lam, (0, 1))}, nonnegative=("f",)), {"counts": counts, "blur": blur})
    assert found.status == "finished"
    f = np.ravel(found.params["f"])
    a, d = np.kron(blur, blur), grid_differences(5, 5)
    slope = a.T @ (1 - counts.ravel() / (a @ f + 3.0))
    # the loss is convex: f is its minimum if slope + Dᵀu − v = 0 with u in λ ∂|Df| and v ≥ 0 where f = 0
    unequal = np.abs(d @ f) > 1e-6
    low = np.r_[np.where(unequal, lam * np.sign(d @ f), -lam), np.zeros(25)]
    high = np.r_[np.where(unequal, lam * np.sign(d @ f), lam), np.where(f == 0, np.inf, 0.0)]
    dual = lsq_linear(np.hstack([d.T, -np.eye(25)]), -slope, (low - 1e-12, high + 1e-12), method="bvls", tol=1e-15)
    assert np.abs(dual.fun).max() < 1e-6 * np.abs(slope).max()
    assert (f == 0).any()
    assert 0 < unequal.sum() < len(d)


def test_fused_along_another_axis():
    def matrix(y):
        f = numpyro.param("f", jnp.zeros((6, 2)))
        with numpyro.plate("column", 2), numpyro.plate("row", 6):
            numpyro.sample("y", dist.Normal(f, 1.0), obs=y)

    y = rng.normal(size=(6, 2))
    found = fit(matrix, MLE(fused={"f": (0.7, 0)}), {"y": y}).params["f"]
    for k in range(2):
        d = np.diff(np.eye(6), axis=0)
        dual = lsq_linear(d.T, y[:, k], (-0.7, 0.7), method="bvls", tol=1e-15)
        np.testing.assert_allclose(found[:, k], y[:, k] - d.T @ dual.x, atol=1e-7)


def test_group_lasso_satisfies_its_optimality_conditions():
    def model(x, y):
        b = numpyro.param("b", jnp.zeros((2, x.shape[1])))  # two outputs: a feature is in for both or for none
        with numpyro.plate("data", len(x)):
            numpyro.sample("y", dist.Normal(x @ b.T, 1.0).to_event(1), obs=y)

    x = XS[:, :6]
    y = x @ np.array([[1.0, 0, 0, 0.5, 0, 0], [0.7, 0, 0, -0.5, 0, 0]]).T + rng.normal(size=(150, 2))
    lam = 20.0
    b = fit(model, MLE(group={"b": lam}), {"x": x, "y": y}).params["b"]
    slope = (y - x @ b.T).T @ x
    zero = np.linalg.norm(b, axis=0) == 0
    assert 0 < zero.sum() < 6
    assert np.all(np.linalg.norm(slope[:, zero], axis=0) <= lam * np.sqrt(2) + 1e-6)
    active = b[:, ~zero]
    np.testing.assert_allclose(slope[:, ~zero], lam * np.sqrt(2) * active / np.linalg.norm(active, axis=0), atol=1e-5)


def test_given_groups():
    ids = [0, 0, 0, 1, 1, 2, 2, 2, 2, 2]
    b = fit(linear, MLE(group={"b": (15.0, ids)}), {"x": XS, "y": Y}).params["b"]
    slope = XS.T @ (Y - Y.mean() - XS @ b)
    for g, size in enumerate([3, 2, 5]):
        mine = np.array(ids) == g
        norm, bound = np.linalg.norm(b[mine]), 15 * np.sqrt(size)
        if norm:
            np.testing.assert_allclose(slope[mine], bound * b[mine] / norm, atol=1e-5)
        else:
            assert np.linalg.norm(slope[mine]) <= bound
    assert np.linalg.norm(b) > 0


def test_proximal_operator_of_a_sum(x64):
    """The composition minimises fused + l1 + bound: no random point near it is lower."""
    x = jnp.asarray(rng.normal(size=9) + 0.5)
    rules = penalties.Penalties({"f": jnp.asarray(0.2)}, {}, {}, {"f": jnp.asarray(0.5)}, (), ("f",))
    best = rules.proximal({"f": x}, {"f": jnp.full(9, 0.7)})["f"]
    objective = lambda u: rules.value({"f": u}) + 0.5 * jnp.sum((u - x) ** 2) / 0.7  # noqa: E731
    near = jnp.maximum(best + 0.05 * jax.random.normal(jax.random.key(0), (2000, 9)), 0.0)
    assert objective(best) < jax.vmap(objective)(near).min()
    assert best.min() >= 0


def test_errors():
    data = {"x": XS, "y": Y}
    with pytest.raises(ValueError, match="l1\\['b'\\] must be a finite strength.*-1"):
        MLE(l1={"b": -1.0})
    with pytest.raises(ValueError, match="l2 names 'beta', which is not estimated \\(parameters: "):
        fit(linear, MLE(l2={"beta": 1.0}), data)
    with pytest.raises(ValueError, match="shape \\(3,\\), the site has \\(10,\\)"):
        fit(linear, MLE(l1={"b": np.ones(3)}), data)

    def positive(x):
        s = numpyro.param("s", 1.0, constraint=constraints.positive)
        with numpyro.plate("data", len(x)):
            numpyro.sample("x", dist.Normal(0.0, s), obs=x)

    with pytest.raises(ValueError, match="support of 's' is not the real line: give l1= a dict"):
        fit(positive, MLE(l1=1.0), {"x": Y})
    with pytest.raises(ValueError, match="need an exact loss"):
        MLE(l1=1.0, data_noise=0.1)
    with pytest.raises(ValueError, match="cannot handle the kinks"):
        fit(linear, MLE(l1=1.0), data, optimizer="adam")
    with pytest.raises(ValueError, match="cannot handle the kinks"):
        fit(linear, MLE(l1=1.0), data, optimizer="lbfgs")
    with pytest.raises(ValueError, match="give the sites a prior"):
        Laplace(l2=1.0)
    with pytest.raises(ValueError, match="fused of 'b' has axes \\[0, 1\\], the site has shape \\(10,\\)"):
        fit(linear, MLE(fused={"b": (1.0, (0, 1))}), data)
    with pytest.raises(ValueError, match="fused with axes goes by site: fused={site: \\(strength, axes\\)}"):
        MLE(fused=(1.0, (0, 1)))
    with pytest.raises(ValueError, match="axes of fused\\['b'\\] must be integers"):
        MLE(fused={"b": (1.0, "rows")})
    with pytest.raises(ValueError, match="nonnegative must be a tuple of site names"):
        MLE(nonnegative=3)
    penalised = fit(linear, MLE(l1={"b": 15.0}), data)
    with pytest.raises(ValueError, match="no standard errors under l1"):
        penalised.covariance()
    with pytest.raises(TypeError, match="a is penalised"):
        estimax.lr_test(penalised, penalised)


def test_estimators_with_equal_penalties_are_equal():
    one = MLE(l1={"b": 1.0, "a": np.ones(2)}, group={"c": (1.0, ["x", "y"])})
    other = MLE(l1={"a": np.ones(2), "b": 1}, group={"c": (1.0, [0, 1])})
    assert one == other
    assert hash(one) == hash(other)
    assert EM(l2=2.0) != EM()
    image = MLE(fused={"f": (1.0, (0, 1))})
    assert image == MLE(fused={"f": (1, [0, 1])}) != MLE(fused={"f": 1.0})
    assert scaled(image, 2.0) == MLE(fused={"f": (2.0, (0, 1))})
