"""Copies of a design, by `copy` and `pickle`, which other processes get.

Chapter 08. A pickle holds the rows too. It is for the same versions on the other side, and reading
one runs what is in it: what is kept, or comes from others, should be a file of `saving`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Copied:
    """A dataclass that is copied as it is in memory.

    Where the rows of an array are one, seen from every row (`numpy.broadcast_to`), a plain copy
    would fill the memory with them.
    """

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: OneRow(x[:1].copy(), x.shape) if _is_one_row(x) else x
            for name, x in vars(self).items()
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, x in state.items():
            vars(self)[name] = np.broadcast_to(*x) if isinstance(x, OneRow) else x  # past `frozen`


class OneRow(NamedTuple):
    """An array of a ``shape`` ``[rows, ...]`` whose rows are one."""

    row: np.ndarray
    shape: tuple[int, ...]


def _is_one_row(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.size > 0 and value.strides[:1] == (0,)
