"""How many draws a fit takes: as many as the verdict needs, none twice, and honestly counted."""

from __future__ import annotations

from dataclasses import replace

from lmmbook import exact
from lmmbook.data import simulate
from lmmbook.engine import driver, kept
from lmmbook.engine.arrays import on_device
from lmmbook.engine.certificate import certify, local
from lmmbook.engine.driver import Driver
from lmmbook.engine.fit import fit
from lmmbook.engine.kept import Kept
from lmmbook.engine.runner import Engine
from lmmbook.formula import build_design

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

NOTHING = certify.Certificate(
    pd.DataFrame(), pd.DataFrame(), step=np.zeros(1), step_errors=np.zeros((1, 1))
)


def test_more_draws_are_as_if_they_had_been_asked_for_at_once(tiny):
    """The same draws, the same certificate, the same draws kept, to the last bit."""
    found = []
    for parts in ([160], [80, 60, 20]):
        engine = Engine(build_design(tiny.formula, tiny.data), 8, 10_000, seed=3)
        engine.set(tiny.truth)
        free = np.eye(local.dimension(engine.layout))
        certificate = engine.measure(parts[0], free, lambda u: {"mean": u[0].mean((1, 2, 3))})
        for more in parts[1:]:
            certificate = engine.extend(more)
        watched = engine.measurement.watched["mean"]
        assert len(engine.measurement.score) == len(watched) == 160
        found.append((certificate, engine.kept.draws, watched))
    (one, draws, means), (other, other_draws, other_means) = found
    pd.testing.assert_frame_equal(one.table, other.table)
    assert (one.distance, one.within, one.ess) == (other.distance, other.within, other.ess)
    np.testing.assert_array_equal(draws[0], other_draws[0])
    np.testing.assert_array_equal(means, other_means)


