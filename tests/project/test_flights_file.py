"""The bundled flights can be made again: of the right archive, the right rows."""

from __future__ import annotations

from lmmbook.data import load_flights

import flights as tool
import pandas as pd
import pytest


def test_another_archive_is_refused():
    with pytest.raises(ValueError, match=f"expected an archive with sha256 {tool.ARCHIVE_SHA256}"):
        tool.read_flights(b"another")


def test_a_flight_without_an_arrival_is_left_out_and_the_rest_is_sorted():
    raw = pd.DataFrame(
        {
            "year": 2013,
            "month": [2, 2, 12, 3],
            "day": [8, 8, 31, 1],
            "arr_delay": [31.0, float("nan"), -4.0, 0.0],
            "carrier": ["UA", "UA", "AA", "UA"],
            "tailnum": ["N2", None, "N1", "N0"],
            "origin": "EWR",
            "dest": ["IAH", "IAH", "MIA", "IAH"],
            "distance": [1400, 1400, 1085, 1400],
            "hour": [5, 6, 7, 8],
            "flight": [1, 2, 3, 4],
        }
    )
    found = tool.table(raw)
    assert list(found.columns) == list(load_flights().columns)
    assert found["delay"].tolist() == [-4, 0, 31]
    assert found["aircraft"].tolist() == ["N1", "N0", "N2"]
    assert found["day"].tolist() == ["2013-12-31", "2013-03-01", "2013-02-08"]
    assert found["hour"].tolist() == [7, 8, 5]
    pd.testing.assert_frame_equal(tool.table(raw[::-1]), found)  # in whatever order they came
