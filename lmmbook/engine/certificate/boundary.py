"""Variances near zero, where EM creeps and the certificate is blind.

Chapter 04. Where a variance is tiny, its effects are tiny whatever the ratings say: score and
information on the log scale both vanish, wherever the maximum is. So such a variance is judged on
its own scale. Adding a little variance v along a direction a of a factor's effects changes the
log-likelihood by

    d log p(ratings) / dv = E[ 1/2 sum_l ((a'g_l)^2 - a'C_l a) ],

with g_l and -C_l the gradient and Hessian of the log likelihood in level l's effects, averaged over
their draws. At v = 0, negative means that the maximum is at the boundary. For Gaussian ratings a
level's own effects can be integrated out by hand, given those of the other factors: that leaves
less noise, and none where there is no other factor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from lmmbook._numerics import covariance_of_mean
from lmmbook.engine.arrays import Parameters
from lmmbook.families.gaussian import Gaussian
from lmmbook.formula.design import Design
from lmmbook.formula.invariances import directions

import numpy as np
import tensorflow as tf
from scipy import sparse

WEAK = 2.0  # information on the logarithm of an sd; with less, it may as well be zero
NUMBERS_AT_ONCE = 4_000_000  # numbers are looked at, so that there is no second copy of all draws

Block = tuple[int, tuple[int, ...]]  # a factor, and the columns whose effects are correlated


class Slope(NamedTuple):
    """d log p(ratings) / dv, its Monte Carlo standard error, and the ``direction`` ``[columns]`` of
    effects along which it was taken."""

    score: float
    error: float
    direction: np.ndarray


def axes(design: Design, parameters: Parameters, block: Block) -> tuple[np.ndarray, np.ndarray]:
    """Variances ``[columns of the block]``, smallest first, and their directions, a column each.

    Of the covariance in `directions.units`, where one column's effects are as large as another's.
    """
    k, columns = block
    own = np.ix_(columns, columns)
    root = np.linalg.inv(directions.units(design.factors[k])[own])
    root = root @ np.asarray(parameters.scales[k], float)[own]
    return np.linalg.eigh(root @ root.T)


def weak_blocks(
    design: Design, parameters: Parameters, kept: list[np.ndarray]
) -> dict[Block, int]:  # fmt: skip
    """Of each block, in how many directions the sd is so uncertain that it may be zero.

    A level's effect is known to the extent that the ratings explain its variance. What all levels
    together tell about the logarithm of their sd is, roughly, ``2 levels explained^2``.
    ``kept`` holds draws, ``[draws, levels, chains, columns]`` a factor.
    """
    found = {}
    for k, (factor, scale) in enumerate(zip(design.factors, parameters.scales, strict=True)):
        lower = np.asarray(scale, float)
        within = np.zeros_like(lower)
        for part in np.array_split(kept[k], -(-kept[k].size // NUMBERS_AT_ONCE), axis=1):
            away = part - part.mean((0, 2), keepdims=True)
            within += np.einsum("dlci,dlcj->ij", away, away)
        within /= (kept[k].shape[0] * kept[k].shape[2] - 1) * factor.levels
        for block in factor.blocks:
            own = np.ix_(block, block)
            standard = np.linalg.inv(lower[own])
            explained = np.eye(len(block)) - standard @ within[own] @ standard.T
            values = np.maximum(np.linalg.eigvalsh(explained), 0.0)
            found[k, block] = int((2 * factor.levels * values**2 < WEAK).sum())
    return found


def flattened(
    design: Design, parameters: Parameters, block: Block, least: int, variance: float
) -> np.ndarray:
    """The factor's covariance ``[columns, columns]`` with its ``least`` smallest variances set."""
    k, columns = block
    values, vectors = axes(design, parameters, block)
    values[:least] = variance
    own = np.ix_(columns, columns)
    vectors = directions.units(design.factors[k])[own] @ vectors
    lower = np.asarray(parameters.scales[k], float)
    matrix = lower @ lower.T
    matrix[own] = (vectors * values) @ vectors.T
    return matrix


def weakest(design: Design, parameters: Parameters, block: Block, least: int) -> np.ndarray:
    """``[columns of the factor, least]``: the directions of smallest variance, a column each.

    Effects along one, of size one in units of the response, change the ratings by one, root mean
    square.
    """
    factor = design.factors[block[0]]
    along = np.zeros((len(factor.effects), least))
    along[list(block[1])] = axes(design, parameters, block)[1][:, :least]
    return directions.units(factor) @ along


def scores(
    design: Design, parameters: Parameters, draws: list[np.ndarray], k: int, along: np.ndarray
) -> list[np.ndarray]:
    """What each draw says of d log p(ratings) / dv, along directions of factor k.

    ``along`` ``[columns, directions]``, as from `weakest`; ``draws``, ``[draws, levels, chains,
    columns]`` a factor. Returns ``[draws, chains, directions, directions]``, by the ratings. Along
    a column by itself there is another estimate for each factor that is nested in this one, by that
    factor's prior: its effects scatter around this one's, as ratings do.
    """
    gaussian = isinstance(design.family, Gaussian)
    found = [(_by_residuals if gaussian else _by_ratings)(design, parameters, draws, k, along)]
    if along.shape[1] == np.count_nonzero(along) == 1:
        column = int(np.flatnonzero(along)[0])
        for t in _by_children(design, parameters, draws, k, column):
            found.append(along[column, 0] ** 2 * t[..., np.newaxis, np.newaxis])
    return found


