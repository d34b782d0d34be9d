"""One fit on several devices, data parallel (rows) or chain parallel: the same sums, the same
answer, and a clear end if one is gone.

TensorFlow is told of its devices before it starts. So each test here is a script of its own, run
in one process, or in two that find each other on the loopback interface.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import pytest

TWO_DEVICES = """
import sys
import lmmbook as lmm
import tensorflow as tf
[cpu] = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
"""

DATA = """
import numpy as np
import pandas as pd
from lmmbook.data import simulate
from lmmbook.engine.parallel import chain_parallel
FORMULA = "y ~ x + (1|g) + (1|h)"


def crossed(family, rows=3000):
    thresholds = [2.0, 2.8, 3.5] if family == "cumulative" else None
    factors = {"g": (25, 0.4), "h": (300, 0.7)}
    data, truth = simulate.crossed(rows, factors, thresholds=thresholds, seed=0)
    return data, truth


def share_out(what):  # so few rows would never be shared out
    chain_parallel.FEW_ROWS = 0 if what == "rows" else chain_parallel.FEW_ROWS
    assert chain_parallel.suits(strategy, 3000, 8) == (what == "chains")
"""

SLOWER = pytest.param("cumulative", "rows", marks=pytest.mark.slow)


# Most of the time goes into compiling, for data that are gone through in no time: so LLVM leaves
# programs as they are. They are kept apart from those of other tests.
QUICKLY_COMPILED = {
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
    "LMMBOOK_CACHE": tempfile.mkdtemp(prefix="lmmbook-"),
}
atexit.register(shutil.rmtree, QUICKLY_COMPILED["LMMBOOK_CACHE"], ignore_errors=True)


def run(script: str, *arguments: str, timeout: float = 300) -> str:
    """Its output; a script that fails fails the test."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], env=os.environ | QUICKLY_COMPILED,
        capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


SLOPES = """
from functools import partial
from lmmbook import families
from lmmbook.engine import arrays, iteration, program
from lmmbook.engine.certificate import louis
from lmmbook.engine.certificate.laplace import Laplace
from lmmbook.engine.certificate.parametrisation import as_written
from lmmbook.engine.m_step import closed_form
from lmmbook.engine.placement import SINGLE_DEVICE
from lmmbook.formula import build_design

family = sys.argv[1]
data, truth = crossed(family)
data["z"] = np.random.default_rng(1).normal(size=len(data))
data["half"] = data["h"] % 2  # h is nested in it
formula = sys.argv[2]
design = build_design(formula, data, families.resolve(family))
layout, whole = arrays.on_device(design, 4)
truth |= {"z": 0.1, "sd(z|h)": 0.3, "cor(Intercept,z|h)": 0.2, "sd(half)": 0.3}
values = arrays.to_parameters(design, truth)
rng = np.random.default_rng(2)
effects = [
    tf.constant(rng.normal(0, 0.5, (f.levels, 4, len(f.effects))), tf.float32)
    for f in design.factors
]
"""

