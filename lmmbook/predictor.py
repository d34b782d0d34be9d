"""The linear predictor of every row and chain, and what the ratings say about it.

Chapters 03 and 06. What `levels`, `m_step` and `complete_data` need of a likelihood, for arrays on
the device.
"""

from __future__ import annotations

from lmmbook.arrays import Arrays, Layout, Parameters, to_rows
from lmmbook.families import Gaussian
from lmmbook.likelihood import Derivatives

import tensorflow as tf


def linear_predictor(
    arrays: Arrays, parameters: Parameters, effects: list[tf.Tensor]
) -> tf.Tensor:  # fmt: skip
    """``[rows, chains]``: offset, fixed effects and random effects."""
    fixed = arrays.offset + tf.linalg.matvec(arrays.fixed, parameters.beta)
    terms = [to_rows(a, u) for a, u in zip(arrays.factors, effects, strict=True)]
    return fixed[:, tf.newaxis] + tf.add_n(terms)


def rows_of(layout: Layout, arrays: Arrays, parameters: Parameters) -> tuple[tf.Tensor, ...]:
    """What each row's density needs besides its predictor, ``[rows * chains]``; see `Family.rows`.

    Not ``[rows, chains]``: XLA makes one loop an axis, and the inner one, over a few chains, would
    be too short for the processor's vector instructions. That costs a factor of five.
    """
    repeated = arrays.repeated
    if repeated is None:
        tiled = tf.tile(arrays.response[:, tf.newaxis], [1, layout.chains])
        repeated = tf.reshape(tiled, [-1])
    return layout.family.rows(repeated, parameters.auxiliary)


def derivatives_of(
    layout: Layout, parameters: Parameters, rows: tuple[tf.Tensor, ...], predictor: tf.Tensor
) -> Derivatives:
    """`Family.derivatives` at a predictor ``[rows, chains]``, and of that shape."""
    flat = layout.family.derivatives(rows, tf.reshape(predictor, [-1]), parameters.auxiliary)
    return tf.nest.map_structure(lambda x: tf.reshape(x, predictor.shape), flat)


def curvatures(
    layout: Layout,
    arrays: Arrays,
    parameters: Parameters,
    rows: tuple[tf.Tensor, ...],
    predictor: tf.Tensor,
) -> list[tf.Tensor]:
    """What a level's rows tell about its effects: ``[levels, columns, columns]`` a factor.

    Z'WZ, with W minus the second derivative of each row's log density in its linear predictor,
    averaged over the chains. For Gaussian ratings W is 1 / variance, whatever the effects. For
    others it depends on where they are; it only shapes HMC's steps, so a guess will do, as long as
    it stays the same while draws are kept.
    """
    if is_gaussian(layout):
        return [has.cross / tf.square(parameters.residual_sd) for has in arrays.factors]
    second = derivatives_of(layout, parameters, rows, predictor).second
    weights = tf.maximum(-tf.reduce_mean(second[0][0], axis=1), 0.0)
    found = []
    for of, has in zip(layout.factors, arrays.factors, strict=True):
        z = tf.ones([layout.rows, 1]) if has.z is None else has.z
        products = weights[:, tf.newaxis, tf.newaxis] * z[:, :, tf.newaxis] * z[:, tf.newaxis, :]
        found.append(tf.math.unsorted_segment_sum(products, has.codes, of.levels))
    return found


def is_gaussian(layout: Layout) -> bool:
    """Whether the short cuts of a Gaussian likelihood hold."""
    return isinstance(layout.family, Gaussian)
