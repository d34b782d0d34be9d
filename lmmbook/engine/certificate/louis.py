"""Score and information of the complete data: what the certificate averages over draws.

Chapter 04. Fisher's identity: the gradient of log p(ratings) is the mean, over draws of the random
effects, of the gradient of log p(ratings, effects). Louis (1982): its negative Hessian is the mean
of the complete data's, minus the covariance of the gradients. Both hold in any `parametrisation` of
the effects.

Parameters are counted off in local coordinates: the fixed effects; for each factor the *tangent
coordinates* of its covariance, which are the entries of a matrix S; the family's auxiliary
parameters. The covariance is a point on a surface, and S a direction along it:

    Σ <- (I + S) Σ (I + S)'    or exp(S) Σ exp(S)', the same to first order.

S is symmetric where effects are measured in `FactorArrays.units`. For a lone intercept it is the
change of log sd. A covariance that is singular stays so, and can still be turned.

With effects ``u = L x``, L the Cholesky factor of Σ, and ``G = L^-1 S L``, a change by S leaves
``x - G x`` of effects that stay where they are. They may move besides, by a *flow* that is linear
in x: x becomes ``x + Tx + t``. With g the rows' derivatives by the linear predictor, a coordinate's
score is

    (T x + t)'(L'Z'g - x) + tr T    of the flow,    x'G x - tr G    of a covariance,

and what the ratings say of fixed effects and auxiliary parameters themselves.
"""

from __future__ import annotations

from typing import NamedTuple

from lmmbook.engine.arrays import (
    Arrays,
    FactorArrays,
    FactorLayout,
    Layout,
    State,
    one_hot,
    standardise,
)
from lmmbook.engine.certificate.parametrisation import (
    Parametrisation,
    begins,
    coarse_factors,
    flat,
    shaped,
)
from lmmbook.engine.linear_predictor import to_levels, to_rows
from lmmbook.engine.placement import SINGLE_DEVICE, Placement
from lmmbook.engine.row_sums import in_blocks
from lmmbook.families.derivatives import derivatives_at, no_sums, total, zeros

import numpy as np
import tensorflow as tf

FEW = 2  # chains of whose draws the information is taken: it varies little from draw to draw


def tangents(layout: FactorLayout, arrays: FactorArrays) -> tf.Tensor:
    """The matrices S of a basis in the units of effects, ``[tangents, columns, columns]`` float64:
    what multiplies them."""
    identity = tf.eye(layout.columns, dtype=tf.float64)
    inverse = tf.linalg.triangular_solve(arrays.units, identity, lower=False)
    return arrays.units @ tf.constant(layout.tangent_basis, tf.float64) @ inverse


def turns(layout: FactorLayout, arrays: FactorArrays, scale: tf.Tensor) -> tf.Tensor:
    """G of each tangent, ``[tangents, columns, columns]`` float64."""
    if layout.columns == 1:
        return tf.constant(np.ones((1, 1, 1)))
    scale = tf.cast(scale, tf.float64)
    lower_inverse = tf.linalg.triangular_solve(scale, tf.eye(layout.columns, dtype=tf.float64))
    return tf.einsum("ij,ajk,km->aim", lower_inverse, tangents(layout, arrays), scale)


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

    Of log p(ratings, effects), in this ``parametrisation``, at each chain's draw; the negative
    Hessian at the draws of the first `FEW` chains. float64.
    """
    given = zip(layout.factors, arrays.factors, state.parameters.scales, strict=True)
    turn = [turns(*of_factor) for of_factor in given]
    stay, (pulls, *by_rows) = placement.rows(slopes, (layout, placement.shared), arrays, state)
    pulls = [stay if k == placement.shared else pulls[k] for k in range(len(layout.factors))]
    return (
        _score(layout, state, parametrisation, turn, pulls, by_rows, placement),
        _information(layout, arrays, state, parametrisation, turn, pulls, placement),
    )


# The score


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


def _score(
    layout: Layout,
    state: State,
    parametrisation: Parametrisation,
    turn: list[tf.Tensor],
    pulls: list[tf.Tensor],
    by_rows: list[tf.Tensor],
    placement: Placement,
) -> tf.Tensor:
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
        own = [flat(_slopes_of_x(scales[k], state.effects[k], pulls[k])[1]) for k in coarse]
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
        by_fixed = [total(x[:, tf.newaxis] * slope, 0) for x in tf.unstack(arrays.fixed, axis=1)]
        gradient = tf.concat([tf.stack(by_fixed, axis=1), by_auxiliary], axis=1)
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


def _slopes_of_x(scale: tf.Tensor, u: tf.Tensor, pull: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """x and the log density's slopes in it, ``[levels, chains, columns]``."""
    x = standardise(scale, u)
    return x, tf.einsum("ji,lcj->lci", scale, pull) - x


