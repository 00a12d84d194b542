"""Other people's methods, each through its own public API and at the settings that its users take.

No peer gets a start, a scale or a step size from us, and none is tuned to a model.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import random

from ..data import prepare
from .cases import Case, Settings
from .outcome import Draws, Outcome

SVI_STEPS = 10_000
SVI_STEP_SIZE = 0.01
NUTS_DRAWS = 1000
"""Of warm-up, and of draws a chain, NumPyro's own example."""
NUTS_CHAINS = 4


@dataclass(frozen=True)
class Peer:
    """One method of another package."""

    package: str
    method: str
    settings: str
    """In words, for the report."""
    run: Callable[[Case, int, Settings], Outcome]

    @property
    def name(self) -> str:
        return f"{self.package}:{self.method}"

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.package) is not None


def svi(guide_name: str, case: Case, seed: int, settings: Settings) -> Outcome:
    """NumPyro's SVI with an automatic guide, `Trace_ELBO` of one particle, Adam(0.01)."""
    from numpyro.infer import SVI, Trace_ELBO, autoguide
    from numpyro.optim import Adam

    data = prepare(case.model, case.data())
    num_steps = settings.num_steps or SVI_STEPS
    key_run, key_draw = random.split(random.key(seed))

    def fit(num_steps: int) -> tuple[float, Any, Any]:
        began = time.perf_counter()
        guide = getattr(autoguide, guide_name)(case.model)
        run = SVI(case.model, guide, Adam(SVI_STEP_SIZE), Trace_ELBO()).run(
            key_run, num_steps, progress_bar=False, **data
        )
        jax.block_until_ready(run.params)
        return time.perf_counter() - began, guide, run

    def draw(guide: Any, run: Any) -> Draws:
        draws = guide.sample_posterior(key_draw, run.params, sample_shape=(settings.num_samples,), **data)
        return _with_deterministic(case, data, draws)

    def path() -> Iterator[tuple[float, Draws]]:
        early = fit(max(1, num_steps // 10))
        yield early[0], draw(*early[1:])

    seconds, guide, run = fit(num_steps)
    losses = np.asarray(run.losses)
    status = "finished" if np.isfinite(losses[-1]) else "non-finite"
    return Outcome(
        seconds, draw(guide, run), gradient_evaluations=num_steps, status=status,
        message="" if status == "finished" else "the loss is not finite", arrays={"losses": losses},
        path=None if guide_name == "AutoLaplaceApproximation" else path,  # it is none before the mode is found
    )  # fmt: skip


def nuts(case: Case, seed: int, settings: Settings) -> Outcome:
    """NumPyro's NUTS: 4 vectorised chains, diagonal mass matrix, 1,000 draws each after 1,000 of warm-up."""
    from numpyro.diagnostics import split_gelman_rubin
    from numpyro.infer import MCMC, NUTS

    data = prepare(case.model, case.data())
    size = settings.num_steps or NUTS_DRAWS
    key_warm, key_run = random.split(random.key(seed))
    began = time.perf_counter()
    mcmc = MCMC(NUTS(case.model), num_warmup=size, num_samples=size, num_chains=NUTS_CHAINS,
                chain_method="vectorized", progress_bar=False)  # fmt: skip
    mcmc.warmup(key_warm, extra_fields=("num_steps",), collect_warmup=True, **data)
    steps = float(np.sum(mcmc.get_extra_fields()["num_steps"]))
    warm = time.perf_counter() - began
    mcmc.run(key_run, extra_fields=("num_steps", "diverging"), **data)
    by_chain = {k: np.asarray(v) for k, v in mcmc.get_samples(group_by_chain=True).items()}
    seconds = time.perf_counter() - began
    extra = mcmc.get_extra_fields()
    with np.errstate(all="ignore"):
        rhats = np.concatenate([np.ravel(split_gelman_rubin(v.astype(np.float64))) for v in by_chain.values()])

    def joined(stop: int) -> Draws:
        return {k: v[:, :stop].reshape(-1, *v.shape[2:]) for k, v in by_chain.items()}

    def path() -> Iterator[tuple[float, Draws]]:
        for part in (0.05, 0.2):  # the compiled sampler takes its time in proportion
            yield warm + part * (seconds - warm), joined(max(2, int(part * size)))

    return Outcome(
        seconds, joined(size), gradient_evaluations=steps + float(np.sum(extra["num_steps"])), num_chains=NUTS_CHAINS,
        measures={
            "rhat": float(np.nanmax(rhats)) if np.isfinite(rhats).any() else None,
            "divergences": int(np.sum(extra["diverging"])),
        },
        path=path,
    )  # fmt: skip


def pathfinder(case: Case, seed: int, settings: Settings) -> Outcome:
    """blackjax's single-path Pathfinder at its defaults, from a start of NumPyro's `initialize_model`."""
    import blackjax
    from numpyro.infer.util import initialize_model

    data = prepare(case.model, case.data())
    key_start, key_path, key_draw = random.split(random.key(seed), 3)
    began = time.perf_counter()
    start, potential, postprocess, _ = initialize_model(key_start, case.model, model_kwargs=data)
    approximate = _approximate(case.model, case.data, potential)
    state = jax.block_until_ready(approximate(key_path, start.z))
    seconds = time.perf_counter() - began
    draws = jax.vmap(postprocess)(blackjax.vi.pathfinder.sample(key_draw, state, settings.num_samples)[0])
    return Outcome(seconds, draws)


_compiled: dict[tuple[Any, Any], Callable] = {}


def _approximate(model: Any, data: Any, potential: Callable) -> Callable:
    """Pathfinder compiled, from the seed before where model and data are the same: their potential is too."""
    import blackjax

    @jax.jit
    def approximate(key: Any, position: Any) -> Any:
        return blackjax.vi.pathfinder.approximate(key, lambda z: -potential(z), position)[0]

    if (model, data) not in _compiled:
        _compiled.clear()
        _compiled[model, data] = approximate
    return _compiled[model, data]


def _with_deterministic(case: Case, data: dict[str, Any], draws: dict[str, Any]) -> Draws:
    """Draws with the deterministic sites that the truth has and the guide does not know."""
    from numpyro.infer import Predictive

    truth = case.truth()
    missing = [n for n in {**(truth.draws or {}), **(truth.moments or {})} if n not in draws]
    if not missing:
        return draws
    predicted = Predictive(case.model, draws, return_sites=missing)(random.key(0), **data)
    return {**draws, **{name: predicted[name] for name in missing if name in predicted}}


_SVI = f"SVI, Adam({SVI_STEP_SIZE}), Trace_ELBO() of one particle, {SVI_STEPS:,} steps"

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        *(Peer("numpyro", guide, _SVI, partial(svi, guide))
          for guide in ("AutoNormal", "AutoMultivariateNormal", "AutoLaplaceApproximation")),
        Peer("numpyro", "NUTS", f"{NUTS_CHAINS} chains of {NUTS_DRAWS:,} draws after {NUTS_DRAWS:,} of warm-up", nuts),
        Peer("blackjax", "Pathfinder", "single path, the defaults", pathfinder),
    )
}  # fmt: skip
