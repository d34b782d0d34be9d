"""Pictures of a fit: each draws into an ``ax`` that you give it, and returns alternative text.

Chapter 09. ``lmm.show(fig, alt=lmm.plot.trace(fit, "x", ax))`` shows one as the book does. They are
what its chapters draw by hand, for a report on a table of your own.
"""

from __future__ import annotations

from typing import Any

from lmmbook.book.figures import COLOURS, INK
from lmmbook.data.frames import Data
from lmmbook.inference.asked import check_level, with_rows
from lmmbook.inference.profile import Profile, Surface
from lmmbook.results.fit import Fit
from lmmbook.results.predictive import Groups

import numpy as np
from matplotlib.axes import Axes
from scipy import stats

NAMED = 25  # levels, at most, whose labels a caterpillar has room for
MOST_BINS = 20  # of residuals


def effects(
    fit: Fit, factor: str, ax: Axes, effect: str = "Intercept", most: int = 60, level: float = 0.95
) -> str:
    """A caterpillar: effects of a factor's levels given the ratings, sorted, with their intervals.

    Chapter 09. Of more than ``most`` levels it has so many, evenly spaced by rank, the lowest and
    the highest among them. An interval is the posterior mean and some posterior sds to both sides,
    at the estimates; those without zero are in colour.

    Raises
    ------
    ValueError
        If the factor, or the effect, is not in the model; or ``most`` is less than 2, or ``level``
        not between 0 and 1.

    Examples
    --------
    >>> _, ax = plt.subplots()
    >>> effects(fit, "g", ax, most=10)[:58]
    'Caterpillar of 10 of 30 levels of g, evenly spaced by rank'
    """
    if factor not in fit.effects:
        raise ValueError(f"factor: expected one of {list(fit.effects)}, got {factor!r}")
    if most < 2:
        raise ValueError(f"most: expected at least 2 levels, got {most!r}")
    check_level(level)
    table: Any = fit.effects[factor]
    if table.columns.nlevels > 1:
        known = list(table.columns.unique(0))
        if effect not in known:
            raise ValueError(f"effect: expected one of {known}, got {effect!r}")
        table = table[effect]
    elif effect != next(f.effects[0] for f in fit.design.factors if f.name == factor):
        raise ValueError(f"effect: expected the only one of {factor!r}, got {effect!r}")
    table = table.sort_values("mean")
    shown = np.unique(np.linspace(0, len(table) - 1, min(most, len(table))).round().astype(int))
    reach = stats.norm.ppf(0.5 + level / 2) * table["sd"]
    lower, upper = table["mean"] - reach, table["mean"] + reach
    apart = ((lower > 0) | (upper < 0)).to_numpy()
    rank = np.arange(len(shown))
    for these, colour in ((~apart[shown], INK), (apart[shown], COLOURS[0])):
        at = shown[these]
        ax.hlines(rank[these], lower.iloc[at], upper.iloc[at], color=colour, linewidth=1.2)
        ax.plot(table["mean"].iloc[at], rank[these], "o", color=colour, markersize=3)
    ax.axvline(0, color=INK, linewidth=0.8, linestyle=":")
    few = len(shown) <= NAMED
    labels = [str(table.index[i]) for i in shown] if few else []
    ax.set_yticks(rank if few else [], labels, parse_math=False)  # a $ is a $
    some = f"{len(shown)} of {len(table):,} levels" if len(shown) < len(table) else "all levels"
    ax.set_ylabel(factor if few else f"{factor}, by rank", parse_math=False)
    ax.set_xlabel("effect" if effect == "Intercept" else f"effect of {effect}", parse_math=False)
    return (
        f"Caterpillar of {some} of {factor}"
        + (", evenly spaced by rank" if len(shown) < len(table) else "")
        + f": effects from {table['mean'].iloc[0]:.2f} to {table['mean'].iloc[-1]:.2f} with "
        f"{100 * level:g}% intervals. Of all {len(table):,} levels, {(lower > 0).sum():,} have an "
        f"interval above zero and {(upper < 0).sum():,} one below."
    )


