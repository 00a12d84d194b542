"""Fixtures of the whole suite."""

import jax
import pytest


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


@pytest.fixture(scope="module")
def quick_compile():
    """Programs that run once are compiled without optimisation: that takes a third of the time."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
