"""From the labels of rows to integer codes.

Chapters 01 and 08. The codes come from pandas, or from a table where the labels are integers that
lie close together. Labels themselves are looked at once a level, and not once a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from lmmbook._rows import pieces

import numpy as np
import pandas as pd

Keys: TypeAlias = tuple[pd.Index, ...]  # of levels: for each of its columns, [levels] values


def grouped(
    data: pd.DataFrame, columns: Sequence[str]
) -> tuple[np.ndarray, pd.Index, Keys]:  # fmt: skip
    """``[rows]`` int32 codes, the ``[levels]`` labels that occur, sorted, and what tells levels
    apart: the values in their columns.

    Labels are to be read. Those of an interaction are ``"a:b"``, as lme4 writes them; those of
    ``("p", "q:u")`` and ``("p:q", "u")`` are the same. Integers are int64.

    Examples
    --------
    >>> data = pd.DataFrame({"a": [7, 5, 7], "b": ["x", "y", "x"]})
    >>> codes, labels, _ = grouped(data, ["a", "b"])
    >>> codes.tolist(), labels.tolist()
    ([1, 0, 1], ['5:y', '7:x'])
    """
    codes, labels = _encode(data[columns[0]])
    if len(columns) == 1:
        return codes, labels, (labels,)
    parts, table = [labels], np.arange(len(labels))[:, np.newaxis]  # [pairs that occur, parts]
    for column in columns[1:]:
        own, labels = _encode(data[column])
        parts.append(labels)
        pairs = codes.astype(np.int64)
        pairs *= len(labels)
        pairs += own
        codes, occur = _encode(pd.Series(pairs, copy=False))
        table = np.column_stack([table[occur // len(labels)], occur % len(labels)])
    keys = [labels[positions] for labels, positions in zip(parts, table.T, strict=True)]
    joined = np.array([":".join(map(str, row)) for row in zip(*keys, strict=True)], object)
    order = np.argsort(joined, kind="stable")
    place = np.argsort(order).astype(np.int32)
    return place[codes], pd.Index(joined[order]), tuple(key[order] for key in keys)


def match(known: Keys, found: Keys) -> np.ndarray:
    """``[found]``: where each found level stands among the known ones, or -1.

    Values are compared, and not how they are stored or written: 1 is 1.0 and True, and not "1".
    """
    if len(known) == 1 and known[0].dtype == found[0].dtype and known[0].dtype.kind in "iufmM":
        return known[0].get_indexer(found[0])  # of millions in little time
    # Python compares integers with floats exactly.
    levels, of_found = (zip(*(k.tolist() for k in keys), strict=True) for keys in (known, found))
    place = {level: at for at, level in enumerate(levels)}
    return np.array([place.get(level, -1) for level in of_found], int)


def kind_of(values: pd.Index) -> str:
    """What sort of values there are: those of different sorts are never equal.

    >>> kind_of(pd.Index([1, 2])), kind_of(pd.Index([0.5])), kind_of(pd.Index(["1"]))
    ('numbers', 'numbers', 'text')
    """
    found = str(values.inferred_type)
    if found in ("integer", "floating", "mixed-integer-float", "boolean", "decimal"):
        return "numbers"
    if found in ("string", "empty"):
        return "text"
    return "dates" if found.startswith("date") else found.removesuffix("64")


def from_text(labels: pd.Index, columns: Sequence[str]) -> Keys:
    """Keys from labels alone, which older files have; see `plain`.

    Raises
    ------
    ValueError
        If it cannot be told from a label which value belongs to which column.
    """
    if len(columns) == 1:
        return (labels,)
    parts = [str(label).split(":") for label in labels]
    odd = [":".join(part) for part in parts if len(part) != len(columns)]
    if odd:
        raise ValueError(
            f"group {':'.join(columns)!r}: expected levels that can be told apart in a file of "
            f"format 2, which has their labels only, got {odd[:3]} with more ':' than columns; fit "
            "again, and save"
        )
    return tuple(plain(pd.Index(values, dtype=object)) for values in zip(*parts, strict=True))


def plain(values: pd.Index) -> pd.Index:
    """Values as far as their text tells: "1" and 1.0 are 1, "01" is text."""
    return pd.Index([_plain(str(value)) for value in values.tolist()], dtype=object)


def _plain(text: str) -> Any:
    for number in (int, float):
        try:
            if str(number(text)) == text:
                return number(text)
        except ValueError:
            pass
    return text


def _encode(column: pd.Series) -> tuple[np.ndarray, pd.Index]:
    """`grouped` for one column."""
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "iu":
        values = column.to_numpy()
        low, high = int(values.min()), int(values.max())
        # No more values between them than rows: it takes no hash table.
        if high - low < max(len(values), 1000) and high <= np.iinfo(np.int64).max:
            codes, occurs = _without_gaps(values, low, high - low + 1)
            return codes, pd.Index(np.flatnonzero(occurs) + low)
    if isinstance(column.dtype, pd.CategoricalDtype):
        known = column.array.categories
        codes, occurs = _without_gaps(column.array.codes, 0, len(known))
        unsorted = known[occurs]
    else:
        own, unsorted = pd.factorize(column)
        codes = own.astype(np.int32)
        del own
    # A pass through NumPy, so that labels do not depend on how pandas stores them.
    order, labels = pd.factorize(pd.Index(np.asarray(unsorted)), sort=True)
    if labels.dtype.kind in "iu" and labels[-1] <= np.iinfo(np.int64).max:
        labels = labels.astype(np.int64)
    return order.astype(np.int32)[codes], labels


def _without_gaps(values: np.ndarray, low: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes of integers that are among ``size`` from ``low`` on, and which of these occur."""
    occurs = np.zeros(size, bool)
    for piece in pieces(len(values)):
        occurs[values[piece].astype(np.int64) - low] = True
    table = np.cumsum(occurs, dtype=np.int32) - np.int32(1)
    codes = np.empty(len(values), np.int32)
    for piece in pieces(len(values)):
        codes[piece] = table[values[piece].astype(np.int64) - low]
    return codes, occurs
