"""Parametric bootstrap: responses that a model would give at its estimates, and fits of them.

Chapter 06. A Gaussian model is fitted by exact algebra, where that is quick, any other by the
engine, whose program is there already.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import replace

from lmmbook.engine.fit import fit_design
from lmmbook.exact import oracle
from lmmbook.families.gaussian import Gaussian
from lmmbook.formula.design import Design
from lmmbook.formula.invariances import coordinates
from lmmbook.inference.likelihood import of_rows
from lmmbook.inference.normal import Standardised
from lmmbook.results.fit import Fit

import numpy as np
import pandas as pd
import tensorflow as tf

EXACT = 300  # effects beside those of the largest factor: up to so many the exact fit is quicker


def responses(design: Design, estimates: pd.Series, n: int, seed: int) -> Iterator[np.ndarray]:
    """``n`` responses, each as `Design.response` has it, with new effects every time."""
    effects, rng = Standardised(design, estimates), np.random.default_rng(seed)
    family, _ = design.family.given(design.response[:, np.newaxis])
    dtype = tf.float64 if isinstance(family, Gaussian) else tf.float32
    for i in range(n):
        predictor = effects.predictor(rng.normal(size=(1, effects.effects)))
        at = [tf.constant(x, dtype) for x in (predictor, effects.auxiliary)]
        drawn = family.distribution(*at).sample(seed=[seed, i]).numpy()[:, 0].astype(float)
        yield drawn if design.response.ndim == 1 else np.stack([drawn, design.response[:, 1]], 1)


@contextlib.contextmanager
def tried() -> Iterator[None]:
    """A data set may have no maximum, or lack a category: it is left out, and counted. What fits
    say of it is not for whoever asked for the bootstrap."""
    with (
        warnings.catch_warnings(),
        contextlib.suppress(ValueError, RuntimeError, FloatingPointError),
    ):
        warnings.simplefilter("ignore")
        yield


def maximum(design: Design, seed: int, draws: int, reml: bool = False) -> float:
    """The log-likelihood at its maximum, or with ``reml`` the restricted one; NaN if there is none,
    or it was not found."""
    found = np.nan
    with tried():
        sizes = sorted(f.levels * len(f.effects) for f in design.factors)
        if isinstance(design.family, Gaussian) and sum(sizes[:-1]) <= EXACT:
            return oracle.maximum(coordinates.inner(design), reml)[1]
        fit = fit_design(design, seed=seed, reml=reml, progress=False)
        if fit.converged:
            found = of_rows(fit, design, draws, seed).value
    return found


def statistics(
    small: Design, large: Design, estimates: pd.Series, n: int, seed: int, draws: int,
    reml: bool = False,
) -> np.ndarray:  # fmt: skip
    """Likelihood ratio statistics ``[n]`` under the small model; NaN where a fit did not
    converge."""
    found = []
    for i, response in enumerate(responses(small, estimates, n, seed)):
        one, other = (
            maximum(replace(d, response=response), seed + i, draws, reml) for d in (small, large)
        )
        found.append(2 * (other - one))
    return np.array(found)


def fits(design: Design, at: pd.Series, n: int, seed: int, reml: bool = False) -> list[Fit]:
    """Fits of ``n`` data sets drawn from the model: those that converged.

    Raises
    ------
    RuntimeError
        If more than one in ten of them does not.
    """
    found = []
    for i, response in enumerate(responses(design, at, n, seed)):
        with tried():
            drawn = replace(design, response=response)
            again = fit_design(drawn, seed=seed + i, reml=reml, progress=False)
            if again.converged:
                found.append(again)
    if len(found) < 0.9 * n:
        raise RuntimeError(
            f"bootstrap: expected fits that converge, got {n - len(found)} of {n} that do not: the "
            "data tell too little for this model"
        )
    return found
