"""The linear predictor of every row and chain, and what the ratings say about it.

Chapters 03, 06 and 08. What `block_hmc`, `closed_form` and `louis` need of a likelihood, for arrays
on the device.

There may be millions of rows, on several devices. So whatever goes through all rows, or all
levels, is a function that returns two things: what *stays* where they are, and *sums*, which are
small. It is called by way of a `Placement`, which adds up the sums of all devices. Here is that of
a single device, `SINGLE_DEVICE`, with nothing to add; `data_parallel` and `chain_parallel` have
others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lmmbook.engine.arrays import Arrays, Layout, Parameters, sum_by_level, to_levels, to_rows
from lmmbook.families.derivatives import derivatives_at
from lmmbook.families.gaussian import Gaussian

import tensorflow as tf

# Of a linear predictor; see `changes_and_slopes`. For smaller moves than this the slopes' error,
# a twelfth of the move cubed, is below what single precision leaves of the values' difference.
SMALL_MOVE = 0.01


class Placement:
    """The placement of rows and levels: all of them on one device.

    `rows` and `levels` call ``function(*static, *tensors)``, which returns what stays and what is
    summed.

    Attributes
    ----------
    shared
        The factor whose levels are shared out, as their rows are; None if there is none.
    worker
        Which of several processes this is.
    """

    shared: int | None = None
    worker: int = 0

    def rows(self, function: Callable, static: tuple, *tensors: Any) -> tuple[Any, Any]:
        """Go through all rows."""
        return function(*static, *tensors)

    def levels(self, k: int, function: Callable, static: tuple, *tensors: Any) -> tuple[Any, Any]:
        """Go through all levels of factor k."""
        return function(*static, *tensors)

    def together(self, effects: list[Any]) -> list[tf.Tensor]:
        """Effects ``[levels, chains, columns]`` a factor, with those of all devices."""
        return effects

    def parts(self, value: Any) -> list[tf.Tensor]:
        """A value as plain tensors, one a device of this process."""
        return [value]

    def whole(self, parts: list[Any]) -> Any:
        """The inverse of `parts`."""
        return parts[0]

    def smallest(self, number: int) -> int:
        """Of the numbers that all processes give."""
        return number


SINGLE_DEVICE = Placement()


def either(flag: tf.Tensor | bool, yes: Callable, no: Callable) -> Any:
    """``yes()`` or ``no()``; decided at once if ``flag`` is a Python bool, else when it runs."""
    if isinstance(flag, bool):
        return yes() if flag else no()
    return tf.cond(flag, yes, no)


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


def shifted(
    arrays: Arrays, predictor: tf.Tensor, change: tf.Tensor
) -> tuple[tf.Tensor, None]:  # fmt: skip
    """The predictor after a change ``[fixed]`` of the fixed effects."""
    return predictor + tf.linalg.matvec(arrays.fixed, change)[:, tf.newaxis], None


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
    layout: Layout,
    k: int,
    arrays: Arrays,
    parameters: Parameters,
    rows: tuple[tf.Tensor, ...],
    predictor: tf.Tensor,
) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Log density of each row and its slope, ``[rows, chains]``, and the sums of the slopes in
    factor k's effects ``[levels, chains, columns]``."""
    value, slope = _value_and_slope(layout, parameters, rows, predictor)
    return [value, slope], to_levels(arrays.factors[k], slope)


def changes_and_slopes(
    layout: Layout,
    k: int,
    arrays: Arrays,
    parameters: Parameters,
    rows: tuple[tf.Tensor, ...],
    predictor: tf.Tensor,
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
    value, slope = _value_and_slope(layout, parameters, rows, predictor + move)
    by_slopes = 0.5 * move * (slope + before[1])
    added = tf.where(tf.abs(move) < SMALL_MOVE, by_slopes, value - before[0])
    sums = sum_by_level(added, factor_arrays.codes, factor_arrays.cross.shape[0])
    return None, (sums, to_levels(factor_arrays, slope))


def _value_and_slope(
    layout: Layout, parameters: Parameters, rows: tuple[tf.Tensor, ...], predictor: tf.Tensor
) -> list[tf.Tensor]:
    flat = layout.family.value_and_slope(
        rows, tf.reshape(predictor, [-1]), parameters.auxiliary
    )  # fmt: skip
    return [tf.reshape(x, predictor.shape) for x in flat]


def curvatures(
    layout: Layout,
    arrays: Arrays,
    parameters: Parameters,
    rows: tuple[tf.Tensor, ...],
    predictor: tf.Tensor,
    placement: Placement = SINGLE_DEVICE,
) -> list[tf.Tensor]:
    """The information of a level's rows on its effects: ``[levels, columns, columns]`` a factor.

    Z'WZ, with W minus the second derivative of each row's log density in its linear predictor,
    averaged over the chains. For Gaussian ratings W is 1 / variance, whatever the effects. For
    others it depends on where they are; it only shapes HMC's steps, so a guess will do, as long as
    it stays the same while draws are kept.
    """
    static: tuple = (layout, placement.shared)
    if is_gaussian(layout):
        return [
            placement.levels(k, _known_curvature, (), factor_arrays.cross, parameters)[0]
            for k, factor_arrays in enumerate(arrays.factors)
        ]
    stay, found = placement.rows(_curvatures, static, arrays, parameters, rows, predictor)
    return [stay if k == placement.shared else found[k] for k in range(len(arrays.factors))]


def _known_curvature(cross: tf.Tensor, parameters: Parameters) -> tuple[tf.Tensor, None]:
    return cross / tf.square(parameters.residual_sd), None


def _curvatures(
    layout: Layout,
    shared: int | None,
    arrays: Arrays,
    parameters: Parameters,
    rows: tuple[tf.Tensor, ...],
    predictor: tf.Tensor,
) -> tuple[tf.Tensor, dict[int, tf.Tensor]]:
    second = derivatives_at(layout.family, rows, predictor, parameters.auxiliary).second
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


def is_gaussian(layout: Layout) -> bool:
    """Whether the short cuts of a Gaussian likelihood hold."""
    return isinstance(layout.family, Gaussian)
