"""A formula and a data frame become the right arrays, or one clear error before any long work."""

from __future__ import annotations

import dataclasses

import lmmbook
from lmmbook.engine import fit
from lmmbook.formula import build_design

import numpy as np
import pandas as pd
import pytest

ROWS = 60


@pytest.fixture(scope="module")
def data() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "y": rng.normal(size=ROWS),
            "x": rng.normal(size=ROWS),
            "z": rng.normal(size=ROWS),
            "g": rng.permutation(np.resize([10, 20, 7], ROWS)),
            "h": rng.permutation(np.resize(list("dbca"), ROWS)),
            "c": rng.permutation(np.resize(["u", "v", "w"], ROWS)),
            "k": rng.permutation(np.resize([1, 2, 3], ROWS)),
        }
    )


def dummies(column: pd.Series) -> np.ndarray:
    return pd.get_dummies(column).to_numpy(float)


# What is understood


@pytest.mark.parametrize("formula", ["y ~ 1 + (1|g)", "y ~ (1|g)", "y~(1|g)", "y ~ (1|g) + 1"])
def test_an_intercept_is_there_unless_taken_away(data, formula):
    design = build_design(formula, data)
    assert design.formula == formula
    assert design.fixed_names == ("Intercept",)
    np.testing.assert_array_equal(design.fixed, np.ones((ROWS, 1)))
    np.testing.assert_array_equal(design.response, data["y"])
    assert design.rows == ROWS


@pytest.mark.parametrize("formula", ["y ~ 0 + x + (1|g)", "y ~ x - 1 + (1|g)"])
def test_an_intercept_can_be_taken_away(data, formula):
    design = build_design(formula, data)
    assert design.fixed_names == ("x",)
    np.testing.assert_array_equal(design.fixed, data[["x"]])


def test_categories_are_coded_against_the_first(data):
    design = build_design("y ~ c + (1|g)", data)
    assert design.fixed_names == ("Intercept", "c[v]", "c[w]")
    np.testing.assert_array_equal(design.fixed[:, 1:], dummies(data["c"])[:, 1:])
    as_numbers = build_design("y ~ C(k) + (1|g)", data)
    np.testing.assert_array_equal(as_numbers.fixed[:, 1:], dummies(data["k"])[:, 1:])


def test_without_an_intercept_every_category_has_a_column(data):
    design = build_design("y ~ 0 + c + (1|g)", data)
    assert design.fixed_names == ("c[u]", "c[v]", "c[w]")
    np.testing.assert_array_equal(design.fixed, dummies(data["c"]))


def test_interactions_of_fixed_effects_are_products(data):
    design = build_design("y ~ x*c + x:z + (1|g)", data)
    columns = dict(zip(design.fixed_names, design.fixed.T, strict=True))
    assert set(columns) == {"Intercept", "x", "c[v]", "c[w]", "x:c[v]", "x:c[w]", "x:z"}
    np.testing.assert_allclose(columns["x:c[w]"], data["x"] * (data["c"] == "w"))
    np.testing.assert_allclose(columns["x:z"], data["x"] * data["z"])


@pytest.mark.parametrize(
    ("term", "truth"),
    [
        ("I(x ** 2)", lambda x: x**2),
        ("np.exp(x)", np.exp),
        ("scale(x)", lambda x: (x - x.mean()) / x.std(ddof=0)),
    ],
)
def test_functions_of_a_column(data, term, truth):
    design = build_design(f"y ~ {term} + (1|g)", data)
    np.testing.assert_allclose(design.fixed[:, 1], truth(data["x"]))


def test_a_transform_of_new_rows_is_that_of_the_training_rows(data):
    """Centred at the mean of the training data, and not at that of the new rows."""
    design = build_design("y ~ scale(x) + poly(z, 2) + (1|g)", data)
    some = [5, 3, 9]
    np.testing.assert_allclose(design.on(data.iloc[some]).fixed, design.fixed[some])


def test_codes_lead_back_to_the_labels_of_each_row(data):
    design = build_design("y ~ 1 + (1|g) + (1|h)", data)
    assert [f.name for f in design.factors] == ["g", "h"]  # in the order of the formula
    assert [f.columns for f in design.factors] == [("g",), ("h",)]
    for factor in design.factors:
        assert factor.codes.dtype == np.int32
        assert factor.levels == data[factor.name].nunique()
        np.testing.assert_array_equal(factor.labels[factor.codes], data[factor.name])


