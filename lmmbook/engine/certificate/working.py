"""What `laplace` and `precision` need of the rows: sums over them for the levels of each factor.

Chapter 04. With W the rows' weights, the negative second derivatives of their log density by the
linear predictor. Standardised effects x, with ``u = L x``, are ``[levels, n, columns]`` a factor:
n right-hand sides of a linear system.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from lmmbook.engine.arrays import Arrays, Layout, Parameters, State
from lmmbook.engine.certificate.parametrisation import begins, coarse_factors, shaped
from lmmbook.engine.certificate.pieces import Effects
from lmmbook.engine.linear_predictor import linear_predictor, sum_by_level, to_levels, to_rows
from lmmbook.engine.row_sums import in_blocks
from lmmbook.families.derivatives import Rows, derivatives_at

import numpy as np
import tensorflow as tf


class Working(NamedTuple):
    """At a linear predictor: weights W ``[rows, 1]``, slopes g ``[rows, 1]``, and how the
    auxiliary parameters change these, ``[rows, auxiliary]``."""

    weight: tf.Tensor
    slope: tf.Tensor
    by_auxiliary: tf.Tensor


def working(
    layout: Layout, arrays: Arrays, parameters: Parameters, x: Effects
) -> tuple[Working, None]:
    """At standardised effects ``[levels, 1, columns]``."""
    effects = [tf.einsum("ij,lcj->lci", s, v) for s, v in zip(parameters.scales, x, strict=True)]
    predictor = linear_predictor(arrays, parameters, effects)
    rows = (
        (arrays.response[:, tf.newaxis],)
        if layout.gaussian
        else layout.family.rows(arrays.response, parameters.auxiliary)
    )
    first, second = derivatives_at(layout.family, rows, predictor, parameters.auxiliary)
    across = tf.concat([*second[0][1:], predictor[:, :0]], axis=1)
    return Working(tf.maximum(-second[0][0], 0.0), first[0], across), None


def pulled(
    layout: Layout, shared: int | None, arrays: Arrays, scales: list[tf.Tensor], values: tf.Tensor
) -> tuple[tf.Tensor, dict[int, tf.Tensor]]:
    """L'Z' values, ``[levels, n, columns]`` a factor, of ``[rows, n]``."""
    found = {
        k: tf.einsum("ji,lnj->lni", scales[k], to_levels(factor, values))
        for k, factor in enumerate(arrays.factors)
    }
    return (None if shared is None else found.pop(shared)), found


def weighted(
    layout: Layout, shared: int | None, some: tuple[int, ...],
    arrays: Arrays, scales: list[tf.Tensor], weight: tf.Tensor, x: Effects,
) -> tuple[tf.Tensor, dict[int, tf.Tensor]]:  # fmt: skip
    """L'Z'WZL x, of ``some`` factors' x only; for all factors."""
    moves = {k: tf.einsum("ij,lnj->lni", scales[k], x[k]) for k in some}

    def of_block(block: Arrays, given: Rows) -> tf.Tensor:
        return given[0] * tf.add_n([to_rows(block.factors[k], moves[k]) for k in some])

    return _by_block(shared, arrays, scales, (weight,), x[some[0]].shape[1], of_block)


def _by_block(
    shared: int | None,
    arrays: Arrays,
    scales: list[tf.Tensor],
    given: Rows,
    n: int,
    function: Callable[..., tf.Tensor],
) -> tuple[tf.Tensor, dict[int, tf.Tensor]]:
    """L'Z' of what a function of rows gives, ``[rows, n]``, some rows at a time: of all of them it
    would be the largest thing in memory."""
    state = State(Parameters((), [], ()), [], rows=given, predictor=given[0][:, :1])

    def of_block(block: Arrays, given: Rows, at: tf.Tensor, counted: tf.Tensor) -> list[tf.Tensor]:
        values = function(block, given) * counted[:, tf.newaxis]
        return [to_levels(factor, values) for factor in block.factors]

    nothing = [tf.zeros([f.cross.shape[0], n, f.cross.shape[1]]) for f in arrays.factors]
    sums = in_blocks(arrays, state, nothing, of_block)
    found = {k: tf.einsum("ji,lnj->lni", scales[k], own) for k, own in enumerate(sums)}
    return (None if shared is None else found.pop(shared)), found


def blocks(
    layout: Layout, shared: int | None, arrays: Arrays, scales: list[tf.Tensor], weight: tf.Tensor
) -> tuple[tf.Tensor, dict[int, tf.Tensor]]:
    """L'Z'WZL of each level, ``[levels, columns, columns]`` a factor."""
    found = {}
    for k, factor in enumerate(arrays.factors):
        products = weight[:, :, tf.newaxis]
        if factor.z is not None:
            products = products * factor.z[:, :, tf.newaxis] * factor.z[:, tf.newaxis, :]
        of_levels = sum_by_level(products, factor.codes, factor.cross.shape[0])
        found[k] = tf.einsum("ji,ljk,km->lim", scales[k], of_levels, scales[k])
    return (None if shared is None else found.pop(shared)), found


def mean_squares(
    layout: Layout, shared: int | None, arrays: Arrays, scales: list[tf.Tensor]
) -> tuple[tf.Tensor, dict[int, tf.Tensor]]:
    """L'Z'ZL of each level, for one of its rows, ``[levels, columns, columns]`` a factor."""
    ones = tf.ones_like(arrays.fixed[:, :1])
    stay, found = blocks(layout, shared, arrays, scales, ones)
    for k, factor in enumerate(arrays.factors):
        rows = tf.maximum(sum_by_level(ones, factor.codes, factor.cross.shape[0]), 1.0)
        if k == shared:
            stay /= rows[:, :, tf.newaxis]
        else:
            found[k] /= rows[:, :, tf.newaxis]
    return stay, found


def solved_for(layout: Layout) -> int:
    """For how many parameters a linear system says where effects go: the fixed effects, and the
    auxiliary ones, but for the residual sd, which has a flow of its own."""
    return layout.fixed + (0 if layout.gaussian else layout.family.auxiliary)


def right_sides(
    layout: Layout, shared: int | None, arrays: Arrays, scales: list[tf.Tensor], working: Working
) -> tuple[tf.Tensor, dict[int, tf.Tensor]]:
    """L'Z' of W times what each coarse effect adds to the predictor, and times the fixed effects'
    columns; and of what auxiliary parameters take from the slopes."""
    size, moves = begins(layout)[-1], {}
    for k, begin in zip(coarse_factors(layout), begins(layout), strict=False):
        columns = layout.factors[k].columns
        one = np.eye(size, dtype=np.float32)[begin : begin + layout.factors[k].levels * columns]
        moves[k] = tf.einsum("ij,lnj->lni", scales[k], shaped(tf.constant(one), columns))

    def of_block(block: Arrays, given: Rows) -> tf.Tensor:
        weight, by_auxiliary = given
        columns = [to_rows(block.factors[k], move) for k, move in moves.items()]
        coarse = [tf.add_n(columns)] if columns else []
        found = [weight * tf.concat([*coarse, block.fixed], axis=1)]
        if not layout.gaussian:
            found.append(-by_auxiliary)
        return tf.concat(found, axis=1)

    n = size + solved_for(layout)
    given = working.weight, working.by_auxiliary
    return _by_block(shared, arrays, scales, given, n, of_block)
