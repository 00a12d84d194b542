"""Gaussian processes against scikit-learn, GPyTorch and GPJax, and how each estimator scales. `--quick` only runs.

python benchmarks/gp.py [evaluations] [state_space] [stochastic] [iterative] [fits]
"""

import time
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from common import QUICK, REST, run_sections, seconds
from tinygp import GaussianProcess, kernels, transforms

import estimax
from estimax.estimators import SVGP, CoresetGP, GPEvidence, IterativeGP, SparseGP, StateSpaceGP
from estimax.estimators.gp import iterative as lanczos
from estimax.inference.blas import one_thread

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


def elapsed(call):
    """Seconds, and what the call returns."""
    began = time.perf_counter()
    out = call()
    return time.perf_counter() - began, out


def timed(run, repeats):
    run()  # compilation
    return float(np.median([seconds(run) for _ in range(repeats)]))


def by_column(X, y):
    amplitude = numpyro.param("amplitude", 1.0, constraint=POSITIVE)
    lengths = numpyro.param("lengths", jnp.full(X.shape[1], 3.0), constraint=POSITIVE)
    noise = numpyro.param("noise", 0.5, constraint=POSITIVE)
    kernel = transforms.Linear(1 / lengths, kernels.Matern32(distance=kernels.distance.L2Distance()))
    f = numpyro.sample("f", GaussianProcess(amplitude**2 * kernel, X, diag=1e-8).numpyro_dist())
    numpyro.sample("y", dist.Normal(f, noise), obs=y)


def columns(n, d=10):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, d))
    return {"X": X, "y": np.sin(X[:, 0]) + 0.5 * X[:, 1] + 0.3 * rng.normal(size=n)}


PARTS = {"trend": (2.0, 50.0), "season": (1.0, 100.0, 1.0), "medium": (0.5, 1.0, 1.0), "short": (0.2, 0.5)}
"""Amplitudes, lengths and shapes of the kernel of scikit-learn's own example, the CO₂ at Mauna Loa."""


def four_parts(X, y):
    part = {k: numpyro.param(k, jnp.array(v), constraint=POSITIVE) for k, v in PARTS.items()}
    noise = numpyro.param("noise", 0.5, constraint=POSITIVE)
    (a, b), (c, d, e), (g, h, i), (j, k) = (part[name] for name in PARTS)
    squared = lambda length: kernels.ExpSquared(length)  # noqa: E731
    kernel = (
        a**2 * squared(b) + c**2 * squared(d) * kernels.ExpSineSquared(scale=1.0, gamma=2 / e**2)
        + g**2 * kernels.RationalQuadratic(h, alpha=i) + j**2 * squared(k)
    )  # fmt: skip
    f = numpyro.sample("f", GaussianProcess(kernel, X, diag=1e-8).numpyro_dist())
    numpyro.sample("y", dist.Normal(f, noise), obs=y)


def ours(model, data, out):
    """One value and gradient, as a call."""
    with jax.enable_x64(True):
        arrays = {k: jnp.asarray(v) for k, v in data.items()}
        problem = GPEvidence().problem(jax.random.key(0), model, None, arrays)
        step = jax.jit(jax.value_and_grad(lambda p: problem.loss(p, None, arrays)[0]))
        began = time.perf_counter()
        compiled = step.lower(problem.params).compile()
        out["seconds to compile"] = time.perf_counter() - began
        memory = compiled.memory_analysis()
        held = (memory.temp_size_in_bytes + memory.output_size_in_bytes) / 8 / len(data["y"]) ** 2
        out["n x n arrays held"] = held

    def once(i):
        with jax.enable_x64(True), one_thread():  # as in a fit
            jax.block_until_ready(compiled(jax.tree.map(lambda x: x + 1e-3 * i, problem.params)))

    return once


