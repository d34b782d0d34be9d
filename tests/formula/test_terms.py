"""The columns of a formula's terms span what they should, and are computed in float64.

The oracle writes every term out with a column for each category, and compares spaces.
"""

from __future__ import annotations

import re

from lmmbook.formula import build_design
from lmmbook.formula.design import Design
from lmmbook.formula.parse.expressions import as_numbers

import numpy as np
import pandas as pd
import pytest

ROWS = 240


@pytest.fixture(scope="module")
def data() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    numbers = {name: rng.normal(size=ROWS) for name in "yxz"}
    letters = {"f": "uvw", "h": "pq", "k": "rst"}
    labels = {name: rng.choice(list(of), ROWS) for name, of in letters.items()}
    return pd.DataFrame(
        numbers | labels | {"g": np.arange(ROWS) % 8, "i": rng.integers(0, 3, ROWS)}
    )


# A formula, and its terms: a component is a column, all categories of one, or P for poly(x, 2).
SPANS = {
    "f/x": "1, f, f x", "f/x/z": "1, f, f x, f x z", "x/f": "1, x, x f", "f/h": "1, f, f h",
    "f/h/x": "1, f, f h, f h x", "f:x": "1, f x", "0 + f": "f", "0 + f:x": "f x",
    "0 + f/x": "f, f x", "f*x - x": "1, f, f x", "f*x - f": "1, x, f x",
    "(x + z)**2": "1, x, z, x z", "(f + h + x)**2": "1, f, h, x, f h, f x, h x",
    "(f + h + k)**3": "1, f, h, k, f h, f k, h k, f h k", "f:h": "1, f h", "0 + f:h": "f h",
    "0 + f + h": "f, h", "0 + f + h + k": "f, h, k", "0 + h + f:x": "h, f x",
    "f:h + f": "1, f h, f", "f:h + h": "1, f h, h", "h:f + f:h": "1, f h", "x:f + f:x": "1, x f",
    "f:x + x": "1, f x, x", "f:z:x + x:z": "1, f x z, x z", "x:z:f + z:x": "1, f x z, x z",
    "f:h:x": "1, f h x", "f:h:x + f:x": "1, f h x, f x", "f:h:x + x": "1, f h x, x",
    "f*h*x - f:h:x": "1, f, h, x, f h, f x, h x", "f*h - f": "1, h, f h",
    "f*h - f - h": "1, f h", "f*h - h:f": "1, f, h", "P*f": "1, P, f, P f", "f/P": "1, f, f P",
    "P:f": "1, P f", "0 + f:P": "f P", "C(i)/x": "1, i, i x", "C(i)*f": "1, i, f, i f",
    "(f + h)/x": "1, f, h, f h x", "f/(x + z)": "1, f, f x, f z",
    "(f + h)/(x + k:z)": "1, f, h, f h x, f h k z", "(f + x):(h + z)": "1, f h, f z, x h, x z",
    "x*z - z:x": "1, x, z", "f:f + x:x": "1, f, x", "(f/x):h": "1, f h, f x h",
    "h:x + f:x": "1, h x, f x", "0 + h:x + f:x": "h x, f x", "h:x + f:x + x": "1, h x, f x, x",
    "f:h + h:k + f:k": "1, f h, h k, f k", "0 + f:h + h:k": "f h, h k", "(1 + f)*x": "1, f, x, f x",
    "(0 + f) + x": "f, x", "(f - 1) + x": "f, x", "-1 + f": "f", "-1 + f + 1": "1, f",
    "f - (x + f) + z": "1, z", "(f*x)/z": "1, f, x, f x, f x z", "S(f)*h": "1, f, h, f h",
    "T(f, 'v')/x": "1, f, f x", "0 + S(f)/x": "f, f x", "S(f):h": "1, f h", "S(f):x": "1, f x",
}  # fmt: skip


def span(terms: str, data: pd.DataFrame) -> np.ndarray:
    blocks = []
    for term in terms.split(", "):
        block = np.ones((ROWS, 1))
        for part in term.replace("1", "").split():
            if part == "P":
                own = build_design("y ~ 0 + poly(x, 2) + (1|g)", data).fixed
            else:
                own = data[[part]] if part in "xz" else pd.get_dummies(data[part])
            block = np.einsum("ra,rb->rab", block, np.asarray(own, float)).reshape(ROWS, -1)
        blocks.append(block)
    return np.hstack(blocks)


def columns(design: Design, place: str) -> tuple[np.ndarray, tuple[str, ...]]:
    if place == "fixed":
        return design.fixed, design.fixed_names
    return design.factors[0].z, design.factors[0].effects


@pytest.mark.parametrize("place", ["fixed", "slopes"])
@pytest.mark.parametrize("formula", SPANS)
def test_terms_span_what_they_should(data, formula, place):
    terms = formula.replace("P", "poly(x, 2)")
    text = f"y ~ {terms} + (1|g)" if place == "fixed" else f"y ~ 1 + ({terms}|g)"
    design = build_design(text, data)
    found, names = columns(design, place)
    wanted = span(SPANS[formula], data)
    rank = np.linalg.matrix_rank(wanted)
    assert found.shape == (ROWS, rank)
    assert len(set(names)) == rank
    assert np.linalg.matrix_rank(np.hstack([wanted, found])) == rank
    # New rows get the columns they had: in another order, and with one category only.
    some = np.random.default_rng(1).permutation(ROWS)[:9]
    for rows in (some, some[:1], np.flatnonzero(data["f"] == "w")[:3]):
        again, _ = columns(design.on(data.iloc[rows].drop(columns="y")), place)
        np.testing.assert_allclose(again, found[rows], atol=1e-12)


