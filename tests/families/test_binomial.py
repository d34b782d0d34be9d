"""Successes out of trials say what the trials say when they are written out, one row each.

And an effect a row, against the exact marginal likelihood: with one row a level it is a product of
one-dimensional integrals.
"""

from __future__ import annotations

from typing import NamedTuple

import lmmbook as lmm
from lmmbook.core.model import LinearMixedEffectModel, features_of
from lmmbook.engine import arrays, init, row_sums
from lmmbook.engine.certificate import louis
from lmmbook.engine.certificate.laplace import Laplace
from lmmbook.engine.linear_predictor import at, curvatures, rows_of, value_and_slopes
from lmmbook.engine.parallel import data_parallel
from lmmbook.families import Bernoulli, Binomial, Gaussian
from lmmbook.formula import build_design

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from conftest import criticism
from scipy import optimize, special, stats

NONE = tf.zeros([0], tf.float64)


def rows(count: int = 60, seed: int = 0) -> pd.DataFrame:
    """Successes k out of n trials, in groups."""
    rng = np.random.default_rng(seed)
    data = pd.DataFrame({"g": rng.integers(0, 8, count), "x": rng.normal(size=count)})
    data["n"] = rng.integers(1, 9, count)
    eta = 0.3 + 0.6 * data["x"] + rng.normal(0, 0.8, 8)[data["g"]]
    return data.assign(k=rng.binomial(data["n"], special.expit(eta)))


def written_out(data: pd.DataFrame) -> pd.DataFrame:
    """One row a trial, ``y`` 1 for each success."""
    found = data.loc[data.index.repeat(data["n"])]
    trial = found.groupby(level=0).cumcount()
    return found.assign(y=(trial < found["k"]).astype(int)).reset_index(drop=True)


# Row by row


def test_the_mass_is_scipys():
    k, n = np.array([0, 3, 7, 1, 0, 30]), np.array([1, 3, 9, 1, 5, 100])
    eta = np.linspace(-4, 3, 6)
    family, observed = Binomial().given(np.stack([k, n], axis=1).astype(float))
    distribution = family.distribution(tf.constant(eta), NONE)
    p = special.expit(eta)
    np.testing.assert_allclose(distribution.log_prob(observed), stats.binom.logpmf(k, n, p))
    np.testing.assert_allclose(distribution.cdf(observed), stats.binom.cdf(k, n, p))
    np.testing.assert_allclose(family.mean(eta, np.zeros(0)), p)
    with pytest.raises(ValueError, match="expected trials"):
        Binomial().distribution(tf.constant(eta), NONE)
    assert hash(family) == hash(Binomial())  # a program is the same whatever the trials are


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_density_and_derivatives_are_sums_over_the_trials(dtype):
    """k times those of a one, and n - k times those of a zero; far out, too."""
    k, n, eta = (x.ravel() for x in np.meshgrid([0, 1, 4], [1, 4, 9], np.linspace(-90, 90, 61)))
    k, n, eta = (tf.constant(x[k <= n], dtype) for x in (k, n, eta))
    one, zero = (Bernoulli().distribution(eta, NONE).log_prob(y) for y in (1.0, 0.0))
    family, tolerance = Binomial(), {np.float64: 1e-13, np.float32: 1e-6}[dtype]
    density, slope = family.value_and_slope((k, n), eta, NONE)
    np.testing.assert_allclose(density, k * one + (n - k) * zero, rtol=tolerance, atol=1e-30)
    first, second = family.derivatives((k, n), eta, NONE)
    of_one, of_zero = (Bernoulli().derivatives((y,), eta, NONE) for y in (tf.ones_like(k), 0 * k))
    for found, a, b in [
        (slope, of_one.first[0], of_zero.first[0]),
        (first[0], of_one.first[0], of_zero.first[0]),
        (second[0][0], of_one.second[0][0], of_zero.second[0][0]),
    ]:
        np.testing.assert_allclose(found, k * a + (n - k) * b, rtol=tolerance, atol=9 * tolerance)


# All rows


