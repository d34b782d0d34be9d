"""An empty cell costs a column, with a warning; columns that follow from others are named."""

from __future__ import annotations

import itertools
import time
import warnings

import lmmbook as lmm
from lmmbook.formula import build_design
from lmmbook.formula.dependence import check_independent

import numpy as np
import pandas as pd
import pytest

EACH = 6


def crossed(without: list[tuple[str, ...]], **factors: str) -> pd.DataFrame:
    """All combinations but some, several times each."""
    rng = np.random.default_rng(0)
    cells = [cell for cell in itertools.product(*factors.values()) if cell not in without]
    data = pd.DataFrame([cell for cell in cells for _ in range(EACH)], columns=list(factors))
    rows = len(data)
    return data.assign(
        y=rng.normal(size=rows), x=rng.normal(size=rows), z=rng.normal(size=rows),
        g=rng.integers(0, 5, rows),
    )  # fmt: skip


def dummies(data: pd.DataFrame, *columns: str) -> np.ndarray:
    cells = data[list(columns)].agg(":".join, axis=1) if len(columns) > 1 else data[columns[0]]
    return pd.get_dummies(cells).to_numpy(float)


ABC, UVW = "abc", "uvw"
EMPTY = {
    "one": [("c", "w")],
    "that of the references": [("a", "u")],
    "in a reference's row": [("a", "v")],
    "two": [("c", "w"), ("b", "u")],
    "most": [cell for cell in itertools.product(ABC, UVW) if "".join(cell) not in "au bv cw av bw"],
}


@pytest.mark.parametrize("name", EMPTY)
@pytest.mark.parametrize("formula", ["a*b", "a:b", "a/b", "0 + a:b", "b*a", "a:b + a + x"])
def test_an_empty_cell_costs_one_column(name, formula):
    """What is left has the space of a column for each cell that there is."""
    data = crossed(EMPTY[name], a=ABC, b=UVW)
    said = "fixed effects: left out .*, which the other columns give, for no row has [ab] = "
    with pytest.warns(UserWarning, match=said):
        design = build_design(f"y ~ {formula} + (1|g)", data)
    wanted = dummies(data, "a", "b")
    if "x" in formula:
        wanted = np.column_stack([wanted, data["x"]])
    rank = np.linalg.matrix_rank(wanted)
    assert design.fixed.shape == (len(data), rank)
    assert len(design.fixed_names) == rank
    assert np.linalg.matrix_rank(np.hstack([wanted, design.fixed])) == rank
    # New rows of the cells that there are get the columns they had; those of others are refused.
    order = np.random.default_rng(1).permutation(len(data))
    np.testing.assert_array_equal(design.on(data.iloc[order]).fixed, design.fixed[order])
    for a, b in EMPTY[name]:
        new = pd.concat([data, data.iloc[:1].assign(a=a, b=b)], ignore_index=True)
        with pytest.raises(ValueError, match="combinations that the training data have") as error:
            design.on(new)
        cell = (a, b) if formula[0] != "b" else (b, a)
        assert f"got [{cell}]; the fit" in str(error.value)


def test_what_can_be_said_is_said():
    """Additive effects need no row in every cell."""
    data = crossed([("c", "w")], a=ABC, b=UVW)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        design = build_design("y ~ a + b + (1|g)", data)
        assert design.on(data.iloc[:1].assign(a="c", b="w")).fixed.tolist() == [[1, 0, 1, 0, 1]]


def test_slopes_in_an_empty_cell_are_left_out_too():
    data = crossed([("c", "w")], a=ABC, b=UVW)
    with pytest.warns(UserWarning, match=r"left out a\[c\]:b\[w\], a\[c\]:b\[w\]:x, which"):
        design = build_design("y ~ a*b*x + (1|g)", data)
    cells = dummies(data, "a", "b")
    wanted = np.hstack([cells, cells * data[["x"]].to_numpy()])
    assert design.fixed.shape[1] == np.linalg.matrix_rank(wanted) == 16
    assert np.linalg.matrix_rank(np.hstack([wanted, design.fixed])) == 16
    with pytest.raises(ValueError, match="expected combinations"):
        design.on(data.iloc[:1].assign(a="c", b="w"))


def test_three_factors_and_numbers_as_categories():
    data = crossed([("c", "w", "1"), ("a", "v", "2")], a=ABC, b=UVW, c="12").astype({"c": int})
    with pytest.warns(UserWarning, match=r"no row has a = a and b = v and C\(c\) = 2, or a = c"):
        design = build_design("y ~ a*b*C(c) + (1|g)", data)
    assert design.fixed.shape[1] == np.linalg.matrix_rank(design.fixed) == 16
    with pytest.raises(ValueError, match=r"columns \['a', 'b', 'c'\]: .*\('c', 'w', '1'\)"):
        design.on(data.iloc[:1].assign(a="c", b="w", c=1))


