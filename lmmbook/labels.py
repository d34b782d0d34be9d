"""From the labels of rows to integer codes.

Chapters 01 and 08. The codes come from pandas, or from a table where the labels are integers that
lie close together. Labels themselves are looked at once a level, and not once a row.
"""

from __future__ import annotations

from collections.abc import Sequence

from lmmbook.frames import pieces

import numpy as np
import pandas as pd


def encode(data: pd.DataFrame, columns: Sequence[str]) -> tuple[np.ndarray, pd.Index]:
    """``[rows]`` int32 codes, and the ``[levels]`` labels that occur, sorted.

    Labels of an interaction are ``"a:b"``, as lme4 writes them; integers are int64.

    Raises
    ------
    ValueError
        If labels with ":" in them run together.

    Examples
    --------
    >>> codes, labels = encode(pd.DataFrame({"a": [7, 5, 7], "b": ["x", "y", "x"]}), ["a", "b"])
    >>> codes.tolist(), labels.tolist()
    ([1, 0, 1], ['5:y', '7:x'])
    """
    codes, labels = _encode(data[columns[0]])
    if len(columns) == 1:
        return codes, labels
    parts, table = [labels], np.arange(len(labels))[:, np.newaxis]  # [pairs that occur, parts]
    for column in columns[1:]:
        own, labels = _encode(data[column])
        parts.append(labels)
        pairs = codes.astype(np.int64)
        pairs *= len(labels)
        pairs += own
        codes, occur = _encode(pd.Series(pairs, copy=False))
        table = np.column_stack([table[occur // len(labels)], occur % len(labels)])
    plain = [labels[positions] for labels, positions in zip(parts, table.T, strict=True)]
    joined = pd.Index([":".join(map(str, row)) for row in zip(*plain, strict=True)])
    order, labels = pd.factorize(joined, sort=True)
    if len(labels) < len(joined):
        raise ValueError(
            f"group {':'.join(columns)!r}: expected labels that stay apart when joined by ':', "
            "got labels with ':' in them that do not; rename them"
        )
    return order.astype(np.int32)[codes], labels


def _encode(column: pd.Series) -> tuple[np.ndarray, pd.Index]:
    """`encode` for one column."""
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "iu":
        found = _encode_close(column.to_numpy())
        if found is not None:
            return found
    if isinstance(column.dtype, pd.CategoricalDtype):
        own, known = column.array.codes, column.array.categories
        occurs = np.zeros(len(known), bool)
        occurs[own] = True
        codes = (np.cumsum(occurs, dtype=np.int32) - np.int32(1))[own]
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


def _encode_close(values: np.ndarray) -> tuple[np.ndarray, pd.Index] | None:
    """`_encode` for integers with no more values between them than rows: without a hash table."""
    low, high = int(values.min()), int(values.max())
    if high - low >= max(len(values), 1000) or high > np.iinfo(np.int64).max:
        return None
    occurs = np.zeros(high - low + 1, bool)
    for piece in pieces(len(values)):
        occurs[values[piece].astype(np.int64) - low] = True
    table = np.cumsum(occurs, dtype=np.int32) - np.int32(1)
    codes = np.empty(len(values), np.int32)
    for piece in pieces(len(values)):
        codes[piece] = table[values[piece].astype(np.int64) - low]
    return codes, pd.Index(np.flatnonzero(occurs) + low)
