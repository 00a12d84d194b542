"""Studies of Gaussian-process estimators: approximate evidences against the true one, calibration on held-out data,
and dimension.

python benchmarks/gp_studies.py [evidence] [calibration] [dimension]
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from common import run_sections
from scipy.special import logsumexp
from tinygp import GaussianProcess, kernels

import estimax
from estimax.estimators import GPEvidence, NonConjugateGP
from estimax.models import gaussian_processes as gp

METHODS = ("laplace", "cvi", "ep", "hybrid")
POSITIVE = dist.constraints.positive


def classifier(X, y):
    amplitude = numpyro.param("amplitude", 2.0, constraint=POSITIVE)
    length = numpyro.param("length", 1.0, constraint=POSITIVE)
    kernel = amplitude**2 * kernels.ExpSquared(length)
    f = numpyro.sample("f", GaussianProcess(kernel, X, diag=1e-6 * amplitude**2).numpyro_dist())
    numpyro.sample("y", dist.Bernoulli(logits=f), obs=y)


def poisson(X, y):
    amplitude = numpyro.param("amplitude", 1.0, constraint=POSITIVE)
    length = numpyro.param("length", 1.0, constraint=POSITIVE)
    kernel = amplitude**2 * kernels.Matern32(length)
    f = numpyro.sample("f", GaussianProcess(kernel, X, diag=1e-6 * amplitude**2, mean=0.5).numpyro_dist())
    numpyro.sample("y", dist.Poisson(jnp.exp(f)), obs=y)


def data_sets():
    from sklearn.datasets import load_breast_cancer, load_iris
    from sklearn.decomposition import PCA

    scale = lambda X: (X - X.mean(0)) / X.std(0)  # noqa: E731
    iris = load_iris()
    flowers = iris.target > 0
    cancer = load_breast_cancer()
    rows = np.random.default_rng(0).permutation(len(cancer.target))[:100]
    coal = gp.coal_data()
    banana = gp.banana(100, 2)
    return {
        "two crescents": (classifier, banana["X"], banana["y"]),
        "iris, two species by petals": (classifier, scale(iris.data[flowers][:, 2:]), iris.target[flowers] - 1),
        "breast cancer, two components": (
            classifier,
            PCA(2).fit_transform(scale(cancer.data))[rows] / 3,
            cancer.target[rows],
        ),
        "coal-mining disasters": (poisson, (coal["X"] - 1906) / 20, coal["y"]),
    }


def true_surface(model, X, y, centre, draws=4000):
    """log p(y | amplitude, length) by importance sampling from EP's posterior, on a grid around a point (log scale)."""
    with jax.enable_x64(True):
        data = {"X": jnp.asarray(X, float), "y": jnp.asarray(y)}
        problem = NonConjugateGP("ep").problem(jax.random.key(0), model, None, data)

        @jax.jit
        def at(params):
            state = problem.sampler(params)
            keys = jax.random.split(jax.random.key(1), draws)
            return jax.lax.map(lambda k: problem.draw(state, params, k)[1], keys, batch_size=200)

        offsets = np.linspace(-0.8, 0.8, 9)
        values, errors = np.zeros((9, 9)), np.zeros((9, 9))
        for i, a in enumerate(offsets):
            for j, b in enumerate(offsets):
                log_w = np.asarray(at({"amplitude": jnp.asarray(centre[0] + a), "length": jnp.asarray(centre[1] + b)}))
                values[i, j] = logsumexp(log_w) - np.log(draws)
                errors[i, j] = np.exp(log_w - values[i, j]).std() / np.sqrt(draws)
        i, j = np.unravel_index(np.argmax(values), values.shape)
        # a quadratic through the grid around its best point
        near = [(a, b) for a in range(9) for b in range(9) if abs(a - i) <= 2 and abs(b - j) <= 2]
        x, z = (offsets[np.array(index)] for index in zip(*near, strict=True))
        A = np.stack([np.ones_like(x), x, z, x**2, z**2, x * z], 1)
        c = np.linalg.lstsq(A, np.array([values[a, b] for a, b in near]), rcond=None)[0]
        top = np.linalg.solve([[2 * c[3], c[5]], [c[5], 2 * c[4]]], -c[1:3])
        return np.exp(np.asarray(centre) + top), values.max(), errors[i, j]


def evidence():
    out = {}
    for name, (model, X, y) in data_sets().items():
        rows = {}
        for method in METHODS:
            result = estimax.fit(model, NonConjugateGP(method), {"X": X, "y": y}, progress_bar=False)
            own = -float(result.losses[-1])
            found = result.log_evidence(4000)
            rows[method] = {
                "amplitude": float(result.params["amplitude"]), "length": float(result.params["length"]),
                "own evidence": own, "true evidence there": found.value, "s.e.": found.stderr, "k": found.khat,
            }  # fmt: skip
        centre = np.log([rows["ep"]["amplitude"], rows["ep"]["length"]])
        best, value, error = true_surface(model, X, y, centre)
        rows["true"] = {"amplitude": best[0], "length": best[1], "own evidence": value, "s.e.": error}
        for method in METHODS:
            rows[method]["distance"] = float(
                np.hypot(*(np.log([rows[method]["amplitude"], rows[method]["length"]]) - np.log(best)))
            )
        out[name] = rows
        print(
            name,
            *(f"\n  {m}: { ({k: round(float(v), 3) for k, v in r.items()}) }" for m, r in rows.items()),
            flush=True,
        )
    return out


