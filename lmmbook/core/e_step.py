"""The E-step: Hamiltonian Monte Carlo over the random effects, at fixed parameters.

Chapter 03. It draws from their conditional distribution with several independent chains side by
side: all effects jointly (`run`), or, much faster, a factor's levels as a batch (`sweep`).
"""

from __future__ import annotations

from lmmbook._tensorflow import randomness
from lmmbook._tensorflow.processes import check_not_forked
from lmmbook.core.model import Data, Effects, LogProb, Tensor, Theta
from lmmbook.families.gaussian import Gaussian
from lmmbook.formula.invariances.directions import GroupMove

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

TARGET_ACCEPTANCE = 0.8  # between the 0.65 that is best in theory and the safety of small steps
LEAPFROG_STEPS = 2  # together a quarter turn: a normal's start is forgotten


def run(
    target_log_prob: LogProb, effects: Effects, scales: Effects, step_size: Tensor,
    num_leapfrog_steps: int, num_steps: int, seed: Tensor,
) -> tuple[list[Tensor], Tensor]:  # fmt: skip
    """Take ``num_steps`` HMC transitions of all effects jointly, ``[chains, levels, columns]``.

    A leapfrog step of a level is ``step_size * scale``, jittered. Returns the last draws, and the
    mean acceptance probability. The kernel is bootstrapped on every call: it stores a log density
    and its gradient, and after an M-step the old ones belong to the old parameters.
    """
    check_not_forked("e_step.run")
    seeds = randomness.split_seed(seed)
    step = step_size * randomness.uniform([], 0.8, 1.2, seed=seeds[0])
    hmc = tfp.mcmc.HamiltonianMonteCarlo(
        target_log_prob, [step * scale for scale in scales], num_leapfrog_steps
    )
    with randomness.fast_random():
        draws, log_ratio = tfp.mcmc.sample_chain(
            num_steps, effects, kernel=hmc, trace_fn=lambda _, r: r.log_accept_ratio, seed=seeds[1]
        )
    return [u[-1] for u in draws], acceptance(log_ratio)


def acceptance(log_ratio: Tensor) -> Tensor:
    """The mean probability ``min(1, exp(log_ratio))`` with which proposals are accepted."""
    return tf.reduce_mean(tf.exp(tf.minimum(log_ratio, 0.0)))


def adapt_step_size(step_size: Tensor, accepted: Tensor, gain: float) -> Tensor:
    """Robbins-Monro: lengthen the step when more than the target is accepted, else shorten it."""
    return step_size * tf.exp(gain * (accepted - TARGET_ACCEPTANCE))


