"""REML, against the analysis of variance, dense algebra and lme4."""

from __future__ import annotations

from lmmbook import exact, families
from lmmbook.formula import build_design

import numpy as np
import pandas as pd
import pytest
from conftest import as_lme4_had_it, dense
from scipy import stats

# Davies (1947): yields of dyestuff from six batches, five samples of each.
DYESTUFF = """1545 1440 1440 1520 1580 1540 1555 1490 1560 1495 1595 1550 1605 1510 1560
              1445 1440 1595 1465 1545 1595 1630 1515 1635 1625 1520 1455 1450 1480 1445"""
# lme4 1.1-31, lmer(y ~ x + z + (1|g) + (1+x|h), as_lme4_had_it(), REML = TRUE), bobyqa to 1e-10
LMER = {
    "Intercept": (3.74562402, 1.99166815),
    "x": (0.41639981, 0.29441322),
    "z": (-0.16045840, 1.93650899),
    "sd(g)": (2.49909476, None),
    "sd(h)": (3.04076403, None),
    "sd(x|h)": (0.57747831, None),
    "cor(Intercept,x|h)": (-0.83019826, None),
    "sd(residual)": (1.24214433, None),
}


def test_balanced_data_are_an_analysis_of_variance() -> None:
    """To a millionth: Newton's last step is shorter than that, in standard errors."""
    y = np.array(DYESTUFF.split(), float).reshape(6, 5)
    data = pd.DataFrame({"y": y.ravel(), "batch": np.repeat(list("ABCDEF"), 5)})
    found = exact.fit("y ~ 1 + (1|batch)", data, reml=True)
    within = y.var(axis=1, ddof=1).mean()
    between = y.mean(1).var(ddof=1) - within / 5
    expected = [y.mean(), np.sqrt(between), np.sqrt(within)]
    assert found.parameters["estimate"].to_numpy() == pytest.approx(expected, rel=1e-6)
    assert found.parameters["std_error"].iloc[0] == pytest.approx(
        np.sqrt(y.mean(1).var(ddof=1) / 6), rel=1e-6
    )
    assert found.reml_criterion == pytest.approx(319.654276842, abs=1e-7)  # lme4 1.1-31


def test_lme4_says_the_same() -> None:
    found = exact.fit("y ~ x + z + (1|g) + (1+x|h)", as_lme4_had_it(), reml=True)
    for name, (estimate, error) in LMER.items():
        assert found.parameters["estimate"][name] == pytest.approx(estimate, rel=1e-5)
        if error is not None:
            assert found.parameters["std_error"][name] == pytest.approx(error, rel=1e-5)
    assert found.log_likelihood == pytest.approx(-118.50204562, abs=1e-7)


def test_what_is_maximised_is_the_likelihood_of_residuals() -> None:
    """Of K'y, with K'X = 0 and K'K = I; lme4's has log|X'X| / 2 less. Also away from the maximum's
    neighbours: the estimates are better than any of these."""
    data = as_lme4_had_it()
    formula = "y ~ x + z + (1|g) + (1|h)"
    design = build_design(formula, data, families.Gaussian())
    found = exact.fit(formula, data, reml=True)

    def by_residuals(parameters: pd.Series) -> float:
        k = np.linalg.svd(design.fixed)[0][:, design.fixed.shape[1] :]
        v = dense(design, parameters)[1]
        told = stats.multivariate_normal(np.zeros(k.shape[1]), k.T @ v @ k).logpdf(
            k.T @ design.response
        )
        return told - np.linalg.slogdet(design.fixed.T @ design.fixed)[1] / 2

    best = by_residuals(found.parameters["estimate"])
    assert best == pytest.approx(found.log_likelihood, abs=1e-8)
    for name in ("sd(g)", "sd(h)", "sd(residual)"):
        for factor in (0.99, 1.01):
            near = found.parameters["estimate"].copy()
            near[name] *= factor
            assert by_residuals(near) < best


def test_units_and_origins_of_columns_change_nothing_but_the_criterion() -> None:
    data = as_lme4_had_it()
    formula = "y ~ x + z + (1|g) + (1|h)"
    one = exact.fit(formula, data, reml=True)
    other = exact.fit(formula, data.assign(x=10 * data.x + 5000, y=2 * data.y), reml=True)
    sds = ["sd(g)", "sd(h)", "sd(residual)"]
    assert other.parameters["estimate"][sds].to_numpy() == pytest.approx(
        2 * one.parameters["estimate"][sds].to_numpy(), rel=1e-7
    )
    assert other.parameters["std_error"][sds].to_numpy() == pytest.approx(
        one.parameters["std_error"][sds].to_numpy(), rel=1e-5
    )
    shift = (60 - 3) * np.log(2) + np.log(10)  # densities of 57 numbers; det X is tenfold
    assert other.log_likelihood == pytest.approx(one.log_likelihood - shift, abs=1e-7)


def test_maximum_likelihood_has_no_criterion() -> None:
    found = exact.fit("y ~ x + (1|g)", as_lme4_had_it())
    with pytest.raises(ValueError, match="reml=True"):
        _ = found.reml_criterion


def test_a_factor_that_the_fixed_effects_tell_apart_is_refused() -> None:
    data = pd.DataFrame({"y": np.arange(20.0) % 7, "g": [0, 1] * 10, "x": [0.0, 1.0] * 10})
    with pytest.raises(ValueError, match="'g': expected levels that the fixed effects do not tell"):
        exact.fit("y ~ x + (1|g)", data, reml=True)
