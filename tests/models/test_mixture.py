"""Against scikit-learn's EM, mclust's published fit, and the sum over labels written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers
from numpyro.infer.util import log_density
from scipy import stats

import estimax
from estimax.estimators import MLE
from estimax.models import mixture

pytest.importorskip("sklearn")
pytestmark = pytest.mark.usefixtures("x64_module")


@pytest.fixture(scope="module")
def peer():
    from sklearn.mixture import GaussianMixture

    return GaussianMixture(3, reg_covar=0.0, tol=1e-12, max_iter=2000, random_state=0).fit(mixture.data()["x"])


def parameters(peer):
    scale = np.sqrt(np.diagonal(peer.covariances_, axis1=1, axis2=2))
    tril = np.linalg.cholesky(peer.covariances_)
    return {"weights": peer.weights_, "mu": peer.means_, "scale": scale, "corr_tril": tril / scale[..., None]}


def test_equals_scikit_learn_point_by_point(peer, pointwise):
    data = mixture.data()
    values = pointwise(mixture.model, data, parameters(peer))
    np.testing.assert_allclose(values, peer.score_samples(data["x"]), rtol=1e-9)
    # Fraley and Raftery's mclust, model VVV with 3 components on the irises
    assert values.sum() == pytest.approx(-180.185, abs=2e-3)


def test_ems_fixed_point_is_a_maximum_of_ours(peer, pointwise):
    """In unconstrained coordinates the gradient at scikit-learn's optimum is nothing beside the curvature."""
    data, params = mixture.data(), parameters(peer)
    means = {name: value for name, value in params.items() if name == "mu"}
    rest = {name: value for name, value in params.items() if name != "mu"}

    def total(mu, log_scale, logits):
        changed = {**rest, "mu": mu, "scale": jnp.exp(log_scale), "weights": jax.nn.softmax(logits)}
        return pointwise(mixture.model, data, changed).sum()

    gradient = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(
        jnp.asarray(means["mu"]), jnp.log(params["scale"]), jnp.log(params["weights"])
    )
    stderr = params["scale"] / np.sqrt(50.0)
    assert np.abs(gradient[0] * stderr).max() < 1e-4
    assert np.abs(gradient[1] * 0.1).max() < 1e-4
    assert np.abs(gradient[2] * 0.1).max() < 1e-4


@pytest.mark.long
def test_start_leads_to_the_published_maximum(climb):
    data = mixture.data()
    found, params = climb(mixture.model, data, mixture.start(**data))
    assert found == pytest.approx(-180.1855, abs=1e-4)  # mclust, and scikit-learn above
    np.testing.assert_allclose(np.sort(params["weights"]), [0.2995, 1 / 3, 0.3672], atol=1e-3)


@pytest.mark.long
def test_default_fit_finds_the_published_maximum():
    """Among many local ones, without a start of the user's."""
    result = estimax.fit(mixture.model, MLE(), mixture.data(), progress_bar=False)
    assert result.status == "finished"
    assert result.losses[-1] == pytest.approx(180.1855, abs=1e-4)


@pytest.mark.parametrize(("columns", "num_components"), [(1, 2), (4, 1), (1, 1), (3, 5)])
def test_start_has_the_sites_of_the_model(columns, num_components, pointwise):
    data = {"x": mixture.data()["x"][:, :columns], "num_components": num_components}
    assert np.isfinite(pointwise(mixture.model, data, mixture.start(**data))).all()


def brute_force(params, x):
    """log sum_k weights_k N(x; mu_k, Sigma_k) by scipy."""
    terms = [
        np.log(w) + stats.multivariate_normal(m, np.outer(s, s) * (c @ c.T)).logpdf(x)
        for w, m, s, c in zip(params["weights"], params["mu"], params["scale"], params["corr_tril"], strict=True)
    ]
    return np.logaddexp.reduce(terms)


def test_labels_summed_out_are_the_mixture(peer, pointwise):
    """z given as NumPyro enumerates it, (K, 1): log p(x, z) for each label, and their sum."""
    data, params = mixture.data(), parameters(peer)
    given = {name: jnp.asarray(value) for name, value in params.items()} | {"z": jnp.arange(3)[:, None]}
    trace = handlers.trace(handlers.seed(handlers.substitute(mixture.model_with_labels, data=given), 0)).get_trace(
        **data
    )
    joint = trace["z"]["fn"].log_prob(given["z"]) + trace["x"]["fn"].log_prob(trace["x"]["value"])
    assert joint.shape == (3, 150)
    marginal = pointwise(mixture.model, data, params)
    np.testing.assert_allclose(jax.nn.logsumexp(joint, axis=0), marginal, rtol=1e-10)
    np.testing.assert_allclose(marginal, brute_force(params, data["x"]), rtol=1e-9)
    assert trace["z"]["infer"] == {"enumerate": "parallel"}
    # responsibilities, the E-step, are scikit-learn's
    np.testing.assert_allclose(jax.nn.softmax(joint, axis=0).T, peer.predict_proba(data["x"]), atol=1e-9)


@pytest.mark.long
def test_numpyros_enumeration_agrees(peer):
    pytest.importorskip("funsor")
    funsor = pytest.importorskip("numpyro.contrib.funsor")
    data = {**mixture.data(), "x": mixture.data()["x"][:20]}
    params = {name: jnp.asarray(value) for name, value in parameters(peer).items()}
    enumerated, _ = funsor.log_density(
        funsor.enum(handlers.seed(mixture.model_with_labels, 0), first_available_dim=-2), (), data, params
    )
    marginal, _ = log_density(mixture.model, (), data, params)
    np.testing.assert_allclose(enumerated, marginal, rtol=1e-10)


def test_one_column_and_one_component(pointwise):
    x = mixture.data()["x"]
    params = {"weights": [0.3, 0.7], "mu": [[1.0], [4.0]], "scale": [[0.5], [2.0]]}
    values = pointwise(mixture.model, {"x": x[:, :1], "num_components": 2}, params)
    expected = np.log(0.3 * stats.norm.pdf(x[:, 0], 1.0, 0.5) + 0.7 * stats.norm.pdf(x[:, 0], 4.0, 2.0))
    np.testing.assert_allclose(values, expected, rtol=1e-10)
    one = {"mu": [x.mean(0)], "scale": [x.std(0)], "corr_tril": [np.linalg.cholesky(np.corrcoef(x.T))]}
    values = pointwise(mixture.model, {"x": x, "num_components": 1}, one)
    expected = stats.multivariate_normal(x.mean(0), np.cov(x.T, bias=True)).logpdf(x)
    np.testing.assert_allclose(values, expected, rtol=1e-9)


def test_draws_and_bad_input(draw):
    data = mixture.data()
    values = draw(handlers.uncondition(mixture.model), **data)
    assert values["x"].shape == (150, 4)
    assert not np.array_equal(values["x"], data["x"])
    with pytest.raises(ValueError, match="num_components must be at least 1, got 0"):
        handlers.seed(mixture.model, 0)(x=data["x"], num_components=0)
