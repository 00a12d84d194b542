"""What the tests of likelihoods share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from numpyro import handlers
from numpyro.distributions.transforms import biject_to
from scipy import optimize


@pytest.fixture
def pointwise():
    """(model, data, params) -> log-likelihoods of the observed site, an entry a datum."""

    def run(model, data, params):
        @jax.jit
        def values(params):
            trace = handlers.trace(handlers.seed(handlers.substitute(model, data=params), 0)).get_trace(**data)
            sites = {name: site for name, site in trace.items() if site["type"] == "sample"}
            assert {name for name, site in sites.items() if not site["is_observed"]} == set(params)
            (site,) = [site for site in sites.values() if site["is_observed"]]
            return site["fn"].log_prob(site["value"])

        return values({name: jnp.asarray(value) for name, value in params.items()})

    return run


@pytest.fixture
def draw():
    """(model, **data) -> values of all sample sites, drawn from the prior."""

    def run(model, **data):
        @jax.jit
        def values():
            trace = handlers.trace(handlers.seed(model, 0)).get_trace(**data)
            return {name: site["value"] for name, site in trace.items() if site["type"] == "sample"}

        return values()

    return run


@pytest.fixture
def climb(pointwise):
    """(model, data, start) -> the log-likelihood that scipy's L-BFGS climbs to in unconstrained space, and where."""

    def run(model, data, start):
        start = {name: jnp.asarray(value) for name, value in start.items()}
        trace = handlers.trace(handlers.seed(handlers.substitute(model, data=start), 0)).get_trace(**data)
        transforms = {name: biject_to(trace[name]["fn"].support) for name in start}
        flat, unravel = ravel_pytree({name: transforms[name].inv(value) for name, value in start.items()})

        def constrain(z):
            return {name: transforms[name](value) for name, value in unravel(z).items()}

        def loss(z):
            return -pointwise(model, data, constrain(z)).sum()

        options = {"maxiter": 5000, "maxfun": 10_000, "ftol": 1e-14, "gtol": 1e-7}
        found = optimize.minimize(jax.jit(jax.value_and_grad(loss)), flat, jac=True, method="L-BFGS-B", options=options)
        return -found.fun, {name: np.asarray(value) for name, value in constrain(found.x).items()}

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
