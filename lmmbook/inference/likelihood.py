"""The marginal log-likelihood of a fit, of whatever family, with its Monte Carlo error.

Chapter 06. The effects x have to be integrated out of ``p(y, x)``, which normal ratings allow by
hand and others do not. So take a normal distribution q(x) that is near ``p(x | y)``, and go from
one to the other: ``p_t(x)`` is proportional to ``q(x) exp(t w(x))``, with ``w(x) = log p(y, x) -
log q(x)``. What it has to be divided by is 1 for t = 0 and p(y) for t = 1, and its logarithm grows
by the mean of w (path sampling: Gelman & Meng 1998):

    log p(y) = integral over t from 0 to 1 of m(t),    m(t) = E_t w(x),    m'(t) = Var_t w(x).

There are draws at both ends: of q any number, and of ``p(x | y)`` those that the fit kept. They
give m and its slope there, and these give the integral, by the trapezoidal rule and its first
correction (of Euler and Maclaurin):

    log p(y) ≈ (m(0) + m(1)) / 2 - (m'(1) - m'(0)) / 12.

With many levels w is a sum of many small parts, one a level, each of which is nearly straight in t.
Those of the factor with most levels, which have fewest rows each, bend most. Where they have one
effect each, these are integrated out first, one by one, by Gauss and Hermite's rule; x, p and q are
then those of the other factors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmmbook._tensorflow.processes import check_not_forked
from lmmbook._tensorflow.quiet import quiet_log
from lmmbook.data.frames import Data
from lmmbook.engine.fit import check_integer
from lmmbook.engine.least_squares import LeastSquares
from lmmbook.exact.oracle import criterion
from lmmbook.formula.covariance import root, split_values
from lmmbook.formula.design import Design
from lmmbook.formula.invariances import coordinates
from lmmbook.inference.asked import free_parameters, warn_unconverged, with_rows
from lmmbook.inference.integrand import Integrand
from lmmbook.results.predictive import Posterior

import numpy as np
import pandas as pd
import tensorflow as tf
import tensorflow_probability as tfp

if TYPE_CHECKING:
    from lmmbook.results.fit import Fit

ALLOWED = 0.2  # of the trapezoidal rule's correction, for what that leaves of its error


@dataclass(frozen=True)
class LogLikelihood:
    """A marginal log-likelihood: what `Fit.log_likelihood` returns. Chapter 06.

    Attributes
    ----------
    value
        ``log p(y)`` at the estimates, natural logarithm, constants included. Of a fit by REML the
        restricted one, as lme4 has it: ``log p(y) + 1/2 log det C + p/2 log 2 pi``, with C the
        covariance of the p fixed effects given the variances.
    mcse
        Its Monte Carlo standard error, with an allowance for what the integration rules miss; zero
        for a Gaussian family.
    parameters, rows
        How many parameters were estimated, and from how many rows.
    """

    value: float
    mcse: float
    parameters: int
    rows: int
    reml: bool = False

    @property
    def reml_criterion(self) -> float:
        """``-2 value``, as `lmmbook.exact.ExactFit` has it: a ValueError of a fit by ML."""
        return criterion(self.value, self.reml)

    @property
    def aic(self) -> float:
        """Akaike's criterion, ``2 parameters - 2 value``; its error is ``2 mcse``."""
        return 2 * self.parameters - 2 * self.value

    @property
    def bic(self) -> float:
        """Schwarz's criterion, ``log(rows) parameters - 2 value``; its error is ``2 mcse``."""
        return float(np.log(self.rows)) * self.parameters - 2 * self.value


def log_likelihood(
    fit: Fit, data: Data | None, draws: int, seed: int, missing: str
) -> LogLikelihood:
    """See `lmmbook.Fit.log_likelihood`."""
    check_integer("draws", draws, 2)
    warn_unconverged(fit, "log_likelihood")
    return of_rows(fit, with_rows(fit, data, missing), draws, seed)


def of_rows(fit: Fit, design: Design, draws: int, seed: int) -> LogLikelihood:
    """The same, where the rows are there already."""
    check_not_forked("log_likelihood")
    table = fit.parameters
    value, mcse = integrate(design, table["estimate"], fit.posterior, fit.chains, draws, seed)
    if fit.reml:
        value += _of_fixed(design, table["estimate"])
    parameters = free_parameters(design, len(table))
    return LogLikelihood(value, mcse, parameters, design.rows, fit.reml)


def _of_fixed(design: Design, estimates: pd.Series) -> float:
    """``1/2 log det 2 pi C``, C the covariance of the fixed effects given the variances."""
    inner = coordinates.inner(design)
    _, covariances, auxiliary = split_values(design, estimates)
    roots = [root(c) for c in coordinates.inner_covariances(inner, covariances)]
    found = LeastSquares(inner, roots, float(np.exp(auxiliary[0])) / inner.response_scale)
    if not found.solved:
        raise RuntimeError(
            "log_likelihood: expected equations of the fixed effects that can be solved, got ones "
            "that are too nearly singular; leave one of the fixed effects out"
        )
    by = inner.response_scale * inner.fixed_map
    log_det = 2 * np.linalg.slogdet(by)[1] - np.linalg.slogdet(found.information)[1]
    return 0.5 * float(log_det + len(by) * np.log(2 * np.pi))


def integrate(
    design: Design, estimates: pd.Series, posterior: Posterior, chains: int, draws: int, seed: int
) -> tuple[float, float]:
    """``log p(y)`` at the estimates, and its Monte Carlo standard error.

    ``posterior`` are draws of the effects at the estimates, as `Fit` has them. About as many as
    ``draws`` says are used, spread over all sweeps, and as many of q. Raises as `Normal`.
    """
    at, x = Integrand.at_estimates(design, estimates, posterior, chains, draws, seed)
    if at.gaussian:  # w is constant
        return float(at.w(at.q.mean[np.newaxis])[0]), 0.0
    missed = at.missed()
    if at.collapsed and at.q.size == x.shape[1]:  # no effects are left to draw
        return float(at.w(x[:1])[0]), missed
    normal = np.random.default_rng([seed, 1]).normal(size=(draws, x.shape[1]))
    found = from_ends(at.w(at.q.draw(normal)), at.w(x).reshape(-1, chains))
    return found[0], float(np.hypot(found[1], missed))


def from_ends(at_q: np.ndarray, at_p: np.ndarray) -> tuple[float, float]:
    """The integral of m(t), and its error: from w at independent draws of q ``[draws]``, and at
    those of ``p(x | y)``, ``[sweeps, chains]``."""
    middle = (at_q.mean() + at_p.mean()) / 2
    correction = (at_p.var(ddof=1) - at_q.var(ddof=1)) / 12
    # What a draw adds to that: half of its w, and its share of a variance.
    shares = [(w - w.mean()) ** 2 / 12 for w in (at_q, at_p)]
    of_q, of_p = at_q / 2 + shares[0], at_p / 2 - shares[1]
    variance = of_q.var(ddof=1) / of_q.size + of_p.var(ddof=1) / effective_draws(of_p)
    return float(middle - correction), float(np.hypot(np.sqrt(variance), ALLOWED * correction))


def effective_draws(values: np.ndarray) -> float:
    """Effective sample size for the mean of ``[sweeps, chains]``: at most how many there are."""
    if len(values) < 4 or np.ptp(values) == 0:  # too few to tell how they are correlated
        return float(values.shape[1])
    with quiet_log():  # TensorFlow warns of a cast inside, from complex to real, that is meant
        found = tfp.mcmc.effective_sample_size(tf.constant(values), cross_chain_dims=1)
    return float(min(found, values.size))
