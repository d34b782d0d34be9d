"""Where the effects are likely to be, without a draw: Laplace's approximation.

Chapter 04. At given parameters, the mode of the effects' conditional density, by Newton's steps
(penalised iteratively reweighted least squares, as in lme4: Bates, Mächler, Bolker & Walker 2015),
and the precision there. For Gaussian ratings both are exact. For others they are near; here that is
enough, since what comes of them is right in any case (`parametrisation`), and only more or less
noisy.

All linear systems are solved by conjugate gradients, in standardised effects x, with ``u = L x``:
P = I + L'Z'WZL, preconditioned by its blocks on the diagonal, one a level.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

from lmmbook.engine.arrays import Arrays, Layout, Parameters
from lmmbook.engine.certificate.parametrisation import (
    Parametrisation,
    begins,
    coarse_factors,
    flat,
    shaped,
)
from lmmbook.engine.certificate.working import (
    Effects,
    blocks,
    mean_squares,
    pulled,
    right_sides,
    weighted,
    working,
)
from lmmbook.engine.placement import SINGLE_DEVICE, Placement

import tensorflow as tf

NEWTON_STEPS = 6  # at most
LONGEST = 2.0  # of one, for what a level adds to a linear predictor (root mean square of its rows)
SHORT = 0.03  # of a step, for the mode: near enough for what only lowers noise
STEPS = 12  # of conjugate gradients
FEW_ROWS = 20_000  # that are not worth compiling for
SMALL, ROUGH = 1e-4, 1e-2  # squared residual, relative to what it was, that is left


class Laplace:
    """The approximation at given parameters: `mode` [levels, 1, columns] a factor, and what solves
    linear systems there.
    """

    def __init__(self, layout: Layout, arrays: Arrays, parameters: Parameters,
                 placement: Placement = SINGLE_DEVICE) -> None:  # fmt: skip
        self.layout, self.arrays, self.parameters = layout, arrays, parameters
        self.placement = placement
        self.factors = range(len(layout.factors))
        self.coarse = coarse_factors(layout)
        self.fine = [k for k in self.factors if k not in self.coarse]
        self.mode = [self._each(k, _zeros, factor.cross) for k, factor in enumerate(arrays.factors)]
        sizes = self._of_levels(mean_squares, (), parameters.scales)
        for _ in range(1 if layout.gaussian else NEWTON_STEPS):
            self._work()
            right = self._of_levels(pulled, (), parameters.scales, self.working.slope)
            right = [self._each(k, _less, right[k], self.mode[k]) for k in self.factors]
            step = self.solve(right, [*self.factors], SMALL if layout.gaussian else ROUGH)
            if not layout.gaussian:
                step = [self._each(k, _damped, step[k], size) for k, size in enumerate(sizes)]
            self.mode = [self._each(k, _plus, self.mode[k], step[k]) for k in self.factors]
            if self._square(step) < SHORT**2 * self._square(self.mode):
                break
        if not layout.gaussian:
            self._work()

    def _square(self, x: Effects) -> float:
        """The sum of squares of all effects."""
        return float(sum(self._levels(k, _dot, x[k], x[k])[1][0] for k in self.factors))

    def _work(self) -> None:
        given = self.parameters, self.mode
        self.working = self._rows(working, (), *given)[0]
        found = self._of_levels(blocks, (), self.parameters.scales, self.working.weight)
        self.inverse = [self._each(k, _inverse, found[k]) for k in self.factors]
        self.shrinkage = [
            self._each(k, _shrinkage, self.inverse[k], found[k]) for k in self.factors
        ]

    def _rows(self, function: Callable, static: tuple, *tensors: Any) -> tuple[Any, Any]:
        """By way of all rows, compiled."""
        static, tensors = (self.layout, *static), (self.arrays, *tensors)
        if self.placement.shared is None and self.layout.rows < FEW_ROWS:
            return function(*static, *tensors)
        if self.placement.shared is None:
            return _compiled(function, static)(*tensors)
        return _graph(self.placement, None, function, static)(*tensors)

    def _of_levels(self, function: Callable, static: tuple, *tensors: Any) -> Effects:
        """What a function of rows finds for the levels of each factor."""
        shared = self.placement.shared
        stay, found = self._rows(function, (shared, *static), *tensors)
        return [stay if k == shared else found[k] for k in self.factors]

    def _each(self, k: int, function: Callable, *tensors: Any) -> Any:
        """What a function of a factor's levels leaves there."""
        return self._levels(k, function, *tensors)[0]

    def _levels(self, k: int, function: Callable, *tensors: Any) -> tuple[Any, Any]:
        if k == self.placement.shared:
            return _graph(self.placement, k, function, ())(*tensors)
        return function(*tensors)

    def product(self, x: Effects, some: list[int]) -> Effects:
        """L'Z'WZL x, of ``some`` factors' x only; for all factors."""
        given = self.parameters.scales, self.working.weight
        return self._of_levels(weighted, (tuple(some),), *given, x)

    def solve(self, right: Effects, some: list[int], left: float = SMALL) -> Effects:
        """``P^-1 right`` among ``some`` factors' effects, until ``left`` is the squared residual,
        relative to what it was."""
        x = [self._each(k, _nothing, right[k]) for k in self.factors]
        residual, direction, size = list(right), None, None
        first = None
        for _ in range(STEPS):
            scaled = {k: self._each(k, _times, self.inverse[k], residual[k]) for k in some}
            now = sum(self._levels(k, _dot, residual[k], scaled[k])[1] for k in some)
            first = now if first is None else first
            if bool(tf.reduce_all(now <= left * first)):
                break
            if direction is None:
                direction = [scaled.get(k, x[k]) for k in self.factors]
            else:
                turn = tf.math.divide_no_nan(now, size)
                for k in some:
                    direction[k] = self._each(k, _further, scaled[k], direction[k], turn)
            size = now
            image = self.product(direction, some)
            for k in some:
                image[k] = self._each(k, _plus, image[k], direction[k])
            along = sum(self._levels(k, _dot, direction[k], image[k])[1] for k in some)
            length = tf.math.divide_no_nan(now, along)
            for k in some:
                x[k] = self._each(k, _further, x[k], direction[k], length)
                residual[k] = self._each(k, _further, residual[k], image[k], -length)
        return x

    def parametrisation(self) -> Parametrisation:
        """The one with the least noise."""
        layout, factors = self.layout, self.layout.factors
        size = begins(layout)[-1]
        right = self._of_levels(right_sides, (), self.parameters.scales, self.working)
        solved = self.solve(right, self.fine)
        back = self.product(solved, self.fine)
        shifts = [self._each(k, _after, solved[k], tf.constant(size)) for k in self.factors]
        shrinkage = tf.zeros([size, size])
        if size:
            own = tf.concat([flat(right[k] - back[k]) for k in self.coarse], axis=0)
            own = tf.cast(own, tf.float64)
            told = (own[:, :size] + tf.transpose(own[:, :size])) / 2
            inverse = tf.linalg.inv(told + tf.eye(size, dtype=tf.float64))
            shrinkage = tf.cast(tf.matmul(inverse, told), tf.float32)
            moved = tf.cast(tf.matmul(inverse, own[:, size:]), tf.float32)
            for k in self.fine:
                shifts[k] = self._each(k, _answered, solved[k], moved)
            for k, begin in zip(self.coarse, begins(layout), strict=False):
                part = moved[begin : begin + factors[k].levels * factors[k].columns]
                shifts[k] = shaped(part, factors[k].columns)
        auxiliary = 0 if not layout.gaussian else layout.family.auxiliary
        shift = [self._each(k, _shift, s, tf.zeros([auxiliary])) for k, s in enumerate(shifts)]
        empty = [k in self.coarse for k in self.factors]
        return Parametrisation(
            shift,
            [self._each(k, _centre, x) for k, x in enumerate(self.mode)],
            [x[:0] if none else x for x, none in zip(self.shrinkage, empty, strict=True)],
            [
                s[:0, :size] if none else self._each(k, _answer, s, tf.zeros([size]))
                for k, (s, none) in enumerate(zip(solved, empty, strict=True))
            ],
            shrinkage,
            tf.constant(1.0),
        )


