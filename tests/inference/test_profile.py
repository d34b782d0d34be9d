"""Profiles, against lme4's, exact maxima and quadrature; and the bootstrap's intervals."""

from __future__ import annotations

import lmmbook as lmm
from lmmbook import exact, families
from lmmbook.formula import build_design
from lmmbook.inference.integrand import Integrand
from lmmbook.inference.normal import Standardised
from lmmbook.inference.profile import Surface

import numpy as np
import pandas as pd
import pytest
from conftest import as_lme4_had_it
from scipy import optimize, special
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd

# lme4 1.1-31, confint(lmer(FORMULA, as_lme4_had_it(), REML = FALSE), method = "profile")
FORMULA = "y ~ x + z + (1|g) + (1|h)"
LME4 = {
    "Intercept": (0.2652355, 6.6935119),
    "x": (0.3306172, 0.6551356),
    "z": (-4.6159217, 3.8898636),
    "sd(g)": (1.4291008, 4.6139518),
    "sd(h)": (0.7766963, 4.0827280),
    "sd(residual)": (1.4830564, 2.1996774),
}


def fitted(formula: str, data: pd.DataFrame, family: str = "gaussian") -> lmm.Fit:
    return lmm.fit(formula, data, family, seed=0, progress=False)


def test_lme4_says_the_same() -> None:
    """Within two percent of the width."""
    found = fitted(FORMULA, as_lme4_had_it()).intervals(method="profile")
    for name, (lower, upper) in LME4.items():
        close = 0.02 * (upper - lower)
        assert found["lower"][name] == pytest.approx(lower, abs=close)
        assert found["upper"][name] == pytest.approx(upper, abs=close)


def test_an_sd_of_zero_has_an_upper_limit() -> None:
    """Where the exact likelihood, the other parameters at their best, has fallen by 3.84."""
    data = as_lme4_had_it().assign(k=np.resize([0, 1, 2], 60))
    data["y"] -= data.groupby("k")["y"].transform("mean")
    formula = "y ~ x + (1|g) + (1|k)"
    fit = fitted(formula, data)
    assert fit.parameters["at_boundary"]["sd(k)"]
    lower, upper = fit.intervals(method="profile", parameters=["sd(k)"]).loc["sd(k)"]
    assert lower == 0
    at = exact.fit(formula, data).parameters["estimate"]

    def fallen(z: np.ndarray) -> float:
        moved = at + [z[0], z[1], 0, 0, 0]
        moved["sd(g)"] *= np.exp(z[2])
        moved["sd(residual)"] *= np.exp(z[3])
        moved["sd(k)"] = upper
        return -exact.log_likelihood(formula, data, moved)

    best = optimize.minimize(fallen, np.zeros(4), method="BFGS").fun
    fall = 2 * (exact.log_likelihood(formula, data, at) + best)
    assert fall == pytest.approx(3.84, abs=0.15)  # CLOSE: one percent of a root, and noise


def test_an_sd_that_may_be_zero_has_a_lower_limit_of_zero() -> None:
    """Where the exact likelihood at zero is less than 3.84 lower, and the estimate is not zero."""
    rng = np.random.default_rng(9)
    g = np.repeat(np.arange(8), 12)
    data = pd.DataFrame({"g": g, "y": 0.25 * rng.normal(size=8)[g] + rng.normal(size=96)})
    best = exact.fit("y ~ 1 + (1|g)", data)
    zero = {"Intercept": data["y"].mean(), "sd(g)": 0.0, "sd(residual)": data["y"].std(ddof=0)}
    gained = 2 * (best.log_likelihood - exact.log_likelihood("y ~ 1 + (1|g)", data, zero))
    assert 0.5 < gained < 3.84
    fit = fitted("y ~ 1 + (1|g)", data)
    lower, upper = fit.intervals(method="profile", parameters=["sd(g)"]).loc["sd(g)"]
    assert lower == 0
    assert upper > fit.parameters["estimate"]["sd(g)"] > 0.1


