"""BFGS on functions whose minima are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from estimax.inference import quasi_newton

pytestmark = pytest.mark.usefixtures("x64_module")


def minimised(f, starts, evaluations=300, tolerance=1e-20):
    return jax.jit(jax.vmap(lambda z: quasi_newton.run(f, quasi_newton.start(z), evaluations, tolerance)))(starts)


def test_several_starts_reach_the_minimum_of_rosenbrocks_valley():
    starts = jnp.array([[-1.2, 1.0], [3.0, -4.0], [1.0, 1.0]])
    found = minimised(lambda z: (1 - z[0]) ** 2 + 100 * (z[1] - z[0] ** 2) ** 2, starts)
    np.testing.assert_allclose(found.z, 1.0, atol=1e-9)
    assert found.steps.max() < 80


def test_a_quadratic_in_raw_units():
    """Curvatures from 1e-2 to 1e4: no plateau on the way is taken for the minimum."""
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    hessian, centre = rotation * np.logspace(-2, 4, 5) @ rotation.T, rng.normal(size=5)
    found = minimised(lambda z: 0.5 * (z - centre) @ hessian @ (z - centre), jnp.zeros((1, 5)), tolerance=1e-18)
    np.testing.assert_allclose(found.z[0], centre, rtol=1e-4)


@pytest.mark.parametrize("rounding", [1e-11, 1e-10, 1e-9])
def test_a_minimum_below_the_rounding_of_the_loss_is_found(rounding):
    """As large factorisations leave it: values that tell less than their digits say, and good gradients."""
    hessian = jnp.array([[3.0, 1.0, 0.2], [1.0, 2.0, 0.1], [0.2, 0.1, 1.0]])

    @jax.custom_jvp
    def loss(z):
        noise = rounding * jnp.sin(1e9 * jnp.sum(z))
        return 800 + 0.5 * (z - 1) @ hessian @ (z - 1) + 0.1 * jnp.sum((z - 1) ** 4) + noise

    loss.defjvp(lambda z, dz: (loss(*z), (hessian @ (z[0] - 1) + 0.4 * (z[0] - 1) ** 3) @ dz[0]))
    found = minimised(loss, jnp.asarray(2 * np.random.default_rng(0).normal(size=(20, 3))), tolerance=1e-13)
    assert bool(jnp.all(jax.vmap(quasi_newton.converged)(found)))
    assert bool(jnp.any(found.stuck))  # some have no step left that lowers the loss
    np.testing.assert_allclose(found.z, 1.0, atol=max(3e-5, 2 * np.sqrt(rounding)))


def test_curvature_at_the_end_of_a_step():
    """Of a cubic exactly; of an exponential far nearer than the mean; and 1 where values differ by their rounding."""
    cubic = np.polynomial.Polynomial([3.0, -2.0, 1.0, 0.5])
    slope, left = (cubic.deriv()(t) for t in (0.0, 1.0))
    ratio = quasi_newton.bend_at_end(cubic(0.0) - cubic(1.0), slope, left, cubic(1.0))
    np.testing.assert_allclose(ratio, cubic.deriv(2)(1.0) / (left - slope))
    end = np.exp(-1.0)
    found = quasi_newton.bend_at_end(1 - end, -1.0, -end, end) * (1 - end)
    assert abs(found - end) < 0.2 * abs((1 - end) - end)
    assert quasi_newton.bend_at_end(1e-9, -1e-9, 1e-9, 1e6) == 1


def test_a_minimum_at_infinity_takes_steps_of_newtons_length():
    """e^-u falls to 1e-12 at u = 28, in Newton steps of one; steps by the mean curvature, of log 2, take forty."""
    found = minimised(lambda z: jnp.exp(-z[0]) + 0 * z[1], jnp.zeros((1, 2)), tolerance=1e-12)
    assert found.z[0, 0] > 27
    assert found.steps[0] < 36


def test_infinite_losses_turn_the_line_search_back():
    """z − log z has its minimum at one and is infinite below zero, where the first step would go."""
    f = lambda z: jnp.sum(jnp.where(z > 0, z - jnp.log(jnp.where(z > 0, z, 1.0)), jnp.inf))  # noqa: E731
    np.testing.assert_allclose(minimised(f, jnp.array([[1e-3], [50.0]])).z, 1.0, rtol=1e-8)


def test_no_step_is_counted_where_none_helps():
    """At a minimum on a kink of slope one the search gives up, and says so."""
    found = minimised(lambda z: jnp.abs(z[0]), jnp.array([[0.0]]))
    assert found.stuck.all() or found.steps.max() <= 1
    np.testing.assert_allclose(found.z, 0.0, atol=1e-9)


def test_settling_near_a_minimum_and_away_from_a_saddle():
    """cosh from a rough curvature; and z² − w² has no minimum, which shows in the decrement."""
    gradient = jax.grad(lambda z: jnp.sum(jnp.cosh(z - 1)))
    z = jnp.array([0.8, 1.3])
    found, decrement = quasi_newton.settle(gradient, z, gradient(z), 1.3 * jnp.eye(2), 1e-9, 30)
    np.testing.assert_allclose(found, 1.0, atol=1e-9)
    assert decrement < 1e-9
    gradient = jax.grad(lambda z: z[0] ** 2 - z[1] ** 2)
    z = jnp.array([0.1, 0.1])
    assert quasi_newton.settle(gradient, z, gradient(z), 0.5 * jnp.eye(2), 1e-9, 30)[1] > 1e-3
