"""Bad input of Gaussian processes is named: argument or site, value, and the way out."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from tinygp import GaussianProcess, kernels

import estimax
from estimax.estimators import (
    SVGP,
    CoresetGP,
    GPEvidence,
    IterativeGP,
    LeaveOneOut,
    NonConjugateGP,
    SparseGP,
    StateSpaceGP,
)

from .conftest import binary_model, latent_model, pose

X = np.linspace(0.0, 1.0, 8)
DATA = {"X": X, "y": np.sin(X)}


def fixed_noise(noise):
    def model(X, y):
        length = numpyro.param("length", 1.0, constraint=dist.constraints.positive)
        numpyro.sample("y", GaussianProcess(kernels.Matern32(length), X, diag=noise).numpyro_dist(), obs=y)

    return model


@pytest.mark.parametrize(("noise", "said"), [(-1.5, "-1.5"), (float("nan"), "nan")])
def test_noise_that_is_none_is_named(noise, said):
    match = rf"noise variance \(diag=\) of the process 'y' is {said} at its least.*positive constraint"
    with pytest.raises(FloatingPointError, match=match):
        estimax.fit(fixed_noise(noise), GPEvidence(), DATA, progress_bar=False)


def test_negative_noise_is_a_fault_also_where_the_jitter_hides_it(x64):
    problem = pose(GPEvidence(), fixed_noise(-1e-9), {"X": np.linspace(0, 100, 8), "y": DATA["y"]})
    assert np.isfinite(float(problem.objective(problem.params, problem.data)))
    (line,) = problem.faults(problem.params)
    assert "'y' is -1e-09" in line
    good = pose(GPEvidence(), fixed_noise(0.1), DATA)
    assert good.faults(good.params) == []


def test_negative_scale_of_a_likelihood_is_a_fault(x64):
    def model(X, y):
        noise = numpyro.param("noise", 0.3)  # no constraint: an optimiser may carry it below zero
        f = numpyro.sample("f", GaussianProcess(kernels.Matern32(1.0), X, diag=1e-8).numpyro_dist())
        numpyro.sample("y", dist.Normal(f, noise), obs=y)

    problem = pose(GPEvidence(), model, DATA)
    assert problem.faults(problem.params) == []
    (line,) = problem.faults({"noise": jnp.asarray(-0.3)})
    assert "scale of the noise of site 'y' is -0.3" in line


def test_a_matrix_that_single_precision_cannot_factorise_names_the_way_out():
    kernel = kernels.Custom(lambda a, b: -jnp.abs(a - b))  # not positive definite in any precision

    def model(X, y):
        scale = numpyro.param("scale", 1.0, constraint=dist.constraints.positive)
        numpyro.sample("y", GaussianProcess(scale * kernel, X, diag=1e-3).numpyro_dist(), obs=y)

    words = []
    for double in (False, True):
        with jax.enable_x64(double):
            problem = pose(GPEvidence(), model, DATA)
            words.append(problem.explain(problem.params, jax.random.key(0), problem.data))
    assert 'jax.config.update("jax_enable_x64", True)' in words[0]
    assert "jax_enable_x64" not in words[1]
    assert all("kernel matrix is not positive definite" in w for w in words)


def test_times_that_repeat_without_noise_are_named():
    times = np.array([3.0, 1.0, 2.0, 1.0, 0.0])
    data = {"X": times, "y": np.array([0.1, 0.2, 0.3, 0.4, 0.5])}
    with pytest.raises(ValueError, match=r"rows 1 and 3 both have the input 1 and noise variance zero"):
        pose(StateSpaceGP(), fixed_noise(0.0), data)
    pose(StateSpaceGP(), fixed_noise(1e-6), data)


@pytest.mark.parametrize("estimator", [SparseGP(6), SVGP(6), CoresetGP(6)])
def test_more_inducing_inputs_than_distinct_ones_are_refused(estimator, x64):
    data = {"X": np.repeat(np.arange(5.0), 3), "y": np.arange(15.0)}
    with pytest.raises(ValueError, match=r"=6 is more than the 5 distinct inputs among the 15 rows: take at most 5"):
        pose(estimator, latent_model, data)


@pytest.mark.parametrize("estimator", [SVGP(4, 100), CoresetGP(4, 100)])
def test_a_batch_of_more_than_all_rows_is_said(estimator):
    problem = pose(estimator, latent_model, DATA)
    assert "batch_size=100 is more than the 8 rows: every step took them all" in problem.remarks(problem.params)


@pytest.mark.parametrize("make", [SparseGP, SVGP, CoresetGP, lambda m: IterativeGP(rank=m)])
@pytest.mark.parametrize("number", [2.5, "5", 0, True])
def test_numbers_of_inducing_inputs_are_whole(make, number):
    with pytest.raises(ValueError, match=r"must be an integer of at least 1, got"):
        make(number)


def test_observations_that_cannot_be_are_named_by_row(x64):
    y = np.array([0.0, 1, 1, 2, 0, 0, 1, 0])
    with pytest.raises(
        ValueError, match=r"row 3 of site 'y' is 2.0, which its distribution never gives \(1 such rows\)"
    ):
        pose(NonConjugateGP(), binary_model, {"X": X, "y": y})


def closed_over(sign):
    """A kernel whose function closes over a hyper-parameter, exponential or (with -1) not positive definite."""

    def model(X, y):
        length = numpyro.param("length", 1.0, constraint=dist.constraints.positive)
        kernel = kernels.Custom(lambda a, b: sign * jnp.exp(-jnp.abs(a - b) / length))
        f = numpyro.sample("f", GaussianProcess(kernel, X, diag=1e-8).numpyro_dist())
        numpyro.sample("y", dist.Normal(f, 0.3), obs=y)

    return model


@pytest.mark.parametrize("estimator", [SparseGP(8), CoresetGP(8), SVGP(8, None, 1.0)])
def test_kernels_that_close_over_hyper_parameters(estimator, x64):
    """With inducing inputs at all rows SparseGP has the exact evidence; the others pose their problems."""
    problem = pose(estimator, closed_over(1.0), DATA)
    if isinstance(estimator, SparseGP):
        exact = pose(GPEvidence(), closed_over(1.0), DATA)
        found, truth = (float(p.objective(p.params, p.data)) for p in (problem, exact))
        assert found == pytest.approx(truth, abs=1e-5)


@pytest.mark.parametrize("estimator", [IterativeGP(), NonConjugateGP()])
def test_kernels_that_are_none_are_faults_where_no_factor_is_taken(estimator, x64):
    bad = pose(estimator, closed_over(-1.0), DATA)
    (line,) = bad.faults(bad.params)
    assert "not positive definite" in line
    good = pose(estimator, closed_over(1.0), DATA)
    assert good.faults(good.params) == []


def test_a_pseudo_likelihood_has_no_information_criteria(x64):
    result = estimax.fit(fixed_noise(0.1), LeaveOneOut(), DATA, progress_bar=False)
    with pytest.raises(TypeError, match="LeaveOneOut has no information criteria"):
        result.information_criteria()


def test_predictions_take_lists_and_refuse_no_rows(x64):
    result = estimax.fit(fixed_noise(0.1), GPEvidence(), DATA, progress_bar=False)
    np.testing.assert_allclose(result.predict([0.2, 0.3]).mean, result.predict(np.array([0.2, 0.3])).mean)
    with pytest.raises(ValueError, match="no rows to predict at: X is empty"):
        result.predict([])


def test_unsorted_inputs_of_a_quasiseparable_kernel_are_said():
    def model(X, y):
        length = numpyro.sample("length", dist.LogNormal(0.0, 1.0))
        gp = GaussianProcess(kernels.quasisep.Matern32(length), X, diag=0.1)
        numpyro.sample("y", gp.numpyro_dist(), obs=y)

    data = {"X": X[[0, 2, 1, 3]], "y": DATA["y"][:4]}
    with pytest.raises(ValueError, match=r"process 'y' descend after row 1.*sort the rows"):
        pose(StateSpaceGP(), model, data)
