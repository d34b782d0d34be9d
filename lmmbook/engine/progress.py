"""Progress of a long fit, in a terminal or a notebook; silent elsewhere."""

from __future__ import annotations

import os
import sys
import time

from IPython import get_ipython
from IPython.display import DisplayHandle, display

SHOWN_AFTER = 2.0  # seconds before anything is shown: a short fit needs no progress
QUIET = "LMMBOOK_QUIET"  # set in the environment to keep executed chapters free of it


class Progress:
    """One line that is overwritten, and gone at the end.

    Parameters
    ----------
    wanted
        True and False decide; None means only where somebody looks: a terminal, or a notebook
        (unless the environment variable ``LMMBOOK_QUIET`` is set).
    """

    def __init__(self, wanted: bool | None) -> None:
        shell = get_ipython()
        self.notebook = shell is not None and hasattr(shell, "kernel")
        if wanted is None:
            wanted = QUIET not in os.environ and (self.notebook or sys.stderr.isatty())
        self.wanted, self.began = wanted, time.monotonic()
        self.handle: DisplayHandle | None = None
        self.width = 0

    def show(self, done: int, budget: int, phase: str) -> None:
        """Say how far it is."""
        if self.wanted and time.monotonic() - self.began > SHOWN_AFTER:
            self._write(f"lmmbook: {phase}, {done:,} of at most {budget:,} sweeps (Ctrl-C stops)")

    def close(self) -> None:
        """Take the line away."""
        if self.width:
            self._write("")

    def _write(self, line: str) -> None:
        if self.notebook:
            shown = {"text/plain": line}
            if self.handle is None:
                self.handle = display(shown, raw=True, display_id=True)
            else:
                self.handle.update(shown, raw=True)
        else:
            print("\r" + line.ljust(self.width), end="" if line else "\r", file=sys.stderr)
        self.width = max(self.width, len(line))
