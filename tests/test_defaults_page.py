"""docs/how-good-are-the-defaults.md says what the committed table of runs says."""

import importlib.util
import json
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
CSV = ROOT / "benchmarks" / "results" / "posteriordb.csv"

pytestmark = pytest.mark.skipif(not CSV.exists(), reason="no table of runs is committed")


@pytest.fixture(scope="module")
def maker():
    spec = importlib.util.spec_from_file_location("make_defaults_page", ROOT / "docs" / "make_defaults_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(maker):
    text = maker.PAGE.read_text(encoding="utf-8")
    assert text == maker.page(CSV), "run python docs/make_defaults_page.py benchmarks/results/posteriordb.csv"


def test_a_broken_promise_would_be_told(maker, tmp_path):
    """One trusted run made wrong: the page names it, and the goal is not met."""
    runs = pd.read_csv(CSV)
    row = runs.index[(runs["column"] == "default") & runs["verdict"].isin(["good", "ok"])][0]
    runs.loc[row, "mean_error"] = 7.77
    runs.to_csv(tmp_path / "posteriordb.csv", index=False)
    header = json.loads(CSV.with_suffix(".json").read_text(encoding="utf-8"))
    (tmp_path / "posteriordb.json").write_text(json.dumps(header))
    text = maker.page(tmp_path / "posteriordb.csv")
    before = maker.page(CSV)
    told = f"- {runs.loc[row, 'case']}, default, seed {runs.loc[row, 'seed']}: error 7.77 sd"
    assert told in text
    assert told not in before
    assert "the goal is none: **not met**" in text
