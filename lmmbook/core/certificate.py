"""The certificate: how far is the maximum, and how well is that known?

Chapter 04. Freeze theta and draw u from p(u | y, theta). With s the gradient and J the negative
Hessian of the complete data's log density, log p(y, u | theta), the marginal log-likelihood has

    the gradient          E[s]            (Fisher's identity)
    the negative Hessian  E[J] - Var[s]   (Louis 1982): I, the observed information

So I^-1 E[s] is a Newton step to the maximum, and I^-1 holds the squared standard errors: for any
likelihood, and however theta was found. Coordinates are beta, log sigma and auxiliary, in a row.
"""

from __future__ import annotations

from typing import NamedTuple

from lmmbook.core.m_step import gradient_and_hessian
from lmmbook.core.model import Data, Effects, LogProb, Tensor, Theta, parameters_of
from lmmbook.formula.design import Design

import numpy as np
import pandas as pd
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import linalg

CONVERGED_WITHIN = 0.2  # standard errors from the maximum, Monte Carlo error included: converged


class Parametrisation(NamedTuple):
    """What stays while theta moves: ``(u + C (beta - beta_0)) / sigma^a``. Zeros: u itself.

    Both identities hold for all C and a. A C of ones centres effects on the intercept (centred
    parametrisation); an a of 1 makes sigma scale standard normal ones (non-centred).
    """

    C: list[Tensor]  # [levels, fixed] a factor
    a: Tensor  # [factors]


def least_information(data: Data, theta: Theta, curvature: list[Tensor]) -> Parametrisation:
    """The parametrisation in which the complete data know least, so that the noise is least.

    With a share h of a parameter in the prior, of which that knows A, and the rest in the
    likelihood, which knows B, it is ``h^2 A + (1 - h)^2 B``: least for ``h = B / (A + B)``
    (partially non-centred: Papaspiliopoulos, Roberts & Sköld 2003). For ``curvature`` see `e_step`.
    """
    information = np.array([np.sum(c) for c in curvature])  # of all rows, about their common level
    variance = np.exp(2 * theta.log_sigma.numpy())
    A = np.stack([(W**2).sum(0) / v for W, v in zip(data.W, variance, strict=True)])
    A[A == 0] = np.inf  # effects that have no such mean
    B = information[0] * np.mean(data.X.numpy() ** 2, axis=0)
    share = np.where(A.min(0) == A, B / (A + B), 0.0)  # in one factor, if in any
    C = [tf.constant(W * h, tf.float32) for W, h in zip(data.W, share, strict=True)]
    prior = 2.0 * np.array(data.levels)  # its information about log sigma
    return Parametrisation(C, tf.constant(prior / (prior + variance * information), tf.float32))


def complete_log_density(data: Data, theta: Theta, u: Effects, held: Parametrisation) -> LogProb:
    """``log p(y, u | theta + change)`` of one draw, ``[levels]`` a factor, of a change of theta."""
    Zu = [data.to_rows(k, u_k)[:, tf.newaxis] for k, u_k in enumerate(u)]
    start = data.offset + data.X @ theta.beta[:, tf.newaxis]
    X = data.X - sum(data.to_rows(k, C) for k, C in enumerate(held.C))

    def at(change: Tensor) -> Tensor:
        sizes = [x.shape[0] for x in theta]
        beta, log_sigma, auxiliary = tf.split(change, sizes)
        by = tf.exp(held.a * log_sigma)  # what u is multiplied by
        eta = start + X @ beta[:, tf.newaxis]
        eta += sum(by[k] * Zu_k for k, Zu_k in enumerate(Zu))
        rows = data.log_density(eta, theta.auxiliary + auxiliary)
        total = tf.reduce_sum(rows)
        sigma = tf.exp(theta.log_sigma + log_sigma)
        for k, u_k in enumerate(u):
            prior = tfp.distributions.Normal(0.0, sigma[k])
            moved = by[k] * u_k - tf.linalg.matvec(held.C[k], beta)
            # log(by) is the Jacobian: the density is that of what stays.
            total += tf.reduce_sum(prior.log_prob(moved) + held.a[k] * log_sigma[k])
        return total

    return at


