"""As a whole: core draws from the exact conditional, its certificate is right, its fits arrive.

Where the two engines differ on purpose (step sizes here are not adapted, the certificate
differentiates automatically, one factor at most centres on a fixed effect), they agree in what they
are for: conditional moments and maxima, within Monte Carlo error.
"""

from __future__ import annotations

from functools import partial

import lmmbook as lmm
from lmmbook import exact
from lmmbook.core import certificate, e_step, mcem
from lmmbook.core.model import Theta, data_of, parameters_of, theta_of
from lmmbook.engine import arrays, iteration
from lmmbook.engine.e_step import block_hmc
from lmmbook.exact.marginal import Marginal
from lmmbook.families import resolve
from lmmbook.formula import build_design

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from conftest import assert_conditional, conditional_draws

CHAINS = 3000


def swept(design, theta, u, sweeps: int) -> list[np.ndarray]:
    """Effects after some sweeps, at fixed curvature."""
    data = data_of(design)
    compiled = tf.function(partial(e_step.sweep, data), jit_compile=True, autograph=False)
    u = [tf.constant(v, tf.float32) for v in u]
    eta = data.eta(theta, u)
    curvature = e_step.curvatures(data, theta, eta)
    for i in range(sweeps):
        u, eta, acceptance = compiled(theta, u, eta, curvature, tf.constant([3, i]))
    assert 0.8 < acceptance <= 1.0
    return [v.numpy() for v in u]


@pytest.mark.parametrize("start", ["conditional", "far away"])
def test_sweeps_draw_from_the_exact_conditional(tiny, tiny_design, start):
    draws = conditional_draws(tiny_design, tiny.truth, CHAINS, seed=1)
    u = [v[..., 0] if start == "conditional" else 0 * v[..., 0] + 4 for v in draws]
    found = swept(tiny_design, theta_of(tiny_design, tiny.truth), u, 3 if u[0].max() < 4 else 20)
    assert_conditional(tiny_design, tiny.truth, [v[..., np.newaxis] for v in found])
    wrong = tiny.truth | {"sd(residual)": 1.15 * tiny.truth["sd(residual)"]}
    with pytest.raises(AssertionError):  # the test has the power to fail
        assert_conditional(tiny_design, wrong, [v[..., np.newaxis] for v in found])


def score_of(data):
    """Compiled: one draw after another, thousands of them, would take minutes without."""
    function = partial(certificate.score_and_information, data)
    return tf.function(function, jit_compile=True, autograph=False)


def counts(seed: int = 5) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    data = pd.DataFrame({"g": np.resize(np.arange(30), 600), "h": rng.integers(0, 20, 600)})
    eta = 0.4 + rng.normal(0, 0.5, 30)[data["g"]] + rng.normal(0, 0.4, 20)[data["h"]]
    return data.assign(y=rng.poisson(np.exp(eta)), z=rng.binomial(1, 1 / (1 + np.exp(-2 * eta))))


FORMULA = "y ~ 1 + (1|g) + (1|h)"


def test_conditional_moments_of_counts_are_the_engines():
    """Mean and sd of every effect over independent chains, within 5 Monte Carlo standard errors."""
    design = build_design(FORMULA, counts().iloc[:100], resolve("poisson"))
    parameters = {"Intercept": 0.5, "sd(g)": 0.6, "sd(h)": 0.3}
    theta, chains = theta_of(design, parameters), 1500
    ours = swept(design, theta, [np.zeros([f.levels, chains]) for f in design.factors], 25)
    layout, array = arrays.on_device(design, chains)
    state = iteration.start(layout, array, arrays.to_parameters(design, parameters))

    @partial(tf.function, autograph=False, jit_compile=True)
    def swept_once(state, seed):
        begun = iteration.begin(layout, array, state, True)
        return iteration.paused(block_hmc.sweep(layout, array, begun, seed)[0])

    for i in range(25):
        state = swept_once(state, tf.constant([4, i]))
    for one, other in zip(ours, state.effects, strict=True):
        other = other.numpy()[..., 0]
        sd = np.sqrt((one.var(1) + other.var(1)) / 2)
        assert np.abs((one.mean(1) - other.mean(1)) / sd / np.sqrt(2 / chains)).max() < 5
        assert np.abs(np.log(one.std(1) / other.std(1)) / np.sqrt(1 / chains)).max() < 5


def log_likelihood(design, theta: Theta, change: np.ndarray) -> float:
    beta, log_sigma, log_residual = np.split(np.concatenate(theta).astype(float) + change, [2, 4])
    covariances = [np.exp(2 * x).reshape(1, 1) for x in log_sigma]
    return Marginal(design).evaluate(beta, covariances, float(np.exp(log_residual[0]))).value


