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
from lmmbook.syntax import parse

import numpy as np
import pandas as pd
from formulae.environment import Environment
from formulae.matrices import CommonEffectsMatrix, DesignMatrices


@dataclass(frozen=True)
class Design:
    """What the model needs to know about the data.

    Attributes
    ----------
    formula
        The formula as given.
    response
        ``[rows]`` float64.
    fixed
        ``[rows, columns]`` float64: the fixed-effect columns, the intercept's among them.
    fixed_names
        ``[columns]``: ``Intercept``, ``service``, ``temp[warm]``, ...
    factors
        One `Factor` a grouping, in the order of the formula.
    """

    formula: str
    response: np.ndarray
    fixed: np.ndarray
    fixed_names: tuple[str, ...]
    factors: tuple[Factor, ...]
    _common: CommonEffectsMatrix = field(repr=False)
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
        return Design(
            self.formula, np.full(len(data), np.nan), fixed, self.fixed_names, factors,
            self._common, self._columns, self._categories,
        )  # fmt: skip


def build_design(formula: str, data: pd.DataFrame) -> Design:
    """Parse ``formula`` and read what it needs from ``data``.

    Understood are fixed effects as ``formulae`` understands them, and random effects as in lme4:

    - ``(1|g)`` an intercept for each level of ``g``; ``(1|a:b)`` for each pair that occurs;
      ``(1|a/b)`` is ``(1|a) + (1|a:b)``;
    - ``(1 + x|g)``, or ``(x|g)``, an intercept and a slope, correlated; ``(0 + x|g)`` a slope;
    - ``(1 + x||g)``: independent of each other. That holds for every column, those of a categorical
      ``x`` too (as in MixedModels.jl; lme4 keeps the latter correlated).

    Raises
    ------
    TypeError
        If ``data`` is not a data frame.
    ValueError
        If the formula cannot be read, or the data do not fit it: an unknown column, a missing or
        infinite value, no rows, a response that is not numeric or never varies, fixed effects that
        are linearly dependent, or anything that `lmmbook.factors.build_factors` refuses.

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
    response = np.asarray(matrices.response.design_matrix)
    if matrices.response.kind != "numeric" or response.ndim != 1:
        raise ValueError(
            f"response {matrices.response.name!r}: expected one numeric column, "
            f"got {matrices.response.kind} data"
        )
    common = matrices.common
    fixed = np.asarray(common.design_matrix, float)
    names = tuple(common.as_dataframe().columns)
    _check_fixed(fixed, response, names)
    categories = {
        c: set(data[c].unique()) for c in covariates if not _is_numeric(data[c])
    }  # fmt: skip
    return Design(
        formula, response.astype(float), fixed, names, factors,
        common, tuple(covariates), categories,
    )  # fmt: skip


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


def _check_fixed(fixed: np.ndarray, response: np.ndarray, names: tuple[str, ...]) -> None:
    if not (np.isfinite(fixed).all() and np.isfinite(response).all()):
        raise ValueError("data: expected finite numbers, got infinite values")
    if np.ptp(response) == 0:
        raise ValueError(f"response: expected values that vary, got {response[0]:g} in every row")
    offsets = [name for name in names if name.startswith("offset(")]
    if offsets:
        raise ValueError(f"formula: offsets are not supported, got {offsets}")
    check_independent("fixed effects", fixed, names)


def _is_numeric(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column)
