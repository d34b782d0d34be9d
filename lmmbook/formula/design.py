"""A design: what the model needs to know about the data, whatever they were read from.

Chapter 01. `build` makes one. It remembers how, so that it can do the same with new rows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any

from lmmbook.data.columns import Columns
from lmmbook.data.frames import Data, to_frame
from lmmbook.data.labels import kind_of
from lmmbook.families.base import Family
from lmmbook.formula.coding import with_columns
from lmmbook.formula.copies import Copied
from lmmbook.formula.dependence import LeftOut
from lmmbook.formula.factors import Factor
from lmmbook.formula.parse.response import Name, of_rows
from lmmbook.formula.parse.response import columns_of as asked_for
from lmmbook.formula.parse.syntax import columns_of, fixed_kinds
from lmmbook.formula.terms import Terms

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Design(Copied):
    """What the model needs to know about the data.

    Attributes
    ----------
    formula
        The formula as given.
    family
        The likelihood, with the categories of the response if it has any.
    response
        ``[rows]`` float64, as the family takes it: for categories 0, 1, ...; of successes out of
        trials, ``[rows, 2]``.
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
    """

    formula: str
    family: Family
    response: np.ndarray
    offset: np.ndarray
    fixed: np.ndarray
    fixed_names: tuple[str, ...]
    factors: tuple[Factor, ...]
    _common: Terms = field(repr=False)
    _response: Name = field(repr=False)
    _columns: tuple[str, ...] = field(repr=False)
    _categories: dict[str, set[Any]] = field(repr=False)
    _functions: dict[str, Callable[..., Any]] = field(default_factory=dict, repr=False)
    _left_out: LeftOut | None = field(default=None, repr=False)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.fixed)

    def on(
        self,
        data: Data,
        missing: str = "raise",
        response: bool = False,
        trials: bool = False,
        groups: Collection[str] | None = None,
    ) -> Design:
        """The same design for new rows, for prediction; the response is read if it is asked for.

        With ``trials``, that of successes out of trials is read but for its successes. Of factors
        that are not in ``groups`` nothing is read, and the new design is without them.

        Levels of a grouping factor that were not in the training data are appended to its labels,
        after those of the training data: their effects come from the prior. A new *category* of a
        fixed effect has no coefficient, so it raises. With ``missing="drop"`` rows that lack a
        value that is needed are left out, and a warning says how many.

        Raises
        ------
        TypeError, ValueError
            If ``data`` is nothing that `build_design` takes, is empty, or lacks a column or a value
            that is needed, or has text where there were numbers; or as `codes`.
        """
        asked = asked_for(self._response, not response) if response or trials else ()
        factors = [f for f in self.factors if groups is None or f.name in groups]
        parts = [self._common, *(common for f in factors for common in f._common if common)]
        terms = [term for part in parts for term in part.terms]
        columns = columns_of(terms, groups=[c for f in factors for c in f.columns])
        columns = columns._replace(names=tuple(dict.fromkeys([*columns.names, *asked])))
        data = self._as_in_training(to_frame(data, columns, missing), fixed_kinds(terms))
        new = tuple(f.on(data) for f in factors)
        offset, fixed, _ = offset_apart(self._common.on(data), self._common)
        if self._left_out is not None:
            fixed = self._left_out.of_new(fixed, data)
        codes = self._codes(data, response, trials)
        return replace(self, response=codes, offset=offset, fixed=fixed, factors=new)

    def _as_in_training(self, data: pd.DataFrame, covariates: Collection[str]) -> pd.DataFrame:
        """New rows, without categories that do not occur in them."""
        found = {}
        for column in sorted(covariates):
            values = data[column]
            self._check_kind(column, values)
            if isinstance(values.dtype, pd.CategoricalDtype):
                found[column] = values.cat.remove_unused_categories()
        return with_columns(data, found)

    def _check_kind(self, column: str, values: pd.Series) -> None:
        """Raise if a covariate is not of numbers any more, or has categories that are new."""
        seen = self._categories.get(column)
        if seen is None:
            if pd.api.types.is_numeric_dtype(values):
                return
            kind = kind_of(pd.Index(values))
            raise ValueError(
                f"column {column!r}: expected numbers, as in training, got {kind} such as "
                f"{values.iloc[0]!r}; convert them, data[{column!r}].astype(float)"
            )
        unseen = set(values.unique()) - seen
        if unseen:
            some = [sorted(map(repr, some))[:9] for some in (seen, unseen)]
            raise ValueError(
                f"column {column!r}: expected categories seen in training [{', '.join(some[0])}], "
                f"got also [{', '.join(some[1])}]"
            )

    def codes(self, data: Data) -> np.ndarray:
        """The response of new rows, as `response` has it.

        Raises
        ------
        ValueError
            If ``data`` lacks it, or it is not one for this family. A response that the formula
            transforms, as in ``np.log(y)``, has to be a column of its own.
        """
        return self._codes(to_frame(data, Columns(asked_for(self._response))), True, False)

    def _codes(self, data: pd.DataFrame, response: bool, trials: bool) -> np.ndarray:
        """The response, with NaN for what is not asked for."""
        if not response and (isinstance(self._response, str) or not trials):
            return np.broadcast_to(np.nan, len(data))
        codes = self.family.codes(of_rows(self._response, data, not response))
        if not response:
            codes[:, 0] = np.nan
        return codes


def offset_apart(
    columns: np.ndarray, common: Terms
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """The offset ``[rows]``, the other columns ``[rows, fixed]``, and their names."""
    labels, is_offset = common.labels, common.is_offset
    if not is_offset.any():
        return np.broadcast_to(0.0, len(columns)), columns, tuple(labels)
    names = tuple(np.array(labels)[~is_offset].tolist())
    return columns[:, is_offset].sum(1), columns[:, ~is_offset], names
