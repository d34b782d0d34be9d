"""The likelihoods, row by row: against SciPy, statsmodels, differences, and numbers in float64.

Fits with them are in `test_fit_families`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import lmmbook as lmm
from lmmbook import exact
from lmmbook._tensorflow import randomness
from lmmbook.engine import arrays, fit, init, iteration, row_sums
from lmmbook.engine.linear_predictor import linear_predictor
from lmmbook.engine.m_step import closed_form
from lmmbook.families import (
    Bernoulli,
    Categorical,
    Cumulative,
    Custom,
    Family,
    Gaussian,
    NegativeBinomial,
    Poisson,
)
from lmmbook.families.cumulative import OrderedLogistic
from lmmbook.families.ordered_logistic import _log_of_1_to_4
from lmmbook.formula import build_design

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import special, stats
from statsmodels.miscmodels.ordinal_model import OrderedModel
from tensorflow_probability.python.internal import samplers

tfb, tfd = tfp.bijectors, tfp.distributions

STUDENT = Custom(lambda loc, scale: tfd.StudentT(4.0, loc, scale), {"scale": tfb.Exp()})
# A family, its auxiliary parameters, and responses as it has them.
CASES = {
    "gaussian": (Gaussian(), [0.3], [-1.5, 0.0, 2.25]),
    "cumulative 2": (Cumulative((0, 1)), [], [0, 1]),
    "cumulative 3": (Cumulative((1, 2, 3)), [0.4], [0, 1, 2]),
    "cumulative 5": (Cumulative((1, 2, 3, 4, 5)), [0.2, -1.0, 0.5], [0, 1, 2, 3, 4]),
    "bernoulli": (Bernoulli(), [], [0, 1]),
    "poisson": (Poisson(), [], [0, 1, 7]),
    "negativebinomial": (NegativeBinomial(), [0.4], [0, 1, 7]),
    "categorical 2": (Categorical(("a", "b")), [], [0, 1]),
    "categorical 3": (Categorical(("a", "b", "c")), [0.7, 0.3], [0, 1, 2]),
    "categorical 4": (Categorical((1, 2, 3, 4)), [0.7, -0.4, 1.6, -0.5], [0, 1, 2, 3]),
    "custom": (STUDENT, [-0.3], [-1.5, 0.0, 2.25]),
}
CLOSED_FORM = [name for name in CASES if name.startswith(("cumulative", "categorical", "neg"))]


def at(
    name: str, predictors: np.ndarray, dtype: type = np.float64
) -> tuple[Family, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Every response of a case at every predictor: family, response, predictor, auxiliary."""
    family, auxiliary, values = CASES[name]
    response, predictor = np.meshgrid(np.array(values, float), predictors, indexing="ij")
    return family, *(
        tf.constant(x, dtype) for x in (response.ravel(), predictor.ravel(), np.array(auxiliary))
    )


def cumulative_log_p(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """log(sigmoid(a) - sigmoid(b)), by SciPy, on the side where nothing cancels."""
    flip = a + b > 0
    high, low = np.where(flip, -b, a), np.where(flip, -a, b)
    return np.log(special.expit(high) - special.expit(low))


# What the distributions are


def test_two_ordered_categories_are_a_logit():
    """P(y <= 0) = sigmoid(threshold - x b): the logit with an intercept of minus the threshold."""
    for name in ("cumulative 2", "categorical 2"):
        family, response, predictor, none = at(name, np.linspace(-30, 30, 61))
        logit = Bernoulli()
        ours, theirs = (
            f.distribution(predictor, none).log_prob(response).numpy() for f in (family, logit)
        )
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-15)
        for ours, theirs in zip(
            tf.nest.flatten(family.derivatives(family.rows(response, none), predictor, none)),
            tf.nest.flatten(logit.derivatives((response,), predictor, none)),
            strict=True,
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-14)
        np.testing.assert_allclose(
            family.probabilities(predictor.numpy(), none.numpy()),
            logit.probabilities(predictor.numpy(), none.numpy()),
            rtol=1e-9, atol=1e-14,
        )  # fmt: skip
    assert Cumulative((0, 1)).constrain(0.7, np.zeros(0)) == ({"threshold(0|1)": -0.7}, {})


def test_the_densities_are_scipys():
    truth = {
        "gaussian": lambda y, eta: stats.norm.logpdf(y, eta, np.exp(0.3)),
        "poisson": lambda y, eta: stats.poisson.logpmf(y, np.exp(eta)),
        "negativebinomial": lambda y, eta: stats.nbinom.logpmf(
            y, np.exp(0.4), 1 / (1 + np.exp(eta - 0.4))
        ),
        "bernoulli": lambda y, eta: stats.bernoulli.logpmf(y, special.expit(eta)),
        "custom": lambda y, eta: stats.t.logpdf(y, 4, eta, np.exp(-0.3)),
    }
    for name, density in truth.items():
        family, response, predictor, own = at(name, np.linspace(-4, 3, 8))
        found = family.distribution(predictor, own).log_prob(response)
        expected = density(response.numpy(), predictor.numpy())
        np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("name", ["cumulative 3", "cumulative 5"])
