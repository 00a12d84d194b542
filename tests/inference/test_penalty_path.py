"""Paths of penalty strengths against scikit-learn's, cross-validation included."""

from dataclasses import replace

import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from sklearn.linear_model import Lasso, LassoCV

import estimax
from estimax.estimators import ELBO, MLE

rng = np.random.default_rng(0)
X = rng.normal(size=(80, 8))
Y = X @ np.array([1.0, 0, 0, 2, 0, 0, 0, -0.5]) + rng.normal(size=80)
ALPHAS = np.geomspace(1.0, 0.01, 12)


def linear(x, y):
    c = numpyro.param("c", 0.0)
    b = numpyro.param("b", jnp.zeros(x.shape[1]))
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", dist.Normal(c + x @ b, 1.0), obs=y)


def image(y):
    f = numpyro.param("f", jnp.zeros(y.shape))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Normal(f, 1.0).to_event(1), obs=y)


@pytest.fixture(scope="module")
def path():
    # λ = n·alpha, so with strength alpha the base is n
    return estimax.penalty_path(linear, MLE(l1={"b": 80.0}), {"x": X, "y": Y}, ALPHAS, folds=np.arange(80) // 16)


def test_cross_validation_equals_lasso_cv(path):
    peer = LassoCV(alphas=ALPHAS, cv=5, tol=1e-13, max_iter=10**6).fit(X, Y)
    squared_error = -2 * path.fold_scores - np.log(2 * np.pi)
    np.testing.assert_allclose(squared_error, peer.mse_path_, rtol=1e-7)
    assert path.best == peer.alpha_
    scores = peer.mse_path_ / -2
    mean, error = scores.mean(1), scores.std(1, ddof=1) / np.sqrt(5)
    within = peer.alphas_[mean >= mean.max() - error[mean.argmax()]]
    assert path.one_se == within.max() > path.best


def test_coefficients_equal_lasso(path):
    assert path.frame["converged"].all()
    for _, row in path.frame.iterrows():
        peer = Lasso(alpha=row["strength"], tol=1e-13, max_iter=10**6).fit(X, Y)
        np.testing.assert_allclose(row[path.penalised].astype(float), peer.coef_, rtol=1e-6, atol=1e-9)
        assert row["num_nonzero"] == np.count_nonzero(peer.coef_)
        log_likelihood = -0.5 * np.sum((Y - peer.predict(X)) ** 2) - 40 * np.log(2 * np.pi)
        assert row["log_likelihood"] == pytest.approx(log_likelihood, rel=1e-8)


def test_path_of_its_own_starts_where_all_are_zero(path):
    own = estimax.penalty_path(
        linear, MLE(l1={"b": 1.0}), {"x": X, "y": Y}, num_strengths=12, folds=np.arange(80) // 16
    )
    largest = np.abs(X.T @ (Y - Y.mean())).max()
    assert own.frame["strength"].iloc[0] == pytest.approx(largest, rel=1e-5)
    assert own.frame["num_nonzero"].iloc[0] == 0
    assert own.frame["num_nonzero"].iloc[1] > 0
    without = replace(path, fold_scores=np.zeros((12, 0)))  # as num_folds=0 leaves it
    with pytest.raises(ValueError, match="without cross-validation"):
        without.best  # noqa: B018


def test_estimator_of_a_strength_gives_the_row(path):
    fit = estimax.fit(linear, path.estimator(path.one_se), {"x": X, "y": Y}, progress_bar=False)
    row = path.frame.set_index("strength").loc[path.one_se]
    np.testing.assert_allclose(fit.params["b"], row[path.penalised].astype(float), rtol=1e-6, atol=1e-9)


def test_smooth_path_equals_ridge():
    path = estimax.penalty_path(linear, MLE(l2={"b": 1.0}), {"x": X, "y": Y}, [1.0, 30.0], num_folds=0)
    centred = X - X.mean(0)
    for strength in (1.0, 30.0):
        b = np.linalg.solve(centred.T @ centred + strength * np.eye(8), centred.T @ Y)
        row = path.frame.set_index("strength").loc[strength]
        np.testing.assert_allclose(row[path.penalised].astype(float), b, rtol=1e-6)


def test_prints_and_plots(path):
    mpl.use("Agg")
    assert f"largest within one standard error of it {path.one_se:.5g}" in str(path)
    assert len(path.plot()) == 2


def test_errors():
    data = {"x": X, "y": Y}
    with pytest.raises(TypeError, match="needs MLE or MAP with l1"):
        estimax.penalty_path(linear, ELBO(), data)
    with pytest.raises(TypeError, match="needs MLE or MAP with l1"):
        estimax.penalty_path(linear, MLE(), data)
    with pytest.raises(ValueError, match="strengths must be finite and not negative"):
        estimax.penalty_path(linear, MLE(l1=1.0), data, [-1.0])
    with pytest.raises(ValueError, match="give the strengths"):
        estimax.penalty_path(linear, MLE(l2=1.0), data)
    with pytest.raises(ValueError, match="between 2 and the number of units, 80, got 90"):
        estimax.penalty_path(linear, MLE(l1=1.0), data, [1.0], num_folds=90)
    with pytest.raises(ValueError, match="fused along several axes has none"):
        estimax.penalty_path(image, MLE(fused={"f": (1.0, (0, 1))}), {"y": X[:20]}, [1.0])
    with pytest.raises(ValueError, match="folds must be one a unit, shape \\(80,\\)"):
        estimax.penalty_path(linear, MLE(l1=1.0), data, [1.0], folds=[0, 1])
