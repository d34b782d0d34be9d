"""The score: gradients of the complete data's log density, one a chain.

Chapter 04. With g the rows' derivatives by the linear predictor, a coordinate's score is

    (T x + t)'(L'Z'g - x) + tr T    of the flow,    x'G x - tr G    of a covariance,

and what the ratings say of fixed effects and auxiliary parameters themselves (`louis`).
"""

from __future__ import annotations

from typing import NamedTuple

from lmmbook.engine.arrays import Arrays, Layout, State, standardise
from lmmbook.engine.certificate.flows import coarse_flows, inverse_of, own_turns
from lmmbook.engine.certificate.parametrisation import Parametrisation, coarse_factors, flat
from lmmbook.engine.linear_predictor import to_levels
from lmmbook.engine.placement import Placement
from lmmbook.engine.row_sums import in_blocks
from lmmbook.families.derivatives import no_sums, products, total, zeros

import tensorflow as tf


class LevelScores(NamedTuple):
    """Of a factor that is not coarse, sums over its levels, float64, with x standardised effects, b
    their centre and ``d = L'Z'g - x`` the log density's slopes in them: ``shift`` [chains, fixed +
    auxiliary], of d times the shifts; ``second`` [chains, columns, columns], of x x'; ``inner`` and
    ``centred``, of the inverse times d, times x' or b'; ``stretch`` [chains], of d (x - b);
    ``answer`` [effects, chains], of the answers times d; and ``inverse`` [columns, columns]."""

    shift: tf.Tensor
    second: tf.Tensor
    inner: tf.Tensor
    centred: tf.Tensor
    stretch: tf.Tensor
    answer: tf.Tensor
    inverse: tf.Tensor


def complete_score(
    layout: Layout,
    state: State,
    parametrisation: Parametrisation,
    turn: list[tf.Tensor],
    pulls: list[tf.Tensor],
    by_rows: list[tf.Tensor],
    placement: Placement,
) -> tf.Tensor:
    """``[chains, coordinates]``, from `local.turns`, Z'g of each factor, and X'g and what auxiliary
    parameters have (`slopes`)."""
    by_fixed, by_auxiliary = by_rows
    coarse, scales = coarse_factors(layout), state.parameters.scales
    sums = []
    for k, pull in enumerate(pulls):
        given = (x[k] for x in parametrisation[:4])
        _, own = placement.levels(k, level_scores, (), scales[k], state.effects[k], pull, *given)
        sums.append(own)
    shift = tf.add_n([s.shift for s in sums])
    flows = coarse_flows(layout, state, parametrisation, turn, layout.chains)
    answered = [s.answer for k, s in enumerate(sums) if k not in coarse]
    if coarse:
        own = [flat(slopes_of_x(scales[k], state.effects[k], pulls[k])[1]) for k in coarse]
        answered.append(tf.cast(tf.concat(own, axis=0), tf.float64))
    by_flow = tf.einsum("mce,mc->ce", flows, tf.add_n(answered))
    traces = _traces(layout, parametrisation, turn, [s.inverse for s in sums])
    by_tangent = []
    for k, own_layout in enumerate(layout.factors):
        away = sums[k].second - own_layout.levels * tf.eye(own_layout.columns, dtype=tf.float64)
        by_tangent.append(tf.einsum("aij,cij->ca", turn[k], away))
        by_tangent[k] += tf.einsum("aij,cij->ca", turn[k], sums[k].inner)
        by_tangent[k] += tf.einsum("aji,cij->ca", turn[k], sums[k].centred)
    by_auxiliary += shift[:, layout.fixed :]
    if layout.gaussian:
        follow = tf.cast(parametrisation.follow, tf.float64)
        stretched = follow * tf.add_n([s.stretch for s in sums])
        inner = tf.add_n([tf.linalg.trace(s.inner + s.centred) for s in sums])
        by_auxiliary += (stretched - inner)[:, tf.newaxis]
    by_fixed += shift[:, : layout.fixed]
    return tf.concat([by_fixed, *by_tangent, by_auxiliary], axis=1) + by_flow + traces