@cache
def _graph(placement: Placement, k: int | None, function: Callable, static: tuple) -> Callable:
    """On several devices: of all rows, or of factor k's levels."""
    go = placement.rows if k is None else partial(placement.levels, k)
    return tf.function(partial(go, function, static), autograph=False)


@cache
def _compiled(function: Callable, static: tuple) -> Callable:
    return tf.function(partial(function, *static), jit_compile=True, autograph=False)


# Of one factor's levels


def _zeros(cross: tf.Tensor) -> tuple[tf.Tensor, None]:
    return tf.zeros_like(cross[:, :1]), None


def _nothing(x: tf.Tensor) -> tuple[tf.Tensor, None]:
    return tf.zeros_like(x), None


def _plus(x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, None]:
    return x + y, None


def _less(x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, None]:
    return x - y, None


def _further(x: tf.Tensor, y: tf.Tensor, by: tf.Tensor) -> tuple[tf.Tensor, None]:
    return x + by[:, tf.newaxis] * y, None


def _damped(step: tf.Tensor, size: tf.Tensor) -> tuple[tf.Tensor, None]:
    length = tf.sqrt(tf.einsum("lni,lij,lnj->ln", step, size, step))[..., tf.newaxis]
    return step / tf.maximum(length / LONGEST, 1.0), None


def _times(inverse: tf.Tensor, x: tf.Tensor) -> tuple[tf.Tensor, None]:
    return tf.einsum("lij,lnj->lni", inverse, x), None


def _dot(x: tf.Tensor, y: tf.Tensor) -> tuple[None, tf.Tensor]:
    return None, tf.einsum("lni,lni->n", x, y)


def _inverse(information: tf.Tensor) -> tuple[tf.Tensor, None]:
    columns = information.shape[1]
    if columns == 1:
        return 1.0 / (1.0 + information), None
    return tf.linalg.inv(information + tf.eye(columns)), None


def _shrinkage(inverse: tf.Tensor, information: tf.Tensor) -> tuple[tf.Tensor, None]:
    return tf.matmul(inverse, information), None


def _answered(solved: tf.Tensor, moved: tf.Tensor) -> tuple[tf.Tensor, None]:
    size = moved.shape[0]
    return solved[:, size:] - tf.einsum("lmi,mn->lni", solved[:, :size], moved), None


def _after(solved: tf.Tensor, size: tf.Tensor) -> tuple[tf.Tensor, None]:
    return solved[:, size:], None


def _shift(solved: tf.Tensor, others: tf.Tensor) -> tuple[tf.Tensor, None]:
    return tf.pad(-solved, [[0, 0], [0, others.shape[0]], [0, 0]]), None


def _centre(mode: tf.Tensor) -> tuple[tf.Tensor, None]:
    return mode[:, 0], None


def _answer(solved: tf.Tensor, size: tf.Tensor) -> tuple[tf.Tensor, None]:
    return -solved[:, : size.shape[0]], None
