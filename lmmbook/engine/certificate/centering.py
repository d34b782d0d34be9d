"""The parametrisation in which the complete data know least about each parameter.

Chapter 04. The less the complete data know, the less is to be taken away for the missing effects,
and the less noise there is. `louis` says which parametrisations there are.
"""

from __future__ import annotations

from lmmbook._rows import pieces
from lmmbook.engine.arrays import Arrays, FactorArrays, FactorLayout, Layout, Parameters
from lmmbook.engine.certificate import certify, louis
from lmmbook.formula.design import Design

import numpy as np
import tensorflow as tf
from scipy import linalg

ENOUGH_OBSERVED = 0.1  # observed / complete information; with so much, a parametrisation is good
ROUNDING = 1e-12


def choose_parametrisation(
    layout: Layout,
    arrays: Arrays,
    products: np.ndarray,
    parameters: Parameters,
    variance: float,
    estimated: np.ndarray,
) -> louis.Parametrisation:
    """The parametrisation in which the complete data know least about each parameter.

    ``products`` as from `products_of`; ``variance`` is the residual's, or the working one (the
    square of `Engine.working_sd`): a choice needs no more. ``estimated`` [coordinates, free] are
    the directions to be judged, as for `certify.certify`.
    """
    begins, standardised = louis.offsets(layout), []
    for k, (factor_layout, factor_arrays, scale) in enumerate(
        zip(layout.factors, arrays.factors, parameters.scales, strict=True)
    ):
        own = estimated[begins[k] : begins[k + 1]]
        kept = own[:, np.abs(own).max(0) > 0]
        standardised.append(
            least_part(factor_layout, factor_arrays, np.asarray(scale, float), variance, kept)
        )
    means = least_means(layout, arrays, products / variance, parameters)
    return louis.Parametrisation(
        *([tf.constant(x, tf.float32) for x in of_each] for of_each in (means, standardised))
    )


def products_of(design: Design, layout: Layout) -> np.ndarray:
    """``M'M`` of the columns M that are the fixed effects' and, for each factor, those of its
    effects that no fixed effect is alike to (`lone`)."""
    columns = [design.fixed.T]
    for factor_layout, factor in zip(layout.factors, design.factors, strict=True):
        columns.append(factor.z.T[lone(factor_layout)])
    sizes = np.cumsum([0, *(len(c) for c in columns)])
    found = np.zeros((sizes[-1], sizes[-1]))
    for piece in pieces(design.rows):
        part = np.concatenate([c[:, piece] for c in columns])
        found += part @ part.T
    return found


def lone(layout: FactorLayout) -> list[int]:
    """The columns of a factor in which no fixed effect can be taken over."""
    return [j for j in range(layout.columns) if j not in layout.expanded_columns]


def least_means(
    layout: Layout, arrays: Arrays, products: np.ndarray, parameters: Parameters
) -> list[np.ndarray]:
    """`louis.Parametrisation.means`, those with which the complete data know least.

    With a mean ``F t`` of effects beside a fixed effect's column x, they know

        (x - F t)'(x - F t) / variance  in the likelihood  +  t'G t  in the prior,

    G the information that effects give about their mean. That is least squares. For a column that
    is constant within levels, or nearly, t is nearly all of it; for others next to nothing.
    ``products`` are divided by the variance.
    """
    places, sizes, inside = [], [], []
    end = layout.fixed
    for factor_layout, factor_arrays, scale in zip(
        layout.factors, arrays.factors, parameters.scales, strict=True
    ):
        alone = lone(factor_layout)
        expanded = len(factor_layout.expanded_columns)
        chosen = [*range(expanded), *(expanded + j for j in alone)]
        places += [*factor_layout.expanded_fixed, *range(end, end + len(alone))]
        end += len(alone)
        sizes.append((len(louis.mean_columns(factor_layout)), chosen))
        weights = louis.mean_weights(factor_arrays).numpy().astype(float)[:, chosen]
        columns = np.array(louis.mean_columns(factor_layout))[chosen]
        root = np.linalg.inv(np.asarray(scale, float))
        precision = (root.T @ root)[np.ix_(columns, columns)]
        inside.append(weights.T @ weights * precision)
    normal = products[np.ix_(places, places)] + linalg.block_diag(*inside)
    scaling = 1 / np.sqrt(np.diag(normal))
    normal = normal * np.outer(scaling, scaling) + ROUNDING * np.eye(len(scaling))
    right = scaling[:, np.newaxis] * products[places, : layout.fixed]
    solved = scaling[:, np.newaxis] * np.linalg.solve(normal, right)
    means = []
    for size, chosen in sizes:
        own, solved = np.split(solved, [len(chosen)])
        means.append(np.zeros((size, layout.fixed)))
        means[-1][chosen] = own
    return means


def least_part(
    layout: FactorLayout, arrays: FactorArrays, scale: np.ndarray, variance: float, kept: np.ndarray
) -> np.ndarray:
    """`louis.Parametrisation.standardised`, that with which the complete data know least.

    Where a part P of a tangent S is in the likelihood, they know (I - P)' A (I - P) + P' B P, of
    what A they know in the prior and B in the likelihood. P = (A + B)^-1 A makes that the smallest,
    in every direction. ``kept`` [tangents, free] are the directions to look at.
    """
    observed, prior, likelihood = information_on_covariance(layout, arrays, scale, variance)
    looked_at = (kept.T @ x @ kept for x in (observed, prior))
    # Standardising costs as much as all else that is measured: only where it is needed.
    if kept.shape[1] == 0 or certify.eigen(*looked_at)[0][0] >= ENOUGH_OBSERVED:
        return np.zeros(2 * [len(kept)])
    scaling = 1 / np.sqrt(np.diag(prior + likelihood))
    whole = (prior + likelihood) * np.outer(scaling, scaling) + ROUNDING * np.eye(len(scaling))
    return scaling[:, np.newaxis] * np.linalg.solve(whole, scaling[:, np.newaxis] * prior)


def information_on_covariance(
    layout: FactorLayout, arrays: FactorArrays, scale: np.ndarray, variance: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Information on a covariance, observed, in the prior, and in the likelihood, each
    ``[tangents, tangents]``.

    Roughly: for a factor on its own, with levels that are all like their average. With Σ the
    covariance, C a level's Z'Z / variance and A = SΣ + ΣS' what a tangent S adds to Σ, a level's
    information is

        tr(P A P A) / 2 in the prior, P = Σ^-1;  tr(S'C S Σ) in the likelihood;
        tr(Q A Q A) / 2 observed, with Q = (I + CΣ)^-1 C what the ratings leave certain.
    """
    tangents = np.asarray(louis.tangents(layout, arrays), float)
    sigma = scale @ scale.T
    fisher = np.asarray(arrays.cross, float).mean(0) / variance
    added = tangents @ sigma
    added += added.swapaxes(1, 2)
    certain = np.linalg.solve(np.eye(len(sigma)) + fisher @ sigma, fisher)
    return (
        _traces(certain @ added) / 2,
        _traces(np.linalg.solve(sigma, added)) / 2,
        np.einsum("aji,jk,bkl,li->ab", tangents, fisher, tangents, sigma),
    )


def _traces(matrices: np.ndarray) -> np.ndarray:
    """``tr(M_a M_b)`` for all pairs of ``[matrices, columns, columns]``."""
    return np.einsum("aij,bji->ab", matrices, matrices)
