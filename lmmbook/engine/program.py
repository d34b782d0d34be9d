"""The compiled program of a fit: one chunk of sweeps, with or without M-steps.

Chapter 04. One program serves all phases. A gain of zero means no M-step: the parameters are
frozen, and the certificate's statistics may be taken of the draw. A chunk is a fraction of a second
of work; between chunks there is time for progress and for Ctrl-C. On several devices there is
another loop, `parallel.collectives.by_sweep`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

from lmmbook._tensorflow.randomness import split_seed
from lmmbook.engine.arrays import Arrays, Layout, State
from lmmbook.engine.iteration import Output, Plan, begin, no_score, one_sweep, paused

import tensorflow as tf

MOST_SWEEPS = 20  # in a chunk
PARENTS_EVERY = 4  # sweeps, where HMC goes through all rows: see `block_hmc.sweep`; the fewest, too
WORK = 1e8  # ratings x chains x factors to go through in a chunk: about 0.2 s on two CPU cores

Program = Callable[[Arrays, State, Plan, tf.Tensor], tuple[State, Output]]


def sweeps_of(layout: Layout) -> int:
    """Sweeps in a chunk: fewer where a sweep is long. Not one alone: a chunk begins with two passes
    through all rows."""
    work = layout.rows * layout.chains * len(layout.factors)
    return max(PARENTS_EVERY, min(MOST_SWEEPS, round(WORK / work)))


def chunk(
    layout: Layout, arrays: Arrays, state: State, plan: Plan, seed: tf.Tensor
) -> tuple[State, Output]:
    """As many sweeps as the plan has gains."""
    sweeps = plan.gain.shape[0]
    shapes = Output(state.parameters, tf.zeros([]), state.effects, *no_score(layout))
    empty = tf.nest.map_structure(
        lambda x: tf.TensorArray(x.dtype, sweeps, element_shape=x.shape), shapes
    )
    state = begin(layout, arrays, state, plan.step_gain > 0)
    seeds = tf.stack(split_seed(seed, n=sweeps))

    def body(i, state, outputs):  # type: ignore[no-untyped-def]
        gain, measured, informed = plan.gain[i], plan.measured[i], plan.informed[i]
        own = plan._replace(gain=gain, measured=measured, informed=informed)
        parents_too = True if layout.gaussian else tf.equal(i % PARENTS_EVERY, 0)
        state, output = one_sweep(layout, arrays, state, own, seeds[i], gain > 0, parents_too)
        written = tf.nest.map_structure(lambda all, x: all.write(i, x), outputs, output)
        return i + 1, state, written

    _, state, outputs = tf.while_loop(lambda i, *_: i < sweeps, body, (0, state, empty))
    return paused(state), tf.nest.map_structure(lambda x: x.stack(), outputs)


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
