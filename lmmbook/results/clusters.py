"""Means of values that are correlated within clusters, in one way or in several.

Chapter 05.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd


def clustered_se(values: np.ndarray | pd.Series, *clusters: np.ndarray | pd.Series) -> float:
    """Standard error of the mean of ``values`` ``[rows]`` that are correlated within clusters.

    With e a value minus the mean, G clusters and N rows, it is

        sqrt( G / (G - 1) * sum over clusters (sum of e in the cluster)^2 ) / N

    (Liang & Zeger 1986, for a mean; the factor as in Cameron & Miller 2015). ``clusters``
    ``[rows]`` are labels. If each row is its own cluster, this is the usual standard error.

    Crossed data are clustered in several ways at once: two ratings may share a student, or an
    instructor. With labels for each, squares of the above are added up, those of the clusters that
    two ways have in common are taken off, and so on (Cameron, Gelbach & Miller 2011):
    ``V(students) + V(instructors) - V(students and instructors)``. With few clusters that can come
    out too small; so the result is at least what one of the ways says alone.

    Values that share a cluster in none of the ways have to be independent, and the clusters many in
    each.

    Raises
    ------
    ValueError
        If there are no clusters, the lengths differ, a label is missing, or there are fewer than
        two clusters in one of the ways.

    Examples
    --------
    >>> values = np.array([1.0, 1.0, 3.0, 3.0])
    >>> clustered_se(values, np.array(["a", "a", "b", "b"]))
    1.0
    >>> clustered_se(values, np.array(["a", "a", "b", "b"]), np.array(["c", "d", "c", "d"]))
    1.0
    """
    values = np.asarray(values, float)
    if not clusters:
        raise ValueError("clusters: expected labels, one for each value, got none")
    codes = [_codes(values, labels) for labels in clusters]
    alone = [_square(values, own) for own in codes]
    total = sum(alone)
    for size in range(2, len(codes) + 1):
        for some in combinations(codes, size):
            total -= (-1) ** size * _square(values, _both(some))
    return float(np.sqrt(max(total, *alone)) / len(values))


def _codes(values: np.ndarray, labels: np.ndarray | pd.Series) -> np.ndarray:
    labels = np.asarray(labels)
    if values.ndim != 1 or values.shape != labels.shape:
        raise ValueError(
            f"clusters: expected one for each value, got {labels.shape} for {values.shape}"
        )
    if pd.isna(labels).any():
        raise ValueError("clusters: expected a label for each value, got some that are missing")
    codes = pd.factorize(labels)[0]
    found = codes.max(initial=-1) + 1
    if found < 2:
        raise ValueError(f"clusters: expected at least two, got {found}")
    return codes


def _both(codes: tuple[np.ndarray, ...]) -> np.ndarray:
    """Clusters of the rows that are together in all of these ways."""
    return np.unique(np.stack(codes), axis=1, return_inverse=True)[1].ravel()


def _square(values: np.ndarray, codes: np.ndarray) -> float:
    """Of the standard error of the sum."""
    sums = np.bincount(codes, values - values.mean())
    return float(len(sums) / (len(sums) - 1) * (sums**2).sum())
