"""One iteration of a fit: a sweep, with an M-step or with the certificate's statistics.

Chapter 04. What is here goes on from iteration to iteration (`State`), or is left behind by each
(`Output`). `program` makes a loop of them, and `parallel` another for several devices.
"""

from __future__ import annotations

from typing import NamedTuple

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
