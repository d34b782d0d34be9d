"""A fit agrees with the exact maximum, knows how far it is, and says so when it is not there."""

from __future__ import annotations

import warnings

import lmmbook
from lmmbook import exact, families
from lmmbook.engine import fit, program
from lmmbook.engine.init import start_values
from lmmbook.engine.runner import Engine
from lmmbook.exact import oracle
from lmmbook.formula import build_design
from lmmbook.results.fit import Fit

import numpy as np
import pandas as pd
import pytest


def sloped(seed: int = 1) -> tuple[str, pd.DataFrame]:
    rng = np.random.default_rng(seed)
    n = 600
    data = pd.DataFrame({"g": rng.integers(0, 40, n), "h": rng.integers(0, 12, n)})
    data = data.assign(x=rng.normal(1, 1, n), age=rng.normal(size=40)[data["g"]])
    u = rng.multivariate_normal([0, 0], [[0.6, 0.2], [0.2, 0.3]], 40)
    data["y"] = 1 + 0.5 * data["x"] + u[data["g"], 0] + u[data["g"], 1] * data["x"]
    data["y"] += rng.normal(0, 0.5, 12)[data["h"]] + rng.normal(0, 0.8, n)
    return "y ~ x + age + (1 + x|g) + (1|h)", data


def quiet_fit(*arguments, **keywords) -> Fit:
    """A fit that must not lean on the oracle, and must not warn."""

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("the fit asked the oracle")

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("fit", "effects", "log_likelihood", "Marginal", "Ascent"):
            patch.setattr(oracle, name, forbidden)
        return lmmbook.fit(*arguments, **keywords)


def on_its_scale(table: pd.DataFrame) -> pd.Series:
    """Estimates as their errors are given: sds as logarithms, correlations as Fisher's z."""
    values = table["estimate"].astype(float).copy()
    for name in values.index:
        if name.startswith("sd("):
            values[name] = np.log(values[name]) if values[name] else np.nan
        elif name.startswith("cor("):
            values[name] = np.arctanh(values[name]) if abs(values[name]) < 1 else np.nan
    return values


def assert_agrees(fit: Fit, truth: exact.ExactFit) -> None:
    """Within 5 Monte Carlo standard errors (and 0.02 standard errors, for single precision and the
    last Newton step); standard errors within a fifth."""
    assert list(fit.parameters.index) == list(truth.parameters.index)
    assert fit.converged
    assert fit.distance <= 0.2
    known = truth.parameters["std_error"].notna()
    error = (on_its_scale(fit.parameters) - on_its_scale(truth.parameters))[known].abs()
    se = truth.parameters["std_error"][known]
    assert np.all(error <= 5 * fit.parameters["mcse"][known] + 0.02 * se), error / se
    assert np.all(fit.parameters["mcse"][known] < 0.1 * se)  # it allows no more than it should
    np.testing.assert_allclose(fit.parameters["std_error"][known], se, rtol=0.2)


@pytest.fixture(scope="module")
def crossed_fit(crossed) -> Fit:
    return quiet_fit(crossed.formula, crossed.data, seed=0)


@pytest.fixture(scope="module")
def crossed_exact(crossed) -> exact.ExactFit:
    return exact.fit(crossed.formula, crossed.data)


def test_crossed_factors_agree_with_the_exact_fit(crossed_fit, crossed_exact):
    assert_agrees(crossed_fit, crossed_exact)


def test_nested_factors_agree_with_the_exact_fit(nested):
    assert_agrees(
        quiet_fit(nested.formula, nested.data, seed=0), exact.fit(nested.formula, nested.data)
    )


def test_one_factor_agrees_with_the_exact_fit(crossed):
    formula = "y ~ x + (1|g)"
    assert_agrees(quiet_fit(formula, crossed.data, seed=0), exact.fit(formula, crossed.data))


@pytest.mark.parametrize("term", ["(1 + x|g) + (1|h)", "(1 + x||g) + (1|h)"])
def test_slopes_agree_with_the_exact_fit(term):
    _, data = sloped()
    formula = f"y ~ x + age + {term}"
    assert_agrees(quiet_fit(formula, data, seed=0), exact.fit(formula, data))


def test_a_fixed_residual_sd_agrees_with_the_exact_fit(crossed):
    family = families.Gaussian(sd=1.0)
    fit = quiet_fit(crossed.formula, crossed.data, family, seed=0)
    assert fit.parameters["estimate"]["sd(residual)"] == 1.0
    assert np.isnan(fit.parameters["std_error"]["sd(residual)"])
    assert_agrees(fit, exact.fit(crossed.formula, crossed.data, family))


