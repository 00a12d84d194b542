"""The step loop: compiled once, nothing lost when a step goes bad or the user interrupts."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax import random
from numpyro.infer.autoguide import AutoNormal

from estimax import fit, models
from estimax.estimators import ELBO, IWAE
from estimax.inference import engine


def model(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)


def guide(y):
    numpyro.sample("mu", dist.Normal(numpyro.param("m", 0.0), 0.5))


Y = np.array([2.0, 1.0, 3.0])


def quick(**options):
    return fit(model, ELBO(16), {"y": Y}, **{"guide": guide, "progress_bar": False, "num_steps": 50, **options})


class compilations:
    """Counts what XLA compiles inside the block, by JAX's own monitoring events."""

    def __enter__(self):
        self.count, self.listening = 0, True

        def heard(event, duration, **_):
            if self.listening and event == "/jax/core/compile/backend_compile_duration":
                self.count += 1

        jax.monitoring.register_event_duration_secs_listener(heard)
        return self

    def __exit__(self, *_):
        self.listening = False  # listeners have no public way out


def test_the_counter_counts():
    with compilations() as made:
        jax.jit(lambda x: x * 3.25 + 1)(jnp.ones(7))
    assert made.count > 0


@pytest.mark.parametrize(
    "name", ["default", "function", *(pytest.param(n, marks=pytest.mark.long) for n in ("class", "with a param"))]
)
def test_second_fit_with_other_data_compiles_nothing(name):
    entry = models.linear_gaussian_theta
    fitted, key, data = {
        "default": ({"guide": None}, "y", {"y": Y}),
        "function": ({"guide": guide}, "y", {"y": Y}),
        "class": ({"guide": AutoNormal}, "y", {"y": Y}),
        "with a param": ({"guide": entry.guide, "model": entry.model}, "x", entry.data()),
    }[name]
    fitted = {"model": model, "progress_bar": False, "num_steps": 50, **fitted}

    def run(shift, seed):
        # a new instance: equal estimators are one
        return fit(estimator=ELBO(4), data={**data, key: data[key] + shift}, seed=seed, **fitted)

    first = run(0.0, 0)
    with compilations() as made:
        second = run(1.0, 1)
        again = run(0.0, 0)
    assert made.count == 0
    np.testing.assert_array_equal(first.losses, again.losses)
    assert not np.array_equal(first.losses, second.losses)


@pytest.mark.long
@pytest.mark.parametrize("guide", [None, AutoNormal])
def test_support_that_depends_on_data_is_not_stale(guide):
    """The likelihood of the width w of uniform data is w^-n for w beyond the largest: other data, other bound."""

    def width(y):
        w = numpyro.sample("w", dist.Uniform(jnp.max(y), 10.0))
        numpyro.sample("y", dist.Uniform(0.0, w).expand([3]).to_event(1), obs=y)

    for scale in (1.0, 2.5):
        y = scale * np.array([1.0, 0.5, 0.2])
        result = fit(width, ELBO(16), {"y": y}, guide=guide, progress_bar=False)
        w = np.asarray(result.sample(4000, resample="psis")["w"])
        assert w.min() >= scale
        assert w.max() <= 10
        exact = (1 / scale - 1 / 10) / ((1 / scale**2 - 1 / 100) / 2)
        assert w.mean() == pytest.approx(exact, rel=0.05)


def test_losses_are_those_of_single_steps():
    """`run`'s chunks are `update` by `update`."""
    result = quick(num_steps=20)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.01, 20))
    state = engine.init(result.problem, optimizer, result.problem.params, random.split(random.key(0))[1])
    losses = []
    step = jax.jit(lambda s: engine.update(result.problem, optimizer, s))
    for _ in range(20):
        state, loss, _ = step(state)
        losses.append(float(loss))
    np.testing.assert_allclose(result.losses, losses, rtol=1e-5)
    np.testing.assert_allclose(result.params["m"], state.params["m"], rtol=1e-5)


def test_more_steps_than_the_buffer_holds():
    result = quick(num_steps=2 * engine.BUFFER + 3)
    assert result.losses.shape == (2 * engine.BUFFER + 3,)
    assert np.isfinite(result.losses).all()


def cliff(y):
    """No density from mu = 0.6 on."""
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(jnp.where(mu > 0.6, jnp.nan, mu), 1), obs=y)


def narrow(y):
    numpyro.sample("mu", dist.Normal(numpyro.param("m", 0.0), 0.01))


