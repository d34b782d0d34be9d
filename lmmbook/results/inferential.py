"""What one asks of a fit afterwards: methods of a `lmmbook.Fit` that the room `inference` answers.

Chapters 06 and 09. It needs sweeps and algebra, and stands above this room: the import in
`_inference` is the one in the package that goes up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmmbook.data.frames import Data

import pandas as pd

if TYPE_CHECKING:
    from lmmbook.inference import LogLikelihood


SHOWN = 0.95  # level of the intervals that are printed

Intervals = dict[str, pd.DataFrame]  # by method


class Inferential:
    """The methods. Their examples have the ``data`` and the ``fit`` of `lmmbook.Fit`."""

    _intervals: Intervals  # what `intervals` found last, for the printout

    def log_likelihood(
        self, data: Data | None = None, *, draws: int = 100, seed: int = 0, missing: str = "raise"
    ) -> LogLikelihood:
        """Marginal log-likelihood at the estimates, for any family, with its Monte Carlo error.

        Chapter 06. For a Gaussian family it is exact. For others the effects are integrated out
        along a path from a normal distribution to theirs (`lmmbook.inference.likelihood`).

        Parameters
        ----------
        data, missing
            The rows of the fit, which one that was loaded does not have; as for `lmmbook.fit`.
        draws
            How many draws of the effects there are to be at either end of the path. The error falls
            with the root of this number, until all draws are used that the fit has kept.
        seed
            Of the draws that are new.

        Raises
        ------
        ValueError
            If there are no rows, or other ones than the fit's; or more than 10,000 effects beside
            those of the largest factor.

        Examples
        --------
        >>> exact = lmm.exact.log_likelihood("y ~ x + (1|g)", data, fit.parameters["estimate"])
        >>> bool(abs(fit.log_likelihood().value - exact) < 1e-6)
        True
        """
        return _inference().log_likelihood(self, data, draws, seed, missing)

    def intervals(
        self,
        level: float = 0.95,
        method: str = "wald",
        data: Data | None = None,
        *,
        parameters: Sequence[str] | None = None,
        bootstrap: int = 199,
        draws: int = 50,
        seed: int = 0,
        missing: str = "raise",
    ) -> pd.DataFrame:
        """Intervals for parameters: columns ``lower`` and ``upper``, a row a parameter.

        Chapter 09. The printout of the fit shows them from then on, if they are 95% ones. Of a
        parameter that is known, and of a correlation at its boundary, there is none (NaN).

        Parameters
        ----------
        level
            How often such intervals are to hold the truth.
        method
            ``"wald"``: the estimate and some standard errors to both sides, for an sd on the scale
            of its logarithm, for a correlation on that of its Fisher z. They are those of many
            levels. At a boundary there is none (NaN).

            ``"profile"``: all values with which the data are not much less likely, the other
            parameters at their best: where twice the log-likelihood falls by less than chi-square's
            quantile (3.84 for 95%). Of an sd that is estimated as zero it is "no more than
            ``upper``". Other sds of zero, and covariances that are singular, are held as they are.
            Of a fit by REML the likelihood is maximised first, and profiled (as lme4 does).
            Every likelihood of a parameter takes about as many evaluations as there
            are parameters: on a small table seconds, on a large one minutes.

            ``"bootstrap"``: quantiles of the estimates of so many data sets that are drawn from the
            model. The slowest.
        data, missing
            The rows of the fit, which one that was loaded does not have. Not for Wald's.
        parameters
            Names; all by default.
        bootstrap
            How many data sets.
        draws
            Of the effects, for a profile.
        seed
            For a profile and the bootstrap.

        Raises
        ------
        ValueError
            If an argument is none of these, or there are no rows.
        RuntimeError
            If a profile does not fall that far, or more than a tenth of the bootstrap's fits do not
            converge.

        Examples
        --------
        >>> wald, profile = fit.intervals(), fit.intervals(method="profile")
        >>> bool((abs(wald - profile) < 0.1).all(axis=None))  # 30 levels, and 300 rows
        True
        """
        given = (level, method, data, parameters, bootstrap, draws, seed, missing)
        found = _inference().intervals(self, *given)
        if method != "wald" and level == SHOWN:
            known = self._intervals.pop(method, found)
            self._intervals[method] = found.combine_first(known)
        return found

    def summary(
        self,
        data: Data | None = None,
        *,
        level: float = 0.95,
        bootstrap: int = 0,
        seed: int = 0,
        missing: str = "raise",
    ) -> pd.DataFrame:
        """One table: estimates, errors, intervals, and a test of each fixed effect.

        Chapter 09. Columns ``estimate``, ``std_error``, ``lower``, ``upper``, ``statistic``, ``df``
        and ``p_value``. Fixed effects of a Gaussian fit have a t test, whose degrees of freedom
        (Satterthwaite 1946) say how many levels it rests on; errors are then from exact algebra at
        the estimates, as lmerTest has them. Of a fit by maximum likelihood they are too small where
        levels are few, and several fixed effects differ between these: fit with ``reml=True``.
        Those of other families have a z test, with infinitely many. Sds and
        correlations have intervals as `intervals` has them, errors on the scale of their logarithm
        or Fisher z, and no test: whether an sd is zero is a question for `lmmbook.compare`.

        Parameters
        ----------
        data, missing
            The rows of the fit, which one that was loaded does not have; for a Gaussian fit only.
        level
            Of the intervals.
        bootstrap
            How many data sets to draw from the model at its estimates, and to fit: 199, say. Then
            the statistics of these, each about its own error, are what that of the data is compared
            with, instead of a t or a normal distribution (bootstrap-t: Efron & Tibshirani 1993),
            and ``df`` is NaN.
        seed
            Of the bootstrap.

        Warns
        -----
        UserWarning
            If the degrees of freedom are not defined, as with an sd of zero; then they and the p
            values are NaN, and ``bootstrap`` may help.

        Examples
        --------
        >>> df = fit.summary()["df"]
        >>> bool(df["Intercept"] < 60 < 240 < df["x"])  # 30 levels of g, and 300 rows
        True
        """
        return _inference().summary(self, data, level, bootstrap, seed, missing)

    def contrasts(
        self,
        asked: str | Mapping[str, Mapping[str, float]],
        data: Data | None = None,
        *,
        adjust: str = "holm",
        level: float = 0.95,
        bootstrap: int = 0,
        seed: int = 0,
        missing: str = "raise",
    ) -> pd.DataFrame:
        """Tests of linear combinations of fixed effects; the columns are those of `summary`.

        Chapter 09.

        Parameters
        ----------
        asked
            Label to a combination, as ``{"at x = 2": {"Intercept": 1, "x": 2}}``; or the name of a
            column with categories, for all differences between two of them.
        data, missing, level, bootstrap, seed
            As for `summary`. Intervals are not adjusted: each has the level by itself.
        adjust
            What to do about p values where there are several: ``"holm"`` (Holm 1979),
            ``"bonferroni"`` or ``"none"``.

        Raises
        ------
        ValueError
            If a name is none of a fixed effect, or a column has no categories.

        Examples
        --------
        >>> found = fit.contrasts({"at x = 2": {"Intercept": 1, "x": 2}})
        >>> list(found.index), bool(found["p_value"].iloc[0] < 0.05)
        (['at x = 2'], True)
        """
        given = (data, level, bootstrap, seed, missing)
        return _inference().contrasts(self, asked, adjust, *given)


def _inference() -> Any:
    from lmmbook import inference

    return inference
