"""Exact evidence against GPyTorch, where it is installed."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro.distributions import constraints
from tinygp import GaussianProcess, kernels, transforms

from estimax.estimators import GPEvidence

from .conftest import pose

pytestmark = pytest.mark.usefixtures("x64_module")

AMPLITUDE, LENGTHS, NOISE = 1.3, np.array([0.7, 1.7, 4.0]), 0.4


def model(X, y):
    amplitude = numpyro.param("amplitude", AMPLITUDE, constraint=constraints.positive)
    lengths = numpyro.param("lengths", jnp.asarray(LENGTHS), constraint=constraints.positive)
    noise = numpyro.param("noise", NOISE, constraint=constraints.positive)
    kernel = transforms.Linear(1 / lengths, kernels.Matern52(distance=kernels.distance.L2Distance()))
    gp = GaussianProcess(amplitude**2 * kernel, X, diag=noise**2)
    numpyro.sample("y", gp.numpyro_dist(), obs=y)


@pytest.mark.long
def test_value_and_gradient_with_a_length_a_column_equal_gpytorch():
    gpytorch = pytest.importorskip("gpytorch")
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 3))
    y = np.sin(2 * X[:, 0]) + X[:, 1] + 0.4 * rng.normal(size=80)

    inputs, targets = torch.tensor(X), torch.tensor(y)
    likelihood = gpytorch.likelihoods.GaussianLikelihood().double()

    class Peer(gpytorch.models.ExactGP):
        def __init__(self):
            super().__init__(inputs, targets, likelihood)
            self.mean_module = gpytorch.means.ZeroMean()
            self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=2.5, ard_num_dims=3))

        def forward(self, x):
            return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

    peer = Peer().double()
    peer.covar_module.outputscale = torch.tensor(AMPLITUDE**2, dtype=torch.float64)  # a float would be rounded
    peer.covar_module.base_kernel.lengthscale = torch.tensor(LENGTHS)
    likelihood.noise = torch.tensor(NOISE**2, dtype=torch.float64)
    with gpytorch.settings.fast_computations(False, False, False):
        expected = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, peer)(peer(inputs), targets) * len(y)
        expected.backward()

    def slope(raw):
        """With respect to the parameter: GPyTorch's own is a softplus of it away."""
        return (raw.grad / torch.sigmoid(raw.detach())).numpy().ravel()

    problem = pose(GPEvidence(), model, {"X": X, "y": y})
    value, gradient = jax.jit(jax.value_and_grad(lambda p: problem.objective(p, problem.data)))(problem.params)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-8)
    # ours are by logarithms of amplitude, lengths and standard deviation, theirs by variances and lengths
    scale, length = peer.covar_module.raw_outputscale, peer.covar_module.base_kernel.raw_lengthscale
    np.testing.assert_allclose(gradient["amplitude"], 2 * AMPLITUDE**2 * slope(scale)[0], rtol=1e-8)
    np.testing.assert_allclose(gradient["lengths"], LENGTHS * slope(length), rtol=1e-8)
    np.testing.assert_allclose(gradient["noise"], 2 * NOISE**2 * slope(likelihood.noise_covar.raw_noise)[0], rtol=1e-8)
