"""The posteriordb models against densities written down again in numpy and scipy, from the raw data files."""

from __future__ import annotations

import inspect
import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest
from numpyro.infer.util import initialize_model, log_density, potential_energy, unconstrain_fn
from scipy import stats
from scipy.special import logsumexp

from estimax.models import posteriordb

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "posteriordb"
ROOT = os.environ.get(posteriordb.ENV) or (SHARED if SHARED.is_dir() else None)
needs_data = pytest.mark.skipif(ROOT is None, reason=f"no clone of posteriordb: name one in {posteriordb.ENV}")

NAMES = [
    "arK-arK",
    "earnings-earn_height",
    "earnings-logearn_height",
    "eight_schools-eight_schools_noncentered",
    "garch-garch11",
    "gp_pois_regr-gp_regr",
    "hmm_example-hmm_example",
    "kidiq-kidscore_momiq",
    "kidiq_with_mom_work-kidscore_mom_work",
    "kilpisjarvi_mod-kilpisjarvi",
    "low_dim_gauss_mix-low_dim_gauss_mix",
    "mesquite-logmesquite_logvash",
    "nes1996-nes",
    "sblrc-blr",
]


@contextmanager
def x64(on: bool) -> Iterator[None]:
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", on)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def raw_data(posterior: posteriordb.Posterior) -> dict:
    path = posterior.folder / "data" / "data" / f"{posterior.data_name}.json.zip"
    with zipfile.ZipFile(path) as archive:
        raw = json.loads(archive.read(f"{posterior.data_name}.json"))
    return {key: np.array(value) for key, value in raw.items()}


def latents(draws: dict[str, np.ndarray], i: int) -> dict[str, np.ndarray]:
    """The model's latent sites at reference draw i."""
    draw = {site: values[i] for site, values in draws.items()}
    if "tau" in draw:  # eight schools: the reference has theta, the model's latent site is theta_trans
        draw["theta_trans"] = (draw.pop("theta") - draw["mu"]) / draw["tau"]
    return draw


# --- the densities, written a second time ---------------------------------------------------------------------------


def normal(x, loc, scale):
    return np.sum(stats.norm.logpdf(x, loc, scale))


def ref_ark(d, p):
    total = normal(p["alpha"], 0, 10) + normal(p["beta"], 0, 10) + stats.halfcauchy.logpdf(p["sigma"], scale=2.5)
    for t in range(int(d["K"]), int(d["T"])):
        mean = p["alpha"] + sum(p["beta"][k] * d["y"][t - 1 - k] for k in range(int(d["K"])))
        total += normal(d["y"][t], mean, p["sigma"])
    return total


def ref_eight_schools(d, p):
    prior = normal(p["theta_trans"], 0, 1) + normal(p["mu"], 0, 5) + stats.halfcauchy.logpdf(p["tau"], scale=5)
    return prior + normal(d["y"], p["mu"] + p["tau"] * p["theta_trans"], d["sigma"])


def ref_garch(d, p):
    sigma, total = d["sigma1"], 0.0
    for t in range(int(d["T"])):
        if t > 0:
            sigma = np.sqrt(p["alpha0"] + p["alpha1"] * (d["y"][t - 1] - p["mu"]) ** 2 + p["beta1"] * sigma**2)
        total += normal(d["y"][t], p["mu"], sigma)
    return total


def ref_gp(d, p):
    x = d["x"].astype(float)
    cov = p["alpha"] ** 2 * np.exp(-((x[:, None] - x) ** 2) / (2 * p["rho"] ** 2)) + p["sigma"] * np.eye(len(x))
    prior = stats.gamma.logpdf(p["rho"], 25, scale=1 / 4) + normal(p["alpha"], 0, 2) + normal(p["sigma"], 0, 1)
    return prior + stats.multivariate_normal.logpdf(d["y"], np.zeros(len(x)), cov)


def ref_hmm(d, p):
    transition = np.log([p["theta1"], p["theta2"]])
    emission = stats.norm.logpdf(d["y"][:, None], p["mu"], 1)
    forward = emission[0]
    for row in emission[1:]:
        forward = np.array([logsumexp(forward + transition[:, k]) + row[k] for k in range(2)])
    return normal(p["mu"], [3, 10], 1) + logsumexp(forward)


