"""Threads of BLAS beside those of XLA.

On CPUs XLA leaves factorisations and triangular solves to the BLAS of SciPy, and computes everything else with threads
of its own. OpenBLAS's threads wait for more work by spinning, some 30 ms after each call, and meanwhile hold the cores.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import jax
from threadpoolctl import ThreadpoolController

from ..estimators.base import Problem

LARGE = 2000
"""Rows from which on a factorisation gains more by threads of its own than the rest loses by them."""


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


@contextmanager
def leaves_room(problem: Problem) -> Iterator[None]:
    """Gives BLAS one thread while a problem is solved on CPUs, unless it factorises large matrices.

    The limit is the process's: whatever else calls BLAS meanwhile has one thread too.
    """
    if jax.default_backend() != "cpu" or problem.factorised > LARGE:
        yield
        return
    with _controller().limit(limits=1, user_api="blas"):
        yield
