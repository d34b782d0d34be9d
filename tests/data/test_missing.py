"""Rows with missing values are an error, or are left out: then all is as without them."""

from __future__ import annotations

import re
import warnings
from functools import partial
from pathlib import Path

import lmmbook as lmm
from lmmbook import _rows
from lmmbook.engine import fit
from lmmbook.families import resolve
from lmmbook.formula import build_design
from lmmbook.results.fit import Fit

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from conftest import criticism
from pyarrow.parquet import ParquetFile, write_table

ROWS = 60
FORMULA = "y ~ x + f + (1|g)"
COUNTS = {"y": 1, "f": 2, "x": 2, "g": 1}  # in 5 rows: one lacks both x and f
LEFT_OUT = re.escape(f"data: left out 5 of 60 rows, with missing values {COUNTS}")


@pytest.fixture(scope="module")
def gaps() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    data = pd.DataFrame(
        {
            "y": rng.normal(size=ROWS),
            "x": rng.normal(size=ROWS),
            "f": np.resize(np.array(list("abc"), object), ROWS),
            "g": pd.array(np.repeat(np.arange(10), 6), "Int64"),
            "other": pd.array([None] * ROWS, "Int64"),  # the formula does not need it
        }
    )
    data.loc[[1, 2], "x"], data.loc[[2, 35], "f"] = np.nan, None
    data.loc[17, "g"], data.loc[59, "y"] = pd.NA, np.nan
    return data


@pytest.fixture(scope="module")
def complete(gaps: pd.DataFrame) -> pd.DataFrame:
    return gaps.dropna(subset=["y", "x", "f", "g"]).astype({"g": int})


def written(data: pd.DataFrame, folder: Path) -> Path:
    write_table(pa.Table.from_pandas(data), folder / "data.parquet", row_group_size=7)
    return folder / "data.parquet"


WAYS = {
    "as it is": lambda d, _: d,
    "nullable": lambda d, _: d.convert_dtypes(),
    "pyarrow": lambda d, _: d.convert_dtypes(dtype_backend="pyarrow"),
    "categories": lambda d, _: d.astype({"f": "category", "g": "category"}),
    "objects": lambda d, _: d.astype(object),
    "an index": lambda d, _: d.set_axis(["same"] * ROWS),
    "arrays": lambda d, _: {
        "y": np.ma.masked_invalid(d["y"]),
        "x": d["x"].to_numpy(),
        "f": d["f"].to_numpy(object),
        "g": np.ma.masked_array(d["g"].fillna(0).to_numpy(int), d["g"].isna()),
    },
    "a table": lambda d, _: pa.Table.from_pandas(d),
    "a file": written,
}


@pytest.mark.parametrize("way", WAYS)
def test_dropping_is_as_if_the_rows_had_never_been(gaps, complete, tmp_path, monkeypatch, way):
    monkeypatch.setattr(_rows, "PIECE", 8)
    given, wanted = WAYS[way](gaps, tmp_path), build_design(FORMULA, complete)
    with pytest.raises(ValueError, match=re.escape(f"got {COUNTS}") + r".* missing='drop' leaves"):
        build_design(FORMULA, given)
    with pytest.warns(UserWarning, match=LEFT_OUT):
        design = build_design(FORMULA, given, missing="drop")
    with pytest.warns(UserWarning, match="data: left out 5 of 60 rows"):
        new = wanted.on(given, "drop", response=True)
    for found in (design, new):
        for name in ("response", "fixed"):
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
        np.testing.assert_array_equal(found.factors[0].codes, wanted.factors[0].codes)
        assert list(found.factors[0].labels) == list(range(10))
    assert design.fixed_names == wanted.fixed_names


def test_a_file_is_read_once(gaps, tmp_path, monkeypatch):
    read, own = [], ParquetFile.iter_batches
    monkeypatch.setattr(
        ParquetFile, "iter_batches", lambda *a, **k: read.append(k) or own(*a, **k)
    )  # fmt: skip
    with pytest.warns(UserWarning, match=LEFT_OUT):
        build_design(FORMULA, written(gaps, tmp_path), missing="drop")
    assert len(read) == 1


