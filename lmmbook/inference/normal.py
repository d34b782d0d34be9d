"""Standardised effects, and a normal distribution for what the ratings leave open about them.

A level's effects are ``u = L x``, with ``L L'`` their covariance and ``x ~ Normal(0, I)``. A is the
matrix ``[rows, effects]`` that multiplies x in the linear predictor. Where W are the rows' weights,
the negative second derivatives of their log density by the predictor, the precision of x is

    P = I + A'WA = [[H, C], [C', R]].

H belongs to the factor with most effects, and is a block a level, for its levels share no rows.
With Cholesky factors G of H and K of ``S = R - C'H^-1 C``, the square ``x'Px`` is ``|G'x_1 + G^-1 C
x_2|^2 + |K'x_2|^2``. S is dense. (`exact.marginal` has the same algebra for what it needs: the
marginal likelihood's derivatives.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lmmbook.formula.covariance import root, split_values
from lmmbook.formula.design import Design

import numpy as np
import pandas as pd
from scipy import linalg, sparse

NONE = 1e-5  # of the largest, a singular value of a root that is none at all
MOST = 10_000  # effects beside those of the largest factor: their dense matrix takes 800 MB


class Standardised:
    """The standardised effects of a design at given parameters.

    All factors are side by side in x, the one with most effects first. Where a covariance is
    singular, some of x moves no ratings, and keeps its prior: that cancels in a ratio of densities.

    Attributes
    ----------
    roots
        L, ``[columns, columns]`` a factor of the design.
    head, tail
        A of the factor with most effects, and of all others: sparse, ``[rows, effects]``.
    columns
        How many numbers x has for a level of the first factor, of which rows have the ``codes``.
    effects
        How many numbers x has in all.
    without
        ``[rows]``: the linear predictor at no effects.
    auxiliary
        The family's own parameters.
    """

    def __init__(self, design: Design, estimates: Mapping[str, float] | pd.Series) -> None:
        beta, covariances, self.auxiliary = split_values(design, estimates)
        self.without = design.fixed @ beta + design.offset
        self.roots = [root(np.nan_to_num(c)) for c in covariances]
        sizes = [f.levels * len(f.effects) for f in design.factors]
        first, *_ = self.order = sorted(range(len(sizes)), key=lambda k: -sizes[k])
        scaled = [(design.factors[k], self.roots[k]) for k in self.order]
        matrices = [replace(factor, z=factor.z @ own).matrix() for factor, own in scaled]
        nothing = sparse.csr_array((design.rows, 0))
        self.columns = self.roots[first].shape[1]
        self.head, self.tail = matrices[0], sparse.hstack([nothing, *matrices[1:]], format="csr")
        self.effects = sum(sizes)
        self.codes, rows = design.factors[first].codes, np.arange(design.rows)
        shape = design.factors[first].levels, design.rows
        self.members = sparse.csr_array((np.ones(design.rows), (self.codes, rows)), shape=shape)

    def of(self, effects: list[np.ndarray]) -> np.ndarray:
        """x, ``[draws, effects]``, from u, ``[draws, levels, columns]`` a factor of the design.

        What u does not tell of x, where a covariance is singular, is zero.
        """
        parts = []
        for k in self.order:
            x = effects[k] @ np.linalg.pinv(self.roots[k], rcond=NONE).T
            parts.append(x.reshape(len(x), -1))
        return np.concatenate(parts, axis=1)

    def predictor(self, x: np.ndarray) -> np.ndarray:
        """``[rows, draws]``, from ``[draws, effects]``."""
        size = self.head.shape[1]
        found = self.head @ x[:, :size].T + self.tail @ x[:, size:].T
        return self.without[:, np.newaxis] + found

    def predictor_of_head(self, x: np.ndarray, tail: np.ndarray) -> np.ndarray:
        """``[rows, n]``, from ``[levels, n]`` of the first factor, one effect a level, and the
        others' ``[effects]``."""
        others = self.without + self.tail @ tail
        return others[:, np.newaxis] + self.head.data[:, np.newaxis] * x[self.codes]

    def sum_by_level(self, values: np.ndarray) -> np.ndarray:
        """``[levels, n]`` of the first factor, from ``[rows, n]``."""
        return self.members @ values

    def pull(self, slopes: np.ndarray) -> np.ndarray:
        """``A' slopes`` [effects], from ``[rows]``."""
        return np.concatenate([self.head.T @ slopes, self.tail.T @ slopes])


