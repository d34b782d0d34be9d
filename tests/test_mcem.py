"""A fit agrees with the exact maximum, repeats itself, and is tens of device calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import lmmbook
from lmmbook import exact, families, m_step, mcem, result
from lmmbook.formula import build_design

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from conftest import Simulated

PHASES = ["warm-up", "approach", "average", "draws"]


@contextmanager
def watched() -> Iterator[list[mcem.Loop]]:
    """Collect the loops that fits build, and forbid the oracle: no fit may lean on it."""
    loops: list[mcem.Loop] = []

    class Watched(mcem.Loop):
        def __init__(self, *args, **keywords) -> None:
            super().__init__(*args, **keywords)
            self.compiled = 0
            loops.append(self)

        def _compile(self, m_step: mcem.MStep | None):
            self.compiled += 1
            return super()._compile(m_step)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("the fit asked the oracle")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mcem, "Loop", Watched)
        for name in ("fit", "effects", "log_likelihood", "_Marginal"):
            patch.setattr(exact, name, forbidden)
        yield loops


@pytest.fixture(scope="module")
def crossed_run(crossed) -> tuple[result.Fit, mcem.Loop]:
    with watched() as loops:
        fit = lmmbook.fit(crossed.formula, crossed.data, seed=0)
    (loop,) = loops
    return fit, loop


@pytest.fixture(scope="module")
def crossed_fit(crossed_run) -> result.Fit:
    return crossed_run[0]


@pytest.fixture(scope="module")
def crossed_exact(crossed) -> exact.ExactFit:
    return exact.fit(crossed.formula, crossed.data)


@pytest.fixture(scope="module")
def renamed_fit(crossed) -> result.Fit:
    """The same data with its rows shuffled and its levels renamed; another seed."""
    data = crossed.data.sample(frac=1, random_state=0)
    data["g"] = (99 - data["g"]).map("g{:03}".format)  # the order of the levels turns round
    data["h"] = data["h"].astype("category")
    return lmmbook.fit(crossed.formula, data, seed=1)


def assert_agrees(fit: result.Fit, truth: exact.ExactFit) -> None:
    """Within 4 Monte Carlo standard errors and 0.1 standard errors of the exact maximum."""
    table = truth.parameters
    assert list(fit.parameters.index) == list(table.index)
    is_sd = table.index.str.startswith("sd(")
    se = table["std_error"].where(~is_sd, table["std_error"] * table["estimate"])  # of sd, not log
    allowed = 4 * fit.parameters["mcse"] + 0.1 * se.fillna(0)
    difference = (fit.parameters["estimate"] - table["estimate"]).abs()
    assert np.all(difference <= allowed + 1e-6), difference / allowed
    assert np.all(fit.parameters["mcse"] < 0.1 * se.fillna(1))  # it allows no more than it should


def test_crossed_factors_agree_with_the_exact_fit(crossed_fit, crossed_exact):
    assert_agrees(crossed_fit, crossed_exact)


def test_parameters_are_recovered(crossed, crossed_exact, crossed_fit):
    """The simulation's truth is within 4 standard errors: model and simulation mean the same."""
    table = crossed_exact.parameters
    for name, truth in crossed.truth.items():
        estimate, se = crossed_fit.parameters["estimate"][name], table["std_error"][name]
        error = np.log(estimate / truth) if name.startswith("sd(") else estimate - truth
        assert abs(error) < 4 * se, name


def test_nested_factors_agree_with_the_exact_fit(nested):
    fit = lmmbook.fit(nested.formula, nested.data, seed=0)
    assert_agrees(fit, exact.fit(nested.formula, nested.data))


def test_a_fixed_residual_sd_agrees_with_the_exact_fit(crossed):
    family = families.Gaussian(sd=1.0)
    fit = lmmbook.fit(crossed.formula, crossed.data, family, seed=0)
    assert fit.parameters["estimate"]["sd(residual)"] == 1.0
    assert fit.parameters["mcse"]["sd(residual)"] == 0.0
    assert_agrees(fit, exact.fit(crossed.formula, crossed.data, family))


def test_rows_and_labels_are_only_names(crossed, crossed_fit, renamed_fit, crossed_exact):
    one, two = crossed_fit.parameters, renamed_fit.parameters
    se = crossed_exact.parameters["std_error"]
    allowed = 4 * np.hypot(one["mcse"], two["mcse"]) + 0.02 * se
    assert np.all((one["estimate"] - two["estimate"]).abs() < allowed)
    assert not one["estimate"].equals(two["estimate"])
    g = renamed_fit.effects["g"]
    assert list(g.index) == sorted(g.index)
    matched = g["mean"].to_numpy()[::-1]
    assert np.corrcoef(matched, crossed_fit.effects["g"]["mean"])[0, 1] > 0.99