def level_scores(
    scale: tf.Tensor, u: tf.Tensor, pull: tf.Tensor,
    shift: tf.Tensor, centre: tf.Tensor, shrinkage: tf.Tensor, answer: tf.Tensor,
) -> tuple[None, LevelScores]:  # fmt: skip
    """`LevelScores` of a factor; of a coarse one, whose effects have no inverse each, zeros for
    what these give."""
    x, d = (tf.cast(v, tf.float64) for v in _slopes_of_x(scale, u, pull))
    shift, centre, shrinkage, answer = (
        tf.cast(v, tf.float64) for v in (shift, centre[:, tf.newaxis], shrinkage, answer)
    )
    inverse, own = _inverse(shrinkage), slice(shrinkage.shape[0])  # all levels, or none
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


def _inverse(shrinkage: tf.Tensor) -> tf.Tensor:
    """P^-1 of Q = I - P^-1, which keeps the digits where that is nearly the identity."""
    return tf.eye(shrinkage.shape[-1], dtype=shrinkage.dtype) - shrinkage


def coarse_flows(
    layout: Layout,
    state: State,
    parametrisation: Parametrisation,
    turn: list[tf.Tensor],
    chains: int,
    away: bool = False,
) -> tf.Tensor:
    """``[effects, chains, coordinates]`` float64, of the first ``chains``: where coarse effects go;
    less G x, where they would be left behind, if ``away``. (What follows the residual sd is left
    out.)"""
    size, offset = begins(layout)[-1], offsets(layout)
    shrinkage = tf.cast(parametrisation.coarse, tf.float64)
    inverse = _inverse(shrinkage)
    flows = [tf.zeros([size, chains, layout.fixed], tf.float64)]
    both, place = [], dict(zip(coarse_factors(layout), begins(layout), strict=False))
    for k, own in enumerate(layout.factors):
        if k not in place:
            flows.append(tf.zeros([size, chains, offset[k + 1] - offset[k]], tf.float64))
            continue
        u = state.effects[k][:, :chains]
        x = tf.cast(standardise(state.parameters.scales[k], u), tf.float64)
        centre = tf.cast(parametrisation.centre[k][:, tf.newaxis], tf.float64)
        centre = tf.repeat(centre, chains, axis=1)
        wide = [own.levels * own.columns, chains, len(own.pairs)]
        ahead = tf.reshape(tf.einsum("aij,lcj->lica", turn[k], x), wide)
        back = tf.reshape(tf.einsum("aji,lcj->lica", turn[k], centre), wide)
        columns = slice(place[k], place[k] + wide[0])
        by = -shrinkage if away else inverse
        flow = tf.einsum("mn,nca->mca", by[:, columns], ahead)
        flows.append(flow + tf.einsum("mn,nca->mca", inverse[:, columns], back))
        both.append(flat(x + centre))
    last = tf.zeros([size, chains, layout.family.auxiliary], tf.float64)
    if layout.gaussian and both:
        last -= tf.matmul(inverse, tf.concat(both, axis=0))[..., tf.newaxis]
    return tf.concat([*flows, last], axis=2)


