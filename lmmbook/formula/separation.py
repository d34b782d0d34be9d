"""Separation: covariates that tell the responses apart without an error.

Chapters 06 and 09. Where all rows with z = 1 say no, the likelihood rises for ever as z's
coefficient falls: there is no maximum. In general that is so if there is a direction of the fixed
effects along which no row's likelihood falls and some row's rises (Albert & Anderson 1984), a
direction of recession. Whether there is one is a question to a linear programme. It asks a few
rows, and then again together with those that its answer would be wrong about, until there are none:
so it has looked at all.
"""

from __future__ import annotations

from typing import NamedTuple

from lmmbook.families.cumulative import Cumulative
from lmmbook.formula.design import Design

import numpy as np
from scipy import optimize

FIRST_ROWS = 200_000  # of more, so many are looked at first
ROWS_AT_ONCE = 2000  # rows are asked, and added
ROUNDING = 1e-6  # of a predictor, where the largest coefficient is one
RISES = 1e-4  # the same: a row's likelihood rises
ROUNDS = 100


class Constraints(NamedTuple):
    """Those of a direction of recession v, one or two for each row of the data.

    ``rows @ v >= 0``, and where ``equality`` [constraints] is True ``rows @ v == 0``. ``rows`` is
    ``[constraints, columns]``, and ``names`` are the columns'; an empty one is an intercept or a
    threshold.
    """

    rows: np.ndarray
    equality: np.ndarray
    names: tuple[str, ...]


def separating(design: Design) -> list[str]:
    """Names of the fixed columns that separate the responses; none if there is a maximum, or if it
    is not known of the family (`Family.recession`)."""
    if design.rows > FIRST_ROWS:
        some = np.random.default_rng(0).permutation(design.rows)[:FIRST_ROWS]
        constraints = _constraints(design, some)
        # What separates all rows separates these, or does nothing in them.
        if constraints is None:
            return []
        gram = constraints.rows.T @ constraints.rows
        if _direction(constraints) is None and np.linalg.matrix_rank(gram, hermitian=True) == len(
            gram
        ):
            return []
    constraints = _constraints(design, slice(None))
    direction = None if constraints is None else _direction(constraints)
    if constraints is None or direction is None:
        return []
    # The fewest that still do it: one after the other is left out, the least moved first.
    named = np.array([bool(name) for name in constraints.names])
    free = ~named | (np.abs(direction) > ROUNDING)
    for column in np.argsort(np.abs(direction)):
        without = free & (np.arange(len(free)) != column)
        if named[column] and free[column] and _direction(constraints, without) is not None:
            free = without
    return [n for n, f in zip(constraints.names, free, strict=True) if n and f] or ["Intercept"]


def _constraints(design: Design, some: np.ndarray | slice) -> Constraints | None:
    """Of some rows. Columns are centred if there is an intercept, and of length one: that gives the
    directions other coefficients, but the same predictors."""
    names = list(design.fixed_names)
    x, response = design.fixed[some], design.response[some]
    if "Intercept" in names:
        place = names.index("Intercept")
        x = x - x.mean(0)
        x[:, place], names[place] = 1.0, ""
    x = x / np.sqrt(np.maximum((x**2).mean(0), np.finfo(float).tiny))
    if isinstance(design.family, Cumulative):
        return _of_ordered(response.astype(int), x, names)
    recession = design.family.recession(response)
    if recession is None:
        return None
    return Constraints(
        x * np.where(recession == 0, 1.0, recession)[:, np.newaxis], recession == 0, tuple(names)
    )


def _of_ordered(response: np.ndarray, x: np.ndarray, names: list[str]) -> Constraints:
    """A row wants the threshold above it up, the one below it down, less its predictor."""
    x, names = x[:, [bool(n) for n in names]], [n for n in names if n]
    thresholds = np.eye(response.max() + 1)[:, :-1]  # [categories, thresholds]
    below, above = response > 0, response < response.max()
    up = np.hstack([thresholds[response[above]], -x[above]])
    down = np.hstack([-thresholds[response[below] - 1], x[below]])
    rows = np.vstack([up, down])
    return Constraints(rows, np.zeros(len(rows), bool), (*[""] * thresholds.shape[1], *names))


def _direction(constraints: Constraints, free: np.ndarray | None = None) -> np.ndarray | None:
    """``[columns]``, its largest entry one, or None: there is no such direction. Only ``free``
    [columns] may move, if that is given."""
    most = np.ones(constraints.rows.shape[1]) if free is None else free.astype(float)
    rows, equality = constraints.rows, constraints.equality
    wanted = rows[~equality].sum(0)
    asked = np.random.default_rng(0).permutation(len(rows))[:ROWS_AT_ONCE]
    for _ in range(ROUNDS):
        found = _ask(rows[asked], equality[asked], wanted, most)
        if found is None:
            return None
        moved = rows @ found
        against = np.where(equality, -np.abs(moved), moved)
        if against.min() >= -ROUNDING:
            return found if against.max() > RISES else None
        worst = np.argsort(against)[:ROWS_AT_ONCE]
        asked = np.union1d(asked, worst[against[worst] < -ROUNDING])
    return None


def _ask(
    rows: np.ndarray, equality: np.ndarray, wanted: np.ndarray, most: np.ndarray
) -> np.ndarray | None:
    """The direction in a box with the largest ``wanted @ v``, of those that these rows allow."""
    free, tied = rows[~equality], rows[equality]
    found = optimize.linprog(
        -wanted, -free, np.zeros(len(free)), tied, np.zeros(len(tied)),
        np.column_stack([-most, most]), method="highs",
    )  # fmt: skip
    if found.status != 0 or np.abs(found.x).max() < 0.5:  # if there is one, it reaches the box
        return None
    return found.x / np.abs(found.x).max()
