"""The command line: ``estimax compare``, ``estimax fit``, ``estimax bench``, ``estimax list``.

Everything that costs import time is imported inside functions, so that ``--help`` and a mistyped option answer at once.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import shlex
import shutil
import signal
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from .files import BadInput, check_file, check_folder, load_data, load_reference, nearest_word
from .lookup import (
    Target,
    available_estimators,
    available_guides,
    check_optimizer,
    find_estimator,
    find_guide,
    find_model,
    first_line,
    make_estimators,
    own_arguments,
)

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

DEFAULT_ESTIMATORS = ("ELBO", "IWAE", "VIS", "RWS", "CHIVI", "VBIS", "Laplace", "MAP")
"""What `compare` takes when no estimators are named."""
MAX_ROWS = 60
"""Most rows of a summary on the screen."""

EXAMPLES = {
    "": """\
examples:
  estimax compare eight_schools                 eight estimators of a built-in model, side by side
  estimax compare my.py:model --data my.csv --reference nuts
  estimax fit my.py:model --data my.json --estimator vis --num-particles 64 --out fit.nc
  estimax bench conjugate --quick               estimators and peers on models whose truth is known
  estimax list                                  estimators, guides and models

exit status: 0 all went well, 1 something could not be fitted or saved, 2 bad input, 130 interrupted (what was done is
kept and saved)""",
    "compare": """\
examples:
  estimax compare eight_schools
  estimax compare eight_schools --estimators elbo,vis,renyi --set alpha=0.3 --num-particles 64
  estimax compare logistic_regression --reference none --num-steps 2000 --x64
  estimax compare my.py:model --data my.csv --reference nuts --out results/my

MODEL is a built-in model (estimax list) or FILE.py:FUNCTION, a function of NumPyro primitives whose arguments are the
keys of the data. Built-in models bring data, reference draws and, where it has to be, their own guide.""",
    "fit": """\
examples:
  estimax fit eight_schools --estimator iwae
  estimax fit my.py:model --data my.json --estimator vis --num-particles 64 --out fit.nc
  estimax fit my.py:model --data my.csv --guide AutoNormal --optimizer rmsprop --learning-rate 0.01 --plot fit.png

The netCDF file opens in ArviZ, and with estimax.load(path, model) in Python to go on from there.""",
    "bench": """\
examples:
  estimax bench conjugate --quick
  estimax bench posteriordb --root ~/posteriordb --jobs 4
  estimax bench posteriordb --estimators numpyro:NUTS --seeds 1 --resume
  estimax bench sampling --estimators "default,vis(num_particles=64),my.py:MyEstimator" --models funnel,banana

An estimator is default (estimax.fit without one), a name of estimax list with arguments in brackets, FILE.py:CLASS, or
a peer: numpyro:AutoNormal, numpyro:AutoMultivariateNormal, numpyro:AutoLaplaceApproximation, blackjax:Pathfinder,
numpyro:NUTS.

suites:
  posteriordb   14 real posteriors with reference draws, from a clone of posteriordb (--root)
  conjugate     closed forms: conjugate models, and eight schools by quadrature
  sampling      funnel, banana, Gaussian mixtures, many-well: log Z known, exact draws
  vis-paper     toy mixture and POGLM of the VIS paper, its five methods and settings
  tight-bounds  signal-to-noise of gradients against particles
  density       densities learned from draws: four toys in the plane, and digits (needs estimax[flows])

