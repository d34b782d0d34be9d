"""Step sizes of HMC level by level, and how they adapt.

Chapter 03.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lmmbook.engine.placement import SINGLE_DEVICE, Placement

import numpy as np
import tensorflow as tf

LEAPFROG_STEPS = 2
# In whitened coordinates a quarter turn makes a new value independent of the old one, so no step is
# longer than that; where a likelihood is not Gaussian, adaptation shortens it.
MAX_STEP_SIZE = np.pi / 2 / LEAPFROG_STEPS
TARGET_ACCEPTANCE = 0.9


def longest(levels: int) -> tf.Tensor:
    """Step sizes to start from, ``[levels]``."""
    return tf.fill([levels], np.float32(MAX_STEP_SIZE))


def adapt(
    step_sizes: Sequence[tf.Tensor],
    acceptance: list[tf.Tensor],
    gain: tf.Tensor,
    placement: Placement = SINGLE_DEVICE,
) -> list[tf.Tensor]:
    """Robbins-Monro, level by level: shorten the steps where too few are accepted, up to a limit.

    Both are lists of ``[levels]``.
    """
    pairs = enumerate(zip(step_sizes, acceptance, strict=True))
    return [_levels(placement, k, _adapted, *pair, gain)[0] for k, pair in pairs]


def _levels(placement: Placement, k: int, function: Callable, *tensors: Any) -> tuple[Any, Any]:
    """As `Placement.levels`, of what all chains share: devices have parts of it only where they
    share out the levels."""
    placement = placement if k == placement.shared else SINGLE_DEVICE
    return placement.levels(k, function, (), *tensors)


def _adapted(step: tf.Tensor, accepted: tf.Tensor, gain: tf.Tensor) -> tuple[tf.Tensor, None]:
    return tf.minimum(step * tf.exp(gain * (accepted - TARGET_ACCEPTANCE)), MAX_STEP_SIZE), None


def mean_acceptance(acceptance: list[tf.Tensor], placement: Placement = SINGLE_DEVICE) -> tf.Tensor:
    """Mean over the factors, whatever their levels."""
    sums = [_levels(placement, k, _sum_and_count, a)[1] for k, a in enumerate(acceptance)]
    return tf.reduce_mean([total / count for total, count in sums])


def _sum_and_count(values: tf.Tensor) -> tuple[None, tuple[tf.Tensor, tf.Tensor]]:
    return None, (tf.reduce_sum(values), tf.constant(values.shape[0], tf.float32))