def trace(fit: Fit, name: str, ax: Axes) -> str:
    """The path of a parameter, sweep by sweep, through the phases of the fit. Chapter 09.

    Raises
    ------
    ValueError
        If there is no parameter of that name.

    Examples
    --------
    >>> _, ax = plt.subplots()
    >>> trace(fit, "sd(g)", ax).split(":")[0]
    'Path of sd(g) over the sweeps of the fit'
    """
    if name not in fit.parameters.index:
        raise ValueError(f"name: expected one of {list(fit.parameters.index)}, got {name!r}")
    path, phase = fit.trace[name].to_numpy(), fit.trace["phase"].to_numpy()
    estimate = fit.parameters["estimate"][name]
    ax.plot(np.arange(1, len(path) + 1), path, color=COLOURS[0], linewidth=1)
    ax.axhline(estimate, color=COLOURS[1], linestyle="--", linewidth=1)
    begins = [0, *(np.flatnonzero(phase[1:] != phase[:-1]) + 1)]
    for i in begins[1:]:
        ax.axvline(i + 0.5, color=INK, linewidth=0.8, linestyle=":")
    ax.set_xlabel("sweep")
    ax.set_ylabel(name, parse_math=False)
    parts = ", then ".join(f"{phase[i]} from sweep {i + 1:,}" for i in begins)
    return (
        f"Path of {name} over the sweeps of the fit: from {path[0]:.3g} to {path[-1]:.3g}, with a "
        f"dashed line at the estimate, {estimate:.3g}. Phases: {parts}."
    )


def profile(
    fit: Fit, name: str, ax: Axes, data: Data | None = None, level: float = 0.95, seed: int = 0
) -> str:
    """By how much twice the log-likelihood falls as one parameter moves and the others follow.

    Chapter 09. Where it is below the dashed line, the value is in the ``level`` interval of
    ``fit.intervals(method="profile")``. The curve has 13 points; where it crosses the line is
    interpolated. A loaded fit needs the ``data``.

    Raises
    ------
    ValueError
        If there is no such parameter, if it is fixed or at its boundary, if rows are missing, or
        ``level`` is not between 0 and 1.

    Examples
    --------
    >>> _, ax = plt.subplots()
    >>> profile(fit, "sd(g)", ax).split(":")[0]
    'Profile of sd(g)'
    """
    if name not in fit.parameters.index or np.isnan(fit.parameters["std_error"][name]):
        known = list(fit.parameters.index[fit.parameters["std_error"].notna()])
        raise ValueError(f"name: expected a parameter with an error, {known}, got {name!r}")
    check_level(level)
    design = with_rows(fit, data)
    of = Profile(fit, Surface(fit, design, 200, seed), name)
    cut = float(stats.chi2.ppf(level, 1))
    away = np.linspace(-1, 1, 13) * (np.sqrt(cut) + 0.6) * of.step
    order = np.argsort(np.abs(away), kind="stable")  # each from where its neighbour ended
    fallen = np.empty(len(away))
    for i in order:
        fallen[i] = max(of(of.best + away[i]), 0.0) if away[i] else 0.0
    at = np.array([float(of.back[name](of.best + a)) for a in away])
    ax.plot(at, fallen, color=COLOURS[0], marker="o", markersize=3)
    ax.axhline(cut, color=COLOURS[1], linestyle="--", linewidth=1)
    ax.set_xlabel(name, parse_math=False)
    ax.set_ylabel("fall of 2 log L")
    root = np.sign(away) * np.sqrt(fallen)  # nearly a line, so what is between points is known
    ends = [np.interp(side * np.sqrt(cut), root, away) for side in (-1, 1)]
    low, high = (
        ("beyond " if fell < cut else "at ") + f"{float(of.back[name](of.best + end)):.3g}"
        for end, fell in zip(ends, fallen[[0, -1]], strict=True)
    )
    return (
        f"Profile of {name}: a curve with its lowest point at {at[len(at) // 2]:.3g}. It crosses "
        f"the line of the {100 * level:g}% interval, at {cut:.2f}, {low} and {high}."
    )


