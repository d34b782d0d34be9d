"""The M-step of one factor: its covariance, and the mean that its effects may have.

Chapter 04. Location expansion (PX-EM: Liu, Rubin & Wu 1998). `closed_form` calls this.
"""

from __future__ import annotations

from lmmbook.engine.arrays import FactorArrays, FactorLayout, one_hot
from lmmbook.engine.row_sums import LevelSums

import numpy as np
import tensorflow as tf

SHRINK = 0.25  # a variance shrinks at most to this fraction of itself in one M-step


def step(
    layout: FactorLayout,
    chains: int,
    scale: tf.Tensor,
    sums: LevelSums,
    gain: tf.Tensor,
    expand: bool,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The new Cholesky factor of the covariance, and the coefficients ``[expanded]`` to fold.

    A factor without blocks has a covariance that is known.
    """
    if not layout.blocks:
        return scale, tf.zeros(len(layout.expanded_fixed))
    coefficients, square = tf.constant(np.zeros(len(layout.expanded_fixed), np.float32)), 0.0
    if expand and layout.expanded_fixed:
        coefficients, square = mean_of(layout, chains, scale, sums)
    relative = tf.cast(tf.reduce_mean(sums.second, axis=0) / sums.levels - square, tf.float32)
    may_covary = layout.tangent_basis.sum(0)  # [columns, columns], ones and zeros
    return _towards(scale, relative * may_covary, gain), gain * coefficients


def mean_of(
    layout: FactorLayout, chains: int, scale: tf.Tensor, sums: LevelSums
) -> tuple[tf.Tensor, tf.Tensor]:
    """The mean that a factor's effects may have: coefficients ``[expanded]``, and an estimate
    ``[columns, columns]`` of what it adds to ``mean(x x')``.

    From the standardised effects x: their columns are independent, so generalised least squares is
    least squares. In double precision, since a covariance that is nearly singular makes the normal
    equations so; these are small.

    The square of a noisy mean is too large by the noise's variance, which would pull small
    standard deviations to zero. The means of the two halves of the chains err independently, so
    their product has the right expectation.
    """
    half = chains // 2
    # [2, expanded, columns], of each half of the chains
    halves = tf.stack(
        [tf.reduce_mean(part, 0) for part in (sums.weighted[:half], sums.weighted[half:])]
    )
    place = tf.cast(
        one_hot(layout.expanded_columns, layout.columns), tf.float64
    )  # [expanded, columns]
    pulled = tf.transpose(
        tf.linalg.triangular_solve(tf.cast(scale, tf.float64), tf.transpose(place))
    )
    normal = sums.gram * tf.matmul(pulled, pulled, transpose_b=True)
    solved = tf.linalg.solve(normal, tf.transpose(tf.reduce_sum(halves * pulled, 2)))
    # The mean of x in level l is weights[l] @ (pulled * solved), for each half of the chains.
    first, second = (pulled * solved[:, i, tf.newaxis] for i in (0, 1))
    product = (
        tf.matmul(first, halves[1], transpose_a=True)
        + tf.matmul(second, halves[0], transpose_a=True)
        - tf.matmul(first, tf.matmul(sums.gram, second), transpose_a=True)
    )
    share = half / chains
    coefficients = share * solved[:, 0] + (1 - share) * solved[:, 1]
    return tf.cast(coefficients, tf.float32), (product + tf.transpose(product)) / 2 / sums.levels


def without_mean(
    layout: FactorLayout, arrays: FactorArrays, u: tf.Tensor, coefficients: tf.Tensor
) -> tuple[tf.Tensor, None]:
    """Effects ``[levels, chains, columns]`` less the mean that is folded away."""
    mean = tf.matmul(
        arrays.weights * coefficients, one_hot(layout.expanded_columns, layout.columns)
    )
    return u - mean[:, tf.newaxis, :], None


def _towards(scale: tf.Tensor, relative: tf.Tensor, gain: tf.Tensor) -> tf.Tensor:
    """Move the *covariance* the fraction ``gain`` of the way: it, not its root, is an average.

    ``relative`` is where to, in coordinates where the present covariance is the identity. From few
    levels and chains its estimate can come out near zero, or not positive definite, by accident,
    and EM climbs back slowly from there. So in no direction does it shrink to less than `SHRINK` of
    what it was.
    """
    if scale.shape[0] == 1:
        return scale * tf.sqrt(1.0 + gain * (tf.maximum(relative, SHRINK) - 1.0))
    values, vectors = tf.linalg.eigh((relative + tf.transpose(relative)) / 2)
    moved = 1.0 + gain * (tf.maximum(values, SHRINK) - 1.0)
    root = tf.linalg.cholesky(tf.matmul(vectors * moved, vectors, transpose_b=True))
    return tf.matmul(scale, root)  # a product of lower triangles is one, whatever their condition
