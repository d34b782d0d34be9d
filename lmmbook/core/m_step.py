"""The M-step: better parameters, given draws of the random effects.

Chapter 04. An Adam step, as in the TensorFlow Probability tutorial (`adam_m_step`); or EM's, with
location expansion (`em_step`): a regression, or `newton` if ratings are not Gaussian (chapter 06).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lmmbook.core.model import Data, Effects, LogProb, Tensor, Theta
from lmmbook.families.gaussian import Gaussian

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras

SHRINK = 0.25  # the least fraction that an M-step leaves of a variance: EM climbs back slowly
FLAT = 1e-4  # relative curvature below which a direction counts as flat


def gradients_or_raise(
    loss: Tensor, variables: Sequence[tf.Variable], tape: tf.GradientTape
) -> list[Tensor]:
    """Gradients of ``loss``. A variable that receives none would never train: ValueError."""
    gradients = tape.gradient(loss, variables)
    cut = [v.name for v, g in zip(variables, gradients, strict=True) if g is None]
    if cut:
        raise ValueError(
            "M-step: expected a gradient for every parameter, got "
            f"None for {cut}; was the joint distribution built from "
            "the variable's value instead of the variable?"
        )
    return gradients


def adam_m_step(
    target_log_prob: LogProb, variables: Sequence[tf.Variable], learning_rate: float = 0.01
) -> Callable[[Effects], None]:
    """A function that makes one Adam step, given effects, a list of ``[chains, levels, columns]``.

    By Fisher's identity its gradient is that of ``log p(y)``, unbiased, if u ~ ``p(u | y)``.
    """
    optimizer = tf_keras.optimizers.Adam(learning_rate)
    optimizer.build(variables)

    def m_step(effects: Effects) -> None:
        with tf.GradientTape() as tape:
            loss = -tf.reduce_mean(target_log_prob(*effects))
        gradients = gradients_or_raise(loss, variables, tape)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))

    return m_step


def em_step(
    data: Data, theta: Theta, u: Effects, eta: Tensor, gain: float = 1.0, expand: bool = True
) -> tuple[Theta, list[Tensor]]:
    """New parameters, and effects whose means have been folded into the fixed effects.

    With ``expand``, PX-EM (Liu, Rubin & Wu 1998): during the M-step each factor's effects may have
    a mean ``W a``, which is then folded away, ``beta += a`` and ``u -= W a``. No eta changes.
    ``gain`` is how far to go: 1 is EM, less is stochastic approximation (SAEM: Delyon, Lavielle &
    Moulines 1999). ``u`` is ``[levels, chains]`` a factor, and ``eta`` belongs to it.
    """
    regression = least_squares if isinstance(data.family, Gaussian) else newton
    change, auxiliary = regression(data, theta, eta, gain)
    beta, moved, log_sigma = theta.beta + change, [], []
    for k, u_k in enumerate(u):
        goal = tf.reduce_mean(tf.square(u_k))
        if expand:
            a, square = free_mean(data.W[k], u_k)
            goal, beta = goal - square, beta + gain * a
            u_k -= gain * tf.linalg.matvec(data.W[k], a)[:, tf.newaxis]
        log_sigma.append(towards(goal, theta.log_sigma[k], gain))
        moved.append(u_k)
    return Theta(beta, tf.stack(log_sigma), auxiliary), moved


def towards(variance: Tensor, log_sigma: Tensor, gain: float) -> Tensor:
    """The new log sd, where ``variance`` is the goal: an average of variances, not of sds."""
    old = tf.exp(2.0 * log_sigma)
    return 0.5 * tf.math.log(old + gain * (tf.maximum(variance, SHRINK * old) - old))


def free_mean(W: np.ndarray, u: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients a ``[fixed]`` of the mean ``W a`` of effects, and the mean of its square.

    The square of a noisy mean is too large by the noise's variance, and would pull a small sigma
    to zero. Means of two halves of the chains err independently: so take their product.
    """
    half, chains = u.shape[1] // 2, u.shape[1]
    means = tf.stack([tf.reduce_mean(u[:, :half], 1), tf.reduce_mean(u[:, half:], 1)], axis=1)
    a = np.linalg.pinv(W) @ means  # [fixed, halves]; zero where W is
    square = tf.reduce_mean(tf.reduce_prod(W @ a, axis=1))
    return tf.linalg.matvec(a, [half / chains, 1.0 - half / chains]), square


def least_squares(data: Data, theta: Theta, eta: Tensor, gain: float) -> tuple[Tensor, Tensor]:
    """For Gaussian ratings, a regression: change of beta, and new log sd(residual), ``[1]``."""
    residual = data.y - eta  # [rows, chains]
    mean = tf.reduce_mean(residual, axis=1, keepdims=True)
    change = tf.linalg.lstsq(data.X, mean)  # [fixed, 1]
    if not data.family.estimated:
        return gain * change[:, 0], theta.auxiliary
    variance = tf.reduce_mean(tf.square(residual - data.X @ change))
    return gain * change[:, 0], towards(variance, theta.auxiliary, gain)


def newton(data: Data, theta: Theta, eta: Tensor, gain: float) -> tuple[Tensor, Tensor]:
    """For any likelihood, one Newton step, or part of it: change of beta, and new ``auxiliary``.

    EM needs no maximum, only a better place (generalised EM: Dempster, Laird & Rubin 1977).
    """
    fixed = data.X.shape[1]

    def log_likelihood(change: Tensor) -> Tensor:
        moved = eta + tf.linalg.matvec(data.X, change[:fixed])[:, tf.newaxis]
        return tf.reduce_sum(data.log_density(moved, theta.auxiliary + change[fixed:]))

    size = fixed + theta.auxiliary.shape[0]
    step = uphill(*gradient_and_hessian(log_likelihood, size))
    of_eta = tf.norm(tf.linalg.matvec(data.X, step[:fixed])) / np.sqrt(data.X.shape[0])
    step *= gain / tf.reduce_max([1.0, of_eta, *tf.unstack(tf.abs(step[fixed:]))])
    return step[:fixed], theta.auxiliary + step[fixed:]


def uphill(gradient: Tensor, hessian: Tensor) -> Tensor:
    """A Newton step. Where the curvature is not that of a hill, its size is taken: up it goes."""
    scale = tf.math.rsqrt(tf.maximum(tf.abs(tf.linalg.diag_part(hessian)), 1e-6))
    values, vectors = tf.linalg.eigh(hessian * scale * scale[:, tf.newaxis])
    score = tf.linalg.matvec(vectors, scale * gradient, transpose_a=True)
    return scale * tf.linalg.matvec(vectors, score / tf.maximum(tf.abs(values), FLAT))


def gradient_and_hessian(function: LogProb, size: int) -> tuple[Tensor, Tensor]:
    """Gradient ``[size]`` and Hessian ``[size, size]`` of a scalar function, at zero."""
    at = tf.zeros([size])
    with tf.GradientTape(persistent=True) as outer:
        outer.watch(at)
        entries = tf.unstack(tfp.math.value_and_gradient(function, at)[1])
    rows = [outer.gradient(g, at, unconnected_gradients="zero") for g in entries]
    return tf.stack(entries), tf.stack(rows)