@pytest.mark.parametrize("dtype", ["category", "string", object])
def test_how_labels_are_stored_does_not_matter(data, dtype):
    plain = build_design("y ~ 1 + (1|h)", data).factors[0]
    other = build_design("y ~ 1 + (1|h)", data.astype({"h": dtype})).factors[0]
    np.testing.assert_array_equal(other.codes, plain.codes)
    assert list(other.labels) == list(plain.labels)


def test_categories_that_do_not_occur_are_no_levels(data):
    h = pd.Categorical(data["h"], categories=["never", *"abcd"])
    assert build_design("y ~ 1 + (1|h)", data.assign(h=h)).factors[0].levels == 4


def test_an_interaction_has_a_level_for_each_pair_that_occurs(data):
    some = data[~((data["g"] == 7) & (data["h"] == "a"))]
    (factor,) = build_design("y ~ 1 + (1|g:h)", some).factors
    assert factor.name == "g:h"
    assert factor.levels == len(some[["g", "h"]].drop_duplicates()) == 11
    truth = some["g"].astype(str) + ":" + some["h"]
    np.testing.assert_array_equal(factor.labels[factor.codes], truth)


@pytest.mark.parametrize(
    ("term", "names"),
    [
        ("(1|g/h)", ["g", "g:h"]),
        ("(1|(g/h))", ["g", "g:h"]),
        ("(1|g/h/k)", ["g", "g:h", "g:h:k"]),
        ("(1|g:h:k)", ["g:h:k"]),
        ("(1|`g`)", ["g"]),
    ],
)
def test_nested_factors(data, term, names):
    assert [f.name for f in build_design(f"y ~ 1 + {term}", data).factors] == names


def test_a_slash_is_short_for_two_terms(data):
    short = build_design("y ~ 1 + (1|g/h)", data)
    long = build_design("y ~ 1 + (1|g) + (1|g:h)", data)
    for one, two in zip(short.factors, long.factors, strict=True):
        np.testing.assert_array_equal(one.codes, two.codes)


def test_the_index_of_the_frame_does_not_matter(data):
    other = build_design("y ~ x + c + (1|g)", data.set_axis(["same"] * ROWS))
    np.testing.assert_array_equal(other.fixed, build_design("y ~ x + c + (1|g)", data).fixed)


def test_the_data_stay_as_they_are(data):
    before = data.copy(deep=True)
    build_design("y ~ scale(x)*c + (1|g/h)", data).on(data)
    pd.testing.assert_frame_equal(data, before)


BARS = {
    "(1|g)": [("g", ("Intercept",), ((0,),))],
    "(x|g)": [("g", ("Intercept", "x"), ((0, 1),))],
    "(1 + x|g)": [("g", ("Intercept", "x"), ((0, 1),))],
    "(0 + x|g)": [("g", ("x",), ((0,),))],
    "(x||g)": [("g", ("Intercept", "x"), ((0,), (1,)))],
    "(1|g) + (0 + x|g)": [("g", ("Intercept", "x"), ((0,), (1,)))],
    "(1 + x|h/k)": [
        ("h", ("Intercept", "x"), ((0, 1),)),
        ("h:k", ("Intercept", "x"), ((0, 1),)),
    ],
    "(c|h)": [("h", ("Intercept", "c[v]", "c[w]"), ((0, 1, 2),))],
    "(0 + c|h)": [("h", ("c[u]", "c[v]", "c[w]"), ((0, 1, 2),))],
    "(x*z|g)": [("g", ("Intercept", "x", "z", "x:z"), ((0, 1, 2, 3),))],
}


@pytest.mark.parametrize("term", BARS)
def test_what_varies_between_groups(data, term):
    factors = build_design(f"y ~ 1 + {term}", data).factors
    assert [(f.name, f.effects, f.blocks) for f in factors] == BARS[term]


