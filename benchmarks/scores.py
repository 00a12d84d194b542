"""Diffusions and flows: how near to the truth, at what cost.

`python benchmarks/scores.py [SECTION ...]` runs all or the named sections, and writes or updates one result file.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flowjax.distributions
import flowjax.flows
import flowjax.train
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
from common import QUICK, least, paired, run_sections, seconds
from jax import random
from numpyro.contrib.module import eqx_module
from numpyro.distributions import Categorical, MixtureSameFamily, Normal

import estimax
from estimax import estimators
from estimax.inference import engine
from estimax.inference.bench.density import flow as coupling_flow
from estimax.models import diffusion_2d as plane
from estimax.models import score_digits, toys_2d
from estimax.models.diffusion import Diffusion
from estimax.models.flows import FlowDensity
from estimax.models.networks import LinearFlow, TimeMLP
from estimax.models.noise_process import VE, VP
from estimax.models.transport import Flow, observed

STEPS = 0.01 if QUICK else 1.0
"""Share of the steps of every fit."""


def fit(model: Callable, estimator: Any, data: dict[str, Any], num_steps: int, rate: float, start: Any = None) -> Any:
    options = {"num_steps": max(20, int(STEPS * num_steps)), "learning_rate": rate, "progress_bar": False}
    return estimax.fit(model, estimator, data, start=start, **options)


def fit_annealed(model: Callable, data: dict[str, Any], num_steps: int, learning_rate: float) -> Any:
    """A flow by the score of ever less noise, at one step size while it falls: a small one follows too slowly."""
    num_steps = max(20, int(STEPS * num_steps))
    falling = 4 * num_steps // 5
    end = optax.cosine_decay_schedule(learning_rate, num_steps - falling)
    schedule = optax.join_schedules([optax.constant_schedule(learning_rate), end], [falling])
    estimator = estimators.EBFlow("denoising", sigma=(1.0, 0.1), num_directions=4, anneal_steps=falling)
    return estimax.fit(model, estimator, data, num_steps=num_steps, optimizer=optax.adam(schedule), progress_bar=False)


def mmd(x: np.ndarray, y: np.ndarray, num_permutations: int = 300) -> dict[str, float]:
    """Squared maximum mean discrepancy (normal kernel of the median distance, unbiased) and its permutation p-value."""
    z = np.concatenate([x, y])
    square = np.square(z).sum(1)
    square = square[:, None] + square - 2 * z @ z.T
    kernel = np.exp(-square / np.median(square))
    np.fill_diagonal(kernel, 0)
    rng, n = np.random.default_rng(0), len(x)
    sign = np.where(np.arange(len(z)) < n, 1.0, -1.0)
    signs = np.stack([sign] + [rng.permutation(sign) for _ in range(num_permutations)], 1)
    values = np.sum(signs * (kernel @ signs), 0)
    return {"mmd2": float(values[0] / (n * (n - 1))), "p_value": float((values >= values[0]).mean())}


def noisy(x: np.ndarray, t: float, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=x.shape).astype(np.float32)
    return np.asarray(plane.PROCESS.alpha(t) * x + plane.PROCESS.sigma(t) * noise)


def fit_plane() -> Any:
    return fit(plane.model, estimators.DenoisingScoreMatching(), plane.data(), plane.MODEL.num_steps, 0.003)


def fitted_plane() -> Any:
    """The fitted distribution of the mixture in the plane."""
    return observed(plane.model, fit_plane().params, plane.data())


def diffusion() -> dict[str, Any]:
    """Learned against exact score, density and draws of the mixture in the plane; cost of the samplers."""
    result = fit_plane()
    fitted = observed(plane.model, result.params, plane.data())
    x, exact = plane.held_out()["x"], plane.draw(2000, seed=5)
    gap = np.asarray(fitted.log_prob(x) - plane.log_density(x))
    out: dict[str, Any] = {
        "fit_seconds": result.seconds, "steps_per_second": result.steps_per_second,
        "mean_log_likelihood_minus_truth": gap.mean(), "its_standard_error": gap.std() / np.sqrt(len(gap)),
        "mean_absolute_log_density_error": np.abs(gap).mean(), "score_error": {}, "sde": {}, "ode": {},
    }  # fmt: skip
    for t in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.6, 1.0):
        at = noisy(x, t)
        truth = np.asarray(plane.score(at, t))
        error = np.asarray(fitted.score(at, t)) - truth
        out["score_error"][t] = {
            "sigma": float(plane.PROCESS.sigma(t)), "rms_error": float(np.sqrt(np.mean(error**2))),
            "rms_score": float(np.sqrt(np.mean(truth**2))),
        }  # fmt: skip
    key = random.key(1)
    out["exact_draws"] = mmd(plane.draw(2000, seed=6), exact)
    for num_steps in (25, 50, 100, 250, 500):
        sampler = Diffusion(fitted.network, plane.PROCESS, 2, predicts="score", num_steps=num_steps)
        draw = eqx.filter_jit(lambda key, sampler=sampler: sampler.sample(key, (2000,)))
        draws = np.asarray(draw(key))
        out["sde"][num_steps] = {**mmd(draws, exact), "seconds": seconds(lambda d=draw: d(key).block_until_ready())}
    for tolerance in (1e-2, 1e-3, 1e-4, 1e-5):
        sampler = Diffusion(fitted.network, plane.PROCESS, 2, predicts="score", rtol=tolerance, atol=tolerance)
        draw = eqx.filter_jit(lambda key, sampler=sampler: sampler.sample_ode(key, (2000,)))
        density = eqx.filter_jit(lambda x, sampler=sampler: sampler.log_prob(x))
        value = np.asarray(density(x))
        draws = np.asarray(draw(key))
        out["ode"][tolerance] = {
            **mmd(draws, exact), "seconds": seconds(lambda d=draw: d(key).block_until_ready()),
            "mean_log_likelihood_minus_truth": float(np.mean(value - np.asarray(plane.log_density(x)))),
            "log_prob_seconds": seconds(lambda d=density: d(x).block_until_ready()),
        }  # fmt: skip
    return out


FAR = np.array([[-4.0, 0.0], [4.0, 0.0], [0.0, 5.0]])
SHARES = np.array([0.2, 0.3, 0.5])


def far_draws(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (FAR[rng.choice(3, n, p=SHARES)] + 0.5 * rng.normal(size=(n, 2))).astype(np.float32)


LEVEL = 0.05


def vanilla_model(x: Any, batch_size: int = 256) -> None:
    network = eqx_module("score", TimeMLP((2,), 64, 3, key=numpyro.prng_key()))
    with numpyro.plate("data", len(x), subsample_size=batch_size):
        fn = Diffusion(network, VE(LEVEL, 20.0), 2, predicts="score")
        numpyro.sample("x", fn, obs=numpyro.subsample(x, event_dim=1))


def fitted_vanilla() -> Any:
    data = {"x": far_draws(10_000, 0)}
    result = fit(vanilla_model, estimators.DenoisingScoreMatching(times=(0.0,)), data, 3000, 0.003)
    return observed(vanilla_model, result.params, data)


def langevin_starts(n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {"data": far_draws(n, 2), "random": (4 * rng.normal(size=(n, 2))).astype(np.float32)}


def mode_shares(x: np.ndarray) -> np.ndarray:
    return np.bincount(np.linalg.norm(x[:, None] - FAR, axis=-1).argmin(1), minlength=3) / len(x)


def langevin() -> dict[str, Any]:
    """The learned score of one noise level; chains from the data and from a wide normal: shares of three modes."""
    fitted = fitted_vanilla()
    out: dict[str, Any] = {"true_shares": SHARES}
    for name, start in langevin_starts(2000).items():
        for num_steps in (100, 500, 2000):
            x = np.asarray(fitted.langevin(random.key(0), start, num_steps=num_steps, step_size=0.01))
            distance = np.linalg.norm(x[:, None] - FAR, axis=-1)
            shares = mode_shares(x)
            out[f"{name}, {num_steps} steps"] = {
                "shares": shares, "total_variation": 0.5 * np.abs(shares - SHARES).sum(),
                "farther_than_4_sd": float((distance.min(1) > 2.0).mean()), **mmd(x, far_draws(2000, 3)),
            }  # fmt: skip
    return out


def targets() -> dict[str, Any]:
    """Variance about the exact score of the denoising and the clean target and of their blend, by noise level."""
    mixture = MixtureSameFamily(Categorical(jnp.array([0.4, 0.6])), Normal(jnp.array([-1.5, 1.0]), 0.5))
    process, n = VP(), 200_000
    fn = Diffusion(lambda x, t: x, process, 1)
    estimator = estimators.TargetScoreMatching(log_density=lambda x: mixture.log_prob(x[0]))
    table = estimator.prepare(fn, mixture.sample(random.key(0), (4096,))[:, None], random.key(1))
    x, noise = mixture.sample(random.key(2), (n,))[:, None], random.normal(random.key(3), (n, 1))
    rows = []
    for t in (0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 0.9):
        alpha, sigma = process.alpha(t), process.sigma(t)
        at = alpha * x + sigma * noise
        under = MixtureSameFamily(
            Categorical(jnp.array([0.4, 0.6])),
            Normal(alpha * jnp.array([-1.5, 1.0]), jnp.sqrt((0.5 * alpha) ** 2 + sigma**2)),
        )
        score = jax.vmap(jax.grad(lambda x, under=under: under.log_prob(x[0])))(at)
        parts = {
            "denoising": estimators.DenoisingScoreMatching().target(fn, x, noise, t, None),
            "clean": estimators.TargetScoreMatching(log_density=estimator.log_density, blend=False).target(
                fn, x, noise, t, None
            ),
            "blend": estimator.target(fn, x, noise, t, table),
        }
        rows.append({"t": t, "sigma": float(sigma)} | {k: float(jnp.mean((v - score) ** 2)) for k, v in parts.items()})
    return {"rows": rows}


def standard(x: np.ndarray) -> np.ndarray:
    return ((x - x.mean(0)) / x.std(0)).astype(np.float32)


def flow_model(kind: str, size: int) -> Callable:
    if kind == "nvp":
        return coupling_flow

    def model(x: Any, batch_size: int | None = None) -> None:
        key = random.key(0) if numpyro.prng_key() is None else numpyro.prng_key()
        flow = eqx_module("flow", LinearFlow(size, 4, key=key))
        with numpyro.plate("data", len(x), subsample_size=batch_size):
            numpyro.sample("x", FlowDensity(flow), obs=numpyro.subsample(x, event_dim=1))

    return model


def two_ways() -> dict[str, Any]:
    """Exact negative log-likelihood of held-out data, in nats a row, of flows by likelihood and by their score."""
    from sklearn import datasets

    cases: dict[str, tuple[str, np.ndarray, int]] = {
        "two_moons": ("nvp", standard(np.asarray(toys_2d.two_moons(random.key(0), 12_000))), 5000),
        "mixture of diffusion_2d": ("nvp", standard(plane.draw(12_000)), 5000),
    }
    for name, load in (
        ("iris", datasets.load_iris),
        ("wine", datasets.load_wine),
        ("diabetes", datasets.load_diabetes),
    ):
        cases[name] = ("linear", standard(load().data), 1000)
    by = lambda estimator: lambda model, data, *settings: fit(model, estimator, data, *settings)  # noqa: E731
    ways = {
        "MLE": by(estimators.MLE(subsample=True)), "EBFlow sliced": by(estimators.EBFlow()),
        "EBFlow denoising 0.1": by(estimators.EBFlow("denoising", sigma=0.1)),
        "EBFlow denoising 1 to 0.1": fit_annealed,
    }  # fmt: skip
    out: dict[str, Any] = {}
    for name, (kind, x, num_steps) in cases.items():
        model = flow_model(kind, x.shape[1])
        scores: dict[str, list[float]] = {way: [] for way in ways}
        for seed in range(3):
            order = np.random.default_rng(seed).permutation(len(x))
            cut = min(2000, len(x) // 5)
            data = {"x": x[order[cut:]], "batch_size": min(256, len(x) - cut)}
            for way, run in ways.items():
                result = run(model, data, num_steps, 0.003)
                fitted = observed(model, result.params, data)
                scores[way].append(-float(jnp.mean(fitted.log_prob(x[order[:cut]]))))
        out[name] = {way: {"mean": np.mean(v), "sd_over_seeds": np.std(v, ddof=1)} for way, v in scores.items()}
        for way, v in scores.items():  # of the same splits
            more = np.subtract(v, scores["MLE"])
            out[name][way] |= {"more_than_MLE": more.mean(), "its_standard_error": more.std(ddof=1) / np.sqrt(len(v))}
        print(name, {w: f"{v['mean']:.3f} ± {v['sd_over_seeds']:.3f}" for w, v in out[name].items()}, flush=True)
    return out


def of_its_own_target(sigma: float = 0.1) -> dict[str, Any]:
    """Two moons by likelihood and by score: nats of held-out data, with noise and without, and the score's own loss."""
    rng = np.random.default_rng(5)
    x = standard(np.asarray(toys_2d.two_moons(random.key(0), 12_000)))
    x = x[np.random.default_rng(0).permutation(len(x))]
    noisy = lambda x: (np.repeat(x, 20, 0) + sigma * rng.normal(size=(20 * len(x), 2))).astype(np.float32)  # noqa: E731
    held_out, rows = x[:2000], x[2000:]
    with_noise = noisy(held_out)
    model, out = flow_model("nvp", 2), {}

    def measured(name: str, result: Any) -> Any:
        flow = observed(model, result.params, {"x": rows, "batch_size": 256})
        slope = jax.grad(lambda row: flow.log_prob(row[None])[0])
        own = jax.vmap(lambda row: 0.5 * jnp.sum(slope(row) ** 2) + jnp.trace(jax.jacfwd(slope)(row)))(held_out)
        out[name] = {
            "nats": -float(jnp.mean(flow.log_prob(held_out))),
            "nats with noise": -float(jnp.mean(flow.log_prob(with_noise))), "own loss": float(jnp.mean(own)),
        }  # fmt: skip
        print(name, out[name], flush=True)
        return result

    data = {"x": rows, "batch_size": 256}
    likelihood = estimators.MLE(subsample=True)
    result = measured("likelihood", fit(model, likelihood, data, 5000, 0.003))
    measured("likelihood, twice the steps", fit(model, likelihood, data, 5000, 0.001, start=result.params))
    measured("likelihood of noisy data", fit(model, likelihood, data | {"x": noisy(rows)}, 5000, 0.003))
    result = measured("score", fit_annealed(model, data, 5000, 0.003))
    score = estimators.EBFlow("denoising", sigma=sigma, num_directions=4)
    measured("score, twice the steps", fit(model, score, data, 5000, 0.001, start=result.params))
    return out