SAME_SUMS = (
    TWO_DEVICES
    + DATA
    + SLOPES
    + """
from lmmbook.engine import row_sums
from lmmbook.engine.e_step import block_hmc
from lmmbook.engine.parallel import data_parallel
from lmmbook.engine.e_step.group_moves import group_move

placement, shares = data_parallel.share_out(strategy, layout, whole)
assert placement.shared == 0
rows_on = [len(part) for part in placement.parts(shares.response)]
levels_on = [len(part) for part in placement.parts(shares.factors[0].cross)]
assert sum(rows_on) == 3000 and sum(levels_on) == 300, (rows_on, levels_on)
assert min(rows_on) > 1300, rows_on
cuts = np.cumsum([0, *levels_on])
own = placement.whole([effects[0][a:b] for a, b in zip(cuts[:-1], cuts[1:])])
seed = tf.constant([3, 4])


def everything(arrays_, effects_, parametrisation, placement):
    state = arrays.State(values, effects_, [tf.fill([300], 0.7), tf.fill([25], 0.7)])
    state = iteration.begin(layout, arrays_, state, True, placement)
    _, sums = placement.rows(row_sums.regression_sums, (layout,), arrays_, state)
    given = layout, arrays_, state
    score = louis.score_and_information(*given, parametrisation, placement)
    moved = closed_form.step(*given, tf.constant(0.7), placement=placement)
    u, _ = block_hmc.update(layout, 1, arrays_, state, seed, placement)
    there = effects_
    for t in range(len(layout.group_moves)):
        there = group_move(layout, arrays_, values, t, there, seed + t, placement)
    small = sums, score, moved.parameters, moved.effects[1:], state.curvature[1:], u, there[1:]
    return small, (moved.effects[0], there[0])


alone = partial(everything, placement=SINGLE_DEVICE)
of_one = Laplace(layout, whole, values).parametrisation()
one = tf.function(alone, autograph=False)(whole, effects, of_one)
both = partial(everything, placement=placement)
of_two = Laplace(layout, shares, values, placement).parametrisation()
for k in range(2):
    for a, b in zip(of_one[:4], of_two[:4], strict=True):
        b = tf.concat(placement.parts(b[k]), axis=0) if k == 0 else b[k]
        np.testing.assert_allclose(b, a[k], atol=1e-3 * max(1.0, np.abs(a[k]).max(initial=0)))
# Whatever the last digits of that are, with the same one all is the same.
shared = [placement.whole([x[0][a:b] for a, b in zip(cuts[:-1], cuts[1:])]) for x in of_one[:4]]
of_two = type(of_one)(*([x, *y[1:]] for x, y in zip(shared, of_one[:4])), *of_one[4:])
two = tf.function(both, autograph=False)(shares, [own, *effects[1:]], of_two)
two = two[0], [tf.concat(placement.parts(x), axis=0) for x in two[1]]
assert len(layout.group_moves) >= 4
for a, b in zip(tf.nest.flatten(one), tf.nest.flatten(two), strict=True):
    a, b = np.asarray(a), np.asarray(b)
    np.testing.assert_allclose(b, a, rtol=2e-5, atol=2e-5 * np.abs(a).max(initial=0))
print("same", len(tf.nest.flatten(one)))
"""
)


@pytest.mark.parametrize("family", ["gaussian", "cumulative"])
def test_two_devices_give_the_sums_the_m_step_and_the_moves_of_one(family):
    """Of the same draws, within single precision: sums, score and information, the new parameters
    and effects, an HMC move of a factor that both devices have ratings of, and all moves that no
    rating sees."""
    formula = "y ~ x + z + (1 + z|h) + (1|g) + (1|half)"
    assert run(SAME_SUMS, family, formula).startswith("same")


SAME_CHAINS = (
    TWO_DEVICES
    + DATA
    + SLOPES
    + """
from lmmbook._tensorflow import randomness
from lmmbook.engine.e_step import adaptation

made = chain_parallel.Program(strategy, layout, whole)


def close(a, b):
    for x, y in zip(tf.nest.flatten(a), tf.nest.flatten(b), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        np.testing.assert_allclose(y, x, rtol=2e-5, atol=2e-5 * np.abs(x).max(initial=0))


# Frozen parameters: each device has the chains that it would have alone.
state = arrays.State(values, effects, [adaptation.longest(f.levels) for f in layout.factors])
state = tf.function(partial(iteration.begin, layout), autograph=False)(whole, state, True)
state = iteration.paused(state)
parametrisation, seed = as_written(layout, whole), tf.constant([3, 4])
measured = tf.fill([4], True)
plan = iteration.Plan(tf.zeros([4]), measured, measured, tf.constant(0.0), parametrisation)
after, output = made(whole, state, plan, seed)
alone = program.compiled(made.layout)
information = []
for device in (0, 1):
    chains = slice(2 * device, 2 * device + 2)
    own = arrays.on_device(design, 2)[1]._replace(replica=tf.constant(device))
    begun = state._replace(effects=[u[:, chains] for u in effects])
    own_seed = randomness.fold_in(seed, device)
    then, found = alone(own, begun, plan, own_seed)
    close(found.effects, [u[:, :, chains] for u in output.effects])
    close(then.effects, [u[:, chains] for u in after.effects])
    close(found.score, output.score[:, chains])
    information.append(found.information)
close(tf.reduce_mean(information, axis=0), output.information)

# The M-step: first and second halves of the chains are those of each device.
order = [0, 2, 1, 3]


def moved(layout, arrays_, effects, placement):
    state = iteration.begin(layout, arrays_, arrays.State(values, effects), True, placement)
    state = closed_form.step(layout, arrays_, state, tf.constant(0.7), placement=placement)
    return state.parameters, state.effects


turned = [tf.gather(u, order, axis=1) for u in effects]
here = partial(moved, layout, placement=SINGLE_DEVICE)
one = tf.function(here, autograph=False)(whole, turned)
two = tf.function(partial(moved, made.layout, placement=made.placement), autograph=False)(
    made.arrays, [made._apart(u) for u in effects]
)
close(one[0], two[0])
close(one[1], [tf.gather(made.placement.gathered(u, axis=1), order, axis=1) for u in two[1]])

# An EM iteration: chains that begin alike part, on one device as on two.
same = state._replace(effects=[tf.repeat(u[:, :1], 4, axis=1) for u in effects])
plan = iteration.Plan(tf.ones([4]), *2 * [tf.fill([4], False)], tf.constant(0.1), parametrisation)
after, output = made(whole, same, plan, seed)
for u in after.effects:
    left = (u - tf.reduce_mean(u, axis=1, keepdims=True)).numpy()[:, :, 0].T
    for a in range(4):
        for b in range(a):
            assert (left[a] != left[b]).all(), (a, b)
assert [len(x) for x in tf.nest.flatten(output.parameters)] == [4] * len(tf.nest.flatten(values))
print("same")
"""
)


