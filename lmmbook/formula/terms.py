"""The columns of a formula's terms, for the training rows and for new ones.

Chapters 01 and 09. ``formulae`` codes categories and keeps what `functions` with a memory took from
the training rows. Which categories of a term get a column each, and which are counted from the
first, is decided here for all terms together, so that they span what they should and no column
follows from others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from copy import copy
from functools import reduce
from typing import Any, NamedTuple

from lmmbook._rows import check_finite, ones
from lmmbook.formula.coding import check_two, check_vary
from lmmbook.formula.parse.expressions import NOTHING, as_numbers, columns_in, computed, parts_of

import numpy as np
import pandas as pd
from formulae.contrasts import pick_contrasts
from formulae.terms import Intercept, Term

FEW = 4  # empty cells that a warning names


class Cells(NamedTuple):
    """The combinations of categories that no training row has, in words, and their columns."""

    empty: tuple[str, ...]
    columns: tuple[str, ...]


class Terms(NamedTuple):
    """``formulae``'s terms, with what they remember of the training rows, without those rows."""

    terms: tuple[Any, ...]

    @property
    def labels(self) -> list[str]:
        """The names of the columns."""
        return [label for term in self.terms for label in term.labels]

    @property
    def is_offset(self) -> np.ndarray:
        """``[columns]``: whether a column is added as it is, without a coefficient."""
        return np.array([t.kind == "offset" for t in self.terms for _ in t.labels], bool)

    @property
    def cells(self) -> list[Cells | None]:
        """``[columns]``: the empty cells of an interaction; None elsewhere, and in a loaded fit."""
        return [getattr(t, "cells", None) for t in self.terms for _ in t.labels]

    def on(self, data: pd.DataFrame) -> np.ndarray:
        """``[rows, columns]`` float64 of new rows; raises as `evaluate`."""
        return _filled(self, data, _of_new_rows)


def evaluate(terms: Sequence[Any], data: pd.DataFrame) -> tuple[Terms, np.ndarray]:
    """Terms as the training rows have them, and their columns ``[rows, columns]`` float64.

    Raises
    ------
    ValueError
        If an expression cannot be computed from the data, or gives no column of finite numbers, or
        one value or category only.
    """
    check_vary([term.name for term in terms], data)
    for part in parts_of(terms):
        computed(part, part.set_type, data, *([NOTHING] if hasattr(part, "call") else []))
    coded = _coded(terms)
    for term, full in coded:
        for part in parts_of([term]):
            computed(part, _set_data, part, full.get(part.key, False))
            if part.kind == "categoric":
                check_two(part.levels, repr(part.name))
        if isinstance(term, Term):
            term.kind = "interaction" if len(term.components) > 1 else term.components[0].kind
    found = Terms(tuple(term for term, _ in coded))
    columns = _filled(found, data, lambda part, _: part.value)
    for term in found.terms:
        term.cells = _empty_cells(term)
    for part in parts_of(found.terms):  # no more than the shapes of its arrays
        part.value = part.value[:0].copy()
        part._intermediate_data = None
    return found, columns


def _set_data(part: Any, full: bool) -> None:
    """Give a component its columns: if ``full``, one for every category, or else all but one."""
    with redirect_stdout(None):  # where formulae prints that there is an error, which it raises
        part.set_data(full)


def _coded(terms: Sequence[Any]) -> list[tuple[Any, dict[Any, bool]]]:
    """Terms, and which of a term's components get a column for every category.

    The rule is that of R and patsy: terms that differ only in their categories share a space, and
    lower orders come first. Where ``a:b`` has to bring the columns of ``b`` along, that is a term
    more.
    """
    spaces: dict[frozenset[Any], dict[int, list[Any]]] = {}
    for i, term in enumerate(terms):
        parts = parts_of([term])
        if len(parts) > 1 and any(part.kind == "offset" for part in parts):
            raise ValueError(f"formula: expected an offset as a term of its own, got {term.name}")
        numbers = frozenset(part.key for part in parts if part.kind != "categoric")
        spaces.setdefault(numbers, {})[i] = [p.key for p in parts if p.kind == "categoric"]
    codings: dict[int, list[dict[Any, bool]]] = {}
    for space in spaces.values():
        low_first = sorted(space, key=lambda i: len(space[i]))
        codings |= pick_contrasts({i: space[i] for i in low_first})
    found = []
    for i, term in enumerate(terms):
        *before, own = codings[i]
        for coding in before:  # of some categories of an interaction, and all its numbers
            kept = (p for p in term.components if p.kind == "numeric" or p.key in coding)
            found.append((Term(*map(copy, kept)), coding))
        found.append((term, own))
    return found


def _filled(found: Terms, data: pd.DataFrame, values_of: Callable[..., Any]) -> np.ndarray:
    """The columns of all terms side by side, which have to be finite."""
    if len(found.terms) == 1 and isinstance(found.terms[0], Intercept):
        return ones(len(data))
    columns = np.empty((len(data), len(found.labels)))
    start = 0
    for term in found.terms:
        own = columns[:, start : start + len(term.labels)]
        start += own.shape[1]
        if isinstance(term, Intercept):
            own[:] = 1.0
            continue
        values = [_checked(part, values_of(part, data), len(data)) for part in term.components]
        product = reduce(_product, values)
        if product.shape != own.shape:
            raise ValueError(
                f"formula: expected {own.shape[1]} columns of {term.name}, {list(term.labels)}, "
                f"got {product.shape[1]}"
            )
        own[:] = product
    check_finite(columns, found.labels)
    return columns


def _checked(part: Any, values: Any, rows: int) -> np.ndarray:
    """``[rows, columns]``, in whatever type it has: of one that can be made float64."""
    found = np.asarray(values)
    if found.dtype.kind not in "biuf":  # nullable ones, of pandas; or none
        found = np.asarray(computed(part, as_numbers, values, part.name))
    if found.ndim not in (1, 2) or len(found) != rows:
        raise ValueError(
            f"formula: expected a value a row of {part.name}, {rows}, got {found.shape}"
        )
    return found.reshape(rows, -1)


def _product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """``[rows, columns of both]``, the right one's going fastest."""
    product = left[:, :, np.newaxis].astype(float) * right[:, np.newaxis].astype(float)
    return product.reshape(len(left), -1)


def _of_new_rows(part: Any, data: pd.DataFrame) -> Any:
    if part.kind != "offset":
        return computed(part, part.eval_new_data, data)
    offset = computed(part, part.call.eval, data, NOTHING)
    offset.set_size(len(data))
    return offset.eval()


def _empty_cells(term: Any) -> Cells | None:
    """Where at least two components are categories, those of their combinations without a row."""
    parts = [p for p in parts_of([term]) if p.kind == "categoric"]
    if len(parts) < 2:
        return None
    occurs = np.zeros([len(part.levels) for part in parts], bool)
    values = [getattr(p._intermediate_data, "data", p._intermediate_data) for p in parts]
    occurs[tuple(pd.Categorical(v, p.levels).codes for v, p in zip(values, parts, strict=True))] = 1
    if occurs.all():
        return None
    some = np.argwhere(~occurs)[:FEW]
    names = [
        " and ".join(f"{p.name} = {p.levels[i]}" for p, i in zip(parts, cell, strict=True))
        for cell in some
    ]
    columns = dict.fromkeys(column for p in parts for column in sorted(columns_in(p)))
    return Cells(tuple(names), tuple(columns))
