"""From a formula and a data frame to arrays: a design.

Chapter 01. ``formulae`` parses the formula and builds the fixed-effect columns. The grouping
factors we take from pandas ourselves (`factors`), and the data from wherever they are (`frames`).
All checks of the input live here and there, so that bad input is refused before any long work
starts.
"""

from __future__ import annotations

from typing import Any

from lmmbook.dependence import check_independent, kept_of, left_out
from lmmbook.design import Design, offset_apart
from lmmbook.factors import build_factors, origin_of
from lmmbook.frames import Data, all_finite, to_frame
from lmmbook.functions import Functions
from lmmbook.gaussian import Gaussian
from lmmbook.labels import encode
from lmmbook.likelihood import Family
from lmmbook.names import check_columns, check_names
from lmmbook.syntax import Columns, columns_of, fixed_kinds, parse
from lmmbook.terms import NOTHING, computed, evaluate

import numpy as np
import pandas as pd
from formulae.environment import Environment
from formulae.matrices import ResponseMatrix
from formulae.terms.variable import Variable

GAUSSIAN = Gaussian()


def build_design(
    formula: str,
    data: Data,
    family: Family = GAUSSIAN,
    functions: Functions | None = None,
) -> Design:
    """Parse ``formula`` and read what it needs from ``data``. Chapter 01.

    Understood are fixed effects as ``formulae`` understands them, and random effects as in lme4:

    - ``(1|g)`` an intercept for each level of ``g``; ``(1|a:b)`` for each pair that occurs;
      ``(1|a/b)`` is ``(1|a) + (1|a:b)``;
    - ``(1 + x|g)``, or ``(x|g)``, an intercept and a slope, correlated; ``(0 + x|g)`` a slope;
    - ``(1 + x||g)``: independent of each other. That holds for every column, those of a categorical
      ``x`` too (as in MixedModels.jl; lme4 keeps the latter correlated);
    - ``offset(x)``: x is added to the linear predictor as it is.

    A formula can call the functions of `lmmbook.functions`: NumPy's that look at one row at a time,
    as ``np.log(x)``, transforms that remember the training rows, as ``center(x)``, and those in
    ``functions``, by the names that they have there. These should give a row a value that does not
    depend on other rows. All get numbers as float64, and arithmetic is in float64.

    ``data`` is a data frame, a mapping from names to arrays ``[rows]``, or the path of a Parquet
    file, of which only the columns in the formula are read, in pieces. Large arrays that the design
    can take as they are, such as a response of float64, it shares with the data.

    Raises
    ------
    TypeError
        If ``data`` is none of these, or ``functions`` no mapping from names to functions.
    ValueError
        If the formula cannot be read or calls other functions, or the data do not fit it: an
        unknown column, a missing or infinite value, no rows, a response that the family refuses,
        fixed effects that are linearly dependent, or anything that
        `lmmbook.factors.build_factors` refuses.
    FileNotFoundError, ModuleNotFoundError
        If there is no such file, or no pyarrow, which reads it.

    Examples
    --------
    >>> data = pd.DataFrame({"y": [1.0, 2.0, 3.0, 5.0], "g": ["a", "b", "b", "a"]})
    >>> design = build_design("y ~ 1 + (1|g)", data)
    >>> design.fixed_names, design.factors[0].codes.tolist()
    (('Intercept',), [0, 1, 1, 0])
    """
    description, bars = parse(formula, functions)
    described = [description, *(bar.effects for bar in bars if bar.effects is not None)]
    terms = [term for part in described for term in part.common_terms]
    fixed_and_slopes = columns_of(terms)
    covariates = fixed_and_slopes.names
    response_columns = columns_of([description.response.term]).names
    in_order = [
        *(column for column in response_columns if column not in covariates),
        *covariates,
        *(column for bar in bars for column in bar.group),
    ]
    needed = columns_of([description.response.term, *terms])
    needed = needed._replace(names=tuple(dict.fromkeys(in_order)))
    taken = [name for name in functions or {} if name in needed.names]
    if taken:
        raise ValueError(
            f"functions: expected names that are free, got {taken[0]!r}, which is a column of the "
            "formula; rename one of them"
        )
    check_columns(covariates)
    data = _sort_labels(to_frame(data, needed), fixed_and_slopes)

    response = _response(description.response, data, NOTHING)
    common, columns = evaluate(description, data)
    factors = build_factors(bars, data)
    family = family.bind(response)
    if not all_finite(columns):
        raise ValueError("data: expected finite numbers, got infinite values")
    offset, fixed, names = offset_apart(columns, common)
    if family.categories and "Intercept" not in names:
        raise ValueError(
            f"formula: expected an intercept (the categories share it out), got {formula!r}"
        )
    if not names:
        raise ValueError(f"formula: expected at least one fixed effect, got {formula!r}")
    without = left_out(fixed, names, common, origin_of(fixed, names))
    fixed, names = kept_of(without, fixed, names)
    origin = origin_of(fixed, names)
    check_independent("fixed effects", fixed if origin is None else fixed - origin, names)
    categories = {c: set(data[c].unique()) for c in fixed_kinds(terms) if not _is_numeric(data[c])}
    design = Design(
        formula, family, family.codes(response), offset, fixed, names, factors,
        common, description.response.term.name, covariates, categories, dict(functions or {}),
        without,
    )  # fmt: skip
    check_names(design)
    return design


def _response(response: Any, data: pd.DataFrame, environment: Environment) -> pd.Series:
    """The response as it stands in the data, or as the formula transforms it."""
    [part] = response.term.components
    if isinstance(part, Variable) and part.reference is None:
        return data[part.name]
    matrix = ResponseMatrix(response)
    computed(part, lambda: matrix.evaluate(data, environment))
    values = np.asarray(matrix.design_matrix)
    if matrix.name in data.columns and not (matrix.kind == "categoric" and values.ndim == 1):
        return data[matrix.name]
    if matrix.kind != "numeric" or values.ndim != 1:
        raise ValueError(
            f"response {matrix.name!r}: expected a column, or a function of columns that gives "
            f"numbers, got {matrix.kind} data of shape {values.shape}"
        )
    return pd.Series(values.astype(float), data.index, name=matrix.name)


def _sort_labels(data: pd.DataFrame, columns: Columns) -> pd.DataFrame:
    """The data, with labels in the order that ``formulae`` would sort them in row by row."""
    found = {}
    for name in set(columns.names) - columns.called:
        kind = data[name].dtype
        if isinstance(kind, pd.CategoricalDtype) and kind.ordered:
            continue  # in an order of its own
        if isinstance(kind, pd.CategoricalDtype) or pd.api.types.is_string_dtype(data[name]):
            codes, labels = encode(data, [name])
            sorted_labels = pd.CategoricalDtype(labels, ordered=True)
            found[name] = pd.Categorical.from_codes(codes, dtype=sorted_labels)
    if not found:
        return data
    return pd.DataFrame(
        {name: found[name] if name in found else data[name] for name in data.columns},
        data.index,
        copy=False,
    )


def _is_numeric(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column)
