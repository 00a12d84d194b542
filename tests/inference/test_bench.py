"""The bench on a Gaussian whose posterior is exact: what it measures, keeps and survives."""

import html.parser
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import arviz as az
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
import xarray as xr
from scipy import stats

import estimax
from estimax import estimators
from estimax.inference.bench import cluster as cluster_module
from estimax.inference.bench import columns, measures, peers, runner, suites
from estimax.inference.bench import folder as folder_module
from estimax.inference.bench.cases import Case, Suite, Truth
from estimax.inference.bench.execute import peak_memory_mb
from estimax.inference.cli import main
from estimax.inference.files import BadInput

Y = np.array([0.3, 1.9, -0.2, 1.1, 0.8])


def model(y):
    """mu ~ N(0, 1), y ~ N(mu, 1)."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


MEAN, SD = Y.sum() / 6, 6**-0.5
LOG_EVIDENCE = stats.multivariate_normal(np.zeros(5), np.eye(5) + 1).logpdf(Y)


def data():
    return {"y": Y}


def truth():
    draws = stats.norm(MEAN, SD).ppf((np.arange(4000) + 0.5) / 4000)
    return Truth({"mu": draws}, {"mu": (np.asarray(MEAN), np.asarray(SD))}, LOG_EVIDENCE)


SUITE = Suite("gaussian", "one Gaussian", (Case("normal", model, data, truth), Case("again", model, data, truth)),
              ("ELBO", "numpyro:AutoNormal"), (("normal",), ("ELBO",)))  # fmt: skip
ONE = {"models": ["normal"], "jobs": 0, "seeds": 1, "progress_bar": False, "quick": True}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Two seeds of ours and of a peer, done in this process, with curves."""
    runner_quick = dict(runner.QUICK)
    runner.QUICK["curves"] = True
    try:
        return estimax.benchmark(SUITE, {"ELBO": estimators.ELBO(), "SVI": "numpyro:AutoNormal"}, models=["normal"],
                                 jobs=0, seeds=2, quick=True, out=tmp_path_factory.mktemp("bench") / "out",
                                 progress_bar=False)  # fmt: skip
    finally:
        runner.QUICK.update(runner_quick)


# --- what a bench measures


@pytest.mark.long
def test_a_case_with_settings_of_its_own_says_so(tmp_path):
    case = Case("particles", model, data, truth, settings={"num_particles": 3}, num_steps=5)
    suite = Suite("own", "one Gaussian", (case,), ("ELBO",), (("particles",), ("ELBO",)))
    done = estimax.benchmark(suite, out=tmp_path, **{**ONE, "models": None})
    assert done.header["notes"] == ["particles runs with num_particles=3, whatever the columns say"]
    assert "1 runs with 1 seed." in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_every_run_is_a_row_with_its_measures(bench):
    frame = bench.frame
    assert list(zip(frame["column"], frame["seed"], strict=True)) == [
        ("ELBO", 0), ("ELBO", 1), ("numpyro:AutoNormal", 0), ("numpyro:AutoNormal", 1),
    ]  # fmt: skip
    assert (frame["status"] == "finished").all(), frame["reason"].tolist()
    ours = frame[frame["column"] == "ELBO"]
    # The default guide is exact here: what is left is the Monte Carlo error of 2,000 draws, taken at 4.5 of it.
    assert (ours["mean_error"] < 4.5 / np.sqrt(2000)).all()
    assert (ours["sd_error"] < 4.5 / np.sqrt(2 * 2000)).all()
    assert (ours["sliced_wasserstein"] < 0.1).all()
    assert (ours["log_evidence_error"] < 0.01).all()
    assert set(ours["verdict"]) <= set(measures.TRUSTED)
    assert (ours["gradient_evaluations"] == 200 * 16).all()
    assert frame["peak_memory_mb"].isna().all()  # not measured in a process that does other things
    assert frame["cold"].tolist() == [True, False, True, False]


