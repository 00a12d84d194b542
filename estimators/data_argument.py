"""Which argument of a model carries the data x, so that the density can be asked at other values of x.

A model may observe x (``numpyro.sample(..., obs=x)``) or only add its energy (``numpyro.factor("energy", -E(x))``):
calling it with another value of the argument serves both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.infer.initialization import init_to_uniform
from numpyro.ops.provenance import eval_provenance

from .roles import is_factor

if TYPE_CHECKING:
    from .likelihood import LikelihoodProblem


def find(problem: LikelihoodProblem, argument: str | None, who: str, inputs: tuple[str, ...] = ()) -> str:
    """Name of the data argument that the observed values come from, or that the factors depend on.

    Args:
        inputs: arguments that the energy depends on and that are not x.

    Raises:
        ValueError: no such argument, several of them, or units that are not the argument's leading axes.
    """
    data = problem.data
    arrays = {k: v for k, v in data.items() if isinstance(v, (jax.Array, np.ndarray)) and v.ndim}
    if argument is not None and argument not in arrays:
        raise ValueError(f"argument={argument!r} is no array among the data (there are: {', '.join(arrays) or 'none'})")
    if argument is None:
        argument = _guess(problem, {k: v for k, v in arrays.items() if k not in inputs}, who)
    shape, units = jnp.shape(data[argument]), problem.roles.unit_shape
    if problem.roles.subsampled and problem.options.subsample:
        return argument
    if shape[: len(units)] != units:
        raise ValueError(
            f"{who} needs the independent units as leading axes of data[{argument!r}]: it has shape {shape}, the "
            f"model's units have {units}"
        )
    return argument


def _guess(problem: LikelihoodProblem, arrays: dict[str, Any], who: str) -> str:
    others = {k: v for k, v in problem.data.items() if k not in arrays}
    units = problem.roles.units

    def run(**given: Any) -> tuple[dict, dict]:
        seeded = handlers.substitute(handlers.seed(problem.model, random.key(0)), substitute_fn=init_to_uniform)
        sites = handlers.trace(seeded).get_trace(**given, **others)
        sites = {n: s for n, s in sites.items() if n in units}
        return (
            {n: s["value"] for n, s in sites.items() if not is_factor(s)},
            {n: s["fn"].log_prob(s["value"]) for n, s in sites.items() if is_factor(s)},
        )

    is_set = lambda x: isinstance(x, frozenset)  # noqa: E731
    observed, factors = (
        sorted(frozenset().union(*jax.tree.leaves(part, is_leaf=is_set))) for part in eval_provenance(run, **arrays)
    )
    found = observed or factors
    if len(found) == 1:
        return found[0]
    if not found:
        raise ValueError(
            f"{who} finds no data argument that observed sites or factors depend on: pass the observations to the "
            "model as an argument, fit(..., data={'x': x})"
        )
    raise ValueError(
        f"observed sites or factors depend on several data arguments ({', '.join(found)}): say which one carries the "
        f"observations, {who}(argument={found[0]!r})"
    )


def support_of(problem: LikelihoodProblem, params: Any) -> constraints.Constraint:
    """Support of the observed sites; real where there are only factors.

    Raises:
        ValueError: observed sites of different supports.
    """
    trace = handlers.trace(
        handlers.substitute(problem._prepared(), substitute_fn=problem._values(params, {}, _first_combination(problem)))
    ).get_trace(**problem.data)
    supports = [s["fn"].support for n, s in trace.items() if n in problem.roles.units and not is_factor(s)]
    supports = [base_of(s) for s in supports]
    if len({type(s) for s in supports}) > 1:
        raise ValueError(f"the observed sites have different supports ({', '.join(map(str, supports))})")
    return supports[0] if supports else constraints.real


def _first_combination(problem: LikelihoodProblem) -> Array | None:
    from .roles import combinations

    return combinations(problem.roles)[0] if problem.roles.enumerated else None


def base_of(support: Any) -> constraints.Constraint:
    """The constraint of one coordinate, where the event has several of one kind."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support
