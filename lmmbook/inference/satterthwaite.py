"""Degrees of freedom of tests of fixed effects, in Gaussian models.

The variance of an estimated ``l'beta``, ``l'C l`` with ``C = (X'V^-1X)^-1``, is itself estimated:
it depends on the sds, of which few levels tell little. Satterthwaite (1946) gives it the degrees
of freedom of the chi-square variable that varies as much (Kuznetsova, Brockhoff & Christensen
2017):

    df = 2 (l'C l)^2 / (g'A g),

with g the derivatives of ``l'C l`` in the parameters of the covariance, and A the inverse of their
observed information.
"""

from __future__ import annotations

from lmmbook._numerics import jacobian
from lmmbook.exact.theta import Theta, lower
from lmmbook.formula.covariance import least, split_values
from lmmbook.formula.design import Design
from lmmbook.formula.invariances import coordinates

import numpy as np
import pandas as pd

STEP = 1e-3  # of central differences, in units of about an sd
MOST = 3_000  # effects beside those of the largest factor: about a minute on two cores
SINGULAR = 1e-9  # the smallest eigenvalue of correlations


class Satterthwaite:
    """Degrees of freedom in one Gaussian design, at given parameters.

    Attributes
    ----------
    undefined
        Why there are none, if so.
    covariance
        C, ``[fixed, fixed]``, if there are.
    """

    def __init__(self, design: Design, estimates: pd.Series, reml: bool) -> None:
        self.undefined = ""
        sizes = sorted(f.levels * len(f.effects) for f in design.factors)
        if sum(sizes[:-1]) > MOST:
            self.undefined = (
                f"there are {sum(sizes[:-1]):,} random effects beside those of the largest factor, "
                f"more than the {MOST:,} that they are computed for"
            )
            return
        inner = coordinates.inner(design)
        theta = _at(inner, estimates, reml)
        if theta is None:
            self.undefined = "a variance is zero, or a correlation is 1 or -1"
            return
        bend = theta.curvature()
        if np.linalg.eigvalsh(bend.hessian).max() >= 0:
            self.undefined = "the estimates are not at a maximum of the likelihood"
            return
        self.asymptotic = -np.linalg.inv(bend.hessian)  # A
        outer = inner.response_scale * inner.fixed_map

        def of_fixed() -> np.ndarray:
            return outer @ np.linalg.inv(theta.evaluate().fixed_information) @ outer.T

        self.covariance = of_fixed()
        point = theta.point(bend.scales)

        def of(step: np.ndarray) -> np.ndarray:
            theta.move(point + step, bend.scales)
            return of_fixed().ravel()

        moves = jacobian(of, np.full(len(point), STEP))
        self.moves = moves.reshape(*self.covariance.shape, len(point))

    def degrees_of_freedom(self, combinations: np.ndarray) -> np.ndarray:
        """``[n]``, of as many linear combinations ``[n, fixed]``; NaN if they are not defined."""
        if self.undefined:
            return np.full(len(combinations), np.nan)
        variance = np.einsum("ni,ij,nj->n", combinations, self.covariance, combinations)
        g = np.einsum("ni,ijp,nj->np", combinations, self.moves, combinations)
        return 2 * variance**2 / np.einsum("np,pq,nq->n", g, self.asymptotic, g)


def _at(inner: coordinates.Inner, estimates: pd.Series, reml: bool) -> Theta | None:
    """Theta at the estimates; None where a covariance is singular."""
    _, covariances, auxiliary = split_values(inner.outer, estimates)
    covariances = coordinates.inner_covariances(inner, covariances)
    sd = inner.family.sd  # type: ignore[attr-defined]
    theta = Theta(inner, sd, reml)
    theta.residual_sd = float(np.exp(auxiliary[0])) / inner.response_scale
    roots = []
    for block in theta.blocks:
        own = block.of(covariances)
        if least(own) < SINGULAR:
            return None
        roots.append(lower(np.linalg.cholesky(own)))
    theta.roots = roots
    return theta
