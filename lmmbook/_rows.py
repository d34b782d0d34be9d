"""Rows in pieces: what is computed of all of them takes no more memory than a piece does.

Chapter 08. Tens of millions of rows fit in memory once, but not five times.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

PIECE = 2**19  # rows that are worked on at a time: some MiB


def pieces(rows: int, at_least: int = 0) -> Iterator[slice]:
    """Slices of `PIECE` rows, or of ``at_least`` as many, which together are all rows.

    Examples
    --------
    >>> [piece.stop for piece in pieces(2**20 + 3)]
    [524288, 1048576, 1048579]
    """
    step = max(PIECE, at_least)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def check_finite(columns: np.ndarray, names: Sequence[str]) -> None:
    """Refuse ``[rows, columns]`` with a value that is infinite or not a number, by its name."""
    rows = columns[:1] if columns.strides[0] == 0 else columns
    if all(np.isfinite(rows[piece]).all() for piece in pieces(len(rows))):
        return
    for name, values in zip(names, columns.T, strict=True):
        infinite, none = int(np.isinf(values).sum()), int(np.isnan(values).sum())
        if infinite or none:
            what = "infinite values" if infinite else "NaN (not a number)"
            raise ValueError(
                f"{name!r}: expected finite numbers, got {what} in {infinite or none:,} of "
                f"{len(values):,} rows; leave these rows out, or change the formula"
            )


def ones(rows: int) -> np.ndarray:
    """``[rows, 1]`` float64, a column of ones that takes no memory; it cannot be written to."""
    return np.broadcast_to(np.ones((1, 1)), (rows, 1))