def test_cumulative_probabilities_are_differences_of_sigmoids(name):
    family, response, predictor, own = at(name, np.linspace(-40, 40, 81))
    cuts = np.concatenate([[-np.inf, 0], np.cumsum(np.exp(own.numpy())), [np.inf]])
    y = response.numpy().astype(int)
    expected = cumulative_log_p(cuts[y + 1] - predictor.numpy(), cuts[y] - predictor.numpy())
    found = family.distribution(predictor, own).log_prob(response)
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("name", [n for n in CASES if CASES[n][0].categories])
def test_probabilities_sum_to_one_and_give_the_mean(name):
    family, auxiliary, codes = CASES[name]
    own, predictor = np.array(auxiliary, float), np.linspace(-9, 9, 12).reshape(3, 4)
    found = family.probabilities(predictor, own)
    assert found.shape == (3, 4, len(family.categories))
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-12)
    distribution = family.distribution(tf.constant(predictor), tf.constant(own))
    for code in codes:
        p = tf.exp(distribution.log_prob(tf.fill([3, 4], np.float64(code))))
        np.testing.assert_allclose(found[..., code], p, rtol=1e-9, atol=1e-15)
    if isinstance(family.categories[0], str):
        with pytest.raises(ValueError, match="no mean"):
            family.mean(predictor, own)
    else:
        expected = sum(c * found[..., i] for i, c in enumerate(family.categories))
        np.testing.assert_allclose(family.mean(predictor, own), expected)


def test_the_other_means():
    eta, none = np.array([-1.0, 0.5]), np.zeros(0)
    np.testing.assert_allclose(Bernoulli().mean(eta, none), special.expit(eta))
    np.testing.assert_allclose(Poisson().mean(eta, none), np.exp(eta))
    np.testing.assert_allclose(NegativeBinomial().mean(eta, np.array([0.3])), np.exp(eta))
    np.testing.assert_allclose(Gaussian().mean(eta, np.array([0.3])), eta)
    np.testing.assert_allclose(STUDENT.mean(eta, np.array([0.3])), eta)


# Derivatives


def row_by_row(predictor: tf.Tensor, own: list[tf.Tensor], response: tf.Tensor) -> tf.Tensor:
    """Log P of ordered categories where each row has gaps of its own: ``own`` are ``[rows]``."""
    cuts = [tf.fill(predictor.shape, np.float64(-1e9)), tf.zeros_like(predictor)]
    for gap in own:
        cuts.append(cuts[-1] + tf.exp(gap))
    cuts = tf.stack([*cuts, tf.fill(predictor.shape, np.float64(1e9))], axis=1)
    code = tf.cast(response, tf.int32)
    a, b = (tf.gather(cuts, code + up, batch_dims=1) - predictor for up in (1, 0))
    together = tf.math.log_sigmoid(a) + tf.math.log_sigmoid(-b)
    return together + tf.math.log(-tf.math.expm1(b - a))


class RowByRow(Cumulative):
    """As automatic differentiation needs it."""

    def distribution(self, predictor, auxiliary):
        own = tf.unstack(auxiliary) if auxiliary.shape[0] else []
        return SimpleNamespace(log_prob=lambda response: row_by_row(predictor, own, response))


@pytest.mark.parametrize("name", CLOSED_FORM)
def test_closed_form_derivatives_are_the_automatic_ones(name):
    family, response, predictor, own = at(name, np.linspace(-6, 5, 12))
    found = family.derivatives(family.rows(response, own), predictor, own)
    like = RowByRow(family.categories) if isinstance(family, Cumulative) else family
    expected = Family.derivatives(like, (response,), predictor, own)
    count = 1 + family.auxiliary
    assert len(found.first) == len(found.second) == count
    for i in range(count):
        np.testing.assert_allclose(found.first[i], expected.first[i], rtol=1e-8, atol=1e-10)
        for j in range(count):
            np.testing.assert_allclose(
                found.second[i][j], expected.second[i][j], rtol=1e-8, atol=1e-10
            )


