"""A Parquet file, read in pieces.

Chapter 08. What becomes of the pieces is up to `arrow`.
"""

from __future__ import annotations

import os

from lmmbook import _rows
from lmmbook.data.arrow import collect, import_pyarrow, is_text
from lmmbook.data.columns import Columns
from lmmbook.data.missing import Missing

import pandas as pd


def outline(path: str) -> tuple[int, list[str]]:
    """How many rows a file has, and its columns.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, or it is no Parquet file.
    ModuleNotFoundError
        If pyarrow is not installed.
    """
    pa = import_pyarrow(f"Parquet files, to read {path!r}")
    from pyarrow import parquet

    if not os.path.isfile(path):
        what = "a folder" if os.path.isdir(path) else "no such file"
        raise FileNotFoundError(f"data: expected a Parquet file, got {what}: {path!r}")
    try:
        with parquet.ParquetFile(path) as file:
            return file.metadata.num_rows, file.schema_arrow.names
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"data: expected a Parquet file, got {path!r}: {error}") from error


def read(path: str, columns: Columns, drop: bool = False) -> tuple[pd.DataFrame, Missing]:
    """Columns of a file that has a row at least, and what is missing in them: see `arrow.collect`,
    which raises if a column is of no kind that can be used."""
    import pyarrow as pa
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        schema = file.schema_arrow
    texts = [
        c for c in columns.names if is_text(schema.field(c).type) and c not in columns.called
    ]  # fmt: skip
    with parquet.ParquetFile(path, read_dictionary=texts) as file:
        pieces = file.iter_batches(_rows.PIECE, columns=list(columns.names))
        found = collect(schema, pieces, file.metadata.num_rows, columns, drop)
    pa.default_memory_pool().release_unused()  # it keeps what pieces took, for more to come
    return found
