"""What the engine asks of a likelihood.

Chapter 06. `families` has the likelihoods that come with the book.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from lmmbook.families.derivatives import Derivatives, RegressionSums, Rows, derivatives_at, summed
from lmmbook.families.responses import numbers, numeric, positions_of

import numpy as np
import pandas as pd
import tensorflow as tf
from tensorflow_probability import distributions as tfd

# Parameters by name: those that stand in the intercept's place, and those that come last.
Named: TypeAlias = tuple[dict[str, Any], dict[str, Any]]


class Family:
    """What the engine asks of a likelihood. Chapter 06.

    Attributes
    ----------
    auxiliary
        How many parameters of its own it has.
    estimated
        Whether these are estimated, or held fixed.
    categories
        The labels of a response that has categories, in order; None for one that has none.
    shares_intercept
        Whether other parameters stand in the intercept's place, so that the formula needs one.
    positive
        Whether they are positive, and their errors those of their logarithms.
    takes_trials
        Whether the response is successes out of trials.
    note
        What to know about the response to read the parameters, in a few words, or nothing.

    Examples
    --------
    >>> family = lmm.families.Cumulative().bind(pd.Series([2, 1, 3, 2]))
    >>> isinstance(family, Family), family.categories, family.auxiliary
    (True, (1, 2, 3), 1)
    """

    auxiliary: int = 0
    estimated: bool = True
    categories: tuple[Any, ...] | None = None
    shares_intercept: bool = False
    positive: bool = False
    takes_trials: bool = False
    note: str = ""

    def bind(self, response: pd.Series) -> Family:
        """The family for these data: it knows the response's categories, if it has any.

        Raises
        ------
        ValueError
            If the response is not one for this family.
        """
        self.codes(response)
        return self

    def codes(self, response: pd.Series) -> np.ndarray:
        """``[rows]`` float64: the response as the distribution takes it. Raises as `bind`.

        Here the response itself, which has to be numbers. Of successes out of trials,
        ``[rows, 2]``.
        """
        return numbers(response)

    def given(self, response: Any) -> tuple[Family, Any]:
        """The likelihood of some rows, and what is random in their response.

        ``response`` is as from `codes`, with any axes after the first. Only a `Binomial` makes a
        difference between the two: a row's trials are given, its successes are random.
        """
        return self, response

    def recession(self, response: np.ndarray) -> np.ndarray | None:
        """``[rows]``: each row's direction of recession, in which its likelihood rises without end.

        1 where a response is ever more likely the larger its predictor, -1 the smaller, 0 where
        there is a best predictor. None if that is not known (`separation`).
        """
        return None

    def distribution(self, predictor: tf.Tensor, auxiliary: tf.Tensor) -> tfd.Distribution:
        """The distribution of the response, one for each number in ``predictor``."""
        raise NotImplementedError

    def rows(self, response: tf.Tensor, auxiliary: tf.Tensor) -> Rows:
        """What a row's density needs besides its predictor: the response, and what depends on it.

        Computed once for many values of the predictor, and of its shape.
        """
        return (response,)

    def log_density(self, rows: Rows, predictor: tf.Tensor, auxiliary: tf.Tensor) -> tf.Tensor:
        """Log density of each row, up to what does not depend on the predictor."""
        return self.distribution(predictor, auxiliary).log_prob(rows[0])

    def value_and_slope(
        self, rows: Rows, predictor: tf.Tensor, auxiliary: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """`log_density`, and its derivative in the predictor: what HMC needs."""
        with tf.GradientTape() as tape:
            tape.watch(predictor)
            value = self.log_density(rows, predictor, auxiliary)
        return value, tape.gradient(value, predictor)

    def derivatives(self, rows: Rows, predictor: tf.Tensor, auxiliary: tf.Tensor) -> Derivatives:
        """First and second derivatives of the log density; here by automatic differentiation.

        No row's density depends on another row's predictor, so the gradient of their sum is each
        row's derivative.
        """
        at = [predictor, *(auxiliary[j] * tf.ones_like(predictor) for j in range(self.auxiliary))]
        zero = tf.UnconnectedGradients.ZERO
        with tf.GradientTape(persistent=True) as outer:
            outer.watch(at)
            with tf.GradientTape() as inner:
                inner.watch(at)
                own = tf.stack(at[1:]) if self.auxiliary else auxiliary
                total = tf.reduce_sum(self.distribution(at[0], own).log_prob(rows[0]))
            first = inner.gradient(total, at, unconnected_gradients=zero)
        second = [outer.gradient(f, at, unconnected_gradients=zero) for f in first]
        return Derivatives(first, second)

    def summed(
        self,
        rows: Rows,
        predictor: tf.Tensor,
        auxiliary: tf.Tensor,
        fixed: tf.Tensor,
        counted: tf.Tensor,
    ) -> RegressionSums:
        """`derivatives` summed over rows, for the M-step and the certificate.

        ``predictor`` is ``[rows, chains]``, ``fixed`` ``[rows, fixed]``; ``counted`` [rows] is 1
        where a row counts, or 0. This serves all families; `Cumulative` has a faster way.
        """
        derivatives = derivatives_at(self, rows, predictor, auxiliary)
        return summed(derivatives, fixed, counted)

    def mean(self, predictor: np.ndarray, auxiliary: np.ndarray) -> np.ndarray:
        """The mean of the response, of the shape of ``predictor``."""
        return self.distribution(tf.constant(predictor), tf.constant(auxiliary)).mean().numpy()

    def probabilities(self, predictor: np.ndarray, auxiliary: np.ndarray) -> np.ndarray:
        """``[..., categories]`` for a predictor ``[...]``, if there are categories."""
        raise ValueError(f"expected a family with categories, or cuts between values, got {self!r}")

    def start(self, response: np.ndarray) -> tuple[float, np.ndarray]:
        """An intercept and auxiliary parameters to start from, with no other effects."""
        raise NotImplementedError

    def no_effect_a_row(self, response: np.ndarray) -> str | None:
        """Why these data do not tell how much an effect of every row varies; None if they do.

        Where one value a row has a variance that is known given its mean, as a count has, any more
        that it varies is that effect's.
        """
        return "one value a row does not tell how much rows differ; leave it out"

    def constrain(self, intercept: Any, auxiliary: np.ndarray) -> Named:
        """Named parameters from the engine's, which are unconstrained (Stan's words for the two).

        Those that stand in the intercept's place, and those that come last: an sd, for one, is
        ``exp(auxiliary)``.

        ``auxiliary`` is ``[..., auxiliary]``, ``intercept`` ``[...]``; values are ``[...]``.
        """
        return {"Intercept": intercept}, {}

    def unconstrain(self, values: Mapping[str, Any] | pd.Series) -> tuple[Any, np.ndarray]:
        """The inverse of `constrain`; the intercept is None where there is none."""
        return values.get("Intercept"), np.zeros(0)


@dataclass(frozen=True)
class OfCategories(Family):
    """What families share whose response is one of several categories."""

    categories: tuple[Any, ...] | None = None
    shares_intercept = True  # not a field

    @property
    def labels(self) -> tuple[Any, ...]:
        """The categories, which `bind` has to have filled in."""
        if self.categories is None:
            raise ValueError(f"{self!r}: expected categories, which bind(response) fills in")
        return self.categories

    def codes(self, response: pd.Series) -> np.ndarray:
        """0, 1, ... in the order of the categories."""
        return positions_of(self.labels, response)

    def mean(self, predictor: np.ndarray, auxiliary: np.ndarray) -> np.ndarray:
        """The mean of the categories, if they are numbers."""
        return self.probabilities(predictor, auxiliary) @ numeric(self.labels)
