"""The E-step level by level: every level of a factor makes its own proposal and its own decision.

Chapter 03. Given all *other* factors, the levels of one factor are conditionally independent: an
instructor's ratings say nothing more about another instructor once students and departments are
fixed. So we update one factor at a time, with its levels as a batch. It is the same Hamiltonian
Monte Carlo as in `e_step`, with thousands of small accept decisions in place of one large one.

For a Gaussian likelihood a level's log density depends on the ratings through two things only, Z'Z
and Z' times what is left of the ratings (for an intercept: how many they are, and their sum). So
leapfrog steps cost as much as there are levels, and not as there are rows.
"""

from __future__ import annotations

from typing import NamedTuple

from lmmbook.arrays import Arrays, Layout, Parameters, to_levels, to_rows

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

LEAPFROG_STEPS = 3
# In whitened coordinates a quarter turn makes a new value independent of the old one, so no step is
# longer than that; where a likelihood is not Gaussian, adaptation shortens it.
LONGEST_STEP = np.pi / 2 / LEAPFROG_STEPS
TARGET_ACCEPTANCE = 0.9


class Sweep(NamedTuple):
    """What a sweep hands on.

    ``effects`` is a list of ``[levels, chains, columns]``; ``left`` ``[rows, chains]`` is what they
    and the fixed effects leave of the ratings; ``acceptance`` ``[factors]`` is the mean acceptance
    probability over levels and chains.
    """

    effects: list[tf.Tensor]
    left: tf.Tensor
    acceptance: tf.Tensor


def left_over(arrays: Arrays, parameters: Parameters, effects: list[tf.Tensor]) -> tf.Tensor:
    """Ratings minus linear predictor, ``[rows, chains]``."""
    fixed = tf.linalg.matvec(arrays.fixed, parameters.beta)
    terms = [to_rows(a, u) for a, u in zip(arrays.factors, effects, strict=True)]
    return (arrays.response - fixed)[:, tf.newaxis] - tf.add_n(terms)


def sweep(
    layout: Layout,
    arrays: Arrays,
    parameters: Parameters,
    effects: list[tf.Tensor],
    left: tf.Tensor,
    step_sizes: tf.Tensor,
    seed: tf.Tensor,
) -> Sweep:
    """Update each factor once by HMC, then draw along the directions that ratings cannot see.

    ``left`` belongs to ``effects``, as from `left_over`; it is kept up to date, not recomputed.
    ``step_sizes`` ``[factors]``, in conditional standard deviations, at most `LONGEST_STEP`.
    """
    effects, acceptance = list(effects), []
    seeds = tfp.random.split_seed(seed, n=len(effects) + len(layout.translations))
    for k in range(len(effects)):
        new, accepted = update(
            layout, arrays, parameters, k, effects[k], left, step_sizes[k], seeds.pop()
        )
        left -= to_rows(arrays.factors[k], new - effects[k])
        effects[k] = new
        acceptance.append(accepted)
    for t in range(len(layout.translations)):
        effects = translate(layout, arrays, parameters, t, effects, seeds.pop())
    return Sweep(effects, left, tf.stack(acceptance))


