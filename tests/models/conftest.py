"""What the tests of likelihoods share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers


@pytest.fixture
def pointwise():
    """(model, data, params) -> log-likelihoods of the observed site, an entry a datum."""

    def run(model, data, params):
        params = {name: jnp.asarray(value) for name, value in params.items()}
        trace = handlers.trace(handlers.seed(handlers.substitute(model, data=params), 0)).get_trace(**data)
        (site,) = [s for s in trace.values() if s["type"] == "sample" and s["is_observed"]]
        missing = [n for n, s in trace.items() if s["type"] == "sample" and not s["is_observed"] and n not in params]
        assert not missing
        return site["fn"].log_prob(site["value"])

    return run


@pytest.fixture
def steepness(pointwise):
    """(model, data, params, stderr) -> largest |d log-likelihood / d parameter| times its standard error.

    It is 0 at a maximum, and s at s standard errors from it, whatever the units.
    """

    def run(model, data, params, stderr):
        def total(params):
            return pointwise(model, data, params).sum()

        gradient = jax.jit(jax.grad(total))({name: jnp.asarray(value, float) for name, value in params.items()})
        return max(np.abs(np.asarray(gradient[name]) * stderr[name]).max() for name in stderr)

    return run
