"""Threads of BLAS beside those of XLA.

On CPUs XLA leaves factorisations and triangular solves to the BLAS of SciPy, and computes everything else with threads
of its own. OpenBLAS's threads wait for more work by spinning, some 30 ms after each call, and meanwhile hold the cores.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache

import jax
from threadpoolctl import ThreadpoolController

from ..estimators.base import Problem

LARGE = 2000
"""Rows from which on a factorisation gains more by threads of its own than the rest loses by them."""


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


def one_thread() -> AbstractContextManager:
    """One thread for BLAS, in the whole process: whatever else calls BLAS meanwhile has no more."""
    return _controller().limit(limits=1, user_api="blas")


def leaves_room(problem: Problem) -> AbstractContextManager:
    """`one_thread` while a problem is solved on CPUs, unless it factorises large matrices."""
    if jax.default_backend() != "cpu" or problem.factorised > LARGE:
        return nullcontext()
    return one_thread()