class OnDevice(NamedTuple):
    """A design with 3 chains, and effects that are the same in any design of these groups."""

    design: lmm.design.Design
    layout: arrays.Layout
    arrays: arrays.Arrays

    @classmethod
    def of(cls, formula: str, data: pd.DataFrame, family: lmm.families.Family) -> OnDevice:
        design = build_design(formula, data, family)
        return cls(design, *arrays.on_device(design, 3))

    def sums(self) -> list[np.ndarray]:
        """All that the E-step, the M-step and the certificate ask of the rows."""
        parameters = arrays.Parameters(tf.constant([0.2, 0.5]), [tf.constant([[0.7]])], NONE)
        effects = [tf.random.stateless_normal([8, 3, 1], [1, 2])]
        state = at(self.layout, self.arrays, arrays.State(parameters, effects))
        given = self.layout, self.arrays, state
        (value, _), slopes = value_and_slopes(self.layout, 0, self.arrays, state)
        _, sums = row_sums.regression_sums(*given)
        followed = Laplace(self.layout, self.arrays, parameters).parametrisation()
        certificate = louis.score_and_information(*given, followed)
        told = curvatures(*given)
        total = tf.reduce_sum(tf.cast(value, tf.float64), axis=0)
        return [np.asarray(x) for x in tf.nest.flatten([total, slopes, sums, certificate, told])]