def score_and_information(
    data: Data, theta: Theta, u: Effects, held: Parametrisation
) -> tuple[Tensor, Tensor]:
    """s of each chain's draw ``[chains, coordinates]``, and the mean of their J."""

    def of_one_draw(u: Effects) -> tuple[Tensor, Tensor]:  # each [levels]
        target = complete_log_density(data, theta, u, held)
        gradient, hessian = gradient_and_hessian(target, sum(x.shape[0] for x in theta))
        return gradient, -hessian

    by_chain = [tf.transpose(u_k) for u_k in u]
    score, J = tf.map_fn(of_one_draw, by_chain, fn_output_signature=(tf.float32, tf.float32))
    return score, tf.reduce_mean(J, axis=0)


class Certificate(NamedTuple):
    """What is known of the maximum from where theta is."""

    table: pd.DataFrame  # estimate, step, mcse of the step, std_error; an sd's are of its logarithm
    distance: float  # the largest |step| / std_error; infinite if I is not known to be definite
    within: float  # and of the point after the step: 2.5 mcse, and what a Newton step misses
    converged: bool  # whether that is at most CONVERGED_WITHIN
    step: np.ndarray  # [coordinates], to the maximum


def certify(design: Design, theta: Theta, score: np.ndarray, J: np.ndarray) -> Certificate:
    """Judge theta by ``score`` ``[draws, chains, coordinates]`` and the mean J of draws at it."""
    size, values = len(J), pd.Series(parameters_of(design, theta))
    free = size if design.family.estimated else size - design.family.auxiliary
    table = pd.DataFrame({"estimate": values}, columns=["estimate", "step", "mcse", "std_error"])
    s, J = score[..., :free].astype(float), J[:free, :free].astype(float)
    mean, apart = s.mean((0, 1)), s - s.mean((0, 1))
    I = J - np.cov(apart.reshape(-1, free).T)  # noqa: E741
    share, V = linalg.eigh(I, J if np.linalg.eigvalsh(J)[0] > 0 else None)
    lost = batch_means((apart @ V[:, :1]) ** 2)  # along V[:, 0] least is left of J: 1 - lost
    if not share[0] > max(0.01, 3 * lost.std(ddof=1) / len(lost) ** 0.5):
        return Certificate(table, np.inf, np.inf, False, np.zeros(size))
    step = np.pad(np.linalg.solve(I, mean), (0, size - free))
    # What each draw adds to the step, to first order: by its score, and by Louis' variance.
    added = batch_means(s + apart * (apart @ step[:free])[..., np.newaxis])
    D = jacobian(design, theta)[:, :free] @ np.linalg.inv(I)
    table["step"] = D @ mean
    table["mcse"] = np.sqrt(np.diag(D @ np.cov(added.T) @ D.T) / len(added))
    table["std_error"] = np.sqrt(np.diag(D @ I @ D.T))
    away = float((table["step"].abs() / table["std_error"]).max())  # NaN where sd is fixed
    missed = 3 * table["std_error"].filter(like="sd(").max() * away**2 if away < 0.3 else np.inf
    within = float(2.5 * (table["mcse"] / table["std_error"]).max() + missed)
    return Certificate(table, away, within, within <= CONVERGED_WITHIN, step)


def batch_means(x: np.ndarray) -> np.ndarray:
    """Means of batches, five a chain, ``[batches, n]``, of draws ``[draws, chains, n]``."""
    return np.concatenate([batch.mean(0) for batch in np.array_split(x, 5)])


def jacobian(design: Design, theta: Theta) -> np.ndarray:
    """Reported parameters, sds as logarithms, by coordinates: ``[parameters, coordinates]``."""
    at, cuts = np.concatenate(theta), np.cumsum([len(x) for x in theta])[:2]

    def reported(x: np.ndarray) -> np.ndarray:
        values = parameters_of(design, Theta(*np.split(x, cuts))).items()
        return np.array([np.log(v) if name.startswith("sd(") else v for name, v in values])

    return np.stack([reported(at + h) - reported(at - h) for h in 1e-4 * np.eye(len(at))], 1) / 2e-4
