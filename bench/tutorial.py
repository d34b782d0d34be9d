"""The algorithm of TensorFlow Probability's tutorial "Linear Mixed Effects Models", as published.

The algorithm and its settings are the tutorial's, faults included; the code is ours. It is here to
be measured, not to be used. What is wrong with it, and is kept:

- The priors' scales are computed once, when the joint distribution is built, outside of the
  gradient tape. So the three standard deviations have no gradient, and stay at exp(0) = 1.
- The intercept starts at 0 and takes Adam steps of at most 0.01, while the effects of a single
  chain have already absorbed the mean rating.
- The results of the last HMC step, with the log density and the gradients at the *old* parameters,
  are handed to the next one after the parameters have moved.
- The residual standard deviation is fixed at 1, and the step size is never adapted.

What differs: everything is seeded, and it is given all rows, as the other methods are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import lmmbook as lmm

import numpy as np
import pandas as pd
import tensorflow as tf
import tensorflow_probability as tfp
import tf_keras
from measure import FACTORS, FORMULA, functionals, kernel_record

tfb = tfp.bijectors
tfd = tfp.distributions

STEP_SIZE, LEAPFROG_STEPS = 0.015, 3
WARM_UP, ITERATIONS, E_STEPS = 1_000, 1_500, 5
LEARNING_RATE = 0.01


class Model(tf.Module):
    """The tutorial's parameters, and the joint distribution that is built from them once."""

    def __init__(self) -> None:
        self.intercept = tf.Variable(0.0, name="intercept")
        self.service = tf.Variable(0.0, name="service")
        self.sds = [
            tfp.util.TransformedVariable(1.0, tfb.Exp(), name=f"sd_{name}") for name in FACTORS
        ]

    def joint(self, data: pd.DataFrame, residual_sd: float = 1.0) -> tfd.JointDistribution:
        service = tf.constant(data["service"].to_numpy(), tf.float32)
        codes = [tf.constant(data[name].cat.codes.to_numpy(), tf.int32) for name in FACTORS]
        sizes = [len(data[name].cat.categories) for name in FACTORS]

        def ratings(departments: tf.Tensor, instructors: tf.Tensor, students: tf.Tensor) -> Any:
            loc = self.intercept + self.service * service
            for u, code in zip((students, instructors, departments), codes, strict=True):
                loc += tf.gather(u, code, axis=-1)
            return tfd.Independent(tfd.Normal(loc, residual_sd), reinterpreted_batch_ndims=1)

        # The fault: `sd * ones` is a plain tensor from here on. No tape sees the variable again.
        priors = [
            tfd.MultivariateNormalDiag(scale_diag=sd * tf.ones(n))
            for sd, n in zip(self.sds, sizes, strict=True)
        ]
        return tfd.JointDistributionSequential([*priors, ratings])

    def estimates(self) -> dict[str, float]:
        pairs = zip(FACTORS, self.sds, strict=True)
        sds = {f"sd({name})": float(tf.convert_to_tensor(sd)) for name, sd in pairs}
        fixed = {"Intercept": float(self.intercept), "service": float(self.service)}
        return fixed | sds | {"sd(residual)": 1.0}


@dataclass
class Run:
    """A run of the tutorial: what it estimates, and how long compiling and running took."""

    estimates: dict[str, float]
    compile_seconds: float
    run_seconds: float
    acceptance: float
    loss: np.ndarray = field(repr=False)
    effects: list[np.ndarray] = field(repr=False)  # [iterations, levels], one a factor


def fit(
    data: pd.DataFrame,
    seed: int,
    *,
    warm_up: int = WARM_UP,
    iterations: int = ITERATIONS,
    compiled_loop: bool = False,
) -> Run:
    """Run the published algorithm.

    With ``compiled_loop`` the HMC steps between two visits to Python are one compiled program, as
    the tutorial suggests for speed; else one step is, as in its code.
    """
    tf.random.set_seed(seed)
    model = Model()
    joint = model.joint(data)
    ratings = tf.constant(data["ratings"].to_numpy(), tf.float32)

    def target_log_prob(*effects: tf.Tensor) -> tf.Tensor:
        return joint.log_prob([*effects, ratings])

    clock = _Clock()
    # One seed for every HMC step, drawn beforehand.
    seeds = np.random.default_rng(seed).integers(
        0, 2**31 - 1, [warm_up + iterations * E_STEPS, 2], np.int32
    )
    state = list(joint.sample()[:-1])
    hmc = _kernel(target_log_prob)
    results = hmc.bootstrap_results(state)
    m_step = clock.first_call_compiles(_m_step(target_log_prob, model))
    if compiled_loop:
        e_steps = clock.first_call_compiles(_compiled_e_steps(hmc, seeds))
        e_steps(state, results, tf.constant(0), tf.constant(0))  # no step: only compiles
    else:
        e_step = clock.first_call_compiles(_e_step(hmc))

    def run_e_steps(start: int, stop: int, state: list, results: Any) -> tuple[list, Any]:
        if compiled_loop:
            return e_steps(state, results, tf.constant(start), tf.constant(stop))
        for seed in seeds[start:stop]:
            state, results = e_step(state, results, seed)
        return state, results

    state, results = run_e_steps(0, warm_up, state, results)
    history = [np.zeros([iterations, u.shape[0]]) for u in state]
    loss, accepted = np.zeros(iterations), np.zeros(iterations)
    for t in range(iterations):
        start = warm_up + t * E_STEPS
        state, results = run_e_steps(start, start + E_STEPS, state, results)
        loss[t] = m_step(state).numpy()
        accepted[t] = results.is_accepted.numpy()
        for kept, u in zip(history, state, strict=True):
            kept[t] = u.numpy()
    total = clock.elapsed()
    return Run(
        model.estimates(), clock.compiling, total - clock.compiling, accepted.mean(), loss, history
    )


