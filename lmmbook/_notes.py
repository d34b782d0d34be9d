"""What a user should know and need not act on: a warning, as from the line that called us."""

from __future__ import annotations

import os
import sys
import warnings
from types import FrameType

HERE = os.path.join(os.path.dirname(__file__), "")


def note(message: str) -> None:
    """Warn, with the caller's line: the nearest one that is not in this package.

    Examples
    --------
    >>> with warnings.catch_warnings(record=True, action="always") as caught:
    ...     note("data: left out 1 row")
    >>> caught[0].category.__name__, caught[0].filename.startswith(HERE)
    ('UserWarning', False)
    """
    frame: FrameType | None = sys._getframe()
    depth = 1
    while frame is not None and frame.f_code.co_filename.startswith(HERE):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, stacklevel=depth)
