"""The verdict in words: what it says follows from what is so."""

import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from estimax import fit
from estimax.estimators import ELBO
from estimax.inference.diagnose import GradientSNR, loss_drift


def model():
    numpyro.factor("data", 0.0)
    numpyro.sample("z", dist.StudentT(1.5, 0, 1))


def narrow():
    numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0), 0.1))


def test_good_fit(default_fit):
    diagnosis = default_fit("linear_gaussian", "ELBO").diagnose()
    text = str(diagnosis)
    assert diagnosis.verdict == "good"
    assert diagnosis.status == "finished"
    assert "verdict: good" in text
    assert "weighted draws can be trusted" in text
    assert "start: laplace" in text
    assert "still falling" not in text


@pytest.mark.long
def test_local_latents_are_counted(default_fit):
    text = str(default_fit("linear_gaussian_theta", "ELBO").diagnose(1000))
    assert "local latents: 50 data, k̂ too high in 0 of them" in text


def test_guide_that_is_too_narrow():
    diagnosis = fit(model, ELBO(4), {}, guide=narrow, num_steps=20, progress_bar=False).diagnose()
    text = str(diagnosis)
    assert diagnosis.verdict == "do not use"
    assert diagnosis.start is None
    assert "try IWAE or VIS" in text
    assert "NUTS" in text
    assert "start:" not in text


def test_loss_that_still_falls():
    def far(y):
        numpyro.sample("y", dist.Normal(numpyro.sample("z", dist.Normal(0, 100)), 1), obs=y)

    def slow(y):
        numpyro.sample("z", dist.Normal(numpyro.param("m", 0.0), 1))

    result = fit(far, ELBO(4), {"y": 50.0}, guide=slow, num_steps=200, optimizer=optax.sgd(1e-3),
                 progress_bar=False)  # fmt: skip
    diagnosis = result.diagnose(1000)
    assert diagnosis.drift < -3
    assert "still falling" in str(diagnosis)


def test_drift():
    rng = np.random.default_rng(0)
    assert abs(loss_drift(rng.normal(size=1000))) < 4
    assert loss_drift(rng.normal(size=1000) - 0.05 * np.arange(1000)) < -10
    assert loss_drift(rng.normal(size=1000) + 0.05 * np.arange(1000)) > 10
    assert np.isnan(loss_drift(np.zeros(50)))
    assert loss_drift(np.zeros(1000)) == 0


def test_gradient_statistics_by_numpy():
    draws = np.random.default_rng(0).normal(2, 3, (500, 4))
    snr = GradientSNR.from_draws({"theta": {"a": draws}, "phi": {}}, 500)
    np.testing.assert_allclose(snr.mean["theta"]["a"], draws.mean(0))
    np.testing.assert_allclose(snr.snr["theta"]["a"], draws.mean(0) / draws.std(0, ddof=1))
    row = snr.table().iloc[0]
    assert (row["role"], row["site"], row["size"]) == ("theta", "a", 4)
    assert row["rms_sd"] == pytest.approx(np.sqrt(np.mean(draws.var(0, ddof=1))))