def differences(name: str) -> float:
    """The largest difference of a case's derivatives from central differences."""
    family, response, predictor, own = at(name, np.linspace(-6, 5, 12))
    h, worst = 1e-5, 0.0
    at_zero = family.derivatives(family.rows(response, own), predictor, own)
    for i in range(1 + family.auxiliary):
        values, firsts = [], []
        for sign in (h, -h):
            eta = predictor + sign if i == 0 else predictor
            moved = own.numpy().copy()
            moved[i - 1 : i] += sign
            values.append(family.distribution(eta, tf.constant(moved)).log_prob(response).numpy())
            rows = family.rows(response, tf.constant(moved))
            firsts.append(family.derivatives(rows, eta, tf.constant(moved)).first)
        pairs = [((values[0] - values[1]) / (2 * h), at_zero.first[i].numpy())]
        for j in range(1 + family.auxiliary):
            second = (firsts[0][j] - firsts[1][j]).numpy() / (2 * h)
            pairs.append((second, at_zero.second[i][j].numpy()))
        for by_differences, ours in pairs:
            away = np.abs(by_differences - ours) / np.maximum(1, np.abs(ours))
            worst = max(worst, away.max())
    return worst


@pytest.mark.parametrize("name", CASES)
def test_derivatives_are_those_of_central_differences(name):
    assert differences(name) < 1e-7  # rounding over the step, 1e-15 / 1e-5, and some room


@pytest.mark.parametrize(
    "name", ["cumulative 5", "categorical 4", "gaussian", "poisson", "negativebinomial"]
)
def test_central_differences_see_a_wrong_sign(name, monkeypatch):
    kind = type(CASES[name][0])
    right = kind.derivatives

    def wrong(self, *arguments):
        found = right(self, *arguments)
        return found._replace(first=[*found.first[:-1], -found.first[-1]])

    monkeypatch.setattr(kind, "derivatives", wrong)
    assert differences(name) > 0.1


@pytest.mark.parametrize("name", CASES)
def test_value_and_slope_are_those_of_the_log_density(name):
    """And the log density is the distribution's, up to what does not depend on the predictor."""
    predictors = np.linspace(-6, 5, 12)
    family, response, predictor, own = at(name, predictors)
    rows = family.rows(response, own)
    value, slope = family.value_and_slope(rows, predictor, own)
    np.testing.assert_allclose(value, family.log_density(rows, predictor, own), rtol=1e-12)
    first = family.derivatives(rows, predictor, own).first[0]
    np.testing.assert_allclose(slope, first, rtol=1e-9, atol=1e-12)
    with tf.GradientTape() as tape:
        tape.watch(predictor)
        value = family.log_density(rows, predictor, own)
    np.testing.assert_allclose(tape.gradient(value, predictor), first, rtol=1e-9, atol=1e-12)
    constant = (value - family.distribution(predictor, own).log_prob(response)).numpy()
    constant = constant.reshape(-1, len(predictors))
    np.testing.assert_allclose(constant, np.tile(constant[:, :1], len(predictors)), atol=1e-9)


# Single precision

FAR = dict.fromkeys(CASES, 100.0) | {"poisson": 85.0}  # exp(89) is infinite in float32


def single_and_double(name: str, compute: Callable, compiled: bool) -> float:
    """How far float32 is from float64, relative to max(1, |value|), at worst."""
    predictors = np.linspace(-100, FAR[name], 1601).astype(np.float32)
    results = []
    for dtype in (np.float64, np.float32):
        family, response, predictor, own = at(name, predictors, dtype)
        run = tf.function(compute, jit_compile=True, autograph=False) if compiled else compute
        results.append([x.numpy().astype(float) for x in run(family, response, predictor, own)])
    away = [
        np.abs(single - double) / np.maximum(1, np.abs(double))
        for double, single in zip(*results, strict=True)
    ]
    return float(np.max(away))  # a NaN would come through


def density_and_slope(family, response, predictor, own):
    rows = family.rows(response, own)
    with tf.GradientTape() as tape:
        tape.watch(predictor)
        density = family.log_density(rows, predictor, own)
    return density, tape.gradient(density, predictor), *family.value_and_slope(rows, predictor, own)


def log_prob_and_slope(family, response, predictor, own):
    with tf.GradientTape() as tape:
        tape.watch(predictor)
        value = family.distribution(predictor, own).log_prob(response)
    return value, tape.gradient(value, predictor)


def all_derivatives(family, response, predictor, own):
    return tf.nest.flatten(family.derivatives(family.rows(response, own), predictor, own))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("compute", [density_and_slope, log_prob_and_slope])
@pytest.mark.parametrize("name", [n for n in CASES if n not in ("gaussian", "custom")])
def test_single_precision_is_enough(name, compute, compiled):
    assert single_and_double(name, compute, compiled) < 1e-5


@pytest.mark.parametrize("name", ["cumulative 2", "cumulative 5", "bernoulli"])
def test_single_precision_is_enough_for_the_m_step(name):
    assert single_and_double(name, all_derivatives, compiled=True) < 1e-5


