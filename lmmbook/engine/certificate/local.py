"""Local coordinates of the parameters, in which the certificate takes its derivatives.

Chapter 04. They are counted off: the fixed effects; for each factor the *tangent coordinates* of
its covariance, which are the entries of a matrix S; the family's auxiliary parameters. The
covariance is a point on a surface, and S a direction along it:

    Σ <- (I + S) Σ (I + S)'    or exp(S) Σ exp(S)', the same to first order.

S is symmetric where effects are measured in `FactorArrays.units`. For a lone intercept it is the
change of log sd. A covariance that is singular stays so, and can still be turned. With effects
``u = L x``, L the Cholesky factor of Σ, and ``G = L^-1 S L``, a change by S leaves ``x - G x`` of
effects that stay where they are.
"""

from __future__ import annotations

from lmmbook import _numerics
from lmmbook.engine.arrays import FactorArrays, FactorLayout, Layout, Parameters
from lmmbook.formula.design import Design
from lmmbook.formula.invariances import coordinates, directions

import numpy as np
import tensorflow as tf


def tangents(layout: FactorLayout, arrays: FactorArrays) -> tf.Tensor:
    """The matrices S of a basis in the units of effects, ``[tangents, columns, columns]`` float64:
    what multiplies them."""
    identity = tf.eye(layout.columns, dtype=tf.float64)
    inverse = tf.linalg.triangular_solve(arrays.units, identity, lower=False)
    return arrays.units @ tf.constant(layout.tangent_basis, tf.float64) @ inverse


def turns(layout: FactorLayout, arrays: FactorArrays, scale: tf.Tensor) -> tf.Tensor:
    """G of each tangent, ``[tangents, columns, columns]`` float64."""
    if layout.columns == 1:
        return tf.constant(np.ones((len(layout.pairs), 1, 1)))
    scale = tf.cast(scale, tf.float64)
    lower_inverse = tf.linalg.triangular_solve(scale, tf.eye(layout.columns, dtype=tf.float64))
    return tf.einsum("ij,ajk,km->aim", lower_inverse, tangents(layout, arrays), scale)


def offsets(layout: Layout) -> list[int]:
    """Where each factor's tangent coordinates begin; last, where the auxiliary do."""
    sizes = [len(factor.pairs) for factor in layout.factors]
    return [int(n) for n in layout.fixed + np.cumsum([0, *sizes])]


def dimension(layout: Layout) -> int:
    """How many there are."""
    return offsets(layout)[-1] + layout.family.auxiliary


def jacobian(design: Design, layout: Layout, parameters: Parameters) -> np.ndarray:
    """``[parameters, coordinates]``, for the delta method: derivatives of the named parameters (sds
    as logs, correlations as Fisher's z) by local coordinates, by central differences."""
    # In a fixed effect all are linear: a long step loses no digits beside a large intercept.
    steps = np.where(np.arange(dimension(layout)) < layout.fixed, 1.0, 1e-4)
    return _numerics.jacobian(
        lambda step: coordinates.on_their_scales(design, *move(design, layout, parameters, step)),
        steps,
    )


def move(
    design: Design, layout: Layout, parameters: Parameters, step: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """``(beta, covariances, auxiliary)`` after a step in local coordinates, in float64.

    ``Σ <- exp(S) Σ exp(S)'``, with S the step in tangent coordinates to first order
    I + S, and Σ stays a covariance however long the step.
    """
    begins = offsets(layout)
    units = [directions.units(factor) for factor in design.factors]
    covariances = []
    for k, (factor_layout, scale) in enumerate(zip(layout.factors, parameters.scales, strict=True)):
        own = step[begins[k] : begins[k + 1]]
        tangent = np.tensordot(own, factor_layout.tangent_basis, 1)
        values, vectors = np.linalg.eigh(tangent)
        by = units[k] @ (vectors * np.exp(values)) @ vectors.T @ np.linalg.inv(units[k])
        root = by @ np.asarray(scale, float)
        covariances.append(root @ root.T)
    beta = np.asarray(parameters.beta, float) + step[: layout.fixed]
    return beta, covariances, np.asarray(parameters.auxiliary, float) + step[begins[-1] :]
