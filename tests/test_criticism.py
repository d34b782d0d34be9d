"""Predictions are what the fitted numbers imply; whom the fit has never seen comes from the prior.

No fit here: the numbers that a fit would give are made up, so that the truth is known.
"""

from __future__ import annotations

from lmmbook import criticism
from lmmbook.formula import Design, build_design

import numpy as np
import pandas as pd
import pytest

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
