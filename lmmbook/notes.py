"""What a user should know and need not act on: a warning, as from the line that called us."""

from __future__ import annotations

import os
import sys
import warnings

HERE = os.path.dirname(__file__)


def note(message: str) -> None:
    """Warn, with the caller's line: the nearest one that is not in this package.

    Examples
    --------
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     note("data: left out 1 row")
    >>> caught[0].category, os.path.dirname(caught[0].filename) == HERE
    (<class 'UserWarning'>, False)
    """
    depth = 1
    while os.path.dirname(sys._getframe(depth).f_code.co_filename) == HERE:
        depth += 1
    warnings.warn(message, stacklevel=depth + 1)
