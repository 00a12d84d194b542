"""What can be asked of a fit: draws, weights that pair with them, resampling, going on, other data."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

from estimax import fit, models
from estimax.estimators import ELBO, IWAE
from estimax.inference.result import proposal_size, resampling_table


def model(y):
    mu = numpyro.sample("mu", dist.Normal(0, 2))
    numpyro.deterministic("twice", 2 * mu)
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.Normal(mu, 1.5), obs=y)


def guide(y):
    m, s = numpyro.param("m", 0.3), numpyro.param("s", 1.2, constraint=dist.constraints.positive)
    numpyro.sample("mu", dist.Normal(m, s))


Y = np.array([1.0, 2.0, 4.0])
VAR = 1 / (1 / 4 + 3 / 2.25)
MEAN = VAR * Y.sum() / 2.25


@pytest.fixture(scope="module")
def unfitted():
    """At its initial values: mu ~ N(0.3, 1.2)."""
    return fit(model, ELBO(4), {"y": Y}, guide=guide, num_steps=1, progress_bar=False).at_start()


def test_weights_and_draws_pair_by_seed(unfitted):
    """log p(y, mu) − log q(mu) by SciPy, at the draws of the same seed."""
    for seed in (0, 7):
        mu = np.asarray(unfitted.sample(50, seed=seed)["mu"], np.float64)
        log_p = stats.norm.logpdf(mu, 0, 2) + stats.norm.logpdf(Y[:, None], mu, 1.5).sum(0)
        expected = log_p - stats.norm.logpdf(mu, 0.3, 1.2)
        np.testing.assert_allclose(unfitted.log_weights(50, seed=seed), expected, rtol=1e-5, atol=1e-5)
    assert not np.array_equal(unfitted.sample(50, seed=0)["mu"], unfitted.sample(50, seed=7)["mu"])


def test_draws_of_the_default_guide_pair_with_their_weights(default_fit):
    """The whitening, the transform of tau and the plates all enter the density: weights against the exact evidence,
    and log p − log q recomputed from the guide's parameters."""
    result = default_fit("linear_gaussian", "ELBO")
    entry = models.linear_gaussian
    data = {k: np.asarray(v, np.float64) for k, v in entry.data().items()}
    z = np.asarray(result.sample(50, seed=3)["z"], np.float64)
    start = result.start
    loc = start.loc + start.scale @ result.params["auto_loc"]
    factor = start.scale @ np.asarray(result.params["auto_scale_tril"], np.float64)
    log_q = stats.multivariate_normal(loc, factor @ factor.T).logpdf(z)
    log_p = stats.norm.logpdf(z).sum(1)
    log_p += stats.norm.logpdf(data["x"][None], (z @ data["A"].T)[:, None], float(data["scale"])).sum((1, 2))
    np.testing.assert_allclose(result.log_weights(50, seed=3), log_p - log_q, atol=2e-4)


def test_resampled_draws_have_the_exact_moments(unfitted):
    draws = unfitted.sample(20_000, resample="psis")
    mu = np.asarray(draws["mu"], np.float64)
    ess = unfitted.log_evidence(200_000).ess
    assert abs(mu.mean() - MEAN) < 4 * np.sqrt(VAR * (1 / ess + 1 / 20_000))
    assert abs(mu.std() / np.sqrt(VAR) - 1) < 0.03
    np.testing.assert_allclose(draws["twice"], 2 * mu, rtol=1e-6)
    assert abs(np.asarray(unfitted.sample(20_000)["mu"]).mean() - 0.3) < 4 * 1.2 / np.sqrt(20_000)


def test_resampling_is_in_random_order(unfitted):
    """Draws without order: neighbours are not equal more often than any two."""
    mu = np.asarray(unfitted.sample(4000, resample="psis")["mu"])
    assert np.mean(mu[1:] == mu[:-1]) < 0.01
    assert abs(np.corrcoef(mu[1:], mu[:-1])[0, 1]) < 4 / np.sqrt(4000)


def test_resampling_table_follows_the_weights():
    weights = np.array([0.5, 0.3, 0.2] + [0.0] * 97)
    log_w = np.log(np.maximum(weights, 1e-300))
    table = resampling_table(log_w, 1000, 0)
    np.testing.assert_allclose(np.bincount(table, minlength=100)[:3] / 1000, [0.5, 0.3, 0.2], atol=0.05)
    two = np.stack([log_w, log_w[::-1]], 1)
    table = resampling_table(two, 1000, 0)
    assert table.shape == (1000, 2)
    assert table[:, 0].max() < 3
    assert table[:, 1].min() > 96


