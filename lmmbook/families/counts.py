"""Counts: the Poisson likelihood, and the negative binomial one.

Chapter 06. Both have ``log mean = linear predictor``; they differ in how much counts of equal mean
vary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from lmmbook.families.base import Family, Named
from lmmbook.families.derivatives import Derivatives, Rows
from lmmbook.families.responses import numbers, refuse

import numpy as np
import pandas as pd
import tensorflow as tf
from tensorflow_probability import distributions as tfd

FEWEST, MOST = 0.1, 50.0  # a shape to start from
SHIFT = 8  # from where on what a short series leaves out is below 2e-6


class OfCounts(Family):
    """What families share whose response is 0, 1, 2, ... and whose mean is ``exp(predictor)``."""

    def codes(self, response: pd.Series) -> np.ndarray:
        """The counts."""
        values = numbers(response)
        wrong = (values < 0) | (values != np.round(values))
        refuse(response, wrong, f"counts (0, 1, 2, ...) for {type(self).__name__.lower()}")
        return values

    def bind(self, response: pd.Series) -> Self:
        """Not all counts may be zero."""
        if not self.codes(response).any():
            name = type(self).__name__.lower()
            raise ValueError(f"response: expected counts that are not all zero for {name}")
        return self

    def recession(self, response: np.ndarray) -> np.ndarray:
        """A count of zero wants its predictor down."""
        return np.where(response == 0, -1.0, 0.0)


@dataclass(frozen=True)
class Poisson(OfCounts):
    """A count, ``log mean = linear predictor``. Chapter 06.

    Exposure goes in as ``offset(np.log(exposure))``.

    Examples
    --------
    >>> Poisson().codes(pd.Series([0, 3, -1]))
    Traceback (most recent call last):
        ...
    ValueError: response: expected counts (0, 1, 2, ...) for poisson, got [-1]
    """

    def distribution(self, predictor: tf.Tensor, auxiliary: tf.Tensor) -> tfd.Distribution:
        """``Poisson(log_rate=predictor)``."""
        return tfd.Poisson(log_rate=predictor)

    def log_density(self, rows: Rows, predictor: tf.Tensor, auxiliary: tf.Tensor) -> tf.Tensor:
        """Without the factorial, which is a constant."""
        return rows[0] * predictor - tf.exp(predictor)

    def start(self, response: np.ndarray) -> tuple[float, np.ndarray]:
        """The logarithm of the mean."""
        return float(np.log(response.mean())), np.zeros(0)

    def no_effect_a_row(self, response: np.ndarray) -> str | None:
        """Counts tell: such an effect is how they vary by more than a Poisson's variance."""
        return None