def test_the_curve_ends_in_the_answer(bench):
    first = bench.frame[bench.frame["seed"] == 0]
    for _, row in first.iterrows():
        seconds, error = row["curve"][-1]
        assert (seconds, error) == (row["seconds"], row["mean_error"])
        assert len(row["curve"]) > 1
        assert (np.diff([s for s, _ in row["curve"]]) > 0).all()
    assert first.iloc[0]["seconds_to_near"] == pytest.approx(first.iloc[0]["curve"][0][0])  # the start is exact
    assert bench.frame[bench.frame["seed"] == 1]["curve"].isna().all()


def test_the_verdict_is_the_one_that_a_user_is_shown(bench):
    result = estimax.fit(model, estimators.ELBO(), data(), seed=1, num_steps=200, progress_bar=False)
    diagnosis, row = result.diagnose(seed=1), bench.frame.iloc[1]
    assert row["verdict"] == diagnosis.verdict
    assert row["log_evidence"] == pytest.approx(diagnosis.evidence.value, abs=1e-5)
    drawn = np.asarray(result.sample(2000, seed=1)["mu"])
    assert row["own_mean_error"] == pytest.approx(abs(drawn.mean() - MEAN) / SD, abs=1e-4)


def test_netcdf_of_a_run_opens_in_arviz(bench):
    file = bench.folder / "runs" / "normal" / "ELBO-1.nc"
    posterior = az.from_netcdf(str(file))["posterior"]
    assert posterior["mu"].shape == (1, 1000)
    assert float(posterior["mu"].mean()) == pytest.approx(MEAN, abs=4.5 * SD / np.sqrt(1000))
    with xr.open_dataset(file, group="run", engine="h5netcdf") as run:
        assert run["losses"].shape == (200,)
        assert run["log_weight"].shape == (columns.EVIDENCE_DRAWS,)
        assert run.attrs["seed"] == 1


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "bound"),
    [("numpyro:NUTS", 0.25), ("blackjax:Pathfinder", 0.15), ("numpyro:AutoLaplaceApproximation", 0.15)],
)
def test_peers_find_the_posterior(name, bound):
    """Means and sds of an exact Gaussian; NUTS with 4 × 200 correlated draws, the others with 2,000 of a Gaussian
    guide that 1,000 steps of Adam brought near the mode."""
    pytest.importorskip(peers.PEERS[name].package)
    settings = runner.Settings(num_steps=200 if "NUTS" in name else 1000, num_samples=2000)
    outcome = peers.PEERS[name].run(SUITE.cases[0], 0, settings)
    errors = measures.Yardstick(truth()).errors(outcome.draws)
    assert errors["mean_error"] < bound
    assert errors["sd_error"] < bound
    if "NUTS" in name:
        assert outcome.measures["rhat"] < 1.1
        assert outcome.gradient_evaluations > 4 * 400
        assert [len(d["mu"]) for _, d in outcome.path()] == [40, 160]


def test_a_missing_peer_is_left_out_and_said(monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None if name == "blackjax" else object())
    here, notes = columns.left_out(columns.resolve(["ELBO", "blackjax:Pathfinder", "numpyro:NUTS"]))
    assert [c.name for c in here] == ["ELBO", "numpyro:NUTS"]
    assert notes == ["blackjax:Pathfinder is left out: blackjax is not installed (pip install blackjax)"]


@pytest.mark.long
def test_the_default_column_is_the_plain_call(monkeypatch, tmp_path):
    calls = []
    original = columns.fit

    def watched(*args, **options):
        calls.append((args, options))
        return original(*args, **{**options, "num_steps": 20})

    monkeypatch.setattr(columns, "fit", watched)
    case = SUITE.cases[0]
    columns.run(columns.Column("default"), case, 7, runner.Settings(num_samples=500))
    (args, options) = calls[0]
    assert args[:2] == (model, None)
    assert options == {"seed": 7, "progress_bar": False}


# --- columns


