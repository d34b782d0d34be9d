"""Data with known parameters, as large as you like.

Chapter 08. Fitting simulated data and looking whether the truth comes back is a test that every
method of fitting should pass, and every reader can make.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd


def crossed(
    rows: int,
    factors: Mapping[str, tuple[int, float]],
    *,
    tails: Mapping[str, float] | None = None,
    intercept: float = 3.0,
    slope: float = -0.1,
    residual_sd: float = 1.0,
    thresholds: Sequence[float] | None = None,
    seed: int,
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Ratings with crossed random effects, and the parameters behind them. Chapter 08.

    Parameters
    ----------
    rows
        How many ratings.
    factors
        Name to ``(levels, sd)``. Every level has a rating at least.
    tails
        Name to the sd of the logarithm of how often a level is to be expected; 0 by default, and
        all are alike. Some 1 for the users of a web site, 3 for its items.
    intercept, slope
        Of a covariate ``x`` that is 0 or 1.
    residual_sd
        Of Gaussian ratings.
    thresholds
        If given, ratings are ordered categories 1, 2, ...; increasing, and there is no intercept.

    Returns
    -------
    DataFrame, dict
        The data, with columns ``y``, ``x`` and the factors', and the truth by the names of
        `lmmbook.Fit.parameters`.

    Raises
    ------
    ValueError
        If a factor has more levels than there are rows.

    Examples
    --------
    >>> data, truth = crossed(1000, {"g": (50, 0.5), "h": (20, 0.3)}, seed=0)
    >>> data.shape, truth["sd(g)"]
    ((1000, 4), 0.5)
    """
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 2, rows, dtype=np.int8)
    predictor = slope * x.astype(np.float32)
    truth, columns = {"x": slope}, {}
    for name, (levels, sd) in factors.items():
        if levels > rows:
            raise ValueError(f"{name}: expected at most {rows} levels, got {levels}")
        expected = rng.lognormal(0.0, (tails or {}).get(name, 0.0), levels)
        codes = np.concatenate(
            [np.arange(levels), rng.choice(levels, rows - levels, p=expected / expected.sum())]
        ).astype(np.int32)
        rng.shuffle(codes)
        predictor += rng.normal(0.0, sd, levels).astype(np.float32)[codes]
        columns[name], truth[f"sd({name})"] = codes, sd
    if thresholds is None:
        y = predictor + np.float32(intercept)
        y += np.float32(residual_sd) * rng.standard_normal(rows, dtype=np.float32)
        truth |= {"Intercept": intercept, "sd(residual)": residual_sd}
    else:
        uniform = rng.random(rows, dtype=np.float32)
        y = np.searchsorted(thresholds, predictor + np.log(uniform / (1 - uniform))) + 1
        truth |= {f"threshold({j}|{j + 1})": t for j, t in enumerate(thresholds, start=1)}
        y = y.astype(np.int8)
    return pd.DataFrame({"y": y, "x": x, **columns}), truth
