"""Levels are told apart by the values in their columns, however these are stored or written."""

from __future__ import annotations

import datetime
import decimal
import warnings

from lmmbook.data.labels import grouped, match
from lmmbook.formula import build_design

import numpy as np
import pandas as pd
import pytest

ROWS = 48


@pytest.fixture
def data() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    h = np.arange(ROWS) % 4
    return pd.DataFrame({"y": rng.normal(size=ROWS), "g": np.arange(ROWS) % 3 + 1, "h": h})


def dates(values: pd.Series) -> pd.Series:
    return pd.Timestamp("2026-01-01") + pd.to_timedelta(values, unit="D")


SAME = {
    "1 and 1.0": (lambda g: g, lambda g: g * 1.0),
    "1.0 and 1": (lambda g: g * 1.0, lambda g: g),
    "widths": (lambda g: g.astype("int8"), lambda g: g.astype("uint64")),
    "nullable": (lambda g: g, lambda g: g.astype("Int64")),
    "objects": (lambda g: g, lambda g: g.astype(object)),
    "a Categorical of integers": (lambda g: g.astype("category"), lambda g: g),
    "integers, and then a Categorical": (lambda g: g, lambda g: g.astype("category")),
    "a Categorical of floats": (lambda g: (g * 1.0).astype("category"), lambda g: g),
    "bool and integers": (lambda g: g > 1, lambda g: (g > 1).astype(int)),
    "text as objects": (lambda g: g.astype(str), lambda g: g.astype(str).astype(object)),
    "text of NumPy": (
        lambda g: g.astype(str),
        lambda g: pd.Series([np.str_(x) for x in g], dtype=object),
    ),
    "text as a Categorical": (lambda g: g.astype(str), lambda g: g.astype(str).astype("category")),
    "spaces": (lambda g: "my " + g.astype(str), lambda g: "my " + g.astype(str)),
    "zeros of both signs": (lambda g: (g - 1) * 1.0, lambda g: (g - 1) * -1.0 * -1.0 - 0.0),
    "minus zero": (lambda g: (g - 1) * 1.0, lambda g: ((g - 1) * 1.0).replace(0.0, -0.0)),
    "bytes": (
        lambda g: g.astype(str).str.encode("ascii"),
        lambda g: g.astype(str).str.encode("ascii"),
    ),
    "dates": (dates, lambda g: dates(g).astype("datetime64[s]")),
    "dates as objects": (dates, lambda g: dates(g).astype(object)),
    "Decimal": (lambda g: g, lambda g: g.map(lambda x: decimal.Decimal(int(x)))),
    "large": (lambda g: g + 2**60, lambda g: (g + 2**60).astype("uint64")),
}


@pytest.mark.parametrize("formula", ["y ~ 1 + (1|g)", "y ~ 1 + (1|g/h)", "y ~ 1 + (1|h:g)"])
@pytest.mark.parametrize("name", SAME)
def test_one_value_is_one_level(data, name, formula):
    before, after = SAME[name]
    fitted = data.assign(g=before(data["g"]))
    design = build_design(formula, fitted)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        new = design.on(data.assign(g=after(data["g"]))[::-1])
    for one, other in zip(design.factors, new.factors, strict=True):
        np.testing.assert_array_equal(other.codes, one.codes[::-1])
        assert other.levels == one.levels


OTHER = {
    "numbers and text": (lambda g: g, lambda g: g.astype(str), "numbers", "text", "1 and 2"),
    "text and numbers": (lambda g: g.astype(str), lambda g: g, "text", "numbers", "'1' and '2'"),
    "text of floats": (
        lambda g: g * 1.0, lambda g: (g * 1.0).astype(str), "numbers", "text", "1.0",
    ),
    "dates and text": (dates, lambda g: dates(g).astype(str), "dates", "text", "Timestamp"),
    "text and bytes": (
        lambda g: g.astype(str), lambda g: g.astype(str).str.encode("ascii"), "text", "bytes", "1",
    ),
    "text in another case": (
        lambda g: "s" + g.astype(str), lambda g: "S" + g.astype(str), "text", "text", "'s1' and",
    ),
    "zeros before": (
        lambda g: g.astype(str), lambda g: "0" + g.astype(str), "text", "text", "'01' and '02'",
    ),
    "other numbers": (lambda g: g, lambda g: g + 100, "numbers", "numbers", "101 and 102"),
    "floats that are not whole": (lambda g: g, lambda g: g + 0.5, "numbers", "numbers", "1.5 and"),
    "large integers as floats": (
        lambda g: g * 2 + 2**53 + 1, lambda g: (g * 2 + 2**53 + 1).astype(float), "numbers",
        "numbers", "9007199254740995 and",
    ),
    "dates and days": (
        dates, lambda g: g.map(lambda x: datetime.timedelta(days=x)), "dates", "timedelta", "Time",
    ),
}  # fmt: skip


