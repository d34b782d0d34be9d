"""What a likelihood is the integral of, and the normal distribution that is nearest to it.

Chapter 06. ``w(x) = log p(y, x) - log q(x)`` of standardised effects x. Where the levels of the
factor with most effects have one each, these are integrated out, one by one, by Gauss and Hermite's
rule; x, p and q are then those of the other factors.
"""

from __future__ import annotations

from lmmbook.formula.design import Design
from lmmbook.inference.normal import Normal, Standardised, standard
from lmmbook.inference.rows import RowDensity
from lmmbook.results.predictive import Posterior, columns_of

import numpy as np
import pandas as pd
from numpy.polynomial.hermite_e import hermegauss
from scipy.special import logsumexp

STEPS = 5  # of Newton's, on the way to q
PAIRS = 32  # draws that each but the first averages over, with their mirror images
NODES = 11  # of Gauss and Hermite's rule


class Integrand:
    """``p(y, x)`` at given parameters, and q(x) near it.

    q is the nearest one in the mean of w under q. There the mean slope of ``log p(y, x)`` is zero,
    and q's precision has the mean weights (Opper & Archambeau 2009). A few of Newton's ``steps``
    lead there from ``start`` [effects], with means over draws. Any q would do; of this one there is
    least in w that varies.

    Attributes
    ----------
    q
        The normal distribution.
    gaussian
        Whether the ratings are normal, so that q is exact and w constant.
    collapsed
        Whether the effects of the first factor are integrated out.
    """

    def __init__(
        self,
        design: Design,
        effects: Standardised,
        start: np.ndarray,
        seed: int,
        steps: int = STEPS,
    ) -> None:
        self.effects, rng = effects, np.random.default_rng(seed)
        self.density = RowDensity(design, effects.auxiliary, effects.without)
        self.gaussian = self.density.gaussian
        self.collapsed = effects.columns == 1 and not self.gaussian
        self.q = self._step(start[np.newaxis])
        for _ in range(0 if self.gaussian else steps - 1):
            normal = rng.normal(size=(PAIRS, effects.effects))
            self.q = self._step(self.q.draw(np.concatenate([normal, -normal])))

    @classmethod
    def at_estimates(
        cls, design: Design, estimates: pd.Series, posterior: Posterior, chains: int, draws: int,
        seed: int,
    ) -> tuple[Integrand, np.ndarray]:  # fmt: skip
        """The one at a fit's estimates, and the fit's draws of x: about ``draws``, ``[draws,
        effects]``, spread over all sweeps."""
        effects = Standardised(design, estimates)
        sweeps = len(next(iter(posterior.values()))) // chains
        some = np.linspace(0, sweeps - 1, min(sweeps, -(-draws // chains))).astype(int)
        chosen = (some[:, np.newaxis] * chains + np.arange(chains)).ravel()
        u = [columns_of(f, posterior[f.name][chosen]).astype(float) for f in design.factors]
        x = effects.of(u)
        return cls(design, effects, x.mean(0), seed), x

    def _step(self, x: np.ndarray) -> Normal:
        """Newton's, with the means of slopes and weights over draws ``[draws, effects]``."""
        effects, density, centre = self.effects, self.density, x.mean(0)
        found = [density.derivatives(effects.predictor(x[i])) for i in density.batches(len(x))]
        slope, bend = np.sum(found, axis=0) / len(x)
        q = Normal(effects, centre, np.maximum(-bend, 0.0))
        q.mean = centre + q.solve(effects.pull(slope) - centre)
        return q

    def w(self, x: np.ndarray, nodes: int = NODES) -> np.ndarray:
        """``[draws]``, of ``[draws, effects]``: those of the first factor are not looked at where
        they are integrated out."""
        if self.collapsed:
            tail = x[:, self.q.size :]
            inner = np.array([self._inner(one, nodes) for one in tail])
            return inner + standard(tail) - self.q.log_density_of_tail(tail)
        effects, density = self.effects, self.density
        rows = [density.of_rows(effects.predictor(x[i])).sum(0) for i in density.batches(len(x))]
        return np.concatenate(rows) + standard(x) - self.q.log_density(x)

    def missed(self) -> float:
        """What Gauss and Hermite's rule misses: by how much twice the nodes change w."""
        if not self.collapsed:
            return 0.0
        few, many = (self.w(self.q.mean[np.newaxis], n)[0] for n in (NODES, 2 * NODES))
        return float(abs(many - few))

    def _inner(self, tail: np.ndarray, nodes: int) -> float:
        """``log p(y, tail) - log p(tail)``: the first factor's effects integrated out, level by
        level, around where q has them."""
        z, weights = hermegauss(nodes)
        log_weights = np.log(weights) + 0.5 * z**2  # for a function without the rule's density
        mean, sd = self.q.head_given(tail[np.newaxis])
        x = mean + sd * z  # [levels, nodes]
        rows = self.density.of_rows(self.effects.predictor_of_head(x, tail))
        of_level = self.effects.sum_by_level(rows) - 0.5 * x**2 - 0.5 * np.log(2 * np.pi)
        return float((logsumexp(of_level + log_weights, axis=1) + np.log(sd[:, 0])).sum())