def step_time(model: Callable, estimator: Any, data: dict[str, Any], optimizer: Any, num_steps: int = 5) -> Callable:
    """A call that takes `num_steps` compiled steps."""
    problem = estimator.problem(random.key(0), model, None, data)
    state = engine.init(problem, optimizer, problem.params, random.key(1))
    count = jnp.asarray(num_steps, jnp.int32)

    def call() -> None:
        jax.block_until_ready(engine._call(problem, optimizer, state, count)[0].params)

    call()
    return call


def step_cost(sizes: tuple[int, ...] = (64, 128, 256, 512, 1024), batch: int = 16) -> dict[str, Any]:
    """Processor seconds a step of the dense linear flow (3 layers) by likelihood and by score, against D."""
    optimizer = optax.sgd(1e-6)
    rows = []
    for size in sizes:
        data = {"x": jnp.asarray(np.random.default_rng(0).normal(size=(batch, size)), jnp.float32)}

        def model(x: Any, size: int = size) -> None:
            flow = eqx_module("flow", LinearFlow(size, 3, key=random.key(0)))
            with numpyro.plate("data", len(x)):
                numpyro.sample("x", FlowDensity(flow), obs=x)

        steps = 50 if size < 256 else 5
        score = step_time(model, estimators.EBFlow(), data, optimizer, steps)
        noisier = step_time(model, estimators.EBFlow(variance_reduced=False), data, optimizer, steps)
        likelihood = step_time(model, estimators.MLE(subsample=True), data, optimizer, steps)
        took = least([score, noisier, likelihood], 7, time.process_time) / steps
        rows.append({"D": size, "score_seconds": took[0], "not_variance_reduced_seconds": took[1],
                     "likelihood_seconds": took[2], "ratio": took[2] / took[0],
                     "ratio_not_variance_reduced": took[2] / took[1]})  # fmt: skip
        print(rows[-1], flush=True)
    last = slice(-3, None)
    slopes = {
        name: np.polyfit(np.log([r["D"] for r in rows[last]]), np.log([r[f"{name}_seconds"] for r in rows[last]]), 1)[0]
        for name in ("score", "likelihood")
    }
    return {"batch": batch, "rows": rows, "slopes_of_the_last_three": slopes}


