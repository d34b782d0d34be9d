"""Ordered categories: the cumulative, or ordered logistic, likelihood.

Chapter 06. Thresholds cut the real line into one interval a category, and the response is where the
linear predictor plus logistic noise falls (the proportional odds model: McCullagh 1980).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from lmmbook.families import thresholds
from lmmbook.families.base import Named, OfCategories
from lmmbook.families.derivatives import Derivatives, RegressionSums, Rows
from lmmbook.families.ordered_logistic import OrderedLogistic, bounds, log_above_and_below
from lmmbook.families.responses import in_order, numbers, refuse, those_that_occur

import numpy as np
import pandas as pd
import tensorflow as tf
from tensorflow_probability import distributions as tfd

EXPECTED = "whole numbers or an ordered Categorical for cumulative"


@dataclass(frozen=True)
class Cumulative(OfCategories):
    """Ordered categories: ``P(y <= c) = sigmoid(threshold(c|c+1) - linear predictor)``.

    The response is whole numbers, or an ordered pandas Categorical. The categories are those that
    occur; a warning names others, such as 3 where the ratings are 1, 2, 4 and 5. There is no
    intercept among the parameters: thresholds ``threshold(1|2)``, ``threshold(2|3)``, ... stand in
    its place. To the engine they are an intercept, minus one of them, the ``anchor``, and the
    logarithms of the gaps between neighbours (`thresholds`).

    Chapter 06.

    Parameters
    ----------
    categories, anchor
        Filled in from the data; the anchor is counted from 0.

    Examples
    --------
    >>> Cumulative().bind(pd.Series([1, 3, 2, 2])).categories
    (1, 2, 3)
    >>> Cumulative().bind(pd.Series([1, 2.5, 3]))
    Traceback (most recent call last):
        ...
    ValueError: response: expected whole numbers or an ordered Categorical for cumulative, got [2.5]
    """

    anchor: int = 0

    @property
    def auxiliary(self) -> int:  # type: ignore[override]
        """One gap less than there are thresholds."""
        return len(self.labels) - 2

    def bind(self, response: pd.Series) -> Cumulative:
        """With the categories that occur; a warning names those between them that do not."""
        if isinstance(response.dtype, pd.CategoricalDtype):
            if not response.dtype.ordered:
                raise ValueError(
                    f"response: expected {EXPECTED}, got an unordered one with categories "
                    f"{list(response.dtype.categories)[:5]}"
                )
            categories = in_order(response)
        else:
            values = numbers(response, EXPECTED)
            refuse(response, values != np.round(values), EXPECTED)
            found = sorted({int(value) for value in np.unique(values)})
            # Far apart, they cannot all occur: enough of them to name the first that do not.
            between = range(found[0], min(found[-1], found[0] + len(found) + 5))
            categories = sorted({*found, *between})
        bound = replace(self, categories=those_that_occur(categories, response, "cumulative"))
        return replace(bound, anchor=thresholds.anchor_of(bound.codes(response)))

    def codes(self, response: pd.Series) -> np.ndarray:
        """0, 1, ... in the order of the categories."""
        if response.dtype in ("bool", "boolean"):
            response = response.astype(int)
        return super().codes(response)

    def cutpoints(self, auxiliary: tf.Tensor) -> tf.Tensor:
        """``[categories - 1]`` thresholds, counted from the anchor."""
        return thresholds.from_anchor(auxiliary, self.anchor)

    def distribution(self, predictor: tf.Tensor, auxiliary: tf.Tensor) -> tfd.Distribution:
        """`OrderedLogistic` over 0, 1, ..."""
        return OrderedLogistic(self.cutpoints(auxiliary), predictor)

    def rows(self, response: tf.Tensor, auxiliary: tf.Tensor) -> Rows:
        """The response, its upper and lower threshold, and 1 / expm1 of how far apart they are."""
        cutpoints = self.cutpoints(auxiliary)
        width = 1.0 / tf.math.expm1(cutpoints[1:] - cutpoints[:-1])
        none = tf.constant(np.zeros(1), width.dtype)
        by_category = tf.concat([none, width, none], axis=0)  # the outer ones are infinitely wide
        width = tf.gather(by_category, tf.cast(response, tf.int32))
        return (response, *bounds(cutpoints, response), width)

    def log_density(self, rows: Rows, predictor: tf.Tensor, auxiliary: tf.Tensor) -> tf.Tensor:
        """Without what depends on the thresholds alone."""
        _, upper, lower, _ = rows
        return log_above_and_below(upper - predictor, lower - predictor)

    def derivatives(self, rows: Rows, predictor: tf.Tensor, auxiliary: tf.Tensor) -> Derivatives:
        """In closed form, through the upper threshold a and the lower b of each row."""
        response = rows[0]
        slope, by_a, by_b, curve_a, curve_b, curve_ab = thresholds.derivatives(rows, predictor)
        first, second = [slope], [[-curve_a - curve_b]]
        moves = thresholds.moves(auxiliary, self.anchor)
        none = tf.zeros_like(moves[:1])  # beyond the ends there is no threshold
        at = tf.cast(response, tf.int32)
        ups = tf.unstack(tf.gather(tf.concat([moves, none], axis=0), at), axis=-1)
        downs = tf.unstack(tf.gather(tf.concat([none, moves], axis=0), at), axis=-1)
        moves = list(zip(ups, downs, strict=True))
        first += [up * by_a + down * by_b for up, down in moves]
        second[0] += [up * curve_a + down * curve_b for up, down in moves]
        for j, (up, down) in enumerate(moves):
            row = [second[0][j + 1]]
            for k, (up_k, down_k) in enumerate(moves):
                mixed = (up * down_k + down * up_k - up * up_k - down * down_k) * curve_ab
                mixed -= up * up_k * curve_a + down * down_k * curve_b
                row.append(mixed + first[j + 1] if j == k else mixed)
            second.append(row)
        return Derivatives(first, second)

    def summed(
        self,
        rows: Rows,
        predictor: tf.Tensor,
        auxiliary: tf.Tensor,
        fixed: tf.Tensor,
        counted: tf.Tensor,
    ) -> RegressionSums:
        """As `Family.summed`, by category: a row knows only the two thresholds around it. That is a
        handful of numbers, where derivatives in the parameters of ten categories would be 54."""
        chains, categories = predictor.shape[1], self.auxiliary + 2
        first, by_a, by_b, curve_a, curve_b, curve_ab = (
            tf.reshape(x, predictor.shape) * counted[:, tf.newaxis]
            for x in thresholds.derivatives(rows, tf.reshape(predictor, [-1]))
        )
        curve_a, curve_b, curve_ab = (
            tf.reduce_mean(x, axis=1) for x in (curve_a, curve_b, curve_ab)
        )
        own = tf.reshape(rows[0], predictor.shape)[:, 0]
        one_hot = tf.cast(tf.range(categories, dtype=own.dtype)[:, tf.newaxis] == own, tf.float32)
        parts = [by_a, by_b, tf.stack([curve_a, curve_b, curve_ab], axis=1)]
        parts += [fixed * curve_a[:, tf.newaxis], fixed * curve_b[:, tf.newaxis]]
        sums = tf.cast(tf.matmul(one_hot, tf.concat(parts, axis=1)), tf.float64)
        by_a, by_b, curves, fixed_a, fixed_b = tf.split(
            sums, [chains, chains, 3, fixed.shape[1], fixed.shape[1]], axis=1
        )
        # Of category c, threshold c is the upper one and threshold c - 1 the lower one.
        slope = by_a[:-1] + by_b[1:]  # [thresholds, chains]
        between = -curves[1:-1, 2]  # of neighbours
        information = tf.linalg.diag(
            curves[:-1, 0] + curves[:-1, 2] + curves[1:, 1] + curves[1:, 2]
        )
        information += tf.linalg.diag(between, k=1) + tf.linalg.diag(between, k=-1)
        # The thresholds are the anchor and sums of gaps, and those are exponentials.
        moves = thresholds.moves(tf.cast(auxiliary, tf.float64), self.anchor)
        second_order = tf.linalg.diag(tf.linalg.matvec(moves, tf.reduce_mean(slope, axis=1), True))
        across = tf.matmul(fixed_a[:-1] + fixed_b[1:], moves, transpose_a=True)
        weights = (curve_a + curve_b)[:, tf.newaxis]
        by_fixed = tf.matmul(first, fixed, transpose_a=True)
        return RegressionSums(
            tf.concat([tf.cast(by_fixed, tf.float64), tf.matmul(slope, moves, True)], axis=1),
            tf.cast(tf.matmul(fixed, weights * fixed, transpose_a=True), tf.float64),
            -across,
            tf.matmul(moves, tf.matmul(information, moves), transpose_a=True) - second_order,
        )

    def probabilities(self, predictor: np.ndarray, auxiliary: np.ndarray) -> np.ndarray:
        """``[..., categories]`` for a predictor ``[...]``."""
        cuts = self.cutpoints(tf.constant(auxiliary)).numpy()
        below = tf.sigmoid(cuts - predictor[..., np.newaxis]).numpy()
        ends = np.zeros_like(predictor)[..., np.newaxis]
        return np.diff(np.concatenate([ends, below, ends + 1.0], axis=-1), axis=-1)

    def start(self, response: np.ndarray) -> tuple[float, np.ndarray]:
        """Thresholds that give the categories their shares."""
        below = thresholds.shares_below(response)
        at = np.log(below / (1 - below))
        return -at[self.anchor], np.log(np.diff(at))

    def constrain(self, intercept: Any, auxiliary: np.ndarray) -> Named:
        """The thresholds."""
        at = thresholds.from_anchor(auxiliary, self.anchor).numpy()
        at = at - np.asarray(intercept)[..., np.newaxis]
        return {name: at[..., j][()] for j, name in enumerate(self.names)}, {}

    def unconstrain(self, values: Mapping[str, Any] | pd.Series) -> tuple[Any, np.ndarray]:
        """The inverse of `constrain`.

        Raises
        ------
        ValueError
            If the thresholds do not increase.
        """
        at = np.array([float(values[name]) for name in self.names])
        if (np.diff(at) <= 0).any():
            raise ValueError(f"thresholds: expected increasing ones, got {at.tolist()}")
        return -at[self.anchor], np.log(np.diff(at))

    @property
    def names(self) -> list[str]:
        """``threshold(1|2)``, ..."""
        return [f"threshold({a}|{b})" for a, b in pairwise(self.labels)]
