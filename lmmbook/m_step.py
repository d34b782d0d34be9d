"""The M-step: better parameters, given draws of the random effects.

Chapters 04 and 06. Two ways: one Adam step up the gradient of the complete-data log density, as in
the TensorFlow Probability tutorial; and the maximum in closed form, with location expansion (PX-EM:
Liu, Rubin & Wu 1998), where a likelihood that is not Gaussian gets a Newton step for its part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lmmbook import complete_data
from lmmbook.arrays import Arrays, FactorArrays, FactorLayout, Layout, Parameters, standardise
from lmmbook.predictor import derivatives_of, is_gaussian

import numpy as np
import tensorflow as tf
import tf_keras

LONGEST_MOVE = 1.0  # of a linear predictor or an auxiliary parameter, in one Newton step
FLAT = 1e-4  # relative information below which a direction counts as flat
SHRINK = 0.25  # a variance shrinks at most to this fraction of itself in one M-step


def gradients_or_raise(
    loss: tf.Tensor, variables: Sequence[tf.Variable], tape: tf.GradientTape
) -> list[tf.Tensor]:
    """Gradients of ``loss``; a variable that receives none is an error, not a warning.

    Raises
    ------
    ValueError
        If a gradient is ``None``: the loss does not depend on that variable, so it would never
        train.
    """
    gradients = tape.gradient(loss, variables)
    cut = [v.name for v, g in zip(variables, gradients, strict=True) if g is None]
    if cut:
        raise ValueError(
            f"M-step: expected a gradient for every parameter, got None for {cut}; was the joint "
            "distribution built from the variable's value instead of the variable?"
        )
    return gradients


def adam_m_step(
    target_log_prob: Callable[..., tf.Tensor],
    variables: Sequence[tf.Variable],
    learning_rate: float = 0.01,
) -> Callable[[Sequence[tf.Tensor]], None]:
    """A function that makes one Adam step, given effects, a list of ``[chains, levels, columns]``.

    The gradient is that of ``log p(ratings, effects)``, averaged over the chains: by Fisher's
    identity an unbiased estimate of the gradient of ``log p(ratings)`` if the effects are draws
    from their conditional distribution.
    """
    optimizer = tf_keras.optimizers.Adam(learning_rate)
    optimizer.build(variables)

    def m_step(effects: Sequence[tf.Tensor]) -> None:
        with tf.GradientTape() as tape:
            loss = -tf.reduce_mean(target_log_prob(*effects))
        gradients = gradients_or_raise(loss, variables, tape)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))

    return m_step


def closed_form(
    layout: Layout,
    arrays: Arrays,
    parameters: Parameters,
    effects: list[tf.Tensor],
    rows: tuple[tf.Tensor, ...],
    predictor: tf.Tensor,
    gain: tf.Tensor,
    expand: bool = True,
) -> tuple[Parameters, list[tf.Tensor], tf.Tensor]:
    """The M-step: new parameters, and effects and ``predictor`` to match.

    In closed form, but for the fixed effects and auxiliary parameters of a likelihood that is not
    Gaussian: for those a damped Newton step.

    ``gain`` in 0 to 1 is how far to go towards the maximum: 1 is EM, smaller values average over
    iterations (stochastic approximation: Delyon, Lavielle & Moulines 1999).

    With ``expand`` each factor's effects may have a mean during the M-step: one coefficient for
    every fixed effect that is constant within its levels (the intercept always is). The mean is
    then folded away, into those fixed effects and out of the random ones. No linear predictor
    changes, so the effects stay draws from where they were. Without it this is plain EM.

    Effects are ``[levels, chains, columns]``, ``predictor`` is ``[rows, chains]``, and ``rows``
    belong to the old parameters, as in `levels.sweep`.
    """
    regression = least_squares if is_gaussian(layout) else newton
    change, auxiliary = regression(layout, arrays, parameters, rows, predictor, gain)
    beta = parameters.beta + change
    predictor += tf.linalg.matvec(arrays.fixed, change)[:, tf.newaxis]
    moved, scales = [], []
    for of, has, scale, u in zip(
        layout.factors, arrays.factors, parameters.scales, effects, strict=True
    ):
        standard = standardise(scale, u)
        coefficients, mean, square = _mean(of, has, scale, standard, expand)
        second = tf.einsum("lci,lcj->ij", standard, standard) / (u.shape[0] * u.shape[1])
        scales.append(_towards(scale, (second - square) * _within_blocks(of), gain))
        # What is folded changes no linear predictor.
        folded = tf.linalg.matvec(_one_hot(of.freed_fixed, layout.fixed), coefficients, True)
        beta += gain * folded
        moved.append(u - gain * mean[:, tf.newaxis, :])
    return Parameters(beta, scales, auxiliary), moved, predictor


def least_squares(
    layout: Layout,
    arrays: Arrays,
    parameters: Parameters,
    rows: tuple[tf.Tensor, ...],
    predictor: tf.Tensor,
    gain: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Change of the fixed effects ``[fixed]``, and the new auxiliary: for Gaussian ratings."""
    left = arrays.response[:, tf.newaxis] - predictor  # small numbers keep float32's digits
    change = tf.linalg.matvec(arrays.solver, tf.reduce_mean(left, axis=1))
    if not layout.family.estimated:
        return gain * change, parameters.auxiliary
    explained = tf.reduce_sum(change * tf.linalg.matvec(arrays.gram, change)) / layout.rows
    variance = tf.reduce_mean(tf.square(left)) - explained
    old = tf.square(parameters.residual_sd)
    moved = old + gain * (tf.maximum(variance, SHRINK * old) - old)
    return gain * change, 0.5 * tf.math.log(moved)[tf.newaxis]