def test_effects_agree_with_exact_conditioning(crossed, crossed_fit):
    """At the fit's own estimates, so that only the last phase's sampling is on trial."""
    truth = exact.effects(crossed.formula, crossed.data, crossed_fit.parameters["estimate"])
    assert list(crossed_fit.effects) == list(truth)
    for name, found in crossed_fit.effects.items():
        assert found.index.equals(truth[name].index)
        # Draws of a chain follow each other, means of chains are independent. One standard error
        # a factor, relative to the posterior sd, since one from 8 chains would be too noisy.
        chains = crossed_fit.posterior[name].reshape(crossed_fit.chains, -1, len(found))
        relative = chains.mean(1).std(0, ddof=1) / truth[name]["sd"]
        mcse = np.sqrt(np.mean(relative**2) / crossed_fit.chains)
        assert mcse < 0.2
        assert np.all((found["mean"] - truth[name]["mean"]).abs() < 5 * mcse * truth[name]["sd"])
        np.testing.assert_allclose(found["sd"], truth[name]["sd"], rtol=0.25)
        assert found["sd"].mean() == pytest.approx(truth[name]["sd"].mean(), rel=0.1)


def test_the_posterior_lists_chains_one_after_another(crossed_run):
    fit, loop = crossed_run
    for kept, last, factor in zip(loop.kept, loop.effects, fit.design.factors, strict=True):
        iterations, chains, _ = kept.shape
        draws = fit.posterior[factor.name]
        assert draws.shape == (iterations * chains, factor.levels)
        for chain in range(chains):
            own = draws[chain * iterations : (chain + 1) * iterations]
            np.testing.assert_array_equal(own, kept[:, chain])
            np.testing.assert_array_equal(own[-1], last[chain])


def test_the_trace_tells_the_story_of_the_fit(crossed_fit):
    trace, names = crossed_fit.trace, list(crossed_fit.parameters.index)
    assert set(trace.columns) == {*names, "phase", "acceptance", "log_joint"}
    assert list(trace["phase"].unique()) == PHASES
    assert trace["phase"].ne(trace["phase"].shift()).sum() == 4  # one stretch each
    assert len(trace) == mcem.CHUNK * crossed_fit.device_calls
    assert np.isfinite(trace.drop(columns="phase")).all(axis=None)
    by_phase = trace.groupby("phase", sort=False)
    moves = by_phase[names].nunique() > 1
    assert not moves.loc["warm-up"].any()  # parameters are frozen here ...
    assert not moves.loc["draws"].any()  # ... and here
    assert moves.loc[["approach", "average"]].all(axis=None)
    estimates = crossed_fit.parameters["estimate"]
    pd.testing.assert_series_equal(
        by_phase[names].mean().loc["average"], estimates, check_names=False, rtol=1e-5
    )
    np.testing.assert_allclose(trace[names].iloc[-1].astype(float), estimates, rtol=1e-5)
    assert by_phase["acceptance"].mean().loc[["average", "draws"]].between(0.6, 0.99).all()
    assert trace["acceptance"].between(0, 1).all()


def test_a_fit_is_tens_of_device_calls(crossed_run):
    fit, loop = crossed_run
    assert 5 < fit.device_calls < 100
    assert fit.device_calls * mcem.CHUNK * mcem.TRANSITIONS <= 2000  # max_sweeps is kept to
    assert loop.compiled == len(loop._programs) == 2  # with an M-step, and without
    for program in loop._programs.values():
        assert program._jit_compile is True
        assert program.experimental_get_tracing_count() == 1  # traced once, not once a chunk


def test_a_fit_prints_what_it_is(crossed, crossed_fit):
    text = str(crossed_fit)
    for part in (crossed.formula, "1,200 rows", "g 40, h 15", "8 chains", "Maximum likelihood"):
        assert part in text
    for name, value in crossed_fit.parameters["estimate"].items():
        assert f"{value:.4f}" in text[text.index(name) :]


def test_a_fit_predicts(crossed, crossed_fit):
    rows = crossed.data.iloc[:7]
    assert crossed_fit.predict(rows).shape == (7,)
    draws = crossed_fit.draws(rows, 50, seed=0)
    assert draws.shape == (50, 7)
    np.testing.assert_array_equal(draws, crossed_fit.draws(rows, 50, seed=0))
    residuals = crossed.data["y"] - crossed_fit.predict(crossed.data)
    sd = crossed_fit.parameters["estimate"]["sd(residual)"]
    assert abs(residuals.mean()) < 0.05 * sd  # the published fit is off by 0.6
    assert residuals.std() == pytest.approx(sd, rel=0.05)


