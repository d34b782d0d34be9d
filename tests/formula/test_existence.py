"""Where there is no maximum, one sentence says so, and names the columns."""

from __future__ import annotations

import itertools

import lmmbook
from lmmbook import exact
from lmmbook.engine import fit
from lmmbook.families import Custom, Gaussian, resolve
from lmmbook.formula import build_design, existence, separation
from lmmbook.formula.invariances import coordinates

import numpy as np
import pandas as pd
import pytest
from tensorflow_probability import distributions as tfd


def simulated() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    n = 400
    data = pd.DataFrame({"g": np.repeat(np.arange(20), 20), "x": rng.normal(size=n)})
    data = data.assign(
        w=rng.normal(size=n), z=(rng.random(n) < 0.2).astype(float), f=np.tile(list("abcd"), 100)
    )
    eta = data["x"] + rng.normal(size=20)[data["g"]]
    return data.assign(
        yes=(rng.random(n) < 1 / (1 + np.exp(-eta))).astype(int),
        count=rng.poisson(np.exp(0.3 * eta)),
        grade=np.clip(np.round(eta + rng.logistic(size=n)), -2, 2).astype(int),
        real=eta + rng.normal(size=n),
    )


DATA = simulated()
ONE = DATA["z"] == 1


def said(fixed: str, family: str, y: np.ndarray, **columns: np.ndarray) -> str | None:
    data = DATA.assign(y=y, **columns)
    design = build_design(f"y ~ {fixed} + (1|g)", data, resolve(family))
    return existence.no_maximum(coordinates.inner(design))


SEPARATED = {
    "a category": ("x + z", "bernoulli", np.where(ONE, 0, DATA["yes"]), {}, ["z"]),
    "of a factor": ("x + f", "bernoulli", np.where(DATA["f"] == "d", 1, DATA["yes"]), {}, ["f[d]"]),
    "the reference": (
        "x + f", "bernoulli", np.where(DATA["f"] == "a", 1, DATA["yes"]), {},
        ["f[b]", "f[c]", "f[d]"],
    ),
    "a number": ("x + w", "bernoulli", DATA["x"] > 0.3, {}, ["x"]),
    "two numbers": ("x + w + z", "bernoulli", DATA["x"] + DATA["w"] > 0.3, {}, ["x", "w"]),
    "a year": ("year + w", "bernoulli", DATA["x"] > 0.3, {"year": 2000 + 5 * DATA["x"]}, ["year"]),
    "tiny": ("x + z", "bernoulli", np.where(ONE, 0, DATA["yes"]), {"z": 1e-9 * DATA["z"]}, ["z"]),
    "a cell": (
        "f*z", "bernoulli", np.where(ONE & (DATA["f"] == "b"), 1, DATA["yes"]), {}, ["f[b]:z"],
    ),
    "no intercept": ("0 + z + x", "bernoulli", np.where(ONE, 0, DATA["yes"]), {}, ["z"]),
    "the top grade": ("x + z", "cumulative", np.where(ONE, 2, DATA["grade"]), {}, ["z"]),
    "grades by a number": ("x + z", "cumulative", np.digitize(DATA["x"], [-1, 0, 1]), {}, ["x"]),
    "no counts": ("x + z", "poisson", np.where(ONE, 0, DATA["count"]), {}, ["z"]),
    "two categories": ("x + z", "categorical", np.where(ONE, 0, DATA["yes"]), {}, ["z"]),
}  # fmt: skip
OVERLAPPING = {
    "yes": ("x*f + z", "bernoulli", DATA["yes"]),
    "all but one": ("x + w", "bernoulli", (DATA["x"] > 0.3) ^ (np.arange(400) == 5)),
    "grades": ("x*f + z", "cumulative", DATA["grade"]),
    "a middle grade": ("x + z", "cumulative", np.where(ONE, 0, DATA["grade"])),
    "counts": ("x*f + z", "poisson", DATA["count"]),
    "counts below a number": ("x", "poisson", np.where(DATA["x"] > 0, 0, DATA["count"])),
}


@pytest.mark.parametrize("name", SEPARATED)
def test_separation_names_its_columns(name):
    fixed, family, y, columns, names = SEPARATED[name]
    found = said(fixed, family, np.asarray(y).astype(int), **columns)
    assert found is not None
    assert f"of {' and '.join(map(repr, names))}, which tell" in found


@pytest.mark.parametrize("name", OVERLAPPING)
def test_where_responses_overlap_nothing_is_said(name):
    fixed, family, y = OVERLAPPING[name]
    assert said(fixed, family, np.asarray(y).astype(int)) is None


