"""What every benchmark does alike: alternate two timings, quote medians, note the environment, write one JSON file,
whole or by sections."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
QUICK = "--quick" in sys.argv
"""Whether a script is only to show that it runs; in its worker processes too."""
REST = 0.1
"""Seconds before every timing of a pair: threads of BLAS and OpenMP spin for a while after the last call, and on two
cores the other side would pay for it."""


def environment() -> dict[str, Any]:
    """Versions and machine, so that figures can be read later."""
    import jax

    packages = ("jax", "numpyro", "optax", "arviz", "equinox", "optimistix", "numpy")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "device": str(jax.devices()[0].platform),
        "packages": {name: version(name) for name in packages},
    }


def peak_memory_mb() -> float:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def paired(ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int = 7) -> dict[str, float]:
    """Time two calls in turn, A B A B …; speed ratio theirs/ours (above 1: ours is faster), median over the pairs.

    Each function does one counted run, after a rest; warm-up is the caller's.
    """
    a, b = [], []
    for _ in range(repeats):
        for call, times in ((ours, a), (theirs, b)):
            time.sleep(REST)
            times.append(seconds(call))
    ratios = [y / x for x, y in zip(a, b, strict=True)]
    return {
        "ours_seconds": statistics.median(a),
        "theirs_seconds": statistics.median(b),
        "speed_ratio": statistics.median(ratios),
        "speed_ratio_min": min(ratios),
        "speed_ratio_max": max(ratios),
        "repeats": repeats,
    }


def least(calls: list[Callable[[], Any]], repeats: int = 15, clock: Callable[[], float] = time.perf_counter) -> Any:
    """Least seconds of each of several calls made in turn: what a busy machine adds is left out as far as can be."""
    times = np.empty((repeats, len(calls)))
    for i, j in np.ndindex(times.shape):
        began = clock()
        calls[j]()
        times[i, j] = clock() - began
    return times.min(0)


def alone(part: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """What a part returns, run in a fresh process, with the peak memory of that process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_with_memory, part, *args).result()


def _with_memory(part: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    return {**part(*args), "peak_memory_mb": round(peak_memory_mb())}


def run_sections(name: str, description: str | None, sections: dict[str, Callable[[], Any]]) -> None:
    """Run the sections that the command line names, else all. Each is written when it ends, beside what is there."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(sections)}; none is all")
    parser.add_argument("--quick", action="store_true", help="small, and no result file: that it runs")
    chosen = parser.parse_args().sections
    if unknown := sorted(set(chosen) - set(sections)):
        parser.error(f"no section {unknown[0]!r} (there are: {', '.join(sections)})")
    for section in chosen or sections:
        began = time.perf_counter()
        found = sections[section]()
        took = time.perf_counter() - began
        print(f"{section}, {took:.0f} s: {json.dumps(found, default=_plain)}", flush=True)
        if not QUICK:
            before = _earlier(name)
            taken = {**before.get("seconds_of_sections", {}), section: took}
            write(name, {**before, section: found, "seconds_of_sections": taken})


def _earlier(name: str) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["results"] if path.exists() else {}


def _plain(value: Any) -> Any:
    """Arrays and NumPy's numbers as JSON has them."""
    return np.asarray(value).tolist()


def write(name: str, results: dict[str, Any]) -> Path:
    """Write results with the environment, the command and the peak memory."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    content = {
        "command": "python " + " ".join([f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "environment": environment(),
        "peak_memory_mb": round(peak_memory_mb()),
        "results": results,
    }
    path.write_text(json.dumps(content, indent=1, default=_plain) + "\n", encoding="utf-8")
    print(f"wrote {path.relative_to(Path(__file__).parent.parent)}")
    return path
