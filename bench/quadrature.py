"""The maximum of one random intercept's likelihood, by Gauss-Hermite quadrature: no draws, no
Laplace approximation, and nothing of the package.

With one factor the integral over the effects falls into one of one dimension for each level, and
that a sum over nodes gives to many digits. So what else has to be believed can be checked here.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from scipy import optimize, special

NODES = 100


class OneFactor:
    """The likelihood of ``y ~ x + (1|g)``, logit or ordered, for responses of a table.

    Parameters are a vector: Intercept or thresholds, x, and the logarithm of sd(g).
    """

    def __init__(self, y: Any, x: Any, g: Any, family: str) -> None:
        order = np.argsort(g, kind="stable")
        labels, code = np.unique(np.asarray(y)[order], return_inverse=True)
        self.code, self.x = code, np.asarray(x, float)[order]
        self.first = np.unique(np.asarray(g)[order], return_index=True)[1]  # row of each level
        self.ordered = family == "ordered"
        cuts = [f"threshold({a}|{b})" for a, b in pairwise(labels)]
        self.names = [*(cuts if self.ordered else ["Intercept"]), "x", "sd(g)"]

    def value(self, p: np.ndarray, nodes: int = NODES) -> float:
        """The marginal log-likelihood."""
        z, weights = np.polynomial.hermite_e.hermegauss(nodes)
        eta = (p[-2] * self.x)[:, np.newaxis] + np.exp(p[-1]) * z
        by_level = np.add.reduceat(self._log_density(p[:-2], eta), self.first)
        return float(special.logsumexp(by_level + np.log(weights / weights.sum()), axis=1).sum())

    def _log_density(self, cuts: np.ndarray, eta: np.ndarray) -> np.ndarray:
        """Of each row at each node."""
        if not self.ordered:
            return special.log_expit(np.where(self.code == 1, 1, -1)[:, np.newaxis] * (cuts + eta))
        ends = np.concatenate([[-np.inf], cuts, [np.inf]])
        low, high = (ends[self.code + i][:, np.newaxis] - eta for i in (0, 1))
        share = special.expit(high) - special.expit(low)
        return np.log(np.maximum(share, 1e-300))

    def start(self) -> np.ndarray:
        """Shares of the categories, no slope, an sd of a half."""
        counts = np.bincount(self.code)
        cuts = special.logit(np.cumsum(counts)[:-1] / len(self.code))
        return np.array([*(cuts if self.ordered else -cuts), 0.0, np.log(0.5)])

    def fit(self) -> dict[str, dict[str, float]]:
        """Estimates and standard errors by name; that of an sd is of its logarithm.

        Raises RuntimeError if half as many nodes again say something else, or the gradient is not
        next to nothing: then it is no answer to judge others by.
        """
        found = optimize.minimize(lambda p: -self.value(p), self.start(), method="BFGS")
        error = np.sqrt(np.diag(np.linalg.inv(self.information(found.x))))
        off = abs(self.value(found.x) - self.value(found.x, NODES * 3 // 2))
        if off > 1e-6 or not np.all(np.abs(found.jac) * error < 0.01):
            raise RuntimeError("quadrature: expected more digits; try more nodes or fewer rows")
        estimate = np.array([*found.x[:-1], np.exp(found.x[-1])])
        return {
            name: {"estimate": float(e), "std_error": float(s)}
            for name, e, s in zip(self.names, estimate, error, strict=True)
        }

    def information(self, p: np.ndarray, h: float = 1e-3) -> np.ndarray:
        """Minus the second derivatives, by central differences."""
        steps = h * np.eye(len(p))
        found = np.zeros((len(p), len(p)))
        for i, a in enumerate(steps):
            for j, b in enumerate(steps[: i + 1]):
                corners = [(a + b, 1), (a - b, -1), (b - a, -1), (-a - b, 1)]
                second = sum(sign * self.value(p + step) for step, sign in corners) / (4 * h * h)
                found[i, j] = found[j, i] = -second
        return found
