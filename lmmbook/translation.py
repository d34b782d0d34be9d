"""Exact draws along the directions that ratings cannot see; `directions` finds them.

Chapter 03.
"""

from __future__ import annotations

from lmmbook.arrays import Arrays, Layout, Parameters, inverse
from lmmbook.randomness import GENERATOR

import tensorflow as tf


def is_parent(layout: Layout, k: int) -> bool:
    """Whether each column of factor k has another factor nested in it, level by level."""
    levels, columns = layout.factors[k].levels, layout.factors[k].columns
    nested = {outer for _, outer, groups in layout.translations if groups == levels > 1}
    return all((k, column) in nested for column in range(columns))


def translate(
    layout: Layout,
    arrays: Arrays,
    parameters: Parameters,
    t: int,
    effects: list[tf.Tensor],
    seed: tf.Tensor,
) -> list[tf.Tensor]:
    """Draw along translation t: add d to one factor's effects, take it from another's.

    No linear predictor changes, so the ratings have no say: given everything else, d is normal, by
    the priors alone, for any likelihood. We draw it exactly, one d a group and chain.
    """
    (inner, a), (outer, b), groups = layout.translations[t]
    groups_inner, groups_outer, weights = arrays.translations[t]
    slopes_inner = -weights[:, tf.newaxis]  # how an inner effect moves with d
    slopes_outer = tf.ones([layout.factors[outer].levels, 1])
    precision, pull = 0.0, 0.0
    for k, column, of, slopes in (
        (inner, a, groups_inner, slopes_inner),
        (outer, b, groups_outer, slopes_outer),
    ):
        row = inverse(parameters.scales[k])[column]  # of the prior's precision
        against = tf.linalg.matvec(effects[k], row)  # [levels, chains]
        precision += row[column] * tf.math.unsorted_segment_sum(tf.square(slopes), of, groups)
        pull -= tf.math.unsorted_segment_sum(slopes * against, of, groups)
    noise = tf.random.stateless_normal([groups, layout.chains], seed, alg=GENERATOR)
    d = pull / precision + tf.math.rsqrt(precision) * noise  # [groups, chains]
    effects = list(effects)
    effects[inner] += _in_column(slopes_inner * tf.gather(d, groups_inner), a, effects[inner])
    effects[outer] += _in_column(tf.gather(d, groups_outer), b, effects[outer])
    return effects


def _in_column(values: tf.Tensor, column: int, like: tf.Tensor) -> tf.Tensor:
    """``[levels, chains]`` placed into one column of zeros like ``[levels, chains, columns]``."""
    return values[..., tf.newaxis] * tf.one_hot(column, like.shape[2])