def calibration(
    fit: Fit, data: Data, ax: Axes, seed: int = 0, groups: Groups = None, missing: str = "raise",
    bins: int = 10,
) -> str:  # fmt: skip
    """Histogram of the rows' probability integral transforms (`Fit.pit`): flat if all is well.

    Chapter 09. Of rows that were not used to fit it a U says that predictions are too narrow, a
    hump that they are too wide, a slope that they are too low or too high. Of rows that were used,
    it is nearer to flat than it should be. The band has 95% of the bars of independent rows; rows
    that share effects are not independent, and leave it more often.

    Raises
    ------
    TypeError, ValueError
        As `Fit.pit`.

    Examples
    --------
    >>> _, ax = plt.subplots()
    >>> calibration(fit, data, ax, bins=5).split(":")[0]
    'Histogram of the probability integral transform of 300 rows'
    """
    pit = fit.pit(data, seed, groups=groups, missing=missing)
    shares = np.histogram(pit, bins=bins, range=(0, 1))[0] / len(pit)
    low, high = stats.binom.ppf([0.025, 0.975], len(pit), 1 / bins) / len(pit) * bins
    ax.axhspan(low, high, color=INK, alpha=0.25, linewidth=0)
    ax.bar((np.arange(bins) + 0.5) / bins, shares * bins, 0.9 / bins, color=COLOURS[0])
    ax.axhline(1, color=INK, linewidth=0.8, linestyle=":")
    ax.set_xlabel("share of the prediction below what happened")
    ax.set_ylabel("rows, relative to even")
    outside = int(((shares * bins < low) | (shares * bins > high)).sum())
    return (
        f"Histogram of the probability integral transform of {len(pit):,} rows: {bins} bars "
        f"between {shares.min() * bins:.2f} and {shares.max() * bins:.2f} times what an even one "
        f"has, {outside} of them outside the band of independent rows."
    )


def residuals(
    fit: Fit, data: Data, ax: Axes, seed: int = 0, groups: Groups = None, missing: str = "raise"
) -> str:
    """Residuals as normal quantiles, in groups of rows with near predictions: zero if all is well.

    Chapter 09. A row's residual is the normal quantile of its probability integral transform
    (`Fit.pit`), for any family (Dunn & Smyth 1996). Points are means over rows that are neighbours
    by their predictions, with 95% intervals of independent rows. A bend says that something
    is not linear on the scale of the predictor.

    Raises
    ------
    TypeError, ValueError
        As `Fit.pit` and `Fit.predict`.

    Examples
    --------
    >>> _, ax = plt.subplots()
    >>> residuals(fit, data, ax).split(",")[0]
    'Mean residuals of 300 rows in 17 groups by their prediction'
    """
    predicted = fit.predict(data, groups=groups, missing=missing)
    pit = fit.pit(data, seed, groups=groups, missing=missing)
    z = stats.norm.ppf(np.clip(pit, 1e-12, 1 - 1e-12))
    count = int(np.clip(np.sqrt(len(z)), 1, MOST_BINS))
    parts = np.array_split(np.argsort(predicted, kind="stable"), count)
    at = np.array([predicted[i].mean() for i in parts])
    mean = np.array([z[i].mean() for i in parts])
    reach = stats.norm.ppf(0.975) / np.sqrt([len(i) for i in parts])
    ax.errorbar(at, mean, reach, fmt="o", color=COLOURS[0], markersize=4, linewidth=1)
    ax.axhline(0, color=INK, linewidth=0.8, linestyle=":")
    ax.set_xlabel("prediction")
    ax.set_ylabel("residual, in normal sds")
    outside = int((np.abs(mean) > reach).sum())
    return (
        f"Mean residuals of {len(z):,} rows in {count} groups by their prediction, from "
        f"{mean.min():.2f} to {mean.max():.2f} normal standard deviations; in {outside} of the "
        "groups the interval of independent rows leaves out zero."
    )
