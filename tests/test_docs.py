"""Every code block of README and docs runs, page by page in one namespace; links and pictures exist.

A block marked ```python runs; one marked ```python no-run, or in another language, does not.
"""

import functools
import re
import warnings
from pathlib import Path

import matplotlib as mpl
import pytest

import estimax

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MOST_STEPS = 50
SLOW = (
    "README", "gaussian-processes", "guides-and-starts", "mixtures", "penalties", "quickstart", "score-based-models",
    "standard-errors", "unnormalised",
)  # fmt: skip
"""Pages whose programs take ten seconds and more to compile; CI runs them."""


def blocks(page):
    """(line number, code) of each block to be run."""
    text = page.read_text(encoding="utf-8")
    return [(text[: m.start()].count("\n") + 2, m[2]) for m in FENCE.finditer(text) if m[1].strip() == "python"]


def reduced(function):
    """The same function with few steps and no bar: that the code runs is the question here, not what it finds."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        steps = min(kwargs.get("num_steps", MOST_STEPS), MOST_STEPS)
        return function(*args, **{**kwargs, "num_steps": steps, "progress_bar": False})

    return call


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(p, id=p.stem, marks=pytest.mark.slow if p.stem in SLOW else pytest.mark.long)
        for p in PAGES
        if p.exists() and blocks(p)
    ],
)
def test_code_blocks_run(page, monkeypatch, tmp_path):
    mpl.use("Agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(estimax, "fit", reduced(estimax.fit))
    monkeypatch.setattr(estimax, "compare", reduced(estimax.compare))
    namespace = {"__name__": page.stem}
    for line, code in blocks(page):
        padded = "\n" * (line - 1) + code  # a traceback then names the line of the page
        with warnings.catch_warnings():
            exec(compile(padded, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    targets = [
        t for t in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if not t.startswith(("http:", "https:", "mailto:"))
    ]
    missing = [t for t in targets if not (page.parent / t).exists()]
    assert not missing
