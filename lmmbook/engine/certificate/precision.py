"""The precision of standardised effects, given all ratings: products with it, and linear systems.

Chapter 04. With standardised effects x, ``u = L x``, and weights W of the rows,

    P = I + L'Z'WZL.

Systems are solved by conjugate gradients, preconditioned by P's blocks on the diagonal, one a level
(Hestenes & Stiefel 1952). Effects may be on several devices, factor by factor; TensorFlow's own
`conjugate_gradient` wants one vector of all of them.
"""

from __future__ import annotations

from lmmbook.engine.certificate.pieces import Effects, Pieces
from lmmbook.engine.certificate.working import blocks, weighted

import tensorflow as tf

STEPS = 12  # of conjugate gradients
SMALL = 1e-4  # squared residual, relative to what it was, that is left


class Precision:
    """P for the weights of rows ``[rows, 1]``. ``inverse`` [levels, columns, columns] a factor is
    that of P's block of each level, ``shrinkage`` the identity less that."""

    def __init__(self, pieces: Pieces, scales: list[tf.Tensor], weight: tf.Tensor) -> None:
        self.pieces, self.scales, self.weight = pieces, scales, weight
        information = pieces.by_level(blocks, (), scales, weight)
        self.inverse = [pieces.each(k, _inverse, x) for k, x in enumerate(information)]
        self.shrinkage = [
            pieces.each(k, tf.matmul, inverse, x)
            for k, (inverse, x) in enumerate(zip(self.inverse, information, strict=True))
        ]

    def told(self, x: Effects, some: list[int]) -> Effects:
        """``(P - I) x``, of ``some`` factors' x only; for all factors."""
        return self.pieces.by_level(weighted, (tuple(some),), self.scales, self.weight, x)

    def solve(self, right: Effects, some: list[int], left: float = SMALL) -> Effects:
        """``P^-1 right`` among ``some`` factors' effects, ``[levels, n, columns]`` a factor, until
        ``left`` is the squared residual, relative to what it was; zeros for the others."""
        each, dot = self.pieces.each, self.pieces.dot
        x = [each(k, tf.zeros_like, r) for k, r in enumerate(right)]
        residual, direction = list(right), list(x)
        first = size = None
        for _ in range(STEPS):
            scaled = {k: each(k, _times, self.inverse[k], residual[k]) for k in some}
            now = dot(scaled, residual)
            first = now if first is None else first
            if bool(tf.reduce_all(now <= left * first)):
                break
            turn = tf.zeros_like(now) if size is None else tf.math.divide_no_nan(now, size)
            size = now
            for k in some:
                direction[k] = each(k, _further, scaled[k], direction[k], turn)
            told = self.told(direction, some)
            image = {k: each(k, tf.add, told[k], direction[k]) for k in some}
            length = tf.math.divide_no_nan(now, dot(image, direction))
            for k in some:
                x[k] = each(k, _further, x[k], direction[k], length)
                residual[k] = each(k, _further, residual[k], image[k], -length)
        return x


def _inverse(information: tf.Tensor) -> tf.Tensor:
    columns = information.shape[1]
    if columns == 1:
        return 1.0 / (1.0 + information)
    return tf.linalg.inv(information + tf.eye(columns))


def _times(inverse: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    return tf.einsum("lij,lnj->lni", inverse, x)


def _further(x: tf.Tensor, y: tf.Tensor, by: tf.Tensor) -> tf.Tensor:
    return x + by[:, tf.newaxis] * y