def test_two_devices_have_the_chains_that_each_has_alone_and_the_m_step_of_all():
    """Draws, scores and information at frozen parameters, and the new parameters and effects,
    within single precision; and no two chains have the same random numbers."""
    formula = "y ~ x + (1 + z|h) + (1|g)"  # three programs are compiled
    assert run(SAME_CHAINS, "gaussian", formula).startswith("same")


SAME_ANSWER = (
    TWO_DEVICES
    + DATA
    + """
from lmmbook.engine.parallel import collectives

compiled, compile_ = [], collectives._compiled


def noted(*function):
    compiled.append(compile_(*function))
    return compiled[-1]


collectives._compiled = noted
family, shared = sys.argv[1:]
share_out(shared)
data, truth = crossed(family)
given = dict(formula=FORMULA, data=data, family=family, seed=1, reml=shared == "chains")
one = lmm.fit(**given)
two = lmm.fit(**given, strategy=strategy)
traced = [function.experimental_get_tracing_count() for function in compiled]
again = lmm.fit(**given, strategy=strategy)
assert traced and [f.experimental_get_tracing_count() for f in compiled] == traced
pd.testing.assert_frame_equal(two.parameters, again.parameters)
assert one.converged and two.converged
a, b = one.parameters, two.parameters
logs = a.index.str.startswith("sd(")
away = np.where(logs, np.log(b.estimate / a.estimate), b.estimate - a.estimate)
noise = np.hypot(a.mcse, b.mcse)
print((away / noise).round(2).to_dict())
assert (np.abs(away) < 5 * noise + 0.02 * a.std_error).all()
np.testing.assert_allclose(np.log(b.std_error / a.std_error), 0.0, atol=0.25)
for name in ("g", "h"):
    u, v = one.effects[name], two.effects[name]
    assert list(u.index) == list(v.index)
    mcse = np.hypot(u["sd"], v["sd"]) / np.sqrt(len(one.posterior[name]) / 8)
    shift = (u["mean"] - v["mean"]).mean()  # all effects move with the intercept
    assert (np.abs(u["mean"] - v["mean"] - shift) < 5 * mcse).all()
np.testing.assert_allclose(two.predict(data), one.predict(data), atol=0.2)
print("answer", two.parameters.to_json(double_precision=15))
"""
)


@cache
def answer_of_two_devices(family: str, shared: str) -> str:
    """Compared with one device's and with itself, and then with two processes'."""
    return run(SAME_ANSWER, family, shared).split("answer ")[1]


