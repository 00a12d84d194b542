"""The VIS paper's toy mixture. The full setting takes minutes: ``-m slow``, or `estimax bench vis-paper`."""

import optax
import pytest

import estimax
from estimax import estimators, models
from estimax.models import bernoulli_mixture


def held_out(estimator: estimators.LogWeight, num_steps: int) -> dict[str, float]:
    entry = models.get("bernoulli_mixture")
    result = estimax.fit(
        entry.model,
        estimator,
        entry.data(),
        guide=entry.guide,
        optimizer=optax.adam(0.002),
        num_steps=num_steps,
        progress_bar=False,
    )
    x, z = bernoulli_mixture.test_set()
    return {
        "marginal": float(bernoulli_mixture.marginal_log_likelihood(result.params, x)),
        "complete": float(bernoulli_mixture.complete_log_likelihood(result.params, x, z)),
        "hidden": float(bernoulli_mixture.hidden_log_likelihood(result.params, x, z)),
    }


@pytest.mark.slow
def test_vis_explains_the_hidden_better_than_vi() -> None:
    """A fifth of the particles shows the paper's order; with a few hundred, or a quarter of the steps, VIS does not."""
    vis = held_out(estimators.VIS(1000, "score"), 2000)
    vi = held_out(estimators.ELBO(1000, "score"), 2000)
    assert vis["hidden"] > vi["hidden"] + 0.2


@pytest.mark.slow
def test_paper_setting() -> None:
    """Adam 0.002, 200 epochs of 10 batches, 5,000 particles, score gradients.

    The paper has VI last. Here CHIVI is, far below the others on both measures: a finding, in docs/bench.md.
    """
    figures = {
        name: held_out(estimator(5000, "score"), 2000)
        for name, estimator in {
            "VI": estimators.ELBO,
            "CHIVI": estimators.CHIVI,
            "VBIS": estimators.VBIS,
            "VIS": estimators.VIS,
        }.items()
    }
    vis = figures["VIS"]
    assert vis["marginal"] == pytest.approx(-0.630, abs=0.001)
    assert vis["complete"] == pytest.approx(-3.2, abs=0.1)
    assert vis["hidden"] == pytest.approx(-2.8, abs=0.1)
    for measure in ("complete", "hidden"):
        values = {name: f[measure] for name, f in figures.items()}
        assert sorted(values, key=values.__getitem__) == ["CHIVI", "VI", "VBIS", "VIS"]