def test_new_rows_need_what_is_asked_of_them(gaps, complete):
    """No response to be predicted; and where it is scored, not more rows than have one."""
    design = build_design(FORMULA, complete)
    with pytest.warns(UserWarning, match="left out 4 of 60 rows"):
        assert design.on(gaps, "drop").rows == 56
    with pytest.warns(UserWarning, match="left out 5 of 60 rows"):
        assert design.on(gaps, "drop", response=True).rows == 55


def test_data_without_gaps_are_taken_as_they_are(complete):
    y = complete["y"].to_numpy()
    data = {name: complete[name].to_numpy() for name in ("x", "f", "g")} | {"y": y}
    assert np.shares_memory(build_design(FORMULA, data, missing="drop").response, y)


def test_what_cannot_be_dropped(gaps, complete, tmp_path):
    for spoilt in (
        gaps.assign(x=np.nan),
        gaps.assign(x=np.where(np.arange(ROWS) % 2, gaps["x"], np.nan), f=[None, "a"] * 30, y=None),
    ):
        for data in (spoilt, written(spoilt, tmp_path)):
            with pytest.raises(ValueError, match="expected a row without missing values, got none"):
                build_design(FORMULA, data, missing="drop")
    for choice in ("skip", None, True):
        with pytest.raises(
            ValueError, match=f"missing: expected 'raise' or 'drop', got {choice!r}"
        ):
            build_design(FORMULA, complete, missing=choice)
    infinite = complete.assign(x=complete["x"].where(complete["g"] > 0, np.inf))
    with pytest.raises(
        ValueError, match="'x': expected finite numbers, got infinite values in 4 of"
    ):
        build_design(FORMULA, infinite, missing="drop")


def test_the_exact_answers_are_those_of_the_complete_rows(gaps, complete):
    parameters = {"Intercept": 0.1, "x": 0.2, "f[b]": 0.3, "f[c]": 0.4, "sd(g)": 0.5}
    parameters |= {"sd(residual)": 0.9}
    for function, rest in [
        (lmm.exact.log_likelihood, [parameters]),
        (lambda *a, **k: lmm.exact.effects(*a, **k)["g"].to_numpy(), [parameters]),
        (lambda *a, **k: lmm.exact.fit(*a, **k).parameters["estimate"].to_numpy(), []),
    ]:
        with pytest.warns(UserWarning, match=LEFT_OUT) as caught:
            found = function(FORMULA, gaps, *rest, missing="drop")
        np.testing.assert_array_equal(found, function(FORMULA, complete, *rest))
        assert caught[0].filename == __file__  # as from the line that asked for it
        with pytest.raises(ValueError, match="no missing values"):
            function(FORMULA, gaps, *rest)


def test_a_fit_takes_the_complete_rows(gaps, complete, monkeypatch):
    class Reached(Exception):
        """With the design that the engine would have had."""

    def engine(design, *_: object) -> None:
        raise Reached(design)

    monkeypatch.setattr(fit, "Engine", engine)
    with pytest.raises(ValueError, match="no missing values"):
        lmm.fit(FORMULA, gaps, seed=0)
    with pytest.warns(UserWarning, match=LEFT_OUT), pytest.raises(Reached) as reached:
        lmm.fit(FORMULA, gaps, seed=0, missing="drop")
    assert reached.value.args[0].rows == len(complete)


def test_predictions_are_those_of_the_complete_rows(gaps, complete):
    design = build_design(FORMULA, complete)
    names = ["Intercept", "x", "f[b]", "f[c]", "sd(g)", "sd(residual)"]
    estimates = pd.DataFrame({"estimate": np.arange(1, 7) / 5}, names)
    effects = {"g": np.random.default_rng(0).normal(size=(20, 10))}
    none = pd.DataFrame()
    fit = Fit(estimates, none, True, 0.0, 1.0, 100.0, {}, none, effects, design, 2)
    methods = {
        "predict": {}, "probabilities": {"cuts": [0.0]}, "draws": {"n": 3, "seed": 1},
        "log_score": {}, "pit": {"seed": 1},
    }  # fmt: skip
    for name, rest in methods.items():
        needed = ["x", "f", "g"] + ["y"] * (name in ("log_score", "pit"))
        rows = gaps.dropna(subset=needed)
        own = partial(getattr(criticism, name), design, estimates["estimate"], effects)
        for function in (getattr(fit, name), own):
            with pytest.warns(UserWarning, match=f"left out {ROWS - len(rows)} of 60 rows"):
                found = function(gaps, missing="drop", **rest)
            np.testing.assert_array_equal(found, function(rows, **rest))
            with pytest.raises(ValueError, match="no missing values"):
                function(gaps, **rest)