def update(
    layout: Layout,
    arrays: Arrays,
    parameters: Parameters,
    k: int,
    u: tf.Tensor,
    left: tf.Tensor,
    step_size: tf.Tensor,
    seed: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """One HMC transition of every level of factor k: new effects, mean acceptance probability.

    Arguments as for `sweep`; ``u`` are the factor's effects, ``step_size`` is a scalar.
    """
    cross, levels = arrays.factors[k].cross, layout.factors[k].levels
    scale, variance = parameters.scales[k], tf.square(parameters.residual_sd)
    # Effects are u = scale v with v standard normal before the ratings. Of v, a level's conditional
    # distribution has the precision I + scale' Z'Z scale / variance: never ill-conditioned, even
    # where a covariance is nearly singular, and single precision holds.
    told = tf.einsum("ji,ljk,km->lim", scale, cross, scale) / variance
    precision = told + tf.eye(u.shape[2])  # [levels, columns, columns]
    root = tf.linalg.cholesky(precision) if u.shape[2] > 1 else tf.sqrt(precision)
    sums = to_levels(arrays.factors[k], left, levels) + tf.einsum("lij,lcj->lci", cross, u)
    pull = tf.einsum("ji,lcj->lci", scale, sums) / variance
    # The sums were computed from u, and inside a compiled function TFP differentiates with
    # tf.gradients, which would follow u back through them: the first gradient would be wrong.
    mean = tf.stop_gradient(_solve(root, pull))

    # In the coordinates w = root' v the precision is the identity: one step size fits all.
    seeds = tfp.random.split_seed(seed, n=2)
    jitter = tf.random.stateless_uniform([], seeds[0], 0.8, 1.2)
    hmc = tfp.mcmc.HamiltonianMonteCarlo(
        lambda w: -0.5 * tf.reduce_sum(tf.square(w - mean), axis=-1),  # [levels, chains]
        step_size=step_size * jitter,
        num_leapfrog_steps=LEAPFROG_STEPS,
    )
    start = tf.einsum("lji,lcj->lci", root, standardise(scale, u))
    end, results = hmc.one_step(start, hmc.bootstrap_results(start), seed=seeds[1])
    accepted = tf.reduce_mean(tf.exp(tf.minimum(results.log_accept_ratio, 0.0)))
    return tf.einsum("ij,lcj->lci", scale, _solve(root, end, adjoint=True)), accepted


def standardise(scale: tf.Tensor, effects: tf.Tensor) -> tf.Tensor:
    """``scale^-1 u`` for effects ``[levels, chains, columns]``."""
    if scale.shape[0] == 1:
        return effects / scale
    lower_inverse = tf.linalg.triangular_solve(scale, tf.eye(scale.shape[0]))
    return tf.einsum("ij,lcj->lci", lower_inverse, effects)


def inverse(scale: tf.Tensor) -> tf.Tensor:
    """``[columns, columns]`` inverse of the covariance ``scale scale'``."""
    if scale.shape[0] == 1:
        return 1.0 / tf.square(scale)
    return tf.linalg.cholesky_solve(scale, tf.eye(scale.shape[0]))


def _solve(root: tf.Tensor, right: tf.Tensor, adjoint: bool = False) -> tf.Tensor:
    """Solve with each level's triangular ``root``; ``right`` is ``[levels, chains, columns]``."""
    if right.shape[2] == 1:
        return right / root  # [levels, 1, 1]: no need for a matrix solver
    solved = tf.linalg.triangular_solve(root, tf.linalg.matrix_transpose(right), adjoint=adjoint)
    return tf.linalg.matrix_transpose(solved)


def translate(
    layout: Layout,
    arrays: Arrays,
    parameters: Parameters,
    t: int,
    effects: list[tf.Tensor],
    seed: tf.Tensor,
) -> list[tf.Tensor]:
    """Draw along translation t: add d to one factor's effects, take it from another's.

    No linear predictor changes, so the ratings have no say: given everything else, d is normal, by
    the priors alone, for any likelihood. We draw it exactly, one d a group and chain.
    """
    (inner, a), (outer, b), groups = layout.translations[t]
    groups_inner, groups_outer, weights = arrays.translations[t]
    slopes_inner = -weights[:, tf.newaxis]  # how an inner effect moves with d
    slopes_outer = tf.ones([layout.factors[outer].levels, 1])
    precision, pull = 0.0, 0.0
    for k, column, of, slopes in (
        (inner, a, groups_inner, slopes_inner),
        (outer, b, groups_outer, slopes_outer),
    ):
        row = inverse(parameters.scales[k])[column]  # of the prior's precision
        against = tf.linalg.matvec(effects[k], row)  # [levels, chains]
        precision += row[column] * tf.math.unsorted_segment_sum(tf.square(slopes), of, groups)
        pull -= tf.math.unsorted_segment_sum(slopes * against, of, groups)
    noise = tf.random.stateless_normal([groups, layout.chains], seed)
    d = pull / precision + tf.math.rsqrt(precision) * noise  # [groups, chains]
    effects = list(effects)
    effects[inner] += _in_column(slopes_inner * tf.gather(d, groups_inner), a, effects[inner])
    effects[outer] += _in_column(tf.gather(d, groups_outer), b, effects[outer])
    return effects


def _in_column(values: tf.Tensor, column: int, like: tf.Tensor) -> tf.Tensor:
    """``[levels, chains]`` placed into one column of zeros like ``[levels, chains, columns]``."""
    return values[..., tf.newaxis] * tf.one_hot(column, like.shape[2])


def adapt(step_sizes: tf.Tensor, acceptance: tf.Tensor, gain: tf.Tensor) -> tf.Tensor:
    """Robbins-Monro: shorten the steps of a factor where too few are accepted, up to a limit."""
    longer = step_sizes * tf.exp(gain * (acceptance - TARGET_ACCEPTANCE))
    return tf.minimum(longer, LONGEST_STEP)
