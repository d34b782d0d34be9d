"""The oracle: the Gaussian marginal likelihood, computed exactly, and its maximum.

Chapter 04. `marginal` has the linear algebra, `maximize` the way up to the maximum, `errors` the
standard errors; here is what one asks of them.

`lmmbook.fit` never calls this module: it is here to check it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lmmbook import families
from lmmbook.data.frames import Data
from lmmbook.exact.errors import parameter_table
from lmmbook.exact.marginal import Marginal
from lmmbook.exact.maximize import Ascent
from lmmbook.formula import build_design, existence
from lmmbook.formula.covariance import effects_table, least, specs, specs_of, to_matrix
from lmmbook.formula.design import Design
from lmmbook.formula.invariances import coordinates
from lmmbook.formula.parse.functions import Functions

import numpy as np
import pandas as pd

NOTHING = 1e-8  # an eigenvalue of correlations that is rounding
KNOWN = families.Gaussian(sd=1.0)  # a residual whose sd is not to be estimated, of whatever size


@dataclass(frozen=True)
class ExactFit:
    """The exact fit, by maximum likelihood or by REML: what `fit` returns. Chapter 04.

    Attributes
    ----------
    parameters
        Index: parameter name. Columns ``estimate``; ``std_error``, from the observed information at
        the maximum: for an sd the standard error of its *logarithm*, for a correlation that of its
        Fisher z (atanh); ``at_boundary``, True for all sds and correlations of a block of effects
        whose covariance is singular, as with an sd of zero or a correlation of 1 or -1. The
        standard error of these is NaN, and the others' hold for them fixed. NaN, too, for a fixed
        residual sd; and a correlation with an sd of zero is itself NaN.
    log_likelihood
        Marginal log-likelihood at the maximum (natural log, constants included). With REML the
        restricted one, as lme4 has it: it depends on the units of the covariates, and only those
        of models with the same fixed effects can be compared.
    reml
        Whether the fit is by REML.

    Examples
    --------
    >>> data, _ = lmm.simulate.crossed(300, {"g": (30, 0.5)}, seed=0)
    >>> found = lmm.exact.fit("y ~ x + (1|g)", data)
    >>> list(found.parameters.columns), round(found.log_likelihood)
    (['estimate', 'std_error', 'at_boundary'], -455)
    """

    parameters: pd.DataFrame
    log_likelihood: float
    reml: bool = False

    @property
    def reml_criterion(self) -> float:
        """What lme4 prints as "REML criterion at convergence": ``-2 log_likelihood``.

        Raises
        ------
        ValueError
            If the fit is by maximum likelihood.
        """
        return criterion(self.log_likelihood, self.reml)


def criterion(log_likelihood: float, reml: bool) -> float:
    """-2 times a restricted log-likelihood. Raises ValueError of one that is none."""
    if not reml:
        raise ValueError("reml_criterion: expected a fit with reml=True, got one by ML")
    return -2 * log_likelihood


def log_likelihood(
    formula: str,
    data: Data,
    parameters: Mapping[str, float] | pd.Series,
    *,
    functions: Functions | None = None,
    missing: str = "raise",
) -> float:
    """Exact marginal log-likelihood ``log p(ratings; parameters)``, Gaussian. Chapter 04.

    Parameters
    ----------
    formula, data, functions, missing
        As for `lmmbook.fit`.
    parameters
        Name to value, for all of them: ``Intercept``, ..., ``sd(group)``, ``sd(x|group)``,
        ``cor(Intercept,x|group)``, ..., ``sd(residual)``. A correlation with an sd of zero may be
        anything, NaN included.

    Raises
    ------
    ValueError
        If a parameter is missing or unknown, an sd is negative, the residual sd is not positive, or
        correlations are not those of any covariance matrix.

    Examples
    --------
    >>> data, truth = lmm.simulate.crossed(300, {"g": (30, 0.5)}, seed=0)
    >>> maximum = lmm.exact.fit("y ~ x + (1|g)", data).log_likelihood
    >>> bool(log_likelihood("y ~ x + (1|g)", data, truth) < maximum)
    True
    """
    design = build_design(formula, data, KNOWN, functions, missing)
    return Marginal(design).evaluate(*_unpack(design, parameters)).value


def effects(
    formula: str,
    data: Data,
    parameters: Mapping[str, float] | pd.Series,
    *,
    functions: Functions | None = None,
    missing: str = "raise",
) -> dict[str, pd.DataFrame]:
    """Exact conditional mean and sd of every random effect, given ratings and parameters.

    Chapter 03. One frame per factor comes back: index the level labels, columns ``mean`` and
    ``sd``; for a factor with slopes, columns ``(effect, "mean")`` and ``(effect, "sd")``. Raises as
    `log_likelihood`.

    Examples
    --------
    >>> data = pd.DataFrame({"y": [4.0, 6.0, 4.0, 2.0], "g": ["a", "a", "b", "b"]})
    >>> known = {"Intercept": 4.0, "sd(g)": 1.0, "sd(residual)": 1.0}
    >>> effects("y ~ 1 + (1|g)", data, known)["g"]["mean"].round(3).to_dict()  # two thirds of 1, -1
    {'a': 0.667, 'b': -0.667}
    """
    design = build_design(formula, data, KNOWN, functions, missing)
    found = Marginal(design).conditional(*_unpack(design, parameters))
    return {f.name: effects_table(f, *of_f) for f, of_f in zip(design.factors, found, strict=True)}


def fit(
    formula: str,
    data: Data,
    family: str | families.Family = "gaussian",
    *,
    reml: bool = False,
    functions: Functions | None = None,
    missing: str = "raise",
) -> ExactFit:
    """Maximise the exact marginal likelihood, or with ``reml`` the restricted one. Chapter 04.

    Maximum likelihood is the default; lme4's is REML (Patterson & Thompson 1971), the likelihood
    of what is left of the ratings without the fixed effects. The fixed effects' ``std_error`` is
    then that at the estimated variances, as in lme4.

    L-BFGS over roots of the covariances with analytic gradients, the fixed effects profiled out,
    then Newton steps until they are smaller than a millionth of a standard error. Where a maximum
    is a singular covariance, no variance that is added to it raises the likelihood; and as there
    may be more than one such maximum, a second ascent from elsewhere looks for a higher one.

    Raises
    ------
    ValueError
        As `lmmbook.formula.build_design`; or if the family is not Gaussian; or if the effects
        explain the response in every row, so that there is no residual.
    RuntimeError
        If the optimiser does not reach a maximum.

    Examples
    --------
    >>> data = pd.DataFrame({"y": [4.0, 6.0, 4.0, 2.0], "g": ["a", "a", "b", "b"]})
    >>> fit("y ~ 1 + (1|g)", data).parameters["estimate"].round(3).to_dict()
    {'Intercept': 4.0, 'sd(g)': 0.0, 'sd(residual)': 1.414}
    >>> fit("y ~ 1 + (1|g)", data, reml=True).parameters["estimate"].round(3).to_dict()
    {'Intercept': 4.0, 'sd(g)': 1.0, 'sd(residual)': 1.414}
    """
    family = families.resolve(family)
    if not isinstance(family, families.Gaussian):
        raise ValueError(f"family: expected a Gaussian one, the only exact one, got {family!r}")
    design = coordinates.inner(build_design(formula, data, family, functions, missing))
    if family.estimated:
        existence.refuse_no_residual(design, existence.NONE)
    if reml:
        existence.refuse_spanned(design)
    ascent, value = maximum(design, reml)
    return ExactFit(parameter_table(ascent), value, reml)


def maximum(design: coordinates.Inner, reml: bool = False) -> tuple[Ascent, float]:
    """The maximum of an inner design's likelihood, and its logarithm in the data's coordinates.

    Raises
    ------
    RuntimeError
        If the optimiser does not reach it.
    """
    ascent = Ascent(design, design.family.sd, reml)  # type: ignore[attr-defined]
    try:
        ascent.maximise()
    except np.linalg.LinAlgError as error:
        raise RuntimeError(
            "exact fit: expected a residual sd that is not lost in rounding beside those of the "
            f"effects, got {ascent.residual_sd * design.response_scale:.2g}"
        ) from error
    free = design.rows - reml * design.fixed.shape[1]
    value = ascent.evaluate().value - free * float(np.log(design.response_scale))
    if reml:  # det(X'V^-1 X) is in units of the data's columns
        value += float(np.linalg.slogdet(design.fixed_map)[1])
    return ascent, value


def _unpack(
    design: Design, parameters: Mapping[str, float] | pd.Series
) -> tuple[np.ndarray, list[np.ndarray], float]:
    """Named parameters as ``beta``, a covariance a factor, and the residual sd."""
    values, names = dict(parameters), [p.name for p in specs(design)]
    if set(values) != set(names):
        raise ValueError(f"parameters: expected {names}, got {sorted(values)}")
    sds = np.array([float(values[p.name]) for p in specs(design) if p.kind == "sd"])
    if not (np.all(sds >= 0) and sds[-1] > 0):
        raise ValueError(f"parameters: expected sds >= 0, sd(residual) > 0, got {values}")
    covariances = []
    for factor in design.factors:
        filled = {p.name: np.nan_to_num(float(values[p.name])) for p in specs_of(factor)}
        covariances.append(to_matrix(factor, filled))  # an sd of zero silences its correlations
        if least(covariances[-1]) < -NOTHING:
            raise ValueError(f"parameters: expected a covariance for {factor.name!r}, got {filled}")
    return np.array([float(values[name]) for name in design.fixed_names]), covariances, sds[-1]
