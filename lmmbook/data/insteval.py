"""The data: load, check and split InstEval, 73,421 lecture ratings by students at ETH Zurich.

The ratings come with the package and open without a network. `download_insteval` fetches the
same table from where it was published; nothing else here touches the network.

InstEval is part of the R package lme4 (GPL >= 2), and so is VerbAgg, the file that chapter 9 reads.
See NOTICE, and `COPYING` beside the files.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from lmmbook.data.bundled import DATASETS, read_published, with_categories

import numpy as np
import pandas as pd

BUNDLED_PATH = DATASETS / "InstEval.csv.gz"
VERBAGG_PATH = DATASETS / "VerbAgg.csv.gz"  # chapter 9's, as a CSV
BUNDLED_SHA256 = "78dbe99f11bc6b9108f2785823cf2ae86aad35314f2f8a0ae3041873782399c7"  # the CSV

# The address names a commit, not a branch: what is behind it cannot change.
UPSTREAM_URL = (
    "https://raw.githubusercontent.com/vincentarelbundock/Rdatasets/"
    "cc03c29690889dbe83089f5206e2422db8c3f71f/csv/lme4/InstEval.csv"
)
UPSTREAM_SHA256 = "13498ab015df1c2c2af465d13965cca0e91868029b0e4328557b3c709cddf476"

COLUMNS: dict[str, str] = {
    "students": "who rates: one of 2,972 students, labelled 1 to 2972",
    "instructors": "who is rated: one of 1,128 lecturers; labels run to 2160, with gaps",
    "departments": "department code, random: 14 of the labels 1 to 15 (there is no 13); "
    "each instructor occurs with one department only",
    "service": "1 if the lecture was held for a department other than the lecturer's main one, "
    "else 0",
    "studage": "the student's age in semesters enrolled: 2, 4, 6 or 8 (ordered)",
    "lectage": "how many semesters back the lecture had taken place: 1 to 6 (ordered)",
    "ratings": "the rating, from 1 (poor) to 5 (very good)",
}

_RENAMED = {"s": "students", "d": "instructors", "dept": "departments", "y": "ratings"}
_FACTORS = ("students", "instructors", "departments")


class DownloadError(OSError):
    """A download that failed or brought something else than the file expected."""


def load_insteval(path: str | os.PathLike[str] | None = None) -> pd.DataFrame:
    """Load the InstEval ratings, after checking that they are what was published. Chapter 01.

    Parameters
    ----------
    path
        A copy of the file, gzipped or not: the bundled one or the one `download_insteval` brings.
        By default the bundled file, which needs no network.

    Returns
    -------
    DataFrame
        73,421 rows; the columns, in order, are those that `COLUMNS` explains. `students`,
        `instructors` and `departments` are categoricals: their categories are the original labels
        and their `.cat.codes` count from 0 without gaps. The other columns are integers, those of
        `studage` and `lectage` in the order that their meaning has.

    Raises
    ------
    ValueError
        If the content has not the checksum of either file.

    Examples
    --------
    >>> ratings = load_insteval()
    >>> ratings.shape
    (73421, 7)
    >>> ratings["instructors"].cat.categories[[0, 1, -1]].tolist()  # the labels keep their gaps
    [1, 6, 2160]
    >>> int(ratings["instructors"].cat.codes.max()) + 1             # the codes have none
    1128
    """
    source = BUNDLED_PATH if path is None else Path(path)
    checksums = {"bundled": BUNDLED_SHA256, "upstream": UPSTREAM_SHA256}
    data = read_published(source, "InstEval", checksums).rename(columns=_RENAMED)
    data = data[list(COLUMNS)]  # drops the row names, which only the upstream file has
    return with_categories(data, _FACTORS)


def train_test_split(
    data: pd.DataFrame, test_fraction: float = 0.2, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split the rows at random into a training and a test part. Chapter 01.

    Every row goes to exactly one part, `round(len(data) * test_fraction)` of them to the test
    part, and the same `seed` gives the same split. Rows keep their order and their index.
    Categoricals keep all their categories: a code means the same level in both parts, though
    a level may occur in one of them only.

    Examples
    --------
    >>> rows = pd.DataFrame({"ratings": [5, 2, 5, 3, 2]})
    >>> train, test = train_test_split(rows, test_fraction=0.4, seed=1)
    >>> len(train), len(test), sorted([*train.index, *test.index])
    (3, 2, [0, 1, 2, 3, 4])
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction: expected a number between 0 and 1, got {test_fraction}")
    n_test = round(len(data) * test_fraction)
    if not 0 < n_test < len(data):
        raise ValueError(
            f"data: expected rows enough for both parts, got {len(data)}, "
            f"of which test_fraction={test_fraction} makes {n_test} test rows"
        )
    is_test = np.zeros(len(data), dtype=bool)
    is_test[np.random.default_rng(seed).permutation(len(data))[:n_test]] = True
    return data[~is_test], data[is_test]


def download_insteval(
    directory: str | os.PathLike[str],
    url: str = UPSTREAM_URL,
    sha256: str = UPSTREAM_SHA256,
    retries: int = 2,
    timeout: float = 30.0,
) -> Path:
    """Download InstEval from upstream and return its path, for `load_insteval` to read.

    Chapter 01 does without: the bundled file holds the same ratings. A file that is there already
    and has the checksum is returned as it is. Otherwise the file is downloaded under a temporary
    name and takes its own only after its checksum was verified.

    Parameters
    ----------
    directory
        Where to put `InstEval.csv`; made if need be.
    url, sha256
        The address of the file, and the checksum that it must have.
    retries
        How often to try again, after 1, 2, ... seconds, when the connection fails or the server
        says that it is busy or broken. A missing or an altered file is not asked for twice.
    timeout
        Seconds to wait for the server's next sign of life.

    Raises
    ------
    DownloadError
        (an OSError) If the download failed, stopped short or brought other bytes. No part of a
        file is left behind then, and an earlier file is untouched.
    ValueError
        If ``sha256`` is no checksum.

    Examples
    --------
    >>> download_insteval("data", sha256="any")
    Traceback (most recent call last):
        ...
    ValueError: sha256: expected 64 hexadecimal digits, got 'any'
    """
    import pooch  # here, since nobody who reads the bundled file needs it
    from requests import RequestException

    if not re.fullmatch("[0-9a-f]{64}", str(sha256)):  # without one pooch would verify nothing
        raise ValueError(f"sha256: expected 64 hexadecimal digits, got {sha256!r}")

    def fetch(url: str, temporary: str, _: object) -> None:
        """What another try would not change is a DownloadError, after which pooch does not try."""
        try:
            # in one piece, since pooch leaves a stream's connection open when it fails
            pooch.HTTPDownloader(timeout=timeout, stream=False)(url, temporary, None)
        except RequestException as error:
            status = 0 if error.response is None else error.response.status_code
            if isinstance(error, ValueError) or (400 <= status < 500 and status != 429):
                raise DownloadError(f"{type(error).__name__}: {error}") from error
            raise
        if (received := pooch.file_hash(temporary)) != sha256:
            raise DownloadError(f"one with sha256 {received}")

    name = "InstEval.csv"
    source = pooch.create(directory, "", registry={name: sha256}, urls={name: url},
                          retry_if_failed=retries)  # fmt: skip
    try:
        return Path(source.fetch(name, downloader=fetch))
    except (OSError, ValueError) as error:
        got = error if isinstance(error, DownloadError) else f"{type(error).__name__}: {error}"
        raise DownloadError(
            f"download of {url} failed: expected a file with sha256 {sha256}, got {got}"
        ) from None
