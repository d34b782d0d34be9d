"""Compiled programs on disk: the same in every process, and never a file that is not whole."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from lmmbook._tensorflow import compile_cache

import pytest

# Small, and of the shapes that differ in the branches of their program.
FITS = """
import lmmbook as lmm
import numpy as np
import tensorflow as tf

data, _ = lmm.simulate.crossed(300, {"g": (30, 0.5)}, seed=0)
data["grade"] = np.clip(np.round(data["y"]), 1, 4).astype(int)
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, 2 * [tf.config.LogicalDeviceConfiguration()])
lmm.fit("y ~ x + (1|g)", data, seed=0, chains=4)
lmm.fit("y ~ x + (x|g)", data, seed=0, chains=4)
lmm.fit("grade ~ x + (1|g)", data, family="cumulative", seed=0, chains=4)
two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
lmm.fit("y ~ x + (1|g)", data, seed=0, chains=4, strategy=two)
"""
ONE = """
import os, lmmbook
import tensorflow as tf
assert "TF_XLA_FLAGS" not in os.environ, "a child process would write into its parent's folder"
print(tf.function(lambda x: tf.sin(x) * 2, jit_compile=True)(tf.ones(10))[0].numpy())
"""


def start(code: str, **environment: str) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if name != compile_cache.FLAGS}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code],
        env=kept | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


def programs(root: Path) -> list[str]:
    return sorted(path.name for path in root.glob("xla/*/*"))


def test_programs_are_the_same_in_every_process(tmp_path):
    """By XLA's own names, which hold a fingerprint of the program. It takes two processes that
    compile four programs each: what differed once differed between processes only."""
    folders = [tmp_path / seed for seed in "12"]
    both = [start(FITS, PYTHONHASHSEED=f.name, LMMBOOK_CACHE=str(f)) for f in folders]
    for process in both:
        finish(process)
    first, second = ({name.rpartition(".")[0] for name in programs(f)} for f in folders)
    assert len(first) >= 4
    assert first == second


def test_garbled_files_are_compiled_anew(tmp_path):
    environment = {"LMMBOOK_CACHE": str(tmp_path)}
    right = finish(start(ONE, **environment))
    program = programs(tmp_path)[0].rpartition(".")[0]
    for garble in (lambda whole: whole[: len(whole) // 2], lambda whole: bytes(len(whole))):
        for file in tmp_path.glob("xla/*/*"):
            file.write_bytes(garble(file.read_bytes()))
        both = [start(ONE, **environment) for _ in range(2)]  # at once
        assert [finish(process) for process in both] == [right, right]
        for file in tmp_path.glob("xla/*/*"):
            content = file.read_bytes()
            assert compile_cache._is_whole(content)
            assert file.name.endswith("." + compile_cache._checksum(content))
        assert {name.rpartition(".")[0] for name in programs(tmp_path)} == {program}


def test_second_process_compiles_nothing(tmp_path):
    """It finds the program: no second file, and the first is not written again."""
    environment = {"LMMBOOK_CACHE": str(tmp_path)}
    right = finish(start(ONE, **environment))
    [file] = tmp_path.glob("xla/*/*")
    before = file.stat().st_mtime_ns
    assert finish(start(ONE, **environment)) == right
    assert file.stat().st_mtime_ns == before
    assert len(programs(tmp_path)) == 1


@pytest.mark.parametrize(
    "environment",
    [{"LMMBOOK_CACHE": "off"}, {"LMMBOOK_CACHE": "/proc/nowhere"}, {"TF_XLA_FLAGS": ""}],
    ids=["off", "a folder that cannot be made", "flags of the user's own"],
)
def test_without_a_cache_there_is_no_noise(tmp_path, environment):
    code = ONE.replace("assert", "0 and") + "print(lmmbook._tensorflow.compile_cache._store)"
    output = finish(start(code, HOME=str(tmp_path), XDG_CACHE_HOME="", **environment))
    assert output.split()[1:] == ["None"]
    assert not list(tmp_path.rglob("*xla_compile*"))


@pytest.fixture
def folders(tmp_path, monkeypatch) -> Callable[[], bool]:
    """What `started` opens, in a folder for this test."""
    monkeypatch.setenv("LMMBOOK_CACHE", str(tmp_path))
    monkeypatch.setattr(compile_cache, "_store", None)
    monkeypatch.setattr(compile_cache, "_own", None)
    monkeypatch.setattr(compile_cache.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(compile_cache.atexit, "register", lambda *_: None)
    return compile_cache._open


def test_no_cache_where_there_is_no_room(folders, monkeypatch):
    monkeypatch.setattr(compile_cache, "ROOM", 10**18)
    assert not folders()
    assert compile_cache._store is None


def test_a_folder_open_to_others_is_refused(folders, tmp_path):
    assert folders()
    store = compile_cache._store
    assert store.stat().st_mode & 0o777 == 0o700
    store.chmod(0o770)
    with pytest.warns(UserWarning, match=r"yours alone.*LMMBOOK_CACHE"):
        assert not folders()


def test_a_folder_of_somebody_else_is_refused(folders, monkeypatch):
    assert folders()
    monkeypatch.setattr(compile_cache.os, "getuid", lambda: 12345)
    with pytest.warns(UserWarning, match="yours alone"):
        assert not folders()


WHOLE = b"\x0a\x02ab" + b"\x1a\x03abc"  # a key of two bytes, and three bytes of code


@pytest.mark.parametrize("cut", range(len(WHOLE)))
def test_what_is_not_whole_is_not_published(folders, cut):
    assert folders()
    own, store = compile_cache._own, compile_cache._store
    (own / "whole.pb").write_bytes(WHOLE)
    (own / "cut.pb").write_bytes(WHOLE[:cut])
    compile_cache.publish()
    [published] = store.iterdir()
    assert published.name.startswith("whole.pb.")
    assert published.read_bytes() == WHOLE


def test_what_another_process_puts_there_meanwhile_is_not_written_over(folders, monkeypatch):
    """For there may be links to it, and somebody who reads it."""
    assert folders()
    own, store = compile_cache._own, compile_cache._store
    there = store / f"a.pb.{compile_cache._checksum(WHOLE)}"
    (own / "a.pb").write_bytes(WHOLE)
    monkeypatch.setattr(compile_cache, "_is_whole", lambda _: there.write_bytes(b"there"))
    compile_cache.publish()
    assert there.read_bytes() == b"there"


def test_a_copy_that_was_broken_off_gets_no_link_and_is_made_again(folders):
    assert folders()
    own, store = compile_cache._own, compile_cache._store
    there = store / f"a.pb.{compile_cache._checksum(WHOLE)}"
    there.write_bytes(WHOLE[:3])
    compile_cache._link(store, own)
    assert not list(own.iterdir())
    (own / "a.pb").write_bytes(WHOLE)
    compile_cache.publish()
    assert there.read_bytes() == WHOLE


def test_the_oldest_go(folders, monkeypatch):
    assert folders()
    own, store = compile_cache._own, compile_cache._store
    for k in range(5):
        (own / f"{k}.pb").write_bytes(WHOLE)
        compile_cache.publish()
        [file] = store.glob(f"{k}.pb.*")
        os.utime(file, (k, k))
    monkeypatch.setattr(compile_cache, "MAX_STORE", 2 * len(WHOLE) + 1)
    compile_cache._make_room(store)
    assert sorted(file.name[0] for file in store.iterdir()) == ["3", "4"]


def test_a_store_that_is_gone_is_no_error(folders):
    assert folders()
    (compile_cache._own / "a.pb").write_bytes(WHOLE)
    compile_cache._store.rmdir()
    compile_cache.publish()
