"""The table of estimates: numbers against NumPy, labels as ArviZ prints them."""

import numpy as np
import pytest

from estimax.inference.summary import COLUMNS, labels, posterior_summary


@pytest.fixture
def draws():
    rng = np.random.default_rng(0)
    return {"a": rng.normal(2, 1, 4000), "b": rng.normal(size=(4000, 2, 3)), "n": rng.poisson(3, 4000)}


def test_numbers(draws):
    table = posterior_summary(draws, 0.9)
    assert list(table.columns) == COLUMNS == ["estimate", "std_err", "z", "p_value", "lower", "upper"]
    assert list(table.index) == ["a", *(f"b[{i}, {j}]" for i in range(2) for j in range(3)), "n"]
    row = table.loc["b[1, 2]"]
    value = draws["b"][:, 1, 2]
    assert row["estimate"] == pytest.approx(value.mean())
    assert row["std_err"] == pytest.approx(value.std(ddof=1))
    assert row["z"] == pytest.approx(value.mean() / value.std(ddof=1))
    assert row["p_value"] == pytest.approx(2 * min((value > 0).mean(), (value < 0).mean()))
    assert [row["lower"], row["upper"]] == pytest.approx(list(np.quantile(value, [0.05, 0.95])))
    assert table.loc["a", "p_value"] == pytest.approx(0.0455, abs=0.015)  # 2 Φ(−2)


def test_labels_are_those_of_arviz(draws):
    import arviz

    chains = {"posterior": {k: v[None] for k, v in draws.items()}}
    container = arviz.from_dict(chains) if int(arviz.__version__.split(".")[0]) >= 1 else arviz.from_dict(**chains)
    assert set(arviz.summary(container).index) == set(posterior_summary(draws, 0.9).index)


def test_constant_and_empty():
    table = posterior_summary({"c": np.ones(10)}, 0.5)
    assert table.loc["c", "std_err"] == 0
    assert table.loc["c", "p_value"] == 0
    assert posterior_summary({}, 0.5).shape == (0, 6)


@pytest.mark.parametrize("prob", [0, 1, -0.1, 95])
def test_probability_of_the_interval(prob):
    with pytest.raises(ValueError, match="prob must lie strictly between 0 and 1"):
        posterior_summary({}, prob)


def test_labels():
    assert labels("a", ()) == ["a"]
    assert labels("a", (2,)) == ["a[0]", "a[1]"]


@pytest.mark.long
def test_summary_of_a_fit_is_of_the_resampled_draws(default_fit):
    from estimax import models

    mean, sd = models.eight_schools.posterior_moments()["mu"]
    result = default_fit("eight_schools", "IWAE")
    table = result.summary(10_000)
    assert table.loc["mu", "estimate"] == pytest.approx(mean, abs=0.1 * sd)
    assert table.loc["mu", "std_err"] == pytest.approx(sd, rel=0.1)
    guide = result.summary(10_000, resample=None)
    assert guide.loc["mu", "std_err"] == pytest.approx(float(np.std(result.sample(10_000)["mu"], ddof=1)), rel=1e-3)
