"""One iteration of a fit: a sweep, with an M-step or with the certificate's statistics.

Chapter 04. It takes a `State` and a `Plan` to the next `State`, and leaves an `Output` behind.
`program` makes a loop of them, and `parallel` another for several devices.
"""

from __future__ import annotations

from typing import NamedTuple

from lmmbook.engine.arrays import Arrays, Layout, Parameters, State
from lmmbook.engine.certificate import local, louis
from lmmbook.engine.certificate.parametrisation import Parametrisation
from lmmbook.engine.e_step import adaptation, block_hmc
from lmmbook.engine.linear_predictor import at, curvatures
from lmmbook.engine.m_step import closed_form
from lmmbook.engine.placement import SINGLE_DEVICE, Placement, either
from lmmbook.families.derivatives import zeros

import tensorflow as tf


class Plan(NamedTuple):
    """What sweeps are for.

    ``gain`` of the M-step, 0 for none: the parameters are frozen. ``measured``, whether the
    score is taken of the draw; ``informed``, whether the information is too, which varies less and
    costs more. All ``[sweeps]``, or of one sweep.
    ``step_gain`` is the gain of the step sizes, ``parametrisation`` is the certificate's.
    """

    gain: tf.Tensor
    measured: tf.Tensor
    informed: tf.Tensor
    step_gain: tf.Tensor
    parametrisation: Parametrisation


class Output(NamedTuple):
    """What each sweep leaves behind, with a leading axis [sweeps].

    ``parameters``; ``acceptance`` [sweeps]; ``effects`` [sweeps, levels, chains, columns];
    ``score`` [sweeps, chains, coordinates] and ``information`` [sweeps, coordinates, coordinates],
    zeros where there is none.
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
    plan: Plan,
    seed: tf.Tensor,
    moving: tf.Tensor | bool,
    parents_too: tf.Tensor | bool,
    placement: Placement = SINGLE_DEVICE,
) -> tuple[State, Output]:
    """A sweep, and an M-step if ``moving``; ``parents_too`` as in `block_hmc.sweep`."""
    state, accepted = placement.e_step(block_hmc.sweep, layout, arrays, state, seed, parents_too)
    drawn = state
    score, information = either(
        plan.measured,
        lambda: louis.score_and_information(
            layout, arrays, drawn, plan.parametrisation, placement, plan.informed
        ),
        lambda: no_score(layout),
    )
    state = either(
        moving,
        lambda: closed_form.step(layout, arrays, drawn, plan.gain, placement=placement),
        lambda: drawn,
    )
    steps = adaptation.adapt(state.step_sizes, accepted, plan.step_gain, placement)
    acceptance = adaptation.mean_acceptance(accepted, placement)
    output = Output(state.parameters, acceptance, drawn.effects, score, information)
    return state._replace(step_sizes=steps), output


def no_score(layout: Layout) -> tuple[tf.Tensor, tf.Tensor]:
    """Zeros in place of score and information."""
    size = local.dimension(layout)
    return zeros(layout.chains, size), zeros(size, size)


def start(
    layout: Layout, arrays: Arrays, parameters: Parameters, placement: Placement = SINGLE_DEVICE
) -> State:
    """What a fit starts from: these parameters, effects of zero, and the longest steps."""
    begun = [
        placement.levels(k, _of_factor, (layout.chains, factor.columns), arrays.factors[k].cross)[0]
        for k, factor in enumerate(layout.factors)
    ]
    effects, steps = (list(x) for x in zip(*begun, strict=True))
    state = begin(layout, arrays, State(parameters, effects, steps), True, placement)
    return paused(state)


def _of_factor(
    chains: int, columns: int, cross: tf.Tensor
) -> tuple[tuple[tf.Tensor, tf.Tensor], None]:  # fmt: skip
    levels = cross.shape[0]
    return (tf.zeros([levels, chains, columns]), adaptation.longest(levels)), None


def row_information(
    arrays: Arrays, state: State, placement: Placement = SINGLE_DEVICE
) -> tf.Tensor:
    """The information of a row on its linear predictor: W of `curvatures`, its mean over rows."""
    of_levels = state.curvature[0], arrays.factors[0].cross
    _, (information, rows) = placement.levels(0, _totals, (), *of_levels)
    return information / rows


def _totals(*values: tf.Tensor) -> tuple[None, list[tf.Tensor]]:
    return None, [tf.reduce_sum(x) for x in values]


def begin(
    layout: Layout,
    arrays: Arrays,
    state: State,
    refresh: tf.Tensor | bool,
    placement: Placement = SINGLE_DEVICE,
) -> State:
    """The state that a chunk begins with: rows, predictor, and, if ``refresh``, the curvature
    there.

    Once a chunk while parameters move. Frozen with them, for then draws are kept.
    """
    state = at(layout, arrays, state, placement)
    if layout.gaussian:
        return state
    curvature = either(
        refresh,
        lambda: curvatures(layout, arrays, state, placement),
        lambda: state.curvature,
    )
    return state._replace(curvature=curvature)


def paused(state: State) -> State:
    """Without what `begin` adds, and with it the memory that rows take."""
    return state._replace(rows=(), predictor=())