def of_scikit_learn(data, length):
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ExpSineSquared, Matern, RationalQuadratic, WhiteKernel

    if length is PARTS:
        (a, b), (c, d, e), (g, h, i), (j, k) = PARTS.values()
        periodic = ExpSineSquared(e, 1.0, periodicity_bounds="fixed")
        kernel = a**2 * RBF(b) + c**2 * RBF(d) * periodic + g**2 * RationalQuadratic(h, i) + j**2 * RBF(k)
    else:
        kernel = 1.0 * Matern(length, nu=1.5)
    kernel = kernel + WhiteKernel(0.25)
    X = data["X"].reshape(len(data["y"]), -1)
    peer = GaussianProcessRegressor(kernel, optimizer=None, alpha=0.0).fit(X, data["y"])
    theta = peer.kernel_.theta
    return lambda i: peer.log_marginal_likelihood(theta + 1e-3 * i, eval_gradient=True)


def of_gpytorch(data, length):
    import gpytorch
    import torch

    X, y = torch.tensor(data["X"]).reshape(len(data["y"]), -1), torch.tensor(data["y"])
    likelihood = gpytorch.likelihoods.GaussianLikelihood().double()

    class Exact(gpytorch.models.ExactGP):
        def __init__(self):
            super().__init__(X, y, likelihood)
            self.mean_module = gpytorch.means.ZeroMean()
            own = gpytorch.kernels.MaternKernel(nu=1.5, ard_num_dims=X.shape[1])
            self.covar_module = gpytorch.kernels.ScaleKernel(own)

        def forward(self, x):
            return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

    model = Exact().double()
    model.covar_module.base_kernel.lengthscale = torch.tensor(length, dtype=torch.float64)
    likelihood.noise = torch.tensor(0.25, dtype=torch.float64)
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)

    def once(i):
        model.zero_grad()
        with gpytorch.settings.fast_computations(False, False, False):
            (-mll(model(X), y)).backward()

    return once


def model_of_gpjax(length, amplitude=1.0, noise=0.5):
    import gpjax

    kernel = gpjax.kernels.Matern32(lengthscale=jnp.asarray(length), variance=jnp.asarray(amplitude) ** 2)
    prior = gpjax.gps.Prior(mean_function=gpjax.mean_functions.Zero(), kernel=kernel, jitter=0.0)
    return prior * gpjax.likelihoods.Gaussian(obs_stddev=jnp.asarray(noise))


def data_of_gpjax(data):
    import gpjax

    return gpjax.Dataset(X=jnp.asarray(data["X"]).reshape(len(data["y"]), -1), y=jnp.asarray(data["y"])[:, None])


def of_gpjax(data, length):
    import gpjax

    with jax.enable_x64(True):
        own = data_of_gpjax(data)
        start = [jnp.log(x) for x in (jnp.asarray(length), jnp.asarray(1.0), jnp.asarray(0.5))]
        step = jax.jit(
            jax.value_and_grad(lambda logs: -gpjax.objectives.conjugate_mll(model_of_gpjax(*map(jnp.exp, logs)), own))
        )

    def once(i):
        with jax.enable_x64(True):
            jax.block_until_ready(step([x + 1e-3 * i for x in start]))

    return once


def floor(data):
    """Cholesky and inverse by LAPACK itself: without them there is no gradient, whatever the kernel costs."""
    from scipy.linalg import lapack

    r = np.sqrt(3) * np.abs(data["X"][:, None] - data["X"])
    K = np.asfortranarray((1 + r) * np.exp(-r) + 0.25 * np.eye(len(r)))
    return lambda i: lapack.dpotri(lapack.dpotrf(K, lower=1)[0], lower=1)


