"""HMC level by level draws from the same distribution, and trades only what nobody can see."""

from __future__ import annotations

from lmmbook import levels, mcem
from lmmbook.formula import build_design
from lmmbook.model import LinearMixedEffectModel, features_of

import numpy as np
import pytest
import tensorflow as tf
from conftest import assert_conditional, conditional_draws

CHAINS = 3000
SWEEPS = 4


class Sampler:
    """`levelwise_e_step` on simulated data at its true parameters, compiled once."""

    def __init__(self, simulated) -> None:
        self.design = build_design(simulated.formula, simulated.data)
        self.parameters = simulated.truth
        sizes = {f.name: f.levels for f in self.design.factors}
        self.model = LinearMixedEffectModel(self.design.fixed_names, sizes, None)
        self.model.assign(self.parameters)
        features = features_of(self.design)
        joint = self.model(features)
        ratings = tf.constant(self.design.response, tf.float32)
        self.run = tf.function(
            levels.levelwise_e_step(
                self.model, self.design, features, lambda *u: joint.log_prob(*u, ratings), SWEEPS
            ),
            autograph=False,
            jit_compile=True,
        )

    def __call__(self, effects, step_size: float, seed: int):
        effects = [tf.constant(u, tf.float32) for u in effects]
        return self.run(effects, tf.constant(step_size, tf.float32), tf.constant([seed, 5]))

    def exact_draws(self, seed: int) -> list[np.ndarray]:
        return conditional_draws(self.design, self.parameters, CHAINS, seed)

    def linear_predictor(self, effects) -> np.ndarray:
        return sum(
            np.asarray(u)[:, f.codes] for u, f in zip(effects, self.design.factors, strict=True)
        )


@pytest.fixture(scope="module", params=["tiny", "nested"])
def sampler(request) -> Sampler:
    return Sampler(request.getfixturevalue(request.param))


@pytest.mark.parametrize("step_size", [0.3, 1.0, 3.0])
def test_the_exact_conditional_is_left_as_it_is(sampler, step_size):
    start = sampler.exact_draws(seed=1)
    result = sampler(start, step_size, seed=2)
    assert_conditional(sampler.design, sampler.parameters, result.effects)
    assert result.acceptance > 0.95 or step_size > 1
    if step_size > 1:
        assert result.acceptance < 0.9  # so that the accept step has something to do
    for before, after in zip(start, result.effects, strict=True):
        assert np.abs(after - before).mean() > 0.1 * before.std(0).mean()  # and it does move


def test_a_start_far_away_is_forgotten(sampler):
    effects = [np.full((CHAINS, f.levels), 3.0, np.float32) for f in sampler.design.factors]
    for seed in range(15):
        effects = sampler(effects, 1.0, seed).effects
    assert_conditional(sampler.design, sampler.parameters, effects)


def test_the_seed_decides(sampler):
    start = sampler.exact_draws(seed=3)
    one, same, other = (sampler(start, 1.0, seed) for seed in (4, 4, 5))
    np.testing.assert_array_equal(one.effects[0], same.effects[0])
    assert np.abs(one.effects[0] - other.effects[0]).max() > 0.1


def test_a_trade_changes_no_prediction_and_keeps_the_conditional(nested):
    sampler = Sampler(nested)
    start = sampler.exact_draws(seed=6)
    (inner, outer, parent) = levels.nestings(sampler.design)[0]
    sds = [sampler.parameters[f"sd({f.name})"] for f in sampler.design.factors]
    transposed = [tf.constant(u.T) for u in start]
    moved = list(start)
    pair = levels._trade(
        transposed[inner], transposed[outer], tf.constant(parent, tf.int32),
        tf.constant(sds[inner], tf.float32), tf.constant(sds[outer], tf.float32),
        tf.constant([7, 8]),
    )  # fmt: skip
    moved[inner], moved[outer] = (u.numpy().T for u in pair)
    before, after = sampler.linear_predictor(start), sampler.linear_predictor(moved)
    np.testing.assert_allclose(after, before, atol=1e-5)
    assert np.abs(moved[outer] - start[outer]).mean() > 0.1
    assert_conditional(sampler.design, sampler.parameters, moved)


def test_a_shift_changes_no_prediction_and_keeps_the_conditional(sampler):
    start = sampler.exact_draws(seed=9)
    sds = [
        tf.constant(sampler.parameters[f"sd({f.name})"], tf.float32) for f in sampler.design.factors
    ]
    pair = levels._shift(*(tf.constant(u.T) for u in start), *sds, tf.constant([1, 2]))
    moved = [u.numpy().T for u in pair]
    np.testing.assert_allclose(
        sampler.linear_predictor(moved), sampler.linear_predictor(start), atol=1e-5
    )
    assert np.abs(moved[0] - start[0]).mean() > 0.05
    assert_conditional(sampler.design, sampler.parameters, moved)


def test_nesting_is_found_in_the_data(tiny_design, nested, insteval):
    assert levels.nestings(tiny_design) == []
    design = build_design(nested.formula, nested.data)
    [(inner, outer, parent)] = levels.nestings(design)
    assert (design.factors[inner].name, design.factors[outer].name) == ("block:pot", "block")
    expected = [int(label.split(":")[0]) for label in design.factors[inner].labels]
    np.testing.assert_array_equal(design.factors[outer].labels[parent], expected)

    formula = "ratings ~ 1 + (1|students) + (1|instructors) + (1|departments)"
    found = levels.nestings(build_design(formula, insteval))
    assert [pair[:2] for pair in found] == [(1, 2)]  # instructors in departments, and no other


def test_the_fit_goes_level_by_level(tiny, monkeypatch):
    built = []
    loop = mcem.Loop.__init__

    def watch(self, *args, **keywords):
        loop(self, *args, **keywords)
        built.append(self.e_step.__qualname__)

    monkeypatch.setattr(mcem.Loop, "__init__", watch)
    fit = mcem.fit(tiny.formula, tiny.data, seed=0, max_sweeps=400)
    assert built == ["levelwise_e_step.<locals>.e_step"]
    assert fit.trace["acceptance"].min() > 0.9
