"""Data as they come: a data frame, a mapping of arrays, or a Parquet file read in pieces.

Chapter 08. Tens of millions of rows fit in memory once, but not five times. So arrays are taken as
they are, a file is read in pieces (`parquet`), and what is computed of all rows, for a check or on
the way to a result, is computed of a piece at a time. What single columns may be is up to
`columns`, and `missing` says what becomes of rows with holes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

from lmmbook.data import parquet
from lmmbook.data.arrow import collect, import_pyarrow
from lmmbook.data.columns import Columns, missing_in, plain
from lmmbook.data.missing import Missing, settle

import numpy as np
import pandas as pd


@runtime_checkable
class ArrowStream(Protocol):
    """A data frame of another package, such as polars, or a table of Arrow."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Its columns, as the Arrow PyCapsule interface hands them over."""


Data: TypeAlias = "pd.DataFrame | Mapping[str, np.ndarray] | str | os.PathLike[str] | ArrowStream"


def to_frame(data: Data, columns: Columns, missing: str = "raise") -> pd.DataFrame:
    """The columns that a formula needs, checked: numbers and text as NumPy has them, Categoricals.

    The index is 0, 1, ... Arrays, and numbers of a data frame, are not copied if no row is left
    out. ``missing`` says what is done about rows with a missing value: ``"raise"``, or ``"drop"``
    to leave them out and say so.

    Raises
    ------
    TypeError
        If ``data`` is none of what can be read.
    ValueError
        If a column or a value is missing, a column is there twice or of no kind that can be used,
        there are no rows, arrays are not ``[rows]``, or a file is no Parquet file.
    FileNotFoundError, ModuleNotFoundError
        If the file is not there, or pyarrow, which reads it, is not installed.

    Examples
    --------
    >>> y = np.array([1.0, 2.0])
    >>> frame = to_frame({"y": y, "other": y}, Columns(("y",)))
    >>> list(frame), np.shares_memory(frame["y"], y)
    (['y'], True)
    """
    if missing not in ("raise", "drop"):
        raise ValueError(f"missing: expected 'raise' or 'drop', got {missing!r}")
    if isinstance(data, str | os.PathLike):
        rows, names = parquet.outline(os.fspath(data))
        _check_names(columns, names)
        _check_rows(rows)
        frame, found = parquet.read(os.fspath(data), columns, missing == "drop")
    elif isinstance(data, pd.DataFrame):
        frame, found = _checked(_from_frame(data, columns), columns, missing == "drop")
    elif isinstance(data, Mapping):
        frame, found = _checked(_from_arrays(data, columns), columns, missing == "drop")
    elif isinstance(data, ArrowStream) and not isinstance(data, pd.Series | type):
        frame, found = _from_stream(data, columns, missing == "drop")
    else:
        raise _no_data(data)
    settle(found, missing)
    return frame


def _checked(
    given: dict[str, pd.Series], columns: Columns, drop: bool
) -> tuple[pd.DataFrame, Missing]:
    """What `to_frame` returns, and what is missing; without ``drop``, nothing if anything is."""
    rows = len(next(iter(given.values())))
    _check_rows(rows)
    counts, keep = {}, None
    for name, column in given.items():
        gaps = missing_in(column)
        counts[name] = int(gaps.sum())
        if counts[name]:
            keep = ~gaps if keep is None else keep & ~gaps
    complete = rows if keep is None else int(keep.sum())
    found = Missing(rows, complete, counts)
    if keep is not None and not (drop and complete):
        return pd.DataFrame(), found
    arrays: dict[str, Any] = {}
    for name, column in given.items():
        column = column if keep is None else column[keep]
        arrays[name] = plain(column, name, name in columns.groups, name in columns.called)
    return pd.DataFrame(arrays, copy=False), found


