"""From a formula and a data frame to arrays: a design.

Chapter 01. ``formulae`` parses the formula and builds the fixed-effect columns. The grouping
factors we take from pandas ourselves (`factors`), and the data from wherever they are (`frames`).
All checks of the input live here and there, so that bad input is refused before any long work
starts.
"""

from __future__ import annotations

from lmmbook.data.frames import Data, to_frame
from lmmbook.families.base import Family
from lmmbook.families.gaussian import Gaussian
from lmmbook.formula.coding import coded
from lmmbook.formula.dependence import check_independent, left_out, origin_of
from lmmbook.formula.design import Design, offset_apart
from lmmbook.formula.factors import Factor, build_factors
from lmmbook.formula.names import check_columns, check_names
from lmmbook.formula.parse.functions import Functions
from lmmbook.formula.parse.response import read
from lmmbook.formula.parse.syntax import columns_of, fixed_kinds, parse
from lmmbook.formula.terms import evaluate

import pandas as pd

GAUSSIAN = Gaussian()


def build_design(
    formula: str,
    data: Data,
    family: Family = GAUSSIAN,
    functions: Functions | None = None,
    missing: str = "raise",
) -> Design:
    """Parse ``formula`` and read what it needs from ``data``. Chapter 01.

    Understood are fixed effects as ``formulae`` understands them, and random effects as in lme4:

    - ``(1|g)`` an intercept for each level of ``g``; ``(1|a:b)`` for each pair that occurs;
      ``(1|a/b)`` is ``(1|a) + (1|a:b)``;
    - ``(1 + x|g)``, or ``(x|g)``, an intercept and a slope, correlated; ``(0 + x|g)`` a slope;
    - ``(1 + x||g)``: independent of each other. That holds for every column, those of a categorical
      ``x`` too (as in MixedModels.jl; lme4 keeps the latter correlated);
    - ``offset(x)``: x is added to the linear predictor as it is.

    The response is a column, ``np.log(y)`` or another function of columns, ``t['yes']`` to say
    which of two labels is the yes, ``C(t)`` for labels that are numbers, or ``p(k, n)``, k
    successes out of n trials (`lmmbook.families.Binomial`).

    A formula can call the functions of `lmmbook.functions`: NumPy's that look at one row at a time,
    as ``np.log(x)``, transforms that remember the training rows, as ``center(x)``, and those in
    ``functions``, by the names that they have there. These should give a row a value that does not
    depend on other rows. All get numbers as float64, and arithmetic is in float64.

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
        If ``data`` is none of these, or ``functions`` no mapping from names to functions.
    ValueError
        If the formula cannot be read or calls other functions, or the data do not fit it: an
        unknown column, one that is there twice, or of a kind that nothing can be computed with,
        such as dates; a missing or infinite value, no rows, a column with one value or category, a
        response that the family refuses, fixed effects that are linearly dependent, or anything
        that `lmmbook.factors.build_factors` refuses.
    FileNotFoundError, ModuleNotFoundError
        If there is no such file, or no pyarrow, which reads it.

    Examples
    --------
    >>> data = pd.DataFrame({"y": [1.0, 2.0, 3.0, 5.0], "g": ["a", "b", "b", "a"]})
    >>> design = build_design("y ~ 1 + (1|g)", data)
    >>> design.fixed_names, design.factors[0].codes.tolist()
    (('Intercept',), [0, 1, 1, 0])
    """
    of_response, fixed_terms, bars = parse(formula, functions)
    terms = [*fixed_terms, *(term for bar in bars for term in bar.effects or ())]
    covariates, groups = columns_of(terms), [column for bar in bars for column in bar.group]
    needed = columns_of([of_response.term], terms, groups=groups)
    taken = [name for name in functions or {} if name in needed.names]
    if taken:
        raise ValueError(
            f"functions: expected names that are free, got {taken[0]!r}, which is a column of the "
            "formula; rename one of them"
        )
    check_columns(covariates.names)
    data = coded(to_frame(data, needed, missing), covariates)

    asked, response = read(of_response, data, family)
    common, columns = evaluate(fixed_terms, data)
    factors = build_factors(bars, data)
    family = family.bind(response)
    codes = family.codes(response)
    _check_rows(factors, family.no_effect_a_row(codes))
    offset, fixed, names = offset_apart(columns, common)
    if family.shares_intercept and "Intercept" not in names:
        raise ValueError(
            f"formula: expected an intercept (the categories share it out), got {formula!r}"
        )
    if not names:
        raise ValueError(f"formula: expected at least one fixed effect, got {formula!r}")
    without = left_out(fixed, names, common, origin_of(fixed, names))
    if without is not None:
        fixed, names = fixed[:, list(without.kept)], tuple(names[j] for j in without.kept)
    origin = origin_of(fixed, names)
    check_independent("fixed effects", fixed if origin is None else fixed - origin, names)
    kinds = [data[column] for column in fixed_kinds(terms)]
    categories = {
        str(c.name): set(c.unique()) for c in kinds if not pd.api.types.is_numeric_dtype(c)
    }
    design = Design(
        formula, family, codes, offset, fixed, names, factors,
        common, asked, covariates.names, categories, dict(functions or {}), without,
    )  # fmt: skip
    check_names(design)
    return design


def _check_rows(factors: tuple[Factor, ...], no_effect_a_row: str | None) -> None:
    """Refuse a factor with as many effects as there are rows, or more.

    One effect a row is fine where the likelihood tells how much it varies; `Family.no_effect_a_row`
    says why it does not, or None.
    """
    for factor in factors:
        levels, effects, rows = factor.levels, len(factor.effects), len(factor.codes)
        one_a_row = effects == 1 and levels == rows
        if levels * effects >= rows and not (one_a_row and no_effect_a_row is None):
            raise ValueError(
                f"group {factor.name!r}: expected fewer random effects than rows, got {levels} "
                f"levels with {effects} effect(s) each for {rows} rows"
                + (f"; {no_effect_a_row}" if one_a_row else "")
            )
