"""Progress of a long fit, in a terminal or a notebook; silent elsewhere."""

from __future__ import annotations

import os
import sys

from IPython import get_ipython
from tqdm.std import tqdm  # a line of text: the one for notebooks asks for ipywidgets

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
        notebook = hasattr(get_ipython(), "kernel")
        if wanted is None:
            wanted = QUIET not in os.environ and (notebook or sys.stderr.isatty())
        file = sys.stdout if notebook else sys.stderr  # which a notebook shows as an error
        settings = {"bar_format": "{desc}", "miniters": 1, "delay": SHOWN_AFTER, "leave": False}
        self.line = tqdm(file=file, **settings) if wanted else None

    def show(self, done: int, budget: int, phase: str) -> None:
        """Say how far it is."""
        if self.line is not None:
            text = f"lmmbook: {phase}, {done:,} of at most {budget:,} sweeps (Ctrl-C stops)"
            self.line.set_description_str(text, refresh=False)
            self.line.update()

    def close(self) -> None:
        """Take the line away."""
        if self.line is not None:
            self.line.close()
