"""Linear maps that make columns fit for single precision.

Chapter 04. `coordinates` says what of. With C the columns ``[rows, columns]``, a map is a matrix
``by`` [columns, columns], and the new columns are ``C @ by``.
"""

from __future__ import annotations

from collections.abc import Sequence

from lmmbook.formula.dependence import COLLINEAR, correlations, origin_of

import numpy as np

FINE = 16.0  # a column's root mean square, or one over it, up to which it is not scaled
ROUNDING = 1e-13  # a squared length, of that before, that is rounding


def centred(columns: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Columns less the means of those that are far from zero, if an intercept takes them up; and
    the map that does it."""
    by, far = np.eye(len(names)), origin_of(columns, names)
    if far is None:
        return columns, by
    # One column at a time: equal columns, of fixed and random effects, have means equal to the bit.
    means = np.array([c.mean() if m else 0.0 for c, m in zip(columns.T, far, strict=True)])
    by[list(names).index("Intercept")] -= means
    return columns - means, by


def orthogonal(products: np.ndarray, may: np.ndarray) -> np.ndarray:
    """A map that takes from a column what others make up of it, where that is nearly all.

    ``may[c, d]`` says whether d may be taken from c. Those from which the fewest may be taken come
    first, and from a column only earlier ones are taken.
    """
    by = np.eye(len(products))
    order = np.argsort(may.sum(1), kind="stable").tolist()
    for place, c in enumerate(order):
        others = [d for d in order[:place] if may[c, d]]
        cosines, length = correlations(by.T @ products @ by)
        between, with_c = cosines[np.ix_(others, others)], cosines[others, c]
        weights = np.linalg.lstsq(between, with_c, rcond=ROUNDING)[0]
        if COLLINEAR**2 < weights @ with_c < 1 - ROUNDING:
            by[:, c] -= by[:, others] @ (weights * length[c] / length[others])
    return by


def scaling(products: np.ndarray) -> np.ndarray:
    """To a root mean square of about one, by a power of two: that rounds nothing."""
    size = np.sqrt(np.diag(products))
    wild = (size > FINE) | ((size < 1 / FINE) & (size > 0))
    return np.diag(np.where(wild, 2.0 ** -np.round(np.log2(np.where(wild, size, 1.0))), 1.0))


def is_identity(by: np.ndarray) -> bool:
    """Whether a map changes nothing."""
    return np.array_equal(by, np.eye(len(by)))
