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

from typing import NamedTuple

from lmmbook import directions
from lmmbook.arrays import Parameters
from lmmbook.formula import Design

import numpy as np
from scipy import sparse

WEAK = 0.1  # of a prior's variance: if the ratings explain less of it, it counts as near zero
DRAWS = 100  # of each chain, at most, are looked at


class Weak(NamedTuple):
    """A direction of factor ``factor``'s effects that its ratings hardly tell anything about.

    ``columns`` is its block, ``direction`` ``[columns of the factor]`` a unit vector.
    """

    factor: int
    columns: tuple[int, ...]
    direction: np.ndarray


def weak_directions(
    design: Design, parameters: Parameters, kept: list[np.ndarray]
) -> list[Weak]:  # fmt: skip
    """One for every block in which the ratings explain under `WEAK` of the prior's variance.

    ``kept`` holds draws, ``[draws, levels, chains, columns]`` a factor.
    """
    found = []
    for k, (factor, scale) in enumerate(zip(design.factors, parameters.scales, strict=True)):
        lower = np.asarray(scale, float)
        away = kept[k] - kept[k].mean((0, 2), keepdims=True)
        count = away.shape[0] * away.shape[2] - 1
        within = np.einsum("dlci,dlcj->ij", away, away) / count / factor.levels
        for block in factor.blocks:
            own = np.ix_(block, block)
            standard = np.linalg.inv(lower[own])
            explained = np.eye(len(block)) - standard @ within[own] @ standard.T
            if np.linalg.eigvalsh(explained).min() >= WEAK:
                continue
            # The direction of least prior variance, each column in the size of what it multiplies.
            size = np.sqrt((factor.z[:, block] ** 2).mean(0))
            prior = (lower @ lower.T)[own] * np.outer(size, size)
            least = np.linalg.eigh(prior)[1][:, 0] * size
            direction = np.zeros(len(factor.effects))
            direction[list(block)] = least / np.linalg.norm(least)
            found.append(Weak(k, block, direction))
    return found


def variance_score(
    design: Design, parameters: Parameters, kept: list[np.ndarray], weak: Weak
) -> tuple[float, float]:
    """d log p(ratings) / dv along a direction: estimate and its Monte Carlo standard error.

    Of two estimators the less noisy one: by the ratings, or, where another factor is nested in this
    one, by that factor's prior (its effects scatter around this one's, as ratings do).
    """
    chosen = np.linspace(0, len(kept[0]) - 1, min(DRAWS, len(kept[0]))).astype(int)
    draws = [u[chosen] for u in kept]
    candidates = [_by_ratings(design, parameters, draws, weak)]
    if np.count_nonzero(weak.direction) == 1:
        candidates += _by_children(design, parameters, draws, weak)
    return min((_mean_and_error(t) for t in candidates), key=lambda pair: pair[1])


def _mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Of ``[draws, chains]``: the chains are independent, draws of one are nearly so."""
    batches = np.array([part.mean(0) for part in np.array_split(values, 5)]).ravel()
    return float(values.mean()), float(batches.std(ddof=1) / np.sqrt(len(batches)))


def _by_ratings(
    design: Design, parameters: Parameters, draws: list[np.ndarray], weak: Weak
) -> np.ndarray:
    factor, variance = design.factors[weak.factor], float(parameters.residual_sd) ** 2
    z = factor.z @ weak.direction
    to_levels = sparse.csr_array(
        (z, (factor.codes, np.arange(design.rows))), shape=(factor.levels, design.rows)
    )
    curvature = np.bincount(factor.codes, z**2, factor.levels) / variance  # [levels]
    fixed = design.response - design.fixed @ np.asarray(parameters.beta, float)
    scores = []
    for i in range(len(draws[0])):
        left = np.repeat(fixed[:, np.newaxis], draws[0].shape[2], axis=1)
        for f, u in zip(design.factors, draws, strict=True):
            left -= np.einsum("rcj,rj->rc", u[i][f.codes], f.z)
        gradient = to_levels @ left / variance  # [levels, chains]
        scores.append(0.5 * (gradient**2 - curvature[:, np.newaxis]).sum(0))
    return np.array(scores)


def _by_children(
    design: Design, parameters: Parameters, draws: list[np.ndarray], weak: Weak
) -> list[np.ndarray]:
    found: list[np.ndarray] = []
    column = int(np.flatnonzero(weak.direction)[0])
    for t in directions.translations(design):
        inner, a = t.inner
        factor = design.factors[weak.factor]
        if t.outer != (weak.factor, column) or t.groups != factor.levels:
            continue
        lower = np.asarray(parameters.scales[inner], float)
        precision = np.linalg.inv(lower @ lower.T)
        sums = sparse.csr_array(
            (t.weights, (t.groups_inner, np.arange(len(t.weights)))),
            shape=(factor.levels, len(t.weights)),
        )
        curvature = precision[a, a] * (sums**2).sum(1)  # [levels]
        pull = draws[inner] @ precision[:, a]  # [draws, inner levels, chains]
        gradient = np.stack([sums @ p for p in pull])
        found.append(0.5 * (gradient**2 - curvature[:, np.newaxis]).sum(1))
    return found
