"""HMC draws from the exact conditional distribution, whatever it is asked to do next."""

from __future__ import annotations

from typing import NamedTuple

import lmmbook as lmm
from lmmbook.core import e_step
from lmmbook.core.model import LinearMixedEffectModel, data_of, features_of, theta_of

import conftest
import numpy as np
import pytest
import tensorflow as tf
from conftest import dense


def conditional_draws(*arguments, **keywords) -> list[np.ndarray]:
    """Chains first, as the joint distribution wants them: ``[chains, levels, columns]``."""
    draws = conftest.conditional_draws(*arguments, **keywords)
    return [np.ascontiguousarray(u.swapaxes(0, 1)) for u in draws]


def assert_conditional(design, parameters, effects) -> None:
    conftest.assert_conditional(design, parameters, [np.asarray(u).swapaxes(0, 1) for u in effects])


CHAINS = 3000  # independent, so that a Monte Carlo standard error needs no autocorrelation
TRANSITIONS = 10


class Drawn(NamedTuple):
    """What `e_step.run` returns."""

    effects: list[tf.Tensor]
    acceptance: tf.Tensor


class Sampler:
    """`e_step.run` on the tiny data, compiled once; it reads the model's current parameters."""

    def __init__(self, design, parameters: dict[str, float]) -> None:
        self.design, self.parameters = design, parameters
        self.model = LinearMixedEffectModel(design)
        self.model.assign(parameters)
        joint = self.model(features_of(design))
        ratings = tf.constant(design.response, tf.float32)
        self.target = lambda *u: joint.log_prob(*u, ratings)
        data, theta = data_of(design), theta_of(design, parameters)
        eta = data.eta(theta, [tf.zeros([f.levels, 1]) for f in design.factors])
        curvature = e_step.curvatures(data, theta, eta)
        self.scales = [e_step.conditional_sd(theta, k, c) for k, c in enumerate(curvature)]
        self._run = tf.function(self._transitions, autograph=False)

    def _transitions(self, effects, step_size, seed):
        result = e_step.run(self.target, effects, self.scales, step_size, 4, TRANSITIONS, seed)
        return Drawn(*result)

    def __call__(self, effects, step_size: float, seed: int) -> Drawn:
        effects = [tf.constant(u, tf.float32) for u in effects]
        return self._run(effects, tf.constant(step_size, tf.float32), tf.constant([seed, 7]))


@pytest.fixture(scope="module")
def shared(tiny, tiny_design) -> Sampler:
    return Sampler(tiny_design, tiny.truth)


@pytest.fixture
def sampler(shared) -> Sampler:
    shared.model.assign(shared.parameters)
    return shared


def zeros(sampler: Sampler, chains: int = CHAINS) -> list[np.ndarray]:
    return [np.zeros((chains, f.levels, 1), np.float32) for f in sampler.design.factors]


@pytest.mark.parametrize("step_size", [0.3, 0.9])  # most are accepted; a good part is not
def test_the_exact_conditional_is_left_as_it_is(sampler, step_size):
    start = conditional_draws(sampler.design, sampler.parameters, CHAINS, seed=1)
    assert_conditional(sampler.design, sampler.parameters, start)
    result = sampler(start, step_size, seed=2)
    assert_conditional(sampler.design, sampler.parameters, result.effects)
    if step_size > 0.5:
        assert result.acceptance < 0.9  # so that the accept step has something to do
    for before, after in zip(start, result.effects, strict=True):
        assert np.all(np.any(before != np.asarray(after), axis=(1, 2)))  # every chain has moved


def test_chains_from_far_away_come_to_the_exact_conditional(sampler):
    effects = [u + 4 for u in zeros(sampler)]
    for seed in range(15):
        effects = sampler(effects, 0.6, seed).effects
    assert_conditional(sampler.design, sampler.parameters, effects)


def test_wrong_parameters_would_have_been_noticed(sampler):
    """The two tests above have the power to fail: 15% more residual sd does not pass."""
    sampler.model.assign(
        sampler.parameters | {"sd(residual)": 1.15 * sampler.parameters["sd(residual)"]}
    )
    effects = [u + 4 for u in zeros(sampler)]
    for seed in range(15):
        effects = sampler(effects, 0.6, seed).effects
    with pytest.raises(AssertionError):
        assert_conditional(sampler.design, sampler.parameters, effects)


