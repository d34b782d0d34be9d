"""A faster random number generator for TensorFlow Probability's kernels.

Chapter 03. TFP 0.25 leaves the choice of a generator to XLA, and what XLA makes of that on a CPU
takes many times as long as Philox (Salmon et al. 2011) asked for by name: the random numbers would
take longer than all the rest of a sweep. TFP has no argument for it, so we lend it samplers that
name one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf
from tensorflow_probability.python.internal import samplers

GENERATOR = "philox"


@contextmanager
def fast_random() -> Iterator[None]:
    """Within it, TFP's kernels draw normal and uniform numbers by Philox, from the same seeds.

    It has to surround the Python call of a kernel: inside a `tf.function` that is when it is
    traced, not when it runs. Not for two threads at once.

    Examples
    --------
    >>> import tensorflow_probability as tfp
    >>> normal = tfp.distributions.Normal(0.0, 1.0)
    >>> hmc = tfp.mcmc.HamiltonianMonteCarlo(normal.log_prob, step_size=1.0, num_leapfrog_steps=2)
    >>> start = tf.zeros([3])
    >>> with fast_random():
    ...     drawn, _ = hmc.one_step(start, hmc.bootstrap_results(start), seed=[1, 2])
    >>> drawn.shape
    TensorShape([3])
    """
    before = samplers.normal, samplers.uniform
    samplers.normal, samplers.uniform = _normal, _uniform
    try:
        yield
    finally:
        samplers.normal, samplers.uniform = before


def _normal(
    shape: Any, mean: Any = 0.0, stddev: Any = 1.0, dtype: Any = tf.float32,
    seed: Any = None, name: str | None = None,
) -> tf.Tensor:  # fmt: skip
    return tf.random.stateless_normal(shape, seed, mean, stddev, dtype, name, alg=GENERATOR)


def _uniform(
    shape: Any, minval: Any = 0, maxval: Any = None, dtype: Any = tf.float32,
    seed: Any = None, name: str | None = None,
) -> tf.Tensor:  # fmt: skip
    return tf.random.stateless_uniform(shape, seed, minval, maxval, dtype, name, alg=GENERATOR)
