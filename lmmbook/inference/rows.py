"""The log density of the rows at a linear predictor, constants included, and its derivatives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

from lmmbook._tensorflow.quiet import quiet_log
from lmmbook.families import Custom
from lmmbook.families.base import Family
from lmmbook.families.gaussian import Gaussian
from lmmbook.formula.design import Design
from lmmbook.results.predictive import NUMBERS_AT_ONCE, log_prob

import numpy as np
import tensorflow as tf


class RowDensity:
    """``log p(y | predictor)`` of a design's rows, with the ``auxiliary`` parameters given.

    In double precision, except for a likelihood of your own, which the fit calls in single. A
    ``predictor`` [rows], whichever, shows the constants.
    """

    def __init__(self, design: Design, auxiliary: np.ndarray, predictor: np.ndarray) -> None:
        self.family = design.family
        self.gaussian = isinstance(design.family, Gaussian)
        self.dtype = np.float32 if isinstance(design.family, Custom) else np.float64
        self.auxiliary = auxiliary.astype(self.dtype)
        self.response = design.response[:, np.newaxis].astype(self.dtype)
        # What `Family.log_density` leaves out does not depend on the predictor: any will show it.
        family, response = self.family.given(design.response[:, np.newaxis])
        at = predictor[:, np.newaxis].astype(self.dtype)
        self.constant = log_prob(family, at, self.auxiliary, response) - self._log_density(at)

    def batches(self, draws: int) -> Iterator[slice]:
        """So many draws at a time that numbers for all rows fit into memory."""
        at_once = max(1, NUMBERS_AT_ONCE // len(self.response))
        return (slice(i, i + at_once) for i in range(0, draws, at_once))

    def of_rows(self, predictor: np.ndarray) -> np.ndarray:
        """``[rows, draws]``, of the same shape."""
        return self._log_density(predictor) + self.constant

    def _log_density(self, predictor: np.ndarray) -> np.ndarray:
        log_density, _ = _compiled(self.family)
        with quiet_log():  # of compiling anew for other numbers of rows and draws
            found = log_density(self.response, predictor.astype(self.dtype), self.auxiliary)
        return found.numpy()

    def derivatives(self, predictor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First and second ones by the predictor, summed over its draws: ``[rows]`` each."""
        _, derivatives = _compiled(self.family)
        with quiet_log():
            found = derivatives(self.response, predictor.astype(self.dtype), self.auxiliary)
        return tuple(x.numpy().astype(float) for x in found)


@cache
def _compiled(family: Family) -> tuple[Callable, Callable]:
    """Functions of response ``[rows, 1]``, predictor ``[rows, draws]`` and auxiliary parameters."""

    def log_density(response: tf.Tensor, predictor: tf.Tensor, auxiliary: tf.Tensor) -> tf.Tensor:
        return family.log_density(family.rows(response, auxiliary), predictor, auxiliary)

    def derivatives(response: tf.Tensor, predictor: tf.Tensor, auxiliary: tf.Tensor) -> tuple:
        each = tf.repeat(response, predictor.shape[1], axis=1)
        rows = family.rows(tf.reshape(each, [-1, *each.shape[2:]]), auxiliary)
        found = family.derivatives(rows, tf.reshape(predictor, [-1]), auxiliary)
        sums = (tf.reshape(x, predictor.shape) for x in (found.first[0], found.second[0][0]))
        return tuple(tf.reduce_sum(x, axis=1) for x in sums)

    return tuple(
        tf.function(f, jit_compile=True, autograph=False) for f in (log_density, derivatives)
    )
