"""Functions of all rows, and of a factor's levels, called one by one where rows and levels are.

Chapter 04. A sweep is one compiled program, whose pieces `placement` calls. Here there is none: the
caller decides by what a piece gave back which one comes next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

from lmmbook.engine.arrays import Arrays, Layout
from lmmbook.engine.placement import Placement

import tensorflow as tf

FEW_ROWS = 20_000  # that are not worth compiling for

Effects = list[tf.Tensor]  # [levels, n, columns] a factor


class Pieces:
    """Calls functions that give back what stays and what is summed, as `Placement` has them."""

    def __init__(self, layout: Layout, arrays: Arrays, placement: Placement) -> None:
        self.layout, self.arrays, self.placement = layout, arrays, placement
        self.factors = range(len(layout.factors))

    def rows(self, function: Callable, static: tuple, *tensors: Any) -> tuple[Any, Any]:
        """``function(layout, *static, arrays, *tensors)``, by way of all rows, compiled."""
        static, tensors = (self.layout, *static), (self.arrays, *tensors)
        if self.placement.shared is not None:
            return _graph(self.placement, None, function, static)(*tensors)
        if self.layout.rows < FEW_ROWS:
            return function(*static, *tensors)
        return _compiled(function, static)(*tensors)

    def by_level(self, function: Callable, static: tuple, *tensors: Any) -> Effects:
        """What a function of rows finds for the levels of each factor; it is told which factor's
        levels stay with their rows, too."""
        shared = self.placement.shared
        stay, found = self.rows(function, (shared, *static), *tensors)
        return [stay if k == shared else found[k] for k in self.factors]

    def levels(self, k: int, function: Callable, static: tuple, *tensors: Any) -> tuple[Any, Any]:
        """``function(*static, *tensors)`` of factor k's levels."""
        if k == self.placement.shared:
            return _graph(self.placement, k, function, static)(*tensors)
        return function(*static, *tensors)

    def each(self, k: int, function: Callable, *tensors: Any, static: tuple = ()) -> Any:
        """The same, of which all stays."""
        return self.levels(k, _all_stays(function), static, *tensors)[0]

    def dot(self, x: Mapping[int, tf.Tensor], y: Effects) -> tf.Tensor:
        """``[n]``, of each right-hand side: x'y over the levels of those factors that x has."""
        return tf.add_n([self.levels(k, _dot, (), own, y[k])[1] for k, own in x.items()])


@cache
def _all_stays(function: Callable) -> Callable:
    """A function of which all stays, for `levels`: the same one each time, so that its graph is."""
    return lambda *arguments: (function(*arguments), None)


def _dot(x: tf.Tensor, y: tf.Tensor) -> tuple[None, tf.Tensor]:
    return None, tf.einsum("lni,lni->n", x, y)


@cache
def _graph(placement: Placement, k: int | None, function: Callable, static: tuple) -> Callable:
    """On several devices: of all rows, or of factor k's levels."""
    go = placement.rows if k is None else partial(placement.levels, k)
    return tf.function(partial(go, function, static), autograph=False)


@cache
def _compiled(function: Callable, static: tuple) -> Callable:
    return tf.function(partial(function, *static), jit_compile=True, autograph=False)
