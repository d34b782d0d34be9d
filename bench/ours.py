"""What an effective draw costs with the level-wise kernel of `lmmbook`, at fixed parameters."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from lmmbook._tensorflow import randomness
from lmmbook.engine import arrays, iteration
from lmmbook.engine.e_step import adaptation, block_hmc
from lmmbook.formula import build_design

import pandas as pd
import tensorflow as tf
from measure import FACTORS, FORMULA, functionals, kernel_record


def kernel(
    data: pd.DataFrame,
    parameters: Mapping[str, float],
    seed: int,
    *,
    sweeps: int = 4_000,
    chains: int = 8,
) -> dict[str, Any]:
    """As `tutorial.kernel`, for `block_hmc.sweep`; a tenth of the sweeps is warm-up.

    A sweep moves each factor once, so all effects together, with a gradient for every leapfrog step
    and one before the first.
    """
    design = build_design(FORMULA, data)
    layout, array = arrays.on_device(design, chains)
    values = arrays.to_parameters(design, parameters)

    @tf.function(autograph=False, jit_compile=True)
    def sample(array, seed):
        start = iteration.start(layout, array, values)
        seeds = tf.stack(randomness.split_seed(seed, n=sweeps))

        def one(i, state, found):
            state, _ = block_hmc.sweep(layout, array, state, seeds[i])
            chains_first = [tf.transpose(u[..., 0]) for u in state.effects]
            left = array.response[:, tf.newaxis] - state.predictor
            log_density = -0.5 * tf.reduce_sum(tf.square(left / values.residual_sd), axis=0)
            for u, scale in zip(chains_first, values.scales, strict=True):
                log_density -= 0.5 * tf.reduce_sum(tf.square(u / scale), axis=1)
            found = found.write(i, functionals(chains_first, log_density))
            return i + 1, state, found

        state = iteration.begin(layout, array, start, True)
        found = tf.TensorArray(tf.float32, sweeps, element_shape=[chains, 2 * len(FACTORS) + 1])
        *_, found = tf.while_loop(lambda i, *_: i < sweeps, one, (0, state, found))
        return found.stack()

    started = time.perf_counter()
    found = sample(array, tf.constant([seed, 0])).numpy()[sweeps // 10 :]
    seconds = time.perf_counter() - started
    gradients = len(found) * chains * (adaptation.LEAPFROG_STEPS + 1)
    return kernel_record(found, gradients) | {"seconds_with_compiling": seconds}
