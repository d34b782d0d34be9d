"""The E-step: Hamiltonian Monte Carlo over the random effects, at fixed parameters.

Chapter 03. Given the parameters, the random effects have a conditional distribution (their
posterior). The E-step draws from it with several independent chains side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from lmmbook._tensorflow.processes import check_not_forked
from lmmbook._tensorflow.randomness import fast_random, split_seed, uniform
from lmmbook.formula import covariance
from lmmbook.formula.design import Design

import numpy as np
import pandas as pd
import tensorflow as tf
import tensorflow_probability as tfp

Effects = Sequence[tf.Tensor]
TargetLogProb = Callable[..., tf.Tensor]

TARGET_ACCEPTANCE = 0.8  # between the 0.65 that is best in theory and the safety of small steps


class EStep(NamedTuple):
    """What `run` hands on.

    Attributes
    ----------
    effects
        Last draw of each chain: a list of ``[chains, levels, columns]``.
    acceptance
        Mean acceptance probability over chains and steps, a scalar in 0 to 1.
    target_log_prob
        Log density of the last draw, ``[chains]``.
    """

    effects: list[tf.Tensor]
    acceptance: tf.Tensor
    target_log_prob: tf.Tensor


def step_scales(design: Design, parameters: Mapping[str, float] | pd.Series) -> list[tf.Tensor]:
    """One relative step size an effect: its conditional sd when all others are held fixed.

    A level with many ratings is known well, so its posterior is narrow and needs small steps. For a
    Gaussian likelihood and an intercept alone, ``1 / sqrt(count / residual_sd**2 + 1 / sd**2)``.
    Returns ``[levels, columns]`` float32 a factor.
    """
    scales = []
    for factor in design.factors:
        prior = np.diag(np.linalg.inv(covariance.to_matrix(factor, parameters)))
        squares = [np.bincount(factor.codes, z**2, factor.levels) for z in factor.z.T]
        precision = np.stack(squares, axis=1) / parameters["sd(residual)"] ** 2 + prior
        scales.append(tf.constant(1 / np.sqrt(precision), tf.float32))
    return scales


def run(
    target_log_prob: TargetLogProb,
    effects: Effects,
    scales: Effects,
    step_size: tf.Tensor,
    num_leapfrog_steps: int,
    num_steps: int,
    seed: tf.Tensor,
) -> EStep:
    """Take ``num_steps`` HMC transitions with every chain.

    The kernel is bootstrapped here, on every call. Its results cache the log density and gradient
    of the current state, and after an M-step those of the last call belong to the old parameters.

    Parameters
    ----------
    target_log_prob
        Log density of the effects, ``[chains]``, up to a constant; reads the current parameters.
    effects, scales
        Lists of ``[chains, levels, columns]`` and ``[levels, columns]``, one a factor.
    step_size
        Positive scalar; a leapfrog step of level l is ``step_size * scales[l]``, with a common
        jitter of 20% that keeps trajectories from falling into step with a period of the target.
    num_leapfrog_steps, num_steps
        Leapfrog steps a transition, and transitions.
    seed
        Stateless seed, ``[2]`` int32.
    """
    check_not_forked("e_step.run")
    seeds = split_seed(seed, n=num_steps + 1)
    jitter = uniform([num_steps], 0.8, 1.2, seed=seeds[0])
    steps = tf.stack(seeds[1:])

    def kernel(i: tf.Tensor) -> tfp.mcmc.HamiltonianMonteCarlo:
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
    _, drawn, results, acceptance = tf.while_loop(
        lambda i, *_: i < num_steps,
        transition,
        (0, start, kernel(tf.constant(0)).bootstrap_results(start), tf.constant(0.0)),
    )
    return EStep(drawn, acceptance, results.accepted_results.target_log_prob)


def adapt_step_size(
    step_size: tf.Tensor, acceptance: tf.Tensor, gain: float | tf.Tensor
) -> tf.Tensor:
    """Robbins-Monro: lengthen the step when more than the target is accepted, else shorten it."""
    return step_size * tf.exp(gain * (acceptance - TARGET_ACCEPTANCE))