class _Clock:
    """Tells compiling from running: the first call of a program compiles it.

    That call also runs the program once, and this is counted as compiling: a few milliseconds.
    """

    def __init__(self) -> None:
        self.started, self.compiling = time.perf_counter(), 0.0

    def elapsed(self) -> float:
        return time.perf_counter() - self.started

    def first_call_compiles(self, program: Callable) -> Callable:
        called = False

        def timed(*arguments: Any) -> Any:
            nonlocal called
            if called:
                return program(*arguments)
            called, started = True, time.perf_counter()
            result = program(*arguments)
            tf.nest.map_structure(lambda x: x.numpy() if tf.is_tensor(x) else x, result)
            self.compiling += time.perf_counter() - started
            return result

        return timed


def _kernel(target_log_prob: Callable) -> tfp.mcmc.HamiltonianMonteCarlo:
    return tfp.mcmc.HamiltonianMonteCarlo(
        target_log_prob, step_size=STEP_SIZE, num_leapfrog_steps=LEAPFROG_STEPS
    )


def _e_step(hmc: tfp.mcmc.HamiltonianMonteCarlo) -> Callable:
    @tf.function(autograph=False, jit_compile=True)
    def one_e_step(state, results, seed):
        return hmc.one_step(state, results, seed=seed)

    return one_e_step


def _compiled_e_steps(hmc: tfp.mcmc.HamiltonianMonteCarlo, seeds: np.ndarray) -> Callable:
    """HMC steps ``start`` to ``stop`` in one program; the stale cache as before."""

    @tf.function(autograph=False, jit_compile=True)
    def some_e_steps(state, results, start, stop):
        def step(i, state, results):
            return i + 1, *hmc.one_step(state, results, seed=tf.gather(seeds, i))

        _, state, results = tf.while_loop(lambda i, *_: i < stop, step, (start, state, results))
        return state, results

    return some_e_steps


def _m_step(target_log_prob: Callable, model: Model) -> Callable:
    optimizer = tf_keras.optimizers.Adam(learning_rate=LEARNING_RATE)
    variables = model.trainable_variables

    @tf.function(autograph=False, jit_compile=True)
    def one_m_step(state):
        with tf.GradientTape() as tape:
            loss = -target_log_prob(*state)
        gradients = tape.gradient(loss, variables)
        # Three of the five are None. Keras leaves those out with a warning; we, without.
        pairs = zip(gradients, variables, strict=True)
        optimizer.apply_gradients([(g, v) for g, v in pairs if g is not None])
        return loss

    return one_m_step


def kernel(
    data: pd.DataFrame,
    parameters: Mapping[str, float],
    seed: int,
    *,
    steps: int = 20_000,
    chains: int = 8,
) -> dict[str, Any]:
    """What an effective draw costs with the tutorial's kernel, at fixed parameters.

    The parameters are those of the exact maximum, all four standard deviations included: the
    kernel is judged on the distribution that it ought to sample. It starts close to it, at the
    exact means and standard deviations of the effects, and a tenth of the steps is warm-up.
    """
    moments = lmm.exact.effects(FORMULA, data, parameters)
    rng = np.random.default_rng(seed)
    start = [
        tf.constant(rng.normal(table["mean"], table["sd"], [chains, len(table)]), tf.float32)
        for table in (moments[name] for name in FACTORS)
    ]
    hmc = _kernel(_target_at(data, parameters))

    @tf.function(autograph=False, jit_compile=True)
    def sample(effects, seeds):
        def step(i, effects, results, values, accepted):
            effects, results = hmc.one_step(effects, results, seed=tf.gather(seeds, i))
            log_density = results.accepted_results.target_log_prob
            values = values.write(i, functionals(effects, log_density))
            accepted += tf.reduce_mean(tf.cast(results.is_accepted, tf.float32)) / steps
            return i + 1, effects, results, values, accepted

        # Functionals are kept, not effects: those would be gigabytes.
        values = tf.TensorArray(tf.float32, steps, element_shape=[chains, 2 * len(FACTORS) + 1])
        start = (0, effects, hmc.bootstrap_results(effects), values, 0.0)
        *_, values, accepted = tf.while_loop(lambda i, *_: i < steps, step, start)
        return values.stack(), accepted

    seeds = tf.constant(rng.integers(0, 2**31 - 1, [steps, 2]), tf.int32)
    started = time.perf_counter()
    values, accepted = sample(start, seeds)
    values = values.numpy()[steps // 10 :]
    seconds = time.perf_counter() - started
    record = kernel_record(values, gradients=len(values) * chains * LEAPFROG_STEPS)
    return record | {"acceptance": float(accepted), "seconds_with_compiling": seconds}


def _target_at(data: pd.DataFrame, parameters: Mapping[str, float]) -> Callable:
    """log p(ratings, effects) at these parameters, for effects ``[chains, levels]``."""
    model = Model()
    values = {name: np.float32(value) for name, value in parameters.items()}
    model.intercept.assign(values["Intercept"])
    model.service.assign(values["service"])
    for name, sd in zip(FACTORS, model.sds, strict=True):
        sd.assign(values[f"sd({name})"])
    joint = model.joint(data, values["sd(residual)"])
    ratings = tf.constant(data["ratings"].to_numpy(), tf.float32)
    return lambda *effects: joint.log_prob([*effects, ratings])
