"""Sums over rows: all that the M-step and the certificate need of them.

Chapters 04 and 08. There may be a hundred million numbers to add, so every sum is in double
precision. The functions are called by way of a `predictor.Where`.
"""

from __future__ import annotations

from typing import NamedTuple

from lmmbook.arrays import Arrays, Layout, Parameters, to_rows
from lmmbook.likelihood import Derivatives
from lmmbook.predictor import derivatives_of, is_gaussian

import tensorflow as tf


def total(values: tf.Tensor, axis: int | None = None) -> tf.Tensor:
    """A sum over rows or levels, float64.

    In single precision a running total of millions of terms can stop growing: 16,777,216 plus one
    is 16,777,216. XLA converts each number as it is added, and stores none of them.
    """
    return tf.reduce_sum(tf.cast(values, tf.float64), axis)


class LeftOver(NamedTuple):
    """Of what the predictor leaves of Gaussian ratings, averaged over chains: its products with the
    fixed-effect columns ``[fixed]``, and its square; summed over rows, float64."""

    products: tf.Tensor
    square: tf.Tensor


def regression_sums(
    layout: Layout,
    arrays: Arrays,
    parameters: Parameters,
    rows: tuple[tf.Tensor, ...],
    predictor: tf.Tensor,
) -> tuple[None, LeftOver | ByRegression]:
    """What the M-step of fixed effects and auxiliary parameters needs of the rows."""
    if not is_gaussian(layout):
        derivatives = derivatives_of(layout, parameters, rows, predictor)
        return None, by_regression(arrays, derivatives)
    left = arrays.response[:, tf.newaxis] - predictor  # small numbers keep float32's digits
    mean = tf.reduce_mean(left, axis=1)
    products = [total(column * mean) for column in tf.unstack(arrays.fixed, axis=1)]
    return None, LeftOver(tf.stack(products), total(tf.square(left)) / layout.chains)


class ByRegression(NamedTuple):
    """As in a regression without random effects: sums over rows, float64, of derivatives in fixed
    effects and auxiliary parameters.

    ``gradient`` [chains, fixed + auxiliary]; information, averaged over the chains, of the fixed
    effects ``own`` [fixed, fixed], between them and the auxiliary ``beside`` [fixed, auxiliary],
    and of those ``last`` [auxiliary, auxiliary].
    """

    gradient: tf.Tensor
    own: tf.Tensor
    beside: tf.Tensor
    last: tf.Tensor


class ByStretch(NamedTuple):
    """The same through the scale of standardised effects, u = (I + S) scale v: ``gradient``
    [chains, stretches], and information with the fixed effects ``mixed`` [fixed, stretches],
    ``among`` themselves, and with the auxiliary parameters ``aside`` [stretches, auxiliary]."""

    gradient: tf.Tensor
    mixed: tf.Tensor
    among: tf.Tensor
    aside: tf.Tensor


def likelihood_sums(
    layout: Layout,
    arrays: Arrays,
    parameters: Parameters,
    effects: list[tf.Tensor],
    rows: tuple[tf.Tensor, ...],
    predictor: tf.Tensor,
    stretches: list[tf.Tensor],
    standardised: list[tf.Tensor],
) -> tuple[None, tuple[ByRegression, ByStretch]]:
    """What the certificate needs of the rows.

    ``stretches`` [entries, columns, columns] and ``standardised``, a scalar, 1 where the stretches
    are asked for, are one a factor; see `complete_data`.
    """
    derivatives = derivatives_of(layout, parameters, rows, predictor)
    stretched = sum(s.shape[0] for s in stretches)
    # Few fits have a factor standardised, and its derivatives cost more than all the rest.
    stretch = tf.cond(
        tf.add_n(standardised) > 0,
        lambda: _by_stretch(arrays, effects, derivatives, stretches, standardised),
        lambda: ByStretch(
            tf.zeros([layout.chains, stretched], tf.float64),
            tf.zeros([layout.fixed, stretched], tf.float64),
            tf.zeros([stretched, stretched], tf.float64),
            tf.zeros([stretched, layout.family.auxiliary], tf.float64),
        ),
    )
    return None, (by_regression(arrays, derivatives), stretch)


def by_regression(arrays: Arrays, derivatives: Derivatives) -> ByRegression:
    """From the derivatives of each row, ``[rows, chains]``."""
    first, second = derivatives
    columns, auxiliary = tf.unstack(arrays.fixed, axis=1), len(first) - 1
    gradient = [total(column[:, tf.newaxis] * first[0], 0) for column in columns]
    gradient += [total(f, 0) for f in first[1:]]
    weights = [-tf.reduce_mean(h, axis=1) for h in second[0]]  # each [rows]
    own = [[total(a * b * weights[0]) for b in columns] for a in columns]
    beside = [[total(a * w) for w in weights[1:]] for a in columns]
    last = [[-total(h) / first[0].shape[1] for h in row[1:]] for row in second[1:]]
    return ByRegression(
        tf.stack(gradient, axis=1),
        tf.stack(own),
        _matrix(beside, len(columns), auxiliary),
        _matrix(last, auxiliary, auxiliary),
    )


def _matrix(entries: list[list[tf.Tensor]], rows: int, columns: int) -> tf.Tensor:
    """``[rows, columns]`` float64, which may be empty."""
    return tf.stack(entries) if rows and columns else tf.zeros([rows, columns], tf.float64)


def _by_stretch(
    arrays: Arrays,
    effects: list[tf.Tensor],
    derivatives: Derivatives,
    stretches: list[tf.Tensor],
    standardised: list[tf.Tensor],
) -> ByStretch:
    moves = [  # the linear predictor's derivatives, each [rows, chains]
        asked * to_rows(has, tf.einsum("ij,lcj->lci", stretch, u))
        for has, u, of_factor, asked in zip(
            arrays.factors, effects, stretches, standardised, strict=True
        )
        for stretch in tf.unstack(of_factor)
    ]
    first, second = derivatives
    columns = tf.unstack(arrays.fixed, axis=1)
    weighted = [-move * second[0][0] for move in moves]
    chains = first[0].shape[1]
    aside = [[-total(move * h) for h in second[0][1:]] for move in moves]
    return ByStretch(
        tf.stack([total(move * first[0], 0) for move in moves], axis=1),
        tf.stack([[total(c[:, tf.newaxis] * w) for w in weighted] for c in columns]) / chains,
        tf.stack([[total(move * w) for w in weighted] for move in moves]) / chains,
        _matrix(aside, len(moves), len(first) - 1) / chains,
    )
