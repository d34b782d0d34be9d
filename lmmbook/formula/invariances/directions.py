"""Directions that the ratings cannot see, found from the data.

Chapters 03 and 04. Add d to a department and take d from all its instructors: no linear predictor
changes, so no rating has an opinion. The E-step draws along such directions exactly
(`group_moves`). Add d to the intercept and take d from all departments: the same, between a fixed
and a random effect. The M-step expands the model along those, and lets effects have a mean
(`expanded`).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, permutations, product
from typing import NamedTuple

from lmmbook._rows import pieces
from lmmbook.formula.dependence import correlations, products
from lmmbook.formula.design import Design
from lmmbook.formula.factors import Factor, parents

import numpy as np

ROUNDING = 1e-12  # of the squares of columns


class GroupMove(NamedTuple):
    """Take ``weights * d[groups_inner]`` from one column of effects, add ``d`` to another.

    For any d that leaves the likelihood as it is: the group of a group move (Liu & Sabatti 2000).

    Attributes
    ----------
    inner, outer
        Positions ``(factor, column)``.
    groups_inner, groups_outer
        ``[inner levels]`` and ``[outer levels]`` int32: which component of d moves a level.
    weights
        ``[inner levels]``; 1 where both columns are intercepts.
    groups
        Number of components of d.
    """

    inner: tuple[int, int]
    outer: tuple[int, int]
    groups_inner: np.ndarray
    groups_outer: np.ndarray
    weights: np.ndarray
    groups: int


class Expanded(NamedTuple):
    """Fixed effects that a factor's effects can take over: ``x_c = w_c[codes] * z_j``.

    With each the model can be expanded (PX-EM: Liu, Rubin & Wu 1998) by a coefficient a of its own:
    ``beta_c + a`` and ``u_j - w_c a`` give the same linear predictor for any a.

    Attributes
    ----------
    fixed
        ``[expanded]``, positions c among the fixed effects.
    columns
        ``[expanded]``, positions j among the factor's columns.
    weights
        ``[levels, expanded]``, the values ``w_c`` of the covariate in each level; 1 for an
        intercept.
    """

    fixed: tuple[int, ...]
    columns: tuple[int, ...]
    weights: np.ndarray


def units(factor: Factor) -> np.ndarray:
    """``[columns, columns]``: a column each, effects that change the ratings by one, root mean
    square, each in another direction than the ones before it in its block.

    In these units it does not matter how the columns of correlated effects are written: a slope on
    a year of birth is one on the age, with another intercept.

    Examples
    --------
    >>> import pandas as pd
    >>> z = np.array([[1.0, 19.0], [1.0, 21.0]])  # one, and a covariate far from zero
    >>> factor = Factor("g", ("g",), pd.Index([0]), np.array([0, 0]), ("Intercept", "x"), z,
    ...                 ((0, 1),))
    >>> units(factor).round(6)  # an intercept; a slope on x - 20
    array([[  1., -20.],
           [  0.,   1.]])
    """
    gram = products(factor.z)
    found = np.eye(len(gram))
    for block in factor.blocks:
        own = np.ix_(block, block)
        alike, size = correlations(gram[own])
        # Columns that are collinear are told apart as far as rounding lets them.
        alike += ROUNDING * np.eye(len(block))
        found[own] = np.linalg.inv(np.linalg.cholesky(alike)).T / size[:, np.newaxis]
    return found


def ratio_within(
    codes: np.ndarray, levels: int, top: np.ndarray, bottom: np.ndarray
) -> np.ndarray | None:
    """``[levels]`` w such that ``top == w[codes] * bottom`` in every row; None if there is none.

    Examples
    --------
    >>> ratio_within(np.array([0, 0, 1]), 2, np.array([2.0, 4.0, 5.0]), np.array([1.0, 2.0, 1.0]))
    array([2., 5.])
    """
    if top.strides == bottom.strides == (0,) and top[0] == bottom[0] == 1.0:  # lone intercepts
        ratio = np.zeros(levels)
        ratio[codes[:1] if codes.strides == (0,) else codes] = 1.0
        return ratio
    largest = max(float(top.max()), -float(top.min()))
    first = next(pieces(len(top)))
    if first.stop < len(top):
        # Of the first rows no other w is closer, in least squares, than the w of all rows. If that
        # is within the tolerance in each row, then so is theirs but for the root of their number.
        _, off = _ratio(codes[first], levels, top[first], bottom[first])
        if off > 2e-9 * largest * np.sqrt(first.stop):
            return None
    ratio, off = _ratio(codes, levels, top, bottom)
    return ratio if off <= 1e-9 * largest else None


def _ratio(
    codes: np.ndarray, levels: int, top: np.ndarray, bottom: np.ndarray
) -> tuple[np.ndarray, float]:
    """The least squares w of `ratio_within`, and how far off it is at most."""
    square, product = np.zeros(levels), np.zeros(levels)
    for piece in pieces(len(top), at_least=levels):
        square += np.bincount(codes[piece], bottom[piece] ** 2, levels)
        product += np.bincount(codes[piece], top[piece] * bottom[piece], levels)
    ratio = product / np.where(square > 0, square, 1.0)
    off = [np.abs(top[p] - ratio[codes[p]] * bottom[p]).max() for p in pieces(len(top))]
    return ratio, float(max(off))


def group_moves(design: Design) -> list[GroupMove]:
    """All group moves: along nestings, and of all levels of one factor against all of another."""
    found = []
    for inner, outer, codes, levels, groups_inner, groups_outer in _groupings(design):
        child, parent = design.factors[inner], design.factors[outer]
        groups = int(groups_outer.max()) + 1
        for a, b in product(range(len(child.effects)), range(len(parent.effects))):
            weights = ratio_within(codes, levels, parent.z[:, b], child.z[:, a])
            if weights is not None:
                weights = np.broadcast_to(weights, child.levels)
                places = (inner, a), (outer, b)
                found.append(GroupMove(*places, groups_inner, groups_outer, weights, groups))
    return found


def _groupings(
    design: Design,
) -> Iterator[tuple[int, int, np.ndarray, int, np.ndarray, np.ndarray]]:
    """Two factors; ``[rows]`` codes within which a ratio of columns has to be constant, and how
    many there are; and the groups of the one's levels, and of the other's."""
    factors = design.factors
    for inner, outer in permutations(range(len(factors)), 2):
        child, parent = factors[inner], factors[outer]
        within = parents(child, parent)
        if within is not None:
            own = np.arange(parent.levels, dtype=np.int32)
            yield inner, outer, child.codes, child.levels, within, own
    for inner, outer in combinations(range(len(factors)), 2):
        # As if both were nested in a single level.
        one, other = (np.zeros(factors[k].levels, np.int32) for k in (inner, outer))
        yield inner, outer, np.broadcast_to(np.int32(0), design.rows), 1, one, other


def expanded(design: Design, factor: Factor) -> Expanded:
    """The fixed effects that are constant within the levels of a factor, up to its columns.

    At most one for every two levels: with as many as levels, no effect would be left random.
    """
    found: list[tuple[int, int, np.ndarray]] = []
    for c, j in product(range(len(design.fixed_names)), range(len(factor.effects))):
        if any(c == known for known, *_ in found) or 2 * (len(found) + 1) > factor.levels:
            continue
        weights = ratio_within(factor.codes, factor.levels, design.fixed[:, c], factor.z[:, j])
        if weights is not None:
            found.append((c, j, weights))
    stacked = np.array([weights for *_, weights in found]).reshape(-1, factor.levels).T
    return Expanded(tuple(c for c, *_ in found), tuple(j for _, j, _ in found), stacked)
