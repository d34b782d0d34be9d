"""Score and information of the complete data: what the certificate averages over draws.

Chapter 04. Fisher's identity: the gradient of log p(ratings) is the mean, over draws of the random
effects, of the gradient of log p(ratings, effects). Louis (1982): its negative Hessian is the mean
of the complete data's, minus the covariance of the gradients.

Both hold under any *parametrisation* of the effects (Papaspiliopoulos, Roberts & Sköld 2007), and
the noise is least where the complete data know least about a parameter. So every parameter has its
own:

- a fixed effect stands in the likelihood (*non-centred*), or it is the mean of a factor's effects
  instead (*centred*), to the extent that a mean of theirs does to the ratings what the fixed effect
  does;
- a covariance stands in the prior of its effects (*centred*), or scales standardised effects in the
  likelihood (*non-centred*, ``standardised``), or in part the one, in part the other (*partially
  non-centred*). Non-centred is for small variances, of which the prior knows too much.

For one factor with an intercept beta, a scale L, LL' = Σ, and v ~ Normal(0, I):

    centred  u ~ Normal(beta, Σ), y ~ u;    non-centred  y ~ beta + L v.

Parameters are counted off in local coordinates: the fixed effects; for each factor the *tangent
coordinates* of its covariance, sigma, which are the entries of a matrix S; the family's auxiliary
parameters. The covariance is a point on a surface, and S a direction along it:

    Σ <- (I + S) Σ (I + S)'    or exp(S) Σ exp(S)', the same to first order.

(Where a part of S is in the likelihood and a part in the prior, I + S is the product of theirs, in
this order.) S is symmetric where effects are measured in `FactorArrays.units`. For a lone intercept
it is the change of log sd. A covariance that is singular stays so, and can still be turned.
"""

from __future__ import annotations

from typing import NamedTuple

from lmmbook.engine.arrays import (
    Arrays,
    FactorArrays,
    FactorLayout,
    Layout,
    State,
    inverse,
    one_hot,
)
from lmmbook.engine.placement import SINGLE_DEVICE, Placement
from lmmbook.engine.row_sums import LevelSums, TangentSums, join, level_sums, likelihood_sums
from lmmbook.families.derivatives import RegressionSums

import numpy as np
import tensorflow as tf


class Parametrisation(NamedTuple):
    """A centred, non-centred or partially non-centred parametrisation of each parameter.

    Numbers, so that a program serves all choices.

    ``means``, per factor ``[expanded + columns, fixed]``: what a fixed effect of one adds to the
    mean of its effects, as coefficients of the covariates that the factor can take over, and of a
    constant for each column (see `means_of`). What this does to the ratings is taken away from the
    fixed effect's column in the likelihood. ``standardised``, per factor ``[tangents,
    tangents]``: the part of S that is in the likelihood, zeros for none and the identity for all.
    """

    means: list[tf.Tensor]
    standardised: list[tf.Tensor]


def as_written(layout: Layout) -> Parametrisation:
    """As the formula is written: fixed effects in the likelihood (non-centred), covariances in the
    prior (centred)."""
    return Parametrisation(
        [tf.zeros([len(mean_columns(factor)), layout.fixed]) for factor in layout.factors],
        [tf.zeros(2 * [len(factor.pairs)]) for factor in layout.factors],
    )


def mean_columns(layout: FactorLayout) -> tuple[int, ...]:
    """``[expanded + columns]``: which column of a factor each coefficient of the `means` is of."""
    return (*layout.expanded_columns, *range(layout.columns))


def mean_weights(arrays: FactorArrays) -> tf.Tensor:
    """``[levels, expanded + columns]``: what it is multiplied by in each level."""
    levels, columns = arrays.cross.shape[:2]
    return tf.concat([arrays.weights, tf.ones([levels, columns])], axis=1)


def means_of(layout: FactorLayout, arrays: FactorArrays, means: tf.Tensor) -> tf.Tensor:
    """``[levels, fixed, columns]``: the mean of effects, for a fixed effect of one."""
    place = one_hot(mean_columns(layout), layout.columns)
    return tf.einsum("lm,mf,mj->lfj", mean_weights(arrays), means, place)


def tangents(layout: FactorLayout, arrays: FactorArrays) -> tf.Tensor:
    """The matrices S of a basis in the units of effects, ``[tangents, columns, columns]`` float64:
    what multiplies them."""
    identity = tf.eye(layout.columns, dtype=tf.float64)
    inverse = tf.linalg.triangular_solve(arrays.units, identity, lower=False)
    return arrays.units @ tf.constant(layout.tangent_basis, tf.float64) @ inverse


def offsets(layout: Layout) -> list[int]:
    """Where each factor's tangent coordinates begin; last, where the auxiliary do."""
    sizes = [len(factor.pairs) for factor in layout.factors]
    return [int(n) for n in layout.fixed + np.cumsum([0, *sizes])]


def coordinates(layout: Layout) -> int:
    """How many there are."""
    return offsets(layout)[-1] + layout.family.auxiliary


