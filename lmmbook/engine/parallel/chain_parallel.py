"""Chain parallel: one fit on several devices, each with all rows and some of the chains.

Chapter 08. Chains ask nothing of each other while the parameters are frozen, so then every device
goes through a whole chunk of sweeps by itself. Between two M-steps they say what their chains
found: a few numbers, whose mean over the devices is that of all chains. So where all rows fit on
every device this needs far less talk than to share out the rows (`data_parallel`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lmmbook._tensorflow.randomness import fold_in, split_seed
from lmmbook.engine import iteration, program
from lmmbook.engine.arrays import Arrays, Layout
from lmmbook.engine.certificate import louis
from lmmbook.engine.e_step import adaptation, block_hmc
from lmmbook.engine.linear_predictor import curvatures, is_gaussian
from lmmbook.engine.m_step import closed_form
from lmmbook.engine.parallel.collectives import Devices

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

    def levels(self, k: int, function: Callable, static: tuple, *tensors: Any) -> tuple[Any, Any]:
        """On each device, as `rows`."""
        return self.rows(function, static, *tensors)


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
        self, arrays: Arrays, state: iteration.State, gains: tf.Tensor, measure: tf.Tensor,
        step_gain: tf.Tensor, parametrisation: louis.Parametrisation, seed: tf.Tensor,
    ) -> tuple[iteration.State, iteration.Output]:  # fmt: skip
        """The same arguments and results; draws and scores only where no parameter moves. The
        ``arrays`` are on the devices already, and not looked at."""
        parts = state._replace(effects=[self._apart(u) for u in state.effects])
        if bool(tf.reduce_any(gains > 0)):
            return self._moving(parts, gains, step_gain, seed)
        frozen = self.placement.graph(_frozen, self.layout)
        (effects, draws, score), (acceptance, information) = frozen(
            self.arrays, parts, gains, measure, parametrisation, seed
        )
        same = tf.nest.map_structure(lambda x: tf.stack([x] * len(gains)), state.parameters)
        draws = [self.placement.gathered(u, axis=2) for u in draws]
        score = self.placement.gathered(score, axis=1)
        state = state._replace(effects=[self.placement.gathered(u, axis=1) for u in effects])
        return state, iteration.Output(same, acceptance, draws, score, information)

    def _moving(
        self, state: iteration.State, gains: tf.Tensor, step_gain: tf.Tensor, seed: tf.Tensor
    ) -> tuple[iteration.State, iteration.Output]:
        gaussian, outputs = is_gaussian(self.layout), []
        begin = self.placement.graph(iteration.begin, self.layout, refresh=not gaussian)
        state, rows, predictor = begin(self.arrays, state)
        for i, own_seed in enumerate(split_seed(seed, n=len(gains))):
            parents_too = gaussian or i % program.PARENTS_EVERY == 0
            sweep = self.placement.graph(_em_sweep, self.layout, parents_too=parents_too)
            state, rows, predictor, output = sweep(
                self.arrays, state, rows, predictor, gains[i], step_gain, own_seed
            )
            outputs.append(output)
        state = state._replace(effects=[self.placement.gathered(u, axis=1) for u in state.effects])
        return state, tf.nest.map_structure(lambda *x: tf.stack(x), *outputs)

    def _apart(self, u: tf.Tensor) -> Any:
        """Effects ``[levels, chains, columns]``, to each device those of its chains."""
        n = self.chains
        return self.placement.placed(lambda device, _: u[:, device * n : (device + 1) * n])


def _frozen(
    layout: Layout, arrays: Arrays, state: iteration.State, gains: tf.Tensor, measure: tf.Tensor,
    parametrisation: louis.Parametrisation, seed: tf.Tensor, placement: ChainParallel,
) -> tuple[Any, Any]:  # fmt: skip
    """A chunk of sweeps with frozen parameters."""
    return placement.rows(
        _own_chunk, (layout,), arrays, state, gains, measure, parametrisation, seed
    )


def _own_chunk(
    layout: Layout, arrays: Arrays, state: iteration.State, gains: tf.Tensor, measure: tf.Tensor,
    parametrisation: louis.Parametrisation, seed: tf.Tensor,
) -> tuple[Any, Any]:  # fmt: skip
    """The same for one device's chains: effects, draws and scores; and what all have a share in."""
    seed = fold_in(seed, arrays.replica)
    still = tf.constant(0.0)
    state, output = program.chunk(
        layout, arrays, state, gains, measure, still, parametrisation, seed
    )
    own = state.effects, output.effects, output.score
    return own, (output.acceptance, output.information)


def _em_sweep(
    layout: Layout, arrays: Arrays, state: iteration.State, rows: Any, predictor: Any,
    gain: tf.Tensor, step_gain: tf.Tensor, seed: tf.Tensor, parents_too: bool,
    placement: ChainParallel,
) -> tuple[iteration.State, Any, Any, iteration.Output]:  # fmt: skip
    """A sweep of all chains and an M-step, as `iteration.one_sweep`."""
    (effects, predictor), acceptance = placement.rows(
        _own_sweep, (layout, parents_too), arrays, state, rows, predictor, seed
    )
    parameters, effects, predictor = closed_form.step(
        layout, arrays, state.parameters, effects, rows, predictor, gain, placement=placement
    )
    rows, _ = placement.rows(iteration.rows_again, (layout,), arrays, parameters)
    steps = adaptation.adapt(state.step_sizes, acceptance, step_gain)
    output = iteration.Output(
        parameters, adaptation.mean_acceptance(acceptance), [], *iteration.no_score(layout)
    )
    return iteration.State(parameters, effects, steps, state.curvature), rows, predictor, output


def _own_sweep(
    layout: Layout, parents_too: bool, arrays: Arrays, state: iteration.State, rows: Any,
    predictor: tf.Tensor, seed: tf.Tensor,
) -> tuple[Any, list[tf.Tensor]]:  # fmt: skip
    """A sweep of one device's chains: effects and predictor; and the acceptance."""
    # Other chains need other random numbers.
    seed = fold_in(seed, arrays.replica)
    curvature, at = state.curvature, state.parameters
    if is_gaussian(layout):
        curvature = curvatures(layout, arrays, at, rows, predictor)
    drawn = block_hmc.sweep(
        layout, arrays, at, state.effects, rows, predictor, curvature, state.step_sizes, seed,
        parents_too,
    )  # fmt: skip
    return (drawn.effects, drawn.predictor), drawn.acceptance
