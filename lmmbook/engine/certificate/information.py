"""The information: negative Hessian of the complete data's log density, a mean over some chains.

Chapter 04. Louis (1982), along the paths that `flows` begins (`level_information`).
"""

from __future__ import annotations

from lmmbook.engine.arrays import Arrays, Layout, State, one_hot
from lmmbook.engine.certificate.flows import coarse_flows, flows_of, inverse_of, own_turns
from lmmbook.engine.certificate.local import dimension, offsets
from lmmbook.engine.certificate.parametrisation import (
    Parametrisation,
    coarse_factors,
    flat,
    shaped,
)
from lmmbook.engine.certificate.score import slopes_of_x
from lmmbook.engine.linear_predictor import to_rows
from lmmbook.engine.placement import Placement
from lmmbook.engine.row_sums import in_blocks
from lmmbook.families.derivatives import derivatives_at, total, zeros

import numpy as np
import tensorflow as tf

FEW = 4  # chains of whose draws the information is taken: it varies little from draw to draw


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


def mean_information(
    layout: Layout,
    arrays: Arrays,
    state: State,
    parametrisation: Parametrisation,
    turn: list[tf.Tensor],
    pulls: list[tf.Tensor],
    placement: Placement,
) -> tf.Tensor:
    """``[coordinates, coordinates]``, from `local.turns`, and Z'g of each factor."""
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
    turned = own_turns(layout, parametrisation, turn, away=True)
    return found + tf.einsum("aij,bji->ab", turned, turned) * _signs(layout)


def _signs(layout: Layout) -> np.ndarray:
    """``[coordinates, coordinates]``, of ``tr (T - G)_a (T - G)_b``, with what bends the path."""
    offset, size = offsets(layout), dimension(layout)
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
        x, d = slopes_of_x(scale, state.effects[k][:, :chains], pulls[k][:, :chains])
        both.append([flat(tf.cast(v, tf.float64)) for v in (x, x + d)])
    x, pull = (tf.concat(of_each, axis=0) for of_each in zip(*both, strict=True))
    bend = tf.matmul(inverse_of(shrinkage), pull) + tf.matmul(shrinkage, x)
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
    size, chains = dimension(layout), state.predictor.shape[1]
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
        moved += tf.tile(alone, [1, chains])
        _, second = derivatives_at(family, given, at, own)
        second = tf.nest.map_structure(lambda h: h * counted[:, tf.newaxis], second)
        auxiliary = family.auxiliary

        def product(right: tf.Tensor) -> tf.Tensor:
            # Of all chains with all, to keep those with themselves: arrays of three axes, or one
            # product a chain, would take XLA four times as long.
            both = tf.cast(tf.matmul(moved, right, transpose_a=True), tf.float64)
            return tf.einsum("csct->st", tf.reshape(both, [chains, size, chains, -1]))

        found = -product(moved * tf.repeat(second[0][0], size, axis=1))
        if auxiliary:
            across = tf.concat([-product(h) for h in second[0][1:]], axis=1)
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
    own, offset, size = layout.factors[k], offsets(layout), dimension(layout)
    chains, around = u.shape[1], [offset[k], size - offset[k + 1]]
    shrinkage = tf.cast(shrinkage, tf.float64)
    if bend is None:
        x, d = (tf.cast(v, tf.float64) for v in slopes_of_x(scale, u, pull[:, :chains]))
        bend = x + tf.einsum("lij,lcj->lci", inverse_of(shrinkage), d)
    bent = tf.einsum("lcai,lcbi->ab", tf.einsum("aji,lcj->lcai", turn, bend), left)
    bent = tf.pad(bent, [around, [0, 0]])
    found = (tf.einsum("lcai,lcbi->ab", left, left) - bent - tf.transpose(bent)) / chains
    if shrinkage.shape[0]:
        of_turns = -tf.einsum("lij,ajm->laim", shrinkage, turn)  # T - G
        positions = [*range(offset[k], offset[k + 1])]
        if layout.gaussian:
            identity = tf.eye(own.columns, dtype=tf.float64)
            stretched = tf.cast(follow, tf.float64) * identity - inverse_of(shrinkage)
            of_turns = tf.concat([of_turns, stretched[:, tf.newaxis]], axis=1)
            positions.append(size - 1)
        place = tf.cast(one_hot(positions, size), tf.float64)
        square = tf.einsum("laij,lbji->ab", of_turns, of_turns)
        found += tf.matmul(place, square @ place, transpose_a=True) * _signs(layout)
    return None, found
