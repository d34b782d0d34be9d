"""The chosen parametrisation leaves least to be taken away, whatever the columns are."""

from __future__ import annotations

from lmmbook import exact
from lmmbook.engine import arrays
from lmmbook.engine.certificate import centering, certify, louis
from lmmbook.engine.linear_predictor import at
from lmmbook.formula import build_design
from lmmbook.formula.covariance import parameter_names
from lmmbook.formula.design import Design

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from conftest import conditional_draws


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
    design: Design,
    values: dict[str, float],
    parametrisation: louis.Parametrisation | None,
    chains: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores ``[chains, coordinates]`` of exact draws, and the complete data's information."""
    layout, array = arrays.on_device(design, chains)
    parameters = arrays.to_parameters(design, values)
    if parametrisation is None:
        size = louis.coordinates(layout)
        products = centering.products_of(design, layout)
        given = layout, array, products, parameters, values["sd(residual)"] ** 2, np.eye(size)
        parametrisation = centering.choose_parametrisation(*given)
    effects = [tf.constant(u) for u in conditional_draws(design, values, chains, seed=1)]
    state = at(layout, array, arrays.State(parameters, effects))
    return louis.score_and_information(layout, array, state, parametrisation)


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
    score, complete = information(design, values, None, 2000)
    layout, _ = arrays.on_device(design, 2000)
    found = certify.certify(
        design, layout, arrays.to_parameters(design, values),
        score.numpy().reshape(5, 400, -1), complete.numpy(), np.eye(score.shape[1]),
    )  # fmt: skip
    assert found.definite
    share = certify.eigen(complete.numpy() - np.cov(score.numpy().T), complete.numpy())[0][0]
    noise = np.sqrt(2 / 2000) / share / 2
    np.testing.assert_allclose(found.table["std_error"], truth["std_error"], rtol=5 * noise)


def test_no_other_parametrisation_knows_less():
    """Fixed effects: any other means leave at least as much to be taken away, in any direction."""
    design = build_design("y ~ z + f + (z|g) + (1|h)", ten_groups(3.0))
    values = [1.0, 0.5, 0.2, 1.0, 0.3, -0.4, 0.5, 1.0]
    values = dict(zip(parameter_names(design), values, strict=True))
    fixed, rng = slice(0, 3), np.random.default_rng(0)
    layout, array = arrays.on_device(design, 2)
    products = centering.products_of(design, layout)
    parameters = arrays.to_parameters(design, values)
    # The residual's variance is 1.
    best = centering.least_means(layout, array, products, parameters)
    nothing = louis.as_written(layout).standardised

    def known(means: list[np.ndarray]) -> np.ndarray:
        parametrisation = louis.Parametrisation(
            [tf.constant(m, tf.float32) for m in means], nothing
        )
        return information(design, values, parametrisation, 2)[1].numpy()[fixed, fixed]

    least = known(best)
    for _ in range(20):
        # Columns of effects that a fixed effect is alike to have a second coefficient; no third.
        other = known([m + 0.2 * rng.normal(size=m.shape) for m in best])
        assert np.linalg.eigvalsh(other - least)[0] > 0
    as_written = known([np.zeros_like(m) for m in best])
    assert np.linalg.eigvalsh(as_written - least)[0] > -1e-4 * np.abs(as_written).max()
    assert least[0, 0] < 0.1 * as_written[0, 0]


def test_a_covariance_is_partially_non_centred():
    """A singular covariance that can be turned: of all of it the complete data know little neither
    centred nor non-centred, but partially non-centred they do."""
    design = build_design("y ~ 1 + (z|g)", ten_groups(20.0))
    layout, array = arrays.on_device(design, 2)
    units = array.factors[0].units.numpy()
    root = units @ np.array([[13.0, 0.0], [0.7, 1e-4]])  # as of z, less its mean
    factor_layout, factor_arrays, scale = (
        layout.factors[0],
        array.factors[0],
        np.linalg.cholesky(root @ root.T),
    )
    kept = np.eye(3)[:, :2]  # but for the tangent along which there is no variance
    observed, prior, likelihood = centering.information_on_covariance(
        factor_layout, factor_arrays, scale, 1.0
    )
    part = centering.least_part(factor_layout, factor_arrays, scale, 1.0, kept)
    rest = np.eye(3) - part
    both = rest.T @ prior @ rest + part.T @ likelihood @ part
    shares = {
        name: certify.eigen(kept.T @ observed @ kept, kept.T @ known @ kept)[0][0]
        for name, known in {"prior": prior, "likelihood": likelihood, "both": both}.items()
    }
    assert shares["prior"] < 0.01
    assert shares["likelihood"] < 0.01
    assert shares["both"] > 0.5