Every run is kept in the folder as soon as it is done; --resume goes on after Ctrl-C, or adds estimators and seeds. A
run that fails is a row with its reason. report.html in the folder has tables and pictures.""",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    argv = [word for word in argv if word != "--debug"]  # wherever it stands
    _forgiving_streams()
    try:
        with _plain_warnings(), _debug_log(debug):
            return _run(argv)
    except SystemExit as stop:  # argparse leaves --help and --version this way
        return stop.code if isinstance(stop.code, int) else OK
    except KeyboardInterrupt:
        _say("interrupted before anything was saved", "error")
        return INTERRUPTED
    except BrokenPipeError:  # the reader, `head` say, has had enough
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        if debug:
            traceback.print_exc()
        _say(_one_line(error), "error")
        return BAD_INPUT if isinstance(error, (BadInput, ValueError, TypeError)) else FAILED


def _run(argv: list[str]) -> int:
    parser = build_parser()
    if not argv:
        parser.print_help(sys.stderr)
        return BAD_INPUT
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        _unknown_arguments(args, unknown)
    args.argv = argv
    with _x64() if getattr(args, "x64", False) else contextlib.nullcontext():
        status = args.run(args)
    sys.stdout.flush()
    return status


# --- talking to the user -------------------------------------------------------------------------------------------


def _say(text: str, kind: str) -> None:
    print(f"estimax: {kind}: {text}", file=sys.stderr)


def _one_line(error: BaseException) -> str:
    """The message on one line; with the kind of the error where it is not one that explains itself."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, MemoryError):
        text = f"out of memory ({text}): fewer particles or --set vectorize_particles=false may help"
    elif not isinstance(error, (BadInput, ValueError, TypeError, OSError, FloatingPointError, ImportError)):
        text = f"{type(error).__name__}: {text} (--debug shows where)"
    return text if len(text) < 1000 else text[:1000] + " …"


def _forgiving_streams() -> None:
    """A terminal that cannot show "k̂" gets a question mark, not a crash."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings as one line each, and each of them once."""
    from tqdm.auto import tqdm

    seen: set[str] = set()

    def show(message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
        text = " ".join(str(message).split())
        if text not in seen:
            seen.add(text)
            tqdm.write(f"estimax: warning: {text}", file=sys.stderr)  # beside a progress bar, not into it

    with warnings.catch_warnings():
        for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):  # for developers, not for users
            warnings.simplefilter("ignore", category)
        warnings.showwarning = show
        yield


@contextlib.contextmanager
def _debug_log(debug: bool) -> Iterator[None]:
    """With --debug, the tracebacks of estimators that could not run go to stderr."""
    log = logging.getLogger("estimax")
    handler, level = logging.StreamHandler(), log.level
    if debug:
        log.addHandler(handler)
        log.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


@contextlib.contextmanager
def _x64() -> Iterator[None]:
    """Double precision before any array is made; single again afterwards, for callers in Python."""
    import jax

    before = jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


# --- the parser ----------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """argparse, with errors that suggest the nearest valid word."""

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if wrong:
            options = [o.strip().strip("'\"") for o in wrong[2].split(",")]
            message = f"unknown command {wrong[1]!r}; {nearest_word(wrong[1], options)}"
        raise BadInput(f"{message} (see {self.prog} --help)")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    from ..version import __version__

    parser = _Parser(
        prog="estimax",
        description="Fit one NumPyro model with any estimator, and see which estimate to trust and what it cost.",
        epilog=EXAMPLES[""],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"estimax {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=help,
            description=help[0].upper() + help[1:] + ".",
            epilog=EXAMPLES.get(name),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        sub.set_defaults(run=run, parser=sub)
        return sub

    compare = command("compare", _compare, "fit several estimators to one model and put them in one table")
    _model_arguments(compare)
    compare.add_argument("--estimators", type=_names, metavar="A,B,...",
                         help=f"estimators to compare (default: {','.join(DEFAULT_ESTIMATORS).lower()})")  # fmt: skip
    compare.add_argument("--reference", metavar="nuts|none|FILE.nc",
                         help="draws to measure errors against: nuts runs NumPyro's sampler, FILE.nc is an ArviZ "
                         "netCDF file (default: those of a built-in model, else none)")  # fmt: skip
    _fit_arguments(compare)
    compare.add_argument("--out", type=Path, metavar="FOLDER",
                         help="where table, pictures and netCDF files go; files of the same names are replaced "
                         "(default: estimax-results/MODEL)")  # fmt: skip
    _common_arguments(compare)

    fit = command("fit", _fit, "fit one estimator to a model; print its summary and what to trust of it")
    _model_arguments(fit)
    fit.add_argument("--estimator", metavar="NAME", help="estimator to fit (default: elbo)")
    _fit_arguments(fit)
    fit.add_argument("--out", type=Path, metavar="FILE.nc", help="save the fit as netCDF, for ArviZ and estimax.load")
    fit.add_argument("--plot", type=Path, metavar="FILE.png", help="draw loss curve and weights into this file")
    _common_arguments(fit)

    bench = command("bench", _bench, "run estimators and peers on a suite of models whose truth is known")
    _bench_arguments(bench)

    listing = command("list", _list, "show estimators, guides and models with a line each")
    listing.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="built-in model, or FILE.py:FUNCTION")
    parser.add_argument("--data", metavar="FILE",
                        help="the model's arguments: JSON (an object of numbers and lists), CSV (a column an argument) "
                        "or NPZ; or the name of a built-in model whose data to take")  # fmt: skip


