"""Gaussian processes against scikit-learn, GPyTorch and GPJax, and how each estimator scales. `--quick` only runs.

python benchmarks/gp.py [evaluations] [state_space] [stochastic] [fits]
"""

import sys
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from common import write
from tinygp import GaussianProcess, kernels

import estimax
from estimax.estimators import SVGP, CoresetGP, GPEvidence, SparseGP, StateSpaceGP

QUICK = "--quick" in sys.argv
POSITIVE = dist.constraints.positive


def regression(X, y):
    amplitude = numpyro.param("amplitude", 1.0, constraint=POSITIVE)
    length = numpyro.param("length", 1.0, constraint=POSITIVE)
    noise = numpyro.param("noise", 0.5, constraint=POSITIVE)
    f = numpyro.sample("f", GaussianProcess(amplitude**2 * kernels.Matern32(length), X, diag=1e-8).numpyro_dist())
    numpyro.sample("y", dist.Normal(f, noise), obs=y)


def series(n):
    rng = np.random.default_rng(0)
    X = np.sort(rng.uniform(0, n / 50, n))
    return {"X": X, "y": np.sin(X) + 0.5 * np.sin(0.3 * X) + 0.3 * rng.normal(size=n)}


def timed(run, repeats):
    run()  # compilation
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds))


def evaluations(n=200 if QUICK else 1000, count=5 if QUICK else 200):
    """Seconds of one value and gradient of the marginal likelihood."""
    data = series(n)
    out = {}
    with jax.enable_x64(True):
        arrays = {k: jnp.asarray(v) for k, v in data.items()}
        problem = GPEvidence().problem(jax.random.key(0), regression, None, arrays)
        step = jax.jit(jax.value_and_grad(lambda p: problem.loss(p, None, arrays)[0]))
        compiled = step.lower(problem.params).compile()
        memory = compiled.memory_analysis()
        out["n x n arrays held"] = (memory.temp_size_in_bytes + memory.output_size_in_bytes) / 8 / n**2
        points = [jax.tree.map(lambda x, i=i: x + 1e-3 * i, problem.params) for i in range(count)]
        out["estimax"] = timed(lambda: [jax.block_until_ready(compiled(p)) for p in points], 1) / count
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    kernel = ConstantKernel(1.0) * Matern(1.0, nu=1.5) + WhiteKernel(0.25)
    peer = GaussianProcessRegressor(kernel, optimizer=None, alpha=0.0).fit(data["X"][:, None], data["y"])
    few = max(count // 20, 2)
    theta = [peer.kernel_.theta + 1e-3 * i for i in range(few)]
    out["scikit-learn"] = timed(lambda: [peer.log_marginal_likelihood(t, eval_gradient=True) for t in theta], 1) / few
    try:
        import gpytorch
        import torch

        torch.set_default_dtype(torch.float64)
        X, y = torch.tensor(data["X"]), torch.tensor(data["y"])

        class Exact(gpytorch.models.ExactGP):
            def __init__(self, likelihood):
                super().__init__(X, y, likelihood)
                self.mean_module = gpytorch.means.ZeroMean()
                self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5))

            def forward(self, x):
                return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

        likelihood = gpytorch.likelihoods.GaussianLikelihood()
        model = Exact(likelihood)
        mll = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)

        def once():
            model.zero_grad()
            with gpytorch.settings.max_cholesky_size(10_000):
                (-mll(model(X), y)).backward()

        out["gpytorch"] = timed(lambda: [once() for _ in range(few)], 1) / few
    except ImportError:
        print("gpytorch is not installed: left out")
    return out


