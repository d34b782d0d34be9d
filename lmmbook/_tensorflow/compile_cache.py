"""Compiled programs on disk, so that the next process need not compile them again.

Chapter 08. XLA can keep what it has compiled in a folder. But it writes its files in place, and a
file that is not whole ends the fit that reads it. So it never sees the folder where programs are
kept, the *store*. Each process has a folder of its own, in the system's folder for temporary files:
there it finds links to those programs of the store that are what was once put there, and leaves new
ones, which `publish` copies to the store, under their checksum. A copy that was broken off does not
have it, gets no link, and is removed.

To load a compiled program is to run it. So the store is the user's own and nobody else's; there is
one for each version of TensorFlow and each kind of processor.

The environment variable ``LMMBOOK_CACHE`` is ``off``, or the folder to use in place of the user's
cache folder. Whoever sets ``TF_XLA_FLAGS`` decides alone.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import platform
import shutil
import stat
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import platformdirs

FLAGS = "TF_XLA_FLAGS"
MAX_STORE = 500_000_000  # bytes in a store; the oldest programs go
ROOM = 200_000_000  # bytes free on both disks, or there is no cache: a failed write ends the fit
EXECUTABLE = 3  # the field of XLA's file that has the compiled code

_store: Path | None = None  # none if nothing is kept
_own: Path | None = None  # this process's
_publishing = threading.Lock()


@contextlib.contextmanager
def started() -> Iterator[None]:
    """Import TensorFlow inside: it reads its flags then, once, and never again.

    The flag is gone afterwards, so that a process started from this one has a folder of its own.
    """
    if FLAGS in os.environ or "tensorflow" in sys.modules or not _open():
        yield
        return
    # Links are made while TensorFlow is imported: a checksum leaves Python to others.
    linking = threading.Thread(target=_link, args=(_store, _own), daemon=True)
    linking.start()
    # On a GPU nobody has tried it yet.
    os.environ[FLAGS] = (
        f"--tf_xla_persistent_cache_directory={_own} --tf_xla_persistent_cache_device_types=CPU"
    )
    try:
        yield
    finally:
        del os.environ[FLAGS]
        linking.join()


def publish() -> None:
    """Put the programs that this process has compiled into the store, if they are whole there."""
    if _store is None or _own is None:
        return
    # No room, a store that is gone by now, or the same from another process just now: then the next
    # one compiles what is missing again.
    with _publishing, contextlib.suppress(OSError):
        for file in _own.iterdir():
            if file.is_symlink() or any(_store.glob(f"{file.name}.*")):
                continue
            content = file.read_bytes()
            if _is_whole(content) and len(content) < MAX_STORE:
                # "x", for what is there already may be linked, and a fit may be reading it.
                with open(_store / f"{file.name}.{_checksum(content)}", "xb") as kept:
                    kept.write(content)
        _make_room(_store)


def _open() -> bool:
    """Make the store and this process's folder; False if there is to be no cache."""
    global _store, _own
    wanted = os.environ.get("LMMBOOK_CACHE", "")
    if wanted == "off" or not hasattr(os, "getuid"):
        return False
    root = Path(wanted).absolute() if wanted else platformdirs.user_cache_path("lmmbook")
    store = root / "xla" / _key()
    try:
        store.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = store.stat()
        if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
            warnings.warn(
                f"lmmbook: expected a folder for compiled programs that is yours alone (mode 700), "
                f"got {store}, which others can write to or own; nothing is kept. Remove it, or "
                "set LMMBOOK_CACHE to another folder or to off",
                stacklevel=2,
            )
            return False
        if min(shutil.disk_usage(p).free for p in (store, tempfile.gettempdir())) < ROOM:
            return False
        if not os.access(store, os.W_OK):
            return False
        own = Path(tempfile.mkdtemp(prefix="lmmbook-xla-"))
    except OSError:  # a home that cannot be written to
        return False
    _store, _own = store, own
    atexit.register(_close, os.getpid())
    return True


def _close(process: int) -> None:
    if _own is not None and os.getpid() == process:  # a forked child has the same folder
        publish()
        shutil.rmtree(_own, ignore_errors=True)


def _key() -> str:
    """Of all that a compiled program depends on besides itself: TensorFlow and the processor."""
    features = [platform.machine(), platform.processor(), os.environ.get("XLA_FLAGS", "")]
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:  # on Linux
        features += sorted({line for line in file if line.startswith(("flags", "model name"))})
    digest = hashlib.sha256("\n".join(features).encode()).hexdigest()
    return f"tensorflow-{version('tensorflow')}-{digest[:16]}"


def _link(store: Path, own: Path) -> None:
    """Link what is in the store and is what it was; remove what is not."""
    for file in store.iterdir():
        name, _, checksum = file.name.rpartition(".")
        with contextlib.suppress(OSError):  # another process may have made room just now
            if _checksum(file.read_bytes()) == checksum:
                (own / name).symlink_to(file)
            else:  # a copy that is just being written goes too, and is made again
                file.unlink()


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _is_whole(content: bytes) -> bool:
    """Whether a file of XLA's, a protocol buffer, can be read to its end, and has code in it."""
    from google.protobuf import empty_pb2, message, unknown_fields  # they come with TensorFlow

    file = empty_pb2.Empty()  # a message that knows no field: it keeps all as they are
    try:
        file.ParseFromString(content)
    except message.DecodeError:
        return False
    fields = unknown_fields.UnknownFieldSet(file)
    return any(field.field_number == EXECUTABLE and field.data for field in fields)


def _make_room(store: Path) -> None:
    files = sorted((f.stat().st_mtime, f.stat().st_size, f) for f in store.iterdir())
    total = sum(size for _, size, _ in files)
    for _, size, file in files:
        if total <= MAX_STORE:
            break
        file.unlink(missing_ok=True)
        total -= size
