"""Unordered categories: the categorical likelihood in its one-dimensional form.

Chapter 06. An effect for every category and every level would need (categories - 1) times as many
random effects, and all their covariances, of which a student with a few dozen ratings knows next to
nothing. The stereotype model (Anderson 1984) is the simpler form: one effect a level, and a score
for each category that says how strongly that effect pulls there. The *data* say whether the
categories are ordered along it. Two categories give the logit again.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lmmbook.families.base import Named, OfCategories
from lmmbook.families.derivatives import Derivatives, Rows
from lmmbook.families.responses import in_order, those_that_occur

import numpy as np
import pandas as pd
import tensorflow as tf
from tensorflow_probability import distributions as tfd


@dataclass(frozen=True)
class Categorical(OfCategories):
    """Categories without an order: ``log P(c)/P(first) = intercept(c) + score(c) * predictor``.

    The stereotype model: one linear predictor, without an intercept, for all categories. ``score``
    is 0 for the first category and 1 for the last; the others' are parameters, and so is an
    ``intercept(c)`` for each but the first. So a coefficient, or an effect, is what it adds to the
    log odds of the last category against the first. The labels may be anything; they are sorted,
    or in the order of a pandas Categorical.

    Choose as first and last two categories that the effects tell apart. If the first and the last
    are alike, no scale fits. Chapter 06.

    Parameters
    ----------
    categories
        Filled in from the data.

    Examples
    --------
    >>> family = Categorical().bind(pd.Series(["bus", "car", "bike"]))
    >>> family.categories
    ('bike', 'bus', 'car')
    >>> list(family.constrain(0.0, np.zeros(2))[0] | family.constrain(0.0, np.zeros(2))[1])
    ['intercept(bus)', 'intercept(car)', 'score(bus)']
    """

    @property
    def auxiliary(self) -> int:  # type: ignore[override]
        """An intercept and a score for each category but the first and the last."""
        return 2 * (len(self.labels) - 2)

    def bind(self, response: pd.Series) -> Categorical:
        """With the categories that occur; a warning names those of a Categorical that do not."""
        occur = those_that_occur(in_order(response), response, "categorical")
        return replace(self, categories=occur)

    def recession(self, response: np.ndarray) -> np.ndarray | None:
        """Known of two categories; of more the scores are parameters too."""
        return 2 * response - 1 if len(self.labels) == 2 else None

    def _logits(self, predictor: tf.Tensor, auxiliary: tf.Tensor) -> tf.Tensor:
        """``[..., categories]``."""
        # One category at a time, for `auxiliary` may hold a number a row (see `derivatives`).
        middle = self.auxiliary // 2
        inner = [auxiliary[j] + auxiliary[middle + j] * predictor for j in range(middle)]
        return tf.stack([tf.zeros_like(predictor), *inner, predictor], axis=-1)

    def distribution(self, predictor: tf.Tensor, auxiliary: tf.Tensor) -> tfd.Distribution:
        """`tfd.Categorical` over 0, 1, ..."""
        return tfd.Categorical(logits=self._logits(predictor, auxiliary))

    def log_density(self, rows: Rows, predictor: tf.Tensor, auxiliary: tf.Tensor) -> tf.Tensor:
        """As the distribution's, without a gather for every row."""
        logits = tf.unstack(self._logits(predictor, auxiliary), axis=-1)
        largest = functools.reduce(tf.maximum, logits)
        total = tf.add_n([tf.exp(logit - largest) for logit in logits])
        zero = tf.zeros_like(predictor)
        chosen = [tf.where(tf.equal(rows[0], c), logit, zero) for c, logit in enumerate(logits)]
        return tf.add_n(chosen) - largest - tf.math.log(total)

    def derivatives(self, rows: Rows, predictor: tf.Tensor, auxiliary: tf.Tensor) -> Derivatives:
        """In closed form, by the chain rule through the logits."""
        middle = self.auxiliary // 2
        share = tf.unstack(tf.nn.softmax(self._logits(predictor, auxiliary)), axis=-1)
        missing = [tf.cast(tf.equal(rows[0], c), p.dtype) - p for c, p in enumerate(share)]
        zero, one = tf.zeros([], predictor.dtype), tf.ones([], predictor.dtype)
        scores = [zero, *(auxiliary[middle + j] for j in range(middle)), one]
        mean = tf.add_n([s * p for s, p in zip(scores, share, strict=True)])
        variance = tf.add_n([s * s * p for s, p in zip(scores, share, strict=True)]) - mean * mean
        # Each auxiliary parameter moves one logit, c, by 1 (an intercept) or by the predictor.
        moves = [(j + 1, tf.ones_like(predictor)) for j in range(middle)]
        moves += [(j + 1, predictor) for j in range(middle)]
        first = [tf.add_n([s * m for s, m in zip(scores, missing, strict=True)])]
        first += [by * missing[c] for c, by in moves]
        second = [[-variance]]
        for j, (c, by) in enumerate(moves):
            mixed = -by * share[c] * (scores[c] - mean)
            mixed = mixed + missing[c] if j >= middle else mixed
            second[0].append(mixed)
            own = [by * by_d * share[c] * (share[d] - float(c == d)) for d, by_d in moves]
            second.append([mixed, *own])
        return Derivatives(first, second)

    def probabilities(self, predictor: np.ndarray, auxiliary: np.ndarray) -> np.ndarray:
        """``[..., categories]`` for a predictor ``[...]``."""
        return tf.nn.softmax(self._logits(tf.constant(predictor), tf.constant(auxiliary))).numpy()

    def start(self, response: np.ndarray) -> tuple[float, np.ndarray]:
        """The categories' shares, and scores in equal steps."""
        log_odds = np.log(np.bincount(response.astype(int)))
        log_odds = log_odds - log_odds[0]
        scores = np.linspace(0, 1, len(log_odds))
        away = log_odds - scores * log_odds[-1]
        return log_odds[-1], np.concatenate([away[1:-1], scores[1:-1]])

    def constrain(self, intercept: Any, auxiliary: np.ndarray) -> Named:
        """Intercepts in place of the intercept, scores at the end."""
        labels, middle = self.labels, self.auxiliary // 2
        away, scores = auxiliary[..., :middle], auxiliary[..., middle:]
        intercepts = {
            f"intercept({label})": away[..., j] + scores[..., j] * intercept
            for j, label in enumerate(labels[1:-1])
        }
        named = {f"score({label})": scores[..., j] for j, label in enumerate(labels[1:-1])}
        return intercepts | {f"intercept({labels[-1]})": intercept}, named

    def unconstrain(self, values: Mapping[str, Any] | pd.Series) -> tuple[Any, np.ndarray]:
        """The inverse of `constrain`."""
        labels = self.labels
        last = float(values[f"intercept({labels[-1]})"])
        scores = np.array([float(values[f"score({label})"]) for label in labels[1:-1]])
        own = np.array([float(values[f"intercept({label})"]) for label in labels[1:-1]])
        return last, np.concatenate([own - scores * last, scores])
