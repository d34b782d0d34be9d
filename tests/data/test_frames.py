"""The same data as a data frame, as arrays, and as a Parquet file give the same design."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import lmmbook
from lmmbook import _rows, families
from lmmbook.data import parquet
from lmmbook.data.columns import Columns
from lmmbook.formula import build_design
from lmmbook.formula.design import Design
from lmmbook.formula.factors import Factor
from lmmbook.formula.invariances import directions

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from conftest import criticism
from pyarrow.parquet import ParquetFile, write_table

ROWS, GROUP = 4000, 700  # rows, and rows in a row group


@pytest.fixture(scope="module")
def data() -> pd.DataFrame:
    """Sorted by town, so that each row group of a file has only some of the towns."""
    rng = np.random.default_rng(0)
    towns = np.sort(rng.choice(["zug", "bern", "älgö", "aarau", "chur", "genf"], ROWS))[::-1]
    sizes = pd.Categorical(rng.choice(["s", "m", "l"], ROWS), ["s", "m", "l"], ordered=True)
    return pd.DataFrame(
        {
            "y": rng.normal(size=ROWS),
            "x": rng.integers(-100, 100, ROWS),
            "half": rng.integers(0, 9, ROWS) / 2,
            "late": np.where(np.arange(ROWS) < 3000, rng.integers(0, 9, ROWS), 70_000),
            "town": towns,
            "kind": rng.choice(["u", "v", "w"], ROWS),
            "size": sizes,
            "g": rng.integers(0, 300, ROWS),
            "day": pd.to_datetime(rng.choice(["2026-01-01", "2025-05-05"], ROWS)),
            "yes": rng.integers(0, 2, ROWS).astype(bool),
        }
    )


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that even these data are read and worked through in several pieces."""
    monkeypatch.setattr(_rows, "PIECE", 500)


def written(data: pd.DataFrame, folder: Path) -> Path:
    path = folder / "data.parquet"
    write_table(pa.Table.from_pandas(data), path, row_group_size=GROUP)
    return path


def arrays(data: pd.DataFrame) -> dict[str, np.ndarray]:
    return {name: data[name].to_numpy() for name in data}


