"""`compare` puts estimators of one process side by side."""

import numpy as np
import pytest
from scipy import stats

import estimax
from estimax.estimators import GPEvidence, SparseGP

from .conftest import latent_model


@pytest.mark.long
def test_evidence_of_every_estimator_is_the_exact_one_at_its_hyper_parameters(series):
    """By NumPy; for inducing inputs within 4 of the stated standard errors."""
    rows = {k: v[:25] for k, v in series.items()}
    table = estimax.compare(
        latent_model, {"exact": GPEvidence(), "sparse": SparseGP(12)}, rows, num_samples=1000, progress_bar=False
    )
    assert not table.errors
    for name, result in table.results.items():
        amplitude, length, noise = (float(result.params[k]) for k in ("amplitude", "length", "noise"))
        r = np.sqrt(3) * np.abs(rows["X"][:, None] - rows["X"]) / length
        covariance = amplitude**2 * (1 + r) * np.exp(-r) + (noise**2 + 1e-10) * np.eye(25)
        truth = stats.multivariate_normal.logpdf(rows["y"] - 0.5, None, covariance)
        row = table.frame.loc[name]
        assert abs(row["log_evidence"] - truth) < 4 * row["stderr"] + 1e-6
        assert row["elbo"] <= row["log_evidence"] + 1e-9
    assert table.frame.loc["exact", "log_likelihood"] == pytest.approx(table.frame.loc["exact", "log_evidence"])
    assert "k̂" in str(table)
    # inducing inputs are the estimator's, not the model's
    assert list(table.results["sparse"].summary().index) == ["amplitude", "length", "noise"]
