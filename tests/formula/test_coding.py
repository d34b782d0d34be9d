"""Which category is the reference, and what becomes of categories that do not occur."""

from __future__ import annotations

import warnings
from pathlib import Path

from lmmbook.families import resolve
from lmmbook.formula import build_design

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow.parquet import write_table

ROWS = 60
ORDER, UNUSED = ["c", "a", "b"], ["z", "c", "a", "q", "b"]


@pytest.fixture(scope="module")
def data() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "y": rng.normal(size=ROWS),
            "x": rng.normal(size=ROWS),
            "g": np.repeat(np.arange(10), 6),
            "f": rng.permutation(np.resize(list("abc"), ROWS)),
        }
    )


def written(table: pa.Table, folder: Path) -> Path:
    write_table(table, folder / "data.parquet", row_group_size=7)
    return folder / "data.parquet"


def by_hand(data: pd.DataFrame, order: list) -> np.ndarray:
    """An intercept, and a column for each category but the first."""
    columns = [data["f"].astype(str) == str(label) for label in order[1:]]
    return np.column_stack([np.ones(len(data)), *columns])


def dictionary(data: pd.DataFrame, ordered: bool) -> pa.Table:
    """As another program than pandas writes it: the labels in the order of `ORDER`."""
    codes = pd.Categorical(data["f"], ORDER).codes
    labels = pa.DictionaryArray.from_arrays(codes, ORDER, ordered=ordered)
    plain = {name: pa.array(data[name]) for name in ("y", "x", "g")}
    return pa.table(plain | {"f": labels})


@pytest.mark.parametrize("ordered", [False, True])
def test_the_order_of_a_categorical_says_which_is_the_reference(data, tmp_path, ordered):
    frame = data.assign(f=pd.Categorical(data["f"], ORDER, ordered=ordered))
    table = pa.Table.from_pandas(frame)
    for given in (frame, table, written(table, tmp_path)):
        design = build_design("y ~ f + (f|g)", given)
        assert design.fixed_names == ("Intercept", "f[a]", "f[b]")
        np.testing.assert_array_equal(design.fixed, by_hand(data, ORDER))
        np.testing.assert_array_equal(design.factors[0].z, design.fixed)
        called = build_design("y ~ C(f) + (1|g)", given)
        np.testing.assert_array_equal(called.fixed, design.fixed)


def test_a_dictionary_has_an_order_only_if_it_says_so(data, tmp_path):
    """The order of labels in a file, or in a Categorical of polars, is that of their arrival."""
    for ordered, order in [(True, ORDER), (False, sorted(ORDER))]:
        table = dictionary(data, ordered)
        for given in (table, written(table, tmp_path)):
            design = build_design("y ~ f + (1|g)", given)
            np.testing.assert_array_equal(design.fixed, by_hand(data, order))
        kind = pd.ArrowDtype(table.schema.field("f").type)
        kept = data.assign(f=pd.Series(table["f"].combine_chunks(), dtype=kind))
        np.testing.assert_array_equal(build_design("y ~ f + (1|g)", kept).fixed, design.fixed)


def test_text_is_sorted(data, tmp_path):
    for given in (data, pa.Table.from_pandas(data), written(pa.Table.from_pandas(data), tmp_path)):
        design = build_design("y ~ f + (1|g)", given)
        np.testing.assert_array_equal(design.fixed, by_hand(data, sorted(ORDER)))


def test_categories_that_are_numbers_stay_categories_in_a_file(data, tmp_path):
    """pandas writes them as numbers, and that they were categories; not in which order."""
    ranks = data["f"].map({"a": 1, "b": 2, "c": 3}).to_numpy()
    frame = data.assign(f=pd.Categorical(ranks))
    path = written(pa.Table.from_pandas(frame), tmp_path)
    for given in (frame, path):
        assert build_design("y ~ f + (1|g)", given).fixed_names[1:] == ("f[2]", "f[3]")
    ordered = pa.Table.from_pandas(data.assign(f=pd.Categorical(ranks, ordered=True)))
    with pytest.warns(UserWarning, match="'f': its file does not say in which order"):
        build_design("y ~ f + (1|g)", written(ordered, tmp_path))


@pytest.mark.parametrize("formula", ["y ~ f + (1|g)", "y ~ C(f) + (1|g)", "y ~ x:f + (f|g)"])
@pytest.mark.parametrize("ordered", [False, True])
def test_categories_that_do_not_occur_are_left_out_with_a_warning(data, tmp_path, formula, ordered):
    used = build_design(formula, data.assign(f=pd.Categorical(data["f"], ORDER)))
    frame = data.assign(f=pd.Categorical(data["f"], UNUSED, ordered=ordered))
    table = pa.Table.from_pandas(frame)
    for given in (frame, table, written(table, tmp_path)):
        with pytest.warns(UserWarning, match=r"column 'f': .* do not occur, \['z', 'q'\]$"):
            design = build_design(formula, given)
        assert design.fixed_names == used.fixed_names
        np.testing.assert_array_equal(design.fixed, used.fixed)
        np.testing.assert_array_equal(design.factors[0].z, used.factors[0].z)


def test_levels_of_groups_that_do_not_occur_are_left_out_in_silence(data):
    """As after every split of a data frame: no parameter has their name."""
    for f in (pd.Categorical(data["f"], UNUSED), data["f"]):
        factor = build_design("y ~ x + (1|f)", data.assign(f=f)).factors[0]
        assert list(factor.labels) == ["a", "b", "c"]


