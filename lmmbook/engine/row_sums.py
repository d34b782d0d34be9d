"""Sums over rows, and over a factor's levels: all that the M-step and the certificate need of them.

Chapters 04 and 08. There may be a hundred million numbers to add, so every sum is in double
precision. The functions are called by way of a `placement.Placement`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from lmmbook.engine.arrays import Arrays, FactorArrays, Layout, State, standardise
from lmmbook.families.derivatives import (
    RegressionSums,
    no_sums,
    total,
    zeros,
)

import numpy as np
import tensorflow as tf

BLOCK = 2**20  # rows x chains: 4 MB in each of the arrays that belong to a block


class ResidualSums(NamedTuple):
    """Of the residuals of Gaussian ratings, averaged over chains: their products with the
    fixed-effect columns ``[fixed]``, and their square; summed over rows, float64."""

    products: tf.Tensor
    square: tf.Tensor


class LevelSums(NamedTuple):
    """Sums over a factor's levels, float64, with x a level's standardised effects: their number;
    x x' ``[chains, columns, columns]``; weights' x ``[chains, expanded, columns]``; and weights'
    weights ``[expanded, expanded]``."""

    levels: tf.Tensor
    second: tf.Tensor
    weighted: tf.Tensor
    gram: tf.Tensor


def regression_sums(
    layout: Layout, arrays: Arrays, state: State
) -> tuple[None, ResidualSums | RegressionSums]:
    """What the M-step of fixed effects and auxiliary parameters needs of the rows."""
    if not layout.gaussian:
        family, own = layout.family, state.parameters.auxiliary
        return None, in_blocks(
            arrays, state, no_sums(layout.chains, layout.fixed, family.auxiliary),
            lambda a, rows, at, counted: family.summed(rows, at, own, a.fixed, counted),
        )  # fmt: skip
    residual = (
        arrays.response[:, tf.newaxis] - state.predictor
    )  # small numbers keep float32's digits
    mean = tf.reduce_mean(residual, axis=1)
    products = [total(column * mean) for column in tf.unstack(arrays.fixed, axis=1)]
    by_column = tf.stack(products) if products else zeros(0)
    return None, ResidualSums(by_column, total(tf.square(residual)) / layout.chains)


def level_sums(arrays: FactorArrays, scale: tf.Tensor, u: tf.Tensor) -> tuple[None, LevelSums]:
    """What the M-step and the certificate need of effects ``u`` ``[levels, chains, columns]``."""
    standard = tf.cast(standardise(scale, u), tf.float64)
    weights = tf.cast(arrays.weights, tf.float64)
    return None, LevelSums(
        tf.constant(u.shape[0], tf.float64),
        tf.einsum("lci,lcj->cij", standard, standard),
        tf.einsum("lf,lcj->cfj", weights, standard),
        tf.matmul(weights, weights, transpose_a=True),
    )


def in_blocks(
    arrays: Arrays,
    state: State,
    zeros: Any,
    function: Callable[[Arrays, tuple[tf.Tensor, ...], tf.Tensor, tf.Tensor], Any],
) -> Any:
    """``function(arrays, rows, predictor, counted)``, a nest of sums like ``zeros``, over blocks of
    rows.

    Derivatives of all rows in all parameters, at once, would be the largest thing in memory by far.
    The last block begins early, to be as long as the others; rows that it has in common with the
    one before are not ``counted`` [rows] again.
    """
    rows, predictor = state.rows, state.predictor
    count, chains = predictor.shape
    size = max(1, BLOCK // chains)
    if count <= size:
        return function(arrays, rows, predictor, tf.constant(np.ones(count, np.float32)))

    def of_block(i: tf.Tensor) -> Any:
        start = tf.minimum(i * size, count - size)

        def cut(x: tf.Tensor) -> tf.Tensor:
            each = x.shape[0] // count  # numbers a row: one, or one a chain
            begin = tf.concat([[start * each], tf.zeros([x.shape.rank - 1], tf.int32)], axis=0)
            return tf.slice(x, begin, [size * each, *x.shape[1:]])

        factors = [
            factor_arrays._replace(
                codes=cut(factor_arrays.codes),
                z=None if factor_arrays.z is None else cut(factor_arrays.z),
            )
            for factor_arrays in arrays.factors
        ]
        block = arrays._replace(fixed=cut(arrays.fixed), factors=factors)
        counted = tf.cast(start + tf.range(size) >= i * size, tf.float32)
        return function(block, tuple(cut(r) for r in rows), cut(predictor), counted)

    def body(i: tf.Tensor, sums: Any) -> tuple[tf.Tensor, Any]:
        return i + 1, tf.nest.map_structure(tf.add, sums, of_block(i))

    blocks = -(-count // size)
    return tf.while_loop(lambda i, _: i < blocks, body, (tf.constant(0), zeros))[1]


def join(first: tf.Tensor, across: tf.Tensor, last: tf.Tensor) -> tf.Tensor:
    """A symmetric matrix from its blocks."""
    top = tf.concat([first, across], axis=1)
    return tf.concat([top, tf.concat([tf.transpose(across), last], axis=1)], axis=0)
