"""statsmodels' bundled data sets, imported only when one is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def load(name: str) -> Any:
    """The data frame of `statsmodels.datasets.NAME`; where statsmodels is missing the error says how to get it."""
    try:
        module = import_module(f"statsmodels.datasets.{name}")
    except ImportError as error:
        raise ImportError("this model's data ship with statsmodels: pip install 'estimax[models]'") from error
    return module.load_pandas().data