def test_how_new_rows_order_their_categories_does_not_matter(data):
    design = build_design("y ~ C(f) + f:x + (f|g)", data.assign(f=pd.Categorical(data["f"], ORDER)))
    some = data[data["f"] != "a"][:5]
    rows = some.index.to_numpy()
    for f in (
        some["f"],
        pd.Categorical(some["f"], ["b", "c", "a"]),
        pd.Categorical(some["f"], UNUSED),
        pd.Categorical(some["f"], ["c", "b"], ordered=True),
    ):
        new = design.on(some.assign(f=f))  # without a warning
        np.testing.assert_array_equal(new.fixed, design.fixed[rows])
        np.testing.assert_array_equal(new.factors[0].z, design.factors[0].z[rows])
    with pytest.raises(ValueError, match=r"'f': expected categories seen in training .*\['z'\]"):
        design.on(some.assign(f=pd.Categorical(["z"] * 5, UNUSED)))


FORMULAS = ["y ~ f + (1|g)", "y ~ 0 + f + (1|g)", "y ~ x*f + (1|g)", "y ~ x + (f|g)"]


@pytest.mark.parametrize("formula", [*FORMULAS, "y ~ x + C(f) + (1|g)", "y ~ x + (C(f)|g)"])
@pytest.mark.parametrize("kind", [str, "category", pd.CategoricalDtype(ORDER, ordered=True)])
def test_one_category_is_refused_by_name(data, formula, kind):
    alone = data[data["f"] == "a"].astype({"f": kind})
    with pytest.raises(ValueError, match=r"f\)?': expected at least two .* only 'a'; leave it out"):
        build_design(formula, alone)


def test_one_number_as_a_category_is_refused_by_name(data):
    for formula in ("y ~ x + C(k) + (1|g)", "y ~ x + (C(k)|g)"):
        with pytest.raises(ValueError, match=r"'C\(k\)': expected at least two .* only 3;"):
            build_design(formula, data.assign(k=3))


@pytest.mark.parametrize("value", [3, 0.0, True])
def test_a_covariate_that_never_varies_is_refused_by_name(data, value):
    constant = data.assign(k=value)
    for formula in ("y ~ x + k + (1|g)", "y ~ x*k + (1|g)", "y ~ x + (k|g)"):
        with pytest.raises(ValueError, match=f"column 'k': .* vary, got {value} in every row"):
            build_design(formula, constant)
    build_design("y ~ x + offset(k) + (1|g)", constant)  # adds a known number


def test_as_many_categories_as_rows_are_no_covariate(data):
    with pytest.raises(ValueError, match=r"'f': expected fewer categories than rows, got 60 .*\|f"):
        build_design("y ~ f + (1|g)", data.assign(f=[f"person {i}" for i in range(ROWS)]))


# Responses


RATINGS = {
    "whole numbers": np.resize([1, 2, 4, 5], ROWS),
    "floats": np.resize([1.0, 2.0, 4.0, 5.0], ROWS),
    "objects": np.resize([1, 2, 4, 5], ROWS).astype(object),
    "ordered": pd.Categorical(np.resize([1, 2, 4, 5], ROWS), [1, 2, 3, 4, 5], ordered=True),
}


@pytest.mark.parametrize("kind", RATINGS)
def test_a_rating_that_nobody_gave_is_no_category(data, kind):
    """The likelihood is that of the ratings numbered 1 to 4."""
    cumulative = resolve("cumulative")
    with pytest.warns(UserWarning, match=r"no row has \[3\]; cumulative .* \[1, 2, 4, 5\]"):
        design = build_design("r ~ x + (1|g)", data.assign(r=RATINGS[kind]), cumulative)
    renumbered = data.assign(r=np.resize([1, 2, 3, 4], ROWS))
    wanted = build_design("r ~ x + (1|g)", renumbered, cumulative)
    np.testing.assert_array_equal(design.response, wanted.response)
    assert (design.family.anchor, design.family.auxiliary) == (wanted.family.anchor, 2)
    assert design.family.names == ["threshold(1|2)", "threshold(2|4)", "threshold(4|5)"]
    np.testing.assert_array_equal(design.codes(data.assign(r=4)), 2)
    for new in (3, pd.Categorical([3] * ROWS, [1, 2, 3])):
        with pytest.raises(ValueError, match=r"\[1, 2, 4, 5\], got \[3\]; .* no probability"):
            design.on(data.assign(r=new), response=True)


def test_a_rating_that_only_left_out_rows_have_is_no_category(data):
    ratings = data.assign(r=np.resize([1, 2, 3], ROWS))
    ratings["x"] = ratings["x"].where(ratings["r"] != 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        design = build_design("r ~ x + (1|g)", ratings, resolve("cumulative"), missing="drop")
    assert design.family.categories == (1, 3)
    assert [
        next(words for words in ("left out 20", "no row has [2]") if words in str(w.message))
        for w in caught
    ] == ["left out 20", "no row has [2]"]


@pytest.mark.parametrize("ordered", [False, True])
def test_an_unordered_category_that_nobody_chose_is_none(data, ordered):
    chosen = pd.Categorical(np.resize(["bus", "car"], ROWS), ["car", "bike", "bus"], ordered)
    with pytest.warns(UserWarning, match=r"no row has \['bike'\]; categorical is"):
        design = build_design("r ~ x + (1|g)", data.assign(r=chosen), resolve("categorical"))
    assert design.family.categories == ("car", "bus")
