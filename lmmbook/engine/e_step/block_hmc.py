"""The E-step level by level: every level of a factor makes its own proposal and its own decision.

Chapter 03. Given all *other* factors, the levels of one factor are conditionally independent: an
instructor's ratings say nothing more about another instructor once students and departments are
fixed. So we update one factor at a time, with its levels as a batch. It is the same Hamiltonian
Monte Carlo as in `e_step`, with thousands of small accept decisions in place of one large one.

For a Gaussian likelihood a level's log density depends on the ratings through two things only, Z'Z
and Z' times the residuals (for an intercept: how many they are, and their sum). So
leapfrog steps cost as much as there are levels, and not as there are rows. For any other likelihood
each leapfrog step goes through all rows, so we take as few of them as a quarter turn needs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from lmmbook._tensorflow.randomness import fast_random, fold_in, split_seed, uniform
from lmmbook.engine.arrays import Arrays, Layout, State, standardise
from lmmbook.engine.e_step.adaptation import LEAPFROG_STEPS
from lmmbook.engine.e_step.group_moves import group_move, is_parent
from lmmbook.engine.linear_predictor import (
    changes_and_slopes,
    curvature_of,
    moved,
    residuals_by_level,
    value_and_slopes,
)
from lmmbook.engine.placement import SINGLE_DEVICE, Placement, either

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp


def sweep(
    layout: Layout,
    arrays: Arrays,
    state: State,
    seed: tf.Tensor,
    parents_too: tf.Tensor | bool = True,
    placement: Placement = SINGLE_DEVICE,
) -> tuple[State, list[tf.Tensor]]:
    """Update each factor once by HMC, then draw along the directions that ratings cannot see.

    Returns the ``state`` with new effects, and the acceptance: a list of ``[levels]``, mean
    probabilities over the chains. ``state`` has its rows and its predictor (`linear_predictor.at`);
    the predictor is kept up to date, not recomputed. ``placement`` says where the rows are.

    Without ``parents_too`` factors in which another one is nested are left to those last draws:
    where levels are well known, they move such a factor as far as HMC does, at no cost.
    """
    acceptance = []
    seeds = split_seed(seed, n=len(state.effects) + len(layout.group_moves))
    for k in range(len(state.effects)):
        wanted = parents_too if is_parent(layout, k) else True
        state, accepted = _of_factor(layout, k, arrays, state, seeds.pop(), wanted, placement)
        acceptance.append(accepted)
    effects = state.effects
    for t in range(len(layout.group_moves)):
        effects = group_move(layout, arrays, state.parameters, t, effects, seeds.pop(), placement)
    return state._replace(effects=effects), acceptance


def _of_factor(
    layout: Layout, k: int, arrays: Arrays, state: State, seed: tf.Tensor,
    wanted: tf.Tensor | bool, placement: Placement,
) -> tuple[State, tf.Tensor]:  # fmt: skip
    """Factor k's turn in a sweep; without ``wanted`` it is left alone."""

    def by_hmc() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        if k == placement.shared:  # its levels live with their rows: nobody else is needed
            return placement.rows(updated, (layout, k), arrays, state, seed)[0]
        return updated(layout, k, arrays, state, seed, placement)[0]

    def left_alone() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        always = tf.constant(np.ones(layout.factors[k].levels, np.float32))
        return state.effects[k], state.predictor, always

    u, predictor, accepted = either(wanted, by_hmc, left_alone)
    effects = [*state.effects[:k], u, *state.effects[k + 1 :]]
    return state._replace(effects=effects, predictor=predictor), accepted


def updated(
    layout: Layout, k: int, arrays: Arrays, state: State, seed: tf.Tensor,
    placement: Placement = SINGLE_DEVICE,
) -> tuple[tuple[tf.Tensor, tf.Tensor, tf.Tensor], None]:  # fmt: skip
    """`update` of factor k: its new effects, the predictor that belongs to them, acceptance."""
    if placement is SINGLE_DEVICE:  # other devices have other levels, and need other random numbers
        seed = fold_in(seed, arrays.replica)
    new, accepted = update(layout, k, arrays, state, seed, placement)
    change = new - state.effects[k]
    predictor, _ = placement.rows(moved, (k,), arrays, state.predictor, change)
    return (new, predictor, accepted), None


