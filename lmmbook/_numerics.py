"""A Newton step, derivatives by differences and Monte Carlo errors, of few parameters: in NumPy, in
double precision.

Chapters 04 and 06.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

BATCHES = 5  # of each chain, for Monte Carlo errors
FLAT = 1e-10  # relative curvature below which a direction counts as flat


def uphill(slope: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """Newton's step ``[parameters]``, towards a maximum.

    Where the curvature is not that of a hill, in a direction, its size is taken: uphill all the
    same. Directions are told apart on the scale where each parameter has a curvature of one.

    Examples
    --------
    >>> uphill(np.array([6.0, 6.0]), np.diag([-2.0, 3.0]))  # a hill, and a valley
    array([3., 2.])
    """
    scale = 1 / np.sqrt(np.maximum(np.abs(np.diag(hessian)), 1e-12))
    values, vectors = np.linalg.eigh(hessian * np.outer(scale, scale))
    return scale * (vectors @ (vectors.T @ (scale * slope) / np.maximum(np.abs(values), FLAT)))


def jacobian(function: Callable[[np.ndarray], np.ndarray], steps: np.ndarray) -> np.ndarray:
    """``[values, coordinates]``: derivatives of a function at zero, by central differences.

    ``steps`` [coordinates] says how far to go in each.
    """
    if len(steps) == 0:
        return np.zeros((len(function(steps)), 0))
    columns = [function(step) - function(-step) for step in np.diag(steps)]
    return np.stack(columns, axis=1) / (2 * steps)


def covariance_of_mean(values: np.ndarray) -> np.ndarray:
    """``[columns, columns]``, the Monte Carlo covariance of the mean of ``[draws, chains,
    columns]``: by means of batches, in which draws that follow each other are together.

    Examples
    --------
    >>> values = np.random.default_rng(0).normal(size=(1000, 8, 1))
    >>> bool(abs(covariance_of_mean(values).item() * 8000 - 1) < 0.5)
    True
    """
    batches = np.concatenate([batch.mean(0) for batch in np.array_split(values, BATCHES)])
    return np.cov(batches.T).reshape(2 * values.shape[2:]) / len(batches)
