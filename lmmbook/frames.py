"""Data as they come: a data frame, a mapping of arrays, or a Parquet file read in pieces.

Chapter 08. Tens of millions of rows fit in memory once, but not five times. So arrays are taken as
they are, a file is read in pieces (`parquet`), and what is computed of all rows, for a check or on
the way to a result, is computed of a piece at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

from lmmbook import parquet
from lmmbook.syntax import Columns

import numpy as np
import pandas as pd

Data: TypeAlias = "pd.DataFrame | Mapping[str, np.ndarray] | str | os.PathLike[str]"
PIECE = parquet.PIECE  # rows that are worked on at a time: some MiB


def pieces(rows: int, at_least: int = 0) -> Iterator[slice]:
    """Slices of `PIECE` rows, or of ``at_least`` as many, which together are all rows.

    Examples
    --------
    >>> [piece.stop for piece in pieces(2**20 + 3)]
    [524288, 1048576, 1048579]
    """
    step = max(PIECE, at_least)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def all_finite(columns: np.ndarray) -> bool:
    """Whether ``[rows, ...]`` has no infinite value, and none that is not a number."""
    if columns.strides[0] == 0:
        columns = columns[:1]
    return all(bool(np.isfinite(columns[piece]).all()) for piece in pieces(len(columns)))


def ones(rows: int) -> np.ndarray:
    """``[rows, 1]`` float64, a column of ones that takes no memory; it cannot be written to."""
    return np.broadcast_to(np.ones((1, 1)), (rows, 1))


def to_frame(data: Data, columns: Columns) -> pd.DataFrame:
    """The columns that a formula needs, checked; arrays and data frames are not copied.

    Raises
    ------
    TypeError
        If ``data`` is none of what can be read.
    ValueError
        If a column or a value is missing, there are no rows, arrays are not ``[rows]``, or a file
        is no Parquet file.
    FileNotFoundError, ModuleNotFoundError
        If the file is not there, or pyarrow, which reads it, is not installed.

    Examples
    --------
    >>> y = np.array([1.0, 2.0])
    >>> frame = to_frame({"y": y, "other": y}, Columns(("y",)))
    >>> list(frame), np.shares_memory(frame["y"], y)
    (['y'], True)
    """
    if isinstance(data, str | os.PathLike):
        rows, names = parquet.outline(os.fspath(data))
        _check_names(columns, names)
        _check_rows(rows)
        frame, missing = parquet.read(os.fspath(data), columns)
        _check_missing(missing)
        return frame
    if isinstance(data, Mapping):
        data = _from_arrays(data, columns)
    elif not isinstance(data, pd.DataFrame):
        raise _no_data(type(data).__name__)
    _check_names(columns, data.columns)
    _check_rows(len(data))
    _check_missing({c: int(data[c].isna().sum()) for c in columns.names})
    return data


def _from_arrays(data: Mapping[str, np.ndarray], columns: Columns) -> pd.DataFrame:
    odd = [(name, x) for name, x in data.items() if not isinstance(x, np.ndarray)]
    if odd:
        name, found = odd[0]
        raise _no_data(f"{type(data).__name__} with {type(found).__name__} for {name!r}")
    shapes = {name: x.shape for name, x in data.items()}
    if len({*shapes.values(), (-1,)}) > 2 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(f"data: expected arrays of one shape (rows,), got {shapes}")
    _check_names(columns, data)
    return pd.DataFrame({c: data[c] for c in columns.names}, copy=False)


def _no_data(found: str) -> TypeError:
    return TypeError(
        f"data: expected a pandas DataFrame, got {found}; a mapping of NumPy arrays and the path "
        "of a Parquet file can be read as well"
    )


def _check_names(columns: Columns, known: Iterable[str]) -> None:
    names = list(known)
    unknown = [c for c in columns.names if c not in names]
    if unknown:
        raise ValueError(f"data: expected columns {unknown}, got {names}")


def _check_rows(rows: int) -> None:
    if rows == 0:
        raise ValueError("data: expected at least one row, got an empty data frame")


def _check_missing(counts: Mapping[str, int]) -> None:
    missing = {name: count for name, count in counts.items() if count}
    if missing:
        raise ValueError(f"data: expected no missing values, got {missing} (column: rows missing)")