NO_NUMBER = {
    "y ~ np.log(x) + (1|g)": r"'np\.log\(x\)': .* NaN",
    "y ~ f + (np.log(x)|g)": r"'np\.log\(x\)': .* NaN",
    "y ~ f:np.sqrt(x) + (1|g)": r"np\.sqrt\(x\).*': .* NaN",
    "y ~ f + offset(np.log(x)) + (1|g)": r"'offset\(np\.log\(x\)\)': .* NaN",
    "y ~ f + I(1 / (x - x)) + (1|g)": r"'I\(1 / .*': .* infinite values",
    "np.log(y) ~ f + (1|g)": r"'response np\.log\(y\)': .* NaN",
}


@pytest.mark.parametrize("formula", NO_NUMBER)
def test_a_term_that_has_no_value_is_named(complete, formula):
    """The data are not missing, nor infinite: the function has no value there. And no warning of
    NumPy's comes before that."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=NO_NUMBER[formula] + " .*change the formula"):
            build_design(formula, complete)
        positive = complete.assign(x=np.exp(complete["x"]), y=np.exp(complete["y"]))
        if formula.startswith("y ~ ") and "1 /" not in formula:
            design = build_design(formula, positive)
            with pytest.raises(ValueError, match=NO_NUMBER[formula]):
                design.on(complete)


def test_missing_categories_of_a_response_are_not_a_category(gaps):
    answers = pd.Categorical(np.resize(["no", "yes", None], ROWS), ["no", "yes"], ordered=True)
    data = gaps.assign(y=answers, x=0.1 * np.arange(ROWS), f="a", g=np.arange(ROWS) % 7)
    for family in ("cumulative", "categorical"):
        with pytest.warns(UserWarning, match=re.escape("left out 20 of 60 rows, with missing")):
            design = build_design("y ~ x + (1|g)", data, resolve(family), missing="drop")
        assert design.family.categories == ("no", "yes")
        np.testing.assert_array_equal(np.bincount(design.response.astype(int)), [20, 20])


def test_a_label_that_is_null_is_missing(gaps, complete):
    """A dictionary of Arrow may have a null, or a NaN, among its labels."""
    plain = complete[["y", "x", "g"]]
    codes = np.resize([0, 1, 2], len(plain))
    for labels in (["a", None, "b"], [0.5, float("nan"), 1.5]):
        f = pa.DictionaryArray.from_arrays(codes, labels)
        table = pa.Table.from_pandas(plain, preserve_index=False).append_column("f", f)
        with pytest.warns(UserWarning, match=rf"missing values {{'f': {(codes == 1).sum()}}}"):
            design = build_design("y ~ x + f + (1|g)", table, missing="drop")
        assert design.fixed_names[2:] == (f"f[{labels[2]}]",)
        columns = {name: design.fixed[:, i] for i, name in [(1, "x"), (2, "f")]}
        np.testing.assert_array_equal(columns["x"], plain["x"][codes != 1])
        np.testing.assert_array_equal(columns["f"], codes[codes != 1] == 2)


def test_a_column_of_nothing_is_all_missing(gaps):
    table = pa.Table.from_pandas(gaps.assign(x=None))
    assert str(table.schema.field("x").type) == "null"
    for data in (table, gaps.assign(x=None)):
        with pytest.raises(ValueError, match=r"no missing values, got .*'x': 60"):
            build_design(FORMULA, data)


def test_a_check_of_finite_numbers_names_the_first(gaps):
    columns = np.array([[1.0, np.nan], [2.0, np.inf]])
    with pytest.raises(
        ValueError, match="'b': expected finite numbers, got infinite values in 1 of"
    ):
        _rows.check_finite(columns, ["a", "b"])
    _rows.check_finite(columns[:, :1], ["a"])
