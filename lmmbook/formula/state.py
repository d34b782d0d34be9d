"""What ``formulae`` remembers of the training data, written down and put back.

Chapters 08 and 09. The columns of new rows need the categories of the training rows, and the
numbers that ``center(x)``, ``poly(x, 2)`` or ``bs(x, df=5)`` took from them. Those are read off a
fitted matrix as plain values, and put into terms that are parsed from the formula again.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from lmmbook.formula.parse import syntax
from lmmbook.formula.parse.expressions import calls, parts_of
from lmmbook.formula.parse.functions import Functions
from lmmbook.formula.terms import Terms

import numpy as np
from formulae.categorical import ContrastMatrix
from formulae.terms.terms import Intercept, Term
from scipy.interpolate import PPoly

KINDS = ("numeric", "categoric", "offset")  # of components
# to_random() of a spline, which nothing here calls, has a matrix of all rows.
LEFT_BEHIND = {"_random_state"}


def descriptions(
    text: str, groups: list[tuple[str, ...]], functions: Functions | None = None
) -> list[list[Any]]:
    """What the formula says of the fixed effects, and of the terms of each group, in their order.

    ``groups`` are the columns of each factor. None stands for a lone intercept, as in `syntax.Bar`.
    """
    _, terms, bars = syntax.parse(text, functions)
    of_groups = ([bar.effects for bar in bars if set(bar.group) == set(g)] for g in groups)
    return [[terms], *of_groups]


def components(terms: list[Any] | None) -> dict[str, Any]:
    """Name to variable or call, as parsed.

    Raises
    ------
    ValueError
        If two that differ have one name: ``formulae`` drops the parentheses of ``(x + z) * 2``.

    Examples
    --------
    >>> list(components(syntax.parse("y ~ x * center(z) + (1|g)")[1]))
    ['x', 'center(z)']
    """
    found: dict[str, Any] = {}
    for component in parts_of(terms or []):
        if found.setdefault(component.name, component).key != component.key:
            raise ValueError(
                f"formula: expected terms that are written differently, got {component.name} for "
                "two that differ; formulae drops parentheses, so make one a column of the data"
            )
    return found


def state_of(matrix: Terms | None) -> list[Any] | None:
    """What a matrix knows of the training data, term by term; None of a lone intercept."""
    if matrix is None:
        return None
    return [
        [term.kind, [_state(component) for component in parts_of([term])]] for term in matrix.terms
    ]


def _state(component: Any) -> dict[str, Any]:
    contrasts = component.contrast_matrix
    return {
        "name": component.name,
        "kind": component.kind,
        "levels": component.levels,
        "contrasts": None if contrasts is None else [contrasts.matrix, contrasts.labels],
        "shape": component.value.shape[1:],
        "transforms": [
            {k: v for k, v in vars(call.stateful_transform).items() if k not in LEFT_BEHIND}
            if call.stateful_transform
            else None
            for call in calls(component)
        ],
    }


def restored(terms: list[Any] | None, described: list[Any] | None) -> Terms | None:
    """The inverse of `state_of`: terms without rows, which have columns for new ones.

    Raises
    ------
    ValueError
        If the formula does not have the terms that the state is of, or has a function that now has
        a memory, or none; or if the state is not of the kind that `state_of` gives.
    """
    if terms is None:
        return None
    parsed, built = components(described), []
    for kind, states in terms:
        unknown = [state["name"] for state in states if state["name"] not in parsed]
        if unknown:
            raise ValueError(f"formula: expected {unknown} in it, got {list(parsed)}")
        parts = [_restore(deepcopy(parsed[state["name"]]), **state) for state in states]
        term = Term(*parts) if parts else Intercept()
        if kind not in ("intercept", "interaction", *KINDS):
            raise ValueError(f"formula: expected a term of a known kind, got {kind!r}")
        term.kind = kind
        built.append(term)
    return Terms(tuple(built))


def _restore(
    component: Any, name: str, kind: str, levels: list[Any] | None, contrasts: list[Any] | None,
    shape: tuple[int, ...], transforms: list[dict[str, Any] | None], offset: None = None,
) -> Any:  # fmt: skip
    """``offset`` is what files of format 2 say of it; nothing is made of it."""
    if kind not in KINDS or not all(isinstance(n, int) for n in shape):
        raise ValueError(f"formula: expected {name} of a known kind, got {kind!r}")
    component.kind, component.levels, component.value = kind, levels, np.zeros((0, *shape))
    component.contrast_matrix = contrasts and ContrastMatrix(*contrasts)
    for call, state in zip(calls(component), transforms, strict=True):
        if call.known.remembers != (state is not None):
            raise ValueError(
                f"formula: expected the {call.callee} of the fit in {name}, got another, for "
                "only one of them takes numbers from its data"
            )
        if state is not None:
            call.stateful_transform = call.known.function()
            _remember(call.stateful_transform, state, call.callee)
    return component


def _remember(transform: Any, state: dict[str, Any], name: str) -> None:
    """Give a transform the numbers it had: these attributes, and nothing but numbers."""
    wanted = vars(transform).keys() - LEFT_BEHIND
    odd = [key for key, value in state.items() if not _is_plain(value)]
    if odd or state.keys() != wanted:
        raise ValueError(
            f"formula: expected numbers for {sorted(wanted)} of {name}, got {sorted(state)}, "
            f"of which {odd} are something else"
        )
    vars(transform).update(state)


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(k, int) and _is_plain(v) for k, v in value.items())
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biuf"
    return value is None or isinstance(value, bool | int | float | np.number | np.bool_ | PPoly)


def used(text: str, functions: Functions) -> set[str]:
    """The names of the user's own functions that a formula calls."""
    response, terms, bars = syntax.parse(text, functions)
    terms = [response.term, *terms, *(term for bar in bars for term in bar.effects or ())]
    return {call.callee for part in parts_of(terms) for call in calls(part) if call.own}
