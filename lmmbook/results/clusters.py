"""Means of values that are correlated within clusters.

Chapter 05.
"""

from __future__ import annotations

import numpy as np
import pandas as pd


def clustered_se(values: np.ndarray | pd.Series, clusters: np.ndarray | pd.Series) -> float:
    """Standard error of the mean of ``values`` ``[rows]`` that are correlated within clusters.

    With e a value less the mean, G clusters and N rows,

        sqrt( G / (G - 1) * sum over clusters (sum of e in the cluster)^2 ) / N

    (Liang & Zeger 1986, for a mean; the factor as in Cameron & Miller 2015). Values of different
    clusters have to be independent, and the clusters many. ``clusters`` ``[rows]`` are labels. If
    each row is its own cluster, this is the usual standard error.

    Raises
    ------
    ValueError
        If the lengths differ, or there are fewer than two clusters.

    Examples
    --------
    >>> clustered_se(np.array([1.0, 1.0, 3.0, 3.0]), np.array(["a", "a", "b", "b"]))
    1.0
    """
    values, labels = np.asarray(values, float), np.asarray(clusters)
    if values.ndim != 1 or values.shape != labels.shape:
        raise ValueError(
            f"clusters: expected one for each value, got {labels.shape} for {values.shape}"
        )
    codes = pd.factorize(labels)[0]
    sums = np.bincount(codes, values - values.mean()) if len(values) else np.zeros(0)
    if len(sums) < 2:
        raise ValueError(f"clusters: expected at least two, got {len(sums)}")
    return float(np.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum()) / len(values))
