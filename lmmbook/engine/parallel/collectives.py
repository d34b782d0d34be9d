"""Values and compiled pieces on several devices, for chain parallel and data parallel fits.

Chapter 08. A collective sum cannot be part of a program that XLA compiles. So on several devices a
sweep is an ordinary TensorFlow graph, which calls a compiled piece on every device, adds up what
they found (`tf.distribute`'s all-reduce), and calls the next piece. `data_parallel` shares out the
rows, `chain_parallel` the chains.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, Self

from lmmbook._tensorflow.randomness import split_seed
from lmmbook.engine import program
from lmmbook.engine.arrays import Arrays, Layout, State
from lmmbook.engine.iteration import Output, Plan, begin, one_sweep, paused
from lmmbook.engine.placement import Placement

import tensorflow as tf


class Devices(Placement):
    """The devices of a strategy. As it is, everything is on the first one, and the others, maybe of
    other processes, have to be asked for."""

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        self.strategy = strategy
        resolver = strategy.cluster_resolver
        self.worker = (resolver and resolver.task_id) or 0
        self._compiled = lru_cache(maxsize=None)(_compiled)
        self._graphs: dict[Any, Callable] = {}

    @classmethod
    @lru_cache(maxsize=2)  # those of another strategy may go
    def of(cls, strategy: tf.distribute.Strategy, *own: int) -> Self:
        """One for all fits on a strategy: fits of equal shapes compile once."""
        return cls(strategy, *own)

    def graph(self, function: Callable, *static: Any, **flags: Any) -> Callable:
        """``function(*static, ..., placement=self, **flags)`` as one graph, kept."""
        key = function, static, tuple(flags.items())
        if key not in self._graphs:
            own = partial(function, *static, placement=self, **flags)
            self._graphs[key] = tf.function(own, autograph=False)
        return self._graphs[key]

    def on_each(
        self, function: Callable, static: tuple, *tensors: Any, reduction: str = "SUM"
    ) -> tuple[Any, Any]:
        """``function(*static, *tensors)`` gives what stays and what is to be added up. Compiled, on
        each device; what stays is one value a device, sums (or means) are of all of them."""
        compiled = self._compiled(function, static)

        def here(*arguments: Any) -> Any:
            # `strategy.run` would take a compiled function apart, and run all of it on one device.
            return compiled(*arguments)

        def of_all(value: Any) -> Any:
            return None if value is None else self.strategy.reduce(reduction, value, axis=None)

        stays, sums = self.strategy.run(here, args=tensors)
        return stays, tf.nest.map_structure(of_all, sums)

    def gathered(self, value: Any, axis: int) -> tf.Tensor:
        """What is one value a device, put together along an axis, and sent to all."""
        return self.graph(_gathered, axis=axis)(value)

    def parts(self, value: Any) -> list[tf.Tensor]:
        """A value as plain tensors, one a device of this process; one if it is the same on all."""
        return list(self.strategy.experimental_local_results(value))

    def whole(self, parts: list[Any]) -> Any:
        """The inverse of `parts`, for values that are not the same."""
        return self.placed(lambda _, place: parts[place])

    def placed(self, value_of: Callable[[int, int], Any]) -> Any:
        """One value a device: ``value_of`` gets its number among the devices of all processes, and
        among those of this one, which alone are asked for."""
        devices = self.strategy.extended.worker_devices
        places = iter(range(len(devices)))

        def place(context: Any) -> Any:
            here = next(places)
            value = value_of(context.replica_id_in_sync_group, here)
            with tf.device(devices[here]):
                return tf.nest.map_structure(lambda x: None if x is None else tf.identity(x), value)

        return self.strategy.experimental_distribute_values_from_function(place)

    def smallest(self, number: int) -> int:
        """By way of all devices."""
        given = self.placed(lambda *_: tf.constant([number]))
        return int(tf.reduce_min(self.gathered(given, axis=0)))


def _gathered(value: Any, axis: int, placement: Devices) -> tf.Tensor:
    return placement.strategy.gather(value, axis)


def _compiled(function: Callable, static: tuple) -> Callable:
    return tf.function(partial(function, *static), jit_compile=True, autograph=False)


def by_sweep(
    layout: Layout, placement: Devices, arrays: Arrays, state: State, plan: Plan, seed: tf.Tensor
) -> tuple[State, Output]:
    """`program.chunk` on several devices, with a graph a sweep. Effects are brought together where
    draws are measured; elsewhere there are none among the results."""
    state = placement.graph(begin, layout)(arrays, state, bool(plan.step_gain > 0))
    outputs, together = [], bool(tf.reduce_any(plan.measured))
    for i, own_seed in enumerate(split_seed(seed, n=len(plan.gain))):
        gain, measured, informed = plan.gain[i], bool(plan.measured[i]), bool(plan.informed[i])
        parents_too = layout.gaussian or i % program.PARENTS_EVERY == 0
        sweep = placement.graph(one_sweep, layout, moving=bool(gain > 0), parents_too=parents_too)
        own = plan._replace(gain=gain, measured=measured, informed=informed)
        state, output = sweep(arrays, state, own, own_seed)
        effects = placement.together(output.effects) if together else []
        outputs.append(output._replace(effects=effects))
    return paused(state), tf.nest.map_structure(lambda *x: tf.stack(x), *outputs)
