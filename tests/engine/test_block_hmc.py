"""HMC level by level draws from the same distribution, and moves what nobody can see."""

from __future__ import annotations

from lmmbook.core import e_step
from lmmbook.core.model import LinearMixedEffectModel, features_of
from lmmbook.engine import arrays, iteration
from lmmbook.engine.e_step import adaptation, block_hmc
from lmmbook.engine.e_step.group_moves import group_move
from lmmbook.engine.linear_predictor import linear_predictor
from lmmbook.formula import build_design
from lmmbook.formula.covariance import parameter_names
from lmmbook.formula.invariances import directions

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from conftest import Simulated, assert_conditional, conditional_draws

CHAINS = 3000
SWEEPS = 4


def sloped() -> Simulated:
    """Correlated slopes beside a crossed intercept; x is not centred."""
    rng = np.random.default_rng(4)
    rows = 60
    data = pd.DataFrame(
        {
            "g": np.concatenate([np.arange(5), rng.choice(5, rows - 5, p=np.arange(1, 6) / 15)]),
            "h": rng.permutation(np.resize(list("wxyz"), rows)),
            "x": rng.normal(1.0, 1.0, rows),
            "y": rng.normal(size=rows),
        }
    )
    formula = "y ~ x + (1 + x|g) + (1|h)"
    values = [3.0, -0.5, 0.9, 0.6, -0.4, 0.5, 0.8]
    names = parameter_names(build_design(formula, data))
    return Simulated(formula, data, dict(zip(names, values, strict=True)))


def nested_slopes() -> Simulated:
    """Slopes in both of two nested factors: their intercepts trade, and so do their slopes."""
    rng = np.random.default_rng(5)
    block = np.repeat(np.arange(4), 18)
    pot = np.tile(np.repeat(np.arange(3), 6), 4)
    data = pd.DataFrame({"block": block, "pot": pot, "x": rng.normal(size=72)})
    data["y"] = rng.normal(size=72)
    formula = "y ~ x + (1 + x||block/pot)"
    values = [1.0, 0.3, 0.9, 0.5, 0.6, 0.4, 0.8]
    names = parameter_names(build_design(formula, data))
    return Simulated(formula, data, dict(zip(names, values, strict=True)))


class Sampler:
    """Sweeps on simulated data at known parameters, compiled once."""

    def __init__(self, simulated: Simulated) -> None:
        self.design = build_design(simulated.formula, simulated.data)
        self.truth = simulated.truth
        self.layout, self.arrays = arrays.on_device(self.design, CHAINS)
        self.parameters = arrays.to_parameters(self.design, simulated.truth)
        self.run = tf.function(self._sweeps, autograph=False, jit_compile=True)

    def _sweeps(self, effects, step_sizes, seed):
        state = arrays.State(self.parameters, effects, step_sizes)
        state = iteration.begin(self.layout, self.arrays, state, True)
        acceptance = 0.0
        for i in range(SWEEPS):
            state, accepted = block_hmc.sweep(self.layout, self.arrays, state, seed + [0, i])
            acceptance += tf.stack([tf.reduce_mean(a) for a in accepted]) / SWEEPS
        return state.effects, state.predictor, acceptance

    def __call__(self, effects, step_size: float, seed: int):
        sizes = [tf.fill([f.levels], np.float32(step_size)) for f in self.design.factors]
        return self.run([tf.constant(u) for u in effects], sizes, tf.constant([seed, 5]))

    def exact_draws(self, seed: int) -> list[np.ndarray]:
        return conditional_draws(self.design, self.truth, CHAINS, seed)

    def linear_predictor(self, effects) -> np.ndarray:
        return sum(
            np.einsum("rcj,rj->rc", np.asarray(u)[f.codes], f.z)
            for u, f in zip(effects, self.design.factors, strict=True)
        )


@pytest.fixture(scope="module", params=["tiny", "nested", sloped, nested_slopes])
def sampler(request) -> Sampler:
    simulated = request.param
    return Sampler(
        request.getfixturevalue(simulated) if isinstance(simulated, str) else simulated()
    )


@pytest.mark.parametrize("step_size", [0.2, adaptation.MAX_STEP_SIZE, 1.7])
def test_the_exact_conditional_is_left_as_it_is(sampler, step_size):
    start = sampler.exact_draws(seed=1)
    effects, predictor, acceptance = sampler(start, step_size, seed=2)
    assert_conditional(sampler.design, sampler.truth, effects)
    if step_size > 1:
        assert np.all(acceptance < 0.9)  # so that the accept step has something to do
    else:
        # Two leapfrog steps of an eighth of a turn: in two columns their energy errs by more.
        assert np.all(acceptance > 0.88)
    for before, after in zip(start, effects, strict=True):
        assert np.abs(after - before).mean() > 0.1 * before.std(1).mean()  # and it does move
    fresh = linear_predictor(sampler.arrays, sampler.parameters, effects)
    np.testing.assert_allclose(predictor, fresh, atol=1e-4)


def test_a_start_far_away_is_forgotten(sampler):
    effects = [np.full_like(u, 3.0) for u in sampler.exact_draws(seed=0)]
    for seed in range(15):
        effects = [u.numpy() for u in sampler(effects, adaptation.MAX_STEP_SIZE, seed)[0]]
    assert_conditional(sampler.design, sampler.truth, effects)