@pytest.mark.parametrize(
    ("family", "shared"), [("gaussian", "rows"), ("gaussian", "chains"), SLOWER]
)
def test_two_devices_give_the_answer_of_one(family, shared):
    """Within 5 Monte Carlo standard errors, and so do the effects, level by level; the same seed
    gives the same answer, and nothing is compiled for it again. By REML where chains are shared."""
    answer_of_two_devices(family, shared)


GO_ON = (
    TWO_DEVICES
    + DATA
    + """
from lmmbook.engine import checkpoint, runner
checkpoint.EVERY = 0.0
share_out(sys.argv[2])
data, _ = crossed("gaussian", 1000)
given = dict(formula=FORMULA, data=data, seed=1, strategy=strategy)
whole = lmm.fit(**given)
sweeps, made = runner.Engine._sweeps, 0


class Stopped(Exception):
    pass


def counted(*arguments):
    global made
    made += 1
    if made in (2, 5, 8):
        raise Stopped
    return sweeps(*arguments)


runner.Engine._sweeps = counted
for _ in range(3):
    try:
        lmm.fit(**given, checkpoint=sys.argv[1])
        raise AssertionError("expected to be stopped")
    except Stopped:
        pass
fit = lmm.fit(**given, checkpoint=sys.argv[1])
pd.testing.assert_frame_equal(fit.parameters, whole.parameters)
pd.testing.assert_frame_equal(fit.trace, whole.trace)
for name, draws in whole.posterior.items():
    np.testing.assert_array_equal(draws, fit.posterior[name])
"""
)


def test_on_two_devices_too_a_fit_goes_on_from_its_checkpoint(tmp_path):
    """Where rows are shared out; with chains, what is written is what one device writes."""
    run(GO_ON, str(tmp_path), "rows")


TOO_MANY = (
    TWO_DEVICES
    + DATA
    + """
from lmmbook.engine import arrays
from lmmbook.engine.parallel import data_parallel
from lmmbook.formula import build_design

data = pd.DataFrame({"y": np.random.default_rng(0).normal(size=50), "g": np.arange(50) % 2})
whole = arrays.on_device(build_design("y ~ 1 + (1|g)", data), 2)
placement, shares = data_parallel.share_out(strategy, *whole)
assert [len(part) for part in placement.parts(shares.factors[0].cross)] == [1, 1]


class Three:
    num_replicas_in_sync = 3


try:
    data_parallel.share_out(Three(), *whole)
except ValueError as error:
    print(error)
"""
)


def test_more_devices_than_levels_are_refused_and_as_many_get_one_each():
    said = run(TOO_MANY)
    assert (
        "strategy: expected at most as many devices as the largest factor has levels, 2, got 3"
        in said
    )


# Two processes

WORKER = (
    """
import sys
import time
import lmmbook as lmm
from lmmbook.engine.parallel import workers
import tensorflow as tf
workers.meet(120)
strategy = tf.distribute.MultiWorkerMirroredStrategy()
"""
    + DATA
    + """
from lmmbook.engine import checkpoint, runner
checkpoint.EVERY = 0.0
family, shared, folder, slow = sys.argv[1:]
share_out(shared)
made = 0
sweeps = runner.Engine._sweeps


def told(*arguments):
    global made
    made += 1
    print("chunk", flush=True)
    time.sleep(float(slow))
    if made == 4 and "stuck" in folder:
        if strategy.cluster_resolver.task_id == 1:
            print("stuck", flush=True)
            time.sleep(600)
        workers.PATIENCE = 10.0  # of the one that waits, and all is compiled
    return sweeps(*arguments)


runner.Engine._sweeps = told
data, _ = crossed(family)
given = dict(formula=FORMULA, data=data, family=family, seed=1, reml=shared == "chains")
fit = lmm.fit(**given, strategy=strategy, checkpoint=folder or None)
sums = {name: draws.astype(float).sum() for name, draws in fit.posterior.items()}
print("answer", fit.parameters.to_json(double_precision=15), fit.converged, sums)
"""
)


