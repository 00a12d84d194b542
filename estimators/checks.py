"""Checks of the numbers that estimators are made with."""

from __future__ import annotations

from typing import Any

import numpy as np


def check_count(name: str, value: Any) -> None:
    """
    Raises:
        ValueError: not a positive integer.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")


def check_positive(name: str, value: Any) -> None:
    """
    Raises:
        ValueError: not a positive number.
    """
    is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not (is_number and 0 < value < np.inf):
        raise ValueError(f"{name} must be positive, got {value!r}")