def ref_mixture(d, p):
    (mu1, mu2), (sigma1, sigma2), theta, y = p["mu"], p["sigma"], p["theta"], d["y"]
    density = theta * stats.norm.pdf(y, mu1, sigma1) + (1 - theta) * stats.norm.pdf(y, mu2, sigma2)
    return normal(p["mu"], 0, 2) + normal(p["sigma"], 0, 2) + stats.beta.logpdf(theta, 5, 5) + np.log(density).sum()


def ref_blr(d, p):
    return normal(p["beta"], 0, 10) + normal(p["sigma"], 0, 10) + normal(d["y"], d["X"] @ p["beta"], p["sigma"])


def ref_kilpisjarvi(d, p):
    prior = normal(p["alpha"], d["pmualpha"], d["psalpha"]) + normal(p["beta"], d["pmubeta"], d["psbeta"])
    return prior + normal(d["y"], p["alpha"] + p["beta"] * d["x"], p["sigma"])


def ref_momiq(d, p):
    mean = p["beta"][0] + p["beta"][1] * d["mom_iq"]
    return stats.halfcauchy.logpdf(p["sigma"], scale=2.5) + normal(d["kid_score"], mean, p["sigma"])


def ref_mom_work(d, p):
    effect = np.concatenate([[0.0], p["beta"][1:]])  # of mom_work = 1, 2, 3, 4
    return normal(d["kid_score"], p["beta"][0] + effect[d["mom_work"] - 1], p["sigma"])


def ref_earn(d, p):
    return normal(d["earn"], p["beta"][0] + p["beta"][1] * d["height"], p["sigma"])


def ref_logearn(d, p):
    return normal(np.log(d["earn"]), p["beta"][0] + p["beta"][1] * d["height"], p["sigma"])


def ref_mesquite(d, p):
    b, l1, l2, lc = p["beta"], np.log(d["diam1"]), np.log(d["diam2"]), np.log(d["canopy_height"])
    mean = b[0] + b[1] * (l1 + l2 + lc) + b[2] * (l1 + l2) + b[3] * (l1 - l2)
    return normal(np.log(d["weight"]), mean + b[4] * np.log(d["total_height"]) + b[5] * d["group"], p["sigma"])


def ref_nes(d, p):
    b, age = p["beta"], np.concatenate([[0.0], p["beta"][3:6]])
    mean = b[0] + b[1] * d["real_ideo"] + b[2] * d["race_adj"] + age[d["age_discrete"] - 1]
    return normal(d["partyid7"], mean + b[6] * d["educ1"] + b[7] * d["gender"] + b[8] * d["income"], p["sigma"])


WRITTEN_AGAIN = {
    "arK-arK": ref_ark,
    "earnings-earn_height": ref_earn,
    "earnings-logearn_height": ref_logearn,
    "eight_schools-eight_schools_noncentered": ref_eight_schools,
    "garch-garch11": ref_garch,
    "gp_pois_regr-gp_regr": ref_gp,
    "hmm_example-hmm_example": ref_hmm,
    "kidiq-kidscore_momiq": ref_momiq,
    "kidiq_with_mom_work-kidscore_mom_work": ref_mom_work,
    "kilpisjarvi_mod-kilpisjarvi": ref_kilpisjarvi,
    "low_dim_gauss_mix-low_dim_gauss_mix": ref_mixture,
    "mesquite-logmesquite_logvash": ref_mesquite,
    "nes1996-nes": ref_nes,
    "sblrc-blr": ref_blr,
}


# --- tests ----------------------------------------------------------------------------------------------------------


@needs_data
def test_load_finds_all_with_either_folder() -> None:
    assert ROOT is not None
    posteriors = posteriordb.load(ROOT)
    assert sorted(posteriors) == sorted(NAMES)
    inner = posteriordb.load(posteriors["sblrc-blr"].folder)
    assert inner == posteriors  # frozen dataclasses with the same model objects


@needs_data
def test_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(posteriordb.ENV, str(ROOT))
    assert len(posteriordb.load()) == len(NAMES)