@pytest.mark.parametrize("most", [1, 2, 5, 8])
def test_of_many_draws_evenly_spaced_ones_are_kept(most, tiny_design, monkeypatch):
    """Chunk by chunk, warm-up left out: always evenly spaced from the first, and the room half full
    at least. Where a checkpoint broke it off, it goes on alike."""
    layout, _ = on_device(tiny_design, 2)
    monkeypatch.setattr(kept, "KEPT_DRAWS", 2 * most)
    whole, broken = Kept(layout), Kept(layout)
    whole.begin(None)
    broken.begin(None)
    seen = 0
    for chunk in range(12):
        measured = np.arange(5) >= (3 if chunk == 0 else 0)
        number = np.where(measured, seen + np.cumsum(measured) - 1, -1.0)
        effects = [
            tf.constant(np.broadcast_to(number[:, None, None, None], (5, factor.levels, 2, 1)))
            for factor in layout.factors
        ]
        if chunk == 7:
            on_disk, broken = broken.to_disk(), Kept(layout)
            broken.begin(on_disk)
        for one in (whole, broken):
            one.add(effects, measured)
        seen += measured.sum()
        places = whole.draws[-1][:, 0, 0, 0]
        np.testing.assert_array_equal(places, whole.every * np.arange(len(places)))
        assert len(places) <= most
        assert len(places) == -(-seen // whole.every)
        np.testing.assert_array_equal(places, broken.draws[-1][:, 0, 0, 0])
    assert len(places) >= most / 2


class Recorded(Driver):
    """A driver that says what it would do."""

    def __init__(self, draws: int) -> None:
        self.draws, self.done = draws, []
        for name in ("advance", "extend", "measure"):
            setattr(self, name, lambda value, name=name: self.done.append((name, value)))
        self.saem = lambda: self.done.append(("saem", None))


DECISIONS = {
    "near, and not known well enough": (
        {"definite": True, "within": 0.25, "missed": 0.01, "far": False},
        [("extend", 61)],  # 80 (1.1 (0.24 / 0.19)^2 - 1) = 60.4
    ),
    "near, and hardly known": (
        {"definite": True, "within": 0.9, "missed": 0.01, "far": False},
        [("extend", 80)],
    ),
    "perhaps far": (
        {"definite": True, "within": 1.5, "missed": 0.25, "far": False},
        [("extend", 80)],
    ),
    "far": (
        {"definite": True, "distance": 0.5, "within": 0.3, "missed": 0.25, "far": True},
        ["advance", ("measure", driver.FIRST_DRAWS)],
    ),
    "very far": (
        {"definite": True, "distance": 2.0, "within": 4.3, "missed": 4.0, "far": True},
        ["advance", ("saem", None), ("measure", driver.FIRST_DRAWS)],
    ),
    "no curvature known": ({"far": False}, [("extend", 80)]),
    "no curvature known, and far": ({"far": True}, ["advance", ("measure", driver.FIRST_DRAWS)]),
    "curved the wrong way": (
        {"indefinite": True, "far": True},
        [("saem", None), ("measure", driver.FIRST_DRAWS)],
    ),
}


@pytest.mark.parametrize("name", DECISIONS)
def test_what_is_done_next_is_what_is_missing(name):
    found, wanted = DECISIONS[name]
    found = replace(NOTHING, **found)
    one = Recorded(80)
    one.improve(found)
    assert [x if x[0] != "advance" else "advance" for x in one.done] == wanted


TABLES = {
    "six levels and forty": (400, {"a": (40, 0.6), "b": (6, 0.5)}, 0),
    "next to no variance": (800, {"a": (60, 0.2), "b": (14, 0.2)}, 0),
    "five levels": (60, {"a": (5, 0.8)}, 0),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_newton_step_misses_no_more_than_is_charged(name):
    """From 0.2 standard errors away, in 10 directions, by differences of the exact likelihood; but
    more than a tenth of it somewhere, so that the charge is not just large."""
    rows, factors, seed = TABLES[name]
    formula = "y ~ x + " + " + ".join(f"(1|{factor})" for factor in factors)
    data, _ = simulate.crossed(rows, factors, seed=seed)
    truth = exact.fit(formula, data).parameters
    assert not truth["at_boundary"].any()
    is_sd = truth.index.str.startswith("sd(")
    top, unit = truth["estimate"].to_numpy().copy(), truth["std_error"].to_numpy()
    top[is_sd] = np.log(top[is_sd])

    def value(step: np.ndarray) -> float:  # in standard errors, from the maximum
        at = top + step * unit
        at[is_sd] = np.exp(at[is_sd])
        return exact.log_likelihood(formula, data, dict(zip(truth.index, at, strict=True)))

    missed, charged, rng = [], [], np.random.default_rng(0)
    for _ in range(10):
        at = rng.normal(size=len(top))
        at *= 0.2 / np.abs(at).max()
        h = 0.01 * np.eye(len(at))
        score = np.array([value(at + e) - value(at - e) for e in h]) / 0.02
        hessian = [
            [
                value(at + a + b) - value(at + a - b) - value(at - a + b) + value(at - a - b)
                for b in h
            ]
            for a in h
        ]
        information = -np.array(hessian) / 4e-4
        step = np.linalg.solve(information, score)
        errors = np.sqrt(np.diag(np.linalg.inv(information)))  # relative to those at the maximum
        distance, s = np.abs(step / errors).max(), (errors * unit)[is_sd].max()
        missed.append(np.abs(at + step).max())
        charged.append(certify.BENT * distance**2 * s)
    assert np.all(np.array(missed) < charged)
    assert np.max(np.array(missed) / charged) > 0.1


def crossed(seed: int) -> tuple[str, pd.DataFrame]:
    factors = {"a": (300, 0.6), "b": (40, 0.5)}
    return "y ~ x + (1|a) + (1|b)", simulate.crossed(1_500, factors, seed=seed)[0]


@pytest.mark.slow
def test_errors_of_fits_that_stopped_by_the_rule_are_what_they_say():
    """200 fits, of four chains. Whoever stops when a figure looks good enough, stops too early for
    it, a little: errors in units of mcse have an sd of 0.8 to 1.25 (Monte Carlo error of an sd:
    5%), of the parameters in which there is noise to speak of, a thousandth of a standard error;
    and 95% of the fits have no parameter that is more than 0.2 standard errors from the maximum.
    Fewer could not tell."""
    z, error = [], []
    for which in range(4):
        formula, data = crossed(which)
        truth = exact.fit(formula, data).parameters
        is_sd = truth.index.str.startswith("sd(")
        for seed in range(50):
            found = fit(formula, data, seed=seed, chains=4)
            assert found.converged
            away = found.parameters["estimate"] - truth["estimate"]
            ratio = (found.parameters["estimate"] / truth["estimate"])[is_sd]
            away[is_sd] = np.log(ratio)
            z.append(away / found.parameters["mcse"])
            error.append(away / truth["std_error"])
    noisy = np.std(error, axis=0) > 1e-3
    assert noisy.sum() >= 2
    spread = np.std(z, axis=0)
    assert np.all(spread < 1.25), spread
    assert np.all(spread[noisy] > 0.8), spread
    assert np.all(np.abs(np.mean(z, axis=0)) < 0.35)
    assert (np.abs(error).max(1) > 0.2).sum() <= 10


@pytest.mark.slow
def test_no_seed_is_out_of_luck(insteval):
    """InstEval, 20 seeds: the slowest takes at most 1.6 times the median's sweeps."""
    formula = "ratings ~ service + (1|students) + (1|instructors) + (1|departments)"
    sweeps = [len(fit(formula, insteval, seed=seed).trace) for seed in range(1, 21)]
    assert max(sweeps) <= 1.6 * np.median(sweeps), sweeps
