"""Fits by REML, against exact ones, dense algebra and lmerTest."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import lmmbook as lmm
from lmmbook import exact, families
from lmmbook.engine.least_squares import LeastSquares
from lmmbook.engine.restricted import restricted
from lmmbook.formula import build_design
from lmmbook.formula.covariance import specs
from lmmbook.formula.invariances import coordinates

import numpy as np
import pandas as pd
import pytest
from conftest import as_lme4_had_it, dense
from scipy import stats

FORMULA = "y ~ x + z + (1|g) + (1|h)"
# lmerTest 3.1-3 on lme4 1.1-31, lmer(FORMULA, as_lme4_had_it(), REML = TRUE): estimate, standard
# error, df and t
LMERTEST = {
    "Intercept": (3.479558194, 1.6716296257, 7.91765249, 2.08153657),
    "x": (0.493034494, 0.0819886294, 49.03969463, 6.01344964),
    "z": (-0.365676582, 2.1501148070, 4.98892360, -0.17007305),
}
LME4_LOG_LIKELIHOOD = -132.4434403


@pytest.fixture(scope="module")
def fit() -> lmm.Fit:
    return lmm.fit(FORMULA, as_lme4_had_it(), seed=0, reml=True, progress=False)


def off(found: pd.DataFrame, expected: pd.DataFrame, fit: lmm.Fit) -> pd.Series:
    """How far one table's estimates are from another's, in standard errors."""
    scales = {p.name: p.scale for p in specs(fit.design)}
    away = {n: scales[n](found["estimate"][n]) - scales[n](expected["estimate"][n]) for n in scales}
    return pd.Series(away) / expected["std_error"]


def test_it_is_where_the_exact_fit_is(fit: lmm.Fit) -> None:
    expected = exact.fit(FORMULA, as_lme4_had_it(), reml=True).parameters
    assert fit.converged
    assert list(fit.parameters.index) == list(expected.index)
    assert off(fit.parameters, expected, fit).abs().max() < 0.1
    by_ml = exact.fit(FORMULA, as_lme4_had_it()).parameters
    assert off(by_ml, expected, fit).abs().max() > 0.2  # which can be told from it
    errors = fit.parameters["std_error"] / expected["std_error"]
    assert errors.to_numpy() == pytest.approx(1.0, abs=0.05)
    assert (2.5 * fit.parameters["mcse"] < 0.2 * fit.parameters["std_error"]).all()
    assert "(restricted maximum likelihood)" in str(fit)


def test_fixed_effects_are_generalised_least_squares(fit: lmm.Fit) -> None:
    """At the estimated variances, to rounding; and they are off the exact ones by what the Monte
    Carlo errors of the variances make them, which is ``mcse``."""
    design, at = build_design(FORMULA, as_lme4_had_it(), families.Gaussian()), fit.parameters
    v = dense(design, at["estimate"])[1]
    x, names = design.fixed, list(design.fixed_names)
    c = np.linalg.inv(x.T @ np.linalg.solve(v, x))
    beta = c @ x.T @ np.linalg.solve(v, design.response)
    assert at["estimate"][names].to_numpy() == pytest.approx(beta, abs=1e-6 * np.sqrt(c[0, 0]))
    own = fit.covariance.loc[names, names].to_numpy()
    assert own == pytest.approx(c, abs=1e-6 * np.abs(c).max())
    expected = exact.fit(FORMULA, as_lme4_had_it(), reml=True).parameters
    apart = np.abs(at["estimate"] - expected["estimate"])[names]
    assert (apart < 4 * at["mcse"][names]).all()


def test_draws_of_the_effects_are_those_given_the_fixed_ones(fit: lmm.Fit) -> None:
    """As in a fit by maximum likelihood: means are those of all fixed effects, and spreads those
    where they are known. Within 4 Monte Carlo standard errors of as many independent draws as a
    fit has at least, 80 sweeps of all chains; half of them, for sweeps are correlated."""
    design, at = build_design(FORMULA, as_lme4_had_it(), families.Gaussian()), fit.parameters
    v = dense(design, at["estimate"])[1]
    names, draws = list(design.fixed_names), 40 * fit.chains
    residual = design.response - design.fixed @ at["estimate"][names].to_numpy()
    for factor in design.factors:
        z, variance = factor.matrix().toarray(), at["estimate"][f"sd({factor.name})"] ** 2
        mean = variance * z.T @ np.linalg.solve(v, residual)
        spread = variance - variance**2 * np.diag(z.T @ np.linalg.solve(v, z))
        found = fit.effects[factor.name]
        error = np.sqrt(spread / draws)
        assert (np.abs(found["mean"] - mean) < 4 * error).all()
        ratio = found["sd"] / np.sqrt(spread)
        assert (np.abs(ratio - 1) < 4 / np.sqrt(2 * draws)).all()


def test_lmertest_says_the_same(fit: lmm.Fit) -> None:
    found = fit.summary()
    for name, (estimate, error, df, t) in LMERTEST.items():
        own = found.loc[name]
        assert own["estimate"] == pytest.approx(estimate, abs=0.01 * error)
        assert own["std_error"] == pytest.approx(error, rel=0.02)
        assert own["df"] == pytest.approx(df, rel=0.05)
        assert own["statistic"] == pytest.approx(t, abs=0.02 + 0.02 * abs(t))


def test_its_likelihood_is_the_restricted_one(fit: lmm.Fit) -> None:
    """At the maximum the criterion is flat: a tenth of a standard error from there costs .005 a
    parameter."""
    found = fit.log_likelihood()
    assert found.value == pytest.approx(LME4_LOG_LIKELIHOOD, abs=0.02)
    assert found.reml_criterion == -2 * found.value
    assert found.parameters == 6
    with pytest.raises(ValueError, match="reml=True"):
        _ = dataclasses.replace(fit, reml=False).log_likelihood().reml_criterion


def test_a_file_keeps_it(fit: lmm.Fit, tmp_path: Path) -> None:
    fit.save(tmp_path / "fit.lmm")
    again = lmm.load(tmp_path / "fit.lmm")
    assert again.reml
    assert again.log_likelihood(as_lme4_had_it()).value == fit.log_likelihood().value


def test_profiles_are_of_the_likelihood(fit: lmm.Fit) -> None:
    """As lme4's are: those of a fit by maximum likelihood."""
    by_ml = lmm.fit(FORMULA, as_lme4_had_it(), seed=0, progress=False)
    asked = {"method": "profile", "parameters": ["sd(h)"], "seed": 0}
    assert fit.intervals(**asked).equals(by_ml.intervals(**asked))