@pytest.mark.parametrize(
    ("shape", "close"), [(0.01, 5e-5), (1.0, 5e-5), (100.0, 3e-5), (1e4, 5e-4)]
)
def test_a_negative_binomial_knows_its_shape_in_single_precision(shape, close, monkeypatch):
    """Its derivatives in the logarithm of the shape are small differences where that is large. A
    row's score has an sd of 0.07 where the shape is 1e4 and the mean 1,000. With digamma functions
    in single precision they are off by 5e-5 at 100, and by 7e-3 at 1e4."""
    own = np.log([shape])
    monkeypatch.setitem(CASES, "negativebinomial", (NegativeBinomial(), own, [0, 1, 7, 1000]))

    def derivatives(*arguments):
        found = all_derivatives(*arguments)
        return [found[1], found[5]]  # in the shape, once and twice

    assert single_and_double("negativebinomial", derivatives, compiled=True) < close


def test_tfps_ordered_logistic_would_not_do():
    """What ours is for; when this fails, TFP has mended it."""

    def theirs(family, response, predictor, own):
        with tf.GradientTape() as tape:
            tape.watch(predictor)
            value = tfd.OrderedLogistic(family.cutpoints(own), predictor).log_prob(
                tf.cast(response, tf.int32)
            )
        return value, tape.gradient(value, predictor)

    assert not single_and_double("cumulative 5", theirs, compiled=False) < 1e-2


def test_ordered_logistic_takes_thresholds_that_are_close():
    cuts = np.array([-1.0, -1.0 + 2.0**-10, 0.5], np.float32)
    loc = np.linspace(-100, 100, 801, dtype=np.float32)
    for category, (a, b) in {1: (cuts[1], cuts[0]), 2: (cuts[2], cuts[1])}.items():
        found = OrderedLogistic(cuts, loc).log_prob(category).numpy()
        expected = cumulative_log_p(a - loc.astype(float), b - loc.astype(float))
        assert np.all(np.abs(found - expected) < 1e-5 * np.maximum(1, np.abs(expected)))


# Names


@pytest.mark.parametrize("name", CASES)
def test_report_and_unreport_are_inverse(name):
    family, auxiliary, _ = CASES[name]
    first, last = family.constrain(0.7, np.array(auxiliary, float))
    intercept, own = family.unconstrain(first | last)
    assert intercept == pytest.approx(0.7)
    np.testing.assert_allclose(own, auxiliary, atol=1e-12)
    many = family.constrain(np.array([0.7, -1.0]), np.array([auxiliary, auxiliary], float))
    for one, two in zip((first, last), many, strict=True):
        assert list(one) == list(two)
        for key, value in one.items():
            assert np.shape(two[key]) == (2,)
            assert two[key][0] == pytest.approx(value)


def test_reported_thresholds_are_where_the_odds_are_even():
    family, own = Cumulative(("low", "mid", "high")), np.array([0.4])
    named, last = family.constrain(0.7, own)
    assert list(named) == ["threshold(low|mid)", "threshold(mid|high)"]
    assert last == {}
    for count, threshold in enumerate(named.values(), start=1):
        at_even = family.probabilities(np.array([0.7 + threshold]), own)[0, :count].sum()
        assert at_even == pytest.approx(0.5)
    with pytest.raises(ValueError, match=r"expected increasing ones, got \[1\.0, 0\.5\]"):
        family.unconstrain({"threshold(low|mid)": 1.0, "threshold(mid|high)": 0.5})


def test_reported_intercepts_and_scores_are_those_of_the_log_odds():
    family, own = Categorical(("a", "b", "c", "d")), np.array([0.7, -0.4, 1.6, -0.5])
    intercepts, scores = family.constrain(0.3, own)
    for effect in (0.0, 0.9):  # of covariates
        p = family.probabilities(np.array([0.3 + effect]), own)[0]
        for i, label in enumerate("bcd", start=1):
            score = scores.get(f"score({label})", 1.0)
            expected = intercepts[f"intercept({label})"] + score * effect
            assert np.log(p[i] / p[0]) == pytest.approx(expected)


# Responses that fit and those that do not