def flowjax_loop() -> dict[str, Any]:
    """Steps of a flow by likelihood against flowjax's own `fit_to_data`, same flow, batch and optimiser."""
    x = jnp.asarray(plane.draw(25_600))
    base = flowjax.distributions.Normal(jnp.zeros(2))
    make = lambda key: flowjax.flows.coupling_flow(key, base_dist=base, flow_layers=6, nn_activation=jnp.tanh)  # noqa: E731
    epochs = 10
    # a tenth of the data is held out by flowjax, and its loss taken after each epoch: here it is 1 in 100
    per_epoch = int(25_600 * 0.99) // 256

    def theirs() -> None:
        flowjax.train.fit_to_data(
            random.key(1), make(random.key(0)), x, max_epochs=epochs, max_patience=epochs, batch_size=256,
            val_prop=0.01, show_progress=False, learning_rate=1e-3,
        )  # fmt: skip

    data = {"x": x, "batch_size": 256}
    model = flow_model("nvp", 2)
    result = estimax.fit(model, estimators.MLE(subsample=True), data, num_steps=50, progress_bar=False)
    ours = lambda: result.resume(epochs * per_epoch, progress_bar=False)  # noqa: E731
    ours()
    theirs()
    both = paired(ours, theirs, 5)
    return {"steps": epochs * per_epoch, **both}