def test_a_seed_decides_the_draws(sampler):
    one, again, other = (sampler(zeros(sampler), 0.6, seed) for seed in (5, 5, 6))
    for u, same, different in zip(one.effects, again.effects, other.effects, strict=True):
        np.testing.assert_array_equal(u, same)
        assert np.all(np.any(np.asarray(u) != np.asarray(different), axis=(1, 2)))
    # Chains start in the same place and part.
    assert len(np.unique(np.asarray(one.effects[0]), axis=0)) == CHAINS


@pytest.mark.parametrize("start", [0.01, 5.0])
def test_adaptation_brings_the_acceptance_to_its_target(sampler, start):
    effects, step_size = zeros(sampler), tf.constant(start)
    acceptance = []
    for seed in range(40):
        result = sampler(effects, step_size, seed)
        effects = result.effects
        step_size = e_step.adapt_step_size(step_size, result.acceptance, gain=1.0)
        acceptance.append(float(result.acceptance))
    assert 0.6 < acceptance[-1] < 0.99
    assert abs(np.mean(acceptance[-10:]) - e_step.TARGET_ACCEPTANCE) < 0.05


def test_adaptation_goes_the_right_way_and_can_be_off():
    step = tf.constant(0.5)
    assert e_step.adapt_step_size(step, tf.constant(0.95), 0.3) > 0.5
    assert e_step.adapt_step_size(step, tf.constant(0.1), 0.3) < 0.5
    assert e_step.adapt_step_size(step, tf.constant(0.1), 0.0) == 0.5


def test_scales_are_the_sds_given_all_other_levels(sampler):
    *_, z, prior = dense(sampler.design, sampler.parameters)
    precision = z.T @ z / sampler.parameters["sd(residual)"] ** 2 + np.linalg.inv(prior)
    truth = 1 / np.sqrt(np.diag(precision))
    np.testing.assert_allclose(np.concatenate(sampler.scales)[:, 0], truth, rtol=1e-5)


def test_nothing_is_remembered_from_the_old_parameters(sampler):
    """After the parameters have changed the draws come to the new conditional distribution."""
    effects = sampler(zeros(sampler), 0.6, seed=1).effects
    other = {name: value + 0.5 for name, value in sampler.parameters.items()}
    sampler.model.assign(other)
    for seed in range(15):
        effects = sampler(effects, 0.6, seed).effects
    assert_conditional(sampler.design, other, effects)
    with pytest.raises(AssertionError):
        assert_conditional(sampler.design, sampler.parameters, effects)


@pytest.mark.parametrize("step_size", [1e3, 1e15, 1e30])  # far off; overflow to inf; to NaN
def test_a_diverged_trajectory_is_rejected(sampler, step_size):
    start = conditional_draws(sampler.design, sampler.parameters, CHAINS, seed=3)
    result = sampler(start, step_size, seed=4)
    assert result.acceptance == 0.0
    for before, after in zip(start, result.effects, strict=True):
        np.testing.assert_array_equal(after, before)


def test_one_diverged_chain_does_not_touch_the_others(sampler):
    start = conditional_draws(sampler.design, sampler.parameters, CHAINS, seed=3)
    spoilt = [u.copy() for u in start]
    spoilt[0][0] = 1e25  # its log density overflows
    clean, mixed = (sampler(u, 0.6, seed=4) for u in (start, spoilt))
    for one, two in zip(clean.effects, mixed.effects, strict=True):
        np.testing.assert_allclose(one[1:], two[1:], rtol=1e-5, atol=1e-5)
    assert np.isfinite(mixed.acceptance)


def test_the_device_is_named():
    says_gpu = lmm.describe_device().startswith("GPU found")
    assert says_gpu == bool(tf.config.list_physical_devices("GPU"))


def test_tf32_is_off():
    assert not tf.config.experimental.tensor_float_32_execution_enabled()