def test_the_columns_that_multiply_effects(data):
    [factor] = build_design("y ~ 1 + (x + c|h)", data).factors
    wanted = np.column_stack([np.ones(ROWS), data["x"], dummies(data["c"])[:, 1:]])
    np.testing.assert_array_equal(factor.z, wanted)
    assert not factor.intercept_only


def test_new_rows_have_the_slopes_of_their_own_covariates(data):
    design = build_design("y ~ 1 + (scale(x) + c|h)", data)
    again = design.on(data.iloc[:7].drop(columns="y"))
    np.testing.assert_allclose(again.factors[0].z, design.factors[0].z[:7])
    with pytest.raises(ValueError, match="expected categories seen in training"):
        design.on(data.assign(c="new"))


# What is refused: by `build_design`, and by `fit` before anything is compiled.

REFUSED = {
    "unknown fixed effect": ("y ~ nope + (1|g)", {}, r"expected columns \['nope'\]"),
    "unknown group": ("y ~ 1 + (1|nope)", {}, r"expected columns \['nope'\]"),
    "unknown response": ("nope ~ 1 + (1|g)", {}, r"expected columns \['nope'\]"),
    "missing response": ("y ~ 1 + (1|g)", {"y": np.nan}, r"no missing values, got {'y': 1}"),
    "missing fixed": ("y ~ x + (1|g)", {"x": np.nan}, r"no missing values, got {'x': 1}"),
    "missing group": ("y ~ 1 + (1|h)", {"h": None}, r"no missing values, got {'h': 1}"),
    "infinite response": ("y ~ 1 + (1|g)", {"y": np.inf}, "expected finite numbers"),
    "infinite fixed": ("y ~ x + (1|g)", {"x": -np.inf}, "expected finite numbers"),
    "categories as response": ("c ~ 1 + (1|g)", {}, "response: expected one numeric column"),
    "two bars": ("y ~ x + (1|g|h)", {}, "expected one bar"),
    "no effect": ("y ~ x + (0|g)", {}, "expected at least one effect"),
    "unknown slope": ("y ~ 1 + (nope|g)", {}, r"expected columns \['nope'\]"),
    "missing slope": ("y ~ 1 + (x|g)", {"x": np.nan}, r"no missing values, got {'x': 1}"),
    "infinite slope": ("y ~ 1 + (x|g)", {"x": np.inf}, "expected finite numbers"),
    "effect twice": ("y ~ 1 + (1|g) + (x|g)", {}, r"'g': expected each effect once, got \['Inter"),
    "dependent slopes": ("y ~ 1 + (x + I(2 * x)|g)", {}, "'g': expected linearly independent"),
    "many effects": ("y ~ 1 + (x*z*c|h:g)", {}, "expected fewer random effects than rows"),
    "duplicate": ("y ~ 1 + (1|g) + (1|g)", {}, "'g': expected each effect once"),
    "duplicate in a slash": ("y ~ 1 + (1|g/h) + (1|g:h)", {}, "'g:h': expected each effect once"),
    "dependent": ("y ~ x + I(2 * x) + (1|g)", {}, "fixed effects: expected linearly independent"),
    "constant but for rounding": (
        "y ~ I(x * 0 + 0.1 + 0.2 * (x + 9) / (x + 9)) + (1|g)",
        {},
        "independ",
    ),
    "far from zero": ("y ~ 1 + (I(x + 10000)||g)", {}, "centre covariates that lie far from zero"),
    "groups crossed by *": ("y ~ 1 + (1|g*h)", {}, "form g, a:b or a/b"),
    "function of a group": ("y ~ 1 + (1|np.exp(k))", {}, "form g, a:b or a/b"),
    "no group": ("y ~ x", {}, r"expected at least one \(1\|group\)"),
    "no parentheses": ("y ~ x + 1|g", {}, r"expected at least one \(1\|group\)"),
    "group times": ("y ~ x * (1|g)", {}, r"expected each \(1\|group\) to be added"),
    "group taken away": ("y ~ x + (1|g) - (1|h)", {}, r"expected each \(1\|group\) to be added"),
    "duplicate, the other way round": ("y ~ 1 + (1|g:h) + (1|h:g)", {}, "'g:h': expected each"),
    "offset in a group": ("y ~ x + (offset(x)|g)", {}, "an offset is fixed"),
    "only an offset": ("y ~ 0 + offset(x) + (1|g)", {}, "expected at least one fixed effect"),
    "unknown function": ("y ~ nolog(x) + (1|g)", {}, "expected functions that are known"),
    "no fixed effect": ("y ~ 0 + (1|g)", {}, "expected at least one fixed effect"),
    "no response": ("x + (1|g)", {}, "expected 'response ~ terms'"),
    "only a group": ("(1|g)", {}, "expected 'response ~ terms'"),
    "nothing before the tilde": ("~ x + (1|g)", {}, "cannot be read"),
    "nothing after the tilde": ("y ~", {}, "cannot be read"),
    "open parenthesis": ("y ~ 1 + (1|g", {}, "cannot be read"),
    "triple bar": ("y ~ x + (1|||g)", {}, "cannot be read"),
    "foreign character": ("y ~ x @ (1|g)", {}, "cannot be read"),
    "empty": ("", {}, "cannot be read"),
}


