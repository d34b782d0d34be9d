"""Criticism: what the fitted model predicts, set against what happened.

Chapter 05. Scores average over posterior draws of the effects as `predictions` do, and have a Monte
Carlo error like theirs.
"""

from __future__ import annotations

from lmmbook._tensorflow.processes import check_not_forked
from lmmbook.data.frames import Data
from lmmbook.results.clusters import clustered_se as clustered_se
from lmmbook.results.predictions import Predictions
from lmmbook.results.predictive import Groups, ask, batches, is_discrete, log_prob, rows_for

import numpy as np
import tensorflow as tf
from scipy.special import logsumexp


class Criticism(Predictions):
    """How a fitted model's predictions fit rows whose response is there; methods of a
    `lmmbook.Fit`."""

    def log_score(self, data: Data, *, groups: Groups = None, missing: str = "raise") -> np.ndarray:
        """Log predictive density, or mass, of each row's own response, ``[rows]``; in nats.

        The logarithm of the mean over posterior draws: the logarithmic score (Good 1952; Gneiting &
        Raftery 2007). Higher is better. Masses can be compared with masses, densities with
        densities in the same units, and neither with the other.

        Raises
        ------
        TypeError, ValueError
            If ``data`` are no rows for this design, or lack a response that suits the family.

        Examples
        --------
        >>> nobody = fit.log_score(data.assign(g=-1)).mean()
        >>> bool(fit.log_score(data).mean() > nobody)  # to know the level helps
        True
        """
        check_not_forked("log_score")
        new, posterior = rows_for(self.design, self.posterior, data, missing, groups, response=True)
        family, response = self.design.family.given(new.response[:, np.newaxis])
        total, count = np.full(new.rows, -np.inf), 0
        for predictor, own in batches(new, self._estimates, posterior):
            value = log_prob(family, predictor, own, response)
            total = np.logaddexp(total, logsumexp(value, axis=1))
            count += predictor.shape[1]
        return total - np.log(count)

    def pit(
        self, data: Data, seed: int, *, groups: Groups = None, missing: str = "raise"
    ) -> np.ndarray:
        """Probability integral transform of each row's own response, ``[rows]``, between 0 and 1.

        How much of the predictive distribution lies below what happened. For a discrete response
        that is ``P(less) + U P(equal)``, with a uniform random U for each row (Czado, Gneiting &
        Held 2009); categories are taken in their order. Uniform if the rows come from the model and
        were not used to fit it. One row's values are uniform, those of rows with shared effects are
        not independent.

        Raises
        ------
        TypeError, ValueError
            As `log_score`, or if the distribution has no cdf.

        Examples
        --------
        >>> shares = np.histogram(fit.pit(data, seed=0), bins=4, range=(0, 1))[0] / len(data)
        >>> shares.shape, bool((abs(shares - 0.25) < 0.1).all())
        ((4,), True)
        """
        check_not_forked("pit")
        new, posterior = rows_for(self.design, self.posterior, data, missing, groups, response=True)
        family, response = self.design.family.given(new.response[:, np.newaxis])
        up_to, equal, count = np.zeros(new.rows), np.zeros(new.rows), 0
        for predictor, own in batches(new, self._estimates, posterior):
            if family.categories is not None:
                share = family.probabilities(predictor, own).sum(1)
                up_to += (share * (np.arange(share.shape[1]) <= response)).sum(1)
                equal += np.take_along_axis(share, response.astype(int), 1)[:, 0]
            else:
                distribution = family.distribution(tf.constant(predictor), tf.constant(own))
                up_to += (
                    ask(family, "cdf", distribution.cdf, response.astype(own.dtype)).numpy().sum(1)
                )
                if is_discrete(distribution):
                    equal += np.exp(log_prob(family, predictor, own, response)).sum(1)
            count += predictor.shape[1]
        uniform = np.random.default_rng(seed).uniform(size=new.rows)
        return np.clip((up_to - (1 - uniform) * equal) / count, 0.0, 1.0)
