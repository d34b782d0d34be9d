"""The certificate: how far is the maximum, and how well is that known?

Chapter 04. Freeze theta and draw u from p(u | y, theta). With s the gradient and J the negative
Hessian of the complete-data log density log p(y, u | theta), the marginal log-likelihood has

    the gradient          E[s]            (Fisher's identity)
    the negative Hessian  E[J] - Var[s]   (Louis 1982), the observed information I

So I^-1 E[s] is a Newton step to the maximum, and I^-1 has the squared standard errors. It does not
matter how theta was found, nor what the likelihood is. Coordinates: beta, log sigma, auxiliary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lmmbook.core.m_step import gradient_and_hessian
from lmmbook.core.model import Data, Theta
from lmmbook.formula.covariance import parameter_names
from lmmbook.formula.design import Design
from lmmbook.formula.invariances.coordinates import on_their_scales

import numpy as np
import pandas as pd
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import linalg

CLOSE = 0.2  # standard errors from the maximum, Monte Carlo error included: converged
LEAST_SHARE = 0.01  # of observed in complete information, in any direction, to build on
BATCHES = 5  # of each chain, for Monte Carlo standard errors


class Parametrisation(NamedTuple):
    """What of the effects is held fixed while theta moves: ``(u + C beta) / sigma^a``.

    With C = 0 and a = 0 that is u, the model as written. Both identities hold for any C and a, but
    the noise is least where the complete data know least (Papaspiliopoulos, Roberts & Skold 2007).
    """

    C: list[
        tf.Tensor
    ]  # [levels, fixed] a factor; 0: beta in the likelihood, W: effects centre on it
    a: tf.Tensor  # [factors]; 0: sigma in the prior (centred), 1: in the likelihood (non-centred)


def least_information(data: Data, theta: Theta, curvature: list[tf.Tensor]) -> Parametrisation:
    """The parametrisation in which the complete data know least.

    Put a share h of a parameter where its information is A, the rest where it is B: they know
    ``h^2 A + (1 - h)^2 B``, least at ``h = B / (A + B)``. ``curvature`` as from `curvatures`.
    """
    told = [float(tf.reduce_sum(c)) for c in curvature]  # of eta, by all rows
    sigma = np.exp(theta.log_sigma.numpy())
    C = [np.zeros([levels, len(theta.beta)], np.float32) for levels in data.levels]
    for c, x in enumerate(data.X.numpy().T):
        likelihood = told[0] * np.mean(x**2)
        homes = [
            (np.sum(w**2) / sigma[k] ** 2, k, w)  # what effects know of their mean W beta
            for k, freed in enumerate(data.freed)
            for position, w in zip(freed.fixed, freed.weights.T, strict=True)
            if position == c
        ]
        if homes:
            prior, k, w = min(homes, key=lambda home: home[0])
            C[k][:, c] = likelihood / (prior + likelihood) * w
    prior = 2.0 * np.array(data.levels)
    a = prior / (prior + sigma**2 * told)
    return Parametrisation([tf.constant(c) for c in C], tf.constant(a, tf.float32))


def score_and_information(
    data: Data, theta: Theta, u: Sequence[tf.Tensor], held: Parametrisation
) -> tuple[tf.Tensor, tf.Tensor]:
    """s of each chain's draw, ``[chains, coordinates]``, and the mean J over the chains.

    By automatic differentiation, one draw after another, of the log density written below.
    """
    fixed = data.offset + tf.linalg.matvec(data.X, theta.beta)[:, tf.newaxis]  # [rows, 1]
    X_left = data.X - tf.add_n([data.rows_of(k, C) for k, C in enumerate(held.C)])
    sizes = [x.shape[0] for x in theta]

    def of_one_draw(u: list[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:  # [levels] a factor
        Zu = [data.rows_of(k, u_k)[:, tf.newaxis] for k, u_k in enumerate(u)]

        def complete_log_density(delta: tf.Tensor) -> tf.Tensor:
            beta, log_sigma, auxiliary = tf.split(delta, sizes)  # changes of theta
            stretch = tf.unstack(tf.exp(held.a * log_sigma))
            eta = fixed + tf.linalg.matvec(X_left, beta)[:, tf.newaxis]
            eta += tf.add_n([by * Zu_k for by, Zu_k in zip(stretch, Zu, strict=True)])
            total = tf.reduce_sum(data.log_density(eta, theta.auxiliary + auxiliary))
            sigma = tf.unstack(tf.exp(theta.log_sigma + log_sigma))
            for by, u_k, C, sd in zip(stretch, u, held.C, sigma, strict=True):
                moved = by * u_k - tf.linalg.matvec(C, beta)
                # The density of what is held fixed: log(by) is the Jacobian.
                total += tf.reduce_sum(tfp.distributions.Normal(0.0, sd).log_prob(moved))
                total += u_k.shape[0] * tf.math.log(by)
            return total

        gradient, hessian = gradient_and_hessian(complete_log_density, sum(sizes))
        return gradient, -hessian

    by_chain = [tf.transpose(u_k) for u_k in u]
    score, J = tf.map_fn(of_one_draw, by_chain, fn_output_signature=(tf.float32, tf.float32))
    return score, tf.reduce_mean(J, axis=0)


class Certificate(NamedTuple):
    """What is known of the maximum from where theta is."""

    table: pd.DataFrame  # step, std_error, mcse of the step; an sd's are those of its logarithm
    distance: float  # the largest |step| / std_error; infinite if the information is not definite
    converged: bool  # whether every |step| + 2 mcse is at most 0.2 std_error
    step: np.ndarray  # [coordinates], to the maximum


def certify(design: Design, theta: Theta, score: np.ndarray, J: np.ndarray) -> Certificate:
    """Judge ``theta`` by ``score`` ``[draws, chains, coordinates]`` and mean J at its draws."""
    names, size = parameter_names(design), J.shape[0]
    free = size if design.family.estimated else size - design.family.auxiliary
    s, J = score[..., :free].astype(float), J[:free, :free].astype(float)
    mean = s.mean((0, 1))
    apart = s - mean
    observed = J - np.cov(apart.reshape(-1, free).T)
    ess = tfp.mcmc.effective_sample_size(tf.constant(apart), cross_chain_dims=1)
    least = max(LEAST_SHARE, 3 * np.sqrt(2 / float(tf.reduce_min(ess))))  # above its own noise
    hill = np.linalg.eigvalsh(J)[0] > 0
    if not (hill and linalg.eigh(observed, J, eigvals_only=True)[0] > least):
        unknown = pd.DataFrame(np.nan, names, ["step", "std_error", "mcse"])
        return Certificate(unknown, np.inf, False, np.zeros(size))
    inverse = np.linalg.inv(observed)
    step = inverse @ mean
    # To first order, what each draw adds to the step: by its score, and by Louis' variance.
    added = s + apart * (apart @ step)[..., np.newaxis]
    whole = added[: len(s) // BATCHES * BATCHES]
    batches = whole.reshape(BATCHES, -1, s.shape[1], free).mean(1).reshape(-1, free)
    noise = np.cov(batches.T) / len(batches)
    D = jacobian(design, theta)[:, :free]
    table = pd.DataFrame({"step": D @ step}, names)
    table["std_error"] = np.sqrt(np.diag(D @ inverse @ D.T))
    table["mcse"] = np.sqrt(np.diag(D @ inverse @ noise @ inverse @ D.T))
    table = table.where(table["std_error"] > 0)  # NaN for an sd that is fixed
    away = table["step"].abs() / table["std_error"]
    reach = away + 2 * table["mcse"] / table["std_error"]
    full = np.pad(step, (0, size - free))
    return Certificate(table, float(away.max()), bool(reach.max() <= CLOSE), full)


def jacobian(design: Design, theta: Theta) -> np.ndarray:
    """Reported parameters, sds as logarithms, by coordinates: ``[parameters, coordinates]``."""
    at = np.concatenate([np.asarray(x, float) for x in theta])
    cuts = np.cumsum([len(x) for x in theta])[:2]

    def reported(point: np.ndarray) -> np.ndarray:
        beta, log_sigma, auxiliary = np.split(point, cuts)
        matrices = [np.exp(2 * x).reshape(1, 1) for x in log_sigma]
        return on_their_scales(design, beta, matrices, auxiliary)

    h = 1e-4 * np.eye(len(at))
    return np.stack([(reported(at + e) - reported(at - e)) / 2e-4 for e in h], axis=1)
