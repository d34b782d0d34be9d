"""A fit that is broken off goes on from its checkpoint, to the same answer to the last bit."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import lmmbook as lmm
from lmmbook.data import simulate
from lmmbook.engine import checkpoint, program, runner
from lmmbook.formula import build_design

import numpy as np
import pandas as pd
import pytest
from tensorflow_probability import distributions as tfd


class Stopped(Exception):
    pass


class Counted:
    """Chunks that a fit makes on the device; stops it before one more than it may make."""

    def __init__(self, monkeypatch) -> None:
        self.made, self.most = 0, np.inf
        before: Callable = runner.Engine._sweeps

        def sweeps(*arguments):
            if self.made >= self.most:
                raise Stopped
            self.made += 1
            return before(*arguments)

        monkeypatch.setattr(runner.Engine, "_sweeps", sweeps)


@pytest.fixture
def chunks(monkeypatch) -> Counted:
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    return Counted(monkeypatch)


def crossed(family: str) -> tuple[str, pd.DataFrame]:
    thresholds = [2.0, 3.0, 4.0] if family == "cumulative" else None
    factors = {"g": (60, 0.7), "h": (12, 0.4)}
    data, _ = simulate.crossed(800, factors, thresholds=thresholds, seed=0)
    return "y ~ x + (1|g) + (1|h)", data


def no_variance() -> tuple[str, pd.DataFrame]:
    """One sd has its maximum at zero, so that the fit takes a longer way, by its kept draws."""
    data, _ = simulate.crossed(800, {"g": (60, 0.7), "h": (12, 0.0)}, seed=2)
    return "y ~ x + (1|g) + (1|h)", data


def assert_same(one: lmm.Fit, other: lmm.Fit) -> None:
    pd.testing.assert_frame_equal(one.parameters, other.parameters)
    pd.testing.assert_frame_equal(one.trace, other.trace)
    assert (one.converged, one.distance, one.ess) == (other.converged, other.distance, other.ess)
    for name, draws in one.posterior.items():
        np.testing.assert_array_equal(draws, other.posterior[name])


@pytest.mark.parametrize("case", ["gaussian", "cumulative", "boundary"])
def test_broken_off_again_and_again_it_ends_at_the_same_answer(case, tmp_path, chunks):
    family = "gaussian" if case == "boundary" else case
    formula, data = no_variance() if case == "boundary" else crossed(family)
    fit = {"family": family, "seed": 3, "chains": 4, "max_sweeps": 4000}
    whole = lmm.fit(formula, data, **fit)
    needed, chunks.made = chunks.made, 0
    if case == "boundary":
        assert whole.parameters["at_boundary"].any()
        assert needed > 12
    # In the approach, in the average, while draws are measured, and at the very end.
    for chunks.most in (1, 3, 6, needed - 1):
        with pytest.raises(Stopped):
            lmm.fit(formula, data, **fit, checkpoint=tmp_path)
    chunks.most = np.inf
    assert_same(lmm.fit(formula, data, **fit, checkpoint=tmp_path), whole)
    assert chunks.made == needed  # none was made twice
    assert_same(lmm.fit(formula, data, **fit, checkpoint=tmp_path), whole)
    assert chunks.made == needed


def test_a_fit_that_ran_out_goes_on_with_a_larger_budget(tmp_path, chunks):
    formula, data = no_variance()
    whole = lmm.fit(formula, data, seed=3, chains=4)
    needed, chunks.made = chunks.made, 0
    with pytest.warns(UserWarning, match="sweeps were not enough"):
        lmm.fit(formula, data, seed=3, chains=4, max_sweeps=240, checkpoint=tmp_path)
    assert chunks.made < needed
    assert_same(lmm.fit(formula, data, seed=3, chains=4, checkpoint=tmp_path), whole)
    assert chunks.made == needed


def test_where_a_function_lies_in_memory_is_no_part_of_a_fit():
    """A likelihood of one's own: another process has it at another address."""
    formula, data = crossed("gaussian")

    def identity():
        family = lmm.families.Custom(lambda loc: tfd.Logistic(loc, 1.0), {})
        return checkpoint.identity_of(build_design(formula, data, family), 4, 0, 1)

    assert identity() == identity()
    assert "lambda" in identity()["family"]


@pytest.fixture
def half_done(tmp_path, chunks) -> Path:
    formula, data = crossed("gaussian")
    chunks.most = 3
    with pytest.raises(Stopped):
        lmm.fit(formula, data, seed=3, chains=4, checkpoint=tmp_path)
    chunks.most = np.inf
    return tmp_path


