"""Predictions are what the fitted numbers imply; whom the fit has never seen comes from the prior.

Nearly no fit here: the numbers that a fit would give are made up, so that the truth is known.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import lmmbook as lmm
from lmmbook import families
from lmmbook.formula import build_design, covariance
from lmmbook.formula.design import Design
from lmmbook.results import predictive
from lmmbook.results.clusters import clustered_se

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from conftest import criticism
from scipy import special, stats
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd

DRAWS = 20_000
SD = {"g": 0.9, "h": 0.5, "residual": 0.7}
POSTERIOR_SD = {"g": 0.2, "h": 0.3}
ESTIMATES = pd.Series(
    {"Intercept": 2.0, "x": -0.5} | {f"sd({name})": value for name, value in SD.items()}
)
MEANS = {"g": np.array([0.5, -1.0, 0.25]), "h": np.array([0.1, -0.4])}


@pytest.fixture(scope="module")
def design() -> Design:
    rng = np.random.default_rng(0)
    data = pd.DataFrame(
        {"y": rng.normal(size=12), "x": rng.normal(size=12), "g": list("abc") * 4, "h": [1, 2] * 6}
    )
    return build_design("y ~ x + (1|g) + (1|h)", data)


@pytest.fixture(scope="module")
def effects() -> dict[str, np.ndarray]:
    """Posterior draws that all agree: one."""
    return {name: mean[np.newaxis] for name, mean in MEANS.items()}


@pytest.fixture(scope="module")
def posterior() -> dict[str, np.ndarray]:
    """Independent draws around the means."""
    rng = np.random.default_rng(1)
    return {
        name: rng.normal(mean, POSTERIOR_SD[name], (DRAWS, len(mean)))
        for name, mean in MEANS.items()
    }


def rows(*cells: tuple[float, str, int]) -> pd.DataFrame:
    return pd.DataFrame(cells, columns=["x", "g", "h"])


def draw(design, posterior, data, seed=2, n=DRAWS, estimates=ESTIMATES) -> np.ndarray:
    return criticism.draws(design, estimates, posterior, data, n, seed)


def assert_variance(draws: np.ndarray, truth: float) -> None:
    """Within 5 Monte Carlo standard errors of a normal sample's variance."""
    assert abs(draws.var(ddof=1) - truth) < 5 * truth * np.sqrt(2 / len(draws))


def assert_mean(draws: np.ndarray, truth: float) -> None:
    assert abs(draws.mean() - truth) < 5 * draws.std(ddof=1) / np.sqrt(len(draws))


def test_a_prediction_is_the_linear_predictor(design, effects):
    data = rows((1.0, "b", 2), (-2.0, "a", 1), (0.0, "c", 2))
    truth = [2 - 0.5 - 1.0 - 0.4, 2 + 1.0 + 0.5 + 0.1, 2 + 0.25 - 0.4]
    np.testing.assert_allclose(criticism.predict(design, ESTIMATES, effects, data), truth)


def test_who_was_never_seen_is_predicted_from_the_prior_mean(design, effects):
    data = rows((1.0, "new", 2), (1.0, "a", 99), (1.0, "new", 99), (1.0, "newer", 1))
    truth = [1.5 - 0.4, 1.5 + 0.5, 1.5, 1.5 + 0.1]
    np.testing.assert_allclose(criticism.predict(design, ESTIMATES, effects, data), truth)


def test_every_row_stands_for_itself(design, effects):
    """In another order, or alone, a row has the same prediction."""
    data = rows((1.0, "new", 2), (2.0, "a", 99), (0.5, "c", 1), (1.0, "b", 2))
    whole = criticism.predict(design, ESTIMATES, effects, data)
    for order in ([3, 1, 0, 2], [2], [0, 0]):
        some = criticism.predict(design, ESTIMATES, effects, data.iloc[order])
        np.testing.assert_allclose(some, whole[order])


def test_draws_of_known_levels_have_posterior_and_residual_variance(design, posterior):
    draws = draw(design, posterior, rows((1.0, "b", 2)))[:, 0]
    assert_mean(draws, 2 - 0.5 - 1.0 - 0.4)
    assert_variance(draws, 0.2**2 + 0.3**2 + 0.7**2)


def test_draws_of_an_unseen_level_have_its_prior_variance(design, posterior):
    both = draw(design, posterior, rows((1.0, "new", 2), (0.0, "new", 99)))
    assert_mean(both[:, 0], 1.5 - 0.4)
    assert_variance(both[:, 0], 0.9**2 + 0.3**2 + 0.7**2)
    assert_mean(both[:, 1], 2.0)
    assert_variance(both[:, 1], 0.9**2 + 0.5**2 + 0.7**2)