def _fit_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num-particles", type=_positive_int, metavar="K", help="draws per step (default: 16)")
    parser.add_argument("--set", dest="settings", type=_setting, action="append", default=[], metavar="NAME=VALUE",
                        help="another argument of an estimator, as alpha=0.3 or gradient=dreg; repeatable")  # fmt: skip
    parser.add_argument("--num-steps", type=_positive_int, metavar="N",
                        help="optimisation steps (default: what a built-in model suggests, else 1000)")  # fmt: skip
    parser.add_argument("--guide", metavar="NAME",
                        help="default (started at the mode, whitened), an AutoGuide of NumPyro, or FILE.py:FUNCTION "
                        "(default: a built-in model's own, else default)")  # fmt: skip
    parser.add_argument("--optimizer", metavar="NAME", help="first-order method of optax (default: adam)")
    parser.add_argument("--learning-rate", type=_positive_float, metavar="RATE",
                        help="initial step size (default: a built-in model's, else 0.02 with the default guide and "
                        "0.01 with others)")  # fmt: skip
    parser.add_argument("--restarts", type=_positive_int, default=1, metavar="R",
                        help="independent runs at once, of which the best is kept (default: 1)")  # fmt: skip
    parser.add_argument("--seed", type=_seed, default=0, metavar="S", help="same seed, same answer (default: 0)")
    parser.add_argument("--x64", action="store_true", help="compute in double precision")


def _bench_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("suite", metavar="SUITE", help="what to run on; see below")
    parser.add_argument("--estimators", metavar="A,B,...", help="default, estimators and peers (default: the suite's)")
    parser.add_argument("--models", type=_names, metavar="A,B,...", help="models of the suite (default: all)")
    parser.add_argument("--seeds", type=_positive_int, metavar="N", help="runs of each (default: 5; 2 with --quick)")
    parser.add_argument("--jobs", type=_whole_number, default=2, metavar="N",
                        help="worker processes; 0 does all in this one (default: 2)")  # fmt: skip
    parser.add_argument("--cluster", metavar="ADDRESS", help="of a Dask scheduler, to run on its workers instead")
    parser.add_argument("--out", type=Path, metavar="FOLDER",
                        help="where results go (default: estimax-results/bench-SUITE)")  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="go on in that folder: what is done is not repeated")
    parser.add_argument("--root", metavar="FOLDER",
                        help="clone of posteriordb (default: environment variable POSTERIORDB)")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="few models, seeds, steps and draws: to see that it works")
    parser.add_argument("--num-steps", type=_positive_int, metavar="N", help="of every method, in place of its own")
    parser.add_argument("--x64", dest="double", action="store_true", help="compute in double precision")
    _common_arguments(parser)


