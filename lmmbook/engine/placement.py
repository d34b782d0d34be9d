"""Where rows and levels are: on one device, or on several.

Chapter 08. There may be millions of rows, on several devices. So whatever goes through all rows, or
all levels, is a function that returns two things: what *stays* where they are, and *sums*, which
are small. It is called by way of a `Placement`, which adds up the sums of all devices. Here is that
of a single device, `SINGLE_DEVICE`, with nothing to add; `data_parallel` and `chain_parallel` have
others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lmmbook.engine.arrays import Arrays, Layout, State

import tensorflow as tf


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
        """Go through all levels of factor k: they are where the rows are."""
        return self.rows(function, static, *tensors)

    def e_step(
        self, sweep: Callable, layout: Layout, arrays: Arrays, state: State, *how: Any
    ) -> tuple[State, list[tf.Tensor]]:
        """``sweep(layout, arrays, state, *how, self)`` of all chains.

        That is `block_hmc.sweep`. It is given, for placements stand below it and cannot import it.
        """
        return sweep(layout, arrays, state, *how, self)

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
