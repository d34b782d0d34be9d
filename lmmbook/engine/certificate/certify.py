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
from lmmbook.engine.certificate import local
from lmmbook.formula import covariance
from lmmbook.formula.design import Design
from lmmbook.results.fit import CONVERGED_WITHIN

import numpy as np
import pandas as pd
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import linalg

SINGULAR = 0.01  # smallest eigenvalue of observed / complete information that we build on
BELIEVED = 3.0  # Monte Carlo standard errors of that eigenvalue, before it is believed
MIN_MISSING = 1e-4  # missing / complete information, of which no diagnosis is made
SHARE = 0.3  # of the largest one, in a direction of which next to nothing is known
ALLOWED = 2.5  # Monte Carlo standard errors of a step that are allowed for
NEAR = 0.3  # standard errors; of what a longer step misses nothing is said
BENT = 3.0  # times distance^2 s, that a step may miss: see `Certificate.missed`


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
    within
        How far from the maximum the point after the step may still be, in standard errors: 2.5 mcse
        of that parameter of which the step is known least, and what the step may have missed.
        Infinite if the information is not definite.
    missed
        What a Newton step of this length may miss: ``3 distance^2 s``, with s the largest standard
        error of a log sd or a Fisher z; infinite if it is longer than `NEAR`. Where m like levels
        tell 2 m k^2 about the log of their sd, with k the share of an effect's variance that the
        ratings explain, a step of d standard errors misses ``|3 - 4 k| d^2 s``, to that order.
    converged
        Whether that is at most 0.2.
    definite, indefinite
        Whether the smallest eigenvalue of the observed information, relative to the complete
        data's, is known to be positive, or known to be negative.
    unknown
        If it is not known to be positive: the parameters of the direction about which least is
        known, those that have the largest share in it.
    weakly_identified
        If it is not known to be positive: whether it is so near zero, for its Monte Carlo error,
        that four times the draws would hardly show it to be.
    noise
        `BELIEVED` Monte Carlo standard errors of the smallest eigenvalue.
    r_hat, ess
        Split R-hat and effective sample size of the worst of the scores.
    step
        The Newton step in local coordinates (`local`). In directions where the information is not
        known to be positive it is shorter than Newton's: as if it were `noise`.
    step_errors
        ``[coordinates, coordinates]``, the covariance of its Monte Carlo errors.
    far
        Whether some step is `NEAR` standard errors or longer, or may miss half of what is allowed,
        and is known not to be noise.
    """

    table: pd.DataFrame
    covariance: pd.DataFrame
    step: np.ndarray
    step_errors: np.ndarray
    distance: float = np.inf
    within: float = np.inf
    missed: float = np.inf
    far: bool = False
    converged: bool = False
    definite: bool = False
    indefinite: bool = False
    unknown: tuple[str, ...] = ()
    weakly_identified: bool = False
    noise: float = np.nan
    r_hat: float = np.nan
    ess: float = np.nan

    @property
    def more(self) -> float:
        """By what the draws are to be multiplied for ``within`` to be 0.2, if ``distance`` stays;
        infinite if no number of draws will do, or nothing is known."""
        left = CONVERGED_WITHIN - self.missed
        return ((self.within - self.missed) / left) ** 2 if left > 0 else np.inf


def nothing_known(design: Design, layout: Layout) -> Certificate:
    """Before anything is measured."""
    names = covariance.parameter_names(design)
    table = pd.DataFrame(np.nan, names, ["step", "std_error", "mcse"])
    together = pd.DataFrame(np.nan, names, names)
    size = local.dimension(layout)
    return Certificate(table, together, np.zeros(size), np.full((size, size), np.nan))


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
        ``[some, coordinates, coordinates]``, the complete data's, at some draws that are far apart.
    estimated
        ``[coordinates, free]``, the directions to judge: the identity less its columns for what is
        fixed or at a boundary.
    """
    score = score.astype(float) @ estimated
    by_draw = estimated.T @ information @ estimated
    complete = by_draw.mean(0)
    draws, chains, free = score.shape
    flat = score.reshape(-1, free)
    observed = complete - np.cov(flat.T).reshape(free, free)
    # Of what is nearly all observed the scores hardly vary, but by rounding.
    varies = np.diag(complete - observed) > MIN_MISSING * np.diag(complete)
    ess, r_hat = diagnose(score[..., varies]) if varies.any() else (float(draws * chains), 1.0)

    # Relative to the complete data's, in directions where that is one.
    known, along = eigen(observed, complete)
    apart = score - flat.mean(0)
    noise = BELIEVED * np.sqrt(_numerics.covariance_of_mean((apart @ along[:, :1]) ** 2).item())
    definite, indefinite = known[0] > max(SINGULAR, noise), known[0] < -noise
    inverse = along / np.maximum(known, max(SINGULAR, noise)) @ along.T
    step = inverse @ flat.mean(0)
    # What each draw adds to the step, to first order: by its score, and by what its score does to
    # Louis' variance, and its information to the mean; these matter the more, the longer the step.
    errors = _numerics.covariance_of_mean(score + apart * (apart @ step)[..., np.newaxis])
    if len(by_draw) > 1:
        errors += np.cov((by_draw @ step).T).reshape(free, free) / len(by_draw)
    names = covariance.parameter_names(design)
    jac = local.jacobian(design, layout, parameters) @ estimated
    error_covariance, step_errors = jac @ inverse @ jac.T, inverse @ errors @ inverse
    table = pd.DataFrame(
        {
            "step": jac @ step,
            "std_error": np.sqrt(np.diag(error_covariance)),
            "mcse": np.sqrt(np.diag(jac @ step_errors @ jac.T)),
        },
        index=names,
    )
    idle = table["std_error"].to_numpy() == 0  # fixed, or at a boundary
    table[idle] = error_covariance[idle] = error_covariance[:, idle] = np.nan
    size = table["step"].abs()
    no_noise = size > ALLOWED * table["mcse"]
    far = no_noise & (size > NEAR * table["std_error"])
    found = Certificate(
        table,
        pd.DataFrame(error_covariance, names, names),
        estimated @ step,
        estimated @ step_errors @ estimated.T,
        far=bool(far.any()),
        definite=bool(definite),
        indefinite=bool(indefinite),
        noise=noise,
        r_hat=r_hat,
        ess=ess,
    )
    if not definite:
        return replace(
            found,
            table=table * np.nan,
            covariance=found.covariance * np.nan,
            unknown=tuple(np.array(names)[shares(along[:, 0], complete, jac)].tolist()),
            weakly_identified=bool(known[0] < noise / 2),
        )
    distance = float((size / table["std_error"]).max())
    log_sds = [p.kind in ("sd", "positive", "cor") for p in covariance.specs(design)]
    bent = BENT * float(np.nan_to_num(table["std_error"][log_sds].max()))
    missed = bent * distance**2 if distance <= NEAR else np.inf
    within = ALLOWED * float((table["mcse"] / table["std_error"]).max()) + missed
    return replace(
        found,
        distance=distance,
        within=within,
        missed=missed,
        far=found.far or (missed > CONVERGED_WITHIN / 2 and bool(no_noise.any())),
        converged=within <= CONVERGED_WITHIN,
    )


