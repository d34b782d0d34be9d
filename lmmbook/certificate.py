"""The certificate: how far from the maximum are these parameters, and how well is that known?

Chapter 04. At frozen parameters, from draws of independent chains, Fisher's identity gives the
score of the marginal likelihood and Louis' the observed information (`complete_data`). Their
Newton step is the distance to the maximum, in units of the information's standard errors. It does
not matter how the parameters were found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lmmbook import complete_data, covariance
from lmmbook._quiet import quiet_log
from lmmbook.arrays import Arrays, Layout, Parameters
from lmmbook.formula import Design

import numpy as np
import pandas as pd
import tensorflow as tf
import tensorflow_probability as tfp

CLOSE = (
    0.2  # converged: the maximum is within this many standard errors, Monte Carlo error included
)
SINGULAR = 0.03  # smallest eigenvalue of observed / complete information that we build on
ENOUGH = 0.1  # of the complete information; with so much left, a home is good
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
    distance
        The largest \\|step\\| / std_error; infinite if the information is not definite.
    converged
        Whether every \\|step\\| + 2 mcse is at most 0.2 std_error.
    definite
        Whether the smallest eigenvalue of the observed information, relative to the complete
        data's, is safely positive. If not, no Newton step can be trusted.
    r_hat, ess
        Split R-hat and effective sample size of the worst of the scores.
    step
        The Newton step in local coordinates (`complete_data`), zeros where there is none.
    """

    table: pd.DataFrame
    distance: float
    converged: bool
    definite: bool
    r_hat: float
    ess: float
    step: np.ndarray


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
    ess, r_hat = diagnose(score)

    # Both are estimates: the fewer draws, the larger the eigenvalue has to be to be believed.
    # Far from the maximum even the complete data's may be negative.
    own, smallest = np.diag(complete), -np.inf
    if own.min() > 0:
        smallest = np.linalg.eigvalsh(observed / np.sqrt(np.outer(own, own))).min()
    definite = bool(smallest > max(SINGULAR, 2 * np.sqrt(2 / ess)))
    names = covariance.parameter_names(design)
    if not definite:
        table = pd.DataFrame(np.nan, names, ["step", "std_error", "mcse"])
        zero = np.zeros(len(estimated))
        return Certificate(table, np.inf, False, False, r_hat, ess, zero)

    inverse = np.linalg.inv(observed)
    step = inverse @ flat.mean(0)
    size = draws // BATCHES
    batches = score[: size * BATCHES].reshape(BATCHES, size, chains, free).mean(1)
    noise = np.cov(batches.reshape(-1, free).T).reshape(free, free) / (BATCHES * chains)
    to_reported = jacobian(design, layout, parameters) @ estimated
    table = pd.DataFrame(
        {
            "step": to_reported @ step,
            "std_error": np.sqrt(np.diag(to_reported @ inverse @ to_reported.T)),
            "mcse": np.sqrt(np.diag(to_reported @ inverse @ noise @ inverse @ to_reported.T)),
        },
        index=names,
    )
    table[table["std_error"] == 0] = np.nan  # fixed, or at a boundary
    relative = table["step"].abs() / table["std_error"]
    reach = (table["step"].abs() + 2 * table["mcse"]) / table["std_error"]
    return Certificate(
        table, float(relative.max()), bool(reach.max() <= CLOSE), True, r_hat, ess, estimated @ step
    )


def diagnose(score: np.ndarray) -> tuple[float, float]:
    """Effective sample size and split R-hat of the worst column of ``[draws, chains, columns]``."""
    states = tf.constant((score - score.mean((0, 1))) / score.std((0, 1)))
    with quiet_log():  # TensorFlow warns of a cast inside, from complex to real, that is meant
        ess = tfp.mcmc.effective_sample_size(states, cross_chain_dims=1)
    r_hat = tfp.mcmc.potential_scale_reduction(states, split_chains=True)
    return float(tf.reduce_min(ess)), float(tf.reduce_max(r_hat))


def choose_homes(
    layout: Layout, arrays: Arrays, parameters: Parameters
) -> complete_data.Home:  # fmt: skip
    """For each parameter the home where the complete data know least about it."""
    variance = float(parameters.residual_sd) ** 2
    least = np.diag(arrays.gram) / variance
    owner = np.full(layout.fixed, -1)
    standardised = []
    for k, (of, scale) in enumerate(zip(layout.factors, parameters.scales, strict=True)):
        lower = np.asarray(scale, float)
        # What an average level's ratings tell about its standardised effects, in units of what the
        # prior does. From it, what is left of the complete information, roughly, in either home.
        cross = np.asarray(arrays.factors[k].cross, float).mean(0)
        told = np.maximum(np.linalg.eigvalsh(lower.T @ cross @ lower) / variance, 0.0)
        left_prior = np.square(told / (1 + told)).min()
        left_likelihood = (2 * told / np.square(1 + told)).min()
        # Standardising costs as much as all else that is measured: only where it is needed.
        standardised.append(bool(left_prior < min(ENOUGH, left_likelihood)))
        if standardised[-1]:
            continue
        precision = np.linalg.inv(lower @ lower.T)
        weights = np.asarray(arrays.factors[k].weights, float)
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


def jacobian(design: Design, layout: Layout, parameters: Parameters) -> np.ndarray:
    """``[parameters, coordinates]``: reported parameters (sds as logs, correlations as Fisher's z)
    by local coordinates, by central differences."""
    begins = complete_data.offsets(layout)
    size, h = begins[-1] + 1, 1e-4
    columns = []
    for i in range(size):
        up, down = (
            _reported(design, move(layout, parameters, sign * h * np.eye(size)[i]))
            for sign in (1, -1)
        )
        columns.append((up - down) / (2 * h))
    return np.array(columns).T


def move(
    layout: Layout, parameters: Parameters, step: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray], float]:
    """``(beta, covariances, residual sd)`` after a step in local coordinates, in float64.

    A covariance becomes ``scale exp(omega) scale'``, to first order ``scale (I + omega) scale'``,
    and positive definite however long the step.
    """
    begins = complete_data.offsets(layout)
    covariances = []
    for k, (of, scale) in enumerate(zip(layout.factors, parameters.scales, strict=True)):
        omega = np.tensordot(step[begins[k] : begins[k + 1]], complete_data.basis(of), 1)
        values, vectors = np.linalg.eigh(omega)
        root = np.asarray(scale, float) @ vectors * np.exp(values / 2)
        covariances.append(root @ root.T)
    beta = np.asarray(parameters.beta, float) + step[: layout.fixed]
    return beta, covariances, float(parameters.residual_sd) * float(np.exp(step[-1]))


def _reported(design: Design, moved: tuple[np.ndarray, list[np.ndarray], float]) -> np.ndarray:
    return np.array(
        [scale_of(name)(value) for name, value in covariance.name_values(design, *moved).items()]
    )


def scale_of(name: str) -> Callable[[float], float]:
    """The scale on which a parameter's errors are given: log for an sd, Fisher's z for a cor."""
    if name.startswith("sd("):
        return np.log
    return np.arctanh if name.startswith("cor(") else float
