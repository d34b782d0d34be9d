"""Derivatives of a likelihood, row by row and summed over rows.

Chapters 04 and 06. The M-step and the certificate need the sums.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf

Rows: TypeAlias = tuple[tf.Tensor, ...]  # what `Family.rows` gives: a number a row in each


class Derivatives(NamedTuple):
    """Of a row's log density in its linear predictor and the auxiliary parameters, in that order.

    Each is of the predictor's shape: ``first`` a list, ``second[i][j]`` symmetric.
    """

    first: list[tf.Tensor]
    second: list[list[tf.Tensor]]


class RegressionSums(NamedTuple):
    """As in a regression without random effects: sums over rows, float64, of derivatives in fixed
    effects and auxiliary parameters.

    ``gradient`` [chains, fixed + auxiliary]; and the information, averaged over the chains, in
    blocks by the parameters that they join: ``beta_beta`` [fixed, fixed], ``beta_auxiliary``
    [fixed, auxiliary], and ``auxiliary_auxiliary`` [auxiliary, auxiliary].
    """

    gradient: tf.Tensor
    beta_beta: tf.Tensor
    beta_auxiliary: tf.Tensor
    auxiliary_auxiliary: tf.Tensor


def zeros(*shape: int) -> tf.Tensor:
    """float64, as a constant of its own.

    `tf.zeros` in a branch is folded into one by TensorFlow, under a name that differs from process
    to process; a program would not be found again in XLA's cache on disk.
    """
    return tf.constant(np.zeros(shape))


def no_sums(chains: int, fixed: int, auxiliary: int) -> RegressionSums:
    """Zeros, to begin a sum with."""
    return RegressionSums(
        zeros(chains, fixed + auxiliary),
        zeros(fixed, fixed),
        zeros(fixed, auxiliary),
        zeros(auxiliary, auxiliary),
    )


def derivatives_at(
    family: Any, rows: Rows, predictor: tf.Tensor, auxiliary: tf.Tensor
) -> Derivatives:
    """`Family.derivatives` at a predictor ``[rows, chains]``, and of that shape."""
    if rows[0].shape.rank == 2:  # Gaussian ratings, [rows, 1]
        return family.derivatives(rows, predictor, auxiliary)
    flat = family.derivatives(rows, tf.reshape(predictor, [-1]), auxiliary)
    return tf.nest.map_structure(lambda x: tf.reshape(x, predictor.shape), flat)


def summed(derivatives: Derivatives, fixed: tf.Tensor, counted: tf.Tensor) -> RegressionSums:
    """Sums over rows; ``fixed`` is ``[rows, fixed]``, ``counted`` [rows] 1 where a row counts."""
    first, second = tf.nest.map_structure(lambda x: x * counted[:, tf.newaxis], derivatives)
    columns, auxiliary, chains = tf.unstack(fixed, axis=1), len(first) - 1, first[0].shape[1]
    gradient = [products(fixed, first[0]), *(total(f, 0)[tf.newaxis] for f in first[1:])]
    weights = [-tf.reduce_mean(h, axis=1) for h in second[0]]  # each [rows]
    beta_auxiliary = [[total(a * w) for w in weights[1:]] for a in columns]
    auxiliary_auxiliary = [[-total(h) / chains for h in row[1:]] for row in second[1:]]
    return RegressionSums(
        tf.transpose(tf.concat(gradient, axis=0)),
        tf.stack([[total(a * b * weights[0]) for b in columns] for a in columns]),
        matrix(beta_auxiliary, len(columns), auxiliary),
        matrix(auxiliary_auxiliary, auxiliary, auxiliary),
    )


def total(values: tf.Tensor, axis: int | None = None) -> tf.Tensor:
    """A sum over rows or levels, float64.

    In single precision a running total of millions of terms can stop growing: 16,777,216 plus one
    is 16,777,216. XLA converts each number as it is added, and stores none of them.
    """
    return tf.reduce_sum(tf.cast(values, tf.float64), axis)


def products(columns: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """X'v, ``[columns, chains]`` float64, of ``[rows, columns]`` and ``[rows, chains]``: one matrix
    product, which takes a third of the time of a `total` for each column."""
    return tf.matmul(tf.cast(columns, tf.float64), tf.cast(values, tf.float64), transpose_a=True)


def matrix(entries: list[list[tf.Tensor]], rows: int, columns: int) -> tf.Tensor:
    """``[rows, columns]`` float64, which may be empty."""
    return tf.stack(entries) if rows and columns else zeros(rows, columns)
