"""A design: what the model needs to know about the data, whatever they were read from.

Chapter 01. `formula` makes one. It remembers how, so that it can do the same with new rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lmmbook.coding import with_columns
from lmmbook.factors import Factor
from lmmbook.frames import Data, check_finite, to_frame
from lmmbook.likelihood import Family
from lmmbook.syntax import Columns, columns_of

import numpy as np
import pandas as pd
from formulae.matrices import CommonEffectsMatrix


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
    _common: CommonEffectsMatrix = field(repr=False)
    _response: str = field(repr=False)
    _columns: tuple[str, ...] = field(repr=False)
    _categories: dict[str, set[Any]] = field(repr=False)
    origin: np.ndarray | None = field(default=None, repr=False)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.fixed)

    def on(self, data: Data, missing: str = "raise", response: bool = False) -> Design:
        """The same design for new rows, for prediction; without ``response`` it is not looked at.

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
        parts = [self._common, *(common for f in self.factors for common in f._common if common)]
        terms = [term for part in parts for term in part.terms.values()]
        columns = columns_of(terms, [c for f in self.factors for c in f.columns])
        if response:
            columns = columns._replace(names=tuple(dict.fromkeys([*columns.names, self._response])))
        data = self._as_in_training(to_frame(data, columns, missing))
        with np.errstate(all="ignore"):  # what comes of it is looked at below
            factors = tuple(f.on(data) for f in self.factors)
            fixed = np.asarray(self._common.evaluate_new_data(data).design_matrix, float)
        labels = [label for term in self._common.terms.values() for label in term.labels]
        check_finite(fixed, labels)
        for factor in factors:
            check_finite(factor.z, factor.effects)
        known = self.family.codes(data[self._response]) if response else None
        none = np.broadcast_to(np.nan, len(data))
        return Design(
            self.formula, self.family, none if known is None else known,
            *offset_apart(fixed, labels), factors,
            self._common, self._response, self._columns, self._categories,
        )  # fmt: skip

    def _as_in_training(self, data: pd.DataFrame) -> pd.DataFrame:
        """New rows, after a look whether numbers are still numbers and categories are known."""
        found = {}
        for column in self._columns:
            values, seen = data[column], self._categories.get(column)
            if seen is None:
                if pd.api.types.is_numeric_dtype(values.dtype):
                    continue
                raise ValueError(
                    f"column {column!r}: expected numbers, as in training, got {values.dtype} "
                    f"({values.iloc[0]}, ...); convert them, data[{column!r}].astype(float)"
                )
            unseen = set(values.unique()) - seen
            if unseen:
                raise ValueError(
                    f"column {column!r}: expected categories seen in training "
                    f"{sorted(map(str, seen))}, got also {sorted(map(str, unseen))}"
                )
            if isinstance(values.dtype, pd.CategoricalDtype):
                found[column] = values.cat.remove_unused_categories()
        return with_columns(data, found)

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
    columns: np.ndarray, labels: list[str]
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """The offset ``[rows]``, the other columns ``[rows, fixed]``, and their names."""
    is_offset = np.array([label.startswith("offset(") for label in labels])
    if not is_offset.any():
        return np.broadcast_to(0.0, len(columns)), columns, tuple(labels)
    names = tuple(np.array(labels)[~is_offset].tolist())
    return columns[:, is_offset].sum(1), columns[:, ~is_offset], names
