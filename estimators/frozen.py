"""Arrays as arguments of estimators, which must be hashable."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np


class Frozen:
    """An array that can be compared and hashed, so that an estimator which holds it can be."""

    def __init__(self, values: Any) -> None:
        self.values = np.array(values, np.float64)
        self.values.flags.writeable = False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Frozen) and np.array_equal(self.values, other.values)

    def __hash__(self) -> int:
        return hash((self.values.shape, self.values.tobytes()))

    def __repr__(self) -> str:
        return f"array of shape {self.values.shape}"


def fill(estimator: Any, given: dict[str, Any]) -> None:
    """Set the fields of a frozen dataclass whose ``__init__`` is written out, so that its own arguments come first.

    Raises:
        TypeError: an argument that it does not have.
    """
    given = dict(given)
    for each in fields(estimator):
        object.__setattr__(estimator, each.name, given.pop(each.name, each.default))
    if given:
        raise TypeError(f"{type(estimator).__name__} has no argument {next(iter(given))!r}")
    estimator.__post_init__()