def _from_frame(data: pd.DataFrame, columns: Columns) -> dict[str, pd.Series]:
    if data.columns.nlevels > 1:
        raise ValueError(
            f"data: expected one name a column, got {data.columns.nlevels} levels of them, such as "
            f"{data.columns[0]}; join them with data.columns = ['_'.join(map(str, c)) for c in "
            "data.columns]"
        )
    hint = ""
    in_index = [c for c in columns.names if c in data.index.names and c not in data.columns]
    if in_index:
        hint = f"; {in_index} is in the index, which data.reset_index() makes columns"
    elif not all(isinstance(c, str) for c in data.columns):
        how = "bytes.decode" if any(isinstance(c, bytes) for c in data.columns) else "str"
        hint = f"; data.rename(columns={how}) makes text of names that are not"
    _check_names(columns, list(data.columns), hint)
    return {c: pd.Series(data[c].array, copy=False) for c in columns.names}


def _from_arrays(data: Mapping[str, np.ndarray], columns: Columns) -> dict[str, pd.Series]:
    needed = {name: data[name] for name in columns.names if name in data}
    for name, x in needed.items():
        if not isinstance(x, np.ndarray):
            raise TypeError(
                "data: expected a pandas DataFrame, got "
                f"{type(data).__name__} with {type(x).__name__} for {name!r}; make it an array, "
                f"np.asarray(...), or make all a data frame, pd.DataFrame(data)"
            )
    _check_names(columns, list(data))
    shapes = {name: x.shape for name, x in needed.items()}
    if len({*shapes.values(), (-1,)}) > 2 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(f"data: expected arrays of one shape (rows,), got {shapes}")
    return {name: _series(x, name) for name, x in needed.items()}


def _series(values: np.ndarray, name: str) -> pd.Series:
    """An array as a column; with None where a masked array is masked, so that integers stay so."""
    if values.dtype.kind == "V":
        raise ValueError(
            f"column {name!r}: expected one number, text or category a row, got a record array "
            f"with {values.dtype.names}; give each field a column of its own"
        )
    if isinstance(values, np.ma.MaskedArray):
        mask = np.ma.getmaskarray(values)
        values = values.data
        if mask.any():
            values = values.astype(object)
            values[mask] = None
    return pd.Series(values, copy=False)


def _from_stream(data: ArrowStream, columns: Columns, drop: bool) -> tuple[pd.DataFrame, Missing]:
    pa = import_pyarrow(f"a {type(data).__module__}.{type(data).__name__}")
    try:
        reader = pa.RecordBatchReader.from_stream(data)
    except pa.ArrowInvalid as error:  # one column, say
        raise _no_data(data) from error
    _check_names(columns, reader.schema.names)
    needed = list(columns.names)
    pieces = [piece.select(needed) for piece in reader]
    rows = sum(len(piece) for piece in pieces)
    _check_rows(rows)
    return collect(reader.schema, pieces, rows, columns, drop)


REMEDIES = {"collect": "data.collect()", "compute": "data.compute()", "to_frame": "data.to_frame()"}


def _no_data(data: object) -> TypeError:
    calls = [call for name, call in REMEDIES.items() if hasattr(data, name)]
    if isinstance(data, np.ndarray | list | tuple):
        calls = ["pd.DataFrame(data)"]
    remedy = f"; give it {calls[0]} instead" if calls else ""
    return TypeError(
        f"data: expected a pandas DataFrame, got {type(data).__name__}{remedy}; a mapping of NumPy "
        "arrays, the path of a Parquet file, and data frames that hand over Arrow's columns, such "
        "as those of polars, can be read as well"
    )


def _check_names(columns: Columns, names: list[str], hint: str = "") -> None:
    unknown = [c for c in columns.names if c not in names]
    if unknown:
        raise ValueError(f"data: expected columns {unknown}, got {names}{hint}")
    twice = [c for c in columns.names if names.count(c) > 1]
    if twice:
        raise ValueError(
            f"data: expected one column of each name, got more than one of {twice}; rename them, "
            "or leave all but one of them out"
        )


def _check_rows(rows: int) -> None:
    if rows == 0:
        raise ValueError("data: expected at least one row, got an empty data frame")