def fits():
    """Whole fits in seconds, compilation included, by rows."""
    out = {}
    plan = {
        "GPEvidence": (GPEvidence(), [200, 400] if QUICK else [250, 500, 1000, 2000], {}),
        "SparseGP(50)": (SparseGP(50), [400] if QUICK else [1000, 10_000], {}),
        "StateSpaceGP": (StateSpaceGP(), [1000] if QUICK else [1000, 10_000, 100_000], {}),
    }
    for name, (estimator, sizes, options) in plan.items():
        for n in sizes:
            data = series(n)
            estimax.fit(regression, estimator, data, progress_bar=False, num_steps=10, **options)  # compilation
            began = time.perf_counter()
            result = estimax.fit(regression, estimator, data, progress_bar=False, **options)
            out[f"{name} n={n}"] = {"seconds": time.perf_counter() - began, "iterations": result.num_steps}
            print(name, n, out[f"{name} n={n}"], flush=True)
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    n = 300 if QUICK else 2000
    data = series(n)
    began = time.perf_counter()
    GaussianProcessRegressor(ConstantKernel(1.0) * Matern(1.0, nu=1.5) + WhiteKernel(0.25), alpha=0.0).fit(
        data["X"][:, None], data["y"]
    )
    out[f"scikit-learn n={n}"] = {"seconds": time.perf_counter() - began}
    return out


def state_space_scaling():
    """Seconds of one value and gradient by rows."""
    out = {}
    with jax.enable_x64(True):
        for n in [1000, 10_000] if QUICK else [10_000, 100_000, 1_000_000]:
            arrays = {k: jnp.asarray(v) for k, v in series(n).items()}
            problem = StateSpaceGP().problem(jax.random.key(0), regression, None, arrays)
            step = jax.jit(jax.value_and_grad(lambda p, q=problem, d=arrays: q.loss(p, None, d)[0]))
            out[str(n)] = timed(lambda s=step, q=problem: jax.block_until_ready(s(q.params)), 3)
            print("state space", n, out[str(n)], flush=True)
    return out


def stochastic():
    """Steps a second of SVGP and CoresetGP, and of GPyTorch's SVGP, at the same sizes in single precision."""
    n, M, B = (2000, 32, 64) if QUICK else (100_000, 256, 1024)
    data, out = series(n), {}
    for name, estimator in {"SVGP": SVGP(M, B), "CoresetGP": CoresetGP(M, B)}.items():
        result = estimax.fit(regression, estimator, data, num_steps=5 if QUICK else 60, progress_bar=False)
        out[name] = result.steps_per_second
        print(name, out[name], flush=True)
    try:
        import gpytorch
        import torch

        torch.set_default_dtype(torch.float32)
        X, y = torch.tensor(data["X"], dtype=torch.float32)[:, None], torch.tensor(data["y"], dtype=torch.float32)

        class Model(gpytorch.models.ApproximateGP):
            def __init__(self, Z):
                q = gpytorch.variational.NaturalVariationalDistribution(M)
                super().__init__(gpytorch.variational.VariationalStrategy(self, Z, q, learn_inducing_locations=True))
                self.mean_module = gpytorch.means.ZeroMean()
                self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5))

            def forward(self, x):
                return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

        model, likelihood = Model(X[:: n // M][:M].clone()), gpytorch.likelihoods.GaussianLikelihood()
        natural = gpytorch.optim.NGD(model.variational_parameters(), num_data=n, lr=0.1)
        adam = torch.optim.Adam([*model.hyperparameters(), *likelihood.parameters()], lr=0.01)
        mll = gpytorch.mlls.VariationalELBO(likelihood, model, num_data=n)
        steps = 5 if QUICK else 60
        for i in range(steps + 3):
            if i == 3:
                began = time.perf_counter()
            index = torch.randint(0, n, (B,))
            natural.zero_grad()
            adam.zero_grad()
            (-mll(model(X[index]), y[index])).backward()
            natural.step()
            adam.step()
        out["gpytorch SVGP"] = steps / (time.perf_counter() - began)
    except ImportError:
        print("gpytorch is not installed: left out")
    return out


SECTIONS = {
    "evaluations": ("one value and gradient, seconds", evaluations),
    "state_space": ("state space, one value and gradient, seconds", state_space_scaling),
    "stochastic": ("steps a second", stochastic),
    "fits": ("whole fits", fits),
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    chosen = [a for a in sys.argv[1:] if a in SECTIONS] or list(SECTIONS)
    results = {SECTIONS[name][0]: SECTIONS[name][1]() for name in chosen}
    print(results)
    if not QUICK:
        write("gp", results)
