"""Predictions: the mean of a row's response, its probabilities, and draws of it.

Chapter 05. A prediction averages over posterior draws of the effects, with the parameters at their
estimates: each draw gives a linear predictor for every row (`predictive`), and that a distribution.
The draws are those that a fit keeps, at most 1,000. The Monte Carlo error they leave is the
posterior sd of what is averaged, over the root of the effective number of draws: for a probability
that the effects leave uncertain by 0.1, some 0.003 to 0.01.

Effects of a level that the fit has never seen come from the prior. All but the mean of a Gaussian
need TensorFlow, and raise as `processes.check_not_forked`.
"""

from __future__ import annotations

from collections.abc import Sequence

from lmmbook._tensorflow.processes import check_not_forked
from lmmbook.data.frames import Data
from lmmbook.families.gaussian import Gaussian
from lmmbook.formula import covariance
from lmmbook.formula.design import Design
from lmmbook.results.predictive import (
    Groups,
    Posterior,
    ask,
    batches,
    check_cuts,
    columns_of,
    linear,
    masses,
    rows_for,
)

import numpy as np
import pandas as pd
import tensorflow as tf


class Predictions:
    """What a fitted model predicts; methods of a `lmmbook.Fit`.

    It has the ``design``, and posterior draws of the effects, as `Fit.posterior`.
    """

    design: Design
    posterior: Posterior

    @property
    def _estimates(self) -> pd.Series:
        raise NotImplementedError

    def predict(self, data: Data, *, groups: Groups = None, missing: str = "raise") -> np.ndarray:
        """Posterior predictive mean of each row of ``data``, ``[rows]``, in units of the response.

        Of no and yes it is the probability of the yes; of successes out of trials, that of a
        success. The mean given the effects, averaged over posterior draws. For a Gaussian response
        one forward pass at the mean effects is enough, and exact: there the mean is linear in the
        effects, and an average passes through a linear function unchanged. New levels then have the
        prior mean, zero.

        ``groups`` says for whom, here and in the methods below. None: for the levels that each row
        names, if they are known. A list of factors: for their levels, and for the typical level of
        every other factor, whose effects are zero; an empty list is for the typical level of all.
        ``"population"``: for levels drawn anew, so that the mean is that of a whole population. On
        a curved scale that is not the mean for its typical level: of a probability it is nearer to
        one half (chapter 06). Of factors that are not in the list ``data`` need no columns.

        With ``missing="drop"``, here and in the methods below, rows with a missing value are left
        out of the result. A warning names the columns where values are missing, and
        ``data.dropna(subset=[...])`` of these has the rows that the result is for.

        Raises
        ------
        TypeError, ValueError
            If ``data`` are no rows for this design, or the response has no mean: its categories are
            no numbers, or its distribution has none.

        Examples
        --------
        >>> stranger = fit.predict(data.assign(g=-1))  # of a level that nobody has met
        >>> stranger.shape, len(set(stranger.round(6)))  # one mean for x = 0, and one for x = 1
        ((300,), 2)
        >>> fit.predict(data[["x"]], groups=[]).shape  # typical: the fixed effects alone
        (300,)
        """
        family = self.design.family
        new, posterior = rows_for(self.design, self.posterior, data, missing, groups)
        if isinstance(family, Gaussian):
            beta, _, _ = covariance.split_values(self.design, dict(self._estimates))
            means = [columns_of(f, posterior[f.name]).mean(0, keepdims=True) for f in new.factors]
            return linear(new, beta, [np.pad(u, ((0, 0), (0, 1), (0, 0))) for u in means], 1)[:, 0]
        check_not_forked("predict")
        total, count = np.zeros(new.rows), 0
        for predictor, own in batches(new, self._estimates, posterior):
            total += ask(family, "mean", family.mean, predictor, own).sum(1)
            count += predictor.shape[1]
        if np.isnan(total).any():
            raise ValueError(f"family: expected a distribution with a mean, got {family!r}")
        return total / count

    def probabilities(
        self,
        data: Data,
        cuts: Sequence[float] | None = None,
        *,
        groups: Groups = None,
        missing: str = "raise",
    ) -> np.ndarray:
        """Posterior predictive probabilities, ``[rows, categories]``; each row sums to 1.

        In the order of the family's categories, for bernoulli no and yes. A family without
        categories takes ``cuts``, increasing numbers in units of the response: then it is
        ``[rows, cuts + 1]``, the mass between neighbouring cuts, each interval with its upper end,
        the outer ones open-ended. So ``cuts=[1.5, 2.5, 3.5, 4.5]`` puts a Gaussian on the scale of
        ratings from 1 to 5.

        Raises
        ------
        TypeError, ValueError
            If ``data`` are no rows for this design, or ``cuts`` are missing, not increasing and
            finite, or given for a family with categories.

        Examples
        --------
        >>> chances = fit.probabilities(data, cuts=[2.5, 3.5])  # below, between and above
        >>> chances.shape, bool(np.allclose(chances.sum(axis=1), 1))
        ((300, 3), True)
        """
        check_not_forked("probabilities")
        family, trials = self.design.family, cuts is not None
        new, posterior = rows_for(self.design, self.posterior, data, missing, groups, trials=trials)
        if cuts is not None:
            family, _ = family.given(new.response[:, np.newaxis])
            at = check_cuts(family, cuts)
        total, count = np.zeros(()), 0
        for predictor, own in batches(new, self._estimates, posterior):
            if cuts is None:
                total = total + family.probabilities(predictor, own).sum(1)
            else:
                total = total + masses(family, predictor, own, at)
            count += predictor.shape[1]
        return total / count

    def draws(
        self, data: Data, n: int, seed: int, *, groups: Groups = None, missing: str = "raise"
    ) -> np.ndarray:
        """Posterior predictive draws of the response, ``[n, rows]``, in the response's own values.

        Each takes one posterior draw of all effects, the n spread evenly over those kept, and then
        a response for every row. Categories come as their labels: numbers if these are numbers,
        else objects. All else comes as floats, counts too, such as successes out of the row's own
        trials.

        Raises
        ------
        TypeError, ValueError
            If ``data`` are no rows for this design, or ``n`` is not between 1 and the number of
            posterior draws.

        Examples
        --------
        >>> fit.draws(data, n=5, seed=0).shape
        (5, 300)
        """
        check_not_forked("draws")
        available = len(next(iter(self.posterior.values())))
        if not 1 <= n <= available:
            raise ValueError(f"n: expected 1 to {available} (the draws kept), got {n!r}")
        new, posterior = rows_for(self.design, self.posterior, data, missing, groups, trials=True)
        family, _ = self.design.family.given(new.response[:, np.newaxis])
        chosen = np.linspace(0, available - 1, n).astype(int)  # spread over chains and sweeps
        some = {name: effects[chosen] for name, effects in posterior.items()}
        found = []
        for batch, (predictor, own) in enumerate(batches(new, self._estimates, some, seed)):
            distribution = family.distribution(tf.constant(predictor), tf.constant(own))
            found.append(distribution.sample(seed=[seed, batch]).numpy().T)
        values = np.concatenate(found)
        if family.categories is None:
            return values.astype(float)
        labels = np.array(family.categories)
        if labels.dtype.kind not in "biuf":
            labels = np.array(family.categories, dtype=object)
        return labels[values.astype(int)]
