"""Comparisons: the p value of a variance, against simulated data; and what is nested."""

from __future__ import annotations

import dataclasses
import os

import lmmbook as lmm
from lmmbook import exact, families
from lmmbook.formula import build_design
from lmmbook.formula.design import Design
from lmmbook.inference import bootstrap, one_variance
from lmmbook.inference.nested import added, check_nested

import numpy as np
import pandas as pd
import pytest
from conftest import as_lme4_had_it
from scipy import stats

DATA_SETS = int(os.environ.get("DATA_SETS", "80"))  # more of them take 0.2 s each
SLOPES = int(os.environ.get("SLOPES", "0"))  # 8 s each
BY_ENGINE = int(os.environ.get("BY_ENGINE", "0"))  # one to three minutes each
LEVELS = (0.05, 0.10, 0.30)
SMALL, LARGE = "y ~ x + (1|g)", "y ~ x + (1|g) + (1|h)"


def table(seed: int, rows: int = 150, sd: float = 0.0) -> pd.DataFrame:
    """Fourteen levels of h, which differ by ``sd``."""
    rng = np.random.default_rng(seed)
    g = np.concatenate([np.arange(20), rng.integers(0, 20, rows - 20)])
    h = np.concatenate([np.arange(14), rng.integers(0, 14, rows - 14)])
    x = rng.normal(size=rows)
    y = 1 + 0.5 * x + 0.6 * rng.normal(size=20)[g] + sd * rng.normal(size=14)[h]
    return pd.DataFrame({"y": y + rng.normal(size=rows), "x": x, "g": g, "h": h})


def p_value(data: pd.DataFrame, draws: int, seed: int) -> float:
    """As `compare` has it, from exact maxima."""
    small, large = (exact.fit(formula, data) for formula in (SMALL, LARGE))
    statistic = 2 * (large.log_likelihood - small.log_likelihood)
    if large.parameters["at_boundary"]["sd(h)"]:
        return 1.0
    one, other = (build_design(f, data, families.Gaussian()) for f in (SMALL, LARGE))
    spectra = one_variance.spectra(one, small.parameters["estimate"], other.factors[1].matrix())
    rng = np.random.default_rng(seed)
    null = one_variance.null_draws(*spectra, one.rows, 2, draws, rng)
    return float((null >= statistic).mean())


def rejected(p: np.ndarray, level: float) -> None:
    """The share below a level, within 3.5 binomial standard errors."""
    assert abs((p < level).mean() - level) < 3.5 * np.sqrt(level * (1 - level) / len(p))


def test_under_the_null_it_rejects_as_often_as_it_says() -> None:
    """With ``DATA_SETS=1000`` .014, .053 and .091 of them were below .01, .05 and .10, and .582
    were 1: recorded once, for it takes three minutes."""
    p = np.array([p_value(table(seed), 2000, seed) for seed in range(DATA_SETS)])
    for level in (0.05, 0.10, 0.30):
        rejected(p, level)
    assert 0.4 < (p == 1).mean() < 0.75  # an atom, in more than half of all data sets


@pytest.mark.parametrize("reml", [False, True])
def test_its_distribution_is_that_of_likelihoods_written_out(reml: bool) -> None:
    """With a covariate that hardly varies within the levels, so that the fixed effects take most of
    what the levels would explain. The likelihood of many responses over a grid of variances, by
    dense matrices; both samples have the same distribution, by Kolmogorov and Smirnov."""
    rng = np.random.default_rng(4)
    h = np.arange(40) % 8
    data = pd.DataFrame({"h": h, "g": np.arange(40) % 5, "y": rng.normal(size=40)})
    data["x"] = np.linspace(-1, 1, 8)[h] + 0.1 * rng.normal(size=40)
    one, other = (build_design(f, data, families.Gaussian()) for f in (SMALL, LARGE))
    at = pd.Series({"Intercept": 0.0, "x": 0.0, "sd(g)": 0.0, "sd(residual)": 1.3})
    z, x = other.factors[1].matrix(), one.fixed
    spectra = one_variance.spectra(one, at, z)
    found = one_variance.null_draws(*spectra, 40, 2, 2_000, np.random.default_rng(0), reml)

    y = np.random.default_rng(1).normal(size=(40, 2_000))
    values = []
    for variance in [0.0, *np.geomspace(1e-4, 1e4, 200)]:
        inverse = np.linalg.inv(np.eye(40) + variance * (z @ z.T).toarray())
        of_fixed = x.T @ inverse @ x
        p = inverse - inverse @ x @ np.linalg.solve(of_fixed, x.T @ inverse)
        log_det = np.linalg.slogdet(inverse)[1] - reml * np.linalg.slogdet(of_fixed)[1]
        values.append(log_det - (40 - 2 * reml) * np.log(np.einsum("in,ij,jn->n", y, p, y)))
    expected = np.max(values, axis=0) - values[0]
    assert abs((found < 1e-6).mean() - (expected < 1e-6).mean()) < 3.5 * np.sqrt(0.25 / 1_000)
    assert stats.ks_2samp(found.round(6), expected.round(6)).pvalue > 1e-3


