"""Speed against NumPyro's SVI, as ratios in one run: the step loop, the second fit, gradient estimators, restarts.

`SVI.run(progress_bar=False)` compiles at every call; its steps are timed in a compiled function, so that steps are
compared with steps. Both sides get the same guide class, optimiser, particles and gradient estimator of NumPyro's kind.
Each section runs in a process of its own, with its own peak memory: what ran before it moves a ratio of steps by 10 %.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import QUICK, alone, paired, run_sections, seconds
from numpyro.infer import SVI, RenyiELBO, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

import estimax
from estimax import estimators, models
from estimax.inference import engine

PAIRS = {
    "ELBO(1)": (estimators.ELBO(1), Trace_ELBO(1)),
    "ELBO(16)": (estimators.ELBO(16), Trace_ELBO(16)),
    "IWAE(16)": (estimators.IWAE(16), RenyiELBO(0.0, 16)),
}


def fitted(
    model: Any, estimator: Any, optimizer: Any, num_steps: int, progress_bar: bool = False, **options: Any
) -> Any:
    return estimax.fit(
        model.model, estimator, model.data(), guide=AutoNormal, start="prior", optimizer=optimizer,
        num_steps=num_steps, progress_bar=progress_bar, **options,
    )  # fmt: skip


def compiled_steps(problem: Any, optimizer: Any, num_steps: int) -> Any:
    """The engine's compiled call, ready to be timed."""
    optimizer = engine.as_optax(optimizer)
    state = engine.init(problem, optimizer, problem.params, jax.random.key(0))
    count = jnp.asarray(num_steps, jnp.int32)
    return lambda: jax.block_until_ready(engine._call(problem, optimizer, state, count)[1])


def _svi_seconds(svi: SVI, data: dict, num_steps: int) -> float:
    return seconds(lambda: jax.block_until_ready(svi.run(jax.random.key(0), num_steps, **data).losses))


def step_loop(name: str, label: str) -> dict[str, Any]:
    """Steps per second with the progress bar on and against a scan without one."""
    model = models.get(name)
    data = {k: jnp.asarray(v) for k, v in model.data().items()}
    optimizer = optax.adam(0.01)
    ours, theirs = PAIRS[label]
    svi = SVI(model.model, AutoNormal(model.model), optimizer, theirs)
    state = svi.init(jax.random.key(0), **data)
    steps = 300 if QUICK else 4000 if name == "eight_schools" else 1500

    def scan(state: Any, data: Any) -> Any:
        return svi.run(jax.random.key(0), steps, progress_bar=False, init_state=state, **data).losses

    scanned = jax.jit(scan)
    result = fitted(model, ours, optimizer, 2)
    run_ours = compiled_steps(result.problem, optimizer, steps)
    run_ours()
    jax.block_until_ready(scanned(state, data))
    bare = paired(run_ours, lambda: jax.block_until_ready(scanned(state, data)), 3 if QUICK else 15)

    # With progress bars: our whole fit against SVI's whole run, both after compilation of the step.
    many = 500 if QUICK else 5000
    rates = []
    for _ in range(2 if QUICK else 5):
        ours_rate = fitted(model, ours, optimizer, many, progress_bar=True).steps_per_second
        short, long = _svi_seconds(svi, data, 100), _svi_seconds(svi, data, many + 100)
        rates.append((ours_rate, many / max(long - short, 1e-9)))
    with_bar = {
        "ours_steps_per_second": statistics.median(r[0] for r in rates),
        "theirs_steps_per_second": statistics.median(r[1] for r in rates),
        "speed_ratio": statistics.median(a / b for a, b in rates),
    }
    print(name, label, f"bare {bare['speed_ratio']:.2f}, with bar {with_bar['speed_ratio']:.1f}")
    return {"against_scan": bare, "with_bar": with_bar}


class CompileCounter:
    """Counts compilations by JAX's own events."""

    def __init__(self) -> None:
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, _: float, **__: Any) -> None:
        self.count += event.endswith("backend_compile_duration")


