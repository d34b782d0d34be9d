"""HMC level by level, where a likelihood is not Gaussian, draws from the exact conditional.

Exact by sums over a fine grid: given the parameters, the levels of a lone factor are independent,
and so are blocks with the pots inside them.
"""

from __future__ import annotations

from typing import NamedTuple

from lmmbook.engine import arrays, iteration, program
from lmmbook.engine.e_step import adaptation, block_hmc
from lmmbook.engine.linear_predictor import linear_predictor
from lmmbook.families import Bernoulli, Categorical, Cumulative, Custom, Family, Poisson
from lmmbook.formula import build_design
from lmmbook.formula.design import Design

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

tfb, tfd = tfp.bijectors, tfp.distributions

CHAINS = 4000
GRID = np.linspace(-8, 8, 1601)
SD = 1.2
FAMILIES = {
    "cumulative": (
        Cumulative(), {"threshold(1|2)": -1.0, "threshold(2|3)": 0.2, "threshold(3|4)": 1.5},
        lambda u: np.digitize(4 * u, [1, 2, 3]) + 1,
    ),
    "bernoulli": (Bernoulli(), {"Intercept": 0.8}, lambda u: (u < 0.7).astype(int)),
    "poisson": (Poisson(), {"Intercept": -0.3}, lambda u: stats.poisson.ppf(u, 1.0).astype(int)),
    "categorical": (
        Categorical(),
        {"intercept(bus)": 0.5, "intercept(car)": -0.2, "score(bus)": 0.3},
        lambda u: np.array(["bike", "bus", "car"])[np.digitize(3 * u, [1, 2])],
    ),
    "custom": (
        Custom(lambda loc, scale: tfd.StudentT(3.0, loc, scale), {"scale": tfb.Exp()}),
        {"Intercept": 0.2, "scale": 0.9},
        stats.norm(0.5, 1.5).ppf,
    ),
}  # fmt: skip


def made(name: str, nested: bool = False) -> tuple[Design, dict[str, float]]:
    """Few rows a level, so that the likelihood is far from normal; one covariate, one offset."""
    rng = np.random.default_rng(7)
    g = np.repeat(np.arange(12), [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 12])
    data = pd.DataFrame({"g": g, "block": g % 4, "x": rng.normal(size=len(g))})
    data["t"] = rng.normal(0, 0.3, len(g))
    family, values, response = FAMILIES[name]
    data["y"] = response(rng.uniform(size=len(g)))
    group = "(1|block/g)" if nested else "(1|g)"
    design = build_design(f"y ~ x + offset(np.sin(t)) + {group}", data, family)
    sds = {"sd(block)": 0.9, "sd(block:g)": SD} if nested else {"sd(g)": SD}
    return design, values | {"x": 0.4} | sds


def row_densities(design: Design, values: dict[str, float]) -> np.ndarray:
    """``[rows, grid]``: each row's log density at an effect, by the distribution."""
    family: Family = design.family
    intercept, auxiliary = family.unconstrain(values)
    fixed = design.offset + design.fixed @ np.array([intercept, values["x"]])
    distribution = family.distribution(
        tf.constant(fixed[:, np.newaxis] + GRID), tf.constant(auxiliary, tf.float64)
    )
    y = np.broadcast_to(design.response[:, np.newaxis], (design.rows, len(GRID)))
    return distribution.log_prob(tf.constant(y)).numpy()