def test_the_same_seed_gives_the_same_fit(tiny):
    one, two = (lmmbook.fit(tiny.formula, tiny.data, seed=3, max_sweeps=400) for _ in range(2))
    pd.testing.assert_frame_equal(one.trace, two.trace, check_exact=True)
    pd.testing.assert_frame_equal(one.parameters, two.parameters, check_exact=True)
    for name, draws in one.posterior.items():
        np.testing.assert_array_equal(draws, two.posterior[name])
    assert one.device_calls == 4  # the least: one chunk a phase
    assert list(one.trace["phase"].unique()) == PHASES


# Bad arguments


@pytest.mark.parametrize(
    "keywords",
    [{"seed": 1.5}, {"seed": None}, {"seed": "a"}, {"chains": 4.0}, {"max_sweeps": 450.5}],
)
def test_arguments_that_are_no_integers_are_refused(tiny, monkeypatch, keywords):
    monkeypatch.setattr(mcem, "Loop", None)
    [name] = keywords
    with pytest.raises(TypeError, match=f"{name}: expected an integer"):
        lmmbook.fit(tiny.formula, tiny.data, **{"seed": 0, **keywords})


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"chains": 0}, "chains: expected at least 2"),
        ({"chains": 1}, "chains: expected at least 2"),
        ({"chains": 7}, "chains: expected an even number"),
        ({"chains": -2}, "chains: expected at least 2"),
        ({"max_sweeps": 399}, "max_sweeps: expected at least 400"),
        ({"seed": -1}, "seed: expected at least 0"),
        ({"seed": 2**31}, "seed: expected at least 0 and at most"),
        ({"family": "poisson"}, "family: expected"),
        ({"family": None}, "family: expected"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(tiny, monkeypatch, keywords, message):
    monkeypatch.setattr(mcem, "Loop", None)
    with pytest.raises(ValueError, match=message):
        lmmbook.fit(tiny.formula, tiny.data, **{"seed": 0, **keywords})


def test_a_seed_is_asked_for(tiny):
    with pytest.raises(TypeError, match="seed"):
        lmmbook.fit(tiny.formula, tiny.data)


def test_the_start_is_least_squares_with_its_variance_shared_out(tiny, tiny_design):
    start = {k: float(v) for k, v in mcem.start_model(tiny_design, None).parameters().items()}
    beta = np.linalg.lstsq(tiny_design.fixed, tiny_design.response, rcond=None)[0]
    assert [start["Intercept"], start["x"]] == pytest.approx(beta)
    variance = np.var(tiny_design.response - tiny_design.fixed @ beta)
    sds = [start["sd(g)"], start["sd(h)"], start["sd(residual)"]]
    assert sds == pytest.approx([np.sqrt(variance / 3)] * 3)
    assert float(mcem.start_model(tiny_design, 0.7).residual_sd) == 0.7


# The loop by hand


@pytest.fixture(scope="module")
def loop(tiny: Simulated) -> mcem.Loop:
    design = build_design(tiny.formula, tiny.data)
    return mcem.Loop(mcem.start_model(design, None), design, chains=4, seed=0)


def again(loop: mcem.Loop, seed: int) -> list[np.ndarray]:
    """Start over, without compiling again: the draws of one chunk at the starting parameters."""
    loop.model.assign(mcem.start_model(loop.design, None).parameters())
    loop.effects = [tf.zeros_like(u) for u in loop.effects]
    loop.step_size, loop.seed, loop.device_calls = tf.constant(0.5), seed, 0
    loop.run("by hand", 1)
    return loop.kept


def test_another_seed_gives_other_draws(loop):
    one, same, other = (again(loop, seed) for seed in (0, 0, 1))
    for u, equal, different in zip(one, same, other, strict=True):
        np.testing.assert_array_equal(u, equal)
        assert not np.any(np.all(u == different, axis=-1))


def test_every_chunk_has_its_own_randomness(loop):
    """Two chunks from the same state differ: the seed moves on with the calls."""
    first = again(loop, seed=0)
    loop.effects = [tf.zeros_like(u) for u in loop.effects]
    loop.run("by hand", 1)
    assert not np.any(np.all(first[0] == loop.kept[0], axis=-1))


def test_adaptation_can_be_frozen(loop):
    again(loop, seed=0)
    assert loop.step_size == 0.5
    loop.run("by hand", 1, adapt=0.3)
    assert loop.step_size != 0.5


def test_every_e_step_starts_from_the_new_parameters(loop, tiny, tiny_design):
    """HMC's cache is made anew after each M-step.

    The parameters swing to and fro, far enough that a cached log density of the old ones would be
    wrong by much; plain M-steps leave the effects as they were drawn, so the trace's log density
    can be computed again from the draws and the parameters that they were drawn at.
    """
    low = [tf.constant(v, tf.float32) for v in tiny.truth.values()]
    high = [v + 1.0 for v in low]

    def swing(effects, gain):
        del gain
        above = loop.model.parameters()["sd(g)"] > 1.4
        new = [tf.where(above, a, b) for a, b in zip(low, high, strict=True)]
        loop.model.assign(dict(zip(tiny.truth, new, strict=True)))
        return effects

    loop.model.assign(tiny.truth)
    # A step so long that all is rejected: the draw's log density is then the bootstrapped one.
    for step_size in (0.5, 1e3):
        start = {k: float(v) for k, v in loop.model.parameters().items()}
        loop.step_size = tf.constant(step_size)
        trace = loop.run("by hand", 1, swing)
        drawn_at = pd.concat([pd.DataFrame([start]), trace[list(start)]]).iloc[:-1]
        assert set((drawn_at["sd(g)"] > 1.4).astype(int).diff().dropna().abs()) == {1}
        for i, parameters in enumerate(drawn_at.to_dict("records")):
            loop.model.assign(parameters)
            draws = [tf.constant(u[i]) for u in loop.kept]
            truth = float(tf.reduce_mean(loop.target_log_prob(*draws)))
            assert trace["log_joint"][i] == pytest.approx(truth, rel=1e-5), (step_size, i)
    assert np.all(trace["acceptance"] == 0)


def test_a_parameter_that_is_no_longer_finite_stops_the_loop(loop):
    def broken(effects, gain):
        loop.model.beta.assign(tf.fill([2], gain / 0.0))
        return effects

    with pytest.raises(FloatingPointError, match="by hand: expected finite values, got"):
        loop.run("by hand", 1, broken, gain=1.0)


def test_adam_runs_in_the_compiled_loop_and_climbs(tiny, tiny_design):
    """Chapter 04's comparison: the tutorial's M-step, in the same loop."""
    model = mcem.start_model(tiny_design, None)
    loop = mcem.Loop(model, tiny_design, chains=4, seed=0)
    before = exact.log_likelihood(
        tiny.formula, tiny.data, {k: float(v) for k, v in model.parameters().items()}
    )
    adam = m_step.adam_m_step(loop.target_log_prob, model.trainable_variables, learning_rate=0.02)
    trace = loop.run("adam", 10, adam, adapt=0.3)
    after = trace.tail(50).mean()[list(model.parameters())]
    best = exact.fit(tiny.formula, tiny.data).log_likelihood
    found = exact.log_likelihood(tiny.formula, tiny.data, after)
    assert before + 1 < found <= best
    assert best - found < 0.3


def test_monte_carlo_errors_are_by_batch_means():
    """For an AR(1) series, whose true Monte Carlo error is known."""
    rng = np.random.default_rng(0)
    length, repeats, rho = 2000, 200, 0.8
    noise = rng.normal(size=(length, repeats))
    series = np.zeros_like(noise)
    for t in range(1, length):
        series[t] = rho * series[t - 1] + noise[t]
    table = result.average(pd.DataFrame(series))
    np.testing.assert_allclose(table["estimate"], series.mean(0), atol=1e-12)
    truth = 1 / (1 - rho) / np.sqrt(length)
    # Ten batches: each has a chi-square with 9 degrees of freedom behind it.
    assert np.sqrt(np.mean(table["mcse"] ** 2)) == pytest.approx(truth, rel=0.15)


@pytest.mark.slow
def test_over_seeds_there_is_no_bias_and_the_reported_error_is_honest(crossed, crossed_exact):
    """Twelve fits: their mean is the exact maximum, and they scatter as they say they do."""
    fits = [lmmbook.fit(crossed.formula, crossed.data, seed=seed).parameters for seed in range(12)]
    estimates = pd.DataFrame([fit["estimate"] for fit in fits])
    scatter = estimates.std(ddof=1)
    error = estimates.mean() - crossed_exact.parameters["estimate"]
    se = crossed_exact.parameters["std_error"]
    assert np.all(error.abs() < 4 * scatter / np.sqrt(12) + 0.02 * se)
    reported = np.sqrt(np.mean([fit["mcse"] ** 2 for fit in fits], axis=0))
    # sd of 12: known to 21%; batch means of few iterations: to about as much.
    assert np.all((scatter / reported).between(0.4, 2.5))


@pytest.mark.slow
def test_an_sd_of_zero_is_approached(tiny):
    """Its maximum is at the boundary: EM creeps there, and nothing breaks on the way."""
    rng = np.random.default_rng(5)
    data = tiny.data.assign(y=rng.normal(size=len(tiny.data)))
    data["y"] -= data.groupby("g")["y"].transform("mean")  # groups of g agree by construction
    assert exact.fit("y ~ 1 + (1|g)", data).parameters["estimate"]["sd(g)"] == 0
    fit = lmmbook.fit("y ~ 1 + (1|g)", data, seed=0, max_sweeps=4000)
    assert 0 < fit.parameters["estimate"]["sd(g)"] < 0.3 * data["y"].std()
