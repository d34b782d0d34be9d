"""Criticism: what the fitted model predicts, set against what happened.

Chapter 05.
"""

from __future__ import annotations

from collections.abc import Mapping

from lmmbook import covariance
from lmmbook.factors import Factor
from lmmbook.formula import Design

import numpy as np
import pandas as pd


def predict(
    design: Design,
    estimates: pd.Series,
    posterior: Mapping[str, np.ndarray],
    data: pd.DataFrame,
) -> np.ndarray:
    """Posterior predictive mean of each row of ``data``, ``[rows]``.

    One forward pass at the posterior mean of the effects. That is exact for this model because its
    mean is linear in the effects; in general one averages over draws. A level that the fit has
    never seen contributes its prior mean, zero.
    """
    new = design.on(data)
    mean = new.fixed @ estimates[list(new.fixed_names)].to_numpy()
    for factor in new.factors:
        known = _columns(factor, posterior[factor.name]).mean(0)
        effects = np.pad(known, ((0, factor.levels - len(known)), (0, 0)))
        mean += (effects[factor.codes] * factor.z).sum(-1)
    return mean


def draws(
    design: Design,
    estimates: pd.Series,
    posterior: Mapping[str, np.ndarray],
    data: pd.DataFrame,
    n: int,
    seed: int,
) -> np.ndarray:
    """Posterior predictive draws of the response, ``[n, rows]``.

    Each takes one posterior draw of all effects and adds residual noise. A level that the fit has
    never seen gets effects from the prior, one set a draw, shared by all its rows.

    Raises
    ------
    ValueError
        If ``n`` is not between 1 and the number of posterior draws.
    """
    available = len(next(iter(posterior.values())))
    if not 1 <= n <= available:
        raise ValueError(f"n: expected 1 to {available} (the draws kept), got {n!r}")
    new = design.on(data)
    rng = np.random.default_rng(seed)
    chosen = np.linspace(0, available - 1, n).astype(int)  # spread over chains and sweeps
    loc = np.tile(new.fixed @ estimates[list(new.fixed_names)].to_numpy(), (n, 1))
    for factor in new.factors:
        known = _columns(factor, posterior[factor.name][chosen])  # [n, levels, columns]
        none = np.zeros(len(factor.effects))
        matrix = np.nan_to_num(covariance.to_matrix(factor, estimates))
        unseen = rng.multivariate_normal(
            none, matrix, (n, factor.levels - known.shape[1]), method="eigh"
        )
        effects = np.concatenate([known, unseen], axis=1)
        loc += (effects[:, factor.codes] * factor.z).sum(-1)
    return loc + rng.normal(0.0, estimates["sd(residual)"], loc.shape)


def _columns(factor: Factor, effects: np.ndarray) -> np.ndarray:
    """``[draws, levels, columns]``, also where a lone intercept's column was left out."""
    return effects[..., np.newaxis] if factor.intercept_only else effects