def test_rows_share_what_they_have_in_common(design, posterior):
    """Covariances: the effects that two rows share, and nothing else."""
    data = rows((0.0, "new", 1), (1.0, "new", 2), (0.0, "newer", 2), (0.0, "a", 7), (0.0, "b", 8))
    found = np.cov(draw(design, posterior, data).T)
    truth = np.diag(
        [
            0.9**2 + 0.3**2 + 0.7**2,
            0.9**2 + 0.3**2 + 0.7**2,
            0.9**2 + 0.3**2 + 0.7**2,
            0.2**2 + 0.5**2 + 0.7**2,
            0.2**2 + 0.5**2 + 0.7**2,
        ]
    )
    truth[0, 1] = truth[1, 0] = 0.9**2  # the same new level of g
    truth[1, 2] = truth[2, 1] = 0.3**2  # two new levels of g; they meet in level 2 of h
    variance = np.diag(truth)
    mcse = np.sqrt((np.outer(variance, variance) + truth**2) / DRAWS)
    assert np.abs((found - truth) / mcse).max() < 5


def test_the_posterior_draws_are_used_jointly(design, posterior):
    """One draw of all effects at a time: correlations between factors survive."""
    tied = posterior | {"h": -posterior["g"][:, :2]}  # a level of h takes back what g gave
    draws = draw(design, tied, rows((0.0, "a", 1)))[:, 0]
    assert_mean(draws, 2.0)
    assert_variance(draws, 0.7**2)


def test_the_order_of_rows_does_not_matter(design, posterior):
    """With next to no residual noise, which has one number a row, draws are the same."""
    data = rows((1.0, "new", 2), (2.0, "zzz", 99), (0.5, "c", 1), (0.0, "aaa", 2))
    quiet = ESTIMATES.copy()
    quiet["sd(residual)"] = 1e-12
    order = [3, 1, 0, 2]
    whole = draw(design, posterior, data, n=100, estimates=quiet)
    some = draw(design, posterior, data.iloc[order], n=100, estimates=quiet)
    np.testing.assert_allclose(some, whole[:, order], atol=1e-9)


def test_draws_repeat_with_their_seed(design, posterior):
    data = rows((1.0, "new", 2), (0.0, "a", 1))
    one, same, other = (draw(design, posterior, data, seed, n=10) for seed in (0, 0, 1))
    assert one.shape == (10, 2)
    np.testing.assert_array_equal(one, same)
    assert not np.any(one == other)


