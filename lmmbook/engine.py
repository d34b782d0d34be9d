"""The engine under `lmmbook.fit`: it keeps the state of a fit, and calls the compiled program.

Chapter 04. `mcem` decides what to do next; this module does it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lmmbook import (
    certificate,
    checkpoint,
    checkpoint_files,
    complete_data,
    covariance,
    program,
    regression,
    sharded,
    spread,
)
from lmmbook.arrays import Parameters, from_parameters, on_device, to_parameters
from lmmbook.design import Design
from lmmbook.devices import Devices
from lmmbook.homes import choose_homes
from lmmbook.predictor import HERE, Where, is_gaussian
from lmmbook.progress import Progress
from lmmbook.workers import Watch

import numpy as np
import pandas as pd
import tensorflow as tf
import tensorflow_probability as tfp

KEPT = 1000  # draws (sweeps x chains) of the effects that a fit keeps, at most
KEPT_NUMBERS = 1e8  # that these are, at most: 400 MB
SETTLE = 40  # sweeps before draws are believed to belong to parameters that were just set
ADAPTATION = 0.1  # gain of the step sizes while the parameters move


class OutOfBudget(Exception):
    """The next piece of work would take more sweeps than are left."""


class Engine:
    """State of a fit: parameters, effects, the trace so far, and the sweeps that are left.

    Attributes
    ----------
    arrays, whole
        All that the program is given; and what of it is not rows, on one device.
    room, kept_sweeps
        Room for the draws of the last `measure`, and how many sweeps of it are filled.
    measured
        How many times `measure` was called.
    """

    def __init__(
        self,
        design: Design,
        chains: int,
        max_sweeps: int,
        seed: int,
        progress: Progress | None = None,
        strategy: tf.distribute.Strategy | None = None,
        folder: str | Path | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.watch = watch or Watch(None)
        self.design, self.chains, self.seed = design, chains, seed
        self.progress = progress or Progress(False)
        self.where: Where = HERE
        if strategy is None or spread.suits(strategy, design.rows, chains):
            self.layout, self.arrays = on_device(design, chains)
            self.whole, self.program = self.arrays, program.compiled(self.layout)
            if strategy is not None:
                self.where = Devices(strategy)
                self.program = spread.Program(strategy, self.layout, self.arrays)
        else:
            with tf.device("CPU:0"):  # no single device need have room for all rows
                self.layout, whole = on_device(design, chains)
            self.where, self.arrays = sharded.share_out(strategy, self.layout, whole)
            self.whole = sharded.without_rows(whole)
            self.program = sharded.Program(self.layout, self.where)
        self.chunk = program.sweeps_of(self.layout)
        parameters = to_parameters(design, regression.start_values(design))
        self.state = self._graph(program.start, self.layout)(self.arrays, parameters)
        self.sweeps_left, self.max_sweeps, self.calls = max_sweeps, max_sweeps, 0
        self.trace: list[pd.DataFrame] = []
        self.room: list[np.ndarray] = []
        self.kept_sweeps, self.measured = 0, 0
        devices = 1 if strategy is None else strategy.num_replicas_in_sync
        identity = {} if folder is None else checkpoint.identity_of(design, chains, seed, devices)
        if folder is not None:
            effects = sum(of.levels * of.columns for of in self.layout.factors)
            draws = min(max(KEPT, chains) * effects, KEPT_NUMBERS)
            checkpoint_files.check_room(folder, 4 * (chains * effects + draws))
        self.journal = checkpoint.Journal(
            folder, identity, self.where.worker, self.where.smallest
        )  # fmt: skip
        if self.journal.restored:
            self.state = checkpoint.from_disk(self.state, self.journal.restored, self.where)

    @property
    def parameters(self) -> Parameters:
        """The parameters as they are now."""
        return self.state.parameters

    @property
    def kept(self) -> list[np.ndarray]:
        """Draws of the effects at the present parameters, ``[draws, levels, chains, columns]`` a
        factor: those of the last `measure`, thinned to at most `KEPT` sweeps x chains and
        `KEPT_NUMBERS`."""
        return [room[: self.kept_sweeps] for room in self.room]

    @property
    def unit(self) -> float:
        """The scale of the linear predictor on which one row tells something: the residual sd, or
        what is like it in another family, one over the root of a row's mean information."""
        if is_gaussian(self.layout):
            return float(self.parameters.residual_sd)
        told = self._graph(program.information)
        entry = self.journal.recall(lambda: {"told": told(self.arrays, self.state).numpy()})
        return 1.0 / math.sqrt(float(entry["told"]))

    def _graph(self, function: Callable, *static: Any) -> Callable:
        """As one graph, which several devices need."""
        return tf.function(partial(function, *static, where=self.where), autograph=False)

    def set(self, values: Mapping[str, Any]) -> None:
        """Put named values in place of the parameters."""
        self.state = self.state._replace(parameters=to_parameters(self.design, values))

    def em(self, phase: str, gains: np.ndarray) -> pd.DataFrame:
        """EM iterations, a sweep and an M-step each, with these gains; returns their trace."""
        home = complete_data.as_written(self.layout)  # the program asks for one; not used here
        never = np.zeros(self.chunk, bool)
        before = len(self.trace)
        for part in self._parts(gains):
            self._call(phase, part, never, never, home)
        return pd.concat(self.trace[before:], ignore_index=True)

    def measure(self, draws: int, estimated: np.ndarray) -> certificate.Certificate:
        """Freeze the parameters, sweep until the draws have settled, make ``draws`` more sweeps,
        and judge the parameters by them."""
        home = choose_homes(self.layout, self.whole, self.parameters, self.unit**2, estimated)
        scores = []
        information = np.zeros(2 * [complete_data.coordinates(self.layout)])
        parts = self._parts(np.zeros(SETTLE + draws))
        sweeps = np.arange(len(parts) * self.chunk).reshape(len(parts), -1)
        effects = sum(of.levels * of.columns for of in self.layout.factors)
        most = min(KEPT, KEPT_NUMBERS / effects) / self.chains
        every = -(-(sweeps.size - SETTLE) // max(1, int(most)))
        self._make_room(sum((sweeps >= SETTLE) & (sweeps % every == 0)).sum())
        for part, now in zip(parts, sweeps, strict=True):
            measured = now >= SETTLE
            output = self._call("draws", part, measured, measured & (now % every == 0), home)
            if measured.any():
                scores.append(output["score"][measured])
                information += output["information"].sum(0)
        return certificate.certify(
            self.design, self.layout, self.parameters,
            np.concatenate(scores), information / (sweeps.size - SETTLE), estimated,
        )  # fmt: skip

    def _make_room(self, sweeps: int) -> None:
        """For the draws of a new `measure`, or those of the checkpoint, if they are its."""
        self.measured, self.kept_sweeps = self.measured + 1, 0
        self.room = [
            np.empty((sweeps, of.levels, self.chains, of.columns), np.float32)
            for of in self.layout.factors
        ]
        restored = self.journal.restored
        if restored and self.measured == restored["measured"]:
            self.kept_sweeps = len(restored["kept0"])
            for k, room in enumerate(self.room):
                room[: self.kept_sweeps] = restored[f"kept{k}"]

    def _parts(self, gains: np.ndarray) -> list[np.ndarray]:
        """Gains by chunk, the last one repeated to fill up; refused if too many are left over."""
        chunks = -(-len(gains) // self.chunk)
        if chunks * self.chunk > self.sweeps_left:
            raise OutOfBudget
        filled = np.pad(gains, (0, chunks * self.chunk - len(gains)), mode="edge")
        return np.split(filled.astype(np.float32), chunks)

    def _call(
        self, phase: str, gains: np.ndarray, measure: np.ndarray, keep: np.ndarray,
        home: complete_data.Home,
    ) -> checkpoint.Entry:  # fmt: skip
        """One chunk, on the device or from the checkpoint; what it gave back."""
        entry = self.journal.recall(lambda: self._sweeps(gains, measure, keep, home))
        shapes = self.state.parameters
        flat = [entry[f"parameters{i}"] for i in range(len(tf.nest.flatten(shapes)))]
        parameters = tf.nest.pack_sequence_as(shapes, flat)
        last = tf.nest.map_structure(lambda x: tf.constant(x[-1]), parameters)
        self.state = self.state._replace(parameters=last)
        self.calls += 1
        self.watch.finished()
        self.sweeps_left -= self.chunk
        self.trace.append(self._frame(phase, parameters, entry["acceptance"]))
        self.progress.show(self.max_sweeps - self.sweeps_left, self.max_sweeps, phase)
        if self.journal.due():
            self.save()
        return entry

    def save(self) -> None:
        """Write a checkpoint, if there is a folder for it."""
        if self.journal.folder is not None:
            kept = {f"kept{k}": draws for k, draws in enumerate(self.kept)}
            state = checkpoint.to_disk(self.state, self.where)
            self.journal.save(state | kept | {"measured": np.array(self.measured)})

    def _sweeps(
        self, gains: np.ndarray, measure: np.ndarray, keep: np.ndarray, home: complete_data.Home
    ) -> checkpoint.Entry:  # fmt: skip
        """One chunk on the device."""
        self.state, output = self.program(
            self.arrays,
            self.state,
            tf.constant(gains),
            tf.constant(measure),
            tf.constant(ADAPTATION if gains.any() else 0.0, tf.float32),
            home,
            tfp.random.sanitize_seed([self.seed, self.calls]),
        )
        if keep.any():
            to = self.kept_sweeps + keep.sum()
            for room, u in zip(self.room, output.effects, strict=True):
                room[self.kept_sweeps : to] = u.numpy()[keep]
            self.kept_sweeps = to
        flat = tf.nest.flatten(output.parameters)
        small = {f"parameters{i}": x.numpy() for i, x in enumerate(flat)}
        if measure.any():
            small |= {"score": output.score.numpy(), "information": output.information.numpy()}
        return small | {"acceptance": output.acceptance.numpy()}

    def _frame(self, phase: str, parameters: Parameters, acceptance: np.ndarray) -> pd.DataFrame:
        """One row a sweep: phase, parameters, acceptance."""
        beta, scales, auxiliary = parameters
        covariances = [lower @ np.swapaxes(lower, 1, 2) for lower in scales]
        columns = covariance.name_values(self.design, beta, covariances, auxiliary)
        frame = pd.DataFrame(columns | {"acceptance": acceptance})
        frame["phase"] = phase
        if not np.isfinite(frame.drop(columns="phase").to_numpy()).all():
            raise FloatingPointError(
                f"{phase}: expected finite values, got {frame.iloc[-1].to_dict()}"
            )
        return frame

    def values(self) -> dict[str, Any]:
        """The parameters as they are now, by name."""
        return from_parameters(self.design, self.parameters)