def update(
    layout: Layout, k: int, arrays: Arrays, state: State, seed: tf.Tensor,
    placement: Placement = SINGLE_DEVICE,
) -> tuple[tf.Tensor, tf.Tensor]:  # fmt: skip
    """One HMC transition of every level of factor k: new effects, acceptance ``[levels]``."""
    u, scale = state.effects[k], state.parameters.scales[k]
    # Effects are u = scale v with v standard normal before the ratings. Of v, a level's conditional
    # distribution has the precision I + scale' Z'WZ scale: never ill-conditioned, even where a
    # covariance is nearly singular, and single precision holds.
    curvature = curvature_of(layout, k, arrays, state)
    information = tf.einsum("ji,ljk,km->lim", scale, curvature, scale)
    precision = information + tf.eye(u.shape[2])  # [levels, columns, columns]
    root = tf.linalg.cholesky(precision) if u.shape[2] > 1 else tf.sqrt(precision)
    # In the coordinates w = root' v the precision is the identity: one step size fits all.
    start = tf.einsum("lji,lcj->lci", root, standardise(scale, u))
    log_density = _gaussian if layout.gaussian else _any_family
    here, there = log_density(layout, k, arrays, state, root, placement)
    seeds = split_seed(seed, n=2)
    jitter = uniform([], 0.8, 1.2, seed=seeds[0])
    kernel = partial(
        tfp.mcmc.HamiltonianMonteCarlo,
        step_size=state.step_sizes[k][:, tf.newaxis, tf.newaxis] * jitter,
        num_leapfrog_steps=LEAPFROG_STEPS,
    )
    with fast_random():
        results = kernel(here).bootstrap_results(start)
        end, results = kernel(there).one_step(start, results, seed=seeds[1])
    accepted = tf.reduce_mean(tf.exp(tf.minimum(results.log_accept_ratio, 0.0)), axis=1)
    return tf.einsum("ij,lcj->lci", scale, _solve(root, end, adjoint=True)), accepted


LogDensity = Callable[[tf.Tensor], tf.Tensor]


def _gaussian(
    layout: Layout, k: int, arrays: Arrays, state: State, root: tf.Tensor, placement: Placement
) -> tuple[LogDensity, LogDensity]:  # fmt: skip
    """Log density ``[levels, chains]`` of whitened effects at the start, and anywhere: normal,
    about a mean that is known here."""
    _, residuals = placement.rows(residuals_by_level, (k,), arrays, state.predictor)
    sums = residuals + tf.einsum("lij,lcj->lci", arrays.factors[k].cross, state.effects[k])
    pull = tf.einsum("ji,lcj->lci", state.parameters.scales[k], sums)
    pull /= tf.square(state.parameters.residual_sd)
    mean = _solve(root, pull)

    def target(w: tf.Tensor) -> tf.Tensor:
        return -0.5 * tf.reduce_sum(tf.square(w - mean), axis=-1)

    return target, target


def _any_family(
    layout: Layout, k: int, arrays: Arrays, state: State, root: tf.Tensor, placement: Placement
) -> tuple[LogDensity, LogDensity]:  # fmt: skip
    """Log density ``[levels, chains]`` of whitened effects at the start, and anywhere: their prior,
    and what all their rows add to what they said at the start."""
    u, scale, static = state.effects[k], state.parameters.scales[k], (layout, k)
    before, slopes = placement.rows(value_and_slopes, static, arrays, state)

    # Left to itself, differentiation would send a vector of ones down to the rows and back.
    @tf.custom_gradient
    def at_start(proposed: tf.Tensor) -> tuple:
        nothing = tf.constant(np.zeros(u.shape[:2], np.float32))
        return nothing, lambda upstream: upstream[..., tf.newaxis] * slopes

    @tf.custom_gradient
    def anywhere(proposed: tf.Tensor) -> tuple:
        _, (added, slopes) = placement.rows(
            changes_and_slopes, static, arrays, state, before, proposed - u
        )
        return added, lambda upstream: upstream[..., tf.newaxis] * slopes

    def target(likelihood: LogDensity, w: tf.Tensor) -> tf.Tensor:
        v = _solve(root, w, adjoint=True)
        prior = -0.5 * tf.reduce_sum(tf.square(v), axis=-1)
        return prior + likelihood(tf.einsum("ij,lcj->lci", scale, v))

    return partial(target, at_start), partial(target, anywhere)


def _solve(root: tf.Tensor, right: tf.Tensor, adjoint: bool = False) -> tf.Tensor:
    """Solve with each level's triangular ``root``; ``right`` is ``[levels, chains, columns]``."""
    if right.shape[2] == 1:
        return right / root  # [levels, 1, 1]: no need for a matrix solver
    solved = tf.linalg.triangular_solve(root, tf.linalg.matrix_transpose(right), adjoint=adjoint)
    return tf.linalg.matrix_transpose(solved)
