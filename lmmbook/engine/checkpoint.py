"""What a fit has done so far, on disk, so that it can go on where it was broken off.

Chapter 08. A fit is decided by its data, its seed, and what its sweeps gave back. So a checkpoint
holds what they gave back, a few numbers each, and the effects as they are now. Taken up again, the
fit makes its decisions from those numbers, as it did before, without a sweep, until they are used
up. From there it goes on as if nothing had happened, and ends at the same answer to the last bit.
"""

from __future__ import annotations

import io
import json
import re
import time
import warnings
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lmmbook.engine import checkpoint_files
from lmmbook.engine.arrays import State
from lmmbook.engine.placement import SINGLE_DEVICE, Placement
from lmmbook.formula.design import Design
from lmmbook.formula.invariances import coordinates

import numpy as np
import tensorflow as tf

EVERY = 60.0  # seconds, at least, between two checkpoints
NOT_RECALLED = ("effects", "step_sizes", "curvature")

Entry = dict[str, np.ndarray]


class Journal:
    """What the sweeps gave back, entry by entry, and the checkpoints that hold it.

    Parameters
    ----------
    folder
        Where checkpoints are, or None for none. With several workers each has a folder in it.
    identity
        What has to be the same when a fit is taken up again, as from `identity_of`.
    placement
        Which of several workers this is; by way of it they agree.

    Raises
    ------
    ValueError
        If there is a checkpoint that is damaged, or of another fit.
    """

    def __init__(
        self,
        folder: str | Path | None,
        identity: dict[str, Any],
        placement: Placement = SINGLE_DEVICE,
    ) -> None:
        self.identity, self.placement = identity, placement
        self.entries: list[Entry] = []
        self.position = 0
        self.restored: dict[str, Any] = {}
        self.folder = None if folder is None else Path(folder) / f"worker-{placement.worker}"
        self._last, self._warned = time.monotonic(), False
        if self.folder is not None:
            self._restore(self.folder)

    @property
    def replaying(self) -> bool:
        """Whether the next entry is known already."""
        return self.position < len(self.entries)

    def recall(self, compute: Callable[[], Entry]) -> Entry:
        """The next entry: from the checkpoint, or computed, and noted down."""
        if not self.replaying:
            self.entries.append(compute())
        self.position += 1
        return self.entries[self.position - 1]

    def due(self) -> bool:
        """Whether it is time for a checkpoint, on all workers."""
        if self.folder is None or self.replaying:
            return False
        return bool(self.placement.smallest(int(time.monotonic() - self._last >= EVERY)))

    def save(self, state: Entry) -> None:
        """Write a checkpoint: the entries, and the state after them. Where that is not possible,
        the first time, warn."""
        assert self.folder is not None
        text = io.BytesIO()
        named: dict[str, Any] = {
            f"{i}.{k}": v for i, e in enumerate(self.entries) for k, v in e.items()
        }
        np.savez(text, **named)  # no `allow_pickle=False`: before NumPy 2.2 that is one more array
        values = state | {"journal": text.getvalue(), "identity": json.dumps(self.identity)}
        self._last = time.monotonic()
        try:
            checkpoint_files.write(self.folder, len(self.entries), values)
        except (OSError, tf.errors.OpError) as error:
            if not self._warned:
                warnings.warn(
                    f"checkpoint: expected {self.folder} to take another one, got {error}; the fit "
                    "goes on and will try again, but if it is broken off, it falls back on the "
                    "last one that is there",
                    stacklevel=2,
                )
            self._warned = True

    def _restore(self, folder: Path) -> None:
        paths = checkpoint_files.found(folder)
        number = self.placement.smallest(max(paths, default=0))
        if number == 0:
            return
        try:
            values = checkpoint_files.read(paths[number])
            then, journal = json.loads(values.pop("identity")), values.pop("journal")
        except (KeyError, IndexError, ValueError, tf.errors.OpError) as error:
            raise ValueError(
                f"checkpoint: expected number {number} in {folder}, and readable, got {error}; "
                "take the folder away to begin anew"
            ) from error
        if then != self.identity:
            both = self.identity | then
            wrong = {k: then.get(k) for k in both if self.identity.get(k) != then.get(k)}
            now = {k: self.identity.get(k) for k in wrong}
            raise ValueError(
                f"checkpoint: expected the fit that {folder} was written by, with {wrong}, "
                f"got {now}; give another folder"
            )
        with np.load(io.BytesIO(journal), allow_pickle=False) as entries:
            for name, value in entries.items():
                i, key = name.split(".", 1)
                self.entries += [{} for _ in range(int(i) + 1 - len(self.entries))]
                self.entries[int(i)][key] = value
        self.restored = values


def to_disk(state: State, placement: Placement) -> Entry:
    """What of a state cannot be had from the entries: all but the parameters."""
    return {
        f"{name}_{k}_{i}": part.numpy()
        for name in NOT_RECALLED
        for k, value in enumerate(getattr(state, name))
        for i, part in enumerate(placement.parts(value))
    }


def from_disk(state: State, values: Mapping[str, Any], placement: Placement) -> State:
    """The inverse: a state of the same shapes, with these values."""
    found: dict[str, Any] = {}
    for name in NOT_RECALLED:
        found[name] = []
        for k, value in enumerate(getattr(state, name)):
            parts = [
                tf.constant(values[f"{name}_{k}_{i}"]) for i in range(len(placement.parts(value)))
            ]
            found[name].append(placement.whole(parts) if k == placement.shared else parts[0])
    return state._replace(**found)


def identity_of(design: Design, chains: int, seed: int, devices: int) -> dict[str, Any]:
    """What makes a fit the fit it is; of its rows a checksum."""
    rows, design = 0, coordinates.outer(design)
    of_factors = [f.codes for f in design.factors]
    of_factors += [f.z for f in design.factors if not f.intercept_only]
    for x in (design.response, design.offset, design.fixed, *of_factors):
        rows = zlib.crc32(np.ascontiguousarray(x).data, rows)
    return {
        "formula": design.formula,
        "family": re.sub(" at 0x[0-9a-f]+", "", repr(design.family)),  # where functions lie
        "rows": design.rows,
        "checksum": rows,
        "chains": chains,
        "seed": seed,
        "devices": devices,
    }
