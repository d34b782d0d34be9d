"""The engine under `lmmbook.fit`: it keeps the state of a fit, and calls the compiled program.

Chapter 04. `mcem` decides what to do next; this module does it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from lmmbook import certificate, complete_data, covariance, program, regression, sharded
from lmmbook.arrays import (
    Parameters,
    from_parameters,
    on_device,
    to_parameters,
)
from lmmbook.families import Gaussian
from lmmbook.formula import Design
from lmmbook.homes import choose_homes
from lmmbook.predictor import HERE, Where, is_gaussian
from lmmbook.progress import Progress

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
    kept
        Draws of the effects at the present parameters, ``[draws, levels, chains, columns]`` a
        factor: those of the last `measure`, thinned to at most `KEPT` sweeps x chains and
        `KEPT_NUMBERS`.
    """

    def __init__(
        self,
        design: Design,
        chains: int,
        max_sweeps: int,
        seed: int,
        progress: Progress | None = None,
        strategy: tf.distribute.Strategy | None = None,
    ) -> None:
        self.design, self.chains, self.seed = design, chains, seed
        self.progress = progress or Progress(False)
        self.layout, self.whole = on_device(design, chains)
        if strategy is None:
            self.where: Where = HERE
            self.arrays = self.whole
            self.program = program.compiled(self.layout)
        else:
            self.where, self.arrays = sharded.share_out(strategy, self.layout, self.whole)
            self.whole = sharded.without_rows(self.whole)
            self.program = sharded.Program(self.layout, self.where)
        self.chunk = program.sweeps_of(self.layout)
        parameters = to_parameters(design, start_values(design))
        self.state = self._graph(program.start, self.layout)(self.arrays, parameters)
        self.sweeps_left, self.max_sweeps, self.calls = max_sweeps, max_sweeps, 0
        self.trace: list[pd.DataFrame] = []
        self.kept: list[np.ndarray] = []

    @property
    def parameters(self) -> Parameters:
        """The parameters as they are now."""
        return self.state.parameters

    @property
    def unit(self) -> float:
        """The scale of the linear predictor on which one row tells something: the residual sd, or
        what is like it in another family, one over the root of a row's mean information."""
        if is_gaussian(self.layout):
            return float(self.parameters.residual_sd)
        told = self._graph(program.information)(self.arrays, self.state)
        return 1.0 / math.sqrt(float(told))

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
        frames = [self._call(phase, part, never, home)[0] for part in self._parts(gains)]
        return pd.concat(frames, ignore_index=True)

    def measure(self, draws: int, estimated: np.ndarray) -> certificate.Certificate:
        """Freeze the parameters, sweep until the draws have settled, make ``draws`` more sweeps,
        and judge the parameters by them."""
        home = choose_homes(self.layout, self.whole, self.parameters, self.unit**2, estimated)
        scores, kept = [], []
        information = np.zeros(2 * [complete_data.coordinates(self.layout)])
        parts = self._parts(np.zeros(SETTLE + draws))
        sweeps = np.arange(len(parts) * self.chunk).reshape(len(parts), -1)
        effects = sum(of.levels * of.columns for of in self.layout.factors)
        most = min(KEPT, KEPT_NUMBERS / effects) / self.chains
        every = -(-(sweeps.size - SETTLE) // max(1, int(most)))
        for part, now in zip(parts, sweeps, strict=True):
            measured, keep = now >= SETTLE, (now >= SETTLE) & (now % every == 0)
            _, output = self._call("draws", part, measured, home)
            scores.append(output.score.numpy()[measured])
            information += output.information.numpy().astype(float).sum(0)
            kept.append([u.numpy()[keep] for u in output.effects])
        self.kept = [np.concatenate(u) for u in zip(*kept, strict=True)]
        return certificate.certify(
            self.design, self.layout, self.parameters,
            np.concatenate(scores), information / (sweeps.size - SETTLE), estimated,
        )  # fmt: skip

    def _parts(self, gains: np.ndarray) -> list[np.ndarray]:
        """Gains by chunk, the last one repeated to fill up; refused if too many are left over."""
        chunks = -(-len(gains) // self.chunk)
        if chunks * self.chunk > self.sweeps_left:
            raise OutOfBudget
        filled = np.pad(gains, (0, chunks * self.chunk - len(gains)), mode="edge")
        return np.split(filled.astype(np.float32), chunks)

    def _call(
        self, phase: str, gains: np.ndarray, measure: np.ndarray, home: complete_data.Home
    ) -> tuple[pd.DataFrame, program.Output]:
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
        self.calls += 1
        self.sweeps_left -= self.chunk
        frame = self._frame(phase, output)
        self.trace.append(frame)
        self.progress.show(self.max_sweeps - self.sweeps_left, self.max_sweeps, phase)
        return frame, output

    def _frame(self, phase: str, output: program.Output) -> pd.DataFrame:
        """One row a sweep: phase, parameters, acceptance."""
        beta, scales, auxiliary = tf.nest.map_structure(lambda x: x.numpy(), output.parameters)
        covariances = [lower @ np.swapaxes(lower, 1, 2) for lower in scales]
        columns = covariance.name_values(self.design, beta, covariances, auxiliary)
        frame = pd.DataFrame(columns | {"acceptance": output.acceptance.numpy()})
        frame["phase"] = phase
        if not np.isfinite(frame.drop(columns="phase").to_numpy()).all():
            raise FloatingPointError(
                f"{phase}: expected finite values, got {frame.iloc[-1].to_dict()}"
            )
        return frame

    def values(self) -> dict[str, Any]:
        """The parameters as they are now, by name."""
        return from_parameters(self.design, self.parameters)


def start_values(design: Design) -> dict[str, Any]:
    """A regression without random effects, and its variance shared out equally between them and the
    residual."""
    beta, auxiliary, variance = regression.fit(design)
    parts = sum(len(f.effects) for f in design.factors) + 1
    # A slope's share is what it adds to the spread of the ratings.
    covariances = [np.diag(variance / parts / (f.z**2).mean(0)) for f in design.factors]
    if isinstance(design.family, Gaussian) and design.family.estimated:
        auxiliary = 0.5 * np.log([variance / parts])
    return covariance.name_values(design, beta, covariances, auxiliary)