@pytest.mark.long
def test_resampling_per_datum():
    """One latent vector a datum behind two plates, with a deterministic site: moments in closed form."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=(3, 4, 2)) * 1.5

    def local(y):
        rows, columns = numpyro.plate("rows", 3, dim=-2), numpyro.plate("columns", 4, dim=-1)
        with rows, columns:
            z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            numpyro.deterministic("first", z[..., 0])
            numpyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)

    def wide(y):
        with numpyro.plate("rows", 3, dim=-2), numpyro.plate("columns", 4, dim=-1):
            shift = numpyro.param("shift", 0.0)
            numpyro.sample("z", dist.Normal(shift + jnp.zeros(2), 1.3).to_event(1))

    result = fit(local, ELBO(2), {"y": y}, guide=wide, num_steps=1, progress_bar=False).at_start()
    assert result.log_weights(10).shape == (10, 3, 4)
    evidence = result.log_evidence(4000)
    exact = stats.norm.logpdf(y, 0, np.sqrt(2)).sum(-1)
    assert np.max(np.abs(evidence.local["value"] - exact) / evidence.local["stderr"]) < 4.5
    draws = result.sample(4000, resample="psis")
    z = np.asarray(draws["z"], np.float64)
    assert z.shape == (4000, 3, 4, 2)
    error = np.sqrt(0.5 * (1 / 4000 + 1 / (10 * evidence.ess)))
    assert np.max(np.abs(z.mean(0) - y / 2)) < 4.5 * error
    np.testing.assert_allclose(z.std(0), np.sqrt(0.5), rtol=0.1)
    np.testing.assert_array_equal(draws["first"], z[..., 0].astype(np.float32))


def test_number_of_draws_behind():
    assert proposal_size(10) == 4000
    assert proposal_size(1000) == 10_000


def test_shapes_and_options(unfitted):
    assert unfitted.sample(7)["mu"].shape == (7,)
    assert unfitted.sample()["mu"].shape == (1000,)
    assert unfitted.sample(1, resample="psis")["mu"].shape == (1,)
    for bad in (0, -3, 1.5, True):
        with pytest.raises(ValueError, match="num_samples must be an integer of at least 1"):
            unfitted.sample(bad)
        with pytest.raises(ValueError, match="num_samples"):
            unfitted.log_evidence(bad)
    with pytest.raises(ValueError, match="resample must be None or \"psis\", got 'PSIS'"):
        unfitted.sample(10, resample="PSIS")


def test_repr_is_one_line(unfitted, default_fit):
    assert "\n" not in repr(default_fit("linear_gaussian", "ELBO"))
    assert "finished after 1000 steps" in repr(default_fit("linear_gaussian", "ELBO"))


def test_resume_goes_on():
    short = fit(model, IWAE(8), {"y": Y}, guide=guide, num_steps=50, progress_bar=False)
    longer = short.resume(1500, progress_bar=False)
    assert longer.num_steps == 1550
    assert longer.losses.shape == longer.metrics["ess"].shape == (1550,)
    np.testing.assert_array_equal(longer.losses[:50], short.losses)
    assert longer.params["m"] == pytest.approx(MEAN, abs=0.05)
    assert longer.at_start().params["m"] == pytest.approx(0.3)
    assert longer.seconds > short.seconds
    assert not np.array_equal(short.resume(20, seed=1, progress_bar=False).losses, longer.losses[:70])
    with pytest.raises(ValueError, match="num_steps"):
        short.resume(0)


@pytest.mark.long
def test_resume_of_restarts_goes_on_from_the_best():
    many = fit(model, IWAE(8), {"y": Y}, guide=guide, num_steps=50, num_restarts=3, progress_bar=False)
    longer = many.resume(30, progress_bar=False)
    assert longer.losses.shape == (80,)
    np.testing.assert_array_equal(longer.losses[:50], many.losses)


def test_other_data():
    """Amortised guide: held-out data of another size."""
    entry = models.linear_gaussian_theta

    def amortised(x, batch_size=None):
        a, b = numpyro.param("a", 0.4), numpyro.param("b", 0.0)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(a * x + b, 0.8))

    result = fit(entry.model, ELBO(4), entry.data(), guide=amortised, num_steps=200, progress_bar=False)
    held_out = np.random.default_rng(0).normal(1, np.sqrt(2), 7)
    evidence = result.with_data({"x": held_out}).log_evidence(4000)
    exact = float(entry.log_evidence(result.params["theta"], held_out))
    assert evidence.local["value"].shape == (7,)
    assert abs(evidence.value - exact) < 4 * evidence.stderr
    with pytest.raises(ValueError, match="'y', which the model does not take; known: x"):
        result.with_data({"y": held_out})


def test_gradient_snr(unfitted):
    """The ELBO's gradient in m is (MEAN − m)/VAR, from one reparameterised particle with sd s|1/s² − 1/VAR|."""
    result = replace(unfitted, problem=replace(unfitted.problem, estimator=ELBO(1, gradient="path")))
    snr = result.gradient_snr(4000)
    mean = snr.mean["phi"]["m"]
    sd = 1.2 * abs(1 / 1.2**2 - 1 / VAR)
    assert abs(mean - -(MEAN - 0.3) / VAR) < 4 * sd / np.sqrt(4000)
    assert snr.sd["phi"]["m"] == pytest.approx(sd, rel=0.05)
    assert snr.snr["phi"]["m"] == pytest.approx(abs(mean) / sd, rel=0.05)
    assert list(snr.table()["site"]) == ["m", "s"]
    assert "median_snr" in str(snr)
    many = result.gradient_snr(2000, num_particles=16)
    assert many.sd["phi"]["m"] == pytest.approx(sd / 4, rel=0.1)
    assert many.mean["theta"] == {}


def test_draws_are_jax_arrays_of_the_default_precision(unfitted):
    assert all(isinstance(v, jax.Array) for v in unfitted.sample(5).values())
    assert unfitted.sample(5)["mu"].dtype == jnp.result_type(float)
