"""Where the effects go for each local coordinate: the `parametrisation`, as a linear flow.

Chapter 04. Of standardised effects x, x becomes ``x + Tx + t``.
"""

from __future__ import annotations

from lmmbook.engine.arrays import Layout, State, standardise
from lmmbook.engine.certificate.local import dimension, offsets
from lmmbook.engine.certificate.parametrisation import Parametrisation, begins, coarse_factors, flat
from lmmbook.families.derivatives import zeros

import tensorflow as tf


def inverse_of(shrinkage: tf.Tensor) -> tf.Tensor:
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
    inverse = inverse_of(shrinkage)
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


def own_turns(
    layout: Layout, parametrisation: Parametrisation, turn: list[tf.Tensor], away: bool = False
) -> tf.Tensor:
    """``[coordinates, effects, effects]`` float64: T of the coarse effects, as a matrix; less G, if
    ``away``."""
    size, offset = begins(layout)[-1], offsets(layout)
    shrinkage = tf.cast(parametrisation.coarse, tf.float64)
    by = -shrinkage if away else inverse_of(shrinkage)
    place = dict(zip(coarse_factors(layout), begins(layout), strict=False))
    found = [zeros(layout.fixed, size, size)]
    for k, own in enumerate(layout.factors):
        if k not in place:
            found.append(zeros(offset[k + 1] - offset[k], size, size))
            continue
        n, one = own.levels * own.columns, tf.eye(own.levels, dtype=tf.float64)
        each = tf.reshape(tf.einsum("lm,aij->alimj", one, turn[k]), [len(own.pairs), n, n])
        columns = tf.einsum("mn,anp->amp", by[:, place[k] : place[k] + n], each)
        found.append(tf.pad(columns, [[0, 0], [0, 0], [place[k], size - place[k] - n]]))
    last = zeros(layout.family.auxiliary, size, size)
    if layout.gaussian:
        follow = tf.cast(parametrisation.follow, tf.float64)
        last += follow * tf.eye(size, dtype=tf.float64) - inverse_of(shrinkage)
    return tf.concat([*found, last], axis=0)


def flows_of(
    layout: Layout, k: int, turn: tf.Tensor, scale: tf.Tensor, u: tf.Tensor,
    coarse: tf.Tensor, follow: tf.Tensor,
    shift: tf.Tensor, centre: tf.Tensor, shrinkage: tf.Tensor, answer: tf.Tensor,
    away: bool = False,
) -> tf.Tensor:  # fmt: skip
    """``[levels, chains, coordinates, columns]`` float64, where factor k's standardised effects go
    for each coordinate; less G x if ``away``. ``coarse`` as from `coarse_flows`; if ``away`` so for
    a coarse factor, else not."""
    own, offset, size = layout.factors[k], offsets(layout), dimension(layout)
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
        inverse = inverse_of(shrinkage)
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
