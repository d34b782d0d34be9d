"""From whatever a column of a data frame is to numbers, text or categories, or a refusal by name.

Chapter 08. pandas keeps numbers in many ways: as Python objects, as its own arrays with room for
missing values, as those of pyarrow, sparse. What is behind the formula knows NumPy's numbers, text
and Categoricals, and nothing else. Labels of groups may be dates as well, or whatever else can be
told apart and sorted: nobody computes with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from decimal import Decimal
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

# What cannot be computed with, as people call it, and what to write instead.
DATES = ("dates", "days since the first, ({0} - {0}.min()).dt.days, or categories, {0}.astype(str)")
SPANS = ("durations", "seconds, {0}.dt.total_seconds()")
BYTES = ("bytes", "text, {0}.str.decode('utf-8')")
REFUSED = {
    "datetime64": DATES,
    "datetime": DATES,
    "date": DATES,
    "timedelta64": SPANS,
    "timedelta": SPANS,
    "time": ("times of day", "categories, {0}.astype(str)"),
    "period": ("periods", "categories, {0}.astype(str)"),
    "interval": ("intervals", "categories, {0}.astype('category')"),
    "bytes": BYTES,
    "complex": ("complex numbers", "real numbers, such as {0}.abs()"),
}
OTHER = "numbers, {0}.astype(float), or text, {0}.astype(str)"
MIXED = "all numbers, pd.to_numeric({0}, errors='coerce'), or all text, {0}.astype(str)"
NESTED = (list, tuple, dict, set, frozenset, np.ndarray)


class Columns(NamedTuple):
    """Columns of the data, and what a formula does with them besides taking them as they are.

    Attributes
    ----------
    names
        All columns, each once.
    called
        Those that a function takes, as in ``np.log(x)``: it has to be given what the data have.
    groups
        Those that are labels of groups and nothing else: nobody computes with them.
    """

    names: tuple[str, ...]
    called: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()


def missing_in(column: pd.Series) -> np.ndarray:
    """``[rows]`` bool: which values are None, NaN, NA or NaT, however the column holds them.

    Examples
    --------
    >>> missing_in(pd.Series([1.5, None, 2.0], dtype="Float64")).tolist()
    [False, True, False]
    """
    kind = column.dtype
    if isinstance(kind, np.dtype) and kind.kind in "biuSV":
        return np.broadcast_to(False, len(column))
    # pandas 2 tells NaN from missing in arrays of pyarrow and its own; here they are the same
    if isinstance(kind, pd.ArrowDtype):
        return np.asarray(column.array.__arrow_array__().is_null(nan_is_null=True), bool)
    found = np.asarray(column.isna(), bool)
    if pd.api.types.is_float_dtype(kind) and not isinstance(kind, np.dtype | pd.SparseDtype):
        found = found | np.isnan(column.to_numpy(np.float64, na_value=np.nan))
    return found


def plain(column: pd.Series, name: str, group: bool = False, called: bool = False) -> Any:
    """The values ``[rows]`` of a column without missing ones: an array of NumPy, text, categories.

    Numbers are not copied where NumPy has them already. ``group`` is for labels that nobody
    computes with, ``called`` for a column that a function of the formula is given.

    Raises
    ------
    ValueError
        If they are dates, nested, of several kinds, or anything else that is none of these; the
        message says how to convert them.

    Examples
    --------
    >>> plain(pd.Series([1, 2], dtype="Int8"), "x"), plain(pd.Series([Decimal("0.5")]), "x")
    (array([1, 2], dtype=int8), array([0.5]))
    >>> plain(pd.Series(["1.5", "2.5"]), "x")
    Traceback (most recent call last):
        ...
    ValueError: column 'x': expected numbers or categories, got numbers written as text, such as \
