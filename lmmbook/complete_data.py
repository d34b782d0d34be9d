"""Score and information of the complete data: what the certificate averages over draws.

Chapter 04. Fisher's identity: the gradient of log p(ratings) is the mean, over draws of the random
effects, of the gradient of log p(ratings, effects). Louis (1982): its negative Hessian is the mean
of the complete data's, minus the covariance of the gradients.

Both hold under any *centring* of the effects, and the noise is least where the complete data know
least about a parameter. So every parameter has a home:

- a fixed effect lives in the likelihood, or, where it is constant within a factor's levels, it can
  be the mean of that factor's effects instead;
- a covariance lives in the prior of its effects, or (``standardised``) scales standardised effects
  in the likelihood. The second is for small variances, of which the prior knows too much.

Parameters are counted off in local coordinates: the fixed effects; for each factor the entries of a
stretch S, with ``covariance <- (I + S) covariance (I + S)'``; the family's auxiliary parameters. S
is symmetric where effects are measured in `FactorArrays.units`. For a lone intercept it is the
change of log sd. A covariance that is singular stays so, and can still be turned.
"""

from __future__ import annotations

from itertools import combinations_with_replacement
from typing import NamedTuple

from lmmbook.arrays import (
    Arrays,
    FactorArrays,
    FactorLayout,
    Layout,
    Parameters,
    inverse,
    standardise,
    to_rows,
)
from lmmbook.likelihood import Derivatives
from lmmbook.predictor import derivatives_of

import numpy as np
import tensorflow as tf


class Home(NamedTuple):
    """Where each parameter lives; numbers (0 or 1), so that a program serves all choices.

    ``fixed`` [fixed], 1 in the likelihood. ``freed``, per factor [freed], 1 in its effects' mean.
    ``standardised``, per factor a scalar, 1 in the likelihood. A standardised factor is home to no
    fixed effect.
    """

    fixed: tf.Tensor
    freed: list[tf.Tensor]
    standardised: list[tf.Tensor]


def as_written(layout: Layout) -> Home:
    """Fixed effects in the likelihood, covariances in the prior."""
    return Home(
        tf.ones([layout.fixed]),
        [tf.zeros([len(of.freed_fixed)]) for of in layout.factors],
        [tf.constant(0.0) for _ in layout.factors],
    )


def basis(of: FactorLayout) -> np.ndarray:
    """Entries of a stretch, ``[entries, columns, columns]``: symmetric, one (pair) each."""
    matrices = []
    for block in of.blocks:
        for a, b in combinations_with_replacement(block, 2):
            matrix = np.zeros((of.columns, of.columns), np.float32)
            matrix[a, b] = matrix[b, a] = 1.0
            matrices.append(matrix)
    return np.array(matrices)


def stretches(of: FactorLayout, units: tf.Tensor) -> tf.Tensor:
    """The same in the units of effects, ``[entries, columns, columns]``: what multiplies them."""
    return tf.constant(basis(of)) * units[:, tf.newaxis] / units


def offsets(layout: Layout) -> list[int]:
    """Where each factor's stretch begins among the coordinates; last, where the auxiliary do."""
    sizes = [len(basis(of)) for of in layout.factors]
    return [int(n) for n in layout.fixed + np.cumsum([0, *sizes])]


def coordinates(layout: Layout) -> int:
    """How many there are."""
    return offsets(layout)[-1] + layout.family.auxiliary


