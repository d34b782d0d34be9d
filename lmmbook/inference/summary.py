"""Tests of fixed effects, and of combinations of them.

Chapter 09. In a Gaussian model a t test with Satterthwaite's degrees of freedom, from exact algebra
at the estimates; in others a z test, whose reference is that of many levels and many rows. Of a fit
by maximum likelihood, errors are a little too small where fixed effects rest on few levels; REML is
for that.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from itertools import combinations
from typing import TYPE_CHECKING

from lmmbook.data.frames import Data
from lmmbook.engine.fit import check_integer
from lmmbook.families.gaussian import Gaussian
from lmmbook.formula.covariance import specs
from lmmbook.formula.design import Design
from lmmbook.inference import bootstrap as by_bootstrap
from lmmbook.inference.asked import check_level, warn_unconverged, with_rows
from lmmbook.inference.intervals import wald
from lmmbook.inference.satterthwaite import Satterthwaite

import numpy as np
import pandas as pd
from scipy import stats

if TYPE_CHECKING:
    from lmmbook.results.fit import Fit

COLUMNS = ["estimate", "std_error", "lower", "upper", "statistic", "df", "p_value"]
ADJUSTMENTS = ("holm", "bonferroni", "none")


def summary(
    fit: Fit, data: Data | None, level: float, bootstrap: int, seed: int, missing: str
) -> pd.DataFrame:
    """See `lmmbook.Fit.summary`."""
    names = [p.name for p in specs(fit.design) if p.kind == "fixed"]
    found = fit.parameters[["estimate", "std_error"]].join(wald(fit, level))
    found = found.reindex(columns=COLUMNS)
    each = pd.DataFrame(np.eye(len(names)), index=names, columns=names)
    found.loc[names] = _tests(fit, each, data, level, bootstrap, seed, missing)
    return found


def contrasts(
    fit: Fit,
    asked: str | Mapping[str, Mapping[str, float]],
    adjust: str,
    data: Data | None,
    level: float,
    bootstrap: int,
    seed: int,
    missing: str,
) -> pd.DataFrame:
    """See `lmmbook.Fit.contrasts`."""
    if adjust not in ADJUSTMENTS:
        raise ValueError(f"adjust: expected one of {ADJUSTMENTS}, got {adjust!r}")
    fixed = [p.name for p in specs(fit.design) if p.kind == "fixed"]
    if isinstance(asked, str):
        asked = _pairs(fit.design, asked)
    if not asked:
        raise ValueError("contrasts: expected at least one, got none")
    weights = pd.DataFrame(0.0, index=list(asked), columns=fixed)
    for label, of_names in asked.items():
        unknown = sorted(set(of_names) - set(fixed))
        if unknown:
            raise ValueError(f"contrasts: expected fixed effects of {fixed}, got {unknown}")
        weights.loc[label, list(of_names)] = list(of_names.values())
    found = _tests(fit, weights, data, level, bootstrap, seed, missing)
    found["p_value"] = adjusted(found["p_value"].to_numpy(), adjust)
    return found


def adjusted(p: np.ndarray, how: str) -> np.ndarray:
    """p values for several tests at once, so that an error in any of them has the level's chance
    (Holm 1979)."""
    n = len(p)
    if how == "none":
        return p
    if how == "bonferroni":
        return np.minimum(n * p, 1.0)
    order = np.argsort(p)
    steps = np.maximum.accumulate((n - np.arange(n)) * p[order])
    found = np.empty(n)
    found[order] = np.minimum(steps, 1.0)
    return found


def _tests(
    fit: Fit, weights: pd.DataFrame, data: Data | None, level: float, bootstrap: int, seed: int,
    missing: str,
) -> pd.DataFrame:  # fmt: skip
    """Combinations of fixed effects, a row each, with the columns of `summary`."""
    check_level(level)
    warn_unconverged(fit, "tests of fixed effects", 5)
    check_integer("bootstrap", bootstrap, 0)
    names, rows = list(weights.columns), weights.to_numpy()
    at = fit.parameters["estimate"]
    covariance = fit.covariance.loc[names, names].to_numpy()
    df = np.full(len(rows), np.inf)
    if isinstance(fit.design.family, Gaussian) and not bootstrap:
        exact = Satterthwaite(with_rows(fit, data, missing), at, fit.reml)
        df = exact.degrees_of_freedom(rows)
        if exact.undefined:
            warnings.warn(
                f"degrees of freedom are not defined, for {exact.undefined}: there is no p value, "
                "and intervals are those of many degrees of freedom, which is too short with few "
                "levels",
                stacklevel=4,
            )
        else:
            covariance = exact.covariance
    estimate = rows @ at[names].to_numpy()
    error = np.sqrt(np.einsum("ni,ij,nj->n", rows, covariance, rows))
    statistic = estimate / error
    if bootstrap:
        again = by_bootstrap.fits(with_rows(fit, data, missing), at, bootstrap, seed, fit.reml)
        null = np.array([_statistics(one, names, rows, estimate) for one in again])
        p = (1 + (np.abs(null) >= np.abs(statistic)).sum(0)) / (1 + len(null))
        low, high = np.quantile(null, [0.5 - level / 2, 0.5 + level / 2], axis=0)
        df = np.full(len(rows), np.nan)
    else:
        high = stats.t.ppf(0.5 + level / 2, np.where(np.isnan(df), np.inf, df))
        low, p = -high, np.where(np.isnan(df), np.nan, 2 * stats.t.sf(np.abs(statistic), df))
    values = [estimate, error, estimate - high * error, estimate - low * error, statistic, df, p]
    return pd.DataFrame(dict(zip(COLUMNS, values, strict=True)), index=weights.index)


def _statistics(fit: Fit, names: list[str], rows: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """``[n]``: how far combinations are from the truth, in their errors."""
    away = rows @ fit.parameters["estimate"][names].to_numpy() - truth
    covariance = fit.covariance.loc[names, names].to_numpy()
    return away / np.sqrt(np.einsum("ni,ij,nj->n", rows, covariance, rows))


def _pairs(design: Design, column: str) -> dict[str, dict[str, float]]:
    """All differences between the categories of a column, its reference among them."""
    categories = design._categories.get(column)
    if categories is None:
        known = sorted(design._categories)
        raise ValueError(
            f"contrasts: expected a column with categories, of {known}, got {column!r}"
        )
    alone = {f"{column}[{c}]" for c in categories}
    joined = [
        name
        for name in design.fixed_names
        if name not in alone and any(x.startswith(f"{column}[") for x in name.split(":"))
    ]
    if joined:
        raise ValueError(
            f"contrasts: expected {column!r} in no interaction, got {joined[0]!r}: differences "
            "depend on another column then. Name the combinations that you mean"
        )
    own = {c: f"{column}[{c}]" for c in categories if f"{column}[{c}]" in design.fixed_names}
    reference = [c for c in categories if c not in own]
    if len(reference) != 1 or not own:
        raise ValueError(
            f"contrasts: expected {column!r} as a term with a reference category; name the "
            f"combinations of {list(design.fixed_names)} instead"
        )
    ordered = [*reference, *sorted(own, key=lambda c: design.fixed_names.index(own[c]))]
    at = {c: ({own[c]: 1.0} if c in own else {}) for c in ordered}
    return {
        f"{b} - {a}": at[b] | {name: -w for name, w in at[a].items()}
        for a, b in combinations(ordered, 2)
    }
