"""Arrays as arguments of estimators, which must be hashable."""

from __future__ import annotations

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
