"""Every parameter has a name of its own.

Chapter 02. Tables, files and the model find parameters by name: of two with one name, one would be
lost.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from lmmbook.formula.covariance import specs_of
from lmmbook.formula.design import Design

import numpy as np

# What parameters that no column has are called, and columns of `Fit.trace` besides parameters.
TAKEN = re.compile(r"Intercept|(sd|cor|threshold|intercept|score)\(.*", re.DOTALL)
OF_TRACE = ("acceptance", "phase")


def check_columns(columns: Sequence[str]) -> None:
    """Refuse, by name, a column that is called as parameters are which no column has."""
    for column in columns:
        if TAKEN.fullmatch(column):
            raise ValueError(
                f"column {column!r}: expected a name that no parameter has, such as Intercept or "
                "sd(...); rename the column"
            )


def check_names(design: Design) -> None:
    """Refuse a name that two parameters would share, and say where from, and what to rename."""
    found: dict[str, str] = {}
    for name, source in _sources(design):
        if name in OF_TRACE:
            raise ValueError(
                f"{source}: expected a name that is not a column of Fit.trace, got {name!r}; "
                "rename the column"
            )
        if name in found:
            raise ValueError(_two(name, found[name], source, design._columns))
        found[name] = source


def _sources(design: Design) -> Iterator[tuple[str, str]]:
    """The names of all parameters, and in words what each is of."""
    first, last = design.family.constrain(0.0, np.zeros(design.family.auxiliary))
    common = design._common
    of_terms = {label: term.name for term in common.terms for label in term.labels}
    for name in design.fixed_names:
        if name == "Intercept":
            yield from ((of_family, "family") for of_family in first)
        else:
            yield name, f"fixed effect {of_terms[name]!r}"
    for factor in design.factors:
        yield from ((p.name, f"group {factor.name!r}") for p in specs_of(factor))
    yield from ((name, "family") for name in last)


def _two(name: str, one: str, other: str, columns: tuple[str, ...]) -> str:
    """What to say of a name that two parameters would have."""
    text = (
        f"parameters: expected a name for each, got {name!r} twice, from {one} and from {other}; "
    )
    if name in columns:
        return f"{text}rename the column {name!r}"
    if one == other and "(" in name:
        return (
            f"{text}formulae drops parentheses, so make one of the expressions a column of the data"
        )
    return f"{text}rename a column, or categories that are written alike"