def sweep(
    data: Data, theta: Theta, u: Effects, eta: Tensor, curvature: list[Tensor], seed: Tensor
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Update every factor once by HMC, then draw along every direction that no rating sees.

    ``curvature`` as from `curvatures`. Returns u, its eta, and the mean acceptance probability.
    """
    u, accepted = list(u), []
    seeds = randomness.split_seed(seed, n=len(u) + len(data.moves))
    for k in range(len(u)):
        u[k], eta, probability = update_levels(data, theta, k, u[k], eta, curvature[k], seeds[k])
        accepted.append(probability)
    for move, own in zip(data.moves, seeds[len(u) :], strict=True):
        u = group_move(theta, move, u, own)
    return u, eta, tf.reduce_mean(accepted)


def update_levels(
    data: Data, theta: Theta, k: int, u: Tensor, eta: Tensor, curvature: Tensor, seed: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One HMC transition of factor k, in which every level proposes and decides for itself.

    Given the other factors its levels are independent: log density and accept decisions are
    ``[levels, chains]``. Returns new u, its eta, and the mean acceptance probability.
    """
    seeds = randomness.split_seed(seed)
    # In conditional sds a normal target's path is a circle, time its angle.
    jitter = randomness.uniform([], 0.8, 1.2, seed=seeds[0])
    angle = jitter * np.pi / 2 / LEAPFROG_STEPS
    step = angle * conditional_sd(theta, k, curvature)
    target = level_log_density(data, theta, k, u, eta)
    hmc = tfp.mcmc.HamiltonianMonteCarlo(target, step, LEAPFROG_STEPS)
    with randomness.fast_random():
        moved, results = hmc.one_step(u, hmc.bootstrap_results(u), seed=seeds[1])
    eta += data.to_rows(k, moved - u)
    return moved, eta, acceptance(results.log_accept_ratio)


def conditional_sd(theta: Theta, k: int, curvature: Tensor) -> Tensor:
    """The sd of factor k's effects when all others are held fixed, ``[levels, 1]``, or nearly.

    For Gaussian ratings exactly, ``(count / residual variance + 1 / variance) ** -0.5``.
    """
    return tf.math.rsqrt(curvature + tf.exp(-2.0 * theta.log_sigma[k]))


def level_log_density(data: Data, theta: Theta, k: int, u: Tensor, eta: Tensor) -> LogProb:
    """``log p(u_k | y, all other effects)``, ``[levels, chains]``, up to a constant.

    For a Gaussian family it is a quadratic with two numbers a level, the count of its ratings and
    the sum of what the other effects leave of them: leapfrog steps touch no row.
    """
    # HMC is to differentiate in v alone.
    u, eta = map(tf.stop_gradient, (u, eta))
    prior_precision = tf.exp(-2.0 * theta.log_sigma[k])
    if isinstance(data.family, Gaussian):
        weight = tf.exp(-2.0 * theta.auxiliary[0])  # 1 / residual variance
        count = data.to_levels(k, tf.ones_like(data.y))  # [levels, 1]
        residual = data.to_levels(k, data.y - eta) + count * u
        precision = count * weight + prior_precision
        mean = weight * residual / precision
        return lambda v: -0.5 * precision * tf.square(v - mean)
    start = data.log_density(eta, theta.auxiliary)

    def target(v: Tensor) -> Tensor:
        eta_v = eta + data.to_rows(k, v - u)
        # Row by row: single precision loses the difference of two sums.
        change = data.log_density(eta_v, theta.auxiliary) - start
        return data.to_levels(k, change) - 0.5 * prior_precision * v**2

    return target


def curvatures(data: Data, theta: Theta, eta: Tensor) -> list[Tensor]:
    """What a level's rows tell of its effect, ``Z'W 1``: ``[levels, 1]`` a factor.

    W is minus the second derivative of a row's log density in eta, averaged over the chains. While
    draws are kept it must not change: steps that depend on where chains are draw from another law.
    """

    def slope(at: Tensor) -> Tensor:  # of each row
        return tfp.math.value_and_gradient(lambda x: data.log_density(x, theta.auxiliary), at)[1]

    second = tfp.math.value_and_gradient(slope, eta)[1]
    weight = tf.maximum(-tf.reduce_mean(second, axis=1, keepdims=True), 0.0)
    return [data.to_levels(k, weight) for k in range(len(data.levels))]


def group_move(theta: Theta, move: GroupMove, u: Effects, seed: Tensor) -> list[Tensor]:
    """Add d to one factor's effects, take it from another's: an exact draw of d.

    A department up, its instructors down: no eta changes, so by the two priors alone d is normal,
    for any likelihood (Liu & Sabatti 2000). For m inner and n outer levels that move together

        precision = m / sigma_inner^2 + n / sigma_outer^2
        mean = (sum of inner u / sigma_inner^2 - sum of outer u / sigma_outer^2) / precision
    """
    u, precision, pull = list(u), 0.0, 0.0
    sides = ((move.inner[0], move.groups_inner, -1.0), (move.outer[0], move.groups_outer, 1.0))
    for k, groups, sign in sides:
        weight = tf.exp(-2.0 * theta.log_sigma[k])
        members = np.bincount(groups, minlength=move.groups)[:, np.newaxis]
        precision += weight * members.astype(np.float32)
        sums = tf.math.unsorted_segment_sum(u[k], groups, move.groups)
        pull -= sign * weight * sums
    noise = randomness.normal([move.groups, u[0].shape[1]], seed=seed)
    d = pull / precision + tf.math.rsqrt(precision) * noise
    for k, groups, sign in sides:
        u[k] += sign * tf.gather(d, groups)
    return u