def _own_turns(
    layout: Layout, parametrisation: Parametrisation, turn: list[tf.Tensor], away: bool = False
) -> tf.Tensor:
    """``[coordinates, effects, effects]`` float64: T of the coarse effects, as a matrix; less G, if
    ``away``."""
    size, offset = begins(layout)[-1], offsets(layout)
    shrinkage = tf.cast(parametrisation.coarse, tf.float64)
    by = -shrinkage if away else _inverse(shrinkage)
    place = dict(zip(coarse_factors(layout), begins(layout), strict=False))
    found = [zeros(layout.fixed, size, size)]
    for k, own in enumerate(layout.factors):
        if k not in place:
            found.append(zeros(offset[k + 1] - offset[k], size, size))
            continue
        n, one = own.levels * own.columns, tf.eye(own.levels, dtype=tf.float64)
        each = tf.reshape(tf.einsum("lm,aij->alimj", one, turn[k]), [-1, n, n])
        columns = tf.einsum("mn,anp->amp", by[:, place[k] : place[k] + n], each)
        found.append(tf.pad(columns, [[0, 0], [0, 0], [place[k], size - place[k] - n]]))
    last = zeros(layout.family.auxiliary, size, size)
    if layout.gaussian:
        follow = tf.cast(parametrisation.follow, tf.float64)
        last += follow * tf.eye(size, dtype=tf.float64) - _inverse(shrinkage)
    return tf.concat([*found, last], axis=0)


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
    return of_levels + tf.linalg.trace(_own_turns(layout, parametrisation, turn))


# The information


def few_of(layout: Layout) -> int:
    """`FEW`, or as many chains as there are."""
    return min(FEW, layout.chains)


def of_few(layout: Layout, state: State) -> State:
    """The state of the first `few_of` chains."""
    few, chains = few_of(layout), layout.chains

    def cut(row: tf.Tensor) -> tf.Tensor:  # [rows * chains], Gaussian ratings are [rows, 1]
        if row.shape.rank == 2:
            return row
        return tf.reshape(tf.reshape(row, [-1, chains])[:, :few], [-1])

    return state._replace(
        effects=[u[:, :few] for u in state.effects],
        rows=tuple(cut(row) for row in state.rows),
        predictor=state.predictor[:, :few],
    )


def flows_of(
    layout: Layout, k: int, turn: tf.Tensor, scale: tf.Tensor, u: tf.Tensor,
    coarse: tf.Tensor, follow: tf.Tensor,
    shift: tf.Tensor, centre: tf.Tensor, shrinkage: tf.Tensor, answer: tf.Tensor,
    away: bool = False,
) -> tf.Tensor:  # fmt: skip
    """``[levels, chains, coordinates, columns]`` float64, where factor k's standardised effects go
    for each coordinate; less G x if ``away``. ``coarse`` as from `coarse_flows`; if ``away`` so for
    a coarse factor, else not."""
    own, offset, size = layout.factors[k], offsets(layout), coordinates(layout)
    x, centre, shift, shrinkage, answer = (
        tf.cast(v, tf.float64)
        for v in (standardise(scale, u), centre[:, tf.newaxis], shift, shrinkage, answer)
    )

    def at(part: tf.Tensor, begin: int) -> tf.Tensor:  # [levels, chains, some, columns]
        around = [begin, size - begin - part.shape[2]]
        return tf.pad(part, [[0, 0], [0, 0], around, [0, 0]])

    shift = at(shift[:, tf.newaxis, : layout.fixed], 0) + at(
        shift[:, tf.newaxis, layout.fixed :], offset[-1]
    )
    if shrinkage.shape[0]:
        inverse = _inverse(shrinkage)
        flow = tf.einsum("lmi,mce->lcei", answer, coarse)
        by = -shrinkage if away else inverse
        ahead = tf.einsum("lij,lcaj->lcai", by, tf.einsum("ajm,lcm->lcaj", turn, x))
        back = tf.einsum("lij,lcaj->lcai", inverse, tf.einsum("amj,lcm->lcaj", turn, centre))
        flow += at(ahead + back, offset[k])
        if layout.gaussian:
            flow -= at(tf.einsum("lij,lcj->lci", inverse, x + centre)[:, :, tf.newaxis], size - 1)
    else:
        begin = begins(layout)[coarse_factors(layout).index(k)]
        part = coarse[begin : begin + own.levels * own.columns]
        flow = tf.reshape(part, [own.levels, own.columns, *part.shape[1:]])
        flow = tf.transpose(flow, [0, 2, 3, 1])
    if layout.gaussian:
        stretched = tf.cast(follow, tf.float64) * (x - centre)
        flow += at(stretched[:, :, tf.newaxis], size - 1)
    return flow + shift


