"""The data are what was published, whole, and a bad copy of them never gets in."""

import gzip
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from lmmbook.data.insteval import (
    BUNDLED_PATH,
    BUNDLED_SHA256,
    COLUMNS,
    UPSTREAM_SHA256,
    VERBAGG_PATH,
    DownloadError,
    download_insteval,
    load_insteval,
    train_test_split,
)

import pandas as pd
import pytest

LEVELS = {"students": 2972, "instructors": 1128, "departments": 14}
ORIGINAL = {"students": "s", "instructors": "d", "departments": "dept", "ratings": "y"}


@pytest.fixture(scope="module")
def ratings() -> pd.DataFrame:
    return load_insteval()


@pytest.fixture(scope="module")
def bundled() -> bytes:
    return gzip.decompress(BUNDLED_PATH.read_bytes())


@pytest.fixture(scope="module")
def upstream(bundled: bytes) -> bytes:
    """The file as upstream publishes it: the bundled one with a first column of row numbers."""
    header, *rows = bundled.splitlines(keepends=True)
    numbered = [b"%d,%s" % (number, row) for number, row in enumerate(rows, start=1)]
    return b"".join([b"rownames," + header, *numbered])


# Loading


def test_shape_columns_and_ranges(ratings):
    assert len(ratings) == 73_421
    assert list(ratings.columns) == list(COLUMNS)
    assert {name: ratings[name].nunique() for name in LEVELS} == LEVELS
    assert not ratings.isna().any(axis=None)
    allowed = {
        "service": {0, 1},
        "studage": {2, 4, 6, 8},
        "lectage": {1, 2, 3, 4, 5, 6},
        "ratings": {1, 2, 3, 4, 5},
    }
    for name, values in allowed.items():
        assert pd.api.types.is_integer_dtype(ratings[name])
        assert set(ratings[name]) == values


def test_codes_have_no_gaps_and_labels_are_the_original_ones(ratings, bundled):
    """Codes are 0, 1, ..., and going back through the categories gives the file, byte for byte."""
    for name, n_levels in LEVELS.items():
        categories = ratings[name].cat.categories
        assert sorted(set(ratings[name].cat.codes)) == list(range(n_levels))
        assert pd.api.types.is_integer_dtype(categories)
        assert categories.is_monotonic_increasing
    back = ratings.astype(dict.fromkeys(LEVELS, "int64")).rename(columns=ORIGINAL)
    csv = back[["s", "d", "studage", "lectage", "service", "dept", "y"]].to_csv(
        index=False, lineterminator="\n"
    )
    assert csv.encode() == bundled


def test_what_columns_says_about_the_labels_is_so(ratings):
    labels = {name: set(ratings[name].cat.categories) for name in LEVELS}
    assert labels["students"] == set(range(1, 2973))
    assert min(labels["instructors"]) == 1
    assert max(labels["instructors"]) == 2160
    assert labels["departments"] == set(range(1, 16)) - {13}
    pairs = ratings[["instructors", "departments"]].drop_duplicates()
    assert len(pairs) == LEVELS["instructors"]  # one department each


@pytest.mark.parametrize("zipped", [False, True])
def test_either_published_file_gives_the_same_frame(ratings, upstream, tmp_path, zipped):
    copy = tmp_path / "copy"
    copy.write_bytes(gzip.compress(upstream) if zipped else upstream)
    pd.testing.assert_frame_equal(load_insteval(copy), ratings)
    pd.testing.assert_frame_equal(load_insteval(str(BUNDLED_PATH)), ratings)


def test_one_changed_rating_is_refused(bundled, tmp_path):
    copy = tmp_path / "copy.csv.gz"
    copy.write_bytes(gzip.compress(bundled.replace(b"1,1002,2,2,0,2,5", b"1,1002,2,2,0,2,4", 1)))
    with pytest.raises(ValueError, match="expected a CSV with sha256") as caught:
        load_insteval(copy)
    message = str(caught.value)
    assert str(copy) in message
    assert BUNDLED_SHA256 in message
    assert "got 1,430,503 bytes with" in message


def test_half_a_gzip_file_is_refused(tmp_path):
    copy = tmp_path / "half.csv.gz"
    copy.write_bytes(BUNDLED_PATH.read_bytes()[:100_000])
    with pytest.raises(ValueError, match=r"half\.csv\.gz: expected a whole gzip file"):
        load_insteval(copy)


# Splitting


@pytest.mark.parametrize("fraction", [0.2, 0.5, 1 / 3, 0.999])
def test_a_split_is_a_partition(ratings, fraction):
    train, test = train_test_split(ratings, test_fraction=fraction, seed=3)
    assert len(test) == round(len(ratings) * fraction)
    for part in (train, test):
        assert part.index.is_monotonic_increasing
        assert (part.dtypes == ratings.dtypes).all()  # the categories too
    pd.testing.assert_frame_equal(pd.concat([train, test]).sort_index(), ratings)


def test_a_split_is_seeded(ratings):
    first, again, other = (train_test_split(ratings, seed=seed)[1].index for seed in (0, 0, 1))
    assert first.equals(again)
    assert not first.equals(other)
    assert len(first.intersection(other)) == pytest.approx(0.04 * len(ratings), rel=0.1)


def test_a_split_keeps_any_index():
    rows = pd.DataFrame({"y": range(10)}, index=list("jihgfedcba"))
    train, test = train_test_split(rows, test_fraction=0.3)
    assert [name for name in rows.index if name in set(train.index)] == list(train.index)
    assert set(train.index) | set(test.index) == set(rows.index)
    assert (rows.loc[test.index, "y"] == test["y"]).all()