def newton(
    layout: Layout,
    arrays: Arrays,
    parameters: Parameters,
    rows: tuple[tf.Tensor, ...],
    predictor: tf.Tensor,
    gain: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The same for any family: one Newton step towards the maximum, damped where it is long.

    EM does not need the M-step's maximum, only a better place. The score is averaged over the
    chains' draws, and so is the information. Where the information is not positive, in a direction,
    its size is taken instead: uphill all the same.
    """
    derivatives = derivatives_of(layout, parameters, rows, predictor)
    gradient, own, beside, last = complete_data.by_regression(arrays, derivatives)
    information = complete_data.join(own, beside, last)
    # In units where every parameter has an information of one.
    unit = tf.math.rsqrt(tf.maximum(tf.abs(tf.linalg.diag_part(information)), 1e-6))
    values, vectors = tf.linalg.eigh(information * unit * unit[:, tf.newaxis])
    score = tf.linalg.matvec(vectors, unit * tf.reduce_mean(gradient, axis=0), transpose_a=True)
    step = unit * tf.linalg.matvec(vectors, score / tf.maximum(tf.abs(values), FLAT))
    # How far the linear predictor moves, root mean square, and each auxiliary parameter.
    moves = tf.linalg.matvec(arrays.fixed, step[: layout.fixed])
    furthest = tf.sqrt(tf.reduce_mean(tf.square(moves)))
    if layout.family.auxiliary:
        furthest = tf.maximum(furthest, tf.reduce_max(tf.abs(step[layout.fixed :])))
    step *= gain / tf.maximum(1.0, furthest / LONGEST_MOVE)
    if not layout.family.estimated:
        return step[: layout.fixed], parameters.auxiliary
    return step[: layout.fixed], parameters.auxiliary + step[layout.fixed :]


def _mean(
    of: FactorLayout, has: FactorArrays, scale: tf.Tensor, standard: tf.Tensor, expand: bool
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The mean that a factor's effects may have: coefficients ``[freed]``, mean ``[levels,
    columns]``, and an estimate ``[columns, columns]`` of what it adds to ``mean(x x')``.

    From the standardised effects x, ``[levels, chains, columns]``: their columns are independent,
    so generalised least squares is least squares. In double precision, since a covariance that is
    nearly singular makes the normal equations so; these are small.

    The square of a noisy mean is too large by the noise's variance, which would pull small
    standard deviations to zero. The means of the two halves of the chains err independently, so
    their product has the right expectation.
    """
    count, chains, columns = standard.shape
    if not (expand and of.freed_fixed):
        none = tf.zeros([len(of.freed_fixed)])
        return none, tf.zeros([count, columns]), tf.zeros([columns, columns])
    scale, weights = tf.cast(scale, tf.float64), tf.cast(has.weights, tf.float64)
    half = chains // 2
    averages = [
        tf.cast(tf.reduce_mean(part, axis=1), tf.float64)
        for part in (standard[:, :half], standard[:, half:])
    ]
    place = tf.cast(_one_hot(of.freed_columns, columns), tf.float64)  # [freed, columns]
    pulled = tf.transpose(tf.linalg.triangular_solve(scale, tf.transpose(place)))
    gram = tf.matmul(weights, weights, transpose_a=True)
    normal = gram * tf.matmul(pulled, pulled, transpose_b=True)
    right = [tf.reduce_sum(tf.matmul(weights, a, transpose_a=True) * pulled, 1) for a in averages]
    solved = tf.linalg.solve(normal, tf.stack(right, axis=1))  # [freed, halves]
    first, second = (tf.matmul(weights * solved[:, i], pulled) for i in (0, 1))
    product = (
        tf.matmul(first, averages[1], transpose_a=True)
        + tf.matmul(second, averages[0], transpose_a=True)
        - tf.matmul(first, second, transpose_a=True)
    )
    share = half / chains
    coefficients = share * solved[:, 0] + (1 - share) * solved[:, 1]
    mean = tf.matmul(weights * coefficients, place)
    square = (product + tf.transpose(product)) / 2 / count
    return tuple(tf.cast(x, tf.float32) for x in (coefficients, mean, square))


def _towards(scale: tf.Tensor, relative: tf.Tensor, gain: tf.Tensor) -> tf.Tensor:
    """Move the *covariance* the fraction ``gain`` of the way: it, not its root, is an average.

    ``relative`` is where to, in coordinates where the present covariance is the identity. From few
    levels and chains its estimate can come out near zero, or not positive definite, by accident,
    and EM climbs back slowly from there. So in no direction does it shrink to less than `SHRINK` of
    what it was.
    """
    if scale.shape[0] == 1:
        return scale * tf.sqrt(1.0 + gain * (tf.maximum(relative, SHRINK) - 1.0))
    values, vectors = tf.linalg.eigh((relative + tf.transpose(relative)) / 2)
    moved = 1.0 + gain * (tf.maximum(values, SHRINK) - 1.0)
    root = tf.linalg.cholesky(tf.matmul(vectors * moved, vectors, transpose_b=True))
    return tf.matmul(scale, root)  # a product of lower triangles is one, whatever their condition


def _one_hot(positions: tuple[int, ...], depth: int) -> tf.Tensor:
    return tf.constant(np.eye(depth, dtype=np.float32)[list(positions)])


def _within_blocks(of: FactorLayout) -> np.ndarray:
    """``[columns, columns]``, 1 where two columns may covary."""
    mask = np.zeros((of.columns, of.columns), np.float32)
    for block in of.blocks:
        mask[np.ix_(block, block)] = 1.0
    return mask
