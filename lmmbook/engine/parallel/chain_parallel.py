"""Chain parallel: one fit on several devices, each with all rows and some of the chains.

Chapter 08. Chains ask nothing of each other while the parameters are frozen, so then every device
goes through a whole chunk of sweeps by itself. Between two M-steps they say what their chains
found: a few numbers, whose mean over the devices is that of all chains. So where all rows fit on
every device this needs far less talk than to share out the rows (`data_parallel`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lmmbook._tensorflow.randomness import fold_in
from lmmbook.engine import program
from lmmbook.engine.arrays import Arrays, Layout, State
from lmmbook.engine.iteration import Output, Plan
from lmmbook.engine.parallel.collectives import Devices, by_sweep

import tensorflow as tf

FEW_ROWS = 500_000  # that every device has room and time for


def suits(strategy: tf.distribute.Strategy, rows: int, chains: int) -> bool:
    """Whether a fit is chain parallel, not data parallel: the rows are few, and every device gets
    as many chains, two at least, so that it can multiply the means of two halves (`px`)."""
    devices = strategy.num_replicas_in_sync
    return rows <= FEW_ROWS and chains % devices == 0 and chains >= 2 * devices


class ChainParallel(Devices):
    """Chain parallel: all rows and levels on each device of a strategy, for chains of its own.

    What the M-step asks for are means over chains, or has chains as an axis over which it takes the
    mean. Either way the mean over devices is what it needs.
    """

    def rows(self, function: Callable, static: tuple, *tensors: Any) -> tuple[Any, Any]:
        """On each device; sums are means over the devices."""
        return self.on_each(function, static, *tensors, reduction="MEAN")

    def e_step(
        self, sweep: Callable, layout: Layout, arrays: Arrays, state: State, *how: Any
    ) -> tuple[State, list[tf.Tensor]]:
        """Each device sweeps its chains, as if there were no other."""
        (effects, predictor), acceptance = self.rows(
            _own_sweep, (sweep, layout), arrays, state, *how
        )
        return state._replace(effects=effects, predictor=predictor), acceptance


class Program:
    """As `program.compiled`, on the devices of a strategy; the state that it is given, and the one
    that it gives back, have all chains together."""

    def __init__(self, strategy: tf.distribute.Strategy, layout: Layout, whole: Arrays) -> None:
        self.placement = ChainParallel.of(strategy)
        self.chains = layout.chains // strategy.num_replicas_in_sync
        self.layout = layout._replace(chains=self.chains)  # of one device
        if whole.repeated is not None:
            whole = whole._replace(repeated=tf.repeat(whole.response, self.chains, axis=0))
        placed = self.placement.placed(
            lambda device, _: whole._replace(replica=tf.constant(device))
        )
        self.arrays = placed._replace(gram=whole.gram)  # small, and not asked of a device

    def __call__(
        self, arrays: Arrays, state: State, plan: Plan, seed: tf.Tensor
    ) -> tuple[State, Output]:
        """The same arguments and results; draws and scores only where no parameter moves. The
        ``arrays`` are on the devices already, and not looked at."""
        parts = state._replace(effects=[self._apart(u) for u in state.effects])
        if bool(tf.reduce_any(plan.gain > 0)):
            state, output = by_sweep(self.layout, self.placement, self.arrays, parts, plan, seed)
            return state._replace(effects=self._together(state.effects, 1)), output
        frozen = self.placement.graph(_frozen, self.layout)
        (effects, draws, score), (acceptance, information) = frozen(self.arrays, parts, plan, seed)
        same = tf.nest.map_structure(lambda x: tf.stack([x] * len(plan.gain)), state.parameters)
        (score,) = self._together([score], 1)
        output = Output(same, acceptance, self._together(draws, 2), score, information)
        return state._replace(effects=self._together(effects, 1)), output

    def _apart(self, u: tf.Tensor) -> Any:
        """Effects ``[levels, chains, columns]``, to each device those of its chains."""
        n = self.chains
        return self.placement.placed(lambda device, _: u[:, device * n : (device + 1) * n])

    def _together(self, values: list[Any], axis: int) -> list[tf.Tensor]:
        """The inverse, with the chains along an ``axis``."""
        return [self.placement.gathered(value, axis=axis) for value in values]


def _frozen(
    layout: Layout, arrays: Arrays, state: State, plan: Plan, seed: tf.Tensor,
    placement: ChainParallel,
) -> tuple[Any, Any]:  # fmt: skip
    """A chunk of sweeps with frozen parameters."""
    return placement.rows(_own_chunk, (layout,), arrays, state, plan, seed)


def _own_chunk(
    layout: Layout, arrays: Arrays, state: State, plan: Plan, seed: tf.Tensor
) -> tuple[Any, Any]:
    """The same for one device's chains: effects, draws and scores; and what all have a share in."""
    seed, still = fold_in(seed, arrays.replica), tf.constant(0.0)
    state, output = program.chunk(layout, arrays, state, plan._replace(step_gain=still), seed)
    own = state.effects, output.effects, output.score
    return own, (output.acceptance, output.information)


def _own_sweep(
    sweep: Callable, layout: Layout, arrays: Arrays, state: State, seed: tf.Tensor, *how: Any
) -> tuple[Any, list[tf.Tensor]]:
    """A sweep of one device's chains: effects and predictor; and the acceptance."""
    # Other chains need other random numbers.
    state, acceptance = sweep(layout, arrays, state, fold_in(seed, arrays.replica), *how)
    return (state.effects, state.predictor), acceptance