def test_the_seed_decides(sampler):
    start = sampler.exact_draws(seed=3)
    one, same, other = (sampler(start, 0.5, seed)[0] for seed in (4, 4, 5))
    np.testing.assert_array_equal(one[0], same[0])
    assert np.abs(one[0] - other[0]).max() > 0.1


def test_a_translation_changes_no_prediction_and_keeps_the_conditional(sampler):
    start = sampler.exact_draws(seed=6)
    assert sampler.layout.group_moves
    for t, (inner, outer, _) in enumerate(sampler.layout.group_moves):
        moved = group_move(
            sampler.layout, sampler.arrays, sampler.parameters, t,
            [tf.constant(u) for u in start], tf.constant([7, t]),
        )  # fmt: skip
        np.testing.assert_allclose(
            sampler.linear_predictor(moved), sampler.linear_predictor(start), atol=2e-5
        )
        for k, column in (inner, outer):
            assert np.abs(moved[k] - start[k])[..., column].mean() > 0.03
        assert_conditional(sampler.design, sampler.truth, [u.numpy() for u in moved])


def test_joint_and_level_by_level_draw_from_the_same_distribution(sampler):
    """Both from a start far away, each against the exact conditional."""
    model = LinearMixedEffectModel(sampler.design)
    model.assign(sampler.truth)
    joint = model(features_of(sampler.design))
    ratings = tf.constant(sampler.design.response, tf.float32)
    scales = [tf.fill([f.levels, len(f.effects)], 0.3) for f in sampler.design.factors]
    run = tf.function(
        lambda u, seed: e_step.run(
            lambda *v: joint.log_prob(*v, ratings), u, scales, tf.constant(0.4), 6, 40, seed
        ),
        autograph=False,
        jit_compile=True,
    )
    effects = [tf.ones([CHAINS, f.levels, len(f.effects)]) for f in sampler.design.factors]
    for seed in range(5):
        effects, _ = run(effects, tf.constant([seed, 9]))
    jointly = [u.numpy().swapaxes(0, 1) for u in effects]
    assert_conditional(sampler.design, sampler.truth, jointly)
    effects = [np.ones_like(u) for u in jointly]
    for seed in range(10):
        effects = [u.numpy() for u in sampler(effects, adaptation.MAX_STEP_SIZE, seed)[0]]
    assert_conditional(sampler.design, sampler.truth, effects)


def test_adaptation_shortens_what_is_refused_and_keeps_to_its_limit():
    sizes = tf.constant([0.3, adaptation.MAX_STEP_SIZE])
    [shorter] = adaptation.adapt([sizes], [tf.constant([0.2, 0.2])], tf.constant(0.3))
    assert np.all(shorter < sizes)
    [longer] = adaptation.adapt([sizes], [tf.constant([1.0, 1.0])], tf.constant(0.3))
    assert longer[0] > 0.3
    assert float(longer[1]) == pytest.approx(adaptation.MAX_STEP_SIZE)


# Directions, found from the data


def test_nesting_is_found(tiny_design, nested, insteval):
    assert all(t.groups == 1 for t in directions.group_moves(tiny_design))  # shifts only
    design = build_design(nested.formula, nested.data)
    block, pot = (
        next(f for f in design.factors if f.name == name) for name in ("block", "block:pot")
    )
    parent = directions.parents(pot, block)
    expected = [int(label.split(":")[0]) for label in pot.labels]
    np.testing.assert_array_equal(block.labels[parent], expected)
    assert directions.parents(block, pot) is None

    formula = "ratings ~ service + (1|students) + (1|instructors) + (1|departments)"
    found = directions.group_moves(build_design(formula, insteval))
    # instructors in departments, and the three pairs
    assert sorted((t.inner[0], t.outer[0], t.groups) for t in found) == [
        (0, 1, 1), (0, 2, 1), (1, 2, 1), (1, 2, 14)
    ]  # fmt: skip


def test_what_is_constant_within_levels_is_expanded():
    rng = np.random.default_rng(0)
    data = pd.DataFrame({"g": np.resize(np.arange(12), 96), "h": np.repeat(np.arange(8), 12)})
    data = data.assign(x=rng.normal(size=96), y=rng.normal(size=96))
    data["age"] = rng.normal(size=12)[data["g"]]
    design = build_design("y ~ age*x + (1 + x|g) + (1|h)", data)
    assert design.fixed_names == ("Intercept", "age", "x", "age:x")
    of_g, of_h = (directions.expanded(design, f) for f in design.factors)
    assert dict(zip(of_g.fixed, of_g.columns, strict=True)) == {0: 0, 1: 0, 2: 1, 3: 1}
    assert of_h.fixed == (0,)
    for c, j, w in zip(of_g.fixed, of_g.columns, of_g.weights.T, strict=True):
        factor = design.factors[0]
        np.testing.assert_allclose(design.fixed[:, c], w[factor.codes] * factor.z[:, j])

    alone = build_design("y ~ 1 + (0 + x|g)", data)
    assert directions.expanded(alone, alone.factors[0]).fixed == ()  # no slope to fold into
    assert directions.expanded(build_design("y ~ 0 + x + (1|g)", data), alone.factors[0]).fixed == (
        0,
    )
    few = data.assign(h=data["g"] % 3, a=data["g"] % 3 == 1)
    design = build_design("y ~ a + (1|h)", few)
    assert len(directions.expanded(design, design.factors[0]).fixed) == 1  # of three levels
