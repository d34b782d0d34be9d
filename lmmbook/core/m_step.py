"""The M-step: better parameters, given draws of the random effects.

Chapter 04. By gradient, one Adam step up the complete-data log density, as in the TensorFlow
Probability tutorial (`adam_m_step`); or in closed form with location expansion (`em_step`), where
a likelihood that is not Gaussian gets a Newton step for its part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lmmbook.core.model import Data, Tensor, Theta
from lmmbook.families.gaussian import Gaussian

import numpy as np
import tensorflow as tf
import tf_keras

Gain = float | Tensor

SHRINK = 0.25  # the least fraction that an M-step leaves of a variance: EM climbs back slowly
LONGEST_MOVE = 1.0  # of eta (root mean square) or of an auxiliary parameter, in one Newton step
FLAT = 1e-4  # relative curvature below which a direction counts as flat


def gradients_or_raise(
    loss: Tensor, variables: Sequence[tf.Variable], tape: tf.GradientTape
) -> list[Tensor]:
    """Gradients of ``loss``. A variable that receives none would never train: ValueError."""
    gradients = tape.gradient(loss, variables)
    cut = [v.name for v, g in zip(variables, gradients, strict=True) if g is None]
    if cut:
        raise ValueError(
            f"M-step: expected a gradient for every parameter, got None for {cut}; was the joint "
            "distribution built from the variable's value instead of the variable?"
        )
    return gradients


def adam_m_step(
    target_log_prob: Callable[..., Tensor],
    variables: Sequence[tf.Variable],
    learning_rate: float = 0.01,
) -> Callable[[Sequence[Tensor]], None]:
    """A function that makes one Adam step, given effects, a list of ``[chains, levels, columns]``.

    Its gradient is that of ``log p(y, u)``, averaged over the chains: by Fisher's identity an
    unbiased estimate of the gradient of ``log p(y)``, if u are draws from ``p(u | y)``.
    """
    optimizer = tf_keras.optimizers.Adam(learning_rate)
    optimizer.build(variables)

    def m_step(effects: Sequence[Tensor]) -> None:
        with tf.GradientTape() as tape:
            loss = -tf.reduce_mean(target_log_prob(*effects))
        gradients = gradients_or_raise(loss, variables, tape)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))

    return m_step


def em_step(
    data: Data,
    theta: Theta,
    u: Sequence[Tensor],
    eta: Tensor,
    gain: Gain = 1.0,
    expand: bool = True,
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
        variance = tf.exp(2.0 * theta.log_sigma[k])
        goal = tf.reduce_mean(tf.square(u_k))
        if expand and data.freed[k].fixed:
            W = data.freed[k].weights.astype(np.float32)  # [levels, freed]
            a, square = free_mean(W, u_k)
            goal -= square
            place = np.eye(theta.beta.shape[0], dtype=np.float32)[list(data.freed[k].fixed)]
            beta += gain * tf.linalg.matvec(place, a, transpose_a=True)
            u_k -= gain * tf.linalg.matvec(W, a)[:, tf.newaxis]
        new = variance + gain * (tf.maximum(goal, SHRINK * variance) - variance)
        log_sigma.append(0.5 * tf.math.log(new))
        moved.append(u_k)
    return Theta(beta, tf.stack(log_sigma), auxiliary), moved


def free_mean(W: np.ndarray, u: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients a ``[freed]`` of the mean ``W a`` of effects, and the mean square of ``W a``.

    Least squares of ``u`` on ``W`` ``[levels, freed]``, a column of ones for an intercept. The
    square of a noisy mean is too large by the noise's variance, and would pull a small sigma to
    zero. Means of the two halves of the chains err independently: so take their product.
    """
    levels, chains = u.shape
    half = chains // 2
    solve = np.linalg.pinv(W)  # [freed, levels]
    a, b = (
        tf.linalg.matvec(solve, tf.reduce_mean(part, axis=1)) for part in (u[:, :half], u[:, half:])
    )
    square = tf.reduce_sum(tf.linalg.matvec(W, a) * tf.linalg.matvec(W, b)) / levels
    return (half * a + (chains - half) * b) / chains, square


def least_squares(data: Data, theta: Theta, eta: Tensor, gain: Gain) -> tuple[Tensor, Tensor]:
    """Change of beta ``[fixed]``, and the new log sd of the residual ``[1]``: Gaussian ratings.

    Regress what eta leaves of them, averaged over the chains; the mean square is what that leaves.
    """
    left = data.y - eta  # [rows, chains]
    change = tf.linalg.lstsq(data.X, tf.reduce_mean(left, axis=1, keepdims=True))  # [fixed, 1]
    if not data.family.estimated:
        return gain * change[:, 0], theta.auxiliary
    old = tf.exp(2.0 * theta.auxiliary)
    goal = tf.reduce_mean(tf.square(left - data.X @ change))
    new = old + gain * (tf.maximum(goal, SHRINK * old) - old)
    return gain * change[:, 0], 0.5 * tf.math.log(new)


def newton(data: Data, theta: Theta, eta: Tensor, gain: Gain) -> tuple[Tensor, Tensor]:
    """The same for any likelihood: one damped Newton step, by automatic differentiation.

    EM does not need the M-step's maximum, only a better place (generalised EM: Dempster, Laird &
    Rubin 1977). Where the curvature is not that of a hill its size is taken: uphill all the same.
    """
    fixed, chains = data.X.shape[1], eta.shape[1]

    def log_likelihood(delta: Tensor) -> Tensor:
        moved = eta + tf.linalg.matvec(data.X, delta[:fixed])[:, tf.newaxis]
        rows = data.log_density(moved, theta.auxiliary + delta[fixed:])
        return tf.reduce_sum(rows) / chains

    gradient, hessian = gradient_and_hessian(log_likelihood, fixed + theta.auxiliary.shape[0])
    unit = tf.math.rsqrt(tf.maximum(tf.abs(tf.linalg.diag_part(hessian)), 1e-6))
    values, vectors = tf.linalg.eigh(-hessian * unit * unit[:, tf.newaxis])
    score = tf.linalg.matvec(vectors, unit * gradient, transpose_a=True)
    step = unit * tf.linalg.matvec(vectors, score / tf.maximum(tf.abs(values), FLAT))
    of_eta = tf.sqrt(tf.reduce_mean(tf.square(tf.linalg.matvec(data.X, step[:fixed]))))
    furthest = tf.reduce_max(tf.concat([of_eta[tf.newaxis], tf.abs(step[fixed:])], axis=0))
    step *= gain / tf.maximum(furthest / LONGEST_MOVE, 1.0)
    return step[:fixed], theta.auxiliary + step[fixed:]


def gradient_and_hessian(function: Callable[[Tensor], Tensor], size: int) -> tuple[Tensor, Tensor]:
    """Gradient ``[size]`` and Hessian ``[size, size]`` of a scalar function, at zero.

    Examples
    --------
    >>> gradient, hessian = gradient_and_hessian(lambda x: 3.0 * x[0] + x[0] * x[1], 2)
    >>> gradient.numpy().tolist(), hessian.numpy().tolist()
    ([3.0, 0.0], [[0.0, 1.0], [1.0, 0.0]])
    """
    at = tf.zeros([size])
    with tf.GradientTape(persistent=True) as outer:
        outer.watch(at)
        with tf.GradientTape() as inner:
            inner.watch(at)
            value = function(at)
        gradient = inner.gradient(value, at)
        entries = tf.unstack(gradient)
    rows = [outer.gradient(g, at, unconnected_gradients="zero") for g in entries]
    return gradient, tf.stack(rows)
