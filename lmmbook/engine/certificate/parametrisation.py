"""The parametrisation of the certificate: where the effects go while the parameters move.

Chapter 04. Fisher's and Louis' identities (`louis`) hold whatever the effects do meanwhile, if it
is the same rule for all draws: stay where they are (*centred*), stretch with their sd
(*non-centred*), or anything else (Papaspiliopoulos, Roberts & Sköld 2007). The better they follow
their own conditional distribution, the less the complete data know beyond the ratings, and the less
noise is in the mean of their scores.

If that distribution is normal, with precision P and mean b, the best is known. With every effect
divided by its sd, ``u = L x``, and b the mean of x:

    a fixed effect with column z        moves x by  -P^-1 L'Z'W z
    a covariance whose score has x'G x          by   P^-1 (G x + G'b)
    the log of the residual sd                  by   (x - b) - P^-1 (x + b)

and no noise is left. (So it is with any other matrix that has G's symmetric part. But where a
covariance is singular, G alone moves no effect far.) P has all effects on its sides. So it is
inverted where that is cheap: among the effects of *coarse* factors, of few levels, and what others
do to compensate for them; of each other level on its own (then this is Rao-Blackwell's theorem,
given all other levels).
"""

from __future__ import annotations

from typing import NamedTuple

from lmmbook.engine.arrays import Arrays, Layout
from lmmbook.engine.placement import SINGLE_DEVICE, Placement

import numpy as np
import tensorflow as tf

COARSE = 40  # effects (levels x columns) of the coarse factors together, at most


class Parametrisation(NamedTuple):
    """Where standardised effects x go, for each parameter that changes by one: numbers, so that a
    program serves all choices.

    One a factor: ``shift`` [levels, fixed + auxiliary, columns], for these parameters; ``centre``
    [levels, columns], b; ``shrinkage`` [levels, columns, columns], I - P^-1 of a level on its own,
    which is how far its effects are from zero of how far its ratings would put them; ``answer``
    [levels, effects, columns], what they do when a coarse effect moves by one. The last two are
    empty for coarse factors, which have ``coarse`` [effects, effects], I - P^-1 of all of them
    together. ``follow`` is 1 if effects stretch with the residual sd, else 0.
    """

    shift: list[tf.Tensor]
    centre: list[tf.Tensor]
    shrinkage: list[tf.Tensor]
    answer: list[tf.Tensor]
    coarse: tf.Tensor
    follow: tf.Tensor


def coarse_factors(layout: Layout) -> list[int]:
    """Those with few effects; never the one with the most levels, which may be on other devices."""
    sizes = {k: f.levels * f.columns for k, f in enumerate(layout.factors)}
    del sizes[int(np.argmax([f.levels for f in layout.factors]))]
    found: list[int] = []
    for k in sorted(sizes, key=lambda k: sizes[k]):
        if sizes[k] + sum(sizes[j] for j in found) <= COARSE:
            found.append(k)
    return sorted(found)


def begins(layout: Layout) -> list[int]:
    """Where the effects of each coarse factor begin among all of them; last, how many these are."""
    sizes = [layout.factors[k].levels * layout.factors[k].columns for k in coarse_factors(layout)]
    return [int(n) for n in np.cumsum([0, *sizes])]


def as_written(
    layout: Layout, arrays: Arrays, placement: Placement = SINGLE_DEVICE
) -> Parametrisation:
    """As the formula is written: effects stay where they are."""
    some, size = coarse_factors(layout), begins(layout)[-1]
    parts = [
        placement.levels(k, _still, (layout, size, k in some), factor.cross)[0]
        for k, factor in enumerate(arrays.factors)
    ]
    shift, centre, shrinkage, answer = (list(part) for part in zip(*parts, strict=True))
    return Parametrisation(shift, centre, shrinkage, answer, tf.eye(size), tf.constant(0.0))


def _still(
    layout: Layout, size: int, coarse: bool, cross: tf.Tensor
) -> tuple[list[tf.Tensor], None]:
    levels, columns = cross.shape[:2]
    fine, shifts = 0 if coarse else levels, layout.fixed + layout.family.auxiliary
    return [
        tf.zeros([levels, shifts, columns]),
        tf.zeros([levels, columns]),
        tf.eye(columns, batch_shape=[fine]),
        tf.zeros([fine, size, columns]),
    ], None


def flat(x: tf.Tensor) -> tf.Tensor:
    """``[levels * columns, n]`` from ``[levels, n, columns]``."""
    levels, n, columns = x.shape
    return tf.reshape(tf.transpose(x, [0, 2, 1]), [levels * columns, n])


def shaped(x: tf.Tensor, columns: int) -> tf.Tensor:
    """The inverse of `flat`."""
    return tf.transpose(tf.reshape(x, [-1, columns, x.shape[1]]), [0, 2, 1])
