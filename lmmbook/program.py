"""The compiled program of a fit: one chunk of sweeps, with or without M-steps.

Chapter 04. One program serves all phases. A gain of zero means no M-step: the parameters are
frozen, and with ``measure`` the certificate's statistics are taken of the draw. A chunk is a
fraction of a second of work; between chunks there is time for progress and for Ctrl-C.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from lmmbook import complete_data, levels, m_step
from lmmbook.arrays import Arrays, Layout, Parameters
from lmmbook.predictor import curvatures, is_gaussian, linear_predictor, rows_of

import tensorflow as tf
import tensorflow_probability as tfp

MOST_SWEEPS = 40  # in a chunk
PARENTS_EVERY = 4  # sweeps, where HMC goes through all rows: see `levels.sweep`
WORK = 1e8  # ratings x chains x factors to go through in a chunk: about 0.2 s on two CPU cores


class State(NamedTuple):
    """What goes on from chunk to chunk: parameters, effects, and what HMC steps by, as `levels` has
    it: ``step_sizes`` and ``curvature``."""

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
    [Arrays, State, tf.Tensor, tf.Tensor, tf.Tensor, complete_data.Home, tf.Tensor],
    tuple[State, Output],
]


def sweeps_of(layout: Layout) -> int:
    """Sweeps in a chunk: fewer where a sweep is long."""
    work = layout.rows * layout.chains * len(layout.factors)
    return max(1, min(MOST_SWEEPS, round(WORK / work)))


@lru_cache(maxsize=16)
def compiled(layout: Layout) -> Program:
    """The program for a layout: ``(arrays, state, gains, measure, adaptation, home, seed)``.

    ``gains`` [sweeps] and ``measure`` [sweeps] (booleans) say what each sweep is for,
    ``adaptation`` is the gain of the step sizes, ``home`` as in `complete_data`. It is compiled at
    its first call, and kept for fits to come.
    """
    sweeps = sweeps_of(layout)
    coordinates = complete_data.coordinates(layout)

    def one_sweep(  # type: ignore[no-untyped-def]
        arrays, state, rows, predictor, gain, measure, adaptation, home, seed, parents_too
    ):
        curvature = state.curvature
        if is_gaussian(layout):  # it costs nothing, and belongs to the parameters
            curvature = curvatures(layout, arrays, state.parameters, rows, predictor)
        drawn = levels.sweep(
            layout, arrays, state.parameters, state.effects, rows, predictor, curvature,
            state.step_sizes, seed, parents_too,
        )  # fmt: skip
        score, information = tf.cond(
            measure,
            lambda: complete_data.score_and_information(
                layout, arrays, state.parameters, drawn.effects, rows, drawn.predictor, home
            ),
            lambda: (tf.zeros([layout.chains, coordinates]), tf.zeros([coordinates] * 2)),
        )

        def m_step_and_rows():  # type: ignore[no-untyped-def]
            moved = m_step.closed_form(
                layout, arrays, state.parameters, drawn.effects, rows, drawn.predictor, gain
            )
            return *moved, rows_of(layout, arrays, moved[0])

        parameters, effects, predictor, rows_then = tf.cond(
            gain > 0,
            m_step_and_rows,
            lambda: (state.parameters, drawn.effects, drawn.predictor, rows),
        )
        step_sizes = levels.adapt(state.step_sizes, drawn.acceptance, adaptation)
        acceptance = tf.reduce_mean([tf.reduce_mean(a) for a in drawn.acceptance])
        output = Output(parameters, acceptance, drawn.effects, score, information)
        return State(parameters, effects, step_sizes, curvature), rows_then, predictor, output

    @tf.function(jit_compile=True, autograph=False)
    def chunk(arrays, state, gains, measure, adaptation, home, seed):  # type: ignore[no-untyped-def]
        rows = rows_of(layout, arrays, state.parameters)
        predictor = linear_predictor(arrays, state.parameters, state.effects)
        # Once a chunk while parameters move. Frozen with them, for then draws are kept.
        curvature = tf.cond(
            adaptation > 0,
            lambda: curvatures(layout, arrays, state.parameters, rows, predictor),
            lambda: state.curvature,
        )
        state = state._replace(curvature=curvature)
        seeds = tf.stack(tfp.random.split_seed(seed, n=sweeps))
        shapes = Output(
            state.parameters, tf.zeros([]), state.effects,
            tf.zeros([layout.chains, coordinates]), tf.zeros([coordinates] * 2),
        )  # fmt: skip
        empty = tf.nest.map_structure(
            lambda x: tf.TensorArray(x.dtype, sweeps, element_shape=x.shape), shapes
        )

        def body(i, state, rows, predictor, outputs):  # type: ignore[no-untyped-def]
            state, rows, predictor, output = one_sweep(
                arrays,
                state,
                rows,
                predictor,
                gains[i],
                measure[i],
                adaptation,
                home,
                seeds[i],
                True if is_gaussian(layout) else tf.equal(i % PARENTS_EVERY, 0),
            )
            written = tf.nest.map_structure(lambda all, x: all.write(i, x), outputs, output)
            return i + 1, state, rows, predictor, written

        _, state, *_, outputs = tf.while_loop(
            lambda i, *_: i < sweeps, body, (0, state, rows, predictor, empty)
        )
        return state, tf.nest.map_structure(lambda x: x.stack(), outputs)

    def run(*arguments):  # type: ignore[no-untyped-def]
        # Through the concrete function: `chunk` itself would warn of retracing when the fits of one
        # process have many shapes, which is nothing to be warned of.
        return chunk.get_concrete_function(*arguments)(*arguments)

    return run
