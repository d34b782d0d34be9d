"""A response on a line: the Gaussian likelihood.

Chapter 02. The one with an exact answer beside it, `exact`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmmbook.families.base import Family, Named

import numpy as np
import pandas as pd
import tensorflow as tf
from tensorflow_probability import distributions as tfd


@dataclass(frozen=True)
class Gaussian(Family):
    """Normal likelihood, ``y = linear predictor + residual``. Chapter 02.

    Parameters
    ----------
    sd
        Residual standard deviation, in units of the response. ``None`` (the default) estimates it,
        as lme4 does; a positive number fixes it, as the TensorFlow Probability tutorial does at 1.

    Raises
    ------
    ValueError
        If ``sd`` is a number that is not positive and finite.

    Examples
    --------
    >>> Gaussian()
    Gaussian(sd=None)
    >>> Gaussian(sd=0.0)
    Traceback (most recent call last):
        ...
    ValueError: Gaussian(sd=...): expected None or a positive finite number, got 0.0
    """

    sd: float | None = None
    auxiliary = 1  # the logarithm of the residual sd

    def __post_init__(self) -> None:
        if self.sd is not None and not 0 < self.sd < float("inf"):
            raise ValueError(
                f"Gaussian(sd=...): expected None or a positive finite number, got {self.sd!r}"
            )

    @property
    def estimated(self) -> bool:  # type: ignore[override]
        """Whether the residual sd is estimated."""
        return self.sd is None

    def bind(self, response: pd.Series) -> Gaussian:
        """The response has to vary."""
        values = self.codes(response)
        if np.ptp(values) == 0 and len(values) > 1:
            raise ValueError(f"response: expected values that vary, got {values[0]:g} in every row")
        return self

    def distribution(self, predictor: tf.Tensor, auxiliary: tf.Tensor) -> tfd.Distribution:
        """``Normal(predictor, sd)``."""
        return tfd.Normal(predictor, tf.exp(auxiliary[0]))

    def start(self, response: np.ndarray) -> tuple[float, np.ndarray]:
        """Mean, and logarithm of the standard deviation."""
        sd = float(np.std(response)) if self.sd is None else self.sd
        return float(np.mean(response)), np.log([sd])

    def no_effect_a_row(self, response: np.ndarray) -> str | None:
        """The residual is an effect a row; where it is fixed, the rest can be told."""
        if self.sd is not None:
            return None
        return "the residual is such an effect; leave it out, or fix the residual: Gaussian(sd=...)"

    def constrain(self, intercept: Any, auxiliary: np.ndarray) -> Named:
        """``Intercept`` and ``sd(residual)``."""
        sd = np.exp(auxiliary[..., 0])
        return {"Intercept": intercept}, {
            "sd(residual)": sd if self.sd is None else 0 * sd + self.sd
        }

    def unconstrain(self, values: Mapping[str, Any] | pd.Series) -> tuple[Any, np.ndarray]:
        """The inverse of `constrain`."""
        return values.get("Intercept"), np.log([float(values["sd(residual)"])])