@pytest.mark.parametrize("times", [0.02, 20.0])
def test_from_a_bad_start_a_fit_gets_to_the_same_maximum(
    crossed, crossed_exact, monkeypatch, times
):
    """The start shortens the way and decides nothing: sds so many times what they would be, and an
    Intercept thirty residual sds off. (Its regression is done on few rows where there are many.)"""

    def bad(design):
        start = start_values(design)
        sds = {name: times * value for name, value in start.items() if name.startswith("sd(")}
        return start | sds | {"Intercept": start["Intercept"] + 30.0}

    monkeypatch.setattr("lmmbook.engine.init.start_values", bad)
    assert_agrees(quiet_fit(crossed.formula, crossed.data, seed=0), crossed_exact)


def test_parameters_are_recovered(crossed, crossed_fit):
    """The simulation's truth is within 4 standard errors: model and simulation mean the same."""
    truth = on_its_scale(pd.DataFrame({"estimate": pd.Series(crossed.truth)}))
    error = on_its_scale(crossed_fit.parameters) - truth
    assert np.all(error.abs() < 4 * crossed_fit.parameters["std_error"])


def test_rows_labels_and_units_are_only_names(crossed, crossed_fit):
    data = crossed.data.sample(frac=1, random_state=0)
    data["g"] = (99 - data["g"]).map("g{:03}".format)  # the order of the levels turns round
    data["h"] = data["h"].astype("category")
    data["y"] = 10 * data["y"]
    fit = quiet_fit(crossed.formula, data, seed=1)
    one, two = crossed_fit.parameters, fit.parameters
    allowed = 5 * np.hypot(one["mcse"], two["mcse"]) + 0.02 * one["std_error"]
    unit = np.where(one.index.str.startswith("sd("), np.log(10), 0)
    scale = np.where(one.index.str.startswith("sd("), 1, 10)
    difference = (on_its_scale(two) - unit) / scale - on_its_scale(one) / 1
    difference = difference.where(scale == 10, on_its_scale(two) - unit - on_its_scale(one))
    assert np.all(difference.abs() < allowed)
    matched = fit.effects["g"]["mean"].to_numpy()[::-1] / 10
    assert np.corrcoef(matched, crossed_fit.effects["g"]["mean"])[0, 1] > 0.99


def test_effects_agree_with_exact_conditioning(crossed, crossed_fit):
    """Within 5 Monte Carlo standard errors, the draws counted as nearly independent."""
    truth = exact.effects(crossed.formula, crossed.data, crossed_fit.parameters["estimate"])
    for name, found in crossed_fit.effects.items():
        draws = len(crossed_fit.posterior[name])
        mcse = truth[name]["sd"] / np.sqrt(draws / 2)
        assert np.all((found["mean"] - truth[name]["mean"]).abs() < 5 * mcse)
        np.testing.assert_allclose(found["sd"], truth[name]["sd"], rtol=5 / np.sqrt(draws))


def test_effects_with_slopes_agree_with_exact_conditioning():
    formula, data = sloped()
    fit = quiet_fit(formula, data, seed=0)
    truth = exact.effects(formula, data, fit.parameters["estimate"])["g"]
    found = fit.effects["g"]
    assert list(found.columns) == list(truth.columns)
    for effect in ("Intercept", "x"):
        error = (found[effect]["mean"] - truth[effect]["mean"]) / truth[effect]["sd"]
        assert np.abs(error).max() < 0.3
        assert np.sqrt((error**2).mean()) < 0.1
        np.testing.assert_allclose(found[effect]["sd"], truth[effect]["sd"], rtol=0.25)
    assert fit.posterior["g"].shape[1:] == (40, 2)


def test_the_trace_tells_the_story_of_the_fit(crossed_fit):
    trace, names = crossed_fit.trace, list(crossed_fit.parameters.index)
    assert list(trace.columns) == [*names, "acceptance", "phase"]
    assert list(trace["phase"].unique()) == ["approach", "average", "draws"]
    assert trace["acceptance"].between(0.8, 1).all()
    moves = trace.groupby("phase")[names].nunique()
    assert (moves.loc["approach"] > 1).all()
    first = trace[trace["phase"] == "draws"].iloc[:40]
    assert (first[names].nunique() == 1).all()  # frozen


def test_draws_that_are_kept_are_bounded(tiny):
    fit = quiet_fit(tiny.formula, tiny.data, seed=0, max_sweeps=20_000)
    for draws in fit.posterior.values():
        assert 200 <= len(draws) <= 1000


