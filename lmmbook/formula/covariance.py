"""The covariance of a factor's effects, and its parameters as people read them.

Chapters 02 and 09. A level's effects are one draw from ``Normal(0, covariance)``, a matrix
``[columns, columns]`` (1 x 1 for an intercept alone). People read it as standard deviations and
correlations, named ``sd(g)``, ``sd(x|g)`` and ``cor(Intercept,x|g)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

from lmmbook.formula.design import Design
from lmmbook.formula.factors import Factor

import numpy as np
import pandas as pd


def correlated_pairs(factor: Factor) -> list[tuple[int, int]]:
    """Pairs of columns whose correlation is a parameter: those within one block."""
    return [pair for block in factor.blocks for pair in combinations(block, 2)]


def names(factor: Factor) -> list[str]:
    """Parameter names of one factor: its standard deviations, then its correlations.

    Examples
    --------
    >>> factor = Factor("g", ("g",), pd.Index([0, 1]), np.array([0, 1]), ("Intercept", "x"),
    ...                 np.ones((2, 2)), ((0, 1),))
    >>> names(factor)
    ['sd(g)', 'sd(x|g)', 'cor(Intercept,x|g)']
    """
    sds = [
        f"sd({factor.name})" if effect == "Intercept" else f"sd({effect}|{factor.name})"
        for effect in factor.effects
    ]
    cors = [
        f"cor({factor.effects[a]},{factor.effects[b]}|{factor.name})"
        for a, b in correlated_pairs(factor)
    ]
    return sds + cors


def parameter_names(design: Design) -> list[str]:
    """All parameters, in the order of every table of this package."""
    zero, none = np.zeros(len(design.fixed_names)), np.zeros(design.family.auxiliary)
    return list(name_values(design, zero, [np.eye(len(f.effects)) for f in design.factors], none))


def to_matrix(factor: Factor, parameters: Mapping[str, float] | pd.Series) -> np.ndarray:
    """The covariance ``[columns, columns]`` from standard deviations and correlations."""
    columns = len(factor.effects)
    labels = names(factor)
    sds = np.array([float(parameters[name]) for name in labels[:columns]])
    correlation = np.eye(columns)
    for (a, b), name in zip(correlated_pairs(factor), labels[columns:], strict=True):
        correlation[a, b] = correlation[b, a] = float(parameters[name])
    return correlation * np.outer(sds, sds)


def from_matrix(factor: Factor, covariance: np.ndarray) -> dict[str, np.ndarray]:
    """Standard deviations and correlations by name, from ``[..., columns, columns]``.

    Each has the leading shape of ``covariance``: a scalar for a matrix. A correlation with an sd of
    zero is NaN.
    """
    sds = np.sqrt(np.diagonal(covariance, axis1=-2, axis2=-1))
    values = [sds[..., i] for i in range(len(factor.effects))]
    for a, b in correlated_pairs(factor):
        product = sds[..., a] * sds[..., b]
        with np.errstate(invalid="ignore"):
            cor = covariance[..., a, b] / np.where(product > 0, product, np.nan)
        values.append(np.clip(cor, -1.0, 1.0))  # rounding may lead beyond
    return dict(zip(names(factor), (v[()] for v in values), strict=True))  # [()]: 0-d to scalar


def root(covariance: np.ndarray) -> np.ndarray:
    """An L with ``L L' = covariance``, which may be singular; by way of the correlations."""
    sds = np.sqrt(np.diag(covariance))
    scale = np.where(sds > 0, sds, 1.0)
    values, vectors = np.linalg.eigh(covariance / np.outer(scale, scale))
    return sds[:, np.newaxis] * vectors * np.sqrt(np.maximum(values, 0.0))


def names_of_block(factor: Factor, block: tuple[int, ...]) -> list[str]:
    """The names among `names` that belong to one block of columns."""
    labels = names(factor)
    cors = zip(correlated_pairs(factor), labels[len(factor.effects) :], strict=True)
    return [labels[j] for j in block] + [name for pair, name in cors if set(pair) <= set(block)]


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