class Normal:
    """``Normal(mean, P^-1)`` for standardised effects, with ``weights`` [rows] that are not < 0.

    Raises
    ------
    ValueError
        If there are too many effects beside those of the largest factor.
    """

    def __init__(self, effects: Standardised, mean: np.ndarray, weights: np.ndarray) -> None:
        self.mean, head, tail = mean, effects.head, effects.tail
        if tail.shape[1] > MOST:
            raise ValueError(
                f"likelihoods: expected at most {MOST:,} random effects beside those of the "
                f"largest factor, got {tail.shape[1]:,}, whose dense matrix would not fit into "
                "memory; compare models by held-out scores (log_score) instead"
            )
        self.size, c = head.shape[1], effects.columns
        scale = np.sqrt(weights)[:, np.newaxis]
        head, tail = head.multiply(scale).tocsr(), tail.multiply(scale).tocsr()
        blocks = _diagonal((head.T @ head).tocsr(), c) + np.eye(c)
        own = np.linalg.cholesky(blocks)
        self.upper = _spread(own.swapaxes(1, 2))  # G'
        self.half = _spread(np.linalg.inv(own))  # G^-1
        self.corner = (self.half @ (head.T @ tail)).tocsr()  # G^-1 C
        schur = (tail.T @ tail - self.corner.T @ self.corner).toarray()
        schur.flat[:: len(schur) + 1] += 1.0
        self.root = np.linalg.cholesky(schur)  # K
        self.log_root = [np.log(d).sum() for d in (self.upper.diagonal(), np.diag(self.root))]

    def solve(self, right: np.ndarray) -> np.ndarray:
        """``P^-1 right``, ``[effects]``."""
        head = self.half @ right[: self.size]
        tail = right[self.size :] - self.corner.T @ head
        tail = linalg.cho_solve((self.root, True), tail)
        return np.concatenate([self.half.T @ (head - self.corner @ tail), tail])

    def draw(self, normal: np.ndarray) -> np.ndarray:
        """Draws ``[n, effects]``, from as many standard normal numbers."""
        head, tail = normal.T[: self.size], normal.T[self.size :]
        tail = linalg.solve_triangular(self.root, tail, lower=True, trans="T")
        head = self.half.T @ (head - self.corner @ tail)
        return self.mean + np.concatenate([head, tail]).T

    def white(self, x: np.ndarray) -> np.ndarray:
        """The standard normal numbers ``[n, effects]`` that `draw` makes these draws of."""
        away = (x - self.mean).T
        head = self.upper @ away[: self.size] + self.corner @ away[self.size :]
        return np.concatenate([head, self.root.T @ away[self.size :]]).T

    def log_density(self, x: np.ndarray) -> np.ndarray:
        """``[draws]``, of ``[draws, effects]``."""
        return standard(self.white(x)) + self.log_root[0] + self.log_root[1]

    def log_density_of_tail(self, tail: np.ndarray) -> np.ndarray:
        """``[draws]``, of all but the first factor's effects, ``[draws, effects]``."""
        white = (tail - self.mean[self.size :]) @ self.root
        return standard(white) + self.log_root[1]

    def head_given(self, tail: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean ``[head, draws]`` and sd ``[head, 1]`` of the first factor's effects, given the
        others', ``[draws, effects]``. Only for one a level."""
        away = self.half.T @ (self.corner @ (tail - self.mean[self.size :]).T)
        return self.mean[: self.size, np.newaxis] - away, self.half.diagonal()[:, np.newaxis]


def standard(x: np.ndarray) -> np.ndarray:
    """Log density of standard normal numbers: ``[draws]``, of ``[draws, n]``."""
    return -0.5 * (x**2).sum(1) - 0.5 * x.shape[1] * np.log(2 * np.pi)


def _diagonal(matrix: sparse.csr_array, columns: int) -> np.ndarray:
    """The blocks ``[levels, columns, columns]`` of a matrix that has nothing beside them."""
    entries, found = matrix.tocoo(), np.zeros((matrix.shape[0] // columns, columns, columns))
    found[entries.row // columns, entries.row % columns, entries.col % columns] = entries.data
    return found


def _spread(blocks: np.ndarray) -> sparse.csr_array:
    """``[levels, columns, columns]`` as one sparse matrix."""
    where = np.arange(len(blocks) + 1)
    return sparse.bsr_array((blocks, where[:-1], where)).tocsr()