def second_fit(name: str) -> dict[str, Any]:
    """Time to the first step of a second fit with other data of the same shapes, against a second `SVI.run`."""
    model = models.get(name)
    data = {k: np.asarray(v) for k, v in model.data().items()}
    optimizer = optax.adam(0.01)
    svi = SVI(model.model, AutoNormal(model.model), optimizer, estimators.IWAE(16))
    out = {}
    # The class gets a start at the mode; the instance starts where NumPyro's own `SVI` starts it, like for like.
    guides = {"default guide": None, "AutoNormal": AutoNormal, "AutoNormal(model)": AutoNormal(model.model)}
    for named, guide in guides.items():

        def ours(shift: float, guide: Any = guide) -> None:
            changed = {k: v + shift if v.dtype.kind == "f" and k == "y" else v for k, v in data.items()}
            estimax.fit(
                model.model, estimators.IWAE(16), changed, guide=guide, optimizer=optimizer, num_steps=1,
                progress_bar=False,
            )  # fmt: skip

        def theirs() -> None:
            jax.block_until_ready(svi.run(jax.random.key(0), 1, progress_bar=False, **data).losses)

        ours(0.0)
        theirs()
        counter = CompileCounter()
        ours(0.25)
        compilations = counter.count
        out[named] = {
            **paired(lambda f=ours: f(0.5), theirs, 5),
            "compilations_in_second_fit": compilations,
        }
    print(
        name, "second fit", {k: (round(v["speed_ratio"], 1), v["compilations_in_second_fit"]) for k, v in out.items()}
    )
    return out


def gradient_cost(name: str) -> dict[str, Any]:
    """Step time of VIS and of dreg over that of IWAE with reparameterised gradients, same K."""
    model = models.get(name)
    optimizer = optax.adam(0.01)
    steps = 200 if QUICK else 2000
    guide = model.guide or AutoNormal

    def ready(estimator: Any) -> Any:
        result = estimax.fit(
            model.model, estimator, model.data(), guide=guide, start="prior", optimizer=optimizer, num_steps=2,
            progress_bar=False,
        )  # fmt: skip
        count = steps if name != "vae_digits" else steps // 20
        call = compiled_steps(result.problem, optimizer, count)
        call()
        return call

    base = ready(estimators.IWAE(16, "reparam"))
    cases = {
        "VIS": estimators.VIS(16, "reparam"),
        "VIS dreg": estimators.VIS(16, "dreg"),
        "IWAE dreg": estimators.IWAE(16, "dreg"),
    }
    out = {}
    for label, estimator in cases.items():
        timing = paired(base, ready(estimator), 3 if QUICK else 9)
        out[label] = {"step_time_ratio": timing["speed_ratio"], **timing}
    print(name, "step time over IWAE", {k: round(v["step_time_ratio"], 2) for k, v in out.items()})
    return out


def restarts() -> dict[str, Any]:
    """32 vmapped restarts of eight_schools over one fit, default guide and steps, all compiled: whole fits, and steps.

    A step of one run is mostly overhead, one of 32 is random numbers and small products.
    """
    model = models.get("eight_schools")

    def run(num_restarts: int) -> tuple[float, float]:
        began = time.perf_counter()
        result = estimax.fit(
            model.model, estimators.IWAE(16), model.data(), num_restarts=num_restarts, progress_bar=False
        )  # fmt: skip
        return time.perf_counter() - began, 1 / result.steps_per_second

    run(1), run(32)
    pairs = [(run(32), run(1)) for _ in range(9)]
    out = {}
    for i, what in enumerate(("whole_fit", "step")):
        ratios = [many[i] / one[i] for many, one in pairs]
        out[what] = {"time_ratio": statistics.median(ratios), "ratios": ratios}
    print("32 restarts over one:", {k: round(v["time_ratio"], 2) for k, v in out.items()})
    return out


def import_time() -> dict[str, float]:
    """`import estimax` over importing numpyro, optax and arviz, in fresh processes."""
    base, ours = "import numpyro, optax, arviz", "import estimax"

    def run(code: str) -> float:
        return seconds(lambda: subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True))

    run(base), run(ours)
    ratios = [run(ours) / run(base) for _ in range(5)]
    print("import time over numpyro, optax, arviz:", round(statistics.median(ratios), 2))
    return {"time_ratio": statistics.median(ratios), "ratios": ratios}


SMALL = ("eight_schools", "logistic_regression")
SECTIONS = {
    "step_loop": lambda: {n: {label: alone(step_loop, n, label) for label in PAIRS} for n in SMALL},
    "second_fit": lambda: {n: alone(second_fit, n) for n in SMALL},
    "gradient_cost": lambda: {n: alone(gradient_cost, n) for n in (*SMALL, "vae_digits")},
    "restarts": lambda: alone(restarts),
    "import": import_time,
}

if __name__ == "__main__":
    run_sections("speed", __doc__, SECTIONS)