def eigen(observed: np.ndarray, complete: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues ``[free]`` of ``complete^-1 observed``, smallest first, and their directions, a
    column each, along which the complete data's information is one.

    An eigenvalue is the share of the information that is left; the same in whatever coordinates, so
    collinear covariates do not make it smaller. Where ``complete`` is not positive definite, as it
    may be far from the maximum, all are minus infinity, and there are no directions.
    """
    try:
        return linalg.eigh(observed, complete)
    except linalg.LinAlgError:
        return np.full(len(complete), -np.inf), np.zeros_like(complete)


def shares(direction: np.ndarray, complete: np.ndarray, jac: np.ndarray) -> np.ndarray:
    """``[parameters]``, which of them have a large share in a direction.

    ``jac`` ``[parameters, free]``. A share is how far the direction moves a parameter, in
    the complete data's standard errors, which is at most one.
    """
    spread = np.einsum("pi,ij,pj->p", jac, np.linalg.pinv(complete), jac)
    share = np.abs(jac @ direction) / np.sqrt(np.where(spread > 0, spread, np.inf))
    return share > SHARE * share.max()


def diagnose(score: np.ndarray) -> tuple[float, float]:
    """Effective sample size and split R-hat of the worst column of ``[draws, chains, columns]``."""
    states = tf.constant((score - score.mean((0, 1))) / score.std((0, 1)))
    with quiet_log():  # TensorFlow warns of a cast inside, from complex to real, that is meant
        ess = tfp.mcmc.effective_sample_size(states, cross_chain_dims=1)
    r_hat = tfp.mcmc.potential_scale_reduction(states, split_chains=True)
    return float(tf.reduce_min(ess)), float(tf.reduce_max(r_hat))
