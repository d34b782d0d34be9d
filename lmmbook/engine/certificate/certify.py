"""The certificate: how far from the maximum are these parameters, and how well is that known?

Chapter 04. At frozen parameters, from draws of independent chains, Fisher's identity gives the
score of the marginal likelihood and Louis' the observed information (`louis`). Their
Newton step is the distance to the maximum, in units of the information's standard errors. It does
not matter how the parameters were found.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from lmmbook import _numerics
from lmmbook._tensorflow.quiet import quiet_log
from lmmbook.engine.arrays import Layout, Parameters
from lmmbook.engine.certificate import louis
from lmmbook.formula import covariance
from lmmbook.formula.design import Design
from lmmbook.formula.invariances import coordinates, directions
from lmmbook.results.fit import CONVERGED_WITHIN

import numpy as np
import pandas as pd
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import linalg

SINGULAR = 0.01  # smallest eigenvalue of observed / complete information that we build on
BELIEVED = 3.0  # times the eigenvalue's own Monte Carlo error
MIN_MISSING = 1e-4  # missing / complete information, of which no diagnosis is made
SHARE = 0.3  # of the largest one, in a direction of which next to nothing is known
BATCHES = 5  # of each chain, for Monte Carlo standard errors


@dataclass(frozen=True)
class Certificate:
    """What is known of the maximum from where the parameters are.

    Attributes
    ----------
    table
        Index: parameter name; ``step`` the Newton step to the maximum, ``std_error`` from the
        observed information, ``mcse`` the Monte Carlo standard error of the step. All of an sd's
        are on the log scale, all of a correlation's on Fisher's z scale. NaN for parameters at a
        boundary or fixed, and all of them NaN if the information is not ``definite``.
    covariance
        Of the same, ``[parameters, parameters]``: ``std_error`` is the root of its diagonal.
    distance
        The largest \\|step\\| / std_error; infinite if the information is not definite.
    converged
        Whether every \\|step\\| + 2 mcse is at most 0.2 std_error.
    definite, indefinite
        Whether the smallest eigenvalue of the observed information, relative to the complete
        data's, is known to be positive, or known to be negative. If it is not known to be positive,
        no Newton step can be trusted.
    unknown
        If it is not known to be positive: the parameters of the direction about which least is
        known, those that have the largest share in it.
    weakly_identified
        If it is not known to be positive: whether it is so near zero, for its Monte Carlo error,
        that four times the draws would hardly show it to be.
    r_hat, ess
        Split R-hat and effective sample size of the worst of the scores.
    step
        The Newton step in local coordinates (`louis`), zeros where there is none.
    """

    table: pd.DataFrame
    covariance: pd.DataFrame
    step: np.ndarray
    distance: float = np.inf
    converged: bool = False
    definite: bool = False
    indefinite: bool = False
    unknown: tuple[str, ...] = ()
    weakly_identified: bool = False
    r_hat: float = np.nan
    ess: float = np.nan


def nothing_known(design: Design, layout: Layout) -> Certificate:
    """Before anything is measured."""
    names = covariance.parameter_names(design)
    table = pd.DataFrame(np.nan, names, ["step", "std_error", "mcse"])
    together = pd.DataFrame(np.nan, names, names)
    return Certificate(table, together, np.zeros(louis.coordinates(layout)))


def certify(
    design: Design,
    layout: Layout,
    parameters: Parameters,
    score: np.ndarray,
    information: np.ndarray,
    estimated: np.ndarray,
) -> Certificate:
    """Judge ``parameters`` by what was measured of draws at them.

    Parameters
    ----------
    score
        ``[draws, chains, coordinates]``, complete-data scores.
    information
        ``[coordinates, coordinates]``, the mean complete-data information.
    estimated
        ``[coordinates, free]``, the directions to judge: the identity less its columns for what is
        fixed or at a boundary.
    """
    score = score.astype(float) @ estimated
    complete = estimated.T @ information @ estimated
    draws, chains, free = score.shape
    flat = score.reshape(-1, free)
    observed = complete - np.cov(flat.T).reshape(free, free)
    # Of what is nearly all observed the scores hardly vary, but by rounding.
    varies = np.diag(complete - observed) > MIN_MISSING * np.diag(complete)
    ess, r_hat = diagnose(score[..., varies]) if varies.any() else (float(draws * chains), 1.0)

    # Both are estimates: the fewer draws, the larger the eigenvalue has to be to be believed.
    # Far from the maximum even the complete data's may be negative.
    smallest, noise = smallest_share(observed, complete), BELIEVED * np.sqrt(2 / ess)
    definite, indefinite = smallest > max(SINGULAR, noise), smallest < -noise
    names = covariance.parameter_names(design)
    jac = jacobian(design, layout, parameters) @ estimated
    if not definite:
        return replace(
            nothing_known(design, layout),
            indefinite=bool(indefinite),
            unknown=tuple(np.array(names)[least_known(observed, complete, jac)].tolist()),
            weakly_identified=bool(smallest < noise / 2),
            r_hat=r_hat,
            ess=ess,
        )

    inverse = np.linalg.inv(observed)
    step = inverse @ flat.mean(0)
    # What each draw adds to the step, to first order: by its score, and by what its score does to
    # Louis' variance, which matters the more, the longer the step is.
    apart = score - flat.mean(0)
    added = score + apart * (apart @ step)[..., np.newaxis]
    size = draws // BATCHES
    batches = added[: size * BATCHES].reshape(BATCHES, size, chains, free).mean(1)
    noise = np.cov(batches.reshape(-1, free).T).reshape(free, free) / (BATCHES * chains)
    error_covariance = jac @ inverse @ jac.T
    table = pd.DataFrame(
        {
            "step": jac @ step,
            "std_error": np.sqrt(np.diag(error_covariance)),
            "mcse": np.sqrt(np.diag(jac @ inverse @ noise @ inverse @ jac.T)),
        },
        index=names,
    )
    idle = table["std_error"].to_numpy() == 0  # fixed, or at a boundary
    table[idle] = error_covariance[idle] = error_covariance[:, idle] = np.nan
    relative = table["step"].abs() / table["std_error"]
    reach = (table["step"].abs() + 2 * table["mcse"]) / table["std_error"]
    return Certificate(
        table,
        pd.DataFrame(error_covariance, names, names),
        estimated @ step,
        float(relative.max()),
        bool(reach.max() <= CONVERGED_WITHIN),
        definite=True,
        r_hat=r_hat,
        ess=ess,
    )


def smallest_share(observed: np.ndarray, complete: np.ndarray) -> float:
    """Smallest eigenvalue of ``complete^-1 observed``: what is left where most is missing.

    Of the same size in whatever coordinates, so collinear covariates do not make it smaller. Minus
    infinity if ``complete`` is not positive definite.
    """
    try:
        return float(linalg.eigh(observed, complete, eigvals_only=True)[0])
    except linalg.LinAlgError:
        return -np.inf


def least_known(observed: np.ndarray, complete: np.ndarray, jac: np.ndarray) -> np.ndarray:
    """``[parameters]``, which of them have a large share in the direction where most is missing.

    ``jac`` ``[parameters, free]``. A share is how far the direction moves a parameter, in
    the complete data's standard errors, which is at most one.
    """
    try:
        direction = linalg.eigh(observed, complete)[1][:, 0]
    except linalg.LinAlgError:  # as far away as that nothing is known
        return np.zeros(len(jac), bool)
    spread = np.einsum("pi,ij,pj->p", jac, np.linalg.inv(complete), jac)
    share = np.abs(jac @ direction) / np.sqrt(np.where(spread > 0, spread, np.inf))
    return share > SHARE * share.max()


def diagnose(score: np.ndarray) -> tuple[float, float]:
    """Effective sample size and split R-hat of the worst column of ``[draws, chains, columns]``."""
    states = tf.constant((score - score.mean((0, 1))) / score.std((0, 1)))
    with quiet_log():  # TensorFlow warns of a cast inside, from complex to real, that is meant
        ess = tfp.mcmc.effective_sample_size(states, cross_chain_dims=1)
    r_hat = tfp.mcmc.potential_scale_reduction(states, split_chains=True)
    return float(tf.reduce_min(ess)), float(tf.reduce_max(r_hat))


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