def evaluations(n=200 if QUICK else 1000, rounds=2 if QUICK else 15):
    """Seconds of one value and gradient of the marginal likelihood, all in turn; speed ratios are medians of rounds."""
    out = {}
    cases = {
        "one length": (regression, series(n), 1.0),
        "a length for each of 10 columns": (by_column, columns(n), np.full(10, 3.0)),
        "four parts": (four_parts, series(n), PARTS),
    }
    for name, (model, data, length) in cases.items():
        row = out[name] = {}
        calls = {"estimax": ours(model, data, row), "scikit-learn": of_scikit_learn(data, length)}
        peers = {"gpytorch": of_gpytorch, "gpjax": of_gpjax}  # of one kernel each, for the simple ones
        for who, peer in ({} if length is PARTS else peers).items():
            try:
                calls[who] = peer(data, length)
            except ImportError:
                print(f"{who} is not installed: left out")
        if data["X"].ndim == 1:
            calls["LAPACK's Cholesky and inverse alone"] = floor(data)
        for call in calls.values():
            call(0)
        times = {who: [] for who in calls}
        for i in range(rounds):
            for who, call in calls.items():
                time.sleep(REST)
                times[who].append(seconds(lambda call=call, i=i: call(i)))
        row["seconds"] = {who: float(np.median(t)) for who, t in times.items()}
        row["speed over"] = {
            who: float(np.median(np.divide(t, times["estimax"]))) for who, t in times.items() if who != "estimax"
        }
        print(name, row, flush=True)
    return out


def fits():
    """Whole fits in seconds by rows: the first, which compiles, and the second."""
    out = {}
    plan = {
        "GPEvidence": (GPEvidence(), [200, 400] if QUICK else [250, 500, 1000, 2000], {}),
        "SparseGP(50)": (SparseGP(50), [400] if QUICK else [1000, 10_000], {}),
        "StateSpaceGP": (StateSpaceGP(), [1000] if QUICK else [1000, 10_000, 100_000], {}),
    }
    for name, (estimator, sizes, options) in plan.items():
        for n in sizes:
            fit = partial(estimax.fit, regression, estimator, series(n), progress_bar=False, **options)
            first, result = elapsed(fit)
            row = {"seconds of the first": first, "seconds": seconds(fit), "iterations": result.num_steps}
            out[f"{name} n={n}"] = {**row, "loss": float(result.losses[-1])}
            print(name, n, out[f"{name} n={n}"], flush=True)
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    n = 300 if QUICK else 2000
    data = series(n)
    kernel = ConstantKernel(1.0) * Matern(1.0, nu=1.5) + WhiteKernel(0.25)
    spent, peer = elapsed(lambda: GaussianProcessRegressor(kernel, alpha=0.0).fit(data["X"][:, None], data["y"]))
    out[f"scikit-learn n={n}"] = {"seconds": spent, "loss": -peer.log_marginal_likelihood_value_}
    try:
        out |= fits_of_gpjax(200 if QUICK else 1000)
    except ImportError:
        print("gpjax is not installed: left out")
    return out


def fits_of_gpjax(n):
    """By its two L-BFGS. They compile at every call, so that there is one figure only."""
    import gpjax

    def objective(model, data):
        return -gpjax.objectives.conjugate_mll(model, data)

    out = {}
    with jax.enable_x64(True):
        data = data_of_gpjax(series(n))
        calls = {"fit_scipy": partial(gpjax.fit_scipy, verbose=False), "fit_lbfgs": gpjax.fit_lbfgs}
        for name, fit in calls.items():
            spent, (model, _) = elapsed(partial(fit, model=model_of_gpjax(1.0), objective=objective, train_data=data))
            out[f"gpjax {name} n={n}"] = {"seconds": spent, "loss": float(objective(model, data))}
            print(name, n, out[f"gpjax {name} n={n}"], flush=True)
    return out


def state_space():
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


def svgp_of_gpytorch(data, M, B):
    """GPyTorch's SVGP with natural gradients, as a call that takes steps."""
    import gpytorch
    import torch

    n = len(data["y"])
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

    def take(steps):
        for _ in range(steps):
            index = torch.randint(0, n, (B,))
            natural.zero_grad()
            adam.zero_grad()
            (-mll(model(X[index]), y[index])).backward()
            natural.step()
            adam.step()

    return take


