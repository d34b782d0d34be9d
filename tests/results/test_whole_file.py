"""A file is there as a whole or not at all; what a killed process leaves goes with the next one."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path

from lmmbook.results.whole_file import writing

import pytest


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Writer:
    """Another process, which is in the midst of writing."""

    def __init__(self, path: Path) -> None:
        began, self.go_on = os.pipe(), os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it only writes: no threads
            self.pid = os.fork()
        if self.pid == 0:
            with writing(path) as file:
                file.write(b"the other's")
                file.flush()
                os.write(began[1], b".")
                os.read(self.go_on[0], 1)
            os._exit(0)
        os.read(began[0], 1)

    def end(self, by: int = 0) -> None:
        if by:
            os.kill(self.pid, by)
        else:
            os.write(self.go_on[1], b".")
        os.waitpid(self.pid, 0)


@pytest.fixture
def target(tmp_path) -> Path:
    if sys.platform == "win32":
        pytest.skip("Windows does not fork")
    return tmp_path / "fit.lmm"


def test_what_a_killed_process_left_is_cleared_by_the_next(target):
    for _ in range(2):
        Writer(target).end(signal.SIGKILL)
    parts = names(target.parent)
    assert len(parts) == 1  # the second one cleared what the first had left
    assert parts[0].endswith(".part")
    with writing(target) as file:
        file.write(b"whole")
    assert names(target.parent) == ["fit.lmm"]
    assert target.read_bytes() == b"whole"


def test_what_another_process_is_writing_stays(target):
    other = Writer(target)
    with writing(target) as file:
        file.write(b"ours")
        assert len(names(target.parent)) == 2
    assert target.read_bytes() == b"ours"
    assert len(names(target.parent)) == 2
    other.end()
    assert target.read_bytes() == b"the other's"
    assert names(target.parent) == ["fit.lmm"]


def test_what_this_process_is_writing_stays(target):
    with writing(target) as outer:
        outer.write(b"outer")
        with writing(target) as inner:
            inner.write(b"inner")
        assert target.read_bytes() == b"inner"
    assert target.read_bytes() == b"outer"


def test_nothing_else_is_cleared(target):
    own = "0" * 32
    others = [
        "fit.lmm.part", f"fit.lmm.{own}", f"other.lmm.{own}.part", f"my.fit.lmm.{own}.part",
        "fit.lmm.notes.part", f"fit-lmm.{own}.part", f"fit.lmm.{own}.part.txt",
    ]  # fmt: skip
    for name in [*others, f"fit.lmm.{own}.part"]:
        (target.parent / name).write_text("of somebody")
    (target.parent / f"fit.lmm.{'1' * 32}.part").mkdir()
    with writing(target) as file:
        file.write(b"whole")
    assert names(target.parent) == sorted([*others, "fit.lmm", f"fit.lmm.{'1' * 32}.part"])


def test_one_that_is_cleared_before_it_has_its_lock_is_begun_again(target, monkeypatch):
    import fcntl

    lock, cleared = fcntl.flock, []

    def late(file, how):
        if not cleared and not how & fcntl.LOCK_NB:
            cleared.extend(target.parent.glob("*.part"))
            cleared[0].unlink()  # by another process, just now
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with writing(target) as file:
        file.write(b"whole")
    assert cleared
    assert target.read_bytes() == b"whole"
    assert names(target.parent) == ["fit.lmm"]


def test_without_locks_it_is_written_too_and_nothing_is_cleared(target, monkeypatch):
    """Some network file systems have none: what is not known to be left over stays."""
    import fcntl

    def none(*_):
        raise OSError("no locks available")

    Writer(target).end(signal.SIGKILL)
    monkeypatch.setattr(fcntl, "flock", none)
    with writing(target) as file:
        file.write(b"whole")
    assert target.read_bytes() == b"whole"
    assert len(names(target.parent)) == 2
