"""The command line, in this process: what it prints, what it writes, how it ends."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys

import jax
import numpy as np
import pandas as pd
import pytest
from numpyro.infer import autoguide

from estimax import estimators, load, models
from estimax.estimators import ELBO, LogWeight
from estimax.inference import cli, engine, files, lookup
from estimax.inference.cli import main

MODEL = '''
import numpyro
import numpyro.distributions as dist
from settings_of_my_model import SCALE  # lies beside this file


def model(x, y=None):
    """y ~ N(slope x, 1)"""
    slope = numpyro.sample("slope", dist.Normal(0.0, SCALE))
    with numpyro.plate("n", len(x)):
        numpyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def learning(y):
    m = numpyro.param("m", 0.0)
    with numpyro.plate("n", len(y)):
        numpyro.sample("y", dist.Normal(m + numpyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=y)


def guide(x, y=None):
    numpyro.sample("slope", dist.Normal(numpyro.param("loc", 0.0), 0.3))


number = 3
'''
X, Y = np.array([1.0, 2.0, 3.0]), np.array([1.1, 1.8, 3.3])
QUICK = ["--num-steps", "50", "--quiet"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A user's folder with a model and data in every format."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "settings_of_my_model.py").write_text("SCALE = 10.0\n")
    (folder / "mine.py").write_text(MODEL)
    (folder / "broken.py").write_text("import numpyro\n\nnumpyro.nothing()\n")
    (folder / "syntax.py").write_text("def f(:\n")
    (folder / "exits.py").write_text("import sys\nsys.exit('usage: exits.py')\n")
    (folder / "data.json").write_text(json.dumps({"x": X.tolist(), "y": Y.tolist()}))
    (folder / "data.csv").write_text("x, y\n" + "".join(f"{a}, {b}\n" for a, b in zip(X, Y, strict=True)))
    (folder / "data.tsv").write_text("x\ty\n" + "".join(f"{a}\t{b}\n" for a, b in zip(X, Y, strict=True)))
    np.savez(folder / "data.npz", x=X, y=Y)
    return folder


@pytest.fixture
def there(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def fails(capsys, *argv, status=2):
    """Run a command that must fail; returns its one line on stderr."""
    assert main(list(argv)) == status
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("estimax: error: ")
    assert "Traceback" not in err
    return lines[0].removeprefix("estimax: error: ")


# --- help and lists


def test_help_has_examples(capsys):
    for argv in (["--help"], ["compare", "--help"], ["fit", "-h"], ["list", "--help"]):
        assert main(argv) == 0
        out, err = capsys.readouterr()
        assert out.startswith("usage: estimax")
        assert err == ""
        if argv[0] != "list":
            assert "examples:\n  estimax" in out


def test_no_command_is_bad_usage(capsys):
    assert main([]) == 2
    assert "usage: estimax" in capsys.readouterr().err


@pytest.mark.long
def test_version_and_python_m(capsys):
    assert main(["--version"]) == 0
    out = capsys.readouterr().out
    assert re.fullmatch(r"estimax \d+\.\d+.*\n", out)
    run = subprocess.run([sys.executable, "-m", "estimax", "--version"], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, out)
    run = subprocess.run([sys.executable, "-m", "estimax", "fit"], capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith("estimax: error:")


def test_list_shows_all_there_is_with_a_line_each(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = {line.split()[0]: line for line in lines if line.startswith("  ")}
    for name in models.names():
        assert models.get(name).description in shown[name]
    for name in ("ELBO", "IWAE", "VIS", "RWS", "CHIVI", "VBIS", "MIWAE", "AutoNormal", "AutoBNAFNormal", "default"):
        assert len(shown[name].split()) > 3
    assert "alpha=0.5" in shown["Renyi"]
    assert "LogWeight" not in shown
    assert "AutoGuide" not in shown


def test_a_new_estimator_shows_up_by_being_exported(monkeypatch, capsys):
    class Novel(ELBO):
        """A novel bound on everything. More of it here."""

    monkeypatch.setattr(estimators, "Novel", Novel, raising=False)
    monkeypatch.setattr(estimators, "__all__", [*estimators.__all__, "Novel"])
    assert lookup.find_estimator("novel") is Novel
    main(["list"])
    assert re.search(r"Novel +A novel bound on everything\n", capsys.readouterr().out)
    assert LogWeight not in lookup.available_estimators().values()


def test_every_listed_guide_needs_the_model_only():
    for cls in lookup.available_guides().values():
        assert cls(models.get("eight_schools").model) is not None


# --- compare


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """One run of `compare` with progress bars: its status, output and folder."""
    folder = tmp_path_factory.mktemp("compared") / "out"
    argv = ["compare", "eight_schools", "--estimators", "elbo,Vis", "--num-steps", "50", "--out", str(folder)]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(argv)
    return status, out.getvalue(), err.getvalue(), folder


def test_compare_prints_the_table_and_what_to_make_of_it(compared):
    status, out, err, folder = compared
    assert status == 0, err
    lines = out.splitlines()
    assert lines[0].split()[:3] == ["log", "evidence", "ELBO"]
    assert [line.split()[0] for line in lines[1:3]] == ["ELBO", "VIS"]
    exact = next(line for line in lines if line.startswith("exact log evidence"))
    assert float(exact.split()[-1]) == pytest.approx(models.get("eight_schools").log_evidence(), abs=1e-3)
    assert any("what to make of it" in line for line in lines)
    assert any(line.startswith("start: laplace") for line in lines)
    assert lines[-1].endswith(f"in {folder}{os.sep}")


def test_compare_shows_progress_on_stderr_only(compared):
    _, out, err, _ = compared
    assert "VIS (2 of 2)" in err
    assert "%|" in err
    assert "%|" not in out


def test_compare_writes_tables_pictures_and_netcdf(compared):
    *_, folder = compared
    names = {p.name for p in folder.iterdir()}
    assert names == {"table.csv", "table.md", "losses.png", "weights.png", "posterior.png", "ELBO.nc", "VIS.nc"}
    table = pd.read_csv(folder / "table.csv", index_col="estimator")
    assert list(table.index) == ["ELBO", "VIS"]
    assert table["log_evidence"].between(-60, -25).all()
    assert {"khat", "verdict", "ess", "mean_error", "psis_sd_error", "steps_per_second"} <= set(table.columns)
    assert (folder / "table.md").read_text(encoding="utf-8").startswith("| estimator |")
    result = load(folder / "VIS.nc", models.get("eight_schools").model)
    assert result.num_steps == 50
    assert (folder / "losses.png").stat().st_size > 10_000


@pytest.mark.long
def test_compare_quiet_and_default_folder(there, capsys):
    assert main(["compare", "mine.py:model", "--data", "data.csv", "--estimators", "elbo", *QUICK]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "what to make of it" not in out
    assert "mean err" not in out  # no reference
    assert out.splitlines()[-1].endswith(os.path.join("estimax-results", "mine-model") + os.sep)
    assert (there / "estimax-results" / "mine-model" / "ELBO.nc").exists()
    # ... and the netCDF file serves as a reference of the next run
    reference = os.path.join("estimax-results", "mine-model", "ELBO.nc")
    argv = ["compare", "mine.py:model", "--data", "data.csv", "--estimators", "elbo", "--reference", reference]
    assert main([*argv, *QUICK, "--out", "again"]) == 0
    assert "mean err" in capsys.readouterr().out


@pytest.mark.long
def test_an_estimator_that_cannot_run_is_in_the_notes_and_in_the_status(there, capsys, monkeypatch):
    def problem(self, *args):
        raise ValueError("not today")

    monkeypatch.setattr(estimators.RWS, "problem", problem)
    argv = ["compare", "mine.py:model", "--data", "data.json", "--estimators", "rws,elbo", "--out", "part", *QUICK]
    assert main(argv) == 1
    out, err = capsys.readouterr()
    assert "RWS: not run: not today" in out
    assert err == ""
    assert (there / "part" / "ELBO.nc").exists()
    assert main([*argv, "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.long
def test_what_cannot_be_saved_is_an_error_after_the_rest_is_saved(there, capsys, monkeypatch):
    from estimax import FitResult

    def refuse(self, path, **_):
        raise RuntimeError("disk on fire")

    monkeypatch.setattr(FitResult, "save", refuse)
    argv = ["compare", "mine.py:model", "--data", "data.json", "--estimators", "elbo", "--out", "burnt", *QUICK]
    assert main(argv) == 1
    out, err = capsys.readouterr()
    assert "log evidence" in out
    assert err == "estimax: error: saved in burnt, all but ELBO.nc (RuntimeError: disk on fire)\n"
    assert (there / "burnt" / "table.csv").exists()


# --- fit


def test_fit_finds_the_closed_form_and_saves_it(there, capsys):
    argv = ["fit", "mine.py:model", "--data", "data.json", "--estimator", "VIS", "--num-particles", "8"]
    assert main([*argv, "--num-steps", "50", "--out", "fit.nc", "--plot", "fit.png"]) == 0
    out, err = capsys.readouterr()
    assert "VIS(num_particles=8), 50 steps" in out
    row = next(line for line in out.splitlines() if line.startswith("slope")).split()
    precision = X @ X + 0.01
    assert float(row[1]) == pytest.approx(X @ Y / precision, abs=6 * precision**-0.5 / np.sqrt(4000))
    assert float(row[2]) == pytest.approx(precision**-0.5, rel=0.1)
    assert "verdict:" in out
    assert out.splitlines()[-2:] == ["saved fit.nc", "saved fit.png"]
    assert "%|" in err
    assert (there / "fit.png").read_bytes().startswith(b"\x89PNG")
    assert load(there / "fit.nc", files.load_function("mine.py:model", "model")[1]).num_steps == 50


@pytest.mark.parametrize("data", ["data.csv", "data.tsv", "data.npz"])
def test_every_format_gives_the_same_data(there, data):
    expected = files.load_data("data.json")
    got = files.load_data(data)
    assert list(got) == list(expected)
    for key in got:
        np.testing.assert_array_equal(got[key], expected[key])


def test_plain_values_stay_plain(tmp_path):
    np.savez(tmp_path / "a.npz", n=3, flag=True, r=0.5, y=np.arange(3))
    data = files.load_data(str(tmp_path / "a.npz"))
    assert (data["n"], data["flag"]) == (3, True)
    assert type(data["n"]) is int
    assert data["r"].shape == ()
    (tmp_path / "a.json").write_text('{"n": 3, "flag": true, "nested": {"y": [1, null]}, "m": [[1, 2], [3, 4]]}')
    data = files.load_data(str(tmp_path / "a.json"))
    assert data["n"] == 3
    assert data["flag"] is True
    assert np.isnan(data["nested"]["y"][1])
    assert data["m"].shape == (2, 2)
    assert files.load_data("eight_schools")["y"].shape == (8,)


@pytest.mark.long
def test_fit_with_a_guide_and_an_optimizer_of_choice(there, capsys):
    argv = ["fit", "mine.py:model", "--data", "data.json", "--guide", "mine.py:guide", *QUICK]
    assert main([*argv, "--optimizer", "rmsprop", "--learning-rate", "0.1", "--restarts", "2"]) == 0
    out, err = capsys.readouterr()
    assert "slope" in out
    assert "\nverdict: " in out  # quiet or not
    assert err == ""


def test_guides_by_name():
    target = lookup.find_model("poglm")
    for word in ("AutoNormal", "autonormal", "normal"):
        assert lookup.find_guide(word, target) is autoguide.AutoNormal
    assert lookup.find_guide("default", target) is None
    assert lookup.find_guide(None, target) is models.get("poglm").guide


@pytest.mark.long
def test_fit_prints_the_models_own_parameters(there, capsys):
    assert main(["fit", "mine.py:learning", "--data", "y.json", *QUICK]) == 2
    (there / "y.json").write_text('{"y": [3.0, 3.1]}')
    capsys.readouterr()
    assert main(["fit", "mine.py:learning", "--data", "y.json", *QUICK]) == 0
    assert re.search(r"parameters of the model\n +estimate\nm +\d", capsys.readouterr().out)


def test_x64_is_double_precision_and_leaves_no_trace(monkeypatch):
    kinds = []
    monkeypatch.setattr(cli, "_fit", lambda args: kinds.append(jax.numpy.zeros(1).dtype) or 0)
    assert main(["fit", "eight_schools", "--x64"]) == 0
    assert main(["fit", "eight_schools"]) == 0
    assert kinds == [np.float64, np.float32]


def test_same_seed_same_answer_other_seed_other_answer(there, capsys):
    outputs = []
    for seed in ("1", "1", "2"):
        main(["fit", "mine.py:model", "--data", "data.json", "--guide", "mine.py:guide", "--seed", seed, *QUICK])
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2]


def test_built_in_models_bring_guide_gradient_and_steps():
    args = cli.build_parser().parse_args(["fit", "poglm"])
    job = cli._job(args)
    poglm = models.get("poglm")
    assert job.options["guide"] is poglm.guide
    assert job.options["num_steps"] == poglm.num_steps
    assert job.options["learning_rate"] == poglm.learning_rate
    made = lookup.make_estimators([estimators.VIS], {}, job.target.gradient)
    assert made["VIS"].gradient == "score"
    assert lookup.make_estimators([estimators.VIS], {"gradient": "none"}, "score")["VIS"].gradient is None
    other = cli._job(cli.build_parser().parse_args(["fit", "poglm", "--guide", "default", "--num-steps", "7"]))
    assert other.options["guide"] is None
    assert other.options["learning_rate"] is None
    assert other.options["num_steps"] == 7


def test_settings_are_typed_by_their_field():
    made = lookup.make_estimators(
        [estimators.Renyi, estimators.MIWAE, estimators.CHIVI],
        {"alpha": "0.3", "num_groups": "2", "sandwich": "false", "num_particles": "8", "vectorize_particles": "no"},
        None,
    )
    assert made["Renyi"] == estimators.Renyi(alpha=0.3, num_particles=8, vectorize_particles=False)
    assert made["MIWAE"].num_groups == 2
    assert made["CHIVI"].sandwich is False
    assert lookup.make_estimators([estimators.DataEmphasizedELBO], {"kappa": "none"}, None)


# --- Ctrl-C


def interrupt_at_call(monkeypatch, number):
    """Send SIGINT, as Ctrl-C does, when the step loop makes its n-th compiled call."""
    real, calls = engine._call, []

    def call(*args):
        calls.append(1)
        if len(calls) == number:
            signal.raise_signal(signal.SIGINT)
        return real(*args)

    monkeypatch.setattr(engine, "_call", call)


@pytest.mark.long
def test_interrupted_compare_keeps_and_saves_what_was_done(there, capsys, monkeypatch):
    interrupt_at_call(monkeypatch, 6)  # the first fit takes three calls, of 1, 8 and 41 steps
    argv = ["compare", "mine.py:model", "--data", "data.json", "--estimators", "elbo,iwae,vis", "--out", "cut", *QUICK]
    assert main(argv) == 130
    out, err = capsys.readouterr()
    assert err.startswith("estimax: error: interrupted: kept what was fitted so far (ELBO, IWAE)")
    assert len(err.splitlines()) == 1
    assert "status" in out
    assert {"ELBO.nc", "IWAE.nc", "table.csv"} <= {p.name for p in (there / "cut").iterdir()}
    assert not (there / "cut" / "VIS.nc").exists()


def test_interrupted_fit_keeps_and_saves_what_was_done(there, capsys, monkeypatch):
    interrupt_at_call(monkeypatch, 3)
    argv = ["fit", "mine.py:model", "--data", "data.json", "--out", "cutfit.nc", *QUICK]
    assert main(argv) == 130
    out, err = capsys.readouterr()
    assert "interrupted after 9 of 50 steps" in err
    assert "saved cutfit.nc" in out
    assert load(there / "cutfit.nc", files.load_function("mine.py:model", "model")[1]).num_steps == 9


@pytest.mark.parametrize("command", ["compare", "fit"])
def test_interrupted_at_once_says_that_there_is_nothing(there, capsys, monkeypatch, command):
    interrupt_at_call(monkeypatch, 1)
    assert main([command, "mine.py:model", "--data", "data.json", "--out", "nothing.nc", *QUICK]) == 130
    assert "nothing" in capsys.readouterr().err
    assert not (there / "nothing.nc").exists()


def test_ctrl_c_while_saving_asks_for_patience(there, capsys, monkeypatch):
    from estimax import FitResult

    save = FitResult.save

    def interrupted_save(self, *args, **kwargs):
        signal.raise_signal(signal.SIGINT)
        save(self, *args, **kwargs)

    monkeypatch.setattr(FitResult, "save", interrupted_save)
    assert main(["fit", "mine.py:model", "--data", "data.json", "--out", "patient.nc", *QUICK]) == 0
    assert "a moment please" in capsys.readouterr().err
    assert (there / "patient.nc").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# --- bad input


def test_unknown_words_suggest_the_nearest(there, capsys):
    for argv, hint in [
        (["comapre", "eight_schools"], "unknown command 'comapre'; did you mean 'compare'?"),
        (["compare", "eight_school"], "did you mean 'eight_schools'?"),
        (["compare", "xyz"], "known: eight_schools"),
        (["compare", "eight_schools", "--estimators", "elbo,iwea"], "no estimator 'iwea'; did you mean 'IWAE'?"),
        (["fit", "eight_schools", "--estimator", "vsi"], "did you mean 'VIS'?"),
        (["fit", "eight_schools", "--guide", "AutoNormla"], "did you mean 'AutoNormal'?"),
        (["fit", "eight_schools", "--optimizer", "adma"], "did you mean 'adam'?"),
        (["fit", "eight_schools", "--optimizer", "chain"], "no optimizer 'chain'; known: adam"),
        (["fit", "eight_schools", "--num-step", "3"], "did you mean '--num-steps'?"),
        (["fit", "eight_schools", "extra"], "does not take 'extra'"),
        (["fit", "eight_schools", "--estimator", "renyi", "--set", "alhpa=1"], "did you mean 'alpha'?"),
        (["compare", "eight_schools", "--reference", "nust"], "did you mean 'nuts'?"),
        (["compare", "mine.py:modle", "--data", "data.json"], "no function 'modle'; did you mean 'model'?"),
        (["compare", "mien.py:model"], "no file 'mien.py'; did you mean 'mine.py'?"),
        (["fit", "mine.py:model", "--data", "data.jsn"], "did you mean 'data.json'?"),
        (["fit", "mine.py:model", "--data", "eight_school"], "did you mean 'eight_schools'?"),
    ]:
        assert hint in fails(capsys, *argv), argv


def test_values_that_cannot_be(capsys):
    for option, value, message in [
        ("--num-steps", "0", "at least 1, got 0"),
        ("--num-steps", "many", "'many' is not a whole number"),
        ("--num-particles", "-3", "at least 1"),
        ("--restarts", "0", "at least 1"),
        ("--learning-rate", "0", "must be positive"),
        ("--learning-rate", "nan", "must be positive"),
        ("--learning-rate", "fast", "'fast' is not a number"),
        ("--seed", "-1", "between 0 and"),
        ("--set", "alpha", "not of the form NAME=VALUE"),
        ("--set", "gradient=wrong", "gradient must be one of"),
        ("--set", "num_particles=few", "must be int, got 'few'"),
    ]:
        assert message in fails(capsys, "fit", "eight_schools", option, value)
    assert "at least one name" in fails(capsys, "compare", "eight_schools", "--estimators", ",")
    assert "required: MODEL" in fails(capsys, "compare")
    assert "num_groups must be" in fails(
        capsys, "fit", "eight_schools", "--estimator", "miwae", "--set", "num_groups=5"
    )


def test_model_files_that_cannot_be_used(there, capsys):
    for text, message in [
        ("broken.py:model", "broken.py, line 3: AttributeError"),
        ("syntax.py:model", "syntax.py, line 1: SyntaxError"),
        ("exits.py:model", "exits.py, line 2: SystemExit: usage: exits.py"),
        ("mine.py", "which function of 'mine.py' is the model? Write mine.py:model"),
        ("mine.py:number", "no function but int"),
        ("nowhere/mine.py:model", "there is no folder 'nowhere'"),
    ]:
        assert message in fails(capsys, "fit", text, "--data", "data.json")


BAD_DATA = {
    "nan.json": ('{"x": [1, 2, 3], "y": [1, 2, null]}', "data['y'][2] is nan"),
    "inf.json": ('{"x": [1, 2, Infinity], "y": [1, 2, 3]}', "data['x'][2] is inf"),
    "key.json": ('{"x": [1, 2, 3], "z": [1, 2, 3]}', "'z', which the model does not take"),
    "missing.json": ('{"y": [1, 2, 3]}', "the model needs 'x'"),
    "shape.json": ('{"x": [1, 2, 3], "y": [1, 2]}', "could not run on this data"),
    "unobserved.json": ('{"x": [1, 2, 3]}', "no observed site"),
    "list.json": ("[1, 2]", "holds a list"),
    "bad.json": ('{"x": [1,\n 2,}', "not valid JSON: Expecting value at line 2"),
    "ragged.json": ('{"x": [[1, 2], [3]]}', "'x' is not an array of numbers"),
    "text.json": ('{"x": ["a", "b"]}', "'x' holds text"),
    "nothing.json": ("{}", "no data in it"),
    "nan.csv": ("x,y\n1,1\n2,\n3,3\n", "data['y'][1] is nan"),
    "text.csv": ("x,y\n1,1\n2,two\n", "column 'y' is not numeric: 'two' in line 3"),
    "wide.csv": ("x,y\n1,1,1\n2,2,2\n", "more fields than the header"),
    "semicolon.csv": ("x;y\n1;1\n", "semicolons"),
    "empty.csv": ("", "the file is empty"),
    "header.csv": ("x,y\n", "no rows"),
    "fake.npz": ("hello", "not an NPZ file"),
    "data.xlsx": ("hello", "data files end in .json"),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data(there, capsys, name):
    content, message = BAD_DATA[name]
    (there / name).write_text(content)
    assert message in fails(capsys, "fit", "mine.py:model", "--data", name)


def test_data_that_cannot_be_read(there, capsys):
    (there / "latin.json").write_bytes(b'{"x": "\xff"}')
    assert "cannot read 'latin.json'" in fails(capsys, "fit", "mine.py:model", "--data", "latin.json")
    (there / "folder.json").mkdir()
    assert "cannot read 'folder.json'" in fails(capsys, "fit", "mine.py:model", "--data", "folder.json")
    np.savez(there / "object.npz", x=np.array([{}], dtype=object))
    assert "plain arrays" in fails(capsys, "fit", "mine.py:model", "--data", "object.npz")
    assert "the model needs 'x'" in fails(capsys, "fit", "mine.py:model")
    (there / "plain.nc").write_text("hello")
    argv = ["compare", "mine.py:model", "--data", "data.json", "--reference", "plain.nc"]
    assert "not an ArviZ netCDF file" in fails(capsys, *argv)


def test_places_that_cannot_be_written_are_found_out_before_any_work(there, capsys, monkeypatch):
    from estimax.inference import compare, fit

    monkeypatch.setattr(compare, "find_start", lambda *_, **__: pytest.fail("work was begun"))
    monkeypatch.setattr(fit, "resolve", lambda *_, **__: pytest.fail("work was begun"))
    argv = ["mine.py:model", "--data", "data.json", "--out"]
    assert "'mine.py' is not a folder" in fails(capsys, "compare", *argv, "mine.py/results")
    assert "no folder 'nowhere'" in fails(capsys, "fit", *argv, "nowhere/fit.nc")
    assert "it is a folder" in fails(capsys, "fit", *argv, ".")
    assert "no folder" in fails(capsys, "fit", *argv, "ok.nc", "--plot", "nowhere/fit.png")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)  # what a folder without write permission does
    assert "'new/results': Permission denied" in fails(capsys, "compare", *argv, "new/results")
    assert not (there / "new").exists()


def test_a_model_that_cannot_be_fitted_at_all(there, capsys):
    (there / "infinite.py").write_text(
        "from mine import *\n"
        "def model(x, y=None):\n"
        "    slope = numpyro.sample('slope', dist.Normal(0, 1))\n"
        "    numpyro.factor('wall', -float('inf') * (slope < 1e9))\n"
        "    numpyro.sample('y', dist.Normal(slope, 1).expand([3]), obs=y)\n"
    )
    argv = ["fit", "infinite.py:model", "--data", "data.json", "--guide", "mine.py:guide", *QUICK]
    message = fails(capsys, *argv, status=1)
    assert "not finite before the first step" in message
    assert "'wall'" in message


def test_unexpected_errors_are_one_line_and_debug_shows_more(there, capsys, monkeypatch):
    def boom(args):
        raise KeyError("lost\nand found")

    monkeypatch.setattr(cli, "find_model", boom)
    message = fails(capsys, "fit", "mine.py:model", status=1)
    assert "KeyError: 'lost\\nand found' (--debug shows where)" in message
    assert main(["--debug", "fit", "mine.py:model"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_has_had_enough_is_no_error(monkeypatch):
    def gone(args):
        raise BrokenPipeError

    monkeypatch.setattr(cli, "_list", gone)
    monkeypatch.setattr(cli.os, "dup2", lambda *_: None)
    assert main(["list"]) == 0
