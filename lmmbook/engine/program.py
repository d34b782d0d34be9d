"""The compiled program of a fit: one chunk of sweeps, with or without M-steps.

Chapter 04. One program serves all phases. A gain of zero means no M-step: the parameters are
frozen, and with ``measure`` the certificate's statistics are taken of the draw. A chunk is a
fraction of a second of work; between chunks there is time for progress and for Ctrl-C.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

from lmmbook._tensorflow.randomness import split_seed
from lmmbook.engine.arrays import Arrays, Layout, Parameters
from lmmbook.engine.certificate import louis
from lmmbook.engine.e_step import adaptation, block_hmc
from lmmbook.engine.linear_predictor import (
    SINGLE_DEVICE,
    Placement,
    curvatures,
    either,
    is_gaussian,
    linear_predictor,
    rows_of,
)
from lmmbook.engine.m_step import closed_form
from lmmbook.families.derivatives import zeros

import tensorflow as tf

MOST_SWEEPS = 40  # in a chunk
PARENTS_EVERY = 4  # sweeps, where HMC goes through all rows: see `block_hmc.sweep`; the fewest, too
WORK = 1e8  # ratings x chains x factors to go through in a chunk: about 0.2 s on two CPU cores


class State(NamedTuple):
    """What goes on from chunk to chunk: parameters, effects, and what HMC steps by, as `block_hmc`
    has it: ``step_sizes`` and ``curvature``."""

    parameters: Parameters
    effects: list[tf.Tensor]
    step_sizes: list[tf.Tensor]
    curvature: list[tf.Tensor]


class Output(NamedTuple):
    """What each sweep leaves behind, with a leading axis [sweeps].

    ``parameters``; ``acceptance`` [sweeps]; ``effects`` [sweeps, levels, chains, columns];
    ``score`` [sweeps, chains, coordinates] and ``information`` [sweeps, coordinates, coordinates],
    zeros where nothing was measured.
    """

    parameters: Parameters
    acceptance: tf.Tensor
    effects: list[tf.Tensor]
    score: tf.Tensor
    information: tf.Tensor


Program = Callable[
    [Arrays, State, tf.Tensor, tf.Tensor, tf.Tensor, louis.Parametrisation, tf.Tensor],
    tuple[State, Output],
]


def sweeps_of(layout: Layout) -> int:
    """Sweeps in a chunk: fewer where a sweep is long. Not one alone: a chunk begins with two passes
    through all rows."""
    work = layout.rows * layout.chains * len(layout.factors)
    return max(PARENTS_EVERY, min(MOST_SWEEPS, round(WORK / work)))


def one_sweep(
    layout: Layout,
    arrays: Arrays,
    state: State,
    rows: tuple[tf.Tensor, ...],
    predictor: tf.Tensor,
    gain: tf.Tensor,
    step_gain: tf.Tensor,
    parametrisation: louis.Parametrisation,
    seed: tf.Tensor,
    moving: tf.Tensor | bool,
    measured: tf.Tensor | bool,
    parents_too: tf.Tensor | bool,
    placement: Placement = SINGLE_DEVICE,
) -> tuple[State, tuple[tf.Tensor, ...], tf.Tensor, Output]:
    """A sweep, and an M-step if ``moving``; also returns ``rows`` and ``predictor`` as they then
    are."""
    curvature = state.curvature
    if is_gaussian(layout):  # it costs nothing, and belongs to the parameters
        curvature = curvatures(layout, arrays, state.parameters, rows, predictor, placement)
    drawn = block_hmc.sweep(
        layout, arrays, state.parameters, state.effects, rows, predictor, curvature,
        state.step_sizes, seed, parents_too, placement,
    )  # fmt: skip
    score, information = either(
        measured,
        lambda: louis.score_and_information(
            layout,
            arrays,
            state.parameters,
            drawn.effects,
            rows,
            drawn.predictor,
            parametrisation,
            placement,
        ),
        lambda: no_score(layout),
    )

    def m_step_and_rows():  # type: ignore[no-untyped-def]
        moved = closed_form.step(
            layout, arrays, state.parameters, drawn.effects, rows, drawn.predictor, gain,
            placement=placement,
        )  # fmt: skip
        return *moved, placement.rows(rows_again, (layout,), arrays, moved[0])[0]

    parameters, effects, predictor, rows = either(
        moving,
        m_step_and_rows,
        lambda: (state.parameters, drawn.effects, drawn.predictor, rows),
    )
    steps = adaptation.adapt(state.step_sizes, drawn.acceptance, step_gain, placement)
    acceptance = adaptation.mean_acceptance(drawn.acceptance, placement)
    output = Output(parameters, acceptance, drawn.effects, score, information)
    return State(parameters, effects, steps, curvature), rows, predictor, output


def no_score(layout: Layout) -> tuple[tf.Tensor, tf.Tensor]:
    """Zeros in place of score and information."""
    size = louis.coordinates(layout)
    return zeros(layout.chains, size), zeros(size, size)


def start(
    layout: Layout, arrays: Arrays, parameters: Parameters, placement: Placement = SINGLE_DEVICE
) -> State:
    """What a fit starts from: these parameters, effects of zero, and the longest steps."""
    begun = [
        placement.levels(
            k, _of_factor, (layout.chains, factor_layout.columns), factor_arrays.cross
        )[0]
        for k, (factor_layout, factor_arrays) in enumerate(
            zip(layout.factors, arrays.factors, strict=True)
        )
    ]
    effects, steps = (list(x) for x in zip(*begun, strict=True))
    state, _, _ = begin(layout, arrays, State(parameters, effects, steps, []), True, placement)
    return state


def _of_factor(
    chains: int, columns: int, cross: tf.Tensor
) -> tuple[tuple[tf.Tensor, tf.Tensor], None]:  # fmt: skip
    levels = cross.shape[0]
    return (tf.zeros([levels, chains, columns]), adaptation.longest(levels)), None


def row_information(
    arrays: Arrays, state: State, placement: Placement = SINGLE_DEVICE
) -> tf.Tensor:
    """The information of a row on its linear predictor: W of `curvatures`, its mean over rows."""
    _, sums = placement.levels(
        0, _information_and_rows, (), state.curvature[0], arrays.factors[0].cross
    )
    return sums[0] / sums[1]


def _information_and_rows(
    curvature: tf.Tensor, cross: tf.Tensor
) -> tuple[None, tuple[tf.Tensor, tf.Tensor]]:  # fmt: skip
    return None, (tf.reduce_sum(curvature), tf.reduce_sum(cross))


def begin(
    layout: Layout,
    arrays: Arrays,
    state: State,
    refresh: tf.Tensor | bool,
    placement: Placement = SINGLE_DEVICE,
) -> tuple[State, tuple[tf.Tensor, ...], tf.Tensor]:
    """What a chunk begins with: rows, predictor, and, if ``refresh``, the curvature there.

    Once a chunk while parameters move. Frozen with them, for then draws are kept.
    """
    rows, _ = placement.rows(rows_again, (layout,), arrays, state.parameters)
    predictor, _ = placement.rows(_predictor, (), arrays, state.parameters, state.effects)
    curvature = either(
        refresh,
        lambda: curvatures(layout, arrays, state.parameters, rows, predictor, placement),
        lambda: state.curvature,
    )
    return state._replace(curvature=curvature), rows, predictor


def rows_again(
    layout: Layout, arrays: Arrays, parameters: Parameters
) -> tuple[tuple[tf.Tensor, ...], None]:
    """`linear_predictor.rows_of`, to be called by way of a `linear_predictor.Placement`."""
    return rows_of(layout, arrays, parameters), None


def _predictor(
    arrays: Arrays, parameters: Parameters, effects: list[tf.Tensor]
) -> tuple[tf.Tensor, None]:  # fmt: skip
    return linear_predictor(arrays, parameters, effects), None


def chunk(
    layout: Layout, arrays: Arrays, state: State, gains: tf.Tensor, measure: tf.Tensor,
    step_gain: tf.Tensor, parametrisation: louis.Parametrisation, seed: tf.Tensor,
) -> tuple[State, Output]:  # fmt: skip
    """As many sweeps as there are gains.

    ``gains`` [sweeps] and ``measure`` [sweeps] (booleans) say what each sweep is for,
    ``step_gain`` is the gain of the step sizes, ``parametrisation`` as in `louis`.
    """
    sweeps = gains.shape[0]
    state, rows, predictor = begin(layout, arrays, state, step_gain > 0)
    seeds = tf.stack(split_seed(seed, n=sweeps))
    shapes = Output(state.parameters, tf.zeros([]), state.effects, *no_score(layout))
    empty = tf.nest.map_structure(
        lambda x: tf.TensorArray(x.dtype, sweeps, element_shape=x.shape), shapes
    )

    def body(i, state, rows, predictor, outputs):  # type: ignore[no-untyped-def]
        state, rows, predictor, output = one_sweep(
            layout, arrays, state, rows, predictor, gains[i], step_gain, parametrisation, seeds[i],
            moving=gains[i] > 0,
            measured=measure[i],
            parents_too=True if is_gaussian(layout) else tf.equal(i % PARENTS_EVERY, 0),
        )  # fmt: skip
        written = tf.nest.map_structure(lambda all, x: all.write(i, x), outputs, output)
        return i + 1, state, rows, predictor, written

    _, state, *_, outputs = tf.while_loop(
        lambda i, *_: i < sweeps, body, (0, state, rows, predictor, empty)
    )
    return state, tf.nest.map_structure(lambda x: x.stack(), outputs)


@cache
def compiled(layout: Layout) -> Program:
    """`chunk` for a layout. It is compiled at its first call, and kept for fits to come.

    All are kept: TensorFlow does not give the memory of a program back when it is forgotten here
    (`bench/memory.py`), and would take as much again for the same one.
    """
    function = tf.function(partial(chunk, layout), jit_compile=True, autograph=False)

    def run(*arguments):  # type: ignore[no-untyped-def]
        # Through the concrete function: `function` itself would warn of retracing when the fits of
        # one process have many shapes, which is nothing to be warned of.
        return function.get_concrete_function(*arguments)(*arguments)

    return run