def test_a_checkpoint_of_other_entries_is_refused(half_done, monkeypatch):
    """Of chunks of another length, or of a version that did not say all that is asked now."""
    formula, data = crossed("gaussian")
    identity_of = checkpoint.identity_of
    with monkeypatch.context() as patch:
        patch.setattr(program, "MOST_SWEEPS", 8)
        with pytest.raises(ValueError, match=r"with {'sweeps a chunk': 20}, got {.*: 8}"):
            lmm.fit(formula, data, seed=3, chains=4, checkpoint=half_done)
    monkeypatch.setattr(checkpoint, "identity_of", lambda *of: identity_of(*of) | {"new": 1})
    with pytest.raises(ValueError, match=r"with {'new': None}, got {'new': 1}"):
        lmm.fit(formula, data, seed=3, chains=4, checkpoint=half_done)


def test_a_checkpoint_that_was_not_written_to_its_end_is_passed_over(half_done, chunks):
    """The one before it is found: TensorFlow names a new one last."""
    worker = half_done / "worker-0"
    latest = max(worker.glob("ckpt-*.index"), key=lambda p: int(p.stem.split("-")[1]))
    number = int(latest.stem.split("-")[1])
    shutil.copy(latest, worker / f"ckpt-{number + 1}.index.tempstate123")
    (worker / f"ckpt-{number + 1}.data-00000-of-00001").write_bytes(b"half of it")
    formula, data = crossed("gaussian")
    whole = lmm.fit(formula, data, seed=3, chains=4)
    assert_same(lmm.fit(formula, data, seed=3, chains=4, checkpoint=half_done), whole)


@pytest.mark.parametrize("other", ["seed", "chains", "data", "formula"])
def test_the_checkpoint_of_another_fit_is_refused(half_done, other):
    formula, data = crossed("gaussian")
    changed = {"seed": 3, "chains": 4} | ({other: 5} if other in ("seed", "chains") else {})
    if other == "data":
        data = data.assign(y=data["y"].where(data.index != 17, 0.0))
    if other == "formula":
        formula = "y ~ x + (1|h) + (1|g)"
    before = sorted(p.name for p in half_done.rglob("*"))
    with pytest.raises(ValueError, match=r"checkpoint: expected the fit that .* was written by"):
        lmm.fit(formula, data, **changed, checkpoint=half_done)
    assert sorted(p.name for p in half_done.rglob("*")) == before


def test_a_damaged_checkpoint_is_refused(half_done):
    for path in (half_done / "worker-0").glob("ckpt-*.data*"):
        path.write_bytes(path.read_bytes()[:100])
    formula, data = crossed("gaussian")
    with pytest.raises(ValueError, match=r"checkpoint: expected number .* readable"):
        lmm.fit(formula, data, seed=3, chains=4, checkpoint=half_done)


# The files, without a fit

IDENTITY = {"formula": "y ~ x", "seed": 3}


def written(folder: Path, checkpoints: int = 3) -> Path:
    """Some checkpoints of made-up numbers; the folder of the one worker."""
    rng = np.random.default_rng(0)
    journal = checkpoint.Journal(folder, IDENTITY)
    for k in range(1, checkpoints + 1):
        journal.recall(lambda: {"parameters0": rng.normal(size=(5, 3))})
        journal.save({"effects_0_0": rng.normal(size=(50, 4)), "measured": np.array(k)})
    return folder / "worker-0"


def held(folder: Path) -> tuple:
    """What a fit that is taken up again gets from there."""
    found = checkpoint.Journal(folder, IDENTITY)
    values = [v for entry in found.entries for v in entry.values()]
    return len(found.entries), [np.asarray(v).tolist() for v in [*values, *found.restored.values()]]


def test_no_damage_is_passed_over(tmp_path):
    """Bytes that change, files that end early, are empty, or are gone: what is found is what was
    written, or damage is an error. Never does the fit begin anew in silence."""
    worker = written(tmp_path / "run")
    whole, again = held(tmp_path / "run"), tmp_path / "again"
    rng, outcomes = np.random.default_rng(0), []
    said: list[str] = []
    for name in ["checkpoint"] * 4 + ["ckpt-3.index", "ckpt-3.data-00000-of-00001"]:
        content = (worker / name).read_bytes()
        damaged: list[bytes | None] = [b"", None, bytes(rng.bytes(200))]
        damaged += [content[: rng.integers(len(content))] for _ in range(5)]
        damaged += [content[: content.index(b"\n") + 1]] if name == "checkpoint" else []
        for _ in range(15):
            changed = bytearray(content)
            changed[rng.integers(len(changed))] ^= 1 << rng.integers(8)
            damaged.append(bytes(changed))
        for other in damaged:
            shutil.rmtree(again, ignore_errors=True)
            shutil.copytree(tmp_path / "run", again)
            (again / "worker-0" / name).unlink()
            if other is not None:
                (again / "worker-0" / name).write_bytes(other)
            try:
                assert held(again) == whole, (name, other)
                outcomes.append("the same")
            except ValueError as error:
                outcomes.append("refused")
                said.append(str(error))
    assert all(re.match("checkpoint: expected .* begin anew$", text, re.DOTALL) for text in said)
    assert outcomes.count("refused") > 60  # the rest are times, and what TensorFlow alone reads


