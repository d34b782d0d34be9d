"""Intervals for all parameters of a fit. Chapter 09."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lmmbook.data.frames import Data
from lmmbook.engine.fit import check_integer, fit_design
from lmmbook.formula.covariance import specs
from lmmbook.inference import bootstrap as by_bootstrap
from lmmbook.inference import profile
from lmmbook.inference.asked import check_level, with_rows

import numpy as np
import pandas as pd
from scipy import stats

if TYPE_CHECKING:
    from lmmbook.results.fit import Fit

METHODS = ("wald", "profile", "bootstrap")


def intervals(
    fit: Fit, level: float, method: str, data: Data | None, parameters: Sequence[str] | None,
    bootstrap: int, draws: int, seed: int, missing: str,
) -> pd.DataFrame:  # fmt: skip
    """See `lmmbook.Fit.intervals`."""
    check_level(level)
    check_integer("bootstrap", bootstrap, 2)
    check_integer("draws", draws, 2)
    if method not in METHODS:
        raise ValueError(f"method: expected one of {METHODS}, got {method!r}")
    names = list(fit.parameters.index) if parameters is None else list(parameters)
    unknown = [name for name in names if name not in fit.parameters.index]
    if unknown:
        raise ValueError(
            f"parameters: expected some of {list(fit.parameters.index)}, got {unknown}"
        )
    if method == "wald":
        return wald(fit, level).loc[names]
    design = with_rows(fit, data, missing)
    if method == "profile":
        if fit.reml:  # it is the likelihood that is profiled
            fit = fit_design(design, seed=seed, progress=False)
        return profile.limits(fit, design, names, level, draws, seed)
    again = by_bootstrap.fits(design, fit.parameters["estimate"], bootstrap, seed, fit.reml)
    drawn = pd.DataFrame([one.parameters["estimate"] for one in again])
    found = drawn[names].quantile([0.5 - level / 2, 0.5 + level / 2]).T
    return found.set_axis(["lower", "upper"], axis=1)


def wald(fit: Fit, level: float) -> pd.DataFrame:
    """The estimate and some standard errors to both sides, on the scale of the error."""
    half = stats.norm.ppf(0.5 + level / 2) * fit.parameters["std_error"]
    found = pd.DataFrame(index=fit.parameters.index, columns=["lower", "upper"], dtype=float)
    for parameter in specs(fit.design):
        name, estimate = parameter.name, fit.parameters["estimate"][parameter.name]
        if np.isfinite(half[name]):
            at = parameter.scale(estimate)
            found.loc[name] = [parameter.back(at + side * half[name]) for side in (-1, 1)]
    return found