def score_and_information(
    layout: Layout,
    arrays: Arrays,
    parameters: Parameters,
    effects: list[tf.Tensor],
    rows: tuple[tf.Tensor, ...],
    predictor: tf.Tensor,
    home: Home,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Gradient ``[chains, coordinates]`` and mean negative Hessian ``[coordinates, coordinates]``.

    Of log p(ratings, effects), the effects centred as ``home`` says, at each chain's draw.
    """
    score, information = _likelihood(layout, arrays, parameters, effects, rows, predictor, home)
    begins = offsets(layout)
    for k, (of, has) in enumerate(zip(layout.factors, arrays.factors, strict=True)):
        s, h = _prior(
            of, has, parameters.scales[k], effects[k], home.freed[k], home.standardised[k]
        )
        positions = [*of.freed_fixed, *range(begins[k], begins[k + 1])]
        place = tf.constant(np.eye(coordinates(layout), dtype=np.float32)[positions])
        score += tf.matmul(s, place)
        information += tf.matmul(tf.matmul(place, h, transpose_a=True), place)
    return score, information


def _likelihood(
    layout: Layout,
    arrays: Arrays,
    parameters: Parameters,
    effects: list[tf.Tensor],
    rows: tuple[tf.Tensor, ...],
    predictor: tf.Tensor,
    home: Home,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The part of log p(ratings | effects): through the linear predictor, and the auxiliary."""
    derivatives = derivatives_of(layout, parameters, rows, predictor)
    stretched = offsets(layout)[-1] - layout.fixed
    auxiliary = layout.family.auxiliary
    # Few fits have a factor standardised, and its derivatives cost more than all the rest.
    by_stretch, mixed, among, aside = tf.cond(
        tf.add_n(home.standardised) > 0,
        lambda: _by_stretch(layout, arrays, effects, derivatives, home),
        lambda: (
            tf.zeros([layout.chains, stretched]),
            tf.zeros([layout.fixed, stretched]),
            tf.zeros([stretched, stretched]),
            tf.zeros([stretched, auxiliary]),
        ),
    )
    gradient, own, beside, last = by_regression(arrays, derivatives)
    by_fixed, by_auxiliary = gradient[:, : layout.fixed], gradient[:, layout.fixed :]
    score = tf.concat([by_fixed * home.fixed, by_stretch, by_auxiliary], axis=1)
    own *= home.fixed * home.fixed[:, tf.newaxis]
    mixed, beside = home.fixed[:, tf.newaxis] * mixed, home.fixed[:, tf.newaxis] * beside
    return score, join(join(own, mixed, among), tf.concat([beside, aside], axis=0), last)


def by_regression(
    arrays: Arrays, derivatives: Derivatives
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """As in a regression without random effects: through fixed effects and auxiliary parameters.

    Gradient ``[chains, fixed + auxiliary]``; information, averaged over the chains, of the fixed
    effects ``[fixed, fixed]``, between them and the auxiliary ``[fixed, auxiliary]``, and of those
    ``[auxiliary, auxiliary]``.
    """
    first, second = derivatives
    by_fixed = tf.matmul(first[0], arrays.fixed, transpose_a=True)
    gradient = tf.concat([by_fixed, *(tf.reduce_sum(f, 0)[:, tf.newaxis] for f in first[1:])], 1)
    weights = [-tf.reduce_mean(h, axis=1) for h in second[0]]  # each [rows]
    own = tf.matmul(arrays.fixed, weights[0][:, tf.newaxis] * arrays.fixed, transpose_a=True)
    fixed, auxiliary = arrays.fixed.shape[1], len(first) - 1
    if not auxiliary:
        return gradient, own, tf.zeros([fixed, 0]), tf.zeros([0, 0])
    beside = tf.matmul(arrays.fixed, tf.stack(weights[1:], axis=1), transpose_a=True)
    chains = first[0].shape[1]
    last = [[-tf.reduce_sum(h) / chains for h in row[1:]] for row in second[1:]]
    return gradient, own, beside, tf.stack([tf.stack(row) for row in last])


def _by_stretch(
    layout: Layout,
    arrays: Arrays,
    effects: list[tf.Tensor],
    derivatives: Derivatives,
    home: Home,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Through the scale of standardised effects, u = (I + S) scale v: the gradient ``[chains,
    stretches]``, and the information with the fixed effects ``[fixed, stretches]``, among
    themselves, and with the auxiliary parameters ``[stretches, auxiliary]``."""
    columns = []  # of the linear predictor's derivative, each [rows, chains]
    for k, (of, has) in enumerate(zip(layout.factors, arrays.factors, strict=True)):
        for stretch in tf.unstack(stretches(of, has.units)):
            moved = tf.einsum("ij,lcj->lci", stretch, effects[k])
            columns.append(home.standardised[k] * to_rows(has, moved))
    derivative = tf.stack(columns)  # [stretches, rows, chains]
    first, second = derivatives
    flat = tf.reshape(derivative, [len(columns), -1])
    weighted = tf.reshape(-derivative * second[0][0], [len(columns), -1])
    aside = [-tf.einsum("prc,rc->p", derivative, h) / layout.chains for h in second[0][1:]]
    return (
        tf.einsum("prc,rc->cp", derivative, first[0]),
        tf.einsum("rf,prc->fp", arrays.fixed, -derivative * second[0][0]) / layout.chains,
        tf.matmul(flat, weighted, transpose_b=True) / layout.chains,
        tf.stack(aside, axis=1) if aside else tf.zeros([len(columns), 0]),
    )


def join(first: tf.Tensor, across: tf.Tensor, last: tf.Tensor) -> tf.Tensor:
    """A symmetric matrix from its blocks."""
    top = tf.concat([first, across], axis=1)
    return tf.concat([top, tf.concat([tf.transpose(across), last], axis=1)], axis=0)


def _prior(
    of: FactorLayout,
    has: FactorArrays,
    scale: tf.Tensor,
    effects: tf.Tensor,
    freed: tf.Tensor,
    standardised: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The part of log p(effects) of one factor, in its ``[freed, then stretch]`` coordinates.

    With x = scale^-1 u and G = scale^-1 S scale, u changes no more than x' (I + G + ...) x does:
    d log p = tr(G (xx' - I)), and so on to second order.
    """
    identity = tf.eye(of.columns)
    lower_inverse = tf.linalg.triangular_solve(scale, identity)
    own = tf.einsum("ij,ajk,km->aim", lower_inverse, stretches(of, has.units), scale)  # G
    standard = standardise(scale, effects)
    second = tf.einsum("lci,lcj->cij", standard, standard)  # [chains, columns, columns]
    count = float(effects.shape[0])
    score_stretch = tf.einsum("aij,cji->ca", own, second - count * identity)
    mean_second = tf.reduce_mean(second, axis=0)
    among_stretch = tf.einsum("aji,bjk,ki->ab", own, own, mean_second)
    among_stretch += 2.0 * tf.einsum("aij,bjk,ki->ab", own, own, mean_second - count / 2 * identity)
    among_stretch = (among_stretch + tf.transpose(among_stretch)) / 2

    precision = inverse(scale)
    place = tf.constant(np.eye(of.columns, dtype=np.float32)[list(of.freed_columns)])
    place = place * freed[:, tf.newaxis]  # [freed, columns]
    summed = tf.einsum("lf,lcj->cfj", has.weights, standard)  # [chains, freed, columns]
    pulled = tf.matmul(place, lower_inverse, transpose_b=True)  # scale^-1 place, [freed, columns]
    score_mean = tf.einsum("cfj,fj->cf", summed, pulled)
    gram = tf.matmul(has.weights, has.weights, transpose_a=True)
    among_mean = gram * tf.matmul(tf.matmul(place, precision), place, transpose_b=True)
    both = own + tf.linalg.matrix_transpose(own)
    across = tf.einsum("aij,fj,fi->fa", both, tf.reduce_mean(summed, axis=0), pulled)

    keep = 1.0 - standardised
    score = tf.concat([score_mean, keep * score_stretch], axis=1)
    return score, join(among_mean, keep * across, keep * among_stretch)