def _information(
    layout: Layout,
    arrays: Arrays,
    state: State,
    parametrisation: Parametrisation,
    turn: list[tf.Tensor],
    pulls: list[tf.Tensor],
    placement: Placement,
) -> tf.Tensor:
    given = layout, state, parametrisation, turn, few_of(layout)
    coarse, behind = coarse_flows(*given), coarse_flows(*given, away=True)
    every = arrays, state, parametrisation, turn, coarse
    _, found = placement.rows(row_information, (layout,), *every)
    bends = _coarse_bends(layout, state, parametrisation, pulls)
    for k, scale in enumerate(state.parameters.scales):
        own = (x[k] for x in parametrisation[:4])
        _, of_levels = placement.levels(
            k, level_information, (layout, k), turn[k], scale, state.effects[k], pulls[k],
            behind if k in bends else coarse, bends.get(k), parametrisation.follow, *own,
        )  # fmt: skip
        found += of_levels
    turned = _own_turns(layout, parametrisation, turn, away=True)
    return found + tf.einsum("aij,bji->ab", turned, turned) * _signs(layout)


def _signs(layout: Layout) -> np.ndarray:
    """``[coordinates, coordinates]``, of ``tr (T - G)_a (T - G)_b``, with what bends the path."""
    offset, size = offsets(layout), coordinates(layout)
    covariance = np.zeros(size)
    covariance[offset[0] : offset[-1]] = 1.0
    return 1.0 - covariance - covariance[:, np.newaxis]


def _coarse_bends(
    layout: Layout, state: State, parametrisation: Parametrisation, pulls: list[tf.Tensor]
) -> dict[int, tf.Tensor]:
    """`level_information`'s ``bend`` of each coarse factor, ``[levels, chains, columns]``."""
    coarse, chains = coarse_factors(layout), few_of(layout)
    if not coarse:
        return {}
    shrinkage, both = tf.cast(parametrisation.coarse, tf.float64), []
    for k in coarse:
        scale = state.parameters.scales[k]
        x, d = _slopes_of_x(scale, state.effects[k][:, :chains], pulls[k][:, :chains])
        both.append([flat(tf.cast(v, tf.float64)) for v in (x, x + d)])
    x, pull = (tf.concat(of_each, axis=0) for of_each in zip(*both, strict=True))
    bend = tf.matmul(_inverse(shrinkage), pull) + tf.matmul(shrinkage, x)
    cuts = [layout.factors[k].levels * layout.factors[k].columns for k in coarse]
    parts = tf.split(bend, cuts)
    return {
        k: shaped(part, layout.factors[k].columns) for k, part in zip(coarse, parts, strict=True)
    }