def test_the_columns_are_named_after_what_is_in_them(data):
    """Each column of a name is the product of what the name says."""
    design = build_design("y ~ f/x + k:h + z:x + (1|g)", data)
    for name, column in zip(design.fixed_names[1:], design.fixed.T[1:], strict=True):
        product = np.ones(ROWS)
        for part in name.split(":"):
            label = re.fullmatch(r"(\w)\[(\w)\]", part)
            product *= data[label[1]] == label[2] if label else data[part]
        np.testing.assert_array_equal(column, product)
    assert {"f[v]", "f[u]:x", "f[v]:x", "f[w]:x", "z:x"} < set(design.fixed_names)


def test_a_width_that_is_not_that_of_the_labels_is_refused(data):
    design = build_design("y ~ f + wide(x) + (1|g)", data, functions={"wide": lambda x: x})
    call = design._common.terms[-1].components[0].call
    call.known = call.known._replace(function=lambda x: np.column_stack([x, x]))
    with pytest.raises(ValueError, match=r"expected 1 columns of wide\(x\).* got 2"):
        design.on(data)


# Arithmetic

KINDS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "Int8", "bool"]
PRODUCTS = [
    "y ~ v:w + (1|g)", "y ~ v*w + (1|g)", "y ~ I(v**5) + (1|g)", "y ~ {v * w - v**2} + (1|g)",
    "y ~ x + offset(v * w) + (1|g)", "y ~ x + offset(v) + (v:w|g)", "y ~ x + (0 + {v * v}|g)",
    "I(v * w * w) ~ x + (1|g)", "{v + v} ~ x + (1|g)", "y ~ np.power(v, 3) + (1|g)",
    "y ~ v:f:w + (1|g)", "y ~ center(v):w + poly(v, 2, raw=True) + (1|g)", "y ~ v + (w|g)",
    "y ~ np.where(f == 'u', v, w):v + (1|g)", "y ~ {-v} + np.square(v) + (1|g)",
    "y ~ {(v > 60) + (w > 20) + v} + (1|g)", "y ~ np.add(np.multiply(v, w), 7) + (1|g)",
]  # fmt: skip


def integers(kind: str, data: pd.DataFrame) -> pd.DataFrame:
    """Whose products do not fit, whatever the type: near the largest that it has."""
    rng = np.random.default_rng(2)
    most = 2**52 if "64" in kind else {"bool": 1}.get(kind) or np.iinfo(kind.lower()).max
    v, w = (rng.integers(0, most, ROWS, endpoint=True) for _ in range(2))
    return data.assign(v=v, w=w).astype({"v": kind, "w": kind})


@pytest.mark.parametrize("kind", KINDS)
def test_arithmetic_is_in_double_precision(data, kind, tmp_path, monkeypatch):
    """As of columns of float64, given in any way, at the fit and for new rows."""
    # v squared, of bools
    monkeypatch.setattr("lmmbook.formula.build.check_independent", lambda *_: None)
    monkeypatch.setattr("lmmbook.formula.factors.check_independent", lambda *_: None)
    small = integers(kind, data)
    wide = small.astype({"v": float, "w": float})
    path = tmp_path / "data.parquet"
    small.to_parquet(path)
    arrays = {name: small[name].to_numpy() for name in small if kind != "Int8"}
    for formula in PRODUCTS:
        wanted = build_design(formula, wide)
        for given in (small, path, *([arrays] if arrays else [])):
            design = build_design(formula, given)
            for found in (design, design.on(given), wanted.on(given)):
                np.testing.assert_array_equal(found.fixed, wanted.fixed)
                np.testing.assert_array_equal(found.offset, wanted.offset)
                np.testing.assert_array_equal(found.factors[0].z, wanted.factors[0].z)
            np.testing.assert_array_equal(design.response, wanted.response)


@pytest.mark.parametrize("kind", ["int8", "uint16", "int64"])
def test_categories_that_are_whole_numbers_keep_their_labels(data, kind, tmp_path):
    small = data.astype({"i": kind})
    path = tmp_path / "data.parquet"
    small.to_parquet(path)
    for given in (small, path):
        design = build_design("y ~ C(i) + {i * i}:x + T(i, 1):z + C(i == 2):x + (1|i)", given)
        names = " ".join(design.fixed_names)
        assert "C(i)[1] C(i)[2]" in names
        assert "T(i, 1)[2]:z" in names
        assert "C(i == 2)[True]" in names
        assert ".0" not in names
        assert design.factors[0].labels.tolist() == [0, 1, 2]


def test_a_comparison_is_exact_where_float64_is_not(data):
    large = data.assign(i=2**53 + data["i"])
    design = build_design(f"y ~ {{i == {2**53 + 1}}} + (1|g)", large)
    np.testing.assert_array_equal(design.fixed[:, 1], data["i"] == 1)


def test_columns_that_nothing_is_computed_of_are_not_copied(data):
    given = {"y": data["y"].to_numpy(), "g": data["g"].to_numpy(), "x": data["x"].to_numpy()}
    assert np.shares_memory(build_design("y ~ 1 + (1|g)", given).response, given["y"])
    column = data["x"]
    assert as_numbers(column, "x") is column


def test_text_is_no_number(data):
    with pytest.raises(ValueError, match=r"I\(f \* 2\) cannot be .* expected numbers, got .* in f"):
        build_design("y ~ {f * 2} + (1|g)", data)
    with pytest.raises(
        ValueError, match=r"np\.log\(f\) cannot be .* expected numbers, got .* in f"
    ):
        build_design("y ~ np.log(f) + (1|g)", data)
    design = build_design("y ~ x + (1|g)", data)
    with pytest.raises(ValueError, match=r"expected numbers of x|column 'x'"):
        design.on(data.assign(x="a"))
