"""The faults of chapter 7, as mutants of our own engine: each check is green, and red on a mutant.

A check is a function that raises `AssertionError`, or `ValueError` where the package itself
refuses. Its number is that of the fault in the chapter. Errors allowed are in Monte Carlo standard
errors, or in standard errors of the estimates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import lmmbook as lmm
from lmmbook.core import e_step, m_step
from lmmbook.core.model import LinearMixedEffectModel, features_of
from lmmbook.formula import build_design

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from conftest import assert_conditional, conditional_draws

FORMULA = "ratings ~ 1 + (1|departments)"
LEVELS, EACH = 12, 250
START = {"Intercept": 0.0, "sd(departments)": 1.0, "sd(residual)": 1.0}  # the tutorial's


@pytest.fixture(scope="module")
def split() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Many ratings a department: with few, the second fault does not show."""
    rng = np.random.default_rng(7)
    departments = np.repeat(np.arange(LEVELS), EACH)
    ratings = 3.3 + rng.normal(0, 0.4, LEVELS)[departments] + rng.normal(0, 1, LEVELS * EACH)
    data = pd.DataFrame({"departments": pd.Categorical(departments), "ratings": ratings})
    return lmm.train_test_split(data, test_fraction=0.2, seed=0)


@pytest.fixture(scope="module")
def maximum(split) -> pd.DataFrame:
    table = lmm.exact.fit(FORMULA, split[0]).parameters
    assert not table["at_boundary"].any()
    return table


class Result(NamedTuple):
    """What a run of Monte Carlo EM leaves: its last parameters, and effects ``[draws, levels]``."""

    parameters: dict[str, float]
    effects: np.ndarray


@pytest.fixture(scope="module")
def sound(split) -> Result:
    fit = lmm.fit(FORMULA, split[0], seed=7)
    assert fit.converged
    return Result(fit.parameters["estimate"].to_dict(), fit.posterior["departments"])


@pytest.fixture(scope="module")
def leaking(split) -> Result:
    """Faults 2 and 4: Adam without expansion from an intercept of 0, effects kept from all times.

    The package's own parts, and nothing wrong with any of them.
    """
    design = build_design(FORMULA, split[0])
    model = LinearMixedEffectModel(design)
    model.assign(START)
    features, ratings = features_of(design), tf.constant(design.response, tf.float32)

    def target(*u: tf.Tensor) -> tf.Tensor:
        return model(features).log_prob(*u, ratings)

    adam = m_step.adam_m_step(target, model.trainable_variables)
    scales = [tf.fill([LEVELS, 1], tf.constant(EACH**-0.5))]

    @tf.function(autograph=False, jit_compile=True)
    def iteration(effects, seed):
        drawn, _ = e_step.run(target, effects, scales, tf.constant(0.7), 3, 5, seed)
        adam(drawn)
        return drawn

    # As after a warm-up: one chain of draws at the starting values.
    [start] = conditional_draws(design, START, chains=1, seed=0)
    effects, kept = [tf.constant(start.swapaxes(0, 1))], []
    for i in range(400):
        effects = iteration(effects, tf.constant([7, i]))
        kept.append(effects[0].numpy()[0, :, 0])
    return Result(model.parameters(), np.array(kept))


# 1. The variance components never train.


class Frozen(LinearMixedEffectModel):
    """The priors get the present values of the standard deviations, not the variables."""

    def __call__(self, features):
        variables = self.scales
        self.scales = [[tf.convert_to_tensor(scale) for scale in of] for of in variables]
        joint = super().__call__(features)
        self.scales = variables
        return joint


def check_1_every_parameter_has_a_gradient(make: Callable, split) -> None:
    design = build_design(FORMULA, split[0])
    model = make(design)
    model.assign(START)
    joint = model(features_of(design))  # once, before any tape
    ratings = tf.constant(design.response, tf.float32)
    step = m_step.adam_m_step(lambda *u: joint.log_prob(*u, ratings), model.trainable_variables)
    step([2.0 * tf.ones([2, LEVELS, 1])])
    moved = {name: abs(value - START[name]) for name, value in model.parameters().items()}
    assert min(moved.values()) > 0.001  # Adam's first step is 0.01, in a logarithm


