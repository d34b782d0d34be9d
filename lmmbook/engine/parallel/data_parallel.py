"""Data parallel: one fit on several devices, which share out the rows by the largest factor.

Chapter 08. A student's ratings say all that they say about that student on one device, if they lie
there together. So the largest factor's effects live with their rows, and are updated without asking
anybody. The other factors are small: all devices have copies of their effects, and each says what
its own rows say about them. Added up (`tf.distribute`'s all-reduce), that is what all rows say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lmmbook.engine.arrays import Arrays, FactorArrays, Layout
from lmmbook.engine.parallel.collectives import Devices

import numpy as np
import tensorflow as tf

# What a device gets of an array, see `_parts`.
ROWS, CHAINS, LEVELS, WHOLE, OWN = "rows", "rows x chains", "levels", "whole", "its own"


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

    # What is not shared out is here once, and not once a device.
    arrays = tf.nest.map_structure(
        lambda part, own, all_: all_ if part == WHOLE else own,
        _parts(layout, whole, shared), placement.placed(replica), whole,
    )  # fmt: skip
    return placement, arrays


def _parts(layout: Layout, whole: Arrays, shared: int) -> Arrays:
    """Of each array, what a device gets of it: some rows, alone or chain by chain, some levels of
    the shared factor, all of it, or something else than the others."""
    levels = [LEVELS if k == shared else WHOLE for k in range(len(layout.factors))]
    return Arrays(
        ROWS,
        CHAINS,
        WHOLE if len(whole.offset) == 1 else ROWS,
        ROWS,
        WHOLE,
        [FactorArrays(ROWS, ROWS, own, own, WHOLE) for own in levels],
        [
            tuple(2 * (levels[k],) for k, _ in (inner, outer))
            for inner, outer, _ in layout.group_moves
        ],
        OWN,
    )


def _of_replica(
    layout: Layout, whole: Arrays, shared: int, replica: int, levels: slice, rows: slice
) -> Arrays:
    """The arrays of one device: some rows, and the levels of the shared factor that they are of."""
    chains = slice(rows.start * layout.chains, rows.stop * layout.chains)
    cuts = {ROWS: rows, CHAINS: chains, LEVELS: levels}
    own = tf.nest.map_structure(
        lambda part, x: x[cuts[part]] if part in cuts and x is not None else x,
        _parts(layout, whole, shared),
        whole,
    )
    factor = own.factors[shared]
    own.factors[shared] = factor._replace(codes=factor.codes - levels.start)
    return own._replace(replica=tf.constant(replica))


def without_rows(layout: Layout, whole: Arrays) -> Arrays:
    """What is left of arrays when their rows are elsewhere."""
    parts = _parts(layout, whole, shared=0)  # the same for any other
    return tf.nest.map_structure(lambda p, x: None if p in (ROWS, CHAINS) else x, parts, whole)