def slopes(
    layout: Layout, shared: int | None, arrays: Arrays, state: State
) -> tuple[tf.Tensor, tuple[dict[int, tf.Tensor], tf.Tensor, tf.Tensor]]:
    """First derivatives by the linear predictor, and by the auxiliary parameters, summed: for each
    factor Z'g ``[levels, chains, columns]``; X'g ``[chains, fixed]`` and ``[chains, auxiliary]``,
    float64."""
    if layout.gaussian:
        variance = tf.square(state.parameters.residual_sd)
        residual = state.rows[0] - state.predictor
        slope = residual / variance
        square = total(tf.square(residual), 0) / tf.cast(variance, tf.float64)
        by_auxiliary = (square - float(residual.shape[0]))[:, tf.newaxis]
        by_fixed = tf.transpose(products(arrays.fixed, slope))
        gradient = tf.concat([by_fixed, by_auxiliary], axis=1)
    else:
        flat = tf.reshape(state.predictor, [-1])
        own = state.parameters.auxiliary
        slope = layout.family.value_and_slope(state.rows, flat, own)[1]
        slope = tf.reshape(slope, state.predictor.shape)
        gradient = in_blocks(
            arrays, state, no_sums(layout.chains, layout.fixed, layout.family.auxiliary),
            lambda a, rows, at, counted: layout.family.summed(rows, at, own, a.fixed, counted),
        ).gradient  # fmt: skip
    found = {k: to_levels(factor, slope) for k, factor in enumerate(arrays.factors)}
    by_fixed, by_auxiliary = tf.split(gradient, [layout.fixed, layout.family.auxiliary], 1)
    return (None if shared is None else found.pop(shared)), (found, by_fixed, by_auxiliary)


def slopes_of_x(scale: tf.Tensor, u: tf.Tensor, pull: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """x and the log density's slopes in it, ``[levels, chains, columns]``."""
    x = standardise(scale, u)
    return x, tf.einsum("ji,lcj->lci", scale, pull) - x


def level_scores(
    scale: tf.Tensor, u: tf.Tensor, pull: tf.Tensor,
    shift: tf.Tensor, centre: tf.Tensor, shrinkage: tf.Tensor, answer: tf.Tensor,
) -> tuple[None, LevelScores]:  # fmt: skip
    """`LevelScores` of a factor; of a coarse one, whose effects have no inverse each, zeros for
    what these give."""
    x, d = (tf.cast(v, tf.float64) for v in slopes_of_x(scale, u, pull))
    shift, centre, shrinkage, answer = (
        tf.cast(v, tf.float64) for v in (shift, centre[:, tf.newaxis], shrinkage, answer)
    )
    inverse, own = inverse_of(shrinkage), slice(shrinkage.shape[0])  # all levels, or none
    through = tf.einsum("lij,lci->lcj", inverse, d[own])
    return None, LevelScores(
        tf.einsum("lsi,lci->cs", shift, d),
        tf.einsum("lci,lcj->cij", x, x),
        tf.einsum("lci,lcj->cij", through, x[own]),
        tf.einsum("lci,lej->cij", through, centre[own]),
        tf.einsum("lci,lci->c", d, x - centre),
        tf.einsum("lmi,lci->mc", answer, d[own]),
        tf.reduce_sum(inverse, axis=0) if inverse.shape[0] else zeros(*inverse.shape[1:]),
    )


def _traces(
    layout: Layout,
    parametrisation: Parametrisation,
    turn: list[tf.Tensor],
    inverses: list[tf.Tensor],
) -> tf.Tensor:
    """``[coordinates]``: tr T of each flow; ``inverses`` are the sums of a factor's."""
    by_tangent = []
    last = zeros(layout.family.auxiliary)
    follow = tf.cast(parametrisation.follow, tf.float64)
    for k, (own, inverse) in enumerate(zip(layout.factors, inverses, strict=True)):
        by_tangent.append(tf.einsum("aij,ji->a", turn[k], inverse))
        if layout.gaussian and k not in coarse_factors(layout):
            last += follow * own.levels * own.columns - tf.linalg.trace(inverse)
    of_levels = tf.concat([zeros(layout.fixed), *by_tangent, last], axis=0)
    return of_levels + tf.linalg.trace(own_turns(layout, parametrisation, turn))
