"""Truths of the bench's own models against quadrature, scipy and published numbers; measures against closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from numpyro.infer.util import log_density
from scipy import integrate, stats

from estimax.inference.bench import conjugate, measures, sampling, suites, tight_bounds, vis_paper
from estimax.inference.bench.cases import Truth
from estimax.inference.bench.measures import Yardstick, sliced_wasserstein
from estimax.inference.bench.runner import table_of
from estimax.inference.files import BadInput

CONJUGATE = {case.name: case for case in conjugate.cases()}
SAMPLING = {case.name: case for case in sampling.cases()}


# --- truths


def by_quadrature(log_joint, low, high):
    """Log evidence, mean and sd of a density on a stretch of the line."""
    moments = [integrate.quad(lambda t, k=k: t**k * math.exp(log_joint(t)), low, high, epsabs=0)[0] for k in range(3)]
    mean = moments[1] / moments[0]
    return math.log(moments[0]), mean, math.sqrt(moments[2] / moments[0] - mean**2)


@pytest.mark.parametrize(
    ("name", "site", "log_joint", "high"),
    [
        (
            "beta_binomial", "p",
            lambda p, d: stats.beta(2, 3).logpdf(p) + stats.binom(d["totals"], p).logpmf(d["counts"]).sum(), 1.0,
        ),
        (
            "gamma_poisson", "rate",
            lambda r, d: stats.gamma(2.0).logpdf(r) + stats.poisson(r).logpmf(d["y"]).sum(), 30.0,
        ),
    ],
)  # fmt: skip
def test_one_dimensional_closed_forms(name, site, log_joint, high):
    truth, data = CONJUGATE[name].truth(), CONJUGATE[name].data()
    evidence, mean, sd = by_quadrature(lambda t: log_joint(t, data), 1e-9, high * (1 - 1e-9))
    assert truth.log_evidence == pytest.approx(evidence, abs=1e-6)
    assert truth.moments[site][0] == pytest.approx(mean, abs=1e-6)
    assert truth.moments[site][1] == pytest.approx(sd, abs=1e-6)


def test_normal_gamma_closed_form():
    truth, y = CONJUGATE["normal_gamma"].truth(), CONJUGATE["normal_gamma"].data()["y"]

    def given_tau(tau):
        """log p(tau) + log p(y | tau): given tau, y is Gaussian with covariance (I + 11' / 0.5) / tau."""
        covariance = (np.eye(len(y)) + np.ones((len(y), len(y))) / 0.5) / tau
        marginal = stats.multivariate_normal(np.full(len(y), 1.0), covariance).logpdf(y)
        return stats.gamma(3.0, scale=0.5).logpdf(tau) + marginal

    evidence, mean, sd = by_quadrature(given_tau, 1e-6, 5.0)
    assert truth.log_evidence == pytest.approx(evidence, abs=1e-5)
    assert truth.moments["tau"][0] == pytest.approx(mean, abs=1e-5)
    assert truth.moments["tau"][1] == pytest.approx(sd, abs=1e-5)
    # var mu = E[1 / (strength tau)] = rate / (strength (shape − 1)) for tau ~ Gamma(shape, rate)
    strength, shape = 0.5 + len(y), 3.0 + len(y) / 2
    rate = shape / float(truth.moments["tau"][0])
    assert float(truth.moments["mu"][1]) ** 2 == pytest.approx(rate / (strength * (shape - 1)), rel=1e-6)
    assert float(truth.moments["mu"][0]) == pytest.approx((0.5 * 1.0 + y.sum()) / strength)


def test_dirichlet_multinomial_closed_form():
    case = CONJUGATE["dirichlet_multinomial"]
    counts = case.data()["counts"]
    expected = stats.dirichlet_multinomial([2.0, 1.0, 3.0, 1.5], counts.sum()).logpmf(counts)
    assert case.truth().log_evidence == pytest.approx(expected, abs=1e-9)
    mean = (np.array([2.0, 1.0, 3.0, 1.5]) + counts) / (7.5 + counts.sum())
    np.testing.assert_allclose(case.truth().moments["p"][0], mean)


def density(case):
    return jax.jit(jax.vmap(lambda x: log_density(case.model, (), {}, {"x": x})[0]))


@pytest.mark.parametrize("name", ["gmm9", "gmm40", "banana"])
def test_two_dimensional_densities_integrate_to_one(name):
    bounds = {"gmm9": (-9, 9, -9, 9), "gmm40": (-48, 48, -48, 48), "banana": (-60, 60, -110, 12)}[name]
    a, b = np.linspace(*bounds[:2], 301), np.linspace(*bounds[2:], 501)
    grid = np.stack(np.meshgrid(a, b, indexing="ij"), -1).reshape(-1, 2)
    p = np.exp(np.asarray(density(SAMPLING[name])(jnp.asarray(grid)), np.float64))
    cell = (a[1] - a[0]) * (b[1] - b[0])
    assert p.sum() * cell == pytest.approx(1.0, abs=2e-4)
    assert SAMPLING[name].truth().log_evidence == 0.0
    mean, sd = SAMPLING[name].truth().moments["x"]
    np.testing.assert_allclose(p @ grid * cell, mean, atol=1e-3 * sd.max())
    np.testing.assert_allclose(np.sqrt(p @ (grid - mean) ** 2 * cell), sd, rtol=2e-3)


def test_the_funnel_is_a_product_of_normals():
    x = SAMPLING["funnel"].truth().draws["x"][:50]
    expected = stats.norm(0, 3).logpdf(x[:, 0]) + stats.norm(0, np.exp(x[:, :1] / 2)).logpdf(x[:, 1:]).sum(1)
    np.testing.assert_allclose(density(SAMPLING["funnel"])(jnp.asarray(x)), expected, rtol=2e-4, atol=1e-3)
    assert SAMPLING["funnel"].truth().moments["x"][1][1] == pytest.approx(math.exp(4.5) ** 0.5)


def test_many_well_has_the_published_constant():
    """log Z of the 32-dimensional many-well in "Flow Annealed Importance Sampling Bootstrap" and its successors."""
    assert SAMPLING["many_well"].truth().log_evidence == pytest.approx(164.695675, abs=1e-5)
    x = np.linspace(-2, 2, 32)
    expected = sum(-(a**4) + 6 * a**2 + 0.5 * a - 0.5 * b**2 for a, b in zip(x[::2], x[1::2], strict=True))
    assert float(density(SAMPLING["many_well"])(jnp.asarray(x[None]))[0]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("case", [*CONJUGATE.values(), *SAMPLING.values()], ids=lambda case: case.name)
def test_reference_draws_have_the_exact_moments(case):
    truth = case.truth()
    for name, (mean, sd) in truth.moments.items():
        draws = np.asarray(truth.draws[name], np.float64)
        error = np.abs(draws.mean(0) - mean) / sd
        bound = 0.12 if case.name == "eight_schools" else 4.5 / math.sqrt(len(draws))  # ArviZ's draws are of a chain
        if case.name == "funnel":  # its other coordinates have a fourth moment of e^18: 10,000 draws say nothing
            error = error[:1]
        assert np.max(error) < bound, (name, error)


# --- suites


def test_unknown_suites_and_models_suggest_the_nearest(tmp_path, monkeypatch):
    with pytest.raises(BadInput, match=r"no suite 'conjugat'; did you mean 'conjugate'\?"):
        suites.load("conjugat")
    with pytest.raises(BadInput, match=r"no model 'funel'; did you mean 'funnel'\?"):
        suites.restrict(suites.load("sampling"), ["funel"])
    monkeypatch.delenv("POSTERIORDB", raising=False)
    with pytest.raises(BadInput, match="git clone"):
        suites.load("posteriordb")
    with pytest.raises(BadInput, match="is not a folder.*git clone"):
        suites.load("posteriordb", tmp_path / "nowhere")


def test_quick_parts_exist():
    for name in suites.names():
        if name == "posteriordb":
            continue
        suite = suites.load(name)
        assert set(suite.quick[0]) <= {case.name for case in suite.cases}
        assert suites.restrict(suite, suite.quick[0]).cases


# --- measures


def test_errors_of_shifted_and_stretched_draws():
    """Quantiles of a normal, shifted by half a reference sd and stretched by 1.2: errors 0.5 and 20 %."""
    z = stats.norm.ppf((np.arange(4000) + 0.5) / 4000)
    truth = Yardstick(Truth(moments={"a": (np.array([1.0, 2.0]), np.array([2.0, 4.0])), "b": (np.array(0.0), 1.0)}))
    draws = {"a": np.stack([1.0 + 2 * z, 2.0 + 4 * (0.5 + 1.2 * z)], 1), "b": z, "unasked": z}
    errors = truth.errors(draws)
    assert errors["mean_error"] == pytest.approx(0.5, abs=1e-6)
    assert errors["mean_error_average"] == pytest.approx(0.5 / 3, abs=1e-6)
    assert errors["sd_error"] == pytest.approx(0.2, abs=2e-3)
    with pytest.raises(ValueError, match="no draws of the site 'b'"):
        truth.errors({"a": draws["a"]})
    with pytest.raises(ValueError, match=r"'b' has shape \(2,\), the truth's \(\)"):
        truth.errors({"a": draws["a"], "b": draws["a"]})


def test_what_does_not_vary_is_no_scalar():
    rng = np.random.default_rng(0)
    truth = Yardstick(Truth({"x": np.stack([rng.normal(size=500), np.ones(500)], 1)}))
    assert truth.means.shape == (1,)
    assert not Yardstick(Truth(log_evidence=1.0))


def test_sliced_wasserstein_of_a_shift():
    """In one dimension the shift; in two, its length times E|cos| = 2 / π of a random direction."""
    z = np.random.default_rng(0).normal(size=(3000, 2))
    levels = (np.arange(1000) + 0.5) / 1000
    np.testing.assert_allclose(measures._quantiles(z), np.quantile(z, levels, axis=0), atol=1e-12)
    assert sliced_wasserstein(z[:, :1], z[:1500, :1]) < 0.1
    assert sliced_wasserstein(z[:, :1], z[:, :1] + 0.7) == pytest.approx(0.7, rel=1e-6)
    shifted = sliced_wasserstein(z, z + np.array([3.0, 0.0]), num_directions=4000)
    assert shifted == pytest.approx(3.0 * 2 / math.pi, rel=4 * 0.31 / (2 / math.pi) / math.sqrt(4000))


def runs(*rows):
    frame = pd.DataFrame(rows, columns=["case", "column", "seed", "status", "mean_error", "sd_error", "verdict"])
    return frame


RUNS = runs(
    ("m1", "A", 0, "finished", 0.04, 0.05, "good"),
    ("m1", "A", 1, "finished", 0.30, 0.05, "ok"),
    ("m1", "B", 0, "finished", 0.03, 0.05, "do not use"),
    ("m1", "B", 1, "failed", np.nan, np.nan, None),
    ("m2", "A", 0, "finished", 0.05, 0.02, "good"),
    ("m2", "A", 1, "finished", 0.07, 0.02, "do not use"),
    ("m2", "B", 0, "finished", 0.02, 0.30, "good"),
    ("m2", "B", 1, "finished", 0.02, 0.30, "good"),
)


def test_honesty_counts_broken_promises_and_needless_refusals():
    table = measures.honesty(RUNS)
    assert table.loc["A"].tolist() == [4, 3, 1, 1, 0]
    assert table.loc["B"].tolist() == [3, 2, 0, 1, 1]


def test_a_failed_seed_is_an_infinite_error():
    table = measures.averages(RUNS, ["mean_error", "sd_error"])
    assert table.loc[("m1", "A"), "mean_error"] == pytest.approx(0.17)
    assert table.loc[("m1", "B"), "mean_error"] == np.inf
    counts = measures.near_counts(table)
    assert counts.loc["A"].tolist() == [1, 2, 1, 2]
    assert counts.loc["B"].tolist() == [1, 0, 0, 2]
    best = measures.best_of(table, ["A", "B"])
    assert best["column"].tolist() == ["A", "A"]  # on m2, B's mean is better but its sd is not near
    assert best["near"].tolist() == [False, True]
    assert measures.ranks(table).to_numpy().tolist() == [[1, 2], [2, 1]]


def test_critical_differences_of_the_paper():
    """q at 0.05 in table 5(a) of Demšar (2006), for 2 to 10 classifiers."""
    for columns, q in ((2, 1.960), (3, 2.343), (5, 2.728), (10, 3.164)):
        expected = q * math.sqrt(columns * (columns + 1) / (6 * 14))
        assert measures.critical_difference(columns, 14) == pytest.approx(expected, rel=1e-3)


def test_seconds_to_near_is_the_first_time_below():
    assert measures.seconds_to_near([(1.0, 0.5), (2.0, 0.09), (3.0, 0.2), (4.0, 0.01)]) == 2.0
    assert measures.seconds_to_near([(1.0, None), (2.0, 0.11)]) is None


def test_slopes_of_exact_powers():
    counts = [4, 16, 64]
    frame = pd.DataFrame(
        [{"column": "X", "particles": k, "snr_phi": 3 * k**-0.5, "snr_theta": 2 * k**0.5} for k in counts]
    )
    assert tight_bounds.slopes(frame)["X", "snr_phi"] == pytest.approx(-0.5)
    assert tight_bounds.slopes(frame)["X", "snr_theta"] == pytest.approx(0.5)


def test_the_paper_s_figure_has_a_panel_a_measure():
    """Marks where the runs are, one line a method at their mean; a failed run and a missing model leave no mark."""
    measure = [m for _, m, _, _ in vis_paper.PANELS]
    rows = [
        ("mixture", c, s, *(-v - s, -4.0, -60.0 * v), *[np.nan] * 3)
        for c, v in (("A", 0.5), ("B", 3.0))
        for s in (0, 1)
    ]
    rows.append(("mixture", "B", 2, *[np.nan] * 6))
    drawn = vis_paper.figure(pd.DataFrame(rows, columns=["case", "column", "seed", *measure]))
    first, second, third = drawn.axes
    assert [line.get_ydata().tolist() for line in first.lines if line.get_marker() == "o"] == [
        [-0.5, -1.5],
        [-3.0, -4.0],
    ]
    assert [c.get_segments()[0][0][1] for c in first.collections] == [-1.0, -3.5]
    assert [t.get_text() for t in second.get_xticklabels()] == ["A", "B"]
    assert (second.get_yscale(), third.get_yscale()) == ("linear", "symlog")


def test_table_counts_as_people_do():
    names = ["K=1024", "K=4", "two_moons", "K=16", "9 wells", "banana"]
    rows = [{"case": n, "column": c, "seed": 0, "status": "finished"} for n in names for c in ("VIS", "default")]
    frame = table_of(rows, {"columns": {"default": "", "VIS": ""}})
    assert list(frame["case"].unique()) == ["9 wells", "K=4", "K=16", "K=1024", "banana", "two_moons"]
    assert list(frame["column"][:2]) == ["default", "VIS"]
