"""Group moves: exact draws along the directions that ratings cannot see; `directions` finds them.

Chapter 03.
"""

from __future__ import annotations

from lmmbook._tensorflow.randomness import normal
from lmmbook.engine.arrays import Arrays, Layout, Parameters, inverse
from lmmbook.engine.placement import SINGLE_DEVICE, Placement

import tensorflow as tf


def is_parent(layout: Layout, k: int) -> bool:
    """Whether each column of factor k has another factor nested in it, level by level."""
    levels, columns = layout.factors[k].levels, layout.factors[k].columns
    nested = {outer for _, outer, groups in layout.group_moves if groups == levels > 1}
    return all((k, column) in nested for column in range(columns))


def group_move(
    layout: Layout,
    arrays: Arrays,
    parameters: Parameters,
    t: int,
    effects: list[tf.Tensor],
    seed: tf.Tensor,
    placement: Placement = SINGLE_DEVICE,
) -> list[tf.Tensor]:
    """Group move t (Liu & Sabatti 2000): add d to one factor's effects, take it from another's.

    No linear predictor changes, so the ratings have no say: given everything else, the density of d
    is proportional to ``p(u_outer + d) p(u_inner - w d)``, by the priors alone, for any likelihood.
    (A shift has a Jacobian of one.) With S_jj an entry of a factor's prior precision, S_j its row,
    and s_l how far an effect moves with d, that is ``d ~ Normal(pull / precision, 1 / precision)``,
    ``precision = sum s_l^2 S_jj`` and ``pull = -sum s_l S_j u_l``, summed over both factors' levels
    in the group. We draw it exactly, one d a group and chain.
    """
    inner, outer, groups = layout.group_moves[t]
    effects, precision, pull = list(effects), 0.0, 0.0
    sides = list(zip((inner, outer), arrays.group_moves[t], strict=True))
    for (k, column), moves in sides:
        row = inverse(parameters.scales[k])[column]  # of the prior's precision
        _, found = placement.levels(k, _sums, (groups,), *moves, effects[k], row)
        precision += row[column] * found[0]
        pull -= found[1]
    noise = normal([groups, layout.chains], seed=seed)
    d = pull / precision + tf.math.rsqrt(precision) * noise  # [groups, chains]
    for (k, column), moves in sides:
        effects[k], _ = placement.levels(k, _moved, (column,), *moves, effects[k], d)
    return effects


def _sums(
    groups: int, group: tf.Tensor, slopes: tf.Tensor, u: tf.Tensor, row: tf.Tensor
) -> tuple[None, tuple[tf.Tensor, tf.Tensor]]:
    """What one factor's prior says of d: its precision over ``row[column]``, ``[groups, 1]``, and
    its pull back ``[groups, chains]``. ``slopes`` [levels] is how an effect moves with d."""
    against = tf.linalg.matvec(u, row)  # [levels, chains]
    slopes = slopes[:, tf.newaxis]
    squares = tf.math.unsorted_segment_sum(tf.square(slopes), group, groups)
    return None, (squares, tf.math.unsorted_segment_sum(slopes * against, group, groups))


def _moved(
    column: int, group: tf.Tensor, slopes: tf.Tensor, u: tf.Tensor, d: tf.Tensor
) -> tuple[tf.Tensor, None]:
    """The factor's effects after d: placed into one column of zeros, and added."""
    by = slopes[:, tf.newaxis] * tf.gather(d, group)  # [levels, chains]
    return u + by[..., tf.newaxis] * tf.one_hot(column, u.shape[2]), None
