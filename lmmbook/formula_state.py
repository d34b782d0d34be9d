"""What ``formulae`` remembers of the training data, written down and put back.

Chapters 08 and 09. The columns of new rows need the categories of the training rows, and the
numbers that ``center(x)``, ``poly(x, 2)`` or ``bs(x, df=5)`` took from them. Those are read off a
fitted matrix as plain values, and put into terms that are parsed from the formula again.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

from lmmbook import syntax
from lmmbook.formula import NAMES

import numpy as np
from formulae.categorical import ENCODINGS, ContrastMatrix
from formulae.environment import Environment
from formulae.matrices import CommonEffectsMatrix
from formulae.terms.call import Call
from formulae.terms.call_resolver import LazyCall, get_function_from_module
from formulae.terms.terms import Intercept, Term
from formulae.transforms import TRANSFORMS


def descriptions(text: str, groups: list[tuple[str, ...]]) -> list[list[Any]]:
    """What the formula says of the fixed effects, and of the terms of each group, in their order.

    ``groups`` are the columns of each factor. None stands for a lone intercept, as in `syntax.Bar`.
    """
    description, bars = syntax.parse(text)
    of_groups = ([bar.effects for bar in bars if set(bar.group) == set(g)] for g in groups)
    return [[description], *of_groups]


def components(description: Any) -> dict[str, Any]:
    """Name to variable or call, as parsed.

    Raises
    ------
    ValueError
        If two that differ have one name: ``formulae`` drops the parentheses of ``(x + z) * 2``.

    Examples
    --------
    >>> list(components(syntax.parse("y ~ x * center(z) + (1|g)")[0]))
    ['x', 'center(z)']
    """
    found: dict[str, Any] = {}
    for component in [] if description is None else description.common_components:
        if found.setdefault(component.name, component) != component:
            raise ValueError(
                f"formula: expected terms that are written differently, got {component.name} for "
                "two that differ; formulae drops parentheses, so make one a column of the data"
            )
    return found


def state_of(matrix: CommonEffectsMatrix | None) -> list[Any] | None:
    """What a matrix knows of the training data, term by term; None of a lone intercept."""
    if matrix is None:
        return None
    return [
        [term.kind, [_state(component) for component in getattr(term, "components", [])]]
        for term in matrix.terms.values()
    ]


def _state(component: Any) -> dict[str, Any]:
    contrasts, calls = component.contrast_matrix, _calls(getattr(component, "call", None))
    return {
        "name": component.name,
        "kind": component.kind,
        "levels": component.levels,
        "contrasts": None if contrasts is None else [contrasts.matrix, contrasts.labels],
        "shape": component.value.shape[1:],
        "offset": component._intermediate_data.kind if component.kind == "offset" else None,
        # to_random() of a spline, which nothing here calls, has a matrix of all rows
        "transforms": [
            {k: v for k, v in vars(call.stateful_transform).items() if k != "_random_state"}
            if call.stateful_transform
            else None
            for call in calls
        ],
    }


def restored(terms: list[Any] | None, description: Any) -> CommonEffectsMatrix | None:
    """The inverse of `state_of`: a matrix without rows, which has columns for new ones.

    Raises
    ------
    ValueError
        If the formula does not have the terms that the state is of, or has a function that is not
        known here, or now has a memory, or none.
    """
    if terms is None:
        return None
    parsed, built = components(description), []
    for kind, states in terms:
        unknown = [state["name"] for state in states if state["name"] not in parsed]
        if unknown:
            raise ValueError(f"formula: expected {unknown} in it, got {list(parsed)}")
        parts = [_restore(deepcopy(parsed[state["name"]]), **state) for state in states]
        term = Term(*parts) if parts else Intercept()
        term.kind = kind
        built.append(term)
    matrix = CommonEffectsMatrix(built)
    matrix.design_matrix = np.zeros((0, sum(len(term.labels) for term in built)))
    matrix.evaluated = True
    return matrix


def _restore(
    component: Any, name: str, kind: str, levels: list[Any] | None, contrasts: list[Any] | None,
    shape: tuple[int, ...], offset: str | None, transforms: list[dict[str, Any] | None],
) -> Any:  # fmt: skip
    component.kind, component.levels, component.value = kind, levels, np.zeros((0, *shape))
    component.contrast_matrix = contrasts and ContrastMatrix(*contrasts)
    component._intermediate_data = SimpleNamespace(kind=offset)
    if isinstance(component, Call):
        component.env = Environment([{**TRANSFORMS, **ENCODINGS}, NAMES])
        for call, state in zip(_calls(component.call), transforms, strict=True):
            try:
                function = get_function_from_module(call.callee, component.env)
            except (KeyError, AttributeError) as error:
                raise ValueError(
                    f"formula: expected functions that are known here, got {call.callee} in {name}"
                ) from error
            if getattr(function, "__stateful_transform__", False) != (state is not None):
                raise ValueError(
                    f"formula: expected the {call.callee} of the fit in {name}, got another, for "
                    "only one of them takes numbers from its data"
                )
            if state is not None:
                call.stateful_transform = function()
                vars(call.stateful_transform).update(state)
    return component


def _calls(lazy: Any) -> Iterator[LazyCall]:
    """The calls in a call, itself the first."""
    if isinstance(lazy, LazyCall):
        yield lazy
    for part in [*getattr(lazy, "args", ()), *getattr(lazy, "kwargs", {}).values()]:
        yield from _calls(part)
