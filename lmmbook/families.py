"""The likelihoods: how a rating scatters around the linear predictor.

Chapter 02. A family knows nothing about random effects: it sees a linear predictor and returns a
distribution of the response.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gaussian:
    """Normal likelihood, ``y = linear predictor + residual``.

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

    def __post_init__(self) -> None:
        if self.sd is not None and not 0 < self.sd < float("inf"):
            raise ValueError(
                f"Gaussian(sd=...): expected None or a positive finite number, got {self.sd!r}"
            )


def resolve(family: str | Gaussian) -> Gaussian:
    """Turn the ``family`` argument of `lmmbook.fit` into a family object.

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
    ValueError: family: expected "gaussian" or a Gaussian(...) object, got 'gamma'
    """
    if isinstance(family, Gaussian):
        return family
    if family == "gaussian":
        return Gaussian()
    raise ValueError(f'family: expected "gaussian" or a Gaussian(...) object, got {family!r}')
