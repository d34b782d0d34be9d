"""A design: what the model needs to know about the data, whatever they were read from.

Chapter 01. `formula` makes one. It remembers how, so that it can do the same with new rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lmmbook.dependence import LeftOut, kept_of
from lmmbook.factors import Factor
from lmmbook.frames import Data, all_finite, to_frame
from lmmbook.labels import kind_of
from lmmbook.likelihood import Family
from lmmbook.syntax import Columns, columns_of, fixed_kinds
from lmmbook.terms import Terms

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Design:
    """What the model needs to know about the data.

    Attributes
    ----------
    formula
        The formula as given.
    family
        The likelihood, with the categories of the response if it has any.
    response
        ``[rows]`` float64, as the family takes it: for categories 0, 1, ...
    offset
        ``[rows]`` float64, what is added to the linear predictor with a coefficient of 1. Where
        there is none, it is one 0.0 seen from every row.
    fixed
        ``[rows, columns]`` float64: the fixed-effect columns, the intercept's among them. A lone
        intercept is one 1.0 seen from every row. Arrays may be those of the data: do not write.
    fixed_names
        ``[columns]``: ``Intercept``, ``service``, ``temp[warm]``, ...
    factors
        One `Factor` a grouping, in the order of the formula.
    origin
        ``[columns]``: what has been taken away from ``fixed``, if anything (`regression.centred`).
    """

    formula: str
    family: Family
    response: np.ndarray
    offset: np.ndarray
    fixed: np.ndarray
    fixed_names: tuple[str, ...]
    factors: tuple[Factor, ...]
    _common: Terms = field(repr=False)
    _response: str = field(repr=False)
    _columns: tuple[str, ...] = field(repr=False)
    _categories: dict[str, set[Any]] = field(repr=False)
    _functions: dict[str, Callable[..., Any]] = field(default_factory=dict, repr=False)
    _left_out: LeftOut | None = field(default=None, repr=False)
    origin: np.ndarray | None = field(default=None, repr=False)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.fixed)

    def on(self, data: Data) -> Design:
        """The same design for new rows, for prediction; the response may be missing.

        Levels of a grouping factor that were not in the training data are appended to its labels,
        after those of the training data: their effects come from the prior. A new *category* of a
        fixed effect has no coefficient, so it raises.

        Raises
        ------
        TypeError, ValueError
            If ``data`` is nothing that `build_design` takes, is empty, or lacks a column or a value
            that is needed.
        """
        parts = [self._common, *(common for f in self.factors for common in f._common if common)]
        terms = [term for part in parts for term in part.terms]
        data = to_frame(data, columns_of(terms, [c for f in self.factors for c in f.columns]))
        for column in sorted(fixed_kinds(terms)):
            self._check_kind(column, data[column])
        factors = tuple(f.on(data) for f in self.factors)
        columns = self._common.on(data)
        if not all(all_finite(x) for x in (columns, *(f.z for f in factors))):
            raise ValueError("data: expected finite numbers, got infinite values")
        offset, fixed, names = offset_apart(columns, self._common)
        if self._left_out is not None:
            self._left_out.refuse(fixed, data)
        return Design(
            self.formula, self.family, np.broadcast_to(np.nan, len(data)),
            offset, *kept_of(self._left_out, fixed, names), factors,
            self._common, self._response, self._columns, self._categories, self._functions,
            self._left_out,
        )  # fmt: skip

    def _check_kind(self, column: str, values: pd.Series) -> None:
        """Raise if a covariate is not of numbers any more, or has categories that are new."""
        seen = self._categories.get(column)
        if seen is None:
            if pd.api.types.is_numeric_dtype(values):
                return
            kind = kind_of(pd.Index(values))
            raise ValueError(
                f"column {column!r}: expected numbers, as at the fit, got {kind} such as "
                f"{values.iloc[0]!r}"
            )
        unseen = set(values.unique()) - seen
        if unseen:
            some = [sorted(map(repr, some))[:9] for some in (seen, unseen)]
            raise ValueError(
                f"column {column!r}: expected categories seen in training [{', '.join(some[0])}], "
                f"got also [{', '.join(some[1])}]"
            )

    def codes(self, data: Data) -> np.ndarray:
        """``[rows]``: the response of new rows, as `response` has it.

        Raises
        ------
        ValueError
            If ``data`` lacks it, or it is not one for this family. A response that the formula
            transforms, as in ``np.log(y)``, has to be a column of its own.
        """
        column = self._response
        return self.family.codes(to_frame(data, Columns((column,)))[column])


def offset_apart(
    columns: np.ndarray, common: Terms
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """The offset ``[rows]``, the other columns ``[rows, fixed]``, and their names."""
    labels, is_offset = common.labels, common.is_offset
    if not is_offset.any():
        return np.broadcast_to(0.0, len(columns)), columns, tuple(labels)
    names = tuple(np.array(labels)[~is_offset].tolist())
    return columns[:, is_offset].sum(1), columns[:, ~is_offset], names