@pytest.mark.parametrize(
    ("family", "values", "match"),
    [
        ("cumulative", [1, 2.5, 3], r"whole numbers or an ordered Categorical.*got \[2\.5\]"),
        ("cumulative", [2, 2, 2], r"at least two categories, got \[2\]"),
        ("cumulative", list("aba"), r"ordered Categorical.*got str"),
        ("cumulative", pd.Categorical(list("aba")), r"unordered one with categories \['a', 'b'\]"),
        ("cumulative", [1, np.inf, 2], "infinite"),
        ("cumulative", [1, None, 2], "missing"),
        ("bernoulli", [0, 1, 2], r"expected 0 and 1 for bernoulli, got \[2\]"),
        ("bernoulli", [0, 0.5, 1], r"got \[0\.5\]"),
        ("bernoulli", [0, 0, 0], "both 0 and 1 for bernoulli, got only 0"),
        ("bernoulli", [True, True, True], "both 0 and 1"),
        ("bernoulli", list("yn?"), r"expected two labels for bernoulli, got 3: \['\?', 'n', 'y'\]"),
        ("bernoulli", list("yyy"), "expected two labels for bernoulli, got only 'y'"),
        ("poisson", [0, 1, -1], r"counts \(0, 1, 2, ...\) for poisson, got \[-1\]"),
        ("poisson", [0, 1.5, 2], r"got \[1\.5\]"),
        ("poisson", [0, 0, 0], "not all zero"),
        ("negativebinomial", [0, 1, -1], r"2, ...\) for negativebinomial, got \[-1\]"),
        ("negativebinomial", [0, 0, 0], "not all zero for negativebinomial"),
        ("poisson", list("abc"), "expected one numeric column"),
        ("categorical", ["a", "a", "a"], r"at least two categories, got \['a'\]"),
        ("categorical", ["a", None, "b"], "missing"),
        ("gaussian", [2, 2, 2], "values that vary"),
        ("gaussian", list("abc"), "expected one numeric column"),
        ("student", list("abc"), "expected one numeric column"),
        ("lognormal", [1.0, 2.0, -3.0], r"where the distribution is finite, got \[-3\.0\]"),
        ("gamma", [1.0, 2.0, 3.0], "expected one of 'gaussian', 'cumulative'"),
        (3, [1.0, 2.0, 3.0], "or a family object, got 3"),
    ],
)
def test_a_wrong_response_is_refused_before_any_work(family, values, match, monkeypatch):
    def no_work(*arguments, **keywords):
        raise AssertionError("the engine was started")

    monkeypatch.setattr(fit, "Engine", no_work)
    own = {
        "student": STUDENT,
        "lognormal": Custom(lambda loc, scale: tfd.LogNormal(loc, scale), {"scale": tfb.Exp()}),
    }
    data = pd.DataFrame({"y": values, "g": [1, 2, 2]})
    family = own.get(family, family)
    with pytest.raises(ValueError, match=match):
        lmm.fit("y ~ 1 + (1|g)", data, family, seed=0)
    good = {"cumulative": [1, 3, 2], "bernoulli": [0, 1, 0], "poisson": [0, 2, 0]}
    if family in good:
        with pytest.raises(AssertionError, match="the engine was started"):
            lmm.fit("y ~ 1 + (1|g)", data.assign(y=good[family]), family, seed=0)


@pytest.mark.parametrize("family", ["cumulative", "categorical"])
def test_categories_need_an_intercept_to_share_out(family):
    data = pd.DataFrame({"y": [1, 2, 1, 2], "g": [1, 1, 2, 2], "x": [0.0, 1.0, 2.0, 0.0]})
    with pytest.raises(ValueError, match="expected an intercept"):
        lmm.fit("y ~ 0 + x + (1|g)", data, family, seed=0)


@pytest.mark.parametrize(
    "values",
    [
        [1, 3, 2, 3],
        [1.0, 3.0, 2.0, 3.0],
        np.array([1, 3, 2, 3], np.int8),
        pd.array([1, 3, 2, 3], "Int64"),
        pd.Categorical(["lo", "hi", "mid", "hi"], ["lo", "mid", "hi"], ordered=True),
    ],
)
def test_ordered_responses_of_every_kind_get_the_same_codes(values):
    response = pd.Series(values)
    family = Cumulative().bind(response)
    np.testing.assert_array_equal(family.codes(response), [0, 2, 1, 2])
    data = pd.DataFrame({"y": values, "g": [1, 1, 2, 2]})
    design = build_design("y ~ 1 + (1|g)", data, Cumulative())
    np.testing.assert_array_equal(design.response, [0, 2, 1, 2])
    np.testing.assert_array_equal(design.codes(data), [0, 2, 1, 2])


@pytest.mark.parametrize("family", [Bernoulli(), Cumulative(), Categorical()])
def test_true_and_false_are_two_categories(family):
    response = pd.Series([True, False, True])
    np.testing.assert_array_equal(family.bind(response).codes(response), [1, 0, 1])


def test_numbers_far_apart_are_categories_too():
    """Ranks need no arithmetic, and not an array as long as the gaps."""
    with pytest.warns(UserWarning, match=r"no row has \[1, 2, 4, 5, 6, 7\]; cumulative is fitted"):
        family = Cumulative().bind(pd.Series([0, 10**12, 3]))
    assert family.categories == (0, 3, 10**12)


def test_a_category_that_training_did_not_have_is_refused():
    family = Cumulative((1, 2, 3))
    with pytest.raises(ValueError, match=r"expected categories \[1, 2, 3\], got \[4\]"):
        family.codes(pd.Series([1, 4]))


# Offsets


def grouped(seed: int, rows: int = 120, groups: int = 6) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "g": np.resize(np.arange(groups), rows),
            "x": rng.normal(size=rows),
            "z": rng.normal(size=rows),
            "t": rng.uniform(0.5, 3.0, rows),
            "u": rng.uniform(size=rows),
        }
    )