def _common_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true",
                        help="no progress bars; the table, the verdict and where things are")  # fmt: skip
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _positive_int(text: str) -> int:
    value = _int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _whole_number(text: str) -> int:
    value = _int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {value}")
    return value


def _positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be positive, got {text}")
    return value


def _seed(text: str) -> int:
    value = _int(text)
    if not 0 <= value < 2**31:
        raise argparse.ArgumentTypeError(f"must be between 0 and 2^31 - 1, got {value}")
    return value


def _names(text: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise argparse.ArgumentTypeError("needs at least one name, as in elbo,vis")
    return names


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=VALUE")
    return name.strip(), value.strip()


def _unknown_arguments(args: argparse.Namespace, unknown: list[str]) -> NoReturn:
    option = next((u for u in unknown if u.startswith("-")), unknown[0])
    known = [s for action in args.parser._actions for s in action.option_strings if s.startswith("--")]
    word = option.split("=")[0]
    hint = nearest_word(word, known) if word.startswith("-") else f"see estimax {args.command} --help"
    raise BadInput(f"estimax {args.command} does not take {word!r}; {hint}")


def _list(args: argparse.Namespace) -> int:
    from .. import models

    width = max(shutil.get_terminal_size().columns, 60) if sys.stdout.isatty() else 240

    def section(title: str, rows: dict[str, tuple[str, str]]) -> None:
        print(title)
        size = max(map(len, rows))
        for name, (text, extra) in rows.items():
            room = max(width - size - 4 - (len(extra) + 2 if extra else 0), 40)
            print(f"  {name:<{size}}  {textwrap.shorten(text, room, placeholder=' …')}  {extra}".rstrip())
        print()

    rows = {}
    for name, cls in available_estimators().items():
        arguments = own_arguments(cls)
        rows[name] = (first_line(cls), f"[--set {arguments}]" if arguments else "")
    section("estimators (--estimator, --estimators; upper or lower case)", rows)
    usual = "A Gaussian started at the posterior mode, in whitened coordinates: raw, unscaled models just work"
    guides = {name: (first_line(cls), "") for name, cls in available_guides().items()}
    section("guides (--guide)", {"default": (usual, ""), **guides})
    section("models (MODEL, --data)", {name: (models.get(name).description, "") for name in models.names()})
    print("your own model: FILE.py:FUNCTION with --data FILE.json, .csv or .npz")
    return OK


# --- the commands --------------------------------------------------------------------------------------------------


class _Job(NamedTuple):
    target: Target
    data: dict[str, Any]
    options: dict[str, Any]


def _job(args: argparse.Namespace) -> _Job:
    """Everything about the model and the fit that can be checked before any work is done."""
    from .data import check_model, prepare
    from .fit import DEFAULT_STEPS

    check_optimizer(args.optimizer)
    target = find_model(args.model)
    if args.data is not None:
        data = load_data(args.data)
        target = replace(target, reference=None, log_evidence=None)  # those belong to other data
    else:
        data = {} if target.data is None else target.data()
    guide = find_guide(args.guide, target)
    own = guide is target.guide
    try:
        check_model(target.model, prepare(target.model, data))
    except ValueError as error:
        missing = args.data is None and target.data is None and "which data does not have" in str(error)
        raise BadInput(f"{error}{'; give --data FILE' if missing else ''}") from error
    options = {
        "guide": guide,
        "num_steps": args.num_steps or target.num_steps or DEFAULT_STEPS,
        "optimizer": args.optimizer,
        "learning_rate": args.learning_rate or (target.learning_rate if own else None),
        "num_restarts": args.restarts,
        "seed": args.seed,
        "progress_bar": not args.quiet,
    }
    return _Job(target, data, options)


def _settings(args: argparse.Namespace) -> dict[str, str]:
    given = dict(args.settings)
    if args.num_particles is not None:
        given["num_particles"] = str(args.num_particles)
    return given


def _compare(args: argparse.Namespace) -> int:
    from .compare import compare, estimates_text, fold

    names = args.estimators or [n for n in DEFAULT_ESTIMATORS if n in available_estimators()]
    classes = [find_estimator(name) for name in names]
    job = _job(args)
    target = job.target
    estimators = make_estimators(classes, _settings(args), target.gradient)
    folder = args.out or Path("estimax-results") / target.name
    check_folder(folder)
    reference = args.reference
    if reference is None:
        reference = None if target.reference is None else target.reference()
    elif reference.lower() in ("none", "nuts"):
        reference = None if reference.lower() == "none" else "nuts"
    else:
        reference = load_reference(reference)
    result = compare(target.model, estimators, job.data, reference=reference, **job.options)
    if not result.results:
        _say("interrupted: nothing was fitted yet, so there is nothing to keep", "error")
        return INTERRUPTED
    with _patient():
        width = shutil.get_terminal_size((160, 24)).columns if sys.stdout.isatty() else None
        print(result.report(width))
        if estimates := estimates_text(result.estimates(), width):
            print(f"\nestimates ± standard errors:\n{estimates}")
        if not args.quiet:
            if target.log_evidence is not None:
                print(f"exact log evidence of this model: {target.log_evidence():.3f}")
            print("\n".join(fold(line, width) for line in hints(result)))
            print("\nsaving ...", end=" ")
        sys.stdout.flush()
        result.save(folder)
    print(f"saved table, pictures and netCDF files in {folder}{os.sep}")
    if result.interrupted:
        _say(f"interrupted: kept what was fitted so far ({', '.join(result.results)})", "error")
        return INTERRUPTED
    good = not result.errors and all(r.status == "finished" for r in result.results.values())
    return OK if good else FAILED


def _bench(args: argparse.Namespace) -> int:
    from .bench.columns import split
    from .bench.runner import benchmark

    result = benchmark(
        args.suite,
        None if args.estimators is None else split(args.estimators),
        models=args.models, seeds=args.seeds, jobs=args.jobs, out=args.out, resume=args.resume, root=args.root,
        quick=args.quick, num_steps=args.num_steps, x64=args.double, cluster=args.cluster,
        progress_bar=not args.quiet, command=shlex.join(["estimax", *args.argv]),
    )  # fmt: skip
    if len(result.frame):
        with _patient():
            print(result)
            print(f"\nreport, table and every run in {result.folder}{os.sep} (open report.html)")
    if result.interrupted:
        kept = f"kept the {len(result.frame)} runs that are done; --resume goes on" if len(result.frame) else (
            "nothing was done yet, so there is nothing to keep")  # fmt: skip
        _say(f"interrupted: {kept}", "error")
        return INTERRUPTED
    return OK if (result.frame["status"] != "failed").all() else FAILED


def hints(comparison: Any) -> list[str]:
    """What the diagnoses of all estimators advise, every piece of advice once."""
    from .compare import has_posterior

    advice: dict[str, list[str]] = {}
    starts: dict[str, None] = {}
    for name, result in comparison.results.items():
        if name in comparison.errors:
            continue
        if not has_posterior(result):  # nothing to draw from
            with result.precision():
                for line in result.problem.faults(result.unconstrained):
                    advice.setdefault(line, []).append(name)
            continue
        diagnosis = result.diagnose(comparison.num_samples, seed=comparison.seed + 1)
        if diagnosis.start_report:
            starts.setdefault(diagnosis.start_report)
        for line in diagnosis.advice:
            advice.setdefault(line, []).append(name)
    lines = ["", "what to make of it (result.diagnose() of each):"] if advice else []
    lines += [f"- {', '.join(names)}: {line}" for line, names in advice.items()]
    return [*lines, *starts]


@contextlib.contextmanager
def _patient() -> Iterator[None]:
    """From the last fit until all is saved Ctrl-C only asks for patience the first time: half a file helps nobody."""
    try:
        before = signal.getsignal(signal.SIGINT)

        def wait(*_: Any) -> None:
            signal.signal(signal.SIGINT, before)
            print("saving, a moment please; Ctrl-C again stops it", file=sys.stderr)

        signal.signal(signal.SIGINT, wait)
    except ValueError:  # not the main thread: nobody presses Ctrl-C there
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _fit(args: argparse.Namespace) -> int:
    from .data import describe
    from .fit import default_estimator, fit

    cls = type(default_estimator()) if args.estimator is None else find_estimator(args.estimator)
    job = _job(args)
    target = job.target
    (estimator,) = make_estimators([cls], _settings(args), target.gradient).values()
    check_file(args.out)
    check_file(args.plot)
    result = fit(target.model, estimator, job.data, **job.options)
    if not result.num_steps:
        _say("interrupted: nothing was fitted yet, so there is nothing to keep", "error")
        return INTERRUPTED
    with _patient():
        if not args.quiet:
            print(f"{target.name}: {describe(estimator)}, {result.num_steps} steps in {result.seconds:.1f} s\n")
        _print_summary(result, target)
        diagnosis = str(result.diagnose(seed=args.seed))
        print(f"\n{diagnosis.splitlines()[0] if args.quiet else diagnosis}\n", flush=True)
        if args.out is not None:
            result.save(str(args.out), seed=args.seed)
            print(f"saved {args.out}")
        if args.plot is not None:
            from .plots import fit_figure

            fit_figure(result, seed=args.seed).savefig(args.plot, dpi=120)
            print(f"saved {args.plot}")
        if args.out is None and not args.quiet:
            print("the fit is not saved: --out FILE.nc keeps it")
    if result.status == "interrupted":
        _say(f"{result.message}; what was fitted is kept", "error")
        return INTERRUPTED
    return OK if result.status == "finished" else FAILED


def _print_summary(result: Any, target: Target) -> None:
    """Posterior and, where the model has parameters of its own, their values."""
    import jax
    import numpy as np
    import pandas as pd

    from .compare import has_posterior
    from .data import check_model
    from .plots import affordable
    from .summary import arrays, labels

    def show(frame: pd.DataFrame) -> None:
        if len(frame) > MAX_ROWS:
            print(frame.head(MAX_ROWS).to_string(float_format=lambda x: f"{x:.4g}"))
            print(f"... and {len(frame) - MAX_ROWS:,} more rows")
        else:
            print(frame.to_string(float_format=lambda x: f"{x:.4g}"))

    if not has_posterior(result):
        summary = result.summary()
        print(f"estimates (standard errors: {summary.attrs.get('covariance', 'none, the loss has kinks or noise')})")
        show(summary)
        criteria = [f"{k} {v:.6g}" for k, v in summary.attrs.items() if k != "covariance" and np.isfinite(v)]
        print("\n" + "; ".join(criteria).replace("_", " "))
        return
    theta = {n: result.params[n] for n in check_model(target.model, result.data) if n in result.params}
    rows: dict[str, float] = {}
    networks = []
    tabled = arrays(theta)
    for name, value in theta.items():
        if name in tabled:
            rows |= dict(zip(labels(name, np.shape(value)), np.ravel(value).tolist(), strict=True))
        else:
            networks.append(f"{name}: {sum(np.size(x) for x in jax.tree.leaves(value)):,} weights")
    if rows:
        print("parameters of the model")
        show(pd.DataFrame({"estimate": rows}))
    for line in networks:
        print(line)
    if not has_posterior(result):
        return
    summary = result.summary(affordable(result, 4000))
    if len(summary):
        print("\n" * bool(theta) + "posterior (draws of the guide, resampled by their importance weights)")
        show(summary)


if __name__ == "__main__":
    raise SystemExit(main())
