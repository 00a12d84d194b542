"""Fits that several files look at, each made once."""

from functools import cache

import pytest

from estimax import estimators, fit, models


@cache
def _fit(model: str, estimator: str, num_particles: int):
    entry = models.get(model)
    return fit(entry.model, getattr(estimators, estimator)(num_particles), entry.data(), progress_bar=False)


@pytest.fixture(scope="session")
def default_fit():
    """`default_fit(model, estimator, num_particles=16)`: a default fit of a shipped model, from a cache."""
    return lambda model, estimator, num_particles=16: _fit(model, estimator, num_particles)
