"""The likelihood ratio test of one variance in a Gaussian model, for as few levels as there are.

Where a variance may be zero, the statistic is not a chi-square: it is zero itself in more than half
of all data sets when levels are few. Crainiceanu & Ruppert (2004) give its exact distribution where
the variance is the only one. Ratings whose other variances are known become such ones, when
multiplied by ``V_0^{-1/2}``, V_0 the covariance of the small model. So the p value is exact but for
these, which are held at their estimates.

With λ the variance in units of the residual's, K levels, ξ the eigenvalues of ``s^2 Z'V_0^-1 Z``,
μ those of ``s^2 Z'(V_0^-1 - V_0^-1 X (X'V_0^-1 X)^-1 X'V_0^-1) Z``, and w independent standard
normal,

    LR = sup over λ of  n log(T / D(λ)) - sum_s log(1 + λ ξ_s),
    D(λ) = sum_s w_s^2 / (1 + λ μ_s) + R,   T = D(0),   R a chi-square with n - p - K df.

By restricted likelihoods n is n - p, and ξ is μ.
"""

from __future__ import annotations

from lmmbook.exact.marginal import Marginal
from lmmbook.formula.covariance import split_values
from lmmbook.formula.design import Design
from lmmbook.formula.invariances import coordinates

import numpy as np
import pandas as pd
from scipy import sparse

GRID = 400  # values of λ that are tried
AT_ONCE = 1_000  # draws, whose statistics at all λ are in memory together
MOST = 50_000_000  # numbers in a dense [rows, levels]


def spectra(
    small: Design, estimates: pd.Series, z: sparse.csr_array
) -> tuple[np.ndarray, np.ndarray]:
    """μ and ξ, ``[levels]`` each, of effects that ``z`` [rows, levels] multiplies: written out, it
    should have at most `MOST` numbers."""
    _, covariances, auxiliary = split_values(small, estimates)
    covariances = [np.nan_to_num(c) for c in covariances]  # a correlation with an sd of zero
    sd = float(np.exp(auxiliary[0]))
    # How the fixed effects are written makes no difference, but to rounding.
    both = np.hstack([z.toarray(), coordinates.inner(small).fixed])
    weighted = sd**2 * both.T @ Marginal(small).solve(covariances, sd, both)
    k = z.shape[1]
    own, across, fixed = weighted[:k, :k], weighted[:k, k:], weighted[k:, k:]
    rest = own - across @ np.linalg.solve(fixed, across.T)
    mu, xi = (np.maximum(np.linalg.eigvalsh(m), 0.0) for m in (rest, own))
    return mu, xi


def null_draws(
    mu: np.ndarray, xi: np.ndarray, rows: int, fixed: int, n: int, rng: np.random.Generator,
    reml: bool = False,
) -> np.ndarray:  # fmt: skip
    """Draws ``[n]`` of the statistic where the variance is zero."""
    mu = np.sort(mu)[::-1][: rows - fixed]  # no more of them are positive
    scale = 1 / mu[0]
    at = scale * np.concatenate([[0.0], np.geomspace(1e-4, 1e6, GRID)])  # λ
    shrunk = 1 / (1 + np.outer(mu, at))  # [levels, λ]
    cost = np.log1p(np.outer(mu if reml else xi, at)).sum(0)
    times = rows - fixed * reml
    found = []
    for first in range(0, n, AT_ONCE):
        some = min(AT_ONCE, n - first)
        squares = rng.chisquare(1, (some, len(mu)))
        left = rows - fixed - len(mu)
        rest = rng.chisquare(left, (some, 1)) if left else np.zeros((some, 1))
        d = squares @ shrunk + rest
        found.append((times * np.log(d[:, :1] / d) - cost).max(1))
    return np.concatenate(found)
