"""Tables of tests and intervals, against their formulas and against lmerTest."""

from __future__ import annotations

import dataclasses

import lmmbook as lmm
from lmmbook import exact
from lmmbook.formula import build_design
from lmmbook.formula.covariance import specs
from lmmbook.formula.design import Design
from lmmbook.inference import bootstrap
from lmmbook.inference.summary import _pairs, adjusted

import numpy as np
import pandas as pd
import pytest
from conftest import as_lme4_had_it
from scipy import stats
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd

FORMULA = "y ~ x + z + (1|g) + (1|h)"
# lmerTest 3.1-3 on lme4 1.1-31, lmer(FORMULA, as_lme4_had_it(), REML = FALSE): estimate, standard
# error, df, t and p
LMERTEST = {
    "Intercept": (3.48143683, 1.487838955, 10.293812, 2.3399285, 4.0661486e-02),
    "x": (0.49288727, 0.081194637, 49.964993, 6.0704412, 1.7051377e-07),
    "z": (-0.36700454, 1.872758750, 6.786133, -0.1959700, 8.5037227e-01),
}


@pytest.fixture(scope="module")
def fit() -> lmm.Fit:
    return lmm.fit(FORMULA, as_lme4_had_it(), seed=0, progress=False)


def test_lmertest_says_the_same(fit: lmm.Fit) -> None:
    """Within the tenth of a standard error to which a fit knows its estimates."""
    found = fit.summary()
    assert list(found.index) == list(fit.parameters.index)
    for name, (estimate, error, df, t, p) in LMERTEST.items():
        own = found.loc[name]
        assert own["estimate"] == pytest.approx(estimate, abs=0.1 * error)
        assert own["std_error"] == pytest.approx(error, rel=0.05)
        assert own["df"] == pytest.approx(df, rel=0.1)
        assert own["statistic"] == pytest.approx(t, abs=0.1 + 0.05 * abs(t))
        assert own["p_value"] == pytest.approx(p, rel=0.5)
        half = stats.t.ppf(0.975, own["df"]) * own["std_error"]
        assert own["upper"] - own["estimate"] == pytest.approx(half)
        assert own["estimate"] - own["lower"] == pytest.approx(half)
    assert found.loc["sd(g)":, ["statistic", "df", "p_value"]].isna().all(axis=None)


def test_intervals_are_on_the_scales_of_the_errors(fit: lmm.Fit) -> None:
    wide, narrow = fit.intervals(), fit.intervals(level=0.5)
    for parameter in specs(fit.design):
        name = parameter.name
        at = [parameter.scale(x) for x in (*wide.loc[name], fit.parameters["estimate"][name])]
        assert (at[1] - at[0]) / 2 == pytest.approx(1.959964 * fit.parameters["std_error"][name])
        assert (at[0] + at[1]) / 2 == pytest.approx(at[2])
    assert (wide["lower"] < narrow["lower"]).all()
    assert (wide["upper"] > narrow["upper"]).all()
    with pytest.raises(ValueError, match="level: expected"):
        fit.intervals(level=95)


def test_combinations(fit: lmm.Fit) -> None:
    found = fit.contrasts({"x": {"x": 1.0}, "both": {"x": 2.0, "z": -1.0}}, adjust="none")
    alone = fit.summary().loc["x"]
    assert found.loc["x"].to_numpy() == pytest.approx(alone.to_numpy())
    at = fit.parameters["estimate"]
    assert found["estimate"]["both"] == pytest.approx(2 * at["x"] - at["z"])
    several = fit.contrasts({"x": {"x": 1.0}, "both": {"x": 2.0, "z": -1.0}})
    assert several["p_value"]["x"] == pytest.approx(2 * found["p_value"]["x"])
    with pytest.raises(ValueError, match="fixed effects of"):
        fit.contrasts({"oh": {"w": 1.0}})
    with pytest.raises(ValueError, match="with categories"):
        fit.contrasts("x")


def test_all_pairs_of_categories() -> None:
    data = as_lme4_had_it().assign(c=np.resize(["u", "v", "w", "v"], 60))
    fit = lmm.fit("y ~ c + (1|g)", data, seed=0, progress=False)
    found = fit.contrasts("c")
    assert list(found.index) == ["v - u", "w - u", "w - v"]
    at = fit.parameters["estimate"]
    assert found["estimate"].to_numpy() == pytest.approx(
        [at["c[v]"], at["c[w]"], at["c[w]"] - at["c[v]"]]
    )
    with pytest.raises(ValueError, match="in no interaction"):
        _pairs(build_design("y ~ c * x + (1|g)", data), "c")
    other = data.assign(abc=np.resize(["k", "k", "l"], 60), c=data["c"].replace("w", "w:z"))
    assert len(_pairs(build_design("y ~ c + abc * x + (1|g)", other), "c")) == 3
    of = fit.covariance.loc[["c[v]", "c[w]"], ["c[v]", "c[w]"]].to_numpy()
    difference = np.array([-1.0, 1.0])
    error = np.sqrt(difference @ of @ difference)
    assert found["std_error"]["w - v"] == pytest.approx(error, rel=0.05)  # that one is from draws


def test_another_family_has_a_z_test() -> None:
    data = as_lme4_had_it()
    fit = lmm.fit(
        "y ~ x + (1|g)", data.assign(y=data["y"] > 5), "bernoulli", seed=0, progress=False
    )
    own = fit.summary().loc["x"]
    assert own["df"] == np.inf
    assert own["std_error"] == fit.parameters["std_error"]["x"]
    assert own["p_value"] == pytest.approx(2 * stats.norm.sf(abs(own["statistic"])))


