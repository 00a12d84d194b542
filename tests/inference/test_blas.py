"""BLAS leaves the cores to XLA while a problem is solved, and has its threads back afterwards."""

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from threadpoolctl import threadpool_info, threadpool_limits
from tinygp import GaussianProcess, kernels

import estimax
from estimax.estimators import MLE, GPEvidence
from estimax.inference import blas


def threads():
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


@pytest.fixture(autouse=True)
def two_threads():
    with threadpool_limits(2, user_api="blas"):
        if set(threads()) != {2}:
            pytest.skip("a BLAS here has one thread only, or threads that cannot be set")
        yield


def process(x, y):
    length = numpyro.param("length", 1.0, constraint=constraints.positive)
    kernel = kernels.Matern32(length)
    numpyro.sample("y", GaussianProcess(kernel, x, diag=0.1).numpyro_dist(), obs=y)


def normal(y):
    numpyro.sample("y", dist.Normal(numpyro.param("mu", 0.0), 1.0).expand([len(y)]).to_event(1), obs=y)


X = np.linspace(0, 3, 12)
GP = {"x": X, "y": np.sin(X)}


def seen_while(fit):
    seen = []
    fit(lambda step, loss: seen.append(threads()))
    assert seen
    return {n for pools in seen for n in pools}


@pytest.mark.parametrize(("model", "estimator", "data"), [(process, GPEvidence(), GP), (normal, MLE(), {"y": X})])
def test_a_fit_leaves_blas_one_thread_and_gives_the_others_back(model, estimator, data):
    seen = seen_while(lambda f: estimax.fit(model, estimator, data, progress_bar=False, on_progress=f))
    assert seen == {1}
    assert set(threads()) == {2}


def test_a_fit_by_steps_does():
    seen = seen_while(
        lambda f: estimax.fit(
            normal, MLE(), {"y": X}, optimizer="adam", num_steps=20, progress_bar=False, on_progress=f
        )
    )
    assert seen == {1}
    assert set(threads()) == {2}


def test_large_factorisations_keep_their_threads(monkeypatch):
    monkeypatch.setattr(blas, "LARGE", len(X) - 1)
    seen = seen_while(lambda f: estimax.fit(process, GPEvidence(), GP, progress_bar=False, on_progress=f))
    assert seen == {2}


def test_an_error_gives_the_threads_back():
    def stop(step, loss):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        estimax.fit(process, GPEvidence(), GP, progress_bar=False, on_progress=stop)
    assert set(threads()) == {2}


def test_a_fit_within_a_fit_gives_the_threads_back():
    inner = lambda step, loss: estimax.fit(normal, MLE(), {"y": X}, progress_bar=False)  # noqa: E731
    estimax.fit(process, GPEvidence(), GP, progress_bar=False, on_progress=inner)
    assert set(threads()) == {2}
