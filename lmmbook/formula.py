"""From a formula and a data frame to arrays: a design.

Chapter 01. ``formulae`` parses the formula and builds the fixed-effect columns. The grouping
factors we take from pandas ourselves: one integer code a row says all there is to say about
``(1|g)``, where a matrix of zeros and ones would need rows x levels numbers.

All checks of the input live here, so that bad input is refused before any long work starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from lmmbook.syntax import parse

import numpy as np
import pandas as pd
from formulae.environment import Environment
from formulae.matrices import CommonEffectsMatrix, DesignMatrices


@dataclass(frozen=True)
class Factor:
    """A grouping factor: which level each row belongs to.

    Attributes
    ----------
    name
        As in the formula: ``"students"``, or ``"recipe:replicate"`` for an interaction.
    columns
        The data columns it is made of, ``("recipe", "replicate")``.
    labels
        ``[levels]``, the original labels, in the order of the codes.
    codes
        ``[rows]`` int32 in ``0 .. levels - 1``.
    """

    name: str
    columns: tuple[str, ...]
    labels: pd.Index
    codes: np.ndarray

    @property
    def levels(self) -> int:
        """Number of levels."""
        return len(self.labels)


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
        One `Factor` per random intercept, in the order of the formula.
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
        factors = tuple(_extend(f, _labels_of(data, f.columns)) for f in self.factors)
        fixed = np.asarray(self._common.evaluate_new_data(data).design_matrix, float)
        if not np.isfinite(fixed).all():
            raise ValueError("data: expected finite numbers, got infinite values")
        return Design(
            self.formula, np.full(len(data), np.nan), fixed, self.fixed_names, factors,
            self._common, self._columns, self._categories,
        )  # fmt: skip


def build_design(formula: str, data: pd.DataFrame) -> Design:
    """Parse ``formula`` and read what it needs from ``data``.

    Understood are fixed effects as ``formulae`` understands them, and random intercepts ``(1|g)``,
    ``(1|a:b)`` (one level per pair that occurs) and ``(1|a/b)``, which is ``(1|a) + (1|a:b)``.

    Raises
    ------
    TypeError
        If ``data`` is not a data frame.
    ValueError
        If the formula cannot be read, or the data do not fit it: an unknown column, a missing or
        infinite value, no rows, a response that is not numeric or never varies, fixed effects that
        are linearly dependent, a grouping factor with one level or with as many levels as rows, two
        factors that group the rows alike.

    Examples
    --------
    >>> data = pd.DataFrame({"y": [1.0, 2.0, 3.0, 5.0], "g": ["a", "b", "b", "a"]})
    >>> design = build_design("y ~ 1 + (1|g)", data)
    >>> design.fixed_names, design.factors[0].codes.tolist()
    (('Intercept',), [0, 1, 1, 0])
    """
    description, groups = parse(formula)
    used = description.var_names - {""}  # so formulae names a literal, as the 2 in poly(x, 2)
    fixed_columns = sorted(used & set().union(*(t.var_names for t in description.common_terms)))
    group_columns = [column for group in groups for column in group]
    _check_frame(data, dict.fromkeys([*sorted(used), *group_columns]))

    try:
        matrices = DesignMatrices(description, data, Environment.capture())
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
        c: set(data[c].unique()) for c in fixed_columns if not _is_numeric(data[c])
    }  # fmt: skip
    factors = tuple(_factor(data, group) for group in groups)
    _check_factors(factors)
    return Design(
        formula, response.astype(float), fixed, names, factors,
        common, tuple(fixed_columns), categories,
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
    rank = int(np.linalg.matrix_rank(fixed))
    if rank < fixed.shape[1]:
        raise ValueError(
            f"fixed effects: expected linearly independent columns, got rank {rank} "
            f"for {fixed.shape[1]} columns {list(names)}"
        )


def _check_factors(factors: tuple[Factor, ...]) -> None:
    """Two factors that split the rows alike cannot be told apart."""
    for first, second in combinations(factors, 2):
        if first.levels == second.levels:
            pairs = np.unique(np.stack([first.codes, second.codes]), axis=1).shape[1]
            if pairs == first.levels:
                raise ValueError(
                    f"groups {first.name!r} and {second.name!r}: expected different groupings, "
                    "got the same one under two names"
                )


def _factor(data: pd.DataFrame, columns: tuple[str, ...]) -> Factor:
    name, labels_of_rows = ":".join(columns), _labels_of(data, columns)
    codes, labels = pd.factorize(labels_of_rows, sort=True)
    if len(labels) < 2:
        raise ValueError(f"group {name!r}: expected at least two levels, got {len(labels)}")
    if len(labels) >= len(data):
        raise ValueError(
            f"group {name!r}: expected fewer levels than rows, got {len(labels)} levels "
            f"for {len(data)} rows"
        )
    return Factor(name, columns, pd.Index(labels), codes.astype(np.int32))


def _labels_of(data: pd.DataFrame, columns: tuple[str, ...]) -> pd.Index:
    """``[rows]`` labels; an interaction's are ``"a:b"``, as lme4 writes them."""
    plain = [pd.Index(np.asarray(data[c])) for c in columns]
    if len(plain) == 1:
        return plain[0]
    joined = pd.Index([":".join(map(str, row)) for row in zip(*plain, strict=True)])
    if joined.nunique() < len(data[list(columns)].drop_duplicates()):
        raise ValueError(
            f"group {':'.join(columns)!r}: expected labels that stay apart when joined by ':', "
            "got labels with ':' in them that do not; rename them"
        )
    return joined


def _extend(factor: Factor, labels_of_rows: pd.Index) -> Factor:
    """The factor over new rows, with levels that are new appended after the known ones."""
    labels = factor.labels.append(labels_of_rows.unique().difference(factor.labels))
    codes = labels.get_indexer(labels_of_rows).astype(np.int32)
    return Factor(factor.name, factor.columns, labels, codes)


def _is_numeric(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column)