def test_an_intercept_can_be_taken_away_after_a_group(data):
    assert build_design("y ~ x + (1|g) - 1", data).fixed_names == ("x",)


def test_labels_that_run_together_are_refused():
    """Both "x:y" with "z", and "x" with "y:z" would read "x:y:z"."""
    data = pd.DataFrame(
        {"a": ["x:y", "x", "b", "b"] * 2, "b": ["z", "y:z", "z", "z"] * 2, "y": range(8)}
    )
    with pytest.raises(ValueError, match="expected labels that stay apart"):
        build_design("y ~ 1 + (1|a:b)", data)


def test_one_grouping_under_two_names_is_refused(data):
    twice = data.assign(renamed=data["g"].map("level {}".format))
    with pytest.raises(ValueError, match="'g' and 'renamed': expected different groupings"):
        build_design("y ~ 1 + (1|g) + (1|renamed)", twice)


def test_new_data_that_are_infinite_are_refused(data):
    design = build_design("y ~ x + (1|g)", data)
    with pytest.raises(ValueError, match="expected finite numbers"):
        design.on(data.assign(x=np.inf))


@pytest.fixture
def nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(*_: object, **__: object) -> None:
        raise AssertionError("the engine was built before the input was checked")

    monkeypatch.setattr(fit, "Engine", compiled)


def both(formula, data, error, message):
    """The same complaint from the design, and from the fit."""
    with pytest.raises(error, match=message):
        build_design(formula, data)
    with pytest.raises(error, match=message):
        lmmbook.fit(formula, data, seed=0)


@pytest.mark.usefixtures("nothing_is_compiled")
@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_before_any_work(data, name):
    formula, first_row, message = REFUSED[name]
    spoilt = data.copy()
    for column, value in first_row.items():
        spoilt.loc[0, column] = value
    both(formula, spoilt, ValueError, message)


@pytest.mark.usefixtures("nothing_is_compiled")
def test_a_response_that_never_varies(data):
    both("y ~ 1 + (1|g)", data.assign(y=3), ValueError, "expected values that vary, got 3 in every")


@pytest.mark.usefixtures("nothing_is_compiled")
def test_frames_that_are_none_or_empty(data):
    both("y ~ 1 + (1|g)", data.to_dict("list"), TypeError, "expected a pandas DataFrame, got dict")
    both("y ~ 1 + (1|g)", data.iloc[:0], ValueError, "expected at least one row")
    both(3, data, TypeError, "formula: expected a string, got int")


@pytest.mark.usefixtures("nothing_is_compiled")
def test_factors_that_cannot_be_told_from_the_rest(data):
    constant = data.assign(g="all")
    both("y ~ 1 + (1|g)", constant, ValueError, "group 'g': expected at least two levels, got 1")
    single = data.assign(g=np.arange(ROWS))
    both("y ~ 1 + (1|g)", single, ValueError, "expected fewer random effects than rows, got 60")
    both("y ~ 1 + (1|h:g)", single, ValueError, "group 'h:g': expected fewer random effects")
    named = data.rename(columns={"g": "residual"})
    both("y ~ 1 + (1|residual)", named, ValueError, "'residual' is not a legal group name")