def test_a_first_checkpoint_that_was_broken_off_is_none(tmp_path):
    worker = written(tmp_path, checkpoints=1)
    (worker / "checkpoint").unlink()
    assert held(tmp_path) == (0, [])


def test_what_was_broken_off_is_cleared_by_the_next_checkpoint(tmp_path):
    worker = written(tmp_path)
    for name in (
        "ckpt-9.data-00000-of-00001",
        "ckpt-9.index.tempstate12",
        "ckpt-3.index.tempstate7",
    ):
        (worker / name).write_bytes(b"half of it")
    (worker / "ckpt-9_temp").mkdir()
    (worker / "ckpt-9_temp" / "part-00000-of-00001.index").write_bytes(b"half of it")
    (worker / "mine.txt").write_text("of somebody else")
    journal = checkpoint.Journal(tmp_path, IDENTITY)
    for _ in range(4):
        journal.recall(lambda: {"parameters0": np.zeros(3)})
    journal.save({"measured": np.array(4)})
    assert sorted(p.name for p in worker.iterdir()) == [
        "checkpoint", "ckpt-3.data-00000-of-00001", "ckpt-3.index",
        "ckpt-4.data-00000-of-00001", "ckpt-4.index", "mine.txt",
    ]  # fmt: skip


FIT = {"formula": "y ~ x + (1|g) + (1|h)", "data": crossed("gaussian")[1], "seed": 3}


def no_work(*_):
    raise AssertionError("expected no work")


def test_a_folder_that_cannot_be_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr("lmmbook.engine.fit.build_design", no_work)
    file = tmp_path / "file"
    file.write_text("of somebody else")
    for wrong in (file, file / "below", str(file)):
        with pytest.raises(
            ValueError, match=r"checkpoint: expected a folder.*, got a file: .*file"
        ):
            lmm.fit(**FIT, checkpoint=wrong)
    for wrong in ("/proc/nowhere", "a\0b", tmp_path / ("x" * 300)):
        with pytest.raises(ValueError, match="checkpoint: expected a folder that can be written"):
            lmm.fit(**FIT, checkpoint=wrong)
    with pytest.raises(TypeError, match="checkpoint: expected the path of a folder, got 3"):
        lmm.fit(**FIT, checkpoint=3)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_said_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr("lmmbook.engine.fit.build_design", no_work)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match=r"can be written to, got '.*': No space left on device"):
        lmm.fit(**FIT, checkpoint=tmp_path)
    assert not list(tmp_path.iterdir())


def test_too_little_room_is_said_before_the_first_sweep(tmp_path, monkeypatch):
    """For 72 effects, 1,000 draws of each, and what 8 chains have: .3 MB, three times."""
    monkeypatch.setattr(runner.Engine, "_sweeps", no_work)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 800_000))
    with pytest.raises(ValueError, match=r"expected room for 0\.9 MB in '.*', got 0\.8 MB"):
        lmm.fit(**FIT, checkpoint=tmp_path)


def test_a_checkpoint_that_cannot_be_written_does_not_lose_the_fit(tmp_path, monkeypatch, chunks):
    whole = lmm.fit(**FIT, chains=4)
    sweeps, worker = runner.Engine._sweeps, tmp_path / "worker-0"

    def spoilt(*arguments):
        shutil.rmtree(worker, ignore_errors=True)
        worker.write_text("a file in its place")
        return sweeps(*arguments)

    monkeypatch.setattr(runner.Engine, "_sweeps", spoilt)
    with pytest.warns(UserWarning, match=r"checkpoint: expected .* the fit goes on") as warned:
        fit = lmm.fit(**FIT, chains=4, checkpoint=tmp_path)
    assert len(warned) == 1  # of many
    assert_same(fit, whole)


def test_an_older_numpy_writes_the_same_journal(tmp_path, monkeypatch, chunks):
    """Before NumPy 2.2, of which Colab has one, `savez` takes every keyword for an array's name."""
    names = []

    def savez(file, *arrays, real=np.savez, **named):
        names.extend(named)
        real(file, *arrays, **named)

    monkeypatch.setattr(np, "savez", savez)
    formula, data = crossed("gaussian")
    lmm.fit(formula, data, seed=3, chains=4, checkpoint=tmp_path)
    assert names
    assert all(re.fullmatch(r"\d+\.\w+", name) for name in names)


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    formula, data = crossed("gaussian")
    lmm.fit(formula, data, seed=3, chains=4)
    assert not list(tmp_path.rglob("*"))
