"""Degrees of freedom, against lmerTest, and those that are known."""

from __future__ import annotations

from lmmbook import exact, families
from lmmbook.formula import build_design
from lmmbook.inference.satterthwaite import Satterthwaite

import numpy as np
import pandas as pd
import pytest
from conftest import as_lme4_had_it

# lmerTest 3.1-3 on lme4 1.1-31, lmer(FORMULA, as_lme4_had_it(), REML = ...), bobyqa to 1e-10:
# df of Intercept, x and z
LMERTEST = {
    ("y ~ x + z + (1|g) + (1|h)", True): [7.9176729, 49.0396906, 4.9889381],
    ("y ~ x + z + (1|g) + (1|h)", False): [10.293812, 49.964993, 6.786133],
    ("y ~ x + z + (1|g) + (1+x|h)", True): [6.4844497, 2.9096914, 4.9899749],
    ("y ~ x + z + (1|g) + (1+x|h)", False): [8.3861936, 3.8395105, 6.7461057],
    ("y ~ x + z + (1|g) + (1+x||h)", True): [6.6337681, 2.8980475, 4.9894833],
    ("y ~ x + z + (1|g) + (1+x||h)", False): [8.3345776, 3.8138081, 6.4803976],
}


def at_maximum(formula: str, data: pd.DataFrame, reml: bool) -> Satterthwaite:
    design = build_design(formula, data, families.Gaussian())
    found = exact.fit(formula, data, reml=reml)
    return Satterthwaite(design, found.parameters["estimate"], reml)


@pytest.mark.parametrize(("formula", "reml"), LMERTEST)
def test_lmertest_says_the_same(formula: str, reml: bool) -> None:
    found = at_maximum(formula, as_lme4_had_it(), reml).degrees_of_freedom(np.eye(3))
    assert found == pytest.approx(LMERTEST[formula, reml], rel=1e-3)


def test_where_they_are_known() -> None:
    """Balanced groups: a mean of 6 of them has 5 degrees of freedom, a covariate that varies within
    groups those of the residual, 30 - 6 - 1."""
    rng = np.random.default_rng(0)
    x = np.tile([-2.0, -1.0, 0.0, 1.0, 2.0], 6)
    g = np.repeat(np.arange(6), 5)
    data = pd.DataFrame({"g": g, "x": x, "y": 3 * rng.normal(size=6)[g] + rng.normal(size=30)})
    found = at_maximum("y ~ x + (1|g)", data, reml=True).degrees_of_freedom(np.eye(2))
    assert found == pytest.approx([5.0, 23.0], rel=1e-4)


def test_units_change_nothing() -> None:
    data = as_lme4_had_it()
    one = at_maximum("y ~ x + z + (1|g) + (1+x|h)", data, True)
    other = at_maximum(
        "y ~ x + z + (1|g) + (1+x|h)", data.assign(x=100 * data.x, y=data.y / 10), True
    )
    combination = np.array([[1.0, 2.0, 0.0]])
    scaled = np.array([[1.0, 200.0, 0.0]])
    assert other.degrees_of_freedom(scaled) == pytest.approx(
        one.degrees_of_freedom(combination), rel=1e-4
    )


def test_at_a_boundary_there_are_none() -> None:
    data = as_lme4_had_it()
    design = build_design("y ~ x + (1|g) + (1|h)", data, families.Gaussian())
    at = {"Intercept": 3.0, "x": 0.4, "sd(g)": 0.0, "sd(h)": 1.0, "sd(residual)": 2.0}
    found = Satterthwaite(design, pd.Series(at), reml=False)
    assert "zero" in found.undefined
    assert np.isnan(found.degrees_of_freedom(np.eye(2))).all()


def test_seconds_since_1970_are_covariates_like_others() -> None:
    data = as_lme4_had_it()
    one = at_maximum("y ~ x + (1|g) + (1|h)", data, reml=False)
    other = at_maximum("y ~ x + (1|g) + (1|h)", data.assign(x=data["x"] + 1.7e9), reml=False)
    of_x = np.array([[0.0, 1.0]])
    assert other.degrees_of_freedom(of_x) == pytest.approx(one.degrees_of_freedom(of_x), rel=1e-4)
    assert other.covariance[1, 1] == pytest.approx(one.covariance[1, 1], rel=1e-6)
