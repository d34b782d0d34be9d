"""Columns that follow from others: refused by name, or left out where a cell is empty.

Chapter 01. If no row has both ``a = c`` and ``b = w``, then ``a*b`` has a column more than the data
can tell apart. As lme4 does, the last one is left out, with a warning, and nothing is said of new
rows in that cell. Other columns that follow from each other are a mistake.
"""

from __future__ import annotations

import warnings
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from lmmbook.formula.terms import Terms

import numpy as np
import pandas as pd
from scipy.linalg import solve_triangular

DEPENDENT = 1e-12  # eigenvalue of columns of length one, less their means; not told from rounding
ALIKE = 1e-5  # the same, of blocks of effects that are independent: those cannot be centred
FOLLOWS = 1e-9  # squared length, of one, that other columns leave of one that follows from them
COLLINEAR = 0.9  # cosine of a covariate with the intercept (0.9: a mean of two sds), or others
NOISE = 1e-13  # a covariate that varies by less of its mean varies by rounding
NONZERO = 1e-6  # share of a combination of columns that is zero in training rows, in a new row


class LeftOut(NamedTuple):
    """Which columns of the fixed effects are kept, and what nothing can be said of.

    Attributes
    ----------
    kept
        Positions of the columns that have a coefficient.
    unknown
        ``[columns, left out]``: combinations of all columns that are zero in the training rows.
    of
        The columns of the data that make up the cells.
    """

    kept: tuple[int, ...]
    unknown: np.ndarray
    of: tuple[str, ...]

    def of_new(self, columns: np.ndarray, data: pd.DataFrame) -> np.ndarray:
        """The columns kept; raises if a new row lies in a cell that training rows left empty."""
        size = np.abs(columns) @ np.abs(self.unknown)
        odd = (np.abs(columns @ self.unknown) > NONZERO * size).any(axis=1)
        if odd.any():
            cells = data.loc[odd, list(self.of)].astype(str).drop_duplicates()
            raise ValueError(
                f"columns {list(self.of)}: expected combinations that the training data have, got "
                f"{list(cells.itertuples(index=False, name=None))[:3]}; the fit has no coefficient "
                "for them"
            )
        return columns[:, list(self.kept)]


def left_out(
    columns: np.ndarray, names: Sequence[str], common: Terms, origin: np.ndarray | None
) -> LeftOut | None:
    """What cannot be told apart because a cell is empty, with a warning; None if that is nothing.

    ``columns`` are ``[rows, columns]``, without offsets; ``origin`` is as `origin_of` says.
    """
    cells = [cell for cell, apart in zip(common.cells, common.is_offset, strict=True) if not apart]
    if not any(cells):
        return None
    centred = columns if origin is None else columns - origin
    gram, length = correlations(products(centred))
    first = sorted(range(len(names)), key=lambda j: cells[j] is not None)
    kept: list[int] = []
    root = np.zeros_like(gram)  # of the correlations of the columns that are kept
    unknown, gone = [], []
    for j in first:
        k = len(kept)
        across = solve_triangular(root[:k, :k], gram[kept, j], lower=True) if k else np.zeros(0)
        residual = gram[j, j] - across @ across
        if residual > FOLLOWS:
            root[k, :k], root[k, k] = across, np.sqrt(residual)
            kept.append(j)
        elif cells[j] is None:
            return None  # a mistake, which `check_independent` finds
        else:
            weights = solve_triangular(root[:k, :k], across, lower=True, trans=1)
            weights[np.abs(weights) < np.sqrt(FOLLOWS)] = 0.0  # rounding
            direction = np.zeros(len(names))
            direction[kept], direction[j] = -weights / length[kept] * length[j], 1.0
            if origin is not None:
                direction[list(names).index("Intercept")] -= direction @ origin
            unknown.append(direction)
            gone.append(j)
    if not gone:
        return None
    of_gone = [cell for j, cell in enumerate(cells) if cell and j in gone]
    empty = list(dict.fromkeys(text for cell in of_gone for text in cell.empty))
    warnings.warn(
        f"fixed effects: left out {', '.join(names[j] for j in gone)}, which the other columns "
        f"give, for no row has {', or '.join(empty[:3])}{', ...' if len(empty) > 3 else ''}",
        stacklevel=4,
    )
    of = dict.fromkeys(column for cell in of_gone for column in cell.columns)
    return LeftOut(tuple(sorted(kept)), np.column_stack(unknown), tuple(of))


def check_independent(
    what: str, columns: np.ndarray, names: Sequence[str], least: float = DEPENDENT
) -> None:
    """Refuse ``[rows, columns]`` that are linearly dependent, or next to it, and name the fewest
    that are so among themselves."""
    gram, _ = correlations(products(columns))
    zero = [name for j, name in enumerate(names) if gram[j, j] == 0]
    if zero:
        raise ValueError(
            f"{what}: expected linearly independent columns, got {zero}, zero in every row; leave "
            "it out"
        )
    smallest = np.linalg.eigvalsh(gram)[0]
    if smallest < least:
        involved = [names[j] for j in _involved(gram, least)]
        raise ValueError(
            f"{what}: expected linearly independent columns, got {involved}, which are "
            f"dependent or nearly so (smallest eigenvalue {max(smallest, 0.0):.1e}, expected at "
            f"least {least:g}); leave one out, or centre covariates that lie far from zero"
        )


def products(columns: np.ndarray) -> np.ndarray:
    """X'X / rows, without a copy of the columns; of one row where all are one."""
    rows = columns[:1] if columns.strides[0] == 0 else columns
    return rows.T @ rows / len(rows)


def correlations(found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`products` of columns of length one, and their lengths; 1 for one of zeros."""
    length = np.sqrt(np.where(np.diag(found) > 0, np.diag(found), 1.0))
    return found / np.outer(length, length), length


def _involved(gram: np.ndarray, least: float) -> list[int]:
    """Columns that are dependent among themselves, and without any one of them are not."""

    def dependent(some: list[int]) -> bool:
        return bool(np.linalg.eigvalsh(gram[np.ix_(some, some)])[0] < least)

    found: list[int] = []
    rest = list(range(len(gram)))
    while not found or not dependent(found):
        # One more column can only lower the smallest eigenvalue: so we may search by halves.
        needed = (
            bisect_left(range(1, len(rest)), True, key=lambda m: dependent(found + rest[:m])) + 1
        )
        found.append(rest[needed - 1])
        rest = rest[: needed - 1]
    return sorted(found)


def origin_of(columns: np.ndarray, names: Sequence[str]) -> np.ndarray | None:
    """Means ``[columns]`` of covariates that are far from zero, such as years; zero for others.

    None where there is nothing to take away, or no intercept to take it up.
    """
    if "Intercept" not in names or len(names) == 1:
        return None
    gram = products(columns)
    means = gram[list(names).index("Intercept")]
    far = np.abs(means) > COLLINEAR * np.sqrt(np.diag(gram))
    varies = [np.ptp(c) > NOISE * abs(mean) for c, mean in zip(columns.T, means, strict=True)]
    origin = np.where(far & varies, means, 0.0)
    return origin if origin.any() else None
