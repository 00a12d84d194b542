"""Pictures: what they show, and that odd fits do not break them."""

import io

import numpy as np
import pytest

from estimax.inference import plots


def render(figure):
    """Draw in earnest; returns the size in pixels."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=40)
    assert buffer.getvalue().startswith(b"\x89PNG")
    return figure.canvas.get_width_height()


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# --- losses


def test_running_mean_is_the_mean_of_the_window():
    curve = np.arange(40.0) ** 2
    smooth = plots.running_mean(curve, 5)
    np.testing.assert_allclose(smooth[2:-2], np.convolve(curve, np.ones(5) / 5, "valid"))
    assert smooth[0] == curve[:3].mean()
    np.testing.assert_allclose(plots.running_mean(curve, 1), curve)
    curve[20] = np.nan
    assert np.isfinite(plots.running_mean(curve, 5)).all()
    assert np.isnan(plots.running_mean(np.full(3, np.nan))).all()


def test_a_spike_does_not_hide_the_rest(rng):
    curve = 30 + rng.normal(size=1000)
    curve[:20] += 1e6
    curve[500] = 1e8
    low, high = plots.loss_limits([curve], level=29.5)
    assert 25 < low < 29.5
    assert 31 < high < 60


def test_limits_of_odd_curves():
    assert plots.loss_limits([np.full(10, np.nan)]) is None
    low, high = plots.loss_limits([np.full(10, 3.0)])
    assert low < 3 < high
    low, high = plots.loss_limits([np.array([7.0])], level=1e9)
    assert low < 7 < high < 1e6


def test_losses_share_an_axis_only_where_that_shows_something(rng):
    alike = plots.losses({"a": rng.normal(size=200), "b": rng.normal(size=200) + 1}, level=0.0)
    assert alike.axes[0].get_ylim() == alike.axes[1].get_ylim()
    apart = plots.losses({"a": rng.normal(size=200), "b": 1e5 + rng.normal(size=200)})
    assert apart.axes[0].get_ylim() != apart.axes[1].get_ylim()
    assert "own scale" in apart.get_suptitle()
    render(alike)
    render(apart)


def test_losses_that_went_bad_say_where(rng):
    curve = rng.normal(size=100)
    curve[60:] = np.nan
    figure = plots.losses({"bad": curve, "one step": np.array([2.0]), "never": np.full(5, np.nan)})
    render(figure)
    assert any("step 60" in t.get_text() for t in figure.axes[0].texts)


# --- weights


def test_weights_show_the_exceedance_of_relative_weights(rng):
    log_w = rng.normal(size=500)
    figure = plots.weights({"a": log_w, "b": log_w + 5})
    axes = figure.axes[0]
    x, y = axes.lines[0].get_data()
    relative = np.exp(log_w) / np.exp(log_w).mean()
    for xi, yi in list(zip(x, y, strict=True))[::50]:
        assert yi == pytest.approx(np.mean(relative >= xi * (1 - 1e-9)))
    np.testing.assert_allclose(axes.lines[2].get_xdata(), x, rtol=1e-9)  # a constant factor changes nothing
    labels = [t.get_text() for t in figure.legends[0].get_texts()]
    assert labels[0].startswith("a: k̂")
    assert "0.7" in labels[-1]


def test_the_legend_covers_no_data(rng):
    figure = plots.weights({name: rng.normal(size=100) for name in "abcdefgh"})
    render(figure)
    assert figure.legends[0].get_window_extent().x0 >= figure.axes[0].get_window_extent().x1


@pytest.mark.filterwarnings("ignore:invalid value")
def test_weights_of_odd_fits(rng):
    render(
        plots.weights(
            {
                "equal": np.zeros(100),
                "none": np.full(100, -np.inf),
                "some": np.where(rng.random(100) < 0.5, -np.inf, rng.normal(size=100)),
                "wild": 300 * rng.normal(size=100),
            }
        )
    )


def test_of_local_latents_the_worst_datum_is_shown(rng):
    log_w = rng.normal(size=(1000, 3)) * np.array([0.1, 4.0, 0.1])
    figure = plots.weights({"a": log_w})
    x = figure.axes[0].lines[0].get_xdata()
    worst = np.exp(log_w[:, 1])
    assert x[-1] == pytest.approx(worst.max() / worst.mean())
    assert "worst" in figure.axes[0].get_title()


# --- posterior


def test_posterior_shows_quantiles_over_the_reference(rng):
    draws = {"A": {"m": rng.normal(size=1000)}, "B": {"m": rng.normal(size=1000) + 1}}
    truth = {"m": rng.normal(size=1000)}
    figure = plots.posterior(draws, truth, "the truth")
    (axes,) = figure.axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["A", "B"]
    intervals = [line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 2 and line.get_linewidth() == 3.6]
    np.testing.assert_allclose(intervals[1], np.quantile(draws["B"]["m"], [0.25, 0.75]))
    assert "the truth" in figure.get_suptitle()
    render(figure)


def test_posterior_names_what_it_leaves_out(rng):
    draws = {"A": {"m": rng.normal(size=50), "z": rng.normal(size=(50, 40)), "w": rng.normal(size=(50, 3, 5))}}
    figure = plots.posterior(draws)
    titles = [a.get_title() for a in figure.axes if a.get_title()]
    assert len(titles) == plots.MAX_SCALARS
    assert {"m", "w[0, 0]", "z[0]"} <= set(titles)
    assert "elements of z" in figure.get_suptitle()
    render(figure)
    many = plots.posterior({"A": {f"s{i}": np.zeros(9) for i in range(40)}})
    assert len([a for a in many.axes if a.get_title()]) == plots.MAX_SCALARS
    assert "more sites" in many.get_suptitle()
    assert plots.posterior({"A": {}}) is None


def test_sites_of_the_reference_come_first(rng):
    draws = {"A": {"z": rng.normal(size=(50, 90)), "m": rng.normal(size=(50, 20))}}
    figure = plots.posterior(draws, {"m": rng.normal(size=(50, 20))})
    titles = [a.get_title() for a in figure.axes if a.get_title()]
    assert sum(t.startswith("m") for t in titles) == 20


def test_an_interval_far_too_wide_is_cut_with_an_arrow(rng):
    truth = {"m": rng.normal(size=1000)}
    figure = plots.posterior({"A": {"m": rng.normal(size=100)}, "B": {"m": 1e6 * rng.normal(size=100)}}, truth)
    low, high = figure.axes[0].get_xlim()
    assert high - low < 20
    assert {line.get_marker() for line in figure.axes[0].lines} >= {"<", ">"}
    render(figure)


def test_posterior_of_odd_draws():
    draws = {"nan": np.full(10, np.nan), "inf": np.array([1.0, np.inf]), "int": np.arange(9), "same": np.ones(4)}
    render(plots.posterior({"A": draws}, {"same": np.ones(4)}))


def test_pictures_do_not_touch_pyplot(rng):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    plots.weights({"a": rng.normal(size=50)})
    plots.losses({"a": rng.normal(size=50)})
    assert plt.get_fignums() == before