def test_few_draws_are_spread_over_all_there_are(design, posterior):
    """The first ones alone would be one chain's."""
    late = {name: u.copy() for name, u in posterior.items()}
    late["g"][DRAWS // 2 :] += 100
    draws = draw(design, late, rows((0.0, "a", 1)), n=10)[:, 0]
    assert np.sum(draws > 50) == 5


@pytest.mark.parametrize("n", [0, -1, DRAWS + 1])
def test_more_draws_than_there_are_is_refused(design, posterior, n):
    with pytest.raises(ValueError, match="n: expected 1 to 20000"):
        draw(design, posterior, rows((1.0, "a", 1)), n=n)
    assert draw(design, posterior, rows((1.0, "a", 1)), n=DRAWS).shape == (DRAWS, 1)


def test_a_nested_level_known_elsewhere_is_unseen_here():
    """Pot 2 of block b is not pot 2 of block a."""
    data = pd.DataFrame({"y": np.arange(6.0), "b": list("aaabbb"), "p": [1, 2, 2, 1, 1, 1]})
    design = build_design("y ~ 1 + (1|b:p)", data)
    effects = {"b:p": np.array([[1.0, 2.0, 3.0]])}
    estimates = pd.Series({"Intercept": 10.0, "sd(b:p)": 1.0, "sd(residual)": 1.0})
    new = pd.DataFrame({"b": list("baa"), "p": [2, 2, 1]})
    found = criticism.predict(design, estimates, effects, new)
    np.testing.assert_allclose(found, [10.0, 12.0, 11.0])


def test_bad_rows_are_refused(design, effects):
    with pytest.raises(ValueError, match="expected columns"):
        criticism.predict(design, ESTIMATES, effects, rows((1.0, "a", 1)).drop(columns="h"))
    with pytest.raises(TypeError, match="DataFrame"):
        criticism.predict(design, ESTIMATES, effects, [1.0])


def test_slopes_enter_predictions_and_draws():
    rng = np.random.default_rng(3)
    data = pd.DataFrame({"y": rng.normal(size=12), "x": rng.normal(size=12), "g": list("abc") * 4})
    design = build_design("y ~ 1 + (1 + x|g)", data)
    names = {"Intercept": 2.0, "sd(g)": 0.9, "sd(x|g)": 0.5, "cor(Intercept,x|g)": -0.6}
    estimates = pd.Series(names | {"sd(residual)": 0.7})
    means = np.array([[0.5, 1.0], [-1.0, 0.0], [0.25, -2.0]])  # [levels, columns]
    posterior = {"g": np.tile(means, (DRAWS, 1, 1))}
    new = pd.DataFrame({"x": [2.0, -1.0, 3.0], "g": ["a", "c", "new"]})
    predicted = criticism.predict(design, estimates, posterior, new)
    np.testing.assert_allclose(predicted, [2 + 0.5 + 2.0, 2 + 0.25 + 2.0, 2.0])
    found = criticism.draws(design, estimates, posterior, new, DRAWS, 4)
    assert_variance(found[:, 0], 0.7**2)
    # Who was never seen: Var(u0 + 3 u1), with their correlation.
    assert_variance(found[:, 2], 0.9**2 + 9 * 0.25 - 2 * 3 * 0.6 * 0.45 + 0.7**2)


# For whom


def test_groups_are_all_or_some_or_none_or_a_population(design, effects):
    data = rows((1.0, "b", 2), (-2.0, "a", 99))

    def predict(groups, data=data):
        return criticism.predict(design, ESTIMATES, effects, data, groups=groups)

    np.testing.assert_array_equal(predict(["h", "g"]), predict(None))
    np.testing.assert_allclose(predict(["g"]), [1.5 - 1.0, 3.0 + 0.5])
    np.testing.assert_allclose(predict(["h"], data[["x", "h"]]), [1.5 - 0.4, 3.0])
    np.testing.assert_allclose(predict([], data[["x"]]), [1.5, 3.0])
    np.testing.assert_allclose(predict("population"), [1.5, 3.0])  # a straight scale


def test_draws_of_a_population_are_of_other_levels(design, posterior):
    """Of new ones, which rows share as the data say; and of typical ones, of which all is known."""
    data = rows((0.0, "a", 1), (0.0, "a", 2))
    truths = {
        "population": (0.9**2 + 0.5**2 + 0.7**2, 0.9**2),
        ("h",): (0.3**2 + 0.7**2, 0.0),
        (): (0.7**2, 0.0),
    }
    for groups, (variance, shared) in truths.items():
        found = criticism.draws(design, ESTIMATES, posterior, data, DRAWS, 2, groups=groups)
        for column, level in zip(found.T, MEANS["h"], strict=True):
            assert_mean(column, 2.0 + (level if groups == ("h",) else 0.0))
            assert_variance(column, variance)
        mcse = np.sqrt((variance**2 + shared**2) / DRAWS)
        assert abs(np.cov(found.T)[0, 1] - shared) < 5 * mcse


@pytest.mark.parametrize("groups", ["g", ["g", "nobody"]])
def test_groups_that_are_none_are_refused(design, effects, groups):
    with pytest.raises(ValueError, match=r"groups: expected None, 'population' or a list of some"):
        criticism.predict(design, ESTIMATES, effects, rows((0.0, "a", 1)), groups=groups)


# Every family: one factor, so that the integral over its effects is a number.

DRAWN = 4_000
CATEGORIES = (1, 2, 3, 4)
TRIALS = 4  # of a binomial row
ODDS, SCORES = np.array([0.0, 0.5, 0.7, -0.2]), np.array([0.0, 0.3, 0.8, 1.0])
THRESHOLDS = np.array([-1.0, 0.4, 1.5])
INTERCEPT, X, PRIOR_SD, MEAN, SPREAD = 0.3, 0.6, 1.3, np.array([1.2, -0.4, 0.1]), 0.7
OWN = families.Custom(lambda at, scale: tfd.StudentT(4.0, at, scale), {"scale": tfb.Exp()})
OWN_PARAMETERS: dict[str, dict[str, float]] = {
    "gaussian": {"sd(residual)": 0.7},
    "bernoulli": {},
    "poisson": {},
    "negativebinomial": {"shape": 1.7},
    "binomial": {},
    "cumulative": dict(
        zip(["threshold(1|2)", "threshold(2|3)", "threshold(3|4)"], THRESHOLDS, strict=True)
    ),
    "categorical": {f"intercept({c})": ODDS[c - 1] for c in CATEGORIES[1:]}
    | {f"score({c})": SCORES[c - 1] for c in CATEGORIES[1:3]},
    "own": {"scale": 0.8},
}
RESPONSES: dict[str, list[float]] = {
    "gaussian": [0.2, -1.5], "bernoulli": [0, 1], "poisson": [0, 3, 11], "binomial": [0, 3, 4],
    "negativebinomial": [0, 3, 11],
    "cumulative": [1, 2, 4], "categorical": [1, 3, 4], "own": [0.2, 5.0],
}  # fmt: skip


def text(name: str) -> str:
    return f"{f'p(y, {TRIALS})' if name == 'binomial' else 'y'} ~ x + offset(o) + (1|g)"


class Case(NamedTuple):
    """A design, numbers as from a fit, and two new rows: of a known level, and of a new one."""

    name: str
    design: Design
    estimates: pd.Series
    posterior: dict[str, np.ndarray]
    new: pd.DataFrame

    def __call__(self, function: Callable, *arguments: Any, data: Any = None, **keywords: Any):
        data = self.new if data is None else data
        return function(
            self.design, self.estimates, self.posterior, data, *arguments, **keywords
        )  # fmt: skip

    @property
    def intercept(self) -> float:
        return 0.0 if self.design.family.categories else INTERCEPT

    def density(self, y: float, eta: np.ndarray) -> np.ndarray:
        """Density or mass at y for predictors eta, written again with SciPy."""
        cuts = np.concatenate([[-np.inf], THRESHOLDS, [np.inf]])
        odds = np.exp(ODDS + SCORES * np.asarray(eta)[..., np.newaxis])
        return {
            "gaussian": lambda: stats.norm.pdf(y, eta, 0.7),
            "bernoulli": lambda: special.expit(eta if y else -eta),
            "poisson": lambda: stats.poisson.pmf(y, np.exp(eta)),
            "negativebinomial": lambda: stats.nbinom.pmf(y, 1.7, 1.7 / (1.7 + np.exp(eta))),
            "binomial": lambda: stats.binom.pmf(y, TRIALS, special.expit(eta)),
            "cumulative": lambda: np.diff(special.expit(cuts[y - 1 : y + 1] - eta[:, None]))[:, 0],
            "categorical": lambda: odds[..., y - 1] / odds.sum(-1),
            "own": lambda: stats.t.pdf(y, 4, eta, 0.8),
        }[self.name]()

    def integral(self, of: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and sd over the effects of a function of the predictor, for each row of ``new``."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(80)
        weights = weights / weights.sum()
        fixed = self.intercept + X * self.new["x"] + self.new["o"]
        values = [
            of(fixed[0] + MEAN[0] + SPREAD * nodes), of(fixed[1] + PRIOR_SD * nodes)
        ]  # fmt: skip
        means = [weights @ v for v in values]
        sds = [np.sqrt(weights @ (v - m) ** 2) for v, m in zip(values, means, strict=True)]
        return np.array(means), np.array(sds)


def make(name: str, rows: int = 24, labels: list[str] | None = None) -> Case:
    rng = np.random.default_rng(6)
    kind = {"gaussian": rng.normal(size=rows), "own": rng.normal(size=rows)}
    few = {"bernoulli": [0, 1], "poisson": [0, 1, 2], "negativebinomial": [0, 1, 2]}
    counts = np.resize(few.get(name, CATEGORIES), rows)
    data = pd.DataFrame({"y": kind.get(name, counts), "x": rng.normal(size=rows)})
    data = data.assign(o=rng.normal(size=rows), g=np.resize(list("abc"), rows))
    if labels:
        data["y"] = pd.Categorical(np.array(labels)[counts - 1], labels, ordered=True)
    family = OWN if name == "own" else families.resolve(name)
    design = build_design(text(name), data, family)
    first = {} if design.family.categories else {"Intercept": INTERCEPT}
    estimates = pd.Series(first | {"x": X, "sd(g)": PRIOR_SD} | OWN_PARAMETERS[name])
    if labels:
        estimates.index = ["x", "sd(g)", *design.family.names]
    posterior = {"g": rng.normal(MEAN, SPREAD, (DRAWN, 3)).astype(np.float32)}
    new = pd.DataFrame({"x": [0.5, -1.0], "o": [0.2, -0.1], "g": ["a", "new"]})
    return Case(name, design, estimates, posterior, new)


@pytest.fixture(params=list(OWN_PARAMETERS))
def case(request) -> Case:
    return make(request.param)


def assert_integral(found: np.ndarray, truth: np.ndarray, sd: np.ndarray) -> None:
    """Within 5 Monte Carlo errors. The strata of a new level leave far less than draws would."""
    allowed = sd / np.sqrt(DRAWN) * np.array([5.0, 0.5])
    assert (np.abs(found - truth) <= allowed + 1e-6).all(), (found, truth, allowed)


def test_log_score_is_the_log_of_the_integral(case):
    for y in RESPONSES[case.name]:
        found = case(criticism.log_score, data=case.new.assign(y=y))
        assert_integral(np.exp(found), *case.integral(lambda eta, y=y: case.density(y, eta)))


def test_probabilities_are_the_integral(case):
    if case.name in ("gaussian", "own"):
        cuts = [-0.5, 0.2, 2.0]
        cdf = {
            "gaussian": lambda cut, eta: stats.norm.cdf(cut, eta, 0.7),
            "own": lambda cut, eta: stats.t.cdf(cut, 4, eta, 0.8),
        }[case.name]
        found = case(criticism.probabilities, cuts=cuts)
        ends = [-np.inf, *cuts, np.inf]
        masses = [lambda eta, a=a, b=b: cdf(b, eta) - cdf(a, eta) for a, b in pairwise(ends)]
    elif case.name in ("poisson", "negativebinomial", "binomial"):
        found = case(criticism.probabilities, cuts=[0.5, 1.0])
        masses = [lambda eta, y=y: case.density(y, eta) for y in (0, 1)]
        masses.append(lambda eta: 1 - case.density(0, eta) - case.density(1, eta))
    else:
        found = case(criticism.probabilities)
        labels = case.design.family.categories or (0, 1)
        masses = [lambda eta, y=y: case.density(y, eta) for y in labels]
    assert found.shape == (2, len(masses))
    np.testing.assert_allclose(found.sum(1), 1.0, atol=1e-6)
    for column, mass in zip(found.T, masses, strict=True):
        assert_integral(column, *case.integral(mass))


def test_prediction_is_the_integral(case):
    mean = {
        "gaussian": lambda eta: eta,
        "own": lambda eta: eta,
        "bernoulli": special.expit,
        "poisson": np.exp,
        "negativebinomial": np.exp,
        "binomial": special.expit,  # of successes it is their share
    }.get(case.name, lambda eta: sum(y * case.density(y, eta) for y in CATEGORIES))
    truth, sd = case.integral(mean)
    found = case(criticism.predict)
    assert_integral(found, truth, sd)
    if case.name == "gaussian":  # one pass, and yet the average over the very same draws
        draws = INTERCEPT + X * 0.5 + 0.2 + case.posterior["g"][:, 0].astype(float)
        np.testing.assert_allclose(found[0], draws.mean(), atol=1e-6)


def test_the_typical_level_and_a_population(case):
    """At effects of zero it is the density itself; over a population, the integral over levels that
    nobody has met, to the last bit."""
    strangers = case.new.assign(g=["new", "newer"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no level is known
        for y in RESPONSES[case.name]:
            typical = case(criticism.log_score, data=case.new.assign(y=y), groups=[])
            fixed = case.intercept + X * case.new["x"].to_numpy() + case.new["o"].to_numpy()
            np.testing.assert_allclose(np.exp(typical), case.density(y, fixed), rtol=1e-4)
            for function in (criticism.log_score, criticism.predict):
                of_all = case(function, data=case.new.assign(y=y), groups="population")
                np.testing.assert_array_equal(of_all, case(function, data=strangers.assign(y=y)))
            cuts = None if case.name in ("bernoulli", "cumulative", "categorical") else [0.5]
            one = case(criticism.probabilities, cuts, groups="population")
            np.testing.assert_array_equal(one, case(criticism.probabilities, cuts, data=strangers))
            one = case(criticism.pit, 3, data=case.new.assign(y=y), groups="population")
            other = case(criticism.pit, 3, data=strangers.assign(y=y))
            np.testing.assert_array_equal(one, other)
    if case.name == "bernoulli":
        typical, of_all = (case(criticism.predict, groups=g) for g in ([], "population"))
        assert (abs(of_all - 0.5) < abs(typical - 0.5)).all()


@pytest.mark.parametrize("name", ["bernoulli", "cumulative"])
def test_one_pass_at_the_mean_effects_is_too_far_out(name):
    """Jensen: the curve of means bends towards its middle, and so does an average along it.

    At a predictor well above the middle the mean of the response is below that of the mean
    predictor; and well below the middle, above.
    """
    case = make(name)
    for offset, sign in [(2.0, -1), (-4.0, 1)]:
        data = case.new.assign(o=offset, x=0.0)
        at = case.intercept + offset + np.array([case.posterior["g"][:, 0].mean(), 0.0])
        _, _, own = covariance.split_values(case.design, dict(case.estimates))
        if name == "cumulative":
            at = at - THRESHOLDS[case.design.family.anchor]
        plugged_in = case.design.family.mean(at, own)
        assert (np.sign(case(criticism.predict, data=data) - plugged_in) == sign).all()


def test_draws_have_the_probabilities_as_their_shares(case):
    draws = case(criticism.draws, DRAWN, 7)
    assert draws.shape == (DRAWN, 2)
    if case.name in ("gaussian", "own", "poisson", "negativebinomial", "binomial"):
        cuts = [-0.5, 0.2, 2.0]
        found = [np.searchsorted(cuts, column, "left") for column in draws.T]
        expected = case(criticism.probabilities, cuts=cuts)
    else:
        labels = list(case.design.family.categories or (0.0, 1.0))
        assert set(np.unique(draws)) <= set(labels)
        found = [np.searchsorted(labels, column) for column in draws.T]
        expected = case(criticism.probabilities)
    for of_row, chances in zip(found, expected, strict=True):
        shares = np.bincount(of_row, minlength=len(chances)) / DRAWN
        assert (np.abs(shares - chances) <= 5 * np.sqrt(chances * (1 - chances) / DRAWN)).all()


def test_draws_keep_the_labels():
    labels = ["poor", "fair", "good", "fine"]
    case = make("cumulative", labels=labels)
    draws = case(criticism.draws, 200, 0)
    assert draws.dtype == object
    assert set(draws.ravel()) == set(labels)
    assert make("cumulative")(criticism.draws, 5, 0).dtype.kind == "i"
    with pytest.raises(ValueError, match=r"categories that are numbers, got .*'poor'"):
        case(criticism.predict)


def test_discrete_draws_share_a_new_level():
    """Two rows of one stranger go together, two strangers do not."""
    case = make("bernoulli")
    data = pd.DataFrame({"x": 0.0, "o": 0.0, "g": ["new", "new", "other"]})
    estimates = case.estimates.copy()
    estimates["sd(g)"] = 5.0
    with pytest.warns(UserWarning, match="group 'g': no level of the new rows is known"):
        draws = criticism.draws(case.design, estimates, case.posterior, data, DRAWN, 1)
    correlation = np.corrcoef(draws.T)
    assert correlation[0, 1] > 0.5
    assert abs(correlation[0, 2]) < 5 / np.sqrt(DRAWN)


def test_a_row_has_the_same_answer_in_any_company(case):
    """In another order, alone, or beside other strangers; and the same at the next call."""
    y = RESPONSES[case.name][1]
    data = pd.DataFrame(
        {"x": [0.5, -1.0, 0.3, 0.0], "o": 0.1, "y": y, "g": ["new", "a", "zz", "c"]}
    )
    cuts = None if case.name in ("bernoulli", "cumulative", "categorical") else [0.5, 1.5]
    for function, keywords in [
        (criticism.predict, {}),
        (criticism.log_score, {}),
        (criticism.probabilities, {"cuts": cuts}),
    ]:
        whole = case(function, data=data, **keywords)
        for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2], [1, 1]):
            some = case(function, data=data.iloc[order], **keywords)
            np.testing.assert_allclose(some, whole[order], rtol=1e-5)


def test_batches_do_not_matter(case, monkeypatch):
    y = RESPONSES[case.name][0]
    data = case.new.assign(y=y)
    whole = [case(f, data=data) for f in (criticism.predict, criticism.log_score)]
    whole.append(case(criticism.pit, 3, data=data))
    sizes = []
    monkeypatch.setattr(predictive, "NUMBERS_AT_ONCE", 2_500)
    linear = predictive.linear

    def spy(*arguments):
        found = linear(*arguments)
        sizes.append(found.size * len(case.design.family.categories or [0]))
        return found

    monkeypatch.setattr(predictive, "linear", spy)
    parts = [case(f, data=data) for f in (criticism.predict, criticism.log_score)]
    parts.append(case(criticism.pit, 3, data=data))
    assert max(sizes) <= 2_500
    assert len(sizes) > 2
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_an_offset_moves_the_predictor(case):
    """As much as the same amount from the covariate."""
    data = case.new.assign(y=RESPONSES[case.name][0])
    by_offset = case(criticism.log_score, data=data.assign(o=data["o"] + 1.2))
    by_x = case(criticism.log_score, data=data.assign(x=data["x"] + 1.2 / X))
    np.testing.assert_allclose(by_offset, by_x, rtol=1e-5)


# Calibration.


def many(name: str) -> tuple[Case, pd.DataFrame]:
    """As many known levels as test rows, one row each: the rows are independent."""
    rng = np.random.default_rng(8)
    case = make(name, rows=9)
    levels = 1_500
    data = pd.DataFrame({"y": RESPONSES[name][0], "x": rng.normal(size=2 * levels), "o": 0.0})
    data["g"] = np.resize(np.arange(levels), 2 * levels)
    data.loc[: len(CATEGORIES) - 1, "y"] = np.resize(RESPONSES[name], len(CATEGORIES))
    data["y"] = np.resize(case.design.family.categories or RESPONSES[name], len(data))
    design = build_design(text(name), data, case.design.family)
    means = rng.normal(size=levels)
    posterior = {"g": rng.normal(means, SPREAD, (500, levels)).astype(np.float32)}
    new = data.iloc[:levels].copy()
    new.loc[::3, "g"] += 100_000  # every third is a stranger
    truth = rng.normal(means, SPREAD)
    truth[::3] = rng.normal(0, PRIOR_SD, len(truth[::3]))
    _, _, own = covariance.split_values(design, dict(case.estimates))
    eta = (case.intercept if not design.family.categories else 0.0) + X * new["x"] + truth
    if name == "cumulative":
        eta = eta - THRESHOLDS[design.family.anchor]
    if name == "categorical":
        eta = eta + ODDS[3]
    dtype = np.float32 if name == "own" else np.float64
    family = design.family
    if name == "binomial":
        family = replace(family, trials=TRIALS)
    drawn = family.distribution(
        tf.constant(eta.to_numpy(dtype)), tf.constant(own.astype(dtype))
    ).sample(seed=[1, 2])  # fmt: skip
    new["y"] = drawn.numpy() + (1 if design.family.categories else 0)
    return Case(name, design, case.estimates, posterior, new), new


def test_pit_is_uniform_under_the_model_and_under_no_other(case):
    case, new = many(case.name)
    values = case(criticism.pit, 0, data=new)
    assert stats.kstest(values, "uniform").pvalue > 1e-3
    np.testing.assert_array_equal(values, case(criticism.pit, 0, data=new))
    # Wrong: the predictor is a unit too low. And wrong: the data scatter more than the model.
    low = case(criticism.pit, 0, data=new.assign(o=-1.0))
    assert stats.kstest(low, "uniform").pvalue < 1e-6
    if case.name in ("gaussian", "own"):
        narrow = case.estimates.copy()
        narrow[narrow.index[-1]] /= 3
        values = criticism.pit(case.design, narrow, case.posterior, new, 0)
        assert stats.kstest(values, "uniform").pvalue < 1e-6
        assert np.mean(np.abs(values - 0.5) > 0.45) > 0.15  # too many in both tails


def test_pit_is_what_lies_below():
    """Of the first category anything up to its probability, of the last the rest."""
    case = make("cumulative")
    chances = case(criticism.probabilities)
    rng = np.random.default_rng(3)
    uniform = rng.uniform(size=2)
    for y in CATEGORIES:
        found = case(criticism.pit, 3, data=case.new.assign(y=y))
        below = chances[:, : y - 1].sum(1)
        np.testing.assert_allclose(found, below + uniform * chances[:, y - 1], rtol=1e-6)


# What a score's difference is worth.


def test_clustered_se_against_a_bootstrap_of_clusters():
    rng = np.random.default_rng(9)
    clusters = np.repeat(np.arange(150), rng.integers(1, 9, 150))
    values = 0.3 + rng.normal(size=150)[clusters] + rng.normal(size=len(clusters))
    sums, counts = np.bincount(clusters, values), np.bincount(clusters)
    chosen = rng.integers(0, 150, (4_000, 150))
    means = sums[chosen].sum(1) / counts[chosen].sum(1)
    found = clustered_se(values, clusters)
    assert found == pytest.approx(means.std(ddof=1), rel=0.06)  # 5 errors of the bootstrap's sd
    assert found > 1.5 * values.std(ddof=1) / np.sqrt(len(values))
    labels = pd.Series(clusters).map("c{}".format)
    assert clustered_se(pd.Series(values), labels) == pytest.approx(found)


def test_clustered_se_of_single_rows_is_the_usual_one():
    values = np.random.default_rng(10).normal(size=50)
    found = clustered_se(values, np.arange(50))
    assert found == pytest.approx(values.std(ddof=1) / np.sqrt(50))


def crossed_values(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Their mean is 0; 60 levels in one way, 40 in the other, and 1,500 rows."""
    a, b = rng.integers(0, 60, 1500), rng.integers(0, 40, 1500)
    return 0.5 * rng.normal(size=60)[a] + 0.5 * rng.normal(size=40)[b] + rng.normal(size=1500), a, b


def test_clustered_both_ways_covers_where_one_way_does_not():
    """The mean of 400 tables: within 3.5 binomial standard errors of 95 %, less what 40 clusters
    cost. (A t quantile for 39 degrees of freedom in place of the normal one: 94.3 %.)"""
    rng = np.random.default_rng(11)
    covered = {"a": 0, "b": 0, "both": 0}
    for _ in range(400):
        values, a, b = crossed_values(rng)
        for name, ways in {"a": [a], "b": [b], "both": [a, b]}.items():
            covered[name] += abs(values.mean()) < 1.96 * clustered_se(values, *ways)
    assert abs(covered["both"] / 400 - 0.943) < 3.5 * np.sqrt(0.95 * 0.05 / 400)
    assert max(covered["a"], covered["b"]) / 400 < 0.9


def test_what_two_ways_share_is_counted_once():
    values, a, b = crossed_values(np.random.default_rng(12))
    both = pd.Series(a).astype(str) + "x" + pd.Series(b).astype(str)
    squares = [clustered_se(values, way) ** 2 for way in (a, b, both)]
    found = clustered_se(values, pd.Series(a), pd.Series(b).map("l{}".format))
    assert found == pytest.approx(np.sqrt(squares[0] + squares[1] - squares[2]))
    assert clustered_se(values, a, a) == pytest.approx(clustered_se(values, a))
    assert clustered_se(values, a, b, b) == pytest.approx(found)  # inclusion and exclusion
    rows = np.arange(len(values))
    assert clustered_se(values, a, rows) == pytest.approx(clustered_se(values, a))


# Errors, and the methods of a fit.


def test_cuts_that_make_no_intervals_are_refused():
    gaussian, ordinal = make("gaussian"), make("cumulative")
    for cuts in ([], [1.0, 1.0], [2.0, 1.0], [0.0, np.nan], [[1.0]]):
        with pytest.raises(ValueError, match="cuts: expected increasing finite numbers"):
            gaussian(criticism.probabilities, cuts=cuts)
    with pytest.raises(ValueError, match=r"cuts: .* has categories \[1, 2, 3, 4\]"):
        ordinal(criticism.probabilities, cuts=[1.5])
    with pytest.raises(ValueError, match=r"categories, or cuts.*Gaussian"):
        gaussian(criticism.probabilities)


def test_what_a_distribution_lacks_is_named():
    family = families.Custom(lambda at: tfd.Skellam(tf.exp(at), tf.ones_like(at)), {})
    case = make("gaussian")
    data = pd.DataFrame({"y": np.resize([0.0, 1.0, -1.0], 24), "g": np.resize(list("abc"), 24)})
    design = build_design("y ~ 1 + (1|g)", data, family)
    rest = case.estimates[["Intercept", "sd(g)"]], case.posterior, data
    assert np.isfinite(criticism.log_score(design, *rest)).all()
    with pytest.raises(ValueError, match="expected a distribution with a cdf"):
        criticism.pit(design, *rest, 0)
    with pytest.raises(ValueError, match="expected a distribution with a cdf"):
        criticism.probabilities(design, *rest, cuts=[0.5])
    cauchy = build_design(
        "y ~ 1 + (1|g)", data, families.Custom(lambda at: tfd.Cauchy(at, 1.0), {})
    )
    with pytest.raises(ValueError, match="expected a distribution with a mean"):
        criticism.predict(cauchy, *rest)


def test_a_response_that_does_not_suit_is_refused():
    case = make("cumulative")
    for function, more in [(criticism.log_score, []), (criticism.pit, [0])]:
        with pytest.raises(ValueError, match=r"expected categories \[1, 2, 3, 4\], got \[9\]"):
            case(function, *more, data=case.new.assign(y=9))
        with pytest.raises(ValueError, match="expected columns"):
            case(function, *more)  # no y
    same = make("gaussian")  # all rows alike can be scored, though not fitted
    assert same(criticism.log_score, data=same.new.assign(y=1.0)).shape == (2,)


def test_clusters_that_do_not_fit_are_refused():
    for ways in ([np.zeros(2)], [], [np.arange(3), np.zeros(2)]):
        with pytest.raises(ValueError, match="one for each value"):
            clustered_se(np.zeros(3), *ways)
    for values in (np.zeros(0), np.zeros(3)):
        with pytest.raises(ValueError, match="at least two"):
            clustered_se(values, np.zeros(len(values)))


def test_a_fit_has_them_as_methods():
    """And from a fit on simulated counts they are calibrated on new ones."""
    rng = np.random.default_rng(11)
    rows = 1_200
    data = pd.DataFrame({"g": rng.integers(0, 40, rows), "exposure": rng.uniform(0.5, 3.0, rows)})
    eta = 0.4 + rng.normal(0, 0.6, 40)[data["g"]] + np.log(data["exposure"])
    data["y"] = rng.poisson(np.exp(eta))
    train, test = data[: rows // 2], data[rows // 2 :]
    fit = lmm.fit("y ~ offset(np.log(exposure)) + (1|g)", train, family="poisson", seed=1)
    rest = fit.design, fit.parameters["estimate"], fit.posterior, test
    np.testing.assert_array_equal(fit.predict(test), criticism.predict(*rest))
    np.testing.assert_array_equal(fit.log_score(test), criticism.log_score(*rest))
    np.testing.assert_array_equal(fit.pit(test, 2), criticism.pit(*rest, 2))
    np.testing.assert_array_equal(fit.draws(test, 9, 2), criticism.draws(*rest, 9, 2))
    cuts = [0.5, 2.5]
    np.testing.assert_array_equal(
        fit.probabilities(test, cuts), criticism.probabilities(*rest, cuts)
    )
    assert stats.kstest(fit.pit(test, 2), "uniform").pvalue > 1e-3
    truth = stats.poisson.logpmf(test["y"], np.exp(eta[test.index])).mean()
    assert abs(fit.log_score(test).mean() - truth) < 0.1  # no factorial is missing
