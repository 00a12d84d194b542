"""Fixtures of the whole suite."""

import gc
import os
import signal
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # a worker a core: threads of one only take time from the other
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

# Most programs of the tests run a few times: compiled without optimisation they cost a half to two thirds.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")

import equinox as eqx
import jax
import pytest

MOST_MAPS = 20_000
"""Memory maps of a process at which its compiled programs are dropped: Linux allows 65,530, and XLA dies there."""


@pytest.fixture(autouse=True, scope="session")
def heard_interrupts():
    """A shell starts background jobs with Ctrl-C ignored: tests of Ctrl-C need it heard."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="module")
def bounded_programs():
    """Forget compiled programs between modules once there are many of them."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_text().count("\n") > MOST_MAPS:
        eqx.clear_caches()
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def x64():
    """Double precision within one test; the rest of the suite runs in NumPyro's default, float32."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def x64_module():
    """Double precision in every test of a module, shared fixtures included."""
    with jax.enable_x64(True):
        yield
