"""The linear predictor of every row and chain, and what the ratings say about it.

Chapters 03, 06 and 08. What `block_hmc`, `closed_form` and the certificate need of a likelihood,
for arrays on the device.

What goes through all rows, or all levels, returns what stays and what is summed: see `placement`.
"""

from __future__ import annotations

from lmmbook.engine.arrays import Arrays, FactorArrays, Layout, Parameters, State
from lmmbook.engine.placement import SINGLE_DEVICE, Placement
from lmmbook.families.derivatives import derivatives_at

import tensorflow as tf

PART_ROWS = 2**16  # that have a running total of their own, at least
# Of a linear predictor; see `changes_and_slopes`. For smaller moves than this the slopes' error,
# a twelfth of the move cubed, is below what single precision leaves of the values' difference.
SMALL_MOVE = 0.01


def linear_predictor(
    arrays: Arrays, parameters: Parameters, effects: list[tf.Tensor]
) -> tf.Tensor:  # fmt: skip
    """``[rows, chains]``: offset, fixed effects and random effects."""
    fixed = arrays.offset + tf.linalg.matvec(arrays.fixed, parameters.beta)
    terms = [to_rows(a, u) for a, u in zip(arrays.factors, effects, strict=True)]
    return fixed[:, tf.newaxis] + tf.add_n(terms)


def rows_of(layout: Layout, arrays: Arrays, parameters: Parameters) -> tuple[tf.Tensor, ...]:
    """What each row's density needs besides its predictor, ``[rows * chains]``; see `Family.rows`.
    For Gaussian ratings, ``[rows, 1]``, that is all.

    Not ``[rows, chains]``: XLA makes one loop an axis, and the inner one, over a few chains, would
    be too short for the processor's vector instructions. That costs a factor of five.
    """
    if arrays.repeated is None:
        return (arrays.response[:, tf.newaxis],)
    return layout.family.rows(arrays.repeated, parameters.auxiliary)


def at(layout: Layout, arrays: Arrays, state: State, placement: Placement = SINGLE_DEVICE) -> State:
    """The state with the ``rows`` and the ``predictor`` that belong to it."""
    rows, predictor = placement.rows(_at, (layout,), arrays, state.parameters, state.effects)[0]
    return state._replace(rows=rows, predictor=predictor)


def _at(
    layout: Layout, arrays: Arrays, parameters: Parameters, effects: list[tf.Tensor]
) -> tuple[tuple[tuple[tf.Tensor, ...], tf.Tensor], None]:
    predictor = linear_predictor(arrays, parameters, effects)
    return (rows_of(layout, arrays, parameters), predictor), None


def shifted(
    layout: Layout, arrays: Arrays, predictor: tf.Tensor, parameters: Parameters, change: tf.Tensor
) -> tuple[tuple[tuple[tf.Tensor, ...], tf.Tensor], None]:
    """Rows and predictor at new ``parameters``, after a change ``[fixed]`` of the fixed effects."""
    by = tf.linalg.matvec(arrays.fixed, change)[:, tf.newaxis]
    return (rows_of(layout, arrays, parameters), predictor + by), None


def moved(
    k: int, arrays: Arrays, predictor: tf.Tensor, change: tf.Tensor
) -> tuple[tf.Tensor, None]:
    """The predictor after a change ``[levels, chains, columns]`` of factor k's effects."""
    return predictor + to_rows(arrays.factors[k], change), None


def residuals_by_level(k: int, arrays: Arrays, predictor: tf.Tensor) -> tuple[None, tf.Tensor]:
    """Z' times the residuals, ratings less predictor, ``[levels, chains, columns]``."""
    residual = arrays.response[:, tf.newaxis] - predictor
    return None, to_levels(arrays.factors[k], residual)


def value_and_slopes(
    layout: Layout, k: int, arrays: Arrays, state: State
) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Log density of each row and its slope, ``[rows, chains]``, and the sums of the slopes in
    factor k's effects ``[levels, chains, columns]``."""
    value, slope = _value_and_slope(layout, state, state.predictor)
    return [value, slope], to_levels(arrays.factors[k], slope)


