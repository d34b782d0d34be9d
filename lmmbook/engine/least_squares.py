"""Generalised least squares: the fixed effects given the variances, of Gaussian ratings.

Chapter 04. With V the covariance of the ratings, the fixed effects are ``b = C X'V^-1 y``, with
covariance ``C = (X'V^-1 X)^-1``. With standardised effects, and ZL their columns, V is ``s^2 I + ZL
(ZL)'``, and by Woodbury's identity

    V^-1 a = (a - ZL P^-1 (ZL)'a / s^2) / s^2,    P = I + (ZL)'ZL / s^2.

P is sparse and may be large: its systems are solved by conjugate gradients, preconditioned by the
blocks of its levels (Hestenes & Stiefel 1952). In double precision, for levels with a million rows
each say next to nothing about the intercept, beside what as many independent rows would.
"""

from __future__ import annotations

from dataclasses import replace

from lmmbook.formula.invariances.coordinates import Inner

import numpy as np
from scipy import sparse
from scipy.sparse import linalg

LEFT = 1e-12  # residual of a solved system, relative to its right-hand side
MOST = 3_000  # steps of conjugate gradients


class RatingsCovariance:
    """V, at ``roots`` of the covariances, an L [columns, columns] a factor, and a residual ``sd``.

    ``solved`` says whether all systems were, so far.
    """

    def __init__(self, design: Inner, roots: list[np.ndarray], sd: float) -> None:
        self.sd, self.solved = sd, True
        pairs = zip(design.factors, roots, strict=True)
        factors = [replace(factor, z=factor.z @ root) for factor, root in pairs]
        self.columns = sparse.hstack([f.matrix() for f in factors], format="csr")  # ZL
        self.rows = self.columns.T.tocsr()
        blocks = [np.linalg.inv(np.eye(f.z.shape[1]) + f.gram() / sd**2) for f in factors]
        places = [np.arange(len(b) + 1) for b in blocks]
        inverse = [sparse.bsr_array((b, p[:-1], p)) for b, p in zip(blocks, places, strict=True)]
        self._nearly = linalg.aslinearoperator(sparse.block_diag(inverse, format="csr"))

    def answer(self, values: np.ndarray) -> np.ndarray:
        """``P^-1 (ZL)' values / s^2``: what standardised effects answer to ratings ``[rows]``."""
        size = self.columns.shape[1]

        def times(x: np.ndarray) -> np.ndarray:
            return x + self.rows @ (self.columns @ x) / self.sd**2

        precision = linalg.LinearOperator((size, size), times, dtype=float)
        right = self.rows @ values / self.sd**2
        found, left = linalg.cg(precision, right, rtol=LEFT, maxiter=MOST, M=self._nearly)
        self.solved &= left == 0
        return found

    def solve(self, values: np.ndarray) -> np.ndarray:
        """``V^-1 values``, ``[rows]``."""
        return (values - self.columns @ self.answer(values)) / self.sd**2


class LeastSquares:
    """The fixed effects of an inner design at given ``roots`` and ``sd``.

    Attributes
    ----------
    answers
        Of standardised effects to the fixed effects' columns, ``[effects, fixed]``.
    information
        ``X'V^-1 X``.
    beta
        b.
    solved
        Whether it is.
    """

    def __init__(self, design: Inner, roots: list[np.ndarray], sd: float) -> None:
        self.design, v = design, RatingsCovariance(design, roots, sd)
        x, y = design.fixed, design.response - design.offset
        self.answers = np.stack([v.answer(column) for column in x.T], axis=1)
        weighted = (x - v.columns @ self.answers) / sd**2  # V^-1 X
        self.information = weighted.T @ x
        self.beta = np.linalg.solve(self.information, weighted.T @ y)
        self.solved = v.solved

    def moved(self, roots: list[np.ndarray], sd: float) -> np.ndarray:
        """By how much b is another one at other variances near by, ``[fixed]``."""
        design, v = self.design, RatingsCovariance(self.design, roots, sd)
        left = design.response - design.offset - design.fixed @ self.beta
        found = np.linalg.solve(self.information, design.fixed.T @ v.solve(left))
        self.solved &= v.solved
        return found