def test_columns_by_name_and_by_instance(tmp_path):
    vis, renyi, nuts = columns.resolve(["vis(num_particles=8, gradient=dreg)", "RENYI(alpha=0.3)", "numpyro:nuts"])
    assert vis.make() == estimators.VIS(num_particles=8, gradient="dreg")
    assert renyi.make() == estimators.Renyi(alpha=0.3)
    assert (nuts.name, nuts.kind) == ("numpyro:NUTS", "peer")
    (mine,) = columns.resolve({"mine": estimators.IWAE(3)})
    assert (mine.name, mine.make()) == ("mine", estimators.IWAE(3))
    (tmp_path / "own.py").write_text("from estimax.estimators import ELBO\n\nclass Own(ELBO):\n    pass\n")
    (own,) = columns.resolve([f"{tmp_path}/own.py:Own"])
    assert own.name == "Own"
    assert type(own.make()).__name__ == "Own"
    assert columns.split("elbo, vis(num_particles=8,gradient=dreg),numpyro:NUTS") == [
        "elbo", "vis(num_particles=8,gradient=dreg)", "numpyro:NUTS",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["vsi"], r"no estimator 'vsi'; did you mean 'VIS'\?"),
        (["numpyro:NUT"], r"did you mean 'numpyro:NUTS'\?"),
        (["vis(num_particle=8)"], r"VIS does not take 'num_particle'; did you mean 'num_particles'\?"),
        (["vis(8)"], "arguments are written NAME=VALUE"),
        (["vis(num_particles=8"], "write it as VIS"),
        ([], "at least one"),
        ([estimators.IWAE], "as IWAE()"),
        ([estimators.ELBO(1), estimators.ELBO(2)], "two estimators are named 'ELBO'"),
    ],
)
def test_bad_columns_are_named(given, message):
    with pytest.raises(BadInput, match=message):
        columns.resolve(given)


# --- the folder


def test_resume_neither_loses_nor_repeats(bench, tmp_path):
    lines = (bench.folder / "runs.jsonl").read_text().splitlines()
    out = tmp_path / "out"
    out.mkdir()
    (out / "bench.json").write_text((bench.folder / "bench.json").read_text())
    marked = json.loads(lines[0]) | {"mean_error": 123.0}  # would be overwritten, if the run were repeated
    (out / "runs.jsonl").write_text("\n".join([json.dumps(marked), *lines[2:], '{"case": "normal", "col']))
    options = {**ONE, "out": out, "seeds": 2}
    runner_quick = dict(runner.QUICK)
    runner.QUICK["curves"] = True  # the settings of that folder
    try:
        again = estimax.benchmark(
            SUITE, {"ELBO": estimators.ELBO(), "SVI": "numpyro:AutoNormal"}, resume=True, **options
        )
        with pytest.raises(BadInput, match="has a bench already: --resume goes on"):
            estimax.benchmark(SUITE, ["ELBO"], **options)
        with pytest.raises(BadInput, match="has results of 'ELBO' as ELBO.* not ELBO.num_particles=4"):
            estimax.benchmark(SUITE, {"ELBO": estimators.ELBO(4)}, resume=True, **options)
        with pytest.raises(BadInput, match="results of the settings .* give --out another"):
            estimax.benchmark(SUITE, ["ELBO"], resume=True, num_steps=7, **options)
    finally:
        runner.QUICK.update(runner_quick)
    assert len(again.frame) == 4
    assert again.frame["mean_error"].tolist()[0] == 123.0
    written = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    assert len(written) == 4
    assert (written[-1]["column"], written[-1]["seed"]) == ("ELBO", 1)


