"""The E-step level by level: every level of a factor makes its own proposal and its own decision.

Chapter 03. Given all *other* factors, the levels of one factor are conditionally independent: an
instructor's ratings say nothing more about another instructor once students and departments are
fixed. So we update one factor at a time, with its levels as a batch. It is the same Hamiltonian
Monte Carlo as in `e_step`, with thousands of small accept decisions in place of one large one.

For a Gaussian likelihood a level's log density depends on the ratings through two numbers only,
how many they are and what is left of them in sum. So leapfrog steps cost as much as there are
levels, and not as there are rows.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, permutations

from lmmbook.e_step import Effects, EStep, TargetLogProb
from lmmbook.formula import Design
from lmmbook.model import Features, LinearMixedEffectModel

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

# In units of the conditional sd: three steps of half an sd are about a quarter of a turn around a
# normal distribution, after which the new value hardly depends on the old one.
STEP_SIZE = 0.5
LEAPFROG_STEPS = 3


def nestings(design: Design) -> list[tuple[int, int, np.ndarray]]:
    """Which factors are nested in which, found from the data.

    Returns ``(inner, outer, parent)`` for every pair of factors, by their positions, in which each
    level of ``inner`` occurs with one level of ``outer`` only: ``parent`` ``[inner levels]`` says
    with which.
    """
    found = []
    for inner, outer in permutations(range(len(design.factors)), 2):
        child, parent = design.factors[inner], design.factors[outer]
        pairs = np.unique(np.stack([child.codes, parent.codes]), axis=1)  # sorted by child
        if pairs.shape[1] == child.levels:
            found.append((inner, outer, pairs[1]))
    return found


def levelwise_e_step(
    model: LinearMixedEffectModel,
    design: Design,
    features: Features,
    target_log_prob: TargetLogProb,
    num_sweeps: int,
) -> Callable[[Effects, tf.Tensor, tf.Tensor], EStep]:
    """A function ``(effects, step_size, seed) -> EStep`` that makes ``num_sweeps`` sweeps.

    A sweep updates each factor once by HMC, and then moves along the directions that the ratings
    cannot see (`_trade`). ``step_size`` multiplies the step of 0.5 conditional sds; 1 is good.
    Effects come and go as lists of ``[chains, levels]``; inside they are ``[levels, chains]``, so
    that what is gathered for a row lies together in memory.
    """
    codes = [features[f.name] for f in design.factors]
    sizes = [f.levels for f in design.factors]
    counts = [
        tf.constant(np.bincount(f.codes, minlength=f.levels)[:, None], tf.float32)
        for f in design.factors
    ]
    ratings = tf.constant(design.response, tf.float32)
    trades = [
        (inner, outer, tf.constant(parent, tf.int32)) for inner, outer, parent in nestings(design)
    ]
    # A shift of all levels of one factor against all of another is such a direction too: as if the
    # one were nested in a single level, which the other's levels share.
    shifts = list(combinations(range(len(sizes)), 2))

    def update(k: int, u: tf.Tensor, left: tf.Tensor, step_size: tf.Tensor, seed: tf.Tensor):  # type: ignore[no-untyped-def]
        """One HMC transition of every level of factor k; ``left`` [rows, chains] is kept up."""
        variance = tf.square(model.residual_sd)
        sums = tf.math.unsorted_segment_sum(left, codes[k], sizes[k]) + counts[k] * u
        precision = counts[k] / variance + 1.0 / tf.square(model.sds[k])  # [levels, 1]
        # `sums` was computed from u, and inside a compiled function TFP differentiates with
        # tf.gradients, which would follow u back through it: the first gradient would be wrong.
        mean = tf.stop_gradient(sums / variance / precision)  # [levels, chains]
        seeds = tfp.random.split_seed(seed, n=2)
        jitter = tf.random.stateless_uniform([], seeds[0], 0.8, 1.2)
        hmc = tfp.mcmc.HamiltonianMonteCarlo(
            lambda v: -0.5 * precision * tf.square(v - mean),  # [levels, chains]: one a level
            step_size=step_size * STEP_SIZE * jitter * tf.math.rsqrt(precision),
            num_leapfrog_steps=LEAPFROG_STEPS,
        )
        new, results = hmc.one_step(u, hmc.bootstrap_results(u), seed=seeds[1])
        accepted = tf.reduce_mean(tf.exp(tf.minimum(results.log_accept_ratio, 0.0)))
        return new, left - tf.gather(new - u, codes[k]), accepted

    def sweep(effects: list[tf.Tensor], left: tf.Tensor, step_size: tf.Tensor, seed: tf.Tensor):  # type: ignore[no-untyped-def]
        effects, accepted = list(effects), []
        seeds = tfp.random.split_seed(seed, n=len(sizes) + len(trades) + len(shifts))
        for k in range(len(sizes)):
            effects[k], left, a = update(k, effects[k], left, step_size, seeds.pop())
            accepted.append(a)
        for inner, outer, parent in trades:
            effects[inner], effects[outer] = _trade(
                effects[inner], effects[outer], parent,
                model.sds[inner], model.sds[outer], seeds.pop(),
            )  # fmt: skip
        for a, b in shifts:
            effects[a], effects[b] = _shift(
                effects[a], effects[b], model.sds[a], model.sds[b], seeds.pop()
            )
        return effects, left, tf.add_n(accepted) / len(accepted)

    def e_step(effects: Effects, step_size: tf.Tensor, seed: tf.Tensor) -> EStep:
        effects = [tf.transpose(u) for u in effects]
        fixed = tf.linalg.matvec(features["fixed"], model.beta)
        left = (ratings - fixed)[:, None] - tf.add_n(
            [tf.gather(u, c) for u, c in zip(effects, codes, strict=True)]
        )
        seeds = tf.stack(tfp.random.split_seed(seed, n=num_sweeps))

        def body(i, effects, left, acceptance):  # type: ignore[no-untyped-def]
            effects, left, accepted = sweep(effects, left, step_size, seeds[i])
            return i + 1, effects, left, acceptance + accepted / num_sweeps

        _, effects, _, acceptance = tf.while_loop(
            lambda i, *_: i < num_sweeps, body, (0, effects, left, tf.constant(0.0))
        )
        effects = [tf.transpose(u) for u in effects]
        return EStep(effects, acceptance, target_log_prob(*effects))

    return e_step


def _trade(
    inner: tf.Tensor,
    outer: tf.Tensor,
    parent: tf.Tensor,
    sd_inner: tf.Tensor,
    sd_outer: tf.Tensor,
    seed: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Add d to each level of the outer factor, and take it from all levels nested in it.

    No linear predictor changes, so the ratings have no say: given everything else, d is normal, by
    the priors alone, for any likelihood. We draw it exactly. Shapes ``[levels, chains]``.
    """
    levels = outer.shape[0]
    children = tf.math.unsorted_segment_sum(tf.ones_like(inner[:, :1]), parent, levels)
    total = tf.math.unsorted_segment_sum(inner, parent, levels)
    weight_inner, weight_outer = 1.0 / tf.square(sd_inner), 1.0 / tf.square(sd_outer)
    precision = weight_outer + children * weight_inner  # [outer levels, 1]
    mean = (total * weight_inner - outer * weight_outer) / precision
    d = mean + tf.math.rsqrt(precision) * tf.random.stateless_normal(outer.shape, seed)
    return inner - tf.gather(d, parent), outer + d


def _shift(
    a: tf.Tensor, b: tf.Tensor, sd_a: tf.Tensor, sd_b: tf.Tensor, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Add d to all levels of one factor, and take it from all of another; as in `_trade`."""
    weight_a, weight_b = 1.0 / tf.square(sd_a), 1.0 / tf.square(sd_b)
    precision = a.shape[0] * weight_a + b.shape[0] * weight_b
    mean = (tf.reduce_sum(b, 0) * weight_b - tf.reduce_sum(a, 0) * weight_a) / precision
    d = mean + tf.math.rsqrt(precision) * tf.random.stateless_normal([a.shape[1]], seed)
    return a + d, b - d