def test_loss_that_stops_being_finite_keeps_the_last_finite_parameters():
    with pytest.warns(RuntimeWarning, match=r"stopped being finite at step \d+.*site 'y'.*learning_rate") as caught:
        result = fit(cliff, ELBO(4, gradient="reparam"), {"y": 5.0}, guide=narrow, num_steps=1000, progress_bar=False)
    assert result.status == "non-finite"
    step = int(np.argmax(~np.isfinite(result.losses)))
    assert f"step {step}:" in str(caught[0].message)
    assert result.message == str(caught[0].message)
    assert result.num_steps == len(result.losses) == step + 1
    assert np.isfinite(result.losses[:-1]).all()
    assert np.isfinite(result.params["m"])
    # Adam moves by its rate at first: the parameters are those before the bad step, not those of the start
    assert 0.4 < result.params["m"] < 0.6
    assert "cut short" in str(result.diagnose(100))


def test_step_that_is_far_too_large():
    with pytest.warns(RuntimeWarning, match="stopped being finite at step"):
        result = quick(optimizer="sgd", learning_rate=1e20)
    assert result.status == "non-finite"
    assert np.isfinite(result.params["m"])


def test_not_finite_before_the_first_step_names_the_site():
    def nowhere(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        numpyro.sample("fine", dist.Normal(mu, 1), obs=0.0)
        numpyro.sample("y", dist.Normal(mu * jnp.nan, 1), obs=y)

    with pytest.raises(FloatingPointError, match=r"before the first step.*model's site 'y' is nan.*start="):
        fit(nowhere, ELBO(4), {"y": 1.0}, guide=narrow, progress_bar=False)


def test_data_outside_the_support_is_named():
    def positive(y):
        s = numpyro.sample("s", dist.LogNormal(0, 1))
        numpyro.sample("y", dist.Gamma(s, 1.0), obs=y)

    def positive_guide(y):
        numpyro.sample("s", dist.LogNormal(numpyro.param("m", 0.0), 0.5))

    with pytest.raises(FloatingPointError, match="site 'y' is (nan|-inf).*support"):
        fit(positive, ELBO(4), {"y": np.array([1.0, -1.0])}, guide=positive_guide, progress_bar=False)


@pytest.mark.parametrize("num_restarts", [1, 3])
def test_all_restarts_bad_still_leaves_finite_parameters(num_restarts):
    with pytest.warns(RuntimeWarning, match="stopped being finite"):
        result = fit(
            cliff, ELBO(4, gradient="reparam"), {"y": 5.0}, guide=narrow, num_steps=1000, num_restarts=num_restarts,
            progress_bar=False,
        )  # fmt: skip
    assert result.status == "non-finite"
    assert np.isfinite(result.params["m"])


@pytest.mark.parametrize("num_restarts", [1, 3])
def test_interrupt_keeps_what_was_done(num_restarts):
    def stop(done, loss):
        assert np.isfinite(loss)
        if done > 100:
            raise KeyboardInterrupt

    result = quick(num_steps=100_000, on_progress=stop, num_restarts=num_restarts)
    assert result.status == "interrupted"
    assert result.message == f"interrupted after {result.num_steps} of 100000 steps"
    assert 100 < result.num_steps == len(result.losses) < 100_000
    assert np.isfinite(result.params["m"])
    assert result.params["m"] != 0
    assert "interrupted" in str(result.diagnose(100))
    more = result.resume(10, progress_bar=False)
    assert more.status == "finished"
    assert len(more.losses) == result.num_steps + 10


@pytest.mark.parametrize("num_restarts", [1, 3])
def test_interrupt_before_the_first_step(monkeypatch, num_restarts):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "_call", interrupted)
    result = quick(num_restarts=num_restarts)
    assert result.status == "interrupted"
    assert result.num_steps == 0
    assert result.losses.shape == (0,)
    assert "none" in repr(result)


def test_progress_is_told_and_drawn(capsys):
    told = []
    quick(num_steps=200, progress_bar=True, on_progress=lambda done, loss: told.append((done, loss)))
    done = [d for d, _ in told]
    assert done == sorted(done)
    assert done[-1] == 200
    error = capsys.readouterr().err
    assert "ELBO" in error
    assert "200/200" in error
    quick(num_steps=20, progress_bar=False)
    assert capsys.readouterr().err == ""


def test_metrics_of_every_step():
    result = fit(model, IWAE(8), {"y": Y}, guide=guide, num_steps=30, progress_bar=False)
    assert result.metrics["ess"].shape == (30,)
    assert ((result.metrics["ess"] > 1 / 8 - 1e-6) & (result.metrics["ess"] <= 1 + 1e-6)).all()
    assert result.steps_per_second > 0
