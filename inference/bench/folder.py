"""Where a bench keeps what is done: one line and one netCDF file a run, written as soon as there is one.

- ``bench.json``: format, suite, settings, columns in words, environment, every command that added to the folder;
- ``runs.jsonl``: a line a run;
- ``runs/CASE/COLUMN-SEED.nc``: draws, weights and losses of a run;
- ``table.csv``, ``report.html``, ``report.md``: made of the lines, at the end.
"""

from __future__ import annotations

import errno
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..files import BadInput, check_folder
from .execute import Finished

FORMAT = 1
PACKAGES = ("jax", "numpyro", "optax", "arviz", "equinox", "optimistix", "numpy", "blackjax")
_PINNED = {"suite": "the suite", "settings": "the settings"}


class Folder:
    """A folder of results.

    Raises:
        BadInput: it cannot be written, holds something else, or results that do not go with these.
    """

    def __init__(self, path: str | os.PathLike[str], header: dict[str, Any], resume: bool) -> None:
        self.path = Path(path)
        check_folder(self.path)
        self.header = header
        self.rows: list[dict[str, Any]] = []
        file = self.path / "bench.json"
        if file.exists():
            before = read_header(self.path)
            rows = read_rows(self.path)
            if rows and not resume:
                raise BadInput(f"{str(self.path)!r} has a bench already: --resume goes on with it, --out takes another")
        if file.exists() and rows:
            self._check(before)
            self.rows = rows
            self.header = {
                **header,
                "columns": {**before["columns"], **header["columns"]},
                "commands": list(dict.fromkeys([*before["commands"], *header["commands"]])),
                "notes": list(dict.fromkeys([*before["notes"], *header["notes"], *_other_versions(before, header)])),
            }
        elif not file.exists() and self.path.is_dir() and any(self.path.iterdir()):
            raise BadInput(f"{str(self.path)!r} has files that are no bench: give --out an empty or a new folder")
        with telling_of_a_full_disk(self.path, len(self.rows)):
            self.path.mkdir(parents=True, exist_ok=True)
            _write_whole(file, json.dumps(self.header, indent=1))
            _drop_half_a_line(self.path / "runs.jsonl")

    def _check(self, before: dict[str, Any]) -> None:
        for key, words in _PINNED.items():
            if before[key] != self.header[key]:
                raise BadInput(f"{str(self.path)!r} has results of {words} {_short(before[key])}, not "
                               f"{_short(self.header[key])}: give --out another folder")  # fmt: skip
        for name, text in self.header["columns"].items():
            if before["columns"].get(name, text) != text:
                raise BadInput(f"{str(self.path)!r} has results of {name!r} as {before['columns'][name]}, not {text}: "
                               "give --out another folder")  # fmt: skip

    @property
    def done(self) -> set[tuple[str, str, int]]:
        return {(row["case"], row["column"], row["seed"]) for row in self.rows}

    def add(self, finished: Finished) -> None:
        """Keep a run: its netCDF file first, then its line, so that a line without file cannot be."""
        row = finished.row
        with telling_of_a_full_disk(self.path, len(self.rows)):
            if finished.netcdf is not None:
                place = self.path / "runs" / _file_name(row["case"])
                place.mkdir(parents=True, exist_ok=True)
                (place / f"{_file_name(row['column'])}-{row['seed']}.nc").write_bytes(finished.netcdf)
            with (self.path / "runs.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())
        self.rows.append(row)

    def write(self, name: str, text: str) -> None:
        with telling_of_a_full_disk(self.path, len(self.rows)):
            _write_whole(self.path / name, text)


def read_header(path: Path) -> dict[str, Any]:
    """bench.json of a folder.

    Raises:
        BadInput: not written by a bench, or by one of another format.
    """
    file = path / "bench.json"
    try:
        header = json.loads(file.read_text(encoding="utf-8"))
        found = header["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{str(file)!r} was not written by estimax bench: give --out another folder") from error
    if found != FORMAT:
        raise BadInput(f"{str(path)!r} has results of format {found}, this estimax writes format {FORMAT}: give --out "
                       "another folder, or read it with the version that wrote it "
                       f"(estimax {header.get('environment', {}).get('estimax', 'unknown')})")  # fmt: skip
    return header


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of runs.jsonl. Half a line at the end, as a kill or a full disk leaves it, is no row.

    Raises:
        BadInput: a line in the middle that is no JSON.
    """
    file = path / "runs.jsonl"
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8").split("\n")
    rows = []
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is not finished
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise BadInput(f"{str(file)!r}, line {number}, is no row of a bench: {line[:60]!r}") from error
    return rows


def _drop_half_a_line(file: Path) -> None:
    if file.is_file():
        content = file.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            file.write_bytes(whole)


def _write_whole(file: Path, text: str) -> None:
    """All of the file or none of it."""
    part = file.with_name(file.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(file)


@contextmanager
def telling_of_a_full_disk(folder: Path, num_rows: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(f"no space left on the disk of {str(folder)!r}: the {num_rows} runs before are kept; free some "
                      "and go on with --resume") from error  # fmt: skip


def environment() -> dict[str, Any]:
    """Versions and machine, so that figures can be read later."""
    import jax

    from ...version import __version__

    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "estimax": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],  # of a busy machine, times are not those of an idle one
        "device": str(jax.devices()[0].platform),
        "packages": packages,
    }


def _other_versions(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """A line for every package whose version changed between the runs of one folder."""
    old, new = ({"estimax": h["environment"]["estimax"], **h["environment"]["packages"]} for h in (before, now))
    return [f"runs of {name} {old.get(name)} and {new[name]} together" for name in new if old.get(name) != new[name]]


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_.=()" else "_" for c in name)


def _short(value: Any) -> str:
    return repr(value) if isinstance(value, str) else ", ".join(f"{k}={v}" for k, v in value.items())
