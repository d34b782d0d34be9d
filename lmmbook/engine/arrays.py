"""A design on the device: what a compiled program is given, and what it is compiled for.

Chapters 03 and 04. A program is compiled once for a `Layout`, the sizes of things; the numbers,
`Arrays` and `Parameters`, are its arguments. So a second fit of equal shapes compiles nothing, and
the data are not baked into the program.

Random effects are ``[levels, chains, columns]`` throughout: what is gathered for a row, or summed
for a level, lies together in memory. Rows are put in the order of the factor with the most levels:
one after another, they ask for neighbouring effects. At ten million rows that halves a sweep's
time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations_with_replacement
from typing import NamedTuple

from lmmbook.families.base import Family
from lmmbook.families.gaussian import Gaussian
from lmmbook.formula import covariance
from lmmbook.formula.design import Design
from lmmbook.formula.factors import Factor
from lmmbook.formula.invariances import directions

import numpy as np
import pandas as pd
import tensorflow as tf


class FactorLayout(NamedTuple):
    """Sizes of a factor, and which of its columns (and which fixed effects) belong together."""

    levels: int
    columns: int
    blocks: tuple[tuple[int, ...], ...]
    expanded_fixed: tuple[int, ...]
    expanded_columns: tuple[int, ...]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Entries of a covariance that are not zero, on the diagonal and above it."""
        return [p for block in self.blocks for p in combinations_with_replacement(block, 2)]

    @property
    def tangent_basis(self) -> np.ndarray:
        """A basis of symmetric matrices with these entries, ``[tangents, columns, columns]``: one
        entry each, or a symmetric pair. `local` says what the tangents are."""
        matrices = np.zeros((len(self.pairs), self.columns, self.columns), np.float32)
        for matrix, (a, b) in zip(matrices, self.pairs, strict=True):
            matrix[a, b] = matrix[b, a] = 1.0
        return matrices


class Layout(NamedTuple):
    """All that is fixed when a program is compiled; it can be compared and hashed.

    ``family`` is the likelihood; ``group_moves`` holds ``(inner, outer, groups)`` of each
    `directions.GroupMove`.
    """

    rows: int
    fixed: int
    chains: int
    family: Family
    factors: tuple[FactorLayout, ...]
    group_moves: tuple[tuple[tuple[int, int], tuple[int, int], int], ...]

    @property
    def gaussian(self) -> bool:
        """Whether the short cuts of a Gaussian likelihood hold."""
        return isinstance(self.family, Gaussian)


class FactorArrays(NamedTuple):
    """``codes`` [rows]; ``z`` [rows, columns], or None for a lone intercept; ``cross``
    [levels, columns, columns], Z'Z of each level; ``weights`` [levels, expanded]; ``units``
    [columns, columns] float64, as `directions.units`."""

    codes: tf.Tensor
    z: tf.Tensor | None
    cross: tf.Tensor
    weights: tf.Tensor
    units: tf.Tensor


class Arrays(NamedTuple):
    """``response`` [rows] and ``repeated`` [rows * chains], the same once for each chain, for any
    family but the Gaussian, both with a last axis [2] for successes and trials; ``offset`` [rows],
    or [1] where all are equal; ``fixed`` [rows, fixed]; ``gram`` [fixed, fixed] float64, X'X; one
    `FactorArrays` a factor; per group move, for its inner and its outer factor, ``(groups,
    slopes)``, each [levels]: which component of d moves a level's effect, and how far; ``replica``,
    which of several devices this is (`collectives`), or 0."""

    response: tf.Tensor
    repeated: tf.Tensor | None
    offset: tf.Tensor
    fixed: tf.Tensor
    gram: tf.Tensor
    factors: list[FactorArrays]
    group_moves: list[tuple[tuple[tf.Tensor, tf.Tensor], ...]]
    replica: tf.Tensor


class Parameters(NamedTuple):
    """``beta`` [fixed]; ``scales``, the lower Cholesky factor [columns, columns] of each factor's
    covariance; ``auxiliary`` [auxiliary], the family's own, unconstrained (`base`)."""

    beta: tf.Tensor
    scales: list[tf.Tensor]
    auxiliary: tf.Tensor

    @property
    def residual_sd(self) -> tf.Tensor:
        """Of a Gaussian family."""
        return tf.exp(self.auxiliary[0])


