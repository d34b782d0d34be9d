"""No two parameters share a name: columns that would make them are refused, and named."""

from __future__ import annotations

import lmmbook as lmm
from lmmbook.families import resolve
from lmmbook.formula import build_design
from lmmbook.formula.covariance import name_values, parameter_names, specs
from lmmbook.formula.invariances.coordinates import on_their_scales

import numpy as np
import pandas as pd
import pytest
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd

ROWS = 60


@pytest.fixture
def data() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    numbers = {name: rng.normal(size=ROWS) for name in "yxz"}
    labels = {"f": list("ab") * 30, "g": np.arange(ROWS) % 5, "h": np.arange(ROWS) // 7 % 4}
    return pd.DataFrame(numbers | labels | {"r": np.arange(ROWS) % 3 + 1})


COLUMNS = [
    # a new name of x, a formula, the family
    ("Intercept", "y ~ Intercept + (1|g)", "gaussian"),
    ("Intercept", "y ~ 0 + Intercept + (1|g)", "gaussian"),
    ("Intercept", "y ~ z + (Intercept|g)", "gaussian"),
    ("Intercept", "y ~ z + (0 + Intercept|g)", "gaussian"),
    ("Intercept", "y ~ z:Intercept + (1|g)", "gaussian"),
    ("sd(g)", "y ~ `sd(g)` + (1|g)", "gaussian"),
    ("sd(h)", "y ~ `sd(h)` + (1|g)", "gaussian"),
    ("sd(g)", "y ~ z + (`sd(g)`|g)", "gaussian"),
    ("sd(residual)", "y ~ `sd(residual)` + (1|g)", "gaussian"),
    ("sd(x|g)", "y ~ `sd(x|g)` + (z|g)", "gaussian"),
    ("cor(Intercept,z|g)", "y ~ `cor(Intercept,z|g)` + (z|g)", "gaussian"),
    ("threshold(1|2)", "r ~ `threshold(1|2)` + (1|g)", "cumulative"),
    ("intercept(2)", "r ~ `intercept(2)` + (1|g)", "categorical"),
    ("score(2)", "r ~ `score(2)` + (1|g)", "categorical"),
    ("f[b]", "y ~ f + `f[b]` + (1|g)", "gaussian"),
    ("f[b]:z", "y ~ f*z + `f[b]:z` + (1|g)", "gaussian"),
    ("z:r", "y ~ z:r + `z:r` + (1|g)", "gaussian"),
    ("np.exp(z)", "y ~ np.exp(z) + `np.exp(z)` + (1|g)", "gaussian"),
    ("phase", "y ~ phase + (1|g)", "gaussian"),
    ("acceptance", "y ~ acceptance + (1|g)", "gaussian"),
]


@pytest.mark.parametrize(("name", "formula", "family"), COLUMNS)
def test_a_column_with_the_name_of_a_parameter_is_refused(data, name, formula, family):
    renamed = data.rename(columns={"x": name})
    with pytest.raises(ValueError, match="rename the column") as error:
        build_design(formula, renamed, resolve(family))
    assert f"{name!r}" in str(error.value)


OTHERS = {
    "terms that are printed alike": (
        "y ~ I((x + z) * 2) + I(x + z * 2) + (1|g)", {}, r"twice, .*formulae drops parentheses",
    ),
    "categories that are written alike": (
        "y ~ f + (1|g)", {"f": [0, 1, "1"]}, r"'f\[1\]' twice, .* written alike",
    ),
    "a slope and a group": (
        "y ~ z + (0 + x|g) + (1|`x|g`)", {"x|g": [0, 1, 2, 3]},
        r"'sd\(x\|g\)' twice, from group 'g'",
    ),
    "slopes": (
        "y ~ z + (I((x + z) * 2) + I(x + z * 2)|g)", {}, "each effect once, got",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_whatever_the_reason_no_two_have_one_name(data, name):
    formula, columns, message = OTHERS[name]
    rng = np.random.default_rng(1)
    for column, values in columns.items():
        places = rng.integers(0, len(values), ROWS)
        data[column] = pd.Categorical.from_codes(places, pd.Index(values, dtype=object), True)
    with pytest.raises(ValueError, match=message):
        build_design(formula, data)


def test_parameters_of_a_likelihood_of_ones_own_have_names_too(data):
    for name in ("x", "sd(g)", "Intercept"):
        family = lmm.families.Custom(
            lambda loc, **k: tfd.Normal(loc, *k.values()), {name: tfb.Exp()}
        )
        with pytest.raises(
            ValueError, match=rf"'{name}' twice".replace("(", r"\(").replace(")", r"\)")
        ):
            build_design("y ~ x + (1|g)", data, family)


def test_names_that_only_look_like_it_are_fine(data):
    odd = ["offset(x)", "Intercepts", "intercept", "sd", "x|g", "a.b", "s d", "f[c]", "cor"]
    for name in odd:
        renamed = data.rename(columns={"x": name})
        design = build_design(f"y ~ `{name}` + f + (1|g)", renamed)
        assert design.fixed_names == ("Intercept", name, "f[b]")
        np.testing.assert_array_equal(design.fixed[:, 1], data["x"])
        assert (design.offset == 0).all()
        assert len(set(parameter_names(design))) == len(parameter_names(design)) == 5
    response = data.rename(columns={"y": "Intercept", "g": "sd(x)"})
    names = parameter_names(build_design("Intercept ~ x + (1|`sd(x)`)", response))
    assert names == ["Intercept", "x", "sd(sd(x))", "sd(residual)"]


@pytest.mark.parametrize(
    ("response", "family", "first", "last"),
    [
        ("y", "gaussian", [("Intercept", "fixed")], [("sd(residual)", "sd")]),
        ("r", "cumulative", [(f"threshold({c}|{c + 1})", "auxiliary") for c in (1, 2)], []),
        ("r", "poisson", [("Intercept", "fixed")], []),
    ],
)
def test_each_parameter_has_a_kind(data, response, family, first, last):
    """In the order of the tables."""
    design = build_design(f"{response} ~ x + (z|g) + (1|h)", data, resolve(family))
    random = [("sd(g)", "sd"), ("sd(z|g)", "sd"), ("cor(Intercept,z|g)", "cor"), ("sd(h)", "sd")]
    assert [p[:2] for p in specs(design)] == [*first, ("x", "fixed"), *random, *last]
    beta, own = np.array([1.0, -2.0]), np.zeros(design.family.auxiliary)
    matrices = [np.array([[4.0, 0.5], [0.5, 1.0]]), np.array([[9.0]])]
    named = name_values(design, beta, matrices, own)
    assert list(named) == parameter_names(design)
    scaled = on_their_scales(design, beta, matrices, own)
    expected = [p.scale(named[p.name]) for p in specs(design)]
    np.testing.assert_allclose(scaled, expected, rtol=1e-12, atol=1e-12)
    assert scaled[len(first)] == -2.0
