"""Where the guide is the posterior every weight is the evidence: no bound has a gap, no path gradient any variance."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from estimax import estimators as es
from estimax.models import linear_gaussian, linear_gaussian_theta

DATA = linear_gaussian.data()
LOG_Z = linear_gaussian.log_evidence(DATA)


def guide(x, A, scale):
    mean, covariance = linear_gaussian.posterior(DATA)
    loc = numpyro.param("loc", jnp.asarray(mean))
    widen = numpyro.param("widen", 1.0)
    tril = widen * jnp.linalg.cholesky(jnp.asarray(covariance))
    numpyro.sample("z", dist.MultivariateNormal(loc, scale_tril=tril))


def params(widen=1.0):
    return {"loc": jnp.asarray(linear_gaussian.posterior(DATA)[0]), "widen": jnp.asarray(widen)}


BOUNDS = {
    "elbo": es.ELBO(8),
    "iwae": es.IWAE(8),
    "iwae_score": es.IWAE(8, "score"),
    "iwae_reparam": es.IWAE(8, "reparam"),
    "miwae": es.MIWAE(8, num_groups=2),
    "ciwae": es.CIWAE(8),
    "piwae": es.PIWAE(8, num_groups=2),
    "renyi": es.Renyi(8),
    "renyi_2": es.Renyi(8, alpha=2.0),
    "cubo_2": es.Renyi(8, alpha=-1.0),  # (1/2) log mean w²
    "chivi": es.CHIVI(8),
    "vbis": es.VBIS(8),
    "vis": es.VIS(8),
    "rws": es.RWS(8),
    "data_emphasized": es.DataEmphasizedELBO(8, kappa=1.0),
    "autogen": es.AutoGen(8, m=0.0),
}


def losses():
    """Of every bound, in one program."""
    at, key = params(), jax.random.key(0)
    model = linear_gaussian.model
    return jax.jit(lambda: {n: bound.loss(key, at, model, guide, **DATA) for n, bound in BOUNDS.items()})()


def test_every_bound_is_the_evidence(x64):
    for name, loss in losses().items():
        np.testing.assert_allclose(-loss, LOG_Z, rtol=0, atol=1e-9, err_msg=name)


@pytest.mark.long
def test_in_single_precision():
    for name, loss in losses().items():
        assert loss.dtype == jnp.float32
        np.testing.assert_allclose(-loss, LOG_Z, rtol=0, atol=1e-4, err_msg=name)


def test_minus_cubo_is_minus_the_evidence(x64):
    estimator = es.LogWeight(8, "dreg", es.CUBOBound())
    loss = jax.jit(lambda: estimator.loss(jax.random.key(0), params(), linear_gaussian.model, guide, **DATA))()
    np.testing.assert_allclose(loss, LOG_Z, rtol=0, atol=1e-9)


@pytest.mark.long
def test_bounds_are_ordered(x64):
    """ELBO ≤ IWAE(4) ≤ IWAE(64) ≤ log Z with a guide 1.4 times too wide; the ELBO's gap is a KL in closed form."""

    def mean(estimator, num_draws=4000):
        keys = jax.random.split(jax.random.key(0), num_draws)
        run = jax.jit(jax.vmap(lambda key: -estimator.loss(key, params(1.4), linear_gaussian.model, guide, **DATA)))
        values = np.asarray(run(keys))
        return values.mean(), values.std() / np.sqrt(num_draws)

    (elbo, elbo_se), (few, few_se), (many, many_se) = (mean(e) for e in (es.ELBO(4), es.IWAE(4), es.IWAE(64)))
    dimension = len(params()["loc"])
    gap = 0.5 * dimension * (1.4**2 - 1 - np.log(1.4**2))
    assert abs(elbo - (LOG_Z - gap)) < 4 * elbo_se
    assert few - elbo > 4 * np.hypot(elbo_se, few_se)
    assert many - few > 4 * np.hypot(few_se, many_se)
    assert many < LOG_Z + 4 * many_se
    assert LOG_Z - many < 0.05


# -- variance of the gradients ----------------------------------------------------------------------------------------

X = np.array([-0.7, 2.1])
THETA = 0.4
VANISHING = {
    "elbo-path": es.ELBO(4, "path"),
    "elbo-dreg": es.ELBO(4, "dreg"),
    "vbis-path": es.VBIS(4, "path"),
    "iwae-dreg": es.IWAE(4, "dreg"),
    "miwae-dreg": es.MIWAE(4, "dreg", num_groups=2),
    "ciwae-dreg": es.CIWAE(4, "dreg"),
    "piwae-dreg": es.PIWAE(4, "dreg", num_groups=2),
    "renyi-dreg": es.Renyi(4, "dreg"),
    "chivi-dreg": es.CHIVI(4, "dreg"),
    "vis-dreg": es.VIS(4, "dreg"),
    "rws-dreg": es.RWS(4, "dreg"),
}
REMAINING = {
    "elbo-reparam": es.ELBO(4, "reparam"),
    "elbo-score": es.ELBO(4, "score"),
    "iwae-reparam": es.IWAE(4, "reparam"),
    "iwae-score": es.IWAE(4, "score"),
    "renyi-reparam": es.Renyi(4, "reparam"),
    "vis-score": es.VIS(4, "score"),
    "vis-reparam": es.VIS(4, "reparam"),
    "rws-score": es.RWS(4, "score"),
}


def variances(estimator):
    loc, scale = linear_gaussian_theta.posterior(THETA, X)
    at = {"theta": jnp.asarray(THETA), "loc": loc, "scale": scale}
    model, q = linear_gaussian_theta.model, linear_gaussian_theta.guide
    gradient = jax.vmap(lambda key: jax.grad(lambda p: estimator.loss(key, p, model, q, X))(at))
    draws = jax.jit(gradient)(jax.random.split(jax.random.key(0), 200))
    return {name: np.var(value, 0) for name, value in draws.items()}


@pytest.mark.parametrize("name", VANISHING)
def test_gradients_without_variance_at_the_posterior(name, x64):
    variance = variances(VANISHING[name])
    assert max(variance["loc"].max(), variance["scale"].max()) < 1e-8
    assert variance["theta"] > 1e-2  # θ has no such estimator: its score is that of the joint density


@pytest.mark.parametrize("name", REMAINING)
def test_gradients_with_variance_at_the_posterior(name, x64):
    variance = variances(REMAINING[name])
    assert min(variance["loc"].min(), variance["scale"].min()) > 1e-2
