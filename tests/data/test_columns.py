"""A column of any kind gives the design that the same values give as plain NumPy, or is refused.

Every kind is tried as a covariate, a group and a response, at the fit and for new rows.
"""

from __future__ import annotations

import datetime
import fractions
import uuid
from decimal import Decimal
from pathlib import Path

from lmmbook.data import columns
from lmmbook.families import resolve
from lmmbook.formula import build_design

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pyarrow.parquet import write_table

ROWS = 48
WHOLE = np.resize([3, 1, 2, 4], ROWS)
HALVES, YES = WHOLE / 2, WHOLE > 2
TEXT = np.array([f"t{i}" for i in WHOLE], object)
RNG = np.random.default_rng(0)
BASE = pd.DataFrame(
    {"y": RNG.normal(size=ROWS), "x": RNG.normal(size=ROWS), "g": np.repeat(np.arange(8), 6)}
)


def each(function) -> np.ndarray:
    """An object a row, of 3, 1, 2, 4, 3, ..."""
    values = np.empty(ROWS, object)
    for row, value in enumerate(WHOLE.tolist()):
        values[row] = function(value)
    return values


def arrow(values, kind) -> pd.Series:
    return pd.Series(pa.array(values, kind), dtype=pd.ArrowDtype(kind))


# A kind, and the same as NumPy has it.
SAME = {
    "int8": (WHOLE.astype("int8"), WHOLE),
    "uint64": (WHOLE.astype("uint64"), WHOLE),
    "float16": (HALVES.astype("float16"), HALVES),
    "longdouble": (HALVES.astype("longdouble"), HALVES),
    "Int16": (pd.array(WHOLE, "Int16"), WHOLE),
    "Float32": (pd.array(HALVES, "Float32"), HALVES),
    "boolean": (pd.array(YES, "boolean"), YES),
    "int of pyarrow": (arrow(WHOLE, pa.uint8()), WHOLE),
    "float of pyarrow": (arrow(HALVES, pa.float64()), HALVES),
    "half of pyarrow": (arrow(HALVES.astype("float16"), pa.float16()), HALVES),
    "bool of pyarrow": (arrow(YES, pa.bool_()), YES),
    "decimal of pyarrow": (arrow(each(lambda i: Decimal(i) / 2), pa.decimal128(5, 2)), HALVES),
    "sparse": (pd.arrays.SparseArray(HALVES), HALVES),
    "sparse integers": (pd.arrays.SparseArray(WHOLE), WHOLE),
    "sparse bool": (pd.arrays.SparseArray(YES), YES),
    "integers as objects": (each(int), WHOLE),
    "NumPy's integers as objects": (each(np.int8), WHOLE),
    "floats as objects": (each(lambda i: i / 2), HALVES),
    "integers and floats": (each(lambda i: i / 2 if i % 2 else i // 2), HALVES),
    "bools as objects": (each(lambda i: i > 2), YES),
    "NumPy's bools as objects": (each(lambda i: np.bool_(i > 2)), YES),
    "Decimal": (each(lambda i: Decimal(i) / 2), HALVES),
    "Decimal and float": (each(lambda i: i / 2 if i % 2 else Decimal(i) / 2), HALVES),
    "Fraction": (each(lambda i: fractions.Fraction(i, 2)), HALVES),
    "string": (pd.array(TEXT, "string"), TEXT),
    "string of Python": (pd.array(TEXT, "string[python]"), TEXT),
    "string of pyarrow": (arrow(TEXT, pa.string()), TEXT),
    "large string of pyarrow": (arrow(TEXT, pa.large_string()), TEXT),
    "string view of pyarrow": (arrow(TEXT, pa.string_view()), TEXT),
    "dictionary of pyarrow": (
        arrow(pa.array(TEXT).dictionary_encode(), pa.dictionary(pa.int32(), pa.string())),
        TEXT,
    ),
    "text of NumPy": (TEXT.astype(str), TEXT),
    "sparse text": (pd.arrays.SparseArray(TEXT), TEXT),
}
LABELS_ONLY = {  # Decimal ids, as databases have them, are whole numbers
    "whole Decimal": (each(Decimal), WHOLE),
    "whole decimal of pyarrow": (arrow(each(Decimal), pa.decimal128(38, 0)), WHOLE),
    "categories of Decimal": (pd.Categorical(each(Decimal)), WHOLE),
}
USES = {
    "y ~ x + c + (1|g)": "gaussian",
    "y ~ x + C(c) + (c|g)": "gaussian",
    "y ~ x + (1|c) + (1|g:c)": "gaussian",
    "c ~ x + (1|g)": "categorical",
}


@pytest.mark.parametrize("name", SAME | LABELS_ONLY)
def test_how_a_column_is_kept_does_not_matter(name):
    kept, plain = (SAME | LABELS_ONLY)[name]
    for formula, family in list(USES.items())[2 * (name in LABELS_ONLY) :]:
        wanted = build_design(formula, BASE.assign(c=plain), resolve(family))
        found = build_design(formula, BASE.assign(c=kept), resolve(family))
        new = wanted.on(BASE.assign(c=kept)[5:], response=True)  # as rows of another kind
        rows = slice(5, None)
        assert found.fixed_names == wanted.fixed_names
        np.testing.assert_array_equal(found.fixed, wanted.fixed)
        np.testing.assert_array_equal(new.fixed, wanted.fixed[rows])
        np.testing.assert_array_equal(found.response, wanted.response)
        np.testing.assert_array_equal(new.response, wanted.response[rows])
        assert found.family.categories == wanted.family.categories
        for one, two, of_new in zip(found.factors, wanted.factors, new.factors, strict=True):
            assert list(one.labels) == list(two.labels)
            np.testing.assert_array_equal(one.codes, two.codes)
            np.testing.assert_array_equal(one.z, two.z)
            assert list(of_new.labels) == list(two.labels)
            np.testing.assert_array_equal(of_new.codes, two.codes[rows])


DAY = pd.Timestamp("2020-01-01")
DATES = {
    "dates": DAY + pd.to_timedelta(WHOLE, unit="D"),
    "dates with a zone": (DAY + pd.to_timedelta(WHOLE, unit="D")).tz_localize("Europe/Zurich"),
    "dates of NumPy": np.datetime64("2020-01-01") + WHOLE,
    "dates of Python": each(lambda i: datetime.date(2020, 1, i)),
    "moments of Python": each(lambda i: datetime.datetime(2020, 1, i)),
    "dates of pyarrow": arrow(each(lambda i: datetime.date(2020, 1, i)), pa.date32()),
    "moments of pyarrow": arrow(WHOLE, pa.timestamp("us", "UTC")),
}
# What is no covariate and no response, what the message calls it, and what to write instead.
NO_COVARIATES = dict.fromkeys(DATES, ("dates", r"\.astype\(str\)")) | {
    "durations": ("durations", r"\.dt\.total_seconds\(\)"),
    "durations of pyarrow": ("durations", r"\.dt\.total_seconds\(\)"),
    "times of day": ("times of day", r"\.astype\(str\)"),
    "periods": ("periods", r"\.astype\(str\)"),
    "intervals": ("intervals", r"\.astype\('category'\)"),
    "bytes": ("bytes", r"\.str\.decode"),
    "bytes of NumPy": ("bytes", r"\.str\.decode"),
    "binary of pyarrow": ("bytes", r"\.str\.decode"),
    "UUID": ("objects of type UUID", r"\.astype\(str\)"),
}
SEVERAL, NESTED = "several kinds of values", "one number, text or category a row"
NOTHING = {  # nor a group
    "1 and '1'": (SEVERAL, "pd.to_numeric"),
    "numbers and text": (SEVERAL, "pd.to_numeric"),
    "bools and numbers": (SEVERAL, "pd.to_numeric"),
    "bools and text": (SEVERAL, "pd.to_numeric"),
    "bytes and text": (SEVERAL, r"\.astype\(str\)"),
    "complex": ("complex numbers", r"\.abs\(\)"),
    "complex objects": ("complex numbers", r"\.abs\(\)"),
    "integers of 80 bits": ("more than 64 bits", r"\.astype\(str\)"),
    "objects": ("objects of type object", r"\.astype\(str\)"),
} | dict.fromkeys(
    ["lists", "tuples", "dicts", "arrays", "sets", "frozen sets", "lists of pyarrow",
     "fixed lists of pyarrow", "structs of pyarrow", "maps of pyarrow"],
    (NESTED, "a column of its own"),
)  # fmt: skip
REFUSED = DATES | {
    "durations": pd.to_timedelta(WHOLE, unit="h"),
    "durations of pyarrow": arrow(WHOLE, pa.duration("s")),
    "times of day": each(datetime.time),
    "periods": pd.PeriodIndex([f"2020-0{i}" for i in WHOLE], freq="M"),
    "intervals": pd.arrays.IntervalArray.from_arrays(WHOLE, WHOLE + 1),
    "bytes": each(lambda i: b"%d" % i),
    "bytes of NumPy": np.array([b"%d" % i for i in WHOLE]),
    "binary of pyarrow": arrow(each(lambda i: b"%d" % i), pa.binary()),
    "UUID": each(lambda i: uuid.UUID(int=i)),
    "1 and '1'": each(lambda i: 1 if i > 2 else "1"),
    "numbers and text": each(lambda i: i if i > 2 else "a"),
    "bools and numbers": each(lambda i: i if i > 2 else True),
    "bools and text": each(lambda i: "a" if i > 2 else True),
    "bytes and text": each(lambda i: "a" if i > 2 else b"a"),
    "complex": HALVES + 1j,
    "complex objects": each(lambda i: i * 1j),
    "integers of 80 bits": each(lambda i: 2**80 + i),
    "objects": each(lambda i: object()),
    "lists": each(lambda i: [i]),
    "tuples": each(lambda i: (i, i)),
    "dicts": each(lambda i: {"a": i}),
    "arrays": each(lambda i: np.array([i])),
    "sets": each(lambda i: {i}),
    "frozen sets": each(lambda i: frozenset([i])),
    "lists of pyarrow": arrow([[1]] * ROWS, pa.list_(pa.int8())),
    "fixed lists of pyarrow": arrow([[1, 2]] * ROWS, pa.list_(pa.int8(), 2)),
    "structs of pyarrow": arrow([{"a": 1}] * ROWS, pa.struct([("a", pa.int8())])),
    "maps of pyarrow": arrow([[("a", 1)]] * ROWS, pa.map_(pa.string(), pa.int8())),
}


def ways(kept, folder: Path):
    """A column as pandas has it, and, where Arrow can take it, in a table and a file."""
    frame = BASE.assign(c=kept)
    yield frame
    try:
        table = pa.Table.from_pandas(frame)
        path = folder / "data.parquet"
        write_table(table, path)
    except (pa.ArrowException, TypeError, OverflowError):
        return
    yield table
    yield path


@pytest.mark.parametrize("name", REFUSED)
def test_a_column_that_cannot_be_used_is_refused_by_name(name, tmp_path):
    found, remedy = (NO_COVARIATES | NOTHING)[name]
    message = f"column 'c': expected .*{found}.*{remedy}"
    groups = [] if name in NO_COVARIATES else ["y ~ x + (1|c)", "y ~ x + (1|g:c)"]
    plain = build_design("y ~ x + c + (1|g)", BASE.assign(c=WHOLE))
    for data in ways(REFUSED[name], tmp_path) if "bytes and" not in name else [
        BASE.assign(c=REFUSED[name])  # which Arrow takes for bytes
    ]:  # fmt: skip
        for formula in ["y ~ x + c + (1|g)", "y ~ C(c) + (1|g)", "c ~ x + (1|g)", *groups]:
            with pytest.raises(ValueError, match=message):
                build_design(formula, data)
        with pytest.raises(ValueError, match=message):
            plain.on(data)


@pytest.mark.parametrize("name", NO_COVARIATES)
def test_labels_of_groups_may_be_what_they_are(name, tmp_path):
    wanted = build_design("y ~ x + (1|c)", BASE.assign(c=WHOLE)).factors[0]
    for data in ways(REFUSED[name], tmp_path):
        design = build_design("y ~ x + (1|c)", data)
        np.testing.assert_array_equal(design.factors[0].codes, wanted.codes)
        np.testing.assert_array_equal(design.on(data).factors[0].codes, wanted.codes)


def test_decimal_numbers_written_as_text_are_refused(tmp_path):
    """Whole ones may be names, such as years; a Categorical says that they are."""
    halves = BASE.assign(c=HALVES.astype(str))
    for data in ways(halves["c"], tmp_path):
        for formula in ("y ~ x + c + (1|g)", "y ~ x + (c|g)", "c ~ x + (1|g)"):
            with pytest.raises(ValueError, match=r"column 'c': .* as text.*\['c'\]\.astype\(float"):
                build_design(formula, data)
    names = ("c[1.0]", "c[1.5]", "c[2.0]")
    as_categories = halves.astype({"c": "category"})
    assert build_design("y ~ c + (1|g)", as_categories).fixed_names[1:] == names
    years = BASE.assign(c=WHOLE.astype(str))
    assert build_design("y ~ c + (1|g)", years).fixed_names[1:] == ("c[2]", "c[3]", "c[4]")
    assert build_design("y ~ 1 + (1|c)", halves).factors[0].levels == 4


def test_labels_that_float64_cannot_tell_apart_are_refused():
    long = each(lambda i: Decimal("0.1") + i * Decimal("1e-25"))
    with pytest.raises(ValueError, match=r"column 'c': .* more digits than float64"):
        build_design("y ~ 1 + (1|c)", BASE.assign(c=long))


def test_a_mixture_of_categories_can_be_a_covariate_but_no_group():
    """Its order is given; labels of groups are sorted."""
    mixed = pd.Categorical(each(lambda i: i if i > 2 else "a"), [3, "a", 4])
    data = BASE.assign(c=mixed)
    assert build_design("y ~ c + (1|g)", data).fixed_names == ("Intercept", "c[a]", "c[4]")
    with pytest.raises(ValueError, match=r"column 'c': .* several kinds"):
        build_design("y ~ 1 + (1|c)", data)


@pytest.mark.parametrize("new", [TEXT, WHOLE.astype(str), pd.Categorical(WHOLE), DATES["dates"]])
def test_numbers_of_training_stay_numbers_in_new_rows(new):
    design = build_design("y ~ c + (1|g)", BASE.assign(c=WHOLE))
    with pytest.raises(ValueError, match="column 'c': expected numbers"):
        design.on(BASE.assign(c=new))
    np.testing.assert_array_equal(design.on(BASE.assign(c=YES)).fixed[:, 1], YES)


def test_what_is_missing_is_seen_in_every_kind():
    gaps = np.arange(4) == 2
    for column in [
        pd.Series([1.0, 2.0, np.nan, 3.0]),
        pd.Series([1, 2, None, 3], dtype="Int8"),
        pd.Series([True, False, None, True], dtype="boolean"),
        pd.Series(["a", "b", None, "c"]),
        pd.Series(["a", "b", pd.NA, "c"], dtype="string"),
        pd.Series(["a", "b", None, "c"], dtype="category"),
        pd.Series([Decimal(1), Decimal(2), Decimal("nan"), Decimal(3)]),
        pd.Series([1, "a", pd.NaT, 2.0], dtype=object),
        pd.Series(pd.to_datetime(["2020", "2021", None, "2022"], format="%Y")),
        pd.Series(pd.arrays.SparseArray([1.0, 0.0, np.nan, 2.0])),
        arrow([1.0, 2.0, float("nan"), 3.0], pa.float32()),
        arrow(["a", "b", None, "c"], pa.string()),
        pd.Series([1.0, 2.0, 0.0, 3.0], dtype="Float64") / pd.Series([1, 1, 0, 1], dtype="Float64"),
    ]:
        np.testing.assert_array_equal(columns.missing_in(column), gaps, str(column.dtype))
    assert not columns.missing_in(pd.Series([1, 2])).any()


def test_run_end_encoded_numbers_are_numbers():
    encoded = pa.table({name: BASE[name] for name in BASE} | {"c": pc.run_end_encode(WHOLE)})
    found = build_design("y ~ c + (1|g)", encoded)
    np.testing.assert_array_equal(found.fixed[:, 1], WHOLE)