def test_the_bootstrap_is_of_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Balanced groups: by REML the statistic of their mean has a t distribution with as many
    degrees of freedom as they are fewer one, whatever the variances. Exact fits of 200 data sets;
    p within 3.5 binomial standard errors, and limits within 25 %: normal ones are 29 % shorter."""
    n, groups = 200, 5
    rng = np.random.default_rng(1)
    g = np.repeat(np.arange(groups), 6)
    data = pd.DataFrame({"g": g, "y": 0.7 + rng.normal(size=groups)[g] + rng.normal(size=30)})
    fit = lmm.fit("y ~ 1 + (1|g)", data, seed=0, reml=True, progress=False)

    def exact_fits(design: Design, at: pd.Series, n: int, seed: int, reml: bool) -> list[lmm.Fit]:
        found = []
        for y in bootstrap.responses(design, at, n, seed):
            table = exact.fit("y ~ 1 + (1|g)", data.assign(y=y), reml=reml).parameters
            error = pd.DataFrame(np.diag(table["std_error"] ** 2), table.index, table.index)
            found.append(dataclasses.replace(fit, parameters=table, covariance=error))
        return found

    real = bootstrap.fits
    monkeypatch.setattr(bootstrap, "fits", exact_fits)
    found = fit.summary(bootstrap=n).loc["Intercept"]
    p = 2 * stats.t.sf(abs(found["statistic"]), groups - 1)
    assert 0.03 < p < 0.5
    assert abs(found["p_value"] - p) < 3.5 * np.sqrt(p * (1 - p) / n)
    assert np.isnan(found["df"])
    half = stats.t.ppf(0.975, groups - 1) * found["std_error"]
    assert found["upper"] - found["estimate"] == pytest.approx(half, rel=0.25)
    assert found["estimate"] - found["lower"] == pytest.approx(half, rel=0.25)
    monkeypatch.setattr(bootstrap, "fits", real)
    again = fit.contrasts({"mean": {"Intercept": 1.0}}, bootstrap=3).loc["mean"]
    assert again["p_value"] in (0.25, 0.5, 0.75, 1.0)


def test_a_parameter_of_ones_own_stays_where_it_lives(fit: lmm.Fit) -> None:
    """A positive one, by its logarithm: its error there is that of the delta method."""
    family = lmm.families.Custom(lambda x, scale: tfd.Normal(x, scale), {"scale": tfb.Exp()})
    own = build_design(FORMULA, as_lme4_had_it(), family)
    names = {"sd(residual)": "scale"}
    table = fit.parameters.rename(names)
    table.loc["scale", ["estimate", "std_error"]] = 20.0, 15.0
    found = dataclasses.replace(fit, design=own, parameters=table).intervals().loc["scale"]
    assert found["lower"] == pytest.approx(20 * np.exp(-1.959964 * 15 / 20))
    assert found["upper"] == pytest.approx(20 * np.exp(1.959964 * 15 / 20))


def test_what_has_not_converged_is_said(fit: lmm.Fit) -> None:
    short = dataclasses.replace(fit, converged=False)
    for ask in (short.summary, short.log_likelihood, lambda: short.intervals(method="profile")):
        with pytest.warns(UserWarning, match="expected a fit that has converged"):
            ask()


def test_the_printout_shows_what_was_computed(fit: lmm.Fit) -> None:
    fresh = dataclasses.replace(fit)
    wald = f"{fit.intervals().loc['sd(g)', 'upper']:.4f}"
    assert wald in str(fresh)
    assert "95% intervals are Wald's." in str(fresh)
    found = fresh.intervals(method="profile", parameters=["sd(g)"])
    assert f"{found.loc['sd(g)', 'upper']:.4f}" in str(fresh)
    assert wald not in str(fresh)
    assert "95% intervals are Wald's, of sd(g) by profile." in str(fresh)
    fresh.intervals(0.5, "profile", parameters=["sd(h)"])  # others are not shown
    assert "sd(h) by" not in str(fresh)


def test_where_a_variance_is_zero_there_are_no_degrees_of_freedom() -> None:
    data = as_lme4_had_it().assign(k=np.resize([0, 1, 2], 60))
    data["y"] -= data.groupby("k")["y"].transform("mean")
    fit = lmm.fit("y ~ x + (1|g) + (1|k)", data, seed=0, progress=False)
    assert fit.parameters["at_boundary"]["sd(k)"]
    with pytest.warns(UserWarning, match="a variance is zero"):
        found = fit.summary()
    assert found.loc[["Intercept", "x"], ["df", "p_value"]].isna().all(axis=None)
    assert found.loc[["Intercept", "x"], ["lower", "upper"]].notna().all(axis=None)
    assert np.isnan(fit.intervals()["upper"]["sd(k)"])


def test_adjustments_are_those_that_r_makes() -> None:
    """p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm"), by hand: 4 x .005, 3 x .01, 2 x .03, ..."""
    p = np.array([0.01, 0.04, 0.03, 0.005])
    assert adjusted(p, "holm") == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjusted(p, "bonferroni") == pytest.approx([0.04, 0.16, 0.12, 0.02])
    assert adjusted(p, "none") == pytest.approx(p)
    assert adjusted(np.array([0.9, 0.8]), "holm") == pytest.approx([1.0, 1.0])


def test_a_frame_that_one_can_sort(fit: lmm.Fit) -> None:
    found = fit.summary(level=0.9)
    assert isinstance(found, pd.DataFrame)
    assert found.dtypes.eq(float).all()
