"""A suite of `estimax bench` at its full setting, with the small files that are committed.

Interrupted, the same command goes on where it was; it also keeps what `estimax bench SUITE --out FOLDER` has done.

    python benchmarks/suite.py vis-paper --seeds 3
    python benchmarks/suite.py sampling --seeds 3
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

import estimax
from estimax.inference.bench.report import to_csv
from estimax.inference.bench.runner import Benchmark

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suite")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=None, help="default: estimax-results/bench-SUITE")
    parser.add_argument("--keep-only", action="store_true", help="run nothing: keep what the folder has")
    arguments = parser.parse_args()
    out = arguments.out or Path("estimax-results") / f"bench-{arguments.suite}"
    if arguments.keep_only:
        bench = Benchmark.read(out)
    else:
        command = shlex.join(["python", "benchmarks/suite.py", arguments.suite, "--seeds", str(arguments.seeds)])
        bench = estimax.benchmark(
            arguments.suite, seeds=arguments.seeds, jobs=arguments.jobs, out=out, resume=out.exists(), command=command
        )
    print(bench)
    keep(bench, arguments.suite)
    sys.exit(130 if bench.interrupted else 0)


def keep(bench: Benchmark, name: str) -> None:
    """A row a run, and how they were made."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.csv").write_text(to_csv(bench.frame), encoding="utf-8")
    text = json.dumps(bench.header, indent=1, ensure_ascii=False)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(f"wrote benchmarks/results/{name}.csv and .json")


if __name__ == "__main__":
    main()