class Pair:
    """Two workers, which write what they say to files."""

    def __init__(
        self, folder: Path, family: str, shared: str, checkpoints: str = "", slow: float = 0.0
    ) -> None:
        folder.mkdir()
        with socket.socket() as one, socket.socket() as two:
            for s in (one, two):
                s.bind(("127.0.0.1", 0))
            hosts = [f"127.0.0.1:{s.getsockname()[1]}" for s in (one, two)]
        self.logs = [folder / f"{i}.log" for i in (0, 1)]
        self.processes = []
        for i, log in enumerate(self.logs):
            task = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": i}}
            with log.open("w") as file:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, "-c", WORKER, family, shared, checkpoints, str(slow)],
                        stdout=file, stderr=subprocess.STDOUT,
                        env=os.environ | QUICKLY_COMPILED | {"TF_CONFIG": json.dumps(task)},
                    )
                )  # fmt: skip

    def said(self, i: int) -> str:
        return self.logs[i].read_text()

    def wait(self, timeout: float = 300) -> list[int]:
        try:
            return [p.wait(timeout) for p in self.processes]
        finally:
            for p in self.processes:
                p.kill()

    def answers(self) -> list[str]:
        assert self.wait() == [0, 0], self.said(0)[-2000:] + self.said(1)[-2000:]
        return [self.said(i).split("answer ")[1] for i in (0, 1)]


def assert_of_two_devices(answers: list[str], family: str, shared: str) -> None:
    """The same of both processes to the last printed digit, for they add up the same numbers; and
    that of two devices of one process."""
    one, two = answers
    assert one == two
    devices = json.loads(answer_of_two_devices(family, shared))
    processes = json.loads(one.split("} ")[0] + "}")
    for name, value in devices["estimate"].items():
        assert processes["estimate"][name] == pytest.approx(value, abs=1e-4)


# How numbers get from one process to another does not depend on the family. The next test has rows
# shared out.
@pytest.mark.slow
def test_two_processes_have_the_same_answer_and_it_is_that_of_two_devices(tmp_path):
    answers = Pair(tmp_path / "alone", "gaussian", "chains").answers()
    assert_of_two_devices(answers, "gaussian", "chains")


def test_a_worker_that_dies_is_reported_and_the_fit_goes_on_when_all_are_started_again(tmp_path):
    """The other one says so within a minute, and does not hang; and after a restart both end at the
    answer of two devices, which nothing interrupted."""
    folder = str(tmp_path / "checkpoints")
    pair = Pair(tmp_path / "broken", "gaussian", "rows", folder, slow=0.5)
    limit = time.monotonic() + 200
    while pair.said(1).count("chunk") < 5:
        assert time.monotonic() < limit, pair.said(1)[-2000:]
        time.sleep(0.1)
    pair.processes[1].send_signal(signal.SIGKILL)
    began = time.monotonic()
    codes = pair.wait(timeout=60)
    assert time.monotonic() - began < 60
    assert codes[0] == 1
    assert codes[1] == -signal.SIGKILL
    expected = "RuntimeError: lmmbook.fit: expected all workers to answer, but one is gone"
    assert expected in pair.said(0)
    assert f"they go on from the last checkpoint in {folder!r}" in pair.said(0)
    again = Pair(tmp_path / "again", "gaussian", "rows", folder)
    assert_of_two_devices(again.answers(), "gaussian", "rows")
    assert 0 < again.said(0).count("chunk") < 8


def test_a_worker_that_lives_but_takes_no_part_is_reported(tmp_path):
    """As one that waits for something else for ever. TensorFlow, which asks only whether it lives,
    would wait with it."""
    folder = str(tmp_path / "stuck")
    pair = Pair(tmp_path / "pair", "gaussian", "rows", folder)
    try:
        assert pair.processes[0].wait(240) == 1, pair.said(0)[-2000:]
        assert "stuck" in pair.said(1)
        assert "answer" not in pair.said(1)
    finally:
        for process in pair.processes:
            process.kill()
            process.wait()
    found = re.search(
        r"RuntimeError: lmmbook.fit: expected all workers to answer, but one is gone or does not "
        r"\(nothing was finished for (\d+) s, see `workers`\)", pair.said(0)
    )  # fmt: skip
    assert found, pair.said(0)[-2000:]
    assert 10 <= int(found[1]) < 30
    assert f"they go on from the last checkpoint in {folder!r}" in pair.said(0)