def test_the_fit_is_that_of_the_cells():
    data = crossed([("c", "w")], a=ABC, b=UVW)
    data["cell"] = data["a"] + data["b"]
    with pytest.warns(UserWarning, match="left out"):
        found = lmm.exact.fit("y ~ a*b + (1|g)", data)
    cells = lmm.exact.fit("y ~ 0 + cell + (1|g)", data)
    assert found.log_likelihood == pytest.approx(cells.log_likelihood, abs=1e-8)
    estimate, mean = found.parameters["estimate"], cells.parameters["estimate"]
    assert estimate["Intercept"] == pytest.approx(mean["cell[au]"], abs=1e-5)
    assert estimate[["Intercept", "a[c]", "b[v]", "a[c]:b[v]"]].sum() == pytest.approx(
        mean["cell[cv]"], abs=1e-5
    )


# What is a mistake


@pytest.mark.parametrize(
    ("formula", "named"),
    [
        ("y ~ x + z + I(2 * x) + a*b + (1|g)", ["x", "I(2 * x)"]),
        ("y ~ x + z + I(x - z) + b + (1|g)", ["x", "z", "I(x - z)"]),
        ("y ~ a + b + twin + x + (1|g)", ["b[v]", "twin[v]"]),
        ("y ~ a*b + a*twin + (1|g)", ["b[v]", "twin[v]"]),
        ("y ~ x + I(one) + (1|g)", ["Intercept", "I(one)"]),
        ("y ~ x + near + a + (1|g)", ["x", "near"]),
    ],
)
def test_columns_that_follow_from_others_are_named_and_no_others(formula, named):
    data = crossed([], a=ABC, b=UVW)
    noise = np.random.default_rng(2).normal(size=len(data))
    data = data.assign(twin=data["b"], one=3.0, near=data["x"] + 1e-7 * noise)
    with pytest.raises(ValueError, match="fixed effects: expected linearly independent") as error:
        build_design(formula, data)
    assert f"got {named}, which are dependent" in str(error.value)


def test_of_random_effects_too_the_columns_are_named():
    data = crossed([("c", "w")], a=ABC, b=UVW)
    with pytest.raises(ValueError, match=r"'g': .* got \['a\[c\]:b\[w\]'\], zero in every row"):
        build_design("y ~ 1 + (a*b|g)", data)
    with pytest.raises(ValueError, match=r"'g': .* got \['x', 'I\(x \* 3\)'\], which are"):
        build_design("y ~ 1 + (a + x + I(x * 3)|g)", data)


def test_a_column_of_zeros_is_named():
    data = crossed([], a=ABC, b=UVW).assign(nil=0.0)
    with pytest.raises(ValueError, match=r"got \['I\(nil\)'\], zero in every row; leave it out"):
        build_design("y ~ a + I(nil) + x + (1|g)", data)


def test_many_columns_take_no_longer_to_tell_apart():
    """Neither the cells of two factors, nor three among hundreds: that is not tried one by one."""
    rng = np.random.default_rng(3)
    rows = 4000
    data = pd.DataFrame({"a": rng.integers(0, 15, rows), "b": rng.integers(0, 15, rows)})
    data = data[(data["a"] != 3) | (data["b"] != 4)].astype(str)
    data = data.assign(y=rng.normal(size=len(data)), g=rng.integers(0, 9, len(data)))
    started = time.perf_counter()
    with pytest.warns(UserWarning, match=r"left out a\[9\]:b\[4\]|left out a\[3\]:b\[4\]"):
        assert build_design("y ~ a*b + (1|g)", data).fixed.shape[1] == 224
    many = rng.normal(size=(800, 200))
    many[:, 177] = many[:, 21] - many[:, 100]
    with pytest.raises(ValueError, match=r"got \['x21', 'x100', 'x177'\], which"):
        check_independent("fixed effects", many, [f"x{j}" for j in range(200)])
    assert time.perf_counter() - started < 20


def test_covariates_far_from_zero_do_not_hide_an_empty_cell():
    data = crossed([("c", "w")], a=ABC, b=UVW)
    data["year"] = 1e6 + data["x"]
    with pytest.warns(UserWarning, match="left out"):
        design = build_design("y ~ a*b + year + (1|g)", data)
    assert design.fixed.shape[1] == 9
    np.testing.assert_array_equal(design.on(data).fixed, design.fixed)
    with pytest.raises(ValueError, match="expected combinations"):
        design.on(data.iloc[:1].assign(a="c", b="w"))
