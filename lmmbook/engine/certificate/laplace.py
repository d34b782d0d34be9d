"""Where the effects are likely to be, without a draw: Laplace's approximation.

Chapter 04. At given parameters, the mode of the effects' conditional density, by Newton's steps
(penalised iteratively reweighted least squares, as in lme4: Bates, Mächler, Bolker & Walker 2015),
and the precision there. For Gaussian ratings both are exact. For others they are near; here that is
enough, since what comes of them is right in any case (`parametrisation`), and only more or less
noisy.
"""

from __future__ import annotations

from lmmbook.engine.arrays import Arrays, Layout, Parameters
from lmmbook.engine.certificate.parametrisation import (
    Parametrisation,
    begins,
    coarse_factors,
    flat,
    shaped,
)
from lmmbook.engine.certificate.pieces import Effects, Pieces
from lmmbook.engine.certificate.precision import SMALL, Precision
from lmmbook.engine.certificate.working import (
    Working,
    mean_squares,
    pulled,
    right_sides,
    solved_for,
    working,
)
from lmmbook.engine.placement import SINGLE_DEVICE, Placement

import tensorflow as tf

NEWTON_STEPS = 6  # at most
LONGEST = 2.0  # of one, for what a level adds to a linear predictor (root mean square of its rows)
SHORT = 0.03  # of a step, for the mode: near enough for what only lowers noise
ROUGH = 1e-2  # squared residual, relative to what it was, that is left where steps go on


class Laplace:
    """The approximation at given parameters: the ``mode`` [levels, 1, columns] a factor, what rows
    are there (``working``), and the effects' ``precision``."""

    def __init__(self, layout: Layout, arrays: Arrays, parameters: Parameters,
                 placement: Placement = SINGLE_DEVICE) -> None:  # fmt: skip
        self.layout, self.parameters = layout, parameters
        self.pieces = Pieces(layout, arrays, placement)
        self._at([self.pieces.each(k, _zeros, f.cross) for k, f in enumerate(arrays.factors)])
        if layout.gaussian:  # one step arrives, and nothing but the mode changes by it
            self.mode = self._moved(self._newton_step(SMALL))
            return
        sizes = self.pieces.by_level(mean_squares, (), parameters.scales)
        for _ in range(NEWTON_STEPS):
            step = self._newton_step(ROUGH)
            step = [self.pieces.each(k, _damped, s, sizes[k]) for k, s in enumerate(step)]
            self._at(self._moved(step))
            square = [self.pieces.dot(dict(enumerate(x)), x) for x in (step, self.mode)]
            if bool(square[0] < SHORT**2 * square[1]):
                break

    def _at(self, mode: Effects) -> None:
        self.mode = mode
        self.working: Working = self.pieces.rows(working, (), self.parameters, mode)[0]
        self.precision = Precision(self.pieces, self.parameters.scales, self.working.weight)

    def _newton_step(self, left: float) -> Effects:
        pull = self.pieces.by_level(pulled, (), self.parameters.scales, self.working.slope)
        right = [self.pieces.each(k, tf.subtract, p, self.mode[k]) for k, p in enumerate(pull)]
        return self.precision.solve(right, list(self.pieces.factors), left)

    def _moved(self, step: Effects) -> Effects:
        return [self.pieces.each(k, tf.add, x, step[k]) for k, x in enumerate(self.mode)]

    def parametrisation(self) -> Parametrisation:
        """The one with the least noise."""
        layout, each = self.layout, self.pieces.each
        coarse, begin = coarse_factors(layout), begins(layout)
        fine, size = [k for k in self.pieces.factors if k not in coarse], begin[-1]
        right = self.pieces.by_level(right_sides, (), self.parameters.scales, self.working)
        solved = self.precision.solve(right, fine)
        shrinkage, moved = self._of_coarse(right, self.precision.told(solved, fine))
        auxiliary = layout.fixed + layout.family.auxiliary - solved_for(layout)
        shift, answer = list(solved), list(solved)
        for k in fine:
            shift[k] = each(k, _fine_shift, solved[k], moved, static=(auxiliary,))
            answer[k] = each(k, _answer, solved[k], static=(size,))
        for k, at in zip(coarse, begin, strict=False):
            own = layout.factors[k]
            part = shaped(moved[at : at + own.levels * own.columns], own.columns)
            shift[k], answer[k] = _negative(auxiliary, part), solved[k][:0, :size]
        return Parametrisation(
            shift,
            [each(k, _centre, x) for k, x in enumerate(self.mode)],
            [x[:0] if k in coarse else x for k, x in enumerate(self.precision.shrinkage)],
            answer,
            shrinkage,
            tf.constant(1.0),
        )

    def _of_coarse(self, right: Effects, back: Effects) -> tuple[tf.Tensor, tf.Tensor]:
        """`Parametrisation.coarse`, and where coarse effects go ``[effects, fixed + auxiliary]``,
        when the fine ones follow: what these give ``back`` is less to be solved for."""
        size, others = begins(self.layout)[-1], solved_for(self.layout)
        if not size:
            return tf.zeros([0, 0]), tf.zeros([0, others])
        own = tf.concat([flat(right[k] - back[k]) for k in coarse_factors(self.layout)], axis=0)
        told, asked = tf.split(tf.cast(own, tf.float64), [size, others], axis=1)
        told = (told + tf.transpose(told)) / 2
        inverse = tf.linalg.inv(told + tf.eye(size, dtype=tf.float64))
        return tf.cast(inverse @ told, tf.float32), tf.cast(inverse @ asked, tf.float32)


# Of one factor's levels


def _zeros(cross: tf.Tensor) -> tf.Tensor:
    return tf.zeros_like(cross[:, :1])


def _damped(step: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    length = tf.sqrt(tf.einsum("lni,lij,lnj->ln", step, size, step))[..., tf.newaxis]
    return step / tf.maximum(length / LONGEST, 1.0)


def _centre(mode: tf.Tensor) -> tf.Tensor:
    return mode[:, 0]


def _answer(size: int, solved: tf.Tensor) -> tf.Tensor:
    return -solved[:, :size]


def _fine_shift(auxiliary: int, solved: tf.Tensor, moved: tf.Tensor) -> tf.Tensor:
    """Of a fine factor: its own, less what it does in answer to the coarse effects' ``moved``."""
    size = moved.shape[0]
    return _negative(
        auxiliary, solved[:, size:] - tf.einsum("lmi,mn->lni", solved[:, :size], moved)
    )


def _negative(auxiliary: int, shift: tf.Tensor) -> tf.Tensor:
    return tf.pad(-shift, [[0, 0], [0, auxiliary], [0, 0]])
