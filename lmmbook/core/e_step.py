"""The E-step: Hamiltonian Monte Carlo over the random effects, at fixed parameters.

Chapter 03. It draws from their conditional distribution with several independent chains side by
side: all effects jointly (`run`), or, much faster, a factor's levels as a batch (`sweep`).
"""

from __future__ import annotations

from typing import NamedTuple

from lmmbook._tensorflow.processes import check_not_forked
from lmmbook._tensorflow.randomness import fast_random, normal, split_seed, uniform
from lmmbook.core.model import Data, Effects, LogProb, Parameters, Tensor, Theta
from lmmbook.families.gaussian import Gaussian
from lmmbook.formula import covariance
from lmmbook.formula.design import Design
from lmmbook.formula.invariances.directions import Translation

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

TARGET_ACCEPTANCE = 0.8  # between the 0.65 that is best in theory and the safety of small steps
LEAPFROG_STEPS = 2  # of a level; together a quarter turn, which forgets a normal's start


class EStep(NamedTuple):
    """What `run` hands on."""

    effects: list[Tensor]  # last draw of each chain, [chains, levels, columns] a factor
    acceptance: Tensor  # mean acceptance probability over chains and steps, a scalar
    target_log_prob: Tensor  # log density of the last draw, [chains]


def step_scales(design: Design, parameters: Parameters) -> list[Tensor]:
    """One relative step size an effect: its conditional sd when all others are held fixed.

    A level with many ratings is known well, and needs small steps. With an intercept alone it is
    ``1 / sqrt(count / residual_sd**2 + 1 / sd**2)``. ``[levels, columns]`` float32 a factor.
    """
    scales = []
    for factor in design.factors:
        prior = np.diag(np.linalg.inv(covariance.to_matrix(factor, parameters)))
        squares = [np.bincount(factor.codes, z**2, factor.levels) for z in factor.z.T]
        precision = np.stack(squares, axis=1) / parameters["sd(residual)"] ** 2 + prior
        scales.append(tf.constant(1 / np.sqrt(precision), tf.float32))
    return scales


def run(
    target_log_prob: LogProb, effects: Effects, scales: Effects, step_size: Tensor,
    num_leapfrog_steps: int, num_steps: int, seed: Tensor,
) -> EStep:  # fmt: skip
    """Take ``num_steps`` HMC transitions of effects ``[chains, levels, columns]``, all at once.

    A leapfrog step of a level is ``step_size * scale``; a common jitter keeps trajectories from
    falling into step with a period of the target. The kernel is bootstrapped on every call: its
    results cache the log density, and after an M-step the old ones belong to the old parameters.
    """
    check_not_forked("e_step.run")
    seeds = split_seed(seed, n=num_steps + 1)
    jitter = uniform([num_steps], 0.8, 1.2, seed=seeds[0])
    steps = tf.stack(seeds[1:])

    def kernel(i: Tensor) -> tfp.mcmc.HamiltonianMonteCarlo:
        return tfp.mcmc.HamiltonianMonteCarlo(
            target_log_prob,
            step_size=[step_size * jitter[i] * scale for scale in scales],
            num_leapfrog_steps=num_leapfrog_steps,
        )

    def transition(i, effects, results, acceptance):  # type: ignore[no-untyped-def]
        with fast_random():
            effects, results = kernel(i).one_step(effects, results, seed=steps[i])
        probability = tf.exp(tf.minimum(results.log_accept_ratio, 0.0))
        return i + 1, effects, results, acceptance + tf.reduce_mean(probability) / num_steps

    start = list(effects)
    first = (0, start, kernel(tf.constant(0)).bootstrap_results(start), tf.constant(0.0))
    _, drawn, results, acceptance = tf.while_loop(lambda i, *_: i < num_steps, transition, first)
    return EStep(drawn, acceptance, results.accepted_results.target_log_prob)


def adapt_step_size(step_size: Tensor, acceptance: Tensor, gain: float | Tensor) -> Tensor:
    """Robbins-Monro: lengthen the step when more than the target is accepted, else shorten it."""
    return step_size * tf.exp(gain * (acceptance - TARGET_ACCEPTANCE))


