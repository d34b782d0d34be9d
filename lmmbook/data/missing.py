"""Values that are missing: an error, or rows that are left out and counted.

Chapters 01 and 09.
"""

from __future__ import annotations

from typing import NamedTuple

from lmmbook._notes import note


class Missing(NamedTuple):
    """What a look at all rows found.

    Attributes
    ----------
    rows
        How many there are.
    complete
        In how many of them no column that is needed is missing.
    counts
        For each of these columns, in how many rows it is missing.
    """

    rows: int
    complete: int
    counts: dict[str, int]


def settle(found: Missing, missing: str) -> None:
    """Raise, or say which rows are left out.

    Raises
    ------
    ValueError
        If a value is missing and ``missing`` is ``"raise"``, or no row is complete.

    Examples
    --------
    >>> settle(Missing(5, 3, {"y": 2, "x": 0}), "raise")
    Traceback (most recent call last):
        ...
    ValueError: data: expected no missing values, got {'y': 2} (column: rows missing); \
missing='drop' leaves these rows out
    """
    counts = {name: count for name, count in found.counts.items() if count}
    if not counts:
        return
    if missing == "raise":
        raise ValueError(
            f"data: expected no missing values, got {counts} (column: rows missing); "
            "missing='drop' leaves these rows out"
        )
    if not found.complete:
        raise ValueError(
            f"data: expected a row without missing values, got none in {found.rows:,}: {counts} "
            "(column: rows missing)"
        )
    note(
        f"data: left out {found.rows - found.complete:,} of {found.rows:,} rows, with missing "
        f"values {counts} (column: rows missing)"
    )