def stochastic():
    """Steps a second of SVGP and CoresetGP, and of GPyTorch's SVGP, at the same sizes in single precision, in turn."""
    n, M, B = (2000, 32, 64) if QUICK else (100_000, 256, 1024)
    rounds, steps = (2, 5) if QUICK else (7, 40)
    data = series(n)

    def of(estimator):
        fit = lambda: estimax.fit(regression, estimator, data, num_steps=steps, progress_bar=False)  # noqa: E731
        fit()  # compilation
        return lambda: fit().steps_per_second

    calls = {"SVGP": of(SVGP(M, B)), "CoresetGP": of(CoresetGP(M, B))}
    try:
        peer = svgp_of_gpytorch(data, M, B)
        peer(3)
        calls["gpytorch SVGP"] = lambda: steps / seconds(lambda: peer(steps))
    except ImportError:
        print("gpytorch is not installed: left out")
    rates = {who: [] for who in calls}
    for _ in range(rounds):
        for who, call in calls.items():
            rates[who].append(call())
    out = {who: float(np.median(r)) for who, r in rates.items()}
    if "gpytorch SVGP" in rates:
        ratios = np.divide(rates["SVGP"], rates["gpytorch SVGP"])
        out["SVGP over gpytorch"] = {"median": float(np.median(ratios)), "least": ratios.min(), "most": ratios.max()}
    print(out, flush=True)
    return out


def iterative_step(n, x64):
    """Seconds of one loss and gradient, and what its program holds beside its arguments."""
    with jax.enable_x64(x64):
        arrays = {k: jnp.asarray(v) for k, v in series(n).items()}
        problem = IterativeGP().problem(jax.random.key(0), regression, None, arrays)
        step = jax.jit(jax.value_and_grad(lambda p, k: problem.loss(p, k, arrays)[0]))
        spent, compiled = elapsed(lambda: step.lower(problem.params, jax.random.key(0)).compile())
        memory = compiled.memory_analysis()
        held = memory.temp_size_in_bytes + memory.output_size_in_bytes
        took = seconds(lambda: jax.block_until_ready(compiled(problem.params, jax.random.key(1))))
    matrix = n**2 * (8 if x64 else 4)
    return {
        "seconds to compile": spent,
        "seconds a step": took,
        "MB held": held / 1e6,
        "MB of one n x n matrix": matrix / 1e6,
        "share of one n x n matrix": held / matrix,
    }


def iterative():
    """Time and memory of a step by rows, and the log-determinant against Cholesky in its own standard errors.

    What is held has a part of fixed size, a block of the kernel (`BLOCK` elements and what they are made of); the
    rest grows as n.
    """
    out = {}
    plan = [(1000, False), (2000, True)] if QUICK else [(10_000, False), (10_000, True), (30_000, False)]
    for n, x64 in plan:
        name = f"n={n} {'float64' if x64 else 'float32'}"
        out[name] = iterative_step(n, x64)
        print("iterative", name, out[name], flush=True)
    n, options = 500 if QUICK else 5000, IterativeGP()
    with jax.enable_x64(True):
        arrays = {k: jnp.asarray(v) for k, v in series(n).items()}
        problem = GPEvidence().problem(jax.random.key(0), regression, None, arrays)
        r = jax.jit(lambda p: problem.hyper.regression(p, arrays))(problem.params)
        exact = np.linalg.slogdet(np.asarray(r.covariance()))[1].item()
        found = jax.jit(lambda r: lanczos.estimate(r, options, jax.random.key(0)))(r)
        error, stderr = float(found.log_det) - exact, float(found.log_det_stderr)
    out[f"log-determinant n={n}"] = {
        "by Cholesky": exact,
        "error": error,
        "standard error": stderr,
        "error in standard errors": error / stderr,
        "relative residual": float(found.residual),
    }
    print("iterative", out[f"log-determinant n={n}"], flush=True)
    return out


SECTIONS = {
    "evaluations": evaluations,
    "state_space": state_space,
    "stochastic": stochastic,
    "iterative": iterative,
    "fits": fits,
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    run_sections("gp", __doc__, SECTIONS)