def score_and_information(
    layout: Layout,
    arrays: Arrays,
    state: State,
    parametrisation: Parametrisation,
    placement: Placement = SINGLE_DEVICE,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Gradient ``[chains, coordinates]`` and mean negative Hessian ``[coordinates, coordinates]``.

    Of log p(ratings, effects), in this ``parametrisation``, at each chain's draw. float64.
    """
    _, (regression, tangent) = placement.rows(
        in_likelihood, (layout,), arrays, state, parametrisation
    )
    begins, size = offsets(layout), coordinates(layout)
    by_fixed, by_auxiliary = tf.split(
        regression.gradient, [layout.fixed, layout.family.auxiliary], 1
    )
    part = tf.linalg.LinearOperatorBlockDiag(
        [
            tf.linalg.LinearOperatorFullMatrix(tf.cast(s, tf.float64))
            for s in parametrisation.standardised
        ]
    ).to_dense()
    score = tf.concat([by_fixed, tangent.gradient @ part, by_auxiliary], axis=1)
    sigma_auxiliary, sigma_sigma = (
        tf.matmul(part, x, transpose_a=True) for x in (tangent.sigma_auxiliary, tangent.sigma_sigma)
    )
    with_auxiliary = tf.concat([regression.beta_auxiliary, sigma_auxiliary], axis=0)
    of_both = join(regression.beta_beta, tangent.beta_sigma @ part, sigma_sigma @ part)
    information = join(of_both, with_auxiliary, regression.auxiliary_auxiliary)
    for k, (factor_layout, factor_arrays, scale) in enumerate(
        zip(layout.factors, arrays.factors, state.parameters.scales, strict=True)
    ):
        u = state.effects[k]
        _, sums = placement.levels(k, _sums_with_means, (), factor_arrays, scale, u)
        own = parametrisation.means[k], parametrisation.standardised[k]
        s, h = _prior(factor_layout, factor_arrays, scale, sums, *own)
        positions = [*range(layout.fixed), *range(begins[k], begins[k + 1])]
        place = tf.cast(one_hot(positions, size), tf.float64)
        score += tf.matmul(s, place)
        information += tf.matmul(tf.matmul(place, h, transpose_a=True), place)
    return score, information


def in_likelihood(
    layout: Layout,
    arrays: Arrays,
    state: State,
    parametrisation: Parametrisation,
) -> tuple[None, tuple[RegressionSums, TangentSums]]:
    """The part of log p(ratings given effects), as `row_sums.likelihood_sums`."""
    of_each = list(zip(layout.factors, arrays.factors, strict=True))
    means = [means_of(*both, m) for both, m in zip(of_each, parametrisation.means, strict=True)]
    basis = [tangents(*both) for both in of_each]
    asked = [tf.cast(tf.reduce_any(part != 0), tf.float32) for part in parametrisation.standardised]
    return likelihood_sums(layout, arrays, state, means, basis, asked)


def _sums_with_means(
    arrays: FactorArrays, scale: tf.Tensor, u: tf.Tensor
) -> tuple[None, LevelSums]:  # fmt: skip
    return level_sums(arrays._replace(weights=mean_weights(arrays)), scale, u)


def _prior(
    layout: FactorLayout,
    arrays: FactorArrays,
    scale: tf.Tensor,
    sums: LevelSums,
    means: tf.Tensor,
    standardised: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The part of log p(effects) of one factor, in the coordinates ``[fixed, then tangent]``.

    With x = scale^-1 u and G = scale^-1 S scale, u changes no more than x' (I + G + ...) x does:
    d log p = tr(G (xx' - I)), and so on to second order.
    """
    scale, means, standardised = (tf.cast(x, tf.float64) for x in (scale, means, standardised))
    tangent = tangents(layout, arrays)
    identity = tf.eye(layout.columns, dtype=tf.float64)
    lower_inverse = tf.linalg.triangular_solve(scale, identity)
    g = tf.einsum("ij,ajk,km->aim", lower_inverse, tangent, scale)  # G
    score_sigma = tf.einsum("aij,cji->ca", g, sums.second - sums.levels * identity)
    mean_second = tf.reduce_mean(sums.second, axis=0)
    sigma_sigma = tf.einsum("aji,bjk,ki->ab", g, g, mean_second)
    surplus = mean_second - sums.levels / 2 * identity
    sigma_sigma += 2.0 * tf.einsum("aij,bjk,ki->ab", g, g, surplus)
    sigma_sigma = (sigma_sigma + tf.transpose(sigma_sigma)) / 2

    precision = inverse(scale)
    place = tf.cast(one_hot(mean_columns(layout), layout.columns), tf.float64)  # [means, columns]
    pulled = tf.matmul(place, lower_inverse, transpose_b=True)  # scale^-1 place, [means, columns]
    score_beta = tf.einsum("cmj,mj,mf->cf", sums.weighted, pulled, means)
    beta_beta = sums.gram * tf.matmul(tf.matmul(place, precision), place, transpose_b=True)
    beta_beta = tf.matmul(means, tf.matmul(beta_beta, means), transpose_a=True)
    both = g + tf.linalg.matrix_transpose(g)
    beta_sigma = tf.einsum("aij,mj,mi->ma", both, tf.reduce_mean(sums.weighted, axis=0), pulled)
    beta_sigma = tf.matmul(means, beta_sigma, transpose_a=True)

    keep = tf.eye(len(layout.pairs), dtype=tf.float64) - standardised
    score = tf.concat([score_beta, score_sigma @ keep], axis=1)
    sigma_sigma = tf.matmul(keep, sigma_sigma @ keep, transpose_a=True)
    return score, join(beta_beta, beta_sigma @ keep, sigma_sigma)
