"""The draws of the effects that a fit keeps: those at its last parameters, thinned.

Chapters 04 and 08.
"""

from __future__ import annotations

from itertools import product

from lmmbook.engine.arrays import Layout
from lmmbook.engine.checkpoint import Entry

import numpy as np
import tensorflow as tf

KEPT_DRAWS = 1000  # draws (sweeps x chains) of the effects that a fit keeps, at most
KEPT_NUMBERS = 1e8  # that these are, at most: 400 MB


class Kept:
    """Room for the draws of one measurement after another.

    How long a measurement is, nobody knows before its end. So it keeps every draw until its room is
    full; then every second of those, and of what follows; and so on.

    Attributes
    ----------
    seen, every, filled
        Of the present measurement: how many sweeps there were; of how many one is kept; and how
        many are.
    measured
        How many measurements have begun.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.effects = sum(factor.levels * factor.columns for factor in layout.factors)
        self.most = max(1, int(min(KEPT_DRAWS, KEPT_NUMBERS / self.effects) / layout.chains))
        self.room: list[np.ndarray] = []
        self.seen, self.every, self.filled, self.measured = 0, 1, 0, 0

    @property
    def draws(self) -> list[np.ndarray]:
        """Draws of the effects at the present parameters, ``[draws, levels, chains, columns]`` a
        factor, of at most `KEPT_DRAWS` sweeps x chains and `KEPT_NUMBERS`."""
        return [room[: self.filled] for room in self.room]

    @property
    def numbers_at_most(self) -> float:
        """How many numbers `draws` can come to."""
        return self.most * self.layout.chains * self.effects

    def begin(self, restored: Entry | None) -> None:
        """Make room for a new measurement, or for the checkpoint's draws, if they are of this
        one."""
        self.measured += 1
        self.seen, self.every, self.filled = 0, 1, 0
        self.room = [
            np.empty((self.most, factor.levels, self.layout.chains, factor.columns), np.float32)
            for factor in self.layout.factors
        ]
        if restored and self.measured == restored["measured"]:
            self.seen, self.every = int(restored["seen"]), int(restored["every"])
            self.filled = len(restored["kept0"])
            for k, room in enumerate(self.room):
                room[: self.filled] = restored[f"kept{k}"]

    def add(self, effects: list[tf.Tensor], measured: np.ndarray) -> None:
        """A chunk's ``[sweeps, levels, chains, columns]`` a factor, where it is ``measured``
        ``[sweeps]``."""
        values = [u.numpy() for u in effects]
        for sweep in np.flatnonzero(measured):
            if self.seen % self.every == 0 and self.filled == self.most:
                self.filled, self.every = (self.most + 1) // 2, 2 * self.every
                for room, i in product(self.room, range(self.filled)):
                    room[i] = room[2 * i]
            if self.seen % self.every == 0:
                for room, u in zip(self.room, values, strict=True):
                    room[self.filled] = u[sweep]
                self.filled += 1
            self.seen += 1

    def to_disk(self) -> Entry:
        """What `begin` finds again in a checkpoint."""
        draws = {f"kept{k}": draws for k, draws in enumerate(self.draws)}
        counts = {"seen": self.seen, "every": self.every, "measured": self.measured}
        return draws | {name: np.array(count) for name, count in counts.items()}
