"""A fit that is broken off goes on from its checkpoint, to the same answer to the last bit."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import lmmbook as lmm
from lmmbook import checkpoint, engine, simulate
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
        before: Callable = engine.Engine._sweeps

        def sweeps(*arguments):
            if self.made >= self.most:
                raise Stopped
            self.made += 1
            return before(*arguments)

        monkeypatch.setattr(engine.Engine, "_sweeps", sweeps)


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
    """One sd has its maximum at zero, so that the course takes a longer way, by its kept draws."""
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
        lmm.fit(formula, data, seed=3, chains=4, max_sweeps=520, checkpoint=tmp_path)
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
