"""scikit-learn's bundled data sets, imported only when one is asked for."""

from __future__ import annotations

from typing import Any


def load(name: str) -> Any:
    """`sklearn.datasets.load_NAME()`; where scikit-learn is missing the error says how to get it."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError("this model's data ship with scikit-learn: pip install 'estimax[models]'") from error
    return getattr(datasets, f"load_{name}")()
