"""A design on the device: what a compiled program is given, and what it is compiled for.

Chapters 03 and 04. A program is compiled once for a `Layout`, the sizes of things; the numbers,
`Arrays` and `Parameters`, are its arguments. So a second fit of equal shapes compiles nothing, and
the data are not baked into the program.

Random effects are ``[levels, chains, columns]`` throughout: what is gathered for a row, or summed
for a level, lies together in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from lmmbook import covariance, directions
from lmmbook.families import Gaussian
from lmmbook.formula import Design
from lmmbook.likelihood import Family

import numpy as np
import pandas as pd
import tensorflow as tf


class FactorLayout(NamedTuple):
    """Sizes of a factor, and which of its columns (and which fixed effects) belong together."""

    levels: int
    columns: int
    intercept_only: bool
    blocks: tuple[tuple[int, ...], ...]
    freed_fixed: tuple[int, ...]
    freed_columns: tuple[int, ...]


class Layout(NamedTuple):
    """All that is fixed when a program is compiled; it can be compared and hashed.

    ``family`` is the likelihood; ``translations`` holds ``(inner, outer, groups)`` of each
    `directions.Translation`.
    """

    rows: int
    fixed: int
    chains: int
    family: Family
    factors: tuple[FactorLayout, ...]
    translations: tuple[tuple[tuple[int, int], tuple[int, int], int], ...]


class FactorArrays(NamedTuple):
    """``codes`` [rows]; ``z`` [rows, columns], or None for a lone intercept; ``cross``
    [levels, columns, columns], Z'Z of each level; ``weights`` [levels, freed]; ``units``
    [columns], of an effect: it changes the ratings by one, root mean square."""

    codes: tf.Tensor
    z: tf.Tensor | None
    cross: tf.Tensor
    weights: tf.Tensor
    units: tf.Tensor


class Arrays(NamedTuple):
    """``response`` [rows] and ``repeated`` [rows * chains], the same once for each chain, for any
    family but the Gaussian; ``offset`` [rows]; ``fixed`` [rows, fixed]; ``solver`` [fixed, rows],
    (X'X)^-1 X'; ``gram`` [fixed, fixed], X'X; one `FactorArrays` a factor; per translation
    ``(groups_inner, groups_outer, weights)``."""

    response: tf.Tensor
    repeated: tf.Tensor | None
    offset: tf.Tensor
    fixed: tf.Tensor
    solver: tf.Tensor
    gram: tf.Tensor
    factors: list[FactorArrays]
    translations: list[tuple[tf.Tensor, tf.Tensor, tf.Tensor]]


class Parameters(NamedTuple):
    """``beta`` [fixed]; ``scales``, the lower Cholesky factor [columns, columns] of each factor's
    covariance; ``auxiliary`` [auxiliary], the family's own, unconstrained (`likelihood`)."""

    beta: tf.Tensor
    scales: list[tf.Tensor]
    auxiliary: tf.Tensor

    @property
    def residual_sd(self) -> tf.Tensor:
        """Of a Gaussian family."""
        return tf.exp(self.auxiliary[0])


def on_device(design: Design, chains: int) -> tuple[Layout, Arrays]:
    """The layout of a design, and its arrays as tensors (float32)."""
    x, factors, layouts = design.fixed, [], []
    gaussian = isinstance(design.family, Gaussian)
    repeated = None if gaussian else _float(np.repeat(design.response, chains))
    for factor in design.factors:
        freed = directions.freed(design, factor)
        columns = len(factor.effects)
        products = [
            np.bincount(factor.codes, factor.z[:, a] * factor.z[:, b], factor.levels)
            for a in range(columns)
            for b in range(columns)
        ]
        cross = np.stack(products, axis=1).reshape(factor.levels, columns, columns)
        z = None if factor.intercept_only else _float(factor.z)
        factors.append(
            FactorArrays(
                tf.constant(factor.codes),
                z,
                _float(cross),
                _float(freed.weights),
                _float(directions.units(factor)),
            )
        )
        layouts.append(
            FactorLayout(
                factor.levels, columns, factor.intercept_only, factor.blocks,
                freed.fixed, freed.columns,
            )
        )  # fmt: skip
    found = directions.translations(design)
    arrays = Arrays(
        _float(design.response), repeated, _float(design.offset), _float(x),
        _float(np.linalg.solve(x.T @ x, x.T)), _float(x.T @ x),
        factors,
        [(tf.constant(t.groups_inner), tf.constant(t.groups_outer), _float(t.weights))
         for t in found],
    )  # fmt: skip
    layout = Layout(
        design.rows, x.shape[1], chains, design.family, tuple(layouts),
        tuple((t.inner, t.outer, t.groups) for t in found),
    )  # fmt: skip
    return layout, arrays


def _float(values: np.ndarray) -> tf.Tensor:
    return tf.constant(values, tf.float32)


def to_parameters(design: Design, values: Mapping[str, float] | pd.Series) -> Parameters:
    """From named values to `Parameters`. Every sd has to be positive."""
    beta, matrices, auxiliary = covariance.split_values(design, values)
    scales = []
    for matrix in matrices:
        matrix += 1e-10 * np.diag(np.diag(matrix))  # a correlation of 1 has a Cholesky factor too
        scales.append(_float(np.linalg.cholesky(matrix)))
    return Parameters(_float(beta), scales, _float(auxiliary))


def from_parameters(design: Design, parameters: Parameters) -> dict[str, float]:
    """From `Parameters` to named values, in the order of every table."""
    covariances = [lower @ lower.T for lower in (np.asarray(s, float) for s in parameters.scales)]
    beta, auxiliary = (np.asarray(x, float) for x in (parameters.beta, parameters.auxiliary))
    return covariance.name_values(design, beta, covariances, auxiliary)


def to_rows(arrays: FactorArrays, effects: tf.Tensor) -> tf.Tensor:
    """What a factor adds to the linear predictor: ``[rows, chains]`` from its effects."""
    gathered = tf.gather(effects, arrays.codes)  # [rows, chains, columns]
    if arrays.z is None:
        return gathered[..., 0]
    return tf.reduce_sum(gathered * arrays.z[:, tf.newaxis, :], axis=-1)


def to_levels(arrays: FactorArrays, values: tf.Tensor, levels: int) -> tf.Tensor:
    """The transpose: sums over each level's rows, ``[levels, chains, columns]``."""
    values = values[..., tf.newaxis]
    if arrays.z is not None:
        values = values * arrays.z[:, tf.newaxis, :]
    return tf.math.unsorted_segment_sum(values, arrays.codes, levels)


def standardise(scale: tf.Tensor, effects: tf.Tensor) -> tf.Tensor:
    """``scale^-1 u`` for effects ``[levels, chains, columns]``."""
    if scale.shape[0] == 1:
        return effects / scale
    lower_inverse = tf.linalg.triangular_solve(scale, tf.eye(scale.shape[0]))
    return tf.einsum("ij,lcj->lci", lower_inverse, effects)


def inverse(scale: tf.Tensor) -> tf.Tensor:
    """``[columns, columns]`` inverse of the covariance ``scale scale'``."""
    if scale.shape[0] == 1:
        return 1.0 / tf.square(scale)
    return tf.linalg.cholesky_solve(scale, tf.eye(scale.shape[0]))