@pytest.mark.parametrize("formula", ["y ~ 1 + (1|g)", "y ~ 1 + (1|h:g)"])
@pytest.mark.parametrize("name", OTHER)
def test_levels_of_which_none_is_known_are_said_to_be(data, name, formula):
    before, after, kind, now, example = OTHER[name]
    design = build_design(formula, data.assign(g=before(data["g"])))
    with pytest.warns(UserWarning, match="of unknown levels come from the prior") as found:
        new = design.on(data.assign(g=after(data["g"])))
    assert len(found) == 1
    text = str(found[0].message)
    assert f"group {design.factors[0].name!r}: no level of the new rows is known" in text
    assert f"Column 'g' had {kind} at the fit, such as" in text
    assert f"and has {now} now, such as" in text
    assert example in text
    assert new.factors[0].levels > design.factors[0].levels
    assert new.factors[0].codes.min() == design.factors[0].levels


def test_a_question_about_somebody_new_is_no_mistake(data):
    design = build_design("y ~ 1 + (1|g/h) + (1|h)", data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        new = design.on(data.assign(g=-1))
        some = design.on(pd.DataFrame({"g": [1, 77, 78], "h": [1, 1, 0]}))
    assert [f.levels for f in new.factors] == [4, 16, 4]
    assert some.factors[0].codes.tolist() == [0, 3, 4]


def test_one_column_of_another_sort_is_said_though_the_other_is_known(data):
    design = build_design("y ~ 1 + (1|g:h)", data)
    with pytest.warns(UserWarning, match="Column 'h' had numbers .* and has text now"):
        design.on(data.assign(h=data["h"].astype(str)))


def test_levels_that_are_written_alike_are_two(data):
    """Both would read "p:q:u", and once the second was taken for the first."""
    known = data.assign(a=np.where(data["g"] > 1, "p:q", "z"), b="u")
    design = build_design("y ~ 1 + (1|a:b)", known)
    new = design.on(pd.DataFrame({"a": ["p", "p:q", "z"], "b": ["q:u", "u", "u"]})).factors[0]
    assert new.codes.tolist() == [2, 0, 1]
    assert new.labels.tolist() == ["p:q:u", "z:u", "p:q:u"]
    assert list(zip(*new.keys, strict=True))[2] == ("p", "q:u")


def test_levels_are_matched_as_sets_of_values_are():
    """Against Python's own tuples, on random values of mixed kinds."""
    rng = np.random.default_rng(3)
    pools = [[1, 2, 2**53 + 1, 1.5, True, "1", "a:b", "a"], [0, -0.0, 0.5, "b", "b:c", b"b", 2**60]]
    frames = []
    for size in (40, 30):
        columns = [[pool[i] for i in rng.integers(0, len(pool), size)] for pool in pools]
        frames.append(pd.DataFrame({"a": columns[0], "b": columns[1]}, dtype=object))
    tuples = [list(dict.fromkeys(frame.itertuples(index=False, name=None))) for frame in frames]
    keys = [
        tuple(pd.Index(values, dtype=object) for values in zip(*t, strict=True)) for t in tuples
    ]
    places = {level: place for place, level in enumerate(tuples[0])}
    wanted = [places.get(level, -1) for level in tuples[1]]
    assert match(*keys).tolist() == wanted
    assert -1 in wanted
    assert max(wanted) > 0


def test_labels_are_sorted_as_text(data):
    frame = pd.DataFrame({"a": [10, 9, 10], "b": ["x", "y", "z"]})
    codes, labels, _ = grouped(frame, ["a", "b"])
    assert labels.tolist() == ["10:x", "10:z", "9:y"]
    assert codes.tolist() == [0, 2, 1]
