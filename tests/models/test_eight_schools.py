import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer.util import log_density
from scipy import integrate, stats

from estimax.models import eight_schools


def marginal_covariance(tau, sigma):
    """Of y given tau, written down without any of the module's algebra."""
    return np.diag(sigma**2 + tau**2) + 25.0


def test_log_joint_against_scipy():
    data = eight_schools.data()
    values = {"mu": 3.0, "tau": 2.5, "theta_base": np.linspace(-1.0, 1.5, 8)}
    ours, _ = log_density(eight_schools.model, (), data, {key: jnp.asarray(value) for key, value in values.items()})
    theta = values["mu"] + values["tau"] * values["theta_base"]
    expected = stats.norm.logpdf(3.0, 0.0, 5.0) + stats.halfcauchy.logpdf(2.5, scale=5.0)
    expected += stats.norm.logpdf(values["theta_base"]).sum() + stats.norm.logpdf(data["y"], theta, data["sigma"]).sum()
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_log_evidence_against_adaptive_quadrature():
    data = eight_schools.data()

    def joint(tau):
        likelihood = stats.multivariate_normal(np.zeros(8), marginal_covariance(tau, data["sigma"])).pdf(data["y"])
        return likelihood * stats.halfcauchy.pdf(tau, scale=5.0)

    near, _ = integrate.quad(joint, 0.0, 50.0, epsabs=0.0, epsrel=1e-9)
    far, _ = integrate.quad(joint, 50.0, np.inf, epsabs=0.0, epsrel=1e-6)
    np.testing.assert_allclose(eight_schools.log_evidence(), np.log(near + far), atol=1e-6)


def test_moments_against_gaussian_conditioning_and_quadrature():
    """Condition the joint Gaussian of (mu, theta_base, y) given tau by dense algebra, then integrate over tau."""
    data = eight_schools.data()

    def first_two_moments(tau):
        basis = np.hstack([np.ones((8, 1)), tau * np.eye(8)])  # y = basis (mu, theta_base) + noise
        prior = np.diag([25.0, *np.ones(8)])
        gain = prior @ basis.T @ np.linalg.inv(basis @ prior @ basis.T + np.diag(data["sigma"] ** 2))
        mean, covariance = gain @ data["y"], prior - gain @ basis @ prior
        variance = np.append(np.diag(covariance), np.diag(basis @ covariance @ basis.T))
        mean = np.append(mean, basis @ mean)
        return np.concatenate([[1.0], mean, variance + mean**2, [tau, tau**2]])

    def weighted(u):
        tau = 5.0 * np.tan(0.5 * np.pi * u)
        density = stats.multivariate_normal(np.zeros(8), marginal_covariance(tau, data["sigma"])).pdf(data["y"])
        return density * first_two_moments(tau)

    total, _ = integrate.quad_vec(weighted, 0.0, 1.0, epsrel=1e-7, norm="max")
    total = total[1:] / total[0]
    mean, square = np.append(total[:17], total[-2]), np.append(total[17:34], total[-1])
    sd = np.sqrt(square - mean**2)
    moments = eight_schools.posterior_moments()
    for name, index in {"mu": 0, "theta_base": slice(1, 9), "theta": slice(9, 17), "tau": 17}.items():
        np.testing.assert_allclose(moments[name][0], mean[index], atol=2e-3, err_msg=name)
        np.testing.assert_allclose(moments[name][1], sd[index], rtol=2e-3, err_msg=name)


def test_reference_draws_agree_with_the_exact_moments():
    """2,000 draws of another library's NUTS: about 0.03 sd and 3 % are expected, more for theta_base's tails."""
    pytest.importorskip("arviz")
    reference, moments = eight_schools.reference(), eight_schools.posterior_moments()
    assert {name: draws.shape for name, draws in reference.items()} == {
        "mu": (2000,),
        "tau": (2000,),
        "theta_base": (2000, 8),
        "theta": (2000, 8),
    }
    np.testing.assert_allclose(
        reference["theta"], reference["mu"][:, None] + reference["tau"][:, None] * reference["theta_base"], atol=1e-8
    )
    for name, draws in reference.items():
        mean, sd = moments[name]
        np.testing.assert_allclose((draws.mean(0) - mean) / sd, 0.0, atol=0.1, err_msg=name)
        np.testing.assert_allclose(draws.std(0) / sd, 1.0, atol=0.1, err_msg=name)
