"""The covariance of a factor's effects, and its parameters as people read them.

Chapters 02 and 09. A level's effects are one draw from ``Normal(0, covariance)``, a matrix
``[columns, columns]`` (1 x 1 for an intercept alone). People read it as standard deviations and
correlations, named ``sd(g)``, ``sd(x|g)`` and ``cor(Intercept,x|g)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any, NamedTuple

from lmmbook.families.gaussian import Gaussian
from lmmbook.formula.design import Design
from lmmbook.formula.factors import Factor

import numpy as np
import pandas as pd


class ParameterSpec(NamedTuple):
    """A parameter, as tables have it.

    Its ``kind`` is "fixed", "sd", "cor", or, for another one of the family's own, "auxiliary", or
    "positive" if it is that. Among the ``columns`` of a factor's effects an sd is of one, a
    correlation of two.
    """

    name: str
    kind: str
    columns: tuple[int, ...] = ()

    @property
    def scale(self) -> Callable[[float], float]:
        """The scale on which its errors are given: a logarithm, or for a cor Fisher's z."""
        return {"sd": np.log, "positive": np.log, "cor": np.arctanh}.get(self.kind, float)

    @property
    def back(self) -> Callable[[float], float]:
        """The inverse of `scale`."""
        return {"sd": np.exp, "positive": np.exp, "cor": np.tanh}.get(self.kind, float)


def specs_of(factor: Factor) -> list[ParameterSpec]:
    """The parameters of one factor: its standard deviations, then its correlations.

    Examples
    --------
    >>> factor = Factor("g", ("g",), pd.Index([0, 1]), np.array([0, 1]), ("Intercept", "x"),
    ...                 np.ones((2, 2)), ((0, 1),))
    >>> [p.name for p in specs_of(factor)]
    ['sd(g)', 'sd(x|g)', 'cor(Intercept,x|g)']
    """
    group, effects = factor.name, factor.effects
    sds = [f"sd({group})" if x == "Intercept" else f"sd({x}|{group})" for x in effects]
    pairs = [pair for block in factor.blocks for pair in combinations(block, 2)]
    estimated = [column for block in factor.blocks for column in block]
    found = [ParameterSpec(sds[j], "sd", (j,)) for j in sorted(estimated)]
    for a, b in pairs:
        found.append(ParameterSpec(f"cor({effects[a]},{effects[b]}|{group})", "cor", (a, b)))
    return found


def specs(design: Design) -> list[ParameterSpec]:
    """All parameters, in the order of every table of this package."""
    family = design.family
    first, last = family.constrain(0.0, np.zeros(family.auxiliary))
    found = []
    for name in design.fixed_names:
        of_column = first if name == "Intercept" else [name]
        found += [ParameterSpec(n, "fixed" if n == name else "auxiliary") for n in of_column]
    for factor in design.factors:
        found += specs_of(factor)
    own = "positive" if family.positive else "auxiliary"
    own = "sd" if isinstance(family, Gaussian) else own
    return found + [ParameterSpec(name, own) for name in last]


def parameter_names(design: Design) -> list[str]:
    """The names of `specs`."""
    return [parameter.name for parameter in specs(design)]


def to_matrix(factor: Factor, parameters: Mapping[str, float] | pd.Series) -> np.ndarray:
    """The covariance ``[columns, columns]`` from standard deviations and correlations."""
    sds, correlation = np.ones(len(factor.effects)), np.eye(len(factor.effects))
    for name, kind, columns in specs_of(factor):
        if kind == "sd":
            sds[columns] = float(parameters[name])
        else:
            correlation[columns] = correlation[columns[::-1]] = float(parameters[name])
    return correlation * np.outer(sds, sds)


def from_matrix(factor: Factor, covariance: np.ndarray) -> dict[str, np.ndarray]:
    """Standard deviations and correlations by name, from ``[..., columns, columns]``.

    Each has the leading shape of ``covariance``: a scalar for a matrix. A correlation with an sd of
    zero is NaN.
    """
    sds = np.sqrt(np.diagonal(covariance, axis1=-2, axis2=-1))
    product = sds[..., :, np.newaxis] * sds[..., np.newaxis, :]
    with np.errstate(invalid="ignore"):
        cors = covariance / np.where(product > 0, product, np.nan)
    of: dict[str, Any] = {"sd": sds, "cor": np.clip(cors, -1.0, 1.0)}  # rounding may lead beyond
    return {name: of[kind][(..., *at)][()] for name, kind, at in specs_of(factor)}  # 0-d to scalar


def root(covariance: np.ndarray) -> np.ndarray:
    """An L with ``L L' = covariance``, which may be singular: the sds times the symmetric root of
    the correlations, which moves steadily with them."""
    values, vectors = np.linalg.eigh(_correlations(covariance))
    sds = np.sqrt(np.diag(covariance))[:, np.newaxis]
    return sds * (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def least(covariance: np.ndarray) -> float:
    """The smallest eigenvalue of the correlations: zero where the covariance is singular, and
    negative where it is that of nothing."""
    return float(np.linalg.eigvalsh(_correlations(covariance)).min())


def _correlations(covariance: np.ndarray) -> np.ndarray:
    """With zeros for an sd of zero."""
    sds = np.sqrt(np.diag(covariance))
    scale = np.where(sds > 0, sds, 1.0)
    return covariance / np.outer(scale, scale)


def names_of_block(factor: Factor, block: tuple[int, ...]) -> list[str]:
    """The names of the parameters that belong to one block of columns."""
    return [p.name for p in specs_of(factor) if {*p.columns} <= {*block}]


def effects_table(factor: Factor, mean: np.ndarray, sd: np.ndarray) -> pd.DataFrame:
    """``[levels, columns]`` each, as a table: a row a level, columns ``mean`` and ``sd``; for a
    factor with slopes, columns ``(effect, "mean")`` and ``(effect, "sd")``."""
    both = np.stack([mean, sd], axis=2).reshape(len(mean), -1)
    columns = pd.Index(["mean", "sd"])
    if not factor.intercept_only:
        columns = pd.MultiIndex.from_product([factor.effects, columns])
    return pd.DataFrame(both, pd.Index(factor.labels, name=factor.name), columns)


def name_values(
    design: Design, beta: np.ndarray, covariances: list[np.ndarray], auxiliary: np.ndarray
) -> dict:  # fmt: skip
    """Name to value, in the order of every table; any leading axes are kept.

    ``beta`` [..., fixed]; ``covariances`` [..., columns, columns]; ``auxiliary`` [..., auxiliary],
    the family's own parameters, some of which may stand in the intercept's place.
    """
    by_name = {name: beta[..., c][()] for c, name in enumerate(design.fixed_names)}
    first, last = design.family.constrain(by_name.get("Intercept", 0.0), auxiliary)
    values: dict[str, Any] = {}
    for name, value in by_name.items():
        values |= first if name == "Intercept" else {name: value}
    for factor, matrix in zip(design.factors, covariances, strict=True):
        values |= from_matrix(factor, matrix)
    return values | last


def split_values(
    design: Design, values: Mapping[str, Any] | pd.Series
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """The inverse of `name_values`, for numbers: ``beta``, covariances, ``auxiliary``."""
    intercept, auxiliary = design.family.unconstrain(values)
    named = [intercept if n == "Intercept" else values[n] for n in design.fixed_names]
    beta = np.array(named, float)
    covariances = [to_matrix(factor, values) for factor in design.factors]
    return beta, covariances, auxiliary
