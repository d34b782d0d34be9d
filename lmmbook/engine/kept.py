"""The draws of the effects that a fit keeps: those at its last parameters, thinned.

Chapters 04 and 08.
"""

from __future__ import annotations

from lmmbook.engine.arrays import Layout
from lmmbook.engine.checkpoint import Entry

import numpy as np
import tensorflow as tf

KEPT_DRAWS = 1000  # draws (sweeps x chains) of the effects that a fit keeps, at most
KEPT_NUMBERS = 1e8  # that these are, at most: 400 MB


class Kept:
    """Room for the draws of one measurement after another.

    Attributes
    ----------
    filled
        How many sweeps of it are filled.
    measured
        How many measurements have begun.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.effects = sum(factor.levels * factor.columns for factor in layout.factors)
        self.room: list[np.ndarray] = []
        self.filled, self.measured = 0, 0

    @property
    def draws(self) -> list[np.ndarray]:
        """Draws of the effects at the present parameters, ``[draws, levels, chains, columns]`` a
        factor, of at most `KEPT_DRAWS` sweeps x chains and `KEPT_NUMBERS`."""
        return [room[: self.filled] for room in self.room]

    @property
    def numbers_at_most(self) -> float:
        """How many numbers `draws` can come to."""
        return min(max(KEPT_DRAWS, self.layout.chains) * self.effects, KEPT_NUMBERS)

    def begin(self, measured: np.ndarray, restored: Entry | None) -> np.ndarray:
        """Make room for a new measurement, or for the checkpoint's draws, if they are of this one.

        ``measured`` ``[chunks, sweeps]`` says which sweeps are measured. Returns those to keep.
        """
        most = min(KEPT_DRAWS, KEPT_NUMBERS / self.effects) / self.layout.chains
        every = -(-measured.sum() // max(1, int(most)))
        keep = measured & (np.arange(measured.size).reshape(measured.shape) % every == 0)
        self.measured, self.filled = self.measured + 1, 0
        self.room = [
            np.empty((keep.sum(), factor.levels, self.layout.chains, factor.columns), np.float32)
            for factor in self.layout.factors
        ]
        if restored and self.measured == restored["measured"]:
            self.filled = len(restored["kept0"])
            for k, room in enumerate(self.room):
                room[: self.filled] = restored[f"kept{k}"]
        return keep

    def add(self, effects: list[tf.Tensor], keep: np.ndarray) -> None:
        """The sweeps to ``keep`` of a chunk's ``[sweeps, levels, chains, columns]`` a factor."""
        to = self.filled + keep.sum()
        for room, u in zip(self.room, effects, strict=True):
            room[self.filled : to] = u.numpy()[keep]
        self.filled = to

    def to_disk(self) -> Entry:
        """What `begin` finds again in a checkpoint."""
        draws = {f"kept{k}": draws for k, draws in enumerate(self.draws)}
        return draws | {"measured": np.array(self.measured)}