def row_information(
    layout: Layout,
    arrays: Arrays,
    state: State,
    parametrisation: Parametrisation,
    turn: list[tf.Tensor],
    coarse: tf.Tensor,
) -> tuple[None, tf.Tensor]:
    """The part of log p(ratings given effects), ``[coordinates, coordinates]``."""
    state = of_few(layout, state)
    family, own = layout.family, state.parameters.auxiliary
    size, chains = coordinates(layout), state.predictor.shape[1]
    moves = []  # of effects, [levels, chains * coordinates, columns]
    for k, (scale, u) in enumerate(zip(state.parameters.scales, state.effects, strict=True)):
        given = (x[k] for x in parametrisation[:4])
        flow = flows_of(layout, k, turn[k], scale, u, coarse, parametrisation.follow, *given)
        move = tf.cast(tf.einsum("ij,lcej->lcei", tf.cast(scale, tf.float64), flow), tf.float32)
        moves.append(tf.reshape(move, [-1, chains * size, flow.shape[3]]))

    def of_block(
        block: Arrays, given: tuple[tf.Tensor, ...], at: tf.Tensor, counted: tf.Tensor
    ) -> tf.Tensor:
        pairs = zip(block.factors, moves, strict=True)
        moved = tf.add_n([to_rows(factor, move) for factor, move in pairs])
        alone = tf.pad(block.fixed, [[0, 0], [0, size - layout.fixed]])
        moved = tf.reshape(moved, [-1, chains, size]) + alone[:, tf.newaxis]
        _, second = derivatives_at(family, given, at, own)
        second = tf.nest.map_structure(lambda h: h * counted[:, tf.newaxis], second)
        auxiliary = family.auxiliary

        def product(left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
            flat = (tf.reshape(x, [-1, x.shape[2]]) for x in (left, right))
            return tf.cast(tf.matmul(*flat, transpose_a=True), tf.float64)

        found = -product(moved, moved * second[0][0][..., tf.newaxis])
        if auxiliary:
            across = -product(moved, tf.stack(second[0][1:], axis=2))
            across = tf.pad(across, [[0, 0], [size - auxiliary, 0]])
            twice = tf.stack([tf.stack([-total(h) for h in row[1:]]) for row in second[1:]])
            found += across + tf.transpose(across) + tf.pad(twice, 2 * [[size - auxiliary, 0]])
        return found / chains

    return None, in_blocks(arrays, state, zeros(size, size), of_block)


def level_information(
    layout: Layout, k: int, turn: tf.Tensor, scale: tf.Tensor, u: tf.Tensor, pull: tf.Tensor,
    coarse: tf.Tensor, bend: tf.Tensor | None, follow: tf.Tensor,
    shift: tf.Tensor, centre: tf.Tensor, shrinkage: tf.Tensor, answer: tf.Tensor,
) -> tuple[None, tf.Tensor]:  # fmt: skip
    """The part of log p(effects) of one factor, and of its levels' flows' Jacobians.

    With f the flow and ``q = f - G x``, the path of x is ``x + q - Q G q`` to second order, where Q
    is the shrinkage. So that of L x is ``L (x + f + (I - Q) G q)``: nearly a line in u for levels
    that their ratings know well, and a line in x for those of which they know nothing, even if the
    covariance is singular. ``bend`` is the log density's slope in what is of second order:
    ``(I - Q) L'Z'g + Q x``. With ``M = T - G``, the logarithm of the path's determinant is ``tr M``
    and, to second order, ``tr M_a M_b`` for two covariances, less that for two others, and nothing
    for a covariance and another (`_signs`).
    """
    u = u[:, : few_of(layout)]
    given = turn, scale, u, coarse, follow, shift, centre, shrinkage, answer
    left = flows_of(layout, k, *given, away=True)  # q, [levels, chains, coordinates, columns]
    own, offset, size = layout.factors[k], offsets(layout), coordinates(layout)
    chains, around = u.shape[1], [offset[k], size - offset[k + 1]]
    shrinkage = tf.cast(shrinkage, tf.float64)
    if bend is None:
        x, d = (tf.cast(v, tf.float64) for v in _slopes_of_x(scale, u, pull[:, :chains]))
        bend = x + tf.einsum("lij,lcj->lci", _inverse(shrinkage), d)
    bent = tf.einsum("lcai,lcbi->ab", tf.einsum("aji,lcj->lcai", turn, bend), left)
    bent = tf.pad(bent, [around, [0, 0]])
    found = (tf.einsum("lcai,lcbi->ab", left, left) - bent - tf.transpose(bent)) / chains
    if shrinkage.shape[0]:
        of_turns = -tf.einsum("lij,ajm->laim", shrinkage, turn)  # T - G
        positions = [*range(offset[k], offset[k + 1])]
        if layout.gaussian:
            identity = tf.eye(own.columns, dtype=tf.float64)
            stretched = tf.cast(follow, tf.float64) * identity - _inverse(shrinkage)
            of_turns = tf.concat([of_turns, stretched[:, tf.newaxis]], axis=1)
            positions.append(size - 1)
        place = tf.cast(one_hot(positions, size), tf.float64)
        square = tf.einsum("laij,lbji->ab", of_turns, of_turns)
        found += tf.matmul(place, square @ place, transpose_a=True) * _signs(layout)
    return None, found