def test_units_and_origins_change_nothing() -> None:
    """A response, and a covariate, of which single precision would keep no digit that varies."""
    data = as_lme4_had_it()
    moved = data.assign(x=data["x"] * 1e-3 + 1e5, y=100 * data["y"] + 1e8)
    one, other = (
        lmm.fit("y ~ x + (1|g)", d, seed=0, reml=True, progress=False) for d in (data, moved)
    )
    values = [f.parameters["estimate"] for f in (one, other)]
    for name, by in {"x": 1e5, "sd(g)": 100.0, "sd(residual)": 100.0}.items():
        assert values[1][name] == pytest.approx(by * values[0][name], rel=1e-3)
    errors = [f.parameters["std_error"]["x"] for f in (one, other)]
    assert errors[1] == pytest.approx(1e5 * errors[0], rel=1e-3)
    criteria = [f.log_likelihood().value for f in (one, other)]  # densities of 58 numbers
    shift = (60 - 2) * np.log(100.0) + np.log(1e-3)
    assert criteria[1] == pytest.approx(criteria[0] - shift, abs=0.01)


@pytest.mark.parametrize("sd", [1.3, 0.02])
def test_slopes_and_a_residual_sd_that_is_known(sd: float) -> None:
    """Also one beside which groups differ very much: the residual sd is the unit there."""
    data, family = as_lme4_had_it(), families.Gaussian(sd=sd)
    if sd < 1:
        data["y"] += 0.02 * np.random.default_rng(0).normal(size=60) - data["y"]
        data["y"] += data["g"] % 7 + 0.3 * (data["h"] % 5) * data["x"]
    formula = "y ~ x + (0+x|h) + (1|g)"
    found = lmm.fit(formula, data, family, seed=0, reml=True, progress=False)
    expected = exact.fit(formula, data, family, reml=True).parameters
    assert found.converged
    assert off(found.parameters, expected, found).drop("sd(residual)").abs().max() < 0.1
    assert (found.parameters["std_error"] / expected["std_error"])["Intercept"] == pytest.approx(
        1.0, rel=0.02
    )


def test_a_variance_of_zero_and_a_lone_intercept() -> None:
    data = as_lme4_had_it().assign(k=np.resize([0, 1, 2], 60))
    data["y"] -= data.groupby("k")["y"].transform("mean")
    found = lmm.fit("y ~ 1 + (1|k)", data, seed=0, reml=True, progress=False)
    expected = exact.fit("y ~ 1 + (1|k)", data, reml=True).parameters
    assert found.parameters["at_boundary"]["sd(k)"]
    assert expected["at_boundary"]["sd(k)"]
    assert found.parameters["estimate"].to_numpy() == pytest.approx(
        expected["estimate"].to_numpy(), abs=0.02
    )
    assert np.isnan(found.covariance.loc["Intercept", "sd(k)"])
    assert (found.posterior["k"] == 0).all()
    with pytest.raises(ValueError, match=r"model: expected effects that have a density, got .*k"):
        _ = found.model


