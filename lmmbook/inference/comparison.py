"""Comparing nested models by the ratio of their likelihoods. Chapter 06."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lmmbook.data.frames import Data
from lmmbook.engine.fit import check_integer
from lmmbook.families.gaussian import Gaussian
from lmmbook.formula.covariance import ParameterSpec
from lmmbook.formula.design import Design
from lmmbook.formula.factors import Factor
from lmmbook.inference import bootstrap as by_bootstrap
from lmmbook.inference import one_variance
from lmmbook.inference.asked import warn_unconverged, with_rows
from lmmbook.inference.likelihood import of_rows
from lmmbook.inference.nested import added, check_nested

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from lmmbook.results.fit import Fit

ROUNDING = 1e-6  # of a statistic
DRAWS = 50_000  # of the distribution under the small model, where it can be drawn from


@dataclass(frozen=True)
class Comparison:
    """Two nested models compared: what `lmmbook.compare` returns. Chapter 06.

    Attributes
    ----------
    statistic, mcse
        The likelihood ratio statistic, twice the difference of the log-likelihoods at the
        estimates, and the Monte Carlo standard error of that (see `LogLikelihood`; zero for
        Gaussian fits). What estimates miss of their maxima is not in it.
    df
        How many parameters the larger model has more.
    p_value, p_mcse
        The chance of so large a statistic under the smaller model, and its Monte Carlo standard
        error; NaN where it is not known.
    method
        How the p value was found, or why there is none.
    """

    statistic: float
    mcse: float
    df: int
    p_value: float
    p_mcse: float
    method: str

    def __str__(self) -> str:
        p = f"p = {self.p_value:.3g}"
        p += f" ± {self.p_mcse:.1g}" if self.p_mcse > 0 else ""
        known = "" if np.isnan(self.p_value) else f", {p}"
        error = f" ± {self.mcse:.2g}" if self.mcse > 0 else ""
        return (
            f"LR = {self.statistic:.3f}{error}, {self.df} more parameter(s){known}\n{self.method}"
        )


def compare(
    small: Fit,
    large: Fit,
    *,
    bootstrap: int = 0,
    mixture: bool = False,
    draws: int = 100,
    seed: int = 0,
    data: Data | None = None,
    missing: str = "raise",
) -> Comparison:
    """Likelihood ratio test of a smaller model within a larger one. Chapter 06.

    If they differ in fixed effects or correlations alone, the statistic is compared with a
    chi-square, which is its distribution with many levels and rows; with few it rejects too often.
    If the models are Gaussian, with a residual sd that was estimated, and the larger has one
    variance more, the distribution is drawn from for as few levels as there are, the other
    variances held at their estimates (Crainiceanu & Ruppert 2004; for up to 50 million rows times
    levels). Otherwise only ``bootstrap`` gives a p value.

    Parameters
    ----------
    small, large
        Two fits of the same rows.
    bootstrap
        How many data sets to draw from the smaller model at its estimates, and to fit both models
        to: 199, say. It replaces the p value of any other method.
    mixture
        Take half of a chi-square's tail for a single variance (Self & Liang 1987). It holds for
        very many levels; with few, p is too large.
    draws, data, missing
        As for `Fit.log_likelihood`.
    seed
        Of all draws.

    Warns
    -----
    UserWarning
        If a fit has not converged.

    Raises
    ------
    ValueError
        If the models are not nested, or not of the same rows, or one is by REML and the other not
        or with other fixed effects, or ``mixture`` is asked for other
        ones than it is for. To compare such models, hold out rows
        and take the one that predicts them better: `Fit.log_score`.

    Examples
    --------
    >>> data, _ = lmm.simulate.crossed(300, {"g": (30, 0.5), "h": (10, 0.5)}, seed=0)
    >>> small = lmm.fit("y ~ x + (1|g)", data, seed=0)
    >>> large = lmm.fit("y ~ x + (1|g) + (1|h)", data, seed=0)
    >>> found = lmm.compare(small, large)
    >>> found.df, bool(found.p_value < 0.01)
    (1, True)
    """
    check_integer("bootstrap", bootstrap, 0)
    check_integer("draws", draws, 2)
    one, other = (with_rows(fit, data, missing) for fit in (small, large))
    check_nested(one, other)
    _check_reml(small, large)
    more = added(one, other)
    values = [of_rows(*pair, draws, seed) for pair in ((small, one), (large, other))]
    df = values[1].parameters - values[0].parameters
    variance = more[0] if len(more) == df == 1 and more[0][1].kind == "sd" else None
    if mixture and variance is None:
        raise ValueError(
            "mixture: expected models of which the larger has one variance more, and nothing else"
        )
    statistic = 2 * (values[1].value - values[0].value)
    mcse = 2 * float(np.hypot(values[0].mcse, values[1].mcse))
    for fit in (small, large):
        warn_unconverged(fit, "compare", 2)
    if variance and large.parameters["estimate"][variance[1].name] == 0:
        statistic = mcse = 0.0  # the larger model's maximum is the smaller one
    at = small.parameters["estimate"]
    if bootstrap:
        null = by_bootstrap.statistics(one, other, at, bootstrap, seed, draws, small.reml)
        p = _of_draws(statistic, null, "parametric bootstrap, {} data sets")
    elif variance:
        p = _of_variance(one, small, variance, statistic, mixture, seed)
    elif more and not _inside(small, more):
        p = NO_P
    else:
        p = float(stats.chi2.sf(max(statistic, 0.0), df)), 0.0, f"chi-square with {df} df, {MANY}"
    return Comparison(statistic, mcse, df, *p)


def _check_reml(small: Fit, large: Fit) -> None:
    """Restricted likelihoods are comparable where the same fixed effects are integrated out."""
    if small.reml != large.reml:
        raise ValueError("compare: expected two fits by ML or two by REML, got one of each")
    one, other = (fit.design.fixed_names for fit in (small, large))
    if small.reml and set(one) != set(other):
        raise ValueError(
            f"compare: expected the same fixed effects of fits with reml=True, got {list(one)} and "
            f"{list(other)}, whose restricted likelihoods are of different things; fit both "
            "without reml"
        )


P = tuple[float, float, str]  # a p value, its error, and how it came about
MANY = "which holds for many levels and rows"
BOOTSTRAP = "compare(..., bootstrap=199) gives one"
NO_P: P = (
    np.nan,
    np.nan,
    f"no p value: a variance may be zero, which no chi-square allows for. {BOOTSTRAP}",
)
TOO_LARGE: P = (
    np.nan,
    np.nan,
    f"no p value: rows times levels are more than the {one_variance.MOST:,} for which its "
    f"distribution is drawn from. {BOOTSTRAP}",
)


def _inside(small: Fit, more: list[tuple[Factor, ParameterSpec]]) -> bool:
    """Whether what the larger model has more are correlations, of effects that vary."""
    return all(p.kind == "cor" for _, p in more) and not small.parameters["at_boundary"].any()


def _of_variance(
    one: Design, small: Fit, variance: tuple[Factor, ParameterSpec], statistic: float,
    mixture: bool, seed: int,
) -> P:  # fmt: skip
    """Of one variance more."""
    if statistic <= 0:
        return 1.0, 0.0, "the larger model fits no better"
    if mixture:
        p = float(0.5 * stats.chi2.sf(statistic, 1))
        return p, 0.0, "half of a chi-square with 1 df, which holds for very many levels"
    factor, parameter = variance
    z = replace(factor, z=factor.z[:, list(parameter.columns)]).matrix()
    gaussian = isinstance(one.family, Gaussian) and one.family.estimated
    if not gaussian:
        return NO_P
    if z.shape[0] * z.shape[1] > one_variance.MOST:
        return TOO_LARGE
    spectra = one_variance.spectra(one, small.parameters["estimate"], z)
    given = *spectra, one.rows, one.fixed.shape[1], DRAWS, np.random.default_rng(seed), small.reml
    null = one_variance.null_draws(*given)
    return _of_draws(
        statistic, null, "{} draws under the smaller model, its variances at their estimates"
    )


def _of_draws(statistic: float, null: np.ndarray, method: str) -> P:
    """From statistics under the smaller model, NaN where a data set has none."""
    known = null[np.isfinite(null)]
    if len(known) < 0.9 * len(null):
        missing = f"{len(null) - len(known)} of {len(null)} data sets have no fit that converged"
        return np.nan, np.nan, f"no p value: {missing}"
    p = float((1 + (known >= statistic - ROUNDING).sum()) / (1 + len(known)))
    return p, float(np.sqrt(p * (1 - p) / len(known))), method.format(f"{len(known):,}")
