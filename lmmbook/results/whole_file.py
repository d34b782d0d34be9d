"""A file that is written as a whole or not at all, and leaves nothing else behind.

Chapter 08. It is written beside its place, as ``NAME.<32 digits>.part``, and moved there when it is
done. Who writes holds a lock on it, which ends with the process: a part without one was broken off,
and goes when the next file of that name is written.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

if sys.platform != "win32":
    import fcntl


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to write to; at the end of the block, and not before, it is there."""
    target = Path(path).resolve()  # a link stays one
    clear(target)
    file, beside = _begin(target)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def clear(target: Path) -> None:
    """Take away the parts of a file that nobody writes any more."""
    for part in target.parent.glob("*.part"):
        if re.fullmatch(re.escape(target.name) + r"\.[0-9a-f]{32}\.part", part.name):
            with contextlib.suppress(OSError):  # one that has a lock, or that cannot be removed
                _remove(part)


def _remove(part: Path) -> None:
    if sys.platform == "win32":  # where a file that is open cannot be taken away
        part.unlink()
        return
    with open(part, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        part.unlink()


def _begin(target: Path) -> tuple[IO[bytes], Path]:
    while True:
        beside = target.with_name(f"{target.name}.{uuid.uuid4().hex}.part")
        file = open(beside, "xb")  # noqa: SIM115  (the caller closes it)
        if sys.platform != "win32":
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
        if beside.exists():
            return file, beside
        file.close()  # somebody took it for one that was broken off, before it had its lock