def test_comparisons() -> None:
    """By restricted likelihoods a variance is tested as by likelihoods; and balanced groups have a
    p value from the analysis of variance, for the ratio rises with F."""
    rng = np.random.default_rng(4)
    g = np.repeat(np.arange(8), 6)
    data = pd.DataFrame({"g": g, "h": np.tile(np.arange(6), 8)})
    data["y"] = 0.5 * rng.normal(size=8)[g] + rng.normal(size=6)[data["h"]] + rng.normal(size=48)
    small, large = (
        lmm.fit(f, data, seed=0, reml=True, progress=False)
        for f in ("y ~ 1 + (1|h)", "y ~ 1 + (1|h) + (1|g)")
    )
    found = lmm.compare(small, large)
    mean = data["y"].mean()
    rows, columns = (data.groupby(f)["y"].mean() - mean for f in ("g", "h"))
    total = ((data["y"] - mean) ** 2).sum()
    between, among = 6 * (rows**2).sum(), 8 * (columns**2).sum()
    f = (between / 7) / ((total - between - among) / 35)
    p = stats.f.sf(f, 7, 35)
    assert 0.001 < p < 0.2
    assert found.p_value == pytest.approx(p, abs=4 * found.p_mcse + 0.1 * p)
    with pytest.raises(ValueError, match="one of each"):
        lmm.compare(dataclasses.replace(small, reml=False), large)
    more = build_design("y ~ 1 + x + (1|h)", data.assign(x=np.arange(48.0)), families.Gaussian())
    with pytest.raises(ValueError, match="the same fixed effects"):
        lmm.compare(small, dataclasses.replace(large, design=more))


def test_what_has_no_restricted_likelihood_is_refused() -> None:
    data = as_lme4_had_it()
    with pytest.raises(ValueError, match="reml: expected a Gaussian family"):
        lmm.fit("y ~ x + (1|g)", data.assign(y=data["y"] > 0), "bernoulli", seed=0, reml=True)
    spanned = data.assign(a=data["g"] % 2, b=(data["g"] % 2).astype(float))
    with pytest.raises(ValueError, match="'a': expected levels that the fixed effects do not tell"):
        lmm.fit("y ~ b + (1|a)", spanned, seed=0, reml=True)
    with pytest.raises(ValueError, match="'a': expected levels"):
        lmm.fit("y ~ b + (1+x||a)", spanned, seed=0, reml=True)
    with pytest.raises(TypeError, match="reml: expected True or False"):
        lmm.fit("y ~ x + (1|g)", data, seed=0, reml="no")


def test_least_squares_where_levels_have_very_many_rows() -> None:
    """Ten levels with 20,000 rows each: single precision would lose the intercept's error."""
    data, _ = lmm.simulate.crossed(200_000, {"g": (10, 0.9)}, residual_sd=0.4, seed=0)
    design = build_design("y ~ x + (1|g)", data, families.Gaussian())
    inner = coordinates.inner(design)
    roots = [np.array([[0.9 / inner.response_scale]])]
    found = LeastSquares(inner, roots, 0.4 / inner.response_scale)
    assert found.solved
    by = inner.response_scale * inner.fixed_map
    n = np.bincount(design.factors[0].codes)
    x, y = design.fixed, design.response
    shrink = 0.81 / (0.16 + 0.81 * n)
    sums = [
        np.array([np.bincount(design.factors[0].codes, v) for v in a.T]) for a in (x, y[:, None])
    ]
    information = (x.T @ x - (sums[0] * shrink) @ sums[0].T) / 0.16
    pull = (x.T @ y - (sums[0] * shrink) @ sums[1][0]) / 0.16
    c = np.linalg.inv(information)
    assert by @ np.linalg.inv(found.information) @ by.T == pytest.approx(c, rel=1e-6)
    beta = inner.origin + by @ found.beta
    assert beta == pytest.approx(c @ pull, rel=1e-6)


def test_the_design_has_the_fixed_effects_as_a_factor() -> None:
    inner = coordinates.inner(build_design(FORMULA, as_lme4_had_it(), families.Gaussian()))
    found = restricted(inner)
    assert found.fixed_names == found.outer.fixed_names == ()
    assert [p.name for p in specs(found)] == ["sd(g)", "sd(h)", "sd(residual)"]
    last = found.factors[-1]
    assert (last.levels, len(last.effects), last.blocks) == (1, 3, ())
    u = np.array([0.1, -0.2, 0.3])  # the same predictor, in both coordinates
    outer = found.outer.factors[-1].z @ found.effect_maps[-1] @ u
    assert last.z @ u == pytest.approx(outer)
