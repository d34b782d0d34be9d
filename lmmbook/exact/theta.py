"""Theta: a root of each block's covariance, the residual sd, and the likelihood around them.

Chapter 04. A root F ``[columns, rank]`` stands for the covariance ``Σ = F F'``; lme4's theta has
the entries of such a root, relative to the residual sd. It needs no bounds, and one with fewer
columns than rows stands for a singular covariance, as with an sd of zero or a correlation of one.
Roots here are zero above the diagonal: otherwise many would be the same covariance.
"""

from __future__ import annotations

from typing import NamedTuple

from lmmbook._numerics import jacobian
from lmmbook.exact.marginal import Evaluation, Marginal
from lmmbook.formula.design import Design

import numpy as np

H = 1e-4  # of central differences, in units of about an sd
SAME_CURVATURE = 1e-4  # in the same units: so near, the curvature is the same


class Block(NamedTuple):
    """Correlated effects: ``factor`` is its place in the design, ``columns`` those of its effects.

    ``levels`` is their number, and ``size`` [columns] the root mean square of what they multiply.
    """

    factor: int
    columns: tuple[int, ...]
    levels: int
    size: np.ndarray

    def of(self, matrices: list[np.ndarray]) -> np.ndarray:
        """Its part, ``[columns, columns]``, of a matrix a factor."""
        return matrices[self.factor][np.ix_(self.columns, self.columns)]


class Curvature(NamedTuple):
    """How the likelihood bends at a ``point`` [parameters], on ``scales`` [columns] a block.

    ``hessian`` [parameters, parameters] has the second derivatives, ``beta_jacobian`` [fixed
    columns, parameters] says by how much the best fixed effects move with a point, and ``ranks``
    are the shapes of the roots.
    """

    ranks: list[tuple[int, ...]]
    scales: list[np.ndarray]
    point: np.ndarray
    hessian: np.ndarray
    beta_jacobian: np.ndarray


class Theta:
    """Roots and a residual sd, and the likelihood with the fixed effects at their best.

    A point is the same as a vector ``[parameters]``: the entries of the roots on given scales,
    which are ``[columns]`` a block, and then the logarithm of the residual sd if that is free.

    Attributes
    ----------
    blocks
        The blocks of all factors.
    roots
        One a block, ``[columns, rank]``.
    residual_sd, free
        The residual sd, and whether it is to be estimated.
    reml
        Whether the likelihood is the restricted one.
    """

    def __init__(self, design: Design, residual_sd: float | None, reml: bool = False) -> None:
        self.design, self.marginal, self.free = design, Marginal(design), residual_sd is None
        self.reml = reml
        self.blocks = [
            Block(k, block, f.levels, np.sqrt((f.z[:, block] ** 2).mean(0)))
            for k, f in enumerate(design.factors)
            for block in f.blocks
        ]
        self.response_sd = float(np.std(design.response))
        self.residual_sd = self.response_sd / 2 if residual_sd is None else residual_sd
        self.roots = [np.diag(self.response_sd / 2 / block.size) for block in self.blocks]
        self._last: tuple[tuple, Evaluation] | None = None
        self._curvature: Curvature | None = None

    @property
    def covariances(self) -> list[np.ndarray]:
        """``[columns, columns]`` a factor."""
        found = [np.zeros((len(f.effects), len(f.effects))) for f in self.design.factors]
        for block, root in zip(self.blocks, self.roots, strict=True):
            found[block.factor][np.ix_(block.columns, block.columns)] = root @ root.T
        return found

    def evaluate(self) -> Evaluation:
        """The likelihood here; asked again at the same place, it does not compute again."""
        here = (self.residual_sd, *(root.tobytes() for root in self.roots))
        if self._last is None or self._last[0] != here:
            at = self.covariances, self.residual_sd
            found = self.marginal.evaluate(None, *at, self.reml)
            self._last = here, found
        return self._last[1]

    def surplus(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        """Observed less expected squares, and expected ones: ``[columns, columns]`` each.

        The former is twice the slope in the covariance.
        """
        found = self.evaluate()
        expected = block.of(found.expected)
        return block.of(found.observed) - expected, expected

    def natural_scales(self) -> list[np.ndarray]:
        """About the sd of a level's effect as the ratings show it, their noise included.

        On these scales the likelihood bends by about one a level, whatever the data.
        """
        return [np.sqrt(b.levels / np.diag(self.surplus(b)[1])) for b in self.blocks]

    def point(self, scales: list[np.ndarray]) -> np.ndarray:
        """The point that theta is, ``[parameters]``."""
        parts = [
            (root / scale[:, None])[_entries(root)]
            for root, scale in zip(self.roots, scales, strict=True)
        ]
        return np.concatenate([*parts, [np.log(self.residual_sd)] if self.free else []])

    def move(self, point: np.ndarray, scales: list[np.ndarray]) -> None:
        """Go to a point ``[parameters]``, with roots of the same ranks."""
        roots, start = [], 0
        for old, scale in zip(self.roots, scales, strict=True):
            entries, root = _entries(old), np.zeros(old.shape)
            root[entries] = point[start : start + len(entries[0])]
            roots.append(scale[:, None] * root)
            start += len(entries[0])
        self.roots = roots
        if self.free:
            self.residual_sd = float(np.exp(point[-1]))

    def slope(self, point: np.ndarray, scales: list[np.ndarray]) -> tuple[Evaluation, np.ndarray]:
        """Go to a point; the likelihood there, and its derivatives ``[parameters]``."""
        self.move(point, scales)
        found = self.evaluate()
        parts = [
            (scale[:, None] * (self.surplus(block)[0] @ root))[_entries(root)]
            for block, root, scale in zip(self.blocks, self.roots, scales, strict=True)
        ]
        return found, np.concatenate([*parts, [found.residual_score] if self.free else []])

    def curvature(self) -> Curvature:
        """How the likelihood bends here, by central differences on `natural_scales`.

        Asked again next to the same place, it does not compute again.
        """
        ranks = [root.shape for root in self.roots]
        if self._curvature is not None and ranks == self._curvature.ranks:
            away = self.point(self._curvature.scales) - self._curvature.point
            if np.abs(away).max(initial=0) < SAME_CURVATURE:
                return self._curvature
        scales = self.natural_scales()
        point = self.point(scales)

        def slope_and_beta(step: np.ndarray) -> np.ndarray:
            found, slope = self.slope(point + step, scales)
            return np.concatenate([slope, found.beta])

        second, of_beta = np.split(jacobian(slope_and_beta, np.full(len(point), H)), [len(point)])
        self.move(point, scales)
        self._curvature = Curvature(ranks, scales, point, (second + second.T) / 2, of_beta)
        return self._curvature


def lower(root: np.ndarray) -> np.ndarray:
    """The root ``[columns, rank]`` of the same covariance that is zero above the diagonal."""
    return np.linalg.qr(root.T).R.T


def _entries(root: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.tril_indices(len(root), 0, root.shape[1])
