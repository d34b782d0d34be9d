"""A Parquet file, read in pieces into columns that are no wider than their values need.

Chapter 08. What is in memory is at most one piece of the file as pyarrow has it, and the columns of
the result. pyarrow is optional: it is asked for here, where a file is to be read, and nowhere else.
"""

from __future__ import annotations

import os
from typing import Any

from lmmbook.syntax import Columns

import numpy as np
import pandas as pd

PIECE = 2**19  # rows
NARROW = {"i": ("int8", "int16", "int32"), "u": ("uint8", "uint16", "uint32"), "f": ("float32",)}


def outline(path: str) -> tuple[int, list[str]]:
    """How many rows a file has, and its columns.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, or it is no Parquet file.
    ModuleNotFoundError
        If pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"data: expected the package pyarrow, which reads Parquet files, to read {path!r}, got "
            "no such package; install pyarrow, or lmmbook[parquet]"
        ) from error
    if not os.path.isfile(path):
        what = "a folder" if os.path.isdir(path) else "no such file"
        raise FileNotFoundError(f"data: expected a Parquet file, got {what}: {path!r}")
    try:
        with parquet.ParquetFile(path) as file:
            return file.metadata.num_rows, file.schema_arrow.names
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"data: expected a Parquet file, got {path!r}: {error}") from error


def read(path: str, columns: Columns) -> tuple[pd.DataFrame, dict[str, int]]:
    """Columns of a file that has a row at least, and how many values are missing in each.

    Integers, and floats where float32 has every value, are narrower than in the file, unless the
    formula computes with them; strings become an unordered Categorical, unless it does. With values
    missing, the data frame is empty.
    """
    import pyarrow as pa
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        kinds = {name: file.schema_arrow.field(name).type for name in columns.names}
    texts = [c for c in columns.names if _is_text(kinds[c]) and c not in columns.called]
    stores: dict[str, Any] = {}
    missing, start = dict.fromkeys(columns.names, 0), 0
    with parquet.ParquetFile(path, read_dictionary=texts) as file:
        for piece in file.iter_batches(PIECE, columns=list(columns.names)):
            for name in columns.names:
                values = piece.column(name)
                if name not in stores:
                    exact = name in columns.called | columns.multiplied
                    stores[name] = _store(values, file.metadata.num_rows, exact, name in texts)
                count = values.is_null(nan_is_null=True).true_count
                missing[name] += count
                if not count:
                    stores[name].put(start, values)
            start += len(piece)
    pa.default_memory_pool().release_unused()  # it keeps what pieces took, for more to come
    if any(missing.values()):
        return pd.DataFrame(), missing
    return pd.DataFrame({c: stores.pop(c).column() for c in columns.names}, copy=False), missing


def _is_text(kind: Any) -> bool:
    return str(kind) in ("string", "large_string", "string_view")


def _store(values: Any, rows: int, exact: bool, is_text: bool) -> _Numbers | _Labels | _Others:
    """Where to collect a column whose first piece is this; all of them ``put`` and ``column``."""
    kind = str(values.type)
    if kind.startswith("dictionary"):
        return _Labels(rows, bool(values.type.ordered), is_text)
    if kind in ("bool", "float", "double") or kind.lstrip("u").startswith("int"):
        return _Numbers(rows, np.dtype(values.type.to_pandas_dtype()), exact)
    return _Others()


class _Numbers:
    """Numbers ``[rows]``, in the narrowest type that holds all of them unless ``exact``."""

    def __init__(self, rows: int, kind: np.dtype, exact: bool) -> None:
        narrow = [np.dtype(n) for n in NARROW.get(kind.kind, ())]
        self.kinds = [n for n in narrow if n.itemsize < kind.itemsize and not exact] + [kind]
        self.values = np.zeros(rows, self.kinds[0])  # rows to come are cast too when it widens

    def put(self, start: int, values: Any) -> None:
        found = values.to_numpy(zero_copy_only=False)
        while len(self.kinds) > 1 and not _holds(self.kinds[0], found):
            del self.kinds[0]
        if self.values.dtype != self.kinds[0]:
            self.values = self.values.astype(self.kinds[0])
        self.values[start : start + len(found)] = found

    def column(self) -> np.ndarray:
        return self.values


def _holds(kind: np.dtype, values: np.ndarray) -> bool:
    if kind.kind == "f":
        with np.errstate(over="ignore"):
            return bool((values.astype(kind) == values).all())
    return bool(np.iinfo(kind).min <= values.min() and values.max() <= np.iinfo(kind).max)


class _Labels:
    """Labels ``[rows]`` as a Categorical; pieces may each number the labels in their own way."""

    def __init__(self, rows: int, ordered: bool, is_text: bool) -> None:
        self.codes, self.known = np.empty(rows, np.int32), dict[Any, int]()
        self.ordered, self.is_text = ordered, is_text

    def put(self, start: int, values: Any) -> None:
        known = self.known
        labels = values.dictionary.to_pylist()
        positions = np.array([known.setdefault(x, len(known)) for x in labels], np.int32)
        self.codes[start : start + len(values)] = positions[values.indices.to_numpy()]

    def column(self) -> pd.Categorical:
        labels, codes = list(self.known), self.codes
        if self.is_text:  # pandas has the labels in the order that the file has them elsewhere
            order = sorted(range(len(labels)), key=labels.__getitem__)
            labels, codes = [labels[i] for i in order], np.argsort(order).astype(np.int32)[codes]
        kind = pd.CategoricalDtype(labels, self.ordered)
        return pd.Categorical.from_codes(codes, dtype=kind)


class _Others:
    """Whatever else there is, as pandas has it."""

    def __init__(self) -> None:
        self.parts: list[pd.Series] = []

    def put(self, start: int, values: Any) -> None:
        self.parts.append(values.to_pandas())

    def column(self) -> pd.Series:
        return pd.concat(self.parts, ignore_index=True)
