"""Tables that come with the package: no row is read before the file is known to be whole."""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

DATASETS = Path(__file__).parents[1] / "datasets"


def read_published(source: Path, name: str, checksums: Mapping[str, str]) -> pd.DataFrame:
    """Read a CSV, gzipped or not, after checking that it is what was published.

    Parameters
    ----------
    source
        The file.
    name
        What the table is called, for the error.
    checksums
        SHA-256 of the CSV, uncompressed, by edition: the file has to be one of these.

    Raises
    ------
    ValueError
        If the content has none of the checksums.
    """
    content = source.read_bytes()
    try:
        csv = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{source}: expected a whole gzip file, got: {error}") from None
    received = hashlib.sha256(csv).hexdigest()
    if received not in checksums.values():
        known = " or ".join(f"{sha256} ({edition})" for edition, sha256 in checksums.items())
        raise ValueError(
            f"{source} is not {name} as published: expected a CSV with sha256 {known}, "
            f"got {len(csv):,} bytes with {received}"
        )
    return pd.read_csv(io.BytesIO(csv))


def with_categories(data: pd.DataFrame, factors: Iterable[str]) -> pd.DataFrame:
    """The table with these columns as categoricals, whose categories are in sorted order."""
    return data.assign(**{name: pd.Categorical(data[name]) for name in factors})
