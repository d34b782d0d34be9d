"""What a fit gives back.

Chapters 04 and 05. The fit is over: these are tables and arrays to read, plot and predict with.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from textwrap import fill

from lmmbook._tensorflow.device import describe_device
from lmmbook.core.model import LinearMixedEffectModel
from lmmbook.formula.covariance import specs
from lmmbook.formula.design import Design
from lmmbook.formula.parse.functions import Functions
from lmmbook.results import saving
from lmmbook.results.criticism import Criticism
from lmmbook.results.inferential import SHOWN, Inferential, Intervals

import numpy as np
import pandas as pd

CONVERGED_WITHIN = 0.2  # standard errors from the maximum, Monte Carlo error included: converged


@dataclass(frozen=True)
class Fit(Criticism, Inferential):
    """A fitted model: what `lmmbook.fit` returns. Chapters 04 and 05.

    Attributes
    ----------
    parameters
        Index: parameter name. Columns ``estimate``; ``std_error``, how uncertain the data leave it,
        from the observed information, which is an estimate from draws, too (`ess` of them);
        ``mcse``, the Monte Carlo standard error of the estimate, with what its last step may have
        missed: how far another seed may be from it; ``at_boundary``. Errors of an sd, and of a
        shape, are those of its *logarithm*, errors of a correlation those of its Fisher z. NaN for
        what is fixed or at its boundary.
    covariance
        ``[parameters, parameters]``, of the errors of all parameters together; ``std_error`` is the
        root of its diagonal. It gives the error of a difference, or of any other combination.
    converged
        Whether every parameter is known to be within 0.2 standard errors of the maximum: 2.5 Monte
        Carlo standard errors, and what the last step may have missed.
    distance
        The length of that last, short step to the maximum, of the parameter that it moved most, in
        its standard errors. Where a fit has not converged, the step that was not taken.
    r_hat
        Split R-hat of the certificate's draws, of the worst score.
    ess
        Effective sample size, of the same.
    effects
        Factor name to a frame: index the level labels, columns ``mean`` and ``sd`` of the effect
        given the ratings and the estimates. With slopes, columns ``(effect, "mean")`` and
        ``(effect, "sd")``.
    trace
        One row a sweep: the parameters, ``acceptance``, ``phase`` (``approach``, ``average``,
        ``draws``).
    posterior
        Factor name to ``[draws, levels]`` (with slopes ``[draws, levels, columns]``): draws of the
        effects, sweep by sweep, the chains of a sweep one after another. At most 1,000, or one a
        chain if there are more chains; fewer where there are more than 100,000 effects, so that
        they take no more than 400 MB. They are the draws that the certificate judged, made where
        the estimates were before that last, short step: ``distance`` standard errors away.
    design
        The data as the model has them, and how to make the same of new rows: a `Design`.
    chains
        Number of chains.
    reml
        Whether it maximised the restricted likelihood, not the likelihood.

    Examples
    --------
    >>> data, _ = lmm.simulate.crossed(300, {"g": (30, 0.5)}, seed=0)
    >>> fit = lmm.fit("y ~ x + (1|g)", data, seed=0)
    >>> fit.converged, list(fit.parameters.index), fit.effects["g"].shape
    (True, ['Intercept', 'x', 'sd(g)', 'sd(residual)'], (30, 2))

    The standard error of the response expected at x = 2:

    >>> at = np.array([1.0, 2.0])
    >>> fixed = fit.covariance.iloc[:2, :2].to_numpy()
    >>> bool(np.sqrt(at @ fixed @ at) > fit.parameters["std_error"]["Intercept"])
    True

    The examples of the methods have this ``data`` and this ``fit``.
    """

    parameters: pd.DataFrame
    covariance: pd.DataFrame
    converged: bool
    distance: float
    r_hat: float
    ess: float
    effects: dict[str, pd.DataFrame]
    trace: pd.DataFrame
    posterior: dict[str, np.ndarray] = field(repr=False)
    design: Design = field(repr=False)
    chains: int
    reml: bool = False
    _intervals: Intervals = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def model(self) -> LinearMixedEffectModel:
        """The model at the estimates, as a TensorFlow module. Chapter 02.

        It computes in single precision, in units of the data: of a response far from zero it knows
        seven digits. `predict` knows them all.

        >>> len(fit.model.trainable_variables)  # fixed effects, log sd of g, log sd of residuals
        3

        Raises
        ------
        ValueError
            If a variance is zero, or a correlation is 1 or -1: then effects have no density.
        """
        singular = list(self.parameters.index[self.parameters["at_boundary"]])
        if singular:
            raise ValueError(
                f"model: expected effects that have a density, got {singular} at the boundary; "
                "leave these terms out of the formula, and fit again"
            )
        model = LinearMixedEffectModel(self.design)
        model.assign(self.parameters["estimate"])
        return model

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fit to one file, for `lmmbook.load`, with all but the rows of its data.

        Chapter 08. An interrupted save leaves an older file as it was. What a killed one left
        beside it, ``NAME.<32 digits>.part``, goes with the next save of that name. To hand a fit to
        another process, `pickle` will do, rows and all; it needs the same versions there.

        Raises
        ------
        ValueError
            If the family is `families.Custom`: a file does not hold Python functions.

        Examples
        --------
        >>> import tempfile
        >>> path = os.path.join(tempfile.mkdtemp(), "fit.lmm")
        >>> fit.save(path)
        >>> bool((lmm.load(path).predict(data) == fit.predict(data)).all())
        True
        """
        saving.write(path, {f.name: getattr(self, f.name) for f in fields(self) if f.init})

    @property
    def _estimates(self) -> pd.Series:
        return self.parameters["estimate"]

    @property
    def _verdict(self) -> str:
        if not self.converged:
            return f"NOT CONVERGED: the maximum was found {self.distance:.2g} standard errors away."
        return (
            f"Converged: the last step was {self.distance:.2g} standard errors long, and led to\n"
            f"within {CONVERGED_WITHIN} standard errors of the maximum, Monte Carlo error included."
        )

    @property
    def _likelihood(self) -> str:
        return "restricted maximum likelihood" if self.reml else "maximum likelihood"

    @property
    def _scales(self) -> str:
        scales = {
            "sd": "an sd are those of its logarithm", "positive": "a shape those of its logarithm",
            "cor": "a cor those of its Fisher z",
        }  # fmt: skip
        kinds = {p.kind for p in specs(self.design)}
        notes = [note for kind, note in scales.items() if kind in kinds]
        return f"std_error and mcse of {', of '.join(notes)}."

    def __str__(self) -> str:
        levels = ", ".join(f"{f.name} {f.levels:,}" for f in self.design.factors)
        modelled = f"\n  {self.design.family.note}" if self.design.family.note else ""
        estimates, errors = self.parameters[["estimate", "std_error"]], self.parameters.iloc[:, 2:]
        intervals, about = self.intervals(SHOWN), f"{SHOWN:.0%} intervals are Wald's"
        for method, found in self._intervals.items():
            intervals.loc[found.index] = found
            about += f", of {', '.join(found.index)} by {method}"
            about += " (of the likelihood)" if self.reml and method == "profile" else ""
        table = pd.concat([estimates, intervals, errors], axis=1)
        return (
            f"Linear mixed model fitted by Monte Carlo EM ({self._likelihood})\n"
            f"  {self.design.formula}\n"
            f"  {self.design.rows:,} rows; levels: {levels}{modelled}\n"
            f"  {len(self.trace):,} sweeps, {self.chains} chains. {describe_device()}\n\n"
            f"{table.to_string(float_format='{:.4f}'.format)}\n\n"
            f"{self._scales}\n"
            f"{fill(about, 90)}.\n{self._verdict}\n"
            "Next: .effects, .predict(data), .draws(data, n, seed), .log_score(data), .trace"
        )


def load(path: str | os.PathLike[str], functions: Functions | None = None) -> Fit:
    """Read a fit that `Fit.save` wrote; here, it says the same to the last bit. Chapter 08.

    Its ``design`` knows how many rows there were, but not what was in them: there is NaN. Neither
    loading nor predicting runs code of the file's: its formula can call what any formula can, see
    `lmmbook.functions`.

    Parameters
    ----------
    path
        Of the file.
    functions
        Those of your own that the formula calls, as `lmmbook.fit` had them. An error names them.

    Raises
    ------
    ValueError
        If the file is no fit, is damaged, or has a format newer than this version knows; or the
        formula has a function that is not known here and not given.

    Examples
    --------
    >>> load(os.devnull)
    Traceback (most recent call last):
        ...
    ValueError: /dev/null: expected a file that Fit.save wrote, got File is not a zip file
    """
    values = {"reml": False} | saving.read(path, functions)  # formats 2 and 3 do not have it
    if values.keys() != {f.name for f in fields(Fit) if f.init}:
        raise ValueError(f"{path}: expected a file that Fit.save wrote, got {sorted(values)} in it")
    return Fit(**values)