@needs_data
@pytest.mark.parametrize("name", NAMES)
def test_data_and_reference_fit_the_model(name: str) -> None:
    posterior = posteriordb.load(ROOT)[name]
    data, draws = posterior.data(), posterior.reference()
    assert set(data) == set(inspect.signature(posterior.model).parameters)
    assert all(values.shape[0] == 10_000 and np.isfinite(values).all() for values in draws.values())


@needs_data
@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_finite_at_a_reference_draw(name: str, wide: bool) -> None:
    posterior = posteriordb.load(ROOT)[name]
    with x64(wide):
        data = jax.tree.map(jax.numpy.asarray, posterior.data())
        point = jax.tree.map(jax.numpy.asarray, latents(posterior.reference(), 17))
        point = unconstrain_fn(posterior.model, (), data, point)
        value, gradient = jax.value_and_grad(lambda z: potential_energy(posterior.model, (), data, z))(point)
        leaves = jax.tree.leaves((value, gradient))
        assert {leaf.dtype for leaf in leaves} == {np.dtype("float64" if wide else "float32")}
        assert all(np.isfinite(leaf).all() for leaf in leaves)


@needs_data
@pytest.mark.parametrize("name", NAMES)
def test_density_up_to_a_constant(name: str) -> None:
    posterior = posteriordb.load(ROOT)[name]
    raw, draws = raw_data(posterior), posterior.reference()
    points = [latents(draws, i) for i in (0, 123, 2_500, 6_001, 9_999)]
    with x64(True):
        data = posterior.data()
        density = jax.jit(lambda point: log_density(posterior.model, (), data, point)[0])
        ours = np.array([float(density(point)) for point in points])
    theirs = np.array([WRITTEN_AGAIN[name](raw, point) for point in points])
    assert np.ptp(theirs) > 0.1  # draws that differ, or the comparison says nothing
    np.testing.assert_allclose(ours - ours[0], theirs - theirs[0], atol=1e-6, rtol=0)


@needs_data
@pytest.mark.parametrize("name", NAMES)
def test_what_mcmc_hands_back_undoes_unconstraining(name: str) -> None:
    """NumPyro's postprocessing must know of supports that move with other sites (garch's beta1)."""
    posterior = posteriordb.load(ROOT)[name]
    with x64(True):
        data, draws = posterior.data(), posterior.reference()
        kernel = initialize_model(jax.random.key(0), posterior.model, model_kwargs=data, validate_grad=False)
        for i in (5, 4_000):
            point = latents(draws, i)
            unconstrained = unconstrain_fn(posterior.model, (), data, jax.tree.map(jax.numpy.asarray, point))
            back = kernel.postprocess_fn(unconstrained)
            for site, value in point.items():
                np.testing.assert_allclose(back[site], value, rtol=1e-8, atol=1e-10, err_msg=site)


def test_missing_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(posteriordb.ENV, raising=False)
    with pytest.raises(FileNotFoundError, match=f"`root` nor {posteriordb.ENV}.*git clone"):
        posteriordb.load()
    with pytest.raises(FileNotFoundError, match="argument `root`.*is not a folder.*git clone"):
        posteriordb.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="has no posteriors"):
        posteriordb.load(tmp_path)
    monkeypatch.setenv(posteriordb.ENV, str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=f"variable {posteriordb.ENV}"):
        posteriordb.load()
    (tmp_path / "posteriors").mkdir()
    with pytest.raises(FileNotFoundError, match="none of the 14"):
        posteriordb.load(tmp_path)


def test_indexed_names_are_gathered_in_numeric_order() -> None:
    draws = {f"beta[{k}]": np.full(3, float(k)) for k in (10, 2, 1, 3, 4, 5, 6, 7, 8, 9)}
    sites = posteriordb._to_sites({**draws, "sigma": np.zeros(3), "a[1,2]": np.ones(3), "a[1,1]": np.zeros(3)})
    np.testing.assert_array_equal(sites["beta"][0], np.arange(1, 11))
    assert sites["sigma"].shape == (3,)
    np.testing.assert_array_equal(sites["a"][0], [[0.0, 1.0]])
