"""The likelihoods: how a response scatters around the linear predictor.

Chapters 02 and 06. A family knows nothing about random effects. It turns a response into numbers
and refuses one that does not fit; given a linear predictor, it is a distribution; and it has the
derivatives that the M-step and the certificate need.

Some families have parameters of their own besides the linear predictor, such as a residual standard
deviation or thresholds. The engine sees these *auxiliary* parameters as unconstrained numbers
``[auxiliary]``; people see them as `Family.constrain` gives them. `base` says what a family
is, `bernoulli` is for no or yes, `binomial` for how often yes, `cumulative` and `categorical` are
for a response with categories, `custom` is for your own.
"""

from __future__ import annotations

from dataclasses import dataclass

from lmmbook.families.base import Family
from lmmbook.families.bernoulli import Bernoulli
from lmmbook.families.binomial import Binomial
from lmmbook.families.categorical import Categorical
from lmmbook.families.cumulative import Cumulative
from lmmbook.families.custom import Custom
from lmmbook.families.derivatives import Rows
from lmmbook.families.gaussian import Gaussian
from lmmbook.families.ordered_logistic import OrderedLogistic
from lmmbook.families.responses import numbers, refuse

import numpy as np
import pandas as pd
import tensorflow as tf
from tensorflow_probability import distributions as tfd

__all__ = [
    "Bernoulli",
    "Binomial",
    "Categorical",
    "Cumulative",
    "Custom",
    "Family",
    "Gaussian",
    "OrderedLogistic",
    "Poisson",
    "resolve",
]


def resolve(family: str | Family) -> Family:
    """Turn the ``family`` argument of `lmmbook.fit` into a family object. Chapter 06.

    Raises
    ------
    ValueError
        If a name is not known.

    Examples
    --------
    >>> resolve("gaussian")
    Gaussian(sd=None)
    >>> resolve("gamma")
    Traceback (most recent call last):
        ...
    ValueError: family: expected one of 'gaussian', 'cumulative', 'bernoulli', 'binomial', \
'poisson', 'categorical', or a family object, got 'gamma'
    """
    if isinstance(family, Family):
        return family
    known = (Gaussian, Cumulative, Bernoulli, Binomial, Poisson, Categorical)
    named = {f.__name__.lower(): f for f in known}
    if not isinstance(family, str) or family not in named:
        expected = ", ".join(map(repr, named))
        raise ValueError(f"family: expected one of {expected}, or a family object, got {family!r}")
    return named[family]()


@dataclass(frozen=True)
class Poisson(Family):
    """A count, ``log mean = linear predictor``. Chapter 06.

    Exposure goes in as ``offset(np.log(exposure))``.

    Examples
    --------
    >>> Poisson().codes(pd.Series([0, 3, -1]))
    Traceback (most recent call last):
        ...
    ValueError: response: expected counts (0, 1, 2, ...) for poisson, got [-1]
    """

    def codes(self, response: pd.Series) -> np.ndarray:
        """The counts."""
        values = numbers(response)
        wrong = (values < 0) | (values != np.round(values))
        refuse(response, wrong, "counts (0, 1, 2, ...) for poisson")
        return values

    def bind(self, response: pd.Series) -> Poisson:
        """Not all counts may be zero."""
        if not self.codes(response).any():
            raise ValueError("response: expected counts that are not all zero for poisson")
        return self

    def recession(self, response: np.ndarray) -> np.ndarray:
        """A count of zero wants its predictor down."""
        return np.where(response == 0, -1.0, 0.0)

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
