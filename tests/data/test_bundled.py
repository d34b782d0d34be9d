"""A table that comes with the package is whole or refused, and the wheel takes them all along."""

from __future__ import annotations

import gzip
import hashlib
import tomllib
from pathlib import Path

from lmmbook.data.bundled import DATASETS, read_published, with_categories

import pandas as pd
import pytest

CSV = b"who,what\nbob,2\nann,1\nbob,3\n"
CHECKSUMS = {"first": hashlib.sha256(CSV).hexdigest(), "second": "0" * 64}
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return tmp_path / "copy.csv.gz"


@pytest.mark.parametrize("level", [None, 1, 9])
def test_what_counts_is_the_csv_and_not_how_it_was_compressed(copy, level):
    copy.write_bytes(CSV if level is None else gzip.compress(CSV, level))
    pd.testing.assert_frame_equal(
        read_published(copy, "Names", CHECKSUMS),
        pd.DataFrame({"who": ["bob", "ann", "bob"], "what": [2, 1, 3]}),
    )


@pytest.mark.parametrize("at", range(len(CSV)))
def test_any_changed_byte_is_refused(copy, at):
    changed = CSV[:at] + bytes([CSV[at] ^ 1]) + CSV[at + 1 :]
    copy.write_bytes(gzip.compress(changed))
    with pytest.raises(ValueError, match=r"copy\.csv\.gz is not Names as published") as caught:
        read_published(copy, "Names", CHECKSUMS)
    for edition, sha256 in CHECKSUMS.items():
        assert f"{sha256} ({edition})" in str(caught.value)
    assert f"got {len(CSV)} bytes with {hashlib.sha256(changed).hexdigest()}" in str(caught.value)


def test_a_gzip_file_that_stops_short_or_is_broken_is_refused(copy):
    whole = gzip.compress(CSV)
    short = [whole[:n] for n in range(2, len(whole))]
    broken = [whole[:n] + bytes([whole[n] ^ 0xFF]) + whole[n + 1 :] for n in range(10, len(whole))]
    for content in short + broken:  # ten bytes are the head
        copy.write_bytes(content)
        with pytest.raises(ValueError, match=r"copy\.csv\.gz: expected a whole gzip file, got: "):
            read_published(copy, "Names", CHECKSUMS)


def test_categories_are_sorted_and_other_columns_stay():
    data = pd.DataFrame({"who": ["bob", "ann", "bob"], "what": [2, 1, 3]})
    found = with_categories(data, ["who"])
    assert found["who"].cat.categories.tolist() == ["ann", "bob"]
    assert found["who"].cat.codes.tolist() == [1, 0, 1]
    assert found["who"].astype(object).tolist() == ["bob", "ann", "bob"]
    pd.testing.assert_series_equal(found["what"], data["what"])


def test_the_wheel_takes_every_file_along():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    taken = settings["tool"]["setuptools"]["package-data"]["lmmbook"]
    assert {f"datasets/{path.name}" for path in DATASETS.iterdir()} <= set(taken)
