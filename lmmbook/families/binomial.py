"""Successes out of trials: the binomial likelihood.

Chapter 06. Answers that share their row's covariates and effects need not be written out: it is
enough how many there are, and how many of them are yes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from lmmbook.families.base import Family
from lmmbook.families.bernoulli import Bernoulli, is_number
from lmmbook.families.derivatives import Derivatives, Rows
from lmmbook.families.responses import numbers

import numpy as np
import pandas as pd
import tensorflow as tf
from tensorflow_probability import distributions as tfd

FEWEST = 0.1  # share of rows with more than one trial that an effect a row needs


@dataclass(frozen=True)
class Binomial(Family):
    """Successes out of trials, ``logit P(success) = linear predictor``. Chapter 06.

    In the formula the response is ``p(k, n)``: k successes out of n trials, columns with whole
    numbers, or a number n. R writes ``cbind(k, n - k)``. A response that is no or yes is one trial,
    and fitted as `Bernoulli`.

    A prediction is the probability of a success, and needs no trials; draws, cuts and scores are of
    the successes, out of each row's own trials.

    Parameters
    ----------
    trials
        Of the rows at hand, as `given` fills them in; a fit's family does not know any.

    Examples
    --------
    >>> heads = pd.DataFrame({"k": [3, 0], "n": [4, 2]})
    >>> Binomial().codes(heads)
    array([[3., 4.],
           [0., 2.]])
    >>> Binomial().codes(heads.assign(n=1))
    Traceback (most recent call last):
        ...
    ValueError: response p(k, n): expected no more successes than trials, got 3 of 1 in row 0
    """

    trials: Any = field(default=None, compare=False, repr=False)
    takes_trials = True  # not a field

    def bind(self, response: Any) -> Family:
        """There have to be successes and failures."""
        if isinstance(response, pd.Series):
            return Bernoulli().bind(response)
        k, n = self.codes(response).T
        if not k.any() or (k == n).all():
            only = "successes" if k.any() else "failures"
            raise ValueError(
                f"response {_p(response)}: expected successes and failures, got only {only}"
            )
        return self

    def codes(self, response: Any) -> np.ndarray:
        """``[rows, 2]``: successes, and trials."""
        k, n = (_counts(response, j) for j in range(2))
        _refuse(response, n < 1, "at least one trial in each row", "; leave such rows out")
        _refuse(response, k < 0, "no negative number of successes")
        _refuse(response, k > n, "no more successes than trials")
        return np.stack([k, n], axis=1)

    def given(self, response: Any) -> tuple[Family, Any]:
        """The family with the trials, and the successes."""
        return replace(self, trials=response[..., 1]), response[..., 0]

    def recession(self, response: np.ndarray) -> np.ndarray:
        """A row of successes alone wants its predictor up, one of failures alone down."""
        k, n = response.T
        return np.where(k == n, 1.0, np.where(k == 0, -1.0, 0.0))

    def distribution(self, predictor: tf.Tensor, auxiliary: tf.Tensor) -> tfd.Distribution:
        """``Binomial(trials, logits=predictor)``."""
        if self.trials is None:
            raise ValueError("Binomial: expected trials, which given(response) fills in")
        return tfd.Binomial(tf.cast(self.trials, predictor.dtype), logits=predictor)

    def rows(self, response: tf.Tensor, auxiliary: tf.Tensor) -> Rows:
        """Successes and trials."""
        return response[..., 0], response[..., 1]

    def log_density(self, rows: Rows, predictor: tf.Tensor, auxiliary: tf.Tensor) -> tf.Tensor:
        """Without the binomial coefficient. Two small terms, where nothing cancels."""
        k, n = rows
        return -k * tf.nn.softplus(-predictor) - (n - k) * tf.nn.softplus(predictor)

    def derivatives(self, rows: Rows, predictor: tf.Tensor, auxiliary: tf.Tensor) -> Derivatives:
        """In closed form; see `Family.derivatives`."""
        k, n = rows
        probability = tf.sigmoid(predictor)
        curvature = -n * probability * tf.sigmoid(-predictor)
        return Derivatives([k - n * probability], [[curvature]])

    def mean(self, predictor: np.ndarray, auxiliary: np.ndarray) -> np.ndarray:
        """The probability of a success: the mean of the share of successes, for any trials."""
        return tf.sigmoid(predictor).numpy()

    def start(self, response: np.ndarray) -> tuple[float, np.ndarray]:
        """The logit of all successes out of all trials."""
        k, n = response.sum(axis=0)
        return float(np.log(k / (n - k))), np.zeros(0)

    def no_effect_a_row(self, response: np.ndarray) -> str | None:
        """Rows with more than one trial tell."""
        several = int((response[:, 1] > 1).sum())
        if several >= max(2, FEWEST * len(response)):
            return None
        return (
            f"only {several} of the rows have more than one trial, and one does not tell how much "
            "rows differ; leave it out"
        )


def _p(response: pd.DataFrame) -> str:
    k, n = response.columns
    return f"p({k}, {n})"


def _counts(response: pd.DataFrame, j: int) -> np.ndarray:
    """A column of whole numbers, float64."""
    column, which = response.iloc[:, j], ("successes", "trials")[j]
    expected = f"whole numbers of {which}"
    if not is_number(column):
        raise ValueError(
            f"response {_p(response)}: expected {expected}, got {column.dtype} "
            f"({column.iloc[0]!r}, ...) in {column.name!r}"
        )
    values = numbers(column.astype(float))
    shares = "; multiply shares by the trials" if ((values >= 0) & (values <= 1)).all() else ""
    _refuse(response, values != np.round(values), expected, shares)
    return values


def _refuse(response: pd.DataFrame, wrong: np.ndarray, expected: str, remedy: str = "") -> None:
    """Raise if any row is wrong, and show the first."""
    if wrong.any():
        row = int(np.argmax(wrong))
        k, n = response.iloc[row].tolist()
        raise ValueError(
            f"response {_p(response)}: expected {expected}, got {k} of {n} in row "
            f"{response.index[row]}{remedy}"
        )
