"""What functions of a fit have in common: its rows, which a loaded fit has not."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from lmmbook.data.frames import Data
from lmmbook.formula.design import Design

import numpy as np

if TYPE_CHECKING:
    from lmmbook.results.fit import Fit


def with_rows(fit: Fit, data: Data | None, missing: str = "raise") -> Design:
    """The fit's design with its rows: its own, or those that are given for a loaded fit.

    A loaded fit does not know its rows again: rows that are as many and have the same levels pass
    for them.

    Raises
    ------
    ValueError
        If there are none, or the rows given are not as many, or have other levels, than the fit's.
    """
    own = fit.design
    if data is None:
        if np.isnan(own.response).all():
            raise ValueError(
                "data: expected the rows of the fit, for one that was loaded has none; pass data="
            )
        return own
    design = own.on(data, missing, response=True)
    if design.rows != own.rows:
        raise ValueError(f"data: expected the fit's {own.rows:,} rows, got {design.rows:,}")
    for factor, known in zip(design.factors, own.factors, strict=True):
        if factor.levels != known.levels:
            new = factor.labels[known.levels :][:3].tolist()
            raise ValueError(
                f"data: expected the fit's rows, got new levels of {known.name}: {new}"
            )
        if len(np.unique(factor.codes)) != known.levels:
            raise ValueError(
                f"data: expected the fit's rows, got ones that lack levels of {known.name}"
            )
    return design


def warn_unconverged(fit: Fit, what: str, level: int = 4) -> None:
    """Warn if a fit has not converged, of what is said about it; ``level`` calls further up."""
    if not fit.converged:
        warnings.warn(
            f"{what}: expected a fit that has converged, and {fit.design.formula!r} has not: its "
            "estimates are not at the maximum; fit with a larger max_sweeps, or a simpler model",
            stacklevel=level + 1,
        )


def free_parameters(design: Design, parameters: int) -> int:
    """How many of a table's parameters were estimated: all, but for a residual sd that is fixed."""
    return parameters - (design.family.auxiliary > 0 and not design.family.estimated)


def check_level(level: float) -> None:
    """Raise if a level is none."""
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number between 0 and 1, such as 0.95, got {level!r}")
