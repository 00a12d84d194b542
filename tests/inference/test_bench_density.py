"""The density suite: its measures against closed forms and quadrature, and one quick run of every kind of model."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import estimax
from estimax.inference.bench import density, suites
from estimax.models import toys_2d

pytest.importorskip("flowjax")
SCALES = np.array([0.5, 1.5])


def gaussian_energy(x, batch_size=None):
    precision = numpyro.param("precision", jnp.ones(2))
    with numpyro.plate("data", len(x)):
        numpyro.factor("log_density", 3.0 - 0.5 * jnp.sum(precision * x**2, -1))


def test_an_energy_on_the_grid_has_the_constant_density_and_draws_of_its_gaussian():
    fitted = density.OnGrid(SimpleNamespace(model=gaussian_energy, params={"precision": jnp.asarray(SCALES**-2)}))
    assert fitted.log_z == pytest.approx(3.0 + math.log(2 * math.pi * SCALES.prod()), abs=1e-5)
    x = np.array([[0.1, -0.4], [1.0, 2.0]])
    np.testing.assert_allclose(fitted.log_prob(x), dist.Normal(0.0, SCALES).log_prob(x).sum(-1), rtol=1e-5)
    draws = fitted.sample(jax.random.key(0), (20_000,))
    np.testing.assert_allclose(draws.mean(0), 0.0, atol=4 * SCALES.max() / math.sqrt(20_000))
    np.testing.assert_allclose(draws.std(0), SCALES, rtol=4 / math.sqrt(2 * 20_000))


def wide(x, batch_size=None):
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", dist.MultivariateNormal(jnp.zeros(2), 9.0 * jnp.eye(2)), obs=x)


@pytest.mark.long
def test_divergence_of_a_wide_normal_from_the_grid_of_gaussians():
    """KL = cross-entropy, closed in the second moments, less the entropy of the grid by quadrature."""
    ticks = np.linspace(-4.5, 4.5, 601)
    log_p = np.asarray(toys_2d.gaussian_grid.log_prob(np.stack(np.meshgrid(ticks, ticks), -1)), np.float64)
    entropy = -np.sum(np.exp(log_p) * log_p) * (ticks[1] - ticks[0]) ** 2
    second = 2 * (toys_2d.GRID_SD**2 + toys_2d.GRID_STEP**2 * 2 / 3)
    truth = math.log(2 * math.pi * 9) + second / 18 - entropy
    x = np.zeros((3, 2), np.float32)
    found = density.toy_score(SimpleNamespace(model=wide, params={}, data={"x": x}), 0, "gaussian_grid")
    assert abs(found["divergence"] - truth) < 4 * found["divergence_stderr"]
    # the marginals of the fit are 3 / sd wide where the truth's are 1: in every direction a shift of quantiles
    ratio = 3.0 / math.sqrt(second / 2)
    assert found["wasserstein"] == pytest.approx((ratio - 1) * math.sqrt(2 / math.pi), rel=0.15)


@pytest.mark.long
def test_every_estimator_gets_a_model_that_it_fits(tmp_path):
    bench = estimax.benchmark("density", ["DenoisingScoreMatching", "NCE"],
                              models=["two_moons"], jobs=0, seeds=1, num_steps=30, out=tmp_path / "out",
                              progress_bar=False)  # fmt: skip
    frame = bench.frame.set_index("column")
    assert (frame["status"] == "finished").all(), frame["reason"].tolist()
    assert (frame["divergence"] > -4 * frame["divergence_stderr"]).all()
    truth = np.asarray(toys_2d.two_moons.log_prob(toys_2d.two_moons(jax.random.key(1), density.NUM_TEST))).mean()
    np.testing.assert_allclose(frame["held_out"] + frame["divergence"], truth, rtol=1e-4)
    assert np.isfinite(frame["wasserstein"]).all()
    assert "the figure of this suite" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_digits_are_for_normalised_models():
    (digits,) = (case for case in suites.load("density").cases if case.name == "digits")
    assert "NCE" not in digits.models
    x = digits.data()["x"]
    normal = SimpleNamespace(model=standard, params={}, data={"x": x})
    found = density.digits_score(normal, 0)
    assert found["held_out"] == pytest.approx(np.mean(standard_log_density()), rel=1e-5)


def standard(x, batch_size=None):
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", dist.MultivariateNormal(jnp.zeros(64), jnp.eye(64)), obs=x)


def standard_log_density():
    from estimax.models import score_digits

    x = score_digits.held_out()["x"][: density.NUM_TEST_DIGITS].astype(np.float64)
    return -0.5 * np.sum(x**2, 1) - 32 * math.log(2 * math.pi)