def test_it_is_the_parametric_bootstrap_without_its_noise() -> None:
    data = table(1)
    one, other = (build_design(f, data, families.Gaussian()) for f in (SMALL, LARGE))
    estimates = exact.fit(SMALL, data).parameters["estimate"]
    spectra = one_variance.spectra(one, estimates, other.factors[1].matrix())
    null = one_variance.null_draws(*spectra, one.rows, 2, 20_000, np.random.default_rng(0))
    drawn = bootstrap.statistics(one, other, estimates, 100, seed=0, draws=4)
    for at in (0.01, 0.5, 1.5):
        share = (null >= at).mean()
        assert abs((drawn >= at).mean() - share) < 3.5 * np.sqrt(share * (1 - share) / 100)
    half = 0.5 * stats.chi2.sf(1.5, 1)  # at 14 levels half of a chi-square is too much
    assert (null >= 1.5).mean() < half - 3.5 * np.sqrt(half / 20_000)


def distinct(p: np.ndarray, tried: int) -> None:
    """p values are about uniform, in steps of ``1 / (1 + tried)``: their mean is a half, and a bit
    more for the step and for those of 1 where the statistic is zero."""
    assert abs(p.mean() - 0.5 - 0.5 / (1 + tried)) < 0.1 + 3.5 / np.sqrt(12 * len(p))


@pytest.mark.skipif(not SLOPES, reason="a quarter of an hour: set SLOPES=100")
def test_a_slope_by_the_bootstrap_under_the_null() -> None:
    """Slopes over 14 levels that are all zero: their variance and a correlation. With
    ``SLOPES=100`` .04, .09 and .31 of them were below .05, .10 and .30: recorded once."""
    formulas, p = ("y ~ x + (1|h)", "y ~ x + (1+x|h)"), []
    for seed in range(SLOPES):
        data = table(seed, sd=0.6)
        one, other = (build_design(f, data, families.Gaussian()) for f in formulas)
        fits = [exact.fit(f, data) for f in formulas]
        statistic = 2 * (fits[1].log_likelihood - fits[0].log_likelihood)
        null = bootstrap.statistics(one, other, fits[0].parameters["estimate"], 39, seed, draws=4)
        p.append((1 + (null >= statistic - 1e-6).sum()) / 40)
    print(
        f"of {SLOPES} p values, below .05, .10, .30:", *((np.array(p) <= x).mean() for x in LEVELS)
    )
    distinct(np.array(p), 39)


@pytest.mark.skipif(not BY_ENGINE, reason="an hour or two: set BY_ENGINE=50")
def test_a_variance_by_the_engine_under_the_null() -> None:
    """Yes or no, and 14 levels that do not differ."""
    p = []
    for seed in range(BY_ENGINE):
        data = table(seed)
        data["y"] = (data["y"] > 1).astype(int)
        small, large = (fitted(f, data, family="bernoulli") for f in (SMALL, LARGE))
        p.append(lmm.compare(small, large, bootstrap=19, seed=seed).p_value)
    print(
        f"of {BY_ENGINE} p values, below .05, .10, .30:",
        *((np.array(p) <= x).mean() for x in LEVELS),
    )
    distinct(np.array(p), 19)