def slope(candidates: list[np.ndarray], along: np.ndarray) -> Slope:
    """The same, averaged: along the best combination of the directions, by the estimate with the
    least noise."""
    best = np.linalg.eigh(candidates[0].mean((0, 1)))[1][:, -1]
    along_best = [np.einsum("dcij,i,j->dc", x, best, best)[..., np.newaxis] for x in candidates]
    each = [(float(x.mean()), covariance_of_mean(x).item() ** 0.5) for x in along_best]
    return Slope(*min(each, key=lambda pair: pair[1]), along @ best)


def _by_residuals(
    design: Design, parameters: Parameters, draws: list[np.ndarray], k: int, along: np.ndarray
) -> np.ndarray:
    """`_by_ratings` for Gaussian ratings, its mean over the effects of factor k.

    With V_l = s^2 I + Z_l Σ Z_l' and r the residuals that the other factors leave, the mean of g_l
    g_l' - C_l is h_l h_l' - Z_l'V_l^-1 Z_l, with h_l = Z_l'V_l^-1 r = (s^2 I + Z_l'Z_l Σ)^-1 Z_l'r.
    """
    factor, others = design.factors[k], [i for i in range(len(draws)) if i != k]
    lower = np.asarray(parameters.scales[k], float)
    gram, to_levels = factor.gram(), factor.matrix().T
    inverse = np.linalg.inv(
        float(parameters.residual_sd) ** 2 * np.eye(len(lower)) + gram @ lower @ lower.T
    )
    expected = along.T @ (inverse @ gram).sum(0) @ along
    found = []
    for predictor in _predictors(design, parameters, draws, others):
        pull = to_levels @ (design.response[:, np.newaxis] - predictor)
        pull = pull.reshape(*gram.shape[:2], -1)  # [levels, columns, chains]
        pull = np.einsum("ji,ljk,lkc->lic", along, inverse, pull)
        found.append(0.5 * (np.einsum("lic,ljc->cij", pull, pull) - expected))
        if not others:  # then all draws say the same
            break
    shape = len(draws[0]), draws[0].shape[2], *expected.shape
    return np.broadcast_to(np.array(found), shape)


def _predictors(
    design: Design, parameters: Parameters, draws: list[np.ndarray], factors: Sequence[int]
) -> Iterator[np.ndarray]:
    """``[rows, chains]`` a draw: the linear predictor, with the effects of some ``factors``."""
    fixed = design.offset + design.fixed @ np.asarray(parameters.beta, float)
    matrices = [design.factors[k].matrix() for k in factors]
    for i in range(len(draws[0])):
        predictor = np.repeat(fixed[:, np.newaxis], draws[0].shape[2], axis=1)
        for k, z in zip(factors, matrices, strict=True):
            by_level = draws[k][i].transpose(0, 2, 1)  # [levels, columns, chains]
            predictor += z @ by_level.reshape(z.shape[1], -1)
        yield predictor


def _by_ratings(
    design: Design, parameters: Parameters, draws: list[np.ndarray], k: int, along: np.ndarray
) -> np.ndarray:
    """``[draws, chains, directions, directions]``; ``along`` is ``[columns, directions]``."""
    z = design.factors[k].z @ along
    to_levels = replace(design.factors[k], z=z).matrix().T
    auxiliary = tf.cast(parameters.auxiliary, tf.float64)
    rows = design.family.rows(tf.constant(design.response[:, np.newaxis]), auxiliary)
    scores = []
    for predictor in _predictors(design, parameters, draws, range(len(draws))):
        first, second = design.family.derivatives(rows, tf.constant(predictor), auxiliary)
        gradient = to_levels @ first[0].numpy()
        gradient = gradient.reshape(-1, z.shape[1], predictor.shape[1])  # [levels, directions, ...]
        curvature = np.einsum("rc,ri,rj->cij", -second[0][0].numpy(), z, z, optimize=True)
        scores.append(0.5 * (np.einsum("lic,ljc->cij", gradient, gradient) - curvature))
    return np.array(scores)


def _by_children(
    design: Design, parameters: Parameters, draws: list[np.ndarray], k: int, column: int
) -> list[np.ndarray]:
    """``[draws, chains]`` for each factor nested in factor k, along one column of its effects."""
    found: list[np.ndarray] = []
    levels = design.factors[k].levels
    for t in directions.group_moves(design):
        inner, a = t.inner
        if t.outer != (k, column) or t.groups != levels:
            continue
        lower = np.asarray(parameters.scales[inner], float)
        precision = np.linalg.inv(lower @ lower.T)
        sums = sparse.csr_array(
            (t.weights, (t.groups_inner, np.arange(len(t.weights)))),
            shape=(levels, len(t.weights)),
        )
        curvature = precision[a, a] * (sums**2).sum(1)  # [levels]
        pull = draws[inner] @ precision[:, a]  # [draws, inner levels, chains]
        gradient = np.stack([sums @ p for p in pull])
        found.append(0.5 * (gradient**2 - curvature[:, np.newaxis]).sum(1))
    return found
