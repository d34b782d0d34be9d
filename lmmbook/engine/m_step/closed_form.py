"""The M-step: better parameters, given draws of the random effects.

Chapters 04 and 06. The maximum in closed form, with location expansion (PX-EM: Liu, Rubin & Wu
1998); a likelihood that is not Gaussian gets a Newton step for its part.
"""

from __future__ import annotations

from lmmbook.engine.arrays import Arrays, Layout, Parameters, State, one_hot
from lmmbook.engine.linear_predictor import shifted
from lmmbook.engine.m_step import px
from lmmbook.engine.placement import SINGLE_DEVICE, Placement
from lmmbook.engine.row_sums import ResidualSums, join, level_sums, regression_sums
from lmmbook.families.derivatives import RegressionSums

import tensorflow as tf

MAX_NEWTON_MOVE = 1.0  # of a linear predictor or an auxiliary parameter, in one Newton step
EIGENVALUE_FLOOR = 1e-4  # relative information below which a direction counts as flat


def step(
    layout: Layout,
    arrays: Arrays,
    state: State,
    gain: tf.Tensor,
    expand: bool = True,
    placement: Placement = SINGLE_DEVICE,
) -> State:
    """The M-step: new parameters, and effects, ``rows`` and ``predictor`` to match.

    ``gain`` in 0 to 1 is how far to go towards the maximum: 1 is EM, smaller values average over
    iterations (stochastic approximation: Delyon, Lavielle & Moulines 1999).

    With ``expand`` each factor's effects may have a mean during the M-step, u ~ Normal(W a, Σ): one
    coefficient a for every fixed effect that is constant within its levels (the intercept always
    is), with its values W. The mean is then folded away, ``beta += a`` and ``u -= W a``. No
    linear predictor changes, so the effects stay draws from where they were. Without it this is
    plain EM.
    """
    parameters = state.parameters
    _, sums = placement.rows(regression_sums, (layout,), arrays, state)
    regression = least_squares if layout.gaussian else newton
    change, auxiliary = regression(layout, arrays.gram, parameters, sums, gain)
    beta, scales, effects = parameters.beta + change, [], []
    for k, (factor_layout, factor_arrays, scale, u) in enumerate(
        zip(layout.factors, arrays.factors, parameters.scales, state.effects, strict=True)
    ):
        _, found = placement.levels(k, level_sums, (), factor_arrays, scale, u)
        scale, coefficients = px.step(factor_layout, layout.chains, scale, found, gain, expand)
        u, _ = placement.levels(
            k, px.without_mean, (factor_layout,), factor_arrays, u, coefficients
        )
        # What is folded changes no linear predictor.
        beta += tf.linalg.matvec(
            one_hot(factor_layout.expanded_fixed, layout.fixed), coefficients, True
        )
        scales.append(scale)
        effects.append(u)
    parameters = Parameters(beta, scales, auxiliary)
    (rows, predictor), _ = placement.rows(
        shifted, (layout,), arrays, state.predictor, parameters, change
    )
    return state._replace(parameters=parameters, effects=effects, rows=rows, predictor=predictor)


def least_squares(
    layout: Layout, gram: tf.Tensor, parameters: Parameters, sums: ResidualSums, gain: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Change of the fixed effects ``[fixed]``, and the new auxiliary: for Gaussian ratings."""
    change = sums.products
    if layout.fixed:  # by REML they are drawn, see `restricted`
        change = tf.linalg.solve(gram, change[:, tf.newaxis])[:, 0]
    step = gain * tf.cast(change, tf.float32)
    if not layout.family.estimated:
        return step, parameters.auxiliary
    explained = tf.reduce_sum(change * sums.products)
    variance = tf.cast((sums.square - explained) / layout.rows, tf.float32)
    old = tf.square(parameters.residual_sd)
    moved = old + gain * (tf.maximum(variance, px.SHRINK * old) - old)
    return step, 0.5 * tf.math.log(moved)[tf.newaxis]


def newton(
    layout: Layout,
    gram: tf.Tensor,
    parameters: Parameters,
    sums: RegressionSums,
    gain: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The same for any family: one Newton step towards the maximum, damped where it is long.

    EM does not need the M-step's maximum, only a better place. The score is averaged over the
    chains' draws, and so is the information. Where the information is not positive, in a direction,
    its size is taken instead: uphill all the same.
    """
    information = join(sums.beta_beta, sums.beta_auxiliary, sums.auxiliary_auxiliary)
    # On the scale where every parameter has an information of one.
    scale = tf.math.rsqrt(tf.maximum(tf.abs(tf.linalg.diag_part(information)), 1e-6))
    values, vectors = tf.linalg.eigh(information * scale * scale[:, tf.newaxis])
    gradient = tf.reduce_mean(sums.gradient, axis=0)
    score = tf.linalg.matvec(vectors, scale * gradient, transpose_a=True)
    step = scale * tf.linalg.matvec(vectors, score / tf.maximum(tf.abs(values), EIGENVALUE_FLOOR))
    # How far the linear predictor moves, root mean square, and each auxiliary parameter.
    change = step[: layout.fixed]
    square = tf.reduce_sum(change * tf.linalg.matvec(gram, change)) / layout.rows
    furthest = tf.sqrt(tf.maximum(square, 0.0))
    if layout.family.auxiliary:
        furthest = tf.maximum(furthest, tf.reduce_max(tf.abs(step[layout.fixed :])))
    step = gain * tf.cast(step / tf.maximum(furthest / MAX_NEWTON_MOVE, 1.0), tf.float32)
    if not layout.family.estimated:
        return step[: layout.fixed], parameters.auxiliary
    return step[: layout.fixed], parameters.auxiliary + step[layout.fixed :]