@pytest.mark.usefixtures("nothing_is_compiled")
def test_a_constant_column_beside_an_intercept_is_refused(data):
    constant = data.assign(x=3.0)
    message = "column 'x': expected values that vary, got 3.0 in every row"
    both("y ~ x + (1|g)", constant, ValueError, message)
    both("y ~ z + (x|g)", constant, ValueError, message)
    build_design("y ~ 0 + x + (1|g)", constant)  # in the intercept's place
    build_design("y ~ z + (0 + x|g)", constant)


@pytest.mark.usefixtures("nothing_is_compiled")
def test_good_input_reaches_the_engine(data):
    """So that the tests above prove what they say."""
    with pytest.raises(AssertionError, match="the engine was built"):
        lmmbook.fit("y ~ x + (1|g)", data, seed=0)


# New rows


def test_the_same_rows_give_the_same_design(data):
    design = build_design("y ~ x*c + (1|g) + (1|g:h)", data)
    again = design.on(data.drop(columns="y"))  # the response may be missing
    np.testing.assert_array_equal(again.fixed, design.fixed)
    for one, two in zip(again.factors, design.factors, strict=True):
        np.testing.assert_array_equal(one.codes, two.codes)
        assert one.labels.equals(two.labels)


def test_unseen_levels_are_appended(data):
    design = build_design("y ~ 1 + (1|g) + (1|g:h)", data)
    new = pd.DataFrame({"g": [99, 10, 5, 99], "h": ["a", "new", "a", "a"]})
    with pytest.warns(UserWarning, match="group 'g:h': no level of the new rows is known"):
        again = design.on(new)
    for before, after in zip(design.factors, again.factors, strict=True):
        assert list(after.labels[: before.levels]) == list(before.labels)
        rows = new["g"] if before.name == "g" else new["g"].astype(str) + ":" + new["h"]
        assert list(after.labels[after.codes]) == list(rows)
        assert set(after.labels[before.levels :]) == set(rows) - set(before.labels)
        assert after.codes.dtype == np.int32
    assert [f.levels for f in design.factors] == [3, 12]  # the design itself is as it was


def test_an_unseen_level_of_a_categorical_is_appended(data):
    design = build_design("y ~ 1 + (1|h)", data.astype({"h": "category"}))
    (factor,) = design.on(pd.DataFrame({"h": pd.Categorical(["zz", "b"])})).factors
    assert list(factor.labels[factor.codes]) == ["zz", "b"]
    assert factor.codes.tolist() == [4, 1]


@pytest.mark.parametrize("formula", ["y ~ c + (1|g)", "y ~ x:c + (1|g)", "y ~ 0 + c + (1|g)"])
def test_an_unseen_category_of_a_fixed_effect_raises(data, formula):
    design = build_design(formula, data)
    with pytest.raises(ValueError, match=r"column 'c': expected categories .* got also \['new'\]"):
        design.on(data.assign(c=["new"] * 2 + ["u"] * (ROWS - 2)))


def test_an_unseen_category_of_a_number_raises(data):
    with pytest.raises(ValueError, match="not present in the original"):
        build_design("y ~ C(k) + (1|g)", data).on(data.assign(k=9))


def test_new_rows_with_only_some_categories_keep_their_columns(data):
    design = build_design("y ~ c + (1|g)", data)
    some = data[data["c"] == "w"]
    np.testing.assert_array_equal(design.on(some).fixed, [[1, 0, 1]] * len(some))


def test_new_rows_are_checked(data):
    design = build_design("y ~ x + (1|g) + (1|g:h)", data)
    with pytest.raises(TypeError, match="expected a pandas DataFrame"):
        design.on([1, 2])
    with pytest.raises(ValueError, match="expected at least one row"):
        design.on(data.iloc[:0])
    for column in ("x", "g", "h"):
        with pytest.raises(ValueError, match=f"expected columns .*{column}"):
            design.on(data.drop(columns=column))
        spoilt = data.astype({column: object})
        spoilt.loc[3, column] = None
        with pytest.raises(ValueError, match=f"no missing values, got {{'{column}': 1}}"):
            design.on(spoilt)


def test_a_design_cannot_be_changed(data):
    design = build_design("y ~ 1 + (1|g)", data)
    with pytest.raises(dataclasses.FrozenInstanceError):
        design.formula = "y ~ 2"