@pytest.mark.parametrize("least", [False, True])
def test_the_score_and_the_information_are_those_of_the_exact_likelihood(tiny, tiny_design, least):
    """Exact draws against differences: scores within 5 Monte Carlo standard errors, informations
    within 5 times sqrt(2 / chains) of the complete data's."""
    data, theta = data_of(tiny_design), theta_of(tiny_design, tiny.truth)
    u = [tf.constant(v[..., 0]) for v in conditional_draws(tiny_design, tiny.truth, CHAINS, seed=2)]
    curvature = e_step.curvatures(data, theta, data.eta(theta, u))
    held = certificate.least_information(data, theta, curvature)
    if not least:
        held = tf.nest.map_structure(tf.zeros_like, held)
    score, J = (x.numpy().astype(float) for x in score_of(data)(theta, u, held))
    h, size = 1e-3 * np.eye(5), len(J)
    at = partial(log_likelihood, tiny_design, theta)
    slope = np.array([(at(e) - at(-e)) / 2e-3 for e in h])
    mcse = score.std(0, ddof=1) / np.sqrt(CHAINS)
    assert np.all(np.abs(score.mean(0) - slope) < 5 * mcse)
    hessian = [
        [(at(a + b) - at(a - b) - at(b - a) + at(-a - b)) / 4e-6 for b in h] for a in h
    ]  # fmt: skip
    observed, complete = J - np.cov(score.T), np.sqrt(np.diag(J))
    off = (observed + np.array(hessian)) / np.outer(complete, complete)
    assert size == 5
    assert np.abs(off).max() < 5 * np.sqrt(2 / CHAINS)


def test_least_information_is_less(tiny, tiny_design):
    """Than that of the model as written, for what it puts elsewhere; and no less than nothing."""
    data, theta = data_of(tiny_design), theta_of(tiny_design, tiny.truth)
    u = [tf.constant(v[..., 0]) for v in conditional_draws(tiny_design, tiny.truth, 500, seed=2)]
    held = certificate.least_information(
        data, theta, e_step.curvatures(data, theta, data.eta(theta, u))
    )
    as_written = tf.nest.map_structure(tf.zeros_like, held)
    least, most = (np.diag(score_of(data)(theta, u, x)[1]) for x in (held, as_written))
    assert np.all(least[[0, 2, 3]] < 0.9 * most[[0, 2, 3]])  # Intercept, sd(g), sd(h)
    assert np.all(least > 0)


def off(found: certificate.Certificate, wanted: pd.DataFrame) -> pd.Series:
    """How far estimates are from others, in these' standard errors."""
    estimate, other = found.table["estimate"], wanted["estimate"]
    is_sd = estimate.index.str.startswith("sd(")
    ratio = np.log((estimate / other).where(is_sd, 1.0))
    return (estimate - other).where(~is_sd, ratio).abs() / wanted["std_error"]


@pytest.mark.parametrize("name", ["crossed", "nested"])
def test_fits_reach_the_exact_maximum(name, request):
    formula, data, _ = request.getfixturevalue(name)
    found, draws = mcem.fit(build_design(formula, data), seed=1)
    truth = exact.fit(formula, data).parameters
    assert found.converged
    assert found.distance < certificate.CONVERGED_WITHIN
    assert off(found, truth).max() < 0.2
    errors = found.table["std_error"] / truth["std_error"]
    assert np.all((errors > 0.8) & (errors < 1.25))
    by_level = exact.effects(formula, data, found.table["estimate"])
    for u, wanted in zip(draws, by_level.values(), strict=True):
        away = (u.mean((0, 2)) - wanted["mean"]) / wanted["sd"]
        assert np.sqrt(np.mean(away**2)) < 0.3


@pytest.mark.parametrize(("response", "family"), [("y", "poisson"), ("z", "bernoulli")])
def test_fits_of_counts_and_answers_reach_the_engines(response, family):
    formula = FORMULA.replace("y", response, 1)
    found, _ = mcem.fit(build_design(formula, counts(), resolve(family)), seed=1)
    wanted = lmm.fit(formula, counts(), family, seed=2)
    assert found.converged
    assert off(found, wanted.parameters).max() < 0.3


