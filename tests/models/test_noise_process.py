"""Noise processes against the closed forms of their equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from estimax.models.noise_process import VE, VP, SubVP

pytestmark = pytest.mark.usefixtures("x64_module")

TIMES = np.linspace(0.01, 1, 7)
PROCESSES = [VE(0.05, 8.0), VP(0.2, 15.0), SubVP(0.2, 15.0)]


@pytest.fixture(params=PROCESSES, ids=lambda p: type(p).__name__)
def process(request):
    return request.param


@pytest.mark.long
def test_moments_solve_the_stochastic_differential_equation(process):
    """d mean/dt = f mean and d var/dt = 2 f var + g², integrated by scipy from the first time to each later one."""

    def slope(t, y):
        f, g = float(process.drift(t)), float(process.diffusion(t))
        return [f * y[0], 2 * f * y[1] + g**2]

    for start in (TIMES[0], TIMES[3]):
        later = TIMES[start <= TIMES]
        truth = solve_ivp(slope, (start, 1), [1.0, 0.0], t_eval=later, rtol=1e-10, atol=1e-12).y
        scale, sd = process.transition(start, later)
        np.testing.assert_allclose(scale, truth[0], rtol=1e-7)
        np.testing.assert_allclose(np.square(sd), truth[1], rtol=1e-6, atol=1e-10)


def test_drift_and_diffusion_are_those_of_the_literature():
    beta = 0.2 + TIMES * 14.8
    spent = 0.2 * TIMES + 0.5 * 14.8 * TIMES**2
    np.testing.assert_allclose(VP(0.2, 15.0).drift(TIMES), -beta / 2, rtol=1e-9)
    np.testing.assert_allclose(VP(0.2, 15.0).diffusion(TIMES), np.sqrt(beta), rtol=1e-9)
    np.testing.assert_allclose(SubVP(0.2, 15.0).diffusion(TIMES), np.sqrt(beta * (1 - np.exp(-2 * spent))), rtol=1e-9)
    np.testing.assert_allclose(VE(0.05, 8.0).diffusion(TIMES), 0.05 * 160**TIMES * np.sqrt(2 * np.log(160)), rtol=1e-9)


def test_time_is_the_inverse_of_log_snr(process):
    np.testing.assert_allclose(process.time(process.log_snr(TIMES)), TIMES, rtol=1e-8)


def test_single_precision_is_enough_at_the_ends(process):
    exact = np.asarray(process.transition(0.5, 0.5001)[1])
    with jax.enable_x64(False):
        single = process.transition(jnp.float32(0.5), jnp.float32(0.5001))[1]
        assert np.isfinite(process.diffusion(jnp.float32(process.t_min)))
    # 0.5 and 0.5001 are 1e-4 apart, of which float32 has three digits
    np.testing.assert_allclose(single, exact, rtol=2e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VE(0.0, 1.0), "sigma_min=0.0"),
        (lambda: VE(2.0, 1.0), "sigma_min < sigma_max"),
        (lambda: VP(-1.0, 20.0), "beta_min=-1.0"),
        (lambda: SubVP(earliest=0.0), "earliest must lie between 0 and 1"),
    ],
)
def test_bad_noise_scales_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