def changes_and_slopes(
    layout: Layout,
    k: int,
    arrays: Arrays,
    state: State,
    before: list[tf.Tensor],
    change: tf.Tensor,
) -> tuple[None, tuple[tf.Tensor, tf.Tensor]]:
    """What a change of factor k's effects adds to each level's log density ``[levels, chains]``,
    and the slopes there, as from `value_and_slopes`, whose values and slopes ``before`` this needs.

    Row by row, and then added up. The other way round, two large totals would be subtracted: for a
    level with a million rows they differ by about one, and are not known that well. In a row of a
    level with so many, the predictor moves by so little that even the row's two values are too
    coarse; there the mean of the two slopes, times the move, is the better difference.
    """
    factor_arrays = arrays.factors[k]
    move = to_rows(factor_arrays, change)
    value, slope = _value_and_slope(layout, state, state.predictor + move)
    by_slopes = 0.5 * move * (slope + before[1])
    added = tf.where(tf.abs(move) < SMALL_MOVE, by_slopes, value - before[0])
    sums = sum_by_level(added, factor_arrays.codes, factor_arrays.cross.shape[0])
    return None, (sums, to_levels(factor_arrays, slope))


def _value_and_slope(layout: Layout, state: State, predictor: tf.Tensor) -> list[tf.Tensor]:
    flat = layout.family.value_and_slope(
        state.rows, tf.reshape(predictor, [-1]), state.parameters.auxiliary
    )
    return [tf.reshape(x, predictor.shape) for x in flat]


def curvatures(
    layout: Layout, arrays: Arrays, state: State, placement: Placement = SINGLE_DEVICE
) -> list[tf.Tensor]:
    """The information of a level's rows on its effects: ``[levels, columns, columns]`` a factor.

    Z'WZ, with W minus the second derivative of each row's log density in its linear predictor,
    averaged over the chains. For Gaussian ratings W is 1 / variance, whatever the effects, and
    there is nothing to keep (`curvature_of`). For others it depends on where they are; it only
    shapes HMC's steps, so a guess will do, as long as it stays the same while draws are kept.
    """
    stay, found = placement.rows(_curvatures, (layout, placement.shared), arrays, state)
    return [stay if k == placement.shared else found[k] for k in range(len(arrays.factors))]


def curvature_of(layout: Layout, k: int, arrays: Arrays, state: State) -> tf.Tensor:
    """Of factor k, as `curvatures` defines it and as ``state`` has it."""
    if layout.gaussian:
        return arrays.factors[k].cross / tf.square(state.parameters.residual_sd)
    return state.curvature[k]


def _curvatures(
    layout: Layout, shared: int | None, arrays: Arrays, state: State
) -> tuple[tf.Tensor, dict[int, tf.Tensor]]:
    second = derivatives_at(
        layout.family, state.rows, state.predictor, state.parameters.auxiliary
    ).second
    weights = tf.maximum(-tf.reduce_mean(second[0][0], axis=1), 0.0)
    found = {}
    for k, factor_arrays in enumerate(arrays.factors):
        products = weights[:, tf.newaxis, tf.newaxis]
        if factor_arrays.z is not None:
            products = (
                products * factor_arrays.z[:, :, tf.newaxis] * factor_arrays.z[:, tf.newaxis, :]
            )
        found[k] = sum_by_level(products, factor_arrays.codes, factor_arrays.cross.shape[0])
    return (None if shared is None else found.pop(shared)), found


def to_rows(arrays: FactorArrays, effects: tf.Tensor) -> tf.Tensor:
    """What a factor adds to the linear predictor: ``[rows, chains]`` from its effects."""
    gathered = tf.gather(effects, arrays.codes)  # [rows, chains, columns]
    if arrays.z is None:
        return gathered[..., 0]
    return tf.reduce_sum(gathered * arrays.z[:, tf.newaxis, :], axis=-1)


def to_levels(arrays: FactorArrays, values: tf.Tensor) -> tf.Tensor:
    """The transpose: sums over each level's rows, ``[levels, chains, columns]``."""
    values = values[..., tf.newaxis]
    if arrays.z is not None:
        values = values * arrays.z[:, tf.newaxis, :]
    return sum_by_level(values, arrays.codes, arrays.cross.shape[0])


def sum_by_level(values: tf.Tensor, codes: tf.Tensor, levels: int) -> tf.Tensor:
    """``[levels, ...]`` from ``[rows, ...]``.

    TensorFlow keeps a running total for each level, and in single precision that forgets what is
    small beside it: over five million rows, enough to matter. So where levels are few we keep
    several, one for each part of the rows, and add those up in double precision.
    """
    rows = values.shape[0]
    # Totals are no more than an eighth of the rows.
    parts = max(1, min(rows // PART_ROWS, rows // (8 * levels)))
    if parts == 1:
        return tf.math.unsorted_segment_sum(values, codes, levels)
    part = tf.range(rows) // -(-rows // parts)
    totals = tf.math.unsorted_segment_sum(values, codes + levels * part, levels * parts)
    totals = tf.reshape(tf.cast(totals, tf.float64), [parts, levels, *values.shape[1:]])
    return tf.cast(tf.reduce_sum(totals, axis=0), values.dtype)