def test_a_fit_predicts_and_prints(crossed, crossed_fit):
    rows = crossed.data.iloc[:7]
    assert crossed_fit.predict(rows).shape == (7,)
    assert crossed_fit.draws(rows, 50, seed=0).shape == (50, 7)
    residuals = crossed.data["y"] - crossed_fit.predict(crossed.data)
    sd = crossed_fit.parameters["estimate"]["sd(residual)"]
    assert abs(residuals.mean()) < 0.05 * sd  # the published fit is off by 0.6
    text = str(crossed_fit)
    for part in (crossed.formula, "1,200 rows", "g 40, h 15", "16 chains", "Converged"):
        assert part in text
    model = crossed_fit.model.parameters()
    assert model == pytest.approx(crossed_fit.parameters["estimate"].to_dict(), rel=1e-5)


def test_the_same_seed_gives_the_same_fit(tiny):
    one, two, other = (quiet_fit(tiny.formula, tiny.data, seed=seed) for seed in (3, 3, 4))
    pd.testing.assert_frame_equal(one.trace, two.trace, check_exact=True)
    pd.testing.assert_frame_equal(one.parameters, two.parameters, check_exact=True)
    for name, draws in one.posterior.items():
        np.testing.assert_array_equal(draws, two.posterior[name])
    assert not one.parameters["estimate"].equals(other.parameters["estimate"])


# Not there


def test_a_budget_that_is_too_small_is_said(nested, monkeypatch):
    """Started far away, with too few sweeps to come back."""

    def far(design):
        return start_values(design) | {"sd(block)": 1e-3, "sd(block:pot)": 30.0}

    monkeypatch.setattr("lmmbook.engine.init.start_values", far)
    with pytest.warns(UserWarning, match="has not converged.*try a larger max_sweeps"):
        fit = lmmbook.fit(nested.formula, nested.data, seed=0, max_sweeps=240)
    assert not fit.converged
    assert np.isfinite(fit.parameters["estimate"]).all()
    assert "NOT CONVERGED" in str(fit)
    assert len(fit.trace) <= 240


@pytest.mark.parametrize("calls", [1, 7])  # before the first certificate is there, and during it
def test_an_interrupt_returns_what_there_is(tiny, monkeypatch, calls):
    call, seen = Engine._call, []

    def interrupted(self, *arguments):
        seen.append(1)
        if len(seen) > calls:
            raise KeyboardInterrupt
        return call(self, *arguments)

    monkeypatch.setattr(Engine, "_call", interrupted)
    with pytest.warns(UserWarning, match="it was interrupted"):
        fit = lmmbook.fit(tiny.formula, tiny.data, seed=0)
    assert not fit.converged
    assert np.isfinite(fit.parameters["estimate"]).all()
    assert fit.effects["g"].notna().all(axis=None)
    draws = fit.posterior["g"]  # those that there are, and no room for more
    assert len(np.unique(draws, axis=0)) == len(draws)


def test_a_parameter_that_is_no_longer_finite_stops_the_fit(tiny, monkeypatch):
    monkeypatch.setattr("lmmbook.engine.driver.APPROACH", np.full(20, np.inf))
    with pytest.raises(FloatingPointError, match="approach: expected finite values"):
        lmmbook.fit(tiny.formula, tiny.data, seed=0)


# Compiled once


def test_equal_shapes_do_not_compile_again_and_data_are_arguments(tiny):
    quiet_fit(tiny.formula, tiny.data, seed=0)
    before = program.compiled.cache_info().misses
    other = tiny.data.assign(y=tiny.data["y"].to_numpy()[::-1] + 5)
    fit = quiet_fit(tiny.formula, other, seed=0)
    assert program.compiled.cache_info().misses == before
    assert_agrees_or_boundary(fit, exact.fit(tiny.formula, other))
    quiet_fit(tiny.formula, tiny.data.iloc[1:], seed=0)
    assert program.compiled.cache_info().misses == before + 1


def assert_agrees_or_boundary(fit: Fit, truth: exact.ExactFit) -> None:
    assert list(fit.parameters["at_boundary"]) == list(truth.parameters["at_boundary"])
    known = truth.parameters["std_error"].notna()
    error = (on_its_scale(fit.parameters) - on_its_scale(truth.parameters))[known].abs()
    assert np.all(error < 0.2 * truth.parameters["std_error"][known])


def test_many_shapes_say_nothing_on_stderr(tiny, capfd):
    for rows in range(40, 46):
        lmmbook.fit("y ~ 1 + (1|g)", tiny.data.iloc[:rows], seed=0)
    assert capfd.readouterr() == ("", "")


