"""No or yes: the Bernoulli likelihood.

Chapter 06. One answer a row; `binomial` is for several.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from lmmbook.families.base import Family
from lmmbook.families.derivatives import Rows
from lmmbook.families.ordered_logistic import log_sigmoid
from lmmbook.families.responses import in_order, numbers, positions_of, refuse

import numpy as np
import pandas as pd
import tensorflow as tf
from tensorflow_probability import distributions as tfd

EXPECTED = "0 and 1 for bernoulli"


@dataclass(frozen=True)
class Bernoulli(Family):
    """A response that is no or yes, ``logit P(yes) = linear predictor``. Chapter 06.

    It is 0 and 1, False and True, or two labels. Of labels the *second* is the yes, as in R's
    ``glm``: sorted, or in the order of a pandas Categorical; ``y['yes']`` in the formula chooses.

    Parameters
    ----------
    categories
        The two labels, no and yes. Filled in from the data; None for 0 and 1, or False and True.

    Examples
    --------
    >>> Bernoulli().codes(pd.Series([True, False]))
    array([1., 0.])
    >>> Bernoulli().bind(pd.Series(["yes", "no", "no"]))
    Bernoulli(categories=('no', 'yes'))
    >>> Bernoulli().bind(pd.Series(["a", "b", "c"]))
    Traceback (most recent call last):
        ...
    ValueError: response: expected two labels for bernoulli, got 3: ['a', 'b', 'c']; \
family='categorical' takes more than two, or make a column that is True where it is a yes
    """

    categories: tuple[Any, Any] | None = None

    @property
    def note(self) -> str:  # type: ignore[override]
        """Which of two labels is modelled."""
        if self.categories is None:
            return ""
        no, yes = self.categories
        return f"modelled is the probability of {yes!r}, and not of {no!r}"

    def codes(self, response: pd.Series) -> np.ndarray:
        """0.0 for no, and 1.0 for yes."""
        if self.categories is not None:
            return positions_of(self.categories, response)
        if not is_number(response):
            refuse(response, np.ones(len(response), bool), EXPECTED)
        values = numbers(response.astype(float))
        wrong = ~np.isin(values, [0, 1])
        if wrong.any():
            two = f", or C({response.name}) for two labels" if len(np.unique(values)) == 2 else ""
            trials = "; for successes out of trials write p(successes, trials) with "
            refuse(response, wrong, EXPECTED, f"{trials}family='binomial'{two}")
        return values

    def bind(self, response: pd.Series) -> Bernoulli:
        """Both values have to occur."""
        if is_number(response):
            bound = replace(self, categories=None)
            values = bound.codes(response)
            if len(np.unique(values)) < 2:
                raise ValueError(f"response: expected both {EXPECTED}, got only {values[0]:g}")
            return bound
        labels = _labels(response)
        two = "response: expected two labels for bernoulli, got"
        if len(labels) == 1:
            raise ValueError(f"{two} only {labels[0]!r}")
        if len(labels) > 2:
            raise ValueError(
                f"{two} {len(labels)}: {labels[:5]}; family='categorical' takes more than two, or "
                "make a column that is True where it is a yes"
            )
        return replace(self, categories=tuple(labels))

    def recession(self, response: np.ndarray) -> np.ndarray:
        """A yes wants its predictor up, a no down."""
        return 2 * response - 1

    def distribution(self, predictor: tf.Tensor, auxiliary: tf.Tensor) -> tfd.Distribution:
        """``Bernoulli(logits=predictor)``."""
        return tfd.Bernoulli(logits=predictor, dtype=predictor.dtype)

    def log_density(self, rows: Rows, predictor: tf.Tensor, auxiliary: tf.Tensor) -> tf.Tensor:
        """``log sigmoid`` of the predictor, or of minus it where the answer is no."""
        return log_sigmoid((2.0 * rows[0] - 1.0) * predictor)

    def probabilities(self, predictor: np.ndarray, auxiliary: np.ndarray) -> np.ndarray:
        """``[..., 2]``, of no and of yes, for a predictor ``[...]``."""
        return tf.sigmoid(np.stack([-predictor, predictor], axis=-1)).numpy()

    def start(self, response: np.ndarray) -> tuple[float, np.ndarray]:
        """The logit of the mean."""
        mean = response.mean()
        return float(np.log(mean / (1 - mean))), np.zeros(0)

    def no_effect_a_row(self, response: np.ndarray) -> str | None:
        """One answer does not tell how rows differ."""
        return "one yes or no a row does not tell how much rows differ; leave it out"


def is_number(response: pd.Series) -> bool:
    """Whether the values are numbers, or False and True, in whatever kind of column."""
    if isinstance(response.dtype, pd.CategoricalDtype):
        return False
    if response.dtype != object:
        kind = response.dtype.kind
        return kind != "c" and (pd.api.types.is_numeric_dtype(response.dtype) or kind == "b")
    kinds = ("boolean", "integer", "floating", "mixed-integer-float", "decimal")
    return pd.api.types.infer_dtype(response, skipna=False) in kinds


def _labels(response: pd.Series) -> list[Any]:
    """The labels that occur: in the order of a Categorical, else sorted."""
    found = response.unique().tolist()
    categorical = isinstance(response.dtype, pd.CategoricalDtype)
    if not categorical and not all(isinstance(label, str) for label in found):
        raise ValueError(
            "response: expected 0 and 1, False and True, or two strings for bernoulli, got "
            f"{response.dtype} ({found[0]!r}, ...)"
        )
    return [label for label in in_order(response) if label in set(found)]
