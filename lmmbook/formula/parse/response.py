"""What a formula says of its response.

Chapters 01 and 06. It is a column, a column whose yes is chosen, as in ``t['yes']``, labels that
are numbers, ``C(t)``, numbers that a function makes of columns, or successes out of trials,
``p(k, n)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from lmmbook.formula.parse.expressions import NOTHING, computed
from lmmbook.formula.parse.functions import PAIRS
from lmmbook.formula.parse.gate import plain_name

import numpy as np
import pandas as pd
from formulae.expr import Assign, Binary, Call, QuotedName, Variable
from formulae.matrices import ResponseMatrix
from formulae.terms.call_resolver import LazyVariable
from formulae.terms.variable import Variable as Column

if TYPE_CHECKING:
    from lmmbook.families.base import Family

NO_PAIR = "write p(successes, trials), of two columns or a column and a number"

# What new rows are asked for: a column, or the successes' and the trials', or their number.
Name: TypeAlias = "str | tuple[str, str | float]"


def check(node: Any) -> None:
    """Refuse a syntax tree that is no response, before ``formulae`` does so in words of its own."""
    if isinstance(node, Call):
        name = plain_name(node.callee)
        if name in PAIRS and (len(node.args) != 2 or isinstance(node.args[1], Assign)):
            raise ValueError(f"response {name}(...): {NO_PAIR}")
        if name == "cbind":
            raise ValueError(
                "formula: expected p(successes, trials) as the response, got cbind(...); R's "
                "cbind(k, n - k) is p(k, n) here"
            )
    elif not isinstance(node, Variable | QuotedName):
        sign = node.operator.lexeme if isinstance(node, Binary) else ""
        what = f"an expression with {sign!r}" if sign else "something else"
        remedy = {
            "/": "write p(successes, trials) for successes out of trials, else I(...) around it",
            "==": "write t['yes'] to choose one of two labels of t, or I(...) around it",
        }
        raise ValueError(
            f"formula: expected a column or a function of columns as the response, got {what}; "
            + remedy.get(sign, "write I(...) around it")
        )


def read(response: Any, data: pd.DataFrame, family: Family) -> tuple[Name, Any]:
    """What new rows are asked for, and the response: a Series ``[rows]``, or a frame ``[rows, 2]``.

    ``response`` is ``formulae``'s, from `syntax.parse`.

    Raises
    ------
    ValueError
        If it is none of what the module says, or is successes out of trials for another family.
    """
    [part] = response.term.components
    if isinstance(part, Column):
        column = data[part.name]
        return part.name, column if part.reference is None else _chosen(column, part.reference)
    given = [*part.call.args, *part.call.kwargs.values()]
    if part.call.callee in PAIRS:
        names = _pair(part.name, *given)
        if not family.takes_trials:
            raise ValueError(
                f"response {part.name}: expected family='binomial' for successes out of trials, "
                f"got {family!r}"
            )
        return names, of_rows(names, data)
    if part.call.callee == "C" and len(given) == 1 and isinstance(given[0], LazyVariable):
        column = data[given[0].name]
        return given[0].name, pd.Series(pd.Categorical(column), data.index, name=column.name)
    matrix = ResponseMatrix(response)
    computed(part, matrix.evaluate, data, NOTHING)
    values = np.asarray(matrix.design_matrix)
    if matrix.kind != "numeric" or values.ndim != 1:
        raise ValueError(
            f"response {matrix.name!r}: expected a column, or a function of columns that gives "
            f"numbers, got {matrix.kind} data of shape {values.shape}; for labels write the "
            "column, t['yes'] to choose one of two, or C(t) if they are numbers"
        )
    return matrix.name, pd.Series(values.astype(float), data.index, name=matrix.name)


def columns_of(names: Name, trials_only: bool = False) -> tuple[str, ...]:
    """The columns that are asked for: all, or those with the numbers of trials alone."""
    parts = (names,) if isinstance(names, str) else names
    return tuple(name for name in parts[trials_only:] if isinstance(name, str))


def of_rows(names: Name, data: pd.DataFrame, trials_only: bool = False) -> Any:
    """The response of rows, as a family's ``codes`` takes it; zeros stand for the successes where
    only trials are asked for."""
    if isinstance(names, str):
        return data[names]
    k, n = names
    successes = pd.Series(0, data.index, name=k) if trials_only else data[k]
    trials = data[n] if isinstance(n, str) else pd.Series(n, data.index, name=f"{n:g}")
    return pd.concat([successes, trials], axis=1)


def _pair(name: str, k: Any, n: Any) -> Name:
    """The columns, or the column and the number, in ``p(k, n)``."""
    if isinstance(k, LazyVariable) and isinstance(n, LazyVariable):
        return k.name, n.name
    if isinstance(k, LazyVariable) and isinstance(getattr(n, "value", None), int | float):
        return k.name, n.value
    raise ValueError(f"response {name}: {NO_PAIR}")


def _chosen(column: pd.Series, chosen: str) -> pd.Series:
    """The column as a Categorical, with the chosen label last."""
    found = column.unique().tolist()
    yes = [label for label in found if str(label) == chosen]
    if len(yes) != 1:
        raise ValueError(
            f"response {column.name}[{chosen!r}]: expected one of the column's values, "
            f"{sorted(map(str, found))[:5]}, got {chosen!r}"
        )
    others = sorted((label for label in found if label != yes[0]), key=str)
    return pd.Series(pd.Categorical(column, [*others, *yes]), column.index, name=column.name)