def test_progress_is_a_line_that_goes_away(tiny, capfd, monkeypatch):
    monkeypatch.setattr("lmmbook.engine.progress.SHOWN_AFTER", 0.0)
    lmmbook.fit("y ~ 1 + (1|g)", tiny.data, seed=0, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "sweeps (Ctrl-C stops)" in err
    assert err.endswith("\r")


# Bad arguments


@pytest.mark.parametrize(
    "keywords",
    [{"seed": 1.5}, {"seed": None}, {"seed": True}, {"chains": 4.0}, {"max_sweeps": 450.5}],
)
def test_arguments_that_are_no_integers_are_refused(tiny, monkeypatch, keywords):
    monkeypatch.setattr(fit, "Engine", None)
    [name] = keywords
    with pytest.raises(TypeError, match=f"{name}: expected an integer"):
        lmmbook.fit(tiny.formula, tiny.data, **{"seed": 0, **keywords})


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"chains": 0}, "chains: expected at least 2"),
        ({"chains": 1}, "chains: expected at least 2"),
        ({"max_sweeps": 239}, "max_sweeps: expected at least 240"),
        ({"seed": -1}, "seed: expected at least 0"),
        ({"seed": 2**31}, "seed: expected at least 0 and at most"),
        ({"family": "gamma"}, "family: expected"),
        ({"family": "poisson"}, "response: expected counts"),
        ({"family": None}, "family: expected"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(tiny, monkeypatch, keywords, message):
    monkeypatch.setattr(fit, "Engine", None)
    with pytest.raises(ValueError, match=message):
        lmmbook.fit(tiny.formula, tiny.data, **{"seed": 0, **keywords})


def test_a_seed_is_asked_for(tiny):
    with pytest.raises(TypeError, match="seed"):
        lmmbook.fit(tiny.formula, tiny.data)


def test_few_rows_ask_for_many_chains(crossed, tiny_design, insteval):
    formula = "ratings ~ service + (1|students) + (1|instructors)"
    assert fit.default_chains(build_design(formula, insteval)) == 4
    assert fit.default_chains(build_design(f"{formula} + (1|departments)", insteval)) == 4
    assert fit.default_chains(build_design(crossed.formula, crossed.data)) == 16
    assert fit.default_chains(tiny_design) == 64


def test_the_start_is_least_squares_with_its_variance_shared_out(tiny, tiny_design):
    start = start_values(tiny_design)
    beta = np.linalg.lstsq(tiny_design.fixed, tiny_design.response, rcond=None)[0]
    assert [start["Intercept"], start["x"]] == pytest.approx(beta)
    variance = np.var(tiny_design.response - tiny_design.fixed @ beta)
    sds = [start["sd(g)"], start["sd(h)"], start["sd(residual)"]]
    assert sds == pytest.approx([np.sqrt(variance / 3)] * 3)
    fixed = build_design(tiny.formula, tiny.data, families.Gaussian(sd=0.7))
    assert start_values(fixed)["sd(residual)"] == pytest.approx(0.7)


@pytest.mark.slow
def test_over_seeds_there_is_no_bias_and_the_reported_error_is_honest(crossed, crossed_exact):
    """24 fits. Their mean within 4 of its standard errors; the root mean square of error / mcse
    within 0.6 and 1.6 (a chi-square of 24 degrees of freedom leaves that once in 10,000)."""
    fits = [quiet_fit(crossed.formula, crossed.data, seed=seed).parameters for seed in range(24)]
    exactly = on_its_scale(crossed_exact.parameters)
    error = pd.DataFrame([on_its_scale(fit) - exactly for fit in fits])
    bias = error.mean().abs() - 0.01 * crossed_exact.parameters["std_error"]
    assert np.all(bias < 4 * error.std(ddof=1) / np.sqrt(24))
    relative = error.to_numpy() / np.array([fit["mcse"] for fit in fits], float)
    size = np.sqrt((relative**2).mean(0))
    assert np.all((size > 0.6) & (size < 1.6)), size


@pytest.mark.slow
def test_intervals_cover_the_truth():
    """95% Wald intervals over 100 data sets of one shape: with coverage 0.95, fewer than 88
    happens once in 700 (binomial); small-sample bias of the variances makes 80 the bound for
    the sd of 12 groups. Fewer could not tell 0.95 from 0.85."""
    inside = pd.Series(0, ["Intercept", "x", "sd(g)", "sd(residual)"])
    truth = pd.Series({"Intercept": 1.0, "x": 0.5, "sd(g)": np.log(1.0), "sd(residual)": 0.0})
    g = np.repeat(np.arange(12), 8)
    for seed in range(100):
        rng = np.random.default_rng(seed)
        data = pd.DataFrame({"g": g, "x": rng.normal(size=96)})
        data["y"] = 1 + 0.5 * data["x"] + rng.normal(size=12)[g] + rng.normal(size=96)
        table = quiet_fit("y ~ x + (1|g)", data, seed=seed).parameters
        off = (on_its_scale(table) - truth).abs() / table["std_error"]
        inside += off < 1.96
    assert (inside >= pd.Series({"Intercept": 83, "x": 88, "sd(g)": 80, "sd(residual)": 88})).all()