def flow_matching() -> dict[str, Any]:
    """Couplings on the mixture in the plane: likelihood, draws, and how straight the paths are."""
    out: dict[str, Any] = {}
    x, exact = plane.held_out()["x"], plane.draw(2000, seed=5)

    def model(x: Any, batch_size: int | None = None, with_denoiser: bool = False) -> None:
        keys = random.split(random.key(0) if numpyro.prng_key() is None else numpyro.prng_key())
        velocity = eqx_module("velocity", TimeMLP((2,), 128, 3, key=keys[0]))
        denoiser = eqx_module("denoiser", TimeMLP((2,), 128, 3, key=keys[1])) if with_denoiser else None
        with numpyro.plate("data", len(x), subsample_size=batch_size):
            numpyro.sample("x", Flow(velocity, 2, denoiser=denoiser), obs=numpyro.subsample(x, event_dim=1))

    ways = {
        "independent": estimators.ConditionalFlowMatching(), "ot": estimators.ConditionalFlowMatching("ot"),
        "weighted": estimators.ConditionalFlowMatching("weighted"), "interpolant": estimators.StochasticInterpolant(),
    }  # fmt: skip
    for name, estimator in ways.items():
        data = {**plane.data(), "with_denoiser": name == "interpolant"}
        num_steps = 3000 if name == "ot" else 6000
        result = fit(model, estimator, data, num_steps, 0.003)
        flow = observed(model, result.params, data)
        gap = np.asarray(flow.log_prob(x) - plane.log_density(x, 0.0))
        z = random.normal(random.key(2), (2000, 2))
        end = flow.from_base(z)
        euler = np.asarray(z + flow.velocity(z, 1e-3))  # one step: right where paths are straight
        out[name] = {
            "steps": result.num_steps, "steps_per_second": result.steps_per_second,
            "mean_log_likelihood_minus_truth": gap.mean(), "ode": mmd(np.asarray(end), exact),
            "one_euler_step": mmd(euler, exact), "path_energy_excess": path_energy(flow, z, np.asarray(end)),
        }  # fmt: skip
        if name == "interpolant":
            out[name]["sde"] = mmd(np.asarray(flow.sample_sde(random.key(3), (2000,))), exact)
        print(name, out[name], flush=True)
    return out


