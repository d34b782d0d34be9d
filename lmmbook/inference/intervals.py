"""Intervals for all parameters of a fit. Chapter 09."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lmmbook.data.frames import Data
from lmmbook.engine.fit import check_integer, fit_design
from lmmbook.families import Custom
from lmmbook.formula.covariance import specs
from lmmbook.inference import bootstrap as by_bootstrap
from lmmbook.inference import profile
from lmmbook.inference.asked import check_level, warn_unconverged, with_rows

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
    warn_unconverged(fit, "intervals")
    design = with_rows(fit, data, missing)
    if method == "profile":
        if fit.reml:  # it is the likelihood that is profiled, around its own maximum
            fit = fit_design(design, seed=seed, chains=fit.chains, progress=False)
            warn_unconverged(fit, "intervals, of the likelihood")
        return profile.limits(fit, design, names, level, draws, seed)
    again = by_bootstrap.fits(design, fit.parameters["estimate"], bootstrap, seed, fit.reml)
    drawn = pd.DataFrame([one.parameters["estimate"] for one in again])
    found = drawn[names].quantile([0.5 - level / 2, 0.5 + level / 2]).T
    found.columns = ["lower", "upper"]
    cors = [p.name for p in specs(fit.design) if p.kind == "cor"]
    of = fit.parameters.loc[names]
    none = of["std_error"].isna() & (~of["at_boundary"] | of.index.isin(cors))
    return found.mask(none, np.nan)


def wald(fit: Fit, level: float) -> pd.DataFrame:
    """The estimate and some standard errors to both sides, on the scale of the error; of a
    parameter of your own likelihood, on the real line that its bijector starts from."""
    family = fit.design.family
    own = family.bijectors if isinstance(family, Custom) else {}
    half = stats.norm.ppf(0.5 + level / 2) * fit.parameters["std_error"]
    found = pd.DataFrame(index=fit.parameters.index, columns=["lower", "upper"], dtype=float)
    for parameter in specs(fit.design):
        name, estimate = parameter.name, fit.parameters["estimate"][parameter.name]
        if not np.isfinite(half[name]):
            continue
        scale, back, reach = parameter.scale, parameter.back, half[name]
        if parameter.kind == "auxiliary" and name in own:
            scale, back = own[name].inverse, own[name].forward
            at = own[name].inverse(np.float64(estimate))
            reach *= float(np.exp(-own[name].forward_log_det_jacobian(at, event_ndims=0)))
        at = float(scale(np.float64(estimate)))
        found.loc[name] = sorted(float(back(np.float64(at + side * reach))) for side in (-1, 1))
    return found
