"""The chosen parametrisation leaves least to be taken away, whatever the columns are."""

from __future__ import annotations

from lmmbook import exact, families
from lmmbook.engine import arrays
from lmmbook.engine.certificate import certify
from lmmbook.engine.certificate.laplace import Laplace
from lmmbook.engine.certificate.parametrisation import as_written
from lmmbook.engine.linear_predictor import at, value_and_slopes
from lmmbook.formula import build_design
from lmmbook.formula.design import Design

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from conftest import conditional_draws, dense_conditional, scores_and_information


def ten_groups(mean: float) -> pd.DataFrame:
    """Twenty rows each, slopes among them; a covariate that may be far from zero."""
    rng = np.random.default_rng(25)
    g = np.repeat(np.arange(10), 20)
    data = pd.DataFrame({"g": g, "h": np.tile(np.arange(8), 25), "x": rng.uniform(1, 2, 200)})
    data["f"] = np.tile(list("ab"), 100)
    data["z"] = mean + rng.normal(size=200)
    slopes, levels, others = (rng.normal(size=n) for n in (10, 10, 8))
    data["y"] = (0.5 + 0.3 * slopes[g]) * data["z"] + 0.3 * data["x"] + levels[g]
    return data.assign(y=data["y"] + 0.5 * others[data["h"]] + rng.normal(size=200))


def information(
    design: Design, values: dict[str, float], chains: int, moving: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Scores ``[chains, coordinates]`` of exact draws, and the complete data's information."""
    layout, array = arrays.on_device(design, chains)
    parameters = arrays.to_parameters(design, values)
    best = Laplace(layout, array, parameters).parametrisation()
    best = best if moving else as_written(layout, array)
    effects = [tf.constant(u) for u in conditional_draws(design, values, chains, seed=1)]
    return scores_and_information(layout, array, parameters, effects, best)


# Nearly collinear covariates; a mean of slopes that only the intercept can take up; slopes on a
# covariate far from zero, which are nearly collinear with their intercepts.
HARD = {
    "y ~ np.log(x)*f + x + (1|g)": 0.0,
    "y ~ 1 + (0 + z|g)": 20.0,
    "y ~ 1 + (z|g) + (1|h)": 20.0,
    "y ~ z + (z|g)": 20.0,
}


@pytest.mark.parametrize("formula", HARD)
def test_what_the_data_know_is_not_lost_to_the_coordinates(formula):
    """At the exact maximum, from 2,000 exact draws: the information is known to be definite, and
    its standard errors are those of the exact likelihood, to five times what their noise is."""
    data = ten_groups(HARD[formula])
    design, truth = build_design(formula, data), exact.fit(formula, data).parameters
    assert not truth["at_boundary"].any()
    values = {name: float(value) for name, value in truth["estimate"].items()}
    score, complete = information(design, values, 2000)
    layout, _ = arrays.on_device(design, 2000)
    found = certify.certify(
        design, layout, arrays.to_parameters(design, values),
        score.reshape(5, 400, -1), complete[np.newaxis], np.eye(score.shape[1]),
    )  # fmt: skip
    assert found.definite
    share = certify.eigen(complete - np.cov(score.T), complete)[0][0]
    noise = np.sqrt(2 / 2000) * max(1 / share - 1, 0.1)
    np.testing.assert_allclose(found.table["std_error"], truth["std_error"], rtol=5 * noise)


def test_of_gaussian_ratings_and_one_fine_factor_no_noise_is_left_in_what_is_solved_for():
    """Fixed effects, and the sd of a coarse factor: what is left is rounding, and of conjugate
    gradients. Effects that stay where they are leave twenty times as much and more."""
    design = build_design("y ~ z + f + (1|g) + (1|h)", ten_groups(3.0))
    truth = exact.fit("y ~ z + f + (1|g) + (1|h)", ten_groups(3.0)).parameters
    values = {name: float(value) for name, value in truth["estimate"].items()}
    solved_for = [0, 1, 2, 4]  # sd(h) the last; those of g and of the residual are so in part
    score, complete = information(design, values, 500)
    assert (score.std(0) / np.sqrt(np.diag(complete)))[solved_for].max() < 0.05
    left_behind, _ = information(design, values, 500, moving=False)
    assert (left_behind.std(0) / score.std(0))[solved_for].min() > 20


RESPONSES = {"gaussian": "y", "bernoulli": "late", "poisson": "count"}


@pytest.mark.parametrize("family", RESPONSES)
def test_the_mode_is_where_the_density_is_flat(family):
    """To a twentieth of a conditional sd: so short is the Newton step from there, level by level.
    For Gaussian ratings it is the exact mean."""
    data, rng = ten_groups(1.0), np.random.default_rng(3)
    data = data.assign(late=(data["y"] > 1.0).astype(int))
    data["count"] = rng.poisson(np.exp(0.5 * data["y"].clip(-2, 4)))
    design = build_design(
        f"{RESPONSES[family]} ~ x + (1 + z|g) + (1|h)", data, families.resolve(family)
    )
    layout, array = arrays.on_device(design, 1)
    values = {"Intercept": 0.5, "x": 0.3, "sd(g)": 1.0, "sd(z|g)": 0.4}
    values |= {"cor(Intercept,z|g)": 0.3, "sd(h)": 0.5}
    if family == "gaussian":
        values["sd(residual)"] = 1.0
    parameters = arrays.to_parameters(design, values)
    found = Laplace(layout, array, parameters)
    effects = [
        tf.einsum("ij,lcj->lci", scale, x)
        for scale, x in zip(parameters.scales, found.mode, strict=True)
    ]
    if family == "gaussian":
        mean, covariance = dense_conditional(design, values)
        mode = np.concatenate([u.numpy().ravel() for u in effects])
        assert np.abs((mode - mean) / np.sqrt(np.diag(covariance))).max() < 0.05
        return
    state = at(layout, array, arrays.State(parameters, effects))
    for k, (scale, x, inverse) in enumerate(
        zip(parameters.scales, found.mode, found.precision.inverse, strict=True)
    ):
        pull = value_and_slopes(layout, k, array, state)[1]
        slope = tf.einsum("ji,lcj->lci", scale, pull) - x
        away = tf.einsum("lij,lcj->lci", inverse, slope)
        sd = tf.sqrt(tf.linalg.diag_part(inverse))[:, tf.newaxis]
        assert np.abs(away / sd).max() < 0.05
