"""Suites by name."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..files import BadInput, nearest_word
from . import conjugate, density, sampling, tight_bounds, vis_paper
from .cases import Case, Suite, Truth

OURS = ("default", "IWAE", "VIS")
"""ELBO is what `default` takes."""
PEERS = (
    "numpyro:AutoNormal",
    "numpyro:AutoMultivariateNormal",
    "numpyro:AutoLaplaceApproximation",
    "blackjax:Pathfinder",
    "numpyro:NUTS",
)

DESCRIPTIONS: Mapping[str, str] = {
    "posteriordb": "14 real posteriors with reference draws, from a clone of posteriordb (--root)",
    "conjugate": "closed forms: conjugate models, and eight schools by quadrature",
    "sampling": "funnel, banana, Gaussian mixtures, many-well: log Z known, exact draws",
    "vis-paper": "toy mixture and POGLM of the VIS paper, its five methods and settings",
    "tight-bounds": "signal-to-noise of gradients against particles",
    "density": "densities learned from draws: four toys in the plane, and digits (needs estimax[flows])",
}


def names() -> tuple[str, ...]:
    return tuple(DESCRIPTIONS)


def load(name: str, root: str | os.PathLike[str] | None = None) -> Suite:
    """The suite of that name.

    Args:
        root: folder of a posteriordb clone; None takes the environment variable POSTERIORDB.

    Raises:
        BadInput: no such suite, or one whose data are missing.
    """
    builders: dict[str, Callable[[], Suite]] = {
        "posteriordb": partial(_posteriordb, root),
        "conjugate": _conjugate,
        "sampling": _sampling,
        "vis-paper": vis_paper.suite,
        "tight-bounds": tight_bounds.suite,
        "density": density.suite,
    }
    if name not in builders:
        raise BadInput(f"no suite {name!r}; {nearest_word(str(name), DESCRIPTIONS)}")
    return builders[name]()


def _conjugate() -> Suite:
    quick = ("gamma_poisson", "eight_schools")
    return Suite("conjugate", DESCRIPTIONS["conjugate"], conjugate.cases(), (*OURS, *PEERS),
                 (quick, ("default", "VIS", "numpyro:AutoNormal", "blackjax:Pathfinder")))  # fmt: skip


def _sampling() -> Suite:
    return Suite("sampling", DESCRIPTIONS["sampling"], sampling.cases(), (*OURS, "RWS", *PEERS),
                 (("funnel", "banana"), ("default", "VIS", "blackjax:Pathfinder")))  # fmt: skip


def _posteriordb(root: str | os.PathLike[str] | None) -> Suite:
    from ...models import posteriordb

    try:
        posteriors = posteriordb.load(root)
    except FileNotFoundError as error:
        raise BadInput(str(error)) from error

    def case(posterior: posteriordb.Posterior) -> Case:
        return Case(posterior.name, posterior.model, posterior.data, partial(_reference, posterior))

    quick = ("kidiq-kidscore_momiq", "eight_schools-eight_schools_noncentered", "kilpisjarvi_mod-kilpisjarvi")
    there = tuple(name for name in quick if name in posteriors) or tuple(posteriors)[:1]
    return Suite("posteriordb", DESCRIPTIONS["posteriordb"], tuple(case(p) for p in posteriors.values()),
                 (*OURS, *PEERS), (there, ("default", "VIS", "numpyro:AutoNormal")))  # fmt: skip


def _reference(posterior: Any) -> Truth:
    return Truth(posterior.reference())


def resolve_root(root: str | os.PathLike[str] | None) -> str | None:
    """An absolute folder, so that workers with another working directory find it."""
    from ...models import posteriordb

    root = root if root is not None else os.environ.get(posteriordb.ENV)
    return str(Path(root).expanduser().resolve()) if root else None


def restrict(suite: Suite, models: Sequence[str] | None) -> Suite:
    """The suite with the named cases only, in the order of the suite.

    Raises:
        BadInput: a name that is not of the suite.
    """
    if models is None:
        return suite
    known = {case.name.lower(): case.name for case in suite.cases}
    chosen = set()
    for name in models:
        if name.lower() not in known:
            raise BadInput(f"the suite {suite.name!r} has no model {name!r}; {nearest_word(name, known.values())}")
        chosen.add(known[name.lower()])
    if not chosen:
        raise BadInput("models must name at least one model, got none")
    return replace(suite, cases=tuple(case for case in suite.cases if case.name in chosen))
