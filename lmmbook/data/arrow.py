"""Columns of Arrow, piece by piece, as arrays that are no wider than their values need.

Chapter 08. Parquet files (`parquet`) and data frames of other packages both come in pieces of this
kind. What is in memory is at most one piece as pyarrow has it, and the columns of the result, of
which one may be there twice. pyarrow is optional: it is asked for where there is something for it
to read, and nowhere else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from lmmbook._notes import note
from lmmbook.data.columns import Columns, check_text, from_arrow, nested
from lmmbook.data.missing import Missing

import numpy as np
import pandas as pd

TEXT = ("string", "large_string", "string_view")
NESTED = ("list", "large_list", "fixed_size_list", "struct", "map", "sparse_union", "dense_union")


def import_pyarrow(what: str) -> Any:
    """pyarrow, or a ModuleNotFoundError that says what it would read."""
    try:
        import pyarrow
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"data: expected the package pyarrow, which reads {what}, got no such package; install "
            "pyarrow, or lmmbook[parquet]"
        ) from error
    return pyarrow


def is_text(kind: Any) -> bool:
    """Whether a type of Arrow is one of its kinds of strings."""
    return str(kind) in TEXT


def collect(
    schema: Any, pieces: Iterable[Any], rows: int, columns: Columns, drop: bool
) -> tuple[pd.DataFrame, Missing]:
    """The columns of all pieces together, which have ``rows`` rows, and what is missing in them.

    Integers, and floats where float32 has every value, are narrower than they came, unless the
    formula computes with them; strings become an unordered Categorical, unless it does. Rows with a
    missing value are left out with ``drop``; without it, if there is one, the data frame is empty.

    Raises
    ------
    ValueError
        If a column is nested, or of a kind that `columns.plain` refuses.
    """
    stores = {c: _store(schema, c, rows, columns) for c in columns.names}
    counts, complete = dict.fromkeys(columns.names, 0), 0
    for piece in pieces:
        values = {c: _without_views(piece.column(c)) for c in columns.names}
        holes = {c: _holes(v) for c, v in values.items()}
        for name, hole in holes.items():
            counts[name] += int(hole.sum())
        left = ~np.logical_or.reduce(list(holes.values()))
        if left.any() and (drop or not any(counts.values())):
            for name, value in values.items():
                stores[name].put(complete, value if left.all() else value.filter(left))
        complete += int(left.sum())
    found = Missing(rows, complete, counts)
    if any(counts.values()) and not (drop and complete):
        return pd.DataFrame(), found
    frame = {c: stores.pop(c).column(complete) for c in columns.names}
    return pd.DataFrame(frame, copy=False), found


def _without_views(values: Any) -> Any:
    """The array in a layout that pyarrow can filter, which it cannot do with views."""
    if not str(values.type).endswith("_view"):
        return values
    plain_kind = f"large_{str(values.type).removesuffix('_view')}"
    try:
        return values.cast(plain_kind)
    except NotImplementedError:  # of older versions of pyarrow, which can only spell them out
        import pyarrow

        return pyarrow.array(values.to_pylist(), plain_kind)


def _holes(values: Any) -> np.ndarray:
    """``[rows]`` bool: which are null, or NaN, in the array or in its dictionary."""
    holes = values.is_null(nan_is_null=True).to_numpy(zero_copy_only=False)
    if str(values.type).startswith("dictionary"):
        of_labels = values.dictionary.is_null(nan_is_null=True).to_numpy(zero_copy_only=False)
        if of_labels.any():
            holes = holes | of_labels[values.indices.fill_null(0).to_numpy()]
    return holes


def _store(schema: Any, name: str, rows: int, columns: Columns) -> _Parts | _Labels:
    """Where to collect a column of this type; all of them ``put`` and give a ``column``."""
    kind = schema.field(name).type
    word, group, called = str(kind), name in columns.groups, name in columns.called
    if word.removeprefix("dictionary<values=").startswith(NESTED):
        raise nested(name)
    by_pandas = _pandas_categorical(schema, name)
    if word.startswith("dictionary"):
        return _Labels(rows, kind.ordered, keep=kind.ordered or by_pandas is not None)
    if by_pandas is not None and not group and not is_text(kind):
        if by_pandas:
            note(f"column {name!r}: its file does not say in which order its categories are; "
                 "they are taken in increasing order")  # fmt: skip
        return _Labels(rows, ordered=by_pandas)
    if is_text(kind) and not called:
        return _Labels(rows, checked=None if group else name)
    if word in ("bool", "halffloat", "float", "double") or word.lstrip("u").startswith("int"):
        return _Parts(partial(_numbers, exact=called))
    return _Parts(partial(from_arrow, name=name, group=group, called=called))


def _pandas_categorical(schema: Any, name: str) -> bool | None:
    """Whether a Categorical that pandas wrote was ordered; None of any other column.

    pandas writes categories of text as a dictionary, others as what they are.
    """
    written = json.loads((schema.metadata or {}).get(b"pandas", b"{}"))
    for column in written.get("columns", ()):
        if column.get("name") == name and column.get("pandas_type") == "categorical":
            return bool(column["metadata"]["ordered"])
    return None


class _Parts:
    """Values ``[rows]``, piece by piece as ``convert`` has them, and put together at the end."""

    def __init__(self, convert: Callable[[Any], Any]) -> None:
        self.convert, self.parts = convert, list[pd.Series]()

    def put(self, start: int, values: Any) -> None:
        self.parts.append(pd.Series(self.convert(values)))

    def column(self, rows: int) -> pd.Series:
        return pd.concat(self.parts, ignore_index=True)


def _numbers(values: Any, exact: bool) -> np.ndarray:
    """As NumPy has them: unless ``exact``, in the narrowest type that holds them."""
    found = values.to_numpy(zero_copy_only=False)
    if found.dtype.kind == "f" and not exact:
        with np.errstate(over="ignore"):
            narrow = found.astype(np.float32)
        return narrow if (narrow == found).all() else found
    if found.dtype.kind in "iu" and not exact:
        return pd.to_numeric(found, downcast="integer" if found.dtype.kind == "i" else "unsigned")
    return found.astype(np.float32) if found.dtype == np.float16 else found


class _Labels:
    """Labels ``[rows]`` as a Categorical; pieces may each number the labels in their own way.

    The order of the labels is kept if it means something. Else they are sorted, and those that do
    not occur are forgotten, as a file may have them in any order elsewhere.
    """

    def __init__(
        self, rows: int, ordered: bool = False, keep: bool = False, checked: str | None = None
    ) -> None:
        self.codes, self.known = np.empty(rows, np.int32), dict[Any, int]()
        self.ordered, self.keep, self.checked = ordered, keep, checked

    def put(self, start: int, values: Any) -> None:
        if not str(values.type).startswith("dictionary"):
            values = values.dictionary_encode()
        known, indices = self.known, values.indices.to_numpy()
        labels = values.dictionary.to_pylist()
        known_as = [-1 if x is None else known.setdefault(x, len(known)) for x in labels]
        positions = np.array(known_as, np.int32)
        self.codes[start : start + len(indices)] = positions[indices]

    def column(self, rows: int) -> pd.Categorical:
        labels, codes = list(self.known), self.codes[:rows]
        if not self.keep:
            occur = np.flatnonzero(np.bincount(codes, minlength=len(labels)))
            order = sorted(occur.tolist(), key=labels.__getitem__)
            position = np.zeros(len(labels), np.int32)
            position[order] = np.arange(len(order), dtype=np.int32)
            labels, codes = [labels[i] for i in order], position[codes]
        if self.checked is not None:
            check_text(labels, self.checked)
        kind = pd.CategoricalDtype(labels, self.ordered)
        return pd.Categorical.from_codes(codes, dtype=kind)
