"""The engine under `lmmbook.fit`: it keeps the state of a fit, and calls the compiled program.

Chapter 04. `fit` decides what to do next; this module does it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from lmmbook.engine import checkpoint, checkpoint_files, init, iteration, program
from lmmbook.engine.arrays import Parameters, from_parameters, in_double, on_device, to_parameters
from lmmbook.engine.certificate import certify
from lmmbook.engine.certificate.laplace import Laplace
from lmmbook.engine.certificate.parametrisation import as_written
from lmmbook.engine.iteration import Plan
from lmmbook.engine.kept import Kept
from lmmbook.engine.measurement import Look, Measurement
from lmmbook.engine.parallel import chain_parallel, data_parallel
from lmmbook.engine.parallel.collectives import Devices, by_sweep
from lmmbook.engine.parallel.workers import Watch
from lmmbook.engine.placement import SINGLE_DEVICE, Placement
from lmmbook.engine.progress import Progress
from lmmbook.formula import covariance
from lmmbook.formula.design import Design
from lmmbook.formula.invariances import coordinates

import numpy as np
import pandas as pd
import tensorflow as tf
import tensorflow_probability as tfp

WARMUP = 20  # sweeps before draws are believed to belong to parameters that were just set
INFORMED_EVERY = 4  # draws, of which the first has its information taken
ADAPTATION = 0.1  # gain of the step sizes while the parameters move


class OutOfBudget(Exception):
    """The next piece of work would take more sweeps than are left."""


class Engine:
    """State of a fit: parameters, effects, the trace so far, and the sweeps that are left.

    Attributes
    ----------
    arrays, whole
        All that the program is given; and what of it is not rows, on one device.
    kept
        The draws of the last `measure` that are kept.
    iterates, trace
        A frame a call of the program, one row a sweep: the parameters of the design, and those of
        the data (`coordinates.constrained`) with acceptance and phase.
    measurement
        What the last `measure` asks of draws, and what they gave back.
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
        self.placement: Placement = SINGLE_DEVICE
        if strategy is None or chain_parallel.suits(strategy, design.rows, chains):
            self.layout, self.arrays = on_device(design, chains)
            self.whole, self.program = self.arrays, program.compiled(self.layout)
            if strategy is not None:
                self.placement = Devices(strategy)
                self.program = chain_parallel.Program(strategy, self.layout, self.arrays)
        else:
            with tf.device("CPU:0"):  # no single device need have room for all rows
                self.layout, whole = on_device(design, chains)
            self.placement, self.arrays = data_parallel.share_out(strategy, self.layout, whole)
            self.whole = data_parallel.without_rows(self.layout, whole)
            self.program = partial(by_sweep, self.layout, self.placement)
        self.chunk = program.sweeps_of(self.layout)
        parameters = to_parameters(design, init.start_values(design))
        self.state = self._graph(iteration.start, self.layout)(self.arrays, parameters)
        self.unused = as_written(self.layout, self.arrays, self.placement)  # programs ask for one
        self.sweeps_left, self.max_sweeps, self.calls = max_sweeps, max_sweeps, 0
        self.iterates: list[pd.DataFrame] = []
        self.trace: list[pd.DataFrame] = []
        self.kept = Kept(self.layout)
        self.measurement: Measurement | None = None
        identity = {}
        if folder is not None:
            devices = 1 if strategy is None else strategy.num_replicas_in_sync
            identity = checkpoint.identity_of(design, chains, seed, devices)
            identity["sweeps a chunk"] = self.chunk  # an entry of the journal
            numbers = chains * self.kept.effects + self.kept.numbers_at_most
            checkpoint_files.check_room(folder, 4 * numbers)
        self.journal = checkpoint.Journal(folder, identity, self.placement)
        if self.journal.restored:
            self.state = checkpoint.from_disk(self.state, self.journal.restored, self.placement)

    @property
    def parameters(self) -> Parameters:
        """The parameters as they are now."""
        return self.state.parameters

    @property
    def working_sd(self) -> float:
        """The working residual sd, on the scale of the linear predictor.

        The residual's in a Gaussian family. In another it is ``1 / sqrt(mean W)``, with W a row's
        information on its predictor: a working weight, as in iteratively reweighted least squares.
        """
        if self.layout.gaussian:
            return float(self.parameters.residual_sd)
        information = self._graph(iteration.row_information)
        entry = self.journal.recall(lambda: {"told": information(self.arrays, self.state).numpy()})
        return 1.0 / math.sqrt(float(entry["told"]))  # by the name that checkpoints have for it

    def _graph(self, function: Callable, *static: Any) -> Callable:
        """As one graph, which several devices need."""
        return tf.function(partial(function, *static, placement=self.placement), autograph=False)

    def set(self, values: Mapping[str, Any]) -> None:
        """Put named values in place of the parameters."""
        self.state = self.state._replace(parameters=to_parameters(self.design, values))

    def em(self, phase: str, gains: np.ndarray) -> pd.DataFrame:
        """EM iterations, a sweep and an M-step each, with these gains; returns where they were."""
        never = np.zeros(self.chunk, bool)
        before = len(self.iterates)
        for part in self._parts(gains):
            self._call(phase, Plan(part, never, never, np.float32(ADAPTATION), self.unused))
        return pd.concat(self.iterates[before:], ignore_index=True)

    def measure(
        self, draws: int, estimated: np.ndarray, look: Look | None = None, near: bool = False
    ) -> certify.Certificate:
        """Freeze the parameters, warm up, make ``draws`` more sweeps, and judge the parameters by
        them. What ``look`` finds in the draws is in ``measurement.watched``.

        Where the last `measure` was ``near``, its parametrisation is nearly as good here.
        """
        self.kept.begin(self.journal.restored)
        if near and self.measurement is not None:
            parametrisation = self.measurement.parametrisation
        else:
            laplace = partial(Laplace, self.layout, self.arrays, self.parameters, self.placement)
            parametrisation = cache(lambda: laplace().parametrisation())
        self.measurement = Measurement(estimated, look, parametrisation)
        return self._draw(self.measurement, WARMUP, draws)

    def extend(self, draws: int) -> certify.Certificate:
        """Judge the parameters, which have not moved since, by ``draws`` more sweeps beside those
        of the last `measure`."""
        assert self.measurement is not None
        return self._draw(self.measurement, 0, draws)

    def _draw(self, measurement: Measurement, warmup: int, draws: int) -> certify.Certificate:
        parts = self._parts(np.zeros(warmup + draws))
        number = np.arange(len(parts) * self.chunk) - warmup  # of each draw
        for part, of_part in zip(parts, number.reshape(len(parts), -1), strict=True):
            measured, informed = of_part >= 0, (of_part >= 0) & (of_part % INFORMED_EVERY == 0)
            plan = Plan(part, measured, informed, np.float32(0.0), self.unused)
            measurement.add(self._call("draws", plan), measured, informed)
        return measurement.judge(self.design, self.layout, self.parameters)

    def _parts(self, gains: np.ndarray) -> list[np.ndarray]:
        """Gains by chunk, the last one repeated to fill up; refused if too many are left over."""
        chunks = -(-len(gains) // self.chunk)
        if chunks * self.chunk > self.sweeps_left:
            raise OutOfBudget
        filled = np.pad(gains, (0, chunks * self.chunk - len(gains)), mode="edge")
        return np.split(filled.astype(np.float32), chunks)

    def _call(self, phase: str, plan: Plan) -> checkpoint.Entry:
        """One chunk, on the device or from the checkpoint; what it gave back."""
        entry = self.journal.recall(lambda: self._sweeps(plan))
        flat = [entry[f"parameters{i}"] for i in range(len(tf.nest.flatten(self.parameters)))]
        parameters = tf.nest.pack_sequence_as(self.parameters, flat)
        last = tf.nest.map_structure(lambda x: tf.constant(x[-1]), parameters)
        self.state = self.state._replace(parameters=last)
        self.calls += 1
        self.watch.finished()
        self.sweeps_left -= self.chunk
        self._note(phase, parameters, entry["acceptance"])
        self.progress.show(self.max_sweeps - self.sweeps_left, self.max_sweeps, phase)
        if self.journal.due():
            self.save()
        return entry

    def save(self) -> None:
        """Write a checkpoint, if there is a folder for it."""
        if self.journal.folder is not None:
            state = checkpoint.to_disk(self.state, self.placement)
            self.journal.save(state | self.kept.to_disk())

    def _sweeps(self, plan: Plan) -> checkpoint.Entry:
        """One chunk on the device."""
        measured, seed = plan.measured, tfp.random.sanitize_seed([self.seed, self.calls])
        if self.measurement is not None and measured.any():
            plan = plan._replace(parametrisation=self.measurement.parametrisation())
        gain, taken, informed, step_gain = (tf.constant(x) for x in plan[:4])
        plan = Plan(gain, taken, informed, step_gain, plan.parametrisation)
        self.state, output = self.program(self.arrays, self.state, plan, seed)
        flat = tf.nest.flatten(output.parameters)
        small = {f"parameters{i}": x.numpy() for i, x in enumerate(flat)}
        small["acceptance"] = output.acceptance.numpy()
        if self.measurement is None or not measured.any():
            return small
        self.kept.add(output.effects, measured)
        small |= {"score": output.score.numpy(), "information": output.information.numpy()}
        rows = self.design.rows * self.chains
        return small | self.measurement.look_at(output.effects, measured, rows)

    def _note(self, phase: str, parameters: Parameters, acceptance: np.ndarray) -> None:
        """One row a sweep: parameters, acceptance and phase, in both coordinates."""
        point = in_double(parameters)
        last = {"acceptance": acceptance, "phase": phase}
        self.iterates.append(pd.DataFrame(covariance.name_values(self.design, *point)))
        self.trace.append(pd.DataFrame(coordinates.constrained(self.design, *point) | last))
        if not np.isfinite(self.iterates[-1].to_numpy()).all():
            raise FloatingPointError(
                f"{phase}: expected finite values, got {self.trace[-1].iloc[-1].to_dict()}"
            )

    def values(self) -> dict[str, Any]:
        """The parameters as they are now, by name."""
        return from_parameters(self.design, self.parameters)