def test_an_offset_is_added_and_has_no_coefficient():
    data = grouped(0).assign(y=np.arange(120.0))
    design = build_design("y ~ x + offset(np.log(t)) + offset(np.abs(z)) + (1|g)", data)
    assert design.fixed_names == ("Intercept", "x")
    np.testing.assert_allclose(design.offset, np.log(data["t"]) + abs(data["z"]))
    np.testing.assert_allclose(design.fixed[:, 1], data["x"])
    new = data.iloc[:3].assign(t=[1.0, 2.0, 3.0], z=0.0)
    np.testing.assert_allclose(design.on(new).offset, np.log([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(build_design("y ~ x + (1|g)", data).offset, np.zeros(120))
    _, on_device = arrays.on_device(design, 2)
    parameters = arrays.to_parameters(
        design, {"Intercept": 1.0, "x": 0.5, "sd(g)": 1.0, "sd(residual)": 1.0}
    )
    predictor = linear_predictor(on_device, parameters, [tf.zeros([6, 2, 1])])
    expected = 1 + 0.5 * data["x"] + np.log(data["t"]) + abs(data["z"])
    order = arrays.row_order(design)
    np.testing.assert_allclose(predictor[:, 0], expected.to_numpy()[order], atol=1e-5)


@pytest.mark.parametrize("group", ["(offset(z)|g)", "(1 + offset(z)|g)", "(0 + offset(z)|g)"])
def test_an_offset_within_a_group_is_refused(group):
    data = grouped(0).assign(y=np.arange(120.0))
    with pytest.raises(ValueError, match="offset"):
        build_design(f"y ~ x + {group}", data)


def test_an_exact_fit_with_an_offset_is_one_of_the_difference():
    data, rng = grouped(1), np.random.default_rng(1)
    data["y"] = data["x"] + 3 * data["z"] + rng.normal(size=6)[data["g"]] + rng.normal(size=120)
    with_offset = exact.fit("y ~ x + offset(3 * z) + (1|g)", data)
    without = exact.fit("y ~ x + (1|g)", data.assign(y=data["y"] - 3 * data["z"]))
    assert with_offset.log_likelihood == pytest.approx(without.log_likelihood, abs=1e-8)
    np.testing.assert_allclose(
        with_offset.parameters["estimate"], without.parameters["estimate"], rtol=1e-6
    )
    ignored = exact.fit("y ~ x + (1|g)", data)
    assert ignored.log_likelihood < without.log_likelihood - 10


# The ordinary regression


def regression_data(family: str) -> pd.DataFrame:
    data = grouped(2, rows=400)
    eta = 0.8 * data["x"] - 0.5 * data["z"]
    if family == "bernoulli":
        data["y"] = (data["u"] < special.expit(eta - 0.4)).astype(int)
    elif family == "poisson":
        data["y"] = stats.poisson.ppf(data["u"], data["t"] * np.exp(eta + 0.3)).astype(int)
    else:
        noisy = eta + special.logit(data["u"])
        data["y"] = np.digitize(noisy, [-1.0, 0.2, 1.5]) + 1
    return data


def ordinary(family: str, formula: str, data: pd.DataFrame):
    """Reported estimates, standard errors of beta and auxiliary, log-likelihood."""
    design = build_design(formula, data, lmm.families.resolve(family))
    beta, auxiliary, variance = init.fit(design)
    value, score, information, weight = init.evaluate(design, beta, auxiliary)
    unit = np.sqrt(np.diag(information))
    assert np.abs(score / unit).max() < 1e-4  # standard errors off the maximum
    assert variance == pytest.approx(1 / weight)
    first, last = design.family.constrain(beta[0], auxiliary)
    named = first | dict(zip(design.fixed_names[1:], beta[1:], strict=True)) | last
    errors = np.sqrt(np.diag(np.linalg.inv(information)))
    return named, errors, value


@pytest.mark.parametrize("family", ["bernoulli", "poisson"])
def test_regression_is_statsmodels_glm(family):
    data = regression_data(family)
    x = sm.add_constant(data[["x", "z"]])
    if family == "bernoulli":
        formula, theirs = "y ~ x + z + (1|g)", sm.Logit(data["y"], x).fit(disp=0)
        again = sm.GLM(data["y"], x, family=sm.families.Binomial()).fit()
        np.testing.assert_allclose(again.params, theirs.params, rtol=1e-6)
    else:
        formula = "y ~ x + z + offset(np.log(t)) + (1|g)"
        theirs = sm.GLM(data["y"], x, family=sm.families.Poisson(), offset=np.log(data["t"])).fit()
    named, errors, value = ordinary(family, formula, data)
    np.testing.assert_allclose(list(named.values()), theirs.params, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(errors, theirs.bse, rtol=1e-4)
    assert value == pytest.approx(theirs.llf, abs=1e-6)


def test_regression_is_statsmodels_ordered_model():
    data = regression_data("cumulative")
    theirs = OrderedModel(data["y"], data[["x", "z"]], distr="logit").fit(
        method="bfgs", disp=0, gtol=1e-7
    )
    named, errors, value = ordinary("cumulative", "y ~ x + z + (1|g)", data)
    thresholds = theirs.model.transform_threshold_params(np.asarray(theirs.params))[1:-1]
    assert list(named) == ["threshold(1|2)", "threshold(2|3)", "threshold(3|4)", "x", "z"]
    np.testing.assert_allclose(list(named.values())[:3], thresholds, rtol=1e-4)
    np.testing.assert_allclose([named["x"], named["z"]], theirs.params[["x", "z"]], rtol=1e-4)
    np.testing.assert_allclose(errors[1:3], theirs.bse[["x", "z"]], rtol=1e-3)
    np.testing.assert_allclose(errors[3:], theirs.bse.iloc[3:], rtol=1e-3)  # logs of gaps, too
    assert value == pytest.approx(theirs.llf, abs=1e-5)


def test_regression_is_statsmodels_multinomial_logit():
    """One covariate and three categories: the stereotype model leaves nothing out.

    MNLogit has two slopes; the last is our coefficient, their ratio our score.
    """
    data = regression_data("categorical")
    data["y"] = data["y"].map({1: "bus", 2: "bike", 3: "car", 4: "car"})
    theirs = sm.MNLogit(
        pd.Categorical(data["y"]).codes, sm.add_constant(data[["x"]])
    ).fit(disp=0)  # fmt: skip
    (bus, car), (slope_bus, slope_car) = np.asarray(theirs.params)
    named, _, value = ordinary("categorical", "y ~ x + (1|g)", data)
    assert list(named) == ["intercept(bus)", "intercept(car)", "x", "score(bus)"]
    expected = [bus, car, slope_car, slope_bus / slope_car]
    np.testing.assert_allclose(list(named.values()), expected, rtol=1e-4)
    assert value == pytest.approx(theirs.llf, abs=1e-6)


def test_a_regression_without_a_maximum_is_a_start_all_the_same():
    """x separates zeros from ones, and low categories from high ones."""
    data = grouped(3)
    for family, y in {
        "bernoulli": (data["x"] > 0).astype(int),
        "cumulative": np.digitize(data["x"], [-0.5, 0.5]),
    }.items():
        design = build_design("y ~ x + (1|g)", data.assign(y=y), lmm.families.resolve(family))
        beta, auxiliary, variance = init.fit(design)
        assert np.isfinite([*beta, *auxiliary, variance]).all()
        assert variance > 0
        assert beta[1] > 3


# The M-step's Newton step


def setting(family: str, effects: float = 0.0, chains: int = 4) -> SimpleNamespace:
    """A design, the effects of its factor all the same, and the regression that is left."""
    data = regression_data(family)
    if family == "categorical":
        data["y"] = data["y"].map(dict(zip(range(1, 5), "abcd", strict=True)))
    formula = "y ~ x + z + (1|g)" if family != "poisson" else "y ~ x + z + offset(0.5 * t) + (1|g)"
    design = build_design(formula, data, lmm.families.resolve(family))
    layout, on_device = arrays.on_device(design, chains)
    return SimpleNamespace(
        design=design, layout=layout, arrays=on_device,
        effects=[tf.fill([6, chains, 1], np.float32(effects))],
    )  # fmt: skip


def newton(s: SimpleNamespace, beta: np.ndarray, auxiliary: np.ndarray, gain: float = 1.0):
    parameters = arrays.Parameters(
        tf.constant(beta, tf.float32), [tf.constant([[0.7]])], tf.constant(auxiliary, tf.float32)
    )
    state = iteration.begin(s.layout, s.arrays, arrays.State(parameters, s.effects), False)
    _, sums = row_sums.regression_sums(s.layout, s.arrays, state)
    change, own = closed_form.newton(s.layout, s.arrays.gram, parameters, sums, tf.constant(gain))
    return beta + change.numpy(), own.numpy()


NOT_GAUSSIAN = ["cumulative", "bernoulli", "poisson", "categorical"]


@pytest.mark.parametrize("family", NOT_GAUSSIAN)
@pytest.mark.parametrize("gain", [1.0, 0.3])
def test_near_the_maximum_the_m_step_is_newtons(family, gain):
    s = setting(family)
    beta, own, _ = init.fit(s.design)
    beta, own = beta + [0.1, -0.1, 0.05], own + 0.05
    _, score, information, _ = init.evaluate(s.design, beta, own)
    expected = gain * np.linalg.solve(information, score)
    found = np.concatenate(newton(s, beta, own, gain)) - np.concatenate([beta, own])
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("family", NOT_GAUSSIAN)
def test_from_far_away_the_m_step_climbs_to_the_maximum(family):
    """Damped: no step moves the predictor by more than `MAX_NEWTON_MOVE`. And the effects count:
    here they are 0.5 throughout, which the intercept has to make up for."""
    s = setting(family, effects=0.5)
    beta, own, _ = init.fit(s.design)
    at_beta, at_own = beta + [3.0, -2.0, 1.5], own - 0.5
    before = init.evaluate(s.design, at_beta + [0.5, 0, 0], at_own)[0]
    for _ in range(30):
        moved = newton(s, at_beta, at_own)
        step = np.sqrt(np.mean((s.design.fixed @ (moved[0] - at_beta)) ** 2))
        longest = np.max([step, *np.abs(moved[1] - at_own)])
        assert longest < closed_form.MAX_NEWTON_MOVE * 1.001
        at_beta, at_own = moved
    value = init.evaluate(s.design, at_beta + [0.5, 0, 0], at_own)[0]
    best, _, information, _ = init.evaluate(s.design, beta, own)
    assert before < value - 10
    assert best - value < 1e-3
    errors = np.sqrt(np.diag(np.linalg.inv(information)))
    away = np.concatenate([at_beta + [0.5, 0, 0] - beta, at_own - own])
    assert np.abs(away / errors).max() < 0.02


# Random numbers


def test_fast_random_leaves_tfps_samplers_as_they_were():
    before = samplers.normal, samplers.uniform, samplers.split_seed
    with randomness.fast_random():
        assert samplers.normal is not before[0]
        assert samplers.uniform is not before[1]
        assert samplers.split_seed is not before[2]
        with randomness.fast_random():
            pass
        assert samplers.normal is not before[0]
    assert (samplers.normal, samplers.uniform, samplers.split_seed) == before
    with pytest.raises(RuntimeError, match="inside"), randomness.fast_random():
        raise RuntimeError("inside")
    assert (samplers.normal, samplers.uniform, samplers.split_seed) == before


def test_no_two_seeds_share_a_stream():
    """Seeds that were split or folded in, twice over, are all different; and numbers of one say
    nothing of another's: 40 x 40 correlations of 20,000 normal numbers, within 5.5 errors."""
    parent = tf.constant([5, -7])
    children = randomness.split_seed(parent, n=20)
    folded = [randomness.fold_in(parent, tf.constant(i)) for i in range(20)]
    grand = [g for s in children + folded for g in randomness.split_seed(s, n=50)]
    every = [tuple(s.numpy()) for s in [parent, *children, *folded, *grand]]
    assert len(set(every)) == len(every)
    numbers = np.array([randomness.normal([20_000], seed=s) for s in children + folded])
    apart = np.corrcoef(numbers) - np.eye(40)
    assert np.abs(apart).max() < 5.5 / np.sqrt(20_000)


def test_numbers_are_those_of_tensorflow_for_the_same_key():
    """A generator of TensorFlow's own, whose key is the seed and whose counter is zero."""
    seed = tf.constant([11, 12])
    key = 11 + (12 << 32)
    own = tf.random.Generator.from_state([0, 0, key], alg="philox")
    np.testing.assert_array_equal(randomness.normal([1000], seed=seed), own.normal([1000]))
    own = tf.random.Generator.from_state([0, 0, key], alg="philox")
    np.testing.assert_array_equal(randomness.uniform([1000], seed=seed), own.uniform([1000]))


def test_fast_random_numbers_have_the_right_distribution():
    count = 200_000

    @tf.function(jit_compile=True)
    def run(seed):
        with randomness.fast_random():
            return (
                samplers.normal([count], mean=1.0, stddev=2.0, seed=seed),
                samplers.uniform([count], 0.0, 3.0, seed=seed),
            )

    normal, uniform = (x.numpy().astype(float) for x in run(tf.constant([1, 2])))
    z = (normal - 1) / 2
    for power in (1, 2, 3, 4):
        moment, spread = (stats.norm.moment(p) for p in (power, 2 * power))
        error = np.sqrt((spread - moment**2) / count)
        assert abs((z**power).mean() - moment) < 5 * error
    assert stats.kstest(z, "norm").pvalue > 1e-4
    assert stats.kstest(uniform / 3, "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(z[1:], z[:-1])[0, 1]) < 5 / np.sqrt(count)
    np.testing.assert_array_equal(run(tf.constant([1, 2]))[0], normal.astype(np.float32))
    other = run(tf.constant([1, 3]))[0].numpy()
    assert abs(np.corrcoef(z, other)[0, 1]) < 5 / np.sqrt(count)


def test_the_quick_logarithm_is_as_good_as_it_says():
    """To 3e-7, all the way: at the ends a term of its series left out would be 1e-6."""
    m = np.linspace(1.0, 4.0, 30_001, dtype=np.float32)
    found = _log_of_1_to_4(tf.constant(m)).numpy()
    np.testing.assert_allclose(found, np.log(m.astype(float)), rtol=0, atol=3e-7)
