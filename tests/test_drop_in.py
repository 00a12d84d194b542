"""NumPyro's own SVI with our losses trains the shipped models: no other part of estimax is used."""

import jax
import numpy as np
import optax
import pytest
from numpyro.infer import SVI
from numpyro.infer.autoguide import AutoNormal

from estimax import estimators, models
from estimax.estimators.objectives import ELBOBound, PowerMean

LOSSES = {
    "ELBO": estimators.ELBO(4),
    "IWAE": estimators.IWAE(4),
    "MIWAE": estimators.MIWAE(4, num_groups=2),
    "CIWAE": estimators.CIWAE(4),
    "PIWAE": estimators.PIWAE(4, num_groups=2),
    "Renyi": estimators.Renyi(4),
    "CHIVI": estimators.CHIVI(4),
    "VBIS": estimators.VBIS(4),
    "VIS": estimators.VIS(4),
    "RWS": estimators.RWS(4),
    "DataEmphasizedELBO": estimators.DataEmphasizedELBO(4),
    "AutoGen": estimators.AutoGen(4),
    "LogWeight": estimators.LogWeight(4, theta=PowerMean(0.5), phi=ELBOBound()),
}
# Those that variational estimators are for; models of the likelihood family have tests of their own in tests/models.
MODELS = (
    "eight_schools",
    "logistic_regression",
    "linear_gaussian",
    "linear_gaussian_theta",
    "tight_bounds",
    "bernoulli_mixture",
    "poglm",
    "vae_digits",
)
WITHOUT_THETA = ("eight_schools", "logistic_regression", "linear_gaussian")
QUICK = [("eight_schools", loss) for loss in LOSSES] + [(model, "VIS") for model in MODELS if model != "eight_schools"]
EVERY = [(model, loss) for model in MODELS for loss in LOSSES if (model, loss) not in QUICK]


STANDARD_ERRORS = 2


def fall(model_name: str, loss_name: str) -> tuple[float, float]:
    """By how much the mean of the last twenty of sixty losses is below that of the first, and its standard error.

    The loss reported is minus what θ climbs, which for CHIVI is the ELBO: a guide alone, which CHIVI widens, lowers it.
    There it is what φ descends that must fall, with the same draws before and after.
    """
    entry = models.get(model_name)
    guide = entry.guide if entry.guide is not None else AutoNormal(entry.model)
    loss = LOSSES[loss_name]
    svi = SVI(entry.model, guide, optax.adam(entry.learning_rate or 0.01), loss)
    outcome = svi.run(jax.random.key(0), 60, progress_bar=False, **entry.data())
    losses = np.asarray(outcome.losses)
    assert np.isfinite(losses).all()
    if loss_name != "CHIVI" or model_name not in WITHOUT_THETA:
        first, last = losses[:20], losses[-20:]
        # a trend within the twenty counts as spread
        return first.mean() - last.mean(), np.sqrt((first.var(ddof=1) + last.var(ddof=1)) / 20)
    descended = estimators.LogWeight(4, theta=loss.pair()[1])
    value = jax.jit(jax.vmap(lambda key, p: descended.loss(key, p, entry.model, guide, **entry.data()), (0, None)))
    keys = jax.random.split(jax.random.key(1), 4000)
    start = svi.get_params(svi.init(jax.random.key(0), **entry.data()))
    differences = np.asarray(value(keys, start) - value(keys, outcome.params), np.float64)
    return differences.mean(), differences.std(ddof=1) / np.sqrt(len(keys))


def check(model_name: str, loss_name: str) -> None:
    value, error = fall(model_name, loss_name)
    assert value > STANDARD_ERRORS * error


@pytest.mark.long
@pytest.mark.parametrize(("model_name", "loss_name"), QUICK)
def test_svi_trains(model_name: str, loss_name: str) -> None:
    check(model_name, loss_name)


@pytest.mark.slow
@pytest.mark.parametrize(("model_name", "loss_name"), EVERY)
def test_svi_trains_every_pair(model_name: str, loss_name: str) -> None:
    check(model_name, loss_name)