def test_folders_that_cannot_be_used(tmp_path):
    (tmp_path / "old").mkdir()
    header = {"format": 0, "environment": {"estimax": "0.0.1"}}
    (tmp_path / "old" / "bench.json").write_text(json.dumps(header))
    with pytest.raises(BadInput, match=r"results of format 0, this estimax writes format 1.*estimax 0\.0\.1"):
        estimax.benchmark(SUITE, ["ELBO"], out=tmp_path / "old", resume=True, **ONE)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(BadInput, match="files that are no bench"):
        estimax.benchmark(SUITE, ["ELBO"], out=tmp_path / "other", **ONE)
    (tmp_path / "old" / "bench.json").write_text("{")
    with pytest.raises(BadInput, match="was not written by estimax bench"):
        runner.Benchmark.read(tmp_path / "old")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_full_disk_is_named_and_keeps_what_was_before(bench, tmp_path):
    header = json.loads((bench.folder / "bench.json").read_text())
    folder = folder_module.Folder(tmp_path / "out", header, resume=False)
    row = {"case": "normal", "column": "ELBO", "seed": 0, "status": "finished", "reason": ""}
    folder.add(folder_module.Finished(row))
    kept = (tmp_path / "out" / "runs.jsonl").read_text()
    (tmp_path / "out" / "runs.jsonl").rename(tmp_path / "kept")
    (tmp_path / "out" / "runs.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match="no space left on the disk of .*: the 1 runs before are kept; .* --resume"):
        folder.add(folder_module.Finished({**row, "seed": 1}))
    assert folder.done == {("normal", "ELBO", 0)}
    assert (tmp_path / "kept").read_text() == kept


# --- runs that fail


def test_a_run_that_fails_is_a_row_with_its_reason(tmp_path):
    wrong = Case("wrong", model, lambda: {"x": Y}, truth)
    suite = Suite("broken", "broken", (wrong,), ("ELBO",), (("wrong",), ("ELBO",)))
    bench = estimax.benchmark(suite, ["ELBO"], jobs=0, seeds=1, quick=True, out=tmp_path / "out", progress_bar=False)
    assert bench.frame["status"].tolist() == ["failed"]
    assert "does not take" in bench.frame["reason"][0]
    assert "FAILED RUNS" in str(bench)
    with pytest.raises(BadInput, match="ELBO on wrong cannot be sent to a worker process.*jobs=0"):
        estimax.benchmark(suite, ["ELBO"], jobs=1, seeds=1, quick=True, out=tmp_path / "more", progress_bar=False)


KILLERS = """
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from estimax.estimators import ELBO

HERE = Path(__file__).parent


class Always(ELBO):
    needs_guide = False  # no search for a start: it dies at once

    def problem(self, *args):
        with (HERE / "always").open("a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGKILL)


class Once(ELBO):
    needs_guide = False

    def problem(self, *args):
        if not (HERE / "once").exists():
            (HERE / "once").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("alive again")


class Slow(ELBO):
    needs_guide = False

    def problem(self, *args):
        if (HERE / "begun").exists():
            time.sleep(600)
        (HERE / "begun").touch()
        raise ValueError("the first one is quick")
"""


@pytest.mark.long
def test_a_killed_worker_is_tried_once_more_then_reported(tmp_path):
    (tmp_path / "killers.py").write_text(KILLERS)
    names = [f"{tmp_path}/killers.py:Once", f"{tmp_path}/killers.py:Always"]
    bench = estimax.benchmark("conjugate", names, models=["gamma_poisson"], jobs=1, seeds=1, quick=True,
                              out=tmp_path / "out", progress_bar=False)  # fmt: skip
    rows = bench.frame.set_index("column")
    assert rows.loc["Once", "reason"] == "alive again"
    assert rows.loc["Always", "status"] == "failed"
    assert rows.loc["Always", "reason"] == "its worker was killed 2 times (SIGKILL, out of memory perhaps)"
    assert (tmp_path / "always").read_text() == "xx"


@pytest.mark.long
def test_ctrl_c_keeps_what_is_done(tmp_path):
    (tmp_path / "killers.py").write_text(KILLERS)
    command = [sys.executable, "-m", "estimax", "bench", "conjugate", "--models", "gamma_poisson", "--jobs", "1",
               "--estimators", f"{tmp_path}/killers.py:Slow", "--seeds", "3",
               "--out", str(tmp_path / "out")]  # fmt: skip
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    lines = tmp_path / "out" / "runs.jsonl"
    for _ in range(600):
        if (lines.exists() and lines.read_text().count("\n")) or process.poll() is not None:
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "estimax: error: interrupted: kept the 1 runs that are done; --resume goes on" in err
    assert "Traceback" not in err
    assert "interrupted: 2 runs are missing" in out
    assert len(lines.read_text().splitlines()) == 1
    assert (tmp_path / "out" / "report.html").exists()


def test_peak_memory_is_that_of_this_process():
    before = peak_memory_mb()
    ballast = np.ones(25_000_000)  # 200 MB, touched
    pages = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
    assert peak_memory_mb() >= max(before, 0.99 * pages)
    assert pages > ballast.nbytes / 2**20


@pytest.mark.long
def test_dask_does_the_same(tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        bench = estimax.benchmark(SUITE, ["ELBO"], out=tmp_path / "out", cluster=client, **ONE)
    assert bench.frame["status"].tolist() == ["finished"]
    assert bench.frame["mean_error"][0] < 4.5 / np.sqrt(2000)
    monkeypatch.setattr(cluster_module, "SECONDS_TO_CONNECT", 1)
    with pytest.raises(BadInput, match="no Dask scheduler at 'tcp://127.0.0.1:1'"):
        estimax.benchmark(SUITE, ["ELBO"], out=tmp_path / "none", cluster="tcp://127.0.0.1:1", **ONE)


# --- the report


class Page(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.sources, self.headings = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open and self.open[-1] == "h2":
            self.headings.append(text)


def test_the_page_is_whole_and_needs_nothing_else(bench):
    text = (bench.folder / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert not page.open
    assert page.sources
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.sources)
    for heading in ("In short", "Errors", "Verdicts", "Cost", "Log evidence", "Error against time", "How it was made"):
        assert heading in page.headings
    assert "estimax.benchmark(&#x27;gaussian&#x27;" in text  # the command
    assert f"numpyro {bench.header['environment']['packages']['numpyro']}" in text


def test_markdown_and_csv_hold_the_same(bench):
    text = (bench.folder / "report.md").read_text()
    for block in text.split("\n\n"):
        if block.startswith("|"):
            assert len({line.replace("\\|", "").count("|") for line in block.splitlines()}) == 1
    table = pd.read_csv(bench.folder / "table.csv")
    np.testing.assert_allclose(table["mean_error"], bench.frame["mean_error"], rtol=1e-5)
    assert "curve" not in table
    again = runner.Benchmark.read(bench.folder)
    assert str(again) == str(bench)


@pytest.mark.long
def test_signal_to_noise_of_the_tight_bounds_suite(tmp_path):
    """IWAE's plain gradient of the guide loses to dreg, the more so the more particles (the suite's own figure)."""
    names = suites.load("tight-bounds").columns
    bench = estimax.benchmark("tight-bounds", names, models=["K=16", "K=256"], jobs=0, seeds=1, out=tmp_path / "out",
                              progress_bar=False)  # fmt: skip
    snr = bench.frame.pivot(index="particles", columns="column", values="snr_phi")
    gain = snr["IWAE(gradient=dreg)"] / snr["IWAE(gradient=reparam)"]
    assert gain[256] / gain[16] == pytest.approx(16, rel=0.35)  # K^1/2 over K^-1/2, from 400 gradients
    assert "the figure of this suite" in (tmp_path / "out" / "report.html").read_text()


# --- the command line


def fails(capsys, *argv):
    assert main(["bench", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1, err
    return err.strip().removeprefix("estimax: error: ")


def test_bad_input_is_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("POSTERIORDB", raising=False)
    assert fails(capsys, "conjgate") == "no suite 'conjgate'; did you mean 'conjugate'?"
    assert "did you mean 'funnel'?" in fails(capsys, "sampling", "--models", "funel")
    assert "did you mean 'VIS'?" in fails(capsys, "sampling", "--estimators", "default,vsi")
    assert "git clone" in fails(capsys, "posteriordb")
    assert "at least 1" in fails(capsys, "conjugate", "--seeds", "0")
    assert "at least 0" in fails(capsys, "conjugate", "--jobs", "-1")
    assert not (tmp_path / "estimax-results").exists()


def test_the_command_line_names_every_suite_and_peer(capsys):
    assert main(["bench", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, description in suites.DESCRIPTIONS.items():
        assert f"{name} {description}" in text
    for name in peers.PEERS:
        assert name in text


@pytest.mark.long
def test_a_bench_from_the_command_line(capsys, tmp_path):
    argv = ["bench", "conjugate", "--models", "gamma_poisson", "--estimators", "default", "--seeds", "1", "--quick",
            "--jobs", "0", "--quiet", "--out", str(tmp_path / "out")]  # fmt: skip
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "gamma_poisson" in out
    assert "open report.html" in out
    header = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert header["commands"] == [" ".join(["estimax", *argv])]
