"""Profiles of the likelihood, for any family: intervals that know how lopsided it is.

Chapter 09. How much less likely are the data at other parameters? A fit's draws x of the effects
know: they are drawn from ``p(x | y)`` at the estimates. With q and w as in `integrand`, p', q' and
w' those at the other parameters, and T the linear map that takes q to q',

    p'(y) / p(y) = E exp( w'(T x) - w(x) ).

Both w vary little, and together: so a few draws will do, the same for all parameters. (Importance
sampling, with draws that move along: Geyer & Thompson 1992; Meng & Schilling 2002. For Gaussian
ratings both are constant, and the ratio exact.)

The profile of a parameter is what the likelihood is at most with that parameter held. The others
follow, first as the fit's covariance says, then by BFGS, along axes on which the likelihood bends
by about one. A limit is where twice the logarithm has fallen by chi-square's quantile with one
degree of freedom (as in Venzon & Moolgavkar 1988).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lmmbook.exact.oracle import NOTHING
from lmmbook.formula.covariance import least, specs, specs_of, to_matrix
from lmmbook.formula.design import Design
from lmmbook.inference.integrand import Integrand
from lmmbook.inference.normal import Standardised

import numpy as np
import pandas as pd
from scipy import optimize, stats
from scipy.special import logsumexp

if TYPE_CHECKING:
    from lmmbook.results.fit import Fit

H = 0.2  # of differences, in standard errors
STEPS = 3  # of Newton's, for q at other parameters
NEAR = 0.1  # the slope of the likelihood in the others, which is left
CLOSE = 0.01  # of the root of what a profile has to fall by: near enough
TRIES = 12  # at a limit


class Surface:
    """The log-likelihood at other parameters, less that at the estimates."""

    def __init__(self, fit: Fit, design: Design, draws: int, seed: int) -> None:
        self.design, self.seed = design, seed
        estimates = fit.parameters["estimate"]
        self.base, x = Integrand.at_estimates(
            design, estimates, fit.posterior, fit.chains, draws, seed
        )
        if self.base.gaussian:
            x = self.base.q.mean[np.newaxis]
        self.white, self.w = self.base.q.white(x), self.base.w(x)

    def __call__(self, values: pd.Series) -> float:
        """At named parameters."""
        for factor in self.design.factors:
            if least(to_matrix(factor, values.fillna(0.0))) < -NOTHING:
                return -np.inf  # these correlations are those of no covariance
        try:
            effects = Standardised(self.design, values)
        except ValueError:  # thresholds that cross, say
            return -np.inf
        if not np.isfinite(effects.auxiliary).all():  # beyond where a parameter lives
            return -np.inf
        at = Integrand(self.design, effects, self.base.q.mean, self.seed, STEPS)
        change = at.w(at.q.draw(self.white)) - self.w
        return float(logsumexp(change) - np.log(len(change)))


class Profile:
    """The profile of one parameter, on the scale of its errors; on its own, of an sd of zero."""

    def __init__(self, fit: Fit, surface: Callable[[pd.Series], float], name: str) -> None:
        known, errors = {p.name: p for p in specs(fit.design)}, fit.parameters["std_error"]
        self.surface, self.name, self.values = surface, name, fit.parameters["estimate"]
        self.free = [n for n in known if n != name and not np.isnan(errors[n])]
        self.others = np.array([known[n].scale(self.values[n]) for n in self.free])
        self.back = {n: known[n].back for n in [*self.free, name]}
        covariance = fit.covariance.loc[self.free, self.free].to_numpy()
        if np.isnan(errors[name]):
            self.back[name], self.best = float, 0.0
            sds = [self.values[n] for n in self.free if known[n].kind == "sd"]
            self.step = float(np.median(sds)) / 2 if sds else 1.0  # the first, for a limit
            self.trace = np.zeros(len(self.free))  # how the others move with it
        else:
            self.best, self.step = known[name].scale(self.values[name]), float(errors[name])
            across = fit.covariance.loc[self.free, name].to_numpy()
            self.trace = across / self.step**2
            covariance = covariance - np.outer(across, across) / self.step**2
        self.found, self.away = np.zeros(len(self.free)), 1.0  # on the axes, and at which distance
        self.axes = np.linalg.cholesky(covariance).T  # in rows, a standard error long each

    def __call__(self, at: float) -> float:
        """By how much twice the log-likelihood has fallen at most."""
        away = at - self.best if np.isfinite(at) else 0.0  # -inf: the logarithm of an sd of zero
        centre = self.others + self.trace * away
        start = self.found * (away / self.away) ** 2  # what the trace misses grows as a square

        def fallen(z: np.ndarray) -> float:
            return -self._value(at, centre + z @ self.axes)

        def slope(z: np.ndarray) -> np.ndarray:
            here = fallen(z)
            rises = [fallen(z + H * axis) - here for axis in np.eye(len(z))]
            return np.array(rises) / H - H / 2  # where it bends by one

        result = optimize.minimize(
            fallen, start, jac=slope, method="BFGS", options={"gtol": NEAR, "maxiter": 50}
        )
        if away:
            self.found, self.away = result.x, away
        return 2 * result.fun - float(result.jac @ result.jac)

    def _value(self, at: float, others: np.ndarray) -> float:
        values = self.values.copy()
        for name, value in zip([*self.free, self.name], [*others, at], strict=True):
            values[name] = self.back[name](value)
        return self.surface(values)

    def limit(self, side: int, quantile: float) -> float:
        """Where the profile has fallen by ``quantile``, below (-1) or above (1) the estimate: on
        the parameter's own scale.

        Raises
        ------
        RuntimeError
            If there is no such place nearby.
        """
        root, back = np.sqrt(quantile), self.back[self.name]
        step = side * root * self.step
        for _ in range(TRIES):
            fallen = np.sqrt(max(self(self.best + step), 1e-6))
            if abs(fallen / root - 1) < CLOSE:
                return float(back(self.best + step))
            step *= np.clip(root / fallen, 0.5, 2.0)
        raise RuntimeError(
            f"intervals: expected a limit of {self.name} within {TRIES} steps, got one that has "
            f"fallen by {fallen**2:.2f} where {quantile:.2f} is asked, at "
            f"{back(self.best + step):.3g}"
        )


def limits(
    fit: Fit, design: Design, names: list[str], level: float, draws: int, seed: int
) -> pd.DataFrame:
    """Columns ``lower`` and ``upper`` for these parameters; NaN for what is known, and where a
    covariance is singular but no sd is zero. An sd whose profile falls too little on the way to
    zero has the lower limit 0."""
    surface, quantile = Surface(fit, design, draws, seed), float(stats.chi2.ppf(level, 1))
    sds = {p.name for f in design.factors for p in specs_of(f) if p.kind == "sd"}
    found = pd.DataFrame(index=names, columns=["lower", "upper"], dtype=float)
    for name in names:
        estimate, error = (fit.parameters[column][name] for column in ("estimate", "std_error"))
        zero = name in sds and estimate == 0
        if zero or not np.isnan(error):
            profile = Profile(fit, surface, name)
            reaches = zero or (name in sds and profile(-np.inf) < quantile)
            lower = 0.0 if reaches else profile.limit(-1, quantile)
            found.loc[name] = [lower, profile.limit(1, quantile)]
    return found