def test_one_variance_alone_has_the_law_that_is_known_for_balanced_groups() -> None:
    """Crainiceanu & Ruppert (2004): m balanced groups have P(LR = 0) = P(F <= m / (m - 1)), F with
    m - 1 and n - m degrees of freedom."""
    m, each = 14, 10
    mu, xi = np.r_[np.full(m - 1, each), 0.0], np.full(m, float(each))
    null = one_variance.null_draws(mu, xi, m * each, 1, 20_000, np.random.default_rng(0))
    at_zero = stats.f.cdf(m / (m - 1), m - 1, m * each - m)
    assert abs((null <= 1e-9).mean() - at_zero) < 3.5 * np.sqrt(at_zero * (1 - at_zero) / 20_000)


def fitted(formula: str, data: pd.DataFrame, **more: object) -> lmm.Fit:
    return lmm.fit(formula, data, seed=0, progress=False, **more)


def test_compare_from_end_to_end() -> None:
    data = table(3, sd=0.5)
    small, large = fitted(SMALL, data), fitted(LARGE, data)
    found = lmm.compare(small, large)
    exact_ones = [exact.fit(formula, data).log_likelihood for formula in (SMALL, LARGE)]
    assert found.statistic == pytest.approx(2 * (exact_ones[1] - exact_ones[0]), abs=0.01)
    assert (found.mcse, found.df) == (0.0, 1)
    assert found.p_value < 0.01
    assert found.p_mcse < 0.001
    assert lmm.compare(small, large, mixture=True).p_value == pytest.approx(
        stats.chi2.sf(found.statistic, 1) / 2
    )
    by_bootstrap = lmm.compare(small, large, bootstrap=19)
    assert by_bootstrap.p_value == pytest.approx(1 / 20)
    assert "bootstrap, 19" in by_bootstrap.method
    with pytest.raises(ValueError, match="in this order"):
        lmm.compare(large, small)
    fixed = lmm.compare(fitted("y ~ 1 + (1|g)", data), small)
    assert fixed.p_value == pytest.approx(stats.chi2.sf(fixed.statistic, 1))
    for wrong in ({"mixture": True}, {"bootstrap": -1}, {"draws": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            lmm.compare(fitted("y ~ 1 + (1|g)", data), small, **wrong)
    two = lmm.compare(fitted("y ~ 1 + (1|g)", data), large)
    assert np.isnan(two.p_value)
    assert "bootstrap=199" in str(two)


def test_another_family_has_a_statistic_and_no_p_value() -> None:
    data = table(4, sd=1.0)
    data["y"] = (data["y"] > 1).astype(int)
    small, large = (fitted(f, data, family="bernoulli") for f in (SMALL, LARGE))
    found = lmm.compare(small, large)
    assert found.statistic > 4
    assert 0 < found.mcse < 0.3
    assert np.isnan(found.p_value)
    by_bootstrap = lmm.compare(small, large, bootstrap=1)
    assert by_bootstrap.p_value == pytest.approx(1 / 2)


DESIGNS = {
    "y ~ x + (1|g)": True, "y ~ (1|g) + (1|h)": True, "y ~ x + (1|h) + (1|g)": True,
    "y ~ x + (0+x|h)": True, "y ~ x + (1+x||h) + (1|g)": True, "y ~ 0 + I(2*x) + (1|g)": True,
    "y ~ z + (1|g)": "'z'", "y ~ x + (1+x|g)": "'x' of g", "y ~ x + (1|z)": "effects of z",
    "y ~ x + (1|g) + (1+x|h)": "more parameters", "y ~ x + (1+x|g) + (1+x|h)": "in this order",
    "y ~ offset(z) + (1|g)": "offset", "x ~ (1|g)": "same rows",
}  # fmt: skip


@pytest.mark.parametrize("formula", DESIGNS)
def test_what_is_nested(formula: str) -> None:
    data = as_lme4_had_it()
    large = build_design("y ~ x + (1|g) + (1+x|h)", data, families.Gaussian())
    small = build_design(formula, data, families.Gaussian())
    if DESIGNS[formula] is True:
        check_nested(small, large)
    else:
        with pytest.raises(ValueError, match=str(DESIGNS[formula])):
            check_nested(small, large)


def test_what_the_larger_model_has_more() -> None:
    data = as_lme4_had_it()
    of = {f: build_design(f, data, families.Gaussian()) for f in ("y ~ x + (1+x||h)", LARGE)}

    def more(small: Design, large: Design) -> list[str]:
        return [parameter.name for _, parameter in added(small, large)]

    assert more(of["y ~ x + (1+x||h)"], of["y ~ x + (1+x||h)"]) == []
    correlated = build_design("y ~ x + (1+x|h)", data, families.Gaussian())
    assert more(of["y ~ x + (1+x||h)"], correlated) == ["cor(Intercept,x|h)"]
    nested = data.assign(k=data["g"] % 2)
    one, other = (build_design(f, nested) for f in ("y ~ (1|h:k)", "y ~ x + (1|k:h)"))
    check_nested(one, other)
    assert more(one, other) == []  # by another name
    with pytest.raises(ValueError, match="the correlation of Intercept and x"):
        check_nested(correlated, build_design("y ~ x + (1|g) + (1+x||h)", data))


def test_families_are_the_same() -> None:
    data = as_lme4_had_it()
    one = build_design(SMALL.replace("x", "z"), data, families.Gaussian(sd=1.0))
    with pytest.raises(ValueError, match="one family"):
        check_nested(one, build_design(LARGE, data, families.Gaussian()))


def test_a_correlation_is_no_variance() -> None:
    """It lies inside of what it may be, and has a chi-square."""
    data = as_lme4_had_it()
    small, large = fitted("y ~ x + (1+x||h)", data), fitted("y ~ x + (1+x|h)", data)
    found = lmm.compare(small, large)
    assert found.statistic > 0
    assert found.p_value == pytest.approx(stats.chi2.sf(found.statistic, 1))
    assert "chi-square with 1 df" in found.method


def test_a_slope_is_a_variance_too() -> None:
    """It comes with a correlation, which alone would have a chi-square."""
    data = as_lme4_had_it()
    small, large = fitted("y ~ x + (1|h)", data), fitted("y ~ x + (1+x|h)", data)
    found = lmm.compare(small, large)
    assert found.df == 2
    assert np.isnan(found.p_value)
    assert found.method.startswith("no p value: a variance may be zero")


def test_a_fixed_effect_has_a_chi_square_beside_a_variance_of_zero() -> None:
    data = table(6).assign(k=np.resize([0, 1, 2], 150))
    data["y"] -= data.groupby("k")["y"].transform("mean")
    small, large = (fitted(f"y ~ {x} + (1|g) + (1|k)", data) for x in ("1", "x"))
    assert small.parameters["at_boundary"]["sd(k)"]
    found = lmm.compare(small, large)
    assert found.p_value == pytest.approx(stats.chi2.sf(found.statistic, 1))


def test_one_variance_with_nearly_as_many_levels_as_rows() -> None:
    rng = np.random.default_rng(0)
    z = np.eye(30)[np.r_[np.arange(29), 28]][:, :29]
    x = np.ones((30, 1))
    rest = z - x @ np.linalg.lstsq(x, z)[0]
    mu, xi = np.linalg.eigvalsh(rest.T @ rest), np.linalg.eigvalsh(z.T @ z)
    null = one_variance.null_draws(np.maximum(mu, 0), xi, 30, 1, 500, rng)
    assert np.isfinite(null).all()


def test_years_are_not_each_other_because_both_are_large() -> None:
    data = as_lme4_had_it().assign(t=lambda d: 2e9 + d["x"], s=lambda d: 2e9 + d["g"])
    small, large = (build_design(f, data) for f in ("y ~ t + (1|h)", "y ~ s + z + (1|h)"))
    with pytest.raises(ValueError, match="only the smaller has"):
        check_nested(small, large)


def test_what_has_not_converged_is_said() -> None:
    data = table(5, sd=0.5)
    small, large = fitted(SMALL, data), fitted(LARGE, data)
    with pytest.warns(UserWarning, match="has not"):
        lmm.compare(small, dataclasses.replace(large, converged=False))
