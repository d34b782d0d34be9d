"""What is measured while the parameters are frozen: scores of draws, and what comes of them.

Chapter 04. `runner` makes the draws, chunk by chunk; here is what they gave back, until
`certificate.certify` judges by it.
"""

from __future__ import annotations

from collections.abc import Callable

from lmmbook.engine.arrays import Layout, Parameters
from lmmbook.engine.certificate import certify
from lmmbook.engine.certificate.louis import Parametrisation
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
    parametrisation
        In which scores are taken, as in `louis`.
    estimated
        ``[coordinates, free]``, the directions to be judged, as for `certify.certify`.
    look
        What else to look for in the draws, if anything.
    """

    def __init__(
        self, parametrisation: Parametrisation, estimated: np.ndarray, look: Look | None
    ) -> None:
        self.parametrisation, self.estimated, self.look = parametrisation, estimated, look
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

    def add(self, entry: Entry, measured: np.ndarray) -> None:
        """What a chunk gave back, of which some sweeps are ``measured`` ``[sweeps]``."""
        if measured.any():
            self.entries.append(entry | {"score": entry["score"][measured]})

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
        score = self.score
        information = sum(entry["information"].sum(0) for entry in self.entries) / len(score)
        return certify.certify(design, layout, parameters, score, information, self.estimated)
