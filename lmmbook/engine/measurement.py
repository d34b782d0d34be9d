"""What is measured while the parameters are frozen: scores of draws, and what comes of them.

Chapter 04. `runner` makes the draws, chunk by chunk; here is what they gave back, until
`certificate.certify` judges by it.
"""

from __future__ import annotations

from collections.abc import Callable

from lmmbook.engine.arrays import Layout, Parameters
from lmmbook.engine.certificate import certify
from lmmbook.engine.certificate.parametrisation import Parametrisation
from lmmbook.engine.checkpoint import Entry
from lmmbook.formula.design import Design

import numpy as np
import tensorflow as tf

WATCHED = 10_000_000  # rows x chains that are gone through for what is watched, in a chunk
PREFIX = "watched"  # of the names of what was found, in an entry

# Of some draws, ``[draws, levels, chains, columns]`` a factor, arrays by name, ``[draws, ...]``.
Look = Callable[[list[np.ndarray]], Entry]


class Measurement:
    """Of one point, from its warm-up on.

    Parameters
    ----------
    estimated
        ``[coordinates, free]``, the directions to be judged, as for `certify.certify`.
    look
        What else to look for in the draws, if anything.
    parametrisation
        Called for that of the scores, which a checkpoint's draws do not need.
    """

    def __init__(
        self,
        estimated: np.ndarray,
        look: Look | None,
        parametrisation: Callable[[], Parametrisation],
    ) -> None:
        self.estimated, self.look, self.parametrisation = estimated, look, parametrisation
        self.entries: list[Entry] = []  # one a chunk

    def look_at(self, effects: list[tf.Tensor], measured: np.ndarray, rows: int) -> Entry:
        """What is looked for in a chunk's effects, where they are ``measured`` ``[sweeps]``: in
        some of the draws where there are many ``rows`` (x chains) to go through."""
        if self.look is None:
            return {}
        looks = max(1, WATCHED // rows)
        some = np.flatnonzero(measured)[:: -(-measured.sum() // looks)]
        found = self.look([u.numpy()[some] for u in effects])
        return {PREFIX + name: x for name, x in found.items()}

    def add(self, entry: Entry, measured: np.ndarray, informed: np.ndarray) -> None:
        """What a chunk gave back, of which some sweeps are ``measured``, and some of these
        ``informed``, ``[sweeps]`` (`iteration.Plan`)."""
        if measured.any():
            taken = {"score": measured, "information": informed}
            self.entries.append(entry | {name: entry[name][some] for name, some in taken.items()})

    @property
    def score(self) -> np.ndarray:
        """``[draws, chains, coordinates]``."""
        return np.concatenate([entry["score"] for entry in self.entries])

    @property
    def watched(self) -> Entry:
        """What ``look`` found, by its names."""
        found = [name for name in self.entries[0] if name.startswith(PREFIX)]
        return {
            name.removeprefix(PREFIX): np.concatenate([entry[name] for entry in self.entries])
            for name in found
        }

    def judge(self, design: Design, layout: Layout, parameters: Parameters) -> certify.Certificate:
        """The certificate, by all draws so far."""
        information = np.concatenate([entry["information"] for entry in self.entries])
        return certify.certify(design, layout, parameters, self.score, information, self.estimated)