@dataclass(frozen=True)
class NegativeBinomial(OfCounts):
    """A count that varies more than a Poisson's: ``variance = mean + mean^2 / shape``. Chapter 06.

    ``log mean = linear predictor``. It is a Poisson count whose rate is the mean times a gamma
    variable of this shape and of mean 1: the smaller the shape, the more counts of equal mean vary,
    and as it grows they become Poisson. MASS and lme4's ``glmer.nb`` call it theta, glmmTMB's
    ``nbinom2`` the dispersion parameter, statsmodels 1 / alpha, brms the shape. Its standard error
    is that of its logarithm.

    Where counts vary no more than a Poisson's, no shape is the best one: the larger, the better.
    Then use ``"poisson"``.

    Examples
    --------
    >>> family = NegativeBinomial()
    >>> counts = family.distribution(tf.math.log([3.0]), tf.math.log([2.0]))
    >>> counts.variance().numpy().round(3)  # 3 + 9 / 2
    array([7.5], dtype=float32)
    """

    auxiliary = 1  # the logarithm of the shape
    positive = True

    def distribution(self, predictor: tf.Tensor, auxiliary: tf.Tensor) -> tfd.Distribution:
        """``NegativeBinomial(shape, logits=predictor - log shape)``."""
        return tfd.NegativeBinomial(tf.exp(auxiliary[0]), logits=predictor - auxiliary[0])

    def log_density(self, rows: Rows, predictor: tf.Tensor, auxiliary: tf.Tensor) -> tf.Tensor:
        """Without what depends on the shape alone. Two small terms, where nothing cancels."""
        logit, shape = predictor - auxiliary[0], tf.exp(auxiliary[0])
        return -rows[0] * tf.nn.softplus(-logit) - shape * tf.nn.softplus(logit)

    def value_and_slope(
        self, rows: Rows, predictor: tf.Tensor, auxiliary: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """With one exponential and one logarithm for both."""
        y, logit, shape = rows[0], predictor - auxiliary[0], tf.exp(auxiliary[0])
        odds = tf.exp(-tf.abs(logit))  # of the less likely side
        value = y * tf.minimum(logit, 0.0) - shape * tf.maximum(logit, 0.0)
        small, large = odds / (1 + odds), 1 / (1 + odds)
        slope = tf.where(logit > 0, y * small - shape * large, y * large - shape * small)
        return value - (y + shape) * tf.math.log1p(odds), slope

    def derivatives(self, rows: Rows, predictor: tf.Tensor, auxiliary: tf.Tensor) -> Derivatives:
        """In closed form; see `Family.derivatives`."""
        y, logit, shape = rows[0], predictor - auxiliary[0], tf.exp(auxiliary[0])
        p, q = tf.sigmoid(logit), tf.sigmoid(-logit)
        digamma, trigamma = polygamma_differences(y, shape)
        slope, curvature = y * q - shape * p, (y + shape) * p * q
        by_shape = shape * digamma - shape * tf.nn.softplus(logit) - slope
        second = by_shape + slope - shape**2 * trigamma + 2 * shape * p - curvature
        mixed = curvature - shape * p
        return Derivatives([slope, by_shape], [[-curvature, mixed], [mixed, second]])

    def start(self, response: np.ndarray) -> tuple[float, np.ndarray]:
        """The logarithm of the mean, and the shape that the mean and the variance have."""
        mean, variance = response.mean(), response.var()
        shape = mean**2 / max(variance - mean, mean**2 / MOST)
        return float(np.log(mean)), np.log([max(shape, FEWEST)])

    def no_effect_a_row(self, response: np.ndarray) -> str | None:
        """The shape is how rows differ."""
        return (
            "the shape is how much rows differ, already; leave it out, or take family='poisson', "
            "where it takes the shape's place"
        )

    def constrain(self, intercept: Any, auxiliary: np.ndarray) -> Named:
        """``Intercept`` and ``shape``."""
        return {"Intercept": intercept}, {"shape": np.exp(auxiliary[..., 0])}

    def unconstrain(self, values: Mapping[str, Any] | pd.Series) -> tuple[Any, np.ndarray]:
        """The inverse of `constrain`."""
        return values.get("Intercept"), np.log([float(values["shape"])])


def polygamma_differences(y: tf.Tensor, shape: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """``digamma(y + shape) - digamma(shape)`` and ``trigamma(shape) - trigamma(y + shape)``.

    In single precision they are sums in which nothing cancels: by the recurrences up to `SHIFT`,
    and from there by the asymptotic series (Abramowitz & Stegun 6.3.5, 6.3.18, 6.4.6, 6.4.12).
    Where the shape is large the two functions differ in digits that single precision does not have;
    in double precision they cost more than all the rest of a sweep.
    """
    if y.dtype != tf.float32:
        one = tf.ones_like(shape)
        return (
            tf.math.digamma(y + shape) - tf.math.digamma(shape),
            tf.math.polygamma(one, shape) - tf.math.polygamma(one, y + shape),
        )
    first, second = tf.zeros_like(y), tf.zeros_like(y)
    for k in range(SHIFT):
        a, b = 1 / (shape + k), 1 / (y + shape + k)
        gap = y * a * b  # a - b
        first, second = first + gap, second + gap * (a + b)
    a, b = 1 / (shape + SHIFT), 1 / (y + shape + SHIFT)
    gap = y * a * b
    first += tf.math.log1p(y * a) + gap / 2 + gap * (a + b) / 12
    second += gap + gap * (a + b) / 2 + gap * (a * a + a * b + b * b) / 6
    return first, second