def test_1_green(split):
    check_1_every_parameter_has_a_gradient(LinearMixedEffectModel, split)


def test_1_red_where_the_priors_hold_values(split):
    with pytest.raises(ValueError, match=r"expected a gradient .* got None for \['scale"):
        check_1_every_parameter_has_a_gradient(Frozen, split)


def test_1_nothing_else_tells(split):
    """The mutant has the same log density, so a look at the loss would not find it."""
    design = build_design(FORMULA, split[0])
    features, ratings = features_of(design), tf.constant(design.response, tf.float32)
    values = []
    for make in (LinearMixedEffectModel, Frozen):
        model = make(design)
        model.assign(START)
        values.append(float(model(features).log_prob(2.0 * tf.ones([LEVELS, 1]), ratings)))
    assert values[0] == pytest.approx(values[1], rel=1e-6)


# 2. The intercept leaks into the random effects.


def check_2_no_level_is_left_in_the_effects(result: Result) -> None:
    """The mean of a factor's effects, in standard errors of the intercept, as the prior has it."""
    late = result.effects[len(result.effects) // 2 :]
    unit = result.parameters["sd(departments)"] / np.sqrt(LEVELS)
    assert abs(late.mean() / unit) <= 0.2


def test_2_green(sound, maximum):
    check_2_no_level_is_left_in_the_effects(sound)
    away = sound.parameters["Intercept"] - maximum.loc["Intercept", "estimate"]
    assert abs(away) <= 0.2 * maximum.loc["Intercept", "std_error"]


def test_2_red_without_expansion(leaking, maximum):
    with pytest.raises(AssertionError):
        check_2_no_level_is_left_in_the_effects(leaking)
    away = leaking.parameters["Intercept"] - maximum.loc["Intercept", "estimate"]
    assert away < -5 * maximum.loc["Intercept", "std_error"]  # and it is right to be


# 3. A location is read as a spread.


def spread(result: Result, maximum: pd.DataFrame) -> float:
    return result.parameters["sd(departments)"]


def size(result: Result, maximum: pd.DataFrame) -> float:
    """What the eye reads from a histogram that is far from zero."""
    return float(np.sqrt((result.effects.mean(0) ** 2).mean()))


def check_3_the_size_of_a_factor_is_its_spread(read: Callable, result: Result, maximum) -> None:
    value, std_error, _ = maximum.loc["sd(departments)"]
    assert abs(read(result, maximum) - value) <= value * std_error  # std_error is of the logarithm


def test_3_green(sound, maximum):
    check_3_the_size_of_a_factor_is_its_spread(spread, sound, maximum)


@pytest.mark.parametrize("read", [size, spread])  # without expansion the sd itself has to hold it
def test_3_red_where_the_level_counts(read, leaking, maximum):
    with pytest.raises(AssertionError):
        check_3_the_size_of_a_factor_is_its_spread(read, leaking, maximum)


# 4. A prediction mixes times.


def check_4_residuals_are_centred(result: Result, test: pd.DataFrame) -> None:
    predicted = (
        result.parameters["Intercept"] + result.effects.mean(0)[test["departments"].cat.codes]
    )
    left = test["ratings"].to_numpy() - predicted
    assert abs(left.mean()) <= 4 * left.std(ddof=1) / np.sqrt(len(left))


def test_4_green(sound, split):
    check_4_residuals_are_centred(sound, split[1])


def test_4_red_with_the_last_intercept_and_effects_of_all_times(leaking, split):
    with pytest.raises(AssertionError):
        check_4_residuals_are_centred(leaking, split[1])


def test_4_green_with_effects_of_the_intercepts_own_time(leaking, split):
    """The same run, far from the maximum as it is: only the bookkeeping was wrong."""
    check_4_residuals_are_centred(leaking._replace(effects=leaking.effects[-20:]), split[1])


# 5. The cache of HMC is from before the M-step.

HMC = tfp.mcmc.HamiltonianMonteCarlo


def check_5_exact_draws_stay_exact(design, parameters, target: Callable) -> None:
    draws = conditional_draws(design, parameters, chains=3000, seed=5)
    drawn, _ = tf.function(e_step.run, autograph=False)(
        target,
        [tf.constant(u.swapaxes(0, 1)) for u in draws],
        [tf.fill([f.levels, 1], 0.5) for f in design.factors],
        tf.constant(0.5),
        num_leapfrog_steps=3,
        num_steps=1,
        seed=tf.constant([5, 7]),
    )
    assert_conditional(design, parameters, [u.numpy().swapaxes(0, 1) for u in drawn])


def target_of(design, parameters) -> Callable:
    model = LinearMixedEffectModel(design)
    model.assign(parameters)
    joint, ratings = model(features_of(design)), tf.constant(design.response, tf.float32)
    return lambda *u: joint.log_prob(*u, ratings)


def stale(old_target: Callable) -> type:
    """A kernel whose stored log density and gradients are of other parameters."""

    class Stale(HMC):
        def bootstrap_results(self, state):
            return HMC(old_target, self.step_size, self.num_leapfrog_steps).bootstrap_results(state)

    return Stale


def test_5_green(tiny, tiny_design):
    check_5_exact_draws_stay_exact(tiny_design, tiny.truth, target_of(tiny_design, tiny.truth))


@pytest.mark.parametrize("change", [{"Intercept": 2.7}, {"sd(residual)": 0.6}])
def test_5_red_with_results_from_before_the_m_step(tiny, tiny_design, change, monkeypatch):
    old_target = target_of(tiny_design, tiny.truth | change)
    monkeypatch.setattr(e_step.tfp.mcmc, "HamiltonianMonteCarlo", stale(old_target))
    with pytest.raises(AssertionError):
        check_5_exact_draws_stay_exact(tiny_design, tiny.truth, target_of(tiny_design, tiny.truth))


# 6. The smaller ones: no seed, and a curve that is not what is maximised.


def check_6_the_same_seed_gives_the_same_draws(seed: object) -> None:
    def run() -> np.ndarray:
        [drawn], _ = e_step.run(
            lambda u: -0.5 * tf.reduce_sum(u**2, [-2, -1]),
            [tf.zeros([4, 3, 1])], [tf.ones([3, 1])], tf.constant(0.5), 3, 2, seed,
        )  # fmt: skip
        return drawn.numpy()

    np.testing.assert_array_equal(run(), run())


def test_6_seed_green():
    check_6_the_same_seed_gives_the_same_draws(tf.constant([6, 7]))


def test_6_seed_red_without():
    with pytest.raises(AssertionError):
        check_6_the_same_seed_gives_the_same_draws(None)


def check_6_the_curve_is_highest_at_the_maximum(curve: Callable, maximum) -> None:
    """Against effects that hardly spread, where -log p(y, u) sinks without bound."""
    best = maximum["estimate"].to_dict()
    assert curve(best) > curve(best | {"sd(departments)": 1e-12})


def test_6_curve_green(split, maximum):
    check_6_the_curve_is_highest_at_the_maximum(
        lambda values: lmm.exact.log_likelihood(FORMULA, split[0], values), maximum
    )


def test_6_curve_red_where_it_is_the_joint_density_at_a_draw(split, maximum):
    design = build_design(FORMULA, split[0])

    def joint(values: dict[str, float]) -> float:
        # One draw; where the spread is next to nothing, draws are prior draws.
        rng = np.random.default_rng(6)
        if values["sd(departments)"] > 1e-6:
            u = conditional_draws(design, values, chains=1, seed=6)[0][:, 0, 0].astype(float)
        else:
            u = rng.normal(0, values["sd(departments)"], LEVELS)
        left = design.response - values["Intercept"] - u[design.factors[0].codes]
        return sum(
            -0.5 * np.sum((x / sd) ** 2) - len(x) * np.log(sd)
            for x, sd in [(left, values["sd(residual)"]), (u, values["sd(departments)"])]
        )

    with pytest.raises(AssertionError):
        check_6_the_curve_is_highest_at_the_maximum(joint, maximum)
