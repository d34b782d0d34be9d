"""What keeps a fit from being known to have converged, in words.

Chapter 04. Either a covariance may be at its boundary, or may not; or the data say next to nothing
in some direction. Both have a name, and something to do about it.
"""

from __future__ import annotations

from lmmbook import certificate, covariance
from lmmbook.course import Course
from lmmbook.settle import NO_GAIN

import numpy as np


def obstacle(course: Course) -> str | None:
    """A clause for the warning, with what to do; None where only the sweeps were too few."""
    found = course.found
    if found is None:
        return None
    if found.unknown:
        about = f"about {listed(found.unknown)}{' together' if len(found.unknown) > 1 else ''}"
        if certificate.BELIEVED * np.sqrt(2 / found.ess) > 2 * certificate.SINGULAR:
            return f"so few draws say nothing {about}: try a larger max_sweeps, or a simpler model"
        return (
            f"the data say next to nothing {about}: leave out one of the terms, or centre the "
            "covariates; a larger max_sweeps will hardly help"
        )
    if block := course.trying or course.doubtful():
        names = covariance.names_of_block(course.design.factors[block[0]], block[1])
        return (
            f"it is not known whether the maximum has no variance in some direction of "
            f"{listed(names)}: with one, the log-likelihood may be more than {NO_GAIN} higher; try "
            f"a larger max_sweeps, which may tell, or a model without one of these terms"
        )
    return None


def listed(names: tuple[str, ...] | list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