'1.5'; make them numbers, data['x'].astype(float), or categories, data['x'].astype('category')
    """
    kind: Any = column.dtype
    if isinstance(kind, pd.ArrowDtype):
        return from_arrow(column.array.__arrow_array__(), name, group, called)
    if isinstance(kind, pd.SparseDtype):
        return plain(pd.Series(np.asarray(column)), name, group, called)
    if isinstance(kind, pd.CategoricalDtype):
        if group and kind.categories.dtype == object:
            labels = _from_objects(kind.categories.to_numpy(), name, group, called)
            return column.array.rename_categories(labels)
        return column.array
    if pd.api.types.is_bool_dtype(kind) or pd.api.types.is_any_real_numeric_dtype(kind):
        if isinstance(kind, np.dtype) and kind.kind == "f" and kind.itemsize not in (4, 8):
            return column.to_numpy(np.float64)  # pandas knows no labels of float16
        return column.to_numpy(kind if isinstance(kind, np.dtype) else kind.numpy_dtype)
    if isinstance(kind, np.dtype) and kind.kind in "OS":
        return _from_objects(column.to_numpy(object), name, group, called)
    if pd.api.types.is_string_dtype(kind):
        if not (group or called):
            check_text(column.unique(), name)
        return column.array
    what = pd.api.types.infer_dtype(column)
    if group and what in REFUSED and what != "complex":
        return column.array
    raise refusal(name, *REFUSED.get(what, (str(kind), OTHER)))


def refusal(name: str, found: str, remedy: str) -> ValueError:
    """The error for a column that cannot be used; ``{0}`` in the remedy stands for the column."""
    return ValueError(
        f"column {name!r}: expected numbers or categories, got {found}; make them "
        + remedy.format(f"data[{name!r}]")
    )


def nested(name: str) -> ValueError:
    """The error for a column of lists, arrays or records."""
    return ValueError(
        f"column {name!r}: expected one number, text or category a row, got several (a nested "
        "column); give each part a column of its own, or leave it out"
    )


def from_arrow(values: Any, name: str, group: bool, called: bool) -> Any:
    """`plain`, of an array of pyarrow."""
    try:
        found = values.to_pandas()
    except NotImplementedError as error:  # pyarrow's own is one of these
        raise refusal(name, f"values of the Arrow type {values.type}", OTHER) from error
    if not isinstance(found.dtype, pd.CategoricalDtype):
        return plain(found, name, group, called)
    labels = found.array.categories
    return found.array.set_categories(labels if found.array.ordered else sorted(labels))


def _from_objects(values: np.ndarray, name: str, group: bool, called: bool) -> Any:
    """Of Python's objects ``[rows]``."""
    what = pd.api.types.infer_dtype(values, skipna=False)
    if what == "string":
        if not (group or called):
            check_text(pd.unique(values), name)
        return values
    if what == "boolean":
        return values.astype(bool)
    if any(isinstance(value, NESTED) for value in values):
        raise nested(name)
    some_bools = any(isinstance(value, bool | np.bool_) for value in values)
    if not some_bools and all(isinstance(value, Real | Decimal) for value in values):
        return _numbers(values, name, group)
    if what in REFUSED and not (group and what != "complex"):
        raise refusal(name, *REFUSED[what])
    try:
        sorted(set(values))
    except TypeError as error:
        raise _several(name, values) from error
    if not group or some_bools:  # True would be the label 1
        raise _several(name, values)
    return values


def _numbers(values: np.ndarray, name: str, group: bool) -> np.ndarray:
    """Integers if all are, or are whole Decimals, as ids of databases; else the nearest float64."""
    try:
        as_float = np.array([float(value) for value in values])
        if all(_is_whole(value) for value in values):
            kind = np.uint64 if as_float.max() >= 2**63 else np.int64
            return np.array([int(value) for value in values], kind)
    except OverflowError as error:
        raise refusal(name, "integers of more than 64 bits", OTHER) from error
    if group and len(set(as_float)) < len(set(values)):
        raise refusal(name, "numbers with more digits than float64 has", "text, {0}.astype(str)")
    return as_float


def _is_whole(value: Any) -> bool:
    whole = isinstance(value, Decimal) and value.is_finite() and value == int(value)
    return whole or isinstance(value, int | np.integer)


def _several(name: str, values: np.ndarray) -> ValueError:
    """The error for objects of several kinds, or of one that is not known here."""
    first = {type(value).__name__: value for value in reversed(values)}
    kinds = ", ".join(f"{kind} ({value!r})" for kind, value in sorted(first.items())[:3])
    if len(first) == 1:
        return refusal(name, f"objects of type {kinds}", "text, {0}.astype(str)")
    return refusal(name, f"several kinds of values, {kinds}", MIXED)


def check_text(texts: Iterable[str], name: str) -> None:
    """Refuse decimal numbers that were read as text; whole ones, as in ``"3"``, may be names."""
    texts = list(texts)
    if _all_are(float, texts) and not _all_are(int, texts):
        example = next(text for text in texts if not _all_are(int, [text]))
        raise refusal(
            name,
            f"numbers written as text, such as {str(example)!r}",
            "numbers, {0}.astype(float), or categories, {0}.astype('category')",
        )


def _all_are(kind: Callable[[str], Any], texts: Iterable[str]) -> bool:
    try:
        for text in texts:
            kind(text)
    except ValueError:
        return False
    return True
