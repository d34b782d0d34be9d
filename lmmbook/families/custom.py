"""A likelihood of your own, from any TensorFlow Probability distribution.

Chapter 06.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lmmbook._tensorflow.processes import check_not_forked
from lmmbook.families.base import Family, Named
from lmmbook.families.responses import refuse

import numpy as np
import pandas as pd
import tensorflow as tf
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd


@dataclass(frozen=True, eq=False)
class Custom(Family):
    """Your own likelihood: any TensorFlow Probability distribution. Chapter 06.

    Parameters
    ----------
    distribution_of
        ``(predictor, **parameters) -> distribution`` with one distribution a number in
        ``predictor``, whatever its shape. The link is up to you: the predictor is any real number.
    bijectors
        For each further parameter, by name, a bijector from the real line to where it lives. It
        starts at the image of 0. ``tfb.Exp()`` makes it positive, starting at 1.

    Examples
    --------
    Ratings with heavier tails than the normal distribution has:

    >>> robust = Custom(lambda loc, scale: tfd.StudentT(4.0, loc, scale), {"scale": tfb.Exp()})
    >>> robust.auxiliary
    1
    """

    distribution_of: Callable[..., tfd.Distribution]
    bijectors: Mapping[str, tfb.Bijector]

    @property
    def auxiliary(self) -> int:  # type: ignore[override]
        """How many further parameters there are."""
        return len(self.bijectors)

    def bind(self, response: pd.Series) -> Custom:
        """The distribution has to give every response a positive density."""
        check_not_forked("families.Custom")
        values = self.codes(response)
        start, auxiliary = self.start(values)
        at = tf.fill([len(values), 1], np.float32(start))
        density = self.distribution(at, tf.constant(auxiliary, tf.float32)).log_prob(
            tf.constant(values[:, np.newaxis], tf.float32)
        )
        refuse(
            response, ~np.isfinite(density.numpy()[:, 0]), "values where the distribution is finite"
        )
        return self

    def distribution(self, predictor: tf.Tensor, auxiliary: tf.Tensor) -> tfd.Distribution:
        """Your distribution."""
        values = {
            name: bijector.forward(auxiliary[j])
            for j, (name, bijector) in enumerate(self.bijectors.items())
        }
        return self.distribution_of(predictor, **values)

    def start(self, response: np.ndarray) -> tuple[float, np.ndarray]:
        """Zero, in the unconstrained parameters."""
        return 0.0, np.zeros(self.auxiliary)

    def constrain(self, intercept: Any, auxiliary: np.ndarray) -> Named:
        """``Intercept``, and the parameters by their names."""
        named = {
            name: bijector.forward(auxiliary[..., j].astype(float)).numpy()
            for j, (name, bijector) in enumerate(self.bijectors.items())
        }
        return {"Intercept": intercept}, named

    def unconstrain(self, values: Mapping[str, Any] | pd.Series) -> tuple[Any, np.ndarray]:
        """The inverse of `constrain`."""
        unconstrained = [
            float(bijector.inverse(np.float64(values[name])))
            for name, bijector in self.bijectors.items()
        ]
        return values.get("Intercept"), np.array(unconstrained)
