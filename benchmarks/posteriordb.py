"""How good are the defaults? `estimax bench posteriordb`, with the files behind docs/how-good-are-the-defaults.md.

Needs a copy of the database (`--root` or the environment variable POSTERIORDB). NUTS runs with one seed, all else with
`--seeds`. Interrupted, the same command goes on where it was.

    python benchmarks/posteriordb.py --root ~/posteriordb
    python docs/make_defaults_page.py benchmarks/results/posteriordb.csv
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from suite import keep

import estimax
from estimax.inference.bench import suites

ONCE = "numpyro:NUTS"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default=None)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("estimax-results") / "bench-posteriordb")
    arguments = parser.parse_args()
    command = shlex.join(["python", f"benchmarks/{Path(__file__).name}", "--seeds", str(arguments.seeds)])
    interrupted = False
    for columns, seeds in _parts(arguments.root, arguments.seeds):
        bench = estimax.benchmark(
            "posteriordb", columns, seeds=seeds, jobs=arguments.jobs, out=arguments.out, resume=True,
            root=arguments.root, command=command,
        )  # fmt: skip
        interrupted = bench.interrupted
        if interrupted:
            break
    print(bench)
    keep(bench, "posteriordb")
    sys.exit(130 if interrupted else 0)


def _parts(root: str | None, seeds: int) -> list[tuple[list[str], int]]:
    """Columns with their numbers of seeds; NUTS is the dearest, and is exact: once will do."""
    columns = [name for name in suites.load("posteriordb", root).columns if name != ONCE]
    return [(columns, seeds), ([ONCE], 1)]


if __name__ == "__main__":
    main()