def same(one: Design, two: Design) -> None:
    assert one.fixed_names == two.fixed_names
    for name in ("response", "offset", "fixed"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
        assert getattr(one, name).dtype == getattr(two, name).dtype == np.float64
    for first, second in zip(one.factors, two.factors, strict=True):
        assert (first.name, first.effects) == (second.name, second.effects)
        pd.testing.assert_index_equal(first.labels, second.labels)
        np.testing.assert_array_equal(first.codes, second.codes)
        np.testing.assert_array_equal(first.z, second.z)


FORMULAS = [
    "y ~ 1 + (1|g)",
    "y ~ x + kind + (1|town) + (1|g)",
    "y ~ x*half + (1|town:kind) + (x|g)",
    "y ~ I(x ** 2) + scale(late) + offset(half) + (1|town)",
    "np.exp(y) ~ np.log(half + 1) + C(kind) + (1|day) + (1|late)",
    "late ~ x:kind + yes + (1|yes:kind) + (half||g)",
]


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("formula", FORMULAS)
def test_how_the_data_are_given_does_not_matter(data, tmp_path, formula):
    wanted = build_design(formula, data)
    path = written(data, tmp_path)
    for given in (arrays(data), path, str(path), pd.read_parquet(path)):
        same(build_design(formula, given), wanted)


@pytest.mark.usefixtures("small_pieces")
def test_new_rows_may_be_given_in_each_way(data, tmp_path):
    design = build_design("y ~ x:half + kind + (1|town) + (np.log(half + 1)|g)", data)
    new = data.iloc[2000:].assign(town="basel", g=np.arange(200, 2200))
    path = written(new, tmp_path)
    for given in (arrays(new), path):
        same(design.on(given), design.on(new))
        np.testing.assert_array_equal(design.codes(given), new["y"])


@pytest.mark.parametrize("family", ["cumulative", "categorical"])
def test_ordered_categories_keep_their_order(data, tmp_path, family):
    found = build_design(
        "size ~ 1 + (1|g)", written(data, tmp_path), lmmbook.families.resolve(family)
    )
    assert found.family.categories == ("s", "m", "l")


def test_strings_as_a_response_are_sorted(data, tmp_path):
    family = lmmbook.families.Categorical()
    for given in (data, written(data, tmp_path)):
        found = build_design("town ~ 1 + (1|g)", given, family)
        assert list(found.family.categories) == sorted(set(data["town"]))


@pytest.mark.parametrize("kind", ["int8", "uint8", "int32", "uint64"])
def test_how_wide_integers_are_does_not_matter(data, kind):
    """From -100 to 100 is further than int8 goes; and far apart they take another way."""
    for far in (1, 10**6 if np.dtype(kind).itemsize > 1 else 1):
        wide = data["x"].clip(0) * far if kind[0] == "u" else data["x"] * far
        same(
            build_design("y ~ 1 + (1|x:kind) + (1|x)", data.assign(x=wide.astype(kind))),
            build_design("y ~ 1 + (1|x:kind) + (1|x)", data.assign(x=wide)),
        )


# What is in memory


@pytest.mark.usefixtures("small_pieces")
def test_columns_of_a_file_are_no_wider_than_their_values(data, tmp_path):
    names = ("y", "x", "half", "late", "town", "g", "yes")
    compact, _ = parquet.read(str(written(data, tmp_path)), Columns(names))
    kinds = {name: str(compact[name].dtype) for name in names if name != "town"}
    assert kinds == {
        "y": "float64", "x": "int8", "half": "float32", "late": "int32", "g": "int16",
        "yes": "bool",
    }  # fmt: skip
    assert isinstance(compact["town"].dtype, pd.CategoricalDtype)
    assert list(compact["town"].cat.categories) == sorted(set(data["town"]))
    for name in names:
        np.testing.assert_array_equal(np.asarray(compact[name]), np.asarray(data[name]))


def test_what_the_formula_computes_with_stays_as_it_is(data, tmp_path):
    columns = Columns(("x", "late", "kind"), frozenset(["x", "late", "kind"]))
    exact, _ = parquet.read(str(written(data, tmp_path)), columns)
    assert [str(exact[name].dtype) for name in columns.names] == ["int64", "int64", "str"]


def test_only_the_columns_of_the_formula_are_read(data, tmp_path, monkeypatch):
    read, own = [], ParquetFile.iter_batches

    def iter_batches(self, rows, columns):
        read.append(columns)
        return own(self, rows, columns=columns)

    monkeypatch.setattr(ParquetFile, "iter_batches", iter_batches)
    build_design("np.exp(y) ~ np.log(half + 1) + (1|g)", written(data, tmp_path))
    assert read == [["y", "half", "g"]]


def test_arrays_are_not_copied(data):
    given = arrays(data)
    design = build_design("y ~ 1 + (1|g)", given)
    assert np.shares_memory(design.response, given["y"])
    for column in (design.offset, design.fixed, design.factors[0].z):
        assert column.strides[0] == 0  # one number, seen from every row
        assert not column.flags.writeable


def held(thing: object, found: dict[int, object]) -> None:
    """Everything that can be reached from a thing, but for modules, classes and functions."""
    if (
        id(thing) in found
        or isinstance(thing, type)
        or type(thing).__name__ in ("module", "function")
    ):
        return
    found[id(thing)] = thing
    inside = thing.values() if isinstance(thing, dict) else thing
    if isinstance(inside, str | np.ndarray | pd.Index) or not hasattr(inside, "__iter__"):
        inside = vars(thing).values() if hasattr(thing, "__dict__") else ()
    for part in list(inside):
        held(part, found)


def test_a_design_holds_no_row_twice(data):
    design = build_design("y ~ scale(x) + kind*half + offset(late) + (half|g)", data)
    for matrix in (design._common, *design.factors[0]._common):
        found: dict[int, object] = {}
        held(matrix, found)
        assert len(found) > 10  # it did look into things
        long = [x for x in found.values() if isinstance(x, np.ndarray | pd.Series | pd.DataFrame)]
        assert max((len(x) for x in long if np.ndim(x)), default=0) < ROWS
    same(design.on(data), design.on(data.copy()))
    np.testing.assert_array_equal(design.on(data).fixed, design.fixed)


MEASURE = """
    import numpy as np
    from lmmbook.formula.invariances import directions
    from lmmbook.formula import build_design

    def kib(name):
        return next(int(s.split()[1]) for s in open("/proc/self/status") if s.startswith(name))

    def peak(rows):
        rng = np.random.default_rng(0)
        data = {name: rng.integers(0, n, rows) for name, n in dict(a=30_000, b=900, c=50).items()}
        data |= {"y": rng.normal(size=rows), "x": rng.normal(size=rows)}
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak from here on
        before = kib("VmRSS")
        design = build_design("y ~ x + (1|a) + (1|b) + (1|c)", data)
        directions.group_moves(design)
        [directions.expanded(design, factor) for factor in design.factors]
        return 1024 * (kib("VmHWM") - before)

    few, many = peak(500_000), peak(3_000_000)
    print((many - few) / 2_500_000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_a_design_costs_few_bytes_a_row():
    """16 of fixed effects, 4 a factor, and what is in between. Two sizes: what is fixed drops."""
    command = [sys.executable, "-c", textwrap.dedent(MEASURE)]
    given_back = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # arrays, as soon as they go
    run = subprocess.run(command, check=True, capture_output=True, text=True, env=given_back)
    assert 20 <= float(run.stdout) <= 60


# What is refused

ONE, TWO, SQUARE = np.ones(1), np.ones(2), np.ones((2, 1))
NOT_ARRAYS = {
    "a list": ({"y": [1.0, 2.0]}, TypeError, "a pandas DataFrame, got dict with list for 'y'"),
    "a number": (3, TypeError, "a pandas DataFrame, got int; a mapping of NumPy arrays, the"),
    "two axes": ({"y": SQUARE, "g": SQUARE}, ValueError, r"one shape .* got {'y': \(2, 1\)"),
    "lengths": ({"y": TWO, "g": ONE}, ValueError, r"shape \(rows,\), got .*'g': \(1,\)"),
    "a scalar": ({"y": np.array(2.0), "g": np.array(3)}, ValueError, "arrays of one shape"),
    "no column": ({"y": TWO}, ValueError, r"expected columns \['g'\], got \['y'\]"),
    "no arrays": ({}, ValueError, r"expected columns \['y', 'g'\], got \[\]"),
    "no rows": ({"y": TWO[:0], "g": TWO[:0]}, ValueError, "expected at least one row"),
    "missing": ({"y": TWO * np.nan, "g": TWO}, ValueError, "missing values, got {'y': 2}"),
}


@pytest.mark.parametrize("name", NOT_ARRAYS)
def test_arrays_that_are_no_data_are_refused(name):
    given, error, message = NOT_ARRAYS[name]
    with pytest.raises(error, match=message):
        lmmbook.fit("y ~ 1 + (1|g)", given, seed=0)


@pytest.mark.usefixtures("small_pieces")
def test_missing_values_of_a_file_are_counted(data, tmp_path):
    spoilt = data.copy()
    spoilt["g"] = data["g"].astype(float).where(data["g"] > 2).astype("Int64")
    spoilt.loc[[5, 3999], "town"] = None
    spoilt.loc[[1000], "y"] = np.nan
    path, few = written(spoilt, tmp_path), int((data["g"] <= 2).sum())
    wanted = f"expected no missing values, got {{'y': 1, 'town': 2, 'g': {few}}}"
    for given in (path, pd.read_parquet(path)):
        with pytest.raises(ValueError, match=wanted):
            build_design("y ~ town + (1|g)", given)


def test_files_that_cannot_be_read_are_refused(data, tmp_path):
    formula, path = "y ~ nope + (1|g)", written(data, tmp_path)
    with pytest.raises(ValueError, match=r"expected columns \['nope'\], got \['y', 'x'"):
        build_design(formula, path)
    path.write_text("y,g\n1,2\n")
    with pytest.raises(ValueError, match=r"data: expected a Parquet file, got '.*data.parquet'"):
        build_design(formula, path)
    with pytest.raises(FileNotFoundError, match="expected a Parquet file, got no such file"):
        build_design(formula, tmp_path / "other.parquet")
    with pytest.raises(FileNotFoundError, match="expected a Parquet file, got a folder"):
        build_design(formula, tmp_path)
    with pytest.raises(ValueError, match="expected at least one row"):
        build_design("y ~ 1 + (1|g)", written(data.iloc[:0], tmp_path))


def test_without_pyarrow_an_error_names_it(data, tmp_path, monkeypatch):
    path = written(data, tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError, match="expected the package pyarrow"):
        build_design("y ~ 1 + (1|g)", path)
    build_design("y ~ 1 + (1|g)", data)  # what needs no pyarrow does without


# Data frames of other packages, and odd ones of pandas


class Stream:
    """What polars, DuckDB and others have in common: their columns can be had by Arrow's
    interface, and nothing else of them is known here."""

    def __init__(self, data: pd.DataFrame | pa.Table) -> None:
        self.table = data if isinstance(data, pa.Table) else pa.Table.from_pandas(data)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.table.__arrow_c_stream__(requested_schema)


def in_chunks(data: pd.DataFrame) -> pa.Table:
    return pa.concat_tables(pa.Table.from_pandas(data[i : i + 900]) for i in range(0, ROWS, 900))


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("kind", [Stream, pa.Table.from_pandas, in_chunks])
def test_what_hands_over_columns_of_arrow_is_read(data, formula, kind):
    wanted = build_design(formula, data)
    same(build_design(formula, kind(data)), wanted)
    new = data.iloc[1000:2000]
    same(wanted.on(Stream(new)), wanted.on(new))
    if "np.exp(y)" not in formula:
        np.testing.assert_array_equal(wanted.codes(Stream(new)), wanted.codes(new))


def test_a_stream_that_can_be_read_once_is_enough(data):
    once = pa.Table.from_pandas(data).to_reader(500)
    design = build_design("y ~ x + (1|town)", once)
    same(design, build_design("y ~ x + (1|town)", data))
    once = pa.Table.from_pandas(data).to_reader(500)
    np.testing.assert_array_equal(design.on(once, response=True).response, data["y"])


def test_frames_of_polars(data):
    polars = pytest.importorskip("polars")
    frame = polars.from_pandas(data)
    design = build_design("y ~ x + kind + (1|town) + (1|day)", data)
    same(build_design("y ~ x + kind + (1|town) + (1|day)", frame), design)
    same(design.on(frame[:50]), design.on(data[:50]))
    size = polars.col("size").cast(polars.Enum(["s", "m", "l"]))
    design = build_design("y ~ size + (1|g)", frame.with_columns(size))
    assert design.fixed_names == ("Intercept", "size[m]", "size[l]")
    design = build_design("y ~ size + (1|g)", frame.with_columns(size.cast(polars.Categorical)))
    assert design.fixed_names == ("Intercept", "size[m]", "size[s]")  # it has no order: sorted
    for wrong, remedy in [
        (frame.lazy(), r"data\.collect\(\)"),
        (frame["x"], r"data\.to_frame\(\)"),
    ]:
        with pytest.raises(TypeError, match=f"expected a pandas DataFrame, got .*{remedy}"):
            build_design("y ~ x + (1|town)", wrong)


class Subclass(pd.DataFrame):
    """As geopandas makes them: what is taken out of one is one again, if it has the column."""

    @property
    def _constructor(self):
        return Subclass

    def __getitem__(self, key):
        found = super().__getitem__(key)
        if isinstance(found, pd.DataFrame) and "day" not in found:
            raise KeyError("no geometry")
        return found


def test_odd_frames_are_as_good_as_plain_ones(data):
    wanted = build_design("y ~ x + kind + (1|town)", data)
    twice = data[["day", "yes"]]  # which the formula does not need
    for odd in (
        Subclass(data),
        data.set_axis(["same"] * ROWS),
        data.set_axis(pd.date_range("2020", periods=ROWS)),
        pd.concat([data, twice], axis=1),
        data.assign(nested=[[1, 2]] * ROWS),
        data.assign(**{"a name": 1}).rename(columns={"a name": 7}),
    ):
        same(build_design("y ~ x + kind + (1|town)", odd), wanted)
        same(wanted.on(odd), wanted.on(data))


@pytest.mark.parametrize("name", ["y", "x", "town"])
def test_two_columns_of_one_name_are_refused_by_it(data, tmp_path, name):
    formula = "y ~ x + (1|town)"
    table = pa.Table.from_pandas(data)
    twice = table.append_column(name, table[name])
    write_table(twice, tmp_path / "twice.parquet")
    design = build_design(formula, data)
    for frame in (pd.concat([data, data[[name]]], axis=1), twice, tmp_path / "twice.parquet"):
        for call in (partial(build_design, formula), partial(design.on, response=True)):
            with pytest.raises(ValueError, match=rf"one column of each name, .* \['{name}'\]; re"):
                call(frame)


def test_columns_that_are_there_under_another_name(data):
    for frame, message in [
        (data.set_axis(range(data.shape[1]), axis=1), r"data\.rename\(columns=str\)"),
        (data.rename(columns=str.encode), r"data\.rename\(columns=bytes\.decode\)"),
        (data.set_index(["town", "x"]), r"\['x', 'town'\] is in the index.*reset_index\(\)"),
        (pd.concat({"a": data}, axis=1), r"one name a column, got 2 levels .*'_'\.join"),
    ]:
        with pytest.raises(ValueError, match=message):
            build_design("y ~ x + (1|town)", frame)


def test_masked_arrays_and_records(data):
    given = arrays(data)
    same(
        build_design("y ~ x + (1|g)", given | {"x": np.ma.masked_array(given["x"])}),
        build_design("y ~ x + (1|g)", data),
    )
    masked = np.ma.masked_array(given["x"], np.arange(ROWS) == 7)
    with pytest.raises(ValueError, match=r"no missing values, got {'x': 1}"):
        build_design("y ~ x + (1|g)", given | {"x": masked})
    with pytest.raises(ValueError, match=r"column 'x': .* record array"):
        build_design("y ~ x + (1|g)", given | {"x": np.zeros(ROWS, [("a", int)])})
    with pytest.raises(TypeError, match=r"got recarray; give it pd\.DataFrame\(data\)"):
        build_design("y ~ x + (1|g)", data.to_records())


def test_without_pyarrow_a_frame_of_another_package_names_it(data, monkeypatch):
    frame = Stream(data)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError, match=r"the package pyarrow, which reads a .*\.Stream"):
        build_design("y ~ 1 + (1|g)", frame)


# What is worked through in pieces


def factor_of(codes: np.ndarray) -> Factor:
    levels = pd.RangeIndex(int(codes.max()) + 1)
    z = _rows.ones(len(codes))
    return Factor("g", ("g",), levels, codes.astype(np.int32), ("Intercept",), z, ((0,),))


@pytest.mark.usefixtures("small_pieces")
def test_nesting_that_breaks_in_a_late_row_is_seen():
    child = np.resize(np.arange(100), 3000)
    parent = child // 10
    found = directions.parents(factor_of(child), factor_of(parent))
    np.testing.assert_array_equal(found, np.arange(100) // 10)
    for row in (0, 499, 500, 2999):
        broken = parent.copy()
        broken[row] = (broken[row] + 1) % 10
        assert directions.parents(factor_of(child), factor_of(broken)) is None
    moved = np.where((child == 7) & (np.arange(3000) >= 1000), 9, parent)  # between two pieces
    assert directions.parents(factor_of(child), factor_of(moved)) is None


@pytest.mark.usefixtures("small_pieces")
def test_a_ratio_that_breaks_in_a_late_row_is_seen():
    rng = np.random.default_rng(0)
    codes, ratio = rng.integers(0, 20, 3000), rng.normal(size=20)
    bottom = rng.normal(size=3000)
    top = ratio[codes] * bottom
    np.testing.assert_allclose(directions.ratio_within(codes, 20, top, bottom), ratio)
    for row in (0, 499, 500, 2999):
        broken = top.copy()
        broken[row] += 1e-3
        assert directions.ratio_within(codes, 20, broken, bottom) is None


def test_lone_intercepts_have_the_ratio_that_columns_of_ones_have():
    codes, one = np.array([0, 2, 2]), _rows.ones(3)[:, 0]
    for ones in (one, np.ones(3)):
        assert directions.ratio_within(codes, 4, ones, ones).tolist() == [1.0, 0.0, 1.0, 0.0]


def test_predictions_take_arrays_and_files_too(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=60), "g": rng.integers(0, 6, 60)})
    frame["y"] = rng.integers(0, 2, 60)
    design = build_design("y ~ x + (1|g)", frame, families.Bernoulli())
    estimates = pd.Series({"Intercept": 0.1, "x": 0.5, "sd(g)": 0.4})
    fitted = design, estimates, {"g": rng.normal(0, 0.4, (20, 6))}
    path = tmp_path / "new.parquet"
    frame.to_parquet(path)
    arrays = {name: column.to_numpy() for name, column in frame.items()}
    for data in (arrays, path):
        for function, rest in [
            (criticism.predict, ()), (criticism.log_score, ()), (criticism.pit, (1,)),
            (criticism.draws, (3, 1)),
        ]:  # fmt: skip
            one, other = (function(*fitted, d, *rest) for d in (frame, data))
            np.testing.assert_array_equal(other, one)
