"""Sums over a factor's levels: all that the M-step and the certificate need of its effects.

Chapter 04.
"""

from __future__ import annotations

from typing import NamedTuple

from lmmbook.engine.arrays import FactorArrays, standardise

import tensorflow as tf


class LevelSums(NamedTuple):
    """Sums over a factor's levels, float64, with x a level's standardised effects: their number;
    x x' ``[chains, columns, columns]``; weights' x ``[chains, expanded, columns]``; and weights'
    weights ``[expanded, expanded]``."""

    levels: tf.Tensor
    second: tf.Tensor
    weighted: tf.Tensor
    gram: tf.Tensor


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