def sweep(
    data: Data, theta: Theta, u: Effects, eta: Tensor, curvature: list[Tensor], seed: Tensor
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Update every factor once by HMC, then draw along every direction that no rating sees.

    ``curvature`` as from `curvatures`. Returns u, its eta, and the mean acceptance probability.
    """
    u, accepted = list(u), []
    seeds = split_seed(seed, n=len(u) + len(data.moves))
    for k in range(len(u)):
        u[k], eta, probability = update_levels(data, theta, k, u[k], eta, curvature[k], seeds[k])
        accepted.append(tf.reduce_mean(probability))
    for move, own in zip(data.moves, seeds[len(u) :], strict=True):
        u = group_move(theta, move, u, own)
    return u, eta, tf.reduce_mean(accepted)


def update_levels(
    data: Data, theta: Theta, k: int, u: Tensor, eta: Tensor, curvature: Tensor, seed: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One HMC transition of factor k, in which every level proposes and decides for itself.

    Given the other factors its levels are independent: log density and accept decisions are
    ``[levels, chains]``. Returns new u, the eta that belongs to it, and acceptance probabilities.
    """
    # On a normal target HMC's path is a circle; in units of the conditional sd the angle is time.
    conditional_sd = tf.math.rsqrt(curvature + tf.exp(-2.0 * theta.log_sigma[k]))  # [levels, 1]
    seeds = split_seed(seed)
    angle = np.pi / 2 / LEAPFROG_STEPS * uniform([], 0.8, 1.2, seed=seeds[0])
    hmc = tfp.mcmc.HamiltonianMonteCarlo(
        level_log_density(data, theta, k, u, eta),
        step_size=angle * conditional_sd,
        num_leapfrog_steps=LEAPFROG_STEPS,
    )
    with fast_random():
        moved, results = hmc.one_step(u, hmc.bootstrap_results(u), seed=seeds[1])
    acceptance = tf.exp(tf.minimum(results.log_accept_ratio, 0.0))
    return moved, eta + data.to_rows(k, moved - u), acceptance


def level_log_density(data: Data, theta: Theta, k: int, u: Tensor, eta: Tensor) -> LogProb:
    """``log p(u_k | y, all other effects)``, ``[levels, chains]``, up to a constant.

    For a Gaussian family it is a quadratic with two numbers a level, the count of its ratings and
    the sum of what the other effects leave of them: leapfrog steps touch no row.
    """
    # The chain starts at u, but where it came from is a constant: HMC differentiates in v alone.
    u, eta = tf.stop_gradient(u), tf.stop_gradient(eta)
    prior_precision = tf.exp(-2.0 * theta.log_sigma[k])
    if isinstance(data.family, Gaussian):
        weight = tf.exp(-2.0 * theta.auxiliary[0])  # 1 / variance of the residual
        count = data.to_levels(k, tf.ones_like(data.y))  # [levels, 1]
        left = data.to_levels(k, data.y - eta) + count * u
        precision = count * weight + prior_precision
        mean = weight * left / precision
        return lambda v: -0.5 * precision * tf.square(v - mean)
    start = data.log_density(eta, theta.auxiliary)

    def target(v: Tensor) -> Tensor:
        moved = data.log_density(eta + data.to_rows(k, v - u), theta.auxiliary)
        # Subtract first, row by row: of two large sums, single precision loses the difference.
        return data.to_levels(k, moved - start) - 0.5 * prior_precision * tf.square(v)

    return target


def curvatures(data: Data, theta: Theta, eta: Tensor) -> list[Tensor]:
    """What a level's rows tell of its effect, ``Z'W 1``: ``[levels, 1]`` a factor.

    W is minus the second derivative of a row's log density in eta, averaged over the chains. While
    draws are kept it must not change: steps that depend on where chains are draw from another law.
    """
    derivative = tfp.math.value_and_gradient  # of sums: no row depends on another row's eta
    first = lambda at: derivative(lambda x: data.log_density(x, theta.auxiliary), at)[1]  # noqa: E731
    second = derivative(first, eta)[1]
    weight = tf.maximum(-tf.reduce_mean(second, axis=1, keepdims=True), 0.0)  # [rows, 1]
    return [data.to_levels(k, weight) for k in range(len(data.levels))]


def group_move(theta: Theta, move: Translation, u: Effects, seed: Tensor) -> list[Tensor]:
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
        members = np.bincount(groups, minlength=move.groups)[:, np.newaxis].astype(np.float32)
        precision += weight * members  # [groups, 1]
        pull -= sign * weight * tf.math.unsorted_segment_sum(u[k], groups, move.groups)
    noise = normal([move.groups, u[0].shape[1]], seed=seed)
    d = pull / precision + tf.math.rsqrt(precision) * noise  # [groups, chains]
    for k, groups, sign in sides:
        u[k] += sign * tf.gather(d, groups)
    return u
