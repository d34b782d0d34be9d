"""From a formula and a data frame to arrays: a design.

Chapter 01. ``formulae`` parses the formula and builds the fixed-effect columns. The grouping
factors we take from pandas ourselves (`factors`). All checks of the input live here and there, so
that bad input is refused before any long work starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lmmbook.factors import Factor, build_factors, check_independent
from lmmbook.families import Gaussian
from lmmbook.likelihood import Family
from lmmbook.syntax import parse

import numpy as np
import pandas as pd
from formulae.environment import Environment
from formulae.matrices import CommonEffectsMatrix, DesignMatrices, ResponseMatrix

GAUSSIAN = Gaussian()


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
        ``[rows]`` float64, what is added to the linear predictor with a coefficient of 1.
    fixed
        ``[rows, columns]`` float64: the fixed-effect columns, the intercept's among them.
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
    _common: CommonEffectsMatrix = field(repr=False)
    _response: str = field(repr=False)
    _columns: tuple[str, ...] = field(repr=False)
    _categories: dict[str, set[Any]] = field(repr=False)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.fixed)

    def on(self, data: pd.DataFrame) -> Design:
        """The same design for new rows, for prediction; the response may be missing.

        Levels of a grouping factor that were not in the training data are appended to its labels,
        after those of the training data: their effects come from the prior. A new *category* of a
        fixed effect has no coefficient, so it raises.

        Raises
        ------
        TypeError, ValueError
            If ``data`` is no data frame, is empty, or lacks a column or a value that is needed.
        """
        columns = [*self._columns, *(c for f in self.factors for c in f.columns)]
        _check_frame(data, dict.fromkeys(columns))
        for column, seen in self._categories.items():
            unseen = set(data[column].unique()) - seen
            if unseen:
                raise ValueError(
                    f"column {column!r}: expected categories seen in training "
                    f"{sorted(map(str, seen))}, got also {sorted(map(str, unseen))}"
                )
        factors = tuple(f.on(data) for f in self.factors)
        fixed = np.asarray(self._common.evaluate_new_data(data).design_matrix, float)
        if not all(np.isfinite(x).all() for x in (fixed, *(f.z for f in factors))):
            raise ValueError("data: expected finite numbers, got infinite values")
        is_offset = _offsets(self._common)
        return Design(
            self.formula, self.family, np.full(len(data), np.nan),
            fixed[:, is_offset].sum(1), fixed[:, ~is_offset], self.fixed_names, factors,
            self._common, self._response, self._columns, self._categories,
        )  # fmt: skip

    def codes(self, data: pd.DataFrame) -> np.ndarray:
        """``[rows]``: the response of new rows, as `response` has it.

        Raises
        ------
        ValueError
            If ``data`` lacks it, or it is not one for this family. A response that the formula
            transforms, as in ``np.log(y)``, has to be a column of its own.
        """
        _check_frame(data, [self._response])
        return self.family.codes(data[self._response])


def build_design(
    formula: str, data: pd.DataFrame, family: Family = GAUSSIAN
) -> Design:  # fmt: skip
    """Parse ``formula`` and read what it needs from ``data``.

    Understood are fixed effects as ``formulae`` understands them, and random effects as in lme4:

    - ``(1|g)`` an intercept for each level of ``g``; ``(1|a:b)`` for each pair that occurs;
      ``(1|a/b)`` is ``(1|a) + (1|a:b)``;
    - ``(1 + x|g)``, or ``(x|g)``, an intercept and a slope, correlated; ``(0 + x|g)`` a slope;
    - ``(1 + x||g)``: independent of each other. That holds for every column, those of a categorical
      ``x`` too (as in MixedModels.jl; lme4 keeps the latter correlated);
    - ``offset(x)``: x is added to the linear predictor as it is.

    Raises
    ------
    TypeError
        If ``data`` is not a data frame.
    ValueError
        If the formula cannot be read, or the data do not fit it: an unknown column, a missing or
        infinite value, no rows, a response that the family refuses, fixed effects that are linearly
        dependent, or anything that `lmmbook.factors.build_factors` refuses.

    Examples
    --------
    >>> data = pd.DataFrame({"y": [1.0, 2.0, 3.0, 5.0], "g": ["a", "b", "b", "a"]})
    >>> design = build_design("y ~ 1 + (1|g)", data)
    >>> design.fixed_names, design.factors[0].codes.tolist()
    (('Intercept',), [0, 1, 1, 0])
    """
    description, bars = parse(formula)
    described = [description, *(bar.effects for bar in bars if bar.effects is not None)]
    terms = [term for part in described for term in part.common_terms]
    # formulae names a literal "", as the 2 in poly(x, 2)
    covariates = sorted(set().union(*(term.var_names for term in terms)) - {""})
    response_columns = sorted(description.var_names - {""} - set(covariates))
    group_columns = [column for bar in bars for column in bar.group]
    _check_frame(data, dict.fromkeys([*response_columns, *covariates, *group_columns]))

    environment = Environment.capture()
    try:
        matrices = DesignMatrices(description, data, environment)
        factors = build_factors(bars, data, environment)
    except KeyError as error:
        raise ValueError(
            f"formula {formula!r}: expected functions that are known here, such as np.log, "
            f"got {error}"
        ) from error
    response = _response(matrices.response, data)
    family = family.bind(response)
    common = matrices.common
    columns = np.asarray(common.design_matrix, float)
    is_offset = _offsets(common)
    offset, fixed = columns[:, is_offset].sum(1), columns[:, ~is_offset]
    if not np.isfinite(columns).all():
        raise ValueError("data: expected finite numbers, got infinite values")
    names = tuple(np.array(common.as_dataframe().columns)[~is_offset].tolist())
    if family.categories and "Intercept" not in names:
        raise ValueError(
            f"formula: expected an intercept (the categories share it out), got {formula!r}"
        )
    if not names:
        raise ValueError(f"formula: expected at least one fixed effect, got {formula!r}")
    check_independent("fixed effects", fixed, names)
    categories = {
        c: set(data[c].unique()) for c in covariates if not _is_numeric(data[c])
    }  # fmt: skip
    return Design(
        formula, family, family.codes(response), offset, fixed, names, factors,
        common, matrices.response.name, tuple(covariates), categories,
    )  # fmt: skip


def _response(matrix: ResponseMatrix, data: pd.DataFrame) -> pd.Series:
    """The response as it stands in the data, or as the formula transforms it."""
    values = np.asarray(matrix.design_matrix)
    if matrix.name in data.columns and not (matrix.kind == "categoric" and values.ndim == 1):
        return data[matrix.name]
    if matrix.kind != "numeric" or values.ndim != 1:
        raise ValueError(
            f"response {matrix.name!r}: expected a column, or a function of columns that gives "
            f"numbers, got {matrix.kind} data of shape {values.shape}"
        )
    return pd.Series(values.astype(float), data.index, name=matrix.name)


def _offsets(common: CommonEffectsMatrix) -> np.ndarray:
    """``[columns]``, whether a column is an offset."""
    return np.array([name.startswith("offset(") for name in common.as_dataframe().columns])


def _check_frame(data: pd.DataFrame, columns: Sequence[str] | dict[str, None]) -> None:
    if not isinstance(data, pd.DataFrame):
        raise TypeError(f"data: expected a pandas DataFrame, got {type(data).__name__}")
    unknown = [c for c in columns if c not in data.columns]
    if unknown:
        raise ValueError(f"data: expected columns {unknown}, got {list(data.columns)}")
    if len(data) == 0:
        raise ValueError("data: expected at least one row, got an empty data frame")
    missing = {c: int(n) for c in columns if (n := data[c].isna().sum())}
    if missing:
        raise ValueError(f"data: expected no missing values, got {missing} (column: rows missing)")


def _is_numeric(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column)
