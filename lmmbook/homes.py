"""The home of each parameter: the centring in which the complete data know least about it.

Chapter 04. The less the complete data know, the less is to be taken away for the missing effects,
and the less noise there is. See `complete_data` for what the homes are.
"""

from __future__ import annotations

from lmmbook import complete_data
from lmmbook.arrays import Arrays, FactorArrays, FactorLayout, Layout, Parameters

import numpy as np
import tensorflow as tf

ENOUGH = 0.1  # observed / complete information; with so much left, a home is good


def choose_homes(
    layout: Layout, arrays: Arrays, parameters: Parameters, variance: float, estimated: np.ndarray
) -> complete_data.Home:  # fmt: skip
    """For each parameter the home where the complete data know least about it.

    ``variance`` is the residual's, or what is like it (the square of `Engine.unit`): a choice needs
    no more. ``estimated`` [coordinates, free] are the directions to be judged, as for
    `certificate.certify`.
    """
    least = np.diag(arrays.gram) / variance
    owner = np.full(layout.fixed, -1)
    begins, standardised = complete_data.offsets(layout), []
    for k, (of, has, scale) in enumerate(
        zip(layout.factors, arrays.factors, parameters.scales, strict=True)
    ):
        own = estimated[begins[k] : begins[k + 1]]
        kept = own[:, np.abs(own).max(0) > 0]
        prior, likelihood = what_is_left(of, has, np.asarray(scale, float), variance, kept)
        # Standardising costs as much as all else that is measured: only where it is needed.
        standardised.append(bool(prior < min(ENOUGH, likelihood)))
        if standardised[-1]:
            continue
        precision = np.linalg.inv(np.asarray(scale, float) @ np.asarray(scale, float).T)
        weights = np.asarray(has.weights, float)
        for c, j, w in zip(of.freed_fixed, of.freed_columns, weights.T, strict=True):
            here = precision[j, j] * w @ w
            if here < least[c]:
                least[c], owner[c] = here, k
    freed = [
        [float(owner[c] == k) for c in of.freed_fixed] for k, of in enumerate(layout.factors)
    ]  # fmt: skip
    return complete_data.Home(
        tf.constant(owner == -1, tf.float32),
        [tf.constant(f, tf.float32, [len(f)]) for f in freed],
        [tf.constant(float(s)) for s in standardised],
    )


def what_is_left(
    of: FactorLayout, has: FactorArrays, scale: np.ndarray, variance: float, kept: np.ndarray
) -> tuple[float, float]:
    """Observed / complete information on a covariance, its smallest ratio, in either home.

    Roughly: for a factor on its own, with levels that are all like their average. ``kept``
    [stretches, free] are the directions to look at. With Σ the covariance, C a level's Z'Z /
    variance and A = SΣ + ΣS' what a stretch S adds to Σ, a level's information is

        tr(P A P A) / 2 in the prior, P = Σ^-1;  tr(S'C S Σ) in the likelihood;
        tr(Q A Q A) / 2 observed, with Q = (I + CΣ)^-1 C what the ratings leave certain.
    """
    if kept.shape[1] == 0:
        return 1.0, 1.0
    own = np.tensordot(kept.T, np.asarray(complete_data.stretches(of, has.units), float), 1)
    sigma = scale @ scale.T
    told = np.asarray(has.cross, float).mean(0) / variance
    added = own @ sigma
    added += added.swapaxes(1, 2)
    certain = np.linalg.solve(np.eye(len(sigma)) + told @ sigma, told)
    observed = _traces(certain @ added) / 2
    prior = _traces(np.linalg.solve(sigma, added)) / 2
    likelihood = np.einsum("aji,jk,bkl,li->ab", own, told, own, sigma)
    return _smallest_ratio(observed, prior), _smallest_ratio(observed, likelihood)


def _traces(matrices: np.ndarray) -> np.ndarray:
    """``tr(M_a M_b)`` for all pairs of ``[matrices, columns, columns]``."""
    return np.einsum("aij,bji->ab", matrices, matrices)


def _smallest_ratio(top: np.ndarray, bottom: np.ndarray) -> float:
    """Smallest eigenvalue of ``bottom^-1 top``, both symmetric and not negative."""
    return float(np.linalg.eigvals(np.linalg.solve(bottom, top)).real.min())
