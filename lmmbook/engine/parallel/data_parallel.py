"""Data parallel: one fit on several devices, which share out the rows by the largest factor.

Chapter 08. A student's ratings say all that they say about that student on one device, if they lie
there together. So the largest factor's effects live with their rows, and are updated without asking
anybody. The other factors are small: all devices have copies of their effects, and each says what
its own rows say about them. Added up (`tf.distribute`'s all-reduce), that is what all rows say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lmmbook.engine.arrays import Arrays, Layout
from lmmbook.engine.parallel.collectives import Devices

import numpy as np
import tensorflow as tf


class DataParallel(Devices):
    """Rows on all devices of a strategy, the levels of factor ``shared`` with them."""

    def __init__(self, strategy: tf.distribute.Strategy, shared: int) -> None:
        super().__init__(strategy)
        self.shared = shared

    def rows(self, function: Callable, static: tuple, *tensors: Any) -> tuple[Any, Any]:
        """On each device; sums are of all of them."""
        return self.on_each(function, static, *tensors)

    def levels(self, k: int, function: Callable, static: tuple, *tensors: Any) -> tuple[Any, Any]:
        """Those of the shared factor are where their rows are; the others are here."""
        if k == self.shared:
            return self.on_each(function, static, *tensors)
        return function(*static, *tensors)

    def together(self, effects: list[Any]) -> list[tf.Tensor]:
        """The shared ones are sent to all."""
        return [self.gathered(u, axis=0) if k == self.shared else u for k, u in enumerate(effects)]


def share_out(
    strategy: tf.distribute.Strategy, layout: Layout, whole: Arrays
) -> tuple[DataParallel, Arrays]:
    """The rows shared out, about as many to each device: their arrays hold one value a device
    wherever they hold rows, or levels of the shared factor.

    Raises
    ------
    ValueError
        If there are more devices than levels.
    """
    shared = int(np.argmax([factor.levels for factor in layout.factors]))
    devices, levels = strategy.num_replicas_in_sync, layout.factors[shared].levels
    if devices > levels:
        raise ValueError(
            f"strategy: expected at most as many devices as the largest factor has levels, "
            f"{levels}, got {devices}"
        )
    codes = whole.factors[shared].codes.numpy()
    wanted = codes[np.arange(1, devices) * layout.rows // devices]
    # Of levels, each gets one at least.
    cuts = np.clip(wanted, np.arange(1, devices), levels - np.arange(devices - 1, 0, -1))
    cuts = [0, *np.maximum.accumulate(cuts), levels]
    placement = DataParallel.of(strategy, shared)

    def replica(device: int, _: int) -> Arrays:
        of_levels = cuts[device : device + 2]
        of_rows = slice(*np.searchsorted(codes, of_levels))
        return _of_replica(layout, whole, shared, device, slice(*of_levels), of_rows)

    arrays = placement.placed(replica)
    # What is not shared out is here once, and not once a device.
    factors, group_moves = [], []
    for k, (factor_arrays, factor) in enumerate(zip(arrays.factors, whole.factors, strict=True)):
        once = {"units": factor.units}
        if k != shared:
            once |= {"cross": factor.cross, "weights": factor.weights}
        factors.append(factor_arrays._replace(**once))
    for t, (inner, outer, _) in enumerate(layout.group_moves):
        sides = zip((inner, outer), arrays.group_moves[t], whole.group_moves[t], strict=True)
        group_moves.append(tuple(own if k == shared else all_ for (k, _), own, all_ in sides))
    return placement, arrays._replace(gram=whole.gram, factors=factors, group_moves=group_moves)


def _of_replica(
    layout: Layout, whole: Arrays, shared: int, replica: int, levels: slice, rows: slice
) -> Arrays:
    """The arrays of one device: some rows, and the levels of the shared factor that they are of."""
    factors = []
    for k, factor_arrays in enumerate(whole.factors):
        factor_arrays = factor_arrays._replace(
            codes=factor_arrays.codes[rows],
            z=None if factor_arrays.z is None else factor_arrays.z[rows],
        )
        if k == shared:
            codes = factor_arrays.codes - levels.start
            own = {"cross": factor_arrays.cross[levels], "weights": factor_arrays.weights[levels]}
            factor_arrays = factor_arrays._replace(codes=codes, **own)
        factors.append(factor_arrays)
    group_moves = [
        tuple(
            tuple(x[levels] for x in moves) if k == shared else moves
            for (k, _), moves in zip((inner, outer), whole.group_moves[t], strict=True)
        )
        for t, (inner, outer, _) in enumerate(layout.group_moves)
    ]
    repeated, chains = whole.repeated, layout.chains
    if repeated is not None:
        repeated = repeated[rows.start * chains : rows.stop * chains]
    return Arrays(
        whole.response[rows],
        repeated,
        whole.offset if len(whole.offset) == 1 else whole.offset[rows],
        whole.fixed[rows],
        whole.gram,
        factors,
        group_moves,
        tf.constant(replica),
    )


def without_rows(whole: Arrays) -> Arrays:
    """What is left of arrays when their rows are elsewhere."""
    return whole._replace(
        response=None,
        repeated=None,
        offset=None,
        fixed=None,
        factors=[factor_arrays._replace(codes=None, z=None) for factor_arrays in whole.factors],
    )
