"""What the command line reads and writes: data files, model files, and places for results.

Whatever is wrong with a file is a `BadInput` whose message names the file and the spot.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from .data import nearest

DATA_SUFFIXES = (".json", ".csv", ".tsv", ".npz")


class BadInput(Exception):
    """What the user gave cannot work; the message says why, in one line."""


def nearest_word(name: str, options: Any) -> str:
    """As `data.nearest`, whatever the case of the letters."""
    by_lower = {str(o).lower(): str(o) for o in options}
    hint = nearest(name.lower(), by_lower)
    for lower, option in by_lower.items():
        hint = hint.replace(repr(lower), repr(option))
    return hint if hint.startswith("did you mean") else nearest(name, by_lower.values())


def load_function(text: str, what: str) -> tuple[Path, Callable]:
    """The function that FILE.py:FUNCTION names. The file runs as an import, with its own folder importable.

    Raises:
        BadInput: no such file or function, or a file that fails when it runs.
    """
    file, colon, name = text.rpartition(":")
    if not colon or not file.endswith(".py"):
        file, name = text, ""
    path = Path(file)
    if not path.is_file():
        raise BadInput(f"no file {str(path)!r}{_near_file(path)}")
    module = _import_file(path)
    functions = [
        n for n, v in vars(module).items()
        if callable(v) and not n.startswith("_") and getattr(v, "__module__", None) == module.__name__
    ]  # fmt: skip
    if not name:
        example = what if what in functions or not functions else functions[0]
        raise BadInput(f"which function of {str(path)!r} is the {what}? Write {path}:{example}")
    function = getattr(module, name, None)
    if function is None:
        hint = nearest_word(name, functions) if functions else "it defines no function"
        raise BadInput(f"{str(path)!r} has no function {name!r}; {hint}")
    if not callable(function):
        raise BadInput(f"{name!r} of {str(path)!r} is no function but {type(function).__name__}")
    return path, function


_MODULES: dict[Path, Any] = {}


def _import_file(path: Path) -> Any:
    path = path.resolve()
    if path in _MODULES:  # model and guide may come from one file: it runs once
        return _MODULES[path]
    name = f"_estimax_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise BadInput(f"cannot import {str(path)!r}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        where = f"{path.name}, line {line}" if line else path.name
        message = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
        raise BadInput(f"{where}: {type(error).__name__}: {message}") from error
    _MODULES[path] = module
    return module


def _near_file(path: Path) -> str:
    try:
        names = [p.name for p in path.parent.iterdir() if p.is_file()]
    except OSError:
        return f": there is no folder {str(path.parent)!r}"
    hint = nearest_word(path.name, names) if names else ""
    return f"; {hint}" if hint.startswith("did you mean") else ""


def load_data(text: str) -> dict[str, Any]:
    """The model's arguments from a JSON, CSV, TSV or NPZ file, or those of a built-in model.

    Raises:
        BadInput: no such file, a kind of file that is not known, or one that is not what its name says.
    """
    from .. import models

    path = Path(text)
    if text in models.names() and not path.is_file():
        return models.get(text).data()
    suffix = path.suffix.lower()
    if not path.exists():
        hint = _near_file(path) if suffix else f"; {nearest_word(text, models.names())}"
        raise BadInput(f"no data file {text!r}{hint}")
    if suffix not in DATA_SUFFIXES:
        raise BadInput(f"do not know how to read {text!r}: data files end in {', '.join(DATA_SUFFIXES)}")
    try:
        data = {".json": _read_json, ".npz": _read_npz}.get(suffix, _read_table)(path)
    except BadInput as error:
        raise BadInput(f"{text}: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read {text!r}: {getattr(error, 'strerror', None) or error}") from error
    if not data:
        raise BadInput(f"{text}: no data in it")
    return data


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise BadInput(f"not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    except RecursionError as error:
        raise BadInput("nested too deeply") from error
    if not isinstance(content, dict):
        kind = {list: "a list", str: "a string", type(None): "null"}.get(type(content), "a number")
        raise BadInput(f'needs an object of the model\'s arguments, as in {{"y": [1, 2, 3]}}, but holds {kind}')
    return {key: _from_json(key, value) for key, value in content.items()}


def _from_json(key: str, value: Any) -> Any:
    """Lists as arrays, a null in them as NaN (which `fit` then names by its index); everything else as it is."""
    if isinstance(value, dict):
        return {k: _from_json(f"{key}.{k}", v) for k, v in value.items()}
    if not isinstance(value, list):
        return value
    try:
        array = np.asarray(value)
        if array.dtype == object:
            array = np.asarray(value, np.float64)
    except (ValueError, TypeError, OverflowError):
        raise BadInput(f"{key!r} is not an array of numbers: its rows are of unequal length, or hold text") from None
    if array.dtype.kind in "US":
        raise BadInput(f"{key!r} holds text: encode it as numbers first")
    return array


def _read_table(path: Path) -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(path, sep="\t" if path.suffix.lower() == ".tsv" else ",", skipinitialspace=True,
                                encoding="utf-8-sig", index_col=False)  # fmt: skip
    except pd.errors.EmptyDataError as error:
        raise BadInput("the file is empty") from error
    except pd.errors.ParserWarning as error:
        raise BadInput("its rows have more fields than the header") from error
    except pd.errors.ParserError as error:
        raise BadInput(f"not a table: {' '.join(str(error).split())}") from error
    if len(frame) == 0:
        raise BadInput("a header, but no rows")
    data = {}
    for column in frame.columns:
        values = frame[column].to_numpy()
        if values.dtype.kind not in "fiub":
            text = frame[column].dropna()
            bad = text[pd.to_numeric(text, errors="coerce").isna()]
            if isinstance(column, str) and len(frame.columns) == 1 and ";" in column:
                raise BadInput("its columns are separated by semicolons: save it with commas")
            first = f"{bad.iloc[0]!r} in line {bad.index[0] + 2}" if len(bad) else str(values.dtype)
            raise BadInput(f"column {str(column).strip()!r} is not numeric: {first}")
        data[str(column).strip()] = np.asarray(values)
    return data


def _read_npz(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise BadInput("not an NPZ file: numpy.savez(path, y=y) writes one")
    try:
        with np.load(path, allow_pickle=False) as archive:
            data = {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise BadInput(f"not an NPZ file of plain arrays: {error}") from error
    # Sizes and switches can only be stored as arrays without axes, but models need them as plain values.
    return {k: v.item() if v.ndim == 0 and v.dtype.kind in "iubU" else v for k, v in data.items()}


def load_reference(text: str) -> dict[str, Any]:
    """The posterior group of an ArviZ netCDF file, as `compare` takes it.

    Raises:
        BadInput: no such file, or not one of ArviZ.
    """
    path = Path(text)
    if not path.is_file():
        hint = _near_file(path) if path.suffix else f"; {nearest_word(text, ['nuts', 'none'])}"
        raise BadInput(f"no reference file {text!r}{hint}")
    try:
        with xr.open_dataset(path, group="posterior", engine="h5netcdf") as opened:
            return {"posterior": opened.load()}
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"{text}: not an ArviZ netCDF file with a posterior group ({error})") from error


def check_folder(folder: Path) -> None:
    """Raise `BadInput` unless files can be written into the folder, which need not exist yet. Leaves nothing behind."""
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise BadInput(f"cannot write to {str(folder)!r}: {str(existing)!r} is not a folder")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise BadInput(f"cannot write to {str(folder)!r}: {error.strerror or error}") from error


def check_file(path: Path | None) -> None:
    """Raise `BadInput` unless the file can be written."""
    if path is None:
        return
    if path.is_dir():
        raise BadInput(f"cannot write to {str(path)!r}: it is a folder")
    if not path.parent.is_dir():
        raise BadInput(f"cannot write to {str(path)!r}: there is no folder {str(path.parent)!r}")
    check_folder(path.parent)
    if path.exists() and not os.access(path, os.W_OK):
        raise BadInput(f"cannot write to {str(path)!r}: permission denied")