def normalised(log_density: np.ndarray) -> np.ndarray:
    weights = np.exp(log_density - log_density.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


class Exact(NamedTuple):
    """Weights of the grid's points, ``[levels, grid]`` a factor."""

    weights: list[np.ndarray]

    def check(self, effects: list[np.ndarray]) -> None:
        """Means and variances within 5 Monte Carlo standard errors, and the whole distribution by
        Kolmogorov and Smirnov; the draws of different chains are independent."""
        for weights, u in zip(self.weights, effects, strict=True):
            draws = np.asarray(u, float)[..., 0]  # [levels, chains]
            mean = weights @ GRID
            away = GRID - mean[:, np.newaxis]
            second, fourth = ((weights * away**power).sum(1) for power in (2, 4))
            n = draws.shape[1]
            z_mean = (draws.mean(1) - mean) / np.sqrt(second / n)
            squares = ((draws - mean[:, np.newaxis]) ** 2).mean(1)
            z_square = (squares - second) / np.sqrt((fourth - second**2) / n)
            assert np.abs(z_mean).max() < 5
            assert np.abs(z_square).max() < 5
            # A small error that all levels share adds up; these sums are sums of independent ones.
            assert abs(z_mean.sum()) < 5 * np.sqrt(len(mean))
            assert abs(z_square.sum()) < 5 * np.sqrt(len(mean))
            for level, weight in zip(draws, weights, strict=True):
                cdf = np.cumsum(weight) - weight / 2
                up_to = np.interp(level, GRID, cdf)
                assert stats.kstest(up_to, "uniform").pvalue > 1e-5

    def draw(self, seed: int) -> list[np.ndarray]:
        """Independent draws, for a lone factor."""
        rng = np.random.default_rng(seed)
        return [
            np.stack([np.interp(rng.uniform(size=CHAINS), np.cumsum(w) - w / 2, GRID) for w in all])
            .astype(np.float32)[..., np.newaxis]
            for all in self.weights
        ]  # fmt: skip


def lone(design: Design, values: dict[str, float]) -> Exact:
    by_level = np.zeros((design.factors[0].levels, len(GRID)))
    np.add.at(by_level, design.factors[0].codes, row_densities(design, values))
    return Exact([normalised(by_level + stats.norm.logpdf(GRID, 0, SD))])


def in_blocks(design: Design, values: dict[str, float]) -> Exact:
    """A level's density depends on the sum of block and pot: sum over the pots of a block first."""
    block, pot = (next(f for f in design.factors if f.name == n) for n in ("block", "block:g"))
    by_pot = np.zeros((pot.levels, len(GRID)))
    np.add.at(by_pot, pot.codes, row_densities(design, values))
    parent = np.zeros(pot.levels, int)
    parent[pot.codes] = block.codes
    prior_block = stats.norm.logpdf(GRID, 0, values["sd(block)"])
    prior_pot = stats.norm.pdf(GRID, 0, values["sd(block:g)"])
    prior_pot /= prior_pot.sum()
    joints, given = [], []
    for density in by_pot:
        top = density.max()
        # [block's effect, pot's effect]; beyond the grid's ends there is next to nothing
        at_sum = np.interp(np.add.outer(GRID, GRID), GRID, np.exp(density - top), 0, 0)
        joints.append(at_sum * prior_pot)
        given.append(np.log(np.maximum(joints[-1].sum(1), 1e-300)))
    logs = np.zeros((block.levels, len(GRID))) + prior_block
    np.add.at(logs, parent, np.array(given))
    of_block = normalised(logs)
    of_pot = []
    for joint, inside, b in zip(joints, given, parent, strict=True):
        of_pot.append((of_block[b] / np.exp(inside)) @ joint)
    by_name = {"block": of_block, "block:g": np.array(of_pot)}
    return Exact([by_name[f.name] for f in design.factors])


class Sampler:
    """Sweeps at known parameters, compiled once; the curvature is that of effects of zero."""

    def __init__(self, design: Design, values: dict[str, float]) -> None:
        self.design = design
        self.layout, self.arrays = arrays.on_device(design, CHAINS)
        self.parameters = arrays.to_parameters(design, values)
        zero = [tf.zeros([f.levels, CHAINS, 1]) for f in design.factors]
        zero = arrays.State(self.parameters, zero)
        self.state = iteration.begin(self.layout, self.arrays, zero, True)
        self.run = tf.function(self._sweep, autograph=False, jit_compile=True)

    def predictor(self, effects) -> tf.Tensor:
        return linear_predictor(self.arrays, self.parameters, effects)

    def _sweep(self, effects, predictor, step_sizes, seed, parents_too):
        state = self.state._replace(effects=effects, predictor=predictor, step_sizes=step_sizes)
        state, acceptance = block_hmc.sweep(self.layout, self.arrays, state, seed, parents_too)
        return state.effects, state.predictor, acceptance

    def __call__(self, effects, sweeps, step_size, seed, parents_too=lambda i: True, adapting=0):
        """Effects, and the acceptance of the last sweep; steps adapt in the first sweeps."""
        effects = [tf.constant(u) for u in effects]
        predictor = self.predictor(effects)
        sizes = [tf.fill([f.levels], np.float32(step_size)) for f in self.design.factors]
        for i in range(sweeps):
            effects, predictor, acceptance = self.run(
                effects, predictor, sizes, tf.constant([seed, i]), tf.constant(parents_too(i))
            )
            if i < adapting:
                sizes = adaptation.adapt(sizes, acceptance, tf.constant(0.5))
        np.testing.assert_allclose(predictor, self.predictor(effects), atol=1e-4)  # kept up to date
        return [u.numpy() for u in effects], [a.numpy() for a in acceptance]

    def far(self, value: float) -> list[np.ndarray]:
        return [np.full((f.levels, CHAINS, 1), value, np.float32) for f in self.design.factors]


@pytest.fixture(scope="module", params=list(FAMILIES))
def sampler(request) -> tuple[Sampler, Exact]:
    design, values = made(request.param)
    return Sampler(design, values), lone(design, values)


@pytest.mark.parametrize("start", [-4.0, 4.0])
def test_a_start_far_away_is_forgotten(sampler, start):
    """The curvature is that of effects of zero. Far out in a Poisson's tail it is 55 times larger,
    and there a longer step than this would always be refused. It grows later: a level's chains
    share it, and so it has to suit the one that is furthest out from the beginning."""
    sampler, exact = sampler
    effects, [acceptance] = sampler(sampler.far(start), 50, 0.2, seed=1, adapting=25)
    assert acceptance.mean() > 0.8
    exact.check(effects)


@pytest.mark.parametrize("step_size", [0.7, 1.9])
def test_the_exact_conditional_is_left_as_it_is(sampler, step_size):
    """Also with steps that are much too long, where the accept step has something to do."""
    sampler, exact = sampler
    start = exact.draw(seed=1)
    exact.check(start)
    effects, [acceptance] = sampler(start, 2, step_size, seed=2)
    exact.check(effects)
    assert np.abs(effects[0] - start[0]).mean() > 0.1
    assert acceptance.min() < 0.8 if step_size > 1 else acceptance.mean() > 0.9


def test_a_wrong_density_is_seen(sampler):
    """The check's own check: draws at a coefficient that is off."""
    sampler, exact = sampler
    values = arrays.from_parameters(sampler.design, sampler.parameters)
    with pytest.raises(AssertionError):
        lone(sampler.design, values | {"x": 1.0}).check(exact.draw(seed=3))
    wider = normalised(0.9 * np.log(np.maximum(exact.weights[0], 1e-300)))
    with pytest.raises(AssertionError):
        exact.check(Exact([wider]).draw(seed=3))


def every(i: int) -> bool:
    return i % program.PARENTS_EVERY == 0


@pytest.fixture(scope="module", params=["cumulative", "poisson"])
def nested_sampler(request) -> tuple[Sampler, Exact]:
    design, values = made(request.param, nested=True)
    return Sampler(design, values), in_blocks(design, values)


@pytest.mark.parametrize(
    "parents_too", [lambda i: True, every, lambda i: False], ids=["always", "every", "never"]
)
def test_parents_may_be_left_to_the_group_moves(nested_sampler, parents_too):
    sampler, exact = nested_sampler
    effects, _ = sampler(sampler.far(1.5), 60, 0.7, 4, parents_too)
    exact.check(effects)


def test_a_parent_is_left_alone_without_parents_too(nested_sampler):
    sampler, _ = nested_sampler
    parent = [block_hmc.is_parent(sampler.layout, k) for k in (0, 1)]
    assert parent == [f.name == "block" for f in sampler.design.factors]
    for parents_too in (True, False):
        _, acceptance = sampler(sampler.far(0.3), 1, 0.7, 5, lambda i, p=parents_too: p)
        for is_parent, accepted in zip(parent, acceptance, strict=True):
            alone = is_parent and not parents_too
            assert np.all(accepted == 1.0) == alone
