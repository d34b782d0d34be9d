"""From a formula and a data frame to arrays: a design.

Chapter 01. ``formulae`` parses the formula and builds the fixed-effect columns. The grouping
factors we take from pandas ourselves (`factors`), and the data from wherever they are (`frames`).
All checks of the input live here and there, so that bad input is refused before any long work
starts.
"""

from __future__ import annotations

from typing import Any

from lmmbook.coding import check_levels, check_vary, coded
from lmmbook.design import Design, offset_apart
from lmmbook.factors import build_factors, check_independent, evaluate, origin_of
from lmmbook.frames import Data, check_finite, to_frame
from lmmbook.gaussian import Gaussian
from lmmbook.likelihood import Family
from lmmbook.syntax import columns_of, parse

import numpy as np
import pandas as pd
from formulae.environment import Environment
from formulae.matrices import ResponseMatrix
from formulae.terms.variable import Variable

GAUSSIAN = Gaussian()


def build_design(
    formula: str, data: Data, family: Family = GAUSSIAN, missing: str = "raise"
) -> Design:
    """Parse ``formula`` and read what it needs from ``data``. Chapter 01.

    Understood are fixed effects as ``formulae`` understands them, and random effects as in lme4:

    - ``(1|g)`` an intercept for each level of ``g``; ``(1|a:b)`` for each pair that occurs;
      ``(1|a/b)`` is ``(1|a) + (1|a:b)``;
    - ``(1 + x|g)``, or ``(x|g)``, an intercept and a slope, correlated; ``(0 + x|g)`` a slope;
    - ``(1 + x||g)``: independent of each other. That holds for every column, those of a categorical
      ``x`` too (as in MixedModels.jl; lme4 keeps the latter correlated);
    - ``offset(x)``: x is added to the linear predictor as it is.

    ``data`` is a data frame of pandas, a mapping from names to arrays ``[rows]``, the path of a
    Parquet file, which is read in pieces, or any data frame that hands over its columns by Arrow's
    interface, such as one of polars. Only the columns in the formula are taken. Large arrays that
    the design can take as they are, such as a response of float64, it shares with the data.

    The first category of a covariate is its reference: the first of a Categorical in its own order,
    or the first of text when sorted. Categories that do not occur are left out with a warning.
    Rows with a missing value are an error, or left out with ``missing="drop"``: then a warning
    says how many, and in which columns.

    Raises
    ------
    TypeError
        If ``data`` is none of these.
    ValueError
        If the formula cannot be read, or the data do not fit it: an unknown column, one that is
        there twice, or of a kind that nothing can be computed with, such as dates; a missing or
        infinite value, no rows, a column with one value or category, a response that the family
        refuses, fixed effects that are linearly dependent, or anything that
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
    description, bars = parse(formula)
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
    names = tuple(dict.fromkeys(in_order))
    needed = needed._replace(names=names, groups=frozenset(names) - {*needed.names})
    data = coded(to_frame(data, needed, missing), fixed_and_slopes)
    check_vary(described, data)

    # Not the names around here: they would hold on to the data as long as the design lives.
    environment = Environment([{"np": np, "pd": pd}])
    try:
        with np.errstate(all="ignore"):  # what comes of it is looked at below
            response = _response(description.response, data, environment)
            common, labels, columns = evaluate(description, data, environment)
            factors = build_factors(bars, data, environment)
    except KeyError as error:
        raise ValueError(
            f"formula {formula!r}: expected functions that are known here, such as np.log, "
            f"got {error}"
        ) from error
    family = family.bind(response)
    check_finite(columns, labels)
    for matrix in (common, *(matrix for f in factors for matrix in f._common if matrix)):
        check_levels(matrix.terms.values())
    offset, fixed, names = offset_apart(columns, labels)
    if family.categories and "Intercept" not in names:
        raise ValueError(
            f"formula: expected an intercept (the categories share it out), got {formula!r}"
        )
    if not names:
        raise ValueError(f"formula: expected at least one fixed effect, got {formula!r}")
    origin = origin_of(fixed, names)
    check_independent("fixed effects", fixed if origin is None else fixed - origin, names)
    categories = {
        c: set(data[c].unique()) for c in covariates if not _is_numeric(data[c])
    }  # fmt: skip
    return Design(
        formula, family, family.codes(response), offset, fixed, names, factors,
        common, description.response.term.name, covariates, categories,
    )  # fmt: skip


def _response(response: Any, data: pd.DataFrame, environment: Environment) -> pd.Series:
    """The response as it stands in the data, or as the formula transforms it."""
    [part] = response.term.components
    if isinstance(part, Variable) and part.reference is None:
        return data[part.name]
    matrix = ResponseMatrix(response)
    matrix.evaluate(data, environment)
    values = np.asarray(matrix.design_matrix)
    if matrix.name in data.columns and not (matrix.kind == "categoric" and values.ndim == 1):
        return data[matrix.name]
    if matrix.kind != "numeric" or values.ndim != 1:
        raise ValueError(
            f"response {matrix.name!r}: expected a column, or a function of columns that gives "
            f"numbers, got {matrix.kind} data of shape {values.shape}"
        )
    return pd.Series(values.astype(float), data.index, name=matrix.name)


def _is_numeric(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column)