def test_another_family_by_quadrature() -> None:
    """One factor of a logit: the likelihood is a product of integrals, its profile a maximum in the
    intercept alone."""
    rng = np.random.default_rng(3)
    g = np.repeat(np.arange(50), 8)
    y = rng.uniform(size=400) < special.expit(-0.4 + 0.9 * rng.normal(size=50)[g])
    data = pd.DataFrame({"y": y.astype(int), "g": g})
    fit = fitted("y ~ 1 + (1|g)", data, "bernoulli")
    found = fit.intervals(method="profile")
    yes = data.groupby("g")["y"].sum().to_numpy()[:, np.newaxis]
    z, weights = np.polynomial.hermite_e.hermegauss(60)

    def log_p(intercept: float, sd: float) -> float:
        eta = intercept + sd * z
        of_level = yes * eta - 8 * np.logaddexp(0, eta)
        return special.logsumexp(of_level + np.log(weights / weights.sum()), axis=1).sum()

    def profile(sd: float) -> float:
        return max_over(lambda b: log_p(b, sd), (-2.0, 1.0))

    def max_over(function, bounds) -> float:
        return -optimize.minimize_scalar(
            lambda b: -function(b), bounds=bounds, method="bounded"
        ).fun

    top = max_over(profile, (0.3, 2.0))
    for limit in found.loc["sd(g)"]:
        assert 2 * (top - profile(limit)) == pytest.approx(3.84, abs=0.15)
    for limit in found.loc["Intercept"]:
        best = max_over(lambda sd, limit=limit: log_p(limit, sd), (0.3, 2.0))
        assert 2 * (top - best) == pytest.approx(3.84, abs=0.15)


def test_what_the_surface_is() -> None:
    """Differences of log-likelihoods, by draws that move along with the parameters: here two
    factors, against `log_likelihood` here and importance sampling there. Both, and the surface, err
    by some hundredths."""
    data, _ = lmm.simulate.crossed(600, {"g": (40, 0.8), "h": (20, 0.6)}, seed=1)
    data["y"] = (data["y"] > data["y"].mean()).astype(int)
    fit = fitted("y ~ x + (1|g) + (1|h)", data, "bernoulli")
    surface = Surface(fit, fit.design, draws=100, seed=0)
    at = fit.parameters["estimate"]
    assert surface(at) == pytest.approx(0.0, abs=0.02)
    other = at * [1.2, 0.8, 1.3, 0.7]
    difference = by_importance(fit, other) - fit.log_likelihood().value
    assert surface(other) == pytest.approx(difference, abs=0.1)


def test_beyond_where_parameters_live_there_is_no_likelihood() -> None:
    """Thresholds that cross; a scale below zero. So a profile's steps turn back there."""
    data, surface = as_lme4_had_it(), object.__new__(Surface)
    surface.design = build_design(
        "y ~ x + (1|g)", data.assign(y=data["g"] % 3), families.Cumulative()
    )
    crossed = {"threshold(0|1)": 1.0, "threshold(1|2)": 0.5, "x": 0.1, "sd(g)": 1.0}
    assert surface(pd.Series(crossed)) == -np.inf
    own = families.Custom(lambda x, scale: tfd.Normal(x, scale), {"scale": tfb.Exp()})
    surface.design = build_design("y ~ x + (1|g)", data, own)
    below = {"Intercept": 1.0, "x": 0.1, "sd(g)": 1.0, "scale": -0.5}
    assert surface(pd.Series(below)) == -np.inf


def by_importance(fit: lmm.Fit, at: pd.Series) -> float:
    """The log-likelihood elsewhere, by 1,000 draws of the normal distribution there."""
    effects = Standardised(fit.design, at)
    there = Integrand(fit.design, effects, np.zeros(effects.effects), seed=5)
    w = there.w(there.q.draw(np.random.default_rng(6).normal(size=(1000, effects.effects))))
    return float(special.logsumexp(w) - np.log(len(w)))


def test_the_bootstrap_and_what_is_refused() -> None:
    fit = fitted("y ~ x + (1|g)", as_lme4_had_it())
    found = fit.intervals(method="bootstrap", bootstrap=20, level=0.8, parameters=["x"])
    wald = fit.intervals(level=0.8).loc["x"]
    width = wald["upper"] - wald["lower"]
    assert found["lower"]["x"] == pytest.approx(wald["lower"], abs=0.5 * width)
    assert found["upper"]["x"] == pytest.approx(wald["upper"], abs=0.5 * width)
    with pytest.raises(ValueError, match="method: expected one of"):
        fit.intervals(method="exact")
    with pytest.raises(ValueError, match="parameters: expected some of"):
        fit.intervals(parameters=["sd(h)"])
