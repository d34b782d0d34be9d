"""From posterior draws of the effects to linear predictors of new rows.

Chapter 05. `criticism` says what is made of them.

A level that the fit has never seen has effects from the prior. What is averaged row by row
integrates over them: one effect from each of as many equally likely strata as there are draws, in
random order (a Latin hypercube: McKay, Beckman & Conover 1979), the same at each call. So a row's
average does not depend on which rows come with it. For draws of whole data sets each new level has
effects of its own, one set a draw, shared by all its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lmmbook.families import Custom
from lmmbook.families.base import Family
from lmmbook.formula import covariance
from lmmbook.formula.design import Design
from lmmbook.formula.factors import Factor

import numpy as np
import pandas as pd
import tensorflow as tf
from scipy.special import ndtri
from tensorflow_probability import distributions as tfd

STRATA_SEED = 0  # of the places within the strata, and of their order
NUMBERS_AT_ONCE = 2_000_000  # numbers in an array, 16 MB; a few of them are alive at a time

Posterior = Mapping[str, np.ndarray]


def batches(
    new: Design, estimates: pd.Series, posterior: Posterior, seed: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The linear predictor of new rows at each posterior draw, some draws at a time.

    Parameters
    ----------
    new
        The new rows, from `Design.on`.
    posterior
        Factor name to ``[draws, levels]`` or ``[draws, levels, columns]``, as `Fit` has it.
    seed
        None integrates over the effects of new levels; an integer draws them.

    Yields
    ------
    ``[rows, draws]`` of a batch, and the family's auxiliary parameters. Both in double precision,
    except for a likelihood of your own: that is called in single precision, as in the fit.
    """
    beta, covariances, auxiliary = covariance.split_values(new, dict(estimates))
    n = len(next(iter(posterior.values())))
    rng = np.random.default_rng(STRATA_SEED if seed is None else seed)
    known, unseen = [], []
    for factor, matrix in zip(new.factors, covariances, strict=True):
        effects = columns_of(factor, posterior[factor.name])  # [draws, levels, columns]
        if seed is None:
            normal = _strata(n, len(matrix), rng)
        else:
            normal = rng.normal(size=(n, factor.levels - effects.shape[1], len(matrix)))
        known.append(effects)
        # A correlation with an sd of zero is 0.
        unseen.append(normal @ covariance.root(np.nan_to_num(matrix)).T)
    dtype = np.float32 if isinstance(new.family, Custom) else np.float64
    each = max(1, NUMBERS_AT_ONCE // (new.rows * len(new.family.categories or [0])))
    for first in range(0, n, each):
        part = slice(first, first + each)
        effects_of = [
            np.concatenate([u[part], v[part]], 1) for u, v in zip(known, unseen, strict=True)
        ]
        yield linear(new, beta, effects_of).astype(dtype), auxiliary.astype(dtype)


def linear(new: Design, beta: np.ndarray, effects: list[np.ndarray]) -> np.ndarray:
    """``[rows, draws]``, from effects ``[draws, levels, columns]`` a factor.

    Where the effects have fewer levels than the factor, the last one stands for all that remain.
    """
    total = np.tile((new.fixed @ beta + new.offset)[:, np.newaxis], len(effects[0]))
    for factor, u in zip(new.factors, effects, strict=True):
        total += factor.matrix(u.shape[1]) @ u.reshape(len(u), -1).T
    return total


def columns_of(factor: Factor, effects: np.ndarray) -> np.ndarray:
    """``[draws, levels, columns]``, also where a lone intercept's column was left out."""
    return effects[..., np.newaxis] if factor.intercept_only else effects


def ask(family: Family, what: str, function: Callable, *arguments: Any) -> Any:
    """What a distribution says, or an error if it has no such thing (TFP: not implemented)."""
    try:
        return function(*arguments)
    except NotImplementedError as error:
        raise ValueError(
            f"family: expected a distribution with a {what}, got {family!r}"
        ) from error


def is_discrete(distribution: tfd.Distribution) -> bool:
    """Whether the response is whole numbers: TFP knows no bijector onto those."""
    return distribution.experimental_default_event_space_bijector() is None


def log_prob(
    family: Family, predictor: np.ndarray, auxiliary: np.ndarray, response: np.ndarray
) -> np.ndarray:
    """Log density or mass ``[rows, draws]``, constants included; ``response`` ``[rows, 1]``."""
    distribution = family.distribution(tf.constant(predictor), tf.constant(auxiliary))
    kind = predictor.dtype if family.categories is None else np.int32
    return distribution.log_prob(response.astype(kind)).numpy()


def _strata(n: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """``[n, 1, columns]``: n standard normal numbers a column, one from each of n equal strata."""
    order = rng.permuted(np.tile(np.arange(n)[:, np.newaxis], columns), axis=0)
    return ndtri((order + rng.uniform(size=order.shape)) / n)[:, np.newaxis]
