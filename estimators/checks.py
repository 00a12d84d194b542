"""Checks of the numbers that estimators and fits are given."""

from __future__ import annotations

from typing import Any

import numpy as np


def is_count(value: Any, least: int = 1) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(value >= least)


def check_counts(least: int = 1, **counts: Any) -> None:
    """
    Raises:
        ValueError: one that is no integer of at least so many, by its name.
    """
    for name, value in counts.items():
        if not is_count(value, least):
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and bool(np.isfinite(value))


def check_number(name: str, value: Any, low: float, high: float = np.inf) -> None:
    """
    Raises:
        ValueError: not a finite number from `low` to `high`.
    """
    if not (is_number(value) and low <= value <= high):
        limits = f"of at least {low}" if high == np.inf else f"from {low} to {high}"
        raise ValueError(f"{name} must be a finite number {limits}, got {value!r}")


def check_positive(name: str, value: Any) -> None:
    """
    Raises:
        ValueError: not a positive finite number.
    """
    if not (is_number(value) and value > 0):
        raise ValueError(f"{name} must be positive, got {value!r}")
