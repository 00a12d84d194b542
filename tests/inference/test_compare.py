"""`compare` on a Gaussian model whose posterior and evidence are known in closed form."""

import arviz as az
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
from scipy import stats

import estimax
from estimax.estimators import ELBO, IWAE, MLE, VIS, Estimator, Problem, ScoreMatching
from estimax.inference import compare as module
from estimax.inference.compare import estimates_text, format_table, iw_bound, posterior_error, to_markdown

Y = np.array([0.3, 1.9, -0.2, 1.1, 0.8])
OPTIONS = {"num_steps": 30, "progress_bar": False}


def model(y):
    """mu ~ N(0, 1), y ~ N(mu, 1): posterior N(sum y / (n + 1), 1 / (n + 1)), evidence N(y; 0, I + 11')."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.deterministic("twice", 2 * mu)
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


MEAN, SD = Y.sum() / 6, 6**-0.5
LOG_EVIDENCE = stats.multivariate_normal(np.zeros(5), np.eye(5) + 1).logpdf(Y)


def exact_draws(num_draws=4000):
    """Quantiles instead of draws: a reference without Monte Carlo error."""
    mu = stats.norm(MEAN, SD).ppf((np.arange(num_draws) + 0.5) / num_draws)
    return {"mu": mu, "twice": 2 * mu}


class Broken(Estimator):
    """Cannot run on any model."""

    def problem(self, rng_key, model, guide, data):
        raise ValueError("the frobnicator is missing")


class Crashing(Estimator):
    """Fails in a way that nobody foresaw."""

    def problem(self, rng_key, model, guide, data):
        raise RuntimeError("boom\nand a second line")


class PointProblem(Problem):
    """Least squares: an estimator that leaves no posterior."""

    params: dict
    data: dict

    def init(self, rng_key):
        return self.params

    def loss(self, params, rng_key, data):
        return jnp.sum((data["y"] - params["m"]) ** 2), {}

    def constrain(self, params):
        return params


class LeastSquares(Estimator):
    needs_guide = False

    def problem(self, rng_key, model, guide, data):
        return PointProblem(params={"m": jnp.zeros(())}, data=dict(data))


@pytest.fixture(scope="module")
def result():
    return estimax.compare(model, {"ELBO": ELBO(), "IWAE": IWAE()}, {"y": Y}, reference=exact_draws(), **OPTIONS)


def test_the_table_has_the_closed_form(result):
    # The default guide starts at the exact posterior of a Gaussian model, so 30 steps only have to keep it.
    frame = result.frame
    assert list(frame.index) == ["ELBO", "IWAE"]
    np.testing.assert_allclose(frame["log_evidence"], LOG_EVIDENCE, atol=5e-3)
    assert (frame["elbo"] <= LOG_EVIDENCE + 5e-3).all()
    assert (frame["mean_error"] < 4 / np.sqrt(4000)).all()  # of 4,000 draws, in sds: 4 standard errors
    assert (frame["sd_error"] < 4 / np.sqrt(2 * 4000)).all()
    assert (frame["status"] == "finished").all()
    assert set(frame.attrs["columns"]) == set(frame.columns)


def test_the_printed_table_says_what_its_columns_mean(result):
    text = str(result)
    for word in ("log evidence", "IW bound", "k̂", "ESS", "PSIS mean err", "steps/s", "nats", "the reference draws"):
        assert word in text
    assert f"{LOG_EVIDENCE:.1f}" in text
    assert max(map(len, result.report(70).splitlines())) <= 71  # the hat of k̂ takes no room


def test_columns_line_up_whatever_the_width(result):
    full = format_table(result.frame).splitlines()
    widths = {sum(1 for c in line if c != "\u0302") for line in full}
    assert len(full) == 3
    assert len(widths) == 1, "the last column is right-aligned, so all lines end together"
    folded = format_table(result.frame, 60).splitlines()
    assert max(map(len, folded)) <= 61
    assert len(folded) > 3
    assert "".join(full).split() != []
    assert sorted(w for line in full for w in line.split() if w not in ("ELBO", "IWAE")) == sorted(
        w for line in folded for w in line.split() if w not in ("ELBO", "IWAE")
    )


def test_markdown_is_a_table(result):
    lines = to_markdown(result.frame).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| ELBO |")


@pytest.mark.long
def test_save_writes_everything(result, tmp_path):
    folder = result.save(tmp_path / "a" / "b")
    names = {p.name for p in folder.iterdir()}
    assert names == {"table.csv", "table.md", "losses.png", "weights.png", "posterior.png", "ELBO.nc", "IWAE.nc"}
    table = pd.read_csv(folder / "table.csv", index_col="estimator")
    np.testing.assert_allclose(table["log_evidence"], result.frame["log_evidence"])
    again = estimax.load(folder / "IWAE.nc", model)
    np.testing.assert_allclose(again.log_weights(10), result.results["IWAE"].log_weights(10), rtol=1e-5)
    assert az.from_netcdf(str(folder / "ELBO.nc"))["posterior"]["mu"].shape == (1, 1000)


@pytest.mark.long
def test_what_netcdf_cannot_hold_keeps_nothing_else_from_being_saved(result, tmp_path, monkeypatch):
    save = estimax.FitResult.save

    def refuse(self, path, **options):
        if isinstance(self.estimator, ELBO):
            raise TypeError("cannot save data that is neither array nor number")
        save(self, path, **options)

    monkeypatch.setattr(estimax.FitResult, "save", refuse)
    with pytest.raises(OSError, match=r"all but ELBO.nc \(cannot save data"):
        result.save(tmp_path)
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"table.csv", "table.md", "losses.png", "weights.png", "posterior.png", "IWAE.nc"}


def test_same_seed_same_table(result):
    again = estimax.compare(model, {"IWAE": IWAE()}, {"y": Y}, reference=exact_draws(), **OPTIONS)
    same = ["log_evidence", "elbo", "iw_bound", "khat", "ess", "mean_error", "psis_sd_error"]
    assert again.frame.loc["IWAE", same].tolist() == result.frame.loc["IWAE", same].tolist()


def test_an_arviz_reference_is_the_same_as_its_draws(result):
    chains = {k: v.reshape(4, 1000) for k, v in exact_draws().items()}
    container = az.from_dict({"posterior": chains}) if int(az.__version__[0]) else az.from_dict(posterior=chains)
    c = estimax.compare(model, {"ELBO": ELBO()}, {"y": Y}, reference=container, **OPTIONS)
    assert c.reference_name == "the ArviZ reference"
    assert c.frame.loc["ELBO", "mean_error"] == pytest.approx(result.frame.loc["ELBO", "mean_error"])


@pytest.mark.long
def test_nuts_as_reference_finds_the_posterior():
    c = estimax.compare(model, {"ELBO": ELBO()}, {"y": Y}, reference="nuts", **OPTIONS)
    draws = c.reference["mu"]
    assert draws.shape == (4000,)
    assert abs(draws.mean() - MEAN) < 6 * SD / np.sqrt(1000)  # at least 1,000 of the 4,000 are effective
    assert "divergences: 0" in c.reference_name
    assert c.frame.loc["ELBO", "mean_error"] < 0.3


def test_reference_that_does_not_fit_is_found_out_before_any_fit(monkeypatch):
    monkeypatch.setattr(module, "fit", lambda *_, **__: pytest.fail("a fit was begun"))
    for reference, message in [
        ("hmc", "nuts"),
        ({"nu": np.zeros(9)}, r"shares no site with the model \(sites mu, twice\)"),
        ({"mu": np.zeros((9, 2))}, r"'mu' has shape \(2,\), the model's has \(\)"),
        ({"mu": np.zeros(1)}, "at least 2 draws"),
        ({"mu": np.array([1.0, np.nan])}, "not finite"),
        (7, "got int"),
    ]:
        with pytest.raises(ValueError, match=message):
            estimax.compare(model, {"ELBO": ELBO()}, {"y": Y}, reference=reference, **OPTIONS)


@pytest.mark.long
def test_nuts_cannot_learn_a_models_own_parameters():
    def learning(y):
        numpyro.sample("y", dist.Normal(numpyro.param("m", 0.0) + numpyro.sample("z", dist.Normal()), 1.0), obs=y)

    with pytest.raises(ValueError, match="NUTS cannot learn m"):
        estimax.compare(learning, {"ELBO": ELBO()}, {"y": Y}, reference="nuts", **OPTIONS)
    c = estimax.compare(learning, {"ELBO": ELBO()}, {"y": Y}, **OPTIONS)
    assert c.learnt == ("m",)
    assert "own parameters (m)" in str(c)


def test_an_estimator_that_cannot_run_is_a_reason_not_a_crash():
    c = estimax.compare(
        model, {"Broken": Broken(), "Crashing": Crashing(), "ELBO": ELBO()}, {"y": Y}, **OPTIONS
    )  # fmt: skip
    assert list(c.frame.index) == ["ELBO"]
    assert c.errors == {"Broken": "the frobnicator is missing", "Crashing": "RuntimeError: boom"}
    assert "Broken: not run: the frobnicator is missing" in str(c)


def test_no_estimator_at_all_is_an_error():
    with pytest.raises(ValueError, match="no estimator could run: the frobnicator is missing"):
        estimax.compare(model, {"A": Broken(), "B": Broken()}, {"y": Y}, **OPTIONS)
    with pytest.raises(ValueError, match="dict of name -> estimator"):
        estimax.compare(model, {}, {"y": Y})
    with pytest.raises(TypeError, match=r"instance from estimax.estimators, as"):
        estimax.compare(model, {"ELBO": ELBO}, {"y": Y})
    with pytest.raises(ValueError, match=r"data\['y'\]\[2\] is nan"):
        estimax.compare(model, {"ELBO": ELBO()}, {"y": np.array([1.0, 2.0, np.nan])})


def test_an_estimator_without_posterior_has_a_row_all_the_same():
    c = estimax.compare(model, {"least squares": LeastSquares(), "ELBO": ELBO()}, {"y": Y}, **OPTIONS)
    assert not c.errors
    row = c.frame.loc["least squares"]
    assert np.isnan(row["log_evidence"])
    assert row["seconds"] > 0
    assert "–" in str(c)
    assert set(c.plot()) == {"losses", "weights", "posterior"}
    alone = estimax.compare(model, {"least squares": LeastSquares()}, {"y": Y}, **OPTIONS)
    assert "seconds" in str(alone)
    assert set(alone.plot()) == {"losses"}


def test_estimators_that_end_at_the_same_guide_are_named():
    c = estimax.compare(model, {"one": ELBO(), "other": ELBO(), "VIS": VIS()}, {"y": Y}, **OPTIONS)
    assert "the same fit to the last digit on this model: one, other" in str(c)


@pytest.mark.parametrize("when", ["fit", "measure"])
def test_interrupt_keeps_what_was_done(monkeypatch, when):
    real = getattr(module, "fit" if when == "fit" else "_measure")
    calls = []

    def interrupted_the_second_time(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "fit" if when == "fit" else "_measure", interrupted_the_second_time)
    c = estimax.compare(model, {"A": ELBO(), "B": ELBO(), "C": ELBO()}, {"y": Y}, **OPTIONS)
    assert c.interrupted
    assert list(c.results) == (["A"] if when == "fit" else ["A", "B"])
    assert list(c.frame.index) == list(c.results)
    assert "interrupted" in str(c)


def test_interrupt_before_the_first_fit_leaves_an_empty_comparison(monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "fit", interrupt)
    c = estimax.compare(model, {"A": ELBO()}, {"y": Y}, **OPTIONS)
    assert c.interrupted
    assert not c.results
    assert "no estimator was fitted" in str(c)


def test_iw_bound_against_the_definition():
    rng = np.random.default_rng(0)
    log_w = 3 * rng.normal(size=(103, 2)) - 1000
    expected = 0.0
    for column in log_w.T:
        groups = [np.log(np.mean(np.exp(column[8 * i : 8 * i + 8] + 1000))) - 1000 for i in range(12)]
        expected += np.mean(groups)
    assert iw_bound(log_w, 8) == pytest.approx(expected)
    assert iw_bound(log_w[:, 0], 1) == pytest.approx(log_w[:, 0].mean())
    assert iw_bound(log_w[:4, 0], 99) == pytest.approx(np.log(np.mean(np.exp(log_w[:4, 0] + 1000))) - 1000)
    assert iw_bound(np.array([-np.inf, 0.0]), 2) == pytest.approx(np.log(0.5))


def test_posterior_error_against_hand_computation():
    count = np.arange(100.0)
    reference = {"a": np.array([-1.0, 1.0] * 50), "b": np.stack([count, count], 1), "c": np.ones(3)}
    draws = {"a": 0.5 + 2 * reference["a"], "b": reference["b"] + np.array([0.0, 3.0]), "other": np.zeros(3)}
    mean_error, sd_error = posterior_error(draws, reference)
    assert mean_error == pytest.approx(0.5)  # of a, in sds of 1; that of b[1] is 3 / 28.9
    assert sd_error == pytest.approx(1.0)
    with pytest.raises(ValueError, match="shares no site"):
        posterior_error({"x": np.zeros(3)}, reference)
    with pytest.raises(ValueError, match="'a' has shape"):
        posterior_error({"a": np.zeros((3, 2))}, reference)
    wild = posterior_error({"a": np.array([1e300, -1e300, np.inf])}, reference)
    assert not np.isfinite(wild[0])


@pytest.mark.long
def test_point_estimates_stand_side_by_side():
    """Score matching beside maximum likelihood of a normal: closed forms, and what is printed of them."""
    x = np.random.default_rng(0).normal(1.0, 2.0, 100)

    def normal(x):
        mu = numpyro.param("mu", 0.0)
        sd = numpyro.param("sd", 1.0, constraint=dist.constraints.positive)
        with numpyro.plate("data", len(x)):
            numpyro.sample("x", dist.Normal(mu, sd), obs=x)

    options = {"ml": MLE(), "sm": ScoreMatching(), "elbo": ELBO()}
    found = estimax.compare(normal, options, {"x": x}, progress_bar=False, num_steps=20).estimates()
    assert list(found.columns.get_level_values(0).unique()) == ["ml", "sm"]
    for name in ("ml", "sm"):
        np.testing.assert_allclose(found[name, "estimate"], [x.mean(), x.std()], rtol=1e-6)
        np.testing.assert_allclose(found.loc["mu", (name, "std_err")], x.std() / 10, rtol=1e-4)
    text = estimates_text(found)
    assert f"{x.mean():.4g} ± {x.std() / 10:.2g}" in text.splitlines()[1]
    assert estimates_text(found[["ml"]]) == ""