@pytest.mark.parametrize("fraction", [0, 1, -0.2, 20, float("nan")])
def test_a_fraction_outside_0_and_1_is_refused(ratings, fraction):
    with pytest.raises(ValueError, match=r"test_fraction: expected .* between 0 and 1, got"):
        train_test_split(ratings, test_fraction=fraction)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_a_split_with_an_empty_part_is_refused(ratings, n):
    with pytest.raises(ValueError, match=f"rows enough for both parts, got {n}"):
        train_test_split(ratings.head(n))


# Downloading, from a real server on this machine


class Server(HTTPServer):
    """Serves `body`; `status`, `missing` bytes and how often to be `busy` first are settings."""

    body = b""
    status = 200
    missing = 0
    busy = 0
    requests = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/InstEval.csv"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        busy = self.server.requests <= self.server.busy
        self.send_response(503 if busy else self.server.status)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body[: len(self.server.body) - self.server.missing])

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(upstream: bytes) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.body = upstream
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def refused(directory: Path, url: str, **settings: object) -> str:
    with pytest.raises(DownloadError) as caught:
        download_insteval(directory, url, **settings)
    assert url in str(caught.value)
    assert UPSTREAM_SHA256 in str(caught.value)
    return str(caught.value)


def test_a_good_download_is_the_data_and_is_kept(server, ratings, tmp_path):
    path = download_insteval(tmp_path / "made" / "as needed", server.url)
    assert [*path.parent.iterdir()] == [path]
    pd.testing.assert_frame_equal(load_insteval(path), ratings)
    assert download_insteval(path.parent, server.url) == path
    assert server.requests == 1  # the second call found the file


def test_a_missing_file_is_asked_for_once(server, tmp_path):
    server.status = 404
    assert "404" in refused(tmp_path, server.url, retries=5)
    assert server.requests == 1
    assert not [*tmp_path.iterdir()]


def test_a_truncated_download(server, tmp_path):
    server.missing = 1000
    assert "1000 more expected" in refused(tmp_path, server.url, retries=0)
    assert not [*tmp_path.iterdir()]


def test_an_altered_download(server, tmp_path):
    server.body = server.body.replace(b"1,1,1002,2,2,0,2,5", b"1,1,1002,2,2,0,2,4", 1)
    assert "got one with sha256 " in refused(tmp_path, server.url)
    assert server.requests == 1
    assert not [*tmp_path.iterdir()]


def test_nobody_listens(tmp_path):
    with HTTPServer(("127.0.0.1", 0), Handler) as closed:
        port = closed.server_port
    assert "refused" in refused(tmp_path, f"http://127.0.0.1:{port}/InstEval.csv", retries=0)
    assert not [*tmp_path.iterdir()]


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.busy = 1
    assert "503" in refused(tmp_path, server.url, retries=0)
    server.requests = 0
    download_insteval(tmp_path, server.url, retries=1)
    assert server.requests == 2


@pytest.mark.parametrize("trouble", [{"status": 500}, {"missing": 1000}, {"body": b"altered"}])
def test_an_earlier_file_survives_a_failed_download(server, tmp_path, trouble):
    """Whatever stood under the name stays until a verified file takes its place."""
    earlier = tmp_path / "InstEval.csv"
    earlier.write_bytes(b"an earlier edition")
    for name, value in trouble.items():
        setattr(server, name, value)
    refused(tmp_path, server.url, retries=0)
    assert [*tmp_path.iterdir()] == [earlier]
    assert earlier.read_bytes() == b"an earlier edition"


@pytest.mark.parametrize("url", ["no address", "ftp://127.0.0.1/InstEval.csv", "http://"])
def test_an_address_that_is_none(tmp_path, url):
    refused(tmp_path, url)
    assert not [*tmp_path.iterdir()]


def test_a_directory_that_is_a_file(server, tmp_path):
    taken = tmp_path / "taken"
    taken.write_bytes(b"a file")
    refused(taken, server.url)
    assert taken.read_bytes() == b"a file"


@pytest.mark.parametrize("sha256", [None, "", "abc", "z" * 64])
def test_a_download_without_a_checksum_is_refused(server, tmp_path, sha256):
    with pytest.raises(ValueError, match="sha256: expected 64 hexadecimal digits"):
        download_insteval(tmp_path, server.url, sha256=sha256)
    assert server.requests == 0


def test_the_file_of_chapter_9_is_what_lme4_says_of_it():
    """From lme4's help page: 316 people, 24 items, and r2 throws "perhaps" and "yes" together."""
    content = gzip.decompress(VERBAGG_PATH.read_bytes())
    assert hashlib.sha256(content).hexdigest().startswith("51f7f5b490c2b62c8f05c11d527b0572")
    answers = pd.read_csv(VERBAGG_PATH)
    assert answers.shape == (7584, 9)
    assert answers.groupby(["id", "item"]).size().eq(1).all()
    assert answers["id"].nunique() * answers["item"].nunique() == 316 * 24 == len(answers)
    assert (answers["r2"].eq("N") == answers["resp"].eq("no")).all()
    assert answers.groupby("item")[["btype", "situ", "mode"]].nunique().eq(1).to_numpy().all()
    assert answers.groupby("id")[["Anger", "Gender"]].nunique().eq(1).to_numpy().all()
    assert set(answers["resp"]) == {"no", "perhaps", "yes"}
