"""NumPyro's own SVI with our losses trains the shipped models: no other part of estimax is used."""

import jax
import numpy as np
import optax
import pytest
from numpyro.infer import SVI
from numpyro.infer.autoguide import AutoNormal

from estimax import estimators, models

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
QUICK = [("eight_schools", loss) for loss in LOSSES] + [(model, "VIS") for model in MODELS if model != "eight_schools"]
EVERY = [(model, loss) for model in MODELS for loss in LOSSES if (model, loss) not in QUICK]


def train(model_name: str, loss_name: str) -> np.ndarray:
    entry = models.get(model_name)
    guide = entry.guide if entry.guide is not None else AutoNormal(entry.model)
    svi = SVI(entry.model, guide, optax.adam(entry.learning_rate or 0.01), LOSSES[loss_name])
    return np.asarray(svi.run(jax.random.key(0), 60, progress_bar=False, **entry.data()).losses)


def check(model_name: str, loss_name: str) -> None:
    losses = train(model_name, loss_name)
    assert np.isfinite(losses).all()
    # The loss reported is minus what theta climbs. Guides of models without parameters of their own may widen (VIS,
    # RWS, CHIVI) and so lower it: what must hold is that sixty steps do not run away.
    assert losses[-20:].mean() < losses[:20].mean() + 3 * losses[:20].std() + 0.05 * abs(losses[:20].mean())


@pytest.mark.long
@pytest.mark.parametrize(("model_name", "loss_name"), QUICK)
def test_svi_trains(model_name: str, loss_name: str) -> None:
    check(model_name, loss_name)


@pytest.mark.slow
@pytest.mark.parametrize(("model_name", "loss_name"), EVERY)
def test_svi_trains_every_pair(model_name: str, loss_name: str) -> None:
    check(model_name, loss_name)
