"""Thresholds as the engine counts them: one, the anchor, from which gaps lead to all others.

Chapter 06. The linear predictor is measured from the anchor, so minus the anchor is its intercept,
and the logarithms of the gaps are free to be any numbers.

The anchor has about half of the responses below it. Were it at the end of the scale, the gap next
to it would move nearly all ratings. It would be another name for their level, of which the random
effects hold a share, and most of its information would be missing (`louis`).
"""

from __future__ import annotations

from lmmbook.families.derivatives import Rows

import numpy as np
import tensorflow as tf


def anchor_of(codes: np.ndarray) -> int:
    """Which threshold is the anchor, counted from 0; of responses 0, 1, ..."""
    return int(np.abs(shares_below(codes) - 0.5).argmin())


def shares_below(codes: np.ndarray) -> np.ndarray:
    """Of responses 0, 1, ..., the share below each threshold."""
    return np.cumsum(np.bincount(codes.astype(int))[:-1]) / len(codes)


def from_anchor(gaps: tf.Tensor | np.ndarray, anchor: int) -> tf.Tensor:
    """Thresholds ``[..., gaps + 1]`` less the anchor, from the logarithms of their gaps."""
    steps = tf.cumsum(tf.exp(gaps), axis=-1)
    from_first = tf.pad(steps, [*[[0, 0]] * (steps.shape.rank - 1), [1, 0]])
    return from_first - from_first[..., anchor, tf.newaxis]


def moves(gaps: tf.Tensor, anchor: int) -> tf.Tensor:
    """Derivatives of `from_anchor` in the logarithms of the gaps, ``[gaps + 1, gaps]``.

    The gap j, between thresholds j and j + 1, moves those above it up; if it lies below the anchor,
    the others down."""
    above = np.tri(gaps.shape[0] + 1, gaps.shape[0], -1)
    return tf.constant(above - above[anchor], gaps.dtype) * tf.exp(gaps)


def derivatives(rows: Rows, predictor: tf.Tensor) -> Rows:
    """Of each row's log mass in its predictor, its upper threshold a, and its lower b.

    ``rows`` are as from `cumulative.Cumulative.rows`. The first derivatives; and ``curve_a``,
    ``curve_b``, ``curve_ab``, of which the second ones are made: in a ``-curve_a - curve_ab``, in b
    ``-curve_b - curve_ab``, in both ``curve_ab``.
    """
    _, upper, lower, width = rows
    half_a, half_b = (tf.tanh(0.5 * (x - predictor)) for x in (upper, lower))
    by_a, by_b = 0.5 - 0.5 * half_a + width, -0.5 - 0.5 * half_b - width
    curve_a, curve_b = (0.25 - 0.25 * tf.square(half) for half in (half_a, half_b))
    curve_ab = width * (1.0 + width) * tf.ones_like(predictor)  # minus the derivative of width
    return 0.5 * (half_a + half_b), by_a, by_b, curve_a, curve_b, curve_ab