@pytest.mark.parametrize("seed", range(30))
def test_separation_agrees_with_trying_every_direction(seed):
    """Of two covariates on a small grid: the directions that matter are normal to two rows."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-2, 3, (rng.integers(6, 14), 2)).astype(float)
    x = np.column_stack([np.ones(len(x)), x])
    y = rng.integers(0, 2, len(x))
    if len(np.unique(y)) < 2 or np.linalg.matrix_rank(x) < 3:
        pytest.skip("no design")
    signed = x * (2 * y - 1)[:, np.newaxis]
    normals = [np.cross(a, b) for a, b in itertools.combinations(signed, 2)]
    normals = [sign * v for v in normals if v.any() for sign in (1, -1)]
    # The cone of directions that hurt no row is spanned by such, if its rows span the space.
    truth = any((signed @ v >= 0).all() for v in normals)
    constraints = separation.Constraints(signed, np.zeros(len(x), bool), ("", "a", "b"))
    found = separation._direction(constraints)
    assert (found is not None) == truth
    assert found is None or (signed @ found).min() > -1e-6


def test_of_many_rows_a_sample_is_looked_at_first(monkeypatch):
    """It decides only where it can: a rare category is not in it."""
    monkeypatch.setattr(separation, "FIRST_ROWS", 50)
    monkeypatch.setattr(separation, "ROWS_AT_ONCE", 20)
    rare = (np.arange(400) == 77).astype(float)
    assert "'z'" in (said("x + z", "bernoulli", DATA["yes"].to_numpy(), z=rare) or "")
    for name in SEPARATED:
        test_separation_names_its_columns(name)
    for name in OVERLAPPING:
        test_where_responses_overlap_nothing_is_said(name)


@pytest.mark.parametrize("family", ["bernoulli", "cumulative", "categorical"])
def test_levels_that_are_all_alike_are_named(family):
    answers = (DATA["g"] % (2 if family == "bernoulli" else 3)).to_numpy().copy()
    found = said("x", family, answers)
    assert found is not None
    assert "'sd(g)' grows without end" in found
    answers[0] = 1 - answers[0]
    assert said("x", family, answers) is None


@pytest.mark.parametrize("reason", [None, "its budget ended"])
def test_the_warning_comes_first_is_the_only_one_and_the_fit_has_not_converged(monkeypatch, reason):
    """Whatever its certificate says. Nothing is computed here."""
    before = []
    monkeypatch.setattr(fit, "Engine", lambda *_: None)
    monkeypatch.setattr(fit, "Driver", lambda _: None)
    monkeypatch.setattr(fit, "_run", lambda _: before.append(len(caught)) or reason)
    monkeypatch.setattr(fit, "assemble", lambda driver, design, converged, reml: converged)
    separated = DATA.assign(y=np.where(ONE, 0, DATA["yes"]))
    with pytest.warns(UserWarning, match="separation.*'z'") as caught:
        converged = lmmbook.fit("y ~ x + z + (1|g)", separated, "bernoulli", seed=0)
    assert before == [1]
    assert len(caught) == 1
    assert not converged


# A Gaussian response without a residual


FREE = Gaussian()


def inner(formula: str, y: np.ndarray, family: Gaussian = FREE) -> coordinates.Inner:
    return coordinates.inner(build_design(formula, DATA.assign(y=y), family))


EXPLAINED = {
    "a line": ("y ~ x + w + (1|g)", 1.7e9 + 3 * DATA["x"] - DATA["w"], "'Intercept', 'x', 'w'"),
    "constant but for rounding": ("y ~ x + (1|g)", np.where(ONE, 0.1 + 0.2, 0.3), "'Intercept'"),
    "levels": ("y ~ x + (1|g)", DATA["g"] ** 2 + DATA["x"], "'g'"),
    "levels and slopes": ("y ~ 1 + (x|g)", DATA["g"] ** 2 * (1 + DATA["x"]), "'g'"),
    "far, no intercept": ("y ~ 0 + x + (1|g)", 1e9 + DATA["real"], "add an intercept"),
}


@pytest.mark.parametrize("name", EXPLAINED)
def test_a_response_without_residuals_is_refused(name):
    formula, y, words = EXPLAINED[name]
    with pytest.raises(ValueError, match="response 'y': expected residuals") as caught:
        existence.refuse(inner(formula, y))
    assert words in str(caught.value)
    existence.refuse(inner(formula, y, Gaussian(1.0)))  # there the residual is known
    existence.refuse(inner(formula, y + 1e-3 * np.abs(y).max() * DATA["w"] * DATA["x"]))


def test_the_oracle_refuses_them_too():
    formula, y, _ = EXPLAINED["levels"]
    with pytest.raises(ValueError, match="expected residuals"):
        exact.fit(formula, DATA.assign(y=y))


def test_many_rows_are_looked_at_to_their_end(monkeypatch):
    """The first ones alone may be explained by chance."""
    monkeypatch.setattr(existence, "FIRST_ROWS", 40)
    y = DATA["g"] ** 2.0
    with pytest.raises(ValueError, match="expected residuals"):
        existence.refuse(inner("y ~ x + (1|g)", y))
    existence.refuse(inner("y ~ x + (1|g)", y + np.where(np.arange(400) > 300, DATA["w"], 0)))


@pytest.mark.parametrize("unit", [1e300, 1e-300])
def test_numbers_that_cannot_be_squared_are_refused(unit):
    with pytest.raises(ValueError, match="choose another unit"):
        inner("y ~ x + (1|g)", unit * DATA["real"])


def test_what_no_column_can_bring_near_zero_is_refused():
    data = DATA.assign(o=1e8 + DATA["w"])
    design = build_design("count ~ 0 + x + offset(o) + (1|g)", data, resolve("poisson"))
    with pytest.raises(ValueError, match=r"offset: .* add an intercept"):
        existence.refuse(coordinates.inner(design))
    existence.refuse(
        coordinates.inner(build_design("count ~ x + offset(o) + (1|g)", data, resolve("poisson")))
    )
    family = Custom(lambda loc: tfd.StudentT(4.0, loc, 1.0), {})
    far = build_design("y ~ x + (1|g)", DATA.assign(y=1.7e9 + DATA["real"]), family)
    with pytest.raises(ValueError, match=r"response 'y': .*single precision .*subtract a constant"):
        existence.refuse(coordinates.inner(far))
