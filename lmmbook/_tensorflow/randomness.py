"""Random numbers for compiled programs: Philox (Salmon et al. 2011), keyed by the seed itself.

Chapter 03. Each seed is the key of a stream of its own, whose blocks are counted from zero. TFP
0.25 leaves the choice of a generator to XLA, and what XLA makes of that on a CPU takes many times
as long as Philox asked for by name: the random numbers would take longer than all the rest of a
sweep. And `tf.random.stateless_normal` first scrambles the seed, by a Philox of scalars that is
written out at each call: half of the instructions of a fit's program, which all have to be
compiled. Here it is not scrambled, for `split_seed` made it, by Philox already.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_probability.python.internal import samplers

PHILOX = 1  # `tf.random.Algorithm.PHILOX`, as the operations have it
FIRST = np.zeros(2, np.uint64)  # block of a stream


def normal(
    shape: Any, mean: Any = 0.0, stddev: Any = 1.0, dtype: Any = tf.float32,
    seed: Any = None, name: str | None = None,
) -> tf.Tensor:  # fmt: skip
    """Normal numbers of a ``shape``. ``seed`` is ``[2]``, integers of 32 bits, as everywhere here.

    Examples
    --------
    >>> float(normal([2], mean=1e6, seed=[3, 4])[0]) > 999_000
    True
    """
    drawn = tf.raw_ops.StatelessRandomNormalV2(
        shape=shape, key=_key(seed), counter=FIRST, alg=PHILOX, dtype=dtype, name=name
    )
    return drawn * stddev + mean


def uniform(
    shape: Any, minval: Any = 0, maxval: Any = None, dtype: Any = tf.float32,
    seed: Any = None, name: str | None = None,
) -> tf.Tensor:  # fmt: skip
    """Numbers of a ``shape`` from ``minval`` up to ``maxval``, one if it is not said."""
    drawn = tf.raw_ops.StatelessRandomUniformV2(
        shape=shape, key=_key(seed), counter=FIRST, alg=PHILOX, dtype=dtype, name=name
    )
    return drawn * ((1 if maxval is None else maxval) - minval) + minval


def split_seed(
    seed: Any, n: int = 2, salt: str | None = None, name: str | None = None
) -> list[tf.Tensor]:
    """``n`` seeds out of one, which is then not used again: the first blocks of its stream.

    Examples
    --------
    >>> len({tuple(s.numpy()) for s in split_seed([3, 4], n=100)})
    100
    """
    return tf.unstack(_integers([n, 2], samplers.sanitize_seed(seed, salt), FIRST, name))


def fold_in(seed: Any, number: tf.Tensor) -> tf.Tensor:
    """A seed for each ``number`` from 0 on, say of a device: blocks of the seed's stream that are
    further on than `split_seed` ever gets."""
    block = tf.stack([tf.constant(0, tf.uint64), tf.cast(number, tf.uint64) + 1])
    return _integers([2], seed, block)


def _integers(shape: Sequence[int], seed: Any, block: Any, name: str | None = None) -> tf.Tensor:
    """Any of all integers."""
    return tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=shape, key=_key(seed), counter=block, alg=PHILOX, dtype=tf.int32, name=name
    )


def _key(seed: Any) -> tf.Tensor:
    """``[1]``, the seed's two halves as one number of 64 bits."""
    return tf.bitcast(tf.convert_to_tensor(seed, tf.int32), tf.uint64)[tf.newaxis]


@contextmanager
def fast_random() -> Iterator[None]:
    """Within it TFP's kernels draw their numbers, and split their seeds, as written here.

    TFP has no argument for it, so we lend it samplers. It has to surround the Python call of a
    kernel: inside a `tf.function` that is when it is traced, not when it runs. Not for two threads
    at once.

    Examples
    --------
    >>> import tensorflow_probability as tfp
    >>> target = tfp.distributions.Normal(0.0, 1.0)
    >>> hmc = tfp.mcmc.HamiltonianMonteCarlo(target.log_prob, step_size=1.0, num_leapfrog_steps=2)
    >>> start = tf.zeros([3])
    >>> with fast_random():
    ...     drawn, _ = hmc.one_step(start, hmc.bootstrap_results(start), seed=[1, 2])
    >>> drawn.shape
    TensorShape([3])
    """
    before = samplers.normal, samplers.uniform, samplers.split_seed
    samplers.normal, samplers.uniform, samplers.split_seed = normal, uniform, split_seed
    try:
        yield
    finally:
        samplers.normal, samplers.uniform, samplers.split_seed = before