def calibration():
    """Held-out log density and coverage of 90% intervals on real data."""
    out = {}
    shelf = {name: estimax.models.get(name) for name in ("co2_gp", "diabetes_gp", "banana_classification")}
    cases = {
        "CO2, ten years ahead": (shelf["co2_gp"].model, GPEvidence(), shelf["co2_gp"].data(),
        shelf["co2_gp"].held_out()), "diabetes": (shelf["diabetes_gp"].model, GPEvidence(),
        shelf["diabetes_gp"].data(), shelf["diabetes_gp"].held_out()), "two crescents": (
            gp.classification, NonConjugateGP("ep"), gp.banana_data(), gp.banana_held_out(),
        ),
    }  # fmt: skip
    coal = gp.coal_data()
    odd = np.arange(112) % 4 == 3
    cases["coal, every fourth year left out"] = (
        gp.counts, NonConjugateGP("ep"), {k: v[~odd] for k, v in coal.items()}, {k: v[odd] for k, v in coal.items()}
    )  # fmt: skip
    tumours = estimax.models.get("logistic_regression").data()
    kept = np.random.default_rng(0).permutation(len(tumours["y"])) < 400
    cases["breast cancer"] = (
        gp.classification, NonConjugateGP("ep"), {"X": tumours["x"][kept], "y": tumours["y"][kept]},
        {"X": tumours["x"][~kept], "y": tumours["y"][~kept]},
    )  # fmt: skip
    for name, (model, estimator, data, later) in cases.items():
        result = estimax.fit(model, estimator, data, progress_bar=False, num_steps=200)
        found = result.predict(later)
        low, high = found.interval(0.9)
        row = {"log density a row": float(found.log_density().mean()), "rows": len(later["y"]), "status": result.status}
        if name in ("two crescents", "breast cancer"):
            p = np.asarray(found.mean)
            bins = [(p >= a) & (p < a + 0.2) for a in np.arange(0, 1, 0.2)]
            row["reliability"] = [
                [float(p[b].mean()), float(later["y"][b].mean()), int(b.sum())] for b in bins if b.any()
            ]
        else:
            row["share in 90% intervals"] = float(np.mean((later["y"] >= low) & (later["y"] <= high)))
            row["root mean square error"] = float(np.sqrt(np.mean((found.mean - later["y"]) ** 2)))
        out[name] = row
        print(name, row, flush=True)
    return out


def dimension(n=40, repeats=20):
    """Evidence and predictive loss of Bayesian linear regression against the number of inputs, hyper-parameters tuned.

    The setting of Monotonicity and Double Descent in Uncertainty Estimation with Gaussian Processes: white inputs,
    kernel x·x'/d, noise of the targets; tuned means the maximum over amplitude and noise variances, found on a grid
    of their ratio with the scale in closed form. The untuned curve has a small fixed noise.
    """
    ratios = np.logspace(-6, 4, 201)
    dims = np.unique(np.round(np.geomspace(2, 400, 24)).astype(int))
    tuned, loss_tuned, loss_fixed = (np.zeros((repeats, len(dims))) for _ in range(3))
    for r in range(repeats):
        rng = np.random.default_rng(r)
        X, X_new = rng.normal(size=(n, 400)), rng.normal(size=(500, 400))
        w = rng.normal(size=400) / 20
        y, y_new = X @ w + 0.3 * rng.normal(size=n), X_new @ w + 0.3 * rng.normal(size=500)
        for j, d in enumerate(dims):
            K = X[:, :d] @ X[:, :d].T / d
            values, vectors = np.linalg.eigh(K)
            z2 = (vectors.T @ y) ** 2

            def log_evidence(ratio, values=values, z2=z2):  # ratio: noise over amplitude; the scale is at its maximum
                s = np.maximum(values, 0) + ratio
                return -0.5 * (n * np.log(np.mean(z2 / s)) + np.sum(np.log(s)) + n + n * np.log(2 * np.pi))

            best = ratios[np.argmax([log_evidence(q) for q in ratios])]
            tuned[r, j] = log_evidence(best)
            cross = X_new[:, :d] @ X[:, :d].T / d
            for ratio, store in ((best, loss_tuned), (1e-4, loss_fixed)):
                error = y_new - cross @ np.linalg.solve(K + ratio * np.eye(n), y)
                store[r, j] = np.mean(error**2)
    return {
        "inputs": dims.tolist(), "rows": n,
        "tuned log evidence": tuned.mean(0).tolist(), "its s.e.": (tuned.std(0) / np.sqrt(repeats)).tolist(),
        "predictive loss, tuned": loss_tuned.mean(0).tolist(), "predictive loss, noise fixed small":
        loss_fixed.mean(0).tolist(),
    }  # fmt: skip


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    run_sections("gp_studies", __doc__, {f.__name__: f for f in (evidence, calibration, dimension)})
