"""Variances near zero, where EM creeps and the certificate is blind.

Chapter 04. Where a variance is tiny, its effects are tiny whatever the ratings say: score and
information on the log scale both vanish, wherever the maximum is. So such a variance is judged on
its own scale. Adding a little variance v along a direction a of a factor's effects changes the
log-likelihood by

    d log p(ratings) / dv = E[ 1/2 sum_l ((a'g_l)^2 - a'C_l a) ],

with g_l and -C_l the gradient and Hessian of the log likelihood in level l's effects, averaged over
their draws. At v = 0, negative means that the maximum is at the boundary.
"""

from __future__ import annotations

from lmmbook import directions
from lmmbook.arrays import Parameters
from lmmbook.design import Design

import numpy as np
import tensorflow as tf
from scipy import sparse

WEAK = 2.0  # information on the logarithm of an sd; with less, it may as well be zero
AT_ONCE = 4_000_000  # numbers are looked at, so that there is no second copy of all draws
DRAWS = 100  # of each chain, at most, are looked at


Block = tuple[int, tuple[int, ...]]  # a factor, and the columns whose effects are correlated


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
        for part in np.array_split(kept[k], -(-kept[k].size // AT_ONCE), axis=1):
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


def variance_score(
    design: Design, parameters: Parameters, kept: list[np.ndarray], k: int, along: np.ndarray
) -> tuple[float, float, np.ndarray]:
    """d log p(ratings) / dv along the best combination of some directions of factor k.

    ``along`` ``[columns, directions]``, as from `weakest`. Returns the estimate, its Monte Carlo
    standard error, and the direction ``[columns]``.

    Of two estimators the less noisy one: by the ratings, or, where another factor is nested in this
    one, by that factor's prior (its effects scatter around this one's, as ratings do).
    """
    chosen = np.linspace(0, len(kept[0]) - 1, min(DRAWS, len(kept[0]))).astype(int)
    draws = [u[chosen] for u in kept]
    scores = _by_ratings(design, parameters, draws, k, along)
    best = np.linalg.eigh(scores.mean((0, 1)))[1][:, -1]
    direction = along @ best
    candidates = [np.einsum("dcij,i,j->dc", scores, best, best)]
    if np.count_nonzero(direction) == 1:
        column = int(np.flatnonzero(direction)[0])
        size = direction[column] ** 2
        candidates += [size * t for t in _by_children(design, parameters, draws, k, column)]
    return *min((_mean_and_error(t) for t in candidates), key=lambda pair: pair[1]), direction


def _mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Of ``[draws, chains]``: the chains are independent, draws of one are nearly so."""
    batches = np.array([part.mean(0) for part in np.array_split(values, 5)]).ravel()
    return float(values.mean()), float(batches.std(ddof=1) / np.sqrt(len(batches)))


def _by_ratings(
    design: Design, parameters: Parameters, draws: list[np.ndarray], k: int, along: np.ndarray
) -> np.ndarray:
    """``[draws, chains, directions, directions]``; ``along`` is ``[columns, directions]``."""
    factor = design.factors[k]
    z = factor.z @ along
    to_levels = [
        sparse.csr_array(
            (c, (factor.codes, np.arange(design.rows))), shape=(factor.levels, design.rows)
        )
        for c in z.T
    ]
    fixed = design.offset + design.fixed @ np.asarray(parameters.beta, float)
    auxiliary = tf.cast(parameters.auxiliary, tf.float64)
    rows = design.family.rows(tf.constant(design.response[:, np.newaxis]), auxiliary)
    scores = []
    for i in range(len(draws[0])):
        predictor = np.repeat(fixed[:, np.newaxis], draws[0].shape[2], axis=1)
        for f, u in zip(design.factors, draws, strict=True):
            predictor += np.einsum("rcj,rj->rc", u[i][f.codes], f.z)
        first, second = design.family.derivatives(rows, tf.constant(predictor), auxiliary)
        # [directions, levels, chains]
        gradient = np.stack([m @ first[0].numpy() for m in to_levels])
        curvature = np.einsum("rc,ri,rj->cij", -second[0][0].numpy(), z, z, optimize=True)
        scores.append(0.5 * (np.einsum("ilc,jlc->cij", gradient, gradient) - curvature))
    return np.array(scores)


def _by_children(
    design: Design, parameters: Parameters, draws: list[np.ndarray], k: int, column: int
) -> list[np.ndarray]:
    """``[draws, chains]`` for each factor nested in factor k, along one column of its effects."""
    found: list[np.ndarray] = []
    levels = design.factors[k].levels
    for t in directions.translations(design):
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