def path_energy(flow: Flow, z: Any, end: np.ndarray) -> float:
    """∫E‖v‖² dt over the paths less E‖x_1 − x_0‖², relative: zero for straight paths."""
    x, total = z, 0.0
    for i in range(100):
        v = flow.velocity(x, (i + 0.5) / 100)
        total, x = total + float(jnp.mean(jnp.sum(v**2, 1))) / 100, x + v / 100
    straight = float(np.mean(np.sum((end - np.asarray(z)) ** 2, 1)))
    return total / straight - 1


def digits() -> dict[str, Any]:
    """Bits a pixel of held-out digits, by the exact trace and, at ten times its tolerance, by Hutchinson's."""
    began = time.perf_counter()
    result = fit(score_digits.model, estimators.DenoisingScoreMatching(), score_digits.data(), 10_000, 0.001)
    fitted = observed(score_digits.model, result.params, score_digits.data())
    x = score_digits.held_out()["x"][:100]
    rough = Diffusion(fitted.network, VP(), 64, trace="hutchinson", rtol=1e-3, atol=1e-3)
    out: dict[str, Any] = {"fit_seconds": result.seconds, "steps_per_second": result.steps_per_second}
    for name, density in (("exact", fitted), ("hutchinson", rough)):
        call = eqx.filter_jit(lambda x, d=density: d.log_prob(x))
        bits = score_digits.bits_per_pixel(np.asarray(call(x)))
        took = seconds(lambda c=call: c(x).block_until_ready())
        out[name] = {"bits_per_pixel": bits, "tolerance": density.rtol, "seconds_of_100_images": took}
    out["training_bits_per_pixel"] = score_digits.bits_per_pixel(
        np.asarray(fitted.log_prob(score_digits.data()["x"][:100]))
    )
    out["seconds"] = time.perf_counter() - began
    return out


SECTIONS = {
    f.__name__: f
    for f in (targets, step_cost, flowjax_loop, langevin, two_ways, of_its_own_target, flow_matching, diffusion, digits)
}


if __name__ == "__main__":
    run_sections("scores", __doc__, SECTIONS)
