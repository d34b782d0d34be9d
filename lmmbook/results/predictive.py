"""From posterior draws of the effects to linear predictors of new rows.

Chapter 05. `criticism` says what is made of them.

A level that the fit has never seen has effects from the prior. What is averaged row by row
integrates over them: one effect from each of as many equally likely strata as there are draws, in
random order (a Latin hypercube: McKay, Beckman & Conover 1979), the same at each call. So a row's
average does not depend on which rows come with it. For draws of whole data sets each new level has
effects of its own, one set a draw, shared by all its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from lmmbook.data.frames import Data
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
Groups = str | Collection[str] | None
POPULATION = "population"


def rows_for(
    design: Design, posterior: Posterior, data: Data, missing: str, groups: Groups, **asked: Any
) -> tuple[Design, Posterior]:
    """The new rows, and the posterior draws, for a prediction to ``groups``, as `Fit.predict` has
    them: without the factors whose effects are zero, or without what is known of any level.

    Raises
    ------
    ValueError
        If ``groups`` are no factors of this design.
    """
    if groups is None:
        return design.on(data, missing, **asked), posterior
    if groups == POPULATION:
        nobody = {name: effects[:, :0] for name, effects in posterior.items()}
        return design.on(data, missing, **asked), nobody
    names = [factor.name for factor in design.factors]
    if isinstance(groups, str) or not set(groups) <= set(names):
        raise ValueError(
            f"groups: expected None, {POPULATION!r} or a list of some of {names}, got {groups!r}"
        )
    return design.on(data, missing, groups=groups, **asked), posterior


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
    n = len(next(iter(posterior.values()))) if new.factors or seed is not None else 1
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
        draws = len(range(n)[part])
        yield linear(new, beta, effects_of, draws).astype(dtype), auxiliary.astype(dtype)


def linear(new: Design, beta: np.ndarray, effects: list[np.ndarray], draws: int) -> np.ndarray:
    """``[rows, draws]``, from effects ``[draws, levels, columns]`` a factor.

    Where the effects have fewer levels than the factor, the last one stands for all that remain.
    """
    total = np.tile((new.fixed @ beta + new.offset)[:, np.newaxis], draws)
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


def check_cuts(family: Family, cuts: Sequence[float]) -> np.ndarray:
    """Numbers that cut the scale of a response into intervals, or a ValueError."""
    at = np.array(cuts, float)
    increasing = at.ndim == 1 and len(at) > 0 and (np.diff(at) > 0).all()
    if not increasing or not np.isfinite(at).all():
        raise ValueError(f"cuts: expected increasing finite numbers, got {cuts!r}")
    if family.categories is not None:
        raise ValueError(
            "cuts: expected None, for the response has categories "
            f"{list(family.categories)}, got {cuts!r}"
        )
    return at


def masses(
    family: Family, predictor: np.ndarray, auxiliary: np.ndarray, cuts: np.ndarray
) -> np.ndarray:
    """``[rows, cuts + 1]``: the mass between neighbouring cuts, added up over the draws."""
    distribution = family.distribution(tf.constant(predictor), tf.constant(auxiliary))
    # Between whole numbers TFP would interpolate.
    ends = (np.floor(cuts) if is_discrete(distribution) else cuts).astype(auxiliary.dtype)
    below = [ask(family, "cdf", distribution.cdf, end).numpy().sum(1) for end in ends]
    none = np.zeros(len(predictor))
    return np.diff([none, *below, none + predictor.shape[1]], axis=0).T


def _strata(n: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """``[n, 1, columns]``: n standard normal numbers a column, one from each of n equal strata."""
    order = rng.permuted(np.tile(np.arange(n)[:, np.newaxis], columns), axis=0)
    return ndtri((order + rng.uniform(size=order.shape)) / n)[:, np.newaxis]
