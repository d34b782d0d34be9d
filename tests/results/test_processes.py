"""A forked child of a process in which TensorFlow runs says so at once, where it would hang."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import lmmbook as lmm
from lmmbook import exact, families
from lmmbook._tensorflow import processes
from lmmbook.core import e_step
from lmmbook.formula import build_design

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_probability import distributions as tfd
from test_saving import DATA, made_up

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows does not fork")
PATIENCE = 30  # seconds; the answer takes none


def in_a_child(ask: Callable[[], Any]) -> str:
    """What came of it in a forked child."""
    source, sink = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads, too
        child = os.fork()
    if child == 0:
        try:
            said = repr(ask())
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(sink, said.encode())
        os._exit(0)
    os.close(sink)
    with os.fdopen(source, "rb") as file:
        answered, _, _ = select.select([file], [], [], PATIENCE)
        if not answered:
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return file.read().decode() if answered else "hangs"


GAUSSIAN = made_up("y ~ x + (1|g)")
COUNTS = made_up("count ~ x + (1|g)", "poisson")
MODEL = GAUSSIAN.model  # TensorFlow runs from here on
REFUSED: dict[str, Callable[[], Any]] = {
    "fit": lambda: lmm.fit("y ~ x + (1|g)", DATA, seed=0),
    "predict": lambda: COUNTS.predict(DATA),
    "probabilities": lambda: GAUSSIAN.probabilities(DATA, [2.0]),
    "draws": lambda: GAUSSIAN.draws(DATA, 3, seed=0),
    "log_score": lambda: GAUSSIAN.log_score(DATA),
    "pit": lambda: GAUSSIAN.pit(DATA, seed=0),
    "model": lambda: GAUSSIAN.model,
    "a model that is there": lambda: MODEL({}),
    "e_step.run": lambda: e_step.run(len, [], [], tf.constant(0.1), 1, 1, tf.constant([0, 0])),
    "Custom": lambda: families.Custom(lambda loc: tfd.Normal(loc, 1.0), {}).bind(DATA["y"]),
    "a child's child": lambda: in_a_child(lambda: GAUSSIAN.log_score(DATA)),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_needs_tensorflow_is_refused_in_a_forked_child(what):
    said = in_a_child(REFUSED[what])
    assert "RuntimeError: " in said
    assert 'multiprocessing.get_context("spawn")' in said


def test_what_does_not_need_it_works_there(tmp_path):
    GAUSSIAN.save(tmp_path / "fit")
    expected = repr(float(GAUSSIAN.predict(DATA).sum()))
    assert in_a_child(lambda: float(lmm.load(tmp_path / "fit").predict(DATA).sum())) == expected
    assert in_a_child(lambda: str(GAUSSIAN)) == repr(str(GAUSSIAN))
    score = exact.fit("y ~ x + (1|g)", DATA).log_likelihood
    assert in_a_child(lambda: exact.fit("y ~ x + (1|g)", DATA).log_likelihood) == repr(score)
    assert in_a_child(lambda: build_design("y ~ x + (1|g)", DATA).rows) == str(len(DATA))


def test_this_process_goes_on():
    in_a_child(REFUSED["log_score"])
    processes.check_not_forked("this test")
    assert np.isfinite(GAUSSIAN.log_score(DATA)).all()


EARLY = """
import os
import lmmbook as lmm
from lmmbook._tensorflow import processes
import tensorflow as tf

child = os.fork()
if child == 0:  # before any operation
    processes.check_not_forked("this test")
    print(float(tf.linalg.trace(tf.random.stateless_normal([500, 500], [1, 2]) @ tf.eye(500))))
    grandchild = os.fork()
    if grandchild == 0:
        try:
            processes.check_not_forked("this test")
        except RuntimeError:
            print("refused", flush=True)
            os._exit(0)
        os._exit(1)
    os._exit(os.waitpid(grandchild, 0)[1])
raise SystemExit(os.waitpid(child, 0)[1])
"""


def test_a_fork_before_the_first_operation_works():
    """As servers do that load their program once and fork. What computes may not fork again."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", EARLY],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout.endswith("refused\n")