class State(NamedTuple):
    """Where a fit is: what goes on from sweep to sweep.

    ``parameters``; ``effects``, a list of ``[levels, chains, columns]``; what HMC steps by
    (`block_hmc`): ``step_sizes``, a list of ``[levels]`` in conditional standard deviations, and
    ``curvature``, as from `linear_predictor.curvatures`, empty for a Gaussian family, whose
    curvature belongs to the parameters.

    While sweeps go on, two more, which follow from the others (`linear_predictor.at`): ``rows``,
    as from `linear_predictor.rows_of`, and ``predictor`` ``[rows, chains]``.
    """

    parameters: Parameters
    effects: list[tf.Tensor]
    step_sizes: Sequence[tf.Tensor] = ()
    curvature: Sequence[tf.Tensor] = ()
    rows: tuple[tf.Tensor, ...] = ()
    predictor: tf.Tensor = ()


def on_device(design: Design, chains: int) -> tuple[Layout, Arrays]:
    """The layout of a design, and its arrays as tensors, with rows in the order of `row_order`."""
    order = row_order(design)
    gaussian = isinstance(design.family, Gaussian)
    response = _float(design.response[order])
    found = directions.group_moves(design)
    factors = [_factor_arrays(design, factor, order) for factor in design.factors]
    arrays = Arrays(
        response,
        None if gaussian else tf.repeat(response, chains, axis=0),
        _float(design.offset[:1] if np.ptp(design.offset) == 0 else design.offset[order]),
        _float(design.fixed[order]),
        tf.constant(design.fixed.T @ design.fixed),
        [of_rows for of_rows, _ in factors],
        [((tf.constant(t.groups_inner), _float(-t.weights)),
          (tf.constant(t.groups_outer), tf.ones(len(t.groups_outer))))
         for t in found],
        tf.constant(0),
    )  # fmt: skip
    layout = Layout(
        design.rows, design.fixed.shape[1], chains, design.family,
        tuple(sizes for _, sizes in factors),
        tuple((t.inner, t.outer, t.groups) for t in found),
    )  # fmt: skip
    return layout, arrays


def row_order(design: Design) -> np.ndarray | slice:
    """``[rows]`` positions of the design's rows, as `on_device` puts them: by the level of the
    factor with the most levels, and as they were within one. A slice where nothing moves."""
    codes = max(design.factors, key=lambda factor: factor.levels).codes
    if (codes[1:] >= codes[:-1]).all():
        return slice(None)
    return np.argsort(codes, kind="stable")


def _factor_arrays(
    design: Design, factor: Factor, order: np.ndarray | slice
) -> tuple[FactorArrays, FactorLayout]:
    expanded = directions.expanded(design, factor)
    columns = len(factor.effects)
    products = [
        np.bincount(factor.codes, None if factor.intercept_only else z_a * z_b, factor.levels)
        for z_a in factor.z.T
        for z_b in factor.z.T
    ]
    arrays = FactorArrays(
        tf.constant(factor.codes[order]),
        None if factor.intercept_only else _float(factor.z[order]),
        _float(np.stack(products, axis=1).reshape(factor.levels, columns, columns)),
        _float(expanded.weights),
        tf.constant(directions.units(factor)),
    )
    layout = FactorLayout(factor.levels, columns, factor.blocks, expanded.fixed, expanded.columns)
    return arrays, layout


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
    return covariance.name_values(design, *in_double(parameters))


def in_double(parameters: Parameters) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """``beta``, covariances and ``auxiliary`` in float64; any leading axes are kept."""
    beta, *scales, auxiliary = (np.asarray(x, float) for x in tf.nest.flatten(parameters))
    return beta, [lower @ np.swapaxes(lower, -1, -2) for lower in scales], auxiliary


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
    return tf.linalg.cholesky_solve(scale, tf.eye(scale.shape[0], dtype=scale.dtype))


def one_hot(positions: Sequence[int], depth: int) -> tf.Tensor:
    """``[positions, depth]``: a one in each row."""
    return tf.constant(np.eye(depth, dtype=np.float32)[list(positions)])
