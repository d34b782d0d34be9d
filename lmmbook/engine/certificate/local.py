"""Steps in local coordinates: what they make of the parameters.

Chapter 04. `louis` says what these coordinates are.
"""

from __future__ import annotations

from lmmbook import _numerics
from lmmbook.engine.arrays import Layout, Parameters
from lmmbook.engine.certificate import louis
from lmmbook.formula.design import Design
from lmmbook.formula.invariances import coordinates, directions

import numpy as np


def jacobian(design: Design, layout: Layout, parameters: Parameters) -> np.ndarray:
    """``[parameters, coordinates]``, for the delta method: derivatives of the named parameters (sds
    as logs, correlations as Fisher's z) by local coordinates, by central differences."""
    # In a fixed effect all are linear: a long step loses no digits beside a large intercept.
    steps = np.where(np.arange(louis.coordinates(layout)) < layout.fixed, 1.0, 1e-4)
    return _numerics.jacobian(
        lambda step: coordinates.on_their_scales(design, *move(design, layout, parameters, step)),
        steps,
    )


def move(
    design: Design, layout: Layout, parameters: Parameters, step: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """``(beta, covariances, auxiliary)`` after a step in local coordinates, in float64.

    ``Σ <- exp(S) Σ exp(S)'``, with S the step in tangent coordinates (`louis`): to first order
    I + S, and Σ stays a covariance however long the step.
    """
    begins = louis.offsets(layout)
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