def test_the_certificate_sees_a_distance_of_one(crossed):
    design = build_design(crossed.formula, crossed.data)
    truth = exact.fit(crossed.formula, crossed.data).parameters
    away = truth["estimate"].copy()
    away["Intercept"] += truth.loc["Intercept", "std_error"]
    away["sd(g)"] *= np.exp(-truth.loc["sd(g)", "std_error"])
    run = mcem.MCEM(design, seed=3)
    run.set(theta_of(design, away))
    found, _ = run.measure(400)
    assert not found.converged
    step = found.table["step"] / truth["std_error"]
    wanted = pd.Series(0.0, step.index) + pd.Series({"Intercept": -1.0, "sd(g)": 1.0})
    np.testing.assert_allclose(step, wanted.fillna(0.0)[step.index], atol=0.25)


def test_a_seed_decides_and_a_fit_begins_anywhere(tiny_design):
    runs = [mcem.MCEM(tiny_design, seed, chains=4) for seed in (1, 1, 2)]
    walks = [run.em(np.ones(5)) for run in runs]
    pd.testing.assert_frame_equal(walks[0], walks[1])
    assert not np.allclose(walks[0], walks[2])
    assert parameters_of(tiny_design, runs[0].theta) == pytest.approx(
        dict(walks[0].mean()), rel=0.1
    )


def test_a_budget_that_is_too_small_is_said(tiny_design, monkeypatch):
    monkeypatch.setattr(mcem, "FIRST_DRAWS", 10)
    found, _ = mcem.fit(tiny_design, seed=0, chains=2, max_sweeps=10)
    assert not found.converged


def test_what_belongs_to_theta_follows_it(tiny_design, tiny):
    run = mcem.MCEM(tiny_design, seed=0, chains=2)
    run.sweep()
    run.set(theta_of(tiny_design, tiny.truth))
    weight = 1 / tiny.truth["sd(residual)"] ** 2
    for factor, curvature in zip(tiny_design.factors, run.curvature, strict=True):
        np.testing.assert_allclose(curvature[:, 0], weight * np.bincount(factor.codes), rtol=1e-5)
    np.testing.assert_allclose(run.eta, run.data.eta(run.theta, run.u), atol=1e-5)


def test_the_last_step_is_taken(tiny_design, monkeypatch):
    """The estimate is where the certificate's step leads, and the certificate is of before it."""
    before = []
    advance = mcem.MCEM.advance

    def recorded(run: mcem.MCEM, step: np.ndarray) -> None:
        before.append((parameters_of(tiny_design, run.theta), step))
        advance(run, step)

    monkeypatch.setattr(mcem.MCEM, "advance", recorded)
    found, _ = mcem.fit(tiny_design, seed=0, chains=8, max_sweeps=500)
    values, step = before[-1]
    np.testing.assert_array_equal(step, found.step)
    moved = found.table["estimate"] - pd.Series(values)
    assert np.abs(step[0]) > 0
    assert moved["Intercept"] == pytest.approx(step[0], rel=1e-3)


def test_the_error_of_a_step_is_its_spread(tiny_design, tiny):
    """Scores drawn anew 200 times, a standard error from the maximum, half of the information lost:
    noise of the mean and of Louis' variance count alike. Within four times the error of an sd."""
    theta, rng = theta_of(tiny_design, tiny.truth), np.random.default_rng(0)
    J = np.array([40.0, 9.0, 30.0, 25.0, 90.0])
    found = []
    for _ in range(200):
        noise = rng.normal(size=(50, 8, 5)) * np.sqrt(J / 2)
        table = certificate.certify(tiny_design, theta, np.sqrt(J / 2) + noise, np.diag(J)).table
        found.append((table["step"], table["mcse"]))
    step, mcse = (np.array(x) for x in zip(*found, strict=True))
    ratio = np.sqrt((mcse**2).mean(0)) / step.std(0)
    assert np.all(np.abs(np.log(ratio)) < 4 * np.sqrt(1 / 400)), ratio


def test_a_residual_that_is_known_stays(tiny):
    family = lmm.families.Gaussian(sd=0.8)
    run = mcem.MCEM(build_design(tiny.formula, tiny.data, family), seed=0)
    run.em(np.ones(10))
    found, _ = run.measure(50)
    assert found.table.loc["sd(residual)", "estimate"] == 0.8
    assert found.table["std_error"].drop("sd(residual)").gt(0).all()


def test_slopes_are_refused(crossed):
    design = build_design("y ~ x + (1 + x|g)", crossed.data)
    with pytest.raises(ValueError, match=r"random intercepts only, got slopes of \['g'\]"):
        mcem.fit(design, seed=0)


@pytest.mark.slow
def test_insteval_is_reached(insteval):
    formula = "ratings ~ service + (1|students) + (1|instructors) + (1|departments)"
    found, _ = mcem.fit(build_design(formula, insteval), seed=1)
    assert found.converged
    assert off(found, exact.fit(formula, insteval).parameters).max() < 0.2