@pytest.mark.parametrize("blocks", [1, 7])
def test_sums_over_rows_are_those_of_the_trials_written_out(blocks, monkeypatch):
    data = rows()
    monkeypatch.setattr(row_sums, "BLOCK", len(data) * 3 // blocks)
    few = OnDevice.of("p(k, n) ~ x + (1|g)", data, Binomial())
    many = OnDevice.of("y ~ x + (1|g)", written_out(data), Bernoulli())
    assert few.design.rows < many.design.rows
    for one, other in zip(few.sums(), many.sums(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)  # single precision


def test_one_trial_a_row_is_bernoulli():
    data = rows().assign(n=1)
    data["k"] = (data["k"] > 2).astype(int)
    few = OnDevice.of("p(k, 1) ~ x + (1|g)", data, Binomial())
    plain = OnDevice.of("k ~ x + (1|g)", data, Bernoulli())
    for one, other in zip(few.sums(), plain.sums(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    assert build_design("k ~ x + (1|g)", data, Binomial()).family == Bernoulli()


def test_a_device_has_the_trials_of_its_own_rows():
    few = OnDevice.of("p(k, n) ~ x + (1|g)", rows(), Binomial())
    codes = few.arrays.factors[0].codes.numpy()
    own = slice(*np.searchsorted(codes, [2, 5]))
    part = data_parallel._of_replica(few.layout, few.arrays, 0, 1, slice(2, 5), own)
    parameters = arrays.Parameters(tf.constant([0.2, 0.5]), [tf.constant([[0.7]])], NONE)
    of_all, of_part = (rows_of(few.layout, x, parameters) for x in (few.arrays, part))
    for whole, some in zip(of_all, of_part, strict=True):
        np.testing.assert_array_equal(tf.reshape(whole, [-1, 3])[own], tf.reshape(some, [-1, 3]))


def test_the_regression_is_that_of_the_trials_written_out(monkeypatch):
    data = rows()
    few = build_design("p(k, n) ~ x + (1|g)", data, Binomial())
    many = build_design("y ~ x + (1|g)", written_out(data), Bernoulli())
    starts = [d.family.start(d.response)[0] for d in (few, many)]
    assert starts[0] == pytest.approx(starts[1])
    (beta, none, variance), expected = init.fit(few), init.fit(many)
    np.testing.assert_allclose(beta, expected[0], rtol=1e-6)
    value, score, information, weight = init.evaluate(few, beta, none)
    _, score_many, information_many, weight_many = init.evaluate(many, beta, none)
    np.testing.assert_allclose(score, score_many, atol=1e-8)
    np.testing.assert_allclose(information, information_many, rtol=1e-10)
    assert weight * len(data) == pytest.approx(weight_many * data["n"].sum())
    assert variance == pytest.approx(1 / weight)
    p = special.expit(beta[0] + beta[1] * data["x"])
    assert value == pytest.approx(stats.binom.logpmf(data["k"], data["n"], p).sum())
    monkeypatch.setattr(init, "MAX_ROWS", 50)  # of many rows, some: a start
    assert np.isfinite(init.fit(few)[0]).all()


def test_the_joint_distribution_knows_the_trials():
    data = rows()
    design = build_design("p(k, n) ~ x + (1|g)", data, Binomial())
    joint = LinearMixedEffectModel(design)(features_of(design))
    u, k = joint.sample(seed=1)
    assert (k.numpy() <= data["n"]).all()
    assert (k.numpy() > 1).any()
    eta = u.numpy()[design.factors[0].codes, 0]
    expected = stats.norm.logpdf(u).sum()
    expected += stats.binom.logpmf(data["k"], data["n"], special.expit(eta)).sum()
    found = joint.log_prob(u, design.response[:, 0].astype(np.float32))
    assert float(found) == pytest.approx(expected, rel=1e-5)


# New rows


def test_every_new_row_has_its_own_trials():
    """Two posterior draws of one effect: sums of two terms, by SciPy."""
    design = build_design("p(k, n) ~ x + (1|g)", rows(), Binomial())
    estimates = pd.Series({"Intercept": 0.2, "x": 0.5, "sd(g)": 1.0})
    drawn = np.array([[-0.7] * 8, [1.1] * 8], np.float32)
    asked = design, estimates, {"g": drawn}
    new = pd.DataFrame({"g": [0, 1, 2], "x": [0.0, -1.0, 2.0], "n": [1, 5, 40], "k": [1, 2, 30]})
    p = special.expit(0.2 + 0.5 * new["x"].to_numpy() + drawn[:, :3])  # [draws, rows]
    k, n = new["k"].to_numpy(), new["n"].to_numpy()
    mass, cdf = stats.binom.pmf(k, n, p).mean(0), stats.binom.cdf(k, n, p).mean(0)
    np.testing.assert_allclose(criticism.log_score(*asked, new), np.log(mass), rtol=1e-6)
    uniform = np.random.default_rng(3).uniform(size=3)
    found = criticism.pit(*asked, new, 3)
    np.testing.assert_allclose(found, cdf - (1 - uniform) * mass, rtol=1e-6)
    below = stats.binom.cdf([[0], [4]], n, p[:, np.newaxis]).mean(0)
    found = criticism.probabilities(*asked, new.drop(columns="k"), [0.5, 4.0])
    np.testing.assert_allclose(found.T, [below[0], below[1] - below[0], 1 - below[1]], atol=1e-7)
    found = criticism.predict(*asked, new[["g", "x"]])  # of trials it knows nothing
    np.testing.assert_allclose(found, p.mean(0), rtol=1e-6)
    draws = criticism.draws(*asked, new.drop(columns="k"), 2, 0)
    assert (draws <= n).all()
    assert draws[:, 2].min() > 10
    for function, arguments in [(criticism.draws, (2, 0)), (criticism.probabilities, ([0.5],))]:
        with pytest.raises(ValueError, match=r"expected columns \['n'\]"):
            function(*asked, new[["g", "x"]], *arguments)
        with pytest.raises(ValueError, match="at least one trial in each row"):
            function(*asked, new.assign(n=0), *arguments)
    with pytest.raises(ValueError, match="no more successes than trials, got 9 of 1 in row 0"):
        criticism.log_score(*asked, new.assign(k=9))


# An effect a row


def one_row_a_level(family: str, count: int, seed: int) -> tuple[str, pd.DataFrame]:
    rng = np.random.default_rng(seed)
    data = pd.DataFrame({"x": rng.normal(size=count), "row": rng.permutation(count)})
    eta = 0.5 + 0.4 * data["x"] + 0.7 * rng.normal(size=count)
    data["n"] = rng.integers(1, 12, count)
    counts = {
        "poisson": rng.poisson(np.exp(eta)),
        "binomial": rng.binomial(data["n"], special.expit(eta)),
    }
    data["y"] = counts[family]
    return f"{'y' if family == 'poisson' else 'p(y, n)'} ~ x + (1|row)", data


def maximum(family: str, data: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Intercept, slope and log sd at the maximum of the marginal likelihood, and standard errors.

    A row's integral by Gauss and Hermite, around where the row's effect is.
    """
    x, y, n = (data[c].to_numpy()[:, np.newaxis] for c in ("x", "y", "n"))
    nodes, weights = special.roots_hermitenorm(60)

    def log_density(p: np.ndarray, u: np.ndarray) -> np.ndarray:
        eta = p[0] + p[1] * x + np.exp(p[2]) * u
        if family == "poisson":
            return stats.poisson.logpmf(y, np.exp(eta))
        return stats.binom.logpmf(y, n, special.expit(eta))

    def value(p: np.ndarray) -> float:
        grid = np.linspace(-6, 6, 241)
        logs = log_density(p, grid) - grid**2 / 2
        shares = special.softmax(logs, axis=1)
        mean = shares @ grid
        sd = np.sqrt(shares @ grid**2 - mean**2)[:, np.newaxis]
        u = mean[:, np.newaxis] + sd * nodes
        logs = log_density(p, u) + (nodes**2 - u**2) / 2 + np.log(sd * weights / weights.sum())
        return special.logsumexp(logs, axis=1).sum()

    start = np.array([0.5, 0.4, np.log(0.7)])
    at = optimize.minimize(lambda p: -value(p), start, method="BFGS", options={"gtol": 1e-3}).x
    steps = 1e-2 * np.eye(3)
    hessian = [
        [sum(s * t * value(at + s * a + t * b) for s in (1, -1) for t in (1, -1)) for a in steps]
        for b in steps
    ]
    return at, np.sqrt(np.diag(np.linalg.inv(-np.array(hessian) / 4e-4)))


@pytest.mark.parametrize(
    ("count", "several", "told"), [(8, 1, False), (8, 2, True), (40, 3, False), (40, 4, True)]
)
def test_a_tenth_of_the_rows_has_to_tell(count, several, told):
    response = np.c_[np.zeros(count), np.where(np.arange(count) < several, 2, 1)]
    assert (Binomial().no_effect_a_row(response) is None) == told


@pytest.mark.parametrize(
    ("family", "count"),
    [
        ("poisson", 300),
        pytest.param("binomial", 300, marks=pytest.mark.slow),
        pytest.param("poisson", 3000, marks=pytest.mark.slow),
        pytest.param("binomial", 3000, marks=pytest.mark.slow),
    ],
)
def test_an_effect_a_row_is_at_the_exact_maximum(family, count):
    formula, data = one_row_a_level(family, count, seed=1)
    fit = lmm.fit(formula, data, family, seed=1)
    estimate, error = maximum(family, data)
    found = fit.parameters["estimate"].to_numpy().copy()
    found[-1] = np.log(found[-1])
    assert fit.converged
    assert not fit.parameters["at_boundary"].any()
    assert np.all(np.abs(found - estimate) < 0.2 * error + 3 * fit.parameters["mcse"])
    np.testing.assert_allclose(fit.parameters["std_error"], error, rtol=0.15)  # a few 100 draws


def overdispersed(seed: int = 2) -> tuple[pd.DataFrame, np.ndarray, float]:
    """Data whose residual has an sd of 0.5, and the exact maximum: ordinary least squares, and what
    is left of its variance."""
    rng = np.random.default_rng(seed)
    data = pd.DataFrame({"x": rng.normal(size=200), "row": np.arange(200)})
    data["y"] = 1 + 0.4 * data["x"] + rng.normal(0, 0.8, 200)
    x = np.c_[np.ones(200), data["x"]]
    beta = np.linalg.lstsq(x, data["y"], rcond=None)[0]
    return data, beta, float(np.sqrt(np.mean((data["y"] - x @ beta) ** 2) - 0.25))


def test_beside_a_fixed_residual_the_exact_answer_is_that_of_least_squares():
    data, beta, sd = overdispersed()
    known = Gaussian(sd=0.5)
    found = lmm.exact.fit("y ~ x + (1|row)", data, known)
    np.testing.assert_allclose(found.parameters["estimate"], [*beta, sd, 0.5], rtol=1e-5)
    total = np.hypot(sd, 0.5)
    expected = stats.norm.logpdf(data["y"], beta[0] + beta[1] * data["x"], total).sum()
    assert found.log_likelihood == pytest.approx(expected)
    values = found.parameters["estimate"]
    assert lmm.exact.log_likelihood("y ~ x + (1|row)", data, values) == pytest.approx(expected)
    effects = lmm.exact.effects("y ~ x + (1|row)", data, values)["row"]
    left = data["y"] - beta[0] - beta[1] * data["x"]
    np.testing.assert_allclose(effects["mean"], left * (sd / total) ** 2, atol=1e-5)


@pytest.mark.slow
def test_beside_a_fixed_residual_the_fit_is_that_of_least_squares():
    data, beta, sd = overdispersed()
    fit = lmm.fit("y ~ x + (1|row)", data, Gaussian(sd=0.5), seed=1)
    table = fit.parameters.iloc[:3]
    assert fit.converged
    away = np.abs(table["estimate"] - [*beta, sd]) / [1, 1, sd]
    assert np.all(away < 0.2 * table["std_error"] + 3 * table["mcse"])
