"""The E-step level by level: every level of a factor makes its own proposal and its own decision.

Chapter 03. Given all *other* factors, the levels of one factor are conditionally independent: an
instructor's ratings say nothing more about another instructor once students and departments are
fixed. So we update one factor at a time, with its levels as a batch. It is the same Hamiltonian
Monte Carlo as in `e_step`, with thousands of small accept decisions in place of one large one.

For a Gaussian likelihood a level's log density depends on the ratings through two things only, Z'Z
and Z' times what is left of the ratings (for an intercept: how many they are, and their sum). So
leapfrog steps cost as much as there are levels, and not as there are rows. For any other likelihood
each leapfrog step goes through all rows, so we take as few of them as a quarter turn needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from lmmbook.arrays import Arrays, Layout, Parameters, standardise, to_levels, to_rows
from lmmbook.predictor import curvatures, is_gaussian, linear_predictor, rows_of
from lmmbook.randomness import fast_random
from lmmbook.translation import is_parent, translate

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

LEAPFROG_STEPS = 2
# In whitened coordinates a quarter turn makes a new value independent of the old one, so no step is
# longer than that; where a likelihood is not Gaussian, adaptation shortens it.
LONGEST_STEP = np.pi / 2 / LEAPFROG_STEPS
TARGET_ACCEPTANCE = 0.9


class Sweep(NamedTuple):
    """What a sweep hands on.

    ``effects`` is a list of ``[levels, chains, columns]``; ``predictor`` ``[rows, chains]`` is the
    linear predictor that belongs to them; ``acceptance`` is a list of ``[levels]``, mean acceptance
    probabilities over the chains.
    """

    effects: list[tf.Tensor]
    predictor: tf.Tensor
    acceptance: list[tf.Tensor]


def longest_steps(layout: Layout) -> list[tf.Tensor]:
    """Step sizes to start from, a list of ``[levels]``."""
    return [tf.fill([of.levels], np.float32(LONGEST_STEP)) for of in layout.factors]


def sweep(
    layout: Layout,
    arrays: Arrays,
    parameters: Parameters,
    effects: list[tf.Tensor],
    rows: tuple[tf.Tensor, ...],
    predictor: tf.Tensor,
    curvature: list[tf.Tensor],
    step_sizes: list[tf.Tensor],
    seed: tf.Tensor,
    parents_too: tf.Tensor | bool = True,
) -> Sweep:
    """Update each factor once by HMC, then draw along the directions that ratings cannot see.

    ``rows`` belong to the parameters, as from `rows_of`, and ``predictor`` to ``effects``, as from
    `linear_predictor`; it is kept up to date, not recomputed. ``curvature`` is as from
    `curvatures`; for a Gaussian family it has to belong to the parameters. ``step_sizes``, a list
    of ``[levels]``, are in conditional standard deviations.

    Without ``parents_too`` factors in which another one is nested are left to those last draws:
    where levels are well known, they move such a factor as far as HMC does, at no cost.
    """
    effects, acceptance = list(effects), []
    seeds = tfp.random.split_seed(seed, n=len(effects) + len(layout.translations))
    for k in range(len(effects)):
        own_seed = seeds.pop()

        def moved(k=k, u=effects[k], predictor=predictor, seed=own_seed):  # type: ignore[no-untyped-def]
            new, accepted = update(
                layout, arrays, parameters, k, u, rows, predictor, curvature[k], step_sizes[k], seed
            )
            return new, predictor + to_rows(arrays.factors[k], new - u), accepted

        def left_alone(k=k, u=effects[k], predictor=predictor):  # type: ignore[no-untyped-def]
            return u, predictor, tf.ones([layout.factors[k].levels])

        here = parents_too if is_parent(layout, k) else True
        new, predictor, accepted = tf.cond(here, moved, left_alone) if here is not True else moved()
        effects[k] = new
        acceptance.append(accepted)
    for t in range(len(layout.translations)):
        effects = translate(layout, arrays, parameters, t, effects, seeds.pop())
    return Sweep(effects, predictor, acceptance)


def sweep_from(
    layout: Layout,
    arrays: Arrays,
    parameters: Parameters,
    effects: list[tf.Tensor],
    step_sizes: list[tf.Tensor],
    seed: tf.Tensor,
) -> Sweep:
    """A `sweep` that works out from the effects what else it needs."""
    rows = rows_of(layout, arrays, parameters)
    predictor = linear_predictor(arrays, parameters, effects)
    curvature = curvatures(layout, arrays, parameters, rows, predictor)
    return sweep(layout, arrays, parameters, effects, rows, predictor, curvature, step_sizes, seed)


def update(
    layout: Layout,
    arrays: Arrays,
    parameters: Parameters,
    k: int,
    u: tf.Tensor,
    rows: tuple[tf.Tensor, ...],
    predictor: tf.Tensor,
    curvature: tf.Tensor,
    step_sizes: tf.Tensor,
    seed: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """One HMC transition of every level of factor k: new effects, acceptance ``[levels]``.

    Arguments as for `sweep`; ``u``, ``curvature`` and ``step_sizes`` are the factor's.
    """
    scale = parameters.scales[k]
    # Effects are u = scale v with v standard normal before the ratings. Of v, a level's conditional
    # distribution has the precision I + scale' Z'WZ scale: never ill-conditioned, even where a
    # covariance is nearly singular, and single precision holds.
    told = tf.einsum("ji,ljk,km->lim", scale, curvature, scale)
    precision = told + tf.eye(u.shape[2])  # [levels, columns, columns]
    root = tf.linalg.cholesky(precision) if u.shape[2] > 1 else tf.sqrt(precision)
    # In the coordinates w = root' v the precision is the identity: one step size fits all.
    start = tf.einsum("lji,lcj->lci", root, standardise(scale, u))
    log_density = _gaussian if is_gaussian(layout) else _any_family
    # Inside a compiled function TFP differentiates with tf.gradients, which would follow `start`
    # back through anything computed from it, and the first gradient would be wrong.
    target = log_density(
        layout, arrays, parameters, k, tf.stop_gradient(u), rows, tf.stop_gradient(predictor), root
    )
    seeds = tfp.random.split_seed(seed, n=2)
    jitter = tf.random.stateless_uniform([], seeds[0], 0.8, 1.2)
    hmc = tfp.mcmc.HamiltonianMonteCarlo(
        target,
        step_size=step_sizes[:, tf.newaxis, tf.newaxis] * jitter,
        num_leapfrog_steps=LEAPFROG_STEPS,
    )
    with fast_random():
        end, results = hmc.one_step(start, hmc.bootstrap_results(start), seed=seeds[1])
    accepted = tf.reduce_mean(tf.exp(tf.minimum(results.log_accept_ratio, 0.0)), axis=1)
    return tf.einsum("ij,lcj->lci", scale, _solve(root, end, adjoint=True)), accepted


def _gaussian(
    layout: Layout, arrays: Arrays, parameters: Parameters, k: int,
    u: tf.Tensor, rows: tuple[tf.Tensor, ...], predictor: tf.Tensor, root: tf.Tensor,
) -> Callable[[tf.Tensor], tf.Tensor]:  # fmt: skip
    """Log density ``[levels, chains]`` of whitened effects: normal, about a mean known here."""
    has, scale = arrays.factors[k], parameters.scales[k]
    left = arrays.response[:, tf.newaxis] - predictor
    sums = to_levels(has, left, u.shape[0]) + tf.einsum("lij,lcj->lci", has.cross, u)
    pull = tf.einsum("ji,lcj->lci", scale, sums) / tf.square(parameters.residual_sd)
    mean = _solve(root, pull)
    return lambda w: -0.5 * tf.reduce_sum(tf.square(w - mean), axis=-1)


def _any_family(
    layout: Layout, arrays: Arrays, parameters: Parameters, k: int,
    u: tf.Tensor, rows: tuple[tf.Tensor, ...], predictor: tf.Tensor, root: tf.Tensor,
) -> Callable[[tf.Tensor], tf.Tensor]:  # fmt: skip
    """Log density ``[levels, chains]`` of whitened effects: their prior, and all their rows."""
    has, scale = arrays.factors[k], parameters.scales[k]
    others = predictor - to_rows(has, u)

    @tf.custom_gradient
    def likelihood(proposed: tf.Tensor) -> tuple:
        # Left to itself, differentiation would send a vector of ones down to the rows and back.
        predictor = others + to_rows(has, proposed)
        value, slope = (
            tf.reshape(x, predictor.shape)
            for x in layout.family.value_and_slope(
                rows, tf.reshape(predictor, [-1]), parameters.auxiliary
            )
        )
        slopes = to_levels(has, slope, u.shape[0])
        total = tf.math.unsorted_segment_sum(value, has.codes, u.shape[0])
        return total, lambda upstream: upstream[..., tf.newaxis] * slopes

    def target(w: tf.Tensor) -> tf.Tensor:
        v = _solve(root, w, adjoint=True)
        prior = -0.5 * tf.reduce_sum(tf.square(v), axis=-1)
        return prior + likelihood(tf.einsum("ij,lcj->lci", scale, v))

    return target


def _solve(root: tf.Tensor, right: tf.Tensor, adjoint: bool = False) -> tf.Tensor:
    """Solve with each level's triangular ``root``; ``right`` is ``[levels, chains, columns]``."""
    if right.shape[2] == 1:
        return right / root  # [levels, 1, 1]: no need for a matrix solver
    solved = tf.linalg.triangular_solve(root, tf.linalg.matrix_transpose(right), adjoint=adjoint)
    return tf.linalg.matrix_transpose(solved)


def adapt(
    step_sizes: list[tf.Tensor], acceptance: list[tf.Tensor], gain: tf.Tensor
) -> list[tf.Tensor]:
    """Robbins-Monro, level by level: shorten the steps where too few are accepted, up to a limit.

    Both are lists of ``[levels]``.
    """
    return [
        tf.minimum(step * tf.exp(gain * (accepted - TARGET_ACCEPTANCE)), LONGEST_STEP)
        for step, accepted in zip(step_sizes, acceptance, strict=True)
    ]
